"""Weights: packed as the products read them, and their partial gradients added up."""

from mbnp.backend import in_parallel, inlined, jit, piece
from mbnp.backend.vectors import BYTES, flat, transpose
from mbnp.ops.matmul import pack, vectors_at

CHUNKS = 16  # of pixels or rows, where nothing else divides them


@piece
def _pack_class(w, windows, kind, C, D, n, packed):
    """Pack columns n ... of the transposed weights of a class of input pixels: rows in the order of dz, C columns."""
    V = BYTES // packed.itemsize
    entries = vectors_at(n, C, V) * V
    u0, nu, v0, nv, at = kind[0], kind[1], kind[2], kind[3], kind[4] * C
    at += n * nu * nv * D
    x = flat(w)
    for s in range(nu):
        u = u0 + (nu - 1 - s) * windows.stride
        for i in range(nv):
            v = v0 + (nv - 1 - i) * windows.stride
            row = ((u * windows.columns + v) * C + n) * D
            for first in range(0, D, V):
                for c in range(0, entries, V):
                    transpose(x, row + c * D + first, D, packed, at + first * entries + c, entries)
            at += D * entries


@inlined
def panels(weights, packed, windows, tables):
    """Return how many panels there are: of weights, and where `packed` has room, of the transposed ones."""
    entries, D = 2 * BYTES // weights.itemsize, weights.shape[1]
    C = weights.shape[0] // (windows.kernel * windows.columns)
    return -(-D // entries) + (packed.shape[0] - 1) * tables.classes.shape[0] * -(-C // entries)


@piece
def pack_panel(p, weights, packed, windows, tables):
    """Pack one panel of weights (taps * C, D) as forward reads them, or of each class of input pixels' for backward."""
    entries, D = 2 * BYTES // weights.itemsize, weights.shape[1]
    C = weights.shape[0] // (windows.kernel * windows.columns)
    forward, backward = -(-D // entries), -(-C // entries)
    if p < forward:
        pack(weights, p * entries, D, packed[0])
    else:
        k, n = (p - forward) // backward, (p - forward) % backward
        _pack_class(weights, windows, tables.classes[k], C, D, n * entries, packed[-1])


@jit(literal=True)
def pack_weights(weights, packed, windows, tables):
    """Pack weights (taps * C, D) that have changed between forward and backward: into packed (1 or 2, taps * C * D)."""
    in_parallel(panels(weights, packed, windows, tables), pack_panel, weights, packed, windows, tables)


@piece
def add_parts(k, parts, taps, grad):
    """Add the sum of the k-th part of all rows of parts (groups, stored rows, stored D) to those of grad (rows, D).

    Each tap may have padded channels in parts, and has none in grad.
    """
    rows, stored, channels = grad.shape[0], parts.shape[1] // taps, grad.shape[0] // taps
    for row in range(k * rows // CHUNKS, (k + 1) * rows // CHUNKS):
        out = grad[row]
        for t in range(parts.shape[0]):
            part = parts[t, row // channels * stored + row % channels]
            for i in range(out.size):
                out[i] += part[i]
