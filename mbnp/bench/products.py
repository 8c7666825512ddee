"""The floor: the matrix products of a training step or of an inference, run one after another, and nothing else.

A convolution over P = N*H*W output pixels is the product (P, K*K*Cin) @ (K*K*Cin, Cout); a pointwise one and a linear
layer likewise with K = 1. Its backward is two more of the same size: dX = dY @ W^T and dW = X^T @ dY. A depthwise
convolution is none. No network of these layers can be much faster than its products, unless it uses fewer of them
(the engine's inference multiplies large weights by panels, which is a little faster than the whole ones here).
"""

from typing import NamedTuple

import numba
import numpy as np
from numba import prange
from threadpoolctl import threadpool_limits

from mbnp import backend, cost
from mbnp.backend import jit
from mbnp.network import Network

# Floats and least rows of a tile, partial dW, and what OpenBLAS multiplies without packing, as in fused/.
TILE, PIXELS, GROUPS, SMALL = 1 << 15, 128, 8, 10**6


class Product(NamedTuple):
    """y (P, D) = x (P, C) @ w (C, D) of one layer; the first layer's dx is needed by nobody."""

    name: str
    pixels: int
    c: int
    d: int
    first: bool


def of(net: Network, shape: tuple[int, int, int], batch_size: int) -> list[Product]:
    """The products of `net` for a batch of pictures of `shape`, in the order of forward."""
    found: list[Product] = []
    for row in cost.of(net, shape).rows:
        if row.macs and row.kind != "Depthwise":
            pixels = batch_size * int(np.prod(row.output_shape[:-1]))
            d = row.output_shape[-1]
            found.append(Product(row.name, pixels, batch_size * row.macs // (pixels * d), d, not found))
    return found


def flops(products: list[Product], backward: bool) -> int:
    """Operations of all products, a training step's with `backward`."""
    return sum(2 * p.pixels * p.c * p.d * (1 if not backward else 2 if p.first else 3) for p in products)


@jit(parallel=True)
def _forward(x, w, tile, y):
    for t in prange(-(-x.shape[0] // tile)):
        np.dot(x[t * tile : (t + 1) * tile], w, y[t * tile : (t + 1) * tile])


@jit(parallel=True)
def _backward(x, dy, w_t, tile, group, dx, dw):
    """dx = dy @ w_t and, by groups of tiles, x.T @ dy; where dx is empty it is left out."""
    for t in prange(dw.shape[0]):
        for first in range(t * group, min((t + 1) * group, x.shape[0]), tile):
            np.dot(x[first : first + tile].T, dy[first : first + tile], dw[t])
            if dx.size:
                np.dot(dy[first : first + tile], w_t, dx[first : first + tile])


class _Layer:
    """The arrays of one product."""

    def __init__(self, product: Product, backward: bool) -> None:
        _, pixels, c, d, first = product
        rng = np.random.default_rng(0)
        self.x, self.w = rng.standard_normal((pixels, c), np.float32), rng.standard_normal((c, d), np.float32)
        self.y = np.empty((pixels, d), np.float32)
        small = SMALL // (c * d) // 4 * 4  # OpenBLAS takes four rows together
        self.tile = min(small if small >= 12 else max(TILE // max(c, d), PIXELS), -(-pixels // 2))
        if backward:
            tiles = -(-pixels // self.tile)
            self.group = -(-tiles // GROUPS) * self.tile
            self.dy = rng.standard_normal((pixels, d), np.float32)
            self.w_t = np.ascontiguousarray(self.w.T)
            self.dx = np.empty((0 if first else pixels, c), np.float32)
            self.dw = np.empty((-(-pixels // self.group), c, d), np.float32)


class Floor:
    """All products of a network, ready to run. `backward`: those of a training step."""

    def __init__(self, products: list[Product], backward: bool, threads: int) -> None:
        self.layers = [_Layer(product, backward) for product in products]
        self.backward, self.threads = backward, threads

    def run(self) -> None:
        """As the fast engine multiplies: one-threaded products inside prange, over tiles that stay in cache."""
        numba.set_num_threads(self.threads)
        with backend.one_blas_thread():
            for layer in self.layers:
                _forward(layer.x, layer.w, layer.tile, layer.y)
            for layer in reversed(self.layers if self.backward else []):
                _backward(layer.x, layer.dy, layer.w_t, layer.tile, layer.group, layer.dx, layer.dw)

    def run_numpy(self) -> None:
        """As NumPy multiplies: every product whole, on the threads of its own BLAS."""
        for layer in self.layers:
            np.matmul(layer.x, layer.w, out=layer.y)
        for layer in reversed(self.layers if self.backward else []):
            np.matmul(layer.x.T, layer.dy, out=layer.dw[0])
            if layer.dx.size:
                np.matmul(layer.dy, layer.w.T, out=layer.dx)

    def numpy_threads(self) -> threadpool_limits:
        """A context in which NumPy's BLAS has the floor's number of threads."""
        return threadpool_limits(self.threads, user_api="blas")
