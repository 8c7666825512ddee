"""Lesson 14's exercises by PyTorch's operations; it has neither boxes nor average precision itself."""

import numpy as np
import torch


def torch_golden(name: str, case: dict):
    functions = {
        "overlaps": _overlaps,
        "box_coding": _coding,
        "suppress": _suppress,
        "average_precision": _average_precision,
    }
    return functions[name](**{key: _double(value) for key, value in case.items()})


def _double(value):
    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(value.astype(np.float64) if value.dtype.kind == "f" else value)


def _overlaps(a, b):
    size = (torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])).clamp(min=0)
    both = size.prod(2)
    return (both / ((a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1) - both)).numpy()


def _coding(boxes, offsets, anchors, scales):
    """With an anchor as the affine map from the square around 0 to it, a box is a shift and a zoom before that."""
    extent, middle = anchors[:, 2:] - anchors[:, :2], anchors.view(-1, 2, 2).mean(1)
    local = (boxes.view(-1, 2, 2) - middle[:, None]) / extent[:, None]
    encoded = torch.cat([local.mean(1), torch.log(local[:, 1] - local[:, 0])], 1) * scales
    shift, zoom = (offsets / scales).split(2, 1)
    corners = torch.tensor([[-0.5, -0.5], [0.5, 0.5]], dtype=torch.float64)
    decoded = middle[:, None] + extent[:, None] * (shift[:, None] + corners * torch.exp(zoom)[:, None])
    return encoded.numpy(), decoded.reshape(-1, 4).numpy()


def _suppress(boxes, scores, labels, limit):
    """Boxes are struck out by those before them; classes are moved apart, so that they do not meet."""
    shared = _overlaps(*[boxes + 1000.0 * labels[:, None]] * 2)
    left = torch.sort(scores, descending=True, stable=True)[1].tolist()
    kept = []
    while left:
        kept.append(left[0])
        left = [n for n in left[1:] if shared[left[0], n] <= limit]
    return np.array(kept)


def _average_precision(scores, right, objects):
    found = torch.cumsum(right[torch.argsort(scores, descending=True)].double(), 0)
    precision = found / torch.arange(1, len(found) + 1)
    highest = torch.cummax(precision.flip(0), 0).values.flip(0)
    return (highest * torch.diff(found / objects, prepend=torch.zeros(1, dtype=torch.float64))).sum().numpy()
