"""Boxes: how much two of them overlap, and an object's box as offsets from an anchor.

A box is (left, top, right, bottom), numbers on a continuous scale: it is right - left wide, without the "+ 1" of
pixels that are counted. Overlap is intersection over union, the Jaccard index, 0 for boxes apart and 1 for equal ones:

    inter   = max(0, min(right_a, right_b) - max(left_a, left_b)) * max(0, min(bottom_a, bottom_b) - max(top_a, top_b))
    overlap = inter / (area_a + area_b - inter)

A box without an area, or with its corners the wrong way round, is empty and overlaps nothing: 0.

A head does not predict corners. With centres (x, y) and sizes (w, h) of the object b and of the anchor a it predicts

    offset = scale_x (x_b - x_a) / w_a,  scale_y (y_b - y_a) / h_a,  scale_w log(w_b / w_a),  scale_h log(h_b / h_a)

so that the same numbers mean the same to small and large anchors, and a width is positive whatever the network says.
The scales, 10, 10, 5, 5, bring the four to a spread of about 1, which evens out their parts of the loss (elsewhere they
are "variances", the reciprocals 0.1, 0.1, 0.2, 0.2). Decoding solves for the box:

    x_b = x_a + w_a offset_x / scale_x        w_b = w_a exp(offset_w / scale_w)        y and h likewise

Source: the coding is that of Ren et al., "Faster R-CNN", 2015, arXiv:1506.01497, equation 2, and of Liu et al., "SSD",
2016, arXiv:1512.02325, equation 2.
"""

from collections.abc import Sequence

import numpy as np

from mbnp import backend
from mbnp.errors import MbnpError
from mbnp.ops import checks

# --- loops: the definition ---


def overlap_loops(a, b):
    shared = np.zeros((len(a), len(b)), a.dtype)
    zero = a.dtype.type(0)
    for n in range(len(a)):
        area_a = np.maximum(a[n, 2] - a[n, 0], zero) * np.maximum(a[n, 3] - a[n, 1], zero)
        for m in range(len(b)):
            area_b = np.maximum(b[m, 2] - b[m, 0], zero) * np.maximum(b[m, 3] - b[m, 1], zero)
            width = np.maximum(np.minimum(a[n, 2], b[m, 2]) - np.maximum(a[n, 0], b[m, 0]), zero)
            height = np.maximum(np.minimum(a[n, 3], b[m, 3]) - np.maximum(a[n, 1], b[m, 1]), zero)
            inter = width * height
            union = area_a + area_b - inter
            if union != 0:
                shared[n, m] = inter / union
    return shared


def encode_loops(boxes, anchors, scales):
    offsets = np.empty_like(boxes)
    for n in range(len(boxes)):
        w, h = anchors[n, 2] - anchors[n, 0], anchors[n, 3] - anchors[n, 1]
        offsets[n, 0] = scales[0] * ((boxes[n, 0] + boxes[n, 2]) / 2 - (anchors[n, 0] + anchors[n, 2]) / 2) / w
        offsets[n, 1] = scales[1] * ((boxes[n, 1] + boxes[n, 3]) / 2 - (anchors[n, 1] + anchors[n, 3]) / 2) / h
        offsets[n, 2] = scales[2] * np.log((boxes[n, 2] - boxes[n, 0]) / w)
        offsets[n, 3] = scales[3] * np.log((boxes[n, 3] - boxes[n, 1]) / h)
    return offsets


def decode_loops(offsets, anchors, scales):
    boxes = np.empty_like(offsets)
    for n in range(len(offsets)):
        w, h = anchors[n, 2] - anchors[n, 0], anchors[n, 3] - anchors[n, 1]
        x = (anchors[n, 0] + anchors[n, 2]) / 2 + w * offsets[n, 0] / scales[0]
        y = (anchors[n, 1] + anchors[n, 3]) / 2 + h * offsets[n, 1] / scales[1]
        w *= np.exp(offsets[n, 2] / scales[2])
        h *= np.exp(offsets[n, 3] / scales[3])
        boxes[n, 0], boxes[n, 1] = x - w / 2, y - h / 2
        boxes[n, 2], boxes[n, 3] = x + w / 2, y + h / 2
    return boxes


# --- NumPy: all boxes at once ---


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the areas (n, m) that boxes (n, 4) and (m, 4) share."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])  # n4, m4 -> nm2
    return np.maximum(high - low, 0).prod(axis=2)


def overlap_numpy(a, b):
    inter = intersection(a, b)
    union = area(a)[:, None] + area(b) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union != 0)


def encode_numpy(boxes, anchors, scales):
    (centre, size), (anchor, extent) = _centre_and_size(boxes), _centre_and_size(anchors)
    return scales * np.concatenate([(centre - anchor) / extent, np.log(size / extent)], axis=1)


def decode_numpy(offsets, anchors, scales):
    anchor, extent = _centre_and_size(anchors)
    offsets = offsets / scales
    centre, half = anchor + extent * offsets[:, :2], extent * np.exp(offsets[:, 2:]) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _centre_and_size(boxes):
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


# --- Numba: the loops. As written, so that an overlap of exactly a half is one by every implementation ---

overlap_numba = backend.jit(overlap_loops, literal=True)

# --- the public functions ---

_overlap = backend.pick(loops=overlap_loops, numpy=overlap_numpy, numba=overlap_numba)
_encode = backend.pick(loops=encode_loops, numpy=encode_numpy)
_decode = backend.pick(loops=decode_loops, numpy=decode_numpy)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the overlap of every box of a (n, 4) with every box of b (m, 4), (n, m): intersection over union.

    Either may hold no boxes. A NaN among the corners of a box makes NaN of its overlaps.
    """
    a = check("a", a, 2)
    return _overlap(a, check("b", b, 2, a))


def area(boxes: np.ndarray) -> np.ndarray:
    """Return the areas (...) of boxes (..., 4); 0 for empty ones."""
    return np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=-1)


def encode(boxes: np.ndarray, anchors: np.ndarray, scales: Sequence[float]) -> np.ndarray:
    """Return boxes as offsets from anchors, both (..., 4): SSD's coding. Anchors may have fewer axes, and are repeated.

    scales: the four numbers that offsets are multiplied by (`net.detection["scales"]`). An empty box has no logarithm:
    its offsets are -inf or NaN.
    """
    return _coded(_encode, "boxes", boxes, anchors, scales)


def decode(offsets: np.ndarray, anchors: np.ndarray, scales: Sequence[float]) -> np.ndarray:
    """Return the boxes (..., 4) that offsets from anchors mean: what `encode` was given. They are not clipped."""
    return _coded(_decode, "offsets", offsets, anchors, scales)


def check(name: str, boxes: np.ndarray, axes: int | None = None, like: np.ndarray | None = None) -> np.ndarray:
    """Return boxes, or offsets, (..., 4) with this number of axes, C-contiguous; MbnpError if they are none."""
    boxes = checks.array(name, boxes, None, like, empty=True)
    if boxes.shape[-1:] != (4,) or axes not in (None, boxes.ndim):
        shape = {2: "(n, 4)", 3: "(N, M, 4)"}.get(axes or 0, "(..., 4)")
        raise MbnpError(f"{name} must be boxes, {shape}, got the shape {boxes.shape}")
    return boxes


def _coded(function, name, values, anchors, scales):
    values = check(name, values)
    anchors = check("anchors", anchors, like=values)
    scales = np.asarray(scales, values.dtype)
    if scales.shape != (4,) or not (scales > 0).all():
        raise MbnpError(f"scales must be four positive numbers, of x, y, width and height, got {scales.tolist()}")
    try:
        anchors = np.broadcast_to(anchors, values.shape)
    except ValueError:
        raise MbnpError(f"anchors {anchors.shape} do not fit {name} {values.shape}: give one anchor a box") from None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return function(values.reshape(-1, 4), anchors.reshape(-1, 4), scales).reshape(values.shape)
