"""Exercises of lesson 11. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/11.py"""

import numpy as np


def class_activation_map(features, w, classes):
    """Return each image's class activation map (N, H, W): negative contributions are 0, the largest value is 1.

    features (N, H, W, C): the last feature map, before the average; w (C, K): of the linear layer after it;
    classes (N,): integers, the class of each image. A map without a positive contribution is 0 everywhere.
    The dtype is that of features.
    """
    raise NotImplementedError


def intersection_over_union(found, truth):
    """Return for each image (N,) the pixels in both masks divided by those in either; 1 where both masks are empty.

    found, truth (N, H, W): bool. The result is float64.
    """
    raise NotImplementedError


def dead_channels(a):
    """Return the channels that are zero on every pixel of every image, (C,) bool. a (N, H, W, C): a ReLU's output."""
    raise NotImplementedError
