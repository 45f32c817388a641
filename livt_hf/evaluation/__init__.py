"""In: a trained classifier, and a split of a dataset or image files.

Out: predictions, the metrics of results.json, and copies of the classifier adjusted post hoc.
"""
