"""Exercises of lesson 5. Replace each `raise NotImplementedError`, then: mbnp grade tutorials/exercises/05.py"""


def map_sizes(size, strides):
    """Return the size of the feature map after each of a chain of 3x3 convolutions with padding 1.

    size: rows of the image; strides: a list, one for each convolution. The result has as many whole numbers.
    """
    raise NotImplementedError


def receptive_field(layers):
    """Return the number of pixels of the image, in each direction, that one output of the last layer depends on.

    layers: a list of (kernel, stride), the first layer first.
    """
    raise NotImplementedError


def count(size, stem, blocks, classes):
    """Return (parameters, MACs) of a network like the article's, for one image of size x size pixels and 3 channels.

    A 3x3 convolution to `stem` channels (stride 1, padding 1, with bias) and BatchNorm; for each (channels out,
    stride) of `blocks` a 3x3 depthwise convolution with that stride and padding 1, BatchNorm, a pointwise
    convolution, BatchNorm (no biases); the mean over the feature map, and a linear layer to `classes` (with bias).
    MACs: of convolutions and the linear layer, without biases.
    """
    raise NotImplementedError
