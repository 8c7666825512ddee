"""MobileNetV3: MobileNetV2's blocks with squeeze-and-excite, hard-swish and layers that a search has placed.

Howard et al., "Searching for MobileNetV3", 2019, arXiv:1905.02244, tables 1 (large) and 2 (small). A squeeze-and-excite
weighs the channels of a block's widened feature map by what their averages say; it has a quarter of that map's
channels, rounded.

What a width multiplier scales differs between codes. Here, as in Keras: what blocks give out; each block's widened
channels follow from its scaled input; the stem's 16 stay, and the last layer's 1280 (1024) grow, but do not shrink. At
0.75 V3-large has 3,993,528 parameters so, the paper's 4.0 M; torchvision scales every column, which makes 3,377,576.

The paper's tables say 16 for the stem and the first block, and 5.4 M, 219 M MACs (2.5 M, 56 M); counting as in
`cost.py` makes 5,483,032 and 216,589,760 (2,542,856 and 56,510,400).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbnp.layers import (
    BatchNorm,
    Conv,
    Depthwise,
    Dropout,
    GlobalAveragePool,
    HardSigmoid,
    HardSwish,
    Linear,
    Pointwise,
    ReLU,
    Squeeze,
)
from mbnp.models.build import begin, divisible, finish
from mbnp.network import Gate, Layer, Network, Residual, Sequential

STEM = 16
SE, RE, HS = True, ReLU, HardSwish  # squeeze-and-excite, and the names of activations in the tables
# Kernel, widened channels, channels out, squeeze-and-excite, activation, stride: the rows of the paper's tables.
LARGE = [
    (3, 16, 16, False, RE, 1),
    (3, 64, 24, False, RE, 2),
    (3, 72, 24, False, RE, 1),
    (5, 72, 40, SE, RE, 2),
    (5, 120, 40, SE, RE, 1),
    (5, 120, 40, SE, RE, 1),
    (3, 240, 80, False, HS, 2),
    (3, 200, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 480, 112, SE, HS, 1),
    (3, 672, 112, SE, HS, 1),
    (5, 672, 160, SE, HS, 2),
    (5, 960, 160, SE, HS, 1),
    (5, 960, 160, SE, HS, 1),
]
SMALL = [
    (3, 16, 16, SE, RE, 2),
    (3, 72, 24, False, RE, 2),
    (3, 88, 24, False, RE, 1),
    (5, 96, 40, SE, HS, 2),
    (5, 240, 40, SE, HS, 1),
    (5, 240, 40, SE, HS, 1),
    (5, 120, 48, SE, HS, 1),
    (5, 144, 48, SE, HS, 1),
    (5, 288, 96, SE, HS, 2),
    (5, 576, 96, SE, HS, 1),
    (5, 576, 96, SE, HS, 1),
]
LAST_LARGE, LAST_SMALL = 1280, 1024
Rows = Sequence[tuple[int, int, int, bool, Callable[[], Layer], int]]


class Row(NamedTuple):
    """A row with its channels at one width; few: those of squeeze-and-excite, 0 for none."""

    kernel: int
    wide: int
    c_out: int
    few: int
    activation: Callable[[], Layer]
    stride: int


class Channels(NamedTuple):
    """What one network is made of: its stem's channels, its blocks, and the channels of its last two layers."""

    stem: int
    rows: tuple[Row, ...]
    wide: int
    last: int


def widths(table: Rows, last: int, width_mult: float) -> Channels:
    """Return the channels at a width, as Keras scales them."""
    made, c_out, unscaled = [], STEM, STEM
    for kernel, widened, full, se, activation, stride in table:
        c_in, c_out = c_out, divisible(full * width_mult)
        wide = divisible(c_in * (widened / unscaled))
        made.append(Row(kernel, wide, c_out, divisible(wide / 4) if se else 0, activation, stride))
        unscaled = full
    return Channels(STEM, tuple(made), divisible(6 * c_out), divisible(last * max(1.0, width_mult)))


def mobilenet_v3_large(
    num_classes: int = 1000, width_mult: float = 1.0, resolution: int = 224, seed: int = 0, dtype: Any = np.float32,
    channels: int = 3,
) -> Network:  # fmt: skip
    """Build MobileNetV3-Large: 5,483,032 parameters and 216,589,760 MACs at width 1 and 224 pixels, 1000 classes.

    Names are torchvision's: `features.0` is the stem, then the blocks, the last 1x1 convolution, `classifier.0` and
    `classifier.3`. `resolution` only says what images the network is meant for.
    """
    layers = build(widths(LARGE, LAST_LARGE, width_mult), num_classes, 2, seed, dtype, channels)
    options = {"num_classes": num_classes, "width_mult": width_mult, "resolution": resolution}
    return finish(Network(layers, resolution, channels), "mobilenet-v3-large", **options)


def mobilenet_v3_small(
    num_classes: int = 1000, width_mult: float = 1.0, resolution: int = 224, seed: int = 0, dtype: Any = np.float32,
    channels: int = 3,
) -> Network:  # fmt: skip
    """Build MobileNetV3-Small: 2,542,856 parameters and 56,510,400 MACs at width 1 and 224 pixels, 1000 classes.

    Names and options are those of `mobilenet_v3_large`.
    """
    layers = build(widths(SMALL, LAST_SMALL, width_mult), num_classes, 2, seed, dtype, channels)
    options = {"num_classes": num_classes, "width_mult": width_mult, "resolution": resolution}
    return finish(Network(layers, resolution, channels), "mobilenet-v3-small", **options)


def mobilenet_v3_small_cifar(
    num_classes: int = 10, width_mult: float = 1.0, seed: int = 0, dtype: Any = np.float32, channels: int = 3
) -> Network:
    """Build MobileNetV3-Small for 32x32 images: the first two strides are 1, so that 4x4 pixels are left to average.

    Its BatchNorms have the usual momentum of 0.1, since a run on few images is too short for the paper's 0.01.
    """
    rows = [(*SMALL[0][:5], 1), *SMALL[1:]]
    layers = build(widths(rows, LAST_SMALL, width_mult), num_classes, 1, seed, dtype, channels, momentum=0.1)
    options = {"num_classes": num_classes, "width_mult": width_mult}
    return finish(Network(layers, 32, channels), "mobilenet-v3-small-cifar", **options)


def build(
    found: Channels, num_classes: int, first_stride: int = 2, seed: int = 0, dtype: Any = np.float32,
    channels: int = 3, eps: float = 1e-3, momentum: float = 0.01,
) -> dict[str, Layer]:  # fmt: skip
    """Return the layers of a MobileNetV3 with any channels, such as those of a file."""
    make = Maker(begin(num_classes, seed, dtype, channels), dtype, eps, momentum)
    return {
        "features": Sequential(make.features(found, first_stride, channels)),
        "pool": GlobalAveragePool(),
        "classifier": Sequential([
            Linear(found.wide, found.last, rng=make.rng, dtype=dtype),
            HardSwish(),
            Dropout(0.2, seed=int(make.rng.integers(1_000_000))),
            Linear(found.last, num_classes, rng=make.rng, dtype=dtype),
        ]),
    }  # fmt: skip


class Maker:
    """The parts of a network that draws its weights from one generator."""

    def __init__(self, rng: np.random.Generator, dtype: Any, eps: float, momentum: float) -> None:
        self.rng, self.dtype, self.eps, self.momentum = rng, dtype, eps, momentum

    def features(self, found: Channels, first_stride: int, channels: int) -> list[Layer]:
        """Build the body: the stem, a block for each row, and the last 1x1 convolution."""
        stem = Conv(channels, found.stem, 3, first_stride, padding=1, bias=False, rng=self.rng, dtype=self.dtype)
        features: list[Layer] = [self.conv_bn(stem, HS)]
        c_in = found.stem
        for row in found.rows:
            features.append(self.block(c_in, row))
            c_in = row.c_out
        features.append(self.conv_bn(self.pointwise(c_in, found.wide), HS))
        return features

    def pointwise(self, c_in: int, c_out: int) -> Pointwise:
        return Pointwise(c_in, c_out, bias=False, rng=self.rng, dtype=self.dtype)

    def depthwise(self, channels: int, kernel: int, stride: int) -> Depthwise:
        options: dict[str, Any] = {"padding": kernel // 2, "bias": False, "rng": self.rng, "dtype": self.dtype}
        return Depthwise(channels, kernel, stride, **options)

    def conv_bn(self, conv: Any, activation: Callable[[], Layer] | None = None) -> Sequential:
        bn = BatchNorm(conv.weight.value.shape[-1], eps=self.eps, momentum=self.momentum, dtype=self.dtype)
        return Sequential([conv, bn, *([activation()] if activation else [])])

    def block(self, c_in: int, row: Row) -> Layer:
        """Build an inverted residual with a gate (the paper's figure 4); it does not widen where `wide` is c_in."""
        kernel, wide, c_out, few, activation, stride = row
        depthwise = self.depthwise(wide, kernel, stride)
        parts = [] if wide == c_in else [self.conv_bn(self.pointwise(c_in, wide), activation)]
        parts.append(self.conv_bn(depthwise, activation))
        parts += [self.gate(wide, few)] if few else []
        parts.append(self.conv_bn(self.pointwise(wide, c_out)))
        body = {"block": Sequential(parts)}
        return Residual(body) if stride == 1 and c_in == c_out else Sequential(body)

    def gate(self, channels: int, few: int) -> Gate:
        return Gate({
            "avgpool": Squeeze(),
            "fc1": Pointwise(channels, few, rng=self.rng, dtype=self.dtype),
            "activation": ReLU(),
            "fc2": Pointwise(few, channels, rng=self.rng, dtype=self.dtype),
            "scale_activation": HardSigmoid(),
        })  # fmt: skip
