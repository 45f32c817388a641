"""In: class counts, and a checkpoint or a size.

Out: the masked autoencoder and the classifier, each a native transformers checkpoint.
"""
