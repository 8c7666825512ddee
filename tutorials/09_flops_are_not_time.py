# %% [markdown]
# # 9. FLOPs are not time
#
# **A separable block needs eight times fewer multiplications than the standard convolution it replaces. Why is
# it not eight times faster?**
#
# At the end you can count the bytes of a layer as well as its FLOPs, say from two numbers of your machine how
# fast a layer can be at most, and tell which of your layers would profit from fewer multiplications and which
# would not. You need lesson 2. It takes about half an hour.

# %%
import math
from pathlib import Path

import numpy as np
from lesson import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SMALL,
    VERMILION,
    fastest,
    figure,
    measured_here,
    say,
    show,
    source,
    table,
)
from threadpoolctl import threadpool_limits

from mbnp import backend, cost, models
from mbnp.bench import floor, machine, profile
from mbnp.bench.workload import Workload
from mbnp.ops import conv, depthwise, pointwise, relu

THREADS = min(2, backend.max_threads())
backend.set_num_threads(THREADS)
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


measured_here()


# %% [markdown]
# ## The disappointment, measured
#
# A block from the middle of the network: 64 images of 16x16 pixels, 128 channels in and 128 out. Lesson 2
# counted the multiplications of both kinds of convolution.

# %%
N, S, C = (4 if SMALL else 64), 16, 128
x = normal(N, S, S, C)
w_standard, w_depthwise, w_pointwise = normal(3, 3, C, C), normal(3, 3, C), normal(C, C)

macs = {
    "standard": N * cost.standard_conv(S, S, 3, C, C),
    "depthwise": N * cost.depthwise(S, S, 3, C),
    "pointwise": N * cost.pointwise(S, S, C, C),
}
fewer = macs["standard"] / (macs["depthwise"] + macs["pointwise"])
say(
    f"The standard convolution takes {macs['standard']:,} multiply-accumulates, the depthwise and the pointwise one "
    f"together {macs['depthwise'] + macs['pointwise']:,}. That is {fewer:.1f} times fewer."
)

# %% [markdown]
# **Before you run the next cell:** how many times faster will the measured time of the separable pair be? And
# the depthwise half has seven percent of the pair's multiplications. How much of the time does it take?

# %%
seconds = {
    "standard": fastest(lambda: conv.forward(x, w_standard, padding=1), repeat=10),
    "depthwise": fastest(lambda: depthwise.forward(x, w_depthwise, padding=1)),
    "pointwise": fastest(lambda: pointwise.forward(x, w_pointwise)),
    "ReLU": fastest(lambda: relu.forward(x)),
}
flops = {name: 2 * count for name, count in macs.items()} | {"ReLU": x.size}
rate = {name: flops[name] / seconds[name] / 1e9 for name in seconds}
rows = [[name, f"{flops[name] / 1e6:,.1f}", f"{1e3 * seconds[name]:.2f}", f"{rate[name]:.1f}"] for name in seconds]
say(table(rows, ["operation", "MFLOP", "ms", "GFLOP/s"]))
pair = seconds["depthwise"] + seconds["pointwise"]
say(
    f"{fewer:.1f} times fewer multiplications, and {seconds['standard'] / pair:.1f} times faster. The depthwise "
    f"convolution has {macs['depthwise'] / (macs['depthwise'] + macs['pointwise']):.0%} of the pair's work and "
    f"{seconds['depthwise'] / pair:.0%} of its time."
)

# %% [markdown]
# Time is FLOPs divided by FLOPs *per second*, and the last column is not the same for every operation. The
# same processor does far fewer operations per second in a depthwise convolution than in a standard one, and
# fewer still in a ReLU. The processor did not slow down. It was waiting.
#
# (A multiply-accumulate is two FLOPs, as in lesson 2, and a ReLU's comparison one. FLOPs are a *number* of
# operations, GFLOP/s is a speed.)
#
# ## What it was waiting for
#
# Before a number can be multiplied, it has to come from memory, and the result has to go back. So count two
# things: FLOPs, and **bytes moved**. By hand: one image of 4x4 pixels with 2 channels, 32 numbers of 4 bytes. An
# ideal program reads every input and every weight once, and writes every output once.

# %%
NUMBERS = 4 * 4 * 2  # in the feature map


def count(flops_each, weights, numbers=NUMBERS):
    """Return the FLOPs, the least bytes moved, and their ratio; `flops_each` is for one output number."""
    total, moved = numbers * flops_each, 4 * (numbers + numbers + weights)
    return total, moved, total / moved


by_hand = {
    "ReLU": count(1, 0),
    "depthwise 3x3": count(2 * 3 * 3, 3 * 3 * 2),
    "pointwise 2 to 2": count(2 * 2, 2 * 2),
    "standard 3x3, 2 to 2": count(2 * 3 * 3 * 2, 3 * 3 * 2 * 2),
}
rows = [[name, f"{f:,}", f"{b:,}", f"{i:.2f}"] for name, (f, b, i) in by_hand.items()]
say(table(rows, ["operation", "FLOPs", "bytes", "FLOPs per byte"]))

# %% [markdown]
# The last column is called **arithmetic intensity**: the work for every byte that is moved. For a large feature
# map the few weights do not matter, and with $C$ channels in, $C$ out, kernel $K$ and 4 bytes per number,
#
# $$I_\text{depthwise} = \frac{2K^2}{4+4} \qquad I_\text{pointwise} = \frac{2C}{4+4} \qquad
# I_\text{standard} = \frac{2K^2C}{4+4}$$
#
# **Before you run the next cell:** with two channels the pointwise convolution had the lowest intensity,
# apart from ReLU. What happens to each of the three when there are 128 channels, or 512?

# %%
channels = 2 ** np.arange(1, 10)
pixels = N * S * S
curves = {
    "standard 3x3": ([count(18 * c, 9 * c * c, pixels * c)[2] for c in channels], GREEN, "s-"),
    "pointwise": ([count(2 * c, c * c, pixels * c)[2] for c in channels], BLUE, "o-"),
    "depthwise 3x3": ([count(18, 9 * c, pixels * c)[2] for c in channels], VERMILION, "^-"),
    "ReLU": ([count(1, 0, pixels * c)[2] for c in channels], PURPLE, "D-"),
}
fig, axes = figure(width=7, height=3.6)
for name, (intensities, colour, style) in curves.items():
    axes.loglog(channels, intensities, style, color=colour, markersize=5, label=name)
axes.set_xticks(channels, [str(c) for c in channels])
axes.minorticks_off()
axes.yaxis.set_major_formatter("{x:g}")
axes.set_xlabel("channels in and out")
axes.set_ylabel("FLOPs per byte")
axes.set_title("Only operations that mix channels get more work per byte")
axes.grid(alpha=0.3)
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show(
    fig,
    "FLOPs per byte against channels: standard and pointwise convolution rise, depthwise and ReLU are flat",
)

# %% [markdown]
# In a depthwise convolution twice the channels are twice the FLOPs and twice the bytes: its intensity never gets
# any better. A convolution that mixes channels uses every number it has loaded once for each output channel. The
# separable block has nearly all of its *FLOPs* there, which is what makes it a good idea; but all the *bytes* of the
# depthwise half remain.
#
# ## Two numbers of your machine
#
# How many FLOPs per byte are enough? That depends on two numbers of the machine: its speed of computing when
# nothing has to be loaded from memory, which a large matrix product comes closest to, and its speed of moving
# numbers when next to nothing has to be computed. The second is measured twice, with arrays far larger than the
# last-level cache, and with arrays that fit into half of it.

# %%
source(floor.multiply, machine._triad)

# %% [markdown]
# **Before you run the next cell:** it measures with one thread and with two. Which of the three numbers, the
# speed of computing and the two bandwidths, will double?

# %%
rounds = 2 if SMALL else 30
peaks = {threads: machine.measure(threads, rounds) for threads in sorted({1, THREADS})}
rows = [
    [f"{threads}", f"{p.gflops:.0f}", f"{p.cache:.0f}", f"{p.memory:.0f}", f"{p.gflops / p.memory:.0f}"]
    for threads, p in peaks.items()
]
say(table(rows, ["threads", "matmul, GFLOP/s", "last cache, GB/s", "memory, GB/s", "FLOPs per byte needed"]))
peak = peaks[THREADS]
if THREADS == 2:
    verdicts = ["hardly more", "more, but not twice as much", "twice as much", "more than twice as much"]
    for name, what in (("gflops", "The matrix product"), ("cache", "The last cache"), ("memory", "Memory")):
        factor = getattr(peak, name) / getattr(peaks[1], name)
        say(f"{what}: x{factor:.2f}, {verdicts[sum(factor > limit for limit in (1.2, 1.8, 2.2))]}.")
say(
    f"The last cache has {machine.last_cache_bytes() >> 20} MB. To keep the arithmetic units busy, a layer whose "
    f"arrays come from memory has to do {peak.gflops / peak.memory:.0f} FLOPs per byte. A depthwise 3x3 convolution "
    f"does {by_hand['depthwise 3x3'][2]:.1f} to 2.25."
)

# %% [markdown]
# - **Twice as much**: every core has its own arithmetic units. Where a bandwidth doubles, one core could not use
#   all of it: it requests only so many cache lines before it waits for the first.
# - **Less than that**: the cores share something that one of them nearly exhausts, on many machines the memory.
# - **More than twice**: no core got faster. Either half of the arrays fits into a faster cache of each core, or
#   another program disturbed the measurement with one thread.
#
# ## The roofline
#
# In one second, a layer of intensity $I$ cannot do more FLOPs than the machine's peak $P$, nor more than $I$ for each
# of the $B$ bytes that are moved:
#
# $$\text{FLOP/s} \le \min(P, B \cdot I)$$
#
# On logarithmic axes this is a slope followed by a flat roof, and it is called the **roofline** (Williams,
# Waterman and Patterson, 2009). Under the slope a layer is *memory-bound*: only fewer *bytes* can make it
# faster. Under the flat part it is *compute-bound*: only fewer *FLOPs* can. There is a slope for every place that
# the bytes can come from, and here are two of them:

# %%
intensity = {
    "standard": count(18 * C, 9 * C * C, x.size)[2],
    "depthwise": count(18, 9 * C, x.size)[2],
    "pointwise": count(2 * C, C * C, x.size)[2],
    "ReLU": count(1, 0, x.size)[2],
}
looks = {
    "standard": (GREEN, "s"),
    "depthwise": (VERMILION, "^"),
    "pointwise": (BLUE, "o"),
    "ReLU": (PURPLE, "D"),
}


def roofs(axes, peak, lowest):
    """Draw the two slopes and the flat roof."""
    at = np.geomspace(0.06, 1000, 200)
    for bandwidth, name, style in ((peak.cache, "last cache", "-"), (peak.memory, "memory", "--")):
        label = f"{name}: {bandwidth:.0f} GB/s"
        axes.loglog(at, np.minimum(peak.gflops, bandwidth * at), style, color="grey", label=label)
    axes.plot([], [], " ", label=f"(top: {peak.gflops:.0f} GFLOP/s)")
    axes.set(
        xlim=(0.06, 1000),
        ylim=(min(1, lowest / 2), 2 * peak.gflops),
        xlabel="FLOPs per byte",
        ylabel="GFLOP/s",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)


fig, axes = figure(width=7.5, height=4.2)
roofs(axes, peak, min(rate.values()))
for name, (colour, marker) in looks.items():
    axes.plot(intensity[name], rate[name], marker, color=colour, markersize=9, label=name)
axes.set_title("Grey: the limits of this machine. Points: the four operations, measured")
axes.legend(loc="lower right", ncols=2, fontsize=9)
show(fig, "Roofline with four operations: ReLU far left, depthwise next, pointwise and standard far right")

# %% [markdown]
# The least time that a layer can take is the larger of two times: its FLOPs divided by the peak, and its
# bytes divided by the bandwidth. Here the same arrays are used again and again, so they are in the last cache; in
# a whole network other feature maps have evicted them, at least in part. So the table has both.

# %%
rows, bounds = [], {}
for name in seconds:
    bytes_moved = flops[name] / intensity[name]
    times = [flops[name] / peak.gflops / 1e6, bytes_moved / peak.cache / 1e6, bytes_moved / peak.memory / 1e6]
    bounds[name] = max(times[0], times[1]), max(times[0], times[2])
    rows.append([name, *(f"{t:.2f}" for t in times), f"{1e3 * seconds[name]:.2f}"])
header = ["operation", "computing, ms", "loading from the last cache", "loading from memory", "measured, ms"]
say(table(rows, header))
near, far = (bounds["standard"][k] / (bounds["depthwise"][k] + bounds["pointwise"][k]) for k in (0, 1))
say(
    f"If every operation reached its bound, the pair would be {near:.1f} times faster than the standard "
    f"convolution with its arrays in the last cache, and {far:.1f} times with its arrays in memory. The ReLU and the "
    f"two convolutions that mix channels take {1e3 * seconds['ReLU'] / bounds['ReLU'][0]:.1f}, "
    f"{1e3 * seconds['standard'] / bounds['standard'][0]:.1f} and "
    f"{1e3 * seconds['pointwise'] / bounds['pointwise'][0]:.1f} times their bound. The depthwise one takes "
    f"{1e3 * seconds['depthwise'] / bounds['depthwise'][0]:.1f} times its bound: there must be another limit, which we "
    f"have not drawn yet."
)

# %% [markdown]
# ## Caches
#
# "Memory" has been one number so far, or two. In fact there is a hierarchy: close to each core a very fast and very
# small cache (L1), then a larger and slower one (L2), then one that all cores share. A loop that reads the same
# arrays again and again runs at the speed of the smallest cache that holds all of them.


# %%
@backend.jit
def again(a, b, out, times):
    """Compute out = a + r*b, `times` times over the same arrays: two loads and a store for each number."""
    for r in range(times):
        factor = np.float32(r)
        for i in range(out.size):
            out[i] = a[i] + factor * b[i]


def bandwidth(total):
    """Return the GB/s of one thread that goes again and again over three arrays of `total` bytes together."""
    a, b, out = (np.ones(total // 12, np.float32) for _ in range(3))
    times = max(1, (2**22 if SMALL else 2**28) // total)
    return 12 * out.size * times / fastest(lambda: again(a, b, out, times), repeat=7) / 1e9


caches = {}
for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):  # only on Linux
    if (index / "type").read_text().strip() != "Instruction":
        level, size = (index / "level").read_text().strip(), (index / "size").read_text().strip()
        caches[f"L{level}"] = int(size.rstrip("K")) << 10
sizes = [2**k for k in (range(13, 23, 2) if SMALL else range(13, 29))]

# %% [markdown]
# **Before you run the next cell:** arrays of 8 kB, 512 kB, 16 MB and 256 MB. How many times slower is each than the
# one before?

# %%
speeds = [bandwidth(size) for size in sizes]

fig, axes = figure(width=7.5, height=3.4)
axes.semilogx(sizes, speeds, "o-", color=BLUE, base=2)
for name, size in caches.items():
    axes.axvline(size, color="grey", linestyle=":")
    unit = f"{size >> 10} kB" if size < 2**20 else f"{size >> 20} MB"
    axes.annotate(f" {name}: {unit}", (size, max(speeds)), color="#404040", fontsize=9)
ticks = sizes[::3] if not SMALL else sizes
axes.set_xticks(ticks, [f"{t >> 10} kB" if t < 2**20 else f"{t >> 20} MB" for t in ticks])
axes.minorticks_off()
axes.set_ylim(bottom=0)
axes.set(xlabel="three arrays together", ylabel="GB/s, one thread")
axes.set_title("The same loop over arrays of different size")
axes.grid(alpha=0.3)
show(fig, "Bandwidth against array size: it falls in steps, wherever a cache is full")

# %%
deep = cost.of(models.create("mobilenet-v1-small"), (32, 32, 3))
largest = max(4 * math.prod(row.output_shape) for row in deep.rows)
say(
    f"From {speeds[0]:.0f} GB/s in the smallest arrays to {speeds[-1]:.0f} in the largest ones, on the same core. The "
    f"largest feature map of the article's network is {largest / 1e3:,.0f} kB for one image and "
    f"{64 * largest / 1e6:.1f} MB for 64 of them. So it matters whether you send 64 images through one "
    f"layer and then through the next, or a few images through several layers while they are in a fast cache."
)

# %% [markdown]
# ## The missing roof
#
# Now back to the depthwise convolution. Here is the kernel that we measured. Look at its last line only: how many
# numbers does it load for one multiply-accumulate, and how many does it store?

# %%
source(depthwise._forward_kernel)

# %% [markdown]
# The pixel, the weight and the sum so far are loaded, and the new sum is stored: 16 bytes for 2 FLOPs. They are all
# in the L1 cache. But even that is not infinitely fast, and counted by *its* bytes the kernel's intensity is 2/16,
# not 2.25.

# %%
nearest = THREADS * max(speeds)  # every core has an L1 cache of its own
limit = 2 / 16 * nearest
say(
    f"In the L1 cache the loop above reached {max(speeds):.0f} GB/s on one thread. On {THREADS}, {nearest:.0f} GB/s "
    f"at 2/16 FLOPs per byte are {limit:.0f} GFLOP/s: that is the roof of this kernel, and it reached "
    f"{rate['depthwise']:.0f}. The arithmetic units could do {peak.gflops:.0f}."
)

# %% [markdown]
# A kernel that keeps the nine weights and the sum in registers would load one pixel for each multiplication
# and store one sum for nine of them: 40 bytes for 18 FLOPs, and a roof that is almost four times higher. There is a
# roofline for every level of the memory hierarchy, and a program has to stay below all of them. Lesson 10 writes
# kernels for every level.
#
# ## So why is it not faster?
#
# - Time is FLOPs divided by a rate, and the rate depends on the number of FLOPs per byte. A layer takes at least
#   the largest of several times: its FLOPs divided by the machine's peak, and its bytes divided by the bandwidth of
#   every level of the memory hierarchy that they pass through.
# - A standard convolution has many FLOPs per byte. MobileNet removes FLOPs exactly where they were cheapest.
#   It removes no bytes; it even adds a feature map between the two halves.
# - The pointwise half keeps a high intensity, a ninth of the standard convolution's. So the block *is*
#   faster, and by a lot, but not by the ratio of the multiplications.
# - Where bytes are the limit, move fewer bytes: normalise and clamp a number while it is in a register anyway, and
#   write it once. That is the next lesson.
#
# ## The whole network
#
# That was one layer. Here is a training step of the article's network, in the reference layers. `mbnp.bench`
# times every layer's forward and backward pass while the step runs.

# %%
workload = Workload("training", "mobilenet-v1-small", 4 if SMALL else 64, 32, THREADS)
measured = profile.measure(workload.network(), workload, steps=1 if SMALL else 7)
shares = measured.shares()
rows = [[kind, f"{f:.1%}", f"{s:.1%}"] for kind, (f, s, _) in shares.items()]
rows.append(["loss, optimiser, Python", "", f"{1 - sum(s for _, s, _ in shares.values()):.1%}"])
say(table(rows, ["kind", "share of the FLOPs", "share of the time"]))

# %%
fig, (left, right) = figure(width=9, height=4.2, ncols=2, width_ratios=(1, 1.5))
names = [*shares][::-1]
at = np.arange(len(names))
left.barh(at + 0.2, [100 * shares[k][0] for k in names], 0.38, color=BLUE, label="% of the FLOPs")
left.barh(at - 0.2, [100 * shares[k][1] for k in names], 0.38, color=ORANGE, label="% of the time", hatch="//")
left.set_yticks(at, names)
left.set_title("Work and time")
left.legend(loc="center right", fontsize=9)
roofs(right, peak, min(r.gflops for row in measured.rows if row.forward.flops for r in row.rates))
for kind in ("standard", "pointwise", "depthwise"):
    colour, marker = looks[kind]
    found = [row for row in measured.rows if row.kind == kind]
    forward, backward = [row.forward for row in found], [row.backward for row in found]
    for passes, style in ((forward, {"label": kind}), (backward, {"mfc": "none"})):
        right.plot([r.intensity for r in passes], [r.gflops for r in passes], marker, color=colour, **style)
right.set_title("Every convolution; hollow: backward")
right.legend(loc="lower right", fontsize=8, ncols=2)
show(fig, "Left: shares of FLOPs and of time by kind of layer. Right: every convolution of the network on the roofline")

# %% [markdown]
# BatchNorm, ReLU and pooling, the row "other", are not even listed in the cost tables of papers. A table of MACs
# lists the operations that are already fast. Keep this figure in mind when you read that a new block "halves the
# FLOPs".
#
# ## Channels first, channels last
#
# Bytes are only half of it: it also matters in which order they lie. In memory an image of $H \times W$ pixels
# and $C$ channels is one long sequence of numbers. PyTorch's default is **channels first**: all of channel 0, row
# by row, then all of channel 1. mbnp and TensorFlow use **channels last**: all channels of pixel (0, 0), then
# those of its right neighbour.

# %%
tiny = np.arange(12).reshape(2, 2, 3)  # two rows, two columns, three channels; each number is its position
say(f"Channels last, in memory: `{tiny.ravel()}`. Channel 0 is `{tiny[..., 0].ravel()}`: every third number.")
first = np.ascontiguousarray(tiny.transpose(2, 0, 1))
say(f"The same array, channels first: `{first.ravel()}`. Now a *pixel* is scattered: (0, 0) has every fourth number.")

# %% [markdown]
# Memory is not loaded by single numbers but by cache lines of 64 bytes, 16 neighbouring float32. And a vector
# instruction works on 8 or 16 *neighbouring* numbers. So the innermost loop should run over numbers that are
# side by side in memory, and it should be long. For a depthwise convolution, both orders have a natural loop:


# %%
@backend.jit
def channels_first(x, w, y):
    """Convolve x (N, C, H+2, W+2), padded, with w (C, 3, 3) into y (N, C, H, W). Innermost: a row of one channel."""
    N, C, H, W = y.shape
    for n in range(N):
        for c in range(C):
            for i in range(H):
                for j in range(W):
                    y[n, c, i, j] = 0
                for u in range(3):
                    for v in range(3):
                        for j in range(W):
                            y[n, c, i, j] += x[n, c, i + u, j + v] * w[c, u, v]


@backend.jit
def channels_last(x, w, y):
    """Convolve x (N, H+2, W+2, C), padded, with w (3, 3, C) into y (N, H, W, C). Innermost: a pixel's channels."""
    N, H, W, C = y.shape
    for n in range(N):
        for i in range(H):
            for j in range(W):
                for c in range(C):
                    y[n, i, j, c] = 0
                for u in range(3):
                    for v in range(3):
                        for c in range(C):
                            y[n, i, j, c] += x[n, i + u, j + v, c] * w[u, v, c]


def both_ways(batch, size, c):
    """Return the seconds of a depthwise and a pointwise convolution, (first, last) each, on one thread."""
    last, wd, wp = normal(batch, size + 2, size + 2, c), normal(3, 3, c), normal(c, c)
    first, wd_first = np.ascontiguousarray(last.transpose(0, 3, 1, 2)), np.ascontiguousarray(wd.transpose(2, 0, 1))
    y_last, y_first = np.empty((batch, size, size, c), np.float32), np.empty((batch, c, size, size), np.float32)
    channels_first(first, wd_first, y_first)
    channels_last(last, wd, y_last)
    np.testing.assert_allclose(y_first.transpose(0, 2, 3, 1), y_last, rtol=1e-4, atol=1e-4)  # first check, then time
    calls = {
        "depthwise": (lambda: channels_first(first, wd_first, y_first), lambda: channels_last(last, wd, y_last)),
        "pointwise": (lambda: wp.T @ y_first.reshape(batch, c, -1), lambda: y_last.reshape(-1, c) @ wp),
    }
    with threadpool_limits(1, user_api="blas"):
        return {name: tuple(fastest(call) for call in pair) for name, pair in calls.items()}


# %% [markdown]
# A pointwise convolution is a matrix product in either order: with channels last it is *one* matrix product
# of all pixels with the weights; with channels first it is one matrix product for each image, weights times
# pixels.
#
# **Before you run the next cell:** early in the network a feature map has 32x32 pixels and 32 channels, at
# the end 4x4 pixels and 512. How long is the innermost loop in each order? Which order is faster where?

# %%
rows, ratios = [], {}
for size, c in ((32, 32), (16, 128), (4, 512)):
    for name, (first, last) in both_ways(2 if SMALL else 64, size, c).items():
        ratios[name, size] = first / last
        loop = f"{size} or {c}" if name == "depthwise" else ""
        times = f"{1e3 * first:.2f}", f"{1e3 * last:.2f}", f"{first / last:.2f}"
        rows.append([f"{size}x{size}x{c}", name, loop, *times])
header = ["feature map", "operation", "innermost loop, first or last", "first, ms", "last, ms", "first / last"]
say(table(rows, header))
say(
    f"On the small feature map, channels last is {ratios['depthwise', 4]:.1f} times as fast for the depthwise "
    f"convolution and {ratios['pointwise', 4]:.1f} times for the pointwise one; on the large feature map the "
    f"factors are {ratios['depthwise', 32]:.1f} and {ratios['pointwise', 32]:.1f}."
)

# %% [markdown]
# The number of channels grows as the feature maps get smaller, so an inner loop over channels only gets
# longer, while one over a row shrinks to four numbers, less than one vector. And one matrix product of all pixels
# stays large where one for each image becomes thin. This is why mbnp keeps channels last, and why PyTorch has
# `memory_format=torch.channels_last`.
#
# ## Questions
#
# 1. What is the arithmetic intensity of adding two arrays? Of adding a number to an array, in place?
# 2. A depthwise convolution with a 5x5 kernel has 25/9 times the FLOPs of a 3x3 one. On the slope of the roofline, how
#    much longer should it take?
# 3. With float16 instead of float32, what happens to the intensity of each operation, and to the time of a layer
#    under the slope?
# 4. Your machine gets twice the cores and the same memory. Which points of the roofline plot can move up?
# 5. Why can a point lie above the dashed line? The solid one is the slope of the last cache: arrays of which size can
#    lie above that, too, and which line can no point cross, whatever its size?
# 6. With a batch of one image, the weights are not negligible any more. For which layers of the network does that
#    change the intensity most?
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/09.py`](exercises/09.py). `mbnp grade tutorials/exercises/09.py`
# checks your answers.
#
# **`depthwise_intensity(n, h, w, c, k, itemsize)`**: the FLOPs per byte of a depthwise convolution with
# stride 1 and padding that keeps the size, for n images of h x w pixels and c channels, a kernel of k x k,
# and numbers of `itemsize` bytes. Count the input, the weights and the output once each; taps that fall on
# the padding count as work.
#
# <!-- mbnp/grading/lessons/hints/09.md: depthwise_intensity -->
#
# **`attainable(intensity, gflops, bandwidth)`**: the roofline: the most GFLOP/s that layers of these
# intensities (an array, FLOPs per byte) can reach on a machine with the given GFLOP/s and GB/s.
#
# <!-- mbnp/grading/lessons/hints/09.md: attainable -->
#
# **`offset_last(n, c, i, j, shape)`**: a number is at `[n, c, i, j]` of an array of `shape` (N, C, H, W),
# channels first. Where in memory, counted in numbers from the beginning, is it when the array is stored
# channels last?
#
# <!-- mbnp/grading/lessons/hints/09.md: offset_last -->
