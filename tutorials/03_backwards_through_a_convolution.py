# %% [markdown]
# # 3. Backwards through a convolution
#
# **A convolution mixes every pixel with its neighbours. When the loss would like one output to be a little
# larger, which pixels and which weights does it turn to, and how much does it ask of each?**
#
# At the end you can write down the gradients of a convolution for any stride and padding, say why one of
# them is a convolution with the kernel turned around, and find out in a minute whether a backward pass is
# right. You need lesson 1 and the chain rule. Half an hour.

# %%
import importlib.util

import numpy as np
from lesson import BLACK, BLUE, GREEN, ORANGE, SKY, SMALL, VERMILION, figure, say, show, source, table
from matplotlib.patches import Rectangle

from mbnp import gradcheck
from mbnp.errors import MbnpError
from mbnp.ops import conv, depthwise, window

TORCH = importlib.util.find_spec("torch") is not None  # the lesson goes on without it
rng = np.random.default_rng(0)

# %% [markdown]
# ## One row of pixels
#
# Take one row of five pixels and a kernel of three taps. No padding, stride 1, so there are three outputs:
#
# $$y_i = \sum_u x_{i+u} w_u$$

# %%
x = np.array([1, 2, 4, 3, 1])
w = np.array([2, 3, 5])

y = np.array([sum(x[i + u] * w[u] for u in range(3)) for i in range(3)])
for i in range(3):
    say(f"`y[{i}] = " + " + ".join(f"{x[i + u]}*{w[u]}" for u in range(3)) + f" = {y[i]}`")

# %% [markdown]
# Somewhere behind these outputs there is a loss $L$, one number. The layers behind have already worked out
# how fast it changes with each output, $\partial L/\partial y_i$. Everybody calls this list `dy`, short for
# "the gradient of the loss with respect to y". A backward pass takes `dy` and returns the same for its own
# inputs: `dx` and `dw`.
#
# Let us pretend that `dy` is 1, 10, 100. No real loss says this. But each output now writes into a decimal
# place of its own, and the digits of a result will tell you who contributed to it.

# %%
dy = np.array([1, 10, 100])

# %% [markdown]
# ## One product at a time
#
# The chain rule says: go through everything that the loss hears of $x_p$ from, and add up.
#
# $$\frac{\partial L}{\partial x_p} = \sum_i \frac{\partial L}{\partial y_i} \frac{\partial y_i}{\partial x_p}
# \qquad\qquad
# \frac{\partial L}{\partial w_u} = \sum_i \frac{\partial L}{\partial y_i} \frac{\partial y_i}{\partial w_u}$$
#
# The inner derivatives look worse than they are. $y_i$ is a sum of products $x_{i+u} w_u$. In one product,
# the slope with respect to the pixel is the weight, and the slope with respect to the weight is the pixel.
# So every product of the forward pass passes its output's `dy` on to two places:
#
# - `dx[i + u]` gets `dy[i] * w[u]`,
# - `dw[u]` gets `dy[i] * x[i + u]`.
#
# That is all of it. The rest of this lesson is two ways of reading these two lines.
#
# **Before you run the next cell:** the middle pixel `x[2]` is in all three outputs. With which tap does
# `y[0]` see it, with which tap `y[2]`? Then read the digits: what is `dx[2]`? And `dx[0]`, which only one
# output sees?

# %%
dx, dw = np.zeros(5, int), np.zeros(3, int)
for i in range(3):
    for u in range(3):
        dx[i + u] += dy[i] * w[u]
        dw[u] += dy[i] * x[i + u]

say(f"`dx = {dx}`")
say(f"`dw = {dw}`")
say(
    f"`dx[2]` is {dx[2]}: the ones, from `y[0]`, say {dx[2] % 10}, which is `w[2]`. The tens, from `y[1]`, say "
    f"{dx[2] // 10 % 10}, which is `w[1]`. The hundreds, from `y[2]`, say {dx[2] // 100}, which is `w[0]`. "
    f"The first output sees the pixel with the last tap, and the last output with the first."
)

# %% [markdown]
# ## One table, read twice
#
# Write the weights into a table: a row for each output, a column for each pixel.
#
# - Along a **row** you read the forward pass: what does $y_i$ see, and with which weight?
# - Down a **column** you read the backward pass: who sees $x_p$, and with which weight?
#
# (If you know matrices: $y = Ax$, so $dx = A^T dy$. A backward pass is a transpose. Look at the zeros in
# the table and you know why nobody stores it.)

# %% tags=["hide-input"]
TAPS = [SKY, ORANGE, GREEN]


def cell(axes, row, column, text="", colour="white", size=10):
    """One square of a drawn table, row 0 on top."""
    axes.add_patch(Rectangle((column, -row), 1, -1, facecolor=colour, edgecolor="#bbbbbb"))
    axes.text(column + 0.5, -row - 0.5, text, ha="center", va="center", fontsize=size, color=BLACK)


def canvas(axes, rows, columns, title=""):
    """Axes for a table of `rows` x `columns` squares."""
    axes.set(xlim=(-0.05, columns + 0.05), ylim=(-rows - 0.05, 0.05), aspect="equal")
    axes.axis("off")
    axes.set_title(title, fontsize=10)


fig, axes = figure(width=7.5, height=2.9)
canvas(axes, 4.1, 6.6)
for p in range(5):
    axes.text(p + 1.5, -0.6, f"x[{p}]", ha="center", va="center", color=VERMILION if p == 2 else BLACK)
for i in range(3):
    axes.text(0.5, -i - 1.5, f"y[{i}]", ha="center", va="center", color=BLUE if i == 1 else BLACK)
    for p in range(5):
        u = p - i
        inside = 0 <= u < 3
        cell(
            axes, i + 1, p + 1, f"w[{u}] = {w[u]}" if inside else "0", TAPS[u] if inside else "white", size=9
        )
axes.plot([1, 6, 6, 1, 1], [-2, -2, -3, -3, -2], color=BLUE, linewidth=3)
axes.plot([3, 4, 4, 3, 3], [-1, -1, -4, -4, -1], color=VERMILION, linewidth=3)
axes.text(6.1, -2.5, "forward", va="center", color=BLUE)
axes.text(3.5, -4.08, "backward", ha="center", va="top", color=VERMILION)
show(
    fig, "A table of three outputs by five pixels: along a row the taps count 0, 1, 2, down a column 2, 1, 0"
)

# %% [markdown]
# Down the column the taps come in the opposite order: 2, 1, 0. That is the famous flipped kernel, and it is
# no more than this. Forward, the output at $i$ looks *ahead* to pixel $p = i + u$. Backward, the pixel at
# $p$ looks *back* to the output $i = p - u$. If one counts up, the other counts down:
#
# $$dx_p = \sum_u dy_{p-u} w_u$$
#
# The first and the last pixels are seen by fewer outputs. If you put two zeros on either side of `dy`, one
# less than the kernel has taps, then every pixel has three, and the formula is that of an ordinary
# convolution: `dy` is the picture, and the kernel is turned around.

# %%
padded = np.pad(dy, 2)
turned = w[::-1]
again = np.array([sum(padded[p + u] * turned[u] for u in range(3)) for p in range(5)])

say(f"`dy` with its margin is `{padded}`, the turned kernel `{turned}`, and their convolution `{again}`.")
assert (again == dx).all()

# %% [markdown]
# ## Two dimensions, and a stride
#
# Nothing new happens in two dimensions: rows and columns do the same, each on their own. With padding and
# stride, tap $(u, v)$ of output $(i, j)$ looks at the pixel
#
# $$p = i S + u - P \qquad q = j S + v - P$$
#
# where $S$ is the stride and $P$ the rows and columns of zeros around the picture. (mbnp allows other
# paddings on each side, and calls them top, bottom, left, right.) Backward you go the other way: given $p$,
# which $i$ and $u$ fit? Only those where $p + P - u$ can be divided by $S$.
#
# **Before you run the next cell:** a 3x3 kernel with padding 1. At stride 1 a pixel in the middle is seen
# by nine outputs. At stride 2 there are a quarter as many outputs. Is every pixel then seen by nine
# quarters of an output, so to speak, or by how many?


# %%
def seen_by(pixel, stride, size=5, kernel=3, padding=1):
    """{(i, j): (u, v)}: the outputs that see `pixel`, and the tap that they see it with."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    found = {}
    for i, j in np.ndindex(outputs, outputs):
        u, v = pixel[0] + padding - i * stride, pixel[1] + padding - j * stride
        if 0 <= u < kernel and 0 <= v < kernel:
            found[i, j] = u, v
    return found, outputs


a, b, c = (len(seen_by(pixel, stride)[0]) for pixel, stride in (((2, 2), 1), ((2, 2), 2), ((1, 1), 2)))
say(
    f"Pixel (2, 2) is seen by {a} outputs at stride 1 and by {b} at stride 2, pixel (1, 1) at stride 2 by {c}."
)

# %% tags=["hide-input"]
fig, axes = figure(width=8, height=3.1, ncols=4, width_ratios=[5, 5, 3, 3])
canvas(axes[0], 5, 5, "two pixels of x")
for at in np.ndindex(5, 5):
    cell(axes[0], *at, *{(2, 2): ("A", VERMILION), (1, 1): ("B", VERMILION)}.get(at, ()))
for ax, name, pixel, stride in zip(axes[1:], "AAB", [(2, 2), (2, 2), (1, 1)], [1, 2, 2], strict=True):
    found, outputs = seen_by(pixel, stride)
    canvas(ax, outputs, outputs, f"stride {stride}: {len(found)} see{'s' * (len(found) == 1)} {name}")
    for at in np.ndindex(outputs, outputs):
        cell(
            ax,
            *at,
            "{},{}".format(*found[at]) if at in found else "",
            ORANGE if at in found else "white",
            size=9,
        )
show(
    fig,
    "Two pixels and the outputs that see them: nine at stride 1, the kernel turned around; one or four at stride 2",
)

# %% [markdown]
# The orange squares are the outputs that see the pixel, and inside is the tap $u,v$. At stride 1 you find
# the kernel again, turned by 180 degrees: from `2,2` at the top left to `0,0` at the bottom right. At
# stride 2 a pixel is seen by one, two or four outputs, depending on where it stands. Here are all of them,
# counted by `conv.backward` itself: with `dy = 1` and `w = 1`, `dx` is the number of products that a pixel
# is in.

# %% tags=["hide-input"]
fig, axes = figure(width=8, height=3.1, ncols=3)
for ax, (stride, padding) in zip(axes, [(1, 0), (1, 1), (2, 1)], strict=True):
    picture, ones = np.zeros((1, 7, 7, 1)), np.ones((3, 3, 1, 1))
    count = conv.backward(
        np.ones_like(conv.forward(picture, ones, None, stride, padding)), picture, ones, stride, padding
    )
    counts = count[0][0, :, :, 0].astype(int)
    canvas(ax, 7, 7, f"stride {stride}, padding {padding}")
    for at in np.ndindex(7, 7):
        share = counts[at] / 9
        blue = tuple(1 - share * (1 - c) for c in (0.34, 0.71, 0.91))
        cell(ax, *at, str(counts[at]), blue)
show(
    fig,
    "How many windows each pixel is in: few at the edges without padding, and a chequerboard of 1, 2 and 4 at stride 2",
)

# %% [markdown]
# Without padding (left), a corner has a say in one output only. And at stride 2 (right), neighbours are
# heard unevenly. Networks that draw pictures run strided convolutions backwards, and this pattern is the
# chequerboard that their first attempts are covered with.
#
# ## In mbnp
#
# With pictures $n$, input channels $c$ and output channels $d$, the formula grows more letters and no more
# ideas:
#
# $$y_{n,i,j,d} = \sum_{u,v,c} x_{n,p,q,c} w_{u,v,c,d} + b_d$$
#
# and each product passes `dy[n, i, j, d]` on to its pixel and to its weight. This is the definition that
# everything else in mbnp is compared with. Find the two lines from above:

# %%
source(conv.backward_loops)

# %% [markdown]
# Read it once with the eyes of a pixel and once with the eyes of a weight:
#
# - $dx_{n,p,q,c}$ is a sum over the **outputs that see the pixel**, and over all $d$, because a pixel feeds
#   every output channel. The loops do not search for these outputs. They walk over all outputs, and each
#   adds its share where it looked.
# - $dw_{u,v,c,d}$ is a sum over **all places** $i, j$ **and all pictures** $n$, because one and the same
#   weight was used at all of them.
# - $db_d$ is a sum of `dy` over the same places: the bias is a weight whose pixel is always 1.
#
# ## The input gradient as a convolution
#
# Adding to where one looked ("scatter") and collecting from those who looked ("gather") give the same sums.
# To gather at stride $S$, spread `dy` out first, with $S - 1$ zeros between its entries: the outputs that a
# larger stride skipped come back as zeros. Then it is the row of pixels again: a margin of zeros, and the
# kernel turned around. Input and output channels swap their roles.


# %%
def input_gradient(dy, w, stride, padding, size):
    """dx (N, H, W, C) as a convolution of dy (N, OH, OW, D) with w (KH, KW, C, D) turned around."""
    (N, OH, OW, D), (KH, KW, _, _) = dy.shape, w.shape
    spread = np.zeros((N, (OH - 1) * stride + 1, (OW - 1) * stride + 1, D), dy.dtype)
    spread[:, ::stride, ::stride] = dy
    margins = [  # as wide as dx needs: KH - 1 less the padding, and the rows that no window reached
        (K - 1 - padding, full - 1 + padding - (O - 1) * stride)
        for K, full, O in zip((KH, KW), size, (OH, OW), strict=True)
    ]
    return conv.forward(spread, w[::-1, ::-1].swapaxes(2, 3), padding=tuple(margins))


rows = []
for stride, padding, size in [(1, 0, (7, 9)), (1, 1, (7, 9)), (2, 1, (7, 9)), (2, 1, (8, 6)), (3, 0, (8, 9))]:
    x, w = rng.standard_normal((2, *size, 3)), rng.standard_normal((3, 3, 3, 4))
    dy = rng.standard_normal(conv.forward(x, w, None, stride, padding).shape)
    dx, dw, db = conv.backward(dy, x, w, stride, padding)
    difference = np.abs(input_gradient(dy, w, stride, padding, size) - dx).max()
    assert difference < 1e-12
    rows.append(
        (stride, padding, "{} x {}".format(*size), "{} x {}".format(*dy.shape[1:3]), f"{difference:.0e}")
    )
say(table(rows, ["stride", "padding", "x", "dy", "largest difference from `conv.backward`"]))

# %% [markdown]
# Frameworks offer this function as a layer of its own and call it *transposed convolution*, because it is
# the transpose of the table above. (The older name "deconvolution" promises too much: it does not undo
# anything.)
#
# ## The weight gradient as a correlation
#
# Fix a tap $(u, v)$ and ask which pixels it multiplies as the window moves. They are a copy of the picture,
# shifted by $(u, v)$ and thinned out by the stride:

# %% tags=["hide-input"]
fig, axes = figure(width=8, height=3.1, ncols=3)
for ax, (u, v) in zip(axes, [(0, 0), (1, 1), (2, 1)], strict=True):
    canvas(ax, 7, 7, f"tap {u},{v} meets")
    for row, column in np.ndindex(7, 7):
        margin = not (1 <= row < 6 and 1 <= column < 6)
        met = row >= u and column >= v and (row - u) % 2 == 0 and (column - v) % 2 == 0
        met = met and row - u <= 4 and column - v <= 4
        text = f"y[{(row - u) // 2},{(column - v) // 2}]" if met else "0" if margin else ""
        cell(ax, row, column, text, ORANGE if met else "#e8e8e8" if margin else "white", size=8)
show(
    fig,
    "The pixels that the taps 0,0 and 1,1 and 2,1 meet at stride 2: the same pattern of nine, shifted by the tap",
)

# %% [markdown]
# (A 5x5 picture, padding 1 in grey, stride 2, nine outputs. In orange, the pixel that the tap multiplies
# for each of them.)
#
# So `dw` for this tap is that shifted copy of `x`, multiplied with `dy` place by place and added up:
#
# $$dw_{u,v,c,d} = \sum_{n,i,j} x_{n, iS+u-P, jS+v-P, c} \cdot dy_{n,i,j,d}$$
#
# `dy` slides over `x`, one step for each tap, with nothing turned around: a correlation. In NumPy the
# shifted copy is a view, and the sum over $n, i, j$ is one matrix product:

# %%
source(window.tap)


# %%
def weight_gradient(dy, x, kernel, stride, padding):
    """dw (KH, KW, C, D): for each tap, what it saw, times what was wanted of it."""
    padded = window.pad(x, ((padding, padding), (padding, padding)))
    dw = np.zeros((*kernel, x.shape[3], dy.shape[3]), x.dtype)
    for u, v in np.ndindex(*kernel):
        seen = window.tap(padded, u, v, (stride, stride), dy.shape[1:3])  # (N, OH, OW, C)
        dw[u, v] = np.einsum("nijc,nijd->cd", seen, dy)
    return dw


say(f"Largest difference from `conv.backward`: {np.abs(weight_gradient(dy, x, (3, 3), 3, 0) - dw).max():.0e}")

# %% [markdown]
# mbnp lays out all taps beside each other first, one row for each output pixel. Then both gradients are
# matrix products, for which every computer has a very fast routine. Compare the comments, which name the
# indices:

# %%
source(conv.backward_numpy)

# %% [markdown]
# **Before you run the next cell:** a batch holds the same picture three times, with the same `dy` each
# time. Compared with the batch that holds it once, is `dw` the same, three times as large, or a third? And
# `dx` of each picture?

# %%
one = conv.backward(dy[:1], x[:1], w, 3)
three = conv.backward(np.repeat(dy[:1], 3, axis=0), np.repeat(x[:1], 3, axis=0), w, 3)

say(
    f"`dw` of three pictures is {(three[1] / one[1]).mean():.0f} times `dw` of one. "
    f"`dx` of the last picture differs from that of the only one by {np.abs(three[0][2] - one[0][0]).max():.0f}."
)

# %% [markdown]
# `dw` is a sum over the batch, with no division by $N$. The division happens elsewhere, once: the loss is a
# mean over the batch, so `dy` arrives with a factor $1/N$ in it. An operation that divides again trains
# with a learning rate that depends on the batch size, and nobody notices for weeks.
#
# A **depthwise** convolution is the same with fewer letters. Each channel has a kernel of its own, so the
# sum over $d$ is gone:

# %%
source(depthwise.backward_loops)

# %% [markdown]
# ## Is it right?
#
# You need no framework to find out. Move one weight by a small step $h$, see how the loss moves, and
# compare:
#
# $$\frac{\partial L}{\partial w} \approx \frac{L(w + h) - L(w - h)}{2h}$$
#
# For $L$ take $\sum dy \cdot y$ with any `dy` that you like: its gradient with respect to $y$ is exactly
# this `dy`.

# %%
x, w = rng.standard_normal((2, 5, 6, 2)), rng.standard_normal((3, 3, 2, 2))
dy = rng.standard_normal((2, 3, 3, 2))
dx, dw, db = conv.backward(dy, x, w, stride=2, padding=1)


def loss(w):
    return (dy * conv.forward(x, w, None, stride=2, padding=1)).sum()


h, at = 1e-5, (0, 2, 1, 0)
step = np.zeros_like(w)
step[at] = h
say(f"finite differences: `{(loss(w + step) - loss(w - step)) / (2 * h):.10f}`")
say(f"`conv.backward`:    `{dw[at]:.10f}`")

# %% [markdown]
# **Before you run the next cell:** how small should $h$ be? The smaller the better, as in a calculus book?
# Try to say what goes wrong for a large $h$ and what for a small one, and whether anything goes wrong at
# all for a large one *here*. (Look at how $y$ depends on a single weight.)


# %%
def error_of_steps(curve, slope, dtype):
    """The error of central differences for each step, relative: the worst of eight weights."""
    x_, w_, dy_ = x.astype(dtype), w.astype(dtype), dy.astype(dtype)
    exact = conv.backward(dy * slope(forward(x, w)), x, w, 2, 1)[1].reshape(-1)[:8]
    errors = []
    for h in steps:
        moves = (np.eye(8, w.size) * h).reshape(8, *w.shape).astype(dtype)
        up = [(dy_ * curve(forward(x_, w_ + move))).sum() for move in moves]
        down = [(dy_ * curve(forward(x_, w_ - move))).sum() for move in moves]
        numeric = (np.array(up) - np.array(down)) / (2 * h)
        errors.append(np.abs(numeric - exact).max() / np.abs(exact).max())
    return errors


def forward(x, w):
    return conv.forward(x, w, None, stride=2, padding=1)


steps = np.logspace(-11, 0, 8 if SMALL else 12)
straight, curved = (lambda y: y, np.ones_like), (np.sin, np.cos)  # what the loss does with y, and its slope

# %% tags=["hide-input"]
fig, axes = figure(width=7.5, height=3.5)
axes.loglog(steps, error_of_steps(*curved, np.float32), "^-", color=ORANGE, label="curved loss, float32")
axes.loglog(steps, error_of_steps(*curved, np.float64), "s-", color=BLUE, label="curved loss, float64")
axes.loglog(
    steps, error_of_steps(*straight, np.float64), "o--", color=VERMILION, label="straight loss, float64"
)
axes.set(xlabel="step h", ylabel="error, relative to the largest entry", ylim=(1e-17, 1e6))
axes.legend(frameon=False, loc="upper right")
show(
    fig,
    "Error of finite differences by step: a valley near 1e-5 for the curved loss, none for the straight one",
)

# %% [markdown]
# Two errors fight. A small $h$ loses digits: two nearly equal losses are subtracted, and what is left is
# rounding, divided by $h$. A large $h$ runs off the tangent, by about $h^2$. The blue curve has its best
# place in between, near $10^{-5}$. In float32 (orange) the best place is hardly good enough to tell a right
# gradient from a nearly right one, so check in float64. And the dashed line has no right arm: $y$ is a
# straight line in each weight, so for the loss $\sum dy \cdot y$ no step is too large. Networks bend, at
# ReLU and at the loss, so $h = 10^{-5}$ is the habit.
#
# `gradcheck.compare` does this for every input of any operation, with a random `dy`, in float64:


# %%
def backward(dy, x, w):
    return conv.backward(dy, x, w, stride=2, padding=1)[:2]


say("Errors of dx and dw: " + ", ".join(f"{e:.0e}" for e in gradcheck.compare(forward, backward, [x, w])))

# %% [markdown]
# A check is worth as much as the inputs that you give it. Here are three wrong backward passes:


# %%
def unturned(dy, x, w):
    """The kernel is not turned around."""
    return backward(dy, x, np.ascontiguousarray(w[::-1, ::-1]))[0], backward(dy, x, w)[1]


def first_picture(dy, x, w):
    """dw of the first picture only: the sum over the batch is missing."""
    return backward(dy, x, w)[0], backward(dy[:1], x[:1], w)[1]


def swapped(dy, x, w):
    """Input and output channels of the kernel are mixed up."""
    return backward(dy, x, np.ascontiguousarray(w.swapaxes(2, 3)))[0], backward(dy, x, w)[1]


try:
    gradcheck.compare(forward, unturned, [x, w])
except MbnpError as error:
    say(f"`unturned`: {error}")

# %% [markdown]
# **Before you run the next cell:** each of them is tried on random numbers, on a kernel of ones, and on a
# batch of one picture. Which mistake gets past which test?


# %%
def verdict(wrong, inputs):
    try:
        gradcheck.compare(forward, wrong, inputs, entries=20)
    except MbnpError:
        return "found"
    return "**not found**"


tests = [[x, w], [x, np.ones_like(w)], [x[:1], w]]
rows = [
    (wrong.__doc__, *(verdict(wrong, inputs) for inputs in tests))
    for wrong in (unturned, first_picture, swapped)
]
say(table(rows, ["mistake", "random numbers", "a kernel of ones", "one picture"]))

# %% [markdown]
# Numbers that are all alike hide everything that is a matter of order. Random numbers, odd sizes, different
# channel counts, a stride, a batch of two or more: that is a test.
#
# The second opinion is PyTorch, whose channels come first, so that arrays change their order on the way in
# and out:

# %%
if TORCH:
    import torch
    from torch.nn import functional as F

    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    tw = torch.tensor(w.transpose(3, 2, 0, 1), requires_grad=True)
    F.conv2d(tx, tw, stride=2, padding=1).backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    differences = {
        "dx": np.abs(tx.grad.numpy().transpose(0, 2, 3, 1) - dx).max(),
        "dw": np.abs(tw.grad.numpy().transpose(2, 3, 1, 0) - dw).max(),
    }
    say(
        table(
            [(name, f"{d:.0e}") for name, d in differences.items()], ["", "largest difference from PyTorch"]
        )
    )
    assert max(differences.values()) < 1e-12
else:
    say("PyTorch is not installed here; `pip install -e '.[tutorials]'` brings it.")

# %% [markdown]
# ## Questions
#
# 1. The kernel `[1, 0, -1]` answers to edges. Turned around it is `[-1, 0, 1]`. What does its input
#    gradient look like where `dy` is the same everywhere, and why must it be so?
# 2. At stride 3 with a 3x3 kernel and no padding, how many outputs see each pixel? What does the input
#    gradient look like for a 1x1 kernel at stride 2?
# 3. `forward_loops` never stores a padded picture. Where does padding go in `backward_loops`, and what
#    would `dx` of the padding be good for?
# 4. Forward needs $N \cdot OH \cdot OW \cdot K^2 \cdot C \cdot D$ products. How many does backward need?
#    What does a training step then cost, compared with inference?
# 5. `dx` of the network's very first layer is the gradient with respect to the pixels of the photograph.
#    Training throws it away. What could you do with it? (Lesson 11 looks at it.)
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/03.py`](exercises/03.py). Fill them in, then run
#
#     mbnp grade tutorials/exercises/03.py
#
# **1. `taps`**: for a pixel in row $p$, return a list-like array with one number for each output row: the
# tap that it sees the pixel with, or -1 if it does not.
#
# <details><summary>Hint</summary>
#
# Solve $p = iS + u - P$ for $u$, and keep what is a tap. The number of output rows is
# $\lfloor (H + 2P - K)/S \rfloor + 1$.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def taps(p, size, kernel, stride, padding):
#     rows = (size + 2 * padding - kernel) // stride + 1
#     u = p + padding - stride * np.arange(rows)
#     return np.where((u >= 0) & (u < kernel), u, -1)
# ```
#
# </details>
#
# **2. `conv_dx`**: the gradient of a convolution with respect to its input.
#
# <details><summary>Hint</summary>
#
# The safest way is to scatter: make a `dx` of the size of the padded picture, let every output add its
# window to it, and cut the padding off at the end. If you gather instead, take care at stride 2: outputs
# exist only where $p + P - u$ can be divided by the stride.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def conv_dx(dy, w, shape, stride, padding):
#     N, H, W, C = shape
#     _, OH, OW, _ = dy.shape
#     KH, KW, _, _ = w.shape
#     padded = np.zeros((N, H + 2 * padding, W + 2 * padding, C), dy.dtype)
#     for i in range(OH):
#         for j in range(OW):
#             share = np.einsum("nd,uvcd->nuvc", dy[:, i, j], w)
#             padded[:, i * stride : i * stride + KH, j * stride : j * stride + KW] += share
#     return padded[:, padding : padding + H, padding : padding + W]
# ```
#
# </details>
#
# **3. `conv_dw`**: the gradient with respect to the kernel.
#
# <details><summary>Hint</summary>
#
# For each tap: the shifted copy of the padded picture, every `stride`-th row and column of it, as many as
# `dy` has. Then one `einsum` that sums over pictures and places.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def conv_dw(dy, x, kernel, stride, padding):
#     KH, KW = kernel
#     _, OH, OW, D = dy.shape
#     padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
#     dw = np.zeros((KH, KW, x.shape[3], D), x.dtype)
#     for u in range(KH):
#         for v in range(KW):
#             seen = padded[:, u : u + stride * OH : stride, v : v + stride * OW : stride][:, :OH, :OW]
#             dw[u, v] = np.einsum("nijc,nijd->cd", seen, dy)
#     return dw
# ```
#
# </details>
