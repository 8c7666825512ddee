# %% [markdown]
# # 12. Weights from elsewhere
#
# **Somebody else has trained the network that you need. Their file loads without an error. How do you know
# that the weights do in your network what they did in theirs?**
#
# At the end you can convert weights from PyTorch, find the first layer at which two networks differ, name the
# three conventions that no file of weights contains, and export a network as ONNX. You need lesson 5; lesson
# 4 helps. It takes about half an hour.

# %%
import dataclasses
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
from lesson import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    figure,
    measured_here,
    say,
    show,
    source,
    table,
)
from matplotlib.patches import Rectangle

from mbnp import datasets, fused, models, train, weights
from mbnp.errors import MbnpError
from mbnp.layers import BatchNorm, Depthwise, Pointwise, ReLU
from mbnp.ops import window
from mbnp.weights import layouts

TORCH = importlib.util.find_spec("torch") is not None  # the lesson also runs without it
ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))  # and without these
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)  # for the files of this lesson; deleted when Python ends

measured_here()

# %% [markdown]
# ## The order of the axes
#
# A weight file is a list of names and arrays. The first thing that can go wrong is the order of the axes.
# PyTorch stores the weight of a convolution as (O, I, K, K): output channel, input channel, row, column. mbnp
# stores it as (K, K, I, O), because its images have their channels last.
#
# Take 2 output channels, 3 input channels and a kernel of 2x2, and let each number be its own index: the
# number 1201 is at output 1, input 2, row 0, column 1.

# %%
O, I, K = 2, 3, 2
theirs = np.array(
    [[[[1000 * o + 100 * i + 10 * u + v for v in range(K)] for u in range(K)] for i in range(I)] for o in range(O)]
)

transposed = theirs.transpose(2, 3, 1, 0)  # reorders the axes: row, column, input, output
reshaped = theirs.reshape(K, K, I, O)  # keeps the order in memory

# %% [markdown]
# Both are (2, 2, 3, 2) now. Both would load.
#
# **Before you run the next cell:** look at `[0, 1]`, the tap in row 0 and column 1, for all inputs and outputs.
# How must the last two digits of all its numbers read? Do they, in `reshaped`?


# %%
def as_text(numbers):
    return "\n".join("  ".join(f"{n:04d}" for n in row) for row in numbers)


say(f"`transposed[0, 1]`: a row for each input, a column for each output.\n```text\n{as_text(transposed[0, 1])}\n```")
say(f"`reshaped[0, 1]`:\n```text\n{as_text(reshaped[0, 1])}\n```")
right = np.mean(reshaped == transposed)
say(
    f"In `transposed` every number is from row 0, column 1. In `reshaped` the taps, inputs and outputs are shuffled: "
    f"{right:.0%} of its numbers are where they belong, {np.sum(reshaped == transposed)} of {transposed.size}. "
    f"The shapes are the same."
)

# %% [markdown]
# `transpose` reorders axes. `reshape` divides the same sequence of numbers differently. Remember which one
# you need when a shape does not fit. mbnp has the axes of every layer's weight in one table, with h and w for
# the kernel's rows and columns, i and o for the channels in and out, c for channels that do not mix, and 1
# for an axis of length one. One function reads it, for every file format:

# %%
say(
    table(
        [(kind.__name__, *(f"`{axes[name]}`" for name in axes)) for kind, axes in layouts.AXES.items()],
        ["layer", "mbnp", "PyTorch", "Keras"],
    )
)
source(layouts.convert)

# %% [markdown]
# ## A trained network
#
# Random weights would be enough to compare numbers, but you want to see what a mistake does to predictions.
# So here is a small network of the article's kind, half as wide, that learns the ten shapes in a few seconds
# (lesson 6).

# %%
data = datasets.load("shapes10")
if SMALL:
    cut = {
        name: datasets.dataset.Split(*(a[:320] for a in (s.images, s.labels)))
        for name, s in (("train", data.train), ("test", data.test))
    }
    data = dataclasses.replace(data, **cut)

trained = models.mobilenet_v1_small(width_mult=0.5, seed=0)
history = train.fit(fused.convert(trained), data, train.Recipe(epochs=1 if SMALL else 3, seed=0))

images = datasets.normalise(data.test.images, data.mean, data.std)
labels = data.test.labels
x = images[: 20 if SMALL else 100]  # enough to compare numbers


def logits_of(net):
    """Return the logits of all test images. The fast engine (lesson 10) keeps padding, eps and activation."""
    return fused.convert(net)(images)


def accuracy(logits):
    return float(np.mean(logits.argmax(axis=1) == labels))


say(f"Accuracy on {len(labels):,} test images: **{accuracy(logits_of(trained)):.1%}**.")

# %% [markdown]
# Now we export it to PyTorch, and from here on PyTorch is "elsewhere": a class that somebody else wrote, and
# its weights in a `.pt` file, are all that you have. (If PyTorch is not installed, the lesson uses mbnp's own
# network in float64 instead.)

# %%
if TORCH:
    import torch
    from torch import nn

    def separable(c_in, c_out, stride):
        return nn.Sequential(
            nn.Conv2d(c_in, c_in, 3, stride, padding=1, groups=c_in, bias=False),
            nn.BatchNorm2d(c_in),
            nn.ReLU(),
            nn.Conv2d(c_in, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
        )

    class Theirs(nn.Sequential):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
            channels = 16
            blocks = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2)]
            for i, (c_out, stride) in enumerate(blocks, start=1):
                self.add_module(f"conv2_{i}", separable(channels, c_out, stride))
                channels = c_out
            self.pool = nn.AvgPool2d(2)
            self.flatten = nn.Flatten()
            self.fc = nn.Linear(256, 10)

    elsewhere = Theirs()
    elsewhere.load_state_dict(weights.to_torch(trained), strict=False)  # PyTorch also counts batches
    elsewhere.eval()
    torch.save(elsewhere.state_dict(), folder / "theirs.pt")

# %% [markdown]
# ## Loading
#
# A *state dict* is PyTorch's term for the list of names and arrays. A name is the path to a layer, followed
# by the name of the array. `weights.load` looks at names and shapes, recognises the architecture, builds it,
# and checks every single array before it copies the first. (It also reads `.safetensors`. A `.pt` file is a
# pickle, a program that creates objects and could do anything; mbnp opens it only with PyTorch's weights-only
# loader.)

# %%
if TORCH:
    state = torch.load(folder / "theirs.pt", weights_only=True)
    net = weights.load(folder / "theirs.pt")
    rows = []
    for name in (
        "conv1.0.weight",
        "conv1.0.bias",
        "conv2_1.0.weight",
        "conv2_1.1.running_var",
        "conv2_1.3.weight",
        "fc.weight",
    ):
        rows.append((f"`{name}`", str(tuple(state[name].shape)), str(net.state()[name].shape)))
    say(table(rows, ["name", "PyTorch", "mbnp"]))
    say(
        f"{len(state)} arrays in the file, {len(net.state())} in mbnp's network: PyTorch also counts batches, "
        f"{len(state) - len(net.state())} times."
    )
else:
    net = trained
    say("PyTorch is not installed here; `pip install -e '.[tutorials]'` brings it.")

# %% [markdown]
# All names fit, all shapes fit. Is it the same network? Lesson 5 ended with a weight that was transposed the
# wrong way and whose shape still fitted. Only the activations can prove it: the output of every layer, theirs
# and yours, for the same images.
#
# In PyTorch you record them with a *hook*, a function that is called with each output of a layer. mbnp has
# `net.activations`. Their feature maps are (N, C, H, W), so they are transposed before they are compared.

# %%
layers = dict(net.leaves())  # every layer that is no container, by name
if TORCH:
    recorded = {}
    for name in layers:
        elsewhere.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: recorded.update({name: output.numpy()})
        )
    with torch.no_grad():
        elsewhere(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    true = {name: y.transpose(0, 2, 3, 1) if y.ndim == 4 else y for name, y in recorded.items()}
else:
    exact = models.mobilenet_v1_small(width_mult=0.5, dtype=np.float64)
    exact.load_state(trained.state())
    true = {name: y for name, y in exact.activations(x.astype(np.float64)).items() if name in layers}


def difference(ours, theirs):
    """Return the largest difference of two arrays, relative to the largest absolute value of theirs."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def from_the_start(net):
    """Return the difference of each layer's output from theirs, when both begin with the same images."""
    ours = net.activations(x)
    return {name: difference(ours[name], theirs) for name, theirs in true.items()}


def first_wrong(differences, tolerance=1e-4):
    return next((name for name, d in differences.items() if not d <= tolerance), "none")  # NaN is wrong, too


loaded = from_the_start(net)
assert first_wrong(loaded) == "none"
say(
    f"{len(loaded)} layers compared. The largest difference is {max(loaded.values()):.0e} of the largest number, "
    f"at `{max(loaded, key=loaded.get)}`."
)

# %% [markdown]
# That is rounding: float32 has about seven digits, and the two do not round in the same places. Remember what
# this looks like: a flat line, a little above $10^{-7}$. This is what *the same network* looks like.
#
# Two things about the tolerance. It is relative to the largest absolute value of a layer's output, since outputs
# near 0 have lost digits that nobody misses. And `d > tolerance` would find no NaN: every comparison with NaN is
# false, so that the worst output of all would count as right. `not d <= tolerance` finds it.
#
# ## The same weights, three mistakes
#
# Many MobileNets that you find are TensorFlow's, which has three conventions of its own, and weights are
# converted between the two every day. Suppose your weights are from PyTorch, and the network was built from a
# TensorFlow tutorial (or the other way round: it is the same mistake).
#
# | | PyTorch | Keras's MobileNet |
# | --- | --- | --- |
# | padding of a 3x3 window at stride 2, even size | (1, 1): a row of zeros on either side | (0, 1): only at the end |
# | eps in $\sqrt{\sigma^2 + \text{eps}}$ of BatchNorm | 1e-5 | 1e-3 |
# | activation | ReLU | ReLU6, $\min(\max(x, 0), 6)$ |
#
# None of them is an array. So none of them is in the file.


# %%
def built(padding=False, eps=False, relu6=False):
    """Build the network with their weights and some of TensorFlow's conventions."""
    other = models.mobilenet_v1_small(width_mult=0.5)
    for _, layer in other.leaves():
        if padding and isinstance(layer, Depthwise) and layer.options["stride"] == 2:
            layer.options["padding"] = "same"
        if eps and isinstance(layer, BatchNorm):
            layer.eps = 1e-3
        if relu6 and isinstance(layer, ReLU):
            layer.max_value = 6.0
    if TORCH:
        weights.from_torch(other, state)
    else:
        other.load_state(trained.state())
    return other


mistakes = {"padding (0, 1)": built(padding=True), "eps 1e-3": built(eps=True), "ReLU6": built(relu6=True)}
say(f"{len(mistakes)} networks built; in all of them every name and shape fits, and there is no error.")

# %% [markdown]
# **Before you run the next cell:** strides of 2 are in the blocks 2, 4, 6 and 8. There is BatchNorm after
# every convolution, and ReLU after every BatchNorm. For each of the three mistakes: which is the first layer
# whose output is wrong? And which mistake costs the most accuracy?

# %%
curves = {name: from_the_start(other) for name, other in mistakes.items()}
logits = {name: logits_of(other) for name, other in (("none", net), *mistakes.items())}
predictions = logits["none"].argmax(axis=1)
rows = [("none", "none", f"{loaded['fc']:.0e}", f"{1:.1%}", f"{accuracy(logits['none']):.1%}")]
for name in mistakes:
    same = np.mean(logits[name].argmax(axis=1) == predictions)
    rows.append(
        (
            name,
            f"`{first_wrong(curves[name])}`",
            f"{curves[name]['fc']:.2g}",
            f"{same:.1%}",
            f"{accuracy(logits[name]):.1%}",
        )
    )
say(table(rows, ["mistake", "first wrong layer", "error of the logits, relative", "same prediction", "accuracy"]))

# %% tags=["hide-input"]
names = list(true)
starts = [k for k, name in enumerate(names) if k == 0 or name.split(".")[0] != names[k - 1].split(".")[0]]


def layer_axis(axes):
    """Set a log scale for differences, and the blocks' names along the layers."""
    axes.set(yscale="log", ylim=(3e-9, 5), xlim=(-1, len(names)), ylabel="difference (1 = the largest number)")
    blocks = [names[k].split(".")[0] for k in starts]
    axes.set_xticks(starts, [block if block != "flatten" else "" for block in blocks], rotation=45, ha="right")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)


fig, axes = figure(8.6, 3.9)
lines = [("padding (0, 1)", VERMILION, "s"), ("ReLU6", PURPLE, "^"), ("eps 1e-3", BLUE, "o")]
for name, colour, marker in lines:
    axes.plot(np.maximum(list(curves[name].values()), 1e-8), marker, ls="-", ms=3.5, lw=1, color=colour, label=name)
axes.plot(np.maximum(list(loaded.values()), 1e-8), "-", color=BLACK, lw=1.5, label="no mistake")
layer_axis(axes)
axes.set_title("Difference of each layer's output from theirs (0 is drawn at 1e-8)")
axes.legend(loc="lower right", ncols=2)
show(
    fig,
    "Difference from the true network, layer by layer on a log scale: the correct one stays near 1e-7, the others "
    "leave it at one layer and never come back",
)

# %% [markdown]
# Each curve follows the black one, leaves it at one layer, and never comes back. The mistake is in the layer
# where it leaves. Look at the size of the differences, too:

# %%
pad_loss = accuracy(logits["none"]) - accuracy(logits["padding (0, 1)"])
quiet = {name: np.sum(logits[name].argmax(axis=1) != predictions) for name in ("eps 1e-3", "ReLU6")}
variance = min(float(layer.running_var.value.min()) for layer in layers.values() if isinstance(layer, BatchNorm))
peaks = {name: float(true[name].max()) for name, layer in layers.items() if isinstance(layer, ReLU)}
over = [name for name, peak in peaks.items() if peak > 6]
say(
    f"""
    - With the wrong **padding** everything is right up to the first stride of 2. It costs {100 * pad_loss:.0f}
      percentage points of accuracy. You would notice, and might still blame the training.
    - The wrong **eps** shows at the very first BatchNorm, and changes {quiet["eps 1e-3"]} of {len(labels):,}
      predictions. The smallest running variance in this network is {variance:.3f}; to it, 1e-3 adds
      {1e-3 / variance:.0%}. For a variance of 1 the difference is negligible.
    - **ReLU6** is right as long as nothing is larger than 6. The first ReLU's largest output is
      {next(iter(peaks.values())):.1f}, the largest of all is {max(peaks.values()):.1f}; {len(over)} of {len(peaks)}
      ReLUs exceed 6{f", `{over[0]}` first" if over else ""}. It changes {quiet["ReLU6"]} predictions. With other
      images it may be none, or many.
    """
)

# %% [markdown]
# The last two are the dangerous ones. A network that is a little worse than its paper looks like a network
# that was trained a little worse. The accuracy will not show the mistake; the curve does, with only a few
# images.
#
# ## Off by one pixel
#
# Why does the padding cost so much? Draw which pixels the windows cover. One row of eight pixels, a window of
# three, stride 2, four outputs:

# %% tags=["hide-input"]
fig, panels = figure(8.6, 3.6, nrows=3, sharex=True)
for axes, (title, size, (before, after)) in zip(
    panels,
    [
        ("PyTorch, 8 pixels", 8, (1, 1)),
        ("SAME, 8 pixels", 8, window.same_padding(8, 3, 2)),
        ("SAME, 7 pixels", 7, window.same_padding(7, 3, 2)),
    ],
    strict=True,
):
    centres = list(range(1 - before, size + after - 1, 2))
    for p in range(-before, size + after):
        inside = 0 <= p < size
        colour = ORANGE if p in centres else "white" if inside else "#d0d0d0"
        axes.add_patch(Rectangle((p, 0), 1, 1, facecolor=colour, edgecolor="#888888"))
        axes.text(
            p + 0.5,
            0.5,
            str(p) if inside else "0",
            ha="center",
            va="center",
            color=BLACK if inside else "#666666",
        )
    for k, centre in enumerate(centres):
        height = 1.3 + 0.35 * (k % 2)
        axes.plot([centre - 0.9, centre + 1.9], [height] * 2, color=(BLUE, SKY)[k % 2], lw=4, solid_capstyle="butt")
    axes.text(9.4, 0.5, f"{title}\n({before}, {after}), centres {', '.join(map(str, centres))}", va="center")
    axes.set(xlim=(-1.2, 15), ylim=(-0.1, 1.9), aspect="equal")
    axes.axis("off")
show(
    fig,
    "Windows of three at stride 2 over a row of pixels: PyTorch's are centred on 0, 2, 4, 6 and TensorFlow's SAME on "
    "1, 3, 5, 7 for eight pixels; for seven pixels both are centred on 0, 2, 4, 6",
)

# %% [markdown]
# Grey squares are the zeros of the padding, blue bars are the windows, orange squares their centres.
# PyTorch's windows are centred on the even pixels, those of SAME on the odd ones: the whole grid is shifted
# by a pixel. The third row is SAME with an odd size, and there it equals PyTorch's padding.
#
# SAME makes $O = \lceil H / S \rceil$ outputs, and adds as many zeros as the last window needs, the odd one
# at the end:
#
# $$P = \max((O - 1) S + K - H, 0)$$
#
# so $\lfloor P/2 \rfloor$ zeros go before and the rest after.

# %%
source(window.same_padding)

# %% [markdown]
# **Before you run the next cell:** in which rows of the table is SAME equal to PyTorch's (1, 1)?

# %%
rows = []
for size, stride in ((32, 1), (32, 2), (33, 2), (224, 2), (225, 2), (7, 2)):
    pair = window.same_padding(size, 3, stride)
    rows.append((size, stride, str(pair), "the same" if pair == (1, 1) else "**a pixel off**"))
say(table(rows, ["size", "stride", "SAME", "compared with PyTorch's (1, 1)"]))

jump, shifts = 1, []
for _, layer in net.leaves():
    if isinstance(layer, Depthwise) and layer.options["stride"] == 2:
        shifts.append(jump)
        jump *= 2
say(
    f"""
    And the shifts add up. A pixel of a deeper feature map covers many pixels of the image (lesson 5's jump), so the
    {len(shifts)} strides of 2 shift the grid by {" + ".join(map(str, shifts))} = **{sum(shifts)} pixels** of an image
    that has 32. With SAME, and with these weights, the last feature map sees an image that is shifted by nearly half
    of its width.
    """
)

# %% [markdown]
# There are two pitfalls in this table. At odd sizes the two paddings agree: a test with an image of 33 or 225
# pixels passes. And Keras's MobileNet has an explicit padding of (0, 1) before its depthwise convolutions, so
# that *it* differs from SAME at odd sizes.
#
# ## All at once
#
# A network from a real tutorial has all three mistakes. The curve from the start shows only the first of
# them; everything after it is wrong anyway. So change the test: give each layer **their** input, and compare
# only what the layer itself does.


# %%
def one_by_one(net):
    """Return the difference of each layer's output from theirs, when it gets their input."""
    found, before = {}, x
    for name, layer in net.leaves():
        found[name] = difference(layer(before), true[name])
        before = true[name].astype(np.float32)
    return found


everything = built(padding=True, eps=True, relu6=True)
local, whole = one_by_one(everything), from_the_start(everything)
guilty = [name for name, d in local.items() if d > 1e-5]
say(
    f"From the start, {sum(d > 1e-5 for d in whole.values())} of {len(whole)} layers are off by more than 1e-5. "
    f"One by one, {len(guilty)}."
)

# %% [markdown]
# **Before you run the next cell:** which kinds of layers will stand out, and which will be at the level of
# rounding?

# %% tags=["hide-input"]
fig, axes = figure(8.6, 3.9)
axes.plot(np.maximum(list(whole.values()), 1e-8), "-", color="#999999", lw=1, label="from the start")
kinds = [
    ("Depthwise", VERMILION, "s", "depthwise"),
    ("BatchNorm", BLUE, "o", "BatchNorm"),
    ("ReLU", PURPLE, "^", "ReLU"),
    ("", GREEN, "D", "others"),
]
drawn = [kind for kind, *_ in kinds]
for kind, colour, marker, label in kinds:
    chosen = [
        k
        for k, name in enumerate(names)
        if (type(layers[name]).__name__ if type(layers[name]).__name__ in drawn else "") == kind
    ]
    axes.plot(chosen, [max(local[names[k]], 1e-8) for k in chosen], marker, ls="", ms=5, color=colour, label=label)
layer_axis(axes)
axes.set_title("Each layer by itself, on their input (0 is drawn at 1e-8)")
axes.legend(loc="center right", bbox_to_anchor=(0.97, 0.36), ncols=3)
show(
    fig,
    "Each layer given the true input: four depthwise layers, every BatchNorm and most ReLUs stand out, all others "
    "lie at rounding, while the curve from the start is high everywhere",
)

# %%
rows = []
for kind in (Depthwise, Pointwise, BatchNorm, ReLU):
    of_kind = [name for name, layer in layers.items() if isinstance(layer, kind)]
    found = [name for name in of_kind if name in guilty]
    rows.append(
        (
            kind.__name__,
            f"{len(found)} of {len(of_kind)}",
            f"{max(local[name] for name in of_kind):.1g}",
            ", ".join(f"`{name}`" for name in found[:4]) + (", ..." if len(found) > 4 else ""),
        )
    )
say(table(rows, ["kind", "off", "largest", "which"]))

# %% [markdown]
# There they are: the depthwise layers of stride 2 and no others, each BatchNorm, the ReLUs whose input
# exceeds 6. The pointwise layers are right. This test finds a wrong axis, a missing bias, a forgotten
# transpose and a wrong eps alike. Write it whenever you convert weights, before you look at any accuracy.
#
# mbnp does not guess: `weights.load` on a Keras file builds the network with Keras's conventions. And it
# refuses to write a `.pt` file of the network with the mistakes, because the file cannot contain those
# conventions:

# %%
if TORCH:
    try:
        weights.save(everything, folder / "mine.pt")
    except MbnpError as error:
        say(f"`MbnpError: {str(error).replace(str(folder) + '/', '')}`")

# %% [markdown]
# ## A file that says what it means
#
# ONNX is a file format that contains the *graph*: the order of the operations, the padding and eps of each,
# and the weights. `weights.save` writes one. You choose the order of the input's axes, and whether each
# BatchNorm is folded into the convolution before it (lessons 4 and 10). Then ONNX Runtime, which knows
# nothing about mbnp, runs the file.
#
# **Before you run the next cell:** there are 17 convolutions here and 17 BatchNorms. What does folding do to the
# number of nodes, and to the file's size?

# %%
if ONNX:
    import onnx
    import onnxruntime

    def run(path, inputs):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: inputs})[0]

    expected, rows = net(x), []
    for layout in ("NCHW", "NHWC"):
        inputs = x if layout == "NHWC" else x.transpose(0, 3, 1, 2).copy()
        for fold in (False, True):
            path = folder / f"{layout}-{'folded' if fold else 'kept'}.onnx"
            weights.save(net, path, layout=layout, fold=fold)
            off = difference(run(path, inputs), expected)
            assert off < 1e-4
            rows.append(
                (
                    layout,
                    "folded" if fold else "kept",
                    len(onnx.load(path).graph.node),
                    round(path.stat().st_size / 1024),
                    f"{off:.0e}",
                )
            )
    say(table(rows, ["input", "BatchNorm", "nodes", "kB", "difference from mbnp"]))
else:
    say("onnx and onnxruntime are not installed here; `pip install -e '.[tutorials]'` brings them.")

# %% [markdown]
# Most of the file is weights, and a BatchNorm has few of them. But each removed node saves a pass through
# memory (lesson 10). The order of the axes costs one node, a transpose at the input.
#
# And the three conventions? Export the right network and the one with all mistakes, with BatchNorm kept, and
# look into the files:

# %%
if ONNX:
    weights.save(everything, folder / "everything.onnx", fold=False)
    graphs = [
        {node.name: node for node in onnx.load(folder / name).graph.node}
        for name in ("NCHW-kept.onnx", "everything.onnx")
    ]

    def describe(node):
        """Return a node's operation, with its padding and eps."""
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        chosen = {key: values[key] for key in ("pads", "auto_pad", "epsilon") if key in values}
        text = [
            f"{key} {v.decode() if isinstance(v, bytes) else f'{v:.0e}' if isinstance(v, float) else v}"
            for key, v in chosen.items()
        ]
        return f"`{' '.join([node.op_type, *text])}`"

    rows = [
        (f"`{name}`", *(describe(graph[name]) for graph in graphs)) for name in ("conv2_2.0", "conv2_2.1", "conv2_2.2")
    ]
    say(table(rows, ["node", "the right network", "all mistakes"]))

# %% [markdown]
# All three are there. That is the difference between a list of arrays and a network. So importing the file
# again is safe:

# %%
if ONNX:
    again, wrong = weights.load(folder / "NCHW-folded.onnx"), weights.load(folder / "everything.onnx")
    left = sum(isinstance(layer, BatchNorm) for _, layer in again.leaves())
    say(
        f"""
        Imported again, the folded network has {left} BatchNorms, logits that differ by
        {difference(again(x), expected):.0e}, and an accuracy of {accuracy(logits_of(again)):.1%}. The one with all
        mistakes comes back with all of them: its logits differ by {difference(wrong(x), everything(x)):.0e} from those
        before the export, with an accuracy of {accuracy(logits_of(wrong)):.1%}.
        """
    )

# %% [markdown]
# One convention is still missing: the preprocessing of the *image*. mbnp writes mean, standard deviation and
# class names into its own files and into ONNX's metadata. Other people's files often do not contain them, and
# then you must ask.
#
# ## Questions
#
# 1. A network was trained on images of `x / 127.5 - 1`, and you feed it `(x / 255 - mean) / std`. Which of this
#    lesson's plots shows it, and at which layer?
# 2. You feed BGR images to a network that was trained on RGB. Correct it without changing the images: which
#    array do you change, and how?
# 3. Your weights are Keras's, your network is PyTorch's, and you may train for one more epoch. Which of the
#    three mistakes will the training compensate?
# 4. `everything` was compared with 100 images. Why is one enough for padding and eps, and maybe not for ReLU6?
# 5. Why is the flat line of the right network at about 1e-7 and not at 0? Where would it be in float64? And
#    what would you think of a line at 1e-3 that is just as flat?
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/12.py`](exercises/12.py). Fill them in, then run
#
#     mbnp grade tutorials/exercises/12.py
#
# **1. `weight_from_torch`**: the weight of a standard or a depthwise convolution, from PyTorch's layout to mbnp's.
#
# <!-- mbnp/grading/lessons/hints/12.md: weight_from_torch -->
#
# **2. `same_padding`**: how many zeros TensorFlow's SAME puts before and after a row of pixels.
#
# <!-- mbnp/grading/lessons/hints/12.md: same_padding -->
#
# **3. `first_difference`**: the first layer at which two networks differ.
#
# <!-- mbnp/grading/lessons/hints/12.md: first_difference -->
