"""The article's class in PyTorch as it stands there, and what tests of whole networks share."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mbnp import backend, fused
from mbnp.bench.torch_network import torch_network as torch_network
from mbnp.bench.workload import vary as vary  # offered from here, beside what tests add to it
from mbnp.layers import BatchNorm, Dropout
from mbnp.network import Network


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


def frozen_twin(net: Network) -> nn.Module:
    """`net` in PyTorch, frozen where `net` is: a BatchNorm whose weight is frozen stays in eval mode."""
    module = torch_network(net).double().train()
    for name, parameter in net.parameters().items():
        module.get_parameter(name).requires_grad_(not parameter.frozen)
    for part in module.modules():
        if getattr(part, "kind", None) is BatchNorm and not part.weight.requires_grad:
            part.eval()
    return module


def batch(n: int, size: int, dtype: type, seed: int = 0, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """n random images (n, size, size, 3) and labels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, size, size, 3)).astype(dtype)
    return x, rng.integers(0, classes, n)


def tensor(x: np.ndarray) -> torch.Tensor:
    """Images in PyTorch's layout."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest entry."""
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


def assert_gradients(actual: dict, expected: dict, tolerance: float) -> None:
    """Each gradient within `tolerance` of its largest entry.

    A weight that the BatchNorm after it makes irrelevant (a bias, the only weight of a channel) has no gradient but
    rounding, so that an array's measure is at least a thousandth of the largest gradient of all. Two roundings of the
    largest are allowed everywhere, which in float32 are more than that.
    """
    largest = max((np.abs(g).max() for g in expected.values()), default=0)
    for name, gradient in expected.items():
        rounding = 2 * np.finfo(actual[name].dtype).eps
        allowed = max(tolerance * np.abs(gradient).max(), max(1e-3 * tolerance, rounding) * largest)
        difference = np.abs(actual[name] - gradient).max()
        assert difference <= allowed, f"gradient of {name}: off by {difference:.2e}, allowed {allowed:.2e}"


def gradients(net: Network) -> dict[str, np.ndarray]:
    return {name: p.grad for name, p in net.parameters().items()}


def assert_converted(
    build: Callable[[type], Network],
    x: np.ndarray,
    dtype: type,
    tolerance: float,
    needs_dx: bool = False,
    prepare: Callable[[Network], None] = lambda net: None,
) -> fused.FusedNetwork:
    """What `fused.convert(build(dtype))` makes of images x is what the reference network `build(float64)` makes.

    Compares inference, training output, running statistics, every gradient, and that of x where it is needed; after
    `prepare`, which may freeze, on both networks. Returns the converted network.
    """
    exact, net = build(np.float64), build(dtype)
    net.load_state(exact.state())
    for each in (exact, net):
        prepare(each)
        each.needs_dx = needs_dx
    fast = fused.convert(net)
    with backend.use("numpy"):
        inferred = exact.forward(x.astype(np.float64))
        expected = exact.forward(x.astype(np.float64), train=True)
        dy = np.random.default_rng(4).standard_normal(expected.shape).astype(np.float32)
        dx_expected = exact.backward(dy.astype(np.float64))
    x = x.astype(dtype)
    assert_close(fast.forward(x), inferred, tolerance, "inference")
    y = fast.forward(x, train=True)
    assert y.dtype == dtype
    assert_close(y, expected, tolerance, "training")
    dx = fast.backward(dy.astype(dtype))
    for name, buffer in fast.buffers().items():
        assert_close(buffer.value, exact.buffers()[name].value, tolerance, name)
    assert_gradients(gradients(fast), gradients(exact), tolerance)
    if needs_dx:
        assert dx is not None
        assert dx_expected is not None
        assert dx.dtype == dtype
        assert_close(dx, dx_expected, tolerance, "dx")
    else:
        assert dx is None
    assert_close(
        fast.forward(x), exact.forward(x.astype(np.float64)), tolerance, "inference after the statistics moved"
    )
    return fast


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    """The same shape, and within `tolerance` of the largest entry."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    off = relative(actual, expected)
    assert off <= tolerance, f"{what}: off by {off:.2e} of the largest entry, allowed {tolerance:.2e}"


def kinds(fast: fused.FusedNetwork) -> list[str]:
    """The kinds of the steps of a converted network, from its report."""
    return [line[:13].strip() for line in fast.report().splitlines()]


def undropped(net: Network) -> Network:
    """`net`, whose dropouts drop nothing."""
    for _, layer in net.leaves():
        if isinstance(layer, Dropout):
            layer.rate = 0.0
    return net
