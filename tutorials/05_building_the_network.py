# %% [markdown]
# # 5. Building the network
#
# **Fifty lines of PyTorch, or a list of eight pairs of numbers: what exactly is the network that mbnp began
# with, and do both compute the same numbers?**
#
# At the end you can turn a PyTorch class into layers that you have written yourself, follow the shapes
# through it, say how much of the image a number in the last feature map depends on, and count parameters and
# multiplications by hand. It takes about half an hour.

# %%
import importlib.util

import numpy as np
from lesson import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, figure, say, show, source, table
from matplotlib.patches import Rectangle

from mbnp import cost, models, weights
from mbnp.errors import MbnpError
from mbnp.layers import AveragePool, BatchNorm, Conv, Depthwise, Flatten, Linear, Pointwise, ReLU, Sequential
from mbnp.models.article import _network
from mbnp.models.blocks import separable_block
from mbnp.network import Network
from mbnp.ops import window

TORCH = importlib.util.find_spec("torch") is not None  # the lesson also runs without it
rng = np.random.default_rng(0)

# %% [markdown]
# ## One block, by hand
#
# Everything in this network is made of one building block, so make one that fits on the screen: an image
# of 4x4 pixels with one channel, a depthwise kernel of nine ones at stride 2 with padding 1, a pointwise
# step to two channels with the weights 1 and -1, and ReLU. (Batch normalisation is left out; lesson 4 has
# it.)
#
# **Before you run the next cell:** how large is the feature map after the depthwise step? Which pixels does
# its first number add up? And what does ReLU leave of the second channel?

# %%
image = np.arange(1.0, 17).reshape(1, 4, 4, 1)
block = Sequential([Depthwise(1, 3, stride=2, padding=1, bias=False), Pointwise(1, 2, bias=False), ReLU()])
block["0"].weight.value = np.ones((3, 3, 1))
block["1"].weight.value = np.array([[1, -1]])

outputs = block.activations(image.astype(np.float32))
say(f"The image:\n```text\n{image[0, :, :, 0].astype(int)}\n```")
say(f"After the depthwise step (the first is 1 + 2 + 5 + 6):\n```text\n{outputs['0'][0, :, :, 0].astype(int)}\n```")
say(f"After the pointwise step and ReLU, two channels per pixel:\n```text\n{outputs['2'][0].astype(int).tolist()}\n```")

# %% [markdown]
# The depthwise step combines neighbouring pixels and never mixes channels. The pointwise step mixes channels
# and never combines pixels. Eight such blocks make this MobileNet.
#
# ## The article's code
#
# mbnp began with a Chinese article on MobileNet. Its code lost its line breaks on the web page; here it is
# with the line breaks put back and its comments translated.

# %%
if TORCH:
    import torch
    from torch import nn
    from torch.nn import functional as F

    class MobileNet(nn.Module):
        def conv_dw(self, in_channels, out_channels, stride):  # a depthwise separable convolution
            return nn.Sequential(
                # the depthwise convolution
                nn.Conv2d(
                    in_channels,
                    in_channels,
                    kernel_size=3,
                    stride=stride,
                    padding=1,
                    groups=in_channels,
                    bias=False,
                ),
                nn.BatchNorm2d(in_channels),
                nn.ReLU(),
                # the pointwise convolution: the kernel is 1*1
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=1, padding=0, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            )

        def __init__(self, num_classes=10):
            super(MobileNet, self).__init__()  # noqa: UP008 (as in the article)
            self.conv1 = nn.Sequential(  # the first convolution: 3 channels in, 32 out
                nn.Conv2d(3, 32, kernel_size=3, stride=1, padding=1),
                nn.BatchNorm2d(32),
                nn.ReLU(),
            )
            self.conv2_1 = self.conv_dw(32, 32, 1)
            self.conv2_2 = self.conv_dw(32, 64, 2)
            self.conv2_3 = self.conv_dw(64, 64, 1)
            self.conv2_4 = self.conv_dw(64, 128, 2)
            self.conv2_5 = self.conv_dw(128, 128, 1)
            self.conv2_6 = self.conv_dw(128, 256, 2)
            self.conv2_7 = self.conv_dw(256, 256, 1)
            self.conv2_8 = self.conv_dw(256, 512, 2)
            self.fc = nn.Linear(512, num_classes)  # fully connected

        def forward(self, x):
            out = self.conv1(x)
            out = self.conv2_1(out)
            out = self.conv2_2(out)
            out = self.conv2_3(out)
            out = self.conv2_4(out)
            out = self.conv2_5(out)
            out = self.conv2_6(out)
            out = self.conv2_7(out)
            out = self.conv2_8(out)
            out = F.avg_pool2d(out, 2)  # max pooling, kernel 2, stride 2
            out = out.view(-1, 512)  # flatten the feature map
            out = self.fc(out)
            return out  # noqa: RET504 (as in the article)
else:
    say("PyTorch is not installed here: the class is for reading only. `pip install -e '.[tutorials]'` brings it.")

# %% [markdown]
# A good, small network, clearly written. One comment has a mistake: beside `F.avg_pool2d` it says *max pooling*,
# and the code takes the average, as MobileNet does. The code is right. (We come to `view(-1, 512)` further down.)
#
# ## Line by line
#
# | PyTorch | mbnp | weights in mbnp |
# | --- | --- | --- |
# | `nn.Conv2d(3, 32, 3, padding=1)` | `Conv(3, 32, 3, padding=1)` | (3, 3, 3, 32), bias (32,) |
# | `nn.Conv2d(c, c, 3, s, padding=1, groups=c, ...)` | `Depthwise(c, 3, s, padding=1, ...)` | (3, 3, c) |
# | `nn.Conv2d(c, d, 1, bias=False)` | `Pointwise(c, d, bias=False)` | (c, d) |
# | `nn.BatchNorm2d(c)` | `BatchNorm(c)` | (c,): weight, bias, running mean and variance |
# | `nn.ReLU()` | `ReLU()` | |
# | `F.avg_pool2d(out, 2)` | `AveragePool(2)` | |
# | `out.view(-1, 512)` | `Flatten()` | |
# | `nn.Linear(512, 10)` | `Linear(512, 10)` | (512, 10), bias (10,) |
#
# `groups=c` is PyTorch's way to say depthwise: as many groups as channels, so that each channel is a group of
# its own. mbnp has a separate layer for each of the two steps, because they are computed in quite different
# ways.
#
# Now build it. The eight lines `self.conv2_1 = ...` differ in two numbers each. A list of these pairs is the
# architecture; the rest is a loop:

# %%
BLOCKS = [(32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]  # channels out, stride


def separable(c_in, c_out, stride):
    return Sequential(
        [
            Depthwise(c_in, 3, stride, padding=1, bias=False),
            BatchNorm(c_in),
            ReLU(),
            Pointwise(c_in, c_out, bias=False),
            BatchNorm(c_out),
            ReLU(),
        ]
    )


layers = {"conv1": Sequential([Conv(3, 32, 3, stride=1, padding=1), BatchNorm(32), ReLU()])}
channels = 32
for i, (c_out, stride) in enumerate(BLOCKS, start=1):
    layers[f"conv2_{i}"] = separable(channels, c_out, stride)
    channels = c_out
layers |= {"pool": AveragePool(2), "flatten": Flatten(), "fc": Linear(channels, 10)}
mine = Network(layers, resolution=32)

say(f"One image in, {mine(rng.standard_normal((1, 32, 32, 3), dtype=np.float32)).shape[1]} logits out.")

# %% [markdown]
# That is all. mbnp's own file does the same, with three more things: a width multiplier (lesson 8), a seed
# for the initial weights, and a note of how the network was built, for the checkpoint:

# %%
source(separable_block, _network)

# %%
net = models.create("mobilenet-v1-small", num_classes=10, seed=0)
assert {name: v.shape for name, v in mine.state().items()} == {name: v.shape for name, v in net.state().items()}
first = ", ".join(f"`{name}`" for name in list(net.state())[:8])
say(f"The same {len(net.state())} arrays, by name and shape. The first of them: {first}.")

# %% [markdown]
# The names are those of the PyTorch class: attribute, index in the `Sequential`, array. Shared names are what
# makes weights portable.
#
# The network needs no backward pass of its own. Every layer has a `backward` (lessons 3 and 4), the network
# is a chain, and a loop from its end to its beginning is the whole of backpropagation. (The lines around the
# loop skip the layers whose gradient is not needed.)

# %%
source(Sequential.backward)

# %% [markdown]
# ## Shapes
#
# A window of $K$ taps at stride $S$ with $P$ zeros on either side turns $H$ rows into
#
# $$O = \left\lfloor \frac{H + 2P - K}{S} \right\rfloor + 1$$
#
# rows: the first window, and one more for every $S$ rows that are left. The brackets round down: a window
# that would reach beyond the end does not count.

# %%
source(window.output_size)

# %% [markdown]
# With $K = 3$ and $P = 1$, stride 1 keeps the size, and stride 2 halves it. Along the network:

# %%
rows = []
for name, layer, before, after in net.walk((32, 32, 3)):
    if hasattr(layer, "options") or name == "fc":
        rows.append((f"`{name}`", type(layer).__name__, " x ".join(map(str, before)), " x ".join(map(str, after))))
say(table(rows, ["layer", "kind", "in", "out"]))

# %% [markdown]
# As the feature map shrinks, the number of channels grows: whenever the pixels fall to a quarter, the
# channels double.
#
# **Before you run the next cell:** 33 is odd. How many rows does stride 2 make of 33, and of that result in
# turn? Which image sizes end in a feature map that a 2x2 pool turns into a single pixel?


# %%
def sizes(h):
    """Return the rows of the feature map after each of the four blocks of stride 2, and after the pool."""
    rows = [h]
    for _ in range(4):
        rows.append((rows[-1] + 2 * 1 - 3) // 2 + 1)
    rows.append((rows[-1] - 2) // 2 + 1)
    return rows


rows = []
for h in (16, 17, 32, 33, 48, 49, 64):
    try:
        net.output_shape((h, h, 3))
        verdict = "accepted"
    except MbnpError:
        verdict = "rejected"
    rows.append((str(h), " → ".join(map(str, sizes(h))), verdict))
say(table(rows, ["image", "feature map after each stride 2, then the pool", "mbnp"]))
accepted = [h for h in range(1, 100) if sizes(h)[-1] == 1]
say(f"One pixel is left for images of {accepted[0]} to {accepted[-1]} pixels.")

# %% [markdown]
# **Before you run the next cell:** and what does the article's class do with one image of 64x64? Its pooled
# feature map has 2x2 pixels of 512 channels, and then comes `view(-1, 512)`: "make rows of 512 numbers, as
# many as there are".

# %%
if TORCH:
    with torch.no_grad():
        shape = tuple(MobileNet().eval()(torch.randn(1, 3, 64, 64)).shape)
    say(f"One image in, an output of shape {shape} out, and no error.")
try:
    net(rng.standard_normal((1, 64, 64, 3), dtype=np.float32))
except MbnpError as error:
    say(f"mbnp: `MbnpError: {error}`")

# %% [markdown]
# Four predictions for one image, each made of 512 numbers that do not belong together (in PyTorch's layout a
# row of 512 is 128 channels of four pixels each). For the article's images of 32x32 the line is right. With
# `out.flatten(1)`, `fc` would raise an error wherever more than one pixel is left. A `-1` in a reshape hides
# mistakes: write the number that you know.
#
# ## The receptive field
#
# The receptive field of an output is the part of the image that it depends on. For one 3x3 convolution it is
# three pixels wide. The next layer's taps multiply neighbouring outputs, which are `jump` pixels of the image
# apart, so each layer adds $K - 1$ such steps, and each stride makes the steps of all later layers longer:
#
# $$\text{field} \leftarrow \text{field} + (K - 1)\cdot\text{jump} \qquad \text{jump} \leftarrow \text{jump}\cdot S$$
#
# Both start at 1. The first three by hand: `conv1` depends on $1 + 2\cdot1 = 3$ pixels. `conv2_1`: $3 +
# 2\cdot1 = 5$. `conv2_2`: $5 + 2\cdot1 = 7$, and only now, after its stride 2, the jump becomes 2. Pointwise
# steps have $K = 1$ and add nothing.
#
# **Before you run the next cell:** which is the first layer whose receptive field covers the whole image, 32
# pixels wide?

# %%
field, jump = 1, 1
fields = {}
for name, kernel, stride in [
    ("conv1", 3, 1),
    *((f"conv2_{i}", 3, s) for i, (_, s) in enumerate(BLOCKS, 1)),
    ("pool", 2, 2),
]:
    field += (kernel - 1) * jump
    jump *= stride
    fields[name] = field

# %% tags=["hide-input"]
fig, axes = figure(width=7.5, height=3.2)
colours = [BLUE if f < 32 else ORANGE for f in fields.values()]
axes.barh(list(fields), list(fields.values()), color=colours)
for row, f in enumerate(fields.values()):
    axes.text(f - 0.8, row, str(f), va="center", ha="right", color="white" if f < 32 else "black")
axes.axvline(32, color=VERMILION, linestyle="--", linewidth=1.5)
axes.text(32.6, -0.1, "the image: 32", color=VERMILION, va="center")
axes.invert_yaxis()
axes.set_xlabel("receptive field (pixels, in each direction)")
axes.set_xlim(0, 86)
show(fig, "Receptive field of each block, growing from 3 pixels to more than twice the image's width")

# %%
whole = next(name for name, f in fields.items() if f >= 32)
before = list(fields)[list(fields).index(whole) - 1]
say(f"`{before}` just falls short with {fields[before]} pixels; `{whole}` has {fields[whole]}.")

# %% [markdown]
# Test a formula whenever you can. The receptive field is where the gradient is not zero: set the gradient of
# one number in the middle of a feature map to 1, run the backward pass (lesson 3), and look where the
# gradient of the image is not zero. All weights are made positive, so that nothing cancels, and batch
# normalisation is frozen, so that it does not connect every pixel with every other (lesson 4). The image is
# larger than usual, 96x96, to leave room.


# %%
def gradient_of_image(last, size=96):
    """Return the gradient of the middle of `last`'s output by the image (size, size), scaled to a maximum of 1."""
    names = list(fields)[: list(fields).index(last) + 1]
    part = Sequential({name: mine[name] for name in names})
    for _, layer in part.leaves():
        if isinstance(layer, BatchNorm):
            layer.weight.frozen = True
        elif layer.parameters():
            layer.weight.value = np.full_like(layer.weight.value, 1 / layer.weight.value[..., 0].size)
    y = part.forward(np.ones((1, size, size, 3), np.float32), train=True)
    dy = np.zeros_like(y)
    dy[0, y.shape[1] // 2, y.shape[2] // 2, 0] = 1
    dx = part.backward(dy)[0].sum(axis=-1)
    return dx / dx.max()


influence = {name: gradient_of_image(name) for name in ("conv2_3", "conv2_5", "conv2_8")}
for name, gradient in influence.items():
    rows, columns = (np.count_nonzero(gradient.any(axis)) for axis in (1, 0))
    assert rows == columns == fields[name]
    say(f"`{name}`: the gradient is not zero in {rows} x {columns} pixels, and the formula says {fields[name]}.")

# %% tags=["hide-input"]
fig, axes = figure(width=9, height=3.1, ncols=4, width_ratios=[1, 1, 1, 0.05])
for ax, (name, gradient) in zip(axes, influence.items(), strict=False):
    heat_map = ax.imshow(gradient, cmap="cividis")
    top, left, size = np.argmax(gradient.any(axis=1)), np.argmax(gradient.any(axis=0)), fields[name]
    for at, width, style in (
        ((left, top), size, {"edgecolor": ORANGE}),
        ((32, 32), 32, {"edgecolor": "white", "ls": "--"}),
    ):
        ax.add_patch(Rectangle(np.array(at) - 0.5, width, width, fill=False, linewidth=1.5, **style))
    ax.set_title(f"{name}: {size} x {size} pixels", fontsize=10)
    ax.set_xticks([0, 48, 95]), ax.set_yticks([0, 48, 95])
fig.colorbar(heat_map, cax=axes[3], label="gradient, scaled to at most 1")
show(
    fig,
    "Heat maps of the gradient on a 96 x 96 image: square receptive fields that fade towards their edges",
)

# %% [markdown]
# Orange is the receptive field as measured; the white dashes show 32x32 for comparison. Not all pixels of the
# receptive field have the same influence: those in the middle are in many more windows than those at the rim.
# The *effective* receptive field is much smaller than the number in the bar chart. The faint grid on the
# right is lesson 3's checkerboard. (Luo and others, "Understanding the effective receptive field in deep
# convolutional neural networks", arXiv:1701.04128.)
#
# ## What it costs
#
# Take `conv2_2`: 32 channels in, 64 out, stride 2, and an output of 16x16 pixels. Here are its parameters and
# MACs:

# %%
k, c, d, h = 3, 32, 64, 16
layers_of_block = [
    ("depthwise", "K·K·C", k * k * c, "O·O·K·K·C", h * h * k * k * c),
    ("BatchNorm", "2·C", 2 * c, "", 0),
    ("pointwise", "C·D", c * d, "O·O·C·D", h * h * c * d),
    ("BatchNorm", "2·D", 2 * d, "", 0),
]
parameters, macs = sum(p[2] for p in layers_of_block), sum(p[4] for p in layers_of_block)
rows = [(name, f1, f"{n:,}", f2, f"{m:,}" if m else "") for name, f1, n, f2, m in layers_of_block]
say(table([*rows, ("**total**", "", f"{parameters:,}", "", f"{macs:,}")], ["", "parameters", "", "MACs", ""]))

counted = [row for row in cost.of(net).rows if row.name.startswith("conv2_2.")]
assert sum(row.params for row in counted) == parameters
assert sum(row.macs for row in counted) == macs

# %% [markdown]
# A MAC is one multiplication and the addition that goes with it. Every weight of a convolution is used once
# for each pixel that the convolution *writes*, so the size of the output counts. A running mean is not a
# parameter: it is not learned. The whole network, counted by mbnp:

# %%
counted = cost.of(net, (32, 32, 3))
say(f"**{counted.params:,} parameters, {counted.macs:,} MACs** for an image of 32x32: {counted.flops:,} FLOPs.")

as_in_the_article = sum(
    row.macs * np.prod(row.input_shape[:-1]) / np.prod(row.output_shape[:-1]) for row in counted.rows if row.macs
)
say(
    f"""
    The article's formulas take H and W of the *input*. At stride 1 that is the same. At stride 2 they count four pixels
    for each one that is computed, and the four depthwise convolutions of stride 2 would bring the total to
    {as_in_the_article:,.0f}. The article also calls the result FLOPs, and explains them as operations *per second*.
    It is a number of operations, not a rate, and this number is that of the MACs, half of the FLOPs. (Lesson 2 counts
    them one by one.)
    """
)

# %% tags=["hide-input"]
kinds = {
    "Conv": (GREEN, "standard"),
    "Depthwise": (ORANGE, "depthwise"),
    "Pointwise": (BLUE, "pointwise"),
    "BatchNorm": (PURPLE, "BatchNorm"),
    "Linear": (SKY, "linear"),
}
names = [name for name in layers if name not in ("pool", "flatten")]

fig, axes = figure(width=9, height=3.4, ncols=2, sharey=True)
for ax, what, unit, label in (
    (axes[0], "params", 1e3, "parameters (thousands)"),
    (axes[1], "macs", 1e6, "MACs (millions)"),
):
    left = np.zeros(len(names))
    for kind, (colour, title) in kinds.items():
        rows = [row for row in counted.rows if row.kind == kind]
        amounts = [sum(getattr(r, what) for r in rows if r.name.split(".")[0] == name) / unit for name in names]
        ax.barh(names, amounts, left=left, color=colour, label=title, edgecolor="white", linewidth=0.5)
        left += amounts
    ax.set_xlabel(label)
axes[0].invert_yaxis()
axes[0].legend(loc="center right")
show(
    fig,
    "Parameters and MACs of each block: most parameters are in the last blocks, MACs are spread over all of them",
)

# %% [markdown]
# Most parameters are at the end, where there are many channels. The multiplications are spread more evenly,
# because each halving of the feature map makes up for the doubling of the channels.

# %%
last = sum(row.params for row in counted.rows if row.name.startswith("conv2_8."))
shares = {kind: 100 * share for kind, share in counted.shares().items()}
say(
    f"""
    The last block has {100 * last / counted.params:.0f} % of the parameters. And the depthwise steps, which alone
    combine neighbouring pixels, take {shares["Depthwise"]:.0f} % of the multiplications, the pointwise steps
    {shares["Pointwise"]:.0f} %. (These are multiplications. Lesson 9 measures the time.)
    """
)

# %% [markdown]
# ## The same numbers?
#
# Now load the weights of the PyTorch class into the mbnp network, and run the same images through both. Two
# layouts have to be converted. PyTorch's images have their channels first, $(N, C, H, W)$. And its weights
# have another order of axes:
#
# | | PyTorch | mbnp |
# | --- | --- | --- |
# | standard | (D, C, K, K) | (K, K, C, D) |
# | depthwise | (C, 1, K, K) | (K, K, C) |
# | pointwise | (D, C, 1, 1) | (C, D) |
# | linear | (D, C) | (C, D) |
#
# `weights.from_torch` converts the weights. (First, one batch goes through the untrained PyTorch network with
# momentum 1, so that the running statistics become those of that batch; see lesson 4. With a mean of 0 and a
# variance of 1 the activations would get smaller from block to block.)
#
# **Before you run the next cell:** in float64 a number has 16 digits, and mbnp adds up products in another
# order than PyTorch. In how many digits do you expect the two to agree at the end?

# %%
if TORCH:
    torch.manual_seed(0)
    theirs = MobileNet().double()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    theirs(torch.randn(16, 3, 32, 32, dtype=torch.float64))
    ours = models.create("mobilenet-v1-small", num_classes=10, dtype=np.float64)
    weights.from_torch(ours, theirs.state_dict())

    x = rng.standard_normal((2, 32, 32, 3))
    tx = torch.tensor(x.transpose(0, 3, 1, 2))
    found = {}
    for name in (*names[:-1], "fc"):
        theirs.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: found.update({name: output.detach().numpy()})
        )
    logits = theirs.eval()(tx).detach().numpy()
    activations = ours.activations(x)
    rows = []
    for name, theirs_here in found.items():
        if theirs_here.ndim == 4:
            theirs_here = theirs_here.transpose(0, 2, 3, 1)
        difference = np.abs(activations[name] - theirs_here).max() / np.abs(theirs_here).max()
        assert difference < 1e-12
        rows.append((f"`{name}`", " x ".join(map(str, theirs_here.shape)), f"{difference:.0e}"))
    say(table(rows, ["output of", "shape", "largest difference, relative"]))

# %% [markdown]
# The same function. And the backward pass, in training, with batch statistics and a random gradient of the
# logits:

# %%
if TORCH:
    dy = rng.standard_normal((2, 10))
    theirs.train()(tx).backward(torch.tensor(dy))
    ours.forward(x, train=True)
    ours.backward(dy)

    other = models.create("mobilenet-v1-small", num_classes=10, dtype=np.float64)  # to convert the layout
    state = theirs.state_dict()
    weights.from_torch(other, state | {name: p.grad for name, p in theirs.named_parameters()})
    gradients = {name: p.value for name, p in other.parameters().items()}
    rows = []
    for name in ("fc.weight", "conv2_8.0.weight", "conv2_1.3.weight", "conv1.0.weight"):
        difference = np.abs(ours.parameters()[name].grad - gradients[name]).max() / np.abs(gradients[name]).max()
        assert difference < 1e-10
        rows.append((f"`{name}`", f"{difference:.0e}"))
    say(table(rows, ["gradient of", "largest difference, relative"]))

# %% [markdown]
# Shapes are a good check against mistakes of layout, but not a perfect one. `conv2_1.3.weight` maps 32
# channels to 32. Transposed, it fits as well:

# %%
if TORCH:
    wrong = models.create("mobilenet-v1-small", num_classes=10, dtype=np.float64)
    weights.from_torch(wrong, state)
    right = wrong(x)
    wrong["conv2_1"]["3"].weight.value = state["conv2_1.3.weight"][:, :, 0, 0].numpy()  # (D, C), not (C, D)
    change = np.abs(wrong(x) - right).max() / np.abs(right).max()
    assert change > 0.01
    say(f"No error, and logits that are off by {change:.1f} times the largest. Compare numbers, not shapes.")

# %% [markdown]
# ## Questions
#
# 1. The first convolution has `bias=True` and the others do not. What is its bias good for? (Lesson 4
#    measured its gradient.)
# 2. Replace `AveragePool(2)` by a global average. Which image sizes does the network accept then, and what
#    becomes of the article's `view(-1, 512)`?
# 3. MobileNetV1 for 224x224 images begins with stride 2. Why does this one begin with stride 1?
# 4. The receptive field of the last feature map is wider than the image. Is that a waste? What do its outer
#    taps multiply?
# 5. With a standard 3x3 convolution for each separable block, how many parameters would `conv2_8` have?
#    (`mbnp summary standard-small` shows it. Lesson 7 trains that network.)
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/05.py`](exercises/05.py). Fill them in, then run
#
#     mbnp grade tutorials/exercises/05.py
#
# **1. `map_sizes`**: the size of the feature map after each of a chain of 3x3 convolutions with padding 1.
#
# <!-- mbnp/grading/lessons/hints/05.md: map_sizes -->
#
# **2. `receptive_field`**: the number of pixels, in each direction, that one output of the last layer depends
# on.
#
# <!-- mbnp/grading/lessons/hints/05.md: receptive_field -->
#
# **3. `count`**: the parameters and the MACs of a whole network like this lesson's, from its list of
# blocks.
#
# <!-- mbnp/grading/lessons/hints/05.md: count -->
