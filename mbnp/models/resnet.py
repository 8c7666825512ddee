"""ResNet-20 for CIFAR, which the article's training script seems to have been written for.

He et al., "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385, section 4.2: a 3x3 stem,
three stages of three blocks with 16, 32 and 64 channels, identity shortcuts with zeros for new channels
(option A).
"""

from typing import Any

import numpy as np

from mbnp.layers import BatchNorm, Conv, GlobalAveragePool, Linear, ReLU, Subsample
from mbnp.models.build import begin, finish, scaled
from mbnp.network import Layer, Network, Residual, Sequential

STAGES = [(16, 1), (32, 2), (64, 2)]  # channels, stride of the first block
BLOCKS_A_STAGE = 3


def resnet20(
    num_classes: int = 10, width_mult: float = 1.0, seed: int = 0, dtype: Any = np.float32, channels: int = 3
) -> Network:
    """Build ResNet-20: `conv1`, `bn1`, `layerS.B.{conv1,bn1,conv2,bn2}`, `linear`; 269,722 learnable parameters."""
    rng = begin(num_classes, seed, dtype, channels)
    c_out = scaled(STAGES[0][0], width_mult)
    layers: dict[str, Layer] = {
        "conv1": Conv(channels, c_out, 3, 1, padding=1, bias=False, rng=rng, dtype=dtype),
        "bn1": BatchNorm(c_out, dtype=dtype),
        "relu1": ReLU(),
    }
    for s, (width, first_stride) in enumerate(STAGES, start=1):
        stage: dict[str, Layer] = {}
        for b in range(BLOCKS_A_STAGE):
            c_in, c_out = c_out, scaled(width, width_mult)
            stage[f"{b}"] = _block(c_in, c_out, first_stride if b == 0 else 1, rng, dtype)
            stage[f"{b}.relu"] = ReLU()
        layers[f"layer{s}"] = Sequential(stage)
    layers["pool"] = GlobalAveragePool()
    layers["linear"] = Linear(c_out, num_classes, rng=rng, dtype=dtype)
    options = {"num_classes": num_classes, "width_mult": width_mult}
    return finish(Network(layers, 32, channels), "resnet20", **options)


def _block(c_in: int, c_out: int, stride: int, rng: np.random.Generator, dtype: Any) -> Residual:
    body: dict[str, Layer] = {
        "conv1": Conv(c_in, c_out, 3, stride, padding=1, bias=False, rng=rng, dtype=dtype),
        "bn1": BatchNorm(c_out, dtype=dtype),
        "relu1": ReLU(),
        "conv2": Conv(c_out, c_out, 3, 1, padding=1, bias=False, rng=rng, dtype=dtype),
        "bn2": BatchNorm(c_out, dtype=dtype),
    }
    return Residual(body, None if stride == 1 and c_in == c_out else Subsample(c_in, c_out, stride))
