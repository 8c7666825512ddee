"""Standard convolution: every output channel sees every input channel through a kernel.

    y[n, i, j, d] = sum_{u, v, c} x[n, p, q, c] w[u, v, c, d] + b[d]

with p = i*SH + u - top and q = j*SW + v - left, the pixel that tap (u, v) looks at; outside, x counts as 0, beside
weights that are not finite, too (0 times infinity is NaN), and likewise beside dy in dw.
x (N, H, W, C), w (KH, KW, C, D), b (D,), y (N, OH, OW, D). (Mathematicians call this a correlation: their
convolution turns the kernel by 180 degrees.)

Every product x w is added to one output, so that its derivative is that output's dy:

    db[d]          = sum_{n, i, j} dy[n, i, j, d]
    dw[u, v, c, d] = sum_{n, i, j} x[n, p, q, c] dy[n, i, j, d]
    dx[n, p, q, c] = sum over d, and all (i, j, u, v) that look at (p, q), of dy[n, i, j, d] w[u, v, c, d]

Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998; columns (im2col):
Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing",
2006.
"""

import numba
import numpy as np

from mbnp import backend
from mbnp.backend.vectors import BYTES, padded
from mbnp.ops import checks, matmul
from mbnp.ops.window import Margin, Size, crop, lay_out, pad, resolve, tap

# --- loops: the definition ---


def forward_loops(x, w, b, stride, padding):
    N, H, W, C = x.shape
    KH, KW, _, D = w.shape
    (SH, SW), ((top, bottom), (left, right)) = stride, padding
    OH = (top + H + bottom - KH) // SH + 1
    OW = (left + W + right - KW) // SW + 1
    y = np.zeros((N, OH, OW, D), x.dtype)
    for n in range(N):
        for i in range(OH):
            for j in range(OW):
                for d in range(D):
                    for u in range(KH):
                        for v in range(KW):
                            p, q = i * SH + u - top, j * SW + v - left
                            if 0 <= p < H and 0 <= q < W:
                                for c in range(C):
                                    y[n, i, j, d] += x[n, p, q, c] * w[u, v, c, d]
                    if b is not None:
                        y[n, i, j, d] += b[d]
    return y


def backward_loops(dy, x, w, stride, padding):
    N, H, W, C = x.shape
    KH, KW, _, D = w.shape
    _, OH, OW, _ = dy.shape
    (SH, SW), ((top, _), (left, _)) = stride, padding
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(D, x.dtype)
    for n in range(N):
        for i in range(OH):
            for j in range(OW):
                for d in range(D):
                    for u in range(KH):
                        for v in range(KW):
                            p, q = i * SH + u - top, j * SW + v - left
                            if 0 <= p < H and 0 <= q < W:
                                for c in range(C):
                                    dx[n, p, q, c] += dy[n, i, j, d] * w[u, v, c, d]
                                    dw[u, v, c, d] += x[n, p, q, c] * dy[n, i, j, d]
                    db[d] += dy[n, i, j, d]
    return dx, dw, db


# --- NumPy: one matrix product, after every window has been laid out as a row (im2col) ---


def _columns(x, KH, KW, stride, padding, out):
    """Lay out each output pixel's window as one row: (N*OH*OW, KH*KW*C)."""
    padded = pad(x, padding)
    taps = [tap(padded, u, v, stride, out) for u, v in np.ndindex(KH, KW)]
    return np.stack(taps, axis=3).reshape(-1, KH * KW * x.shape[3])  # nij(uv)c -> mk


def forward_numpy(x, w, b, stride, padding):
    KH, KW, _, D = w.shape
    _, _, out = resolve(x, (KH, KW), stride, padding)
    y = _columns(x, KH, KW, stride, padding, out) @ w.reshape(-1, D)  # mk, kd -> md
    if b is not None:
        y += b
    return y.reshape(len(x), *out, D)


def backward_numpy(dy, x, w, stride, padding):
    KH, KW, C, D = w.shape
    N, OH, OW, _ = dy.shape
    rows = dy.reshape(-1, D)
    dw = _columns(x, KH, KW, stride, padding, (OH, OW)).T @ rows  # mk, md -> kd
    dcolumns = (rows @ w.reshape(-1, D).T).reshape(N, OH, OW, KH, KW, C)  # md, kd -> mk
    dpadded = pad(np.zeros_like(x), padding)
    for u, v in np.ndindex(KH, KW):
        dtap = tap(dpadded, u, v, stride, (OH, OW))
        dtap += dcolumns[:, :, :, u, v]  # every tap's gradient back to where it looked (col2im)
    db = rows.sum(axis=0, dtype=np.float64).astype(x.dtype)
    return crop(dpadded, padding), dw.reshape(w.shape), db


# --- Numba: the same, a few images at a time ---
#
# All columns at once are KH*KW times the input, more than the cache holds. Those of a chunk of images are not, and
# threads work on chunks. Each multiplies by the kernel of matmul.py.


@backend.jit
def _chunks(N, M):
    """Return the number of chunks that N images with M = N*OH*OW windows are cut into; see matmul.py."""
    return min(N, matmul.chunks(M))


@backend.jit
def _fill_columns(x, columns, SH, SW, top, left):
    """Set columns[n, i, j, u, v, c] = x[n, p, q, c]; what lies outside x stays 0."""
    _, H, W, C = x.shape
    N, OH, OW, KH, KW, _ = columns.shape
    for n in range(N):
        for i in range(OH):
            for u in range(KH):
                p = i * SH + u - top
                if 0 <= p < H:
                    for j in range(OW):
                        for v in range(KW):
                            q = j * SW + v - left
                            if 0 <= q < W:
                                for c in range(C):
                                    columns[n, i, j, u, v, c] = x[n, p, q, c]


def forward_numba(x, w, b, stride, padding):
    N = len(x)
    *_, D = w.shape
    _, _, (OH, OW) = resolve(x, w.shape[:2], stride, padding)
    y = np.empty((N, OH, OW, padded(D, x.dtype)), x.dtype)
    b = np.zeros(y.shape[-1], x.dtype) if b is None else matmul.fill_vectors(b)
    with backend.one_pool():
        _forward_kernel(x, w, b, stride, padding, y)
    return np.ascontiguousarray(y[..., :D])


@backend.jit(parallel=True, literal=True)
def _forward_kernel(x, w, b, stride, padding, y):
    KH, KW, C, D = w.shape
    N, OH, OW, stored = y.shape
    (SH, SW), ((top, _), (left, _)) = stride, padding
    K = KH * KW * C
    packed = np.empty(K * stored, x.dtype)
    entries = 2 * BYTES // x.itemsize  # of a panel's row
    for p in numba.prange(-(-stored // entries)):
        matmul.pack(w.reshape(K, D), p * entries, stored, packed)
    chunks = _chunks(N, N * OH * OW)
    for chunk in numba.prange(chunks):
        start, stop = chunk * N // chunks, (chunk + 1) * N // chunks
        columns = np.zeros((stop - start, OH, OW, KH, KW, C), x.dtype)
        _fill_columns(x[start:stop], columns, SH, SW, top, left)
        matmul.product(columns.reshape(-1, K), packed, b, y[start:stop].reshape(-1, stored))


def backward_numba(dy, x, w, stride, padding):
    D = w.shape[3]
    dx = np.zeros_like(x)
    with backend.one_pool():
        dw, db = _backward_kernel(matmul.fill_vectors(dy), x, w, stride, padding, dx)
    dw, db = (partial.sum(axis=0, dtype=np.float64).astype(x.dtype)[..., :D] for partial in (dw, db))
    return dx, dw.reshape(w.shape), db.copy()


@backend.jit(parallel=True, literal=True)
def _backward_kernel(dy, x, w, stride, padding, dx):
    KH, KW, C, D = w.shape
    N, OH, OW, stored = dy.shape
    (SH, SW), ((top, _), (left, _)) = stride, padding
    K = KH * KW * C
    entries = 2 * BYTES // x.itemsize  # of a panel's row
    across = -(-K // (entries // 2)) * (entries // 2)  # the columns' gradient, rounded up to vectors
    packed, no_bias = np.empty(stored * across, x.dtype), np.zeros(across, x.dtype)
    w_t = np.zeros((stored, K), x.dtype)
    w_t[:D] = w.reshape(K, D).T
    for p in numba.prange(-(-across // entries)):
        matmul.pack(w_t, p * entries, across, packed)
    chunks = _chunks(N, N * OH * OW)
    dw = np.empty((chunks, K, stored), x.dtype)  # partial gradients, one a chunk; the caller adds them up
    db = np.zeros((chunks, stored))
    for chunk in numba.prange(chunks):
        start, stop = chunk * N // chunks, (chunk + 1) * N // chunks
        columns = np.zeros((stop - start, OH, OW, KH, KW, C), x.dtype)
        _fill_columns(x[start:stop], columns, SH, SW, top, left)
        rows = dy[start:stop].reshape(-1, stored)
        matmul.product_transposed(columns.reshape(-1, K), rows, dw[chunk])
        for m in range(len(rows)):
            for d in range(stored):
                db[chunk, d] += rows[m, d]
        dcolumns = np.empty((len(rows), across), x.dtype)
        matmul.product(rows, packed, no_bias, dcolumns)
        _add_columns(dcolumns, (KH, KW), (OH, OW), dx[start:stop], SH, SW, top, left)
    return dw, db


@backend.jit
def _add_columns(dcolumns, kernel, out, dx, SH, SW, top, left):
    """Add dcolumns[(n, i, j), (u, v, c)] to dx[n, p, q, c]: the transpose of _fill_columns."""
    N, H, W, C = dx.shape
    (KH, KW), (OH, OW) = kernel, out
    for n in range(N):
        for i in range(OH):
            for u in range(KH):
                p = i * SH + u - top
                if 0 <= p < H:
                    for j in range(OW):
                        row = (n * OH + i) * OW + j
                        for v in range(KW):
                            q = j * SW + v - left
                            if 0 <= q < W:
                                for c in range(C):
                                    dx[n, p, q, c] += dcolumns[row, (u * KW + v) * C + c]


# --- the public pair ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numba)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy, numba=backward_numba)


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, stride: Size = 1, padding: Margin = 0
) -> np.ndarray:
    """Return y (N, OH, OW, D) from x (N, H, W, C), w (KH, KW, C, D) and b (D,) or None.

    stride: a number or (vertical, horizontal); padding: a number, ((top, bottom), (left, right)), or "same"
    for TensorFlow's. MbnpError for channels that do not match, or a kernel larger than the padded input.
    """
    x, w, b = checks.operands(x, w, b, "(N, H, W, C)", "(KH, KW, C, D)")
    stride, padding, _ = resolve(x, w.shape[:2], stride, padding)
    x, padding = lay_out(x, padding, w)
    return _forward(x, w, b, stride, padding)


def backward(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray, stride: Size = 1, padding: Margin = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return dx, dw, db from dy (N, OH, OW, D) and what went into `forward`."""
    x, w, _ = checks.operands(x, w, None, "(N, H, W, C)", "(KH, KW, C, D)")
    stride, padding, out = resolve(x, w.shape[:2], stride, padding)
    dy = checks.gradient(dy, (len(x), *out, w.shape[3]), x)
    dx, dw, db = _backward(dy, x, w, stride, padding)
    laid_out, no_padding = lay_out(x, padding, db)  # db, a sum of all dy, is finite only if they are
    if laid_out is not x:
        _, dw, _ = _backward(dy, laid_out, w, stride, no_padding)
    return dx, dw, db
