"""What `benchmark.py` measures with: images, the sides of a comparison, clocks, and the profile of a step."""
