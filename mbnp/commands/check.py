"""`mbnp check`: do all spellings of every operation agree, with each other and with outside references?"""

from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mbnp import backend, gradcheck
from mbnp.commands import common
from mbnp.errors import MbnpError
from mbnp.ops import batchnorm, conv, depthwise, linear, pointwise, pool, relu
from mbnp.ops import softmax_cross_entropy as cross_entropy

# The largest error of each comparison, relative to the largest entry of the array.
ALLOWED = {"numpy": 1e-10, "numba": 1e-10, "numba float32": 1e-5, "differences": 1e-6, "torch": 1e-10}

MEAN, VAR, EPS = np.array([0.1, -0.3, 0.0]), np.array([1.5, 0.4, 2.0]), 1e-5
LABELS = np.array([2, 0, 3, 3])
STRIDED: dict[str, Any] = {
    "stride": 2,
    "padding": ((0, 1), (1, 0)),
}  # one-sided, as TensorFlow pads at stride 2


class Case(NamedTuple):
    """One operation: forward(*inputs) -> y, backward(dy, *inputs) -> a gradient for each input, a tuple.

    Inputs are random, of the given shapes. reference(F, *inputs) is the same with torch.nn.functional, whose
    pictures have their channels second.
    """

    name: str
    shapes: list[tuple[int, ...]]
    forward: Callable
    backward: Callable
    reference: Callable


X = (2, 7, 6, 3)  # odd and even sides

CASES = [
    Case(
        "standard convolution",
        [X, (3, 3, 3, 4), (4,)],
        lambda x, w, b: conv.forward(x, w, b, padding=1),
        lambda dy, x, w, b: conv.backward(dy, x, w, padding=1),
        lambda F, x, w, b: F.conv2d(x, w.permute(3, 2, 0, 1), b, padding=1),
    ),
    Case(
        "standard convolution, stride 2",
        [X, (3, 3, 3, 4), (4,)],
        lambda x, w, b: conv.forward(x, w, b, **STRIDED),
        lambda dy, x, w, b: conv.backward(dy, x, w, **STRIDED),
        lambda F, x, w, b: F.conv2d(F.pad(x, (1, 0, 0, 1)), w.permute(3, 2, 0, 1), b, stride=2),
    ),
    Case(
        "depthwise convolution",
        [X, (3, 3, 3), (3,)],
        lambda x, w, b: depthwise.forward(x, w, b, padding=1),
        lambda dy, x, w, b: depthwise.backward(dy, x, w, padding=1),
        lambda F, x, w, b: F.conv2d(x, w.permute(2, 0, 1)[:, None], b, padding=1, groups=3),
    ),
    Case(
        "depthwise convolution, stride 2",
        [X, (3, 3, 3), (3,)],
        lambda x, w, b: depthwise.forward(x, w, b, **STRIDED),
        lambda dy, x, w, b: depthwise.backward(dy, x, w, **STRIDED),
        lambda F, x, w, b: F.conv2d(F.pad(x, (1, 0, 0, 1)), w.permute(2, 0, 1)[:, None], b, 2, groups=3),
    ),
    Case(
        "pointwise convolution",
        [X, (3, 4), (4,)],
        pointwise.forward,
        lambda dy, x, w, b: pointwise.backward(dy, x, w),
        lambda F, x, w, b: F.conv2d(x, w.T[:, :, None, None], b),
    ),
    Case(
        "batch normalisation, training",
        [X, (3,), (3,)],
        lambda x, gamma, beta: batchnorm.forward(x, gamma, beta, EPS)[0],
        lambda dy, x, gamma, beta: batchnorm.backward(
            dy, x, gamma, *batchnorm.forward(x, gamma, beta, EPS)[1:], EPS
        ),
        lambda F, x, gamma, beta: F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS),
    ),
    Case(
        "batch normalisation, inference",
        [X, (3,), (3,)],
        lambda x, gamma, beta: batchnorm.inference(x, gamma, beta, *_statistics(x), EPS),
        lambda dy, x, gamma, beta: batchnorm.inference_backward(dy, x, gamma, *_statistics(x), EPS),
        lambda F, x, gamma, beta: F.batch_norm(x, *map(x.new_tensor, (MEAN, VAR)), gamma, beta, eps=EPS),
    ),
    Case("ReLU", [X], relu.forward, relu.backward, lambda F, x: F.relu(x)),
    Case(
        "ReLU6",
        [X],
        lambda x: relu.forward(6 * x, cap=6.0),
        lambda dy, x: 6 * relu.backward(dy, 6 * x, cap=6.0),
        lambda F, x: F.relu6(6 * x),
    ),
    Case(
        "max pooling",
        [X],
        lambda x: pool.max_forward(x, 3, stride=2, padding=1),
        lambda dy, x: pool.max_backward(dy, x, 3, stride=2, padding=1),
        lambda F, x: F.max_pool2d(x, 3, stride=2, padding=1),
    ),
    Case(
        "average pooling",
        [X],
        lambda x: pool.average_forward(x, 3, stride=2, padding=1),
        lambda dy, x: pool.average_backward(dy, x, 3, stride=2, padding=1),
        lambda F, x: F.avg_pool2d(x, 3, stride=2, padding=1),
    ),
    Case(
        "global average pooling",
        [X],
        pool.global_average_forward,
        pool.global_average_backward,
        lambda F, x: x.mean(dim=(2, 3)),
    ),
    Case(
        "linear",
        [(4, 6), (6, 5), (5,)],
        linear.forward,
        lambda dy, x, w, b: linear.backward(dy, x, w),
        lambda F, x, w, b: F.linear(x, w.T, b),
    ),
    Case(
        "softmax cross-entropy",
        [(4, 5)],
        lambda z: cross_entropy.forward(z, LABELS, label_smoothing=0.1),
        lambda dy, z: dy * cross_entropy.backward(z, LABELS, label_smoothing=0.1),
        lambda F, z: F.cross_entropy(z, z.new_tensor(LABELS).long(), label_smoothing=0.1),
    ),
]


def run(options: Namespace) -> int:
    torch = _torch()
    columns = [name for name in ALLOWED if name != "torch" or torch]
    with common.announced(print):
        results = [(case.name, _errors(case, torch)) for case in CASES]
    print("The loops of each operation, which define it, against its other spellings and outside references:")
    print("the largest error over output and gradients, relative to the largest entry.\n")
    print(f"{'':31}" + "".join(f"{name:>15}" for name in columns))
    failures = 0
    for name, errors in results:
        failed = [column for column in columns if not errors[column] <= ALLOWED[column]]  # so that NaN fails
        failures += len(failed)
        cells = [f"{errors[column]:.1e}{'!' if column in failed else ' '}" for column in columns]
        print(f"{name:32}" + "".join(f"{cell:>15}" for cell in cells).rstrip())
    if not torch:
        print("\nPyTorch is not installed, so nothing was compared with it.")
    print(f"\n{failures} comparisons failed, marked with !" if failures else "\nall agree")
    return 1 if failures else 0


def _errors(case: Case, torch: Any) -> dict[str, float]:
    """The error of each comparison, by the names of ALLOWED."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape).astype(np.float32).astype(np.float64) for shape in case.shapes]
    with backend.using("loops"):
        y = np.asarray(case.forward(*inputs))
        dy = rng.standard_normal(y.shape).astype(np.float32).astype(np.float64)
        truth = [y, *_tuple(case.backward(dy, *inputs))]
        errors = {"differences": _differences(case, inputs)}
    for name, spelling, dtype in (
        ("numpy", "numpy", np.float64),
        ("numba", "numba", np.float64),
        ("numba float32", "numba", np.float32),
    ):
        cast = [a.astype(dtype) for a in (dy, *inputs)]
        with backend.using(spelling):
            errors[name] = _largest([case.forward(*cast[1:]), *_tuple(case.backward(*cast))], truth)
    if torch:
        errors["torch"] = _largest(_with_torch(case, torch, dy, inputs), truth)
    return errors


def _differences(case: Case, inputs: list[np.ndarray]) -> float:
    try:
        found = gradcheck.compare(case.forward, case.backward, inputs, tol=ALLOWED["differences"], entries=20)
    except MbnpError:
        return np.inf
    return max(error for error in found if error is not None)


def _with_torch(case: Case, torch: Any, dy: np.ndarray, inputs: list[np.ndarray]) -> list[np.ndarray]:
    tensors = [torch.tensor(a, requires_grad=True) for a in inputs]
    y = case.reference(torch.nn.functional, *(t.permute(0, 3, 1, 2) if t.shape == X else t for t in tensors))
    y = y.permute(0, 2, 3, 1) if y.ndim == 4 else y
    y.backward(torch.tensor(dy))
    return [y.detach().numpy(), *(t.grad.numpy() for t in tensors)]


def _largest(found: list[np.ndarray], truth: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, truth, strict=True))


def _statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return MEAN.astype(x.dtype), VAR.astype(x.dtype)


def _tuple(gradients: Any) -> tuple:
    return gradients if isinstance(gradients, tuple) else (gradients,)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch
