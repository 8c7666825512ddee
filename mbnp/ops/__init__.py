"""The operations of a MobileNet, one file each, forward and backward, written out by hand.

Read a file from top to bottom: the formula and its gradients, the loops that define the operation, the same
in vectorised NumPy, a kernel where that is faster than NumPy, and the public pair `forward`, `backward` that picks
one of these implementations (see `mbnp.backend`). All of them compute the same numbers, and the tests compare each
with PyTorch and with finite differences.

Layout. Channels come last: x[n, i, j, c]. The channels of one pixel lie side by side in memory, so that a 1x1
convolution is one matrix product over all pixels, and a depthwise convolution runs along the channels.

    x         the input, (N, H, W, C)
    y         the output, (N, OH, OW, D)
    w         weights: conv (KH, KW, C, D), depthwise (KH, KW, C), pointwise and linear (C, D)
    b         bias, (D,), or (C,) for depthwise
    dx        the gradient of the loss with respect to x, of the shape of x; dw, db and dy likewise

    N         images in the batch
    H, W      height and width of x (a capital W is always a width, a small w always weights)
    OH, OW    height and width of y
    C, D      channels of x, channels of y
    KH, KW    height and width of the kernel
    SH, SW    stride: how many pixels of x the kernel moves for one pixel of y
    top, bottom, left, right    padding: how many rows and columns of zeros surround x

    n, i, j   an image, a row and a column of y
    u, v      a row and a column of the kernel: a tap
    p, q      the row and the column of x that the tap looks at: p = i*SH + u - top, q = j*SW + v - left
    c, d      a channel of x, a channel of y

Types. float32 or float64. The result has the type of the input, and mixing the two is an error. Means, variances
and bias gradients, sums over all pixels of a batch, are finished in float64 by the fast implementations, because
in float32 they would lose two digits.
Arrays that are empty, masked or not in the machine's byte order are refused.

NaN and infinities. Results are what floating-point arithmetic makes of the formula, as in PyTorch: NaN shows, and
0 times infinity is NaN, with the zeros of the padding, too. All implementations have NaN, +inf and -inf at the same
places, with two exceptions: a sum that overflows on the way may do so in one order and not in another, and
`batchnorm.py` has one of its own. Subnormal numbers are numbers like others.

Operations never write into their arguments, and what they return belongs to the caller.
"""

from mbnp.ops import batchnorm, conv, depthwise, linear, pointwise, pool, relu, softmax_cross_entropy, window

__all__ = [
    "batchnorm",
    "conv",
    "depthwise",
    "linear",
    "pointwise",
    "pool",
    "relu",
    "softmax_cross_entropy",
    "window",
]
