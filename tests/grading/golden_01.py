"""Lesson 1's exercises by PyTorch's convolution."""

import numpy as np
import torch
from torch.nn import functional as F


def torch_golden(name: str, case: dict) -> np.ndarray:
    return {"output_size": _size, "conv_pixel": _pixel, "convolve": _convolve}[name](**case)


def _size(size, kernel, stride, padding):
    y = F.conv1d(torch.zeros(1, 1, size), torch.zeros(1, 1, kernel), stride=stride, padding=padding)
    return np.array(y.shape[2])


def _pixel(x, w, i, j, d, stride, padding):
    return _convolve(x[None], w, np.zeros(w.shape[3]), stride, padding)[0, i, j, d]


def _convolve(x, w, b, stride, padding):
    x, w, b = (torch.tensor(array.astype(np.float64)) for array in (x, w, b))
    y = F.conv2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), b, stride=stride, padding=padding)
    return y.permute(0, 2, 3, 1).numpy()
