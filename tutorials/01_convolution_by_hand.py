# %% [markdown]
# # 1. A convolution by hand
#
# **What exactly does a convolution compute, and how can the same numbers come out a thousand times sooner?**
#
# At the end you can compute any number of a convolution's output with pencil and paper, say how large the
# output is, and implement the operation in four ways: as loops, with sliding windows, as one matrix product,
# and compiled. You will have seen that they agree, and you will have timed them. The lesson takes about 25
# minutes and needs only Python and a little NumPy.

# %%
import time

import numba
import numpy as np
from lesson import BLACK, BLUE, SMALL, VERMILION, figure, grid, measured_here, say, show, source, table, timed
from scipy import signal

from mbnp import backend
from mbnp.datasets import shapes10
from mbnp.ops import conv

measured_here()

# %% [markdown]
# ## One number
#
# Here is an image of five rows and five columns with one number in each pixel: dark on the left, bright on the
# right. Beside it is a *kernel* of three by three numbers, its *weights*.

# %%
image = np.array(
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
# A convolution lays the kernel over a part of the image, its *window*, multiplies each weight by the pixel
# under it, and adds up the results. Nine multiplications, one sum, one number. Let us do it for the window in
# the upper left corner.

# %%
window = image[0:3, 0:3]
first = (window * kernel).sum()
written_out = " + ".join(f"{a:g}·({b:g})" for a, b in zip(window.flat, kernel.flat, strict=True))
say(f"{written_out} = **{first:g}**")

# %% [markdown]
# Then the kernel moves one pixel to the right and does the same again. Now its right column lies on bright
# pixels.
#
# **Before you run the next cell:** the window is now in columns 1, 2 and 3. Which number comes out? And which one
# when it has moved once more, to columns 2, 3 and 4?

# %%
OH, OW = 3, 3  # the number of positions of a window of 3 in 5
output = np.zeros((OH, OW), np.float32)
for i in range(OH):
    for j in range(OW):
        output[i, j] = (image[i : i + 3, j : j + 3] * kernel).sum()

say(
    f"They are {output[0, 1]:g} and {output[0, 2]:g}: the weights of 1 lie on three bright pixels, and the pixels "
    "under the weights of -1 are dark, or nearly so."
)

# %%
fig, (left, middle, right) = figure(8, 3, ncols=3, width_ratios=[5, 3, 3])
grid(left, image, "image and a window", box=(1, 2, 3, 3))
grid(middle, kernel, "kernel")
grid(right, output, "output", box=(1, 2, 1, 1))
fig.get_layout_engine().set(wspace=0.1)
show(
    fig,
    "A 5x5 image with a window framed, the 3x3 kernel, and the 3x3 output with that window's number framed",
)

# %% [markdown]
# The frames mark a window and the number that it gives. This kernel answers the question "is it brighter on
# the right than on the left?". Its output is large along the vertical edge and small in the dark area. Nobody
# gives a network such kernels: it learns its weights. The first layer of a trained network tends to contain
# kernels much like this one.
#
# ## On a real image
#
# Nothing changes but the size. Here are the kernel, its transpose, and a kernel whose nine weights are all
# 1/9, applied to one of the images that mbnp draws itself.

# %%
drawn = shapes10.make(train=1, test=23, seed=0).test.images[22]
grey = drawn.mean(axis=2, dtype=np.float32) / 255


def slide(image, kernel):
    K = len(kernel)
    output = np.zeros((len(image) - K + 1, image.shape[1] - K + 1), np.float32)
    for i, j in np.ndindex(*output.shape):
        output[i, j] = (image[i : i + K, j : j + K] * kernel).sum()
    return output


edges, flat_edges, blurred = slide(grey, kernel), slide(grey, kernel.T), slide(grey, np.full((3, 3), 1 / 9))

# %% tags=["hide-input"]
fig, axes = figure(8, 2.4, ncols=4)
axes[0].imshow(drawn)
axes[1].imshow(edges, cmap="gray", vmin=-2, vmax=2)
axes[2].imshow(flat_edges, cmap="gray", vmin=-2, vmax=2)
axes[3].imshow(blurred, cmap="gray", vmin=0, vmax=1)
titles = ("image", "left to right", "top to bottom", "mean of nine")
for panel, title in zip(axes, titles, strict=True):
    panel.set(xticks=[], yticks=[], title=title)
    panel.spines[:].set_visible(False)
show(
    fig,
    "A ring; where it gets brighter from left to right (white) or darker (black); the same downwards; blurred",
)

# %% [markdown]
# White is where the image gets brighter in that direction, black where it gets darker, grey where nothing happens.
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
# - There may be a border of zeros around the image, so that the kernel can be centred on the outermost pixels
#   too: the **padding**.
#
# In one formula, and two lines that say which pixel each weight is multiplied by:
#
# $$y_{n,i,j,d} = \sum_{u,v,c} x_{n,p,q,c} w_{u,v,c,d} + b_d$$
#
# $$p = i \cdot S + u - P \qquad q = j \cdot S + v - P$$
#
# | symbol | what it is |
# | --- | --- |
# | $x$ | the input, of shape (N, H, W, C): images, rows, columns, channels |
# | $w$ | the weights, of shape (KH, KW, C, D): kernel rows, kernel columns, channels in, channels out |
# | $b$ | the bias, one number for each output channel |
# | $y$ | the output, of shape (N, OH, OW, D) |
# | $n$; $i, j$; $d$ | which image; which row and column of the output; which output channel |
# | $u, v$; $c$ | which row and column of the kernel, a *tap*; which input channel |
# | $p, q$ | the row and column of the input pixel that the tap multiplies; outside the image, $x$ counts as 0 |
# | $S$, $P$ | stride and padding |
#
# Remember the line for $p$. Nearly every mistake in a convolution is a mistake in this line.
#
# Here is how mbnp defines it. Every faster implementation is tested against these lines; compare them with
# the formula, index by index.

# %%
source(conv.forward_loops)

# %% [markdown]
# Our example is a batch of one image with one channel, and one kernel: four axes each, most of them of length 1.

# %%
x = image[None, :, :, None]  # (1, 5, 5, 1)
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
# **Before you run the next cell:** an image of 32 rows, a kernel of 3, padding 1. How many rows come out with
# stride 1? How many with stride 2, and which rows of the padded image does the last window cover?

# %%
rows = []
for S in (1, 2, 3):
    count = (32 + 2 * 1 - 3) // S + 1
    begin = (count - 1) * S
    rows.append([S, count, f"{begin} to {begin + 2}"])
    assert conv.forward(np.ones((1, 32, 32, 1)), np.ones((3, 3, 1, 1)), stride=S, padding=1).shape[1] == count
say(table(rows, ["stride", "output rows", "rows of the last window"]))

# %% [markdown]
# The padded image has rows 0 to 33. At stride 2 the last window ends at row 32, and the padding in row 33 is
# never used. Whether that odd row is at the end or at the beginning is a choice, and PyTorch and TensorFlow
# choose differently. Weights that were trained with one of them load without an error into a network that
# uses the other, and then every window is one pixel off. Lesson 12 makes that mistake on purpose.

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
# The eight pixels of the row are blue, the zeros around it are dotted, and each red bar is one window.
#
# A word about the name. In mathematics a convolution flips the kernel (rotates it by 180 degrees) before
# sliding it, and what we do is called a *cross-correlation*. A network learns its weights, so the flip makes
# no difference to it; deep learning dropped the flip and kept the name. It matters when you compare with
# other libraries:

# %%
print("scipy.signal.correlate2d", signal.correlate2d(image, kernel, mode="valid")[0])
print("scipy.signal.convolve2d ", signal.convolve2d(image, kernel, mode="valid")[0])
print("ours                    ", output[0])

# %% [markdown]
# ## Sliding windows
#
# The loops above spend their time not on multiplications but on the Python interpreter: looking up names,
# making tuples of indices, wrapping each number in an object. NumPy does all of that once for a whole array.
# So let us ask it for all windows at once.

# %%
windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3))
down, _, down_within, _ = windows.strides
say(f"""
Three by three windows of three by three pixels: an array of shape {windows.shape}, which would be {windows.size}
numbers. But the image has {image.size}, and nothing was copied. In memory, moving the window down by one pixel is
a step of {down} bytes, a row of the image, and moving down by one pixel within a window is a step of {down_within}
bytes too. Such a *view* is only another way of indexing the same memory.
""")

# %% [markdown]
# With the windows, the formula is a single contraction. For a batch with channels, and any stride:

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
# Now a trick that is as simple as it is useful. Write every window as one row of a matrix, and the kernel as
# a column. Then all the sums together are one matrix product.

# %%
columns = conv._columns(x, 3, 3, (1, 1), no_padding, (3, 3))
print(columns)

# %% [markdown]
# Nine rows, one for each output pixel; nine numbers in each, one for each tap. Find the row that belongs to the
# window of the image above: it is the one for $i = 1$, $j = 2$, so row $1 \cdot 3 + 2 = 5$.

# %%
print("row 5 times the kernel:", columns[5] @ kernel.reshape(9), " and the output there:", output[1, 2])
print("all at once:           ", columns @ kernel.reshape(9))

# %% [markdown]
# The matrix is known as *im2col*, image to columns, because the library that made it famous stored the
# windows as columns. It repeats almost every pixel nine times, which seems wasteful. It pays, because the
# matrix product is the operation that processors and libraries have been optimised for over fifty years. With
# $D$ kernels, the column of weights becomes a matrix with $D$ columns, and it is still one matrix product.
# This is mbnp's whole NumPy implementation:

# %%
source(conv._columns, conv.forward_numpy)

# %% [markdown]
# ## Numba
#
# The loops were slow because of Python, not because they are loops. [Numba](https://numba.pydata.org) reads a
# Python function, works out the types and compiles it to machine code. mbnp's definitions use only what Numba
# supports, so this one line is enough:

# %%
compiled = numba.njit(conv.forward_loops)

rng = np.random.default_rng(0)
x = rng.standard_normal((1, 32, 32, 3), dtype=np.float32)  # one image of CIFAR-10's size
w = rng.standard_normal((3, 3, 3, 32), dtype=np.float32)  # the first layer of the article's network
b = rng.standard_normal(32, dtype=np.float32)
stride, padding = (1, 1), ((1, 1), (1, 1))

start = time.perf_counter()
compiled(x, w, b, stride, padding)
compiling = time.perf_counter() - start
say(
    f"The first call took {compiling:.2f} seconds, nearly all of it for compiling. The machine code is kept "
    "for later calls."
)

# %% [markdown]
# And mbnp's own kernel? (A compiled function that does one operation on arrays is called a *kernel* too: the
# same word, another meaning.) It is the matrix product again, but of a few images at a time: the matrix for
# the whole batch would not fit into the processor's cache, the one for a few images does, and the processor's
# cores can work on different images.

# %%
source(conv._forward_kernel)

# %% [markdown]
# ## The comparison
#
# One layer: images of 32 x 32 pixels, 3 channels in, 32 out. Each output number takes 3 x 3 x 3
# multiplications. The fast implementations get 64 images at once, as they would in training; the plain loops
# get one, and we report the time per image.
#
# **Before you run the next cell:** the plain loops, run by Python, against the same lines compiled by Numba.
# How many times faster will the compiled loops be: 4, 40, or 400 times? And will the matrix product beat
# them?

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
rows = [[name, f"{1e3 * s:.2f}", f"{slowest / s:,.0f}", f"{macs / s / 1e6:,.0f}"] for name, s in seconds.items()]
say(table(rows, ["implementation", "ms per image", "times faster", "million multiplications per second"]))
say(
    f"All do the same {macs:,} multiplications per image, and their results differ by at most {apart:.0e}. "
    f"Compiling alone makes the loops {slowest / seconds['the same loops, compiled']:,.0f} times faster."
)

# %% tags=["hide-input"]
fig, axes = figure(8, 2.6)
for height, s in enumerate(reversed(seconds.values())):
    axes.plot(1e3 * s, height, "o", color=BLUE, markersize=9)
    axes.text(1e3 * s * 1.3, height, f"{1e3 * s:.{2 if s < 0.01 else 0}f} ms", va="center")
axes.set(
    xscale="log",
    xlabel="milliseconds for one image; every tick is ten times the one before",
    ylim=(-0.5, 4.5),
)
axes.set_yticks(range(len(seconds)), reversed(seconds))
axes.set_xlim(right=4e3 * slowest)
axes.minorticks_off()
axes.xaxis.set_major_formatter("{x:g}")
axes.grid(alpha=0.3)
show(fig, "Milliseconds for one image, on a logarithmic scale, for each of the five implementations")

# %% [markdown]
# Three things to take from this figure.
#
# 1. The number of multiplications is the same everywhere. What differs is everything around them:
#    interpreting Python, fetching numbers from memory, using one core or all of them, one number at a time or
#    eight at once.
# 2. Most is gained by leaving Python's own loops, no matter how. The rest depends on how memory and cores are
#    used, which is the subject of lesson 10.
# 3. Every implementation gives the same numbers, up to rounding. That is what makes it safe to go from one to
#    the next: keep the slow one, and test the fast one against it. mbnp does that for every operation, and
#    `mbnp check` does it on your machine.
#
# You can choose the implementation for any code that uses mbnp, whole networks included. The choice is called
# the *backend*:

# %%
rows = []
for name in backend.BACKENDS:
    with backend.use(name):
        y = conv.forward(x, w, b, stride=2, padding=1)
    rows.append([name, str(y.shape), f"{y[0, 3, 5, 7]:.6f}"])
say(table(rows, ["backend", "shape at stride 2", "one of the numbers"]))

# %% [markdown]
# ## Questions
#
# 1. Why does a kernel of 3 x 3 with padding 1 and stride 1 keep the size of an image? Which padding would
#    a kernel of 5 x 5 need?
# 2. A convolution has 16 channels in and 32 out, and a kernel of 3 x 3. How many weights does it have? Does the
#    answer depend on the size of the image?
# 3. Which pixels of the input can change the output pixel at row 4, column 7, with stride 2 and padding 1?
# 4. The sliding windows were a view, the matrix of columns is a copy. How many times larger than the image is it?
# 5. What would the output be if the kernel were all zeros except for a 1 in the middle?
# 6. The loops test `0 <= p < H` in the innermost part. What would Python do if the test for `0 <= p` were missing?
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/01.py`](exercises/01.py). Fill them in, then run
#
#     mbnp grade tutorials/exercises/01.py
#
# and it will say which of them are right, and for the others which number is wrong and why that may be.

# %% [markdown]
# **1. `output_size`**: how many rows (or columns) does the output have?
#
# <!-- mbnp/grading/lessons/hints/01.md: output_size -->

# %% [markdown]
# **2. `conv_pixel`**: one number of the output, for one image `x` (H, W, C) and weights `w` (KH, KW, C, D): row
# `i`, column `j`, channel `d`. Loops are fine.
#
# <!-- mbnp/grading/lessons/hints/01.md: conv_pixel -->

# %% [markdown]
# **3. `convolve`**: the whole operation, for a batch and with bias, without a loop over pixels.
#
# <!-- mbnp/grading/lessons/hints/01.md: convolve -->
