"""Exercises of lesson 10. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/10.py"""

import numpy as np


def fold(w, b, gamma, beta, mean, var, eps):
    """Return weights (KH, KW, C, D) and bias (D,) of one convolution that includes the BatchNorm after it.

    w (KH, KW, C, D), b (D,): the convolution's; gamma, beta, mean, var (D,), eps: of the BatchNorm in inference.
    Both results have the dtype of w.
    """
    raise NotImplementedError


def normalise_relu(z, mean, var, gamma, beta, eps):
    """Return BatchNorm of z with the given statistics, then ReLU: a new array like z (N, H, W, C).

    mean, var, gamma, beta (C,); eps is added to the variance before the root. z is not changed.
    """
    raise NotImplementedError


def blocked_matmul(a, b):
    """Return the matrix product of a (M, K) and b (K, N): a new array (M, N) of their dtype.

    It is computed by tiles of 4 rows and 4 columns, whose sums are kept in local variables until they are complete.
    M, K and N may be any numbers: the last tiles are smaller where 4 does not divide M or N.
    """
    raise NotImplementedError


def combine(counts, means, m2s):
    """Return the mean (C,) and biased variance (C,) of all pixels, from the statistics of T tiles.

    counts (T,): pixels of each tile; means (T, C); m2s (T, C): the sum of squared deviations of each tile's pixels
    from the tile's own mean.
    """
    raise NotImplementedError
