"""The exercises of lesson 1: the size of an output, one output pixel, a whole convolution."""

import numpy as np

from mbnp.grading.exercise import Case, Exercise, Mistake, exact
from mbnp.ops import conv
from mbnp.ops.window import output_size as window_size

# --- output_size ---


def _output_size(size, kernel, stride, padding):
    return window_size((size, size), (kernel, kernel), (stride, stride), ((padding, padding),) * 2)[0]


SIZES = [
    {"size": size, "kernel": kernel, "stride": stride, "padding": padding}
    for size, kernel, stride, padding in (
        (5, 3, 1, 0),
        (5, 3, 1, 1),
        (32, 3, 2, 1),
        (7, 2, 3, 0),
        (224, 3, 2, 1),
        (9, 5, 4, 2),
        (8, 3, 2, 0),
        (6, 3, 3, 1),
        (5, 1, 2, 0),
        (7, 5, 1, 1),
        (10, 4, 3, 2),
        (12, 1, 2, 0),
        (13, 2, 4, 1),
        (32, 2, 2, 0),
        (8, 1, 1, 1),
        (3, 3, 1, 0),
    )
]


def _count_windows(size, kernel, stride, padding):
    padded = size + 2 * padding
    return (padded - kernel) // stride + 1


SIZE_MISTAKES = [
    Mistake(
        "the kernel is left out: size // stride is right only where the padding makes up for it. Count windows that "
        "fit: (size + 2·padding - kernel) // stride + 1",
        lambda size, kernel, stride, padding: size // stride,
    ),
    Mistake(
        "that is ceil(size / stride), the size with TensorFlow's SAME padding. Count windows that fit into this one",
        lambda size, kernel, stride, padding: -(-size // stride),
    ),
    Mistake(
        "the 1 stands inside the division: it is added to the whole quotient, ... // stride + 1",
        lambda size, kernel, stride, padding: (size + 2 * padding - kernel + 1) // stride,
    ),
    Mistake(
        "padding: it is left out. There are `padding` rows of zeros on either side: size + 2·padding",
        lambda size, kernel, stride, padding: (size - kernel) // stride + 1,
    ),
    Mistake(
        "integer division: / gives a float, and rounds nothing. Only whole windows count: use //",
        lambda size, kernel, stride, padding: (size + 2 * padding - kernel) / stride + 1,
    ),
    Mistake(
        "the 1 is missing: after the first window come (size + 2·padding - kernel) // stride more",
        lambda size, kernel, stride, padding: (size + 2 * padding - kernel) // stride,
    ),
    Mistake(
        "padding: it is added on both sides, so it counts twice",
        lambda size, kernel, stride, padding: (size + padding - kernel) // stride + 1,
    ),
    *(
        Mistake(
            "order: the kernel is subtracted after the division. It takes its place from the rows, not from the "
            "windows: (size + 2·padding - kernel) // stride + 1",
            wrong,
        )
        for wrong in (
            lambda size, kernel, stride, padding: (size + 2 * padding) // stride - kernel + 1,
            lambda size, kernel, stride, padding: -(-(size + 2 * padding) // stride) - kernel + 1,
        )
    ),
    Mistake(
        "stride: the windows are counted as if the kernel moved by one pixel",
        lambda size, kernel, stride, padding: size + 2 * padding - kernel + 1,
    ),
    Mistake(
        "rounding: the last window must end inside the input, so round down, not up",
        lambda size, kernel, stride, padding: -(-(size + 2 * padding - kernel) // stride) + 1,
    ),
]

# --- conv_pixel: one number of the output of one image ---


def _pixel(x, w, i, j, d, stride, padding):
    """Compute one output number by mbnp's own convolution."""
    return conv.forward(x[None], w, None, stride, padding)[0, i, j, d]


def _pixel_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases: list[Case] = []
    for stride, padding, i, j, d in (
        (1, 0, 1, 2, 0),
        (1, 1, 0, 3, 1),
        (2, 1, 2, 0, 2),
        (2, 0, 0, 1, 1),
        (1, 1, 4, 5, 0),
        (2, 1, 2, 2, 1),
        (1, 1, 2, 0, 2),
        (2, 0, 1, 0, 1),
    ):
        x = rng.standard_normal((5, 6, 2), dtype=np.float32)
        w = rng.standard_normal((3 if len(cases) < 7 else 2, 3, 2, 3), dtype=np.float32)
        cases.append({"x": x, "w": w, "i": i, "j": j, "d": d, "stride": stride, "padding": padding})
    # Every length is another one: rows and columns differ by more than one, both ways; channels and kernels do.
    for shape, weights, i, j, d, stride, padding in (
        ((4, 7, 3), (3, 2, 3, 2), 3, 5, 1, 1, 1),
        ((4, 7, 3), (2, 3, 3, 2), 1, 5, 0, 1, 1),
        ((7, 4, 1), (1, 3, 1, 4), 6, 2, 3, 1, 1),
        ((8, 5, 4), (4, 3, 4, 2), 3, 1, 1, 2, 1),
    ):
        x, w = (rng.standard_normal(axes, dtype=np.float32) for axes in (shape, weights))
        cases.append({"x": x, "w": w, "i": i, "j": j, "d": d, "stride": stride, "padding": padding})
    return cases


def _pixel_loops(x, w, i, j, d, row, inside=None, kernel=None, channels=None):
    """Compute the definition with one thing changed: the pixel of a tap, which taps count, or their weights."""
    H, W, C = x.shape
    KH, KW, _, _ = w.shape
    total = 0.0
    for u in range(KH):
        for v in range(KW):
            p, q = row(i, u), row(j, v)
            if (0 <= p < H and 0 <= q < W) if inside is None else inside(p, q):
                for c in range(channels or C):
                    total += float(x[p, q, c]) * float((w[::-1, ::-1] if kernel == "flipped" else w)[u, v, c, d])
    return total


def _one_pixel(x, w, i, j, d, stride, padding):
    def look(i, u):
        return i * stride + u - padding

    def inside(p, size):
        return 0 <= p < size

    H, W, C = x.shape
    KH, KW, _, _ = w.shape
    total = 0.0
    for u in range(KH):
        for v in range(KW):
            p, q = look(i, u), look(j, v)
            if inside(p, H) and inside(q, W):
                for c in range(C):
                    total += float(x[p, q, c]) * float(w[u, v, c, d])
    return total


def _one_pixel_plainly(x, w, i, j, d, stride, padding):
    H, W, C = x.shape
    KH, KW, _, _ = w.shape
    total = 0.0
    for u in range(KH):
        for v in range(KW):
            p = i * stride + u - padding
            q = j * stride + v - padding
            if 0 <= p < H and 0 <= q < W:
                for c in range(C):
                    total += float(x[p, q, c]) * float(w[u, v, c, d])
    return total


def _pixel_of(place):
    """Make the definition on an image in which every index exists: that of `place(p, size)`."""

    def wrong(x, w, i, j, d, stride, padding):
        H, W, _ = x.shape
        KH, KW, _, _ = w.shape
        rows = [place(i * stride + u - padding, H) for u in range(KH)]
        columns = [place(j * stride + v - padding, W) for v in range(KW)]
        return float((x[np.ix_(rows, columns)].astype(np.float64) * w[..., d]).sum())

    return wrong


PIXEL_MISTAKES = [
    Mistake(
        "stride: it multiplies the padding, too: (i + u - padding)*stride. It moves the window only: "
        "i*stride + u - padding",
        lambda x, w, i, j, d, stride, padding: _pixel_loops(x, w, i, j, d, lambda a, u: (a + u - padding) * stride),
    ),
    Mistake(
        "padding: an index outside the image is moved to its border, which repeats the edge. Outside are zeros: skip "
        "the tap",
        _pixel_of(lambda p, size: min(max(p, 0), size - 1)),
    ),
    Mistake(
        "padding: an index outside the image comes in again on the other side (%). Outside are zeros: skip the tap",
        _pixel_of(lambda p, size: p % size),
    ),
    Mistake(
        "padding: an index outside the image is reflected into it. Outside are zeros: skip the tap",
        _pixel_of(lambda p, size: (size - 1) - abs((size - 1) - abs(p))),
    ),
    Mistake(
        "comparison at the border: 0 < p and 0 < q leave out row 0 and column 0, which belong to the image: 0 <= p",
        lambda x, w, i, j, d, stride, padding: _pixel_loops(
            x,
            w,
            i,
            j,
            d,
            lambda a, u: a * stride + u - padding,
            lambda p, q: 0 < p < x.shape[0] and 0 < q < x.shape[1],
        ),
    ),
    Mistake(
        "rows and columns: i and j are exchanged. i is the row and goes with u, KH and H; j the column",
        lambda x, w, i, j, d, stride, padding: _pixel_loops(x, w, j, i, d, lambda a, u: a * stride + u - padding),
    ),
    Mistake(
        "padding: tap (u, v) multiplies row i*stride + u - padding, and the - padding is missing",
        lambda x, w, i, j, d, stride, padding: _pixel_loops(x, w, i, j, d, lambda a, u: a * stride + u),
    ),
    Mistake(
        "padding: a negative index does not stop Python, it counts from the other end. Skip taps with p < 0 or q < 0",
        lambda x, w, i, j, d, stride, padding: _pixel_loops(
            x,
            w,
            i,
            j,
            d,
            lambda a, u: a * stride + u - padding,
            lambda p, q: p < x.shape[0] and q < x.shape[1],
        ),
    ),
    Mistake(
        "padding: taps beyond the last row or column are not skipped: p must be less than H and q less than W",
        lambda x, w, i, j, d, stride, padding: _pixel_loops(
            x, w, i, j, d, lambda a, u: a * stride + u - padding, lambda p, q: p >= 0 and q >= 0
        ),
    ),
    Mistake(
        "stride: output row i begins at input row i*stride, not at row i",
        lambda x, w, i, j, d, stride, padding: _pixel_loops(x, w, i, j, d, lambda a, u: a + u - padding),
    ),
    Mistake(
        "stride: it moves the window, i*stride + u, and does not spread the taps, (i + u)*stride",
        lambda x, w, i, j, d, stride, padding: _pixel_loops(x, w, i, j, d, lambda a, u: (a + u) * stride - padding),
    ),
    Mistake(
        "flipped kernel: the kernel is rotated by 180 degrees, as in mathematics. Networks use w[u, v] as it is",
        lambda x, w, i, j, d, stride, padding: _pixel_loops(
            x, w, i, j, d, lambda a, u: a * stride + u - padding, kernel="flipped"
        ),
    ),
    Mistake(
        "transposed kernel: w[v, u] is used where w[u, v] belongs; u is the row, v the column",
        lambda x, w, i, j, d, stride, padding: _pixel_loops(
            x, w.swapaxes(0, 1), i, j, d, lambda a, u: a * stride + u - padding
        ),
    ),
    Mistake(
        "channels: only the first input channel is summed; the sum runs over u, v and c",
        lambda x, w, i, j, d, stride, padding: _pixel_loops(
            x, w, i, j, d, lambda a, u: a * stride + u - padding, channels=1
        ),
    ),
]

# --- convolve: a batch, all at once ---


def _convolve_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases: list[Case] = []
    for size, kernel, stride, padding in (
        ((5, 6), 3, 1, 0),
        ((6, 5), 3, 1, 1),
        ((7, 7), 3, 2, 1),
        ((5, 5), 2, 2, 0),
        ((6, 7), 2, 3, 1),
    ):
        x = rng.standard_normal((2, *size, 2), dtype=np.float32)
        w = rng.standard_normal((kernel, kernel if len(cases) < 4 else 3, 2, 3), dtype=np.float32)
        b = rng.standard_normal(3, dtype=np.float32)
        cases.append({"x": x, "w": w, "b": b, "stride": stride, "padding": padding})
    for shape, weights, stride, padding in (((3, 4, 7, 1), (3, 2, 1, 2), 1, 2), ((1, 7, 4, 5), (2, 3, 5, 4), 2, 1)):
        x, w = (rng.standard_normal(axes, dtype=np.float32) for axes in (shape, weights))
        b = rng.standard_normal(weights[-1], dtype=np.float32)
        cases.append({"x": x, "w": w, "b": b, "stride": stride, "padding": padding})
    return [*cases, exact(cases[1] | {"x": cases[1]["x"][:1]})]


def _same_edge(x, w, b, stride, padding):
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="edge")
    return conv.forward(padded, w, b, stride, 0)


def _one_sided(x, w, b, stride, padding):
    padded = np.pad(x, ((0, 0), (0, 2 * padding), (0, 2 * padding), (0, 0)))
    return conv.forward(padded, w, b, stride, 0)


def _channels_first(x, w, b, stride, padding):
    """Multiply windows in the order (C, KH, KW) by weights in the order (KH, KW, C)."""
    KH, KW, C, D = w.shape
    return conv.forward(x, w.reshape(C, KH, KW, D).transpose(1, 2, 0, 3).copy(), b, stride, padding)


def _from_row(first):
    """Make a convolution whose windows begin at row `first(stride)` of the padded image."""

    def wrong(x, w, b, stride, padding):
        padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        return conv.forward(padded[:, first(stride) :, first(stride) :].copy(), w, b, stride, 0)

    return wrong


def _scattered(x, w, b, stride, padding):
    def look(i, u):
        return i * stride + u - padding

    def inside(p, size):
        return 0 <= p < size

    def count(size, kernel):
        return (size + 2 * padding - kernel) // stride + 1

    N, H, W, _ = x.shape
    KH, KW, _, D = w.shape
    y = np.zeros((N, count(H, KH), count(W, KW), D), x.dtype)
    for i, j, u, v in np.ndindex(*y.shape[1:3], KH, KW):
        p, q = look(i, u), look(j, v)
        if inside(p, H) and inside(q, W):
            y[:, i, j] += x[:, p, q] @ w[u, v]
    return y + b


def _by_windows(x, w, b, stride, padding):
    KH, KW, C, D = w.shape
    sides = (padding, padding)
    padded = np.pad(x, ((0, 0), sides, sides, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (KH, KW), axis=(1, 2))
    every = np.s_[::stride]
    windows = windows[:, every, every]
    N, OH, OW = windows.shape[:3]
    columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(N * OH * OW, KH * KW * C)
    return (columns @ w.reshape(KH * KW * C, D) + b).reshape(N, OH, OW, D)


CONVOLVE_MISTAKES = [
    Mistake(
        "stride: the windows begin at row stride - 1. The first one stands at row 0 of the padded image: [:, ::stride]",
        _from_row(lambda stride: stride - 1),
    ),
    Mistake(
        "padding: it is left out, and the output is smaller than it should be",
        lambda x, w, b, stride, padding: conv.forward(x, w, b, stride, 0),
    ),
    Mistake(
        "padding: all of it is at the end. It belongs on both sides: ((0, 0), (p, p), (p, p), (0, 0)) for np.pad",
        _one_sided,
    ),
    Mistake("padding: the border repeats the edge of the image. It has to be zeros: mode='constant'", _same_edge),
    Mistake(
        "stride: it is left out. Take every stride-th window: windows[:, ::stride, ::stride]",
        lambda x, w, b, stride, padding: conv.forward(x, w, b, 1, padding),
    ),
    Mistake(
        "flipped kernel: the kernel is rotated by 180 degrees, as in mathematics (and in scipy.signal.convolve). "
        "Networks use w[u, v] as it is",
        lambda x, w, b, stride, padding: conv.forward(x, w[::-1, ::-1].copy(), b, stride, padding),
    ),
    Mistake(
        "transposed kernel: sliding_window_view puts the window's axes last, (N, OH, OW, C, KH, KW), so the rows must "
        "be brought into the order of w, (KH, KW, C), before the matrix product",
        _channels_first,
    ),
    Mistake(
        "transposed kernel: rows and columns of the kernel are swapped; u goes with the height, v with the width",
        lambda x, w, b, stride, padding: conv.forward(x, w.swapaxes(0, 1).copy(), b, stride, padding),
    ),
    Mistake(
        "bias: it is added once for every tap of the kernel. It is added once, after the sum over the taps",
        lambda x, w, b, stride, padding: conv.forward(x, w, w.shape[0] * w.shape[1] * b, stride, padding),
    ),
    Mistake(
        "bias: b is not added; every pixel of output channel d gets b[d]",
        lambda x, w, b, stride, padding: conv.forward(x, w, None, stride, padding),
    ),
]

EXERCISES = [
    Exercise("output_size", SIZES, _output_size, SIZE_MISTAKES, solutions=(_count_windows,)),
    Exercise("conv_pixel", _pixel_cases, _pixel, PIXEL_MISTAKES, solutions=(_one_pixel, _one_pixel_plainly)),
    Exercise(
        "convolve",
        _convolve_cases,
        lambda x, w, b, stride, padding: conv.forward(x, w, b, stride, padding),
        CONVOLVE_MISTAKES,
        solutions=(_scattered, _by_windows),
        loops="no pixels",
    ),
]
