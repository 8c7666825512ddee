"""MobileNetV2: inverted residuals, whose shortcuts join the narrow ends, and linear bottlenecks.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, arXiv:1801.04381, table 2. A block
widens its input by 1x1 convolution, t times, filters each channel by itself, and comes back to few channels by a 1x1
convolution without activation: a ReLU on few channels would lose what it cuts off.
"""

from typing import Any, NamedTuple

import numpy as np

from mbnp.layers import BatchNorm, Conv, Depthwise, Dropout, GlobalAveragePool, Linear, Pointwise, ReLU
from mbnp.models.build import begin, divisible, finish
from mbnp.network import Layer, Network, Residual, Sequential

STEM, HEAD = 32, 1280
# fmt: off
BLOCKS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
          (6, 320, 1, 1)]  # t, channels out, how many, stride of the first
# fmt: on
CIFAR_STRIDE_1 = 1  # the block whose stride is 1 in kuangliu's


class Channels(NamedTuple):
    """The channels of one network: of its stem, of each block (widened, out, and its stride), of its last layer."""

    stem: int
    blocks: tuple[tuple[int, int, int], ...]
    head: int


def widths(width_mult: float) -> Channels:
    """Return the channels at a width, rounded to multiples of 8 as the authors' code does."""
    stem = c_out = divisible(STEM * width_mult)
    blocks = []
    for t, full, count, first_stride in BLOCKS:
        for b in range(count):
            c_in, c_out = c_out, divisible(full * width_mult)
            blocks.append((c_in * t, c_out, first_stride if b == 0 else 1))
    return Channels(stem, tuple(blocks), divisible(HEAD * max(1.0, width_mult)))


def mobilenet_v2(
    num_classes: int = 1000, width_mult: float = 1.0, resolution: int = 224, seed: int = 0, dtype: Any = np.float32,
    channels: int = 3,
) -> Network:  # fmt: skip
    """Build MobileNetV2: 3,504,872 parameters and 300,774,272 MACs at width 1 and 224 pixels, with 1000 classes.

    Channels are rounded to multiples of 8, and the last 1280 are never fewer, as the authors' code does. Names are
    torchvision's: `features.0` is the stem, `features.1` to `features.17` the blocks, `features.18` the last 1x1
    convolution, then `classifier.1`. `resolution` only says what images the network is meant for.
    """
    net = build(widths(width_mult), num_classes, resolution, seed, dtype, channels)
    options = {"num_classes": num_classes, "width_mult": width_mult, "resolution": resolution}
    return finish(net, "mobilenet-v2", **options)


def build(
    found: Channels, num_classes: int, resolution: int = 224, seed: int = 0, dtype: Any = np.float32, channels: int = 3
) -> Network:
    """Build MobileNetV2 with any channels, such as those of a file."""
    rng = begin(num_classes, seed, dtype, channels)
    features: list[Layer] = [_conv_bn(Conv(channels, found.stem, 3, 2, padding=1, bias=False, rng=rng, dtype=dtype))]
    c_in = found.stem
    for wide, c_out, stride in found.blocks:
        features.append(_block(c_in, wide, c_out, stride, rng, dtype))
        c_in = c_out
    features.append(_conv_bn(Pointwise(c_in, found.head, bias=False, rng=rng, dtype=dtype)))
    last = Linear(found.head, num_classes, rng=rng, dtype=dtype)
    layers = {
        "features": Sequential(features),
        "pool": GlobalAveragePool(),
        "classifier": Sequential([Dropout(0.2, seed=int(rng.integers(1_000_000))), last]),
    }
    return Network(layers, resolution, channels)


def _conv_bn(conv: Any) -> Sequential:
    c_out, dtype = conv.weight.value.shape[-1], conv.weight.value.dtype
    return Sequential([conv, BatchNorm(c_out, dtype=dtype), ReLU(6.0)])


def _block(c_in: int, wide: int, c_out: int, stride: int, rng: np.random.Generator, dtype: Any) -> Layer:
    """Build an inverted residual (the paper's figure 4d and table 1); without a shortcut where the shape changes."""
    parts: list[Layer] = [] if wide == c_in else [_conv_bn(Pointwise(c_in, wide, bias=False, rng=rng, dtype=dtype))]
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
    stem, rows, head = widths(width_mult)
    layers: dict[str, Layer] = {
        "conv1": Conv(channels, stem, 3, 1, padding=1, bias=False, rng=rng, dtype=dtype),
        "bn1": BatchNorm(stem, dtype=dtype),
        "relu1": ReLU(),
    }
    blocks, c_in = [], stem
    for i, (wide, c_out, stride) in enumerate(rows):
        blocks.append(_cifar_block(c_in, wide, c_out, 1 if i == CIFAR_STRIDE_1 else stride, rng, dtype))
        c_in = c_out
    layers |= {
        "layers": Sequential(blocks),
        "conv2": Pointwise(c_in, head, bias=False, rng=rng, dtype=dtype),
        "bn2": BatchNorm(head, dtype=dtype),
        "relu2": ReLU(),
        "pool": GlobalAveragePool(),
        "linear": Linear(head, num_classes, rng=rng, dtype=dtype),
    }
    options = {"num_classes": num_classes, "width_mult": width_mult}
    return finish(Network(layers, 32, channels), "mobilenet-v2-cifar", **options)


def _cifar_block(c_in: int, wide: int, c_out: int, stride: int, rng: np.random.Generator, dtype: Any) -> Layer:
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
