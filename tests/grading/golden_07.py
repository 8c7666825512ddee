"""Lesson 7's exercises by PyTorch: the FLOPs that it counts in grouped and standard convolutions, its std_mean."""

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def torch_golden(name: str, case: dict) -> np.ndarray | tuple[np.ndarray, ...]:
    return {"cost_ratio": _ratio, "paired_difference": _difference}[name](**case)


def _flops(net: nn.Module, channels: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, channels, 8, 8))
    return counter.get_total_flops()


def _ratio(k, c_in, c_out):
    separable = nn.Sequential(nn.Conv2d(c_in, c_in, k, padding=k // 2, groups=c_in), nn.Conv2d(c_in, c_out, 1))
    return np.array(_flops(separable, c_in) / _flops(nn.Conv2d(c_in, c_out, k, padding=k // 2), c_in))


def _difference(first, second):
    std, mean = torch.std_mean(torch.tensor(second - first))
    return mean.numpy(), (std / len(first) ** 0.5).numpy()
