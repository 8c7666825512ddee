"""BatchNorm and ReLU, forward and backward: as pieces of the other kernels, between them, and by themselves."""

import numpy as np
from numba import prange

from mbnp.backend import inlined, jit, piece
from mbnp.fused.kernels.vectors import BYTES, accumulate, clip, load, prefetch, store, where_inside

# Pixels whose sums are made in float32, as those of a row are in depthwise kernels; they are added up in float64.
RUN = 16


# ---- pieces: one vector of channels of a run of pixels, and all channels of whole pixels -----------------------------
#
# Arrays are flat, with the entry to begin at, because to make a slice Numba counts references, which takes longer than
# a short row; what one vector of channels passes through is inlined, because a call would save all vector registers.


@inlined
def activate_run(z, at, pixels, affine, limits, c, out, o, step, ahead):
    """out = clip((z - mean) * scale + shift) for channels c ..., z from `at` and out from o on, `step` apart in out."""
    C = affine.shape[1]
    mean, scale, shift = load(affine[0], c), load(affine[1], c), load(affine[2], c)
    low, high = limits[0], limits[1]
    for _ in range(pixels):
        prefetch(z, at + ahead)
        store(clip((load(z, at) - mean) * scale + shift, low, high), out, o)
        at, o = at + C, o + step


@inlined
def adjoint_run(g, z, at, pixels, affine, adjoint, c, out, o, step, ahead):
    """out = dL/dz = k*g + c1*(z - mean) + c0, likewise."""
    C = affine.shape[1]
    mean, k, c1, c0 = load(affine[0], c), load(adjoint[0], c), load(adjoint[1], c), load(adjoint[2], c)
    for _ in range(pixels):
        prefetch(g, at + ahead)
        prefetch(z, at + ahead)
        store(k * load(g, at) + c1 * (load(z, at) - mean) + c0, out, o)
        at, o = at + C, o + step


@inlined
def mask_run(da, o, step, z, at, pixels, affine, limits, c, g, sums):
    """g = da where BN(z) lies strictly within the limits, else 0; adds g and g*(z - mean) to sums (2, C)."""
    C = affine.shape[1]
    mean, scale, shift = load(affine[0], c), load(affine[1], c), load(affine[2], c)
    low, high = limits[0], limits[1]
    s1 = s2 = mean - mean
    for _ in range(pixels):
        centred = load(z, at) - mean
        d = where_inside(centred * scale + shift, low, high, load(da, o))
        store(d, g, at)
        s1, s2 = s1 + d, s2 + d * centred
        at, o = at + C, o + step
    accumulate(s1, sums[0], c)
    accumulate(s2, sums[1], c)


@piece
def activate_pixels(z, affine, limits, out):
    """out = clip((z - mean) * scale + shift)."""
    C = affine.shape[1]
    for first in range(0, z.size, RUN * C):
        pixels = min(RUN, (z.size - first) // C)
        for c in range(0, C, BYTES // z.itemsize):
            activate_run(z, first + c, pixels, affine, limits, c, out, first + c, C, RUN * C)


@piece
def adjoint_pixels(g, z, affine, adjoint, out):
    """out = dL/dz = k*g + c1*(z - mean) + c0."""
    C = affine.shape[1]
    for first in range(0, z.size, RUN * C):
        pixels = min(RUN, (z.size - first) // C)
        for c in range(0, C, BYTES // z.itemsize):
            adjoint_run(g, z, first + c, pixels, affine, adjoint, c, out, first + c, C, RUN * C)


@piece
def mask_pixels(g, z, affine, limits, sums):
    """In place, g = g where BN(z) lies strictly within the limits, else 0; adds g and g*(z - mean) to sums (2, C)."""
    C = affine.shape[1]
    for first in range(0, z.size, RUN * C):
        pixels = min(RUN, (z.size - first) // C)
        for c in range(0, C, BYTES // z.itemsize):
            mask_run(g, first + c, C, z, first + c, pixels, affine, limits, c, g, sums)


@piece
def take_moments(z, moments):
    """moments (2, C) = the mean of z, and the sum of squared deviations from it, in float64.

    One pass, over deviations from one pixel: a plain sum of squares would cancel where the mean is large. Any pixel of
    them will do, since its own deviation is part of the sum: with P of them the variance keeps all but P times eps.
    A typical one is better, and the first often is not: at a map's corner it saw the most padding.
    """
    C = moments.shape[1]
    pivot = 2 * (z.size // C) // 3 * C
    moments[:] = 0
    for first in range(0, z.size, RUN * C):
        pixels = min(RUN, (z.size - first) // C)
        for c in range(0, C, BYTES // z.itemsize):
            p = load(z, pivot + c)
            s1 = s2 = p - p
            k = first + c
            for _ in range(pixels):
                d = load(z, k) - p
                s1, s2 = s1 + d, s2 + d * d
                k += C
            accumulate(s1, moments[0], c)
            accumulate(s2, moments[1], c)
    centre(z[pivot : pivot + C], z.size // C, moments)


@piece
def centre(pivot, pixels, moments):
    """From the sums over `pixels` of deviations from the pivot (C,) and of their squares: the moments."""
    for c in range(pivot.size):
        shift = moments[0, c] / pixels
        m2 = moments[1, c] - moments[0, c] * shift
        moments[1, c] = 0.0 if m2 < 0 else m2  # in this order a NaN stays one
        moments[0, c] = pivot[c] + shift


# ---- BatchNorm between the passes -----------------------------------------------------------------------------


@jit
def finish_statistics(moments, counts, gamma, beta, eps, momentum, running_mean, running_var, affine):
    """Combine the tiles' mean and m2 as Chan, Golub and LeVeque (1979) do; make `affine`, move the running ones.

    moments (tiles, 2, C), counts (tiles,). Law: `batchnorm.forward` and `batchnorm.update_running`.
    """
    C, total = gamma.size, counts.sum()
    mean, m2 = np.zeros(C), np.zeros(C)
    for t in range(counts.size):
        for c in range(C):
            mean[c] += counts[t] * moments[t, 0, c]
    mean /= total
    for t in range(counts.size):
        for c in range(C):
            d = moments[t, 0, c] - mean[c]
            m2[c] += moments[t, 1, c] + counts[t] * (d * d)
    for c in range(C):
        inv = 1 / np.sqrt(m2[c] / total + eps)
        affine[0, c] = mean[c]
        rest = affine[0, c] - mean[c]
        affine[1, c], affine[2, c] = gamma[c] * inv, beta[c] + rest * gamma[c] * inv
        affine[3, c], affine[4, c] = inv, rest
        running_mean[c] += momentum * (mean[c] - running_mean[c])
        running_var[c] += momentum * (m2[c] / (total - 1) - running_var[c])


@jit
def finish_adjoint(sums, total, affine, dgamma, dbeta, adjoint_out):
    """Add the tiles' sums to BN's gradients, and make `adjoint`. Law: `batchnorm.backward`.

    With total = inf the statistics are constants, as in a frozen BatchNorm: `batchnorm.inference_backward`.
    """
    C = dgamma.size
    s1, s2 = np.zeros(C), np.zeros(C)
    for t in range(sums.shape[0]):
        for c in range(C):
            s1[c] += sums[t, 0, c]
            s2[c] += sums[t, 1, c]
    for c in range(C):
        scale, inv, rest = affine[1, c], np.float64(affine[3, c]), np.float64(affine[4, c])
        products = s2[c] + rest * s1[c]
        dgamma[c] += products * inv
        dbeta[c] += s1[c]
        slope = -scale * inv * inv * products / total
        adjoint_out[0, c] = scale
        adjoint_out[1, c] = slope
        adjoint_out[2, c] = slope * rest - scale * s1[c] / total


# ---- BatchNorm by itself: after a convolution that stays as it is, and at the end of a chain ------------------------


@piece
def _add_activate(z, affine, limits, shortcut, out):
    """out = clip((z - mean) * scale + shift + shortcut)."""
    C = affine.shape[1]
    low, high = limits[0], limits[1]
    for first in range(0, z.size, RUN * C):
        pixels = min(RUN, (z.size - first) // C)
        for c in range(0, C, BYTES // z.itemsize):
            mean, scale, shift = load(affine[0], c), load(affine[1], c), load(affine[2], c)
            k = first + c
            for _ in range(pixels):
                store(clip((load(z, k) - mean) * scale + shift + load(shortcut, k), low, high), out, k)
                k += C


@piece
def _normalise(z, affine, limits, shortcut, summed, out):
    if summed:
        _add_activate(z.ravel(), affine, limits, shortcut.ravel(), out.ravel())
    else:
        activate_pixels(z.ravel(), affine, limits, out.ravel())


@jit(parallel=True)
def normalise(z, affine, limits, shortcut, summed, out):
    """out (N, H, W, C). Law: relu.forward(batchnorm.forward(z) + shortcut), without the shortcut unless `summed`."""
    for n in prange(z.shape[0]):
        _normalise(z[n], affine, limits, shortcut[n], summed, out[n])


@piece
def _image_moments(z, moments):
    take_moments(z.ravel(), moments)


@jit(parallel=True)
def statistics(z, moments):
    """moments (N, 2, C) of each image of z (N, H, W, C): mean and sum of squared deviations, as `finish_statistics`."""
    for n in prange(z.shape[0]):
        _image_moments(z[n], moments[n])


@piece
def _normalise_backward(dy, y, z, affine, limits, d, sums):
    C = affine.shape[1]
    low, high = limits[0], limits[1]
    sums[:] = 0
    for first in range(0, z.size, RUN * C):
        pixels = min(RUN, (z.size - first) // C)
        for c in range(0, C, BYTES // z.itemsize):
            mean = load(affine[0], c)
            s1 = s2 = mean - mean
            k = first + c
            for _ in range(pixels):
                v = where_inside(load(y, k), low, high, load(dy, k))
                store(v, d, k)
                s1, s2 = s1 + v, s2 + v * (load(z, k) - mean)
                k += C
            accumulate(s1, sums[0], c)
            accumulate(s2, sums[1], c)


@jit(parallel=True)
def normalise_backward(dy, y, z, affine, limits, d, sums):
    """d (N, H, W, C), and sums (N, 2, C) of each image. Law: d = relu.backward(dy, x) where y = relu.forward(x).

    d may be dy.
    """
    for n in prange(z.shape[0]):
        _normalise_backward(dy[n].ravel(), y[n].ravel(), z[n].ravel(), affine, limits, d[n].ravel(), sums[n])


@piece
def _image_adjoint(g, z, affine, adjoint, dz):
    adjoint_pixels(g.ravel(), z.ravel(), affine, adjoint, dz.ravel())


@jit(parallel=True)
def batchnorm_backward(g, z, affine, adjoint, dz):
    """dz (N, H, W, C) from g, the gradient of BN(z). Law: dz = batchnorm.backward(g, z)."""
    for n in prange(z.shape[0]):
        _image_adjoint(g[n], z[n], affine, adjoint, dz[n])
