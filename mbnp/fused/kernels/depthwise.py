"""Depthwise convolution, 3x3 at stride 1 or 2.

One vector of channels at a time goes through a picture, row by row. The rows that the windows need are made when they
are first needed, in a ring of SLOTS padded rows that never leaves the first cache; rows of the padding share one of
zeros, the ring's last. Margins are zeroed once a picture. Backward at stride 2 keeps rows in pairs instead.

g may be g_out where they have one shape: backward has copied a row of g_out into its rows before it writes the row of g
in its place, whatever the padding.
"""

import numba
from numba import prange

from mbnp.backend import inlined, jit, piece
from mbnp.fused.kernels.batchnorm import activate_run, adjoint_run, centre, mask_run
from mbnp.fused.kernels.pointwise import add_parts
from mbnp.fused.kernels.vectors import BYTES, accumulate, clip, load, prefetch, store, store_rows, where_inside

DEPTHWISE_ROWS = 7  # padded rows of one vector of channels that a kernel keeps in scratch, at most
SLOTS = 4  # of a ring of rows: three, and a power of two, by which to divide costs nothing


@inlined
def _slot(y, rows, row):
    """Where row y is kept, if it is one of `rows`; else where the zeros are."""
    return y % SLOTS * row if 0 <= y < rows else SLOTS * row


@inlined
def _nine(taps, c):
    """The vector of channels from c on of each tap."""
    return (
        load(taps[0], c), load(taps[1], c), load(taps[2], c),
        load(taps[3], c), load(taps[4], c), load(taps[5], c),
        load(taps[6], c), load(taps[7], c), load(taps[8], c),
    )  # fmt: skip


@inlined
def _window(w, upper, middle, lower):
    """The sum of nine weights times three vectors of each of three rows."""
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = w
    (u0, u1, u2), (m0, m1, m2), (l0, l1, l2) = upper, middle, lower
    return (w0 * u0 + w1 * u1 + w2 * u2) + (w3 * m0 + w4 * m1 + w5 * m2) + (w6 * l0 + w7 * l1 + w8 * l2)


@inlined
def _three(x, i, step):
    """Three neighbouring pixels' vectors; pixels are `step` apart."""
    return load(x, i), load(x, i + step), load(x, i + 2 * step)


@inlined
def _convolve_row(w, bias, limits, pivot, x, i, j, k, step, stride, pixels, out, o, C):
    """out = clip(sum + bias), C apart from o on, of windows whose rows begin at i, j and k in x.

    Returns the sums of out - pivot and of its square. A caller who clips or adds a bias, in inference, has no use for
    them; one who has, in training, passes infinite limits and zeros.
    """
    low, high = limits[0], limits[1]
    s1 = s2 = pivot - pivot
    if stride == 1:
        # Two of three columns stay in registers when the window moves: three loads instead of nine.
        (u0, u1, _), (m0, m1, _), (l0, l1, _) = _three(x, i, step), _three(x, j, step), _three(x, k, step)
        for _ in range(pixels):
            u2, m2, l2 = load(x, i + 2 * step), load(x, j + 2 * step), load(x, k + 2 * step)
            prefetch(out, o + pixels * C)
            v = clip(_window(w, (u0, u1, u2), (m0, m1, m2), (l0, l1, l2)) + bias, low, high)
            store(v, out, o)
            v = v - pivot
            s1, s2 = s1 + v, s2 + v * v
            u0, u1, m0, m1, l0, l1 = u1, u2, m1, m2, l1, l2
            i, j, k, o = i + step, j + step, k + step, o + C
        return s1, s2
    for _ in range(pixels):
        prefetch(out, o + pixels * C)
        v = clip(_window(w, _three(x, i, step), _three(x, j, step), _three(x, k, step)) + bias, low, high)
        store(v, out, o)
        v = v - pivot
        s1, s2 = s1 + v, s2 + v * v
        i, j, k, o = i + stride * step, j + stride * step, k + stride * step, o + C
    return s1, s2


@piece
def _depthwise_forward(z, affine, limits, taps, unlimited, stride, top, left, scratch, out, moments):
    (H, W, C), (OH, OW, _) = z.shape, out.shape
    V, PW = BYTES // z.itemsize, (OW - 1) * stride + 3
    row, inside = PW * V, min(W, PW - left)
    ring, pivot = scratch[: (SLOTS + 1) * row], scratch[(SLOTS + 1) * row :][:C]
    x, y = z.ravel(), out.ravel()
    ring[:] = 0
    moments[:] = 0
    for c in range(0, C, V):
        w, zero = _nine(taps, c), load(ring, SLOTS * row)
        p = zero
        for r in range(OH):
            above = r * stride - top  # the row of z that the window begins with
            for new in range(above if r == 0 else above + 3 - stride, above + 3):
                if 0 <= new < H:
                    at = _slot(new, H, row) + left * V
                    activate_run(x, new * W * C + c, inside, affine, limits, c, ring, at, V, stride * W * C)
            i, j, k = _slot(above, H, row), _slot(above + 1, H, row), _slot(above + 2, H, row)
            if r == 0:  # deviations are from the middle of the first row: see `take_moments`
                at = OW // 2 * stride * V
                p = _window(w, _three(ring, i + at, V), _three(ring, j + at, V), _three(ring, k + at, V))
                store(p, pivot, c)
            s1, s2 = _convolve_row(w, zero, unlimited, p, ring, i, j, k, V, stride, OW, y, r * OW * C + c, C)
            accumulate(s1, moments[0], c)
            accumulate(s2, moments[1], c)
    centre(pivot, OH * OW, moments)


@jit(parallel=True)
def depthwise_forward(z, affine, limits, taps, unlimited, stride, top, left, scratch, out, moments):
    """z (N, H, W, C) -> out (N, OH, OW, C), and moments (N, 2, C) of each image.

    Law: a = relu.forward(batchnorm.forward(z)); out = depthwise.forward(a, w, stride, padding), where
    taps (9, C) are w's. unlimited (2,): minus and plus infinity.
    """
    for n in prange(z.shape[0]):
        k = numba.get_thread_id()
        _depthwise_forward(z[n], affine, limits, taps, unlimited, stride, top, left, scratch[k], out[n], moments[n])


@piece
def _backward_stride_1(g_out, z_out, affine_out, adjoint_out, z, affine, limits, taps, top, left, scratch, g, dw, sums):
    """At stride 1: each input pixel gathers dz of the nine outputs that saw it, for its own gradient and for dw."""
    (H, W, C), (OH, OW, _) = z.shape, z_out.shape
    V = BYTES // z.itemsize
    row = (W + 2) * V
    ring = scratch[: (SLOTS + 1) * row]
    x, gx, y, gy = z.ravel(), g.ravel(), z_out.ravel(), g_out.ravel()
    low, high = limits[0], limits[1]
    ring[:] = 0
    for c in range(0, C, V):
        w8, w7, w6, w5, w4, w3, w2, w1, w0 = _nine(taps, c)  # the outputs lie the other way round
        d0 = d1 = d2 = d3 = d4 = d5 = d6 = d7 = d8 = zero = load(ring, SLOTS * row)
        mean, scale, shift = load(affine[0], c), load(affine[1], c), load(affine[2], c)
        for r in range(H):
            above = r + top - 2  # the row of dz that the window begins with
            for new in range(above if r == 0 else above + 2, above + 3):
                if 0 <= new < OH:
                    at = _slot(new, OH, row) + (2 - left) * V
                    adjoint_run(gy, y, new * OW * C + c, OW, affine_out, adjoint_out, c, ring, at, V, OW * C)
            i, j, k = _slot(above, OH, row), _slot(above + 1, OH, row), _slot(above + 2, OH, row)
            s1, s2, o = zero, zero, r * W * C + c
            for _ in range(W):
                prefetch(x, o + W * C)
                centred = load(x, o) - mean
                a = clip(centred * scale + shift, low, high)
                v = load(ring, i)
                upper, d0 = w0 * v, d0 + a * v
                v = load(ring, i + V)
                upper, d1 = upper + w1 * v, d1 + a * v
                v = load(ring, i + 2 * V)
                upper, d2 = upper + w2 * v, d2 + a * v
                v = load(ring, j)
                middle, d3 = w3 * v, d3 + a * v
                v = load(ring, j + V)
                middle, d4 = middle + w4 * v, d4 + a * v
                v = load(ring, j + 2 * V)
                middle, d5 = middle + w5 * v, d5 + a * v
                v = load(ring, k)
                lower, d6 = w6 * v, d6 + a * v
                v = load(ring, k + V)
                lower, d7 = lower + w7 * v, d7 + a * v
                v = load(ring, k + 2 * V)
                lower, d8 = lower + w8 * v, d8 + a * v
                d = where_inside(a, low, high, upper + middle + lower)
                store(d, gx, o)
                s1, s2 = s1 + d, s2 + d * centred
                i, j, k, o = i + V, j + V, k + V, o + C
            accumulate(s1, sums[0], c)
            accumulate(s2, sums[1], c)
        store_rows((d8, d7, d6, d5, d4, d3, d2, d1, d0), dw, 0, c)


@piece
def _backward_stride_2(g_out, z_out, affine_out, adjoint_out, z, affine, limits, taps, top, left, scratch, g, dw, sums):
    """At stride 2: two padded rows at a time, 2r and 2r + 1, which were seen by the outputs of rows r - 1 and r.

    Of two columns 2j and 2j + 1 likewise the even one was seen by taps 0 and 2, the odd one by tap 1.
    """
    (H, W, C), (OH, OW, _) = z.shape, z_out.shape
    V = BYTES // z.itemsize
    row = 2 * (OW + 1) * V
    rows = scratch[: 7 * row]  # two rows of dz, two of a, one of zeros, two of da
    x, gx, y, gy = z.ravel(), g.ravel(), z_out.ravel(), g_out.ravel()
    rows[:] = 0
    zeros, da = 4 * row, 5 * row
    for c in range(0, C, V):
        w0, w1, w2, w3, w4, w5, w6, w7, w8 = _nine(taps, c)
        d0 = d1 = d2 = d3 = d4 = d5 = d6 = d7 = d8 = load(rows, zeros)
        here = zeros
        for r in range(OH + 1):
            above, here = here, zeros
            if r < OH:
                here = r % 2 * row
                adjoint_run(gy, y, r * OW * C + c, OW, affine_out, adjoint_out, c, rows, here + V, V, OW * C)
            even, odd = zeros, zeros
            if 0 <= 2 * r - top < H:
                even, at = 2 * row, (2 * r - top) * W * C + c
                activate_run(x, at, W, affine, limits, c, rows, even + left * V, V, 2 * W * C)
            if 0 <= 2 * r + 1 - top < H:
                odd, at = 3 * row, (2 * r + 1 - top) * W * C + c
                activate_run(x, at, W, affine, limits, c, rows, odd + left * V, V, 2 * W * C)
            i, j, o = above, here, da
            up_left, on_left = load(rows, i), load(rows, j)
            for _ in range(OW + 1):
                i, j = i + V, j + V
                up, on = load(rows, i), load(rows, j)
                a = load(rows, even)
                d0, d2, d6, d8 = d0 + a * on, d2 + a * on_left, d6 + a * up, d8 + a * up_left
                store(w0 * on + w2 * on_left + w6 * up + w8 * up_left, rows, o)
                a = load(rows, even + V)
                d1, d7 = d1 + a * on, d7 + a * up
                store(w1 * on + w7 * up, rows, o + V)
                a = load(rows, odd)
                d3, d5 = d3 + a * on, d5 + a * on_left
                store(w3 * on + w5 * on_left, rows, o + row)
                d4 = d4 + load(rows, odd + V) * on
                store(w4 * on, rows, o + row + V)
                up_left, on_left = up, on
                even, odd, o = even + 2 * V, odd + 2 * V, o + 2 * V
            for half in range(2):
                at = 2 * r + half - top
                if 0 <= at < H:
                    o = da + half * row + left * V
                    mask_run(rows, o, V, x, at * W * C + c, W, affine, limits, c, gx, sums)
        store_rows((d0, d1, d2, d3, d4, d5, d6, d7, d8), dw, 0, c)


@piece
def _depthwise_backward(
    g_out, z_out, affine_out, adjoint_out, z, affine, limits, taps, stride, top, left, scratch, g, dw, sums
):
    sums[:] = 0
    if stride == 1:
        _backward_stride_1(
            g_out, z_out, affine_out, adjoint_out, z, affine, limits, taps, top, left, scratch, g, dw, sums
        )
    else:
        _backward_stride_2(
            g_out, z_out, affine_out, adjoint_out, z, affine, limits, taps, top, left, scratch, g, dw, sums
        )


@jit(parallel=True)
def depthwise_backward(
    g_out, z_out, affine_out, adjoint_out, z, affine, limits, taps, stride, top, left, scratch, g, parts, sums,
    dw,
):  # fmt: skip
    """From g_out (N, OH, OW, C) and z_out to g (N, H, W, C), sums (N, 2, C) of each image, and dw (9, C), added to.

    Law: dz = batchnorm.backward(g_out, z_out); da, dW = depthwise.backward(dz, a, w, stride, padding);
    g = relu.backward(da). taps (9, C) are w's, and parts (N, 9, C) the images' shares of dW.
    """
    for n in prange(z.shape[0]):
        k = numba.get_thread_id()
        _depthwise_backward(
            g_out[n], z_out[n], affine_out, adjoint_out, z[n], affine, limits, taps, stride, top, left,
            scratch[k], g[n], parts[n], sums[n],
        )  # fmt: skip
    for r in prange(dw.shape[0]):
        add_parts(parts, r, dw[r])


@piece
def depthwise_rows(taps, limits, rows, stride, first, last, out):
    """out (last - first, OW*C) = clip(convolution + bias): output rows first to last, of padded rows (PH, PW*C).

    taps (10, C): nine weights and the bias.
    """
    C, row = taps.shape[1], rows.shape[1]
    V, OW = BYTES // rows.itemsize, out.shape[1] // C
    x, y = rows.ravel(), out.ravel()
    for c in range(0, C, V):
        w, bias = _nine(taps, c), load(taps[9], c)
        for r in range(first, last):
            i, o = r * stride * row + c, (r - first) * OW * C + c
            _convolve_row(w, bias, limits, bias, x, i, i + row, i + 2 * row, C, stride, OW, y, o, C)
