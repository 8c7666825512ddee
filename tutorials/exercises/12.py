"""Exercises of lesson 12. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/12.py"""

import numpy as np


def weight_from_torch(w, depthwise):
    """A convolution's weight in mbnp's layout.

    w: PyTorch's, (C out, C in, KH, KW), or (C, 1, KH, KW) where `depthwise` is true.
    Returns (KH, KW, C in, C out), or (KH, KW, C) where `depthwise` is true.
    """
    raise NotImplementedError


def same_padding(size, kernel, stride):
    """(before, after): how many zeros TensorFlow's SAME puts at the two ends of a row of `size` pixels.

    The output gets ceil(size / stride) pixels. If the zeros cannot be shared out evenly, the odd one goes to the end.
    """
    raise NotImplementedError


def first_difference(ours, theirs, tolerance):
    """The index of the first layer whose output is not theirs, or -1 if all are.

    ours: a list of arrays, one a layer: maps (N, H, W, C), or (N, C) behind the pool
    theirs: the same from PyTorch: maps (N, C, H, W), or (N, C)
    An output is theirs if no number is off by more than `tolerance` times the largest absolute value of their output.
    """
    raise NotImplementedError
