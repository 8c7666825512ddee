"""The blocks of MobileNets: depthwise separable, the standard convolution that it takes the place of, and inverted."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mbnp.layers import BatchNorm, Conv, Depthwise, Pointwise, ReLU
from mbnp.network import Sequential


def separable_block(
    c_in: int, c_out: int, stride: int, rng: np.random.Generator, dtype: Any, max_value: float | None = None,
    names: Sequence[str] = "012345",
) -> Sequential:  # fmt: skip
    """Depthwise 3x3, BatchNorm, ReLU, pointwise, BatchNorm, ReLU (Howard et al., arXiv:1704.04861, figure 3, right)."""
    layers = [
        Depthwise(c_in, 3, stride, padding=1, bias=False, rng=rng, dtype=dtype),
        BatchNorm(c_in, dtype=dtype),
        ReLU(max_value),
        Pointwise(c_in, c_out, bias=False, rng=rng, dtype=dtype),
        BatchNorm(c_out, dtype=dtype),
        ReLU(max_value),
    ]
    return Sequential(dict(zip(names, layers, strict=True)))


def standard_block(
    c_in: int, c_out: int, stride: int, rng: np.random.Generator, dtype: Any, bias: bool = False,
    max_value: float | None = None,
) -> Sequential:  # fmt: skip
    """Standard 3x3 convolution, BatchNorm, ReLU (the same figure, left)."""
    conv = Conv(c_in, c_out, 3, stride, padding=1, bias=bias, rng=rng, dtype=dtype)
    return Sequential([conv, BatchNorm(c_out, dtype=dtype), ReLU(max_value)])
