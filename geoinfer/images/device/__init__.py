"""Decoding on an NVIDIA GPU: JPEGs by nvImageCodec, resized there by kernels of our own with Pillow's arithmetic.

Nothing here needs a GPU or NVIDIA's packages before a `DeviceDecoder` is opened.
"""
