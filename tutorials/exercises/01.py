"""Exercises of lesson 1. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/01.py"""

import numpy as np


def output_size(size, kernel, stride, padding):
    """Return the number of output rows (or columns), an int.

    size: rows of the input; kernel: rows of the kernel; stride; padding: rows of zeros on either side.
    """
    raise NotImplementedError


def conv_pixel(x, w, i, j, d, stride, padding):
    """Return one number of the output, that of row i, column j and channel d.

    x (H, W, C): one image; w (KH, KW, C, D); stride, padding: one number each, for rows and columns.
    """
    raise NotImplementedError


def convolve(x, w, b, stride, padding):
    """Return a whole convolution, y (N, OH, OW, D), without a loop over pixels.

    x (N, H, W, C), w (KH, KW, C, D), b (D,); stride, padding: one number each, for rows and columns.
    NumPy's np.pad and np.lib.stride_tricks.sliding_window_view are enough. y has the dtype of x.
    """
    raise NotImplementedError
