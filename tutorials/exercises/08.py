"""Exercises of lesson 8. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/08.py"""

import numpy as np

from mbnp.models.article import BLOCKS, STEM


def scaled_macs(width, resolution):
    """Return the MACs of the article's network at a width and a resolution, for one image, an int.

    STEM: the channels of the first convolution (3x3, stride 1, from 3 channels). BLOCKS: (channels out, stride) of
    each separable block, whose depthwise 3x3 has the stride. All padding is 1. The channels of every layer are
    int(c * width). The last feature map is pooled to one pixel, and a linear layer computes 10 logits from it.
    Biases, BatchNorm and pooling are not counted.
    """
    raise NotImplementedError


def pareto_front(macs, accuracy):
    """Return a mask (P,) of bool, true for each point that is on the Pareto front.

    macs (P,), accuracy (P,). One point dominates another if it costs no more and is no less accurate, and is strictly
    better in at least one of the two.
    """
    raise NotImplementedError
