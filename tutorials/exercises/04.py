"""Exercises of lesson 4. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/04.py"""

import numpy as np


def batchnorm_forward(x, gamma, beta, eps):
    """Return y, x normalised as in training, of the shape and dtype of x.

    x (N, H, W, C); gamma, beta (C,): the learned scale and shift; eps: a small number, added to the variance.
    """
    raise NotImplementedError


def batchnorm_dx(dy, x, gamma, eps):
    """Return the gradient of `batchnorm_forward` with respect to x, of the shape and dtype of x.

    dy (N, H, W, C): the gradient with respect to y; x, gamma, eps: the inputs of the forward pass.
    """
    raise NotImplementedError


def running_statistics(running_mean, running_var, x, momentum):
    """Return the running averages after the batch x, as PyTorch computes them: (running_mean, running_var).

    running_mean, running_var (C,): the averages before; x (N, H, W, C); momentum: the weight of the new batch.
    Return new arrays, of the same dtype.
    """
    raise NotImplementedError
