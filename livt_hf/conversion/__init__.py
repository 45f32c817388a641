"""In: a checkpoint of the official LiVT or MAE code, of timm, or of this package.

Out: the same weights as a native folder, an official checkpoint, a timm folder or an ONNX file, verified.
"""
