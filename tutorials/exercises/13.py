"""Exercises of lesson 13. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/13.py"""

import numpy as np


def divisible(channels, divisor):
    """Return the multiple of `divisor` nearest to `channels`, a half rounded up, but never below 90 % of `channels`.

    channels: a number above 0, such as 32 * 0.35; divisor: a whole number, such as 8. The result is a whole number.
    """
    raise NotImplementedError


def inverted_residual_forward(x, w1, w2, w3):
    """Return the output of an inverted residual of stride 1, (N, H, W, D), without its BatchNorms.

    x (N, H, W, C); w1 (C, T): the 1x1 convolution that widens, then ReLU6; w2 (3, 3, T): the depthwise convolution,
    with a border of one zero pixel, then ReLU6; w3 (T, D): the 1x1 convolution that projects. x is added where D = C.
    """
    raise NotImplementedError


def inverted_residual_backward(dy, x, a, b, w1, w2, w3):
    """Return dx, dw1, dw2, dw3 of `inverted_residual_forward`: the gradients, each of the shape of its array.

    dy (N, H, W, D): the gradient with respect to the output. a, b (N, H, W, T): what forward kept, the outputs of the
    widening and of the depthwise convolution, *before* ReLU6, whose slope is 1 where 0 < a < 6, and 0 elsewhere.
    """
    raise NotImplementedError


def squeeze_excite_backward(dy, x, w1, w2):
    """Return dx (N, H, W, C), dw1 (C, R), dw2 (R, C) of y = x * s, from dy (N, H, W, C) and x (N, H, W, C).

    s (N, C) = hard_sigmoid(relu(m @ w1) @ w2), m (N, C): the mean of each feature map of each image; no biases.
    hard_sigmoid(z) = min(max(z + 3, 0), 6) / 6: its slope is 1/6 where -3 < z < 3, and 0 elsewhere.
    """
    raise NotImplementedError
