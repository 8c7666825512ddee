"""The first convolution: on pictures, whose gradient nobody needs.

A picture is laid into a padded one, x, which is so small that it stays in the first cache. Tap t of the window whose
corner is x[k] sees x[k + offsets[t]], and a vector of output channels adds w[t] times that one number.
"""

import numba
from numba import prange

from mbnp.backend import inlined, jit, piece
from mbnp.fused.kernels.batchnorm import adjoint_run, take_moments
from mbnp.fused.kernels.pointwise import add_parts
from mbnp.fused.kernels.vectors import BYTES, clip, load, spread, store, store_rows


@piece
def _pad_picture(picture, above, left, padded):
    """padded (PH, PW*C) = the rows of the picture (H, W, C) from `above` on, padded, and zeros where there are none."""
    H, W, C = picture.shape
    flat, row = picture.ravel(), padded.shape[1]
    padded[:] = 0
    for y in range(max(0, -above), min(padded.shape[0], H - above)):
        out = padded[y]
        for i in range(min(W * C, row - left * C)):
            out[left * C + i] = flat[(above + y) * W * C + i]


@piece
def _stem_row(x, k, step, offsets, w, limits, pixels, out, o):
    """out (pixels, D) from o on = clip(w * x + bias): windows at k, k + step, ...; w (taps + 1, D) ends in the bias."""
    taps, D = offsets.size, w.shape[1]
    low, high = limits[0], limits[1]
    flat = w.ravel()
    for c in range(0, D, BYTES // x.itemsize):
        # Last of all: sums that began with a large bias would be rounded to it at every step.
        bias = load(flat, taps * D + c)
        p = 0
        while p + 8 <= pixels:  # a weight is loaded once for eight of them
            a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = bias - bias
            for t in range(taps):
                v, i = load(flat, t * D + c), k + p * step + offsets[t]
                a0, a1 = a0 + v * spread(x, i), a1 + v * spread(x, i + step)
                a2, a3 = a2 + v * spread(x, i + 2 * step), a3 + v * spread(x, i + 3 * step)
                a4, a5 = a4 + v * spread(x, i + 4 * step), a5 + v * spread(x, i + 5 * step)
                a6, a7 = a6 + v * spread(x, i + 6 * step), a7 + v * spread(x, i + 7 * step)
            at = o + p * D + c
            store(clip(a0 + bias, low, high), out, at)
            store(clip(a1 + bias, low, high), out, at + D)
            store(clip(a2 + bias, low, high), out, at + 2 * D)
            store(clip(a3 + bias, low, high), out, at + 3 * D)
            store(clip(a4 + bias, low, high), out, at + 4 * D)
            store(clip(a5 + bias, low, high), out, at + 5 * D)
            store(clip(a6 + bias, low, high), out, at + 6 * D)
            store(clip(a7 + bias, low, high), out, at + 7 * D)
            p += 8
        while p < pixels:
            a0 = bias - bias
            for t in range(taps):
                a0 = a0 + load(flat, t * D + c) * spread(x, k + p * step + offsets[t])
            store(clip(a0 + bias, low, high), out, o + p * D + c)
            p += 1


@piece
def _stem_forward(picture, w, offsets, limits, shape, stride, top, left, scratch, out, moments):
    OH, OW, D = out.shape
    row, step = shape[1], stride * picture.shape[2]
    padded = scratch[: shape[0] * row].reshape(shape)
    _pad_picture(picture, -top, left, padded)
    x, z = padded.ravel(), out.ravel()
    for y in range(OH):
        _stem_row(x, y * stride * row, step, offsets, w, limits, OW, z, y * OW * D)
    take_moments(z, moments)


@jit(parallel=True)
def stem_forward(x, w, offsets, limits, shape, stride, top, left, scratch, out, moments):
    """x (N, H, W, C) -> out (N, OH, OW, D), and moments (N, 2, D). Law: conv.forward(x, w, b).

    w (taps + 1, D): K*K*C rows of the weights, and the bias or zeros. offsets (taps,): of the tap, from its window's
    corner, in a padded picture of `shape` (PH, PW*C). limits: infinite, so that nothing is clipped.
    """
    for n in prange(x.shape[0]):
        k = numba.get_thread_id()
        _stem_forward(
            x[n], w, offsets, limits, shape, stride, top, left, scratch[k], out[n], moments[n]
        )  # fmt: skip


@inlined
def _add_taps(x, k, step, offsets, t, dz, pixels, dw, c):
    """dw (rows, D), rows t to t + 8, channels c ... += what the pixels of dz (pixels, V) times what they saw give."""
    i0, i1, i2, i3 = offsets[t], offsets[t + 1], offsets[t + 2], offsets[t + 3]
    i4, i5, i6, i7 = offsets[t + 4], offsets[t + 5], offsets[t + 6], offsets[t + 7]
    d0, d1, d2, d3 = load(dw[t], c), load(dw[t + 1], c), load(dw[t + 2], c), load(dw[t + 3], c)
    d4, d5, d6, d7 = load(dw[t + 4], c), load(dw[t + 5], c), load(dw[t + 6], c), load(dw[t + 7], c)
    o = 0
    for _ in range(pixels):
        v = load(dz, o)
        d0, d1 = d0 + v * spread(x, k + i0), d1 + v * spread(x, k + i1)
        d2, d3 = d2 + v * spread(x, k + i2), d3 + v * spread(x, k + i3)
        d4, d5 = d4 + v * spread(x, k + i4), d5 + v * spread(x, k + i5)
        d6, d7 = d6 + v * spread(x, k + i6), d7 + v * spread(x, k + i7)
        k, o = k + step, o + BYTES // x.itemsize
    store_rows((d0, d1, d2, d3, d4, d5, d6, d7), dw, t, c)


@piece
def _stem_backward(g, z, affine, adjoint, picture, offsets, shape, stride, top, left, scratch, dw):
    OH, OW, D = z.shape
    V, taps, step = BYTES // z.itemsize, offsets.size, stride * picture.shape[2]
    padded, dz = scratch[: shape[0] * shape[1]].reshape(shape), scratch[shape[0] * shape[1] :]
    _pad_picture(picture, -top, left, padded)
    x, y, gy = padded.ravel(), z.ravel(), g.ravel()
    dw[:] = 0
    for r in range(OH):
        for c in range(0, D, V):
            adjoint_run(gy, y, r * OW * D + c, OW, affine, adjoint, c, dz, 0, V, OW * D)
            total = load(dw[taps], c)
            for o in range(0, OW * V, V):
                total = total + load(dz, o)
            store(total, dw[taps], c)
            for t in range(0, taps, 8):
                _add_taps(x, r * stride * shape[1], step, offsets, t, dz, OW, dw, c)


@jit(parallel=True)
def stem_backward(g, z, affine, adjoint, x, offsets, shape, stride, top, left, scratch, parts, dw, db):
    """dw (taps, D) and db (1, D), which are added to. Law: dz = batchnorm.backward(g, z); conv.backward(dz, x, w).

    offsets (taps,) as in `stem_forward`, with some more, of no account, so that they are a whole number of eights.
    parts (N, eights + 1, D) are the images' shares of dw, the last row of db. Without rows nothing is added.
    """
    for n in prange(x.shape[0]):
        k = numba.get_thread_id()
        _stem_backward(
            g[n], z[n], affine, adjoint, x[n], offsets, shape, stride, top, left, scratch[k], parts[n]
        )  # fmt: skip
    for r in prange(dw.shape[0]):
        add_parts(parts, r, dw[r])
    for r in prange(db.shape[0]):
        add_parts(parts, offsets.size + r, db[r])


@piece
def _stem_inference(
    picture, w, offsets, limits, shape, stride, top, left, first, last, OW, scratch, out, above, before
):
    D, row, step = w.shape[1], shape[1], stride * picture.shape[2]
    padded = scratch[: shape[0] * row].reshape(shape)
    _pad_picture(picture, first * stride - top, left, padded)
    x, flat = padded.ravel(), out.ravel()
    pixels = min(OW, out.shape[1] // D - before)
    for y in range(first, min(last, out.shape[0] - above)):
        o = (above + y) * out.shape[1] + before * D
        _stem_row(x, (y - first) * stride * row, step, offsets, w, limits, pixels, flat, o)


@jit(parallel=True)
def stem_inference(x, w, offsets, limits, shape, stride, top, left, OH, OW, band, scratch, out, above, before):
    """x (N, H, W, C) -> out (N, PH, PW*D), `band` output rows at a time. Law: relu.forward(conv.forward(x, w, b)).

    w, offsets and shape as in `stem_forward`, but of a band. The output begins at row `above` and pixel `before` of the
    padded out.
    """
    bands = -(-OH // band)
    for t in prange(x.shape[0] * bands):
        n, first = t // bands, t % bands * band
        _stem_inference(
            x[n], w, offsets, limits, shape, stride, top, left, first, min(OH, first + band), OW,
            scratch[numba.get_thread_id()], out[n], above, before,
        )  # fmt: skip
