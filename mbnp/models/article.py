"""The network of the article that mbnp began with, for 32x32 images, and the same with standard convolutions.

A MobileNetV1 (Howard et al., "MobileNets", 2017, arXiv:1704.04861) of eight blocks. State names are those of
the article's PyTorch class: `conv1.0.weight`, `conv2_1.3.weight`, `fc.bias`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mbnp.layers import AveragePool, Flatten, Linear
from mbnp.models.blocks import separable_block, standard_block
from mbnp.models.build import begin, finish, scaled
from mbnp.network import Layer, Network, Sequential

STEM = 32
BLOCKS = [(32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]  # channels out, stride


def mobilenet_v1_small(
    num_classes: int = 10, width_mult: float = 1.0, seed: int = 0, dtype: Any = np.float32, channels: int = 3
) -> Network:
    """Build the article's network: 280,650 parameters, 7,872,512 MACs for an image of 32x32.

    Only the first convolution has a bias. The last feature map must pool to 1x1: images of 17 to 48 pixels.
    """
    net = _network(separable_block, num_classes, width_mult, seed, dtype, channels)
    return finish(net, "mobilenet-v1-small", num_classes=num_classes, width_mult=width_mult)


def standard_small(
    num_classes: int = 10, width_mult: float = 1.0, seed: int = 0, dtype: Any = np.float32, channels: int = 3
) -> Network:
    """Build the article's network with a standard 3x3 convolution for every separable block, to measure both."""
    net = _network(standard_block, num_classes, width_mult, seed, dtype, channels)
    return finish(net, "standard-small", num_classes=num_classes, width_mult=width_mult)


def _network(
    block: Callable[..., Sequential], num_classes: int, width_mult: float, seed: int, dtype: Any, channels: int
) -> Network:
    rng = begin(num_classes, seed, dtype, channels)
    c_out = scaled(STEM, width_mult)
    layers: dict[str, Layer] = {"conv1": standard_block(channels, c_out, 1, rng, dtype, bias=True)}
    for i, (width, stride) in enumerate(BLOCKS, start=1):
        c_in, c_out = c_out, scaled(width, width_mult)
        layers[f"conv2_{i}"] = block(c_in, c_out, stride, rng, dtype)
    layers["pool"] = AveragePool(2)
    layers["flatten"] = Flatten("this network takes images of 17 to 48 pixels")
    layers["fc"] = Linear(c_out, num_classes, rng=rng, dtype=dtype)
    return Network(layers, 32, channels)
