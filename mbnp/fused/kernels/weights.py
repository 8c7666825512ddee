"""Weights: packed as the products read them, and their partial gradients added up."""

from mbnp.backend import in_parallel, inlined, piece, prepared
from mbnp.backend.vectors import BYTES, flat, load, store, transpose
from mbnp.ops.matmul import vectors_at

CHUNKS = 16  # of pixels or rows, where nothing else divides them


@piece
def pack_class(x, windows, kind, C, D, n, packed, at):
    """Pack columns n ... of the transposed weights of a class of input pixels: rows in the order of dz, C columns."""
    V = BYTES // packed.itemsize
    entries = vectors_at(n, C, V) * V
    u0, nu, v0, nv = kind[0], kind[1], kind[2], kind[3]
    for s in range(nu):
        u = u0 + (nu - 1 - s) * windows.stride
        for i in range(nv):
            v = v0 + (nv - 1 - i) * windows.stride
            row = ((u * windows.columns + v) * C + n) * D
            for first in range(0, D, V):
                for c in range(0, entries, V):
                    transpose(x, row + c * D + first, D, packed, at + first * entries + c, entries)
            at += D * entries


@piece
def pack_rows(x, D, first, last, begin, end, packed):
    """Pack columns begin to end of rows first to last of weights (K * D,); packed has no others of the columns.

    By rows, since those of a panel are far apart.
    """
    K, V = x.size // D, BYTES // packed.itemsize
    for k in range(first, last):
        for n in range(begin, end, 2 * V):
            entries = vectors_at(n, D, V) * V
            for i in range(0, entries, V):
                store(load(x, k * D + n + i), packed, (n - begin) * K + k * entries + i)


@inlined
def tasks(weights, packed, windows, tables):
    """Return how many tasks packing is: chunks of rows, and where there is room, panels of the transposed weights."""
    C = weights.shape[0] // (windows.kernel * windows.columns)
    return CHUNKS + (packed.shape[0] - 1) * tables.classes.shape[0] * -(-C // (2 * BYTES // weights.itemsize))


@piece
def pack_task(t, weights, packed, windows, tables):
    """Pack a chunk of weights (taps * C, D) as forward reads them, or a panel of a class of input pixels' for backward.

    D is whole vectors.
    """
    (K, D), entries = weights.shape, 2 * BYTES // weights.itemsize
    if t < CHUNKS:
        pack_rows(flat(weights), D, t * K // CHUNKS, (t + 1) * K // CHUNKS, 0, D, packed[0])
    else:
        C = K // (windows.kernel * windows.columns)
        k, n = divmod(t - CHUNKS, -(-C // entries))
        kind, n = tables.classes[k], n * entries
        at = kind[4] * C + n * kind[1] * kind[3] * D
        pack_class(flat(weights), windows, kind, C, D, n, packed[-1], at)


@prepared
def pack_weights(weights, packed, windows, tables):
    """Pack weights (taps * C, D) that have changed between forward and backward: into packed (1 or 2, taps * C * D)."""
    in_parallel(tasks(weights, packed, windows, tables), pack_task, weights, packed, windows, tables)


@piece
def add_parts(k, parts, taps, grad, clears):
    """Add the sum of the k-th part of all rows of parts (groups, stored rows, stored D) to those of grad (rows, D).

    Each tap may have padded channels in parts, and has none in grad. clears: it takes their place.
    """
    rows, stored, channels = grad.shape[0], parts.shape[1] // taps, grad.shape[0] // taps
    for row in range(k * rows // CHUNKS, (k + 1) * rows // CHUNKS):
        out = grad[row]
        if clears:
            out[:] = 0
        for t in range(parts.shape[0]):
            part = parts[t, row // channels * stored + row % channels]
            for i in range(out.size):
                out[i] += part[i]
