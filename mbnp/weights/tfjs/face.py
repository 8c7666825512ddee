"""The face detector of face-api: an SSD on MobileNetV1 1.0, recognised by the names of its arrays.

The npm package @vladmandic/face-api carries it as a manifest alone; what is computed is in its src/ssdMobilenetv1/:

    mobileNetV1.ts         'same' padding, ReLU6, BatchNorm's eps 1e-3. Of the pointwise convolutions the BatchNorm is
                           folded into weights and an offset, of the depthwise ones it is not
    predictionLayer.ts     heads at the eleventh and the last block, and after four pairs of convolutions
    outputLayer.ts         offsets y, x, height, width, divided by 10, 10, 5, 5; the anchors are stored as corners (top,
                           left, bottom, right). Three logits an anchor: the background's, which is cut off, and the
                           sigmoids of two classes, of which the first is the face's and the second is used nowhere
    SsdMobilenetv1.ts      pixels / 127.5 - 1, images of 512 x 512
    dom/NetInput.ts        zeros at the right or the bottom make an image square before it is resized, bilinearly,
                           without antialiasing

It is a model of TensorFlow's Object Detection API (ssd_mobilenet_v1), whose names these are. Huang et al.,
arXiv:1611.10012; Liu et al., SSD, arXiv:1512.02325.
"""

from collections.abc import Mapping

import numpy as np

from mbnp import spec
from mbnp.errors import MbnpError
from mbnp.layers import BatchNorm, Conv, Depthwise, Pointwise, Pyramid, ReLU
from mbnp.network import Layer, Network, Sequential
from mbnp.weights import layouts

MARK = "Output/extra_dim"  # the anchors
RESOLUTION = 512
EPS, MOST = 1e-3, 6.0
STRIDES = {2: 2, 4: 2, 6: 2, 12: 2}  # of the depthwise convolutions, 1 where there is none
TAPPED, LAST = 11, 13  # the blocks that the first two heads see
HEADS = 6
LOGITS = 3  # an anchor: the background, the face, and a class that face-api does not use
CLASSES = ["face"]
SCALES = [10.0, 10.0, 5.0, 5.0]
CLOSE = 1e-4  # of the anchors' centres and sizes, in shares of the image: a twentieth of a pixel


def network(arrays: Mapping[str, np.ndarray]) -> Network:
    """Return the detector whose arrays these are; MbnpError where one is missing or has another shape."""
    read = _Reader(arrays)
    body: list[Layer] = [read.conv("MobilenetV1/Conv2d_0_pointwise", 2)]
    body += [read.block(i) for i in range(1, TAPPED + 1)]
    stages: dict[str, Layer] = {"0": Sequential(body)}
    stages["1"] = Sequential([read.block(i) for i in range(TAPPED + 1, LAST + 1)])
    for i in range(2, HEADS):
        first, second = (f"Prediction/Conv2d_{k}_pointwise" for k in (2 * i - 4, 2 * i - 3))
        stages[str(i)] = Sequential([read.conv(first, 1), read.conv(second, 2)])
    boxes, scores = {}, {}
    for i in range(HEADS):
        boxes[str(i)], scores[str(i)] = read.head(i)
    net = Network({"pyramid": Pyramid(stages, boxes, scores)}, RESOLUTION)
    net.classes, net.preprocessing = CLASSES, {"mean": [0.5] * 3, "std": [0.5] * 3}
    per_cell = [read.anchors_of(head) for head in boxes.values()]
    net.detection = {
        "anchors": _sizes(read.take(MARK), net.grids(), per_cell),
        "scales": SCALES,
        "scores": "sigmoid",
        "resize": "pad",
    }
    net.arch = spec.describe(net)
    return net


class _Reader:
    """The arrays by name, as layers."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays

    def take(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise MbnpError(f"it has no {name}")
        if self.arrays[name].dtype != np.float32:
            raise MbnpError(f"{name} holds {self.arrays[name].dtype}, not float32")
        return self.arrays[name]

    def conv(self, name: str, stride: int) -> Sequential:
        """Return a convolution with its folded BatchNorm, and the activation."""
        w, b = self.take(f"{name}/weights"), self.take(f"{name}/convolution_bn_offset")
        return Sequential([_conv(name, w, b, stride), ReLU(MOST)])

    def block(self, i: int) -> Sequential:
        name = f"MobilenetV1/Conv2d_{i}_depthwise"
        w = layouts.convert(self.take(f"{name}/depthwise_weights"), Depthwise, "keras", "mbnp", name)
        depthwise = layouts.layer(Depthwise, w, None, w.dtype, stride=STRIDES.get(i, 1), padding="same")
        bn = BatchNorm(w.shape[-1], EPS, dtype=w.dtype)
        for theirs, variable in zip(
            ("gamma", "beta", "moving_mean", "moving_variance"), bn.variables().values(), strict=True
        ):
            array = self.take(f"{name}/BatchNorm/{theirs}")
            if array.shape != variable.value.shape:
                raise MbnpError(f"{name}/BatchNorm/{theirs} has shape {array.shape}, not {variable.value.shape}")
            variable.value = array
        pointwise = self.conv(f"MobilenetV1/Conv2d_{i}_pointwise", 1)
        return Sequential([depthwise, bn, ReLU(MOST), *pointwise.layers.values()])

    def head(self, i: int) -> tuple[Layer, Layer]:
        """Return the layers that make offsets, brought from y, x, h, w to x, y, w, h, and logits without the third."""
        made = []
        for name, numbers, kept in (("BoxEncoding", 4, [1, 0, 3, 2]), ("Class", LOGITS, [0, 1])):
            name = f"Prediction/BoxPredictor_{i}/{name}Predictor"
            w, b = self.take(f"{name}/weights"), self.take(f"{name}/biases")
            if w.ndim != 4 or w.shape[-1] % numbers or b.shape != w.shape[-1:]:
                raise MbnpError(f"{name} has weights {w.shape} and biases {b.shape}, not {numbers} for each anchor")
            w, b = (a.reshape(*a.shape[:-1], -1, numbers)[..., kept].reshape(*a.shape[:-1], -1) for a in (w, b))
            made.append(_conv(name, w, b, 1))
        return made[0], made[1]

    def anchors_of(self, head: Layer) -> int:
        """Return how many anchors a cell has, by the head that makes their offsets."""
        return head.variables()["weight"].value.shape[-1] // 4


def _conv(name: str, w: np.ndarray, b: np.ndarray, stride: int) -> Layer:
    if w.ndim != 4 or b.shape != w.shape[-1:]:
        raise MbnpError(f"{name} has weights {w.shape} and a bias {b.shape}")
    if w.shape[:2] == (1, 1) and stride == 1:
        return layouts.layer(Pointwise, w.reshape(w.shape[2:]), b, w.dtype)
    return layouts.layer(Conv, w, b, w.dtype, stride=stride, padding="same")


def _sizes(stored: np.ndarray, grids: list[tuple[int, int]], per_cell: list[int]) -> list[list[list[float]]]:
    """Return the sizes of each head's anchors; MbnpError unless they stand where mbnp's do, the same at every cell."""
    count = sum(h * w * each for (h, w), each in zip(grids, per_cell, strict=True))
    if stored.shape != (1, count, 4):
        raise MbnpError(f"its anchors {MARK} have shape {stored.shape}, and its heads make {count}")
    corners = stored[0].astype(np.float64)
    centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]  # y, x and h, w
    found, at = [], 0
    for (h, w), each in zip(grids, per_cell, strict=True):
        cells = slice(at, at := at + h * w * each)
        y, x = (np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w
        expected = np.stack(np.broadcast_arrays(y[:, None, None], x[:, None]), -1)
        of_head = sizes[cells].reshape(h, w, each, 2)
        off = np.abs(centres[cells].reshape(h, w, each, 2) - expected).max()
        spread = np.abs(of_head - of_head[0, 0]).max()
        if not (off < CLOSE and spread < CLOSE and of_head.min() > 0):
            where = f"of the head with {h} x {w} cells"
            raise MbnpError(f"its anchors {where} are not at the cells' centres, or not of the same size everywhere")
        found.append(of_head.mean((0, 1))[:, ::-1].tolist())
    return found
