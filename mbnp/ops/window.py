"""Where a sliding window stands: stride, padding and output size, shared by convolutions and pooling.

Output pixel i looks with its tap u at the row p = i*S + u - before of the input, where S is the stride and
`before` the number of padding rows above. The last window must end inside the padded input:

    (O - 1)*S + K <= before + H + after    so    O = (before + H + after - K) // S + 1

Frameworks pad differently at stride 2. PyTorch's padding=1 puts one row on either side; TensorFlow's SAME
puts what is needed to get ceil(H / S) rows, the odd one at the end: for K = 3, S = 2 and an even H none
above and one below. Weights trained with one and run with the other load without a complaint and look
half a pixel beside their target.

Sources: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (arXiv:1603.07285),
relationship 6; TensorFlow's documentation of tf.nn.convolution, "SAME".
"""

from operator import index

import numpy as np

from mbnp.errors import MbnpError

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]  # ((top, bottom), (left, right))
Size = int | Pair  # what callers may give: one number for both directions,
Margin = int | Padding | str  # one number for all four sides, or "same"


def pair(name: str, value: Size) -> Pair:
    """Return (vertical, horizontal) from one number for both or a pair of them, at least 1."""
    try:
        vertical, horizontal = value if isinstance(value, (tuple, list)) else (value, value)
        result = index(vertical), index(horizontal)
    except (TypeError, ValueError):
        raise MbnpError(f"{name} must be a whole number or a pair of them, got {value!r}") from None
    if min(result) < 1:
        raise MbnpError(f"{name} must be at least 1, got {value!r}")
    return result


def same_padding(size: int, kernel: int, stride: int) -> Pair:
    """Return (before, after) along one axis as TensorFlow's SAME has it: the output gets ceil(size / stride)."""
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def explicit_padding(padding: Margin, size: Pair, kernel: Pair, stride: Pair) -> Padding:
    """Return ((top, bottom), (left, right)) from that, from one number for all four sides, or from "same"."""
    if isinstance(padding, str) and padding == "same":
        return tuple(map(same_padding, size, kernel, stride))  # type: ignore[return-value]
    try:
        sides = padding if isinstance(padding, (tuple, list)) else ((padding, padding), (padding, padding))
        (top, bottom), (left, right) = sides
        result = (index(top), index(bottom)), (index(left), index(right))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise MbnpError(
            f"padding must be a whole number, ((top, bottom), (left, right)) or 'same', got {padding!r}"
        ) from None
    if min(map(min, result)) < 0:
        raise MbnpError(f"padding must not be negative, got {padding!r}")
    return result


def output_size(size: Pair, kernel: Pair, stride: Pair, padding: Padding) -> Pair:
    """Return (OH, OW) for an input of `size` (H, W). MbnpError where the kernel is larger than the padded input."""
    (H, W), (KH, KW), (SH, SW), ((top, bottom), (left, right)) = size, kernel, stride, padding
    HP, WP = top + H + bottom, left + W + right
    if HP < KH or WP < KW:
        raise MbnpError(
            f"a {KH}x{KW} kernel does not fit into the {H}x{W} input with padding {padding}: "
            "use a larger input, more padding or a smaller kernel"
        )
    return (HP - KH) // SH + 1, (WP - KW) // SW + 1


def resolve(x: np.ndarray, kernel: Pair, stride: Size, padding: Margin) -> tuple[Pair, Padding, Pair]:
    """Return stride and padding in full, and (OH, OW), for x (N, H, W, C): every windowed operation begins so."""
    size = x.shape[1], x.shape[2]
    stride = pair("stride", stride)
    padding = explicit_padding(padding, size, kernel, stride)
    return stride, padding, output_size(size, kernel, stride, padding)


def pad(x: np.ndarray, padding: Padding, value: float = 0.0) -> np.ndarray:
    """Return x (N, H, W, C) inside a margin of `value`: (N, top + H + bottom, left + W + right, C)."""
    return np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=value)


def lay_out(x: np.ndarray, padding: Padding, factors: np.ndarray) -> tuple[np.ndarray, Padding]:
    """Return x and its padding; where not all `factors` are finite, x inside zeros and no padding.

    Zeros of the padding are factors, too, and 0 times infinity is NaN. Implementations may leave them out, and need not
    look.
    """
    if not np.any(padding) or np.isfinite(factors).all():
        return x, padding
    return pad(x, padding), ((0, 0), (0, 0))


def crop(padded: np.ndarray, padding: Padding) -> np.ndarray:
    """Return the middle of `padded`: the inverse of `pad`, copied, so that the margin's memory is freed."""
    (top, bottom), (left, right) = padding
    _, HP, WP, _ = padded.shape
    return padded[:, top : HP - bottom, left : WP - right].copy()


def tap(padded: np.ndarray, u: int, v: int, stride: Pair, out: Pair) -> np.ndarray:
    """Return what tap (u, v) of every window sees: the view padded[n, i*SH + u, j*SW + v, c], (N, OH, OW, C).

    This view is the whole trick of the NumPy implementations: a window operation is a sum over its few taps,
    and each tap is one array operation over all pixels. Adding into the view is its transpose, which
    backward needs.
    """
    (SH, SW), (OH, OW) = stride, out
    return padded[:, u : u + SH * (OH - 1) + 1 : SH, v : v + SW * (OW - 1) + 1 : SW]
