"""Batch normalisation: every channel shifted and scaled to mean 0 and variance 1, then to beta and gamma.

x is looked at as (M, C), whatever its shape was: a channel has M = N*H*W values, its rows. For each channel:

    mean    = 1/M sum_m x[m]
    var     = 1/M sum_m (x[m] - mean)^2                 (biased: divided by M, not by M - 1)
    xhat[m] = (x[m] - mean) / sqrt(var + eps)
    y[m]    = gamma xhat[m] + beta

Backward. gamma and beta are a scale and a shift:

    dbeta   = sum_m dy[m]
    dgamma  = sum_m dy[m] xhat[m]

x[m] acts on its channel three ways: by itself, through the mean, and through s = sqrt(var + eps):

    d mean / dx[m]    = 1/M
    d s / dx[m]       = (x[m] - mean) / (M s) = xhat[m] / M
    d xhat[k] / dx[m] = ([k = m] - 1/M - xhat[k] xhat[m] / M) / s

The sum over k of dy[k] gamma times the last line is

    dx[m] = gamma/s (dy[m] - dbeta/M - xhat[m] dgamma/M)

The two subtractions take out of dy what a shift or a stretch of the whole channel would undo anyway. For
dy = 1 nothing is left: dx = 0, so a gradient check with ones proves nothing.

In inference mean and var are constants, the running averages: y is a scale and a shift, and dx = gamma/s dy.

A NaN or an infinity makes all of its channel NaN, in training. A variance that overflows x's type (in float32 that of
values 1e19 apart) is infinite, as in PyTorch: then y = beta, and dx = 0. Where sums in backward are not finite none of
the channel's dx is, but whether an entry is infinite or NaN depends on how the terms are grouped.

Source: Ioffe and Szegedy, "Batch Normalization", arXiv:1502.03167, algorithm 1 and section 3.
"""

import numba
import numpy as np

from mbnp import backend
from mbnp.errors import MbnpError
from mbnp.ops import checks

# --- loops: the definition ---


def forward_loops(x, gamma, beta, eps):
    M, C = x.shape
    y = np.empty_like(x)
    mean = np.empty_like(gamma)
    var = np.empty_like(gamma)
    for c in range(C):
        total = np.float64(0)
        for m in range(M):
            total += x[m, c]
        mu = total / M
        total = np.float64(0)
        for m in range(M):
            total += (x[m, c] - mu) ** 2
        s = np.sqrt(total / M + eps)
        for m in range(M):
            y[m, c] = gamma[c] * (x[m, c] - mu) / s + beta[c]
        mean[c] = mu
        var[c] = total / M
    return y, mean, var


def backward_loops(dy, x, gamma, mean, var, eps):
    M, C = x.shape
    dx = np.empty_like(x)
    dgamma = np.empty_like(gamma)
    dbeta = np.empty_like(gamma)
    for c in range(C):
        s = np.sqrt(np.float64(var[c]) + eps)
        sum_dy = np.float64(0)
        sum_dy_xhat = np.float64(0)
        for m in range(M):
            sum_dy += dy[m, c]
            sum_dy_xhat += dy[m, c] * (x[m, c] - mean[c]) / s
        for m in range(M):
            xhat = (x[m, c] - mean[c]) / s
            dx[m, c] = gamma[c] / s * (dy[m, c] - sum_dy / M - xhat * sum_dy_xhat / M)
        dgamma[c] = sum_dy_xhat
        dbeta[c] = sum_dy
    return dx, dgamma, dbeta


# --- NumPy: all channels at once ---


def forward_numpy(x, gamma, beta, eps):
    mean64 = x.mean(axis=0, dtype=np.float64)  # (C,)
    mean = mean64.astype(x.dtype)
    centred = x - mean  # (M, C); not mean(x^2) - mean^2, which cancels where the mean is large
    var = np.square(centred).mean(axis=0, dtype=np.float64)
    scale = gamma / np.sqrt(var + eps)
    rest = mean64 - mean  # what rounding left of the mean: up to 3e-5 in float32 where the mean is 1000
    y = centred * scale.astype(x.dtype) + (beta - rest * scale).astype(x.dtype)
    return y, mean, var.astype(x.dtype)


def backward_numpy(dy, x, gamma, mean, var, eps):
    M, _ = x.shape
    s = np.sqrt(var + eps)
    centred = x - mean
    centred -= centred.mean(axis=0, dtype=np.float64).astype(x.dtype)  # what rounding left, as above
    xhat = centred / s
    dbeta = dy.sum(axis=0, dtype=np.float64).astype(x.dtype)
    dgamma = (dy * xhat).sum(axis=0, dtype=np.float64).astype(x.dtype)
    dx = gamma / s * (dy - dbeta / M - xhat * (dgamma / M))
    return dx, dgamma, dbeta


# --- Numba: sums tile by tile, then one pass that is a scale and a shift ---

TILE = 512  # rows that are added up in x's dtype; the sums of the tiles are added up in float64


def forward_numba(x, gamma, beta, eps):
    M, _ = x.shape
    near = x[0]  # any value near the mean keeps the sums small
    mean = (near + _forward_sums(x, near).sum(axis=0, dtype=np.float64)[0] / M).astype(x.dtype)
    # A second pass, about the mean, so that var cannot cancel; `rest` is what rounding left of the mean.
    rest, squares = _forward_sums(x, mean).sum(axis=0, dtype=np.float64) / M
    var = squares - rest**2
    scale = gamma / np.sqrt(var + eps)
    y = _scale_shift(x, mean, scale.astype(x.dtype), (beta - rest * scale).astype(x.dtype))
    return y, (mean + rest).astype(x.dtype), var.astype(x.dtype)


@backend.jit(parallel=True)
def _forward_sums(x, near):
    """Return each tile's sum_m (x - near) and sum_m (x - near)^2, per channel: (tiles, 2, C)."""
    M, C = x.shape
    tiles = (M + TILE - 1) // TILE  # by rows, not by threads, so that their number changes no result
    sums = np.zeros((tiles, 2, C), x.dtype)
    for tile in numba.prange(tiles):
        for m in range(tile * TILE, min((tile + 1) * TILE, M)):
            for c in range(C):
                a = x[m, c] - near[c]
                sums[tile, 0, c] += a
                sums[tile, 1, c] += a * a
    return sums


@backend.jit(parallel=True)
def _scale_shift(x, mean, scale, shift):
    """Return y = (x - mean) scale + shift."""
    M, C = x.shape
    y = np.empty_like(x)
    for m in numba.prange(M):
        for c in range(C):
            y[m, c] = (x[m, c] - mean[c]) * scale[c] + shift[c]
    return y


def backward_numba(dy, x, gamma, mean, var, eps):
    M, _ = x.shape
    s = np.sqrt(var.astype(np.float64) + eps)
    dbeta, products, rest = _backward_sums(dy, x, mean).sum(axis=0, dtype=np.float64)
    rest = rest / M
    dgamma = (products - rest * dbeta) / s
    # gamma/s (dy - dbeta/M - (x - mean - rest)/s dgamma/M), sorted by what changes from row to row:
    by_dy = gamma / s
    by_x = -by_dy * dgamma / (M * s)
    constant = -by_dy * dbeta / M - by_x * rest
    dx = _combine(dy, x, mean, *(a.astype(x.dtype) for a in (by_dy, by_x, constant)))
    return dx, dgamma.astype(x.dtype), dbeta.astype(x.dtype)


@backend.jit(parallel=True)
def _backward_sums(dy, x, mean):
    """Return each tile's sum_m dy, sum_m dy (x - mean) and sum_m (x - mean), per channel: (tiles, 3, C)."""
    M, C = x.shape
    tiles = (M + TILE - 1) // TILE
    sums = np.zeros((tiles, 3, C), x.dtype)
    for tile in numba.prange(tiles):
        for m in range(tile * TILE, min((tile + 1) * TILE, M)):
            for c in range(C):
                a = x[m, c] - mean[c]
                sums[tile, 0, c] += dy[m, c]
                sums[tile, 1, c] += dy[m, c] * a
                sums[tile, 2, c] += a
    return sums


@backend.jit(parallel=True)
def _combine(dy, x, mean, by_dy, by_x, constant):
    """Return dx = by_dy dy + by_x (x - mean) + constant."""
    M, C = x.shape
    dx = np.empty_like(x)
    for m in numba.prange(M):
        for c in range(C):
            dx[m, c] = by_dy[c] * dy[m, c] + by_x[c] * (x[m, c] - mean[c]) + constant[c]
    return dx


# --- inference, in all three: mean and var are constants, so this is a scale and a shift ---


def inference_loops(x, gamma, beta, mean, var, eps):
    M, C = x.shape
    y = np.empty_like(x)
    for c in range(C):
        s = np.sqrt(np.float64(var[c]) + eps)
        for m in range(M):
            y[m, c] = gamma[c] * (x[m, c] - mean[c]) / s + beta[c]
    return y


def inference_backward_loops(dy, x, gamma, mean, var, eps):
    M, C = x.shape
    dx = np.empty_like(x)
    dgamma = np.empty_like(gamma)
    dbeta = np.empty_like(gamma)
    for c in range(C):
        s = np.sqrt(np.float64(var[c]) + eps)
        sum_dy = np.float64(0)
        sum_dy_xhat = np.float64(0)
        for m in range(M):
            dx[m, c] = gamma[c] / s * dy[m, c]
            sum_dy += dy[m, c]
            sum_dy_xhat += dy[m, c] * (x[m, c] - mean[c]) / s
        dgamma[c] = sum_dy_xhat
        dbeta[c] = sum_dy
    return dx, dgamma, dbeta


def inference_numpy(x, gamma, beta, mean, var, eps):
    return (x - mean) * (gamma / np.sqrt(var + eps)) + beta


def inference_backward_numpy(dy, x, gamma, mean, var, eps):
    s = np.sqrt(var + eps)
    dgamma = (dy * (x - mean)).sum(axis=0, dtype=np.float64) / s
    dbeta = dy.sum(axis=0, dtype=np.float64)
    return dy * (gamma / s), dgamma.astype(x.dtype), dbeta.astype(x.dtype)


def inference_numba(x, gamma, beta, mean, var, eps):
    return _scale_shift(x, mean, gamma / np.sqrt(var + eps), beta)


# --- the public functions: x of any shape whose last axis is the channels ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numba)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy, numba=backward_numba)
_inference = backend.pick(loops=inference_loops, numpy=inference_numpy, numba=inference_numba)
_inference_backward = backend.pick(loops=inference_backward_loops, numpy=inference_backward_numpy)


def forward(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalise by the batch, as in training: y of the shape of x, and the batch's mean and biased var, (C,) each.

    One value per channel has no variance: MbnpError. PyTorch's eps is 1e-5, Keras' is 1e-3.
    """
    x, gamma, beta = _valid(x, gamma=gamma, beta=beta)
    rows = x.reshape(-1, x.shape[-1])
    check_count(len(rows))
    y, mean, var = _forward(rows, gamma, beta, float(eps))
    y[:, np.isposinf(var)] = beta[np.isposinf(var)]
    return y.reshape(x.shape), mean, var


def backward(
    dy: np.ndarray, x: np.ndarray, gamma: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return dx, dgamma, dbeta of `forward`; x went into it, mean and var came out of it."""
    x, gamma, mean, var = _valid(x, gamma=gamma, mean=mean, var=var)
    dy = checks.gradient(dy, x.shape, x)
    C = x.shape[-1]
    dx, dgamma, dbeta = _backward(dy.reshape(-1, C), x.reshape(-1, C), gamma, mean, var, float(eps))
    return dx.reshape(x.shape), dgamma, dbeta


def inference(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float = 1e-5
) -> np.ndarray:
    """Return y of the shape of x, normalised with a given mean and var: the running averages."""
    x, gamma, beta, mean, var = _valid(x, gamma=gamma, beta=beta, mean=mean, var=var)
    rows = x.reshape(-1, x.shape[-1])
    return _inference(rows, gamma, beta, mean, var, float(eps)).reshape(x.shape)


def inference_backward(
    dy: np.ndarray, x: np.ndarray, gamma: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return dx, dgamma, dbeta of `inference`: nothing goes through the batch's mean and variance."""
    x, gamma, mean, var = _valid(x, gamma=gamma, mean=mean, var=var)
    dy = checks.gradient(dy, x.shape, x)
    C = x.shape[-1]
    rows = dy.reshape(-1, C), x.reshape(-1, C)
    dx, dgamma, dbeta = _inference_backward(*rows, gamma, mean, var, float(eps))
    return dx.reshape(x.shape), dgamma, dbeta


def update_running(
    running_mean: np.ndarray, running_var: np.ndarray, mean: np.ndarray, var: np.ndarray, count: int,
    momentum: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the running averages after a batch of `count` = N*H*W values per channel, as PyTorch keeps them.

    momentum is the weight of the new batch. The batch is normalised with its biased variance, but what goes into
    the average is the unbiased one (divided by count - 1), which estimates the variance of all the data.
    """
    check_count(count)
    unbiased = var * float(count / (count - 1))
    momentum = float(momentum)  # a NumPy number would turn float32 into float64
    return (
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_var + momentum * unbiased,
    )


def _valid(x: np.ndarray, **vectors: np.ndarray) -> list[np.ndarray]:
    x = checks.array("x", x)
    for name, value in vectors.items():
        checks.channels(x, np.size(value), f"{name} {np.shape(value)}")
    return [x, *(checks.vector(name, value, x.shape[-1], x) for name, value in vectors.items())]


def check_count(count: int) -> None:
    """Raise MbnpError if a channel has too few values for a variance."""
    if count < 2:
        raise MbnpError(
            "batch normalisation cannot train on one value per channel, which has no variance: "
            "use a larger batch or a larger image"
        )
