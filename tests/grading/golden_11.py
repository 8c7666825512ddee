"""Lesson 11's exercises by PyTorch: class activation maps from the gradient of the logit, and counts of pixels."""

import numpy as np
import torch
from torch.nn import functional as F


def torch_golden(name: str, case: dict) -> np.ndarray:
    functions = {"class_activation_map": _cam, "intersection_over_union": _iou, "dead_channels": _dead}
    return functions[name](**case)


def _cam(features, w, classes):
    """A cell's contribution is its features times the gradient of the logit with respect to them."""
    f = torch.tensor(features.astype(np.float64), requires_grad=True)
    logits = F.linear(f.mean((1, 2)), torch.tensor(w.T.astype(np.float64)))
    logits[torch.arange(len(classes)), torch.tensor(classes)].sum().backward()
    positive = F.relu((f * f.grad).sum(3)).detach()
    top = positive.amax((1, 2), keepdim=True)
    return torch.where(top > 0, positive / top, 0.0).numpy()


def _iou(found, truth):
    found, truth = torch.tensor(found), torch.tensor(truth)
    both = torch.logical_and(found, truth).sum((1, 2), dtype=torch.float64)
    either = torch.logical_or(found, truth).sum((1, 2), dtype=torch.float64)
    return torch.where(either > 0, both / either, 1.0).numpy()


def _dead(a):
    return (F.adaptive_max_pool2d(torch.tensor(a).permute(0, 3, 1, 2), 1).amax(0).flatten() == 0).numpy()
