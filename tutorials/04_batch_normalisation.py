# %% [markdown]
# # 4. Batch normalisation
#
# **In batch normalisation every output depends on every value of its channel, in the whole batch. How do
# you differentiate through that, and what does the layer do when there is no batch?**
#
# At the end you can derive the backward pass on paper, say which variance is used where (there are two, and
# PyTorch uses both in the same layer), and fold the layer into the convolution before it. You need the chain
# rule, as in lesson 3. It takes about half an hour.

# %%
import importlib.util

import numpy as np
from lesson import BLUE, GREEN, SMALL, VERMILION, figure, say, show, source, table

from mbnp import gradcheck
from mbnp.errors import MbnpError
from mbnp.fused import inference
from mbnp.layers import BatchNorm, Conv
from mbnp.ops import batchnorm

TORCH = importlib.util.find_spec("torch") is not None  # the lesson also runs without it
rng = np.random.default_rng(0)

# %% [markdown]
# ## Five numbers
#
# Take one channel with five values. (In a network they are all the pixels of all the images of the batch:
# $M = N \cdot H \cdot W$ of them. Here $M = 5$.)
#
# $$\mu = \frac1M \sum_m x_m \qquad \sigma^2 = \frac1M \sum_m (x_m - \mu)^2 \qquad s = \sqrt{\sigma^2 + \varepsilon}
# \qquad \hat x_m = \frac{x_m - \mu}{s} \qquad y_m = \gamma \hat x_m + \beta$$
#
# The small $\varepsilon$ keeps the root away from zero; for now it is zero. $\gamma$ and $\beta$ are learned,
# one number for each channel: the scale and shift that normalising removes, the network can restore.

# %%
x = np.array([1.0, 3, 4, 5, 7])
M = len(x)

mean = x.sum() / M
var = ((x - mean) ** 2).sum() / M
s = np.sqrt(var)
xhat = (x - mean) / s

say(f"mean {mean}, differences from it `{x - mean}`, their squares `{(x - mean) ** 2}`.")
say(f"So the variance is {var}, $s$ is {s}, and $\\hat x$ is `{xhat}`: mean {xhat.mean()}, variance {xhat.var()}.")

# %% [markdown]
# mbnp's definition has the same five lines, once for each channel. `x` is passed as a matrix of `M` rows and
# `C` columns:

# %%
source(batchnorm.forward_loops)

# %% [markdown]
# Here are three channels of a batch of images, before and after:

# %%
channels = rng.standard_normal((8, 16, 16, 3)) * [0.5, 1.0, 3.0] + [4.0, 0.0, -3.0]
normalised, _, _ = batchnorm.forward(channels, np.ones(3), np.zeros(3))

# %% tags=["hide-input"]
fig, axes = figure(width=8, height=2.8, ncols=2, sharey=True)
bins = np.linspace(-12, 8, 81)
for ax, values, title in zip(axes, (channels, normalised), ("x", "y, with $\\gamma = 1$, $\\beta = 0$"), strict=True):
    for c, (colour, line) in enumerate(zip((BLUE, VERMILION, GREEN), ("-", "--", ":"), strict=True)):
        ax.hist(
            values[..., c].ravel(),
            bins,
            histtype="step",
            color=colour,
            linestyle=line,
            linewidth=1.8,
            label=f"channel {c}",
        )
    ax.set(title=title, xlabel="value")
axes[0].set_ylabel("count")
axes[0].legend(loc="upper left")
show(fig, "Histograms of three channels: apart and of different widths in x, on top of each other in y")

# %% [markdown]
# ## Backward, one step at a time
#
# The later layers give us $dy_m = \partial L / \partial y_m$. Two gradients are quick, because $\gamma$ and
# $\beta$ are a scale and a shift of all $M$ values:
#
# $$d\beta = \sum_m dy_m \qquad d\gamma = \sum_m dy_m \hat x_m$$
#
# For $dx_m$ watch what happens as you change $x_m$ a little. It acts in three ways: directly, through the
# mean, and through the standard deviation $s$. The last two change *all* outputs of the channel. Take them
# one after the other, and check each formula against a real change of $h = 10^{-6}$.


# %%
def slopes(function, h=1e-6):
    """Return d function / d x[m] by central differences: one row for each m."""
    steps = h * np.eye(M)
    return np.array([(function(x + step) - function(x - step)) / (2 * h) for step in steps])


def numbers(a):
    return "`" + " ".join(f"{v:.4f}" for v in np.round(a, 4) + 0.0) + "`"


say(
    table(
        [
            ("$\\partial\\mu/\\partial x_m = 1/M$", numbers(np.full(M, 1 / M)), numbers(slopes(np.mean))),
            (
                "$\\partial\\sigma^2/\\partial x_m = 2 (x_m - \\mu)/M$",
                numbers(2 * (x - mean) / M),
                numbers(slopes(np.var)),
            ),
            ("$\\partial s/\\partial x_m = \\hat x_m/M$", numbers(xhat / M), numbers(slopes(np.std))),
        ],
        ["step", "formula", "finite differences"],
    )
)

# %% [markdown]
# - **The mean.** It is a sum of $M$ values, divided by $M$. So a change of one value changes it by $1/M$ of
#   that.
# - **The variance.** The square of $x_m - \mu$ gives $2(x_m - \mu)/M$. The change also moves $\mu$, in every
#   square; but these contributions add up to $-\frac2M \sum_k (x_k - \mu)\cdot\frac1M$, and differences from
#   the mean add up to zero. So they vanish.
# - **The root.** $\partial s/\partial\sigma^2 = 1/(2s)$, times the line above, is
#   $(x_m - \mu)/(Ms) = \hat x_m/M$.
#
# Now differentiate $\hat x_k = (x_k - \mu)/s$ by the quotient rule, with all three derivatives (write $[k =
# m]$ for 1 if $k$ is $m$, else 0):
#
# $$\frac{\partial \hat x_k}{\partial x_m} = \frac{[k=m] - \frac1M}{s} - \frac{x_k - \mu}{s^2}\cdot\frac{\hat x_m}{M}
# = \frac1s\left([k=m] - \frac1M - \frac{\hat x_k \hat x_m}{M}\right)$$
#
# This is a matrix of $M \times M$ entries, the *Jacobian*. For five values you can look at it:

# %%
identity, through_mean, through_s = np.eye(M), np.full((M, M), 1 / M), np.outer(xhat, xhat) / M
jacobian = (identity - through_mean - through_s) / s
assert np.abs(slopes(lambda x: (x - x.mean()) / x.std()).T - jacobian).max() < 1e-8

# %% tags=["hide-input"]
fig, axes = figure(width=9, height=2.7, ncols=4)
names = [
    "directly: $[k=m]$",
    "through the mean: $-1/M$",
    "through $s$: $-\\hat x_k \\hat x_m/M$",
    "sum: $s\\;\\partial\\hat x_k/\\partial x_m$",
]
for ax, values, name in zip(axes, (identity, -through_mean, -through_s, s * jacobian), names, strict=True):
    ax.imshow(values, cmap="PuOr_r", vmin=-1.6, vmax=1.6)
    for k, m in np.ndindex(M, M):
        ax.text(
            m,
            k,
            f"{values[k, m] + 0.0:.2g}",
            ha="center",
            va="center",
            fontsize=8,
        )
    ax.set_title(name, fontsize=9)
    ax.set_xticks([]), ax.set_yticks([])
    ax.set_xlabel("input: m", fontsize=9)
axes[0].set_ylabel("output: k", fontsize=9)
for ax, sign in zip(axes, "++=", strict=False):
    ax.text(1.06, 0.5, sign, transform=ax.transAxes, ha="center", va="center", fontsize=14)
show(
    fig,
    "Three 5x5 matrices and their sum, the derivatives of the normalised values with respect to the inputs",
)

# %% [markdown]
# (The `assert` in the cell above compares the Jacobian with finite differences.) Add up any row of the last
# matrix: zero. Any column: zero too. Keep this in mind for a moment.
#
# The rest is bookkeeping. $dx_m$ collects from all outputs, $\sum_k dy_k \gamma \partial\hat x_k/\partial
# x_m$, and the three summands of the Jacobian become three terms:
#
# $$dx_m = \frac{\gamma}{s}\left(dy_m - \frac{d\beta}{M} - \frac{\hat x_m d\gamma}{M}\right)
# \qquad\text{with}\qquad d\beta = \sum_k dy_k \quad d\gamma = \sum_k dy_k \hat x_k$$
#
# Nobody ever builds the Jacobian. Two sums over the channel are enough, and they are the two gradients that
# are needed anyway. Find each term of the formula in the code:

# %%
source(batchnorm.backward_loops)

# %% [markdown]
# | formula | line |
# | --- | --- |
# | $s = \sqrt{\sigma^2 + \varepsilon}$ | `s = np.sqrt(np.float64(var[c]) + eps)` |
# | $d\beta = \sum_k dy_k$ | `sum_dy += dy[m, c]` |
# | $d\gamma = \sum_k dy_k \hat x_k$ | `sum_dy_xhat += dy[m, c] * (x[m, c] - mean[c]) / s` |
# | $dx_m$ | `dx[m, c] = gamma[c] / s * (dy[m, c] - sum_dy / M - xhat * sum_dy_xhat / M)` |
#
# For our five values, with a `dy` that is 1 for the last output and 0 for the others:


# %%
def backward(dy):
    """Return dx of the five numbers, as written above; gamma is 1."""
    return (dy - dy.sum() / M - xhat * (dy * xhat).sum() / M) / s


dy = np.array([0.0, 0, 0, 0, 1])
say(f"dx = {numbers(backward(dy))}, and by the Jacobian {numbers(dy @ jacobian)}.")

# %% [markdown]
# ## A gradient of ones
#
# **Before you run the next cell:** the loss grows with all five outputs equally: `dy` is all ones. What is
# `dx`? And what if `dy` is $\hat x$ itself, so that the loss grows as the values move apart?

# %%
say(f"dy of ones: dx = {numbers(backward(np.ones(M)))}")
say(f"dy = x̂: dx = {numbers(backward(xhat))}")

# %% [markdown]
# Zero, both times. It must be so: add a number to all of $x$, and the layer subtracts it again. Scale $x$,
# and the layer divides by the scale again. No change of the inputs makes all outputs larger, and none moves
# them further apart, so every input's gradient is zero. The formula removes these two directions, the shift
# and the scale, from `dy`, and passes on the rest.
#
# The first zero is exact for every $\varepsilon$. The second is exact only because $\varepsilon$ is zero in
# this example: otherwise $s$ does not grow quite as fast as the values, and $\frac{\gamma}{s} \hat x_m
# \frac{\varepsilon}{s^2}$ is left. With PyTorch's $10^{-5}$ and a variance of 4 that is 2.5 millionths of
# $\frac{\gamma}{s} \hat x_m$.
#
# This has a practical consequence. The simplest test sets `dy` to ones, or takes `y.sum()` as its loss. For
# batch normalisation such a test compares zero with zero. Here are three wrong backward passes, and the
# verdicts of two tests on them:


# %%
def backward_with(terms):
    def run(dy, x, gamma, beta):
        _, mean, var = batchnorm.forward(x, gamma, beta)
        s = np.sqrt(var + 1e-5)
        xhat, M, axes = (x - mean) / s, x.size // x.shape[-1], (0, 1, 2)
        dgamma, dbeta = (dy * xhat).sum(axes), dy.sum(axes)
        return gamma / s * terms(dy, dbeta / M, xhat * dgamma / M), dgamma, dbeta

    return run


attempts = {
    "right": lambda dy, shift, scale: dy - shift - scale,
    "the path through $s$ is forgotten": lambda dy, shift, scale: dy - shift,
    "its sign is wrong": lambda dy, shift, scale: dy - shift + scale,
    "the statistics are treated as constants": lambda dy, shift, scale: dy,
}


def forward(x, gamma, beta):
    return batchnorm.forward(x, gamma, beta)[0]


inputs = [rng.standard_normal((3, 4, 5, 2)), np.array([0.7, 1.6]), np.array([-0.2, 0.4])]
rows = []
for name, terms in attempts.items():
    dx, _, _ = backward_with(terms)(np.ones((3, 4, 5, 2)), *inputs)
    ones = "passes" if np.abs(dx).max() < 1e-9 else "**fails**"
    try:
        gradcheck.compare(forward, backward_with(terms), inputs, entries=20)
        random = "passes"
    except MbnpError:
        random = "**fails**"
    rows.append((name, ones, random))
say(table(rows, ["backward pass", "test with `dy = 1`: is dx zero?", "test with a random `dy`"]))

# %% [markdown]
# Two of the three mistakes pass the test with ones. Test with random numbers, as `gradcheck` does.
#
# ## Two variances
#
# Our five values have the variance 4 if you divide the squares by $M = 5$, and 5 if you divide by $M - 1 =
# 4$. The first is called biased: on average over many batches it is too small, by the factor $(M-1)/M$,
# because the mean was fitted to the same few values. The second, unbiased, corrects this.

# %%
draws = 2_000 if SMALL else 50_000
sizes = [2, 3, 4, 6, 8, 12, 16, 24, 32]
biased = [rng.standard_normal((draws, m)).var(axis=1).mean() for m in sizes]  # of data with variance 1

# %% tags=["hide-input"]
fig, axes = figure(width=7.5, height=2.8)
axes.plot(sizes, biased, "o", color=BLUE, label="divided by M")
axes.plot(
    sizes,
    [b * m / (m - 1) for b, m in zip(biased, sizes, strict=True)],
    "s",
    color=VERMILION,
    label="divided by M - 1",
)
axes.plot(sizes, [(m - 1) / m for m in sizes], "-", color=BLUE, linewidth=1, label="(M - 1) / M")
axes.axhline(1, color=VERMILION, linewidth=1, linestyle="--")
axes.set(xlabel="values in the batch, M", ylabel="variance, on average", ylim=(0, 1.2), xticks=sizes)
axes.legend(loc="lower right", ncols=3)
show(fig, "The average variance of small batches: below 1 if divided by M, at 1 if divided by M - 1")

# %% [markdown]
# Which one does the layer use? Both:
#
# - The batch is normalised with the **biased** one, so that its variance becomes 1 (exactly so for $\varepsilon = 0$).
# - The running average, for inference, takes the **unbiased** one, which estimates the variance of all the
#   data.

# %%
source(batchnorm.update_running)

# %% [markdown]
# **Before you run the next cell:** a fresh layer has a running mean of 0 and a running variance of 1. It sees
# our five values once, with `momentum` 0.1 (the weight of the *new* batch; some libraries mean the weight of
# the old average). What are the two running statistics afterwards?

# %%
layer = BatchNorm(1, dtype=np.float64)
layer.forward(x.reshape(5, 1, 1, 1), train=True)

rows = [("mbnp", f"{layer.running_mean.value[0]:.3f}", f"{layer.running_var.value[0]:.3f}")]
if TORCH:
    import torch

    theirs = torch.nn.BatchNorm2d(1, dtype=torch.float64)
    theirs(torch.tensor(x.reshape(5, 1, 1, 1)))
    rows.append(("PyTorch", f"{theirs.running_mean.item():.3f}", f"{theirs.running_var.item():.3f}"))
say(table(rows, ["", "running mean", "running variance"]))
unbiased, biased = (0.9 * 1 + 0.1 * x.var(ddof=d) for d in (1, 0))
say(f"0.9 · 1 + 0.1 · {x.var(ddof=1):.0f} = {unbiased:.1f}. With the biased variance it would be {biased:.1f}.")
say(
    f"""
    In a network the difference is small. At batch size 64 the last feature maps of lesson 5's network have 2x2 pixels,
    so M = {64 * 2 * 2} and the two differ by {100 / (64 * 2 * 2 - 1):.1f} %. It grows as the batch shrinks, and it is
    the kind of difference that makes two implementations disagree in the third digit for no visible reason.
    """
)

# %% [markdown]
# With one value for each channel there is no variance at all, and mbnp says so:

# %%
try:
    layer.forward(x[:1].reshape(1, 1, 1, 1), train=True)
except MbnpError as error:
    say(f"`MbnpError: {error}`")

# %% [markdown]
# ## Training and inference
#
# In training, the output for an image depends on the other images in the batch:

# %%
net = BatchNorm(2, dtype=np.float64)
image = rng.standard_normal((1, 4, 4, 2))
narrow, wide = (np.concatenate([image, scale * rng.standard_normal((7, 4, 4, 2))]) for scale in (0.5, 4.0))

rows = []
for name, train in (("training", True), ("inference", False)):
    rows.append((name, *(f"{net.forward(batch, train)[0, 0, 0, 0]:.3f}" for batch in (narrow, wide))))
say(table(rows, ["one pixel of one image", "beside small values", "beside large values"]))

# %% [markdown]
# A prediction must not depend on the rest of the batch, and often there is only one image. So inference uses
# the running averages instead. They take a while to converge:
#
# **Before you run the next cell:** after ten batches, how much of the initial value (mean 0, variance 1) is
# still in the running averages? Each batch removes a tenth of it.

# %%
layer = BatchNorm(1, dtype=np.float64)
history = [(0.0, 1.0)]
for _ in range(60):
    layer.forward(rng.normal(2.0, 3.0, (16, 4, 4, 1)), train=True)  # mean 2, variance 9
    history.append((layer.running_mean.value[0], layer.running_var.value[0]))

# %% tags=["hide-input"]
fig, axes = figure(width=7.5, height=3)
axes.plot([v for _, v in history], "s-", color=VERMILION, markersize=3, label="running variance (of the data: 9)")
axes.plot([m for m, _ in history], "o-", color=BLUE, markersize=3, label="running mean (of the data: 2)")
axes.axhline(9, color=VERMILION, linewidth=1, linestyle="--")
axes.axhline(2, color=BLUE, linewidth=1, linestyle="--")
axes.axvline(10, color="grey", linewidth=1, linestyle=":")
axes.set(xlabel="batches seen", ylim=(0, 12.5))
axes.legend(loc="upper right", ncols=2)
show(fig, "Running mean and variance approach those of the data within about forty batches")

# %%
say(f"After ten batches {100 * 0.9**10:.0f} % of the initial value is left, after forty {100 * 0.9**40:.1f} %.")

# %% [markdown]
# So a network that you evaluate after five batches looks worse than it is. And two mistakes are common:
# forgetting to switch to inference for the evaluation (the accuracy then depends on the batch size), and
# predicting in training mode (each prediction then changes the network). In mbnp inference is the default;
# training has to be asked for, with `train=True`.
#
# ## Folding
#
# In inference $\mu$ and $s$ are constants. A convolution before the layer computes $w \cdot x + b$, and
# then
#
# $$\gamma \frac{w \cdot x + b - \mu}{s} + \beta
# = \left(\frac{\gamma}{s} w\right) \cdot x + \left(\beta + (b - \mu) \frac{\gamma}{s}\right)$$
#
# which is a convolution again, with other weights and another bias. The layer then costs nothing. This is how
# mbnp's fast engine runs inference:

# %%
source(inference.fold)

# %%
conv = Conv(3, 4, 3, padding=1, bias=True, rng=rng, dtype=np.float64)
bn = BatchNorm(4, dtype=np.float64)
bn.weight.value, bn.bias.value = rng.uniform(0.5, 2, 4), rng.standard_normal(4)
bn.running_mean.value, bn.running_var.value = rng.standard_normal(4), rng.uniform(0.5, 3, 4)

one = Conv(3, 4, 3, padding=1, bias=True, dtype=np.float64)
scale = bn.weight.value / np.sqrt(bn.running_var.value + bn.eps)
one.weight.value = conv.weight.value * scale
one.bias.value = bn.bias.value + (conv.bias.value - bn.running_mean.value) * scale

images = rng.standard_normal((2, 6, 7, 3))
difference = np.abs(one(images) - bn(conv(images))).max()
say(f"One convolution instead of two layers: the largest difference is {difference:.0e}.")

# %% [markdown]
# Look at the bias $b$ in the formula. In inference it becomes part of the new bias. In training it has no
# effect at all:
#
# **Before you run the next cell:** the article's network gives its first convolution a bias, and batch
# normalisation comes right after it. What is the gradient of this bias?

# %%
y = bn.forward(conv.forward(images, train=True), train=True)
conv.backward(bn.backward(rng.standard_normal(y.shape)))
dw, db = np.abs(conv.weight.grad).max(), np.abs(conv.bias.grad).max()
say(f"Largest gradient of the weights: {dw:.2f}. Of the bias: {db:.0e}.")

# %% [markdown]
# Zero, up to rounding. The bias shifts a whole channel, and the layer removes every shift: the case of a `dy`
# of ones once more. The 32 biases are harmless, they cost 32 numbers, and mbnp keeps them so that the
# article's weights fit. The network's other convolutions have `bias=False`, as they should.
#
# ## A trap for float32
#
# Textbooks also give the variance as $\overline{x^2} - \mu^2$. It is the same number, and it needs only one
# pass over the data. Try it where the mean is large:

# %%
rows = []
for centre in (0, 10, 100, 1_000, 10_000):
    values = (centre + rng.standard_normal((4096, 1))).astype(np.float32)
    exact = values.astype(np.float64).var()
    textbook = (values * values).mean() - values.mean() ** 2
    _, _, ours = batchnorm.forward(values, np.ones(1, np.float32), np.zeros(1, np.float32))
    rows.append((f"{centre:,}", f"{exact:.5f}", f"{textbook:.5f}", f"{ours[0]:.5f}"))
say(table(rows, ["mean", "exact", "mean of squares - square of mean, float32", "`batchnorm.forward`, float32"]))

# %% [markdown]
# A float32 has seven digits. The squares of numbers around 1,000 need all of them before the decimal point,
# and the difference of two such numbers is noise; it may even be negative, and its square root is NaN.
# Subtract the mean first, then square: the comment in `forward_numpy` says so:

# %%
source(batchnorm.forward_numpy)

# %% [markdown]
# Finally, compare with PyTorch on a batch of images: the outputs and all three gradients.

# %%
if TORCH:
    x4 = rng.standard_normal((4, 5, 6, 3)) * 2 + 1
    gamma, beta, dy4 = rng.uniform(0.5, 2, 3), rng.standard_normal(3), rng.standard_normal((4, 5, 6, 3))
    y4, mean4, var4 = batchnorm.forward(x4, gamma, beta)
    ours = dict(zip(("dx", "dgamma", "dbeta"), batchnorm.backward(dy4, x4, gamma, mean4, var4), strict=True))

    tx, tg, tb = (torch.tensor(a, requires_grad=True) for a in (x4.transpose(0, 3, 1, 2), gamma, beta))
    ty = torch.nn.functional.batch_norm(tx, None, None, tg, tb, training=True, eps=1e-5)
    ty.backward(torch.tensor(dy4.transpose(0, 3, 1, 2)))
    theirs = {"dx": tx.grad.permute(0, 2, 3, 1), "dgamma": tg.grad, "dbeta": tb.grad}
    differences = {"y": np.abs(ty.detach().permute(0, 2, 3, 1).numpy() - y4).max()}
    differences |= {name: np.abs(theirs[name].numpy() - ours[name]).max() for name in ours}
    say(table([(name, f"{d:.0e}") for name, d in differences.items()], ["", "largest difference from PyTorch"]))
    assert max(differences.values()) < 1e-11
else:
    say("PyTorch is not installed here; `pip install -e '.[tutorials]'` brings it.")

# %% [markdown]
# ## Questions
#
# 1. You double all weights of a convolution that is followed by batch normalisation. What happens to the
#    output of the layer? And to the gradient of the weights? (What does weight decay do to such weights,
#    then?)
# 2. With $M = 2$ different values in a channel and $\varepsilon = 0$, what are the two entries of $\hat x$, whatever
#    $x$ was? What is `dx`?
# 3. Layer normalisation takes mean and variance over the channels of one image instead. Which of this
#    lesson's problems does it not have?
# 4. Why can the layer not be folded into the convolution *after* it, if that convolution pads its input with
#    zeros?
# 5. To fine-tune a network on very few images, people freeze its batch normalisation: it normalises with the
#    running averages, which do not change. Which terms of `dx` are left?
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/04.py`](exercises/04.py). Fill them in, then run
#
#     mbnp grade tutorials/exercises/04.py
#
# **1. `batchnorm_forward`**: normalise a batch of images as in training.
#
# <!-- mbnp/grading/lessons/hints/04.md: batchnorm_forward -->
#
# **2. `batchnorm_dx`**: the gradient with respect to the input.
#
# <!-- mbnp/grading/lessons/hints/04.md: batchnorm_dx -->
#
# **3. `running_statistics`**: the running averages after one more batch, as PyTorch computes them.
#
# <!-- mbnp/grading/lessons/hints/04.md: running_statistics -->
