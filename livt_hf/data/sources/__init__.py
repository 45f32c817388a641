"""In: a folder, a file list, a Parquet file, a Hub repository or the name of a benchmark.

Out: one table a split, with an image and a label column.
"""
