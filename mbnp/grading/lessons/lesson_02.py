"""The exercises of lesson 2: a depthwise and a pointwise convolution, and their cost."""

import numpy as np

from mbnp import cost
from mbnp.grading.exercise import Case, Exercise, Mistake, exact
from mbnp.ops import depthwise, pointwise
from mbnp.ops.window import output_size

# --- depthwise ---


def _depthwise(x, w, stride, padding):
    return depthwise.forward(x, w, None, stride, padding)


def _depthwise_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases: list[Case] = []
    for size, kernel, stride, padding in (
        ((5, 6), 3, 1, 1),
        ((6, 5), 3, 1, 0),
        ((7, 7), 3, 2, 1),
        ((5, 5), 2, 2, 0),
        ((6, 7), 2, 3, 1),
    ):
        x = rng.standard_normal((2, *size, 3), dtype=np.float32)
        w = rng.standard_normal((kernel, kernel if len(cases) < 4 else 3, 3), dtype=np.float32)
        cases.append({"x": x, "w": w, "stride": stride, "padding": padding})
    for shape, weights, stride, padding in (((3, 4, 7, 1), (3, 2, 1), 1, 2), ((1, 7, 4, 5), (2, 3, 5), 2, 1)):
        x, w = (rng.standard_normal(axes, dtype=np.float32) for axes in (shape, weights))
        cases.append({"x": x, "w": w, "stride": stride, "padding": padding})
    return [*cases, exact(cases[0] | {"x": cases[0]["x"][:1]})]


def _one_sided(x, w, stride, padding):
    padded = np.pad(x, ((0, 0), (0, 2 * padding), (0, 2 * padding), (0, 0)))
    return _depthwise(padded, w, stride, 0)


def _mixed(x, w, stride, padding):
    y = _depthwise(x, w, stride, padding).sum(axis=3, keepdims=True)
    return np.broadcast_to(y, (*y.shape[:3], x.shape[3])).copy()


def _from_row(first):
    """Make a convolution whose windows begin at row `first(stride)` of the padded image."""

    def wrong(x, w, stride, padding):
        padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        return _depthwise(padded[:, first(stride) :, first(stride) :].copy(), w, stride, 0)

    return wrong


def _same_edge(x, w, stride, padding):
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="edge")
    return _depthwise(padded, w, stride, 0)


def _tap_by_tap(x, w, stride, padding):
    def look(i, u):
        return i * stride + u - padding

    def inside(p, size):
        return 0 <= p < size

    def count(size, kernel):
        return (size + 2 * padding - kernel) // stride + 1

    N, H, W, C = x.shape
    KH, KW, _ = w.shape
    y = np.zeros((N, count(H, KH), count(W, KW), C), x.dtype)
    for i, j, u, v in np.ndindex(*y.shape[1:3], KH, KW):
        p, q = look(i, u), look(j, v)
        if inside(p, H) and inside(q, W):
            y[:, i, j] += x[:, p, q] * w[u, v]
    return y


def _by_windows(x, w, stride, padding):
    KH, KW, _ = w.shape
    sides = (padding, padding)
    padded = np.pad(x, ((0, 0), sides, sides, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (KH, KW), axis=(1, 2))
    every = np.s_[::stride]
    return np.einsum("nijcuv,uvc->nijc", windows[:, every, every], w)


def _strided_along(axis):
    """Make a depthwise convolution that moves by `stride` along one axis only, rows (1) or columns (2)."""

    def wrong(x, w, stride, padding):
        right, y = _depthwise(x, w, stride, padding), _depthwise(x, w, 1, padding)
        step = [slice(None, None, stride if k == axis else 1) for k in range(4)]
        return y[tuple(step)][:, : right.shape[1], : right.shape[2]]

    return wrong


DEPTHWISE_MISTAKES = [
    *(
        Mistake(
            "stride: the window moves by it along one axis only. Rows and columns are both taken at every stride",
            _strided_along(axis),
        )
        for axis in (1, 2)
    ),
    Mistake(
        "stride: the windows begin at row stride - 1. The first one stands at row 0 of the padded image: [:, ::stride]",
        _from_row(lambda stride: stride - 1),
    ),
    Mistake("padding: the border repeats the edge of the image. It has to be zeros: mode='constant'", _same_edge),
    Mistake(
        "padding: it is left out, and the output is smaller than it should be",
        lambda x, w, stride, padding: _depthwise(x, w, stride, 0),
    ),
    Mistake("padding: all of it is at the end. It belongs on both sides", _one_sided),
    Mistake(
        "stride: it is left out. Output pixel i begins at input row i*stride",
        lambda x, w, stride, padding: _depthwise(x, w, 1, padding),
    ),
    Mistake(
        "flipped kernel: it is rotated by 180 degrees. Networks use w[u, v] as it is",
        lambda x, w, stride, padding: _depthwise(x, w[::-1, ::-1].copy(), stride, padding),
    ),
    Mistake(
        "transposed kernel: rows and columns of w are swapped; u goes with the height, v with the width",
        lambda x, w, stride, padding: _depthwise(x, w.swapaxes(0, 1).copy(), stride, padding),
    ),
    *(
        Mistake(
            "the axes: a reshape of w moves no number, so that weights come to other channels and taps. transpose does",
            lambda x, w, stride, padding, order=order: _depthwise(
                x, w.reshape([w.shape[k] for k in order]).transpose(np.argsort(order)).copy(), stride, padding
            ),
        )
        for order in ((2, 0, 1), (1, 0, 2))
    ),
    Mistake(
        "channels: they are added up. A depthwise convolution keeps each by itself: c stays in the result",
        _mixed,
    ),
    Mistake(
        "channels: each output channel adds up all input channels, as a standard convolution does. Here channel c is "
        "made of channel c alone",
        lambda x, w, stride, padding: _depthwise(
            np.repeat(x.sum(axis=3, keepdims=True), x.shape[3], axis=3), w, stride, padding
        ),
    ),
    Mistake(
        "channels: they are added up and the axis is gone. c must stay in the result: 'nijcuv,uvc->nijc'",
        lambda x, w, stride, padding: _depthwise(x, w, stride, padding).sum(axis=3),
    ),
    Mistake(
        "channels: every channel gets the kernel of channel 0. Each has its own, w[:, :, c]",
        lambda x, w, stride, padding: _depthwise(x, w[:, :, :1].repeat(x.shape[3], axis=2), stride, padding),
    ),
]

# --- pointwise ---


def _pointwise_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [
        {
            "x": rng.standard_normal((*size, C), dtype=np.float32),
            "w": rng.standard_normal((C, D), dtype=np.float32),
        }
        for size, C, D in (
            ((2, 3, 4), 3, 3),
            ((2, 4, 3), 2, 5),
            ((2, 5, 5), 4, 4),
            ((3, 2, 5), 5, 2),
            ((1, 6, 2), 1, 3),
        )
    ]


def _multiplied(x, w):
    N, H, W, _ = x.shape
    D = w.shape[1]
    y = np.zeros((N, H, W, D), x.dtype)
    for c in range(x.shape[3]):
        for d in range(D):
            y[..., d] += x[..., c] * w[c, d]
    return y


POINTWISE_MISTAKES = [
    Mistake(
        "the axes: x is read as channels first, (N, C, H*W). The channels are its last axis, so rows of pixels are "
        "x.reshape(-1, C)",
        lambda x, w: (x.reshape(len(x), x.shape[3], -1).swapaxes(1, 2) @ w).swapaxes(1, 2).reshape(*x.shape[:3], -1),
    ),
    Mistake(
        "the axes: reshape(C, -1) does not bring the channels to the front, it cuts the numbers in memory differently. "
        "Rows of pixels are x.reshape(-1, C)",
        lambda x, w: (x.reshape(x.shape[3], -1).T @ w).reshape(*x.shape[:3], -1),
    ),
    Mistake(
        "the axes: H and W are exchanged in the last reshape, which moves no number. The result is (N, H, W, D)",
        lambda x, w: (x @ w).reshape(x.shape[0], x.shape[2], x.shape[1], -1),
    ),
    Mistake(
        "transposed weights: w is (C, D), channels in first, so the pixel is a row on the left: x @ w, not x @ w.T",
        lambda x, w: x @ w.T,
    ),
    Mistake(
        "channels: each is multiplied by a weight of its own and none are mixed. Sum over c",
        lambda x, w: x * np.diagonal(w),
    ),
    Mistake(
        "the axes: the result has its channels second, as in PyTorch. mbnp keeps them last",
        lambda x, w: (x @ w).transpose(0, 3, 1, 2),
    ),
    Mistake(
        "the axes: the pixels stayed in one long row. Give the result the shape (N, H, W, D)",
        lambda x, w: x.reshape(-1, x.shape[3]) @ w,
    ),
]

# --- separable_macs ---


def _separable_macs(H, W, K, c_in, c_out, stride):
    padding = (K // 2, K // 2)
    OH, OW = output_size((H, W), (K, K), (stride, stride), (padding, padding))
    return cost.separable(OH, OW, K, c_in, c_out)


LAYERS = [
    {"H": H, "W": W, "K": K, "c_in": c_in, "c_out": c_out, "stride": stride}
    for H, W, K, c_in, c_out, stride in (
        (10, 10, 3, 3, 10, 1),
        (32, 32, 3, 32, 64, 2),
        (15, 20, 5, 8, 16, 2),
        (9, 7, 3, 4, 4, 2),
        (11, 8, 5, 6, 3, 3),
        (6, 9, 1, 5, 7, 1),
    )
]


def _truncated(H, W, K, c_in, c_out, stride):
    return cost.separable(H // stride, W // stride, K, c_in, c_out)


def _only_first(H, W, K, c_in, c_out, stride):
    padding = (K // 2, K // 2)
    OH, OW = output_size((H, W), (K, K), (stride, stride), (padding, padding))
    return cost.depthwise(OH, OW, K, c_in) + cost.pointwise(H, W, c_in, c_out)


def _counted(H, W, K, c_in, c_out, stride):
    def size(rows):
        return (rows + 2 * (K // 2) - K) // stride + 1

    read, written = H * W, size(H) * size(W)  # noqa: F841 (`read` is there to be taken by mistake)
    kernel = K * K
    return written * kernel * c_in + written * c_in * c_out


def _padded_by(padding):
    return lambda H, W, K, c_in, c_out, stride: cost.separable(
        (H + 2 * padding - K) // stride + 1, (W + 2 * padding - K) // stride + 1, K, c_in, c_out
    )


MACS_MISTAKES = [
    Mistake("padding: there is none. K // 2 rows of zeros are on either side: H + 2·(K // 2) - K", _padded_by(0)),
    Mistake("padding: it is 1, which is right for K = 3 only. K // 2 rows of zeros are on either side", _padded_by(1)),
    Mistake(
        "padding: there are K // 2 rows of zeros on either side, not K",
        lambda H, W, K, c_in, c_out, stride: cost.separable(
            (H + K) // stride + 1, (W + K) // stride + 1, K, c_in, c_out
        ),
    ),
    Mistake(
        "that is a standard convolution, K * K * c_in * c_out for each pixel. Here there are two: K * K * c_in, and "
        "then c_in * c_out",
        lambda H, W, K, c_in, c_out, stride: _counted(H, W, K, c_in, 0, stride) * c_out,
    ),
    Mistake(
        "stride: the depthwise convolution is counted at its input's H and W. It works once for every pixel that it "
        "writes: the output's size",
        lambda H, W, K, c_in, c_out, stride: (
            cost.depthwise(H, W, K, c_in)
            + _separable_macs(H, W, K, c_in, c_out, stride)
            - _separable_macs(H, W, K, c_in, 0, stride)
        ),
    ),
    Mistake(
        "channels: the depthwise convolution is counted with c_out. It has one kernel for each channel that it reads, "
        "c_in; c_out only comes with the pointwise one",
        lambda H, W, K, c_in, c_out, stride: (
            _separable_macs(H, W, K, c_out, 0, stride)
            + _separable_macs(H, W, K, c_in, c_out, stride)
            - _separable_macs(H, W, K, c_in, 0, stride)
        ),
    ),
    Mistake(
        "stride: these are the input's H and W. A convolution works once for every pixel that it writes, so the "
        "output's size counts (the article makes the same mistake)",
        lambda H, W, K, c_in, c_out, stride: cost.separable(H, W, K, c_in, c_out),
    ),
    Mistake(
        "integer division: / gives a float, and sometimes half a pixel. Use // for the output's size",
        lambda H, W, K, c_in, c_out, stride: (H / stride) * (W / stride) * (K * K * c_in + c_in * c_out),
    ),
    Mistake(
        "rounding: H // stride is one row too few where H is odd: (H + 2·(K // 2) - K) // stride + 1",
        _truncated,
    ),
    Mistake(
        "rounding: the pixels are not H·W / stride². Rows and columns are rounded each for itself, and up: (H + "
        "2·(K // 2) - K) // stride + 1",
        lambda H, W, K, c_in, c_out, stride: H * W // stride**2 * (K * K * c_in + c_in * c_out),
    ),
    Mistake(
        "stride: the pointwise convolution gets the depthwise one's output, which is smaller too",
        _only_first,
    ),
    Mistake(
        "channels: the depthwise convolution has one kernel per channel, so it costs K·K·c_in per pixel, without c_out",
        lambda H, W, K, c_in, c_out, stride: (
            _separable_macs(H, W, K, c_in, c_out, stride) + (c_out - 1) * (_separable_macs(H, W, K, c_in, 0, stride))
        ),
    ),
    Mistake(
        "FLOPs: that is twice as many. One MAC is a multiplication and the addition after it",
        lambda H, W, K, c_in, c_out, stride: 2 * _separable_macs(H, W, K, c_in, c_out, stride),
    ),
    Mistake(
        "these are parameters, not MACs: every weight is used once for each pixel of the output",
        lambda H, W, K, c_in, c_out, stride: cost.separable(1, 1, K, c_in, c_out),
    ),
]

EXERCISES = [
    Exercise(
        "depthwise",
        _depthwise_cases,
        _depthwise,
        DEPTHWISE_MISTAKES,
        solutions=(_tap_by_tap, _by_windows),
        loops="no pixels",
    ),
    Exercise(
        "pointwise",
        _pointwise_cases,
        lambda x, w: pointwise.forward(x, w),
        POINTWISE_MISTAKES,
        solutions=(_multiplied,),
    ),
    Exercise("separable_macs", LAYERS, _separable_macs, MACS_MISTAKES, solutions=(_counted,)),
]
