"""MobileNetV2: inverted residuals, whose shortcuts join the narrow ends, and linear bottlenecks.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, arXiv:1801.04381, table 2. A block
widens its input by 1x1 convolution, t times, filters each channel by itself, and comes back to few channels by a 1x1
convolution without activation: a ReLU on few channels would lose what it cuts off.
"""

from typing import Any

import numpy as np

from mbnp.layers import BatchNorm, Conv, Depthwise, Dropout, GlobalAveragePool, Linear, Pointwise, ReLU
from mbnp.models.build import begin, divisible, finish
from mbnp.network import Layer, Network, Residual, Sequential

STEM, HEAD = 32, 1280
# fmt: off
BLOCKS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
          (6, 320, 1, 1)]  # t, channels out, how many, stride of the first
# fmt: on
CIFAR_STRIDES = {24: 1}  # where kuangliu's differ


def mobilenet_v2(
    num_classes: int = 1000, width_mult: float = 1.0, resolution: int = 224, seed: int = 0, dtype: Any = np.float32,
    channels: int = 3,
) -> Network:  # fmt: skip
    """Build MobileNetV2: 3,504,872 parameters and 300,774,272 MACs at width 1 and 224 pixels, with 1000 classes.

    Channels are rounded to multiples of 8, and the last 1280 are never fewer, as the authors' code does. Names are
    torchvision's: `features.0` is the stem, `features.1` to `features.17` the blocks, `features.18` the last 1x1
    convolution, then `classifier.1`. `resolution` only says what images the network is meant for.
    """
    rng = begin(num_classes, seed, dtype, channels)
    width = divisible(STEM * width_mult)
    features: list[Layer] = [_conv_bn(Conv(channels, width, 3, 2, padding=1, bias=False, rng=rng, dtype=dtype))]
    for t, c_out, count, first_stride in BLOCKS:
        for b in range(count):
            c_in, width = width, divisible(c_out * width_mult)
            features.append(_block(c_in, t, width, first_stride if b == 0 else 1, rng, dtype))
    head = divisible(HEAD * max(1.0, width_mult))
    features.append(_conv_bn(Pointwise(width, head, bias=False, rng=rng, dtype=dtype)))
    last = Linear(head, num_classes, rng=rng, dtype=dtype)
    layers = {
        "features": Sequential(features),
        "pool": GlobalAveragePool(),
        "classifier": Sequential([Dropout(0.2, seed=int(rng.integers(1_000_000))), last]),
    }
    options = {"num_classes": num_classes, "width_mult": width_mult, "resolution": resolution}
    return finish(Network(layers, resolution, channels), "mobilenet-v2", **options)


def _conv_bn(conv: Any) -> Sequential:
    channels, dtype = conv.weight.value.shape[-1], conv.weight.value.dtype
    return Sequential([conv, BatchNorm(channels, dtype=dtype), ReLU(6.0)])


def _block(c_in: int, t: int, c_out: int, stride: int, rng: np.random.Generator, dtype: Any) -> Layer:
    """Build an inverted residual (the paper's figure 4d and table 1); without a shortcut where the shape changes."""
    wide = c_in * t
    parts: list[Layer] = [] if t == 1 else [_conv_bn(Pointwise(c_in, wide, bias=False, rng=rng, dtype=dtype))]
    parts += [
        _conv_bn(Depthwise(wide, 3, stride, padding=1, bias=False, rng=rng, dtype=dtype)),
        Pointwise(wide, c_out, bias=False, rng=rng, dtype=dtype),
        BatchNorm(c_out, dtype=dtype),
    ]
    body = {"conv": Sequential(parts)}
    return Residual(body) if stride == 1 and c_in == c_out else Sequential(body)


def mobilenet_v2_cifar(
    num_classes: int = 10, width_mult: float = 1.0, seed: int = 0, dtype: Any = np.float32, channels: int = 3
) -> Network:
    """Build MobileNetV2 for 32x32 images, named as in kuangliu/pytorch-cifar: 2,296,922 parameters at width 1.

    It differs from the paper: the first two strides are 1; a block widens also where t is 1; its activations are ReLU,
    not ReLU6; a block of stride 1 has a shortcut also where channels change, through a 1x1 convolution and BatchNorm;
    no dropout. `conv1`, `bn1`, `layers.I.{conv1,bn1,conv2,bn2,conv3,bn3,shortcut.{0,1}}`, `conv2`, `bn2`, `linear`.
    """
    rng = begin(num_classes, seed, dtype, channels)
    width = divisible(STEM * width_mult)
    layers: dict[str, Layer] = {
        "conv1": Conv(channels, width, 3, 1, padding=1, bias=False, rng=rng, dtype=dtype),
        "bn1": BatchNorm(width, dtype=dtype),
        "relu1": ReLU(),
    }
    blocks = []
    for t, c_out, count, first_stride in BLOCKS:
        for b in range(count):
            c_in, width = width, divisible(c_out * width_mult)
            stride = CIFAR_STRIDES.get(c_out, first_stride) if b == 0 else 1
            blocks.append(_cifar_block(c_in, t, width, stride, rng, dtype))
    head = divisible(HEAD * max(1.0, width_mult))
    layers |= {
        "layers": Sequential(blocks),
        "conv2": Pointwise(width, head, bias=False, rng=rng, dtype=dtype),
        "bn2": BatchNorm(head, dtype=dtype),
        "relu2": ReLU(),
        "pool": GlobalAveragePool(),
        "linear": Linear(head, num_classes, rng=rng, dtype=dtype),
    }
    options = {"num_classes": num_classes, "width_mult": width_mult}
    return finish(Network(layers, 32, channels), "mobilenet-v2-cifar", **options)


def _cifar_block(c_in: int, t: int, c_out: int, stride: int, rng: np.random.Generator, dtype: Any) -> Layer:
    wide = c_in * t
    body: dict[str, Layer] = {
        "conv1": Pointwise(c_in, wide, bias=False, rng=rng, dtype=dtype),
        "bn1": BatchNorm(wide, dtype=dtype),
        "relu1": ReLU(),
        "conv2": Depthwise(wide, 3, stride, padding=1, bias=False, rng=rng, dtype=dtype),
        "bn2": BatchNorm(wide, dtype=dtype),
        "relu2": ReLU(),
        "conv3": Pointwise(wide, c_out, bias=False, rng=rng, dtype=dtype),
        "bn3": BatchNorm(c_out, dtype=dtype),
    }
    if stride != 1:
        return Sequential(body)
    if c_in == c_out:
        return Residual(body)
    across = Pointwise(c_in, c_out, bias=False, rng=rng, dtype=dtype)
    return Residual(body, Sequential([across, BatchNorm(c_out, dtype=dtype)]))
