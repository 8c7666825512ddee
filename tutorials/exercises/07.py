"""Exercises of lesson 7. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/07.py"""

import numpy as np


def cost_ratio(k, c_in, c_out):
    """Return the MACs of a depthwise and a pointwise convolution together, divided by the standard one's, a float.

    k: rows and columns of the kernel; c_in, c_out: channels in and out. Both write feature maps of the same size.
    """
    raise NotImplementedError


def paired_difference(first, second):
    """Return by how much the second network is better, and how certain that is: (difference, error), two floats.

    first, second (S,): the accuracies of two networks; run s of both had the same seed.
    difference: the mean of the S differences, second minus first; error: the standard error of that mean.
    """
    raise NotImplementedError
