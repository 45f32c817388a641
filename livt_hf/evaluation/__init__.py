"""In: a trained classifier and a split, or image files.

Out: predictions, the dictionary of results.json, and post-hoc changes folded into the classifier.
"""
