"""The exercises of lesson 4: batch normalisation forward and backward, and its running statistics."""

import numpy as np

from mbnp.grading.exercise import Case, Exercise, Mistake
from mbnp.ops import batchnorm

PIXELS = (0, 1, 2)  # the axes of all values of a channel


def _arrays(seed: int):
    """Yield dy, x, gamma, beta and eps for each case. Few values, so that M and M - 1 are far apart."""
    rng = np.random.default_rng(seed)
    for sign, shape, centre, eps in (
        (1, (2, 2, 3, 3), 0, 1e-5), (1, (3, 3, 2, 4), 2, 0.3), (1, (4, 3, 2, 2), -40, 1e-3), (-1, (2, 3, 2, 3), 1, 0.01)
    ):  # fmt: skip
        C = shape[-1]
        x = (centre + rng.standard_normal(shape) * rng.uniform(0.5, 2, C)).astype(np.float32)
        gamma, beta = sign * rng.uniform(0.5, 2, C).astype(np.float32), rng.standard_normal(C, dtype=np.float32)
        yield rng.standard_normal(shape, dtype=np.float32), x, gamma, beta, eps


def _forward_cases(seed: int) -> list[Case]:
    return [{"x": x, "gamma": g, "beta": b, "eps": eps} for _, x, g, b, eps in _arrays(seed)]


def _dx_cases(seed: int) -> list[Case]:
    return [{"dy": dy, "x": x, "gamma": g, "eps": eps} for dy, x, g, _, eps in _arrays(seed)]


def _running_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for (_, x, _, _, _), momentum in zip(_arrays(seed), (0.1, 0.25, 0.01, 0.5), strict=True):
        C = x.shape[-1]
        mean, var = rng.standard_normal(C, dtype=np.float32), rng.uniform(0.5, 2, C).astype(np.float32)
        cases.append({"running_mean": mean, "running_var": var, "x": x, "momentum": momentum})
    return cases


def _y(x, gamma, beta, eps):
    return batchnorm.forward(x, gamma, beta, eps)[0]


def _dx(dy, x, gamma, eps):
    _, mean, var = batchnorm.forward(x, gamma, np.zeros_like(gamma), eps)
    return batchnorm.backward(dy, x, gamma, mean, var, eps)[0]


def _running(running_mean, running_var, x, momentum):
    ones = np.ones_like(running_mean)
    _, mean, var = batchnorm.forward(x, ones, ones)
    return batchnorm.update_running(running_mean, running_var, mean, var, x.size // len(ones), momentum)


# --- forward ---


def _forward_over(axes):
    """Make a forward with mean and variance over other axes."""
    return lambda x, gamma, beta, eps: (
        gamma * (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps) + beta
    )


def _forward_of_rows(x, gamma, beta, eps):
    rows = x.reshape(x.shape[-1], -1)
    y = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + eps)
    return gamma * y.reshape(x.shape) + beta


def _forward_by(deviation):
    """Make a forward that divides by `deviation(x, eps)`."""
    return lambda x, gamma, beta, eps: gamma * (x - x.mean(PIXELS)) / deviation(x, eps) + beta


def _normalised(x, gamma, beta, eps):
    mean = x.mean(axis=(0, 1, 2))
    var = x.var(axis=(0, 1, 2))
    s = np.sqrt(var + eps)
    xhat = (x - mean) / s
    return gamma * xhat + beta


FORWARD_MISTAKES = [
    Mistake(
        "order: beta is added before gamma multiplies, so that it is scaled, too: gamma * xhat + beta",
        lambda x, gamma, beta, eps: gamma * (_y(x, np.ones_like(gamma), np.zeros_like(beta), eps) + beta),
    ),
    Mistake(
        "gamma is left out: y = gamma * xhat + beta",
        lambda x, gamma, beta, eps: _y(x, np.ones_like(gamma), beta, eps),
    ),
    Mistake(
        "beta is left out: y = gamma * xhat + beta",
        lambda x, gamma, beta, eps: _y(x, gamma, np.zeros_like(beta), eps),
    ),
    Mistake(
        "unbiased variance: the batch is normalised with the biased one, divided by M and not by M - 1. ddof=0",
        _forward_by(lambda x, eps: np.sqrt(x.var(PIXELS, ddof=1) + eps)),
    ),
    Mistake(
        "axes: mean and variance over the channels of each pixel. Each channel has its own: axis=(0, 1, 2)",
        _forward_over(-1),
    ),
    Mistake(
        "reshape: x.reshape(C, -1) moves no number, so its rows are not the channels, which are last: x.reshape(-1, C)",
        _forward_of_rows,
    ),
    Mistake(
        "axes: mean and variance over the batch, for each pixel. All pixels of a channel have the same: axis=(0, 1, 2)",
        _forward_over(0),
    ),
    Mistake(
        "axes: mean and variance of each image by itself. The batch counts too: axis=(0, 1, 2)",
        _forward_over((1, 2)),
    ),
    Mistake(
        "axes: channels first. mbnp's channels are last, so that the axes of a channel's values are (0, 1, 2)",
        _forward_over((0, 2, 3)),
    ),
    Mistake(
        "axes: one mean and one variance for everything. Each channel has its own: axis=(0, 1, 2)",
        _forward_over(None),
    ),
    Mistake(
        "eps is added outside the square root. It belongs inside, sqrt(var + eps)",
        _forward_by(lambda x, eps: x.std(PIXELS) + np.float32(eps)),
    ),
    Mistake(
        "eps is left out: sqrt(var + eps)",
        _forward_by(lambda x, eps: x.std(PIXELS)),
    ),
    Mistake(
        "it divides by the variance instead of its square root",
        _forward_by(lambda x, eps: x.var(PIXELS) + np.float32(eps)),
    ),
    Mistake(
        "the mean is not subtracted",
        lambda x, gamma, beta, eps: gamma * x / np.sqrt(x.var(PIXELS) + np.float32(eps)) + beta,
    ),
    Mistake(
        "gamma and beta are left out: y = gamma * xhat + beta",
        lambda x, gamma, beta, eps: (x - x.mean(PIXELS)) / np.sqrt(x.var(PIXELS) + np.float32(eps)),
    ),
    Mistake(
        "cancellation: the mean of the squares minus the square of the mean loses its digits in float32 where the mean "
        "is large. Subtract the mean first, then square",
        _forward_by(lambda x, eps: np.sqrt((x * x).mean(PIXELS) - x.mean(PIXELS) ** 2 + eps)),
    ),
]

# --- backward: dx = gamma/s (dy - mean(dy) - xhat mean(dy xhat)) with one thing changed ---


def _dx_with(terms=lambda dy, shift, scale: dy - shift - scale, deviation=None, factor=None, less=0):
    """Make a backward: terms is the sum, deviation(x, eps) s, factor(gamma, s) in front, less subtracted from M."""

    def wrong(dy, x, gamma, eps):
        s = np.sqrt(x.var(PIXELS) + np.float32(eps)) if deviation is None else deviation(x, eps)
        xhat = (x - x.mean(PIXELS)) / s
        M = np.float32(x.size // x.shape[-1] - less)
        shift, scale = dy.sum(PIXELS) / M, xhat * (dy * xhat).sum(PIXELS) / M
        return (gamma / s if factor is None else factor(gamma, s)) * terms(dy, shift, scale)

    return wrong


def _backward(dy, x, gamma, eps):
    mean = x.mean(axis=(0, 1, 2))
    s = np.sqrt(x.var(axis=(0, 1, 2)) + eps)
    xhat = (x - mean) / s
    shift = dy.mean(axis=(0, 1, 2))
    stretch = (dy * xhat).mean(axis=(0, 1, 2))
    return gamma / s * (dy - shift - xhat * stretch)


def _from_sums(dy, x, gamma, eps):
    N, H, W = x.shape[:3]
    M = N * (H * W)
    inverse = 1 / np.sqrt(x.var(axis=(0, 1, 2)) + np.float32(eps))
    xhat = (x - x.mean(axis=(0, 1, 2))) * inverse
    sums = M * dy - dy.sum(axis=(0, 1, 2)) - xhat * (dy * xhat).sum(axis=(0, 1, 2))
    return gamma * inverse / np.float32(M) * sums


def _dx_of_images(dy, x, gamma, eps):
    """Take the number of images for M."""
    M = np.float32(len(x))
    inverse = 1 / np.sqrt(x.var(PIXELS) + np.float32(eps))
    xhat = (x - x.mean(PIXELS)) * inverse
    return gamma * inverse / M * (M * dy - dy.sum(PIXELS) - xhat * (dy * xhat).sum(PIXELS))


def _dx_of_pixels(dy, x, gamma, eps):
    s = np.sqrt(x.var(-1, keepdims=True) + np.float32(eps))
    xhat = (x - x.mean(-1, keepdims=True)) / s
    return gamma / s * (dy - dy.mean(-1, keepdims=True) - xhat * (dy * xhat).mean(-1, keepdims=True))


def _dx_sums(dy, x, gamma, eps):
    """Do not divide the two sums by M."""
    M = np.float32(x.size // x.shape[-1])
    return _dx_with(lambda dy, shift, scale: dy - M * shift - M * scale)(dy, x, gamma, eps)


DX_MISTAKES = [
    Mistake(
        "axes: mean and variance over the channels of each pixel. Each channel has its own: axis=(0, 1, 2)",
        _dx_of_pixels,
    ),
    Mistake("M is taken as the number of images. A channel has N*H*W values", _dx_of_images),
    Mistake(
        "x stands where xhat belongs, in both places: dx = gamma / s * (dy - mean(dy) - xhat * mean(dy * xhat))",
        lambda dy, x, gamma, eps: (
            gamma / np.sqrt(x.var(PIXELS) + np.float32(eps)) * (dy - dy.mean(PIXELS) - x * (dy * x).mean(PIXELS))
        ),
    ),
    Mistake(
        "the statistics are treated as constants, as in inference. x also acts through the mean and through s",
        _dx_with(lambda dy, shift, scale: dy),
    ),
    Mistake(
        "the path through the mean is missing: subtract sum(dy) / M, or that of dy * gamma where gamma is in it",
        _dx_with(lambda dy, shift, scale: dy - scale),
    ),
    Mistake(
        "the path through s is missing: subtract xhat * sum(dy * xhat) / M",
        _dx_with(lambda dy, shift, scale: dy - shift),
    ),
    Mistake(
        "sign: the path through s is subtracted, too",
        _dx_with(lambda dy, shift, scale: dy - shift + scale),
    ),
    Mistake(
        "sign: the path through the mean is subtracted, too",
        _dx_with(lambda dy, shift, scale: dy + shift - scale),
    ),
    Mistake("missing division: both sums are divided by M, the number of values in a channel", _dx_sums),
    Mistake("M - 1: both sums are divided by M, because the variance is", _dx_with(less=1)),
    Mistake(
        "unbiased variance: s is the root of the biased one, divided by M and not by M - 1",
        _dx_with(deviation=lambda x, eps: np.sqrt(x.var(PIXELS, ddof=1) + np.float32(eps))),
    ),
    Mistake(
        "eps is added outside the square root. It belongs inside, s = sqrt(var + eps)",
        _dx_with(deviation=lambda x, eps: x.std(PIXELS) + np.float32(eps)),
    ),
    Mistake(
        "eps is left out: s = sqrt(var + eps)",
        _dx_with(deviation=lambda x, eps: x.std(PIXELS)),
    ),
    Mistake(
        "gamma is left out: dy reaches xhat through gamma, dx = gamma / s * (...)",
        _dx_with(factor=lambda gamma, s: 1 / s),
    ),
    Mistake(
        "the division by s in front is left out: dx = gamma / s * (...)",
        _dx_with(factor=lambda gamma, s: gamma),
    ),
    Mistake(
        "the factor in front divides by the variance instead of s, its square root",
        _dx_with(factor=lambda gamma, s: gamma / s**2),
    ),
    Mistake(
        "xhat is x - mean here, not divided by s",
        lambda dy, x, gamma, eps: (
            (gamma / np.sqrt(x.var(PIXELS) + np.float32(eps)))
            * (dy - dy.mean(PIXELS) - (x - x.mean(PIXELS)) * (dy * (x - x.mean(PIXELS))).mean(PIXELS))
        ),
    ),
    Mistake(
        "missing sum over the batch: the two sums run over each image's pixels. They run over n too: axis=(0, 1, 2)",
        lambda dy, x, gamma, eps: np.concatenate(
            [_with_batch_statistics(dy[n : n + 1], x[n : n + 1], x, gamma, eps) for n in range(len(x))]
        ),
    ),
]


def _with_batch_statistics(dy, x, batch, gamma, eps):
    s = np.sqrt(batch.var(PIXELS) + np.float32(eps))
    xhat = (x - batch.mean(PIXELS)) / s
    return gamma / s * (dy - dy.mean(PIXELS) - xhat * (dy * xhat).mean(PIXELS))


# --- running statistics ---


def _running_with(mean=lambda x: x.mean(PIXELS), var=lambda x: x.var(PIXELS, ddof=1), weight=lambda m: m):
    """Make an update with other statistics of the batch, or another weight of it."""

    def wrong(running_mean, running_var, x, momentum):
        new = weight(momentum)
        return (1 - new) * running_mean + new * mean(x), (1 - new) * running_var + new * var(x)

    return wrong


def _about_the_running_mean(new, less):
    """Make an update whose variance is about the running mean, the old or the new one, divided by M - less."""

    def wrong(running_mean, running_var, x, momentum):
        mean, _ = _running(running_mean, running_var, x, momentum)
        squares = (x - (mean if new else running_mean)) ** 2
        var = squares.sum(PIXELS) / (squares[..., 0].size - less)
        return mean, ((1 - momentum) * running_var + momentum * var).astype(running_var.dtype)

    return wrong


def _of_images(less, every):
    """Return the mean of the variances of single images, each divided by its pixels - less; every: as if by M - 1."""

    def var(x):
        mean = x.var(axis=(1, 2), ddof=less).mean(axis=0)
        size = x[..., 0].size
        return (mean * size / (size - 1) if every else mean).astype(x.dtype)

    return var


def _blended(running_mean, running_var, x, momentum):
    def blend(old, new):
        return (1 - momentum) * old + momentum * new

    mean = x.mean(axis=(0, 1, 2))
    var = x.var(axis=(0, 1, 2), ddof=1)
    return blend(running_mean, mean), blend(running_var, var)


RUNNING_MISTAKES = [
    Mistake(
        "the two results are exchanged: the mean comes first, then the variance",
        lambda running_mean, running_var, x, momentum: _running(running_mean, running_var, x, momentum)[::-1],
    ),
    Mistake(
        "biased variance: the running variance uses the unbiased one, divided by M - 1. ddof=1",
        _running_with(var=lambda x: x.var(PIXELS)),
    ),
    Mistake(
        "momentum is the weight of the new batch, and 1 - momentum that of the old average (Keras has it the "
        "other way)",
        _running_with(weight=lambda m: 1 - m),
    ),
    Mistake(
        "momentum and the variance: momentum is the weight of the new batch, and the variance the unbiased one "
        "(ddof=1)",
        _running_with(var=lambda x: x.var(PIXELS), weight=lambda m: 1 - m),
    ),
    *(
        Mistake(
            "the variance: this is the mean of the variances of single images, which leaves out how far their means "
            "are apart. All pixels of the batch have one variance",
            _running_with(var=_of_images(less, every)),
        )
        for less, every in ((1, False), (0, False), (0, True))
    ),
    Mistake(
        "the running variance is updated with the standard deviation",
        _running_with(var=lambda x: x.std(PIXELS, ddof=1)),
    ),
    *(
        Mistake(
            "the variance is taken about the running mean. It is the batch's own: about the mean of the batch",
            _about_the_running_mean(new, less),
        )
        for new in (True, False)
        for less in (1, 0)
    ),
    Mistake(
        "M is taken as the number of images. A channel has N*H*W values, and M - 1 is one less than that",
        _running_with(var=lambda x: x.var(PIXELS) * np.float32(len(x) / (len(x) - 1))),
    ),
    Mistake(
        "the old average is forgotten: (1 - momentum) * running + momentum * new",
        _running_with(weight=lambda m: 1),
    ),
]

EXERCISES = [
    Exercise("batchnorm_forward", _forward_cases, _y, FORWARD_MISTAKES, solutions=(_normalised,)),
    Exercise("batchnorm_dx", _dx_cases, _dx, DX_MISTAKES, rtol=2e-5, solutions=(_backward, _from_sums)),
    Exercise(
        "running_statistics",
        _running_cases,
        _running,
        RUNNING_MISTAKES,
        outputs=("running_mean", "running_var"),
        solutions=(_blended,),
    ),
]
