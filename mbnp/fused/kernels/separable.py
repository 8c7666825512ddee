"""Inference: BatchNorm is folded into the weights, and outputs are stored padded, as their reader wants them."""

import numba
from numba import prange

from mbnp.backend import jit, piece
from mbnp.fused.kernels.depthwise import depthwise_rows
from mbnp.fused.kernels.pointwise import product
from mbnp.fused.kernels.vectors import BYTES, clip, load, store


@piece
def _store_panel(tile, b, channel, B, limits, OH, OW, first, last, out, above, before):
    """clip(tile + b), tile (rows*OW*B,): channels from `channel` on of output rows first to last, to their place."""
    D, row, rows = b.size, out.shape[2], out.shape[1]
    low, high = limits[0], limits[1]
    y, inside = out.ravel(), min(OW, row // D - before)
    for c in range(0, B, BYTES // out.itemsize):
        bias = load(b, channel + c)
        for r in range(first, last):
            n, i = r // OH, above + r % OH
            if i < rows:
                k, o = (r - first) * OW * B + c, (n * rows + i) * row + before * D + channel + c
                for _ in range(inside):
                    store(clip(load(tile, k) + bias, low, high), y, o)
                    k, o = k + B, o + D


@piece
def _separable_inference(
    x, taps, limits_d, stride, OH, OW, wp, bp, limits_p, first, last, first_panel, last_panel, scratch, out, above,
    before,
):  # fmt: skip
    C, B = wp.shape[1:]
    pixels = (last - first) * OW
    a, tile = scratch[: pixels * C], scratch[pixels * C : pixels * (C + B)].reshape((pixels, B))
    rows = a.reshape((last - first, OW * C))
    for n in range(first // OH, (last - 1) // OH + 1):
        begin, end = max(first, n * OH), min(last, (n + 1) * OH)
        part = rows[begin - first : end - first]
        depthwise_rows(taps, limits_d, x[n], stride, begin - n * OH, end - n * OH, part)
    for panel in range(first_panel, last_panel):
        product(a.reshape((pixels, C)), wp[panel], tile)
        _store_panel(tile.ravel(), bp, panel * B, B, limits_p, OH, OW, first, last, out, above, before)


@jit(parallel=True)
def separable_inference(x, taps, limits_d, stride, OH, OW, wp, bp, limits_p, rows, panels, scratch, out, above, before):
    """x (N, PH, PW*C), padded -> out (N, QH, QW*D), padded. Law: relu(pointwise(relu(depthwise(x, wd, bd)), wp, bp)).

    taps (10, C) are wd and bd. The pointwise weights come as panels of output channels, wp (D / B, C, B). A task is
    `rows` output rows, counted over the whole batch so that small maps share one matrix product, by `panels` panels.
    What the depthwise convolution makes of the task's rows goes straight into the products.
    """
    shares, total = wp.shape[0] // panels, x.shape[0] * OH
    tasks = -(-total // rows)
    for t in prange(tasks * shares):
        first, share = t // shares * rows, t % shares
        _separable_inference(
            x, taps, limits_d, stride, OH, OW, wp, bp, limits_p, first, min(total, first + rows),
            share * panels, (share + 1) * panels, scratch[numba.get_thread_id()], out, above, before,
        )  # fmt: skip
