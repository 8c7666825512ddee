# %% [markdown]
# # 7. Separable against standard
#
# **A separable block needs an eighth of the multiplications of a standard convolution. Nothing is free: what
# does it give up, how much accuracy does that cost, and does it take an eighth of the time?**
#
# At the end you can say which kernels a separable block cannot represent, compare two networks without
# fooling yourself, and judge what the paper's trade-off is worth for a task of your own. You need lessons 2
# and 6. It takes about half an hour.

# %%
import itertools
import math

import numpy as np
from lesson import BLACK, BLUE, GREEN, SMALL, VERMILION, figure, measured_here, say, show, source, table, timed

from mbnp import cost, datasets, fused, models, optim, train
from mbnp.models.article import BLOCKS
from mbnp.ops import conv, depthwise, pointwise

measured_here()

# %% [markdown]
# ## A standard kernel with a restriction
#
# A depthwise convolution has one small kernel `a[u, v, c]` for each input channel $c$. A pointwise
# convolution has one number `b[c, d]` for each pair of channels. Run one after the other, with nothing in
# between:
#
# $$y_d = \sum_c \sum_{u,v} \underbrace{a_{uvc} b_{cd}}_{w_{uvcd}} \cdot x_c \text{ shifted by } (u, v)$$
#
# The expression over the brace is the kernel of a standard convolution. So a separable block *is* a standard
# convolution, one whose kernel is an outer product. Let us take 2x2 taps, one channel in and two out.

# %%
a = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1)  # (K, K, Cin)
b = np.array([[10.0, -1.0]])  # (Cin, Cout)
w = np.einsum("uvc,cd->uvcd", a, b)  # (K, K, Cin, Cout)
say(f"`w` for output 0: `{w[:, :, 0, 0].tolist()}`, for output 1: `{w[:, :, 0, 1].tolist()}`")

x = np.random.default_rng(0).standard_normal((1, 5, 5, 1))
two_steps = pointwise.forward(depthwise.forward(x, a, stride=1, padding=0), b)
one_step = conv.forward(x, w, None, stride=1, padding=0)
say(f"The largest difference between the two results: {abs(two_steps - one_step).max():.1e}")

# %% [markdown]
# **Before you run the next cell:** output 0 is to respond to vertical edges and output 1 to horizontal ones,
# both of the same input channel. A standard convolution does that with the two kernels `[[1, -1], [1, -1]]`
# and `[[1, 1], [-1, -1]]`. Is there an `a` and a `b` that do the same?

# %%
wanted = np.array([[[1, -1], [1, -1]], [[1, 1], [-1, -1]]], float)  # (Cout, K, K)
matrix = wanted.reshape(2, 4)  # a row for each output, a column for each tap
u, s, v = np.linalg.svd(matrix, full_matrices=False)
best = s[0] * np.outer(u[:, 0], v[0])  # the nearest matrix whose rows are multiples of one row
missed = np.square(matrix - best).sum() / np.square(matrix).sum()
say(
    f"The two kernels as rows of a matrix have rank {np.linalg.matrix_rank(matrix)}; a product `a * b` "
    f"always has rank 1. The best approximation by one separable block misses {missed:.0%} of their sum of squares."
)

# %% [markdown]
# No. All outputs get the *same* pattern of an input channel, each times a number of its own. This is the
# restriction. In numbers, a standard kernel has $K^2 C_{in} C_{out}$ free weights, a separable one $K^2
# C_{in} + C_{in} C_{out}$. To apply two patterns to one channel, the network must first make two copies of
# it, which an earlier pointwise convolution can do if there are enough channels. (MobileNet puts BatchNorm
# and ReLU between the two halves, which makes up for some of it.)

# %%
rng = np.random.default_rng(3)
standard = rng.standard_normal((6, 3, 3))
separable = rng.standard_normal((1, 3, 3)) * rng.uniform(-1.2, 1.2, (6, 1, 1))

fig, axes = figure(8, 2.9, nrows=2, ncols=6)
for row, kernels, name in zip(axes, (standard, separable), ("standard", "separable"), strict=True):
    for d, (ax, kernel) in enumerate(zip(row, kernels, strict=True)):
        ax.imshow(kernel, cmap="PuOr", vmin=-2, vmax=2)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_title(f"output {d}", fontsize=10) if name == "standard" else None
    row[0].set_ylabel(name, fontsize=11)
show(fig, "The kernels of six outputs for one input channel: six patterns, or six multiples of one")

# %% [markdown]
# ## What it saves
#
# Lesson 2 counted the multiplications. Divide the two costs, and everything cancels but this:
#
# $$\frac{H W K^2 C_{in} + H W C_{in} C_{out}}{H W K^2 C_{in} C_{out}} = \frac1{C_{out}} + \frac1{K^2}$$

# %%
source(cost.separable_ratio, cost.separable, cost.standard_conv)

# %% [markdown]
# **Before you run the next cell:** the kernels are 3x3. What is the largest possible saving, however many
# channels there are? And in which layers of a network is the saving smallest?

# %%
channels = np.unique(np.geomspace(2, 1024, 60).astype(int))
fig, ax = figure(8, 3.3)
ax.semilogx(channels, [cost.separable_ratio(3, int(c)) for c in channels], color=BLUE, label=r"$1/C_{out} + 1/9$")
ax.axhline(1 / 9, color=BLACK, lw=0.8, ls=":", label="1/9")
ours = sorted({c for c, _ in BLOCKS})
ax.plot(
    ours,
    [cost.separable_ratio(3, c) for c in ours],
    "o",
    color=VERMILION,
    label="blocks of the article's network",
)
thin = [c // 4 for c in ours]
ax.plot(
    thin,
    [cost.separable_ratio(3, c) for c in thin],
    "s",
    color=GREEN,
    mfc="none",
    label="the same, a quarter as wide",
)
ax.set_xticks([2, 8, 32, 128, 512], ["2", "8", "32", "128", "512"])
ax.minorticks_off()
ax.set_xlabel(r"output channels $C_{out}$")
ax.set_ylabel("MACs, separable / standard")
ax.set_ylim(0, 0.65)
ax.legend()
show(
    fig,
    "The cost of a separable block relative to a standard convolution falls towards one ninth with the channels",
)

# %% [markdown]
# The ratio is always above $1/K^2$, and it is worst where the layers are thin. Keep this in mind: further
# down we train thin networks, because this lesson should take minutes and not hours.
#
# ## The same network, both ways
#
# mbnp has the article's network with a standard convolution in place of every separable block. It is the same
# list with another function for a block:

# %%
source(models.mobilenet_v1_small, models.standard_small)

# %% [markdown]
# **Before you run the next cell:** the separable network needs about a seventh of the MACs. How many times
# faster is a training step, and how many times faster is inference?

# %%
data = datasets.shapes10.make(640, 200) if SMALL else datasets.shapes10.make()
batch = 16 if SMALL else 64
images = datasets.normalise(data.train.images[:batch], data.mean, data.std)
labels = data.train.labels[:batch]


def measure(build):
    """Return parameters, MACs, milliseconds of a training step, milliseconds of inference per image."""
    net = fused.convert(build(seed=0))
    opt = optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    step = timed(lambda: train.step(net, opt, images, labels), repeat=9)
    per_image = timed(lambda: net.forward(images), repeat=9) / batch
    counted = cost.of(net)
    return counted.params, counted.macs, 1e3 * step, 1e3 * per_image


both = {build: measure(build) for build in (models.mobilenet_v1_small, models.standard_small)}
ours, theirs = both[models.mobilenet_v1_small], both[models.standard_small]
names = ["parameters", "MACs", f"training step of {batch} images, ms", "inference, ms per image"]
say(
    table(
        [
            [name, f"{m:,}" if k < 2 else f"{m:.2f}", f"{s:,}" if k < 2 else f"{s:.2f}", f"{s / m:.1f}x"]
            for k, (name, m, s) in enumerate(zip(names, ours, theirs, strict=True))
        ],
        ["", "separable", "standard", "standard / separable"],
    )
)

# %%
fewer, step, inference = (theirs[k] / ours[k] for k in (1, 2, 3))
say(
    f"The MACs differ by a factor of {fewer:.1f}, a training step by {step:.1f}, that is {step / fewer:.0%} of it, and "
    f"inference by {inference:.1f}, {inference / fewer:.0%} of it."
)

# %% [markdown]
# With plain layers the times differ by less than the MACs. A standard convolution is one large matrix
# product, the operation that processors do best. A depthwise convolution does little with each number that it
# loads, and it is one more pass through memory, and more than one in the backward pass. Lesson 9 measures this.
# Where the factors above are as large as that of the MACs, or larger, it is the work of the fast engine, which
# ran both networks here and saves most of those passes. Lesson 10 shows how.
#
# ## What it costs
#
# Now train both in the same way. A complete run of the standard network would take too long for a lesson, so
# we take both at a quarter of their width and train for three epochs, without augmentation, which pays off
# only in longer runs. That is a small experiment, and the results of small experiments depend a lot on
# chance. So we run each network with several seeds. A seed decides the initial weights and the order of the
# images.
#
# There is a third candidate. You can also save MACs by making the *standard* network thinner. We choose its
# width so that it has the MACs of the separable one.


# %%
def macs(build, width):
    return cost.of(build(width_mult=width)).macs


WIDTH = 0.25
budget = macs(models.mobilenet_v1_small, WIDTH)
grid = np.arange(0.04, WIDTH, 0.01).round(2).tolist()
THIN = min(grid, key=lambda width: abs(macs(models.standard_small, width) - budget))

candidates = {
    "separable": (models.mobilenet_v1_small, WIDTH),
    "standard": (models.standard_small, WIDTH),
    "standard, thinner": (models.standard_small, THIN),
}
say(
    table(
        [
            [name, width, counted.params, counted.macs]
            for name, (build, width) in candidates.items()
            for counted in [cost.of(build(width_mult=width))]
        ],
        ["network", "width", "parameters", "MACs"],
    )
)

# %% [markdown]
# **Before you run the next cell:** put the three into the order of the test accuracy that you expect. And
# guess how far apart two runs of the *same* network are when only the seed differs.

# %%
SEEDS = range(2 if SMALL else 3)
EPOCHS = 1 if SMALL else 3

runs = {}
for name, (build, width) in candidates.items():
    for seed in SEEDS:
        recipe = train.Recipe(epochs=EPOCHS, seed=seed, augment=False)
        runs[name, seed] = train.fit(fused.convert(build(width_mult=width, seed=seed)), data, recipe)

accuracy = {name: np.array([100 * runs[name, seed][-1].test_accuracy for seed in SEEDS]) for name in candidates}
say(
    table(
        [
            [name, *(f"{a:.1f}" for a in found), f"{found.mean():.1f}", f"{found.std(ddof=1):.1f}"]
            for name, found in accuracy.items()
        ],
        ["test accuracy, %", *(f"seed {seed}" for seed in SEEDS), "mean", "standard deviation"],
    )
)

# %%
style = {"separable": (BLUE, "o-"), "standard": (VERMILION, "s--"), "standard, thinner": (GREEN, "^:")}
fig, (left, right) = figure(8, 3.6, ncols=2, sharey=True)
for name, (colour, line) in style.items():
    for seed in SEEDS:
        found = [100 * r.test_accuracy for r in runs[name, seed]]
        seconds = np.cumsum([r.seconds for r in runs[name, seed]])
        label = name if seed == 0 else None
        left.plot(range(1, EPOCHS + 1), found, line, color=colour, alpha=0.8, label=label)
        right.plot(seconds, found, line, color=colour, alpha=0.8)
left.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 100), xticks=range(1, EPOCHS + 1))
right.set(xlabel="seconds of training", xlim=(0, None))
left.set_title("after the same number of images")
right.set_title("after the same time")
left.legend(loc="lower right" if not SMALL else "best")
show(fig, "Test accuracy of three networks by epoch and by seconds, a line for each seed")

# %% [markdown]
# ## How certain is that?
#
# Two networks with the same seed saw the same images in the same order, so compare run by run: take the
# difference for each seed, then the mean of the differences. Its standard error is $s/\sqrt S$, where $s$ is
# the standard deviation of the differences (with $S - 1$ in the denominator, not $S$) and $S$ the number of
# seeds. With three seeds this error is itself only roughly known: a difference of one or two standard errors
# means nothing, and only from 4.3 on would chance alone give such a difference in fewer than one case in
# twenty (Student's t with two degrees of freedom).


# %%
def difference(first, second):
    d = accuracy[second] - accuracy[first]
    return d.mean(), d.std(ddof=1) / math.sqrt(len(d))


say(
    table(
        [
            [f"{second} minus {first}", f"{mean:+.1f}", f"{error:.1f}", f"{abs(mean) / max(error, 1e-9):.1f}"]
            for first, second in itertools.combinations(candidates, 2)
            for mean, error in [difference(first, second)]
        ],
        ["", "percentage points", "standard error", "difference / error"],
    )
)
gap, error = difference("separable", "standard")
thin_gap, thin_error = difference("separable", "standard, thinner")
seconds = {name: sum(r.seconds for seed in SEEDS for r in runs[name, seed]) / len(SEEDS) for name in candidates}


def verdict(gap, error):
    side = "ahead of" if gap > 0 else "behind"
    sure = "more than chance" if abs(gap) > 4.3 * error else "which may be chance"
    return f"{abs(gap):.1f} ± {error:.1f} points {side} the separable one, {sure}"


say(
    f"After {EPOCHS} epochs the standard convolution is {verdict(gap, error)}. It took "
    f"{seconds['standard'] / seconds['separable']:.1f} times as long. With equal MACs the thinner standard network is "
    f"{verdict(thin_gap, thin_error)}."
)

# %% [markdown]
# ## What the paper measured
#
# Table 4 of the paper (arXiv:1704.04861) has this experiment at full size: 1000 classes of ImageNet, 224
# pixels, layers of up to 1024 channels, trained until convergence. The accuracies are the paper's. The MACs
# and parameters are counted here, by mbnp.

# %%
net = models.mobilenet_v1(num_classes=1000)
counted = cost.of(net)
PAPER = {"standard": 71.7, "separable": 70.6}  # top-1 accuracy on ImageNet, %

weights = sum(p.value.size for name, p in net.parameters().items() if p.value.ndim > 1)
rows = [row for row in counted.rows if row.macs]
standard_weights = weights
for first, second in itertools.pairwise(rows):
    if (first.kind, second.kind) == ("Depthwise", "Pointwise"):
        c_in, c_out = first.output_shape[-1], second.output_shape[-1]
        standard_weights += 9 * c_in * c_out - (9 * c_in + c_in * c_out)
say(
    table(
        [
            [
                "standard",
                PAPER["standard"],
                f"{counted.as_standard() / 1e6:,.1f}",
                f"{standard_weights / 1e6:.1f}",
            ],
            ["separable", PAPER["separable"], f"{counted.macs / 1e6:,.1f}", f"{weights / 1e6:.1f}"],
            [
                "standard / separable",
                f"{PAPER['standard'] - PAPER['separable']:+.1f} points",
                f"{counted.as_standard() / counted.macs:.1f}x",
                f"{standard_weights / weights:.1f}x",
            ],
        ],
        ["MobileNet", "ImageNet top-1, %", "million MACs", "million weights"],
    )
)

# %%
fig, (left, right) = figure(8, 3.3, ncols=2)
for name, (colour, line) in style.items():
    build, width = candidates[name]
    a, m = accuracy[name], macs(build, width) / 1e6
    left.plot([m] * len(a), a, line[0], color=colour, mfc="none", ms=5)
    left.plot([m], [a.mean()], line[0], color=colour, ms=9, label=name)
left.set(
    xscale="log",
    xlabel="million MACs per image",
    ylabel="test accuracy (%)",
    title=f"here: shapes10, {EPOCHS} epochs",
)
left.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
left.minorticks_off()
left.legend()
for name, m in (("separable", counted.macs / 1e6), ("standard", counted.as_standard() / 1e6)):
    colour, line = style[name]
    right.plot([m], [PAPER[name]], line[0], color=colour, ms=9)
    right.annotate(name, (m, PAPER[name]), (0, -16), textcoords="offset points", ha="center")
right.set(xscale="log", xlabel="million MACs per image", xlim=(250, 10_000), title="the paper: ImageNet")
low, high = min(a.min() for a in accuracy.values()) - 2, max(a.max() for a in accuracy.values()) + 2
left.set_ylim(low, high)
right.set_ylim(74 - (high - low), 74)  # a point is as high as on the left
right.set_xticks([300, 1000, 3000, 10_000], ["300", "1,000", "3,000", "10,000"])
right.minorticks_off()
right.set_ylabel("top-1 accuracy (%)")
show(fig, "Accuracy against MACs: our small experiment beside the paper's")

# %% [markdown]
# The paper gave up about one percentage point and saved eight ninths of the work. That trade-off made
# MobileNet. It does not follow that it costs one point in your case. Our experiment differs from the paper's
# in ways that favour the standard convolution. The layers are thin, where $1/C_{out} + 1/9$ saves least and
# where there are few channels for copies. The training is short, so the network that learns faster wins: compare
# the first epochs in the figure. And three seeds are few.
#
# So the conclusion is neither "standard convolutions are better" nor "separable ones are". The conclusion is
# the plot: accuracy against cost, for your layers, your images and your training time. Set `EPOCHS = 15` and
# `augment=True` in your copy and let it run over lunch: how much of the difference at equal MACs is left?
# Then try `WIDTH = 1`.
#
# The article writes that separable convolution reduces the cost "while ensuring classification accuracy".
# Read it as: while keeping most of it. How much of it has to be measured.
#
# ## Questions
#
# 1. Which standard kernels can a separable block represent exactly, if there is no ReLU between its halves?
# 2. The first layer of MobileNet, from 3 channels, is a standard convolution. What would a separable one save
#    there, and why was it not worth it?
# 3. With $K = 5$ the limit is 1/25. Why does not every network use 5x5 kernels?
# 4. Why should the two networks be trained with the same seeds? What is still different between them?
# 5. Someone shows you one run of each, 91.2 % and 90.4 %. What do you ask?
# 6. Which of the two panels, equal epochs or equal seconds, would you show to somebody who pays for the
#    electricity?
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/07.py`](exercises/07.py). Fill them in, then run
#
#     mbnp grade tutorials/exercises/07.py
#
# **1. `cost_ratio`**: the MACs of a separable block divided by those of a standard convolution.
#
# <!-- mbnp/grading/lessons/hints/07.md: cost_ratio -->
#
# **2. `paired_difference`**: by how much is the second network better, and how certain is that?
#
# <!-- mbnp/grading/lessons/hints/07.md: paired_difference -->
