"""MobileNetV1 of the paper, and the same body for 32x32 pictures.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
arXiv:1704.04861, table 1. The paper's second-to-last depthwise row says stride 2 on a map of 7x7, which would
leave 4x4; the table's own next row, and everybody's code, has stride 1.
"""

from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.layers import BatchNorm, Conv, Depthwise, GlobalAveragePool, Linear, Pointwise, ReLU
from mbnp.models.build import begin, finish, scaled
from mbnp.models.mobilenet_v1_small import separable_block, standard_block
from mbnp.network import Layer, Network, Sequential

STEM = 32
# fmt: off
BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1),
          (512, 1), (1024, 2), (1024, 1)]  # channels out, stride
# fmt: on


def mobilenet_v1(
    num_classes: int = 1000,
    width_mult: float = 1.0,
    resolution: int = 224,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Network:
    """MobileNetV1: 4,231,976 parameters and 568,740,352 MACs at width 1 and 224 pixels, with 1000 classes.

    `resolution` only says what pictures the network is meant for; forward takes any size. Names:
    `features.0` is the stem, `features.1` to `features.13` are the separable blocks, then `classifier`.
    """
    if resolution < 1:
        raise MbnpError(f"resolution must be at least 1 pixel, got {resolution}")
    rng = begin(num_classes, seed, dtype)
    channels = scaled(STEM, width_mult)
    features: list[Layer] = [standard_block(3, channels, 2, rng, dtype)]
    for c_out, stride in BLOCKS:
        c_in, channels = channels, scaled(c_out, width_mult)
        features.append(separable_block(c_in, channels, stride, rng, dtype))
    layers = {
        "features": Sequential(features),
        "pool": GlobalAveragePool(),
        "classifier": Linear(channels, num_classes, rng=rng, dtype=dtype),
    }
    options = {"num_classes": num_classes, "width_mult": width_mult, "resolution": resolution}
    return finish(Network(layers, resolution), "mobilenet-v1", **options)


def mobilenet_v1_cifar(
    num_classes: int = 10, width_mult: float = 1.0, seed: int = 0, dtype: Any = np.float32
) -> Network:
    """The paper's body with a stride-1 stem, for 32x32 pictures, named as in kuangliu/pytorch-cifar.

    `conv1`, `bn1`, `layers.I.{conv1,bn1,conv2,bn2}`, `linear`.
    """
    rng = begin(num_classes, seed, dtype)
    channels = scaled(STEM, width_mult)
    layers: dict[str, Layer] = {
        "conv1": Conv(3, channels, 3, 1, padding=1, bias=False, rng=rng, dtype=dtype),
        "bn1": BatchNorm(channels, dtype=dtype),
        "relu1": ReLU(),
    }
    blocks = []
    for c_out, stride in BLOCKS:
        c_in, channels = channels, scaled(c_out, width_mult)
        blocks.append(_named_block(c_in, channels, stride, rng, dtype))
    layers["layers"] = Sequential(blocks)
    layers["pool"] = GlobalAveragePool()
    layers["linear"] = Linear(channels, num_classes, rng=rng, dtype=dtype)
    options = {"num_classes": num_classes, "width_mult": width_mult}
    return finish(Network(layers, resolution=32), "mobilenet-v1-cifar", **options)


def _named_block(c_in: int, c_out: int, stride: int, rng: np.random.Generator, dtype: Any) -> Sequential:
    return Sequential(
        {
            "conv1": Depthwise(c_in, 3, stride, padding=1, bias=False, rng=rng, dtype=dtype),
            "bn1": BatchNorm(c_in, dtype=dtype),
            "relu1": ReLU(),
            "conv2": Pointwise(c_in, c_out, bias=False, rng=rng, dtype=dtype),
            "bn2": BatchNorm(c_out, dtype=dtype),
            "relu2": ReLU(),
        }
    )
