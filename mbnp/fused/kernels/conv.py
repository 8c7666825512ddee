"""Convolution, whatever its kernel: a matrix product between passes over tiles that stay in the cache.

Pointwise, standard and first convolutions and linear layers are one kernel each way. A tile of the input is activated
into a padded copy, which is small; there the windows of the tile are rows of the left matrix by their offsets alone
(`ops/matmul.py`), so that none is laid out. Backward makes the padded copies of dz and of a once more and multiplies
twice: for dw, whose rows are the taps and whose k runs over the pixels, and for dx, where an input pixel gathers the dz
of the windows that saw it. At stride 2 it was seen by other taps than its neighbour: the pixels of each of the four
classes are a product of their own.
"""

import numba

from mbnp.backend import in_parallel, inlined, piece, prepared
from mbnp.backend.tiles import ADD, STORE
from mbnp.backend.vectors import BYTES, accumulate, clear, copy, flat, fma, load, store
from mbnp.fused.kernels.batchnorm import (
    RUN,
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
from mbnp.fused.kernels.weights import CHUNKS, add_parts, pack_class, pack_rows, pack_task, tasks
from mbnp.ops.matmul import ROWS, multiply, multiply_across, vectors_at

STRETCH = 128  # pixels of a product of `_whole_weights`
TOGETHER = 4  # panels that a task of many weights takes, at most


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
            activate_pixels(source, at * C, pixels, scratch, 0, C, 0)
    else:
        n0, n1, first, last = _images_and_rows(windows, N, t)
        at, pixels = (n0 * OH + first) * OW, (n1 - n0) * (last - first) * OW
        _fill_input(source, windows, n0, n1, first, last, scratch)
    pivot = y[(at + 2 * pixels // 3) * D :][:D]
    soon, step = (at + pixels) * C, ROWS * 2 * V // D * windows.flat  # while one tile is multiplied, fetch the next
    for n in range(0, D, 2 * V):
        if windows.flat and source.plain:  # multiplied where it lies
            _product(flat(source.z), at * C, packed, windows, tables, C, y, at * D, pixels, n, D, source, soon, step)
        else:
            _product(scratch, 0, packed, windows, tables, C, y, at * D, pixels, n, D, source, soon, step)
        soon += pixels * C * (2 * V) // D
        _take_moments(y, at * D, pixels, n, vectors_at(n, D, V) * V, pivot, sums)


@inlined
def _take_moments(y, at, pixels, n, entries, pivot, sums):
    """Make the moments of some columns of a tile."""
    _clear_columns(sums, n, entries)
    take_moments(y, at, pixels, n, entries, pivot, sums)
    centre(pivot, pixels, n, n + entries, sums)


@inlined
def _clear_columns(sums, n, entries):
    for c in range(n, n + entries):
        sums[0, c] = sums[1, c] = 0


@inlined
def _product(a, a_at, packed, windows, tables, C, y, y_at, pixels, n, D, source, soon, step):
    """Make the columns of a tile's output from n on."""
    zero = y.dtype.type(0)
    multiply(
        a, a_at, tables.windows, tables.taps, windows.columns * C, packed, 0, y, y_at, tables.out, STORE, packed, zero,
        zero, pixels, n, D, flat(source.z), soon, step,
    )  # fmt: skip


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
    panel, a, a_at, a_step, dz, dz_at, windows, tables, strips, run, then, D, dw, soon, at_soon, step
):  # fmt: skip
    """STORE or ADD a panel of dw (rows, D) of a tile: rows are taps, and k runs over the strips of pixels."""
    y, rows = flat(dw), windows.a_rows
    for n in range(0, D, 2 * BYTES // dw.itemsize):
        k = n // windows.dz_step  # the panel of dz, from whose first pixel on the product counts its columns
        multiply_across(
            a, a_at + panel * windows.a_apart, tables.strips[:strips], a_step, run, dz,
            dz_at + k * (windows.dz_apart - windows.dz_step), tables.strips_k, windows.dz_step, y, panel * rows * D,
            tables.weights_out, then, rows, n, D, soon, at_soon, step,
        )  # fmt: skip
        at_soon += rows * run * step // ROWS


@piece
def _input_backward(
    dz, dz_at, packed, packed_at, windows, tables, at, images, first_row, last_row, begin, end, source, target, sums,
    soon, at_soon,
):  # fmt: skip
    """g = the gradient of a tile of input, from its first entry on, masked by its activation: columns begin to end."""
    _, _, W, C = source.z.shape
    g = flat(target.g)
    V, S, zero = BYTES // g.itemsize, windows.stride, g.dtype.type(0)
    step = ROWS * 2 * V // C * windows.flat
    for k in range(tables.classes.shape[0]):
        kind = tables.classes[k]
        segments, run, weights_at, down, across = kind[10], kind[5], kind[4], kind[6], kind[7]
        pixels = images
        if not windows.flat:
            pixels = images * max(0, -(-(last_row - first_row - down) // S)) * -(-(W - across) // S)
        pixels_from, out = tables.class_pixels[kind[8] :], tables.class_out[kind[8] :]
        taps = tables.class_taps[kind[9] :][:segments]
        for n in range(begin, end, 2 * V):
            multiply(
                dz, dz_at, pixels_from, taps, run, packed, packed_at + weights_at * C, g, at, out,
                ADD if target.add else STORE, packed, zero, zero, pixels, n, C, soon, at_soon, step,
            )  # fmt: skip
            at_soon += pixels * segments * run * step // ROWS
            if windows.flat:
                _mask_run(at, pixels, n, vectors_at(n, C, V) * V, source, target, sums)
            else:
                _mask_pixels(at, out, pixels, n, vectors_at(n, C, V) * V, source, target, sums)


@piece
def _backward_flat(gradient, source, packed, windows, tables, t, then, scratch, target, learns, part, sums):
    P, C, D = gradient.z.size // gradient.z.shape[3], source.z.shape[3], gradient.z.shape[3]
    at = t * windows.tile
    pixels = min(P - at, windows.tile)
    dz_at = windows.tile * C
    soon, step = (at + pixels) * D, ROWS * 2 * (BYTES // part.itemsize) // C
    gradient_pixels(gradient, at * D, pixels, scratch, dz_at, windows.dz_step, windows.dz_apart)
    if learns:
        activate_pixels(source, at * C, pixels, scratch, 0, windows.a_step, windows.a_apart)
        for panel in range(windows.a_panels):
            _weights_backward(
                panel, scratch, 0, windows.a_step, scratch, dz_at, windows, tables, 1, pixels, then, D, part,
                flat(gradient.g), soon + panel * pixels * D // windows.a_panels, step,
            )  # fmt: skip
    if target.g.size > 0:
        z = flat(gradient.z)
        _input_backward(
            scratch, dz_at, packed, 0, windows, tables, at * C, pixels, 0, 1, 0, C, source, target, sums, z, soon
        )  # fmt: skip


@piece
def _backward_windows(gradient, source, packed, windows, tables, t, then, scratch, target, learns, part, sums):
    N, H, W, C = source.z.shape
    D = gradient.z.shape[3]
    n0, n1, r0, r1 = _images_and_rows(windows, N, t)
    dz_at = windows.images * windows.patch_rows * windows.patch_columns * C
    _fill_gradient(gradient, windows, n0, n1, r0, scratch, dz_at)
    if learns:
        _fill_input(source, windows, n0, n1, r0, r1, scratch)
        strips, step = (n1 - n0) * (r1 - r0), windows.stride * windows.a_step
        for panel in range(windows.a_panels):
            _weights_backward(
                panel, scratch, 0, step, scratch, dz_at, windows, tables, strips, windows.width, then, D, part, scratch,
                0, 0,
            )  # fmt: skip
    if target.g.size > 0:
        h0 = min(H, r0 * windows.stride)
        h1 = H if r1 == windows.height else min(H, r1 * windows.stride)
        at = (n0 * H + h0) * W * C
        _input_backward(
            scratch, dz_at, packed, 0, windows, tables, at, n1 - n0, h0, h1, 0, C, source, target, sums, scratch, 0
        )  # fmt: skip


@piece
def _group(k, gradient, source, packed, windows, tables, work, target, learns):
    groups = work.parts.shape[0]
    first, last = k * work.tiles // groups, (k + 1) * work.tiles // groups
    scratch, part, sums = work.scratch[numba.get_thread_id()], work.parts[k], target.parts[k]
    sums[:] = 0
    for t in range(first, last):
        then = STORE if t == first else ADD
        if windows.flat:
            _backward_flat(gradient, source, packed, windows, tables, t, then, scratch, target, learns, part, sums)
        else:
            _backward_windows(gradient, source, packed, windows, tables, t, then, scratch, target, learns, part, sums)


# ---- many weights and few pixels ---------------------------------------------------------------------------------
#
# To pack the weights, and to read them again for each tile of pixels, would take as long as the products do. So all
# pixels of a and dz are copied first, in panels, and each task makes some panels of a result for all pixels: it packs
# its own weights, in the cache, and the gradient of the weights needs no partial ones.


@inlined
def _chunk(t, P):
    return t * P // CHUNKS, (t + 1) * P // CHUNKS


@piece
def _copy_input(t, source, windows, work):
    """Copy one chunk of the pixels of the input."""
    C = source.z.shape[3]
    first, last = _chunk(t, source.z.size // C)
    activate_pixels(source, first * C, last - first, work.a, first * windows.a_step, windows.a_step, windows.a_apart)


@piece
def _copy_gradient(t, gradient, windows, work):
    """Copy one chunk of the pixels of dz."""
    D, step = gradient.z.shape[3], windows.dz_step
    first, last = _chunk(t, gradient.z.size // D)
    gradient_pixels(gradient, first * D, last - first, work.dz, first * step, step, windows.dz_apart)


@inlined
def _panels(x):
    """Return how many panels of columns a product has that makes x (N, H, W, C)."""
    return -(-x.shape[3] // (2 * BYTES // x.itemsize))


@inlined
def _together(panels):
    """Return how many panels a task takes: they share what is read of the pixels, as long as there are eight tasks."""
    return max(1, min(TOGETHER, panels // 8))


@inlined
def _tasks(panels):
    """Return how many tasks take so many panels."""
    return -(-panels // _together(panels))


@inlined
def _columns(task, x):
    """Return the first column that a task makes of x (N, H, W, C), and the one after its last."""
    width = _together(_panels(x)) * (2 * BYTES // x.itemsize)
    return task * width, min(x.shape[3], (task + 1) * width)


@piece
def _whole_forward(task, weights, windows, tables, work, z, moments):
    """Make some columns of the output and their moments; weights (C * D,) are packed for it."""
    y, D, packed = flat(z), z.shape[3], work.scratch[numba.get_thread_id()]
    C, P, V, zero = weights.size // D, z.size // D, BYTES // z.itemsize, z.dtype.type(0)
    begin, end = _columns(task, z)
    pack_rows(weights, D, 0, C, begin, end, packed)
    for t in range(moments.shape[0]):
        at = t * windows.tile
        pixels = min(P - at, windows.tile)
        pivot = y[(at + 2 * pixels // 3) * D :][:D]
        for n in range(begin, end, 2 * V):
            multiply(
                work.a, at * windows.a_step, tables.windows, tables.taps, windows.a_step, packed, -begin * C, y, at * D,
                tables.out, STORE, packed, zero, zero, pixels, n, D, packed, 0, 0,
            )  # fmt: skip
            _take_moments(y, at * D, pixels, n, vectors_at(n, D, V) * V, pivot, moments[t])


@piece
def _whole_weights(task, windows, tables, work, dw, clears):
    """Add some panels of dw, of all pixels.

    Where the next one will be stored is fetched meanwhile: after the last of a task, that of the task that most often
    follows on the same thread.
    """
    D, panels, rows, y = dw.shape[1], windows.a_panels, windows.a_rows, flat(dw)
    P, together = work.dz.size // D, _together(panels)
    for p in range(0, P, STRETCH):
        pixels = min(STRETCH, P - p)
        step = max(1, ROWS * 2 * (BYTES // y.itemsize) // pixels)  # about a panel, in all steps of k
        for panel in range(task * together, min(panels, (task + 1) * together)):
            _weights_backward(
                panel, work.a, p * windows.a_step, windows.a_step, work.dz, p * windows.dz_step, windows, tables, 1,
                pixels, STORE if clears and p == 0 else ADD, D, dw, y, (panel + 1) * rows * D, step,
            )  # fmt: skip


@piece
def _whole_input(task, source, weights, windows, tables, work, target):
    """Make some columns of the gradient of the input; weights (C * D,) are packed for it."""
    C, packed = source.z.shape[3], work.scratch[numba.get_thread_id()]
    P, D, V = source.z.size // C, weights.size // C, BYTES // source.z.itemsize
    begin, end = _columns(task, source.z)
    for n in range(begin, end, 2 * V):
        pack_class(weights, windows, tables.classes[0], C, D, n, packed, (n - begin) * D)
    for t in range(work.tiles):
        at, sums = t * windows.tile, target.parts[t]
        _clear_columns(sums, begin, end - begin)
        _input_backward(
            work.dz, at * windows.dz_step, packed, -begin * D, windows, tables, at * C, min(P - at, windows.tile), 0, 1,
            begin, end, source, target, sums, work.dz, 0,
        )  # fmt: skip


# ---- the kernels ---------------------------------------------------------------------------------------------------


@prepared
def conv_forward(source, weights, packed, windows, tables, work, z, statistics):
    """Source (N, H, W, C) -> z (N, OH, OW, D), its statistics, and the scale and shift of a BatchNorm after it.

    Reference equation: a = relu.forward(batchnorm.forward(source.z)); z = conv.forward(a, w, stride, padding). weights
    (taps * C, D) are packed first. Where there is work.a, `packed` is the weights as they are: see `_whole_forward`.
    """
    moments = statistics.moments
    if work.a.size > 0:
        in_parallel(CHUNKS, _copy_input, source, windows, work)
        in_parallel(_tasks(_panels(z)), _whole_forward, packed[0], windows, tables, work, z, moments)
    else:
        in_parallel(tasks(weights, packed, windows, tables), pack_task, weights, packed, windows, tables)
        in_parallel(moments.shape[0], _forward, source, packed[0], windows, tables, work, z, moments)
    finish_statistics(statistics)


@prepared
def conv_backward(gradient, source, packed, windows, tables, work, target, grad):
    """Make target.g (N, H, W, C) with its sums, and add to the weights' grad (rows, D), from the gradient of z.

    Reference equation: dz = batchnorm.backward(g, z); da, dW = conv.backward(dz, a, w, stride, padding);
    target.g = relu.backward(da). dz and a are made again from z while the tile is in cache, which is cheaper than to
    have stored them. A group of tiles adds to one of work.parts (groups, taps * C, D). packed: as `conv_forward` left
    it. grad is (0, D) where none is needed.
    target.g may be g of a flat one: a tile of dz is made before the tile of target.g is written.
    """
    make_coefficients(gradient)
    needed, learns = target.g.size > 0, grad.size > 0
    if work.a.size > 0:
        in_parallel(CHUNKS, _copy_input, source, windows, work)
        in_parallel(CHUNKS, _copy_gradient, gradient, windows, work)
        in_parallel(_tasks(windows.a_panels), _whole_weights, windows, tables, work, grad, gradient.clears)
        if needed:
            in_parallel(_tasks(_panels(source.z)), _whole_input, source, packed[0], windows, tables, work, target)
    else:
        groups = work.parts.shape[0]
        in_parallel(groups, _group, gradient, source, packed[-1], windows, tables, work, target, learns)
        if learns:
            in_parallel(CHUNKS, add_parts, work.parts, windows.kernel * windows.columns, grad, gradient.clears)
    if needed:
        total(target.parts, target.sums)
