"""Xception: separable convolutions throughout, no activation within one, and residuals around pairs and threes of them.

Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", 2016, arXiv:1610.02357, figure 5. It appeared
half a year before MobileNet, and has the same convolution in a network made for accuracy and not for phones.
"""

import itertools
from typing import Any

import numpy as np

from mbnp.layers import BatchNorm, Conv, Depthwise, GlobalAveragePool, Linear, MaxPool, Pointwise, ReLU
from mbnp.models.build import begin, finish, scaled
from mbnp.network import Layer, Network, Residual, Sequential

ENTRY, MIDDLE, EXIT = (128, 256, 728), 8, (728, 1024, 1536, 2048)  # channels of blocks; how many of the middle
CIFAR_ENTRY, CIFAR_MIDDLE, CIFAR_EXIT = (64, 128), 2, (128, 256, 384, 512)
EPS = 1e-3  # of BatchNorm, as in the author's code


def xception(
    num_classes: int = 1000, width_mult: float = 1.0, resolution: int = 299, seed: int = 0, dtype: Any = np.float32,
    channels: int = 3,
) -> Network:  # fmt: skip
    """Build Xception: 22,855,952 parameters and 8,357,403,496 MACs at width 1 and 299 pixels, with 1000 classes.

    Names are Keras's but for a dot, `blockB.sepconvS` with `depthwise` and `pointwise` inside. The width multiplier is
    not the paper's. `resolution` only says what images the network is meant for.
    """
    make = _Maker(begin(num_classes, seed, dtype, channels), dtype, width_mult)
    stem = make.stem(channels, 32, "conv1", 2, 0) | make.stem(make.scaled(32), 64, "conv2", 1, 0)
    layers = {"block1": Sequential(stem)} | make.body(64, ENTRY, MIDDLE, EXIT) | make.head(EXIT[-1], num_classes)
    options = {"num_classes": num_classes, "width_mult": width_mult, "resolution": resolution}
    return finish(Network(layers, resolution, channels), "xception", **options)


def xception_cifar(
    num_classes: int = 10, width_mult: float = 1.0, seed: int = 0, dtype: Any = np.float32, channels: int = 3
) -> Network:
    """Build a small Xception for 32x32 images: one stem convolution, of stride 1, two blocks of each flow."""
    make = _Maker(begin(num_classes, seed, dtype, channels), dtype, width_mult)
    layers: dict[str, Layer] = {"block1": Sequential(make.stem(channels, 32, "conv1", 1, 1))}
    layers |= make.body(32, CIFAR_ENTRY, CIFAR_MIDDLE, CIFAR_EXIT) | make.head(CIFAR_EXIT[-1], num_classes)
    options = {"num_classes": num_classes, "width_mult": width_mult}
    return finish(Network(layers, 32, channels), "xception-cifar", **options)


class _Maker:
    """The parts of a network that draws its weights from one generator; channels are given before they are scaled."""

    def __init__(self, rng: np.random.Generator, dtype: Any, width_mult: float) -> None:
        self.rng, self.dtype, self.width_mult = rng, dtype, width_mult

    def scaled(self, channels: int) -> int:
        return scaled(channels, self.width_mult)

    def bn(self, channels: int) -> BatchNorm:
        return BatchNorm(self.scaled(channels), eps=EPS, dtype=self.dtype)

    def stem(self, c_in: int, c_out: int, name: str, stride: int, padding: int) -> dict[str, Layer]:
        """Build a convolution, BatchNorm and ReLU; c_in channels as they are."""
        conv = Conv(c_in, self.scaled(c_out), 3, stride, padding, bias=False, rng=self.rng, dtype=self.dtype)
        return {name: conv, f"{name}_bn": self.bn(c_out), f"{name}_act": ReLU()}

    def separable(self, c_in: int, c_out: int, name: str) -> dict[str, Layer]:
        """Build a separable convolution without activation between (the paper's section 4.7), and BatchNorm."""
        wide, out = self.scaled(c_in), self.scaled(c_out)
        depthwise = Depthwise(wide, 3, 1, padding=1, bias=False, rng=self.rng, dtype=self.dtype)
        pointwise = Pointwise(wide, out, bias=False, rng=self.rng, dtype=self.dtype)
        return {name: Sequential({"depthwise": depthwise, "pointwise": pointwise}), f"{name}_bn": self.bn(c_out)}

    def block(self, channels: tuple[int, ...], pooled: bool, begins: bool = False) -> Residual:
        """Build ReLU, separable convolution, BatchNorm for each pair of `channels`; begins: without the first ReLU.

        pooled: a maximum at stride 2 follows, and the shortcut is a 1x1 convolution of stride 2 and BatchNorm.
        """
        layers: dict[str, Layer] = {}
        for i in range(1, len(channels)):
            name = f"sepconv{i}"
            if i > 1 or not begins:
                layers[f"{name}_act"] = ReLU()
            layers |= self.separable(channels[i - 1], channels[i], name)
        if not pooled:
            return Residual(layers)
        layers["pool"] = MaxPool(3, 2, "same")
        ends = self.scaled(channels[0]), self.scaled(channels[-1])
        across = Conv(*ends, 1, 2, "same", bias=False, rng=self.rng, dtype=self.dtype)
        return Residual(layers, Sequential([across, self.bn(channels[-1])]))

    def body(self, c_in: int, entry: tuple, middle: int, last: tuple) -> dict[str, Layer]:
        """Return the blocks from the second on, by name."""
        blocks: list[Layer] = []
        for c_out in entry:
            blocks.append(self.block((c_in, c_out, c_out), pooled=True, begins=not blocks))
            c_in = c_out
        blocks += [self.block((c_in,) * 4, pooled=False) for _ in range(middle)]
        blocks.append(self.block((c_in, *last[:2]), pooled=True))
        end: dict[str, Layer] = {}
        for i, channels in enumerate(itertools.pairwise(last[1:]), start=1):
            end |= {**self.separable(*channels, f"sepconv{i}"), f"sepconv{i}_act": ReLU()}
        return {f"block{number}": block for number, block in enumerate([*blocks, Sequential(end)], start=2)}

    def head(self, c_in: int, num_classes: int) -> dict[str, Layer]:
        linear = Linear(self.scaled(c_in), num_classes, rng=self.rng, dtype=self.dtype)
        return {"avg_pool": GlobalAveragePool(), "predictions": linear}
