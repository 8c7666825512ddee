# %% [markdown]
# # 1. A convolution by hand
#
# **What exactly does a convolution compute, and how can the same numbers come out a thousand times sooner?**
#
# At the end you can compute any number of a convolution's output with pencil and paper, say how large the output
# is, and write the operation in four ways: as loops, with sliding windows, as one matrix product, and compiled.
# You will have seen them agree, and you will have timed them. It takes about 25 minutes and asks for nothing but
# Python and a little NumPy.

# %%
import time

import numba
import numpy as np
from lesson import BLACK, BLUE, SMALL, VERMILION, figure, grid, say, show, source, table, timed
from scipy import signal

from mbnp import backend
from mbnp.datasets import shapes10
from mbnp.ops import conv

# %% [markdown]
# ## One number
#
# Here is a picture of five rows and five columns with one number in each pixel: dark on the left, bright on the
# right. Beside it is a *kernel* of three by three numbers, its *weights*.

# %%
picture = np.array(
    [
        [0, 0, 0, 8, 8],
        [0, 0, 0, 8, 8],
        [0, 0, 1, 8, 8],
        [0, 2, 0, 8, 8],
        [0, 0, 0, 9, 8],
    ],
    dtype=np.float32,
)
kernel = np.array(
    [
        [-1, 0, 1],
        [-1, 0, 1],
        [-1, 0, 1],
    ],
    dtype=np.float32,
)

# %% [markdown]
# A convolution lays the kernel over a part of the picture, its *window*, multiplies what lies on top of each other,
# and adds up. Nine products, one sum, one number. Let us do it for the window in the upper left corner.

# %%
window = picture[0:3, 0:3]
products = window * kernel
first = products.sum()
written_out = " + ".join(f"{a:g}·({b:g})" for a, b in zip(window.flat, kernel.flat, strict=True))
say(f"{written_out} = **{first:g}**")

# %% [markdown]
# Then the kernel moves one pixel to the right and does the same again. Now it has the bright pixels under its right
# column.
#
# **Before you run the next cell:** the window is now in columns 1, 2 and 3. Which number comes out? And which one
# when it has moved once more, to columns 2, 3 and 4?

# %%
OH, OW = 3, 3  # how often a window of 3 fits into 5
output = np.zeros((OH, OW), np.float32)
for i in range(OH):
    for j in range(OW):
        output[i, j] = (picture[i : i + 3, j : j + 3] * kernel).sum()

say(
    f"They are {output[0, 1]:g} and {output[0, 2]:g}: three bright pixels stand on the weights of 1, and what "
    "stands on the weights of -1 is dark, or nearly so."
)

# %%
fig, (left, middle, right) = figure(8, 3, ncols=3, width_ratios=[5, 3, 3])
grid(left, picture, "picture and a window", box=(1, 2, 3, 3))
grid(middle, kernel, "kernel")
grid(right, output, "output", box=(1, 2, 1, 1))
fig.get_layout_engine().set(wspace=0.1)
show(
    fig,
    "A 5x5 picture with a window framed, the 3x3 kernel, and the 3x3 output with that window's number framed",
)

# %% [markdown]
# Framed are a window and the number that it gives. This kernel answers the question "is it brighter on the right than
# on the left?". Its output is large along the vertical edge and small in the dark area. A network does not get such
# kernels from us. It learns its weights, and kernels much like this one are what the first layer of a trained network
# tends to contain.
#
# ## On a real picture
#
# Nothing changes but the size. Here are the kernel, its transpose, and one whose nine weights are all 1/9, on one of
# the pictures that mbnp draws itself.

# %%
drawn = shapes10.make(train=1, test=23, seed=0).test.images[22]
grey = drawn.mean(axis=2, dtype=np.float32) / 255


def slide(picture, kernel):
    K = len(kernel)
    output = np.zeros((len(picture) - K + 1, picture.shape[1] - K + 1), np.float32)
    for i, j in np.ndindex(*output.shape):
        output[i, j] = (picture[i : i + K, j : j + K] * kernel).sum()
    return output


edges, flat_edges, blurred = slide(grey, kernel), slide(grey, kernel.T), slide(grey, np.full((3, 3), 1 / 9))

# %% tags=["hide-input"]
fig, axes = figure(8, 2.4, ncols=4)
axes[0].imshow(drawn)
axes[1].imshow(edges, cmap="gray", vmin=-2, vmax=2)
axes[2].imshow(flat_edges, cmap="gray", vmin=-2, vmax=2)
axes[3].imshow(blurred, cmap="gray", vmin=0, vmax=1)
titles = ("picture", "left to right", "top to bottom", "mean of nine")
for panel, title in zip(axes, titles, strict=True):
    panel.set(xticks=[], yticks=[], title=title)
    panel.spines[:].set_visible(False)
show(
    fig,
    "A ring; where it gets brighter from left to right (white) or darker (black); the same downwards; blurred",
)

# %% [markdown]
# White is where the picture gets brighter in that direction, black where it gets darker, grey where nothing happens.
# Three kernels, three different questions, one and the same operation.
#
# ## The whole definition
#
# A real convolution has four more things, and none of them is difficult.
#
# - The input has **channels**, red, green and blue to begin with, so a pixel is a small vector. The kernel has
#   weights for each of them, and the sum runs over the channels too.
# - There are many kernels. Each gives one channel of the output. All of them together are one array of weights.
# - The kernel may move by more than one pixel at a time: the **stride**.
# - Around the picture there may be a margin of zeros, so that the kernel can stand on the border: the **padding**.
#
# In one formula, and two lines that say where to look:
#
# $$y_{n,i,j,d} = \sum_{u,v,c} x_{n,p,q,c} w_{u,v,c,d} + b_d$$
#
# $$p = i \cdot S + u - P \qquad q = j \cdot S + v - P$$
#
# | symbol | what it is |
# | --- | --- |
# | $x$ | the input, of shape (N, H, W, C): pictures, rows, columns, channels |
# | $w$ | the weights, of shape (KH, KW, C, D): kernel rows, kernel columns, channels in, channels out |
# | $b$ | the bias, one number for each output channel |
# | $y$ | the output, of shape (N, OH, OW, D) |
# | $n$; $i, j$; $d$ | which picture; which row and column of the output; which output channel |
# | $u, v$; $c$ | which row and column of the kernel, a *tap*; which input channel |
# | $p, q$ | the row and column of the input that the tap looks at; outside the picture, $x$ counts as 0 |
# | $S$, $P$ | stride and padding |
#
# Hold on to the line for $p$. Nearly every mistake that one can make with a convolution is a mistake in it.
#
# And here is how mbnp defines it. These are the lines that every faster version is tested against; compare them with
# the formula, index by index.

# %%
source(conv.forward_loops)

# %% [markdown]
# Our example is a batch of one picture with one channel, and one kernel: four axes each, most of them of length 1.

# %%
x = picture[None, :, :, None]  # (1, 5, 5, 1)
w = kernel[:, :, None, None]  # (3, 3, 1, 1)
no_padding = ((0, 0), (0, 0))
y = conv.forward_loops(x, w, None, (1, 1), no_padding)
assert np.array_equal(y[0, :, :, 0], output)
say(f"x {x.shape} with w {w.shape} gives y {y.shape}, the same nine numbers as above.")

# %% [markdown]
# ## How large is the output?
#
# Count along one axis. With padding there are $H + 2P$ rows. The first window starts at row 0 and takes $K$ of them.
# That leaves $H + 2P - K$ rows to move into, $S$ at a time, and only whole steps count:
#
# $$O = \left\lfloor \frac{H + 2P - K}{S} \right\rfloor + 1$$
#
# **Before you run the next cell:** a picture of 32 rows, a kernel of 3, padding 1. How many rows come out with
# stride 1? How many with stride 2, and which rows of the padded picture does the last window stand on?

# %%
rows = []
for S in (1, 2, 3):
    count = (32 + 2 * 1 - 3) // S + 1
    begin = (count - 1) * S
    rows.append([S, count, f"{begin} to {begin + 2}"])
    assert conv.forward(np.ones((1, 32, 32, 1)), np.ones((3, 3, 1, 1)), stride=S, padding=1).shape[1] == count
say(table(rows, ["stride", "output rows", "the last window stands on rows"]))

# %% [markdown]
# The padded picture has rows 0 to 33. At stride 2 the last window ends on row 32, and the padding on row 33 is never
# looked at. Whether that odd row is at the end or at the beginning is a choice, and PyTorch and TensorFlow choose
# differently. Weights that were trained with one choice and run with the other load without a complaint and are
# one pixel off. Lesson 12 makes that mistake on purpose.

# %% tags=["hide-input"]
fig, panels = figure(8, 3.2, nrows=2, sharex=True)
H, P, K = 8, 1, 3
for panel, S in zip(panels, (1, 2), strict=True):
    panel.bar(range(H), 1, width=0.9, color=BLUE)
    panel.bar([-1, H], 1, width=0.9, color="white", edgecolor=BLUE, linestyle=":")
    for row in range(-P, H + P):
        inside = 0 <= row < H
        style = {"ha": "center", "va": "center", "color": "white" if inside else BLACK}
        panel.text(row, 0.5, str(row) if inside else "zero", **style)
    count = (H + 2 * P - K) // S + 1
    for i in range(count):
        start, height = i * S - P, -0.35 - 0.35 * (i % 3)
        panel.plot([start - 0.4, start + K - 0.6], [height, height], color=VERMILION, linewidth=4)
    panel.set(yticks=[], xticks=[], ylim=(-1.3, 1.1), title=f"stride {S}: {count} windows")
    panel.spines[:].set_visible(False)
show(
    fig,
    "A row of 8 pixels, a zero on either side. At stride 1 eight windows fit, at stride 2 four, without the last zero",
)

# %% [markdown]
# Blue are the eight pixels of a row, dotted the zeros around it, and each red bar is one window.
#
# A word about the name. Mathematicians turn the kernel by 180 degrees before they slide it, and call what we do a
# *correlation*. Networks learn their weights, so it makes no difference to them, and everybody dropped the turn and
# kept the name. It matters when you compare with other libraries:

# %%
print("scipy.signal.correlate2d", signal.correlate2d(picture, kernel, mode="valid")[0])
print("scipy.signal.convolve2d ", signal.convolve2d(picture, kernel, mode="valid")[0])
print("ours                    ", output[0])

# %% [markdown]
# ## Sliding windows
#
# The loops above spend their time not on multiplying but on Python: looking up names, making tuples of indices,
# wrapping each number in an object. NumPy does all of that once for a whole array. So let us ask it for all windows
# at once.

# %%
windows = np.lib.stride_tricks.sliding_window_view(picture, (3, 3))
down, _, down_within, _ = windows.strides
say(f"""
Three by three windows of three by three pixels: an array of shape {windows.shape}, which would be {windows.size}
numbers. But the picture has {picture.size}, and nothing was copied. In memory, moving the window down by one pixel is
a step of {down} bytes, a row of the picture, and moving down by one pixel within a window is a step of {down_within}
bytes too. Such a *view* is only another way of walking through the same memory.
""")

# %% [markdown]
# With that, the convolution is the formula, written as a contraction. For a batch with channels, and any stride:

# %%


def with_windows(x, w, stride=1, padding=0):
    KH, KW, _, _ = w.shape
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (KH, KW), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]  # (N, OH, OW, C, KH, KW)
    return np.einsum("nijcuv,uvcd->nijd", windows, w)


assert np.array_equal(with_windows(x, w), y)

# %% [markdown]
# Read the letters: $n, i, j, d$ are on the right of the arrow, so they stay. $u, v, c$ are not, so they are summed
# over. The formula and the code have become the same line.
#
# ## One matrix product
#
# Now a trick that is as simple as it is useful. Write every window as one row of a matrix. Write the kernel as a
# column. Then the sums of products are what a matrix product is.

# %%
columns = conv._columns(x, 3, 3, (1, 1), no_padding, (3, 3))
print(columns)

# %% [markdown]
# Nine rows, one for each output pixel; nine numbers in each, one for each tap. Find the row that belongs to the
# window of the picture above: it is the one for $i = 1$, $j = 2$, so row $1 \cdot 3 + 2 = 5$.

# %%
print("row 5 times the kernel:", columns[5] @ kernel.reshape(9), " and the output there:", output[1, 2])
print("all at once:           ", columns @ kernel.reshape(9))

# %% [markdown]
# The matrix is known as *im2col*, image to columns, because the library that made it famous stored the windows as
# columns. It repeats almost every pixel nine times, which seems wasteful. It pays, because a matrix product is the
# one operation that processor makers and library writers have polished for fifty years. With $D$ kernels, the column
# of weights becomes a matrix with $D$ columns, and it is still one product. This is mbnp's NumPy version, all of it:

# %%
source(conv._columns, conv.forward_numpy)

# %% [markdown]
# ## Numba
#
# The loops were slow because of Python, not because they are loops. [Numba](https://numba.pydata.org) reads a Python
# function, works out the types and compiles it to machine code. mbnp's definitions keep to what Numba understands, so
# that this one line is enough:

# %%
compiled = numba.njit(conv.forward_loops)

rng = np.random.default_rng(0)
x = rng.standard_normal((1, 32, 32, 3), dtype=np.float32)  # one picture of CIFAR-10's size
w = rng.standard_normal((3, 3, 3, 32), dtype=np.float32)  # the first layer of the article's network
b = rng.standard_normal(32, dtype=np.float32)
stride, padding = (1, 1), ((1, 1), (1, 1))

start = time.perf_counter()
compiled(x, w, b, stride, padding)
compiling = time.perf_counter() - start
say(
    f"The first call took {compiling:.2f} seconds, nearly all of which was the compiler's. The machine code is kept "
    "for the calls to come."
)

# %% [markdown]
# And mbnp's own kernel? It is compiled too, and it is the matrix product again, but a few pictures at a time: the
# matrix for all of them would not fit into the processor's cache, a part of it does, and the parts can be shared out
# among the processor's cores.

# %%
source(conv._forward_kernel)

# %% [markdown]
# ## The race
#
# One layer: pictures of 32 x 32 pixels, 3 channels in, 32 out. Each output number takes 3 x 3 x 3 products. The fast
# ways get 64 pictures at once, as they would in training; the loops get one, and we count per picture.
#
# **Before you run the next cell:** the plain loops, run by Python, against the very same lines compiled by Numba. How
# many times faster will the compiled ones be: 4, 40, or 400 times? And will the matrix product beat them?

# %%
N = 4 if SMALL else 64
batch = rng.standard_normal((N, 32, 32, 3), dtype=np.float32)
ways = {
    "loops, run by Python": lambda x: conv.forward_loops(x, w, b, stride, padding),
    "the same loops, compiled": lambda x: compiled(x, w, b, stride, padding),
    "sliding windows, einsum": lambda x: with_windows(x, w, 1, 1) + b,
    "one matrix product": lambda x: conv.forward_numpy(x, w, b, stride, padding),
    "mbnp's kernel": lambda x: conv.forward_numba(x, w, b, stride, padding),
}
right = ways["one matrix product"](x)
apart = max(float(abs(way(x) - right).max()) for way in ways.values())
assert apart < 1e-4

seconds = {}
for name, way in ways.items():
    given, repeat = (x, 3) if name == "loops, run by Python" else (batch, 15)
    seconds[name] = timed(lambda way=way, given=given: way(given), repeat) / len(given)

macs = 32 * 32 * 3 * 3 * 3 * 32
slowest = seconds["loops, run by Python"]
rows = [
    [name, f"{1e3 * s:.2f}", f"{slowest / s:,.0f}", f"{macs / s / 1e6:,.0f}"] for name, s in seconds.items()
]
say(table(rows, ["way", "ms a picture", "times faster", "million products a second"]))
say(
    f"All do the same {macs:,} products a picture, and their results differ by at most {apart:.0e}. Compiling alone "
    f"makes the loops {slowest / seconds['the same loops, compiled']:,.0f} times faster."
)

# %% tags=["hide-input"]
fig, axes = figure(8, 2.6)
for height, s in enumerate(reversed(seconds.values())):
    axes.plot(1e3 * s, height, "o", color=BLUE, markersize=9)
    axes.text(1e3 * s * 1.3, height, f"{1e3 * s:.{2 if s < 0.01 else 0}f} ms", va="center")
axes.set(
    xscale="log",
    xlabel="milliseconds for one picture; every mark is ten times the one before",
    ylim=(-0.5, 4.5),
)
axes.set_yticks(range(len(seconds)), reversed(seconds))
axes.set_xlim(right=4e3 * slowest)
axes.minorticks_off()
axes.xaxis.set_major_formatter("{x:g}")
axes.grid(alpha=0.3)
show(fig, "Milliseconds for one picture, on a logarithmic scale, for each of the five ways")

# %% [markdown]
# Three things to take from this picture.
#
# 1. The number of products is the same everywhere. What differs is what happens around them: interpreting Python,
#    fetching numbers from memory, using one core or all of them, one number at a time or eight at once.
# 2. Most is gained by leaving Python's own loops, by whichever door. The rest takes an eye for memory and cores, and
#    lesson 10 goes after it.
# 3. Every way gives the same numbers, up to rounding. That is what makes it safe to go from one to the next: keep the
#    slow one, and hold the fast one against it. mbnp does that for every operation, and `mbnp check` does it on your
#    machine.
#
# The spelling can be chosen for anything in mbnp, a whole network included:

# %%
rows = []
for spelling in backend.BACKENDS:
    with backend.use(spelling):
        y = conv.forward(x, w, b, stride=2, padding=1)
    rows.append([spelling, str(y.shape), f"{y[0, 3, 5, 7]:.6f}"])
say(table(rows, ["spelling", "shape at stride 2", "one of the numbers"]))

# %% [markdown]
# ## Questions
#
# 1. Why does a kernel of 3 x 3 with padding 1 and stride 1 leave the size of a picture as it was? Which padding would
#    a kernel of 5 x 5 need?
# 2. A convolution has 16 channels in and 32 out, and a kernel of 3 x 3. How many weights does it have? Does the
#    answer depend on the size of the picture?
# 3. Which pixels of the input can change the output pixel at row 4, column 7, with stride 2 and padding 1?
# 4. The sliding windows were a view, the matrix of columns is a copy. How many times larger than the picture is it?
# 5. What would the output be if the kernel were all zeros except for a 1 in the middle?
# 6. The loops test `0 <= p < H` in the innermost part. What would Python do if the test for `0 <= p` were missing?
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/01.py`](exercises/01.py). Fill them in, then run
#
#     mbnp grade tutorials/exercises/01.py
#
# and it will say which of them are right, and of the others which number is off and why that may be.

# %% [markdown]
# **1. `output_size`**: how many rows (or columns) does the output have?
#
# <details><summary>Hint</summary>
#
# How many rows does the padded input have? How many are left when the first window stands? How many whole steps fit
# in?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def output_size(size, kernel, stride, padding):
#     return (size + 2 * padding - kernel) // stride + 1
# ```
#
# </details>

# %% [markdown]
# **2. `conv_pixel`**: one number of the output, for one picture `x` (H, W, C) and weights `w` (KH, KW, C, D): row
# `i`, column `j`, channel `d`. Loops are fine.
#
# <details><summary>Hint</summary>
#
# Three loops, over u, v and c. Begin with the line for p, and skip the taps that look outside.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def conv_pixel(x, w, i, j, d, stride, padding):
#     H, W, C = x.shape
#     KH, KW, _, _ = w.shape
#     total = 0.0
#     for u in range(KH):
#         for v in range(KW):
#             p, q = i * stride + u - padding, j * stride + v - padding
#             if 0 <= p < H and 0 <= q < W:
#                 for c in range(C):
#                     total += x[p, q, c] * w[u, v, c, d]
#     return total
# ```
#
# </details>

# %% [markdown]
# **3. `convolve`**: the whole operation, for a batch and with bias, without a loop over pixels.
#
# <details><summary>Hint</summary>
#
# `with_windows` above does nearly all of it, with `einsum`. If you would rather have the matrix product: the window's
# axes come last, so bring them into the order of `w` before you reshape.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# import numpy as np
#
#
# def convolve(x, w, b, stride, padding):
#     KH, KW, C, D = w.shape
#     padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
#     windows = np.lib.stride_tricks.sliding_window_view(padded, (KH, KW), axis=(1, 2))
#     windows = windows[:, ::stride, ::stride]  # (N, OH, OW, C, KH, KW)
#     N, OH, OW = windows.shape[:3]
#     columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(N * OH * OW, KH * KW * C)
#     return (columns @ w.reshape(KH * KW * C, D) + b).reshape(N, OH, OW, D)
# ```
#
# </details>
