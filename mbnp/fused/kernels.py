"""The kernels: convolution, the BatchNorm and ReLU before it and the statistics after it in one pass over memory.

Read the pieces first, then pointwise convolution, which shows the whole idea; depthwise convolution and the first one
follow it, and inference, where BatchNorm is folded away, comes last. All are in one file because Numba's cache does
not notice that a function of another file has changed.

A network is a chain of  z -> a = act(BN(z)) -> next convolution. Only the raw outputs z of convolutions are
stored. Whoever reads z makes a while it loads, and whoever writes z sums up its statistics while it is in
cache; backward likewise in reverse (BatchNorm fission-fusion: Jung et al., "Restructuring Batch Normalization to
Accelerate CNN Training", MLSys 2019).

The symbols, for one BatchNorm over the channels of z (N, H, W, C):
    affine   (5, T)   rows mean, scale = gamma*inv, shift, inv = 1 / sqrt(var + eps), rest:
                      a = clip((z - mean)*scale + shift); mean is rounded to z's type, shift = beta + rest*scale
                      makes up for it, and rest is what rounding added
    limits   (2,)     the clip: (0, inf) for ReLU, (0, 6) for ReLU6, (-inf, inf) for none
    g        like z   dL/da where the clip let it through, else 0:  the gradient of BN's output
    sums     (tiles, 2, C)  of g and of g * (z - mean), from which BN's backward follows
    adjoint  (3, T)   rows k, c1, c0:  dL/dz = k*g + c1*(z - mean) + c0,  the whole of BN's backward

Per-channel vectors are repeated a whole number of times, to about LANES entries, so that the inner loops run over many
pixels at once whatever the channel count is: with 32 channels a loop over channels would be two vectors long.

Parallel loops run over tiles whose number depends on the shapes alone, and partial sums are added in the order of
the tiles: results do not depend on the number of threads. Their bodies hand whole arrays and indices to serial
functions, because an array sliced in the body would cost all of Numba's no-alias guarantees.
"""

import numba
import numpy as np
from numba import prange

from mbnp.backend import jit, piece

LANES = 256
SMALL = 10**6  # multiplications in a matrix product: up to so many OpenBLAS does without packing its operands


def lanes(channels: int) -> int:
    """T: the channels of as many whole pixels as fit into LANES, and of one at least."""
    return channels * max(1, LANES // channels)


# ---- pieces over flat runs of whole pixels --------------------------------------------------------------------


@piece
def _activate(z, affine, limits, out):
    """out = clip((z - mean) * scale + shift)."""
    mean, scale, shift = affine[0], affine[1], affine[2]
    low, high = limits[0], limits[1]
    T = mean.size
    for start in range(0, z.size, T):
        z_run, out_run = z[start : start + T], out[start : start + T]
        for i in range(z_run.size):
            v = (z_run[i] - mean[i]) * scale[i] + shift[i]
            v = low if v <= low else v  # in this order a NaN stays one
            out_run[i] = high if v >= high else v


@piece
def _adjoint(g, z, affine, adjoint, out):
    """out = dL/dz = k*g + c1*(z - mean) + c0."""
    mean, k, c1, c0 = affine[0], adjoint[0], adjoint[1], adjoint[2]
    T = mean.size
    for start in range(0, z.size, T):
        g_run, z_run, out_run = g[start : start + T], z[start : start + T], out[start : start + T]
        for i in range(z_run.size):
            out_run[i] = k[i] * g_run[i] + c1[i] * (z_run[i] - mean[i]) + c0[i]


@piece
def _mask(g, z, affine, limits, s1, s2):
    """In place, g = g where BN(z) lies strictly within the limits, else 0; adds g to s1 and g*(z - mean) to s2."""
    mean, scale, shift = affine[0], affine[1], affine[2]
    low, high, zero = limits[0], limits[1], limits.dtype.type(0)
    T = mean.size
    for start in range(0, z.size, T):
        g_run, z_run = g[start : start + T], z[start : start + T]
        for i in range(z_run.size):
            centred = z_run[i] - mean[i]
            v = centred * scale[i] + shift[i]
            d = zero if (v <= low) | (v >= high) else g_run[i]  # `or` would branch
            g_run[i] = d
            s1[i] += d
            s2[i] += d * centred


@piece
def _fold(lane_sums, channel_sums):
    """channel_sums (C,) = the lanes (T,) of each channel added up."""
    C = channel_sums.size
    for c in range(C):
        total = 0.0
        for i in range(c, lane_sums.size, C):
            total += lane_sums[i]
        channel_sums[c] = total


@piece
def _moments(z, lane_sums, mean, m2):
    """mean (C,) and m2 (C,), the sum of squared deviations from it, in float64; lane_sums (3, T) is scratch.

    One pass, over deviations from the lane's first value: a plain sum of squares would cancel where the mean is large.
    """
    s1, s2, pivot = lane_sums[0], lane_sums[1], lane_sums[2]
    C, T = mean.size, min(s1.size, z.size)
    for i in range(T):
        s1[i], s2[i], pivot[i] = 0, 0, z[i]
    for start in range(0, z.size, T):
        run = z[start : start + T]
        for i in range(run.size):
            d = run[i] - pivot[i]
            s1[i] += d
            s2[i] += d * d
    pixels = z.size // C
    full, rest = (
        pixels // (T // C),
        pixels % (T // C),
    )  # pixels of each lane, and the lanes that have one more
    for c in range(C):
        total = 0.0
        for i in range(c, T, C):
            count = full + (i // C < rest)
            total += count * np.float64(pivot[i]) + s1[i]
        total /= pixels
        squares = 0.0
        for i in range(c, T, C):
            count = full + (i // C < rest)
            d = s1[i] / count + (pivot[i] - total)
            squares += s2[i] - s1[i] * np.float64(s1[i]) / count + count * d * d
        mean[c], m2[c] = total, squares


@piece
def _copy(source, out):
    for i in range(out.size):
        out[i] = source[i]


# ---- BatchNorm between the passes -----------------------------------------------------------------------------


@jit
def spread_taps(w, flipped, lanes_w):
    """lanes_w (9, T) = the taps of w (3, 3, C), each over and over; flipped, the last tap first."""
    C, T = w.shape[2], lanes_w.shape[1]
    for t in range(9):
        tap = w[(8 - t) // 3, (8 - t) % 3] if flipped else w[t // 3, t % 3]
        for start in range(0, T, C):
            lanes_w[t, start : start + C] = tap


@jit
def finish_statistics(moments, counts, gamma, beta, eps, momentum, running_mean, running_var, affine):
    """Combine the tiles' mean and m2 as Chan, Golub and LeVeque (1979) do; make `affine`, move the running ones.

    moments (tiles, 2, C), counts (tiles,). Law: `batchnorm.forward` and `batchnorm.update_running`.
    """
    C, total = gamma.size, counts.sum()
    mean, m2 = np.zeros(C), np.zeros(C)
    for t in range(counts.size):
        for c in range(C):
            mean[c] += counts[t] * moments[t, 0, c]
    mean /= total
    for t in range(counts.size):
        for c in range(C):
            d = moments[t, 0, c] - mean[c]
            m2[c] += moments[t, 1, c] + counts[t] * (d * d)
    for c in range(C):
        inv = 1 / np.sqrt(m2[c] / total + eps)
        for i in range(c, affine.shape[1], C):
            affine[0, i] = mean[c]
            rest = affine[0, i] - mean[c]
            affine[1, i], affine[2, i] = gamma[c] * inv, beta[c] + rest * gamma[c] * inv
            affine[3, i], affine[4, i] = inv, rest
        running_mean[c] += momentum * (mean[c] - running_mean[c])
        running_var[c] += momentum * (m2[c] / (total - 1) - running_var[c])


@jit
def finish_adjoint(sums, total, affine, dgamma, dbeta, adjoint_out):
    """Add the tiles' sums to BN's gradients, and make `adjoint`. Law: `batchnorm.backward`.

    With total = inf the statistics are constants, as in a frozen BatchNorm: `batchnorm.inference_backward`.
    """
    C = dgamma.size
    s1, s2 = np.zeros(C), np.zeros(C)
    for t in range(sums.shape[0]):
        for c in range(C):
            s1[c] += sums[t, 0, c]
            s2[c] += sums[t, 1, c]
    for c in range(C):
        scale, inv, rest = affine[1, c], np.float64(affine[3, c]), np.float64(affine[4, c])
        products = s2[c] + rest * s1[c]
        dgamma[c] += products * inv
        dbeta[c] += s1[c]
        slope = -scale * inv * inv * products / total
        for i in range(c, adjoint_out.shape[1], C):
            adjoint_out[0, i] = scale
            adjoint_out[1, i] = slope
            adjoint_out[2, i] = slope * rest - scale * s1[c] / total


# ---- matrix products ------------------------------------------------------------------------------------------


@piece
def _product(a, w, out):
    """out = a @ w, in strips of rows that keep each product SMALL, where a strip has at least a dozen rows.

    Small ones were measured a fifth faster than large ones (a Zen 4: 115 against 95 GFLOP/s a core), but twice as
    slow when the second factor is a transposed view.
    """
    rows = SMALL // w.size
    if rows < 12:
        np.dot(a, w, out)
        return
    for first in range(0, a.shape[0], rows):
        np.dot(a[first : first + rows], w, out[first : first + rows])


@piece
def _add_product(a, dz, part, dw):
    """dw += a.T @ dz, likewise; part, of dw's shape, is scratch. Strips of two dozen rows make up for the additions."""
    rows = SMALL // dw.size
    if rows < 24:
        rows = a.shape[0]
    flat, flat_part = dw.ravel(), part.ravel()
    for first in range(0, a.shape[0], rows):
        np.dot(a[first : first + rows].T, dz[first : first + rows], part)
        for i in range(flat.size):
            flat[i] += flat_part[i]


# ---- pointwise convolution ------------------------------------------------------------------------------------


@piece
def _pointwise_forward(z, affine, limits, w, first, last, a, lane_sums, out, moments):
    z, out = z[first:last], out[first:last]
    a = a[: z.size].reshape(z.shape)
    _activate(z.ravel(), affine, limits, a.ravel())
    _product(a, w, out)
    _moments(out.ravel(), lane_sums, moments[0], moments[1])


@jit(parallel=True)
def pointwise_forward(z, affine, limits, w, tile, scratch, lane_sums, out, moments):
    """z (P, Cin) -> out (P, Cout) = a @ w, and moments (tiles, 2, Cout); P = N*H*W pixels, `tile` at a time.

    Law: a = relu.forward(batchnorm.forward(z)); out = pointwise.forward(a, w); moments[t] of out's tile t.
    The tile a (tile, Cin) never leaves the cache.
    """
    P = z.shape[0]
    for t in prange(moments.shape[0]):
        k = numba.get_thread_id()
        _pointwise_forward(
            z, affine, limits, w, t * tile, min(P, (t + 1) * tile), scratch[k], lane_sums[k], out, moments[t]
        )


@piece
def _pointwise_backward(
    g_out, z_out, affine_out, adjoint_out, z, affine, limits, w_t, first, last, scratch, lane_sums, g, dw
):
    g_out, z_out, z, g = g_out[first:last], z_out[first:last], z[first:last], g[first:last]
    dz, a = scratch[: g_out.size], scratch[g_out.size : g_out.size + z.size]
    part = scratch[g_out.size + z.size : g_out.size + z.size + dw.size].reshape(dw.shape)
    _adjoint(g_out.ravel(), z_out.ravel(), affine_out, adjoint_out, dz)
    _activate(z.ravel(), affine, limits, a)
    _add_product(a.reshape(z.shape), dz.reshape(z_out.shape), part, dw)
    _product(dz.reshape(z_out.shape), w_t, g)
    _mask(g.ravel(), z.ravel(), affine, limits, lane_sums[0], lane_sums[1])


@piece
def _pointwise_backward_group(
    g_out, z_out, affine_out, adjoint_out, z, affine, limits, w_t, first, last, tile, scratch, lane_sums, g,
    dw, sums,
):  # fmt: skip
    dw[:] = 0
    lane_sums[:] = 0
    for start in range(first, last, tile):
        _pointwise_backward(
            g_out, z_out, affine_out, adjoint_out, z, affine, limits, w_t, start, min(start + tile, last),
            scratch, lane_sums, g, dw,
        )  # fmt: skip
    _fold(lane_sums[0], sums[0])
    _fold(lane_sums[1], sums[1])


@jit(parallel=True)
def pointwise_backward(
    g_out, z_out, affine_out, adjoint_out, z, affine, limits, w_t, tile, group, scratch, lane_sums, g, dw,
    sums,
):  # fmt: skip
    """From g_out (P, Cout) and z_out to g (P, Cin), with dw (groups, Cin, Cout) and sums (groups, 2, Cin).

    w_t (Cout, Cin) is w transposed and copied.
    Law: dz = batchnorm.backward(g_out, z_out); da, dW = pointwise.backward(dz, a, w); g = relu.backward(da);
    dW = dw summed over the groups. A group is `group` pixels, taken `tile` at a time: dz and a are made again
    from z while the tile is in cache, which is cheaper than to have stored them.
    """
    P = z.shape[0]
    for t in prange(dw.shape[0]):
        k = numba.get_thread_id()
        _pointwise_backward_group(
            g_out, z_out, affine_out, adjoint_out, z, affine, limits, w_t, t * group, min(P, (t + 1) * group), tile,
            scratch[k], lane_sums[k], g, dw[t], sums[t],
        )  # fmt: skip


@jit
def add_parts(parts, grad):
    """grad (n,) += the sum of parts (m, n)."""
    for t in range(parts.shape[0]):
        part = parts[t]
        for i in range(grad.size):
            grad[i] += part[i]


# ---- depthwise convolution, 3x3 at stride 1 or 2 --------------------------------------------------------------
#
# A row of the padded input is a flat run, and output pixel x at tap v reads it at x + v: nine runs, shifted. At stride
# 2 the runs would be interleaved, so that the padded rows keep their even columns first and their odd ones after:
# taps 0 and 2 read the even ones, at x and x + 1, and tap 1 the odd ones, at x.


@piece
def _column(p, stride, PW):
    """Where column p of a padded row of PW pixels is kept."""
    return p if stride == 1 else p // 2 + (p % 2) * ((PW + 1) // 2)


@piece
def _zero_border(rows, C, stride, top, H, left, W):
    """Zero what surrounds H by W pixels at (top, left) in padded rows (PH, PW*C)."""
    PW = rows.shape[1] // C
    rows[:top] = 0
    rows[top + H :] = 0
    for y in range(top, min(top + H, rows.shape[0])):
        row = rows[y]
        for p in range(left):
            at = _column(p, stride, PW) * C
            row[at : at + C] = 0
        for p in range(left + W, PW):
            at = _column(p, stride, PW) * C
            row[at : at + C] = 0


@piece
def _pad_activated(z, affine, limits, stride, top, left, row, rows):
    """rows (PH, PW*C) = the activated z (H, W, C), padded, its columns split at stride 2; row (W*C,) is scratch."""
    H, W, C = z.shape
    PH, PW = rows.shape[0], rows.shape[1] // C
    H, W = min(H, PH - top), min(W, PW - left)
    _zero_border(rows, C, stride, top, H, left, W)
    for y in range(H):
        padded = rows[top + y]
        if stride == 1:
            _activate(z[y, :W].ravel(), affine, limits, padded[left * C : (left + W) * C])
            continue
        _activate(z[y, :W].ravel(), affine, limits, row)
        for x in range(W):
            at = _column(left + x, stride, PW) * C
            _copy(row[x * C :], padded[at : at + C])


@piece
def _taps(w, r0, r1, r2, v0, v1, v2, out):
    """out = the sum over nine taps of w (9, T) times the rows r0, r1, r2, shifted by v0, v1, v2."""
    T = w.shape[1]
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]
    for start in range(0, out.size, T):
        a0, a1, a2 = r0[v0 + start :], r0[v1 + start :], r0[v2 + start :]
        b0, b1, b2 = r1[v0 + start :], r1[v1 + start :], r1[v2 + start :]
        c0, c1, c2 = r2[v0 + start :], r2[v1 + start :], r2[v2 + start :]
        run = out[start : start + T]
        for i in range(run.size):
            run[i] = (
                (w0[i] * a0[i] + w1[i] * a1[i] + w2[i] * a2[i])
                + (w3[i] * b0[i] + w4[i] * b1[i] + w5[i] * b2[i])
                + (w6[i] * c0[i] + w7[i] * c1[i] + w8[i] * c2[i])
            )


@piece
def _two_rows(w, r0, r1, r2, r3, C, out0, out1):
    """`_taps` at stride 1 for two output rows: weights and shared input rows are loaded once."""
    T = w.shape[1]
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]
    for start in range(0, out0.size, T):
        a0, a1, a2 = r0[start:], r0[C + start :], r0[2 * C + start :]
        b0, b1, b2 = r1[start:], r1[C + start :], r1[2 * C + start :]
        c0, c1, c2 = r2[start:], r2[C + start :], r2[2 * C + start :]
        d0, d1, d2 = r3[start:], r3[C + start :], r3[2 * C + start :]
        run0, run1 = out0[start : start + T], out1[start : start + T]
        for i in range(run0.size):
            upper = (
                (w0[i] * a0[i] + w1[i] * a1[i] + w2[i] * a2[i])
                + (w3[i] * b0[i] + w4[i] * b1[i] + w5[i] * b2[i])
                + (w6[i] * c0[i] + w7[i] * c1[i] + w8[i] * c2[i])
            )
            lower = (
                (w0[i] * b0[i] + w1[i] * b1[i] + w2[i] * b2[i])
                + (w3[i] * c0[i] + w4[i] * c1[i] + w5[i] * c2[i])
                + (w6[i] * d0[i] + w7[i] * d1[i] + w8[i] * d2[i])
            )
            run0[i] = upper  # stored together, so that the compiler may share the loads
            run1[i] = lower


@piece
def _offsets(stride, PW, C):
    """Where the taps v = 0, 1, 2 of output pixel 0 are in a padded row."""
    return (0, C, 2 * C) if stride == 1 else (0, (PW + 1) // 2 * C, C)


@piece
def _depthwise_rows(w, rows, stride, C, first, last, out):
    """out (last - first, OW*C) = output rows first to last of the depthwise convolution of padded rows (PH, PW*C)."""
    v0, v1, v2 = _offsets(stride, rows.shape[1] // C, C)
    y = first
    while y < last:
        r = y * stride
        if stride == 1 and y + 1 < last:
            _two_rows(
                w, rows[r], rows[r + 1], rows[r + 2], rows[r + 3], C, out[y - first], out[y - first + 1]
            )
            y += 2
        else:
            _taps(w, rows[r], rows[r + 1], rows[r + 2], v0, v1, v2, out[y - first])
            y += 1


@piece
def _depthwise_forward(z, affine, limits, w, stride, top, left, scratch, lane_sums, out, moments):
    C = z.shape[2]
    OH, OW = out.shape[0], out.shape[1]
    PH, PW = (OH - 1) * stride + 3, (OW - 1) * stride + 3
    rows, row = scratch[: PH * PW * C].reshape((PH, PW * C)), scratch[PH * PW * C :]
    _pad_activated(z, affine, limits, stride, top, left, row, rows)
    _depthwise_rows(w, rows, stride, C, 0, OH, out.reshape((OH, OW * C)))
    _moments(out.ravel(), lane_sums, moments[0], moments[1])


@jit(parallel=True)
def depthwise_forward(z, affine, limits, w, stride, top, left, scratch, lane_sums, out, moments):
    """z (N, H, W, C) -> out (N, OH, OW, C), and moments (N, 2, C) of each image; w (9, T) is spread.

    Law: a = relu.forward(batchnorm.forward(z)); out = depthwise.forward(a, w, stride, padding).
    """
    for n in prange(z.shape[0]):
        k = numba.get_thread_id()
        _depthwise_forward(
            z[n], affine, limits, w, stride, top, left, scratch[k], lane_sums[k], out[n], moments[n]
        )


@piece
def _pad_adjoint(g, z, affine, adjoint, top, left, rows):
    """rows (PH, PW*C) = dL/dz (OH, OW, C) with `top` zero rows above it and `left` zero columns before it."""
    OH, OW, C = z.shape
    _zero_border(rows, C, 1, top, OH, left, OW)
    for y in range(OH):
        row = rows[top + y, left * C : (left + OW) * C]
        _adjoint(g[y].ravel(), z[y].ravel(), affine, adjoint, row)


@piece
def _accumulate(dz, row, v0, v1, v2, dw0, dw1, dw2):
    """dw0 (T,) += dz * row[v0:] lane by lane, and so on: three taps at once, because dz is then loaded once."""
    T = dw0.size
    for start in range(0, dz.size, T):
        run, a0, a1, a2 = dz[start : start + T], row[v0 + start :], row[v1 + start :], row[v2 + start :]
        for i in range(run.size):
            d = run[i]
            dw0[i] += d * a0[i]
            dw1[i] += d * a1[i]
            dw2[i] += d * a2[i]


@piece
def _transposed_row(w, u0, d0, u1, d1, C, odd, row):
    """A padded row of da at stride 2, columns split: from row d0 of dz through tap row u0, and d1 through u1.

    A row of dz, ((OW + 2)*C,), has a zero pixel at either end. Even column 2x gets dz[x] by tap 0 and dz[x - 1] by
    tap 2, odd column 2x + 1 gets dz[x] by tap 1.
    """
    T = w.shape[1]
    a0, a1, a2 = w[3 * u0], w[3 * u0 + 1], w[3 * u0 + 2]
    b0, b1, b2 = w[3 * u1], w[3 * u1 + 1], w[3 * u1 + 2]
    for start in range(0, odd, T):
        run = row[start : min(start + T, odd)]
        here0, before0, here1, before1 = d0[C + start :], d0[start:], d1[C + start :], d1[start:]
        for i in range(run.size):
            run[i] = (a0[i] * here0[i] + a2[i] * before0[i]) + (b0[i] * here1[i] + b2[i] * before1[i])
    for start in range(odd, row.size, T):
        run, here0, here1 = row[start : start + T], d0[C + start - odd :], d1[C + start - odd :]
        for i in range(run.size):
            run[i] = a1[i] * here0[i] + b1[i] * here1[i]


@piece
def _input_gradient(w, dz, stride, top, left, row, g):
    """g (H, W, C) = the transposed depthwise convolution of the padded rows dz; w is flipped at stride 1."""
    H, W, C = g.shape
    if stride == 1:
        _depthwise_rows(w, dz, 1, C, 0, H, g.reshape((H, W * C)))
        return
    OH, OW = dz.shape[0] - 2, dz.shape[1] // C - 2
    odd = (OW + 1) * C
    row = row[: (2 * OW + 1) * C]
    g[:] = 0  # the last row and column may be seen by no window
    for y in range(min(H, 2 * OH + 1 - top)):
        i = (top + y) // 2
        if (top + y) % 2 == 0:
            _transposed_row(w, 0, dz[i + 1], 2, dz[i], C, odd, row)
        else:
            _transposed_row(w, 1, dz[i + 1], 1, dz[0], C, odd, row)  # dz[0] is zero
        for x in range(min(W, 2 * OW + 1 - left)):
            _copy(row[_column(left + x, 2, 2 * OW + 1) * C :], g[y, x])


@piece
def _depthwise_backward(
    g_out, z_out, affine_out, adjoint_out, z, affine, limits, w, stride, top, left, scratch, lane_sums,
    lane_dw, g, dw, sums,
):  # fmt: skip
    H, W, C = z.shape
    OH, OW = z_out.shape[0], z_out.shape[1]
    PH, PW = (OH - 1) * stride + 3, (OW - 1) * stride + 3
    rows, scratch = scratch[: PH * PW * C].reshape((PH, PW * C)), scratch[PH * PW * C :]
    _pad_activated(z, affine, limits, stride, top, left, scratch, rows)
    # Zero margins around dz let every pixel of the input gradient find all its taps.
    above, before = (2 - top, 2 - left) if stride == 1 else (1, 1)
    DH, DW = (H + 2, W + 2) if stride == 1 else (OH + 2, OW + 2)
    dz, scratch = scratch[: DH * DW * C].reshape((DH, DW * C)), scratch[DH * DW * C :]
    _pad_adjoint(g_out, z_out, affine_out, adjoint_out, above, before, dz)
    lane_dw[:] = 0
    v0, v1, v2 = _offsets(stride, PW, C)
    for y in range(OH):
        dz_row = dz[above + y, before * C : (before + OW) * C]
        for u in range(3):
            t = 3 * u
            _accumulate(dz_row, rows[y * stride + u], v0, v1, v2, lane_dw[t], lane_dw[t + 1], lane_dw[t + 2])
    for t in range(9):
        _fold(lane_dw[t], dw[t])
    _input_gradient(w, dz, stride, top, left, scratch, g)
    lane_sums[:] = 0
    _mask(g.ravel(), z.ravel(), affine, limits, lane_sums[0], lane_sums[1])
    _fold(lane_sums[0], sums[0])
    _fold(lane_sums[1], sums[1])


@jit(parallel=True)
def depthwise_backward(
    g_out, z_out, affine_out, adjoint_out, z, affine, limits, w, stride, top, left, scratch, lane_sums,
    lane_dw, g, dw, sums,
):  # fmt: skip
    """From g_out (N, OH, OW, C) and z_out to g (N, H, W, C), with dw (N, 9, C) and sums (N, 2, C) of each image.

    Law: dz = batchnorm.backward(g_out, z_out); da, dW = depthwise.backward(dz, a, w, stride, padding);
    g = relu.backward(da); dW = dw summed over the images. w (9, T) is spread, and flipped at stride 1.
    """
    for n in prange(z.shape[0]):
        k = numba.get_thread_id()
        _depthwise_backward(
            g_out[n], z_out[n], affine_out, adjoint_out, z[n], affine, limits, w, stride, top, left,
            scratch[k], lane_sums[k], lane_dw[k], g[n], dw[n], sums[n],
        )  # fmt: skip


# ---- the first convolution: on pictures, whose gradient nobody needs ------------------------------------------


@piece
def _columns(x, kernel, stride, top, left, first, last, OW, scratch):
    """(K*K*C, pixels): what each tap of each channel of x (H, W, C) sees in output rows first to last.

    Each channel is first laid out as a padded plane, and pixels run along the last axis, so that what a tap sees
    of a row is a copy of a run of a plane.
    """
    H, W, C = x.shape
    OH = last - first
    PH, PW = (OH - 1) * stride + kernel, (OW - 1) * stride + kernel
    above = first * stride - top  # the row of x that is the planes' first
    planes, scratch = scratch[: C * PH * PW].reshape((C, PH, PW)), scratch[C * PH * PW :]
    planes[:] = 0
    for y in range(max(0, -above), min(PH, H - above)):
        for q in range(min(W, PW - left)):
            for c in range(C):
                planes[c, y, left + q] = x[above + y, q, c]
    K = kernel * kernel * C
    columns = scratch[: K * OH * OW].reshape((K, OH, OW))
    for k in range(K):
        u, v, c = k // C // kernel, k // C % kernel, k % C
        for i in range(OH):
            source, out = planes[c, i * stride + u, v:], columns[k, i]
            if stride == 1:
                _copy(source, out)
                continue
            for j in range(OW):
                out[j] = source[j * stride]
    return columns.reshape((K, OH * OW))


@piece
def _stem_forward(x, w, b, kernel, stride, top, left, scratch, lane_sums, out, moments):
    OH, OW, D = out.shape
    columns = _columns(x, kernel, stride, top, left, 0, OH, OW, scratch)
    z = out.reshape((OH * OW, D))
    np.dot(columns.T, w, z)
    for p in range(OH * OW):
        for d in range(D):
            z[p, d] += b[d]
    _moments(out.ravel(), lane_sums, moments[0], moments[1])


@jit(parallel=True)
def stem_forward(x, w, b, kernel, stride, top, left, scratch, lane_sums, out, moments):
    """x (N, H, W, C) -> out (N, OH, OW, D), and moments (N, 2, D); w (K*K*C, D). Law: conv.forward(x, w, b)."""
    for n in prange(x.shape[0]):
        k = numba.get_thread_id()
        _stem_forward(x[n], w, b, kernel, stride, top, left, scratch[k], lane_sums[k], out[n], moments[n])


@piece
def _stem_backward(g, z, affine, adjoint, x, kernel, stride, top, left, scratch, dw, db):
    OH, OW, D = z.shape
    flat, scratch = scratch[: OH * OW * D], scratch[OH * OW * D :]
    columns = _columns(x, kernel, stride, top, left, 0, OH, OW, scratch)
    _adjoint(g.ravel(), z.ravel(), affine, adjoint, flat)
    dz = flat.reshape((OH * OW, D))
    np.dot(columns, dz, dw)
    db[:] = 0
    for p in range(OH * OW):
        for d in range(D):
            db[d] += dz[p, d]


@jit(parallel=True)
def stem_backward(g, z, affine, adjoint, x, kernel, stride, top, left, scratch, dw, db):
    """dw (N, K*K*C, D) and db (N, D) of each image. Law: dz = batchnorm.backward(g, z); conv.backward(dz, x, w)."""
    for n in prange(x.shape[0]):
        k = numba.get_thread_id()
        _stem_backward(g[n], z[n], affine, adjoint, x[n], kernel, stride, top, left, scratch[k], dw[n], db[n])


# ---- where the fused part ends: small maps, for which threads would not pay -------------------------------------


@jit
def activate(z, affine, limits, out):
    """out (N, H, W, C) = the activated z. Law: relu.forward(batchnorm.forward(z))."""
    _activate(z.ravel(), affine, limits, out.ravel())


@jit
def activate_backward(z, affine, limits, lane_sums, g, sums):
    """In place g = relu.backward(g), with sums (1, 2, C); lane_sums (2, T) is scratch."""
    lane_sums[:] = 0
    _mask(g.ravel(), z.ravel(), affine, limits, lane_sums[0], lane_sums[1])
    _fold(lane_sums[0], sums[0, 0])
    _fold(lane_sums[1], sums[0, 1])


# ---- BatchNorm by itself, after a convolution that stays as it is ------------------------------------------------


@piece
def _add_activate(z, affine, limits, shortcut, out):
    """out = clip((z - mean) * scale + shift + shortcut)."""
    mean, scale, shift = affine[0], affine[1], affine[2]
    low, high = limits[0], limits[1]
    T = mean.size
    for start in range(0, z.size, T):
        z_run, s_run, run = z[start : start + T], shortcut[start : start + T], out[start : start + T]
        for i in range(run.size):
            v = (z_run[i] - mean[i]) * scale[i] + shift[i] + s_run[i]
            v = low if v <= low else v
            run[i] = high if v >= high else v


@piece
def _normalise(z, affine, limits, shortcut, summed, out):
    if summed:
        _add_activate(z.ravel(), affine, limits, shortcut.ravel(), out.ravel())
    else:
        _activate(z.ravel(), affine, limits, out.ravel())


@jit(parallel=True)
def normalise(z, affine, limits, shortcut, summed, out):
    """out (N, H, W, C) = clip(BN(z) + shortcut), without the shortcut unless `summed`."""
    for n in prange(z.shape[0]):
        _normalise(z[n], affine, limits, shortcut[n], summed, out[n])


@jit(parallel=True)
def statistics(z, lane_sums, moments):
    """moments (N, 2, C) of each image of z (N, H, W, C)."""
    for n in prange(z.shape[0]):
        _image_moments(z[n], lane_sums[numba.get_thread_id()], moments[n])


@piece
def _image_moments(z, lane_sums, moments):
    _moments(z.ravel(), lane_sums, moments[0], moments[1])


@piece
def _normalise_backward(dy, y, z, affine, limits, lane_sums, d, sums):
    mean, s1, s2 = affine[0], lane_sums[0], lane_sums[1]
    low, high, zero = limits[0], limits[1], limits.dtype.type(0)
    T = mean.size
    lane_sums[:] = 0
    for start in range(0, z.size, T):
        dy_run, y_run = dy[start : start + T], y[start : start + T]
        z_run, run = z[start : start + T], d[start : start + T]
        for i in range(run.size):
            run[i] = zero if (y_run[i] <= low) | (y_run[i] >= high) else dy_run[i]
        for i in range(run.size):
            s1[i] += run[i]
            s2[i] += run[i] * (z_run[i] - mean[i])
    _fold(s1, sums[0])
    _fold(s2, sums[1])


@jit(parallel=True)
def normalise_backward(dy, y, z, affine, limits, lane_sums, d, sums):
    """d = the gradient of BN(z) + shortcut, from dy and y = clip(...); sums (N, 2, C) of each image."""
    for n in prange(z.shape[0]):
        k = numba.get_thread_id()
        _normalise_backward(
            dy[n].ravel(), y[n].ravel(), z[n].ravel(), affine, limits, lane_sums[k], d[n].ravel(), sums[n]
        )


@jit(parallel=True)
def batchnorm_backward(g, z, affine, adjoint, dz):
    """dz (N, H, W, C) = the gradient of z, from the gradient g of BN(z)."""
    for n in prange(z.shape[0]):
        _adjoint(g[n].ravel(), z[n].ravel(), affine, adjoint, dz[n].ravel())


# ---- inference: BatchNorm is folded into the weights, and outputs are stored padded, as their reader wants them ----


@piece
def _clip_biased(x, b, limits):
    """In place x = clip(x + b); b (T,)."""
    low, high = limits[0], limits[1]
    T = b.size
    for start in range(0, x.size, T):
        run = x[start : start + T]
        for i in range(run.size):
            v = run[i] + b[i]
            v = low if v <= low else v
            run[i] = high if v >= high else v


@piece
def _store(pixels, b, limits, stride, left, D, first, row):
    """clip(pixels + b), for pixels (OW, B), into channels first to first + B of a padded row of D channels."""
    low, high = limits[0], limits[1]
    B = pixels.shape[1]
    PW = row.size // D
    for x in range(min(pixels.shape[0], PW - left)):
        at = _column(left + x, stride, PW) * D + first
        pixel, out = pixels[x], row[at : at + B]
        for i in range(B):
            v = pixel[i] + b[i]
            v = low if v <= low else v
            out[i] = high if v >= high else v


@piece
def _stem_inference(
    x, w, b, limits, kernel, stride, top, left, OW, first, last, scratch, out, out_stride, above, before
):
    D = b.size
    tile, scratch = (
        scratch[: (last - first) * OW * D].reshape(((last - first) * OW, D)),
        scratch[(last - first) * OW * D :],
    )
    columns = _columns(x, kernel, stride, top, left, first, last, OW, scratch)
    np.dot(columns.T, w, tile)
    for y in range(first, min(last, out.shape[0] - above)):
        _store(
            tile[(y - first) * OW : (y - first + 1) * OW], b, limits, out_stride, before, D, 0, out[above + y]
        )


@jit(parallel=True)
def stem_inference(
    x, w, b, limits, kernel, stride, top, left, OH, OW, band, scratch, out, out_stride, above, before
):
    """x (N, H, W, C) -> out (N, PH, PW*D), `band` output rows at a time. Law: relu.forward(conv.forward(x, w, b)).

    The output begins at row `above` and pixel `before` of the padded out, whose columns are split for out_stride 2.
    """
    bands = -(-OH // band)
    for t in prange(x.shape[0] * bands):
        n, first = t // bands, t % bands * band
        _stem_inference(
            x[n], w, b, limits, kernel, stride, top, left, OW, first, min(OH, first + band),
            scratch[numba.get_thread_id()], out[n], out_stride, above, before,
        )  # fmt: skip


@piece
def _separable_inference(
    x, wd, bd, limits_d, stride, OH, OW, wp, bp, limits_p, first, last, first_panel, last_panel, scratch, out,
    out_stride, above, before,
):  # fmt: skip
    C, B = wp.shape[1:]
    D = bp.size
    pixels = (last - first) * OW
    a, tile = scratch[: pixels * C], scratch[pixels * C : pixels * (C + B)].reshape((pixels, B))
    rows = a.reshape((last - first, OW * C))
    for n in range(first // OH, (last - 1) // OH + 1):
        begin, end = max(first, n * OH), min(last, (n + 1) * OH)
        _depthwise_rows(wd, x[n], stride, C, begin - n * OH, end - n * OH, rows[begin - first : end - first])
    _clip_biased(a, bd, limits_d)
    for panel in range(first_panel, last_panel):
        channel = panel * B
        _product(a.reshape((pixels, C)), wp[panel], tile)
        for r in range(first, last):
            y = above + r % OH
            if y < out.shape[1]:
                _store(
                    tile[(r - first) * OW : (r - first + 1) * OW], bp[channel : channel + B], limits_p,
                    out_stride, before, D, channel, out[r // OH, y],
                )  # fmt: skip


@jit(parallel=True)
def separable_inference(
    x, wd, bd, limits_d, stride, OH, OW, wp, bp, limits_p, rows, panels, scratch, out, out_stride, above,
    before,
):  # fmt: skip
    """x (N, PH, PW*C), padded -> out (N, QH, QW*D), padded. Law: relu(pointwise(relu(depthwise(x, wd, bd)), wp, bp)).

    The pointwise weights come as panels of output channels, wp (D / B, C, B). A task is `rows` output rows, counted
    over the whole batch so that small maps share one matrix product, by `panels` panels. wd (9, T) and bd (T,) are
    spread. What the depthwise convolution makes of the task's rows goes straight into the products.
    """
    shares, total = wp.shape[0] // panels, x.shape[0] * OH
    tasks = -(-total // rows)
    for t in prange(tasks * shares):
        first, share = t // shares * rows, t % shares
        _separable_inference(
            x, wd, bd, limits_d, stride, OH, OW, wp, bp, limits_p, first, min(total, first + rows),
            share * panels, (share + 1) * panels, scratch[numba.get_thread_id()], out, out_stride, above, before,
        )  # fmt: skip


@jit
def head_inference(x, w, b, features, logits):
    """x (N, pixels, C) -> logits (N, D). Law: linear.forward(pool.global_average_forward(x), w, b)."""
    N, P, C = x.shape
    scale = x.dtype.type(1 / P)
    for n in range(N):
        row = features[n]
        row[:] = 0
        for p in range(P):
            pixel = x[n, p]
            for c in range(C):
                row[c] += pixel[c]
        for c in range(C):
            row[c] *= scale
    np.dot(features, w, logits)
    for n in range(N):
        for d in range(b.size):
            logits[n, d] += b[d]
