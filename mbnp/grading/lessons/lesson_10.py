"""The exercises of lesson 10: folding, BatchNorm and ReLU in one pass, a product by tiles, statistics of tiles."""

import itertools
from functools import partial

import numpy as np

from mbnp.fused.inference import fold as fold_block
from mbnp.grading.exercise import Case, Exercise, Mistake, exact
from mbnp.layers import BatchNorm, Conv
from mbnp.ops import batchnorm, matmul, relu

# --- fold ---


def _fold(w, b, gamma, beta, mean, var, eps):
    KH, KW, C, D = w.shape
    conv, bn = Conv(C, D, (KH, KW), dtype=w.dtype), BatchNorm(D, eps, dtype=w.dtype)
    assert conv.bias is not None
    conv.weight.value, conv.bias.value = w, b
    bn.weight.value, bn.bias.value = gamma, beta
    bn.running_mean.value, bn.running_var.value = mean, var
    return fold_block(conv, bn)


def _fold_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for (kernel, channels, outputs), eps in (((3, 3, 4), 1e-5), ((1, 5, 3), 1e-3), ((2, 3, 3), 0.1)):
        case = {
            "w": rng.standard_normal((kernel, kernel, channels, outputs)),
            "b": rng.standard_normal(outputs),
            "gamma": rng.uniform(0.5, 2.0, outputs),
            "beta": rng.standard_normal(outputs),
            "mean": rng.standard_normal(outputs),
            "var": rng.uniform(0.05, 3.0, outputs),
        }
        cases.append({name: value.astype(np.float32) for name, value in case.items()} | {"eps": eps})
    return [*cases, exact(cases[0])]


def _folded(w, b, gamma, beta, mean, var, eps, scale=None, bias=None):
    """Return the right answer with one thing changed: the scale, or the bias computed from it."""
    s = gamma / np.sqrt(var + eps) if scale is None else scale
    return w * s, (beta + (b - mean) * s if bias is None else bias(s))


def _into_one(w, b, gamma, beta, mean, var, eps):
    s = gamma / np.sqrt(var + eps)
    return w * s, beta + (b - mean) * s


FOLD_MISTAKES = [
    Mistake(
        "bias: beta is scaled, too. BatchNorm adds it last: beta + (b - mean)·s",
        lambda w, b, gamma, beta, mean, var, eps: _folded(
            w, b, gamma, beta, mean, var, eps, bias=lambda s: (beta + b - mean) * s
        ),
    ),
    Mistake(
        "bias: beta is left out: beta + (b - mean)·s",
        lambda w, b, gamma, beta, mean, var, eps: _folded(
            w, b, gamma, beta, mean, var, eps, bias=lambda s: (b - mean) * s
        ),
    ),
    Mistake(
        "weights: they are returned as they are. BatchNorm scales what the convolution computes: w·s",
        lambda w, b, gamma, beta, mean, var, eps: (w, _fold(w, b, gamma, beta, mean, var, eps)[1]),
    ),
    Mistake(
        "the two results are exchanged: the weights come first, then the bias",
        lambda w, b, gamma, beta, mean, var, eps: _fold(w, b, gamma, beta, mean, var, eps)[::-1],
    ),
    Mistake(
        "eps is left out: the root is of var + eps, and for a small variance that matters",
        lambda w, b, gamma, beta, mean, var, eps: _folded(w, b, gamma, beta, mean, var, 0.0),
    ),
    Mistake(
        "eps is added to the square root; it belongs inside: sqrt(var + eps)",
        lambda w, b, gamma, beta, mean, var, eps: _folded(
            w, b, gamma, beta, mean, var, eps, scale=gamma / (np.sqrt(var) + eps)
        ),
    ),
    Mistake(
        "the root is missing: BatchNorm divides by the standard deviation, not by the variance",
        lambda w, b, gamma, beta, mean, var, eps: _folded(w, b, gamma, beta, mean, var, eps, scale=gamma / (var + eps)),
    ),
    Mistake(
        "gamma is missing: s = gamma / sqrt(var + eps)",
        lambda w, b, gamma, beta, mean, var, eps: _folded(
            w, b, gamma, beta, mean, var, eps, scale=1 / np.sqrt(var + eps)
        ),
    ),
    Mistake(
        "bias: the convolution's own bias b is lost. BatchNorm subtracts the mean from wx + b, so b is scaled with it",
        lambda w, b, gamma, beta, mean, var, eps: _folded(
            w, b, gamma, beta, mean, var, eps, bias=lambda s: beta - mean * s
        ),
    ),
    Mistake(
        "bias: the convolution's own bias b is added as it is. It goes through BatchNorm, too: b·s",
        lambda w, b, gamma, beta, mean, var, eps: _folded(
            w, b, gamma, beta, mean, var, eps, bias=lambda s: b + beta - mean * s
        ),
    ),
    Mistake(
        "bias: the mean is subtracted as it is. BatchNorm subtracts it before it scales: mean·s",
        lambda w, b, gamma, beta, mean, var, eps: _folded(
            w, b, gamma, beta, mean, var, eps, bias=lambda s: beta + b * s - mean
        ),
    ),
    Mistake(
        "bias: the mean is added. BatchNorm subtracts it",
        lambda w, b, gamma, beta, mean, var, eps: _folded(
            w, b, gamma, beta, mean, var, eps, bias=lambda s: beta + (b + mean) * s
        ),
    ),
    Mistake(
        "channels: s belongs to the output channel, the last axis of w. Here it scales the input channels",
        lambda w, b, gamma, beta, mean, var, eps: (
            w * (gamma / np.sqrt(var + eps))[:, None],
            beta + (b - mean) * gamma / np.sqrt(var + eps),
        ),
    ),
]

# --- normalise_relu ---


def _normalise_relu(z, mean, var, gamma, beta, eps):
    return relu.forward(batchnorm.inference(z, gamma, beta, mean, var, eps))


def _relu_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for shape, eps in (((2, 3, 4, 3), 1e-5), ((1, 5, 2, 4), 0.1), ((3, 2, 2, 1), 1e-3), ((2, 4, 3, 2), 1e-3)):
        C = shape[-1]
        case = {
            "z": rng.standard_normal(shape) + rng.standard_normal(C),
            "mean": rng.standard_normal(C),
            "var": rng.uniform(0.05, 2.0, C),
            "gamma": rng.uniform(-1.5, 1.5, C),
            "beta": rng.normal(0.3, 0.5, C),
        }
        cases.append({name: value.astype(np.float32) for name, value in case.items()} | {"eps": eps})
    cases[-1]["gamma"] *= 12  # ReLU has no upper limit, as ReLU6 has
    return cases


def _in_place(z, mean, var, gamma, beta, eps):
    z -= mean
    z *= gamma / np.sqrt(var + eps)
    z += beta
    return np.maximum(z, 0, out=z)


def _scaled_then_cut(z, mean, var, gamma, beta, eps):
    scale = gamma / np.sqrt(var + eps)
    return np.maximum((z - mean) * scale + beta, 0)


def _other_activation(activation):
    return lambda z, mean, var, gamma, beta, eps: activation(_linear(z, mean, var, gamma, beta, eps))


def _beyond_the_mean(z, mean, var, gamma, beta, eps):
    """Return the sum where z lies above the place at which it is 0, which is right where gamma is positive."""
    y = _linear(z, mean, var, gamma, beta, eps)
    return np.where(y * np.sign(gamma) > 0, y, 0).astype(z.dtype)


RELU_MISTAKES = [
    Mistake(
        "ReLU: an inequality is turned round where it is divided by a negative number, and gamma may be negative. "
        "Compare the sum itself with 0",
        _beyond_the_mean,
    ),
    Mistake("ReLU6: numbers are cut at 6. ReLU has no upper limit", _other_activation(lambda y: np.clip(y, 0, 6))),
    Mistake("ReLU: it is not the absolute value. What is negative becomes 0", _other_activation(np.abs)),
    *(
        Mistake(
            f"ReLU: what is negative becomes 0, and is not multiplied by {slope} (leaky ReLU)",
            _other_activation(lambda y, slope=slope: np.where(y > 0, y, np.float32(slope) * y)),
        )
        for slope in (0.01, 0.1, 0.2)
    ),
    Mistake(
        "gamma is left out: z - mean is multiplied by gamma / sqrt(var + eps)",
        lambda z, mean, var, gamma, beta, eps: _normalise_relu(z, mean, var, np.ones_like(gamma), beta, eps),
    ),
    Mistake(
        "beta is left out: it is added after the scale and before ReLU",
        lambda z, mean, var, gamma, beta, eps: _normalise_relu(z, mean, var, gamma, np.zeros_like(beta), eps),
    ),
    Mistake(
        "the mean is not subtracted",
        lambda z, mean, var, gamma, beta, eps: _normalise_relu(z, np.zeros_like(mean), var, gamma, beta, eps),
    ),
    Mistake(
        "order: beta is added after ReLU. It comes before: max(scale * (z - mean) + beta, 0)",
        lambda z, mean, var, gamma, beta, eps: _normalise_relu(z, mean, var, gamma, np.zeros_like(beta), eps) + beta,
    ),
    Mistake(
        "order: ReLU comes last, after scale and shift. If it comes before, a negative gamma or beta undoes it",
        lambda z, mean, var, gamma, beta, eps: np.maximum(z - mean, 0) * gamma / np.sqrt(var + eps) + beta,
    ),
    Mistake(
        "order: ReLU is applied to z itself, before BatchNorm",
        lambda z, mean, var, gamma, beta, eps: _linear(np.maximum(z, 0), mean, var, gamma, beta, eps),
    ),
    Mistake(
        "ReLU is missing: what is negative becomes 0",
        lambda z, mean, var, gamma, beta, eps: _linear(z, mean, var, gamma, beta, eps),
    ),
    Mistake(
        "eps is left out: the root is of var + eps",
        lambda z, mean, var, gamma, beta, eps: np.maximum(_linear(z, mean, var, gamma, beta, 0.0), 0),
    ),
    Mistake(
        "eps is added to the square root; it belongs inside: sqrt(var + eps)",
        lambda z, mean, var, gamma, beta, eps: np.maximum((z - mean) * gamma / (np.sqrt(var) + eps) + beta, 0),
    ),
    Mistake(
        "the root is missing: BatchNorm divides by the standard deviation, not by the variance",
        lambda z, mean, var, gamma, beta, eps: np.maximum((z - mean) * gamma / (var + eps) + beta, 0),
    ),
    Mistake(
        "the statistics are taken from z again. Use the given ones: in the engine, the producer of z accumulated them",
        lambda z, mean, var, gamma, beta, eps: np.maximum(
            _linear(z, z.mean((0, 1, 2)), z.var((0, 1, 2)), gamma, beta, eps), 0
        ),
    ),
    Mistake(
        "in place: -=, *= and out=z change the caller's z, and backward needs it. Write z - mean, not z -= mean",
        _in_place,
    ),
]


def _linear(z, mean, var, gamma, beta, eps):
    return (z - mean) * (gamma / np.sqrt(var + eps)) + beta


# --- blocked_matmul ---


def _matmul_cases(seed: int) -> list[Case]:
    """Return cases in which 4 divides the rows and the columns, one of them, or none."""
    rng = np.random.default_rng(seed)
    shapes = (8, 6, 4), (6, 7, 4), (4, 5, 7), (5, 9, 6), (3, 1, 2), (3, 2, 9)
    return [
        {"a": rng.standard_normal((m, k), dtype=np.float32), "b": rng.standard_normal((k, n), dtype=np.float32)}
        for m, k, n in shapes
    ]


def _blocked(a, b, rows=None, columns=None, ks=None, reset="tile", keep=True, running=False):
    """Return the right answer with one thing changed.

    rows, columns, ks: how many of each are computed; reset: for each "tile" or "row" of tiles, or "never"; keep: sums
    are added to, not replaced; running: sums are added to the result after each k.
    """
    (M, K), N = a.shape, b.shape[1]
    y, sums = np.zeros((M, N), a.dtype), np.zeros((4, 4), a.dtype)
    for m in range(0, M if rows is None else rows, 4):
        if reset == "row":
            sums[:] = 0
        for n in range(0, N if columns is None else columns, 4):
            if reset == "tile":
                sums[:] = 0
            tile = y[m : m + 4, n : n + 4]
            part = sums[: tile.shape[0], : tile.shape[1]]
            for k in range(K if ks is None else ks):
                part[...] = part * keep + a[m : m + 4, k, None] * b[k, n : n + 4]
                if running:
                    tile += part
            if not running:
                tile[...] = part
    return y


def _scales_b(a, b):
    y = np.zeros((len(a), b.shape[1]), a.dtype)
    for m in range(len(a)):
        for k in range(len(b)):
            row = b[k]
            row *= a[m, k]
            y[m] += row
    return y


def _by_tiles(a, b):
    (M, K), N = a.shape, b.shape[1]
    y = np.zeros((M, N), a.dtype)
    for m in range(0, M, 4):
        for n in range(0, N, 4):
            last_m, last_n = min(m + 4, M), min(n + 4, N)
            sums = np.zeros((last_m - m, last_n - n), a.dtype)
            for k in range(K):
                for r in range(last_m - m):
                    for c in range(last_n - n):
                        sums[r, c] += a[m + r, k] * b[k, n + c]
            y[m:last_m, n:last_n] = sums
    return y


def _over_the_border(a, b):
    (M, K), N = a.shape, b.shape[1]
    y = np.zeros((M, N), a.dtype)
    for m, n in itertools.product(range(0, M, 4), range(0, N, 4)):
        for r, c, k in itertools.product(range(4), range(4), range(K)):
            y[m + r, n + c] += a[m + r, k] * b[k, n + c]
    return y


MATMUL_MISTAKES = [
    Mistake(
        "tails: the last tiles reach over the border. Where 4 does not divide M or N they have fewer rows or columns: "
        "min(4, M - m), min(4, N - n)",
        _over_the_border,
    ),
    Mistake(
        "tails: the last rows and columns, which fill no tile, are left out. Let the last tiles be smaller: "
        "min(m + 4, M), min(n + 4, N)",
        lambda a, b: _blocked(a, b, rows=len(a) // 4 * 4, columns=b.shape[1] // 4 * 4),
    ),
    Mistake(
        "tails of rows: where 4 does not divide M, the last rows are left out. Let the last tile be smaller: "
        "min(m + 4, M)",
        lambda a, b: _blocked(a, b, rows=len(a) // 4 * 4),
    ),
    Mistake(
        "tails of columns: where 4 does not divide N, the last columns are left out. Let the last tile be smaller: "
        "min(n + 4, N)",
        lambda a, b: _blocked(a, b, columns=b.shape[1] // 4 * 4),
    ),
    Mistake(
        "the sums go on from tile to tile. Each tile begins with sums of zero",
        lambda a, b: _blocked(a, b, reset="never"),
    ),
    Mistake(
        "the sums go on from one tile to the next on its right. Set them to zero within the loop over n",
        lambda a, b: _blocked(a, b, reset="row"),
    ),
    Mistake(
        "k stops after the tile's 4. Rows and columns are divided into tiles; k runs over all K",
        lambda a, b: _blocked(a, b, ks=min(4, len(b))),
    ),
    Mistake(
        "k stops at the last multiple of 4. Each sum is over all K",
        lambda a, b: _blocked(a, b, ks=len(b) // 4 * 4),
    ),
    Mistake(
        "each k replaces the sums, so that only the last one is left. Add to them: +=",
        lambda a, b: _blocked(a, b, keep=False),
    ),
    Mistake(
        "unfinished sums are added to the result for every k, and count again and again. Write them once, after the "
        "loop over k",
        lambda a, b: _blocked(a, b, running=True),
    ),
    Mistake(
        "transposed: y[n, m] in place of y[m, n]. Rows of the result are rows of a, its columns are columns of b",
        lambda a, b: np.ascontiguousarray((a @ b).T),
    ),
    Mistake(
        "in place: a slice such as b[k, n:n + 4] is b itself, and *= changes the caller's b. Write a * b, not b *= a",
        _scales_b,
    ),
]

# --- combine ---


def _combine(counts, means, m2s):
    """Combine them as `finish_statistics` of `fused.kernels` does, in float64."""
    n = counts[:, None]
    mean = (n * means).sum(axis=0) / counts.sum()
    return mean, (m2s + n * (means - mean) ** 2).sum(axis=0) / counts.sum()


def _combine_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for counts, channels, deviation in (
        ((4, 4, 2), 3, 1.0),
        ((5, 5, 5), 2, 3.0),
        ((7, 1), 1, 2.0),
        ((3, 1, 3), 2, 1.0),
    ):
        tiles = [rng.standard_normal((n, channels)) + deviation * rng.standard_normal(channels) for n in counts]
        means = np.array([tile.mean(axis=0) for tile in tiles])
        m2s = np.array([((tile - tile.mean(axis=0)) ** 2).sum(axis=0) for tile in tiles])
        cases.append({"counts": np.array(counts), "means": means, "m2s": m2s})
    return cases


def _around(counts, means, m2s, mean):
    n = counts[:, None]
    return mean, (m2s + n * (means - mean) ** 2).sum(axis=0) / counts.sum()


def _of_tiles(counts, means, m2s, total=None):
    n = counts[:, None]
    total = counts.sum() if total is None else total
    mean = (n * means).sum(axis=0) / total
    m2 = (m2s + n * (means - mean) ** 2).sum(axis=0)
    return mean, m2 / total


def _with_variance(variance):
    """Make `combine` with the right mean and another variance(n, means, m2s, mean)."""

    def wrong(counts, means, m2s):
        mean = _combine(counts, means, m2s)[0]
        return mean, variance(counts[:, None], means, m2s, mean)

    return wrong


def _one_by_one(counts, means, m2s, share=lambda n, count: count / (n + count), pairs=lambda n, count: n, begin=1):
    """Merge tile after tile, as Chan does, with another share of the difference for the mean, and pairs for m2.

    begin: 1 from the first tile, 0 from nothing
    """
    n, mean, m2 = (counts[0], means[0], m2s[0]) if begin else (0, 0 * means[0], 0 * m2s[0])
    for count, tile, own in zip(counts[begin:], means[begin:], m2s[begin:], strict=True):
        delta = tile - mean
        m2 = m2 + own + delta**2 * pairs(n, count) * count / (n + count)
        mean, n = mean + delta * share(n, count), n + count
    return mean, m2 / n


COMBINE_MISTAKES = [
    *(
        Mistake(
            "tile by tile: the mean moves by the new tile's part of all pixels so far, "
            "delta · counts[t] / (n + counts[t])",
            partial(_one_by_one, share=share),
        )
        for share in (lambda n, count: n / (n + count), lambda n, count: 0.5, lambda n, count: count / n)
    ),
    *(
        Mistake(
            "tile by tile: the difference of the means counts delta² · n · counts[t] / (n + counts[t]), with the n "
            "before this tile",
            partial(_one_by_one, pairs=pairs, begin=begin),
        )
        for pairs in (
            lambda n, count: n + count,
            lambda n, count: (n + count) ** 2 / (n + 2 * count),
            lambda n, count: n * (n + count),
            lambda n, count: n * n / count,
            lambda n, count: (n + count) / count,
        )
        for begin in (1, 0)
    ),
    Mistake(
        "within the tiles: their variances are averaged as if they were of one size. A tile counts for its pixels: "
        "m2s.sum(axis=0) / counts.sum()",
        _with_variance(
            lambda n, means, m2s, mean: (m2s / n).mean(axis=0) + (n * (means - mean) ** 2).sum(axis=0) / n.sum()
        ),
    ),
    Mistake(
        "counts: each tile's part is divided by its own pixels, and these are averaged as if the tiles were of one "
        "size. Sum first, then divide by counts.sum()",
        _with_variance(lambda n, means, m2s, mean: (m2s / n + (means - mean) ** 2).mean(axis=0)),
    ),
    Mistake(
        "counts: all tiles are taken to be as large as the first. The last one is smaller: counts.sum() pixels",
        lambda counts, means, m2s: _of_tiles(np.full_like(counts, counts[0]), means, m2s),
    ),
    Mistake(
        "counts: there are counts.sum() pixels, not counts[0] · len(counts): the last tile is smaller",
        lambda counts, means, m2s: _of_tiles(counts, means, m2s, counts[0] * len(counts)),
    ),
    Mistake(
        "counts, and between the tiles: the plain mean of the tiles' variances. A tile counts for its pixels, and "
        "counts · (means - mean)² is missing",
        _with_variance(lambda n, means, m2s, mean: (m2s / n).mean(axis=0)),
    ),
    Mistake(
        "within the tiles: only the variance of the tiles' means. Their own squared deviations, m2s, are missing",
        _with_variance(lambda n, means, m2s, mean: (n * (means - mean) ** 2).sum(axis=0) / n.sum()),
    ),
    Mistake(
        "within the tiles: only the plain variance of the tiles' means. Each counts for its pixels, and their own "
        "squared deviations, m2s, are missing",
        _with_variance(lambda n, means, m2s, mean: means.var(axis=0)),
    ),
    Mistake(
        "counts: the sum is divided by the number of tiles. It is over all pixels: counts.sum()",
        _with_variance(lambda n, means, m2s, mean: (m2s + n * (means - mean) ** 2).sum(axis=0) / len(n)),
    ),
    Mistake(
        "within the tiles: m2s are squared deviations from each tile's own mean, and not sums of squares, so no mean² "
        "is subtracted: counts · (means - mean)² is added",
        _with_variance(lambda n, means, m2s, mean: m2s.sum(axis=0) / n.sum() - mean**2),
    ),
    Mistake(
        "the standard deviation is returned: the variance is its square",
        _with_variance(lambda n, means, m2s, mean: np.sqrt((m2s + n * (means - mean) ** 2).sum(axis=0) / n.sum())),
    ),
    Mistake(
        "the two results are exchanged: the mean comes first, then the variance",
        lambda counts, means, m2s: _combine(counts, means, m2s)[::-1],
    ),
    Mistake(
        "counts: the plain mean of the tiles' means. The last tile is smaller and counts for less: weight by counts",
        lambda counts, means, m2s: _around(counts, means, m2s, means.mean(axis=0)),
    ),
    Mistake(
        "counts, and between the tiles: the mean has to be weighted by counts, and each tile's own squared deviations "
        "lack counts · (means - mean)²",
        lambda counts, means, m2s: (means.mean(axis=0), m2s.sum(axis=0) / counts.sum()),
    ),
    Mistake(
        "between the tiles: the squared deviations are only added up. They are from each tile's own mean; from the "
        "common mean, counts · (means - mean)² are added (squared: plain deviations cancel)",
        lambda counts, means, m2s: (_combine(counts, means, m2s)[0], m2s.sum(axis=0) / counts.sum()),
    ),
    Mistake(
        "between the tiles: (means - mean)² is added once per tile. Every pixel of the tile deviates by it: "
        "times counts",
        lambda counts, means, m2s: (
            _combine(counts, means, m2s)[0],
            (m2s + (means - _combine(counts, means, m2s)[0]) ** 2).sum(axis=0) / counts.sum(),
        ),
    ),
    Mistake(
        "unbiased: divide by the number of pixels, not by one less. BatchNorm normalises with the biased variance",
        lambda counts, means, m2s: (
            _combine(counts, means, m2s)[0],
            _combine(counts, means, m2s)[1] * counts.sum() / (counts.sum() - 1),
        ),
    ),
    Mistake(
        "the sum of squared deviations is returned. The variance is that divided by the number of pixels",
        lambda counts, means, m2s: (
            _combine(counts, means, m2s)[0],
            _combine(counts, means, m2s)[1] * counts.sum(),
        ),
    ),
    Mistake(
        "m2s is used as if it were the tiles' variances, and multiplied by counts. It is a sum already",
        lambda counts, means, m2s: _around(counts, means, m2s * counts[:, None], _combine(counts, means, m2s)[0]),
    ),
]

EXERCISES = [
    Exercise("fold", _fold_cases, _fold, FOLD_MISTAKES, outputs=("weight", "bias"), solutions=(_into_one,)),
    Exercise("normalise_relu", _relu_cases, _normalise_relu, RELU_MISTAKES, solutions=(_scaled_then_cut,)),
    Exercise(
        "blocked_matmul",
        _matmul_cases,
        matmul.forward_numpy,
        MATMUL_MISTAKES,
        solutions=(_by_tiles,),
        loops="tiles",
    ),
    Exercise(
        "combine", _combine_cases, _combine, COMBINE_MISTAKES, outputs=("mean", "variance"), solutions=(_of_tiles,)
    ),
]
