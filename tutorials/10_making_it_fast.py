# %% [markdown]
# # 10. Making it fast
#
# **The reference layers already run compiled loops on all cores. How much faster can it get, where does the
# speed come from, and how does it compare with PyTorch?**
#
# At the end you have taken two layers from the plain definition to the kernels of mbnp's fast engine, its matrix
# product included, with a measurement of every step. You need lessons 4 and 9. It takes about forty minutes.

# %%
import math
import time
from importlib.util import find_spec

import numba
import numpy as np
from lesson import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    fastest,
    figure,
    measured_here,
    say,
    show,
    source,
    table,
    timed,
)
from threadpoolctl import threadpool_limits

from mbnp import backend, fused, models
from mbnp.backend import tiles, vectors
from mbnp.backend.vectors import REGISTERS, fma, load, spread, store
from mbnp.bench import candidates as known
from mbnp.bench import comparison, profile
from mbnp.bench.workload import Workload
from mbnp.fused import inference
from mbnp.fused.kernels import batchnorm as passes
from mbnp.fused.kernels import conv as fused_conv
from mbnp.fused.kernels import program
from mbnp.fused.match import match, report
from mbnp.fused.training import Plan
from mbnp.fused.workspace import Arena
from mbnp.ops import batchnorm, depthwise, matmul, pointwise, relu

THREADS = min(2, backend.max_threads())
backend.set_num_threads(THREADS)
rng = np.random.default_rng(0)


def same(found, expected, what):
    """Raise an error unless two arrays agree: everything is compared here before it is timed."""
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=what)


measured_here()

# %% [markdown]
# ## A depthwise layer
#
# The first layer is the first depthwise convolution of the article's network: 64 images, 32x32 pixels, 32 channels.

# %%
N, S, C = (4 if SMALL else 64), 32, 32
x = rng.standard_normal((N, S, S, C), dtype=np.float32)
w = rng.standard_normal((3, 3, C), dtype=np.float32)
macs = x.size * 9
ONE, PAD = (1, 1), ((1, 1), (1, 1))  # stride and padding, as the implementations of an operation take them

source(depthwise.forward_loops)

# %% [markdown]
# ## Step 1: from Python's loops to NumPy's
#
# In plain Python we run only a small corner of the layer, and extrapolate.

# %%
corner, corner_w = x[:1, :8, :8, :4].copy(), w[..., :4].copy()
each = fastest(lambda: depthwise.forward_loops(corner, corner_w, None, ONE, PAD), 3) / (corner.size * 9)
steps = {"Python loops (extrapolated)": each * macs}

expected = depthwise.forward_numpy(x, w, None, ONE, PAD)
steps["NumPy, tap by tap"] = fastest(lambda: depthwise.forward_numpy(x, w, None, ONE, PAD), 5)
source(depthwise.forward_numpy)
say(
    f"Python: {1e9 * each:.0f} ns for a multiply-accumulate, {each * macs:.0f} s for the layer. "
    f"NumPy: {1e3 * steps['NumPy, tap by tap']:.0f} ms."
)

# %% [markdown]
# Each call of NumPy is one pass over whole arrays: for each of the nine taps it multiplies the feature map by a row of
# weights, writes the result to memory, and reads it back to add it up.
#
# ## Step 2: compile the definition
#
# The loops of the definition use only the part of Python that Numba can compile. The sum stays in a register until it
# is complete.
#
# **Before you run the next cell:** compiled loops on *one* core, against NumPy's nine pairs of passes. Which is
# faster?

# %%
compiled = numba.njit(depthwise.forward_loops)
began = time.perf_counter()
same(compiled(x, w, None, ONE, PAD), expected, "njit")
compiling = time.perf_counter() - began
steps["njit(loops), one core"] = fastest(lambda: compiled(x, w, None, ONE, PAD), 5)
say(
    f"{1e3 * steps['njit(loops), one core']:.0f} ms, against NumPy's {1e3 * steps['NumPy, tap by tap']:.0f}, and after "
    f"{compiling:.1f} s of compiling. The very same lines are "
    f"{steps['Python loops (extrapolated)'] / steps['njit(loops), one core']:,.0f} times as fast as Python runs them."
)

# %% [markdown]
# ## Step 3: all cores, and channels innermost
#
# For every single multiplication the definition tests whether the pixel is inside the image, and successive
# multiplications use numbers that are far apart. Lesson 9 showed the kernel of `ops/depthwise.py`: the rows of the
# output are divided among the cores, channels are innermost, and the columns that a tap can reach are computed once for
# a row, so that the innermost loop has no test and becomes vector instructions.

# %%
same(depthwise.forward(x, w, padding=1), expected, "ops.depthwise")
steps["rows on all cores, channels innermost"] = fastest(lambda: depthwise.forward(x, w, padding=1))

# %% [markdown]
# ## Step 4: all nine taps at once
#
# It also showed what limits this kernel: for each multiplication it loads a sum and stores it again. If all nine
# products of an output are in one expression, the sum never leaves its register. That needs nine pixels for every
# output, also at the border, so the feature map is stored with a border of zeros.


# %%
@backend.jit
def nine_taps_of_an_image(padded, w, y):
    """Convolve padded (H+2, W+2, C) with w (3, 3, C) into y (H, W, C)."""
    H, W, C = y.shape
    for i in range(H):
        for j in range(W):
            for c in range(C):
                y[i, j, c] = (
                    padded[i, j, c] * w[0, 0, c]
                    + padded[i, j + 1, c] * w[0, 1, c]
                    + padded[i, j + 2, c] * w[0, 2, c]
                    + padded[i + 1, j, c] * w[1, 0, c]
                    + padded[i + 1, j + 1, c] * w[1, 1, c]
                    + padded[i + 1, j + 2, c] * w[1, 2, c]
                    + padded[i + 2, j, c] * w[2, 0, c]
                    + padded[i + 2, j + 1, c] * w[2, 1, c]
                    + padded[i + 2, j + 2, c] * w[2, 2, c]
                )


@backend.jit(parallel=True)
def nine_taps(padded, w, y):
    """Convolve padded (N, H+2, W+2, C) with w (3, 3, C) into y (N, H, W, C)."""
    for n in numba.prange(len(y)):
        nine_taps_of_an_image(padded[n], w, y[n])


# %% [markdown]
# Two more changes have nothing to do with arithmetic. So far every call allocated 8 MB for its output: let us use the
# same array every time. And a vector instruction loads up to 64 bytes, a cache line. NumPy's large arrays begin 16
# bytes after the start of one, so that such a load touches *two*. The fast engine's arrays begin at a cache line.

# %%
source(Arena)

# %% [markdown]
# **Before you run the next cell:** the same kernel, with NumPy's arrays and with those. Same loop, same instructions,
# same number of bytes. Is there a measurable difference?

# %%
padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
out = np.empty_like(x)
nine_taps(padded, w, out)
same(out, expected, "nine_taps")

arena = Arena(np.float32)
padded_on_line, w_on_line, out_on_line = (arena.array(*a.shape) for a in (padded, w, out))
padded_on_line[...], w_on_line[...] = padded, w

steps["nine taps at once"] = fastest(lambda: nine_taps(padded, w, np.empty(x.shape, np.float32)))
steps["into an existing array"] = fastest(lambda: nine_taps(padded, w, out))
steps["arrays that begin at a cache line"] = fastest(lambda: nine_taps(padded_on_line, w_on_line, out_on_line))

rows, slowest = [], max(steps.values())
for name, seconds in steps.items():
    speed = f"{2 * macs / seconds / 1e9:.3f}"
    rows.append([name, f"{1e3 * seconds:,.2f}", speed, f"{slowest / seconds:,.0f}"])
say(table(rows, ["step", "ms", "GFLOP/s", "times as fast as Python"]))

# %% [markdown]
# ## Step 5: fuse the layers around the convolution
#
# BatchNorm and ReLU hardly compute anything and take a large share of a training step (lesson 9). Between two
# convolutions there is this chain:
#
# $$z \to \hat z = \gamma \frac{z-\mu}{\sqrt{\sigma^2+\varepsilon}} + \beta \to a = \max(\hat z, 0)
# \to \text{next convolution} \to z' \to \text{its own } \mu', \sigma'^2$$
#
# How often is the feature map read and written?
#
# | reference layers | reads | writes | fused engine | reads | writes |
# | --- | ---: | ---: | --- | ---: | ---: |
# | mean of z, then variance of z | 2 | | (accumulated by the kernel that wrote z) | | |
# | normalise | 1 | 1 | | | |
# | ReLU | 1 | 1 | | | |
# | convolution | 1 | 1 | load z, normalise, clamp, convolve, store, accumulate statistics | 1 | 1 |
#
# Eight passes through memory against two, with the same multiplications. Two ideas make it possible:
#
# - **Prologue.** Once mean and variance are known, BatchNorm and ReLU together are $\max(z \cdot s + t, 0)$, with two
#   numbers for each channel. The consumer of z applies them when it loads z. Only z is ever stored.
# - **Epilogue.** The statistics of the *output* are needed before it can be normalised. So the producer
#   accumulates them while the output is still in the cache.
#
# This is known as BatchNorm fission-fusion (Jung et al., "Restructuring Batch Normalization to Accelerate CNN
# Training", 2019). In plain loops it is step 4 with a few lines before and after it, image by image:


# %%
@backend.jit(parallel=True)
def activate_and_convolve(z, scale, shift, w, y, means, m2s):
    """Convolve max(z * scale + shift, 0) into y, and take the statistics of each image's channels."""
    N, H, W, C = z.shape
    for n in numba.prange(N):
        a = np.zeros((H + 2, W + 2, C), z.dtype)
        for i in range(H):  # the prologue
            for j in range(W):
                for c in range(C):
                    a[i + 1, j + 1, c] = max(z[n, i, j, c] * scale[c] + shift[c], np.float32(0))
        nine_taps_of_an_image(a, w, y[n])
        means[n], m2s[n] = 0, 0
        for i in range(H):  # the epilogue: means, then squared deviations from them
            for j in range(W):
                for c in range(C):
                    means[n, c] += y[n, i, j, c]
        for c in range(C):
            means[n, c] /= H * W
        for i in range(H):
            for j in range(W):
                for c in range(C):
                    m2s[n, c] += (y[n, i, j, c] - means[n, c]) ** 2


gamma, beta, eps = rng.uniform(0.5, 1.5, C).astype(np.float32), rng.normal(0, 0.3, C).astype(np.float32), 1e-5
_, x_mean, x_var = batchnorm.forward(x, gamma, beta, eps)  # the producer of x would have accumulated them
x_scale = gamma / np.sqrt(x_var + eps)
x_shift = beta - x_mean * x_scale
out, means, m2s = np.empty_like(x), np.empty((N, C)), np.empty((N, C))
activate_and_convolve(x, x_scale, x_shift, w, out, means, m2s)

expected = depthwise.forward(relu.forward(batchnorm.forward(x, gamma, beta, eps)[0]), w, padding=1)
same(out, expected, "BatchNorm, ReLU and convolution in one kernel")
mean = means.mean(axis=0)
variance = (m2s + S * S * (means - mean) ** 2).sum(axis=0) / (N * S * S)  # of tiles that differ: the last exercise
same(mean, expected.mean(axis=(0, 1, 2)), "its mean")
same(variance, expected.var(axis=(0, 1, 2)), "its variance")

# %% [markdown]
# **Before you run the next cell:** three operations one after another, each on all cores, against one kernel that
# computes the same, and the statistics of its output, too. By what factor is it faster?

# %%
apart = {
    "BatchNorm": fastest(lambda: batchnorm.forward(x, gamma, beta, eps)),
    "ReLU": fastest(lambda: relu.forward(x)),
    "depthwise": fastest(lambda: depthwise.forward(x, w, padding=1)),
}
together = fastest(lambda: activate_and_convolve(x, x_scale, x_shift, w, out, means, m2s))
say(
    f"One after another {1e3 * sum(apart.values()):.2f} ms ("
    + ", ".join(f"{name} {1e3 * t:.2f}" for name, t in apart.items())
    + f"). In one kernel {1e3 * together:.2f} ms: {sum(apart.values()) / together:.1f} times as fast."
)

# %% [markdown]
# ## Step 6: a matrix product of our own
#
# A pointwise convolution is a matrix product. A BLAS library has a fast one, but nothing can be applied while it loads,
# nothing accumulated before it stores. So the engine has its own. Let us build it on one core, with BLAS as the
# yardstick, for the pixels of 64 feature maps of 8x8 with 256 channels, times 256x256 weights.
#
# $$y_{mn} = \sum_k a_{mk} b_{kn}$$

# %%
M, K, D = N * 8 * 8, 256, 256
a, b = rng.standard_normal((M, K), dtype=np.float32), rng.standard_normal((K, D), dtype=np.float32)
y, expected = np.empty((M, D), np.float32), a @ b
work = 2 * M * K * D  # FLOPs

with threadpool_limits(1, user_api="blas"):
    blas = fastest(lambda: np.matmul(a, b, out=y))
speeds = {"NumPy's BLAS": work / blas / 1e9}


def measure(name, call, repeat=15):
    """Check what `call` writes into y, then record its GFLOP/s."""
    y[...] = np.nan
    call()
    same(y, expected, name)
    speeds[name] = work / fastest(call, repeat) / 1e9


# %% [markdown]
# **Loops.** First the definition, compiled. Then the loops in another order: a row of the result is the sum of rows of
# b, each times one number of a.
#
# **Before you run the next cell:** both do the same multiplications, on one core. How far apart are they?


# %%
@backend.jit
def columns_innermost(a, b, y):
    for m in range(a.shape[0]):
        y[m] = 0
        for k in range(a.shape[1]):
            for n in range(b.shape[1]):
                y[m, n] += a[m, k] * b[k, n]


source(matmul.forward_loops)
three_loops = numba.njit(matmul.forward_loops)
measure("three loops", lambda: np.copyto(y, three_loops(a, b)), 2)
measure("columns innermost", lambda: columns_innermost(a, b, y))
say(", ".join(f"{name}: {speed:.1f} GFLOP/s" for name, speed in speeds.items()))

# %% [markdown]
# With k innermost, successive numbers of b are a row apart, each in another cache line. With the columns innermost
# they are neighbours, and the compiler makes vector instructions of the loop. But for each product it moves three
# numbers: it loads one of b and a sum, and stores the sum again. That is 12 bytes for 2 FLOPs.
#
# **Register blocking** is the remedy of step 4: keep sums in registers until they are complete. Take a *tile* of
# the result, 2 rows and 4 columns, as 8 local variables. For each k it loads 2 numbers of a and 4 of b and uses
# them in 8 multiplications: 24 bytes for 16 FLOPs. In general, a tile of R rows and C columns does
#
# $$\frac{2RC}{4(R+C)} \quad\text{FLOPs per byte:}$$
#
# the larger, the better, as long as there are registers.
#
# **Before you run the next cell:** four times as many FLOPs per byte. Is this product faster than the one before?


# %%
@backend.jit
def two_by_four(a, b, y):
    """For even numbers of rows, and columns that 4 divides."""
    for n in range(0, b.shape[1], 4):
        for m in range(0, a.shape[0], 2):
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
            for k in range(a.shape[1]):
                a0, a1 = a[m, k], a[m + 1, k]
                b0, b1, b2, b3 = b[k, n], b[k, n + 1], b[k, n + 2], b[k, n + 3]
                s00, s01, s02, s03 = s00 + a0 * b0, s01 + a0 * b1, s02 + a0 * b2, s03 + a0 * b3
                s10, s11, s12, s13 = s10 + a1 * b0, s11 + a1 * b1, s12 + a1 * b2, s13 + a1 * b3
            y[m, n], y[m, n + 1], y[m, n + 2], y[m, n + 3] = s00, s01, s02, s03
            y[m + 1, n], y[m + 1, n + 1], y[m + 1, n + 2], y[m + 1, n + 3] = s10, s11, s12, s13


measure("2x4 sums in registers", lambda: two_by_four(a, b, y))
say(f"{speeds['2x4 sums in registers']:.1f} GFLOP/s, columns innermost {speeds['columns innermost']:.1f}.")

# %% [markdown]
# Compilers make vectors of innermost loops. Here that is the loop over k, where successive numbers of b are no
# neighbours, so most of these are multiplications of single numbers. What does that cost? Let us measure what one core
# can do: fused multiply-adds (FMA: both in one instruction) of numbers in registers. mbnp's vectors are *values* in a
# kernel, as many numbers as one instruction processes:

# %%
source(vectors.load, vectors.spread, vectors.fma, vectors.store)

# %% [markdown]
# **Before you run the next cell:** one kernel adds all products to the same vector of sums, the other to eight of
# them in turn. Eight times the work: how many times as long does it take?


# %%
@backend.jit(literal=True)
def one_sum(x, times):
    p, q = load(x, 0), load(x, 0)
    s = p - p
    for _ in range(times):
        s = fma(p, q, s)
    store(s, x, 0)


@backend.jit(literal=True)
def eight_sums(x, times):
    p, q = load(x, 0), load(x, 0)
    s = t = u = v = s2 = t2 = u2 = v2 = p - p
    for _ in range(times):
        s, t, u, v = fma(p, q, s), fma(p, q, t), fma(p, q, u), fma(p, q, v)
        s2, t2, u2, v2 = fma(p, q, s2), fma(p, q, t2), fma(p, q, u2), fma(p, q, v2)
    store(s + t + u + v + (s2 + t2 + u2 + v2), x, 0)


V, times = vectors.width(np.float32), 10**5 if SMALL else 10**6
zeros = Arena(np.float32).array(V)
one, eight = fastest(lambda: one_sum(zeros, times), 9), fastest(lambda: eight_sums(zeros, times), 9)
peak = 16 * V * times / eight / 1e9
say(
    f"Eight times the work takes {eight / one:.1f} times as long: {peak / 8 * eight / one:.0f} GFLOP/s with one sum, "
    f"{peak:.0f} with eight. A vector has {V} numbers here, so with single numbers the peak is {peak / V:.1f}; the 2x4 "
    f"tile reached {speeds['2x4 sums in registers']:.1f}."
)

# %% [markdown]
# A processor has the result of an FMA about four cycles after it began it, and many begin two in every cycle. So a
# fast product needs vectors *and* at least eight of them under way. A tile of 4 rows and two vectors of columns has
# eight sums. For each k it loads two vectors of b, and `spread` repeats one number of a in a whole vector, for each
# row. The kernel of one such tile is called a *micro-kernel*.
#
# **Packing.** From one k to the next, the two vectors of b are a whole row apart, in another cache line and, where
# rows are long, in another page of memory. So b is copied once: the first two vectors of columns of all rows, one
# after another, are the first *panel*, the next two the second. The micro-kernel is the same, with other distances.
#
# **Before you run the next cell:** packing is extra work, included in the time. Does it pay?


# %%
@backend.jit(literal=True)
def four_by_two_vectors(a, b, panel_step, row_step, y):
    """b (K*D,): its panels are panel_step apart, the rows of a panel row_step."""
    (M, K), D, x, out = a.shape, y.shape[1], a.reshape(-1), y.reshape(-1)
    zero = spread(np.zeros(1, np.float32), 0)
    for n in range(0, D, 2 * V):
        for m in range(0, M, 4):
            s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = zero
            i, j = m * K, n // (2 * V) * panel_step
            for _ in range(K):
                b0, b1 = load(b, j), load(b, j + V)
                a0, a1, a2, a3 = spread(x, i), spread(x, i + K), spread(x, i + 2 * K), spread(x, i + 3 * K)
                s00, s01, s10, s11 = fma(a0, b0, s00), fma(a0, b1, s01), fma(a1, b0, s10), fma(a1, b1, s11)
                s20, s21, s30, s31 = fma(a2, b0, s20), fma(a2, b1, s21), fma(a3, b0, s30), fma(a3, b1, s31)
                i, j = i + 1, j + row_step
            for r, left, right in ((0, s00, s01), (1, s10, s11), (2, s20, s21), (3, s30, s31)):
                store(left, out, (m + r) * D + n)
                store(right, out, (m + r) * D + n + V)


def pack(b):
    """Return b (K, D) as panels (D / 2V, K, 2V)."""
    return np.ascontiguousarray(b.reshape(len(b), -1, 2 * V).swapaxes(0, 1))


measure("4 rows x 2 vectors", lambda: four_by_two_vectors(a, b.ravel(), 2 * V, D, y))
measure("the same, packed", lambda: four_by_two_vectors(a, pack(b).ravel(), K * 2 * V, 2 * V, y))
say(f"{speeds['4 rows x 2 vectors']:.0f} GFLOP/s, packed {speeds['the same, packed']:.0f}.")

# %% [markdown]
# **How many rows?** More rows use each vector of b more often. But every sum needs a register, and so do the two
# vectors of b and one number of a. A processor has 32 vector registers with AVX-512 or NEON, 16 with AVX2 or SSE.

# %%
rows = []
for height in (4, 6, 8, 14, 16):
    registers = 2 * height + 2 + 1
    fits = ["yes" if registers <= all_of_them else "no" for all_of_them in (16, 32)]
    rows.append([height, 2 * height, registers, *fits, f"{height * 2 * V / (2 * (height + 2 * V)):.2f}"])
say(table(rows, ["rows", "sums", "registers", "fits in 16", "fits in 32", "FLOPs per byte"]))
say(f"This processor has {REGISTERS} registers of {V} numbers, and mbnp's tiles have {matmul.ROWS} rows.")

# %% [markdown]
# With 16 registers, six rows are the most. With 32, up to 14 fit, but from eight rows on there are 16 multiplications
# for ten loads, so loading is not the limit any more, and eight divides what networks have: rows of 8, 16 or 32 pixels.
# What is left over goes to tiles of 9, 4 or 1 rows.
#
# This is the product of `ops/matmul.py`. mbnp generates the instructions of each size of tile, since no compiler is
# sure to keep 16 sums in registers. It finds the rows of a by a table, which will soon be useful. And it takes a long k
# in blocks: all rows take a panel of b, one tile after another, and a block of it stays in the L1 cache meanwhile.

# %%
source(tiles.tile, matmul._block, matmul.multiply)

# %%
backend.set_num_threads(1)
no_bias = np.zeros(D, np.float32)
measure("ops.matmul", lambda: matmul._forward_kernel(a, b, no_bias, y))
backend.set_num_threads(THREADS)
rows = [[name, f"{speed:.1f}", f"{speed / peak:.0%}"] for name, speed in speeds.items()]
say(table(rows, ["one core", "GFLOP/s", "of its peak"]))

# %% [markdown]
# All these products move the same bytes from memory. What differs are the bytes between the L1 cache and the
# registers, so here is the roofline of *that* level. Its slope is the bandwidth of the L1 cache. A load of one number
# takes as long as that of a vector, so without vectors slope and roof are both lower, by the width of a vector.


# %%
@backend.jit(literal=True)
def triad(x, y, out, times):
    """Compute out = x + y * x[0] again and again: two loads and a store for each vector."""
    factor = spread(x, 0)
    for _ in range(times):
        for i in range(0, out.size, V):
            store(fma(factor, load(y, i), load(x, i)), out, i)


arena = Arena(np.float32)
small = [arena.array(2048) for _ in range(3)]  # 24 kB together
passes_over = 10 if SMALL else 10_000
bandwidth = 12 * 2048 * passes_over / fastest(lambda: triad(*small, passes_over), 9) / 1e9

heights = {"4 rows x 2 vectors": 4, "the same, packed": 4, "ops.matmul": matmul.ROWS}
intensity = {"three loops": 2 / 16, "columns innermost": 2 / 12, "2x4 sums in registers": 16 / 24}
intensity |= {name: rows * V / (rows + 2 * V) for name, rows in heights.items()}
looks = zip("Xs^oD*", (BLACK, PURPLE, VERMILION, SKY, BLUE, GREEN), strict=True)

fig, axes = figure(width=7.5, height=4.2)
at = np.geomspace(0.06, 10, 200)
axes.loglog(at, np.minimum(peak, bandwidth * at), color="grey", label=f"L1: {bandwidth:.0f} GB/s, {peak:.0f} GFLOP/s")
axes.loglog(at, np.minimum(peak, bandwidth * at) / V, "--", color="grey", label="the same without vectors")
axes.axhline(speeds["NumPy's BLAS"], color=ORANGE, linestyle=":", label="NumPy's BLAS")
for (name, flops_per_byte), (mark, colour) in zip(intensity.items(), looks, strict=True):
    axes.plot(flops_per_byte, speeds[name], mark, color=colour, markersize=9, label=name)
axes.set(xlim=(0.06, 10), xlabel="FLOPs per byte loaded or stored", ylabel="GFLOP/s")
for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter("{x:g}")
axes.grid(alpha=0.3)
axes.set_title("One matrix product, one core: from the slope to the roof")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
show(fig, "Roofline of the L1 cache: the products move right and up, from three loops to ops.matmul near the roof")

# %% [markdown]
# ## Step 7: prologue, product and epilogue in one kernel
#
# Our product can be called with a *tile of pixels*: a hundred or more of them are normalised and clamped into a
# workspace in the L2 cache, multiplied from there, and the statistics of the result accumulated before it leaves the
# cache. Pointwise and standard convolutions and linear layers are all this one kernel. For 3x3 the workspace holds
# padded rows of images, and the table tells where each window begins: none is copied.

# %%
source(
    passes.affine,
    passes.activation,
    passes.activate_run,
    fused_conv._forward,
    fused_conv._product,
    fused_conv.conv_forward,
)

# %% [markdown]
# (`scale_shift` holds three numbers for each channel, and `affine` loads all of them: $(z - \mu) \cdot s + \beta$
# keeps the digits that $z \cdot s + t$ would lose where the mean is large. For the same reason `take_moments` sums
# deviations from one of the outputs, the `pivot`; lesson 4 has the trap. `soon` is what the next tile will need,
# requested from memory in time. `work.a` is there where weights are many and pixels few: then tasks are panels of
# weights, each of which is packed, multiplied with all pixels, and forgotten. `in_parallel` is a loop on all threads,
# as `prange` is, but its body is compiled once and not three times: `mbnp/backend/parallel.py` says why that matters.)
# The depthwise kernel is `activate_and_convolve` with explicit vectors: nine vectors of weights stay in registers, and
# a ring of four rows in the L1 cache takes the place of the padded image.
#
# `match` finds in a network what runs as one, and a `Plan` has a step with its arrays for each. We check the
# **reference equation** of the first ones, that is, what they compute in terms of the operations of `ops`, and then
# measure.

# %%
net = models.mobilenet_v1_small(seed=0)
images = rng.standard_normal((N, 32, 32, 3), dtype=np.float32)
operations = match(net, images.shape)
say("```text\n" + "\n".join(report(operations).splitlines()[:4]) + "\n```")
plan = Plan(operations, images.shape, net.dtype, needs_dx=False)
with backend.one_pool():
    plan.forward(images)

# %%
layers = {"depthwise": depthwise.forward, "pointwise": pointwise.forward}
rows = []
for before, step, kind in zip(plan.steps, plan.steps[1:3], layers, strict=False):
    z, bn, weights = before.out.z, before.bn, step.layer.weight.value
    options = {"padding": 1} if kind == "depthwise" else {}
    calls = {
        "BatchNorm": lambda z=z, bn=bn: batchnorm.forward(z, bn.weight.value, bn.bias.value, bn.eps)[0],
        "ReLU": lambda z=z: relu.forward(z),
        kind: lambda z=z, weights=weights, kind=kind, options=options: layers[kind](z, weights, **options),
    }
    expected = layers[kind](relu.forward(calls["BatchNorm"]()), weights, **options)
    with backend.one_pool():
        step.forward()
        same(step.out.z, expected, kind)
        mean = step.counts @ step.statistics.moments[:, 0] / step.counts.sum()
        same(mean, expected.mean(axis=(0, 1, 2)), "its mean")
        together = fastest(step.forward)
    apart = [fastest(call) for call in calls.values()]
    times = f"{1e3 * sum(apart):.2f}", f"{1e3 * together:.2f}", f"{sum(apart) / together:.1f}"
    rows.append([" + ".join(calls), *times])
say(table(rows, ["step", "one after another, ms", "one kernel, ms", "times as fast"]))
pixels = plan.steps[2].plan.windows.tile
say(f"A tile of the pointwise step is {pixels} pixels, {4 * pixels * C >> 10} kB.")

# %% [markdown]
# The backward pass is fused in the same way, in reverse: BatchNorm's gradient (lesson 4) is, once its two sums are
# known, a number times the incoming gradient, plus a number times z, plus a number. Only the output z of every
# convolution is kept. Everything else is computed again from z while a tile is in the cache: computing something twice
# is cheaper than storing and loading it, which is lesson 9 in one sentence.
#
# The steps of a plan call the same kernels with the same arrays each time, forty of them in this network. Called from
# Python, each would take some tens of microseconds more: the kernel before it has left nothing of Python in the caches.
# So the arguments are written down once, and one compiled loop makes all calls of a pass (`mbnp/backend/launch.py`).
#
# ## Allocate once, on one pool of threads
#
# All arrays of a `Plan` are allocated once for each input shape. The operating system provides new memory page by page,
# filled with zeros, when you first write to it, and each page is a *page fault*. PyTorch's training step pays for that:
# you will see at the end what it gains when the C library is told to keep all memory.
#
# And no kernel of the engine calls BLAS, not even for a linear layer. Each pool of threads goes on spinning for a while
# after a call, in case the next one follows soon, on the cores that the other pool needs then.
#
# **Before you run the next cell:** our product on all our threads, NumPy's on its own threads, and the two in turn.
# Does the pair take as long as one and the other?

# %%
ours = timed(lambda: matmul.forward(a, b), 31)
numpys = timed(lambda: a @ b, 31)
in_turn = timed(lambda: (matmul.forward(a, b), a @ b), 31)
say(
    f"mbnp {1e3 * ours:.2f} ms, NumPy {1e3 * numpys:.2f} ms, one after the other {1e3 * in_turn:.2f} ms: "
    f"{in_turn / (ours + numpys):.1f} times the sum."
)
time.sleep(1)  # until NumPy's threads sleep

# %% [markdown]
# ## No other order of sums
#
# A compiler can make vectors of a loop that adds up numbers only if it may reorder them. The flag `reassoc` says so.
#
# **Before you run the next cell:** the same loop, with and without. What changes, apart from the time?


# %%
def total(x):
    s = np.float32(0)
    for i in range(x.size):
        s += x[i]
    return s


numbers = rng.random(10**6, dtype=np.float32)
in_order, reordered = numba.njit(total), numba.njit(total, fastmath={"reassoc"})
say(
    f"In order {in_order(numbers):.3f} in {1e6 * fastest(lambda: in_order(numbers), 9):.0f} µs, reordered "
    f"{reordered(numbers):.3f} in {1e6 * fastest(lambda: reordered(numbers), 9):.0f} µs, exactly "
    f"{math.fsum(numbers.tolist()):.3f}."
)

# %% [markdown]
# Neither is wrong, and many short sums are even closer than one long one. But *which* order a compiler chooses depends
# on the code around the loop, the processor and the version: one kernel with this flag held two copies of a function
# that rounded differently. The engine's kernels, marked `literal`, do without. Vectors and their order are written
# down, and partial sums of tiles, whose number depends on the shape alone, are added in their order. So every
# compilation, on any number of threads, gives the same numbers.
#
# ## The whole network
#
# **Before you run the next cell:** how long does a training step of the fused engine take, as a fraction of the
# reference network's? And which kind of layer now takes most of it?

# %%
reference, fast = models.mobilenet_v1_small(seed=0), fused.convert(models.mobilenet_v1_small(seed=0))
same(fast.forward(images, train=True), reference.forward(images, train=True), "logits of a training forward")
same(fast.forward(images), reference.forward(images), "logits of an inference")

workload = Workload("training", "mobilenet-v1-small", N, 32, THREADS)
KINDS = "standard", "pointwise", "depthwise", "other", "optimiser", "rest"
LONG = {"other": "BatchNorm, ReLU, pool, linear", "rest": "loss, Python"}
measured = {}
for name, network in (("reference", workload.network()), ("fused", fused.convert(workload.network()))):
    found = profile.measure(network, workload, steps=1 if SMALL else 11)
    kinds = dict.fromkeys(KINDS, 0.0)
    for row in found.rows:
        kinds[row.kind] += row.seconds
    measured[name] = kinds | {"optimiser": found.optimiser, "rest": found.rest}

totals = {name: sum(kinds.values()) for name, kinds in measured.items()}
rows = [[LONG.get(kind, kind), *(f"{1e3 * kinds[kind]:.2f}" for kinds in measured.values())] for kind in KINDS]
rows.append(["total", *(f"{1e3 * total:.2f}" for total in totals.values())])
say(table(rows, ["ms", *measured]))
say(
    f"{totals['reference'] / totals['fused']:.1f} times as fast. In the fused engine a convolution's time includes "
    f"the BatchNorm and ReLU before it and the statistics after it: what was "
    f"{1e3 * measured['reference']['other']:.1f} ms of its own is {1e3 * measured['fused']['other']:.2f} ms."
)

# %% [markdown]
# ## Step 8: inference, where BatchNorm disappears
#
# In inference mean and variance are constants: the running ones. A convolution followed by a scale and a shift
# is again a convolution, with other weights and a bias:
#
# $$\gamma \frac{w * x - \mu}{\sqrt{\sigma^2+\varepsilon}} + \beta
# = \Big(\underbrace{\frac{\gamma}{\sqrt{\sigma^2+\varepsilon}}}_{s} w\Big) * x + (\beta - \mu s)$$
#
# So the weights are scaled once, and BatchNorm disappears:

# %%
source(inference.fold)

# %% [markdown]
# And nothing needs to be kept for a backward pass. So a block's depthwise convolution passes its rows to the pointwise
# one while they are in the cache: the feature map between the two is never written to memory.
#
# For one image, even to call a kernel for each layer from Python would take a noticeable part of the time. So a network
# becomes a *program*, a table with a record of numbers for each step, and one kernel runs through it.
#
# The threads can share that work in two ways. Of one image they divide every step, and wait for each other at its end.
# Of a batch each takes a few images through the *whole* program: nobody waits, and what one step writes is read by the
# core that wrote it, from its own cache. `starts` are the first images of those shares:

# %%
source(program.run_program)
made = inference.Inference(match(net, (1, 32, 32, 3)), (1, 32, 32, 3), net.dtype)
say(f"The program of the article's network, for one image: {made.program.size} records.")

# %%
with backend.use("numpy"):
    by_numpy = fastest(lambda: reference.forward(images), 2)
by_reference, by_fused = (fastest(lambda net=net: net.forward(images), 11) for net in (reference, fast))
say(
    f"Inference of {N} images: {1e3 * by_numpy:.0f} ms in NumPy, {1e3 * by_reference:.1f} ms with the reference "
    f"kernels, {1e3 * by_fused:.1f} ms fused and folded."
)

# %% [markdown]
# ## Beside PyTorch
#
# A fair comparison is harder than a fast kernel. `mbnp bench` gives every candidate the same network, weights, images
# and number of threads, and does not time one whose numbers, in float64, do not agree with a reference. Each runs in a
# process of its own, since the threads of one library would slow the next, and the processes take turns. PyTorch is
# run as installed, and with an allocator that keeps freed memory: "allocate once", done from outside. "Its matrix
# products alone" are those of the network's convolutions, one after the other, and nothing else: an engine that
# computes convolutions by them can hardly be faster.

# %%
peers = [] if SMALL or find_spec("torch") is None else ["torch"]
if not peers:
    say("(PyTorch is not installed, or this is the small run: it is left out.)")


def candidates(workload):
    """Return some candidates of `mbnp bench --against torch`: PyTorch in its channels_last layout, not compiled."""
    everything = known.for_workload(workload, peers, False, compiled=False)
    wanted = {known.MBNP} if SMALL else {known.MBNP, known.MATMULS, f"{known.TORCH}, channels_last"}
    return [candidate for candidate in everything if candidate.name in wanted]


results = {}
for work in ("training",) if SMALL else ("training", "inference"):
    workload = Workload(work, "mobilenet-v1-small", N, 32, THREADS)
    results[work] = comparison.compare(workload, candidates(workload), rounds=1 if SMALL else 5)

# %%
say("Medians, and the middle half of all steps:")
for work, found in results.items():
    rows, medians = [], {}
    for result in found:
        name = result.candidate.name
        if name.startswith(known.TORCH):
            name += ", tuned" if result.candidate.allocator == known.TUNED else " as installed"
        if result.refused:
            rows.append([name, result.refused, ""])
            continue
        low, high = result.quartiles
        rows.append([name, f"{1e3 * result.median:.1f}", f"{1e3 * low:.1f} to {1e3 * high:.1f}"])
        medians[name] = result.median
    say(table(rows, [f"{work}, {N} images", "ms", "quartiles"]))
    ratios = [f"{name}: {t / medians[known.MBNP]:.2f}" for name, t in medians.items() if name.startswith(known.TORCH)]
    if ratios:
        say(f"Times as long as the fused engine takes: {'; '.join(ratios)}.")

# %% [markdown]
# `mbnp bench --against torch,onnxruntime` runs the long version, with `torch.compile`, ONNX Runtime, memory, and a
# table of every layer. Measure on your machine before you trust any number, including those on this page.
#
# What made the difference? Not fewer multiplications: apart from BatchNorm, which inference folds away, every
# step of this lesson does nearly the same ones. Steps 1 to 4 and 6 keep the processor's arithmetic units busy,
# steps 5, 7 and 8 keep them from waiting for memory.
#
# ## Questions
#
# 1. Why may a kernel normalise its input while loading, but not its output while storing?
# 2. BatchNorm's statistics are accumulated by tiles and combined later. Why is the number of tiles taken from
#    the shape, and not from the number of threads?
# 3. The fused backward pass computes ReLU's mask again from z. How many bytes would it have cost to store it
#    and to load it, for our layer?
# 4. In inference mbnp folds BatchNorm into the weights. When must it fold again, and how could it detect
#    that?
# 5. Could BatchNorm be folded during training, too? What would go wrong?
# 6. A tile of 6 rows and 2 vectors has as many sums as one of 4 rows and 3 vectors. Where a vector has 8 numbers,
#    which one loads fewer bytes for each k, which one has fewer loads, and how many registers does each need?
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/10.py`](exercises/10.py). `mbnp grade tutorials/exercises/10.py`
# checks your answers.
#
# **`fold(w, b, gamma, beta, mean, var, eps)`**: the weights and the bias of the one convolution that computes
# what a convolution with weights w (KH, KW, C, D) and bias b (D,) and a BatchNorm after it compute in
# inference.
#
# <!-- mbnp/grading/lessons/hints/10.md: fold -->
#
# **`normalise_relu(z, mean, var, gamma, beta, eps)`**: what the next convolution computes from z while it
# loads it: BatchNorm with these statistics, then ReLU. Leave z (N, H, W, C) unchanged: the backward pass
# needs it.
#
# <!-- mbnp/grading/lessons/hints/10.md: normalise_relu -->
#
# **`blocked_matmul(a, b)`**: the product of a (M, K) and b (K, N) by tiles of 4 rows and 4 columns, for *any* M, K
# and N: where 4 does not divide M or N, the last tiles are smaller. Keep the sums of a tile in local variables (or one
# small array of them) until they are complete, and write each number of the result once.
#
# <!-- mbnp/grading/lessons/hints/10.md: blocked_matmul -->
#
# **`combine(counts, means, m2s)`**: the statistics of a whole feature map from those of its tiles. Tile t has
# counts[t] pixels, means[t] (C,), and m2s[t] (C,), the sum of squared deviations from *its own* mean. Return
# the mean (C,) and the biased variance (C,) over all pixels.
#
# <!-- mbnp/grading/lessons/hints/10.md: combine -->
