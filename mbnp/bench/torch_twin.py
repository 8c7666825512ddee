"""The same network in PyTorch: architecture, and names of arrays."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mbnp import layers as ours
from mbnp.errors import MbnpError
from mbnp.network import Layer


def twin(layer: Layer) -> nn.Module:
    """A PyTorch module of the architecture of `layer`, with arrays of the same names; the weights are its own.

    Load them with `load_state_dict(weights.to_torch(net), strict=False)`: PyTorch also counts batches.
    """
    if isinstance(layer, ours.Sequential):
        module = _Residual() if isinstance(layer, ours.Residual) else nn.Sequential()
        for name, child in layer.layers.items():
            module.add_module(name.replace(".", "_"), twin(child))
        if isinstance(layer, ours.Residual):
            module.shortcut_of_x = nn.Identity() if layer.shortcut is None else twin(layer.shortcut)
        return module
    match layer:
        case ours.Conv() | ours.Depthwise():
            *_, c_out = layer.weight.value.shape
            groups = c_out if isinstance(layer, ours.Depthwise) else 1
            c_in = c_out if groups > 1 else layer.weight.value.shape[2]
            options: dict[str, Any] = {"groups": groups, **_same_all_round(layer.options)}
            kernel = layer.weight.value.shape[:2]
            return nn.Conv2d(c_in, c_out, kernel, bias=layer.bias is not None, **options)
        case ours.Pointwise():
            c_in, c_out = layer.weight.value.shape
            return nn.Conv2d(c_in, c_out, 1, bias=layer.bias is not None)
        case ours.Linear():
            return nn.Linear(*layer.weight.value.shape)
        case ours.BatchNorm():
            return nn.BatchNorm2d(layer.weight.value.size, layer.eps, layer.momentum)
        case ours.ReLU():
            return nn.ReLU() if layer.cap is None else nn.Hardtanh(0, layer.cap)
        case ours.AveragePool():
            return nn.AvgPool2d(layer.size, **_same_all_round(layer.options))
        case ours.GlobalAveragePool():
            return _GlobalAverage()
        case ours.Flatten():
            return nn.Flatten()
        case ours.Subsample():
            return _Subsample(layer)
    raise MbnpError(f"the PyTorch twin has no {type(layer).__name__}")


def _same_all_round(options: dict) -> dict:
    if not isinstance(options["padding"], int):
        raise MbnpError(f"the PyTorch twin pads every side alike, not {options['padding']}")
    return options


class _Subsample(nn.Module):
    def __init__(self, layer: ours.Subsample) -> None:
        super().__init__()
        self.stride, self.padding = layer.stride, (layer.before, layer.after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


class _Residual(nn.Sequential):
    shortcut_of_x: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.shortcut_of_x(x)

    def __iter__(self):
        return (module for name, module in self._modules.items() if name != "shortcut_of_x")


class _GlobalAverage(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))
