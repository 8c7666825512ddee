"""Hard-swish, hard-sigmoid and the gate of squeeze-and-excite: passes of their own over a feature map.

A ReLU costs its consumer two selections while it loads, here and in backward. A parabola and its slope in that place
would be a branch in every kernel, so each of these is computed once, stored, and read as it is: one more pass over
memory. What they read is a Source like any other: a = clip((z - mean)*scale + shift) is made on the way, and on the way
back its clip and the sums of its BatchNorm, as in `batchnorm.pass_back`. The factors of a gate are one vector for a
whole image, so that they stay in a register while its pixels pass by; the gradient of a factor is a sum over these
pixels, of which a run is added up in the type of z, and the runs in float64.

Hard-sigmoid is min(max(x/6 + 1/2, 0), 1) here, one multiply-add, and 1 or 0 outside of -3 to 3 as in `ops`.
"""

from typing import Any, NamedTuple

import numpy as np

from mbnp.backend import in_parallel, inlined, jit, piece
from mbnp.backend.vectors import BYTES, accumulate, clip, flat, fma, line, load, store, where_inside
from mbnp.fused.kernels.batchnorm import RUN, total


class Numbers(NamedTuple):
    """What the formulas need, in the type of the vectors: a literal is a float64."""

    zero: Any
    half: Any
    one: Any
    sixth: Any
    third: Any
    left: Any  # corner, and the right one
    right: Any
    lowest: Any


@inlined
def numbers(x):
    """Return Numbers of the type of an array's entries."""
    t = x.dtype.type
    return Numbers(t(0), t(0.5), t(1), t(1 / 6), t(1 / 3), t(-3), t(3), t(-np.inf))


@inlined
def curve(v, swish, of):
    """Hard-swish of a vector, or hard-sigmoid; of: Numbers."""
    h = clip(line(v, of.sixth, of.half), of.zero, of.one)
    return v * h if swish else h


@inlined
def slope(v, swish, of, d):
    """d times the slope of `curve` at v."""
    if not swish:
        return where_inside(v, of.left, of.right, d * line(v, of.zero, of.sixth))
    # On the right the slope is 1: what is not below the corner is left of d.
    inside = where_inside(v, of.left, of.right, d * line(v, of.third, of.half))
    return inside + (d - where_inside(v, of.lowest, of.right, d))


@piece
def _activate(n, source, swish, out):
    _, H, W, C = source.z.shape
    z, o, of = flat(source.z), flat(out), numbers(out)
    low, high, ss = source.bounds[0], source.bounds[1], source.scale_shift
    for start in range(0, H * W, RUN):
        for c in range(0, C, BYTES // out.itemsize):
            mean, scale, shift = load(ss[0], c), load(ss[1], c), load(ss[2], c)
            k = (n * H * W + start) * C + c
            for _ in range(min(RUN, H * W - start)):
                store(curve(clip(fma(load(z, k) - mean, scale, shift), low, high), swish, of), o, k)
                k += C


@jit(literal=True)
def curve_forward(source, swish, out):
    """out (N, H, W, C), of a Source. Reference equation: hard_swish.forward(a), or hard_sigmoid.forward(a)."""
    in_parallel(out.shape[0], _activate, source, swish, out)


@piece
def _back(n, dy, source, swish, target):
    _, H, W, C = source.z.shape
    dy, z, g, of = flat(dy), flat(source.z), flat(target.g), numbers(source.z)
    sums, ss = target.parts[n], source.scale_shift
    low, high = source.bounds[0], source.bounds[1]
    sums[:] = 0
    for start in range(0, H * W, RUN):
        for c in range(0, C, BYTES // z.itemsize):
            mean, scale, shift = load(ss[0], c), load(ss[1], c), load(ss[2], c)
            s1 = s2 = mean - mean
            k = (n * H * W + start) * C + c
            for _ in range(min(RUN, H * W - start)):
                centred = load(z, k) - mean
                v = fma(centred, scale, shift)
                d = slope(clip(v, low, high), swish, of, load(dy, k))
                if target.add:
                    d = d + load(g, k)
                d = where_inside(v, low, high, d)
                store(d, g, k)
                s1, s2 = s1 + d, fma(d, centred, s2)
                k += C
            accumulate(s1, sums[0], c)
            accumulate(s2, sums[1], c)


@jit(literal=True)
def curve_backward(dy, source, swish, target):
    """Make target.g (N, H, W, C) and its sums. Reference equation: relu.backward(hard_swish.backward(dy, a))."""
    in_parallel(source.z.shape[0], _back, dy, source, swish, target)
    total(target.parts[: source.z.shape[0]], target.sums)


@piece
def _multiply(n, source, factors, out):
    _, H, W, C = source.z.shape
    z, o, f = flat(source.z), flat(out), flat(factors.z)
    low, high, ss = source.bounds[0], source.bounds[1], source.scale_shift
    low2, high2, ss2 = factors.bounds[0], factors.bounds[1], factors.scale_shift
    for start in range(0, H * W, RUN):
        for c in range(0, C, BYTES // out.itemsize):
            s = clip(fma(load(f, n * C + c) - load(ss2[0], c), load(ss2[1], c), load(ss2[2], c)), low2, high2)
            mean, scale, shift = load(ss[0], c), load(ss[1], c), load(ss[2], c)
            k = (n * H * W + start) * C + c
            for _ in range(min(RUN, H * W - start)):
                store(clip(fma(load(z, k) - mean, scale, shift), low, high) * s, o, k)
                k += C


@jit(literal=True)
def gate_forward(source, factors, out):
    """out (N, H, W, C), of two Sources, the second (N, 1, 1, C). Reference equation: gate.forward(a, s)."""
    in_parallel(out.shape[0], _multiply, source, factors, out)


@piece(allocates=True)
def _divide(n, dy, source, factors, target, ds):
    _, H, W, C = source.z.shape
    dy, z, g, f, out = flat(dy), flat(source.z), flat(target.g), flat(factors.z), flat(ds)
    sums, ss, ss2 = target.parts[n], source.scale_shift, factors.scale_shift
    low, high, low2, high2 = source.bounds[0], source.bounds[1], factors.bounds[0], factors.bounds[1]
    sums[:] = 0
    products = np.zeros(C)
    for start in range(0, H * W, RUN):
        for c in range(0, C, BYTES // z.itemsize):
            s = clip(fma(load(f, n * C + c) - load(ss2[0], c), load(ss2[1], c), load(ss2[2], c)), low2, high2)
            mean, scale, shift = load(ss[0], c), load(ss[1], c), load(ss[2], c)
            s1 = s2 = s3 = mean - mean
            k = (n * H * W + start) * C + c
            for _ in range(min(RUN, H * W - start)):
                centred, d = load(z, k) - mean, load(dy, k)
                v = fma(centred, scale, shift)
                s3 = fma(d, clip(v, low, high), s3)
                d = d * s
                if target.add:
                    d = d + load(g, k)
                d = where_inside(v, low, high, d)
                store(d, g, k)
                s1, s2 = s1 + d, fma(d, centred, s2)
                k += C
            accumulate(s1, sums[0], c)
            accumulate(s2, sums[1], c)
            accumulate(s3, products, c)
    for c in range(C):
        out[n * C + c] = products[c]


@jit(literal=True)
def gate_backward(dy, source, factors, target, ds):
    """Make target.g (N, H, W, C) and its sums, and ds (N, 1, 1, C) of what the factors are.

    Reference equation: dx, ds = gate.backward(dy, a, s); g = relu.backward(dx).
    """
    in_parallel(source.z.shape[0], _divide, dy, source, factors, target, ds)
    total(target.parts[: source.z.shape[0]], target.sums)
