# %% [markdown]
# # 3. Backwards through a convolution
#
# **A convolution mixes every pixel with its neighbours. When an output changes the loss, which pixels and
# which weights are responsible, and how much does each of them count?**
#
# At the end you can write down the gradients of a convolution for any stride and padding, say why one of them
# is a convolution with the flipped kernel, and find out in a minute whether a backward pass is right. You
# need lesson 1 and the chain rule. It takes about half an hour.

# %%
import importlib.util

import numpy as np
from lesson import BLACK, BLUE, GREEN, ORANGE, SKY, SMALL, VERMILION, figure, say, show, source, table
from matplotlib.patches import Rectangle

from mbnp import gradcheck
from mbnp.errors import MbnpError
from mbnp.ops import conv, depthwise, window

TORCH = importlib.util.find_spec("torch") is not None  # the lesson also runs without it
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
# At the end of the network there is a loss $L$, one number. The later layers have already computed how fast
# it changes with each output, $\partial L/\partial y_i$. We call this list `dy`, short for "the gradient of
# the loss with respect to y". A backward pass takes `dy` and returns the same for the operation's own inputs:
# `dx` and `dw`.
#
# Let us pretend that `dy` is 1, 10, 100. No real loss gives such numbers. But each output now has a decimal
# place of its own, and the digits of a result tell you which outputs contributed to it.

# %%
dy = np.array([1, 10, 100])

# %% [markdown]
# ## One multiplication at a time
#
# The chain rule says: go through every output that depends on $x_p$, and add up.
#
# $$\frac{\partial L}{\partial x_p} = \sum_i \frac{\partial L}{\partial y_i} \frac{\partial y_i}{\partial x_p}
# \qquad\qquad
# \frac{\partial L}{\partial w_u} = \sum_i \frac{\partial L}{\partial y_i} \frac{\partial y_i}{\partial w_u}$$
#
# The inner derivatives look worse than they are. $y_i$ is a sum of products $x_{i+u} w_u$. In one of these
# products, the derivative with respect to the pixel is the weight, and the derivative with respect to the
# weight is the pixel. So every multiplication of the forward pass contributes to two places in the backward
# pass:
#
# - `dx[i + u]` gets `dy[i] * w[u]`,
# - `dw[u]` gets `dy[i] * x[i + u]`.
#
# That is the whole backward pass. The rest of this lesson is two ways of reading these two lines.
#
# **Before you run the next cell:** the middle pixel `x[2]` is in all three outputs. Which tap does `y[0]`
# multiply it by, and which tap `y[2]`? Then read the digits: what is `dx[2]`? And `dx[0]`, which only one
# output depends on?

# %%
dx, dw = np.zeros(5, int), np.zeros(3, int)
for i in range(3):
    for u in range(3):
        dx[i + u] += dy[i] * w[u]
        dw[u] += dy[i] * x[i + u]

say(f"`dx = {dx}`")
say(f"`dw = {dw}`")
say(
    f"`dx[2]` is {dx[2]}: the ones, from `y[0]`, are {dx[2] % 10}, which is `w[2]`. The tens, from `y[1]`, are "
    f"{dx[2] // 10 % 10}, which is `w[1]`. The hundreds, from `y[2]`, are {dx[2] // 100}, which is `w[0]`. "
    f"The first output multiplies the pixel by the last tap, and the last output by the first."
)

# %% [markdown]
# ## One table, read twice
#
# Write the weights into a table: a row for each output, a column for each pixel.
#
# - Along a **row** you read the forward pass: which pixels does $y_i$ use, and with which weights?
# - Down a **column** you read the backward pass: which outputs use $x_p$, and with which weights?
#
# (If you know matrices: $y = Ax$, so $dx = A^T dy$. The backward pass is a product with the transpose. The
# zeros in the table show why nobody stores $A$.)

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
        cell(axes, i + 1, p + 1, f"w[{u}] = {w[u]}" if inside else "0", TAPS[u] if inside else "white", size=9)
axes.plot([1, 6, 6, 1, 1], [-2, -2, -3, -3, -2], color=BLUE, linewidth=3)
axes.plot([3, 4, 4, 3, 3], [-1, -1, -4, -4, -1], color=VERMILION, linewidth=3)
axes.text(6.1, -2.5, "forward", va="center", color=BLUE)
axes.text(3.5, -4.08, "backward", ha="center", va="top", color=VERMILION)
show(fig, "A table of three outputs by five pixels: along a row the taps count 0, 1, 2, down a column 2, 1, 0")

# %% [markdown]
# Down the column the taps come in the opposite order: 2, 1, 0. That is the famous flipped kernel, and there
# is no more to it. Forward, the output at $i$ uses the *later* pixels $p = i + u$. Backward, the pixel at $p$
# collects from the *earlier* outputs $i = p - u$. As one index counts up, the other counts down:
#
# $$dx_p = \sum_u dy_{p-u} w_u$$
#
# The first and the last pixels are used by fewer outputs. If you put two zeros on either side of `dy`, one
# less than the kernel has taps, then every pixel collects from three entries, and the formula is that of an
# ordinary convolution: `dy` is the image, and the kernel is flipped.

# %%
padded = np.pad(dy, 2)
flipped = w[::-1]
again = np.array([sum(padded[p + u] * flipped[u] for u in range(3)) for p in range(5)])

say(f"The padded `dy` is `{padded}`, the flipped kernel `{flipped}`, and their convolution `{again}`.")
assert (again == dx).all()

# %% [markdown]
# ## Two dimensions, and a stride
#
# Nothing new happens in two dimensions: the same holds for rows and for columns, independently. With padding
# and stride, tap $(u, v)$ of output $(i, j)$ multiplies the pixel
#
# $$p = i S + u - P \qquad q = j S + v - P$$
#
# where $S$ is the stride and $P$ the rows and columns of zeros around the image. (mbnp allows a different
# padding on each side: top, bottom, left, right.) Backward the question is reversed: given $p$, which $i$ and
# $u$ are possible? Only those where $p + P - u$ is divisible by $S$.
#
# **Before you run the next cell:** a 3x3 kernel with padding 1. At stride 1 a pixel in the middle is used by
# nine outputs. At stride 2 there are a quarter as many outputs, so on average a pixel is used by nine
# quarters. How many outputs use a single pixel?


# %%
def used_by(pixel, stride, size=5, kernel=3, padding=1):
    """Return {(i, j): (u, v)}: the outputs that use `pixel`, and the tap that each multiplies it by."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    found = {}
    for i, j in np.ndindex(outputs, outputs):
        u, v = pixel[0] + padding - i * stride, pixel[1] + padding - j * stride
        if 0 <= u < kernel and 0 <= v < kernel:
            found[i, j] = u, v
    return found, outputs


a, b, c = (len(used_by(pixel, stride)[0]) for pixel, stride in (((2, 2), 1), ((2, 2), 2), ((1, 1), 2)))
say(f"Pixel (2, 2) is used by {a} outputs at stride 1 and by {b} at stride 2, pixel (1, 1) at stride 2 by {c}.")

# %% tags=["hide-input"]
fig, axes = figure(width=8, height=3.1, ncols=4, width_ratios=[5, 5, 3, 3])
canvas(axes[0], 5, 5, "two pixels of x")
for at in np.ndindex(5, 5):
    cell(axes[0], *at, *{(2, 2): ("A", VERMILION), (1, 1): ("B", VERMILION)}.get(at, ()))
for ax, name, pixel, stride in zip(axes[1:], "AAB", [(2, 2), (2, 2), (1, 1)], [1, 2, 2], strict=True):
    found, outputs = used_by(pixel, stride)
    canvas(ax, outputs, outputs, f"stride {stride}: {len(found)} use{'s' * (len(found) == 1)} {name}")
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
    "Two pixels and the outputs that use them: nine at stride 1, with the flipped kernel; one or four at stride 2",
)

# %% [markdown]
# The orange squares are the outputs that use the pixel, each with its tap $u,v$. At stride 1 you find the
# kernel again, rotated by 180 degrees: from `2,2` at the top left to `0,0` at the bottom right. At stride 2 a
# pixel is used by one, two or four outputs, depending on its position. Here are the counts for all pixels,
# computed by `conv.backward` itself: with `dy = 1` and `w = 1`, `dx` is the number of windows that contain a
# pixel.

# %% tags=["hide-input"]
fig, axes = figure(width=8, height=3.1, ncols=3)
for ax, (stride, padding) in zip(axes, [(1, 0), (1, 1), (2, 1)], strict=True):
    image, ones = np.zeros((1, 7, 7, 1)), np.ones((3, 3, 1, 1))
    count = conv.backward(np.ones_like(conv.forward(image, ones, None, stride, padding)), image, ones, stride, padding)
    counts = count[0][0, :, :, 0].astype(int)
    canvas(ax, 7, 7, f"stride {stride}, padding {padding}")
    for at in np.ndindex(7, 7):
        fraction = counts[at] / 9
        blue = tuple(1 - fraction * (1 - c) for c in (0.34, 0.71, 0.91))
        cell(ax, *at, str(counts[at]), blue)
show(
    fig,
    "The number of windows that contain each pixel: few at edges without padding, a checkerboard at stride 2",
)

# %% [markdown]
# Without padding (left), a corner contributes to one output only. And at stride 2 (right), neighbouring
# pixels contribute unevenly. Networks that generate images run strided convolutions backwards, and this
# pattern is the source of the checkerboard artefacts in their output.
#
# ## In mbnp
#
# With images $n$, input channels $c$ and output channels $d$, the formula has more letters and no new ideas:
#
# $$y_{n,i,j,d} = \sum_{u,v,c} x_{n,p,q,c} w_{u,v,c,d} + b_d$$
#
# and each multiplication contributes to the gradient of its pixel and to that of its weight. Every other
# implementation in mbnp is tested against this definition. Find the two lines from above:

# %%
source(conv.backward_loops)

# %% [markdown]
# Read it once for a single pixel and once for a single weight:
#
# - $dx_{n,p,q,c}$ is a sum over the **outputs that use the pixel**, and over all $d$, because a pixel
#   contributes to every output channel. The loops do not search for these outputs. They go over all outputs,
#   and each adds its contribution to the pixels that it used.
# - $dw_{u,v,c,d}$ is a sum over **all positions** $i, j$ **and all images** $n$, because the same weight was
#   used at all of them.
# - $db_d$ is a sum of `dy` over the same positions: the bias is a weight whose pixel is always 1.
#
# ## The input gradient as a convolution
#
# Adding each output's contributions to the pixels that it used ("scatter") and collecting for each pixel from
# the outputs that used it ("gather") give the same sums. To gather at stride $S$, spread `dy` out first, with
# $S - 1$ zeros between its entries: the positions that the stride skipped become zeros. The rest is as for
# one row of pixels: padding with zeros, and the flipped kernel. Input and output channels swap their roles.


# %%
def input_gradient(dy, w, stride, padding, size):
    """Return dx (N, H, W, C): dy (N, OH, OW, D) convolved with the flipped w (KH, KW, C, D)."""
    (N, OH, OW, D), (KH, KW, _, _) = dy.shape, w.shape
    spread = np.zeros((N, (OH - 1) * stride + 1, (OW - 1) * stride + 1, D), dy.dtype)
    spread[:, ::stride, ::stride] = dy
    borders = [  # as wide as dx needs: KH - 1 minus the padding, and the rows that no window reached
        (K - 1 - padding, full - 1 + padding - (O - 1) * stride)
        for K, full, O in zip((KH, KW), size, (OH, OW), strict=True)
    ]
    return conv.forward(spread, w[::-1, ::-1].swapaxes(2, 3), padding=tuple(borders))


rows = []
for stride, padding, size in [(1, 0, (7, 9)), (1, 1, (7, 9)), (2, 1, (7, 9)), (2, 1, (8, 6)), (3, 0, (8, 9))]:
    x, w = rng.standard_normal((2, *size, 3)), rng.standard_normal((3, 3, 3, 4))
    dy = rng.standard_normal(conv.forward(x, w, None, stride, padding).shape)
    dx, dw, db = conv.backward(dy, x, w, stride, padding)
    difference = np.abs(input_gradient(dy, w, stride, padding, size) - dx).max()
    assert difference < 1e-12
    rows.append((stride, padding, "{} x {}".format(*size), "{} x {}".format(*dy.shape[1:3]), f"{difference:.0e}"))
say(table(rows, ["stride", "padding", "x", "dy", "largest difference from `conv.backward`"]))

# %% [markdown]
# Frameworks offer this function as a layer of its own and call it *transposed convolution*, because it is the
# transpose of the table above. (The older name "deconvolution" is misleading: it does not undo a
# convolution.)
#
# ## The weight gradient as a correlation
#
# Fix a tap $(u, v)$ and ask which pixels it multiplies as the window moves. They are a copy of the image,
# shifted by $(u, v)$ and subsampled by the stride:

# %% tags=["hide-input"]
fig, axes = figure(width=8, height=3.1, ncols=3)
for ax, (u, v) in zip(axes, [(0, 0), (1, 1), (2, 1)], strict=True):
    canvas(ax, 7, 7, f"pixels of tap {u},{v}")
    for row, column in np.ndindex(7, 7):
        border = not (1 <= row < 6 and 1 <= column < 6)
        met = row >= u and column >= v and (row - u) % 2 == 0 and (column - v) % 2 == 0
        met = met and row - u <= 4 and column - v <= 4
        text = f"y[{(row - u) // 2},{(column - v) // 2}]" if met else "0" if border else ""
        cell(ax, row, column, text, ORANGE if met else "#e8e8e8" if border else "white", size=8)
show(
    fig,
    "The pixels that the taps 0,0 and 1,1 and 2,1 multiply at stride 2: the same pattern of nine, shifted by the tap",
)

# %% [markdown]
# (A 5x5 image, padding 1 in grey, stride 2, nine outputs. In orange, the pixel that the tap multiplies
# for each of them.)
#
# So `dw` for this tap is that shifted copy of `x`, multiplied elementwise by `dy` and summed:
#
# $$dw_{u,v,c,d} = \sum_{n,i,j} x_{n, iS+u-P, jS+v-P, c} \cdot dy_{n,i,j,d}$$
#
# `dy` slides over `x`, one step for each tap, and nothing is flipped: a correlation. In NumPy the shifted
# copy is a view, and the sum over $n, i, j$ is one matrix product:

# %%
source(window.tap)


# %%
def weight_gradient(dy, x, kernel, stride, padding):
    """Return dw (KH, KW, C, D): for each tap, the pixels that it multiplied times dy, summed."""
    padded = window.pad(x, ((padding, padding), (padding, padding)))
    dw = np.zeros((*kernel, x.shape[3], dy.shape[3]), x.dtype)
    for u, v in np.ndindex(*kernel):
        pixels = window.tap(padded, u, v, (stride, stride), dy.shape[1:3])  # (N, OH, OW, C)
        dw[u, v] = np.einsum("nijc,nijd->cd", pixels, dy)
    return dw


say(f"Largest difference from `conv.backward`: {np.abs(weight_gradient(dy, x, (3, 3), 3, 0) - dw).max():.0e}")

# %% [markdown]
# mbnp's NumPy implementation first puts the pixels of all taps side by side, one row for each output pixel
# (lesson 1's im2col). Then both gradients are matrix products, for which every computer has a very fast
# routine. Compare the comments, which name the indices:

# %%
source(conv.backward_numpy)

# %% [markdown]
# **Before you run the next cell:** a batch contains the same image three times, with the same `dy` each time.
# Compared with a batch that contains it once, is `dw` the same, three times as large, or a third? And `dx` of
# each image?

# %%
one = conv.backward(dy[:1], x[:1], w, 3)
three = conv.backward(np.repeat(dy[:1], 3, axis=0), np.repeat(x[:1], 3, axis=0), w, 3)

say(
    f"`dw` of three images is {(three[1] / one[1]).mean():.0f} times `dw` of one. "
    f"`dx` of the last image differs from that of the only one by {np.abs(three[0][2] - one[0][0]).max():.0f}."
)

# %% [markdown]
# `dw` is a sum over the batch, with no division by $N$. The division happens elsewhere, once: the loss is a
# mean over the batch, so `dy` arrives with a factor $1/N$ in it. If an operation divides again, the effective
# learning rate depends on the batch size, and such a bug can go unnoticed for weeks.
#
# A **depthwise** convolution is the same with fewer indices. Each channel has a kernel of its own, so there
# is no sum over $d$:

# %%
source(depthwise.backward_loops)

# %% [markdown]
# ## Is it right?
#
# You need no framework to find out. Change one weight by a small step $h$, see how the loss changes, and
# compare:
#
# $$\frac{\partial L}{\partial w} \approx \frac{L(w + h) - L(w - h)}{2h}$$
#
# For $L$ take $\sum dy \cdot y$ with any `dy` that you like: its gradient with respect to $y$ is exactly that
# `dy`.

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
# Try to say what goes wrong for a large $h$, what goes wrong for a small one, and whether a large $h$ does
# any harm *here*. (Look at how $y$ depends on a single weight.)


# %%
def error_of_steps(curve, slope, dtype):
    """Return the relative error of central differences for each step: the worst of eight weights."""
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
linear, nonlinear = (
    (lambda y: y, np.ones_like),
    (np.sin, np.cos),
)  # the loss as a function of y, and its derivative

# %% tags=["hide-input"]
fig, axes = figure(width=7.5, height=3.5)
axes.loglog(steps, error_of_steps(*nonlinear, np.float32), "^-", color=ORANGE, label="nonlinear loss, float32")
axes.loglog(steps, error_of_steps(*nonlinear, np.float64), "s-", color=BLUE, label="nonlinear loss, float64")
axes.loglog(steps, error_of_steps(*linear, np.float64), "o--", color=VERMILION, label="linear loss, float64")
axes.set(xlabel="step h", ylabel="error, relative to the largest entry", ylim=(1e-17, 1e6))
axes.legend(frameon=False, loc="upper right")
show(
    fig,
    "Error of finite differences by step: a minimum near 1e-5 for the nonlinear loss, none for the linear one",
)

# %% [markdown]
# There are two sources of error. A small $h$ loses digits: two nearly equal losses are subtracted, and what
# is left is rounding error, divided by $h$. A large $h$ leaves the tangent, by about $h^2$. The blue curve
# has its minimum in between, near $10^{-5}$. In float32 (orange) the minimum is hardly low enough to tell a
# right gradient from a nearly right one, so check in float64. And the dashed line does not rise on the right:
# $y$ is linear in each weight, so for the loss $\sum dy \cdot y$ no step is too large. Networks are not
# linear, because of ReLU and the loss, so $h = 10^{-5}$ is the usual choice.
#
# `gradcheck.compare` does this for every input of any operation, with a random `dy`, in float64:


# %%
def backward(dy, x, w):
    return conv.backward(dy, x, w, stride=2, padding=1)[:2]


say("Errors of dx and dw: " + ", ".join(f"{e:.0e}" for e in gradcheck.compare(forward, backward, [x, w])))

# %% [markdown]
# A check is only as good as the inputs that you give it. Here are three wrong backward passes:


# %%
def unflipped(dy, x, w):
    """The kernel is not flipped."""
    return backward(dy, x, np.ascontiguousarray(w[::-1, ::-1]))[0], backward(dy, x, w)[1]


def first_image(dy, x, w):
    """dw of the first image only: the sum over the batch is missing."""
    return backward(dy, x, w)[0], backward(dy[:1], x[:1], w)[1]


def swapped(dy, x, w):
    """Input and output channels of the kernel are swapped."""
    return backward(dy, x, np.ascontiguousarray(w.swapaxes(2, 3)))[0], backward(dy, x, w)[1]


try:
    gradcheck.compare(forward, unflipped, [x, w])
except MbnpError as error:
    say(f"`unflipped`: {error}")

# %% [markdown]
# **Before you run the next cell:** each of them is tried on random numbers, on a kernel of ones, and on a
# batch of one image. Which mistake passes which test?


# %%
def verdict(wrong, inputs):
    try:
        gradcheck.compare(forward, wrong, inputs, entries=20)
    except MbnpError:
        return "found"
    return "**not found**"


tests = [[x, w], [x, np.ones_like(w)], [x[:1], w]]
rows = [(wrong.__doc__, *(verdict(wrong, inputs) for inputs in tests)) for wrong in (unflipped, first_image, swapped)]
say(table(rows, ["mistake", "random numbers", "a kernel of ones", "one image"]))

# %% [markdown]
# Equal numbers hide every mistake of order. Random numbers, odd sizes, different channel counts, a stride, a
# batch of two or more: that is a test.
#
# The second reference is PyTorch. Its channels come first, so the arrays are transposed on the way in and
# out:

# %%
if TORCH:
    from torch.nn import functional as F

    def torch_conv(x, w):
        y = F.conv2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), stride=2, padding=1)
        return y.permute(0, 2, 3, 1)

    # For a whole network there is gradcheck.against_torch(net, module, x, labels).
    errors = gradcheck.op_against_torch(forward, backward, torch_conv, [x, w])
    say(table([(name, f"{e:.0e}") for name, e in errors.items()], ["", "largest difference from PyTorch"]))
    assert max(errors.values()) < 1e-12
else:
    say("PyTorch is not installed here; `pip install -e '.[tutorials]'` brings it.")

# %% [markdown]
# ## Questions
#
# 1. The kernel `[1, 0, -1]` responds to edges. Flipped it is `[-1, 0, 1]`. What does its input gradient look
#    like where `dy` is the same everywhere, and why must it be so?
# 2. At stride 3 with a 3x3 kernel and no padding, how many outputs use each pixel? What does the input
#    gradient look like for a 1x1 kernel at stride 2?
# 3. `forward_loops` never stores a padded image. Where is the padding in `backward_loops`, and would `dx` of
#    the padding be of any use?
# 4. Forward needs $N \cdot OH \cdot OW \cdot K^2 \cdot C \cdot D$ multiplications. How many does backward
#    need? What does a training step then cost, compared with inference?
# 5. `dx` of the network's first layer is the gradient with respect to the pixels of the image. Training does
#    not need it. What could you do with it? (Lesson 11 computes it for a trained network, and tests what it says.)
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/03.py`](exercises/03.py). Fill them in, then run
#
#     mbnp grade tutorials/exercises/03.py
#
# **1. `taps`**: for a pixel in row $p$, return an array with one number for each output row: the tap that it
# multiplies the pixel by, or -1 if it does not use the pixel.
#
# <!-- mbnp/grading/lessons/hints/03.md: taps -->
#
# **2. `conv_dx`**: the gradient of a convolution with respect to its input.
#
# <!-- mbnp/grading/lessons/hints/03.md: conv_dx -->
#
# **3. `conv_dw`**: the gradient with respect to the kernel.
#
# <!-- mbnp/grading/lessons/hints/03.md: conv_dw -->
