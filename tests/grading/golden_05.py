"""Lesson 5's exercises by PyTorch: shapes of real outputs, autograd, and its counter of FLOPs."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode


def torch_golden(name: str, case: dict) -> np.ndarray | tuple[np.ndarray, ...]:
    return {"map_sizes": _sizes, "receptive_field": _field, "count": _count}[name](**case)


def _sizes(size, strides):
    x, sizes = torch.zeros(1, 1, size, size), []
    for stride in strides:
        x = F.conv2d(x, torch.ones(1, 1, 3, 3), stride=stride, padding=1)
        sizes.append(x.shape[2])
    return np.array(sizes)


def _field(layers):
    """Count the pixels that a single output's gradient reaches."""
    x = torch.zeros(1, 1, 400, dtype=torch.float64, requires_grad=True)
    y = x
    for kernel, stride in layers:
        y = F.conv1d(y, torch.ones(1, 1, kernel, dtype=torch.float64), stride=stride)
    y[0, 0, 0].backward()
    return np.array(int((x.grad != 0).sum()))


def _count(size, stem, blocks, classes):
    layers = [nn.Conv2d(3, stem, 3, padding=1), nn.BatchNorm2d(stem)]
    channels = stem
    for c_out, stride in blocks:
        layers += [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)]
        layers += [nn.BatchNorm2d(channels), nn.Conv2d(channels, c_out, 1, bias=False), nn.BatchNorm2d(c_out)]
        channels = c_out
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net(torch.zeros(1, 3, size, size))
    return np.array(sum(p.numel() for p in net.parameters())), np.array(counter.get_total_flops() // 2)
