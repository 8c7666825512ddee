"""SSD: a detector that is one network, with heads on several of its feature maps.

Liu et al., "SSD: Single Shot MultiBox Detector", 2016, arXiv:1512.02325. A feature map of few, large cells finds large
objects, one of many cells small ones. In each cell stand a few boxes of fixed sizes, the anchors; a head says for each
of them how to move it onto the object there, and what that is. The heads here are depthwise separable, as in Sandler et
al., arXiv:1801.04381, section 6.2 (SSDLite).
"""

import itertools
import math
from typing import Any

import numpy as np

from mbnp.layers import BatchNorm, Depthwise, Pointwise, ReLU
from mbnp.models.article import BLOCKS, STEM
from mbnp.models.blocks import separable_block, standard_block
from mbnp.models.build import begin, finish, scaled
from mbnp.network import Layer, Network, Pyramid, Sequential

# Which of the article's blocks lie before the pyramid, and in each of its stages, by the pixels from cell to cell.
BODY, STAGES = (1, 2, 3), {"stride8": (4, 5), "stride16": (6, 7), "stride32": (8,)}
SMALLEST, LARGEST = 0.18, 0.5  # sides of square anchors of the first and the last stage, as shares of the image's
RATIOS = (1.0, 1.5, 1 / 1.5)  # of width and height
SCALES = [10.0, 10.0, 5.0, 5.0]  # of offsets: the reciprocals of what code calls variances, 0.1 and 0.2


def ssd_mobilenet_v1_small(
    num_classes: int = 10, width_mult: float = 1.0, resolution: int = 96, seed: int = 0, dtype: Any = np.float32,
    channels: int = 3,
) -> Network:  # fmt: skip
    """Build an SSD on the article's body: heads on three feature maps, of 12, 6 and 3 cells a side for 96 pixels.

    The first convolution has stride 2, which makes the network four times as fast.
    """
    rng = begin(num_classes, seed, dtype, channels)
    c_out = scaled(STEM, width_mult)
    layers: dict[str, Layer] = {"conv1": standard_block(channels, c_out, 2, rng, dtype)}
    blocks, widths = {}, {}
    for i, (width, stride) in enumerate(BLOCKS, start=1):
        c_in, c_out = c_out, scaled(width, width_mult)
        blocks[i], widths[i] = separable_block(c_in, c_out, stride, rng, dtype), c_out
    layers |= {f"conv2_{i}": blocks[i] for i in BODY}
    sizes = anchor_sizes(len(STAGES))
    stages, boxes, scores = {}, {}, {}
    for (name, numbers), each in zip(STAGES.items(), sizes, strict=True):
        c_in = widths[numbers[-1]]
        stages[name] = Sequential({f"conv2_{i}": blocks[i] for i in numbers})
        boxes[name] = head(c_in, 4 * len(each), rng, dtype)
        scores[name] = head(c_in, (1 + num_classes) * len(each), rng, dtype)
    layers["ssd"] = Pyramid(stages, boxes, scores)
    net = Network(layers, resolution, channels)
    net.detection = {"anchors": sizes, "scales": SCALES, "scores": "softmax", "resize": "stretch"}
    options = {"num_classes": num_classes, "width_mult": width_mult, "resolution": resolution}
    return finish(net, "ssd-mobilenet-v1-small", **options)


def head(c_in: int, c_out: int, rng: np.random.Generator, dtype: Any) -> Sequential:
    """Build a head: depthwise 3x3, BatchNorm, ReLU, and a pointwise convolution to c_out numbers for each cell."""
    return Sequential([
        Depthwise(c_in, 3, 1, padding=1, bias=False, rng=rng, dtype=dtype),
        BatchNorm(c_in, dtype=dtype),
        ReLU(),
        Pointwise(c_in, c_out, rng=rng, dtype=dtype),
    ])  # fmt: skip


def anchor_sizes(stages: int) -> list[list[list[float]]]:
    """Return [width, height] of the anchors of each stage: one of each ratio, and a square on the way to the next.

    The paper's equation 4: sides grow by equal steps from stage to stage.
    """
    step = (LARGEST - SMALLEST) / (stages - 1)
    sides = [SMALLEST + step * k for k in range(stages + 1)]
    return [
        [[side * math.sqrt(ratio), side / math.sqrt(ratio)] for ratio in RATIOS] + [[math.sqrt(side * larger)] * 2]
        for side, larger in itertools.pairwise(sides)
    ]
