"""Exercises of lesson 2. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/02.py"""

import numpy as np


def depthwise(x, w, stride, padding):
    """Return a depthwise convolution, y (N, OH, OW, C), without a loop over pixels.

    x (N, H, W, C), w (KH, KW, C); stride, padding: one number each, for rows and columns. y has the dtype of x.
    """
    raise NotImplementedError


def pointwise(x, w):
    """Return a pointwise convolution, y (N, H, W, D), from x (N, H, W, C) and w (C, D)."""
    raise NotImplementedError


def separable_macs(H, W, K, c_in, c_out, stride):
    """Return the MACs of a depthwise separable layer for one image, an int.

    H, W: the input's size; K: the kernel is K x K with K odd, and the padding K // 2; c_in, c_out: channels;
    stride: the depthwise convolution's.
    """
    raise NotImplementedError
