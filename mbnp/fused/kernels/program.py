"""Inference: a whole network as one call, a table of steps that one kernel walks through.

BatchNorm is folded into the weights, and feature maps are stored activated, with a margin of zeros as wide as their
consumers' padding. So a standard convolution multiplies them where they lie: its windows are rows of the left matrix by
their offsets alone. A depthwise convolution and the pointwise one after it are one step: what the first makes of a few
rows goes straight into the product.

Each step is a record of numbers; all feature maps are in one array, all weights in another, all tables in a third.
"""

import numba
import numpy as np

from mbnp.backend import in_parallel, inlined, jit, piece
from mbnp.backend.tiles import CLIP
from mbnp.backend.vectors import BYTES, accumulate, clip, copy, load, store, where_larger
from mbnp.fused.kernels.arrays import Activation
from mbnp.fused.kernels.batchnorm import activation, hard_swish
from mbnp.fused.kernels.depthwise import Window, any_rows, convolve_row, nine
from mbnp.fused.kernels.largest import Pool, inside
from mbnp.ops.matmul import ROWS, multiply

COPY, CONV, DEPTHWISE, SEPARABLE, SUM, AVERAGE, LARGEST, ACTIVATION, GATE = range(9)

# Where in the arrays a feature map begins, and from where to where its images and rows are apart: source, second (of a
# sum or a gate) and out. Offsets of weights, biases and tables. Geometry, and channels of zeros before those of a
# LARGEST. Depthwise of a SEPARABLE: depth_*.
_WHOLE = """
kind tasks images group band bands shares
source source_image source_row H W C second second_image second_row out out_image out_row OH OW D
weights bias kernel columns stride top left before swish depth_swish
depth_weights depth_kernel depth_stride depth_top depth_left
rows_at taps_at out_at
"""
_FIELDS: list[tuple[str, type]] = [(name, np.int64) for name in _WHOLE.split()]
_FIELDS += [(name, np.float64) for name in ("low", "high", "depth_low", "depth_high")]
GEOMETRY = "kernel", "columns", "stride", "top", "left"
STEP = np.dtype((np.record, _FIELDS))  # whose fields are attributes, in Python too


@inlined
def _images_and_rows(step, tile):
    """Return the images and the rows of output of a tile."""
    if step.bands > 1:
        n, first = tile // step.bands, tile % step.bands * step.band
        return n, n + 1, first, min(step.OH, first + step.band)
    return tile * step.group, min(step.images, (tile + 1) * step.group), 0, step.OH


@piece
def _copy(step, t, x, data):
    """Copy a band of rows of x (N*H*W*C,) to where its reader finds it; further channels stay zero."""
    H, W, C, D = step.H, step.W, step.C, step.D
    n, band = t // step.bands, t % step.bands
    for h in range(band * H // step.bands, (band + 1) * H // step.bands):
        at, o = (n * H + h) * W * C, step.out + n * step.out_image + h * step.out_row
        if C == D:
            copy(x, at, W * C, data, o)
        else:
            for w in range(W):
                for c in range(C):
                    data[o + w * D + c] = x[at + w * C + c]


@piece
def _depthwise(step, taps, n0, n1, first, last, data, out, o, out_image, out_row):
    """out from o on = the activated convolution of rows first to last of images n0 to n1; taps end in the bias."""
    C, OW = step.C, step.OW
    V, K, S = BYTES // data.itemsize, step.depth_kernel, step.depth_stride
    applied = Activation(data, data.dtype.type(step.depth_low), data.dtype.type(step.depth_high), step.depth_swish > 0)
    window = Window(K, S, 0, 0)
    row = step.source_row
    # Row by row, since the vectors of a row are neighbours in memory.
    for n in range(n0, n1):
        begin = step.source + n * step.source_image - step.depth_top * row - step.depth_left * C
        for r in range(first, last):
            at, i = o + (n - n0) * out_image + (r - first) * out_row, begin + r * S * row
            for c in range(0, C, V):
                bias = load(taps[K * K], c)
                if K == 3:
                    k = i + c
                    convolve_row(
                        nine(taps, c), True, bias, applied, bias, data, k, k + row, k + 2 * row, C, S, OW, out, at + c,
                        C,
                    )  # fmt: skip
                else:
                    any_rows(taps, data, begin + c, row, C, window, r, r + 1, OW, c, out, at + c, out_row, C)
                    for k in range(at + c, at + c + OW * C, C):
                        store(activation(load(out, k) + bias, applied), out, k)


@piece(allocates=True)
def _taps(step, weights):
    """Return the taps of a depthwise convolution, and its bias, (K*K + 1, C)."""
    rows = step.depth_kernel * step.depth_kernel + 1
    return weights[step.depth_weights : step.depth_weights + rows * step.C].reshape((rows, step.C))


@piece(allocates=True)
def _conv(step, t, tables, weights, data, scratch):
    n0, n1, first, last = _images_and_rows(step, t // step.shares)
    pixels, run = (n1 - n0) * (last - first) * step.OW, step.columns * step.C
    V = BYTES // data.itemsize
    low, high = data.dtype.type(step.low), data.dtype.type(step.high)
    bias = weights[step.bias : step.bias + step.D]
    rows, out_rows = tables[step.rows_at :], tables[step.out_at :]
    taps = tables[step.taps_at : step.taps_at + step.kernel]
    o = step.out + n0 * step.out_image + first * step.out_row
    if step.kind == SEPARABLE:
        row = step.OW * step.C
        _depthwise(step, _taps(step, weights), n0, n1, first, last, data, scratch, 0, (last - first) * row, row)
    top, before = first * step.stride - step.top, step.left * step.C
    at = step.source + n0 * step.source_image + top * step.source_row - before
    panels, share = -(-step.D // (2 * V)), t % step.shares
    # While a panel is multiplied, fetch the next one's weights: of wide layers they are not in the cache.
    depth, ahead = step.kernel * run, -(-ROWS * 2 * V // max(pixels, ROWS))
    for p in range(share * panels // step.shares, (share + 1) * panels // step.shares):
        n = p * 2 * V
        soon = step.weights + (n + 2 * V) * depth
        if step.kind == SEPARABLE:
            multiply(
                scratch, 0, rows, taps, run, weights, step.weights, data, o, out_rows, CLIP, bias, low, high, pixels, n,
                step.D, weights, soon, ahead,
            )  # fmt: skip
        else:
            multiply(
                data, at, rows, taps, run, weights, step.weights, data, o, out_rows, CLIP, bias, low, high, pixels, n,
                step.D, weights, soon, ahead,
            )  # fmt: skip
        if step.swish > 0:
            _swish(data, o + n, out_rows, pixels, min(2 * V, step.D - n))


@piece
def _swish(data, o, out_rows, pixels, entries):
    """Hard-swish, in place, of the columns that have just been multiplied."""
    for c in range(0, entries, BYTES // data.itemsize):
        for r in range(pixels):
            k = o + out_rows[r] + c
            store(hard_swish(load(data, k), data), data, k)


@piece
def _sum(step, n, data):
    low, high = data.dtype.type(step.low), data.dtype.type(step.high)
    for r in range(step.OH):
        i = step.source + n * step.source_image + r * step.source_row
        j = step.second + n * step.second_image + r * step.second_row
        o = step.out + n * step.out_image + r * step.out_row
        for k in range(0, step.OW * step.D, BYTES // data.itemsize):
            store(clip(load(data, i + k) + load(data, j + k), low, high), data, o + k)


@piece
def _activate(step, n, data):
    applied = Activation(data, data.dtype.type(step.low), data.dtype.type(step.high), step.swish > 0)
    for r in range(step.OH):
        i = step.source + n * step.source_image + r * step.source_row
        o = step.out + n * step.out_image + r * step.out_row
        for k in range(0, step.OW * step.D, BYTES // data.itemsize):
            store(activation(load(data, i + k), applied), data, o + k)


@piece
def _gate(step, n, data):
    s = step.second + n * step.second_image
    for r in range(step.OH):
        i = step.source + n * step.source_image + r * step.source_row
        o = step.out + n * step.out_image + r * step.out_row
        for k in range(0, step.OW * step.D, step.D):
            for c in range(0, step.D, BYTES // data.itemsize):
                store(load(data, i + k + c) * load(data, s + c), data, o + k + c)


@piece(allocates=True)
def _average(step, n, data):
    C = step.C
    sums = np.zeros(C)
    for h in range(step.H):
        at = step.source + n * step.source_image + h * step.source_row
        for c in range(0, C, BYTES // data.itemsize):
            value = load(data, at + c)
            for k in range(at + C + c, at + step.W * C + c, C):
                value = value + load(data, k)
            accumulate(value, sums, c)
    for c in range(C):
        data[step.out + n * step.out_image + c] = sums[c] / (step.H * step.W)


@piece
def _largest(step, n, data):
    C = step.C
    pool = Pool(step.kernel, step.columns, step.stride, step.top, step.left, step.before)
    for i in range(step.OH):
        for j in range(step.OW):
            p0, p1, q0, q1 = inside(pool, i, j, step.H, step.W)
            o = step.out + n * step.out_image + i * step.out_row + j * step.D + pool.before
            for c in range(0, C, BYTES // data.itemsize):
                at = step.source + n * step.source_image + p0 * step.source_row + q0 * C + c
                value = load(data, at)
                for p in range(p1 - p0):
                    for k in range(at + p * step.source_row, at + p * step.source_row + (q1 - q0) * C, C):
                        value = where_larger(load(data, k), value, load(data, k), value)
                store(value, data, o + c)


@piece(allocates=True)
def _run_task(t, program, i, tables, weights, data, threads, x):
    step, scratch = program[i], threads[numba.get_thread_id()]
    if step.kind == COPY:
        _copy(step, t, x, data)
    elif step.kind == DEPTHWISE:
        n0, n1, first, last = _images_and_rows(step, t)
        at = step.out + n0 * step.out_image + first * step.out_row
        taps = _taps(step, weights)
        _depthwise(step, taps, n0, n1, first, last, data, data, at, step.out_image, step.out_row)
    elif step.kind == SUM:
        _sum(step, t, data)
    elif step.kind == AVERAGE:
        _average(step, t, data)
    elif step.kind == LARGEST:
        _largest(step, t, data)
    elif step.kind == ACTIVATION:
        _activate(step, t, data)
    elif step.kind == GATE:
        _gate(step, t, data)
    else:
        _conv(step, t, tables, weights, data, scratch)


@piece(allocates=True)
def _run_images(k, program, tables, weights, lanes, threads, x, starts, out):
    """Run all steps for the images from starts[k] on, and leave what the last step makes of them in out."""
    data, size = lanes[numba.get_thread_id()], x.size // out.shape[0]
    for i in range(program.size):
        for t in range(program[i].tasks):
            _run_task(t, program, i, tables, weights, data, threads, x[starts[k] * size :])
    last = program[program.size - 1]
    for n in range(last.images):
        for r in range(last.OH):
            at = last.out + n * last.out_image + r * last.out_row
            for j in range(last.OW):
                for c in range(out.shape[3]):
                    out[starts[k] + n, r, j, c] = data[at + j * last.D + c]


@jit(literal=True)
def run_program(program, tables, weights, lanes, scratch, x, starts, out):
    """Run the steps of a program (steps,), one after another; x (N*H*W*C,) are the images.

    Of few images every step is divided among all threads. Where there are several `starts`, a thread takes all steps
    for the images from one of them on, in a lane of memory of its own, and leaves them in out (N, OH, OW, D): no thread
    waits for another, and what a step writes is read by the same core.

    Reference equation: of each step, what its layers compute in inference.
    """
    if starts.size > 1:
        in_parallel(starts.size, _run_images, program, tables, weights, lanes, scratch, x, starts, out)
        return
    for i in range(program.size):
        in_parallel(program[i].tasks, _run_task, program, i, tables, weights, lanes[0], scratch, x)
