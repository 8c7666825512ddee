"""The exercises of lesson 1: the size of an output, one output pixel, a whole convolution."""

import numpy as np

from mbnp.grading.exercise import Case, Exercise, Mistake
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
    )
]

SIZE_MISTAKES = [
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
    cases = []
    for stride, padding, i, j, d in (
        (1, 0, 1, 2, 0),
        (1, 1, 0, 3, 1),
        (2, 1, 2, 0, 2),
        (2, 0, 0, 1, 1),
        (1, 1, 4, 5, 0),
    ):
        x = rng.standard_normal((5, 6, 2), dtype=np.float32)
        w = rng.standard_normal((3, 3, 2, 3), dtype=np.float32)
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


PIXEL_MISTAKES = [
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
    cases = []
    for size, kernel, stride, padding in (
        ((5, 6), 3, 1, 0),
        ((6, 5), 3, 1, 1),
        ((7, 7), 3, 2, 1),
        ((5, 5), 2, 2, 0),
    ):
        x = rng.standard_normal((2, *size, 2), dtype=np.float32)
        w = rng.standard_normal((kernel, kernel, 2, 3), dtype=np.float32)
        b = rng.standard_normal(3, dtype=np.float32)
        cases.append({"x": x, "w": w, "b": b, "stride": stride, "padding": padding})
    return cases


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


CONVOLVE_MISTAKES = [
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
        "bias: b is not added; every pixel of output channel d gets b[d]",
        lambda x, w, b, stride, padding: conv.forward(x, w, None, stride, padding),
    ),
]

EXERCISES = [
    Exercise("output_size", SIZES, _output_size, SIZE_MISTAKES),
    Exercise("conv_pixel", _pixel_cases, _pixel, PIXEL_MISTAKES),
    Exercise(
        "convolve",
        _convolve_cases,
        lambda x, w, b, stride, padding: conv.forward(x, w, b, stride, padding),
        CONVOLVE_MISTAKES,
    ),
]
