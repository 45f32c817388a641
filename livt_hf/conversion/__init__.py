"""In: a checkpoint of the official code, MAE, timm or this package.

Out: the same weights in another of these formats, or as ONNX, checked tensor by tensor.
"""
