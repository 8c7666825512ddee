"""The same networks in PyTorch: the article's class as it stands there, and a twin of any network of ours."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mbnp import layers as ours
from mbnp.network import Layer, Network


class Article(nn.Module):
    """The article's MobileNet: attribute names and order of layers are what state dicts depend on."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 32, 3, stride=1, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.conv2_1 = self.conv_dw(32, 32, 1)
        self.conv2_2 = self.conv_dw(32, 64, 2)
        self.conv2_3 = self.conv_dw(64, 64, 1)
        self.conv2_4 = self.conv_dw(64, 128, 2)
        self.conv2_5 = self.conv_dw(128, 128, 1)
        self.conv2_6 = self.conv_dw(128, 256, 2)
        self.conv2_7 = self.conv_dw(256, 256, 1)
        self.conv2_8 = self.conv_dw(256, 512, 2)
        self.fc = nn.Linear(512, num_classes)

    @staticmethod
    def conv_dw(c_in: int, c_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(c_in, c_in, 3, stride=stride, padding=1, groups=c_in, bias=False),
            nn.BatchNorm2d(c_in),
            nn.ReLU(),
            nn.Conv2d(c_in, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks = [self.conv1] + [getattr(self, f"conv2_{i}") for i in range(1, 9)]
        for block in blocks:
            x = block(x)
        return self.fc(F.avg_pool2d(x, 2).view(-1, 512))


class Subsample(nn.Module):
    def __init__(self, layer: ours.Subsample) -> None:
        super().__init__()
        self.stride, self.padding = layer.stride, (layer.before, layer.after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


class Residual(nn.Sequential):
    shortcut_of_x: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.shortcut_of_x(x)

    def __iter__(self):
        return (m for name, m in self._modules.items() if name != "shortcut_of_x")


class GlobalAverage(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def twin(layer: Layer) -> nn.Module:
    """A PyTorch module of the same architecture, names of arrays included; weights are its own."""
    if isinstance(layer, ours.Sequential):
        module = Residual() if isinstance(layer, ours.Residual) else nn.Sequential()
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
            options = {"groups": groups, "bias": layer.bias is not None, **layer.options}
            return nn.Conv2d(c_in, c_out, layer.weight.value.shape[:2], **options)
        case ours.Pointwise():
            return nn.Conv2d(*layer.weight.value.shape, 1, bias=layer.bias is not None)
        case ours.Linear():
            return nn.Linear(*layer.weight.value.shape)
        case ours.BatchNorm():
            return nn.BatchNorm2d(layer.weight.value.size, layer.eps, layer.momentum)
        case ours.ReLU():
            return nn.ReLU() if layer.cap is None else nn.Hardtanh(0, layer.cap)
        case ours.AveragePool():
            return nn.AvgPool2d(layer.size, **layer.options)
        case ours.GlobalAveragePool():
            return GlobalAverage()
        case ours.Flatten():
            return nn.Flatten()
        case ours.Subsample():
            return Subsample(layer)
    raise TypeError(f"no twin of {type(layer).__name__}")


def vary(net: Network, seed: int = 1) -> Network:
    """Statistics and BatchNorm parameters as a trained network may have them, instead of zeros and ones."""
    rng = np.random.default_rng(seed)
    for name, layer in net.leaves():
        if isinstance(layer, ours.BatchNorm):
            shape = layer.weight.value.shape
            layer.weight.value = rng.uniform(0.5, 1.5, shape)
            layer.bias.value = rng.normal(0, 0.2, shape)
            layer.running_mean.value = rng.normal(0, 0.1, shape)
            layer.running_var.value = rng.uniform(0.2, 1.0, shape)
        assert name
    return net


def batch(n: int, size: int, dtype: type, seed: int = 0, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """n random pictures (n, size, size, 3) and labels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, size, size, 3)).astype(dtype)
    return x, rng.integers(0, classes, n)


def tensor(x: np.ndarray) -> torch.Tensor:
    """Pictures in PyTorch's layout."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest entry."""
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


def assert_gradients(actual: dict, expected: dict, tolerance: float) -> None:
    """Each gradient within `tolerance` of its largest entry.

    A weight that the BatchNorm after it makes irrelevant (a bias, the only weight of a channel) has no gradient but
    rounding, so that an array's measure is at least a thousandth of the largest gradient of all.
    """
    largest = max(np.abs(g).max() for g in expected.values())
    for name, gradient in expected.items():
        allowed = tolerance * max(np.abs(gradient).max(), 1e-3 * largest)
        difference = np.abs(actual[name] - gradient).max()
        assert difference <= allowed, f"gradient of {name}: off by {difference:.2e}, allowed {allowed:.2e}"


def gradients(net: Network) -> dict[str, np.ndarray]:
    return {name: p.grad for name, p in net.parameters().items()}
