"""Convolution, whatever its kernel: a matrix product between passes over tiles that stay in the cache.

Pointwise, standard and first convolutions and linear layers are one kernel each way. A tile of the input is activated
into a padded copy, which is small; there the windows of the tile are rows of the left matrix by their offsets alone
(`ops/matmul.py`), so that none is laid out. Backward makes the padded copies of dz and of a once more and multiplies
twice: for dw, whose rows are the taps and whose k runs over the pixels, and for dx, where an input pixel gathers the dz
of the windows that saw it. At stride 2 it was seen by other taps than its neighbour: the pixels of each of the four
classes are a product of their own.
"""

import numba

from mbnp.backend import in_parallel, inlined, jit, piece
from mbnp.backend.tiles import ADD, STORE
from mbnp.backend.vectors import BYTES, accumulate, clear, copy, flat, fma, load, store
from mbnp.fused.kernels.batchnorm import (
    RUN,
    activate_image,
    activate_pixels,
    activate_run,
    activation_back,
    affine,
    centre,
    finish_statistics,
    gradient_pixels,
    gradient_run,
    make_coefficients,
    mask_run,
    take_moments,
    total,
)
from mbnp.fused.kernels.weights import CHUNKS, add_parts, pack_task, tasks
from mbnp.ops.matmul import ROWS, multiply, multiply_across, vectors_at

STRETCH, ROWS_A_TASK = 256, 32  # pixels of a product of `weights_backward`, and rows of a task


# ---- tiles and their padded copies -----------------------------------------------------------------------------


@inlined
def _images_and_rows(windows, N, t):
    """Return the images and the rows of output of tile t of N images."""
    if windows.bands > 1:
        n, first = t // windows.bands, t % windows.bands * windows.band
        return n, n + 1, first, min(windows.height, first + windows.band)
    return t * windows.images, min(N, (t + 1) * windows.images), 0, windows.height


@piece
def _fill_input(source, windows, n0, n1, first, last, patch):
    """patch = the activated input that rows first to last of output of images n0 to n1 see, with its padding."""
    _, H, W, C = source.z.shape
    x, columns = flat(source.z), windows.patch_columns
    inside = min(W, columns - windows.left)
    before, after = windows.left * C, (columns - windows.left - inside) * C
    for n in range(n0, n1):
        for row in range((last - first - 1) * windows.stride + windows.kernel):
            h, o = first * windows.stride - windows.top + row, ((n - n0) * windows.patch_rows + row) * columns * C
            if h < 0 or h >= H:
                clear(patch, o, columns * C)
                continue
            at = (n * H + h) * W * C
            clear(patch, o, before)
            if source.plain:
                copy(x, at, inside * C, patch, o + before)
            else:
                for c in range(0, C, BYTES // x.itemsize):
                    activate_run(source, x, at + c, inside, c, patch, o + before + c, C, W * C)
            clear(patch, o + before + inside * C, after)


@piece
def _fill_gradient(gradient, windows, n0, n1, first, patch, o):
    """patch from o on = dz of the windows of images n0 to n1 that saw a tile of input, and zeros around it."""
    _, OH, OW, D = gradient.z.shape
    g, z = flat(gradient.g), flat(gradient.z)
    before = windows.dz_left * D
    for n in range(n0, n1):
        for row in range(windows.dz_rows):
            r = first - windows.dz_before + row
            if 0 <= r < OH:
                at = (n * OH + r) * OW * D
                clear(patch, o, before)
                for c in range(0, D, BYTES // z.itemsize):
                    gradient_run(
                        g, z, at + c, OW, gradient.scale_shift, gradient.coefficients, c, patch, o + before + c, D,
                        OW * D,
                    )  # fmt: skip
                clear(patch, o + before + OW * D, (windows.dz_columns - windows.dz_left - OW) * D)
            else:
                clear(patch, o, windows.dz_columns * D)
            o += windows.dz_columns * D


# ---- forward -------------------------------------------------------------------------------------------------------


@piece
def _forward(t, source, packed, windows, tables, work, z, moments):
    N, OH, OW, D = z.shape
    C = source.z.shape[3]
    y, scratch, sums = flat(z), work.scratch[numba.get_thread_id()], moments[t]
    V = BYTES // y.itemsize
    if windows.flat:
        at = t * windows.tile
        pixels = min(N * OH * OW - at, windows.tile)
        if not source.plain:
            activate_pixels(source, at * C, pixels, scratch, 0, C)
    else:
        n0, n1, first, last = _images_and_rows(windows, N, t)
        at, pixels = (n0 * OH + first) * OW, (n1 - n0) * (last - first) * OW
        _fill_input(source, windows, n0, n1, first, last, scratch)
    pivot = y[(at + 2 * pixels // 3) * D :][:D]
    sums[:] = 0
    soon, step = (at + pixels) * C, ROWS * 2 * V // D * windows.flat  # while one tile is multiplied, fetch the next
    for n in range(0, D, 2 * V):
        if windows.flat and source.plain:  # multiplied where it lies
            _product(flat(source.z), at * C, packed, windows, tables, C, y, at * D, pixels, n, D, source, soon, step)
        else:
            _product(scratch, 0, packed, windows, tables, C, y, at * D, pixels, n, D, source, soon, step)
        soon += pixels * C * (2 * V) // D
        take_moments(y, at * D, pixels, n, vectors_at(n, D, V) * V, pivot, sums)
    centre(pivot, pixels, sums)


@inlined
def _product(a, a_at, packed, windows, tables, C, y, y_at, pixels, n, D, source, soon, step):
    """Make the columns of a tile's output from n on."""
    zero = y.dtype.type(0)
    multiply(
        a, a_at, tables.windows, tables.taps, windows.columns * C, packed, 0, y, y_at, tables.out, STORE, packed, zero,
        zero, pixels, n, D, flat(source.z), soon, step,
    )  # fmt: skip


@jit(literal=True)
def conv_forward(source, weights, packed, windows, tables, work, z, statistics):
    """Source (N, H, W, C) -> z (N, OH, OW, D), its statistics, and the scale and shift of a BatchNorm after it.

    Reference equation: a = relu.forward(batchnorm.forward(source.z)); z = conv.forward(a, w, stride, padding). weights
    (taps * C, D) are packed first; they are (0, D) where `packed` has them already.
    """
    if weights.size > 0:
        in_parallel(tasks(weights, packed, windows, tables), pack_task, weights, packed, windows, tables)
    moments = statistics.moments
    in_parallel(moments.shape[0], _forward, source, packed[0], windows, tables, work, z, moments)
    finish_statistics(statistics)


# ---- backward, by tiles -------------------------------------------------------------------------------------------


@piece
def _mask_run(at, pixels, n, entries, source, target, sums):
    """In place, in g: mask the finished products of a run of pixels by their activation, and take their sums."""
    z, g, C = flat(source.z), flat(target.g), source.z.shape[3]
    for first in range(0, pixels, RUN):
        run = min(RUN, pixels - first)
        for c in range(n, n + entries, BYTES // z.itemsize):
            k = at + first * C + c
            mask_run(g, k, C, source, z, k, run, c, g, False, sums)


@piece
def _mask_pixels(at, table, pixels, n, entries, source, target, sums):
    """The same for pixels that lie apart, each where the table says."""
    V = BYTES // source.z.itemsize
    z, g = flat(source.z), flat(target.g)
    for first in range(0, pixels, RUN):
        last = min(pixels, first + RUN)
        for c in range(n, n + entries, V):
            mean, scale, shift = affine(source, c)
            s1 = s2 = mean - mean
            for r in range(first, last):
                o = at + table[r] + c
                centred = load(z, o) - mean
                d = activation_back(load(g, o), fma(centred, scale, shift), source)
                store(d, g, o)
                s1, s2 = s1 + d, fma(d, centred, s2)
            accumulate(s1, sums[0], c)
            accumulate(s2, sums[1], c)


@piece
def _weights_backward(
    a, a_at, a_step, dz, dz_at, windows, tables, strips, run, C, D, first, part, soon, at_soon
):  # fmt: skip
    """part (rows, D) += dw of a tile, or = of the first one: rows are taps, and k runs over the strips of pixels."""
    y, across = flat(part), windows.columns * C
    step = ROWS * 2 * (BYTES // part.itemsize) // C * windows.flat
    for n in range(0, D, 2 * BYTES // part.itemsize):
        for u in range(windows.kernel):
            multiply_across(
                a, a_at + u * windows.patch_columns * C, tables.strips[:strips], a_step, run, dz, dz_at,
                tables.strips_k, windows.dz_step, y, u * across * D, tables.weights_out, STORE if first else ADD,
                across, n, D, soon, at_soon, step,
            )  # fmt: skip
        at_soon += across * run * step // ROWS


@piece
def _input_backward(
    dz, dz_at, packed, windows, tables, at, images, first_row, last_row, source, target, sums, soon, at_soon
):  # fmt: skip
    """g = the gradient of a tile of input, from its first entry on, masked by its activation."""
    _, _, W, C = source.z.shape
    g = flat(target.g)
    V, S, zero = BYTES // g.itemsize, windows.stride, g.dtype.type(0)
    step = ROWS * 2 * V // C * windows.flat
    for k in range(tables.classes.shape[0]):
        kind = tables.classes[k]
        nu, run, weights_at, down, across = kind[1], kind[5], kind[4], kind[6], kind[7]
        pixels = images
        if not windows.flat:
            pixels = images * max(0, -(-(last_row - first_row - down) // S)) * -(-(W - across) // S)
        pixels_from, out = tables.class_pixels[kind[8] :], tables.class_out[kind[8] :]
        taps = tables.class_taps[kind[9] :][:nu]
        for n in range(0, C, 2 * V):
            multiply(
                dz, dz_at, pixels_from, taps, run, packed, weights_at * C, g, at, out, ADD if target.add else STORE,
                packed, zero, zero, pixels, n, C, soon, at_soon, step,
            )  # fmt: skip
            at_soon += pixels * run * step // ROWS
            if windows.flat:
                _mask_run(at, pixels, n, vectors_at(n, C, V) * V, source, target, sums)
            else:
                _mask_pixels(at, out, pixels, n, vectors_at(n, C, V) * V, source, target, sums)


@piece
def _backward_flat(gradient, source, packed, windows, tables, t, first, scratch, target, learns, part, sums):
    P, C, D = gradient.z.size // gradient.z.shape[3], source.z.shape[3], gradient.z.shape[3]
    at = t * windows.tile
    pixels = min(P - at, windows.tile)
    dz_at = windows.tile * windows.a_step
    g, z, soon = flat(gradient.g), flat(gradient.z), (at + pixels) * D
    gradient_pixels(
        g, z, at * D, pixels, gradient.scale_shift, gradient.coefficients, scratch, dz_at, windows.dz_step
    )  # fmt: skip
    if learns:
        if source.plain:
            a = flat(source.z)
            _weights_backward(a, at * C, C, scratch, dz_at, windows, tables, 1, pixels, C, D, first, part, g, soon)
        else:
            activate_pixels(source, at * C, pixels, scratch, 0, windows.a_step)
            _weights_backward(
                scratch, 0, windows.a_step, scratch, dz_at, windows, tables, 1, pixels, C, D, first, part, g, soon
            )  # fmt: skip
    if target.g.size > 0:
        _input_backward(scratch, dz_at, packed, windows, tables, at * C, pixels, 0, 1, source, target, sums, z, soon)


@piece
def _backward_windows(gradient, source, packed, windows, tables, t, first, scratch, target, learns, part, sums):
    N, H, W, C = source.z.shape
    D = gradient.z.shape[3]
    n0, n1, r0, r1 = _images_and_rows(windows, N, t)
    dz_at = windows.images * windows.patch_rows * windows.patch_columns * C
    _fill_gradient(gradient, windows, n0, n1, r0, scratch, dz_at)
    if learns:
        _fill_input(source, windows, n0, n1, r0, r1, scratch)
        strips = (n1 - n0) * (r1 - r0)
        _weights_backward(
            scratch, 0, windows.stride * windows.a_step, scratch, dz_at, windows, tables, strips, windows.width, C, D,
            first, part, scratch, 0,
        )  # fmt: skip
    if target.g.size > 0:
        h0 = min(H, r0 * windows.stride)
        h1 = H if r1 == windows.height else min(H, r1 * windows.stride)
        at = (n0 * H + h0) * W * C
        _input_backward(scratch, dz_at, packed, windows, tables, at, n1 - n0, h0, h1, source, target, sums, scratch, 0)


@piece
def _group(k, gradient, source, packed, windows, tables, work, target, learns):
    groups = work.parts.shape[0]
    first, last = k * work.tiles // groups, (k + 1) * work.tiles // groups
    scratch, part, sums = work.scratch[numba.get_thread_id()], work.parts[k], target.parts[k]
    sums[:] = 0
    for t in range(first, last):
        begins = t == first
        if windows.flat:
            _backward_flat(gradient, source, packed, windows, tables, t, begins, scratch, target, learns, part, sums)
        else:
            _backward_windows(gradient, source, packed, windows, tables, t, begins, scratch, target, learns, part, sums)


# ---- backward of few pixels and many weights --------------------------------------------------------------------


@piece
def _differentiate(t, gradient, out):
    """out (P, D or more) = dz, of one chunk of the pixels."""
    P, step = out.shape
    first, last = t * P // CHUNKS, (t + 1) * P // CHUNKS
    gradient_pixels(
        flat(gradient.g), flat(gradient.z), first * gradient.z.shape[3], last - first, gradient.scale_shift,
        gradient.coefficients, flat(out), first * step, step,
    )  # fmt: skip


@piece
def _weights_rows(t, a, dz, tables, dw):
    """Some rows of dw (C, D) += a^T dz, for all pixels.

    Partial gradients are for many pixels and few weights; of many weights they would take more memory than a and dz.
    """
    (P, dz_step), (C, D), a_step = dz.shape, dw.shape, a.shape[3]
    first, last = t * ROWS_A_TASK, min(C, (t + 1) * ROWS_A_TASK)
    a, dz, dw = flat(a), flat(dz), flat(dw)
    for p in range(0, P, STRETCH):
        for n in range(0, D, 2 * BYTES // dw.itemsize):
            multiply_across(
                a, p * a_step + first, tables.taps, a_step, min(STRETCH, P - p), dz, p * dz_step, tables.taps, dz_step,
                dw, first * D, tables.weights_out, ADD, last - first, n, D, dz, 0, 0,
            )  # fmt: skip


# ---- backward ------------------------------------------------------------------------------------------------------


@jit(literal=True)
def conv_backward(gradient, source, packed, windows, tables, work, target, grad):
    """Make target.g (N, H, W, C) with its sums, and add to the weights' grad (rows, D), from the gradient of z.

    Reference equation: dz = batchnorm.backward(g, z); da, dW = conv.backward(dz, a, w, stride, padding);
    target.g = relu.backward(da). dz and a are made again from z while the tile is in cache, which is cheaper than to
    have stored them. A group of tiles adds to one of work.parts (groups, taps * C, D); or where there is work.a, dz and
    a of all pixels are made first. packed: as `conv_forward` left it. grad is (0, D) where none is needed.
    target.g may be g of a flat one: a tile of dz is made before the tile of target.g is written.
    """
    make_coefficients(gradient)
    groups, learns, by_rows = work.parts.shape[0], grad.size > 0, work.a.size > 0
    if by_rows:
        in_parallel(CHUNKS, _differentiate, gradient, work.dz)
        in_parallel(source.z.shape[0], activate_image, source, work.a)
        in_parallel(-(-grad.shape[0] // ROWS_A_TASK), _weights_rows, work.a, work.dz, tables, grad)
    if target.g.size > 0 or not by_rows:
        parts = learns and not by_rows
        in_parallel(groups, _group, gradient, source, packed[-1], windows, tables, work, target, parts)
    if target.g.size > 0:
        total(target.parts[:groups], target.sums)
    if learns and not by_rows:
        in_parallel(CHUNKS, add_parts, work.parts, windows.kernel * windows.columns, grad)
