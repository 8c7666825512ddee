"""Exercises of lesson 12. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/12.py"""

import numpy as np


def weight_from_torch(w, depthwise):
    """Return a convolution's weight in mbnp's layout.

    w: PyTorch's, (C out, C in, KH, KW), or (C, 1, KH, KW) where `depthwise` is true.
    The result is (KH, KW, C in, C out), or (KH, KW, C) where `depthwise` is true.
    """
    raise NotImplementedError


def same_padding(size, kernel, stride):
    """Return (before, after), the zeros that TensorFlow's SAME adds at the two ends of a row of `size` pixels.

    The output has ceil(size / stride) pixels. If the number of zeros is odd, the odd one goes to the end.
    """
    raise NotImplementedError


def first_difference(ours, theirs, tolerance):
    """Return the index of the first layer whose output differs from theirs, or -1 if none does.

    ours: a list of arrays, one per layer: feature maps (N, H, W, C), or (N, C) after the pool
    theirs: the same from PyTorch: feature maps (N, C, H, W), or (N, C)
    An output differs if a number is off by more than `tolerance` times the largest absolute value of their output.
    There is no NaN here. Where there may be one, `>` does not find it: every comparison with NaN is false.
    """
    raise NotImplementedError
