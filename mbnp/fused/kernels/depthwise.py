"""Depthwise convolution: 3x3 at stride 1 or 2 with its weights in registers, and any other kernel and stride.

One vector of channels at a time goes through an image, row by row. The rows that the windows need are made when they
are first needed, in a ring of SLOTS padded rows that never leaves the first cache; rows of the padding share one of
zeros, the ring's last. Margins are zeroed before the first channels. Backward at stride 2 keeps rows in pairs instead.

target.g may be gradient.g where they have one shape: backward has copied a row of it into its rows before it writes the
row of target.g in its place, whatever the padding. Kernels of other sizes copy one vector of channels of a whole image
first (`_any_forward`, `_any_backward`).
"""

from typing import NamedTuple

import numba

from mbnp.backend import in_parallel, inlined, piece, prepared
from mbnp.backend.vectors import BYTES, accumulate, add_rows, clear, flat, fma, load, prefetch, store
from mbnp.fused.kernels.arrays import Activation
from mbnp.fused.kernels.batchnorm import (
    activate_run,
    activation,
    activation_back,
    affine,
    centre,
    finish_statistics,
    gradient_run,
    make_coefficients,
    mask_run,
    take_moments,
    total,
)
from mbnp.fused.kernels.weights import CHUNKS, add_parts

SLOTS = 4  # of a ring of rows: three, and a power of two, by which to divide costs nothing
_ROWS = 7  # that 3x3 keeps, at most


class Window(NamedTuple):
    """The kernel's size, its stride, and the padding above and to the left."""

    kernel: int
    stride: int
    top: int
    left: int


def is_three(window):
    """Return whether the kernels of 3x3 run this convolution."""
    return window.kernel == 3 and window.stride <= 2


def scratch_vectors(window, H, W, OH, OW):
    """Return how many vectors a thread works in, for an input of H x W and an output of OH x OW pixels."""
    if is_three(window):
        return _ROWS * (max(W, 2 * OW) + 2)
    rows, columns = (OH - 1) * window.stride + window.kernel, (OW - 1) * window.stride + window.kernel
    return 2 * max(rows, window.top + H) * max(columns, window.left + W) + OW


@inlined
def _slot(y, rows, row):
    """Where row y is kept, if it is one of `rows`; else where the zeros are."""
    return y % SLOTS * row if 0 <= y < rows else SLOTS * row


@inlined
def _line(x):
    """The entries of a cache line."""
    return 64 // x.itemsize


@inlined
def _ahead(x, row, C):
    """How far ahead to fetch: a pixel's next line of channels, or where it has few, the pixel in the next row."""
    return _line(x) if C // _line(x) >= 4 else row


@inlined
def nine(taps, c):
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
    upper, middle, lower = fma(w2, u2, fma(w1, u1, w0 * u0)), fma(w5, m2, fma(w4, m1, w3 * m0)), w6 * l0
    return upper + middle + fma(w8, l2, fma(w7, l1, lower))


@inlined
def _three(x, i, step):
    """Three neighbouring pixels' vectors; pixels are `step` apart."""
    return load(x, i), load(x, i + step), load(x, i + 2 * step)


@inlined
def convolve_row(w, finishes, bias, applied, pivot, x, i, j, k, step, stride, pixels, out, o, C):
    """out, C apart from o on, = the sums of windows whose rows begin at i, j and k in x; or where it `finishes`, as in
    inference, the activation of sum + bias; applied: a Source, or what else `activation` takes.

    Returns the sums of out - pivot and of its square.
    """
    s1 = s2 = pivot - pivot
    if stride == 1:
        # Two of three columns stay in registers when the window moves: three loads instead of nine.
        (u0, u1, _), (m0, m1, _), (l0, l1, _) = _three(x, i, step), _three(x, j, step), _three(x, k, step)
        for _ in range(pixels):
            u2, m2, l2 = load(x, i + 2 * step), load(x, j + 2 * step), load(x, k + 2 * step)
            prefetch(out, o + _line(out))
            v = _window(w, (u0, u1, u2), (m0, m1, m2), (l0, l1, l2))
            if finishes:
                v = activation(v + bias, applied)
            store(v, out, o)
            v = v - pivot
            s1, s2 = s1 + v, fma(v, v, s2)
            u0, u1, m0, m1, l0, l1 = u1, u2, m1, m2, l1, l2
            i, j, k, o = i + step, j + step, k + step, o + C
        return s1, s2
    for _ in range(pixels):
        prefetch(out, o + _line(out))
        v = _window(w, _three(x, i, step), _three(x, j, step), _three(x, k, step))
        if finishes:
            v = activation(v + bias, applied)
        store(v, out, o)
        v = v - pivot
        s1, s2 = s1 + v, fma(v, v, s2)
        i, j, k, o = i + stride * step, j + stride * step, k + stride * step, o + C
    return s1, s2


@piece
def _three_forward(n, source, taps, window, work, out, moments):
    (_, H, W, C), (_, OH, OW, _) = source.z.shape, out.shape
    V, stride, top, left = BYTES // out.itemsize, window.stride, window.top, window.left
    PW = (OW - 1) * stride + 3
    row, inside = PW * V, min(W, PW - left)
    x, y, ring, sums = flat(source.z[n]), flat(out[n]), work.scratch[numba.get_thread_id()], moments[n]
    pivot = (SLOTS + 1) * row
    clear(ring, 0, pivot)
    sums[:] = 0
    for c in range(0, C, V):
        w, zero = nine(taps, c), load(ring, SLOTS * row)
        p = zero
        for r in range(OH):
            above = r * stride - top  # the row of z that the window begins with
            for new in range(above if r == 0 else above + 3 - stride, above + 3):
                if 0 <= new < H:
                    k, at = new * W * C + c, _slot(new, H, row) + left * V
                    activate_run(source, x, k, inside, c, ring, at, V, _ahead(x, stride * W * C, C))
            i, j, k = _slot(above, H, row), _slot(above + 1, H, row), _slot(above + 2, H, row)
            if r == 0:  # deviations are from the middle of the first row: see `take_moments`
                at = OW // 2 * stride * V
                p = _window(w, _three(ring, i + at, V), _three(ring, j + at, V), _three(ring, k + at, V))
                store(p, ring, pivot + c)
            o = r * OW * C + c
            s1, s2 = convolve_row(w, False, zero, source, p, ring, i, j, k, V, stride, OW, y, o, C)
            accumulate(s1, sums[0], c)
            accumulate(s2, sums[1], c)
    centre(ring[pivot : pivot + C], OH * OW, 0, C, sums)


@piece
def _any_forward(n, source, taps, window, work, out, moments):
    """The same for any kernel and stride: weights are loaded once for four pixels."""
    (_, H, W, C), (_, OH, OW, _) = source.z.shape, out.shape
    V, K, S = BYTES // out.itemsize, window.kernel, window.stride
    rows, columns = max((OH - 1) * S + K, window.top + H), max((OW - 1) * S + K, window.left + W)
    x, y, scratch, sums = flat(source.z), flat(out), work.scratch[numba.get_thread_id()], moments[n]
    pivot = y[n * OH * OW * C :][(OH * OW // 2) * C :][:C]
    clear(scratch, 0, rows * columns * V)
    sums[:] = 0
    for c in range(0, C, V):
        for h in range(H):
            at, o = (n * H + h) * W * C + c, ((window.top + h) * columns + window.left) * V
            activate_run(source, x, at, W, c, scratch, o, V, _ahead(x, W * C, C))
        any_rows(taps, scratch, 0, columns * V, V, window, 0, OH, OW, c, y, n * OH * OW * C + c, OW * C, C)
    take_moments(y, n * OH * OW * C, OH * OW, 0, C, pivot, sums)
    centre(pivot, OH * OW, 0, C, sums)


@inlined
def any_rows(taps, x, k, row, step, window, first, last, OW, c, y, o, y_row, C):
    """Rows first to last of the convolution of x from k on, rows `row` and pixels `step` apart, for channels c ..."""
    S, width = window.stride, min(OW, 4)
    for r in range(first, last):
        at, to = k + r * S * row, o + (r - first) * y_row
        for j in range(0, OW, width):
            j = min(j, OW - width)  # the last four may overlap the ones before: each is written with what it was
            if width == 4:
                a0, a1, a2, a3 = _four(taps, x, at + j * S * step, row, step, window, c)
                store(a0, y, to + j * C)
                store(a1, y, to + (j + 1) * C)
                store(a2, y, to + (j + 2) * C)
                store(a3, y, to + (j + 3) * C)
            else:
                for i in range(j, OW):
                    a = _sums(taps, x, at + i * S * step, row, step, window.kernel, 0, c)[0]
                    store(a, y, to + i * C)


@inlined
def _four(taps, x, k, row, step, window, c):
    """The sums of four neighbouring windows, the first of which begins at k."""
    if window.kernel == 5:  # known to the compiler, which loads a pixel once for all taps that see it
        if window.stride == 1:
            return _sums(taps, x, k, row, step, 5, 1, c)
        return _sums(taps, x, k, row, step, 5, 2, c)
    return _sums(taps, x, k, row, step, window.kernel, window.stride, c)


@inlined
def _sums(taps, x, k, row, step, K, S, c):
    """The sums of four windows, S pixels apart."""
    a0 = a1 = a2 = a3 = load(taps[0], c) - load(taps[0], c)
    for u in range(K):
        for v in range(K):
            w, at = load(taps[u * K + v], c), k + u * row + v * step
            a0, a1 = fma(w, load(x, at), a0), fma(w, load(x, at + S * step), a1)
            a2, a3 = fma(w, load(x, at + 2 * S * step), a2), fma(w, load(x, at + 3 * S * step), a3)
    return a0, a1, a2, a3


@prepared
def depthwise_forward(source, taps, window, work, out, statistics):
    """Source (N, H, W, C) -> out (N, OH, OW, C), its statistics, and the scale and shift of a BatchNorm after it.

    For 3x3 at stride 1 or 2. Reference equation: a = relu.forward(batchnorm.forward(source.z));
    out = depthwise.forward(a, w, stride, padding), where taps (K*K, C) are w's.
    """
    in_parallel(out.shape[0], _three_forward, source, taps, window, work, out, statistics.moments)
    finish_statistics(statistics)


@prepared
def depthwise_any_forward(source, taps, window, work, out, statistics):
    """`depthwise_forward` for any kernel and stride."""
    in_parallel(out.shape[0], _any_forward, source, taps, window, work, out, statistics.moments)
    finish_statistics(statistics)


@inlined
def _gather_row(w, d, bn, applied, dz, rows, step, x, gx, o, pixels, C, add):
    """Make the gradient of a row of x, from o on, of three rows of dz; x and gx are C apart, and dz `step`.

    Returns the sums of the gradient and of its product with z - mean, and those for the weights, d with this row's.
    """
    # The outputs lie the other way round: the one above saw a pixel by its lowest tap.
    (w8, w7, w6, w5, w4, w3, w2, w1, w0), (d8, d7, d6, d5, d4, d3, d2, d1, d0) = w, d
    (mean, scale, shift), (i, j, k) = bn, rows
    s1 = s2 = mean - mean
    for _ in range(pixels):
        prefetch(x, o + _ahead(x, pixels * C, C))
        centred = load(x, o) - mean
        y = fma(centred, scale, shift)
        a = activation(y, applied)
        v = load(dz, i)
        upper, d0 = w0 * v, fma(a, v, d0)
        v = load(dz, i + step)
        upper, d1 = fma(w1, v, upper), fma(a, v, d1)
        v = load(dz, i + 2 * step)
        upper, d2 = fma(w2, v, upper), fma(a, v, d2)
        v = load(dz, j)
        middle, d3 = w3 * v, fma(a, v, d3)
        v = load(dz, j + step)
        middle, d4 = fma(w4, v, middle), fma(a, v, d4)
        v = load(dz, j + 2 * step)
        middle, d5 = fma(w5, v, middle), fma(a, v, d5)
        v = load(dz, k)
        lower, d6 = w6 * v, fma(a, v, d6)
        v = load(dz, k + step)
        lower, d7 = fma(w7, v, lower), fma(a, v, d7)
        v = load(dz, k + 2 * step)
        lower, d8 = fma(w8, v, lower), fma(a, v, d8)
        g = activation_back(upper + middle + lower, y, applied)
        if add:
            g = g + load(gx, o)
        store(g, gx, o)
        s1, s2 = s1 + g, fma(g, centred, s2)
        i, j, k, o = i + step, j + step, k + step, o + C
    return s1, s2, (d8, d7, d6, d5, d4, d3, d2, d1, d0)


@piece
def _backward_stride_1(gradient, source, taps, window, n, ring, target, dw, sums):
    """At stride 1: each input pixel gathers dz of the nine outputs that saw it, for its own gradient and for dw."""
    (_, H, W, C), (_, OH, OW, _) = source.z.shape, gradient.z.shape
    V, top, left = BYTES // dw.itemsize, window.top, window.left
    row = (W + 2) * V
    x, gx, y, gy = flat(source.z[n]), flat(target.g[n]), flat(gradient.z[n]), flat(gradient.g[n])
    clips = Activation(source.z, source.low, source.high, False)
    for c in range(0, C, V):
        w, zero = nine(taps, c), load(ring, SLOTS * row)
        d = zero, zero, zero, zero, zero, zero, zero, zero, zero
        bn = affine(source, c)
        for r in range(H):
            above = r + top - 2  # the row of dz that the window begins with
            for new in range(above if r == 0 else above + 2, above + 3):
                if 0 <= new < OH:
                    at = _slot(new, OH, row) + (2 - left) * V
                    gradient_run(
                        gy, y, new * OW * C + c, OW, gradient.scale_shift, gradient.coefficients, c, ring, at, V,
                        _ahead(y, OW * C, C),
                    )  # fmt: skip
            o, at = r * W * C + c, (_slot(above, OH, row), _slot(above + 1, OH, row), _slot(above + 2, OH, row))
            if target.add or source.swish:
                s1, s2, d = _gather_row(w, d, bn, source, ring, at, V, x, gx, o, W, C, target.add)
            else:  # a loop of its own, whose weights stay in registers
                s1, s2, d = _gather_row(w, d, bn, clips, ring, at, V, x, gx, o, W, C, False)
            accumulate(s1, sums[0], c)
            accumulate(s2, sums[1], c)
        add_rows(d, dw, c)


@piece
def _backward_stride_2(gradient, source, taps, window, n, rows, target, dw, sums):
    """At stride 2: two padded rows at a time, 2r and 2r + 1, which were seen by the outputs of rows r - 1 and r.

    Of two columns 2j and 2j + 1 likewise the even one was seen by taps 0 and 2, the odd one by tap 1.
    """
    (_, H, W, C), (_, OH, OW, _) = source.z.shape, gradient.z.shape
    V, top, left = BYTES // dw.itemsize, window.top, window.left
    row = 2 * (OW + 1) * V
    x, gx, y, gy = flat(source.z[n]), flat(target.g[n]), flat(gradient.z[n]), flat(gradient.g[n])
    ahead = _ahead(x, 2 * W * C, C)
    zeros, da = 4 * row, 5 * row  # two rows of dz, two of a, one of zeros, two of da
    for c in range(0, C, V):
        w0, w1, w2, w3, w4, w5, w6, w7, w8 = nine(taps, c)
        d0 = d1 = d2 = d3 = d4 = d5 = d6 = d7 = d8 = load(rows, zeros)
        here = zeros
        for r in range(OH + 1):
            above, here = here, zeros
            if r < OH:
                here = r % 2 * row
                gradient_run(
                    gy, y, r * OW * C + c, OW, gradient.scale_shift, gradient.coefficients, c, rows, here + V, V,
                    _ahead(y, OW * C, C),
                )  # fmt: skip
            even, odd = zeros, zeros
            if 0 <= 2 * r - top < H:
                even, at = 2 * row, (2 * r - top) * W * C + c
                activate_run(source, x, at, W, c, rows, even + left * V, V, ahead)
            if 0 <= 2 * r + 1 - top < H:
                odd, at = 3 * row, (2 * r + 1 - top) * W * C + c
                activate_run(source, x, at, W, c, rows, odd + left * V, V, ahead)
            i, j, o = above, here, da
            up_left, on_left = load(rows, i), load(rows, j)
            for _ in range(OW + 1):
                i, j = i + V, j + V
                up, on = load(rows, i), load(rows, j)
                a = load(rows, even)
                d0, d2, d6, d8 = fma(a, on, d0), fma(a, on_left, d2), fma(a, up, d6), fma(a, up_left, d8)
                store(fma(w0, on, w2 * on_left) + fma(w6, up, w8 * up_left), rows, o)
                a = load(rows, even + V)
                d1, d7 = fma(a, on, d1), fma(a, up, d7)
                store(fma(w1, on, w7 * up), rows, o + V)
                a = load(rows, odd)
                d3, d5 = fma(a, on, d3), fma(a, on_left, d5)
                store(fma(w3, on, w5 * on_left), rows, o + row)
                d4 = fma(load(rows, odd + V), on, d4)
                store(w4 * on, rows, o + row + V)
                up_left, on_left = up, on
                even, odd, o = even + 2 * V, odd + 2 * V, o + 2 * V
            for half in range(2):
                at = 2 * r + half - top
                if 0 <= at < H:
                    o = da + half * row + left * V
                    for j in range(W):  # as z is: where the gradient will be stored is in no cache either
                        prefetch(gx, (at * W + j) * C + c + ahead)
                    mask_run(rows, o, V, source, x, at * W * C + c, W, c, gx, target.add, sums)
        add_rows((d0, d1, d2, d3, d4, d5, d6, d7, d8), dw, c)


@piece
def _backward_any_kernel(gradient, source, taps, window, n, scratch, target, dw, sums):
    """Add each dz to the pixels that it saw, and multiply it with what they were, for any kernel and stride."""
    (_, H, W, C), (_, OH, OW, _) = source.z.shape, gradient.z.shape
    V, K, S = BYTES // dw.itemsize, window.kernel, window.stride
    rows, columns = max((OH - 1) * S + K, window.top + H), max((OW - 1) * S + K, window.left + W)
    x, y, gy, gx = flat(source.z), flat(gradient.z), flat(gradient.g), flat(target.g)
    size = rows * columns * V  # of a, and of da after it; then a row of dz
    for c in range(0, C, V):
        clear(scratch, 0, 2 * size)
        for h in range(H):
            at, o = (n * H + h) * W * C + c, ((window.top + h) * columns + window.left) * V
            activate_run(source, x, at, W, c, scratch, o, V, _ahead(x, W * C, C))
        for r in range(OH):
            at = (n * OH + r) * OW * C + c
            gradient_run(
                gy, y, at, OW, gradient.scale_shift, gradient.coefficients, c, scratch, 2 * size, V,
                _ahead(y, OW * C, C),
            )  # fmt: skip
            for u in range(K):
                for v in range(K):
                    w, d = load(taps[u * K + v], c), load(dw[u * K + v], c)
                    at = ((r * S + u) * columns + v) * V
                    for j in range(OW):
                        dz = load(scratch, 2 * size + j * V)
                        d = fma(load(scratch, at), dz, d)
                        store(fma(w, dz, load(scratch, size + at)), scratch, size + at)
                        at += S * V
                    store(d, dw[u * K + v], c)
        for h in range(H):
            at, o = (n * H + h) * W * C + c, size + ((window.top + h) * columns + window.left) * V
            mask_run(scratch, o, V, source, x, at, W, c, gx, target.add, sums)


@inlined
def _begin(k, work, target):
    """Return which images group k is, the scratch of its thread, and its dw and sums, of zeros."""
    groups, dw, sums = work.parts.shape[0], work.parts[k], target.parts[k]
    dw[:] = 0
    sums[:] = 0
    first, last = k * work.tiles // groups, (k + 1) * work.tiles // groups
    return first, last, work.scratch[numba.get_thread_id()], dw, sums


@piece
def _backward(k, gradient, source, taps, window, work, target):
    """Go back through group k of the images, by 3x3."""
    W, OW = source.z.shape[2], gradient.z.shape[2]
    first, last, scratch, dw, sums = _begin(k, work, target)
    clear(scratch, 0, _ROWS * (max(W, 2 * OW) + 2) * (BYTES // dw.itemsize))
    for n in range(first, last):
        if window.stride == 1:
            _backward_stride_1(gradient, source, taps, window, n, scratch, target, dw, sums)
        else:
            _backward_stride_2(gradient, source, taps, window, n, scratch, target, dw, sums)


@piece
def _any_backward(k, gradient, source, taps, window, work, target):
    """The same for any kernel and stride."""
    first, last, scratch, dw, sums = _begin(k, work, target)
    for n in range(first, last):
        _backward_any_kernel(gradient, source, taps, window, n, scratch, target, dw, sums)


@prepared
def depthwise_backward(gradient, source, taps, window, work, target, grad):
    """Make target.g (N, H, W, C) with its sums, and add to the weights' grad, from the gradient of the output.

    Reference equation: dz = batchnorm.backward(g, z); da, dW = depthwise.backward(dz, a, w, stride, padding);
    target.g = relu.backward(da). taps (K*K, C) are w's, work.parts (groups, K*K, C) the partial gradients of groups of
    images, and grad is (K*K, channels), or (0, channels) where none is needed.
    """
    make_coefficients(gradient)
    groups = work.parts.shape[0]
    in_parallel(groups, _backward, gradient, source, taps, window, work, target)
    total(target.parts[:groups], target.sums)
    if grad.size > 0:
        in_parallel(CHUNKS, add_parts, work.parts, taps.shape[0], grad, gradient.clears)


@prepared
def depthwise_any_backward(gradient, source, taps, window, work, target, grad):
    """`depthwise_backward` for any kernel and stride."""
    make_coefficients(gradient)
    groups = work.parts.shape[0]
    in_parallel(groups, _any_backward, gradient, source, taps, window, work, target)
    total(target.parts[:groups], target.sums)
    if grad.size > 0:
        in_parallel(CHUNKS, add_parts, work.parts, taps.shape[0], grad, gradient.clears)
