"""SSD: a detector that is one network, with heads on several of its feature maps. Two of them: small, and COCO's.

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
from mbnp.models import mobilenet_v3
from mbnp.models.article import BLOCKS, STEM
from mbnp.models.blocks import separable_block, standard_block
from mbnp.models.build import begin, finish, scaled
from mbnp.models.mobilenet_v3 import HS, LARGE, LAST_LARGE, SE
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

    The first convolution has stride 2, which leaves a quarter of the MACs.
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


# torchvision's models/detection/ssdlite.py. Its body is that of Howard et al., arXiv:1905.02244, section 6.3:
# MobileNetV3-Large with half the channels after its last stride, the "reduced tail".
REDUCED = [*LARGE[:12], (5, 672, 80, SE, HS, 2), (5, 480, 80, SE, HS, 1), (5, 480, 80, SE, HS, 1)]
TAPPED = 13  # the block whose widened feature map, before its stride, the first heads see; the stem is 0
EXTRAS = (512, 256, 256, 128)  # channels of what comes after the body, each with stride 2
COCO = 90  # classes
EPS, MOMENTUM = 1e-3, 0.03


def ssdlite320_mobilenet_v3_large(
    num_classes: int = COCO, width_mult: float = 1.0, resolution: int = 320, seed: int = 0, dtype: Any = np.float32,
    channels: int = 3,
) -> Network:  # fmt: skip
    """Build torchvision's SSDLite: 3,440,060 parameters with COCO's 90 classes and background, of 3,234 anchors.

    Its images are resized to 320 x 320 whatever their shape, and have values of -1 to 1.
    """
    widths = mobilenet_v3.widths(REDUCED, LAST_LARGE, width_mult)
    extras = tuple(max(16, scaled(each, width_mult)) for each in EXTRAS)
    net = ssdlite(widths, extras, num_classes, resolution, seed, dtype, channels)
    options = {"num_classes": num_classes, "width_mult": width_mult, "resolution": resolution}
    return finish(net, "ssdlite320-mobilenet-v3-large", **options)


def ssdlite(
    body: mobilenet_v3.Channels, extras: tuple[int, ...] = EXTRAS, num_classes: int = COCO, resolution: int = 320,
    seed: int = 0, dtype: Any = np.float32, channels: int = 3,
) -> Network:  # fmt: skip
    """Return the same network on a body with any channels, such as those of a file."""
    rng = begin(num_classes, seed, dtype, channels)
    make = mobilenet_v3.Maker(rng, dtype, EPS, MOMENTUM)
    blocks = make.features(body, 2, channels)
    tapped: Any = blocks[TAPPED]
    widen, *rest = tapped["block"].layers.items()
    stages: list[Layer] = [
        Sequential([*blocks[:TAPPED], widen[1]]),
        Sequential([Sequential(dict(rest)), *blocks[TAPPED + 1 :]]),
    ]
    seen = [body.rows[TAPPED - 1].wide, body.wide]
    for c_out in extras:
        stages.append(_extra(make, seen[-1], c_out))
        seen.append(c_out)
    sizes = _torchvisions_sizes(len(stages))
    boxes, scores = (
        {str(i): _lite_head(make, c, each * len(sizes[i])) for i, c in enumerate(seen)} for each in (4, 1 + num_classes)
    )
    net = Network(
        {"ssd": Pyramid({str(i): stage for i, stage in enumerate(stages)}, boxes, scores)}, resolution, channels
    )
    net.detection = {"anchors": sizes, "scales": SCALES, "scores": "softmax", "resize": "stretch"}
    return net


def _extra(make: mobilenet_v3.Maker, c_in: int, c_out: int) -> Sequential:
    """Build a stage: 1x1 to half of c_out channels, depthwise 3x3 with stride 2, 1x1 to c_out; ReLU6 after each."""
    half = c_out // 2
    filters = (make.pointwise(c_in, half), make.depthwise(half, 3, 2), make.pointwise(half, c_out))
    return Sequential([make.conv_bn(conv, _relu6) for conv in filters])


def _lite_head(make: mobilenet_v3.Maker, c_in: int, c_out: int) -> Sequential:
    made = Pointwise(c_in, c_out, rng=make.rng, dtype=make.dtype)
    return Sequential([make.conv_bn(make.depthwise(c_in, 3, 1), _relu6), made])


def _relu6() -> ReLU:
    return ReLU(6.0)


def _torchvisions_sizes(stages: int) -> list[list[list[float]]]:
    """Return [width, height] of the anchors of each stage, as DefaultBoxGenerator([[2, 3]] * 6, 0.2, 0.95) has them.

    Two squares, and two of each ratio; none is larger than the image.
    """
    sides = [0.2 + 0.75 * k / (stages - 1) for k in range(stages)] + [1.0]
    made = []
    for side, larger in itertools.pairwise(sides):
        sizes = [(side, side), (math.sqrt(side * larger),) * 2]
        for root in (math.sqrt(2), math.sqrt(3)):
            sizes += [(side * root, side / root), (side / root, side * root)]
        made.append([[min(width, 1.0), min(height, 1.0)] for width, height in sizes])
    return made
