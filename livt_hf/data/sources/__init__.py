"""In: a folder, list files, a dataset on the Hub or the name of a benchmark.

Out: one table per split, with the columns "image" and "label".
"""
