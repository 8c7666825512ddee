"""The exercises of lesson 3: which taps use a pixel, and the two gradients of a convolution."""

import math

import numpy as np

from mbnp.grading.exercise import Case, Exercise, Mistake
from mbnp.ops import conv
from mbnp.ops.window import output_size

# --- taps: the outputs that use a row of the image ---


def _taps(p, size, kernel, stride, padding):
    rows, _ = output_size((size, size), (kernel, kernel), (stride, stride), ((padding, padding),) * 2)
    return np.array([_tap(p + padding - i * stride, kernel) for i in range(rows)])


def _tap(u, kernel):
    return u if 0 <= u < kernel else -1


def _taps_with(look, rows=lambda size, kernel, stride, padding: (size + 2 * padding - kernel) // stride + 1):
    """Make `taps` with another formula for the tap, `look(p, i, stride, padding)`, or for the number of outputs."""

    def wrong(p, size, kernel, stride, padding):
        count = rows(size, kernel, stride, padding)
        return np.array([_tap(look(p, i, stride, padding), kernel) for i in range(count)])

    return wrong


def _by_division(p, size, kernel, stride, padding):
    """Compute the output of each tap, i = (p + padding - u) // stride, without a test of the remainder."""
    found = _taps(p, size, kernel, stride, padding) * 0 - 1
    for u in range(kernel):
        i = (p + padding - u) // stride
        if 0 <= i < len(found):
            found[i] = u
    return found


TAPS_CASES: list[Case] = [
    {"p": p, "size": size, "kernel": kernel, "stride": stride, "padding": padding}
    for p, size, kernel, stride, padding in (
        (2, 5, 3, 1, 0),
        (0, 5, 3, 1, 1),
        (3, 7, 3, 2, 1),
        (4, 8, 5, 2, 2),
        (6, 8, 3, 3, 0),
        (1, 6, 3, 1, 2),
        (5, 9, 4, 3, 2),
        (0, 7, 4, 1, 3),
        (6, 7, 3, 1, 0),
        (8, 11, 5, 2, 1),
    )
]


def _right(p, i, stride, padding):
    return p + padding - i * stride


def _seen_by(p, size, kernel, stride, padding):
    rows = (size + 2 * padding - kernel) // stride + 1
    result = np.full(rows, -1)
    for i in range(rows):
        u = p + padding - i * stride
        if 0 <= u < kernel:
            result[i] = u
    return result


TAPS_MISTAKES = [
    Mistake(
        "outputs that do not use the row are left out. There is one number for each output: -1 for those",
        lambda **case: (found := _taps(**case))[found >= 0],
    ),
    Mistake(
        "numbers beyond the kernel are cut to its last tap (clip, min). They are no taps: -1 where u >= kernel",
        lambda p, size, kernel, stride, padding: np.clip(
            p + padding - stride * np.arange((size + 2 * padding - kernel) // stride + 1), -1, kernel - 1
        ),
    ),
    Mistake(
        "numbers beyond the kernel are no taps: -1 where u >= kernel, too",
        lambda p, size, kernel, stride, padding: np.maximum(
            p + padding - stride * np.arange((size + 2 * padding - kernel) // stride + 1), -1
        ),
    ),
    Mistake(
        "the numbers of the outputs that use the row are returned. Return one tap for each output, and -1 for the "
        "others",
        lambda p, size, kernel, stride, padding: np.flatnonzero(_taps(p, size, kernel, stride, padding) >= 0),
    ),
    Mistake(
        "0 stands where an output does not use the row. 0 is a tap like the others: -1 is asked for",
        lambda p, size, kernel, stride, padding: np.maximum(_taps(p, size, kernel, stride, padding), 0),
    ),
    Mistake(
        "numbers below 0 and beyond the kernel are no taps: -1 where u < 0 or u >= kernel",
        lambda p, size, kernel, stride, padding: (
            p + padding - stride * np.arange((size + 2 * padding - kernel) // stride + 1)
        ),
    ),
    Mistake(
        "padding: it is left out. Row p of the image is row p + padding of the padded one",
        _taps_with(lambda p, i, stride, padding: p - i * stride),
    ),
    Mistake(
        "padding: the sign. From p = i*stride + u - padding follows u = p + padding - i*stride",
        _taps_with(lambda p, i, stride, padding: p - padding - i * stride),
    ),
    Mistake(
        "stride: output i begins at row i*stride of the padded image, not at row i",
        _taps_with(lambda p, i, stride, padding: p + padding - i),
    ),
    Mistake(
        "integer division: // also gives an output where p + padding - u is not divisible by the stride, and no "
        "window begins there. Test the remainder, or compute u from i, which needs no division",
        _by_division,
    ),
    Mistake(
        "flipped kernel: the taps are counted from the other end. u = p + padding - i*stride: as i goes up, u "
        "goes down",
        lambda p, size, kernel, stride, padding: np.array(
            [kernel - 1 - u if u >= 0 else -1 for u in _taps(p, size, kernel, stride, padding)]
        ),
    ),
    Mistake(
        "integer division: / instead of // in the number of outputs, which rounds down: only whole windows count",
        _taps_with(
            _right,
            lambda size, kernel, stride, padding: math.ceil((size + 2 * padding - kernel) / stride) + 1,
        ),
    ),
    Mistake(
        "the number of outputs: padding is on both sides, (size + 2*padding - kernel) // stride + 1",
        _taps_with(_right, lambda size, kernel, stride, padding: (size + padding - kernel) // stride + 1),
    ),
    Mistake(
        "the number of outputs: the 1 is missing in (size + 2*padding - kernel) // stride + 1",
        _taps_with(_right, lambda size, kernel, stride, padding: (size + 2 * padding - kernel) // stride),
    ),
]

# --- conv_dx, conv_dw ---

GEOMETRY = (  # size of the image, kernel, stride, padding
    ((5, 6), (3, 3), 1, 0),
    ((5, 6), (3, 3), 1, 1),
    ((7, 6), (3, 3), 2, 1),
    ((8, 9), (2, 3), 2, 0),
    ((6, 7), (2, 2), 3, 1),
    ((8, 7), (3, 2), 3, 0),  # whose last rows no window sees
)


def _arrays(seed: int):
    """Yield dy, x, w, stride, padding for each geometry."""
    rng = np.random.default_rng(seed)
    for size, kernel, stride, padding in GEOMETRY:
        x = rng.standard_normal((2, *size, 2), dtype=np.float32)
        w = rng.standard_normal((*kernel, 2, 3), dtype=np.float32)
        y = conv.forward(x, w, None, stride, padding)
        yield rng.standard_normal(y.shape, dtype=np.float32), x, w, stride, padding
    for shape, weights, stride, padding in (((3, 4, 7, 1), (3, 2, 1, 2), 1, 2), ((1, 7, 4, 5), (2, 3, 5, 4), 2, 1)):
        x, w = (rng.standard_normal(axes, dtype=np.float32) for axes in (shape, weights))
        y = conv.forward(x, w, None, stride, padding)
        yield rng.standard_normal(y.shape, dtype=np.float32), x, w, stride, padding


def _dx_cases(seed: int) -> list[Case]:
    return [
        {"dy": dy, "w": w, "shape": x.shape, "stride": stride, "padding": padding}
        for dy, x, w, stride, padding in _arrays(seed)
    ]


def _dw_cases(seed: int) -> list[Case]:
    return [
        {"dy": dy, "x": x, "kernel": w.shape[:2], "stride": stride, "padding": padding}
        for dy, x, w, stride, padding in _arrays(seed)
    ]


def _dx(dy, w, shape, stride, padding):
    return conv.backward(dy, np.zeros(shape, dy.dtype), w, stride, padding)[0]


def _dw(dy, x, kernel, stride, padding):
    w = np.zeros((*kernel, x.shape[3], dy.shape[3]), x.dtype)
    return conv.backward(dy, x, w, stride, padding)[1]


def _scatter(dy, w, shape, look, add=True):
    """Return dx as if tap u of output i multiplied row `look(i, u)`; rows that do not exist are skipped."""
    (N, H, W, C), (KH, KW, _, _) = shape, w.shape
    dx = np.zeros((N, H, W, C), dy.dtype)
    for i, j, u, v in np.ndindex(*dy.shape[1:3], KH, KW):
        p, q = look(i, u), look(j, v)
        if 0 <= p < H and 0 <= q < W:
            term = dy[:, i, j] @ w[u, v].T
            dx[:, p, q] = dx[:, p, q] + term if add else term
    return dx


def _gather_without_remainder(dy, w, shape, stride, padding):
    (_, H, W, _), (_, OH, OW, _), (KH, KW, _, _) = shape, dy.shape, w.shape
    dx = np.zeros(shape, dy.dtype)
    for p, q, u, v in np.ndindex(H, W, KH, KW):
        i, j = (p + padding - u) // stride, (q + padding - v) // stride
        if 0 <= i < OH and 0 <= j < OW:
            dx[:, p, q] += dy[:, i, j] @ w[u, v].T
    return dx


def _uncropped(dy, w, shape, stride, padding):
    N, H, W, C = shape
    return _dx(dy, w, (N, H + 2 * padding, W + 2 * padding, C), stride, 0)


def _correlate(dy, x, kernel, look, add=True):
    """Return dw as if tap u of output i multiplied row `look(i, u)`; rows that do not exist are skipped."""
    _, H, W, C = x.shape
    dw = np.zeros((*kernel, C, dy.shape[3]), x.dtype)
    for i, j, u, v in np.ndindex(*dy.shape[1:3], *kernel):
        p, q = look(i, u), look(j, v)
        if 0 <= p < H and 0 <= q < W:
            term = x[:, p, q].T @ dy[:, i, j]
            dw[u, v] = dw[u, v] + term if add else term
    return dw


def _scattered(dy, w, shape, stride, padding):
    def look(i, u):
        return i * stride + u - padding

    def inside(p, size):
        return 0 <= p < size

    _, H, W, _ = shape
    KH, KW, _, _ = w.shape
    _, OH, OW, _ = dy.shape
    dx = np.zeros(shape, dy.dtype)
    for i, j, u, v in np.ndindex(OH, OW, KH, KW):
        p, q = look(i, u), look(j, v)
        if inside(p, H) and inside(q, W):
            dx[:, p, q] += dy[:, i, j] @ w[u, v].T
    return dx


def _by_slices(dy, w, shape, stride, padding):
    N, H, W, C = shape
    _, OH, OW, _ = dy.shape
    KH, KW, _, _ = w.shape
    sides = 2 * padding
    padded = np.zeros((N, H + sides, W + sides, C), dy.dtype)
    for i in range(OH):
        for j in range(OW):
            for u in range(KH):
                for v in range(KW):
                    padded[:, i * stride + u, j * stride + v] += dy[:, i, j] @ w[u, v].T
    first = padding
    return padded[:, first : first + H, first : first + W]


def _correlated(dy, x, kernel, stride, padding):
    def look(i, u):
        return i * stride + u - padding

    def inside(p, size):
        return 0 <= p < size

    KH, KW = kernel
    _, H, W, C = x.shape
    _, OH, OW, D = dy.shape
    dw = np.zeros((KH, KW, C, D), x.dtype)
    for i, j, u, v in np.ndindex(OH, OW, KH, KW):
        p, q = look(i, u), look(j, v)
        if inside(p, H) and inside(q, W):
            dw[u, v] += x[:, p, q].T @ dy[:, i, j]
    return dw


def _cut_along(axis):
    """Make dx of a padded image whose border is cut off on both sides along one axis only, rows (1) or columns (2)."""

    def wrong(dy, w, shape, stride, padding):
        N, H, W, C = shape
        padded = _dx(dy, w, (N, H + 2 * padding, W + 2 * padding, C), stride, 0)
        top, left = (padding, 0) if axis == 1 else (0, padding)
        return padded[:, top : top + H, left : left + W].copy()

    return wrong


DX_MISTAKES = [
    *(
        Mistake(
            "padding: the border is cut off on both sides along one axis only: [:, padding : padding + H, padding : "
            "padding + W]",
            _cut_along(axis),
        )
        for axis in (1, 2)
    ),
    Mistake(
        "padding: everything is `padding` rows too far down and columns too far right. Tap u of output i "
        "multiplies row i*stride + u - padding; a padded dx is cut on both sides, [:, padding : padding + H, "
        "padding : padding + W]",
        lambda dy, w, shape, stride, padding: _scatter(dy, w, shape, lambda i, u: i * stride + u),
    ),
    Mistake("padding: this is the gradient of the padded image. Cut the padding off, on every side", _uncropped),
    Mistake(
        "stride: the window of output i begins at row i*stride, not at row i",
        lambda dy, w, shape, stride, padding: _scatter(dy, w, shape, lambda i, u: i + u - padding),
    ),
    Mistake(
        "stride: it moves the window, i*stride + u, and does not spread the taps, (i + u)*stride",
        lambda dy, w, shape, stride, padding: _scatter(dy, w, shape, lambda i, u: (i + u) * stride - padding),
    ),
    Mistake(
        "integer division: i = (p + padding - u) // stride also finds an output where the division leaves a remainder, "
        "and no window begins there. Count only (p + padding - u) % stride == 0",
        _gather_without_remainder,
    ),
    Mistake(
        "flipped kernel: it is rotated by 180 degrees once too often, or once too little. If you scatter, use w as it "
        "is; if you slide a window over dy, use w[::-1, ::-1]",
        lambda dy, w, shape, stride, padding: _dx(dy, w[::-1, ::-1].copy(), shape, stride, padding),
    ),
    Mistake(
        "transposed kernel: w[v, u] is used where w[u, v] belongs; u goes with the height, v with the width",
        lambda dy, w, shape, stride, padding: _dx(dy, w.swapaxes(0, 1).copy(), shape, stride, padding),
    ),
    Mistake(
        "channels: the weights are reshaped from (C, D) to (D, C) where they should be transposed: use w[u, v].T",
        lambda dy, w, shape, stride, padding: _dx(
            dy, w.reshape(*w.shape[:2], w.shape[3], w.shape[2]).swapaxes(2, 3).copy(), shape, stride, padding
        ),
    ),
    Mistake(
        "missing sum: windows overlap, and the last one overwrites the others. Use += for each output's contribution",
        lambda dy, w, shape, stride, padding: _scatter(dy, w, shape, lambda i, u: i * stride + u - padding, add=False),
    ),
    Mistake(
        "missing sum: only the first output channel counts. A pixel contributes to all of them: sum over d",
        lambda dy, w, shape, stride, padding: _dx(dy[..., :1].copy(), w[..., :1].copy(), shape, stride, padding),
    ),
]


def _cut_anew(order):
    """Make dw with its axes in another order, cut to its shape by a reshape."""

    def wrong(dy, x, kernel, stride, padding):
        dw = _dw(dy, x, kernel, stride, padding)
        return dw.transpose(order).reshape(dw.shape)

    return wrong


DW_MISTAKES = [
    *(
        Mistake(
            "the axes: a reshape moves no number. sliding_window_view puts the window's axes behind the channels, so "
            "the product has (C, KH, KW, D): reshape to that, then transpose to (KH, KW, C, D)",
            _cut_anew(order),
        )
        for order in ((2, 0, 1, 3), (3, 2, 0, 1), (3, 0, 1, 2))
    ),
    Mistake(
        "sum over the pixels: this is their mean. Every output pixel contributes to dw: add them up",
        lambda dy, x, kernel, stride, padding: (
            _dw(dy, x, kernel, stride, padding) / np.float32(dy.shape[1] * dy.shape[2])
        ),
    ),
    Mistake(
        "sum over the batch and the pixels: this is their mean. The loss has divided by N already, in dy",
        lambda dy, x, kernel, stride, padding: (
            _dw(dy, x, kernel, stride, padding) / np.float32(len(x) * dy.shape[1] * dy.shape[2])
        ),
    ),
    Mistake(
        "missing sum over the batch: this is dw of the first image only. All images use the same weight: sum over n",
        lambda dy, x, kernel, stride, padding: _dw(dy[:1], x[:1], kernel, stride, padding),
    ),
    Mistake(
        "missing sum over the batch: this is dw of the last image only. One dw is made before the loop, and each image "
        "is added to it",
        lambda dy, x, kernel, stride, padding: _dw(dy[-1:], x[-1:], kernel, stride, padding),
    ),
    Mistake(
        "sum over the batch: this is the mean over its images. The loss has divided by N already, in dy",
        lambda dy, x, kernel, stride, padding: _dw(dy, x, kernel, stride, padding) / np.float32(len(x)),
    ),
    Mistake(
        "sum over the batch: each image has a dw of its own, (N, KH, KW, C, D). All images use the same "
        "weight: sum over n",
        lambda dy, x, kernel, stride, padding: np.stack(
            [_dw(dy[n : n + 1], x[n : n + 1], kernel, stride, padding) for n in range(len(x))]
        ),
    ),
    Mistake(
        "missing sum: the last output pixel overwrites the others. Use += for each output's contribution",
        lambda dy, x, kernel, stride, padding: _correlate(
            dy, x, kernel, lambda i, u: i * stride + u - padding, add=False
        ),
    ),
    Mistake(
        "padding: tap u of output i multiplies row i*stride + u - padding of the image, and the - padding is missing",
        lambda dy, x, kernel, stride, padding: _correlate(dy, x, kernel, lambda i, u: i * stride + u),
    ),
    Mistake(
        "stride: the window of output i begins at row i*stride, not at row i",
        lambda dy, x, kernel, stride, padding: _correlate(dy, x, kernel, lambda i, u: i + u - padding),
    ),
    Mistake(
        "stride: it moves the window, i*stride + u, and does not spread the taps, (i + u)*stride",
        lambda dy, x, kernel, stride, padding: _correlate(dy, x, kernel, lambda i, u: (i + u) * stride - padding),
    ),
    Mistake(
        "flipped kernel: the weight gradient is a correlation, tap by tap. Nothing is flipped here",
        lambda dy, x, kernel, stride, padding: _dw(dy, x, kernel, stride, padding)[::-1, ::-1],
    ),
    Mistake(
        "transposed kernel: rows and columns of dw are swapped; u goes with the height, v with the width",
        lambda dy, x, kernel, stride, padding: _dw(dy, x, kernel, stride, padding).swapaxes(0, 1),
    ),
    Mistake(
        "channels: dw has the shape of w, (KH, KW, C, D): input channels first, then output channels",
        lambda dy, x, kernel, stride, padding: _dw(dy, x, kernel, stride, padding).swapaxes(2, 3),
    ),
]

EXERCISES = [
    Exercise("taps", TAPS_CASES, _taps, TAPS_MISTAKES, solutions=(_seen_by,)),
    Exercise("conv_dx", _dx_cases, _dx, DX_MISTAKES, solutions=(_scattered, _by_slices)),
    Exercise("conv_dw", _dw_cases, _dw, DW_MISTAKES, solutions=(_correlated,)),
]
