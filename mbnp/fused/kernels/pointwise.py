"""Pointwise convolution: one matrix product, between passes over a tile of pixels that stays in the cache."""

import numba
import numpy as np
from numba import prange

from mbnp.backend import jit, piece
from mbnp.fused.kernels.batchnorm import activate_pixels, adjoint_pixels, mask_pixels, take_moments

ROWS = 16  # of weights that are transposed together
FEW = 512  # pixels in all: fewer are not worth a copy of the weights
SMALL = 10**6  # multiplications in a matrix product: up to so many OpenBLAS does without packing its operands


# ---- matrix products, and what is added up after them --------------------------------------------------------------


@piece
def _strip(w):
    """How many rows of a product with w keep it SMALL: a multiple of four, or 0 if they are fewer than a dozen."""
    rows = SMALL // w.size // 4 * 4
    return rows if rows >= 12 else 0


@piece
def product(a, w, out):
    """out = a @ w, in strips of rows that keep each product SMALL, where a strip has at least a dozen rows.

    Small ones were measured a fifth faster than large ones (a Zen 4: 115 against 95 GFLOP/s a core), but twice as
    slow when the second factor is a transposed view. OpenBLAS takes four rows together: strips of 15 rows reached 370
    GFLOP/s, of 12 rows 480 (two cores of a Zen 5, weights of 256 by 256).
    """
    rows = _strip(w)
    if rows == 0:
        np.dot(a, w, out)
        return
    for first in range(0, a.shape[0], rows):
        np.dot(a[first : first + rows], w, out[first : first + rows])


@piece
def add_product(a, dz, overwrite, part, dw):
    """dw += a.T @ dz, or = where it is to `overwrite`, likewise; part, of dw's shape, is scratch.

    Strips of two dozen rows make up for the additions.
    """
    rows = SMALL // dw.size
    if rows < 24:
        rows = a.shape[0]
    flat, flat_part = dw.ravel(), part.ravel()
    for first in range(0, a.shape[0], rows):
        if overwrite and first == 0:
            np.dot(a[first : first + rows].T, dz[first : first + rows], dw)
        else:
            np.dot(a[first : first + rows].T, dz[first : first + rows], part)
            for i in range(flat.size):
                flat[i] += flat_part[i]


@piece
def add_parts(parts, row, grad):
    """grad (channels,) += the sum of parts (m, rows, stored channels), of that row."""
    for t in range(parts.shape[0]):
        part = parts[t, row]
        for i in range(grad.size):
            grad[i] += part[i]


# ---- pointwise convolution ------------------------------------------------------------------------------------


@piece
def _pointwise_forward(z, affine, limits, w, first, last, scratch, out, moments):
    z, out = z[first:last], out[first:last]
    a = scratch[: z.size].reshape(z.shape)
    activate_pixels(z.ravel(), affine, limits, a.ravel())
    product(a, w, out)
    take_moments(out.ravel(), moments)


@jit(parallel=True)
def pointwise_forward(z, affine, limits, w, tile, scratch, out, moments):
    """z (P, Cin) -> out (P, Cout) = a @ w, and moments (tiles, 2, Cout); P = N*H*W pixels, `tile` at a time.

    Law: a = relu.forward(batchnorm.forward(z)); out = pointwise.forward(a, w); moments[t] of out's tile t.
    The tile a (tile, Cin) never leaves the cache.
    """
    P = z.shape[0]
    for t in prange(moments.shape[0]):
        k = numba.get_thread_id()
        _pointwise_forward(
            z, affine, limits, w, t * tile, min(P, (t + 1) * tile), scratch[k], out, moments[t]
        )  # fmt: skip


@piece
def _transpose_rows(w, first, w_t):
    """w_t[: columns, : rows] = w.T, a few rows at a time, since all of a column are in too many cache lines."""
    for column in range(w.shape[1]):
        for row in range(first, min(first + ROWS, w.shape[0])):
            w_t[column, row] = w[row, column]


@piece
def _copies(w, pixels):
    """Whether a transposed copy of the weights pays."""
    return pixels >= FEW and _strip(w) > 0


@piece
def _pointwise_backward(
    g_out, z_out, affine_out, adjoint_out, z, affine, limits, w, w_t, first, last, scratch, sums, g, overwrite, dw
):  # fmt: skip
    copied = _copies(w, z.shape[0])
    g_out, z_out, z, g = g_out[first:last], z_out[first:last], z[first:last], g[first:last]
    dz, a = scratch[: g_out.size], scratch[g_out.size : g_out.size + z.size]
    part = scratch[g_out.size + z.size : g_out.size + z.size + dw.size].reshape(dw.shape)
    adjoint_pixels(g_out.ravel(), z_out.ravel(), affine_out, adjoint_out, dz)
    activate_pixels(z.ravel(), affine, limits, a)
    add_product(a.reshape(z.shape), dz.reshape(z_out.shape), overwrite, part, dw)
    if copied:
        product(dz.reshape(z_out.shape), w_t, g)
    else:
        np.dot(dz.reshape(z_out.shape), w.T, g)
    mask_pixels(g.ravel(), z.ravel(), affine, limits, sums)


@piece
def _pointwise_backward_group(
    g_out, z_out, affine_out, adjoint_out, z, affine, limits, w, w_t, first, last, tile, scratch, g, dw, sums
):
    sums[:] = 0
    for start in range(first, last, tile):
        _pointwise_backward(
            g_out, z_out, affine_out, adjoint_out, z, affine, limits, w, w_t, start, min(start + tile, last),
            scratch, sums, g, start == first, dw,
        )  # fmt: skip


@jit(parallel=True)
def pointwise_backward(
    g_out, z_out, affine_out, adjoint_out, z, affine, limits, w, tile, group, scratch, w_t, g, parts, sums, dw
):
    """From g_out (P, Cout) and z_out to g (P, Cin), sums (groups, 2, Cin), and dw (Cin, Cout), which is added to.

    Law: dz = batchnorm.backward(g_out, z_out); da, dW = pointwise.backward(dz, a, w); g = relu.backward(da).
    A group is `group` pixels, taken `tile` at a time: dz and a are made again from z while the tile is in cache, which
    is cheaper than to have stored them. parts (groups, Cin, Cout) are the groups' shares of dW, and w_t (Cout, Cin) is
    for w transposed and copied, where that pays. g may be g_out where they have one shape: a tile of dz is made before
    the tile of g is written. Without rows in dw nothing is added.
    """
    P = z.shape[0]
    for t in prange(-(-w.shape[0] // ROWS) if _copies(w, P) else 0):
        _transpose_rows(w, t * ROWS, w_t)
    for t in prange(parts.shape[0]):
        k = numba.get_thread_id()
        _pointwise_backward_group(
            g_out, z_out, affine_out, adjoint_out, z, affine, limits, w, w_t, t * group, min(P, (t + 1) * group), tile,
            scratch[k], g, parts[t], sums[t],
        )  # fmt: skip
    for r in prange(dw.shape[0]):
        add_parts(parts, r, dw[r])
