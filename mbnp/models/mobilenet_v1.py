"""MobileNetV1 of the paper, and the same body for 32x32 images.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
arXiv:1704.04861, table 1. The paper's second-to-last depthwise row says stride 2 on a feature map of 7x7, which would
leave 4x4; the table's own next row, and every implementation, has stride 1.
"""

import math
from typing import Any

import numpy as np

from mbnp import renamed
from mbnp.errors import MbnpError
from mbnp.layers import BatchNorm, Conv, GlobalAveragePool, Linear, ReLU
from mbnp.models.blocks import separable_block, standard_block
from mbnp.models.build import begin, finish, scaled
from mbnp.network import Layer, Network, Sequential

STEM = 32
# fmt: off
BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1),
          (512, 1), (1024, 2), (1024, 1)]  # channels out, stride
# fmt: on
CIFAR_NAMES = ("conv1", "bn1", "relu1", "conv2", "bn2", "relu2")


@renamed.keyword("relu_cap", "max_value")
def mobilenet_v1(
    num_classes: int = 1000,
    width_mult: float = 1.0,
    resolution: int = 224,
    seed: int = 0,
    dtype: Any = np.float32,
    max_value: float | None = None,
    channels: int = 3,
) -> Network:
    """Build MobileNetV1: 4,231,976 parameters and 568,740,352 MACs at width 1 and 224 pixels, with 1000 classes.

    `resolution` only says what images the network is meant for; forward takes any size. max_value=6 makes every
    ReLU the ReLU6 that timm's weights were trained with. Names: `features.0` is the stem, `features.1` to
    `features.13` are the separable blocks, then `classifier`.
    """
    if resolution < 1:
        raise MbnpError(f"resolution must be at least 1 pixel, got {resolution}")
    max_value = None if max_value is None else float(max_value)
    if max_value is not None and not 0 < max_value < math.inf:
        raise MbnpError(f"max_value must be a number above 0, such as 6, or None, got {max_value}")
    rng = begin(num_classes, seed, dtype, channels)
    c_out = scaled(STEM, width_mult)
    features: list[Layer] = [standard_block(channels, c_out, 2, rng, dtype, max_value=max_value)]
    for width, stride in BLOCKS:
        c_in, c_out = c_out, scaled(width, width_mult)
        features.append(separable_block(c_in, c_out, stride, rng, dtype, max_value))
    layers = {
        "features": Sequential(features),
        "pool": GlobalAveragePool(),
        "classifier": Linear(c_out, num_classes, rng=rng, dtype=dtype),
    }
    options = {"num_classes": num_classes, "width_mult": width_mult, "resolution": resolution}
    clamp = {} if max_value is None else {"relu_cap": max_value}  # the key that files have
    return finish(Network(layers, resolution, channels), "mobilenet-v1", **options, **clamp)


def mobilenet_v1_cifar(
    num_classes: int = 10, width_mult: float = 1.0, seed: int = 0, dtype: Any = np.float32, channels: int = 3
) -> Network:
    """Build the paper's body with a stride-1 stem, for 32x32 images, named as in kuangliu/pytorch-cifar.

    `conv1`, `bn1`, `layers.I.{conv1,bn1,conv2,bn2}`, `linear`.
    """
    rng = begin(num_classes, seed, dtype, channels)
    c_out = scaled(STEM, width_mult)
    layers: dict[str, Layer] = {
        "conv1": Conv(channels, c_out, 3, 1, padding=1, bias=False, rng=rng, dtype=dtype),
        "bn1": BatchNorm(c_out, dtype=dtype),
        "relu1": ReLU(),
    }
    blocks = []
    for width, stride in BLOCKS:
        c_in, c_out = c_out, scaled(width, width_mult)
        blocks.append(separable_block(c_in, c_out, stride, rng, dtype, names=CIFAR_NAMES))
    layers["layers"] = Sequential(blocks)
    layers["pool"] = GlobalAveragePool()
    layers["linear"] = Linear(c_out, num_classes, rng=rng, dtype=dtype)
    options = {"num_classes": num_classes, "width_mult": width_mult}
    return finish(Network(layers, 32, channels), "mobilenet-v1-cifar", **options)
