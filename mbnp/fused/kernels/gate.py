"""The gate of squeeze-and-excite, x * factors: a pass over a feature map.

Both are Sources like any other: what is multiplied is made on the way, and on the way back the slope of its activation
and the sums of its BatchNorm, as in `batchnorm.pass_back`. The factors are one vector for a whole image, so that they
stay in a register while its pixels pass by; the gradient of a factor is a sum over these pixels, of which a run is
added up in the type of z, and the runs in float64.
"""

import numpy as np

from mbnp.backend import in_parallel, piece, prepared
from mbnp.backend.vectors import BYTES, accumulate, flat, fma, load, store
from mbnp.fused.kernels.batchnorm import RUN, activation, activation_back, affine, total


@piece
def _multiply(n, source, factors, out):
    _, H, W, C = source.z.shape
    z, o, f = flat(source.z), flat(out), flat(factors.z)
    for start in range(0, H * W, RUN):
        for c in range(0, C, BYTES // out.itemsize):
            mean, scale, shift = affine(factors, c)
            s = activation(fma(load(f, n * C + c) - mean, scale, shift), factors)
            mean, scale, shift = affine(source, c)
            k = (n * H * W + start) * C + c
            for _ in range(min(RUN, H * W - start)):
                store(activation(fma(load(z, k) - mean, scale, shift), source) * s, o, k)
                k += C


@prepared
def gate_forward(source, factors, out):
    """out (N, H, W, C), of two Sources, the second (N, 1, 1, C). Reference equation: gate.forward(a, s)."""
    in_parallel(out.shape[0], _multiply, source, factors, out)


@piece(allocates=True)
def _divide(n, dy, source, factors, target, ds):
    _, H, W, C = source.z.shape
    dy, z, g, f, out = flat(dy), flat(source.z), flat(target.g), flat(factors.z), flat(ds)
    sums, products = target.parts[n], np.zeros(C)
    sums[:] = 0
    for start in range(0, H * W, RUN):
        for c in range(0, C, BYTES // z.itemsize):
            mean, scale, shift = affine(factors, c)
            s = activation(fma(load(f, n * C + c) - mean, scale, shift), factors)
            mean, scale, shift = affine(source, c)
            s1 = s2 = s3 = mean - mean
            k = (n * H * W + start) * C + c
            for _ in range(min(RUN, H * W - start)):
                centred, d = load(z, k) - mean, load(dy, k)
                v = fma(centred, scale, shift)
                s3 = fma(d, activation(v, source), s3)
                d = activation_back(d * s, v, source)
                if target.add:
                    d = d + load(g, k)
                store(d, g, k)
                s1, s2 = s1 + d, fma(d, centred, s2)
                k += C
            accumulate(s1, sums[0], c)
            accumulate(s2, sums[1], c)
            accumulate(s3, products, c)
    for c in range(C):
        out[n * C + c] = products[c]


@prepared
def gate_backward(dy, source, factors, target, ds):
    """Make target.g (N, H, W, C) and its sums, and ds (N, 1, 1, C) of what the factors are.

    Reference equation: dx, ds = gate.backward(dy, a, s); g = relu.backward(dx).
    """
    in_parallel(source.z.shape[0], _divide, dy, source, factors, target, ds)
    total(target.parts[: source.z.shape[0]], target.sums)
