"""Lesson 8's exercises by PyTorch, where it has them: the FLOPs that it counts in the article's class, scaled."""

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mbnp.models.article import BLOCKS, STEM


def torch_golden(name: str, case: dict) -> np.ndarray | None:
    return _macs(**case) if name == "scaled_macs" else None


def _macs(width, resolution):
    channels = int(STEM * width)
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, 1, 1)]
    for c_out, stride in BLOCKS:
        c_in, channels = channels, int(c_out * width)
        layers += [nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in), nn.Conv2d(c_in, channels, 1)]
    net = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels, 10))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, resolution, resolution))
    return np.array(counter.get_total_flops() // 2)
