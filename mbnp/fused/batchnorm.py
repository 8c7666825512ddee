"""BatchNorm between the kernels: from the moments that one kernel left to what the next one applies.

`affine`, `adjoint`, moments and sums are what `kernels` says at its top.
"""

import numpy as np

from mbnp.fused import kernels
from mbnp.layers import BatchNorm
from mbnp.ops import batchnorm
from mbnp.parameter import Parameter


def finish_forward(bn: BatchNorm, moments: np.ndarray, counts: np.ndarray, pixels: int, affine: np.ndarray) -> None:
    """Make `affine` from the moments of the parts of a batch of so many pixels, and move the running statistics."""
    batchnorm.check_count(pixels)
    mean, var = bn.running_mean, bn.running_var
    kernels.finish_statistics(
        moments, counts, bn.weight.value, bn.bias.value, bn.eps, bn.momentum, mean.value, var.value, affine
    )
    mean.touch()
    var.touch()


def running_affine(bn: BatchNorm, affine: np.ndarray) -> None:
    """Make `affine` from the running statistics: inference, or a frozen BatchNorm."""
    inv = 1 / np.sqrt(bn.running_var.value.astype(np.float64) + bn.eps)
    rows = np.stack([bn.running_mean.value, bn.weight.value * inv, bn.bias.value, inv, np.zeros_like(inv)])
    affine[:, : inv.size] = rows


def finish_backward(bn: BatchNorm, sums: np.ndarray, pixels: int, affine: np.ndarray, adjoint: np.ndarray) -> None:
    """From the sums over g: BatchNorm's own gradients, and `adjoint`."""
    total = np.inf if bn.weight.frozen else float(pixels)
    kernels.finish_adjoint(sums, total, affine, target(bn.weight), target(bn.bias), adjoint)


def target(parameter: Parameter) -> np.ndarray:
    """The array that a gradient is added to; a throw-away one where the parameter is frozen."""
    return np.zeros_like(parameter.grad) if parameter.frozen else parameter.grad
