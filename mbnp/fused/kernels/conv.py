"""Convolution, whatever its kernel: a matrix product between passes over tiles that stay in the cache.

Pointwise, standard and first convolutions and linear layers are one kernel each way. A tile of the input is activated
into a padded copy, which is small; there the windows of the tile are rows of the left matrix by their offsets alone
(`ops/matmul.py`), so that none is laid out. Backward makes the padded copies of dz and of a once more and multiplies
twice: for dw, whose rows are the taps and whose k runs over the pixels, and for dx, where an input pixel gathers the dz
of the windows that saw it. At stride 2 it was seen by other taps than its neighbour: the pixels of each of the four
classes are a product of their own.
"""

import numba
from numba import prange

from mbnp.backend import inlined, jit, piece
from mbnp.backend.vectors import BYTES, accumulate, fma, load, store, where_inside
from mbnp.fused.kernels.batchnorm import (
    RUN,
    activate_pixels,
    activate_run,
    centre,
    gradient_pixels,
    gradient_run,
    take_moments,
    total,
)
from mbnp.ops.matmul import ADD, STORE, Left, Out, Right, multiply, pack, vectors_at


@piece
def add_parts(parts, row, grad):
    """grad (channels,) += the sum of parts (m, rows, stored channels), of that row."""
    for t in range(parts.shape[0]):
        part = parts[t, row]
        for i in range(grad.size):
            grad[i] += part[i]


# ---- tiles and their padded copies -----------------------------------------------------------------------------


@inlined
def _images_and_rows(windows, N, t):
    """Return the images and the rows of output of tile t of N images."""
    if windows.bands > 1:
        n, first = t // windows.bands, t % windows.bands * windows.band
        return n, n + 1, first, min(windows.height, first + windows.band)
    return t * windows.images, min(N, (t + 1) * windows.images), 0, windows.height


@piece
def _zero(x, at, count):
    for i in range(at, at + count):
        x[i] = 0


@piece
def _copy(x, at, count, out, o):
    for i in range(count):
        out[o + i] = x[at + i]


@piece
def _fill_input(source, windows, n0, n1, first, last, patch):
    """patch = the activated input that rows first to last of output of images n0 to n1 see, with its padding."""
    _, H, W, C = source.z.shape
    x, columns = source.z.ravel(), windows.patch_columns
    inside = min(W, columns - windows.left)
    before, after = windows.left * C, (columns - windows.left - inside) * C
    for n in range(n0, n1):
        for row in range((last - first - 1) * windows.stride + windows.kernel):
            h, o = first * windows.stride - windows.top + row, ((n - n0) * windows.patch_rows + row) * columns * C
            if h < 0 or h >= H:
                _zero(patch, o, columns * C)
                continue
            at = (n * H + h) * W * C
            _zero(patch, o, before)
            if source.plain:
                _copy(x, at, inside * C, patch, o + before)
            else:
                for c in range(0, C, BYTES // x.itemsize):
                    activate_run(
                        x, at + c, inside, source.scale_shift, source.bounds, c, patch, o + before + c, C, W * C
                    )  # fmt: skip
            _zero(patch, o + before + inside * C, after)


@piece
def _fill_gradient(gradient, windows, n0, n1, first, patch, o):
    """patch from o on = dz of the windows of images n0 to n1 that saw a tile of input, and zeros around it."""
    _, OH, OW, D = gradient.z.shape
    g, z = gradient.g.ravel(), gradient.z.ravel()
    before = windows.dz_left * D
    for n in range(n0, n1):
        for row in range(windows.dz_rows):
            r = first - windows.dz_before + row
            if 0 <= r < OH:
                at = (n * OH + r) * OW * D
                _zero(patch, o, before)
                for c in range(0, D, BYTES // z.itemsize):
                    gradient_run(
                        g, z, at + c, OW, gradient.scale_shift, gradient.coefficients, c, patch, o + before + c, D,
                        OW * D,
                    )  # fmt: skip
                _zero(patch, o + before + OW * D, (windows.dz_columns - windows.dz_left - OW) * D)
            else:
                _zero(patch, o, windows.dz_columns * D)
            o += windows.dz_columns * D


# ---- forward -------------------------------------------------------------------------------------------------------


@piece
def _forward(source, packed, windows, tables, t, scratch, z, moments):
    N, OH, OW, D = z.shape
    C = source.z.shape[3]
    y = z.ravel()
    V = BYTES // y.itemsize
    if windows.flat:
        at = t * windows.tile
        pixels = min(N * OH * OW - at, windows.tile)
        if not source.plain:
            activate_pixels(source.z.ravel(), at * C, pixels, source.scale_shift, source.bounds, scratch, 0)
    else:
        n0, n1, first, last = _images_and_rows(windows, N, t)
        at, pixels = (n0 * OH + first) * OW, (n1 - n0) * (last - first) * OW
        _fill_input(source, windows, n0, n1, first, last, scratch)
    run = windows.columns * C
    if windows.flat and source.plain:  # read where it lies
        left = Left(source.z.ravel(), at * C, tables.windows, tables.taps, 1)
    else:
        left = Left(scratch, 0, tables.windows, tables.taps, 1)
    right = Right(packed, 0, tables.taps_k, 0, 2 * V * windows.kernel * run)
    low, high = y.dtype.type(0), y.dtype.type(0)
    out = Out(y, at * D, tables.out, STORE, packed, low, high)
    pivot = y[(at + 2 * pixels // 3) * D :][:D]
    moments[:] = 0
    for n in range(0, D, 2 * V):
        multiply(left, right, windows.kernel, run, out, 0, pixels, n, D)
        take_moments(y, at * D, pixels, n, vectors_at(n, D, V) * V, pivot, moments)
    centre(pivot, pixels, moments)


@jit(parallel=True, literal=True)
def conv_forward(source, w, windows, tables, work, z, moments):
    """Source (N, H, W, C) -> z (N, OH, OW, D), and moments (tiles, 2, D): the mean and centred squares of each tile.

    Reference equation: a = relu.forward(batchnorm.forward(source.z)); z = conv.forward(a, w, stride, padding), where
    w (kernel * columns * C, D) are its weights.
    """
    entries = 2 * BYTES // z.itemsize
    D = z.shape[3]
    for p in prange(-(-D // entries)):
        pack(w, p * entries, D, 0, work.packed)
    for t in prange(moments.shape[0]):
        _forward(source, work.packed, windows, tables, t, work.scratch[numba.get_thread_id()], z, moments[t])


# ---- backward ------------------------------------------------------------------------------------------------------


@piece
def _pack_class(w, windows, kind, C, D, n, packed):
    """Pack columns n ... of the transposed weights of a class of input pixels: rows of dz's order, C columns."""
    V = BYTES // packed.itemsize
    entries = vectors_at(n, C, V) * V
    u0, nu, v0, nv, at = kind[0], kind[1], kind[2], kind[3], kind[4] * C
    at += n * nu * nv * D
    for s in range(nu):
        u = u0 + (nu - 1 - s) * windows.stride
        for i in range(nv):
            v = v0 + (nv - 1 - i) * windows.stride
            row = (u * windows.columns + v) * C + n
            for d in range(D):
                for c in range(entries):
                    packed[at + c] = w[row + c, d]
                at += entries


@piece
def _mask_pixels(at, table, pixels, n, entries, source, target, sums):
    """In place, in g: mask the finished products of pixels by their activation, and take their sums."""
    V = BYTES // source.z.itemsize
    z, g, ss = source.z.ravel(), target.g.ravel(), source.scale_shift
    low, high = source.bounds[0], source.bounds[1]
    for first in range(0, pixels, RUN):
        last = min(pixels, first + RUN)
        for c in range(n, n + entries, V):
            mean, scale, shift = load(ss[0], c), load(ss[1], c), load(ss[2], c)
            s1 = s2 = mean - mean
            for r in range(first, last):
                o = at + table[r] + c
                centred = load(z, o) - mean
                d = where_inside(fma(centred, scale, shift), low, high, load(g, o))
                store(d, g, o)
                s1, s2 = s1 + d, fma(d, centred, s2)
            accumulate(s1, sums[0], c)
            accumulate(s2, sums[1], c)


@piece
def _weights_backward(a, a_at, dz, dz_at, windows, tables, strips, run, C, D, first, part):
    """part (rows, D) += dw of a tile, or = of the first one: rows are taps, and k runs over the strips of pixels."""
    V = BYTES // part.itemsize
    y = part.ravel()
    left = Left(a, a_at, tables.weights, tables.strips, windows.stride * C)
    right = Right(dz, dz_at, tables.strips_k, D, 2 * V)
    low, high = y.dtype.type(0), y.dtype.type(0)
    out = Out(y, 0, tables.weights_out, STORE if first else ADD, y, low, high)
    for n in range(0, D, 2 * V):
        multiply(left, right, strips, run, out, 0, part.shape[0], n, D)


@piece
def _input_backward(dz, dz_at, packed, windows, tables, at, images, first_row, last_row, source, target, sums):
    """g = the gradient of a tile of input, from its first entry on, masked by its activation."""
    _, H, W, C = source.z.shape
    g = target.g.ravel()
    V, S = BYTES // g.itemsize, windows.stride
    low, high = g.dtype.type(0), g.dtype.type(0)
    for k in range(tables.classes.shape[0]):
        kind = tables.classes[k]
        nu, run, weights_at, down, across, pixels_at, taps_at = kind[1], kind[5], kind[4], kind[6], kind[7], kind[8], kind[9]
        if windows.flat:
            pixels = images
        else:
            rows = max(0, -(-(last_row - first_row - down) // S))
            pixels = images * rows * -(-(W - across) // S)
        table = tables.class_out[pixels_at:]
        left = Left(dz, dz_at, tables.class_pixels[pixels_at:], tables.class_taps[taps_at:], 1)
        right = Right(packed, weights_at * C, tables.class_taps_k[taps_at:], 0, 2 * V * nu * run)
        out = Out(g, at, table, ADD if target.add else STORE, g, low, high)
        for n in range(0, C, 2 * V):
            multiply(left, right, nu, run, out, 0, pixels, n, C)
            _mask_pixels(at, table, pixels, n, vectors_at(n, C, V) * V, source, target, sums)


@piece
def _backward_flat(gradient, source, packed, windows, tables, t, first, scratch, target, part, sums):
    P, C, D = gradient.z.size // gradient.z.shape[3], source.z.shape[3], gradient.z.shape[3]
    at = t * windows.tile
    pixels = min(P - at, windows.tile)
    dz_at = windows.tile * C
    gradient_pixels(
        gradient.g.ravel(), gradient.z.ravel(), at * D, pixels, gradient.scale_shift, gradient.coefficients, scratch,
        dz_at,
    )  # fmt: skip
    if part.size > 0:
        if source.plain:
            a = source.z.ravel()
            _weights_backward(a, at * C, scratch, dz_at, windows, tables, 1, pixels, C, D, first, part)
        else:
            activate_pixels(source.z.ravel(), at * C, pixels, source.scale_shift, source.bounds, scratch, 0)
            _weights_backward(scratch, 0, scratch, dz_at, windows, tables, 1, pixels, C, D, first, part)
    if target.g.size > 0:
        _input_backward(scratch, dz_at, packed, windows, tables, at * C, pixels, 0, 1, source, target, sums)


@piece
def _backward_windows(gradient, source, packed, windows, tables, t, first, scratch, target, part, sums):
    N, H, W, C = source.z.shape
    D = gradient.z.shape[3]
    n0, n1, r0, r1 = _images_and_rows(windows, N, t)
    dz_at = windows.images * windows.patch_rows * windows.patch_columns * C
    _fill_gradient(gradient, windows, n0, n1, r0, scratch, dz_at)
    if part.size > 0:
        _fill_input(source, windows, n0, n1, r0, r1, scratch)
        strips = (n1 - n0) * (r1 - r0)
        _weights_backward(scratch, 0, scratch, dz_at, windows, tables, strips, windows.width, C, D, first, part)
    if target.g.size > 0:
        h0 = min(H, r0 * windows.stride)
        h1 = H if r1 == windows.height else min(H, r1 * windows.stride)
        at = (n0 * H + h0) * W * C
        _input_backward(scratch, dz_at, packed, windows, tables, at, n1 - n0, h0, h1, source, target, sums)


@piece
def _group(gradient, source, packed, windows, tables, first, last, scratch, target, part, sums):
    sums[:] = 0
    for t in range(first, last):
        begins = t == first
        if windows.flat:
            _backward_flat(gradient, source, packed, windows, tables, t, begins, scratch, target, part, sums)
        else:
            _backward_windows(gradient, source, packed, windows, tables, t, begins, scratch, target, part, sums)


@jit(parallel=True, literal=True)
def conv_backward(gradient, source, w, windows, tables, work, target, dw):
    """From the gradient of z to target.g (N, H, W, C) with its sums, and dw (taps, D), which is added to.

    Reference equation: dz = batchnorm.backward(g, z); da, dW = conv.backward(dz, a, w, stride, padding);
    target.g = relu.backward(da). dz and a are made again from z while the tile is in cache, which is cheaper than to
    have stored them. A group of tiles adds to one of work.parts (groups, taps, D). target.g may be g of a flat one: a
    tile of dz is made before the tile of target.g is written. Without rows in dw nothing is added.
    """
    C, D = source.z.shape[3], gradient.z.shape[3]
    entries = 2 * BYTES // gradient.z.itemsize
    panels = -(-C // entries)
    if target.g.size > 0:
        for p in prange(panels * tables.classes.shape[0]):
            _pack_class(w, windows, tables.classes[p // panels], C, D, p % panels * entries, work.packed)
    groups, tiles = work.parts.shape[0], work.tiles
    for t in prange(groups):
        _group(
            gradient, source, work.packed, windows, tables, t * tiles // groups, (t + 1) * tiles // groups,
            work.scratch[numba.get_thread_id()], target, work.parts[t, : dw.shape[0] and work.parts.shape[1]],
            target.parts[t],
        )  # fmt: skip
    for r in prange(dw.shape[0]):
        taps = windows.kernel * windows.columns
        channels = dw.shape[0] // taps
        add_parts(work.parts, r // channels * (work.parts.shape[1] // taps) + r % channels, dw[r])
    if target.g.size > 0:
        total(target.parts[:groups], target.sums)
