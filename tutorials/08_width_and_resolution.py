# %% [markdown]
# # 8. Width and resolution
#
# **Your network is too slow for the phone it is meant for, by a factor of four. You can make it thinner, or
# give it smaller images. Which?**
#
# At the end you can say what either does to multiplications, parameters, memory and time, draw the Pareto
# front of the networks that are worth having, and read the paper's sixteen points as what they are: a menu.
# You need lessons 5 and 6. It takes about half an hour.

# %%
import dataclasses
import math

import numpy as np
from lesson import BLACK, BLUE, GREEN, PURPLE, SMALL, VERMILION, figure, measured_here, say, show, source, table, timed
from PIL import Image

from mbnp import cost, datasets, fused, models, train
from mbnp.layers import Conv
from mbnp.models import build

measured_here()

# %% [markdown]
# ## One layer, two multipliers
#
# The paper has two numbers to scale a network with. The *width multiplier* $\alpha$ scales the number of
# channels of every layer. The *resolution multiplier* $\rho$ scales the height and width of every feature
# map, simply because the images are that much smaller. A pointwise convolution from $M$ to $N$ channels on a
# feature map of $H \times W$ then costs
#
# $$\rho H \cdot \rho W \cdot \alpha M \cdot \alpha N = \alpha^2 \rho^2 \cdot H W M N$$
#
# **Before you run the next cell:** take 8x8 pixels and 16 to 32 channels. What do half the width and half the
# resolution do to the MACs, to the weights, and to the numbers that the layer writes? Only one of the three
# is the same for both.

# %%
layers = {"as it is": (8, 16, 32), "half the width": (8, 8, 16), "half the resolution": (4, 16, 32)}
say(
    table(
        [
            [
                name,
                f"{size}x{size}",
                c_in,
                c_out,
                size * size * c_in * c_out,
                c_in * c_out,
                size * size * c_out,
            ]
            for name, (size, c_in, c_out) in layers.items()
        ],
        ["", "feature map", "channels in", "channels out", "MACs", "weights", "numbers written"],
    )
)

# %% [markdown]
# The MACs fall to a quarter both ways. With half the width, the layer has a quarter of the weights and writes
# half as many numbers. With half the resolution, it keeps all the weights and writes a quarter as many
# numbers. If the download is too large, a lower resolution will not help you. If memory traffic takes the
# time, it helps more than a smaller width.
#
# Not everything is a pointwise convolution. A depthwise one costs $\rho^2 H W \cdot K^2 \cdot \alpha M$: only
# one factor $\alpha$, because each channel is on its own. The same holds for the first layer, whose 3 input
# channels do not shrink, and for the classifier, whose outputs do not. The exponent for the whole network is
# therefore below 2. In mbnp the width multiplier is one line: channels are rounded down. The resolution is
# not part of the network at all, it follows from the image. The cost of a convolution is the output pixels
# times the number of weights:

# %%
source(build.scaled, Conv.macs)

# %%
widths, sizes = np.arange(0.25, 1.01, 0.125), np.arange(17, 49)
whole = cost.of(models.mobilenet_v1_small()).macs
by_width = [cost.of(models.mobilenet_v1_small(width_mult=float(w))).macs / whole for w in widths]
net = models.mobilenet_v1_small()
by_size = [cost.of(net, (int(s), int(s), 3)).macs / whole for s in sizes]
exponent_w = np.polyfit(np.log(widths), np.log(by_width), 1)[0]
exponent_s = np.polyfit(np.log(sizes / 32), np.log(by_size), 1)[0]

fig, ax = figure(8, 3.6)
fraction = np.geomspace(0.25, 1.5, 20)
ax.loglog(fraction, fraction**2, color=BLACK, lw=0.8, ls=":", label="fraction squared")
ax.loglog(widths, by_width, "o", color=BLUE, label=f"width: exponent {exponent_w:.2f}")
ax.loglog(
    sizes / 32,
    by_size,
    "s",
    color=VERMILION,
    ms=4,
    mfc="none",
    label=f"resolution: exponent {exponent_s:.2f}",
)
ticks = [0.25, 0.5, 0.75, 1, 1.5]
ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
ax.set_yticks([0.0625, 0.25, 1], ["1/16", "1/4", "1"])
ax.minorticks_off()
ax.set_xlabel("fraction of the channels, or of the 32 pixels")
ax.set_ylabel("fraction of the MACs")
ax.legend()
show(
    fig,
    "MACs of the article's network against width and resolution: both grow a little more slowly than the square",
)

large = [cost.of(models.mobilenet_v1(width_mult=w)).macs for w in (0.25, 0.5, 0.75, 1.0)]
say(
    f"Between a quarter of the width and all of it the exponent is {exponent_w:.2f} here, and "
    f"{np.polyfit(np.log([0.25, 0.5, 0.75, 1.0]), np.log(large), 1)[0]:.2f} for "
    "the paper's network, whose layers are wider."
)

# %% [markdown]
# The points for the resolution rise in small steps, because feature maps have whole rows: 17 pixels at stride
# 2 make 9, just as 18 do. This network accepts 17 to 48 pixels, since its last feature map must pool to a
# single pixel.
#
# A note on names. Some libraries call the width multiplier `depth_multiplier`, and some tutorials call *that*
# the resolution multiplier. The depth of a network is its number of layers, and neither multiplier changes
# it. In mbnp they are called `width_mult` and `resolution`.
#
# ## The paper's sixteen points
#
# The authors trained MobileNet at four widths and four resolutions on ImageNet. The accuracies below are
# those of the published TensorFlow models. The MACs are counted here.

# %%
TOP1 = {  # ImageNet top-1 accuracy, %, at 224, 192, 160 and 128 pixels
    1.0: (70.9, 70.0, 68.0, 65.2),
    0.75: (68.4, 67.2, 65.3, 62.1),
    0.5: (63.3, 61.7, 59.1, 56.3),
    0.25: (49.8, 47.7, 45.5, 41.5),
}
PIXELS = (224, 192, 160, 128)

paper = {}  # (width, pixels): (MACs, accuracy)
for width, accuracies in TOP1.items():
    net = models.mobilenet_v1(width_mult=width)
    for pixels, accuracy in zip(PIXELS, accuracies, strict=True):
        paper[width, pixels] = cost.of(net, (pixels, pixels, 3)).macs, accuracy
say(
    table(
        [
            [f"{width:g}", *(f"{paper[width, p][0] / 1e6:.1f} M, {paper[width, p][1]} %" for p in PIXELS)]
            for width in TOP1
        ],
        ["width", *(f"{p} pixels" for p in PIXELS)],
    )
)

# %% [markdown]
# **Before you run the next cell:** you start at width 1 and 224 pixels and want about half the MACs. Width
# 0.75 at 224 pixels, or width 1 at 160 pixels: which keeps more accuracy? And for the
# question at the top, a quarter: width 0.5 at 224, width 1 at 128, or a little of both, 0.75 at 160?

# %%
WIDTH_STYLE = {1.0: (BLUE, "o"), 0.75: (VERMILION, "s"), 0.5: (GREEN, "^"), 0.25: (PURPLE, "D")}


def front(points):
    """Return the points that no other point dominates, by increasing cost. points: (MACs, accuracy)."""
    kept = []
    for macs, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1] or (macs, accuracy) == kept[-1]:
            kept.append((macs, accuracy))
    return kept


def draw(ax, points, labels=(), above=False):
    """A line for each width, a grey line for the front. points: (width, pixels) -> (MACs, accuracy)."""
    ax.plot(*zip(*front(points.values()), strict=True), color="#BBBBBB", lw=5, zorder=0, label="Pareto front")
    for width, (colour, marker) in WIDTH_STYLE.items():
        line = sorted((pixels, *points[w, pixels]) for w, pixels in points if w == width)
        x, y = [macs for _, macs, _ in line], [accuracy for *_, accuracy in line]
        ax.plot(x, y, marker + "-", color=colour, lw=1, label=f"width {width:g}")
        for pixels, macs, accuracy in line:
            if (width, pixels) in labels:
                position = {"xytext": (-5, 6), "ha": "right"} if above and width == 1 else {"xytext": (6, -11)}
                ax.annotate(f"{pixels} px", (macs, accuracy), textcoords="offset points", color=colour, **position)
    ax.set_xscale("log")
    ax.margins(y=0.08)
    ax.set_xlabel("million MACs per image")


millions = {key: (macs / 1e6, accuracy) for key, (macs, accuracy) in paper.items()}
fig, ax = figure(8, 4)
draw(ax, millions, labels=[(width, pixels) for width in (1.0, 0.25) for pixels in PIXELS], above=True)
ax.set_xticks([10, 30, 100, 300, 600], ["10", "30", "100", "300", "600"])
ax.minorticks_off()
ax.set_ylabel("ImageNet top-1 accuracy (%)")
ax.legend(loc="lower right")
show(fig, "The paper's sixteen networks: accuracy against MACs, and the Pareto front")

choices = {"half": ((0.75, 224), (1.0, 160)), "quarter": ((0.5, 224), (0.75, 160), (1.0, 128))}
say(
    table(
        [
            [
                f"about a {goal}",
                f"{w:g} at {p}",
                f"{paper[w, p][0] / paper[1.0, 224][0]:.2f}",
                f"{paper[w, p][1]} %",
            ]
            for goal, points in choices.items()
            for w, p in points
        ],
        ["", "width at pixels", "fraction of the MACs", "top-1 accuracy"],
    )
)
kept = front(paper.values())
off = [f"{w:g} at {p}" for (w, p), point in paper.items() if point not in kept]
halved = np.diff([paper[w, 224][1] for w in (0.25, 0.5, 1.0)])
say(
    f"{len(kept)} of the sixteen are on the Pareto front; not on it: {', '.join(off) or 'none'}. From 0.25 to 0.5 the "
    f"width adds {halved[0]:.1f} points, from 0.5 to 1 only {halved[1]:.1f}."
)

# %% [markdown]
# This figure shows two things. When you begin to reduce the cost, both multipliers are about equally good:
# the lines of the widths nearly coincide. And the further you reduce either of them, the more accuracy each
# step costs: the last halving of the width costs far more than the first. So do not push one of them to its
# extreme. For about a quarter of the MACs, a little of both is better than fewer pixels alone, and for
# slightly more work it is clearly better than fewer channels alone.
#
# A point is on the *Pareto front* if no other point is at least as cheap and at least as accurate, and better
# in one of the two. Only those networks are worth having, and which of them is right for you depends on your
# phone.
#
# ## Measured here, at small scale
#
# The same experiment with the article's network and shapes10: ten networks, each trained from scratch for
# three epochs, on fewer images than in lesson 7. First, the smaller images. Pillow makes each new pixel the
# average of the old pixels that it covers.

# %%
RESOLUTIONS = (32, 24, 18)
data = datasets.shapes10.make(512, 200) if SMALL else datasets.shapes10.make(8192, 2000)


def resized(split, pixels):
    if pixels == split.images.shape[1]:
        return split
    images = [Image.fromarray(image).resize((pixels, pixels), Image.Resampling.BOX) for image in split.images]
    return datasets.Split(np.stack([np.asarray(image) for image in images]), split.labels)


scaled_data = {
    pixels: dataclasses.replace(data, train=resized(data.train, pixels), test=resized(data.test, pixels))
    for pixels in RESOLUTIONS
}

fig, axes = figure(8, 2.9, nrows=3, ncols=9)
for row, pixels in zip(axes, RESOLUTIONS, strict=True):
    for ax, image in zip(row, scaled_data[pixels].test.images, strict=False):
        ax.imshow(image)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    row[0].set_ylabel(f"{pixels} px")
show(fig, "Nine test images at 32, 24 and 18 pixels")

# %% [markdown]
# **Before you run the next cell:** width 0.75 at 32 pixels and width 1 at 24 pixels cost nearly the same
# number of MACs. Which will be more accurate on these images? And will the widest network at the highest
# resolution be the best after such a short training?

# %%
CHOSEN = [(0.75, 32), *((width, pixels) for pixels in RESOLUTIONS for width in (1.0, 0.5, 0.25))]
recipe = train.Recipe(epochs=1 if SMALL else 3, augment=False)


def trained(width, pixels, seed):
    net = fused.convert(models.mobilenet_v1_small(width_mult=width, seed=seed))
    history = train.fit(net, scaled_data[pixels], dataclasses.replace(recipe, seed=seed))
    return net, 100 * history[-1].test_accuracy


measured, rows = {}, []
for width, pixels in sorted(CHOSEN, key=lambda key: (-key[1], -key[0])):
    net, accuracy = trained(width, pixels, seed=0)
    x = datasets.normalise(scaled_data[pixels].test.images[:64], data.mean, data.std)
    milliseconds = 1e3 * timed(lambda net=net, x=x: net.forward(x), repeat=7) / len(x)
    counted = cost.of(net, (pixels, pixels, 3))
    measured[width, pixels] = counted.macs / 1e6, accuracy
    kilobytes = counted.activation_bytes / 1e3
    rows.append(
        [
            f"{width:g}",
            pixels,
            f"{counted.macs / 1e6:.2f}",
            counted.params,
            f"{kilobytes:,.0f}",
            f"{milliseconds:.3f}",
            f"{accuracy:.1f}",
        ]
    )
say(
    table(
        rows,
        [
            "width",
            "pixels",
            "million MACs",
            "parameters",
            "activations, kB",
            "ms per image",
            "test accuracy, %",
        ],
    )
)

# %% [markdown]
# How much of that is chance? The standard error that comes from the finite number of test images is easily
# computed. The effect of the seed is not, so we train the cheapest network at 32 pixels twice more.

# %%
again = [measured[0.25, 32][1], *(trained(0.25, 32, seed)[1] for seed in ((1,) if SMALL else (1, 2)))]
a = measured[0.25, 32][1] / 100
sampling = 100 * math.sqrt(a * (1 - a) / len(data.test))
deviation = float(np.std(again, ddof=1))
say(
    f"Width 0.25 at 32 pixels with {len(again)} seeds: {', '.join(f'{a:.1f}' for a in again)} %. Their standard "
    f"deviation is {deviation:.1f} points. If having only {len(data.test):,} test images were its only reason, it "
    f"would be about {sampling:.1f}."
)

# %%
fig, (left, right) = figure(8, 4.2, ncols=2)
draw(left, measured, labels=[(1.0, 24), (1.0, 18), (0.25, 24), (0.25, 18)])
left.plot([measured[0.25, 32][0]] * len(again), again, "D", color=BLACK, mfc="none", ms=8, label="other seeds")
left.set_xticks([0.3, 1, 3, 8], ["0.3", "1", "3", "8"])
left.set_title(f"here: shapes10, {recipe.epochs} epochs")
left.set_ylabel("test accuracy (%)")
draw(right, millions, labels=[(1.0, 224), (1.0, 128), (0.25, 224), (0.25, 128)], above=True)
right.set_xticks([10, 30, 100, 300, 600], ["10", "30", "100", "300", "600"])
right.set_title("the paper: ImageNet")
for ax in (left, right):
    ax.minorticks_off()
left.legend(loc="lower right")
show(fig, "Accuracy against MACs for widths and resolutions: ten small networks beside the paper's sixteen")

thin, coarse = measured[0.75, 32], measured[1.0, 24]
on_front = [f"{w:g} at {p}" for (w, p), point in measured.items() if point in front(measured.values())]
best = max(measured, key=lambda key: measured[key][1])
say(
    f"Width 0.75 at 32 pixels: {thin[0]:.2f} million MACs and {thin[1]:.1f} %. Width 1 at 24 pixels: "
    f"{coarse[0]:.2f} million and {coarse[1]:.1f} %. Most accurate: width {best[0]:g} at {best[1]} pixels. "
    f"On the Pareto front: {', '.join(on_front)}."
)

# %% [markdown]
# Differences smaller than about twice that standard deviation mean nothing, and in such short runs most
# differences between neighbours are smaller. What is left is the overall trend: networks that cost more are
# more accurate.
#
# Compare the two plots. In the paper's, the lines of different widths nearly coincide: at 224 pixels there is
# detail to spare, and fewer pixels cost no more accuracy than fewer channels. Our runs are too few to say
# whether that holds here; there is reason to doubt it. Our images have 32 pixels to begin with, and the bar,
# the noise and the outline of a shape are already only a pixel or two wide. What holds for one task need not
# hold for another. A task with fine detail loses more from fewer pixels, a task with a thousand classes more
# from fewer channels. That is why the paper gives a menu and not a recipe, and why it is worth an evening to
# draw this plot for your own images.
#
# Look at the milliseconds in the table, too. Most of them fall more slowly than the MACs. Small layers give the
# processor less to do at a time. Lesson 9 is about that.
#
# ## Questions
#
# 1. Which of the two multipliers changes the size of the file that you ship?
# 2. The widths are multiples of 0.25, so that the channels are multiples of 8. What is the advantage of that?
# 3. Why does a network trained at 224 pixels run at 128 pixels without an error, and why is it worse there
#    than one trained at 128?
# 4. You must halve the memory for activations in a training step. Compare the two multipliers.
# 5. What would a *depth* multiplier be, and how would the cost grow with it?
# 6. Somebody measures forty networks once each and reports the best. What have they found?
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/08.py`](exercises/08.py). Fill them in, then run
#
#     mbnp grade tutorials/exercises/08.py
#
# **1. `scaled_macs`**: the MACs of the article's network at any width and resolution.
#
# <!-- mbnp/grading/lessons/hints/08.md: scaled_macs -->
#
# **2. `pareto_front`**: which networks are not dominated by another one?
#
# <!-- mbnp/grading/lessons/hints/08.md: pareto_front -->
