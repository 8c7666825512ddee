# %% [markdown]
# # 11. Looking inside
#
# **The network predicts "star", and it is a star. But what did it use: the star, the background, or the fact
# that most objects are in the middle?**
#
# At the end you can show what a filter has learned and how a block responds to an edge, find a dead filter,
# make three kinds of maps of where a network looks, and, which is harder, test whether a map means anything. You
# need lessons 5 and 6. It takes about forty minutes.

# %%
from pathlib import Path

import numpy as np
from lesson import BLACK, BLUE, ORANGE, SKY, SMALL, VERMILION, figure, measured_here, say, show, source, table

from mbnp import backend, cost, datasets, explain, fused, pages, train
from mbnp.datasets import shapes10
from mbnp.layers import GlobalAveragePool, Linear
from mbnp.models.blocks import separable_block, standard_block
from mbnp.network import Network
from mbnp.ops import linear, pool, relu, softmax_cross_entropy
from mbnp.pages import explain as explain_page

backend.set_num_threads(min(2, backend.max_threads()))
measured_here()

# %% [markdown]
# ## A network to look into
#
# We train one, for three epochs, on shapes10: images that mbnp draws itself. That has a great advantage for
# this lesson: for every image it is known which pixels show the object.
#
# It is the article's network, shortened. In the full one the last feature map of a 32x32 image has 2x2 cells,
# and "it looked at the upper left quarter" is not much of an answer. This one stops at 8x8, and ends in an
# average over the whole feature map and a linear layer, as the paper's MobileNet does.

# %%
BLOCKS = [(64, 2), (64, 1), (128, 2), (128, 1), (128, 1)]  # channels out, stride


def short_network(classes, seed=0):
    """Build a MobileNet for 32x32 images whose last feature map has 8x8 cells."""
    rng, channels = np.random.default_rng(seed), 32
    layers = {"conv1": standard_block(3, channels, 1, rng, np.float32)}
    for k, (c_out, stride) in enumerate(BLOCKS, start=1):
        layers[f"block{k}"] = separable_block(channels, c_out, stride, rng, np.float32)
        channels = c_out
    layers |= {"pool": GlobalAveragePool(), "fc": Linear(channels, classes, rng=rng)}
    return Network(layers, resolution=32)


data = shapes10.make(train=320, test=100) if SMALL else datasets.load("shapes10")
net = short_network(len(data.classes))
recipe = train.Recipe(epochs=1, batch_size=32) if SMALL else train.Recipe(epochs=3)
fast = fused.convert(net)
history = train.fit(fast, data, recipe)

test, masks = data.test, data.test.masks
x = datasets.normalise(test.images, data.mean, data.std)
predicted = fast.forward(x).argmax(axis=1)
recognised = predicted == test.labels
say(
    f"{cost.of(net, (32, 32, 3)).params:,} parameters, {len(history)} epochs, {sum(r.seconds for r in history):.0f} s: "
    f"test accuracy {history[-1].test_accuracy:.1%}. On average the object covers "
    f"{masks.mean():.0%} of an image."
)

# %%
first = [int(np.flatnonzero(test.labels == k)[0]) for k in range(10)]  # the first test image of each class
fig, axes = figure(width=8.5, height=2.1, nrows=2, ncols=10)
for column, n in enumerate(first):
    axes[0, column].imshow(test.images[n])
    axes[0, column].set_title(data.classes[test.labels[n]], fontsize=9)
    axes[1, column].imshow(masks[n], cmap="gray")
for axis in axes.flat:
    axis.set_axis_off()
show(
    fig,
    "An image of each of the ten classes, and below it the mask of the pixels that show the object",
)

# %% [markdown]
# ## The first filters
#
# The first layer is the only one whose filters can be looked at as they are: 3x3 pixels, red, green and blue.
# A filter responds most strongly to an image that looks like the filter.
#
# **Before you run the next cell:** shapes10 gives every object a random colour. Will the filters respond to
# colours, to brightness, or to edges?

# %%
w = net["conv1"]["0"].weight.value  # (3, 3, 3, 32): kernel, colours in, channels out
fig, axes = figure(width=8.5, height=4.6, nrows=4, ncols=8)
for d, axis in enumerate(axes.flat):
    axis.imshow(0.5 + 0.5 * w[..., d] / np.abs(w[..., d]).max())
    axis.set(xticks=[], yticks=[])
    axis.set_title(f"{d}", fontsize=9)
fig.suptitle("The 32 filters of the first layer; grey is zero", fontsize=11)
show(fig, "Thirty-two filters of three by three coloured pixels")


# %% [markdown]
# They look colourful. But so does any random filter: in 27 random weights the three colours hardly ever
# agree. To say what was *learned*, compare with the same filters before training. Every filter is a sum of
# four components: the mean of all its weights, what remains constant over the pixels, what remains constant
# over the colours, and the rest.


# %%
def components(w):
    """Return the fraction of the energy of filters (3, 3, 3, C) in each of the four components, on average."""
    grey, even = w.mean(axis=2, keepdims=True), w.mean(axis=(0, 1), keepdims=True)
    both = even.mean(axis=2, keepdims=True)
    found = {
        "brightness of a surface": both,
        "colour of a surface": even - both,
        "edges in brightness": grey - both,
        "edges in colour": w - grey - even + both,
    }
    energy = np.square(w).sum(axis=(0, 1, 2))
    return {
        name: (np.square(np.broadcast_to(component, w.shape)).sum(axis=(0, 1, 2)) / energy).mean()
        for name, component in found.items()
    }


untrained, trained = components(short_network(len(data.classes))["conv1"]["0"].weight.value), components(w)
say(
    table(
        [[n, f"{untrained[n]:.0%}", f"{trained[n]:.0%}"] for n in trained],
        ["component", "before training", "after training"],
    )
)
grown = max(trained, key=lambda name: trained[name] / untrained[name])
say(
    f"The component that grew most: {grown}, from {untrained[grown]:.0%} to {trained[grown]:.0%}. shapes10 "
    f"paints every object in a colour that is at least a quarter of the colour circle away from its "
    f"background, so a filter that "
    f"distinguishes colours is useful from the start."
)

# %% [markdown]
# ## How a block responds to an edge
#
# From the second layer on there are too many channels to look at a filter directly. Instead, give the layer a
# simple input and look at its output. The simplest structure in an image is an edge. By hand: a row of six
# pixels, dark on the left, bright on the right, and a block with two depthwise filters.

# %%
row = np.array([0, 0, 0, 1, 1, 1])
kernels = {"difference": np.array([-1, 0, 1]), "mean": np.array([1, 1, 1]) / 3}
after = {name: np.array([row[j : j + 3] @ kernel for j in range(4)]) for name, kernel in kernels.items()}
say(f"the row: `{row}`")
for name, y in after.items():
    say(f"depthwise, {name}: `{y.round(2)}`")
mixed = np.maximum(after["mean"] - after["difference"], 0)
say(f"pointwise, mean - difference, then ReLU: `{mixed.round(2)}`")

# %% [markdown]
# The depthwise convolution *detects*: each channel responds to one pattern around each pixel, here to a
# change and to brightness. The pointwise convolution *combines*: bright **and not** an edge. Neither could do
# it alone: a depthwise filter has no access to other channels, a pointwise one none to other pixels.
#
# Now the trained network. Its input is a vertical edge between blue and orange, and the same edge as a
# horizontal one. How does every channel of the second block respond to the edge, compared with the plain
# areas on either side?

# %%
colours = np.array([[60, 110, 170], [220, 130, 60]], np.uint8)
vertical = np.broadcast_to(colours[np.arange(32) // 16], (32, 32, 3))  # every row: 16 pixels blue, 16 orange
edges = datasets.normalise(np.stack([vertical, vertical.transpose(1, 0, 2)]), data.mean, data.std)
responses = net.activations(edges)


def edge_response(features):
    """Return (2, C): by how much a channel's response at the edge exceeds that on both plain areas."""
    down_right = np.stack([features[0, 8], features[1, :, 8]])  # across the edge: (2, 16, C)
    at_edge, dark, bright = down_right[:, 6:10].max(axis=1), down_right[:, 3], down_right[:, 12]
    return at_edge - np.maximum(dark, bright)


fig, (left, right) = figure(width=8.5, height=3.9, ncols=2)
for axes, name, title, colour in (
    (left, "block2.2", "after the depthwise convolution", VERMILION),
    (right, "block2.5", "after the pointwise convolution", BLUE),
):
    down, across = edge_response(responses[name])
    limit = 1.1 * max(np.abs(down).max(), np.abs(across).max(), 0.1)
    axes.axhline(0, color="lightgrey", zorder=0)
    axes.axvline(0, color="lightgrey", zorder=0)
    axes.plot(down, across, "o", color=colour, markersize=5, alpha=0.8)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
    axes.set_xlabel("response to a vertical edge")
    axes.set_ylabel("response to a horizontal edge")
fig.suptitle("Block 2: each point is one of its 64 channels", fontsize=11)
show(
    fig,
    "Response of each channel to a vertical and a horizontal edge, after depthwise and after pointwise convolution",
)

# %%
rows = []
for name, what in (("block2.2", "depthwise"), ("block2.5", "pointwise")):
    down, across = edge_response(responses[name])
    one, both = (down > 0.1) ^ (across > 0.1), (down > 0.1) & (across > 0.1)
    rows.append([what, f"{one.sum()}", f"{both.sum()}", f"{(~one & ~both).sum()}"])
say(table(rows, ["after the", "one direction only", "both directions", "neither"]))

# %% [markdown]
# A channel near an axis responds to one direction only; a channel near the diagonal responds to edges of
# both. Channels at zero, or below, respond to plain areas, or to something that is not an edge at all.
#
# ## Feature maps
#
# Here is one image on its way through the network, with the six channels of each layer whose values vary
# most.

# %%
star = next((n for n in range(len(x)) if predicted[n] == test.labels[n] == data.classes.index("star")), first[8])
activations = net.activations(x[star : star + 1])
stages = ["conv1.2", "block1.5", "block3.5", "block5.5"]
fig, axes = figure(width=8.5, height=5, nrows=len(stages), ncols=7)
for line, name in zip(axes, stages, strict=True):
    a = activations[name][0]
    line[0].imshow(test.images[star])
    line[0].set_ylabel(f"{name}\n{a.shape[0]}x{a.shape[1]}x{a.shape[2]}", fontsize=9)
    for axis, c in zip(line[1:], np.argsort(-a.std(axis=(0, 1)))[:6], strict=True):
        axis.imshow(a[..., c], cmap="cividis")
        axis.set_title(f"channel {c}", fontsize=8)
    for axis in line:
        axis.set(xticks=[], yticks=[])
show(
    fig,
    "Feature maps of an image of a star: the whole star in early layers, a few bright cells in the last one",
)

# %% [markdown]
# Early feature maps still look like the image, with the object separated from its background by colour. Later
# ones show parts of it, and at the end there are a few active cells. The later the layer, the less it looks
# like the image, and the larger the area of the image that each cell depends on.
#
# ## Where does it look? Class activation maps
#
# The end of the network is an average over the last feature map and a linear layer. Write down the logit of
# class $k$, with $f$ the last feature map, $w$ the weights of the linear layer, $b$ its bias:
#
# $$\text{logit}_k = \sum_c w_{ck}\Big(\frac{1}{HW}\sum_{i,j} f_{ijc}\Big) + b_k
# = \frac{1}{HW}\sum_{i,j}\underbrace{\Big(\sum_c w_{ck} f_{ijc}\Big)}_{M_k(i,j)} + b_k$$
#
# The two sums have changed places, and the expression over the brace is a map of what each cell *contributes*
# to the class. Its average, plus the bias, is the logit. Zhou et al. called it **class activation map**
# ("Learning Deep Features for Discriminative Localization", 2016,
# [arXiv:1512.04150](https://arxiv.org/abs/1512.04150)). It costs nothing, and it is exact: it is not a model
# of the network, but the network's own computation. By hand, with 2x2 cells, two channels, and one class:

# %%
f4 = np.array([[[1.0, 0.0], [3.0, 1.0]], [[0.0, 2.0], [0.0, 1.0]]])  # (2, 2, 2): rows, columns, channels
w4, b4 = np.array([2.0, -1.0]), 0.5
m4 = f4 @ w4
say(f"average first: `{f4.mean(axis=(0, 1))}`, logit {f4.mean(axis=(0, 1)) @ w4 + b4:g}")
say(f"map first: `{m4.tolist()}`, its mean plus the bias: {m4.mean() + b4:g}")

# %% [markdown]
# The code that computes the logit:

# %%
source(pool.global_average_forward_numpy, linear.forward_numpy)


# %%
def last_feature_map(images):
    """Return the feature map (N, 8, 8, C) that is averaged."""
    for name in ("conv1", *(f"block{k}" for k in range(1, len(BLOCKS) + 1))):
        images = net[name].forward(images)
    return images


features, classes = last_feature_map(x[:50]), predicted[:50]
weight, bias = net["fc"].weight.value, net["fc"].bias.value
by_hand = np.einsum("nijc,cn->nij", features, weight[:, classes])  # (N, 8, 8)
logit = net.forward(x[:50])[np.arange(50), classes]
error = np.abs(by_hand.mean(axis=(1, 2)) + bias[classes] - logit).max()
say(f"Mean of the class activation map plus bias against the logit, 50 images: the largest difference is {error:.1e}.")

contribution = explain.class_activation_map(net, x, predicted)  # the same, of all images: (N, 8, 8)
error = np.abs(contribution[:50] - by_hand).max()
say(f"`explain.class_activation_map` against the three lines above: the largest difference is {error:.1e}.")

# %% [markdown]
# To display a class activation map we set negative contributions to 0, scale the maximum to 1, and enlarge
# the map to the image's size by linear interpolation between the centres of the cells.


# %%
def heat(contribution):
    """Return maps (N, 32, 32) from 0 to 1; all 0 where no contribution is positive."""
    positive = np.maximum(contribution, 0)
    top = positive.max(axis=(1, 2), keepdims=True)
    return explain.enlarge(positive / np.where(top > 0, top, 1), 32, 32)


cam = heat(contribution)
fig, axes = figure(width=8.5, height=2.3, nrows=2, ncols=10)
for column, n in enumerate(first):
    axes[0, column].imshow(test.images[n])
    axes[0, column].contour(masks[n], [0.5], colors="white", linewidths=1)
    axes[1, column].imshow(cam[n], cmap="cividis", vmin=0, vmax=1)
    axes[1, column].contour(masks[n], [0.5], colors="white", linewidths=1)
    axes[0, column].set_title(data.classes[predicted[n]], fontsize=9)
for axis in axes.flat:
    axis.set_axis_off()
fig.suptitle("The predicted class and its class activation map; white: the object's outline", fontsize=11)
show(
    fig,
    "Ten images with the predicted class, and below them class activation maps with the outline of the object",
)

# %% [markdown]
# This looks convincing, and many such studies end here. But a heat map is easily read as a confirmation of
# what one already believes. So let us test it.
#
# ## Does the map mean anything?
#
# The **pointing game**: take the brightest pixel of each map. Is it on the object? And what would a method
# score that does not look at the image at all? One is to point at the middle, always. Where the middle is not on the
# object, that scores nothing, and is too easy to beat: there the second baseline is a pixel on a ring about the middle,
# of the radius that scores most on training images. We count the images that the network recognises.
#
# **Before you run the next cell:** a pixel at random is on the object in about a fifth of the cases. What is
# your guess for the map's brightest pixel? And for a method that always points at the middle of the image?

# %%
yy, xx = np.mgrid[:32, :32] - 15.5
from_middle = np.hypot(yy, xx)
middle = from_middle < 1  # four pixels


def ring_of(radius):
    """Return the pixels (32, 32) whose distance from the middle is `radius`, to half a pixel."""
    return np.abs(from_middle - radius) <= 0.5


def widened(masks, pixels=2):
    """Return masks (N, 32, 32) with all pixels at most so many rows and so many columns beside them."""
    wide, steps = np.pad(masks, ((0, 0), (pixels, pixels), (pixels, pixels))), range(2 * pixels + 1)
    return np.any([wide[:, i : i + 32, j : j + 32] for i in steps for j in steps], axis=0)


def misses_middle(masks):
    """Return of which masks (N,) none of the middle's four pixels is a part."""
    return ~masks[:, middle].any(axis=1)


tuning = slice(0, 50 if SMALL else 500)
masks_train = data.train.masks[tuning]
radius = max(range(2, 16), key=lambda r: masks_train[misses_middle(masks_train)][:, ring_of(r)].mean())
peaks = cam == cam.max(axis=(1, 2), keepdims=True)
near, off_centre = widened(masks), misses_middle(masks)


def score(pointed, truth, chosen):
    """Return how often a pixel pointed at, one of (N, 32, 32) or of the same (32, 32), is in the truth (N, 32, 32)."""
    pointed = np.broadcast_to(pointed, truth.shape)[chosen]
    shares = (pointed & truth[chosen]).sum(axis=(1, 2)) / pointed.sum(axis=(1, 2))
    return shares.sum() / max(len(shares), 1)


rows = []
of_recognised = (masks, recognised), (near, recognised), (masks, recognised & off_centre)
for name, pointed in (
    ("a random pixel", np.ones((32, 32), bool)),
    ("always the middle of the image, the mean of its four pixels", middle),
    (f"a pixel on a ring of radius {radius} about the middle, the mean of all", ring_of(radius)),
    ("the map's peak", peaks),
    ("the map's peak, with the mask of another image", np.roll(peaks, 1, axis=0)),
):
    rows.append([name, *(f"{score(pointed, truth, chosen):.1%}" for truth, chosen in of_recognised)])
say(table(rows, ["pixel", "on the object", "or at most 2 pixels beside it", "on it, where the middle is not"]))

say(
    f"{score(peaks, masks, recognised):.0%} on the object looks good against {masks[recognised].mean():.0%}. Compared "
    f"with always pointing at the middle, which scores {score(middle, masks, recognised):.0%}, it looks different. A "
    f"result without the right baseline means nothing. Two pixels more, and it is "
    f"{score(peaks, near, recognised):.0%} against {score(middle, near, recognised):.0%}. The last column is of the "
    f"{off_centre[recognised].mean():.0%} of images with none of the middle's four pixels on the object."
)

# %% [markdown]
# The other lines and columns help to understand it. With the mask of *another* image a map that only knew "objects are
# in the middle" would score just as well as with its own. And where the middle is not on the object, the one to beat is
# the ring, the best that can be done there without looking: the map does beat it. So it follows the object. Why then
# does its peak miss? Look at the classes one by one.

# %%
of_class = [recognised & (test.labels == k) for k in range(10)]
by_class = [(score(peaks, masks, chosen), score(middle, masks, chosen)) for chosen in of_class]
order = np.argsort([-a for a, _ in by_class])
fig, axes = figure(width=8, height=3)
axes.bar(np.arange(10) - 0.2, [100 * by_class[k][0] for k in order], 0.38, color=BLUE, label="the map's peak")
axes.bar(
    np.arange(10) + 0.2,
    [100 * by_class[k][1] for k in order],
    0.38,
    color=ORANGE,
    hatch="//",
    label="always the middle",
)
axes.axhline(100 * masks.mean(), color=BLACK, linestyle=":", label="a random pixel")
axes.set_xticks(range(10), [data.classes[k] for k in order], fontsize=9)
axes.set_ylabel("on the object, %")
axes.set_title("The pointing game, class by class")
axes.set_ylim(0, 119)
axes.legend(loc="upper center", ncols=3)
show(fig, "Bars: fraction of hits of the map's peak and of the image's middle for each class")

# %%
ring, crescent = data.classes.index("ring"), data.classes.index("crescent")
field, jump = 3, 1  # receptive field of a cell in each direction, and pixels between two cells
for _, stride in BLOCKS:
    field, jump = field + 2 * jump, jump * stride
say(
    f"The ring: {by_class[ring][0]:.0%}. To recognise a ring, a cell has to see both sides of it, and the cell that "
    f"sees both sides is the one in the *hole*. The crescent, whose middle is empty, too: {by_class[crescent][0]:.0%}, "
    f"against {by_class[crescent][1]:.0%} in the middle of the image. The receptive field of a cell is {field} pixels "
    f"in each direction, which is most of an image."
)

# %% [markdown]
# So "this cell contributes" does not mean "the evidence is *in* this cell". It means "the evidence is in the
# receptive field of this cell".
#
# Now the whole map instead of its peak. Take all pixels above a threshold as the object, and compare them
# with the mask by the **intersection over union**: the number of pixels in both, divided by the number of
# pixels in either. 1 is perfect. The threshold is chosen on training images, as it must be, and so is the
# baseline: a disc in the middle of the image, always the same.


# %%
def iou(found, truth):
    """Return the intersection over union (N,) of two stacks of masks (N, H, W)."""
    return (found & truth).sum(axis=(1, 2)) / np.maximum((found | truth).sum(axis=(1, 2)), 1)


x_train = datasets.normalise(data.train.images[tuning], data.mean, data.std)
cam_train = heat(explain.class_activation_map(net, x_train, fast.forward(x_train).argmax(axis=1)))


def disc(radius, count):
    return np.broadcast_to(from_middle < radius, (count, 32, 32))


thresholds, radii = np.arange(0.05, 0.95, 0.05), range(4, 20)
threshold = max(thresholds, key=lambda t: iou(cam_train > t, masks_train).mean())
radius = max(radii, key=lambda r: iou(disc(r, len(masks_train)), masks_train).mean())
overlap, baseline = iou(cam > threshold, masks), iou(disc(radius, len(masks)), masks)
rows = [
    [f"the map above {threshold:.2f}", f"{overlap.mean():.3f}", f"{overlap[off_centre].mean():.3f}"],
    [
        f"a disc of radius {radius} in the middle",
        f"{baseline.mean():.3f}",
        f"{baseline[off_centre].mean():.3f}",
    ],
    ["the whole image", *(f"{iou(disc(99, len(m)), m).mean():.3f}" for m in (masks, masks[off_centre]))],
]
say(table(rows, ["intersection over union of", "all images", "where the middle is not on the object"]))

# %% [markdown]
# Eight by eight cells, each with a receptive field of most of the image, cannot draw an outline. A class
# activation map is an exact answer to "how much does each cell add to the logit?" and only a hint to "where
# is the object?". This network was never told where the objects are; judge for yourself how much it learned
# about that.
#
# ## A gradient for every pixel
#
# Lesson 3 ended with a question: training does not need `dx` of the first layer, the gradient with respect to the
# pixels. What could you do with it? Run the backward pass from one logit instead of the loss, and `dx` says by how
# much that logit rises for a small change of each pixel. Its absolute value, the largest of the three colours, is a
# **saliency map** (Simonyan et al., "Deep Inside Convolutional Networks", 2013,
# [arXiv:1312.6034](https://arxiv.org/abs/1312.6034)). It has every pixel of the image, not 8x8 cells.
#
# First by hand what a gradient is, and what it is not. A "network" of two pixels, $z = \max(2a - b, 0)$:

# %%
for a, b in ((0.5, 0.0), (0.5, 0.9), (0.4, 1.0)):
    z, slope = max(2 * a - b, 0), float(2 * a - b > 0)
    say(f"a = {a}, b = {b}: z = {z:.1f}, gradient ({2 * slope:g}, {0 - slope:g})")

# %% [markdown]
# In the first line b contributes nothing to z, and has a gradient: it *could* lower z. In the third b is the reason
# that z is 0, and its gradient is 0. A gradient is about a small change from here. It is not a share of the result:
# these do not add up to z, as the contributions in a class activation map do to the logit.
#
# In mbnp `net.gradients(x, dlogits)` goes back through the network, from `dlogits` with a 1 for one class and 0 for the
# others, and returns the gradient at the output of every layer by its name, and that of the pixels as "input".
# BatchNorm uses its running statistics there: with those of the batch, a logit would depend on the pixels of the other
# images. The saliency map is the absolute value of that, the largest of the colours:

# %%
source(explain.saliency)

# %%
some = slice(0, 50 if SMALL else 500)
x_some, masks_some, right = x[some], masks[some], test.labels[some]
logits = net.forward(x_some)
best, second = np.argsort(-logits, axis=1)[:, :2].T
gradient = net.gradients(x_some[:1], np.eye(10, dtype=np.float32)[best[:1]])["input"]

at = np.unravel_index(np.abs(gradient[0]).argmax(), gradient[0].shape)
step = np.zeros_like(x_some[:1])
step[0][at] = 0.01
slope = (net.forward(x_some[:1] + step) - net.forward(x_some[:1] - step))[0, best[0]] / 0.02
say(f"The largest gradient of the first image: {gradient[0][at]:.3f}. By finite differences: {slope:.3f}.")

# %%
saliency = explain.saliency(net, x_some, best)
shown = [n for n in first if n < len(x_some)]
fig, axes = figure(width=8.5, height=2.3, nrows=2, ncols=10)
for axis in axes.flat:
    axis.set_axis_off()
for n, (above, below) in zip(shown, axes.T, strict=False):
    above.imshow(test.images[n])
    above.set_title(data.classes[best[n]], fontsize=9)
    below.imshow(saliency[n], cmap="cividis")
    below.contour(masks[n], [0.5], colors="white", linewidths=1)
fig.suptitle("The predicted class and its saliency map; white: the object's outline", fontsize=11)
show(fig, "Ten images with the predicted class, and below them saliency maps with the outline of the object")

# %% [markdown]
# **Before you run the next cell:** bright pixels gather at the objects. Does that prove that the network uses them?
# Think of the baselines that such a map needs. Which maps would look much the same, and are made by something that
# has learned nothing?
#
# Here are four: the saliency map of the class with the second highest logit; that of the same network before
# training; a map of edges, the difference of each pixel from its neighbours, without any network; and random numbers.
# Take the tenth of the pixels that are highest in each map. How many of them are on the object? And, since we can: what
# happens to the accuracy when these pixels are painted grey?


# %%
def neighbour_differences(images):
    """Return the largest difference (N, H, W) of each pixel from the one above and the one to the left."""
    down, across = np.diff(images, axis=1, prepend=images[:, :1]), np.diff(images, axis=2, prepend=images[:, :, :1])
    return np.maximum(np.abs(down), np.abs(across)).max(axis=3)


def ranks(maps):
    """Return each pixel's place (N, H*W) in the order of its map, the highest first."""
    return np.argsort(np.argsort(-maps.reshape(len(maps), -1), axis=1), axis=1)


untrained_net = short_network(len(data.classes))
maps = {
    "saliency of the predicted class": saliency,
    "saliency of the second class": explain.saliency(net, x_some, second),
    "saliency before training": explain.saliency(untrained_net, x_some, best),
    "edges, no network": neighbour_differences(x_some),
    "random numbers": np.random.default_rng(0).random(saliency.shape),
}
rows, on_object, after_grey = [], {}, {}
for name, each in maps.items():
    order = ranks(each)
    tenth = (order < order.shape[1] // 10).reshape(saliency.shape)
    on_object[name] = masks_some[tenth].mean()
    painted = np.where(tenth[..., None], np.float32(0), x_some)  # 0 is the mean colour of the data
    after_grey[name] = np.mean(fast.forward(painted).argmax(axis=1) == right)
    alike = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(order, ranks(saliency), strict=True)])
    rows.append([name, f"{alike:.2f}", f"{on_object[name]:.0%}", f"{after_grey[name]:.1%}"])
say(table(rows, ["map", "rank correlation with the first", "on the object", "accuracy without the tenth"]))
say(
    f"The object covers {masks_some.mean():.0%} of these images, and the accuracy on them as they are is "
    f"{np.mean(best == right):.1%}."
)

# %% [markdown]
# Compare the lines before you believe the picture.
#
# - **The second class.** Where its map is nearly the first one, the map does not say why *this* class: it says where
#   the network is sensitive at all.
# - **Before training, and edges.** Where their pixels are on the object about as often, being on the object is no
#   evidence that anything was learned: objects are where the edges are. (Adebayo et al., "Sanity Checks for Saliency
#   Maps", 2018, [arXiv:1810.03292](https://arxiv.org/abs/1810.03292), found published methods whose maps hardly change
#   when the weights are replaced by random ones.)
# - **Grey pixels.** The last column is not a picture but an experiment: change the pixels, look at the prediction.
#   A map says something about this network if painting over *its* tenth costs more than painting over another one.
#   But an image with grey specks is unlike any that the network has seen: part of the loss is due to that, as the
#   random tenth shows. (`explain.occlusion` makes a map of such experiments: a grey square, everywhere once.)
#
# What a saliency map does not prove, even then: that a dark pixel is not used (its gradient may be 0 because a ReLU
# is, as in the third line by hand), that a bright one is used (it could change the logit, but perhaps does not), or
# that a person would give the same reason. It says what its definition says: a small change *here* would change this
# logit most.
#
# ## Between the two: Grad-CAM
#
# A class activation map needs a network that ends in an average, and exists for the last feature map only. With the
# gradients of an inner layer there is one for any layer: weigh each channel by the mean of its gradient over the
# feature map, add the channels up, and set what is negative to 0 (Selvaraju et al., "Grad-CAM", 2017,
# [arXiv:1610.02391](https://arxiv.org/abs/1610.02391)). Before the average, where the gradient is $w_{ck} / (HW)$ at
# each cell, this is the class activation map divided by $HW$; in earlier layers it is no share of the logit any more.
#
# **Before you run the next cell:** earlier feature maps have more and smaller cells. Is the peak of their Grad-CAM on
# the object more often, or less?

# %%
signed = explain.grad_cam(net, x_some, best, "block5", signed=True)  # without the last step, the ReLU
error = np.abs(64 * signed - explain.class_activation_map(net, x_some, best)).max()
say(f"64 times the Grad-CAM of block5 against the class activation map: the largest difference is {error:.1e}.")

rows, good = [], best == right
for k in range(1, len(BLOCKS) + 1):
    maps = explain.grad_cam(net, x_some, best, f"block{k}")
    large = explain.enlarge(maps, 32, 32)
    peaks = large == large.max(axis=(1, 2), keepdims=True)
    shares = (f"{score(peaks, truth[some], good):.1%}" for truth in (masks, near))
    rows.append([f"block{k}", f"{maps.shape[1]}x{maps.shape[2]}", *shares])
say(table(rows, ["Grad-CAM of", "cells", "peak on the object", "or at most 2 pixels beside it"]))

# %% [markdown]
# None of the earlier layers points clearly better than the last one, however small its cells. Their weights mean less:
# the layers after them use a channel in one way here and in another way there, so that its gradient differs from cell
# to cell, in sign, too, and the mean of it says little. Before the average all cells have the same gradient, and
# nothing is lost.
#
# ## A dead filter
#
# ReLU gives 0 for everything negative, and its gradient there is 0, too. If a channel is negative for every
# pixel of every image, it has no effect on the loss, and it gets no gradient, so it never changes again. Such
# a channel is **dead**. It costs as many multiplications as any other.

# %%
source(relu.backward_numpy)

# %% [markdown]
# **Before you run the next cell:** how many channels of this network are dead, in your opinion? Think of
# what BatchNorm does just before the ReLU.

# %%
alive = {}
for start in range(0, min(len(x), 500), 250):
    for name, a in net.activations(x[start : start + 250]).items():
        if name.endswith((".2", ".5")):  # the outputs of ReLU
            alive.setdefault(name, []).append((a > 0).mean(axis=(0, 1, 2)))
alive = {name: np.mean(fractions, axis=0) for name, fractions in alive.items()}
dead = sum(int((fraction == 0).sum()) for fraction in alive.values())
channels = sum(fraction.size for fraction in alive.values())
lowest = min(alive, key=lambda name: alive[name].min())
say(
    f"{dead} of {channels} channels are never above zero. The least active one, in `{lowest}`, is above zero for "
    f"{alive[lowest].min():.1%} of its pixels."
)

# %% [markdown]
# BatchNorm gives every channel the mean $\beta$ and the standard deviation $|\gamma|$, whatever the
# convolution before it does. As long as $\beta$ is not many times $-|\gamma|$, some pixels are above zero.
# Without BatchNorm, one update that is too large can make a channel negative everywhere. Check again for
# networks without BatchNorm, or if a learning rate drives $\gamma$ towards zero.
#
# So we make one ourselves, to see what it looks like. $\gamma = 0$ and $\beta = -1$ make BatchNorm's output
# $-1$ everywhere.

# %%
bn = net["block2"]["1"]
gamma, beta = bn.weight.value.copy(), bn.bias.value.copy()


def kill(channel):
    """Set the depthwise channel of block 2 to -1 before its ReLU, and all others as they were trained."""
    new_gamma, new_beta = gamma.copy(), beta.copy()
    if channel is not None:
        new_gamma[channel], new_beta[channel] = 0, -1
    bn.weight.value, bn.bias.value = new_gamma, new_beta


def gradients(images, labels):
    """Return the sum of absolute gradients of each depthwise kernel of block 2 (C,), and those of gamma and beta."""
    statistics = {name: buffer.value.copy() for name, buffer in net.buffers().items()}
    for parameter in net.parameters().values():
        parameter.grad[...] = 0
    logits = net.forward(images, train=True)
    net.backward(softmax_cross_entropy.backward(logits, labels))
    for name, buffer in net.buffers().items():  # a training forward moves the running statistics: put them back
        buffer.value = statistics[name]
    return [
        np.abs(p.grad).sum(axis=tuple(range(p.grad.ndim - 1))) for p in (net["block2"]["0"].weight, bn.weight, bn.bias)
    ]


victim = 5
kill(victim)
of_kernel, of_gamma, of_beta = gradients(x[:64], test.labels[:64])
say(
    f"Gradient of the dead channel's kernel {of_kernel[victim]:g}, of its gamma {of_gamma[victim]:g}, of its beta "
    f"{of_beta[victim]:g}. The median over all channels: {np.median(of_kernel):.1e}, {np.median(of_gamma):.1e}, "
    f"{np.median(of_beta):.1e}."
)

# %% [markdown]
# Exactly zero, all three. Gradient descent will never revive it.
#
# Does the network need it? Let us disable every channel of block 2's depthwise convolution, one at a time.
#
# **Before you run the next cell:** there are 64. For how many of them will the accuracy fall by more than one
# percentage point?

# %%
counts = []  # images recognised, which are whole numbers: differences of accuracies are rounded
for channel in [None, *range(8 if SMALL else 64)]:
    kill(channel)
    counts.append(int(np.sum(fast.forward(x_some).argmax(axis=1) == right)))
kill(None)
lost, point = counts[0] - np.array(counts[1:]), len(x_some) / 100  # in images; as many images are a point

fig, axes = figure(width=8, height=2.8)
ranked = np.argsort(-lost)
axes.bar(range(len(lost)), lost[ranked] / point, color=[VERMILION if n > point else SKY for n in lost[ranked]])
axes.axhline(0, color=BLACK, linewidth=0.8)
axes.set(xlabel="channels of block 2's depthwise convolution, the largest loss first", ylabel="points lost")
axes.set_title("Accuracy lost when one channel is dead")
show(fig, "Bars: accuracy that is lost when one channel is dead, the largest loss first")

say(
    f"Of {len(lost)} channels, {int(np.sum(lost > point))} cost more than a percentage point; the largest loss is "
    f"{lost.max() / point:.1f} points. Without any one of {int(np.sum(lost <= 0))} others, the accuracy on the "
    f"{len(x_some)} images is the same, or higher."
)

# %% [markdown]
# Hardly any single channel is indispensable, but it would be wrong to conclude that all of them are
# superfluous: they can replace each other. (*Pruning* makes networks smaller this way: remove the channels
# that matter least, continue training, repeat.)
#
# ## The same for your own image
#
# All of this, for any image and any network that mbnp trained or read, is one command:
#
#     mbnp explain IMAGE --checkpoint FILE --out page.html
#
# It writes a page that needs nothing else, no network either: every layer's feature maps from left to right, what each
# of their pixels was computed from, and the maps of this lesson. The cell below makes such a page of the star and the
# network above: [explain.html](rendered/11_looking_inside_files/explain.html). Download it and open it in a browser,
# since a code host shows a page's source.

# %%
pages.write(Path("explain.html"), explain_page.page(net, test.images[star : star + 1], ["star"]))

# %% [markdown]
# ## Questions
#
# 1. Why can the filters of the second layer not be shown as small colour images?
# 2. A depthwise filter whose nine weights are all positive: what does it do to an edge?
# 3. The bias of the linear layer is in no class activation map. Does that matter for the question where the
#    network looked?
# 4. How would you make a map of "why star and not cross"? Which weights would you use?
# 5. The article's network averages a 2x2 feature map, and then comes the linear layer. Could you make its
#    class activation map?
# 6. Which baseline would you ask for when somebody shows you where a network looks in photographs?
# 7. Multiply each pixel by its gradient, and add up all products. For which networks is the sum the logit? (Try one
#    of linear layers and ReLU first, without a bias.)
# 8. Weight decay pulls gamma and beta towards zero. Can it revive a dead channel?
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/11.py`](exercises/11.py). `mbnp grade tutorials/exercises/11.py`
# checks your answers.
#
# **`class_activation_map(features, w, classes)`**: for each image n, the class activation map of class
# classes[n], with negative contributions set to 0 and scaled so that its largest value is 1 (all 0 where
# nothing is positive).
#
# <!-- mbnp/grading/lessons/hints/11.md: class_activation_map -->
#
# **`intersection_over_union(found, truth)`**: of two stacks of masks (N, H, W), bool, a number for each
# image. Two empty masks agree: 1.
#
# <!-- mbnp/grading/lessons/hints/11.md: intersection_over_union -->
#
# **`dead_channels(a)`**: which channels of a ReLU's output a (N, H, W, C) are zero on every pixel of every
# image, (C,) bool.
#
# <!-- mbnp/grading/lessons/hints/11.md: dead_channels -->
