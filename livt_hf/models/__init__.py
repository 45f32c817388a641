"""In: class counts, and sizes or a checkpoint of this package, transformers or timm.

Out: a masked autoencoder or an image classifier, which saves as a native transformers checkpoint.
"""
