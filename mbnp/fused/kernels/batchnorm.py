"""BatchNorm and activation, forward and backward: as pieces of the other kernels, between them, and by themselves."""

import numpy as np

from mbnp.backend import in_parallel, inlined, piece, prepared
from mbnp.backend.vectors import BYTES, accumulate, clip, copy, flat, fma, line, load, prefetch, store, where_inside

# Pixels whose sums are made in float32, as those of a row are in depthwise kernels; they are added up in float64.
RUN = 64


# ---- the activation --------------------------------------------------------------------------------------------------
#
# Which it is does not change within a loop, so that the compiler makes a loop for each.


@inlined
def hard_swish(v, x):
    """v * clip(v/6 + 1/2, 0, 1), of a vector of x's type."""
    t = x.dtype.type  # a literal is a float64
    return v * clip(line(v, t(1 / 6), t(0.5)), t(0), t(1))


@inlined
def affine(source, c):
    """mean, scale and shift of a Source's channels c ... ."""
    ss = source.scale_shift
    return load(ss[0], c), load(ss[1], c), load(ss[2], c)


@inlined
def activation(v, source):
    """What a Source's consumers read, of v = BN(z)."""
    if source.swish:
        return hard_swish(v, source.z)
    return clip(v, source.low, source.high)


@inlined
def activation_back(d, v, source):
    """d times the slope of `activation` at v."""
    if not source.swish:
        return where_inside(v, source.low, source.high, d)
    t = source.z.dtype.type
    # On the right the slope is 1: what is not below the corner is left of d.
    right = d - where_inside(v, t(np.nan), t(3), d)
    return where_inside(v, t(-3), t(3), d * line(v, t(1 / 3), t(0.5))) + right


# ---- pieces: one vector of channels of a run of pixels -----------------------------------------------------------
#
# Arrays are flat, with the entry to begin at, because to make a slice Numba counts references, which takes longer than
# a short row; what one vector of channels passes through is inlined, because a call would save all vector registers.


@inlined
def activate_run(source, z, at, pixels, c, out, o, step, ahead):
    """out = a for channels c ..., source's flat z from `at` and out from o on, `step` apart in out."""
    C = source.z.shape[3]
    mean, scale, shift = affine(source, c)
    for _ in range(pixels):
        prefetch(z, at + ahead)
        store(activation(fma(load(z, at) - mean, scale, shift), source), out, o)
        at, o = at + C, o + step


@inlined
def gradient_run(g, z, at, pixels, scale_shift, coefficients, c, out, o, step, ahead):
    """out = dL/dz = k*g + c1*(z - mean) + c0, likewise."""
    C = scale_shift.shape[1]
    mean, k = load(scale_shift[0], c), load(coefficients[0], c)
    c1, c0 = load(coefficients[1], c), load(coefficients[2], c)
    for _ in range(pixels):
        prefetch(g, at + ahead)
        prefetch(z, at + ahead)
        store(fma(k, load(g, at), fma(c1, load(z, at) - mean, c0)), out, o)
        at, o = at + C, o + step


@inlined
def mask_run(da, o, step, source, z, at, pixels, c, g, add, sums):
    """g = da times the activation's slope, of a clip 1 strictly within its bounds and else 0.

    Adds g and g*(z - mean) to sums (2, C). With `add`, it is added to the gradient that is in g already.
    """
    if add:  # a loop for each: a branch within one would be taken, or not, for every pixel
        _mask(da, o, step, source, z, at, pixels, c, g, True, sums)
    else:
        _mask(da, o, step, source, z, at, pixels, c, g, False, sums)


@inlined
def _mask(da, o, step, source, z, at, pixels, c, g, add, sums):
    C = source.z.shape[3]
    mean, scale, shift = affine(source, c)
    s1 = s2 = mean - mean
    for _ in range(pixels):
        centred = load(z, at) - mean
        d = activation_back(load(da, o), fma(centred, scale, shift), source)
        if add:
            d = d + load(g, at)
        store(d, g, at)
        s1, s2 = s1 + d, fma(d, centred, s2)
        at, o = at + C, o + step
    accumulate(s1, sums[0], c)
    accumulate(s2, sums[1], c)


@inlined
def moments_run(z, at, pixels, C, pivot, c, moments):
    """Add to moments (2, C) the sums of z - pivot and of its square, for channels c ... of a run of pixels."""
    p = load(pivot, c)
    s1 = s2 = p - p
    for _ in range(pixels):
        d = load(z, at) - p
        s1, s2 = s1 + d, fma(d, d, s2)
        at += C
    accumulate(s1, moments[0], c)
    accumulate(s2, moments[1], c)


# ---- pieces: all channels of whole pixels --------------------------------------------------------------------------
#
# Their copies lie in panels: of `step` channels each pixel after pixel, then of the next channels, `apart` entries on.


@piece
def activate_pixels(source, at, pixels, out, o, step, apart):
    """out from o on = a, z from `at` on."""
    z, C = flat(source.z), source.z.shape[3]
    if source.plain:  # whose channels need not fill vectors
        for panel in range(C // step):
            for p in range(pixels):
                copy(z, at + p * C + panel * step, step, out, o + panel * apart + p * step)
        return
    for first in range(0, pixels, RUN):
        run = min(RUN, pixels - first)
        for panel in range(C // step):
            to = o + panel * (apart - step) + first * step
            for c in range(panel * step, (panel + 1) * step, BYTES // z.itemsize):
                activate_run(source, z, at + first * C + c, run, c, out, to + c, step, RUN * C)


@piece
def gradient_pixels(gradient, at, pixels, out, o, step, apart):
    """out from o on = dL/dz = k*g + c1*(z - mean) + c0, g and z from `at` on."""
    g, z, C = flat(gradient.g), flat(gradient.z), gradient.z.shape[3]
    for first in range(0, pixels, RUN):
        run = min(RUN, pixels - first)
        for panel in range(C // step):
            to = o + panel * (apart - step) + first * step
            for c in range(panel * step, (panel + 1) * step, BYTES // z.itemsize):
                k = at + first * C + c
                gradient_run(g, z, k, run, gradient.scale_shift, gradient.coefficients, c, out, to + c, step, RUN * C)


@piece
def take_moments(z, at, pixels, c, entries, pivot, moments):
    """moments (2, C) += sums of z - pivot and of its square, over pixels from `at` on and channels c to c + entries.

    Deviations from a pixel: a plain sum of squares would cancel where the mean is large. Any pixel of them will do,
    since its own deviation is part of the sum: with P of them the variance keeps all but P times eps. A typical one is
    better, and the first often is not: at a feature map's corner it saw the most padding.
    """
    C = moments.shape[1]
    for first in range(0, pixels, RUN):
        run = min(RUN, pixels - first)
        for i in range(c, c + entries, BYTES // z.itemsize):
            moments_run(z, at + first * C + i, run, C, pivot, i, moments)


@piece
def centre(pivot, pixels, first, last, moments):
    """Turn sums over `pixels` of deviations from the pivot (C,) and of their squares into mean and centred squares.

    Of channels first to last.
    """
    # Slices, whose index begins at 0, and no division: so the compiler makes vectors of it.
    share, means, squares = 1 / pixels, moments[0, first:last], moments[1, first:last]
    for c in range(last - first):
        shift = means[c] * share
        m2 = squares[c] - means[c] * shift
        squares[c] = 0.0 if m2 < 0 else m2  # in this order a NaN stays one
        means[c] = pivot[first + c] + shift


@piece
def total(parts, sums):
    """sums (2, C) = the sum of parts (tiles, 2, C), in their order."""
    sums[:] = 0
    for t in range(parts.shape[0]):
        for i in range(2):
            for c in range(sums.shape[1]):
                sums[i, c] += parts[t, i, c]


# ---- BatchNorm between the passes -----------------------------------------------------------------------------


@piece(allocates=True)
def finish_statistics(statistics):
    """Combine the tiles' mean and m2 as Chan, Golub and LeVeque (1979) do; make scale_shift, move the running ones.

    Reference equation: `batchnorm.forward` and `batchnorm.update_running`. A bias before BatchNorm moves its mean and
    nothing else, so that z is kept without it.
    """
    bn, moments, counts, scale_shift = statistics, statistics.moments, statistics.counts, statistics.scale_shift
    C, pixels = bn.gamma.size, counts.sum()
    mean, m2 = np.zeros(C), np.zeros(C)
    for t in range(counts.size):
        for c in range(C):
            mean[c] += counts[t] * moments[t, 0, c]
    mean /= pixels
    for t in range(counts.size):
        for c in range(C):
            d = moments[t, 0, c] - mean[c]
            m2[c] += moments[t, 1, c] + counts[t] * (d * d)
    for c in range(C):
        inv = 1 / np.sqrt(m2[c] / pixels + bn.eps)
        scale_shift[0, c] = mean[c]
        rest = scale_shift[0, c] - mean[c]
        scale_shift[1, c], scale_shift[2, c] = bn.gamma[c] * inv, bn.beta[c] + rest * bn.gamma[c] * inv
        scale_shift[3, c], scale_shift[4, c] = inv, rest
        bn.running_mean[c] += bn.momentum * (mean[c] + bn.bias[c] - bn.running_mean[c])
        bn.running_var[c] += bn.momentum * (m2[c] / (pixels - 1) - bn.running_var[c])


@piece
def make_coefficients(gradient):
    """Add to the gradients of BatchNorm or a bias, and make the coefficients. Reference equation: `batchnorm.backward`.

    With pixels = inf the statistics are constants, as in a frozen BatchNorm: `batchnorm.inference_backward`.
    """
    scale_shift, sums, coefficients = gradient.scale_shift, gradient.sums, gradient.coefficients
    if gradient.clears:
        gradient.dgamma[:], gradient.dbeta[:], gradient.dbias[:] = 0, 0, 0
    for c in range(gradient.dgamma.size):
        scale, inv, rest = scale_shift[1, c], np.float64(scale_shift[3, c]), np.float64(scale_shift[4, c])
        products = sums[1, c] + rest * sums[0, c]
        gradient.dgamma[c] += products * inv
        gradient.dbeta[c] += sums[0, c]
        slope = -scale * inv * inv * products / gradient.pixels
        coefficients[0, c] = scale
        coefficients[1, c] = slope
        coefficients[2, c] = slope * rest - scale * sums[0, c] / gradient.pixels
    for c in range(gradient.dbias.size):
        gradient.dbias[c] += coefficients[0, c] * sums[0, c]


@prepared
def normalise_backward(gradient):
    """Add to the gradients of BatchNorm or a bias, where nothing before it learns, as `make_coefficients` does."""
    make_coefficients(gradient)


# ---- kernels of feature maps by themselves ---------------------------------------------------------------------


@piece
def _activate(n, source, out):
    """out (N, H, W, C) = a, of image n."""
    _, H, W, C = source.z.shape
    at = n * H * W * C
    activate_pixels(source, at, H * W, flat(out), at, C, 0)


@prepared
def activate(source, out):
    """out (N, H, W, C). Reference equation: relu.forward(batchnorm.forward(z))."""
    in_parallel(source.z.shape[0], _activate, source, out)


@piece
def _add(n, first, second, bounds, out):
    _, H, W, C = first.z.shape
    x, y, o = flat(first.z), flat(second.z), flat(out)
    low, high = bounds[0], bounds[1]
    for start in range(0, H * W, RUN):
        for c in range(0, C, BYTES // out.itemsize):
            (mean1, scale1, shift1), (mean2, scale2, shift2) = affine(first, c), affine(second, c)
            k = (n * H * W + start) * C + c
            for _ in range(min(RUN, H * W - start)):
                a = activation(fma(load(x, k) - mean1, scale1, shift1), first)
                b = activation(fma(load(y, k) - mean2, scale2, shift2), second)
                store(clip(a + b, low, high), o, k)
                k += C


@prepared
def add(first, second, bounds, out):
    """out (N, H, W, C), of two Sources. Reference equation: relu.forward(a1 + a2), a as in `activate`."""
    in_parallel(out.shape[0], _add, first, second, bounds, out)


@piece
def _pass_back(n, dy, y, bounds, source, target):
    _, H, W, C = source.z.shape
    dy, y, z, g = flat(dy), flat(y), flat(source.z), flat(target.g)
    sums, low, high = target.parts[n], bounds[0], bounds[1]
    sums[:] = 0
    for start in range(0, H * W, RUN):
        for c in range(0, C, BYTES // z.itemsize):
            mean, scale, shift = affine(source, c)
            s1 = s2 = mean - mean
            k = (n * H * W + start) * C + c
            for _ in range(min(RUN, H * W - start)):
                centred = load(z, k) - mean
                d = where_inside(load(y, k), low, high, load(dy, k))
                d = activation_back(d, fma(centred, scale, shift), source)
                if target.add:
                    d = d + load(g, k)
                store(d, g, k)
                s1, s2 = s1 + d, fma(d, centred, s2)
                k += C
            accumulate(s1, sums[0], c)
            accumulate(s2, sums[1], c)


@prepared
def pass_back(dy, y, bounds, source, target):
    """Make the gradient of a Source, and its sums, from that of y (N, H, W, C): a sum with it, clipped to the bounds.

    Reference equation: g = relu.backward(relu.backward(dy, y), batchnorm.forward(z)). target.g may be dy.
    """
    in_parallel(source.z.shape[0], _pass_back, dy, y, bounds, source, target)
    total(target.parts[: source.z.shape[0]], target.sums)
