"""The floor: the matrix products of a training step or of an inference, run one after another, and nothing else.

A convolution over P = N*H*W output pixels is the product (P, K*K*Cin) @ (K*K*Cin, Cout); a pointwise one and a linear
layer likewise with K = 1. Its backward is two more of the same size: dX = dY @ W^T and dW = X^T @ dY. A depthwise
convolution is none. No network of these layers can be much faster than its matrix products, unless it uses fewer of
them (the engine's inference multiplies large weights by panels, a little faster than the whole ones here).
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numba import prange

from mbnp import backend, cost
from mbnp.backend import jit
from mbnp.network import Network

# Floats and rows of a tile that stays in the cache, partial dW, and the multiplications that OpenBLAS does without
# packing its operands: the fastest for these kernels. They are not the engine's: the floor stays when that changes.
TILE, PIXELS, CHUNKS, SMALL = 1 << 15, 128, 8, 10**6

Matmul = tuple[int, int, int]  # P, C and D of y (P, D) = x (P, C) @ w (C, D)


def matmuls(net: Network, shape: tuple[int, int, int], batch_size: int) -> dict[str, Matmul]:
    """Return the matrix product of each layer of `net` that is one, for a batch of images of `shape` (H, W, C)."""
    found = {}
    for row in cost.of(net, shape).rows:
        if row.macs and row.kind != "Depthwise":
            *size, d = row.output_shape
            found[row.name] = batch_size * math.prod(size), row.macs // math.prod(row.output_shape), d
    return found


@jit(parallel=True)
def multiply(x: np.ndarray, w: np.ndarray, tile: int, y: np.ndarray) -> None:
    """Set y = x @ w by tiles of rows, each by one thread."""
    for t in prange(-(-x.shape[0] // tile)):
        np.dot(x[t * tile : (t + 1) * tile], w, y[t * tile : (t + 1) * tile])


@jit(parallel=True)
def multiply_backward(x, dy, w_t, tile, chunk, dx, dw):  # type: ignore[no-untyped-def]
    """Set dx = dy @ w_t and, by chunks of tiles, dw = x.T @ dy; where dx is empty it is left out."""
    for t in prange(dw.shape[0]):
        for first in range(t * chunk, min((t + 1) * chunk, x.shape[0]), tile):
            np.dot(x[first : first + tile].T, dy[first : first + tile], dw[t])
            if dx.size:
                np.dot(dy[first : first + tile], w_t, dx[first : first + tile])


class Arrays:
    """The arrays of one matrix product, and its tiles; the first layer's dx is not needed."""

    def __init__(self, pixels: int, c: int, d: int, first: bool) -> None:
        small = SMALL // (c * d) // 4 * 4  # OpenBLAS takes four rows together
        self.tile = min(small if small >= 12 else max(TILE // max(c, d), PIXELS), -(-pixels // 2))
        self.chunk = -(-math.ceil(pixels / self.tile) // CHUNKS) * self.tile
        rng = np.random.default_rng(0)
        shapes = (pixels, c), (c, d), (pixels, d)
        self.x, self.w, self.dy = (rng.standard_normal(shape, np.float32) for shape in shapes)
        self.w_t = np.ascontiguousarray(self.w.T)
        self.y, self.dx = np.empty((pixels, d), np.float32), np.empty((0 if first else pixels, c), np.float32)
        self.dw = np.empty((-(-pixels // self.chunk), c, d), np.float32)


def allocate(matmuls: Iterable[Matmul]) -> list[Arrays]:
    """Return the arrays of a network's matrix products, for `run` and `run_numpy`."""
    return [Arrays(*matmul, first=i == 0) for i, matmul in enumerate(matmuls)]


def run(layers: Sequence[Arrays], backward: bool) -> None:
    """Multiply as the fast engine does: one-threaded products inside prange, over tiles that stay in cache.

    `backward`: all matrix products of a training step, not only those of forward.
    """
    with backend.one_pool():
        for a in layers:
            multiply(a.x, a.w, a.tile, a.y)
        for a in reversed(layers) if backward else ():
            multiply_backward(a.x, a.dy, a.w_t, a.tile, a.chunk, a.dx, a.dw)


def run_numpy(layers: Sequence[Arrays], backward: bool) -> None:
    """Multiply as NumPy does: every matrix product whole, on the threads of its own BLAS."""
    for a in layers:
        np.matmul(a.x, a.w, out=a.y)
    for a in reversed(layers) if backward else ():
        np.matmul(a.x.T, a.dy, out=a.dw[0])
        if a.dx.size:
            np.matmul(a.dy, a.w.T, out=a.dx)
