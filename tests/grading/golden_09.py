"""Lesson 9's exercises by PyTorch, where it has them: the position of a number in its channels_last layout."""

import numpy as np
import torch


def torch_golden(name: str, case: dict) -> np.ndarray | None:
    return _offset(**case) if name == "offset_last" else None


def _offset(n, c, i, j, shape):
    x = torch.empty(shape).to(memory_format=torch.channels_last)
    return np.array(sum(index * step for index, step in zip((n, c, i, j), x.stride(), strict=True)))
