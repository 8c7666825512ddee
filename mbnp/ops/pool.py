"""Pooling: the largest value of a window, or its mean, channel by channel; and the mean of the whole feature map.

Windows stand as in a convolution: p = i*SH + u - top, q = j*SW + v - left.

    max      y[n, i, j, c] = max_{u, v} x[n, p, q, c]                    outside counts as minus infinity
    average  y[n, i, j, c] = sum_{u, v} x[n, p, q, c] / count[i, j]      outside counts as 0
    global   y[n, c]       = sum_{p, q} x[n, p, q, c] / (H*W)

count is KH*KW, or, without count_padding, how many of the window's pixels lie inside (TensorFlow's way;
PyTorch calls the option count_include_pad).

Backward. A maximum moves with the one pixel that it is, so that pixel gets all of dy (of several equal ones
the first, row by row, as in PyTorch). A mean moves with each of its pixels, by 1/count:

    max      dx[n, p, q, c] = sum of dy[n, i, j, c] over the windows that (p, q) won
    average  dx[n, p, q, c] = sum of dy[n, i, j, c] / count[i, j] over the windows that (p, q) is in
    global   dx[n, p, q, c] = dy[n, c] / (H*W)

NaN wins every maximum, so that it shows, and the last of several NaNs gets the gradient, as in PyTorch. Where all of
a window is -inf, that is its maximum, and the first pixel inside x gets the gradient.

Padding may be up to the window's size less one, so that every window sees a pixel. PyTorch refuses more than half of
the window; one-sided padding and files of other frameworks need it.

Source: Goodfellow, Bengio and Courville, "Deep Learning", section 9.3; global: Lin, Chen and Yan, "Network in
Network", arXiv:1312.4400, section 3.2.
"""

import numpy as np

from mbnp import backend
from mbnp.errors import MbnpError
from mbnp.ops import checks
from mbnp.ops.window import Margin, Padding, Pair, Size, crop, pad, pair, resolve, tap

# --- max: loops, which are also what Numba compiles, and NumPy ---


def max_forward_loops(x, size, stride, padding):
    N, H, W, C = x.shape
    (KH, KW), (SH, SW), ((top, bottom), (left, right)) = size, stride, padding
    OH = (top + H + bottom - KH) // SH + 1
    OW = (left + W + right - KW) // SW + 1
    y = np.full((N, OH, OW, C), -np.inf, x.dtype)
    for n in range(N):
        for i in range(OH):
            for j in range(OW):
                for u in range(KH):
                    for v in range(KW):
                        p, q = i * SH + u - top, j * SW + v - left
                        if 0 <= p < H and 0 <= q < W:
                            for c in range(C):
                                if x[n, p, q, c] > y[n, i, j, c] or np.isnan(x[n, p, q, c]):
                                    y[n, i, j, c] = x[n, p, q, c]
    return y


def max_backward_loops(dy, x, size, stride, padding):
    N, H, W, C = x.shape
    _, OH, OW, _ = dy.shape
    (KH, KW), (SH, SW), ((top, _), (left, _)) = size, stride, padding
    dx = np.zeros_like(x)
    for n in range(N):
        for i in range(OH):
            for j in range(OW):
                for c in range(C):
                    p_max, q_max, largest = -1, -1, x[n, 0, 0, c]
                    for u in range(KH):
                        for v in range(KW):
                            p, q = i * SH + u - top, j * SW + v - left
                            if 0 <= p < H and 0 <= q < W:
                                a = x[n, p, q, c]
                                if p_max < 0 or a > largest or np.isnan(a):
                                    p_max, q_max, largest = p, q, a
                    dx[n, p_max, q_max, c] += dy[n, i, j, c]
    return dx


def max_forward_numpy(x, size, stride, padding):
    _, _, out = resolve(x, size, stride, padding)
    padded = pad(x, padding, -np.inf)
    return np.max([tap(padded, u, v, stride, out) for u, v in np.ndindex(size)], axis=0)  # (uv)nijc -> nijc


def max_backward_numpy(dy, x, size, stride, padding):
    out = dy.shape[1:3]
    padded = pad(x, padding, -np.inf)
    inside = pad(np.ones((1, *x.shape[1:3], 1), bool), padding, False)  # a window may have nothing but -inf inside, too
    largest, winner = np.full_like(dy, -np.inf), np.full(dy.shape, -1)
    for k, (u, v) in enumerate(np.ndindex(size)):
        a = tap(padded, u, v, stride, out)
        wins = tap(inside, u, v, stride, out) & ((winner < 0) | (a > largest) | np.isnan(a))
        largest, winner = np.where(wins, a, largest), np.where(wins, k, winner)
    dpadded = np.zeros_like(padded)
    for k, (u, v) in enumerate(np.ndindex(size)):
        dtap = tap(dpadded, u, v, stride, out)
        dtap += np.where(winner == k, dy, 0)
    return crop(dpadded, padding)


# --- average: the same two ---


def average_forward_loops(x, size, stride, padding, count_padding):
    N, H, W, C = x.shape
    (KH, KW), (SH, SW), ((top, bottom), (left, right)) = size, stride, padding
    OH = (top + H + bottom - KH) // SH + 1
    OW = (left + W + right - KW) // SW + 1
    y = np.zeros((N, OH, OW, C), x.dtype)
    for n in range(N):
        for i in range(OH):
            for j in range(OW):
                count = 0
                for u in range(KH):
                    for v in range(KW):
                        p, q = i * SH + u - top, j * SW + v - left
                        if 0 <= p < H and 0 <= q < W:
                            count += 1
                            for c in range(C):
                                y[n, i, j, c] += x[n, p, q, c]
                for c in range(C):
                    y[n, i, j, c] /= KH * KW if count_padding else count
    return y


def average_backward_loops(dy, x, size, stride, padding, count_padding):
    N, H, W, C = x.shape
    _, OH, OW, _ = dy.shape
    (KH, KW), (SH, SW), ((top, _), (left, _)) = size, stride, padding
    dx = np.zeros_like(x)
    for n in range(N):
        for i in range(OH):
            rows = min(i * SH - top + KH, H) - max(i * SH - top, 0)  # how many of the window's lie inside
            for j in range(OW):
                columns = min(j * SW - left + KW, W) - max(j * SW - left, 0)
                count = KH * KW if count_padding else rows * columns
                for u in range(KH):
                    for v in range(KW):
                        p, q = i * SH + u - top, j * SW + v - left
                        if 0 <= p < H and 0 <= q < W:
                            for c in range(C):
                                dx[n, p, q, c] += dy[n, i, j, c] / count
    return dx


def _count(x, size, stride, padding, out, count_padding):
    """Return what each window divides by, (1, OH, OW, 1): the window sum of ones."""
    ones = pad(np.ones((1, *x.shape[1:3], 1), x.dtype), padding, float(count_padding))
    return sum(tap(ones, u, v, stride, out) for u, v in np.ndindex(size))


def average_forward_numpy(x, size, stride, padding, count_padding):
    _, _, out = resolve(x, size, stride, padding)
    padded = pad(x, padding)
    total = sum(tap(padded, u, v, stride, out) for u, v in np.ndindex(size))  # (uv)nijc -> nijc
    return total / _count(x, size, stride, padding, out, count_padding)


def average_backward_numpy(dy, x, size, stride, padding, count_padding):
    out = dy.shape[1:3]
    each = dy / _count(x, size, stride, padding, out, count_padding)
    dpadded = pad(np.zeros_like(x), padding)
    for u, v in np.ndindex(size):
        dtap = tap(dpadded, u, v, stride, out)
        dtap += each
    return crop(dpadded, padding)


# --- global average: NumPy's mean is all there is to it ---


def global_average_forward_loops(x):
    N, H, W, C = x.shape
    y = np.zeros((N, C), x.dtype)
    for n in range(N):
        for p in range(H):
            for q in range(W):
                for c in range(C):
                    y[n, c] += x[n, p, q, c] / (H * W)
    return y


def global_average_backward_loops(dy, x):
    N, H, W, C = x.shape
    dx = np.empty_like(x)
    for n in range(N):
        for p in range(H):
            for q in range(W):
                for c in range(C):
                    dx[n, p, q, c] = dy[n, c] / (H * W)
    return dx


def global_average_forward_numpy(x):
    return x.mean(axis=(1, 2), dtype=np.float64).astype(x.dtype)  # npqc -> nc


def global_average_backward_numpy(dy, x):
    _, H, W, _ = x.shape
    return np.broadcast_to((dy / (H * W))[:, None, None, :], x.shape).copy()  # nc -> npqc


# --- the public functions ---


def _pick(loops, numpy):
    return backend.pick(loops=loops, numpy=numpy, numba=backend.jit(loops))


_max_forward = _pick(max_forward_loops, max_forward_numpy)
_max_backward = _pick(max_backward_loops, max_backward_numpy)
_average_forward = _pick(average_forward_loops, average_forward_numpy)
_average_backward = _pick(average_backward_loops, average_backward_numpy)
_global_forward = backend.pick(loops=global_average_forward_loops, numpy=global_average_forward_numpy)
_global_backward = backend.pick(loops=global_average_backward_loops, numpy=global_average_backward_numpy)


def max_forward(x: np.ndarray, size: Size, stride: Size | None = None, padding: Margin = 0) -> np.ndarray:
    """Return y (N, OH, OW, C) from x (N, H, W, C). size: a number or (KH, KW); stride: the size where it is None."""
    return _max_forward(*_valid(x, size, stride, padding)[:4])


def max_backward(
    dy: np.ndarray, x: np.ndarray, size: Size, stride: Size | None = None, padding: Margin = 0
) -> np.ndarray:
    """Return dx (N, H, W, C) from dy (N, OH, OW, C) and what went into `max_forward`."""
    x, size, stride, padding, out = _valid(x, size, stride, padding)
    return _max_backward(_valid_dy(dy, x, out), x, size, stride, padding)


def average_forward(
    x: np.ndarray, size: Size, stride: Size | None = None, padding: Margin = 0, count_padding: bool = True
) -> np.ndarray:
    """Return y (N, OH, OW, C) from x (N, H, W, C); count_padding=False divides by the pixels inside only."""
    return _average_forward(*_valid(x, size, stride, padding)[:4], bool(count_padding))


def average_backward(
    dy: np.ndarray, x: np.ndarray, size: Size, stride: Size | None = None, padding: Margin = 0,
    count_padding: bool = True,
) -> np.ndarray:  # fmt: skip
    """Return dx (N, H, W, C) from dy (N, OH, OW, C) and x, of which only the shape and the type count."""
    x, size, stride, padding, out = _valid(x, size, stride, padding)
    return _average_backward(_valid_dy(dy, x, out), x, size, stride, padding, bool(count_padding))


def global_average_forward(x: np.ndarray) -> np.ndarray:
    """Return y (N, C), the mean over the feature map of x (N, H, W, C)."""
    return _global_forward(checks.array("x", x, "(N, H, W, C)"))


def global_average_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return dx (N, H, W, C) from dy (N, C) and x, of which only the shape and the type count."""
    x = checks.array("x", x, "(N, H, W, C)")
    return _global_backward(checks.gradient(dy, (x.shape[0], x.shape[3]), x), x)


def _valid(
    x: np.ndarray, size: Size, stride: Size | None, padding: Margin
) -> tuple[np.ndarray, Pair, Pair, Padding, Pair]:
    x = checks.array("x", x, "(N, H, W, C)")
    size = pair("size", size)
    stride, padding, out = resolve(x, size, size if stride is None else stride, padding)
    if max(padding[0]) >= size[0] or max(padding[1]) >= size[1]:
        raise MbnpError(f"padding {padding} must be smaller than the window {size}: a window would see nothing else")
    return x, size, stride, padding, out


def _valid_dy(dy: np.ndarray, x: np.ndarray, out: Pair) -> np.ndarray:
    return checks.gradient(dy, (x.shape[0], *out, x.shape[3]), x)
