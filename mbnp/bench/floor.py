"""The floor: the matrix products of a training step or of an inference, run one after another, and nothing else.

A convolution over P = N*H*W output pixels is the product (P, K*K*Cin) @ (K*K*Cin, Cout); a pointwise one and a linear
layer likewise with K = 1. Its backward is two more of the same size: dX = dY @ W^T and dW = X^T @ dY. A depthwise
convolution is none.

The products are the engine's own (`ops/matmul.py`), its weights packed beforehand. What the engine takes on top of
them is everything else: the other layers, and whatever it reads and writes between two products.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numba import prange

from mbnp import backend, cost
from mbnp.backend import jit
from mbnp.backend.vectors import padded, width
from mbnp.network import Network
from mbnp.ops.matmul import fill_vectors, pack, product, product_transposed

CHUNKS, ROWS = 8, 128  # at most so many chunks of the rows, each of at least so many rows

Matmul = tuple[int, int, int]  # P, C and D of y (P, D) = x (P, C) @ w (C, D)


def matmuls(net: Network, shape: tuple[int, int, int], batch_size: int) -> dict[str, Matmul]:
    """Return the matrix product of each layer of `net` that is one, for a batch of images of `shape` (H, W, C)."""
    found = {}
    for row in cost.of(net, shape).rows:
        if row.macs and row.kind != "Depthwise":
            *size, d = row.output_shape
            found[row.name] = batch_size * math.prod(size), row.macs // math.prod(row.output_shape), d
    return found


@jit(parallel=True, literal=True)
def pack_panels(w: np.ndarray, panel: int, packed: np.ndarray) -> None:
    """Pack w (C, D), D filling vectors, into panels so many columns wide."""
    for i in prange(-(-w.shape[1] // panel)):
        pack(w, i * panel, w.shape[1], packed)


@jit(parallel=True, literal=True)
def multiply(x: np.ndarray, packed: np.ndarray, bias: np.ndarray, chunks: int, y: np.ndarray) -> None:
    """Set y = x @ w + bias by chunks of rows, each by one thread."""
    P = x.shape[0]
    for t in prange(chunks):
        first, last = t * P // chunks, (t + 1) * P // chunks
        product(x[first:last], packed, bias, y[first:last])


@jit(parallel=True, literal=True)
def multiply_backward(x, dy, packed, bias, dx, dw):  # type: ignore[no-untyped-def]
    """Set dx = dy @ w.T + bias, w.T packed, and dw = x.T @ dy of each chunk; where dx is empty it is left out."""
    P, chunks = x.shape[0], dw.shape[0]
    for t in prange(chunks):
        first, last = t * P // chunks, (t + 1) * P // chunks
        product_transposed(x[first:last], dy[first:last], dw[t])
        if dx.size > 0:
            product(dy[first:last], packed, bias, dx[first:last])


def packed(w: np.ndarray) -> np.ndarray:
    """Return w (C, D), D filling vectors, packed."""
    panels = np.empty(w.size, w.dtype)
    pack_panels(w, 2 * width(w.dtype), panels)
    return panels


class Arrays:
    """The arrays of one matrix product; the first layer's dx is not needed.

    Columns fill vectors, as the engine stores them: x and w have C and D, and y, dy, dx and dw may have a few more.
    """

    def __init__(self, pixels: int, c: int, d: int, first: bool) -> None:
        rng = np.random.default_rng(0)
        self.x, self.w, dy = (rng.standard_normal(s, np.float32) for s in ((pixels, c), (c, d), (pixels, d)))
        self.chunks = min(CHUNKS, max(1, pixels // ROWS))
        self.dy = np.ascontiguousarray(fill_vectors(dy))
        columns, back = self.dy.shape[1], padded(c, np.float32)
        self.no_bias = np.zeros(max(columns, back), np.float32)
        self.y, self.dx = np.empty((pixels, columns), np.float32), np.empty((0 if first else pixels, back), np.float32)
        self.dw = np.empty((self.chunks, c, columns), np.float32)
        self.packed = packed(np.ascontiguousarray(fill_vectors(self.w)))
        transposed = np.zeros((columns, back), np.float32)
        transposed[:d, :c] = self.w.T
        self.packed_back = packed(transposed)


def allocate(matmuls: Iterable[Matmul]) -> list[Arrays]:
    """Return the arrays of a network's matrix products, for `run` and `run_numpy`."""
    return [Arrays(*matmul, first=i == 0) for i, matmul in enumerate(matmuls)]


def run(layers: Sequence[Arrays], backward: bool) -> None:
    """Multiply as the fast engine does: one-threaded products in a parallel loop, of packed weights.

    `backward`: all matrix products of a training step, not only those of forward.
    """
    with backend.one_pool():
        for a in layers:
            multiply(a.x, a.packed, a.no_bias, a.chunks, a.y)
        for a in reversed(layers) if backward else ():
            multiply_backward(a.x, a.dy, a.packed_back, a.no_bias, a.dx, a.dw)


def run_numpy(layers: Sequence[Arrays], backward: bool) -> None:
    """Multiply as NumPy does: every matrix product whole, on the threads of its own BLAS."""
    for a in layers:
        np.matmul(a.x, a.w, out=a.y[:, : a.w.shape[1]])
    for a in reversed(layers) if backward else ():
        c, d = a.w.shape
        np.matmul(a.x.T, a.dy[:, :d], out=a.dw[0, :, :d])
        if a.dx.size:
            np.matmul(a.dy[:, :d], a.w.T, out=a.dx[:, :c])
