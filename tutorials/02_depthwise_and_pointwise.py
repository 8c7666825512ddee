# %% [markdown]
# # 2. Depthwise and pointwise
#
# **How can a layer do a fraction of the work and still look at every pixel and every channel?**
#
# At the end you can say what a depthwise and a pointwise convolution compute, count their multiplications in three
# ways, tell MACs from FLOPs and FLOPs from a speed, and check the numbers that papers and articles give. It takes
# about 20 minutes. You need lesson 1: what a window is, and the sum over $u$, $v$ and $c$.

# %%
import numpy as np
from lesson import BLUE, GREEN, SMALL, VERMILION, figure, grid, measured_here, say, show, source, table, timed

from mbnp import cost, models
from mbnp.ops import conv, depthwise, pointwise

measured_here()

# %% [markdown]
# ## Two steps by hand
#
# A standard convolution does two things in one sum: it combines neighbouring pixels (over $u$ and $v$), and
# it mixes channels (over $c$). A *depthwise separable* convolution does one after the other.
#
# Here is a window of 3 x 3 pixels with two channels. **Step one, depthwise:** each channel has a small kernel
# of its own and gives one number. Channels are not mixed.

# %%
window = np.array([[[0, 2, 4], [0, 2, 4], [0, 2, 4]], [[1, 1, 1], [1, 5, 1], [1, 1, 1]]], np.float32)
kernels = np.array([[[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]], [[0, 0, 0], [0, 1, 0], [0, 0, 0]]], np.float32)
looked = (window * kernels).sum(axis=(1, 2))

# %% tags=["hide-input"]
fig, axes = figure(8, 2.3, ncols=5, width_ratios=[3, 3, 3, 3, 1])
grid(axes[0], window[0], "channel 0")
grid(axes[1], kernels[0], "its kernel")
grid(axes[2], window[1], "channel 1")
grid(axes[3], kernels[1], "its kernel")
grid(axes[4], looked[:, None], "sums")
fig.get_layout_engine().set(wspace=0.1)
show(fig, "A window with two channels, the kernel of each channel, and the number that each channel gives")

# %% [markdown]
# **Step two, pointwise:** every output channel is a weighted sum of those numbers, with one weight for each.
# No other pixel takes part.
#
# **Before you run the next cell:** three output channels, with the weights (1, 0), (0.5, 2) and (1, -1). Which three
# numbers come out?

# %%
mixing = np.array([[1, 0.5, 1], [0, 2, -1]], np.float32)  # (C, D): two channels in, three out
mixed = looked @ mixing
say(f"From {looked[0]:g} and {looked[1]:g} come **{', '.join(f'{number:g}' for number in mixed)}**.")

# %% [markdown]
# That is all. The formulas use the symbols of lesson 1, and each uses fewer of them:
#
# | | formula | sums over |
# | --- | --- | --- |
# | standard | $y_{n,i,j,d} = \sum_{u,v,c} x_{n,p,q,c} w_{u,v,c,d}$ | kernel and channels |
# | depthwise | $y_{n,i,j,c} = \sum_{u,v} x_{n,p,q,c} w_{u,v,c}$ | kernel |
# | pointwise | $y_{n,i,j,d} = \sum_{c} x_{n,i,j,c} w_{c,d}$ | channels |
#
# And this is how mbnp defines the two. The first has no loop over $d$, the second none over $u$ and $v$.

# %%
source(depthwise.forward_loops, pointwise.forward_loops)

# %% [markdown]
# ## What is lost
#
# The two steps together are a standard convolution of a special kind. Call the pointwise weights $m_{c,d}$,
# for mixing, and substitute the depthwise formula into the pointwise one:
#
# $$y_{n,i,j,d} = \sum_c \Big( \sum_{u,v} x_{n,p,q,c} w_{u,v,c} \Big) m_{c,d}$$
#
# $$\phantom{y_{n,i,j,d}} = \sum_{u,v,c} x_{n,p,q,c} \big( w_{u,v,c} m_{c,d} \big)$$
#
# The expression in the last brackets is a standard kernel.
#
# So the kernel from channel $c$ to channel $d$ is always the *same* pattern $w_{u,v,c}$, only stronger or
# weaker. A standard convolution can use a different pattern of channel $c$ for every output channel. This one
# cannot. That is the price.

# %%
rng = np.random.default_rng(0)
C, D = 3, 10
x = rng.standard_normal((1, 12, 12, C))
w = rng.standard_normal((3, 3, C))
m = rng.standard_normal((C, D))

two_steps = pointwise.forward(depthwise.forward(x, w), m)
one_step = conv.forward(x, w[:, :, :, None] * m)
say(f"The two results differ by at most {abs(two_steps - one_step).max():.0e}, which is rounding in float64.")

# %% tags=["hide-input"]
fig, panels = figure(8, 3.6, ncols=2, width_ratios=[2, 3])


def channels(panel, column, count, label):
    heights = np.linspace(0, 1, count + 2)[1:-1]
    panel.plot([column] * count, heights, "o", color="white", markeredgecolor="black", markersize=9, zorder=3)
    panel.text(column, -0.06, label, ha="center", va="top")
    return heights


def connect(panel, columns, pairs, colour, width):
    for start, stop in pairs:
        panel.plot(columns, [start, stop], color=colour, linewidth=width, zorder=1)


before, after = channels(panels[0], 0, C, f"{C} channels"), channels(panels[0], 1, D, f"{D} channels")
connect(panels[0], (0, 1), [(a, b) for a in before for b in after], BLUE, 2.5)
panels[0].set_title(f"standard: {C * D} kernels of nine weights")
before, between = channels(panels[1], 0, C, f"{C} channels"), channels(panels[1], 1, C, f"{C} channels")
after = channels(panels[1], 2, D, f"{D} channels")
connect(panels[1], (0, 1), zip(before, between, strict=True), BLUE, 2.5)
connect(panels[1], (1, 2), [(a, b) for a in between for b in after], VERMILION, 0.8)
panels[1].set_title(f"depthwise: {C} kernels of nine; pointwise: {C * D} single weights")
for panel in panels:
    panel.set(xticks=[], yticks=[], ylim=(-0.12, 1), xlim=(-0.35, panel.get_xlim()[1] + 0.3))
    panel.spines[:].set_visible(False)
show(fig, "Standard: 3 channels feed 10 through 30 kernels. Separable: 3 kernels, then 30 single weights")

# %% [markdown]
# Every thick blue line is a kernel of nine weights, every thin red one a single weight. Count the thick ones.
#
# ## Counting, and not only by formula
#
# The article that mbnp began with counts a small layer: an output of 10 x 10 pixels, a kernel of 3 x 3, 3
# channels in and 10 out. Its formulas say 27,000 for the standard convolution, and 2,700 + 3,000 for the
# other. Should you believe them? Let us count. A number that counts its own multiplications takes only a few
# lines:

# %%


class Counting:
    """A number that counts every multiplication and addition it takes part in."""

    multiplications = additions = 0

    def __mul__(self, other):
        Counting.multiplications += 1
        return Counting()

    def __radd__(self, other):
        Counting.additions += 1
        return 0


def counted(*shape):
    array = np.empty(shape, object)
    array[:] = Counting()
    return array


# %% [markdown]
# Now run mbnp's own loops on arrays of such numbers: the lines that you read above, unchanged. The input has
# 12 x 12 pixels, so that 10 x 10 windows fit in without padding.
#
# **Before you run the next cell:** the output has 10 x 10 x 10 numbers either way. How many multiplications
# does each of them take in a standard convolution, and how many, on average, in the separable one?

# %%
no_padding = ((0, 0), (0, 0))


def count(forward, *arguments):
    Counting.multiplications = Counting.additions = 0
    y = forward(*arguments)
    return Counting.multiplications, Counting.additions, y.shape


x12, x10 = counted(1, 12, 12, 3), counted(1, 10, 10, 3)
standard, standard_additions, shape = count(conv.forward_loops, x12, counted(3, 3, 3, 10), None, (1, 1), no_padding)
spatial, spatial_additions, _ = count(depthwise.forward_loops, x12, counted(3, 3, 3), None, (1, 1), no_padding)
mixing, mixing_additions, _ = count(pointwise.forward_loops, x10, counted(3, 10), None)

assert (standard, spatial, mixing) == (
    cost.standard_conv(10, 10, 3, 3, 10),
    cost.depthwise(10, 10, 3, 3),
    cost.pointwise(10, 10, 3, 10),
)
rows = [
    ["standard", standard, standard_additions, "H·W·K·K·C·D = 10·10·3·3·3·10"],
    ["depthwise", spatial, spatial_additions, "H·W·K·K·C = 10·10·3·3·3"],
    ["pointwise", mixing, mixing_additions, "H·W·C·D = 10·10·3·10"],
    ["depthwise and pointwise", spatial + mixing, spatial_additions + mixing_additions, "the two added"],
]
say(table(rows, ["convolution", "multiplications, counted", "additions, counted", "formula"]))
outputs = np.prod(shape)
say(
    f"The article is right: {standard:,} against {spatial:,} + {mixing:,} = {spatial + mixing:,}. That is "
    f"{standard / outputs:g} multiplications for each number of the output against {(spatial + mixing) / outputs:g}."
)

# %% [markdown]
# ## Where the saving comes from
#
# Divide the two formulas, and almost everything cancels:
#
# $$\frac{H W K^2 C + H W C D}{H W K^2 C D} = \frac{1}{D} + \frac{1}{K^2}$$
#
# The size of the image has cancelled, and so has the number of input channels. With kernels of 3 x 3 the
# ratio is always above one ninth, and with many output channels it comes close to that.

# %%
ratio = cost.separable_ratio(3, 10)
say(
    f"In the example 1/10 + 1/9 = {ratio:.3f}, and indeed {(spatial + mixing):,} / {standard:,} = "
    f"{(spatial + mixing) / standard:.3f}. With 512 output channels it is {cost.separable_ratio(3, 512):.3f}."
)

# %% tags=["hide-input"]
fig, axes = figure(8, 3.2)
many = np.arange(2, 1025)
for K, colour, style in ((3, BLUE, "-"), (5, VERMILION, "--")):
    axes.plot(many, [100 * cost.separable_ratio(K, d) for d in many], style, color=colour, linewidth=2)
    axes.text(1100, 100 * cost.separable_ratio(K, 1024), f"{K} x {K}", color=colour, va="center")
for d, label in ((10, "the article's example"), (512, "MobileNet's layers with 512 channels")):
    axes.plot(d, 100 * cost.separable_ratio(3, d), "o", color=BLUE, markersize=8)
    axes.annotate(
        label,
        (d, 100 * cost.separable_ratio(3, d)),
        (d / 1.2, 100 * cost.separable_ratio(3, d) + 14),
        arrowprops={"arrowstyle": "-"},
        ha="left" if d == 10 else "center",
    )
axes.set(xscale="log", ylim=(0, 65), xlabel="output channels", ylabel="% of the standard multiplications")
axes.set_xticks([2, 4, 8, 16, 32, 64, 128, 256, 512, 1024], [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
axes.minorticks_off()
axes.grid(alpha=0.3)
show(
    fig,
    "The fraction of the standard multiplications against the number of output channels, falling to 1/9 or 1/25",
)

# %% [markdown]
# ## MACs, FLOPs, and FLOPs per second
#
# Three different things have nearly the same name, and confusing them costs a factor of two or more.
#
# - A **MAC**, a multiply-accumulate, is one multiplication *and* the addition that adds its result to the
#   sum. That is what we counted: as many additions as multiplications. Papers on small networks, including
#   MobileNet's, mostly give MACs.
# - A **FLOP** is one floating-point operation. A MAC is two of them, so FLOPs = 2 x MACs. mbnp uses this
#   convention.
# - **FLOPS**, or FLOP/s, is a speed: operations per second. It belongs to a machine, not to a network.
#
# The article calls its 27,000 FLOPs; they are MACs. And in one place it explains FLOPs as 每秒浮点运算次数, which is
# floating-point operations *per second*. That is the third meaning, and the sentence is about the second.
# Nearly everybody who writes about networks has confused them at some time. To avoid it, write "MACs", and
# ask of every other number: does it contain seconds?

# %%
channels_in, channels_out = 32, 64
batch = np.ones((1 if SMALL else 16, 32, 32, channels_in), np.float32)
weights = np.ones((3, 3, channels_in, channels_out), np.float32)
seconds = timed(lambda: conv.forward(batch, weights, padding=1), repeat=9) / len(batch)
macs = cost.standard_conv(32, 32, 3, channels_in, channels_out)
say(
    f"An example. This layer has {macs:,} MACs, which are {2 * macs:,} FLOPs, on any machine. Here and "
    f"now it took {1e3 * seconds:.2f} ms per image, so the machine worked at {2 * macs / seconds / 1e9:.0f} GFLOP/s."
)

# %% [markdown]
# ## The height and width of what?
#
# One more detail of the article: it says that $H$ and $W$ are those of the *input*. At stride 1, with padding, input
# and output are of the same size and it makes no difference. At stride 2 it does.
#
# **Before you run the next cell:** an input of 10 x 10 pixels, padding 1, stride 2. How many multiplications
# does a depthwise convolution of 3 channels do, by the formula with the input's size, and by the formula with
# the output's?

# %%
one_around = ((1, 1), (1, 1))
halved, _, shape = count(depthwise.forward_loops, x10, counted(3, 3, 3), None, (2, 2), one_around)
kept, _, _ = count(depthwise.forward_loops, x10, counted(3, 3, 3), None, (1, 1), one_around)
_, OH, OW, _ = shape
rows = [
    ["stride 1", kept, cost.depthwise(10, 10, 3, 3), cost.depthwise(10, 10, 3, 3)],
    ["stride 2", halved, cost.depthwise(OH, OW, 3, 3), cost.depthwise(10, 10, 3, 3)],
]
say(table(rows, ["", "multiplications, counted", "formula, output's size", "formula, input's size"]))

# %% [markdown]
# A convolution does its work once for every number that it *writes*. At stride 2 it writes a quarter of the
# pixels, so the formula with the input's size gives four times too many.
#
# And why is the count a little lower than the formula says? Because our loops skip the taps that fall on the
# padding. Most fast kernels multiply by those zeros, which is simpler than a test, and the usual formula
# counts them.
#
# ## 5.69 million, or 569?
#
# The article gives the cost of MobileNet, at 224 x 224 pixels, as 569 万. A 万 is ten thousand, so that is 5.69
# million. Let us count it, layer by layer.

# %%
net = models.create("mobilenet-v1")
counts = cost.of(net, (224, 224, 3))
first = counts.rows[0]
say(
    f"All layers together: **{counts.macs:,} MACs**, {counts.macs / 1e6:.0f} million, as the paper says. The first "
    f"layer alone, which is not even separable, has {first.macs:,}: already more than 5.69 million."
)

# %% [markdown]
# So the article means 569 million, which is 5.69 亿. It is an easy slip between two languages, one of which
# counts in thousands and millions and the other in 万 and 亿. The lesson in it is a good one: whenever you meet
# such a number, work out one layer in your head.
#
# Which layers do these MACs belong to?


# %%
def parameters(kind):
    return sum(row.params for row in counts.rows if row.kind == kind)


shares = counts.shares().items()
rows = [[kind.lower(), f"{100 * share:.2f} %", parameters(kind)] for kind, share in shares]
say(table(rows, ["layers", "share of the MACs", "parameters"]))
full = counts.as_standard()
say(
    f"Built with standard convolutions, the same network would have {full / 1e6:,.0f} million MACs, "
    f"{full / counts.macs:.1f} times as many."
)

# %% tags=["hide-input"]
fig, axes = figure(8, 3.4)
colours = {"Conv": GREEN, "Depthwise": VERMILION, "Pointwise": BLUE, "Linear": "black"}
rows = [row for row in counts.rows if row.macs]
for kind, colour in colours.items():
    at = [k for k, row in enumerate(rows, 1) if row.kind == kind]
    hatch = "///" if kind == "Depthwise" else None
    axes.bar(at, [rows[k - 1].macs / 1e6 for k in at], color=colour, hatch=hatch, label=kind.lower())
axes.set(xlabel="layer", ylabel="million MACs", xticks=range(1, len(rows) + 1, 3))
axes.legend(ncols=2, loc="upper left", bbox_to_anchor=(0.08, 1.05))
axes.margins(x=0.01)
axes.set_ylim(top=70)
show(
    fig,
    "Million MACs of each layer of MobileNet: nearly all are in pointwise layers, next to none in depthwise ones",
)

# %% [markdown]
# Most of the work is now in the pointwise convolutions, and those are plain matrix products. That is the
# second half of the idea behind MobileNet, and the half that is easily overlooked: the work that remains is
# the kind that computers do best.
#
# ## Fewer multiplications, so is it faster?
#
# **Before you run the next cell:** one layer, 128 channels in and out, 32 x 32 pixels. The separable one has
# about an eighth of the multiplications. Will it take an eighth of the time?

# %%
C = 32 if SMALL else 128
batch = rng.standard_normal((1 if SMALL else 16, 32, 32, C), dtype=np.float32)
full_w = rng.standard_normal((3, 3, C, C), dtype=np.float32)
w, m = full_w[:, :, :, 0].copy(), full_w[0, 0]
standard_s = timed(lambda: conv.forward(batch, full_w, padding=1), repeat=9)
depthwise_s = timed(lambda: depthwise.forward(batch, w, padding=1), repeat=9)
pointwise_s = timed(lambda: pointwise.forward(batch, m), repeat=9)
rows = [
    ["standard", cost.standard_conv(32, 32, 3, C, C), standard_s],
    ["depthwise", cost.depthwise(32, 32, 3, C), depthwise_s],
    ["pointwise", cost.pointwise(32, 32, C, C), pointwise_s],
    ["depthwise and pointwise", cost.separable(32, 32, 3, C, C), depthwise_s + pointwise_s],
]
cells = [
    [name, macs, f"{1e3 * s / len(batch):.3f}", f"{2 * macs * len(batch) / s / 1e9:.0f}"] for name, macs, s in rows
]
say(table(cells, ["layer", "MACs per image", "ms per image", "GFLOP/s"]))
say(
    f"{rows[0][1] / rows[3][1]:.1f} times fewer multiplications, and {rows[0][2] / rows[3][2]:.1f} times less time. "
    "Look at the last column: the depthwise half does its few multiplications at a different speed from the others."
)

# %% [markdown]
# Why that is so is the most common question about these layers. Lesson 9 answers it with measurements, and
# lesson 10 does something about it.
#
# ## Questions
#
# 1. A standard convolution with 64 channels in, 128 out and a kernel of 3 x 3: how many weights does it have?
#    How many does the separable one have?
# 2. A pointwise convolution does not combine neighbouring pixels. How does a MobileNet ever see a whole
#    object?
# 3. Why does the number of input channels cancel in the ratio 1/D + 1/K²?
# 4. Someone tells you that a network "has 1.1 GFLOPs" and someone else that it "has 569 million". Can they
#    mean the same network?
# 5. With kernels of 5 x 5, would the saving be larger or smaller? Which fraction of a separable layer's
#    multiplications would be depthwise then, at 512 channels?
# 6. Could the order be reversed, pointwise first and then depthwise? What would it cost when D is larger than
#    C?
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/02.py`](exercises/02.py). Fill them in, then run
#
#     mbnp grade tutorials/exercises/02.py

# %% [markdown]
# **1. `depthwise`**: a depthwise convolution of a batch, without a loop over pixels.
#
# <!-- mbnp/grading/lessons/hints/02.md: depthwise -->

# %% [markdown]
# **2. `pointwise`**: a pointwise convolution of a batch. It can be one line.
#
# <!-- mbnp/grading/lessons/hints/02.md: pointwise -->

# %% [markdown]
# **3. `separable_macs`**: the MACs of a depthwise separable layer for one image: `H`, `W` are the *input's*
# size, the kernel is K x K with K odd, and the padding is K // 2 on every side, so that stride 1 keeps the
# size. The stride is that of the depthwise convolution.
#
# <!-- mbnp/grading/lessons/hints/02.md: separable_macs -->
