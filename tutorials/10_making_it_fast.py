# %% [markdown]
# # 10. Making it fast
#
# **The reference layers already run compiled loops on all cores. How much faster can it get, where does the
# speed come from, and how does it compare with PyTorch?**
#
# At the end you have taken one layer from the plain definition to the kernel of mbnp's fast engine, with a
# measurement of every step, and you can say why the last steps hardly change the multiplications. You need
# lessons 4 and 9. It takes about half an hour.

# %%
import time
from importlib.util import find_spec

import numba
import numpy as np
from lesson import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    fastest,
    figure,
    say,
    show,
    source,
    table,
    warn_if_busy,
)

from mbnp import backend, fused, models
from mbnp.bench import comparison, profile
from mbnp.bench.candidates import INSTALLED, TUNED, for_workload
from mbnp.bench.workload import Workload
from mbnp.fused import inference
from mbnp.fused.buffers import Arena
from mbnp.fused.chain import split
from mbnp.fused.kernels import batchnorm as passes
from mbnp.fused.kernels import depthwise as fused_depthwise
from mbnp.fused.kernels import pointwise as fused_pointwise
from mbnp.fused.training import Plan
from mbnp.ops import batchnorm, depthwise, pointwise, relu

THREADS = min(2, backend.max_threads())
backend.set_num_threads(THREADS)
rng = np.random.default_rng(0)


def same(found, expected, what):
    """Raise an error unless two arrays agree: everything is compared here before it is timed."""
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=what)


warn_if_busy()

# %% [markdown]
# ## The layer
#
# Our layer is the first depthwise convolution of the article's network: 64 images, 32x32 pixels, 32 channels,
# kernel 3x3. Here is its definition once more, plain loops, as lesson 2 had it.

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
# NumPy has its own compiled loops, but each call is one pass over whole arrays. For each of the nine taps,
# NumPy multiplies the feature map by a row of weights and writes the result to memory, and then reads
# everything back to add it up.
#
# ## Step 2: compile the definition
#
# The loops of the definition use only the part of Python that Numba can compile. So the second step is one
# function call. The sum stays in a register until it is complete.
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
# For every single multiplication the definition tests whether the pixel is inside the image, and with the
# taps innermost no two successive multiplications use neighbouring numbers. The Numba kernel of
# `ops/depthwise.py` changes the order of the loops: the rows of the output are divided among the cores, and
# the innermost loop is the one over channels, which are side by side in memory. The columns that a tap can
# reach are computed once for a row, so the inner loop has no test, and the compiler turns it into vector
# instructions. You saw this kernel in lesson 9.

# %%
same(depthwise.forward_numba(x, w, None, ONE, PAD), expected, "forward_numba")
steps["rows on all cores, channels innermost"] = fastest(lambda: depthwise.forward_numba(x, w, None, ONE, PAD))

# %% [markdown]
# ## Step 4: all nine taps at once
#
# Lesson 9 showed what limits this kernel: for each multiplication it loads a sum and stores it again. If all
# nine products of an output are in one expression, the sum never leaves its register. That needs nine pixels
# for every output, also at the border, so the feature map is stored with a border of zeros. The producer of
# the feature map can leave room for that.


# %%
@backend.jit(parallel=True)
def nine_taps(padded, w, y):
    """Convolve padded (N, H+2, W+2, C) with w (3, 3, C) into y (N, H, W, C)."""
    N, H, W, C = y.shape
    for row in numba.prange(N * H):
        n, i = row // H, row % H
        for j in range(W):
            for c in range(C):
                y[n, i, j, c] = (
                    padded[n, i, j, c] * w[0, 0, c]
                    + padded[n, i, j + 1, c] * w[0, 1, c]
                    + padded[n, i, j + 2, c] * w[0, 2, c]
                    + padded[n, i + 1, j, c] * w[1, 0, c]
                    + padded[n, i + 1, j + 1, c] * w[1, 1, c]
                    + padded[n, i + 1, j + 2, c] * w[1, 2, c]
                    + padded[n, i + 2, j, c] * w[2, 0, c]
                    + padded[n, i + 2, j + 1, c] * w[2, 1, c]
                    + padded[n, i + 2, j + 2, c] * w[2, 2, c]
                )


# %% [markdown]
# Two more changes have nothing to do with arithmetic. So far every call allocated a new array of 8 MB for its
# output: let us use the same one every time. And a vector instruction loads up to 64 bytes, as much as a
# cache line. NumPy's large arrays begin 16 bytes after the start of a cache line, so that such a load touches
# *two* lines. The fast engine takes its arrays from large blocks, and every array begins at a cache line.

# %%
source(Arena)

# %% [markdown]
# **Before you run the next cell:** the same kernel, first with NumPy's arrays, then with arrays that begin at
# a cache line. Same loop, same instructions, same number of bytes. Is there a measurable difference?

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

# %%
fig, axes = figure(width=8, height=3)
names = [*steps][::-1]
axes.barh(names, [1e3 * steps[name] for name in names], color=BLUE)
for k, name in enumerate(names):
    ms = 1e3 * steps[name]
    axes.annotate(f" {ms:,.2f} ms" if ms < 10 else f" {ms:,.0f} ms", (ms, k), va="center", fontsize=9)
axes.set_xscale("log")
axes.set_xlim(right=20e3 * max(steps.values()))
axes.set_xlabel("ms, logarithmic")
axes.xaxis.set_major_formatter("{x:g}")
axes.set_title("One depthwise convolution, 64 images of 32x32x32")
show(fig, "Bars of the time of each step, from Python loops to a compiled kernel, on a logarithmic axis")

# %% [markdown]
# ## Step 5: fuse the layers around the convolution
#
# So far we made one operation faster. But lesson 9 found that BatchNorm and ReLU, which hardly compute
# anything, take a large share of a training step. Between two convolutions there is this chain:
#
# $$z \to \hat z = \gamma \frac{z-\mu}{\sqrt{\sigma^2+\varepsilon}} + \beta \to a = \max(\hat z, 0)
# \to \text{next convolution} \to z' \to \text{its own } \mu', \sigma'^2$$
#
# Do it by hand for one channel with four pixels, and count how often the feature map is read and written.

# %%
z4 = np.array([1.0, 3.0, 5.0, 11.0])
mean, var = z4.mean(), z4.var()
normal = (z4 - mean) / np.sqrt(var)  # gamma = 1, beta = 0, and no epsilon, for round numbers
say(f"`z = {z4}`: mean {mean:g}, variance {var:g}")
say(f"normalised: `{normal.round(3)}`, after ReLU: `{np.maximum(normal, 0).round(3)}`")
scale, shift = 1 / np.sqrt(var), -mean / np.sqrt(var)
one_pass = [max(z * scale + shift, 0.0) for z in z4]
say(f"one pass, `max(z·{scale:.3f} - {-shift:.3f}, 0)`: `{np.round(one_pass, 3)}`")

# %% [markdown]
# | reference layers | reads | writes | fused engine | reads | writes |
# | --- | ---: | ---: | --- | ---: | ---: |
# | mean of z, then variance of z | 2 | | (accumulated by the kernel that wrote z) | | |
# | normalise | 1 | 1 | | | |
# | ReLU | 1 | 1 | | | |
# | convolution | 1 | 1 | load z, normalise, clamp, convolve, store, accumulate statistics | 1 | 1 |
#
# Eight passes through memory against two, with the same multiplications. Two ideas make it possible:
#
# - **Prologue.** Once mean and variance are known, BatchNorm and ReLU together are $\max(z \cdot s + t, 0)$,
#   a scale and a shift for each channel. The consumer of z applies them when it loads z, at almost no extra
#   cost. Only z is ever stored.
# - **Epilogue.** The statistics of the *output* are needed before it can be normalised. So the producer
#   accumulates them while the output is still in the cache.
#
# This is known as BatchNorm fission-fusion (Jung et al., "Restructuring Batch Normalization to Accelerate CNN
# Training", 2019). Here is mbnp's kernel, with the two functions that do this:

# %%
source(passes.activate_run, fused_depthwise._convolve_row, fused_depthwise._depthwise_forward)

# %% [markdown]
# These functions `load`, add, multiply and `store` *vectors*: as many channels as one vector instruction
# processes, 8 or 16 of them. The kernel goes through a whole image with one vector of channels before it
# takes the next, so that the nine weights stay in registers. The rows that the window needs come from a ring
# buffer of a few rows, which are normalised and clamped when they are first needed. And `prefetch` requests a
# row from memory while the previous one is being computed, since most of these kernels do not wait for
# arithmetic but for the next cache line.
#
# (`affine` holds the mean, the scale and the shift of each channel. The sums are of deviations from one of
# the outputs: a plain sum of squares would lose its digits where the mean is large, as in lesson 4. Each
# image gets a mean and squared deviations of its own, which are combined at the end; the third exercise is
# about that.)
#
# The engine keeps everything that a Conv-BN-activation block needs in a *stage*. Let us take the network's
# first three stages, check the **reference equation** of the second one, that is, what it computes in terms
# of the operations of `ops`, and only then measure the time.

# %%
net = models.mobilenet_v1_small(seed=0)
images = rng.standard_normal((N, 32, 32, 3), dtype=np.float32)
blocks, tail = split(net)
plan = Plan(blocks, [layer for _, layer in tail], images.shape)
with backend.one_pool():
    plan.forward(images)
stem, stage, third = plan.stages[:3]  # conv1, then conv2_1's depthwise and pointwise convolution

z, bn = stem.z, stem.bn
gamma, beta, taps = bn.weight.value, bn.bias.value, stage.conv.weight.value


def by_layers():
    """Run BatchNorm, ReLU and depthwise convolution one after another, as the reference network does."""
    y, _, _ = batchnorm.forward(z, gamma, beta, bn.eps)
    return depthwise.forward(relu.forward(y), taps, padding=1)


expected = by_layers()
same(stage.z, expected, "the fused depthwise convolution")
stage.forward(stem, plan.scratch)  # once more, since all stages share one array for their statistics
same(stage.moments[:, 0].mean(axis=0), expected.mean(axis=(0, 1, 2)), "its statistics")

# %% [markdown]
# **Before you run the next cell:** first, three operations run one after another, each as its own kernel on
# all cores; then one kernel computes the same, and the statistics of its output, too. By what factor is it
# faster?

# %%
apart = {
    "BatchNorm": fastest(lambda: batchnorm.forward(z, gamma, beta, bn.eps)),
    "ReLU": fastest(lambda: relu.forward(z)),
    "depthwise": fastest(lambda: depthwise.forward(z, taps, padding=1)),
}
together = fastest(lambda: stage.forward(stem, plan.scratch))
say(
    f"One after another {1e3 * sum(apart.values()):.2f} ms ("
    + ", ".join(f"{name} {1e3 * t:.2f}" for name, t in apart.items())
    + f"). In one kernel {1e3 * together:.2f} ms: {sum(apart.values()) / together:.1f} times as fast."
)

# %% [markdown]
# ## Step 6: the same for the pointwise convolution
#
# A library's matrix product takes a whole matrix, so nothing can be applied while it loads. But it can be
# given a *tile*: a few hundred pixels, normalised into a workspace that stays in the L2 cache and multiplied
# from there, and the statistics of the result are accumulated before it leaves the cache.

# %%
source(fused_pointwise._pointwise_forward, fused_pointwise.product)

# %%
mid, mid_bn = stage.z, stage.bn
mix = third.conv.weight.value


def pointwise_by_layers():
    y, _, _ = batchnorm.forward(mid, mid_bn.weight.value, mid_bn.bias.value, mid_bn.eps)
    return pointwise.forward(relu.forward(y), mix)


same(third.z, pointwise_by_layers(), "the fused pointwise convolution")
apart_pointwise = fastest(pointwise_by_layers)
with backend.one_pool():
    together_pointwise = fastest(lambda: third.forward(stage, plan.scratch))
say(
    f"{1e3 * apart_pointwise:.2f} ms one after another, {1e3 * together_pointwise:.2f} ms in one kernel. A tile is "
    f"{third.tile} pixels, {4 * third.tile * C >> 10} kB."
)

# %% [markdown]
# The matrix product itself is the BLAS library's, with **one thread in each of our threads**. A BLAS with
# threads of its own would keep them spinning while they wait for the next matrix product, on the same cores
# that our kernels need in between: two thread pools are slower than one.
#
# ## Backwards
#
# The backward pass is fused in the same way, in reverse. Lesson 4 derived the gradient of BatchNorm. For one
# channel, once its two sums are known, it is a number times the incoming gradient, plus a number times z,
# plus a number. These are three coefficients for each channel, so it can be computed while loading, too:

# %%
source(passes.adjoint_run, fused_pointwise._pointwise_backward)

# %% [markdown]
# Only the output z of every convolution is kept for the backward pass. Everything between, the normalised
# feature maps, the outputs of ReLU and its masks, is computed again from z while a tile is in the cache.
# Computing something twice is cheaper than storing and loading it: that is lesson 9 in one sentence.
#
# ## Step 7: allocate once
#
# All feature maps, gradients and workspaces of the engine are allocated once for each input shape. What does
# that save? When you allocate memory, the operating system only reserves it. It provides each page, filled
# with zeros, when you first write to it, and each of these is a *page fault*. When you free an array, the C
# library decides: it keeps small ones for the next request and returns large ones to the system, and the next
# allocation starts from the beginning.
#
# **Before you run the next cell:** an array is multiplied by two, into a new array or into an existing one.
# Does it matter for 8 MB? For 128 MB?


# %%
def faults(call):
    """Return the page faults of one call; 0 where the system does not count them."""
    if find_spec("resource") is None:
        return 0
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


rows = []
for megabytes in (8, 128):
    numbers = np.ones(megabytes << 18, np.float32)
    existing = np.empty_like(numbers)
    for what, call in (
        ("new", lambda numbers=numbers: np.multiply(numbers, 2)),
        ("existing", lambda numbers=numbers, out=existing: np.multiply(numbers, 2, out=out)),
    ):
        rows.append([f"{megabytes} MB", what, f"{1e3 * fastest(call, 7):.2f}", f"{faults(call):,}"])
say(table(rows, ["array", "result", "ms", "page faults"]))

# %% [markdown]
# The size above which the C library returns memory, and the size of a page, differ between systems, and
# depend on what the program did before. An engine with buffers of its own does not depend on any of this.
# PyTorch's training step does: you will see at the end what it gains when the C library is told to keep all
# memory.
#
# A buffer that is allocated once can also stay in the cache of *one core*. A core that writes to a cache line
# invalidates it in the caches of all other cores. In the engine the gradients of all stages are
# double-buffered: they alternate between two buffers, and each thread computes the gradients of its chunk of
# the images. When every gradient began at the start of its buffer, the second half of a small one occupied
# the memory where the first half of a large one had been, and the two cores kept invalidating each other's
# cache lines: depthwise backward at stride 2 took a third longer than it does now that every gradient is in
# the middle of its buffer.

# %% [markdown]
# ## The whole network
#
# **Before you run the next cell:** the depthwise kernels became faster, the matrix products stayed the same,
# and BatchNorm and ReLU moved into the kernels around them. How long does a training step of the fused engine
# take, as a fraction of the reference network's? And which kind of layer now takes most of it?

# %%
reference, fast = models.mobilenet_v1_small(seed=0), fused.convert(models.mobilenet_v1_small(seed=0))
same(fast.forward(images, train=True), reference.forward(images, train=True), "logits of a training forward")
same(fast.forward(images), reference.forward(images), "logits of an inference")

workload = Workload("training", "mobilenet-v1-small", N, 32, THREADS)
looks = {
    "standard": GREEN,
    "pointwise": BLUE,
    "depthwise": VERMILION,
    "other": PURPLE,
    "optimiser": ORANGE,
    "rest": SKY,
}
LONG = {"other": "BatchNorm, ReLU, pool, linear", "rest": "loss, Python"}
measured = {}
for name, network in (("reference", workload.network()), ("fused", fused.convert(workload.network()))):
    found = profile.measure(network, workload, steps=1 if SMALL else 11)
    kinds = dict.fromkeys(looks, 0.0)
    for row in found.rows:
        kinds[row.kind] += row.seconds
    measured[name] = kinds | {"optimiser": found.optimiser, "rest": found.rest}

fig, axes = figure(width=8, height=2.6)
for k, kinds in enumerate(measured.values()):
    left = 0.0
    for kind, colour in looks.items():
        label = LONG.get(kind, kind) if k == 0 else None
        axes.barh(k, 1e3 * kinds[kind], left=left, color=colour, edgecolor="white", label=label)
        left += 1e3 * kinds[kind]
axes.set_yticks(range(len(measured)), measured)
axes.invert_yaxis()
axes.set_xlabel(f"ms of a training step, {N} images")
axes.set_title("The time of a training step, forward and backward")
axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3, fontsize=9)
show(fig, "Stacked bars: time of a training step by kind of layer, reference and fused")

# %%
totals = {name: sum(kinds.values()) for name, kinds in measured.items()}
rows = [[LONG.get(kind, kind), *(f"{1e3 * kinds[kind]:.2f}" for kinds in measured.values())] for kind in looks]
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
# So the weights are scaled once, and BatchNorm disappears. By hand, with one weight:

# %%
w1, x1, gamma1, beta1, mean1, var1 = 3.0, 2.0, 4.0, 1.0, 5.0, 4.0  # no epsilon, for round numbers
s = gamma1 / var1**0.5
weight, bias = w1 * s, beta1 - mean1 * s
say(
    f"apart: `{gamma1:g}*({w1:g}*{x1:g} - {mean1:g})/sqrt({var1:g}) + {beta1:g}` = "
    f"{gamma1 * (w1 * x1 - mean1) / var1**0.5 + beta1:g}"
)
say(f"folded, with s = {s:g}: `{weight:g}*{x1:g} + ({bias:g})` = {weight * x1 + bias:g}")
source(inference.fold)

# %% [markdown]
# And nothing needs to be kept for a backward pass. So a block's depthwise convolution passes its rows to the
# pointwise one while they are in the cache, and the feature map between the two, whose cost lesson 9 pointed
# out, is never written to memory.

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
# A fair comparison is harder than a fast kernel. `mbnp bench` has these rules:
#
# - The same network, weights, images and number of threads for every candidate. Each candidate computes
#   first, and its loss and gradients, in float64, or its logits are compared with a reference. A candidate
#   that does not agree is not timed.
# - Each runs in a process of its own, because the threads of one library go on spinning for a while and would
#   slow the next. The processes run alternately, a few steps each, with a pause between.
# - PyTorch is run twice: as installed, and with an allocator that keeps freed memory. That is step 7, done
#   from outside by three settings of the C library, which PyTorch's own performance guide recommends in
#   another form.
# - "Its matrix products alone" are the matrix products of the network's convolutions, one after the other,
#   and nothing else. No engine that computes convolutions by these matrix products can be faster.
#
# Without PyTorch installed, mbnp is compared with its matrix products only.

# %%
peers = [] if SMALL or find_spec("torch") is None else ["torch"]
if not peers:
    say("(PyTorch is not installed, or this is the small run: it is left out.)")


def candidates(workload):
    """Return some candidates of `mbnp bench --against torch`: PyTorch in its channels_last layout, not compiled."""
    everything = for_workload(workload, peers, readable=False, compiled=False)
    wanted = {"mbnp"} if SMALL else {"mbnp", "its matrix products alone", "PyTorch, channels_last"}
    return [candidate for candidate in everything if candidate.name in wanted]


results = {}
for work in ("training",) if SMALL else ("training", "inference"):
    workload = Workload(work, "mobilenet-v1-small", N, 32, THREADS)
    results[work] = comparison.compare(workload, candidates(workload), rounds=1 if SMALL else 5)

# %%
fig, axes = figure(width=9, height=2.9, ncols=len(results), squeeze=False)
say("Medians in ms, and the middle half of all steps:")
for panel, (work, found) in zip(axes[0], results.items(), strict=True):
    rows, bars = [], {}
    for result in found:
        name = result.candidate.name
        if name.startswith("PyTorch"):
            name += ", tuned" if result.candidate.allocator == TUNED else ""
        if result.refused:
            rows.append([name, result.refused, ""])
            continue
        low, high = result.quartiles
        rows.append([name, f"{1e3 * result.median:.1f}", f"{1e3 * low:.1f} to {1e3 * high:.1f}"])
        bars[name] = 1e3 * result.median
    say(table(rows, [f"{work}, {N} images", "ms", "quartiles"]))
    ours = [GREEN if "products" in name else BLUE if name == "mbnp" else ORANGE for name in bars]
    panel.barh([*bars], [*bars.values()], color=ours)
    panel.invert_yaxis()
    for k, ms in enumerate(bars.values()):
        panel.annotate(f" {ms:.1f}", (ms, k), va="center", fontsize=9)
    panel.set_xlim(right=1.18 * max(bars.values()))
    panel.set_xlabel("ms")
    panel.set_title(f"{work}, {N} images")
show(
    fig,
    "Bars of the time of mbnp, its matrix products alone and PyTorch, training step and inference",
)

# %%
for work, found in results.items():
    median = {r.candidate.name + r.candidate.allocator: r.median for r in found if not r.refused}
    ours = median["mbnp" + INSTALLED]
    torchs = {name: t for name, t in median.items() if name.startswith("PyTorch")}
    if torchs:
        best, installed = min(torchs.values()), torchs["PyTorch, channels_last" + INSTALLED]
        say(
            f"{work.capitalize()}: PyTorch at its best takes {best / ours:.2f} times as long as the fused engine; "
            f"as installed, {installed / ours:.2f} times."
        )

# %% [markdown]
# `mbnp bench --against torch,onnxruntime` runs the long version, with `torch.compile`, ONNX Runtime, memory,
# and a table of every layer. Timings depend on the machine and on what else runs on it: measure on yours
# before you trust any number, including those on this page.
#
# What made the difference? Not fewer multiplications: apart from BatchNorm, which inference folds away, every
# step of this lesson does nearly the same ones. Steps 1 to 4 keep the processor from waiting for
# instructions, steps 5 to 8 from waiting for memory.
#
# ## Questions
#
# 1. Why may a kernel normalise its input while loading, but not its output while storing?
# 2. BatchNorm's statistics are accumulated by tiles and combined later. Why is the number of tiles taken from
#    the
#    shape, and not from the number of threads?
# 3. The fused backward pass computes ReLU's mask again from z. How many bytes would it have cost to store it
#    and to load it, for our layer?
# 4. In inference mbnp folds BatchNorm into the weights. When must it fold again, and how could it detect
#    that?
# 5. Could BatchNorm be folded during training, too? What would go wrong?
# 6. Why does a buffer that is allocated once save more time for BatchNorm than for a matrix product?
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
# <details><summary>Hint</summary>
#
# s = gamma / √(var + eps), one number for each *output* channel d. It scales the kernel of that channel, and
# the bias that was there before; what BatchNorm subtracts is scaled, too.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# import numpy as np
#
#
# def fold(w, b, gamma, beta, mean, var, eps):
#     s = gamma / np.sqrt(var + eps)
#     return w * s, beta + (b - mean) * s
# ```
#
# </details>
#
# **`normalise_relu(z, mean, var, gamma, beta, eps)`**: what the next convolution computes from z while it
# loads it: BatchNorm with these statistics, then ReLU. Leave z (N, H, W, C) unchanged: the backward pass
# needs it.
#
# <details><summary>Hint</summary>
#
# Compute two numbers per channel, scale and shift; then it is one expression. Do not write into z.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# import numpy as np
#
#
# def normalise_relu(z, mean, var, gamma, beta, eps):
#     scale = gamma / np.sqrt(var + eps)
#     return np.maximum((z - mean) * scale + beta, 0)
# ```
#
# </details>
#
# **`combine(counts, means, m2s)`**: the statistics of a whole feature map from those of its tiles. Tile t has
# counts[t] pixels, means[t] (C,), and m2s[t] (C,), the sum of squared deviations from *its own* mean. Return
# the mean (C,) and the biased variance (C,) over all pixels.
#
# <details><summary>Hint</summary>
#
# The mean is the tiles' means weighted by their counts: the last tile may be smaller. Within a tile the
# deviations are from the tile's mean; from the common mean, each of its pixels deviates by the difference of
# the two means as well, which adds count · difference². (Chan, Golub and LeVeque, 1979.)
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def combine(counts, means, m2s):
#     n = counts[:, None]
#     total = counts.sum()
#     mean = (n * means).sum(axis=0) / total
#     m2 = (m2s + n * (means - mean) ** 2).sum(axis=0)
#     return mean, m2 / total
# ```
#
# </details>
