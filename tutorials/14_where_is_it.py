# %% [markdown]
# # 14. Where is it?
#
# **A network that classifies says "star", once, for a whole image. How does one say what there is, where, and
# how often?**
#
# At the end you can encode a box and decode it, compute the loss of one anchor by hand, and say why a detector
# needs suppression. You can count an average precision on paper, and you know which mistakes it adds up. You
# need lessons 5 and 6, and of lesson 8 what a MAC is. It takes about forty minutes.

# %%
import os
from pathlib import Path

import numpy as np
from lesson import BLACK, BLUE, GREEN, ORANGE, PURPLE, SMALL, VERMILION, figure, measured_here, say, show, source, table
from matplotlib.patches import Rectangle

from mbnp import backend, cost, datasets, fused, models, optim, train, weights
from mbnp.datasets import scenes10, shapes10
from mbnp.datasets.images import read_whole
from mbnp.detection import anchors, boxes, detect, matching, multibox, precision, suppression, whole
from mbnp.detection.detect import Found
from mbnp.detection.matching import Targets
from mbnp.ops import softmax_cross_entropy

backend.set_num_threads(min(2, backend.max_threads()))
measured_here()

# %% [markdown]
# ## A classifier, slid over an image
#
# scenes10 is the data of this lesson: images of 96x96 pixels that mbnp draws, with one to five of shapes10's
# objects. A box is *left, top, right, bottom*, around what is seen of an object.

# %% tags=["hide-input"]
scenes = scenes10.make(train=96, test=60) if SMALL else datasets.load("scenes10")
size = scenes.test.images.shape[1]
truth = precision.truth(scenes.test.labels, scenes.test.boxes)  # labels and boxes of each test scene, without gaps


def frame(axes, box, colour, text="", style="-", width=1.6):
    """Draw a box in pixels, with a text above it, or below it at the top of the image."""
    left, top, right, bottom = box - 0.5  # imshow has the middle of the first pixel at 0
    outline = Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, ls=style, lw=width, zorder=3)
    axes.add_patch(outline)
    if text:
        y, side = (top - 1, "bottom") if top > 8 else (bottom + 1, "top")
        axes.text(left, y, text, color="white", fontsize=6.5, va=side, bbox={"fc": colour, "lw": 0, "pad": 1}, zorder=4)


def picture(axes, image, title=""):
    axes.imshow(image)
    axes.set(xticks=[], yticks=[], title=title)


fig, axes = figure(8.6, 2.4, ncols=4)
for axis, n in zip(axes, range(4), strict=True):
    picture(axis, scenes.test.images[n])
    for box, label in zip(truth[n].boxes, truth[n].labels, strict=True):
        frame(axis, box, BLUE, scenes.classes[label])
show(fig, "Four scenes with one to five coloured shapes each, and a named box around every one of them")

# %% [markdown]
# You have a classifier for images of 32x32 pixels. So cut windows of 32x32 out of the scene, and ask it what each
# one shows. Here is one, trained for three epochs on shapes10:

# %%
shapes = shapes10.make(train=320, test=100) if SMALL else datasets.load("shapes10")
classifier = models.mobilenet_v1_small(width_mult=0.5, seed=0)
history = train.fit(
    fused.convert(classifier), shapes, train.Recipe(epochs=1 if SMALL else 3, batch_size=32, augment=False)
)
say(f"Its test accuracy: {history[-1].test_accuracy:.1%}.")

# %%
WINDOW, STEP = 32, 4
scene = next(n for n, there in enumerate(truth) if len(there.labels) == 3)
cut = np.lib.stride_tricks.sliding_window_view(scenes.test.images[scene], (WINDOW, WINDOW), axis=(0, 1))
windows = cut[::STEP, ::STEP].transpose(0, 1, 3, 4, 2)  # (17, 17, 32, 32, 3)
x = datasets.normalise(windows.reshape(-1, WINDOW, WINDOW, 3), shapes.mean, shapes.std)
chances = softmax_cross_entropy.softmax(classifier.forward(x)).reshape(*windows.shape[:2], -1)
say(f"{chances.shape[0]} x {chances.shape[1]} windows, and ten probabilities for each.")

# %% [markdown]
# **Before you run the next cell:** three objects are in the scene. In how many of the 289 windows is the classifier
# more than half sure of a class, and of how many classes?

# %%
surest, sure = chances.max(axis=2), chances.max(axis=2) > 0.5
corner = STEP * np.stack(np.meshgrid(*map(np.arange, sure.shape), indexing="ij")[::-1], axis=-1).reshape(-1, 2)
places = np.concatenate([corner, corner + WINDOW], axis=1).astype(np.float32)  # left, top, right, bottom
on_object = boxes.overlap(places, truth[scene].boxes).max(axis=1).reshape(sure.shape)
nothing = on_object < 0.05
say(
    f"In {int(sure.sum())} of {sure.size} windows it is more than half sure, of {len(set(chances.argmax(2)[sure]))} "
    f"different classes. In {int(nothing.sum())} windows there is hardly anything of an object: there the highest "
    f"probability is {surest[nothing].mean():.0%} on average, and {surest[nothing].max():.0%} at the most."
)

# %% tags=["hide-input"]
fig, (left, right) = figure(7, 3.3, ncols=2, width_ratios=[1, 1.2])
picture(left, scenes.test.images[scene], "the scene, and the 5 surest windows")
for box, label in zip(truth[scene].boxes, truth[scene].labels, strict=True):
    frame(left, box, BLUE, scenes.classes[label])
for k in np.argsort(-surest.ravel())[:5]:
    frame(left, places[k], VERMILION, style="--", width=1)
drawn = right.imshow(surest, cmap="cividis", vmin=0, vmax=1)
right.set(xticks=[], yticks=[], title="the highest probability of each window")
fig.colorbar(drawn, ax=right)
show(
    fig,
    "A scene with three named boxes and the five windows of which the classifier is surest, and a map of the highest "
    "probability of each window, in which bright patches are not where the objects are alone",
)

# %% [markdown]
# Three things are wrong with it.
#
# - **It has no class for nothing.** It has never seen a window without an object, and softmax makes it choose: it is
#   sure of many classes that are not there, and less so where there is nothing only by luck.
# - **A window has one size and one shape.** An object that fills half of it, or half of which is outside, is none that
#   the classifier knows. You would have to slide windows of several sizes, and none of them would be the object's box.
# - **It is slow.** Neighbouring windows share nearly all of their pixels, and each is computed from the start.
#
# The last one has an old answer: slide the *network*. A convolution computes the same for every window, and in a
# feature map of 12x12 cells each cell has seen a part of the image. So put a small head on that feature map: two
# convolutions, depthwise and 1x1, which say for each cell what is there, with a class more, *background*. That is the
# first half of the detector **SSD** (Liu et al., arXiv:1512.02325, 2016). The second half is that it does so on
# several feature maps, coarse ones for large objects, and that each cell also says how the box has to be moved and
# resized. Here is one on the article's network:

# %%
net = models.ssd_mobilenet_v1_small(num_classes=10, seed=0)
net.preprocessing = {"mean": list(scenes.mean), "std": list(scenes.std)}
slid = 3 * sure.size * cost.of(classifier, (WINDOW, WINDOW, 3)).macs
once = cost.of(net, (size, size, 3)).macs
say(
    f"Windows of three sizes through the classifier: {slid / 1e6:,.0f} million MACs. The detector, once: "
    f"{once / 1e6:.1f} million. Its heads are on feature maps of {', '.join(f'{h}x{w}' for h, w in net.grids())} cells."
)

# %% [markdown]
# ## Anchors
#
# In each cell stand a few boxes of fixed sizes: the **anchors**. Whatever a head says, it says of one of them.
#
# **Before you run the next cell:** each cell has four anchors. How many numbers does the network return for an image,
# with 4 for the box, 10 classes, and background?

# %%
places = anchors.of(net)  # (A, 4), in shares of the image's width and height
outputs = net.forward(datasets.normalise(scenes.test.images[:1], **net.preprocessing))
counts = [h * w * len(sizes) for (h, w), sizes in zip(net.grids(), net.detection["anchors"], strict=True)]
say(
    f"{' + '.join(map(str, counts))} = {len(places)} anchors, and outputs of the shape {outputs.shape}: "
    f"{outputs.size:,} numbers."
)
source(anchors.make_loops)

# %% tags=["hide-input"]
fig, axes = figure(8.6, 3.3, ncols=3)
start = 0
for axis, (h, w), sizes in zip(axes, net.grids(), net.detection["anchors"], strict=True):
    axis.imshow(np.full((size, size, 3), 245, np.uint8))
    for k in range(1, h):
        axis.axhline(k * size / h - 0.5, color="lightgrey", lw=0.7)
        axis.axvline(k * size / w - 0.5, color="lightgrey", lw=0.7)
    first = start + (h // 2 * w + w // 2) * len(sizes)
    for box, colour in zip(places[first : first + len(sizes)], (VERMILION, BLUE, GREEN, PURPLE), strict=True):
        frame(axis, box * size, colour)
    start += h * w * len(sizes)
    axis.set(xticks=[], yticks=[], title=f"{h}x{w} cells")
show(
    fig,
    "The cells of the three feature maps, and the four anchors of a cell in the middle: two squares, a wide and a tall "
    "box, larger from map to map",
)

# %% [markdown]
# ## How much do two boxes share?
#
# Everything that follows compares boxes, by one number: **intersection over union**, the *overlap*. It is 1 for equal
# boxes and 0 for boxes apart.

# %%
source(boxes.overlap_loops)

# %% [markdown]
# **Before you run the next cell:** a box of the right size is moved to the right by half its width. What is the
# overlap? And is a box that is half as wide and half as high as the object better or worse?

# %%
right_box = np.array([[0.0, 0, 8, 8]])
others = {
    "moved by an eighth of its width": [1, 0, 9, 8],
    "moved by a quarter": [2, 0, 10, 8],
    "moved by half": [4, 0, 12, 8],
    "moved by a quarter, right and down": [2, 2, 10, 10],
    "half as wide and half as high": [2, 2, 6, 6],
    "three quarters as wide and as high": [1, 1, 7, 7],
    "one and a half times as wide and as high": [-2, -2, 10, 10],
}
shared = boxes.overlap(right_box, np.array(list(others.values()), float))[0]
say(table([(name, f"{o:.2f}") for name, o in zip(others, shared, strict=True)], ["the other box", "overlap"]))

# %% [markdown]
# Half of each box is in the other, and the overlap is a third: the union grows with what is not shared. So 0.5, the
# usual limit for "found", is stricter than it sounds.
#
# ## Which anchor answers for which object?
#
# To train, somebody has to say what each of the 756 rows should have said. That is **matching**. An anchor answers for
# the object that it overlaps most, if by at least 0.5; all others are background. That is not enough:
#
# **Before you run the next cell:** what fraction of the objects overlaps no anchor by 0.5?

# %%
some = slice(0, 50 if SMALL else 1000)
labels, corners = scenes.train.labels[some], scenes.train.boxes[some] / size
there = labels >= 0
best = boxes.overlap(corners[there], places).max(axis=1)
extent = np.sqrt(boxes.area(corners[there])) * size
rows = []
for low, high in ((0, 16), (16, 24), (24, 32), (32, 100)):
    these = best[(extent >= low) & (extent < high)]
    if len(these):
        name = f"below {high}" if low == 0 else f"{low} to {high}" if high < 100 else f"{low} and more"
        rows.append((name, len(these), f"{these.mean():.2f}", f"{np.mean(these < 0.5):.0%}"))
say(table(rows, ["size in pixels", "objects", "mean of their best overlap", "none by 0.5"]))
say(f"Of all {len(best):,} objects {np.mean(best < 0.5):.0%} would belong to no anchor.")

# %% [markdown]
# The network would learn that these are background. So there is a second rule: each object gets the anchor that it
# overlaps most, whatever that is.

# %%
source(matching.match_loops)

# %%
here, (h, w) = truth[scene], (size, size)
match = matching.match((here.boxes / size).astype(places.dtype), places)
rows = [
    (scenes.classes[label], f"{box[2] - box[0]:.0f} x {box[3] - box[1]:.0f}", int(np.sum(match == k)))
    for k, (label, box) in enumerate(zip(here.labels, here.boxes, strict=True))
]
say(table(rows, ["object", "pixels", "anchors"]))
say(f"{int(np.sum(match == -1))} of {len(match)} anchors are background.")

# %% tags=["hide-input"]
fig, axis = figure(3.4, 3.4)
picture(axis, scenes.test.images[scene], "the anchors of each object")
for k, (colour, box) in enumerate(zip((VERMILION, BLUE, GREEN), here.boxes, strict=True)):
    for anchor in places[match == k]:
        frame(axis, anchor * size, colour, width=0.8, style="--")
    frame(axis, box, colour, scenes.classes[here.labels[k]], width=2.2)
show(fig, "The scene with its three objects' boxes, and around each the dashed anchors that are matched to it")

# %% [markdown]
# ## An object as four numbers
#
# A matched anchor should say how it has to be changed to become the object's box. Not in pixels: to move by 5 pixels
# is much for a small anchor and nothing for a large one. Distances are measured in the anchor's own width and height,
# and sizes as the logarithm of a ratio, so that half and double are equally far from "as it is":
#
# $$\left(s_x\frac{x - x_a}{w_a},\quad s_y\frac{y - y_a}{h_a},\quad s_w\log\frac{w}{w_a},\quad
# s_h\log\frac{h}{h_a}\right)$$
#
# The scales $s$ are 10, 10, 5 and 5. They bring the four numbers to a spread of about 1, so that none of them rules the
# loss. By hand, for the anchor that overlaps the first object most:

# %%
row = int(np.argmax(np.where(match == 0, boxes.overlap(here.boxes[:1] / size, places.astype(np.float32))[0], -1)))
anchor, box = places[row].astype(float), here.boxes[0].astype(float) / size
(xa, ya), (wa, ha) = (anchor[:2] + anchor[2:]) / 2, anchor[2:] - anchor[:2]
(xb, yb), (wb, hb) = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
by_hand = [10 * (xb - xa) / wa, 10 * (yb - ya) / ha, 5 * np.log(wb / wa), 5 * np.log(hb / ha)]
say(
    table(
        [
            ("centre", f"{xa * size:.1f}, {ya * size:.1f}", f"{xb * size:.1f}, {yb * size:.1f}"),
            ("width, height", f"{wa * size:.1f}, {ha * size:.1f}", f"{wb * size:.1f}, {hb * size:.1f}"),
        ],
        ["in pixels", f"anchor {row}", "the object"],
    )
)
back = boxes.decode(np.array(by_hand), anchor, net.detection["scales"])
say(
    f"Offsets by hand: {np.round(by_hand, 3).tolist()}; `boxes.encode`: "
    f"{boxes.encode(box, anchor, net.detection['scales']).round(3).tolist()}. Decoded they are the object's box again, "
    f"up to {abs(back - box).max():.0e}."
)

# %%
source(boxes.decode_numpy)

# %% [markdown]
# ## The loss of one anchor, by hand
#
# The network, which has learned nothing yet, says something of that anchor: four offsets and eleven logits. Two
# questions are asked. *Where?* The squared distance of the offsets from what they should be would let one bad anchor
# rule the batch, so beyond 1 it goes on as a straight line: **smooth L1**. *What?* The cross-entropy of lesson 6, over
# the ten classes and background, which is class 0.

# %%
said = net.forward(datasets.normalise(scenes.test.images[scene : scene + 1], **net.preprocessing))[0, row].astype(float)
label = int(here.labels[0]) + 1  # 0 is background
distance = np.abs(said[:4] - by_hand)
smooth = np.where(distance < 1, distance**2 / 2, distance - 0.5)
probability = np.exp(said[4:]) / np.exp(said[4:]).sum()
by_hand_loss = smooth.sum() - np.log(probability[label])
say(
    table(
        [
            (name, *(f"{v:.2f}" for v in values))
            for name, *values in zip("xywh", said[:4], by_hand, distance, smooth, strict=True)
        ],
        ["", "said", "should be", "distance", "smooth L1"],
    )
)
say(
    f"Where: {smooth.sum():.3f}. What: the class is {scenes.classes[label - 1]}, its probability "
    f"{probability[label]:.3f}, and -log of that {-np.log(probability[label]):.3f}. Together **{by_hand_loss:.3f}**."
)

# %% [markdown]
# **Before you run the next cell:** the gradient of the first offset is the slope of smooth L1. What can it be, at the
# least and at the most? And what is the gradient of background's logit, which is not the right class?

# %%
gradient = np.concatenate([np.clip(said[:4] - by_hand, -1, 1), probability - np.eye(11)[label]])
alone = said[None, None], Targets(np.array([[label]]), np.array(by_hand)[None, None])
off = abs(multibox.backward(*alone)[0, 0] - gradient).max()
say(
    f"By hand: {gradient[:4].round(2).tolist()} for the offsets, {gradient[4]:.3f} for background, "
    f"{gradient[4 + label]:.3f} for the right class. `multibox.forward` of this anchor alone: "
    f"{float(multibox.forward(*alone)):.3f}; its `backward` differs from the gradient by hand by {off:.0e}."
)

# %% [markdown]
# Now all anchors of the scene. Background has no box, so it is only asked *what*. But there is so much of it:

# %%
targets = matching.targets(labels, corners.astype(places.dtype), places, net.detection["scales"])
outputs = net.forward(datasets.normalise(scenes.train.images[:32], **net.preprocessing))
first = Targets(targets.classes[:32], targets.offsets[:32])
matched, chosen = first.classes > 0, multibox.chosen(outputs, first)
say(
    f"In a batch of 32 scenes {int(matched.sum()):,} of {matched.size:,} anchors are matched, "
    f"{matched.mean():.1%}. Whoever says *background* everywhere is right in {1 - matched.mean():.1%}."
)
say(
    f"The loss takes {int(chosen.sum()):,}: the matched ones, and three times as many of the others, those with the "
    "largest entropy."
)

# %% [markdown]
# These are the **hard negatives**. Easy background teaches nothing any more, and there is so much of it that its small
# losses would add up to more than those of the objects. The sum is divided by the number of matched anchors:

# %%
source(multibox.forward_numpy, multibox.choose_numpy)

# %% [markdown]
# ## Training
#
# The loop is that of lesson 6, with another loss. `matching.targets` makes of the objects of a batch what the anchors
# should say. Four epochs of 4,000 scenes, which are shifted and mirrored at random, and their boxes with them:

# %%
EPOCHS, BATCH, LR = (1, 16, 0.1) if SMALL else (4, 32, 0.1)
fast, opt = fused.convert(net), optim.SGD(net.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
rates = optim.one_cycle(LR, EPOCHS * (len(scenes.train) // BATCH))
rng, losses = np.random.default_rng(0), []
for _ in range(EPOCHS):
    for x, (y, where) in datasets.batches(
        scenes.train, BATCH, rng, **net.preprocessing, augment=datasets.AUGMENTATIONS["shift"]
    ):
        goal = matching.targets(y, where / size, places, net.detection["scales"])
        opt.set(**rates(len(losses)))
        losses.append(train.step(fast, opt, x, goal, loss=multibox))
say(f"{len(losses)} steps. The loss: {np.mean(losses[:10]):.2f} in the first ten, {np.mean(losses[-10:]):.2f} at last.")

# %% tags=["hide-input"]
fig, axis = figure(6, 2.6)
axis.plot(losses, color="lightgrey", lw=0.8)
window = max(1, len(losses) // 40)
axis.plot(np.convolve(losses, np.ones(window) / window, "valid"), color=BLUE)
axis.set(xlabel="step", ylabel="loss", ylim=(0, None))
show(fig, "The loss of each step and its running mean, falling quickly at first and slowly then")

# %% [markdown]
# ## From 756 rows to three boxes
#
# Inference reads the rows. Softmax without background gives the scores; rows with a score of at least 0.5 are decoded.
#
# **Before you run the next cell:** how many boxes will that be, for the scene with three objects?

# %%
outputs = fast.forward(datasets.normalise(scenes.test.images[scene : scene + 1], **net.preprocessing))[0]
scores = detect.scores(outputs[:, 4:], "softmax")
(rows,) = np.nonzero(scores.max(axis=1) >= 0.5)
decoded = boxes.decode(outputs[rows, :4], places[rows], net.detection["scales"])
(found,) = detect.read(net, outputs[None])
say(f"{len(rows)} boxes reach 0.5. After suppression there are {len(found.scores)}.")

# %% tags=["hide-input"]
fig, axes = figure(6.6, 3.2, ncols=2)
picture(axes[0], scenes.test.images[scene], f"{len(rows)} boxes of at least 0.5")
for box in decoded:
    frame(axes[0], box * size, VERMILION, width=0.8)
picture(axes[1], scenes.test.images[scene], f"after suppression: {len(found.scores)}")
for box, label, score in zip(*found, strict=True):
    frame(axes[1], box * size, VERMILION, f"{scenes.classes[label]} {score:.2f}")
show(fig, "The scene with all boxes of at least 0.5, several around each object, and with those left by suppression")

# %% [markdown]
# Several anchors find each object: matching has taught them to. **Non-maximum suppression** keeps the best: go through
# the boxes by falling score, and drop each one that overlaps a kept one of its class by more than 0.5.

# %%
source(suppression.suppress_numpy)

# %% [markdown]
# By hand, with three boxes in a row. Each overlaps the next one by more than a half, the first and the last do not.
#
# **Before you run the next cell:** which of them are kept if the scores are 0.9, 0.8, 0.7 from left to right? And if
# the middle one has 0.9?

# %%
row_of_three = np.array([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]])
say(f"Overlaps: `{boxes.overlap(row_of_three, row_of_three).round(2).tolist()}`")
for given in ([0.9, 0.8, 0.7], [0.7, 0.9, 0.8]):
    kept = suppression.suppress(row_of_three, np.array(given))
    say(f"Scores {given}: kept {[('left', 'middle', 'right')[k] for k in kept]}.")

# %% [markdown]
# In the first case the middle box is dropped, and so it drops nothing: the right one stays. In the second the middle
# one drops both. It is a rule of thumb, and it has a price: of two objects of one class that overlap by more than 0.5,
# one is never found.
#
# ## Average precision, by hand
#
# How good is a detector? That depends on the score from which on you believe it. Take five boxes of one class, by
# falling score. Four objects are there.

# %%
five = Found(np.zeros((5, 4)), np.zeros(5, np.int64), np.array([0.95, 0.9, 0.8, 0.7, 0.6]))
verdicts = np.array([1, 0, 1, 1, 0])
right = np.cumsum(verdicts)
found_share, right_share = right / 4, right / np.arange(1, 6)
say(
    table(
        [
            (f"{s:.2f}", ("false", "right")[v], int(r), f"{p:.2f}", f"{q:.2f}")
            for s, v, r, p, q in zip(five.scores, verdicts, right, right_share, found_share, strict=True)
        ],
        ["score", "the box is", "right so far", "precision", "recall"],
    )
)

# %% [markdown]
# **Precision** is the fraction of right ones among the boxes so far, **recall** the fraction of the objects that they
# have found. The precision at a recall is taken as the highest one *there or further right*: whoever can find three
# quarters with a precision of 0.75 need not accept less for finding half. **Average precision** is the area below that
# staircase.
#
# **Before you run the next cell:** compute it. The steps are at recalls of 0.25, 0.5 and 0.75.

# %%
curve = precision.Curve(right_share, found_share, five.scores)
on_paper = 0.25 * 1 + 0.25 * 0.75 + 0.25 * 0.75 + 0.25 * 0
say(
    f"0.25 · 1 + 0.25 · 0.75 + 0.25 · 0.75 + 0.25 · 0 = **{on_paper:.4f}**; `precision.average`: "
    f"{precision.average(curve):.4f}."
)
say(
    f"Two other definitions read the staircase at points: VOC 2007 at 11, {precision.average(curve, 'voc2007'):.4f}, "
    f"and COCO at 101, {precision.average(curve, 'coco'):.4f}. VOC 2010 has the area."
)

# %% tags=["hide-input"]
fig, axis = figure(4.6, 3)
axis.plot(found_share, right_share, "o--", color=VERMILION, label="after each box")
steps = np.maximum.accumulate(right_share[::-1])[::-1]
axis.stairs(steps[verdicts > 0], [0, *found_share[verdicts > 0]], baseline=0, color=BLUE, lw=2, label="interpolated")
axis.stairs(steps[verdicts > 0], [0, *found_share[verdicts > 0]], fill=True, color=BLUE, alpha=0.12)
axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.05))
axis.legend(fontsize=9, loc="lower left")
show(fig, "Precision against recall after each of the five boxes, and the interpolated staircase with its area")

# %% [markdown]
# The object that was not found costs a quarter: the curve ends at a recall of 0.75. The false box at the end costs
# nothing, and the one in second place does. What counts is the *order*.
#
# ## What the trained detector does
#
# Now on the test scenes. A box is right if it overlaps an object of its class by at least 0.5 that no box before it has
# found. The mean over the classes is **mAP@0.5**. For average precision the low scores count, too, so everything above
# 0.01 is read.

# %%
everything = [
    one._replace(boxes=one.boxes * size)
    for start in range(0, len(scenes.test), 100)
    for one in detect.detect(fast, scenes.test.images[start : start + 100], least=0.01)
]
by_class = precision.average_precision(everything, truth, 10)
say(
    f"**mAP@0.5 {np.nanmean(by_class):.1%}** on {len(truth)} scenes. With an overlap of 0.75 asked for: "
    f"{precision.mean_average_precision(everything, truth, 10, overlap=0.75):.1%}."
)
order = np.argsort(-by_class)
say(table([(scenes.classes[k], f"{by_class[k]:.1%}") for k in order], ["class", "average precision"]))

# %% [markdown]
# **Before you run the next cell:** does it find small objects worse, or large ones? Remember what the anchors were for.

# %%
SIZES = {"below 16 pixels": (0, 16), "16 to 32": (16, 32), "32 and more": (32, 96)}  # as in the report of a run
rows = []
for name, (low, high) in SIZES.items():
    areas = (low**2, high**2 - 1)  # areas of objects are whole numbers of pixels, so that none counts twice
    counted = precision.judge(everything, truth, 10, sizes=areas).objects.sum()
    share = precision.mean_average_precision(everything, truth, 10, sizes=areas)
    rows.append((name, int(counted), f"{share:.1%}"))
say(table(rows, ["size (root of the area)", "objects", "mAP@0.5"]))

# %% [markdown]
# One number hides what went wrong. Look at the boxes that one would show to somebody, those with a score of at least
# 0.5, and give each false one a name:
#
# - *found twice*: it overlaps an object of its class by 0.5, but another box has found that already;
# - *not there exactly*: it overlaps one of its class by 0.1 to 0.5;
# - *another class*: it is where an object is, by 0.5, and says the wrong class;
# - *none of these*: there is little of an object of another class, or nothing.
#
# **Before you run the next cell:** which of the four is the most frequent?


# %%
def name_of(n, one, there, taken):
    """Return what the n-th box found in an image is, and note in `taken` which objects are found."""
    if not len(there.labels):
        return "none of these"
    shared = boxes.overlap(one.boxes[n : n + 1], there.boxes)[0]
    same = np.where(there.labels == one.labels[n], shared, 0)
    if same.max() >= 0.5:
        again = int(same.argmax()) in taken
        taken.add(int(same.argmax()))
        return "found twice" if again else "right"
    if shared.max() >= 0.5:
        return "another class"
    return "not there exactly" if same.max() >= 0.1 else "none of these"


names, seen, confused, scene_names = [], [], [], []
for one, there in zip(everything, truth, strict=True):
    taken: set[int] = set()
    likely = np.flatnonzero(one.scores >= 0.5)
    scene_names.append([name_of(n, one, there, taken) for n in likely])
    names += scene_names[-1]
    for n, name in zip(likely, scene_names[-1], strict=True):
        if name == "another class":
            is_one = there.labels[boxes.overlap(one.boxes[n : n + 1], there.boxes)[0].argmax()]
            confused.append((scenes.classes[is_one], scenes.classes[one.labels[n]]))
    others = boxes.overlap(there.boxes, there.boxes) - np.eye(len(there.labels))
    seen += [(k in taken, others[k].max(initial=0) > 0.1) for k in range(len(there.labels))]

kinds = ["right", "another class", "not there exactly", "found twice", "none of these"]
say(
    table(
        [(k, names.count(k), f"{names.count(k) / max(len(names), 1):.1%}") for k in kinds],
        ["the box is", "boxes", "share"],
    )
)
got, crowded = np.array(seen).T
touching = np.mean(got[crowded]) if crowded.any() else 0
say(
    f"Of {len(got):,} objects {np.mean(got):.0%} are found: {np.mean(got[~crowded]):.0%} of those that stand alone, "
    f"and {touching:.0%} of those whose box overlaps another one's by more than 0.1."
)
judged = precision.judge(everything, truth, 10)
reached = np.sum(judged.verdicts == precision.RIGHT) / judged.objects.sum()
say(
    f"With all scores from 0.01 on it would be {reached:.0%}, and of {len(judged.scores):,} boxes "
    f"{np.mean(judged.verdicts == precision.FALSE):.0%} would be false."
)
pairs = sorted(set(confused), key=confused.count, reverse=True)[:3]
say(
    "The classes confused most often: " + (", ".join(f"{b} for {a} ({confused.count((a, b))})" for a, b in pairs) + ".")
)

# %% tags=["hide-input"]
worst = sorted(range(len(truth)), key=lambda n: (scene_names[n].count("right") - len(truth[n].labels), n))[:8]
fig, axes = figure(7.8, 4.2, nrows=2, ncols=4)
COLOUR = {"right": GREEN, "another class": VERMILION, "found twice": PURPLE, "not there exactly": ORANGE}
for axis, n in zip(axes.flat, worst, strict=True):
    picture(axis, scenes.test.images[n])
    for box in truth[n].boxes:
        frame(axis, box, "white", style=":", width=1.2)
    likely = np.flatnonzero(everything[n].scores >= 0.5)
    for k, name in zip(likely, scene_names[n], strict=True):
        frame(axis, everything[n].boxes[k], COLOUR.get(name, BLACK), scenes.classes[everything[n].labels[k]])
fig.suptitle(
    "The eight scenes of which most is missed. Dotted: what is there. Found: green right, red another class,\n"
    "orange not there exactly, violet twice, black none of these", fontsize=10,
)  # fmt: skip
show(
    fig,
    "Eight crowded scenes with dotted true boxes and the boxes found: green right ones, red ones of another class, "
    "violet ones found twice, orange ones that are off, black ones that are none of these",
)

# %% [markdown]
# These are the scenes of which it misses most, so do not judge it by them: they are crowded, and there are small
# objects and shapes of which too little is visible to tell what they are. Most of the objects that are missed do have
# a box of the right class and place, with a lower score. But among boxes of such scores there are several classes on
# each object, and about as often as not another class is ahead. Where to draw the line at 0.5 is your choice, not the
# detector's; average precision is measured without such a line. `mbnp train --model ssd-mobilenet-v1-small` trains the
# same network for longer.
#
# ## Faces in photographs
#
# The same code runs a detector that others have trained. The npm package `@vladmandic/face-api` (1.7.15, MIT licence)
# carries an SSD on MobileNetV1 that finds faces: 5.6 MB of weights, with 8 bits a number. `mbnp` reads its format, and
#
#     npm pack @vladmandic/face-api@1.7.15
#     tar -xf vladmandic-face-api-1.7.15.tgz
#     mbnp detect PHOTOGRAPH --checkpoint package/model
#
# draws boxes around the faces. The cell below does so for every photograph (`*.jpg`) in the folder that the variable
# `MBNP_FACES` names, with the weights in that folder. This page was made without.

# %%
folder = os.environ.get("MBNP_FACES")
if folder:
    faces = fused.convert(weights.load(folder))
    for photo in sorted(Path(folder).glob("*.jpg")):
        image = read_whole(photo)
        (found,) = whole.find(faces, [image])
        fig, axis = figure(5, 5 * image.shape[0] / image.shape[1])
        picture(axis, image, f"{photo.name}: {len(found.scores)}")
        for box, score in zip(found.boxes, found.scores, strict=True):
            frame(axis, box, VERMILION, f"{score:.2f}")
        show(fig, f"{photo.name} with a box around each face that was found")
else:
    say("`MBNP_FACES` names no folder: no photographs.")

# %% [markdown]
# ## Questions
#
# 1. The detector has 756 anchors for 96x96 pixels. How many would it have for 192x192, and which objects would it then
#    see better, if the anchors' shares stay the same?
# 2. Why is the last size of box the *logarithm* of a ratio, and what would the network have to be kept from otherwise?
# 3. An image without objects has no matched anchors, so in this loss it has no negatives either. What does the network
#    learn from it, and what could you change?
# 4. Two anchors predict the same box for the same star, one says "star" with 0.9, one "ring" with 0.8. What does
#    suppression by class leave, and what does softmax have to do with it?
# 5. You add 100 false boxes with scores below all others. What happens to the average precision? And to precision at a
#    score of 0.5?
# 6. A detector is trained for boxes that overlap by 0.5 and measured at 0.75. Which part of the loss would you weigh
#    more?
# 7. A friend computes mAP with the true number of objects replaced by the number found. When is theirs higher?
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/14.py`](exercises/14.py). Fill them in, then run
#
#     mbnp grade tutorials/exercises/14.py
#
# **1. `overlaps`**: intersection over union of every box with every other one.
#
# <!-- mbnp/grading/lessons/hints/14.md: overlaps -->
#
# **2. `box_coding`**: boxes as offsets from anchors, and back.
#
# <!-- mbnp/grading/lessons/hints/14.md: box_coding -->
#
# **3. `suppress`**: non-maximum suppression, class by class.
#
# <!-- mbnp/grading/lessons/hints/14.md: suppress -->
#
# **4. `average_precision`**: the area below the interpolated curve.
#
# <!-- mbnp/grading/lessons/hints/14.md: average_precision -->
