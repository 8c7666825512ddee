"""Exercises of lesson 3. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/03.py"""

import numpy as np


def taps(p, size, kernel, stride, padding):
    """Return for each output row the tap that multiplies row p of the image, or -1 if that output does not use it.

    size: rows of the image; kernel: rows of the kernel; stride; padding: rows of zeros on either side.
    The result is an array of whole numbers, one for each output row.
    """
    raise NotImplementedError


def conv_dx(dy, w, shape, stride, padding):
    """Return the gradient of a convolution with respect to its input, of the shape `shape` = (N, H, W, C).

    dy (N, OH, OW, D): the gradient with respect to the output; w (KH, KW, C, D); stride, padding: one number
    each, for rows and columns. dx has the dtype of dy.
    """
    raise NotImplementedError


def conv_dw(dy, x, kernel, stride, padding):
    """Return the gradient of a convolution with respect to its weights, (KH, KW, C, D).

    dy (N, OH, OW, D); x (N, H, W, C); kernel: (KH, KW); stride, padding: one number each, for rows and columns.
    dw has the dtype of x.
    """
    raise NotImplementedError
