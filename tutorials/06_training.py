# %% [markdown]
# # 6. Training
#
# **A new network is a few hundred thousand random numbers, and it is wrong nine times out of ten. How do they
# become a network that is right, and how do you notice in the first minute that something is broken, instead
# of after an hour?**
#
# At the end you can train a network and not be fooled: you know what the loss must be before the first step,
# you have a test that finds most bugs in seconds, you can choose a learning rate from a plot, and you can
# read what the network gets wrong. You need lesson 5. Half an hour.

# %%
import dataclasses
import math
import os

import numpy as np
from lesson import BLACK, BLUE, GREEN, SMALL, VERMILION, figure, say, show, source, table

from mbnp import datasets, fused, models, optim, train
from mbnp.errors import DivergedError
from mbnp.ops import softmax_cross_entropy as cross_entropy

# %% [markdown]
# ## The images
#
# Where the variable `MBNP_DATA` names CIFAR-10, this lesson takes 10,000 of its photographs. Otherwise it
# draws its own: *shapes10*, ten shapes on busy backgrounds, often with a bar across. The page that you may be
# reading was made with those. A label is a number from 0 to 9, the place of the right name in a list.

# %%
counts = (320, 100) if SMALL else (10_000, 2_000)
spec = os.environ.get("MBNP_DATA") or "shapes10"
data = datasets.shapes10.make(*counts) if spec == "shapes10" else datasets.load(spec)
parts = [
    datasets.Split(split.images[:count], split.labels[:count])
    for split, count in zip((data.train, data.test), counts, strict=True)
]
data = dataclasses.replace(data, train=parts[0], test=parts[1])
say(f"{data}. The classes: {', '.join(data.classes)}.")

fig, axes = figure(8, 2.2, nrows=2, ncols=10)
for label, column in enumerate(axes.T):
    for ax, i in zip(column, np.flatnonzero(data.train.labels == label), strict=False):
        ax.imshow(data.train.images[i])
        ax.axis("off")
    column[0].set_title(data.classes[label], fontsize=10)
show(fig, "Two training images of each of the ten classes")

# %% [markdown]
# ## One number for how wrong
#
# The network gives each class a score, a *logit*, and any score is allowed. Training needs one number that
# says how bad the scores are, with a slope everywhere. It is made in two moves. Softmax turns the scores $z$
# of an image into probabilities $p$, which are positive and add up to 1. The loss is then how surprised we
# are to see the right class, $-\log$ of its probability: 0 if the network was certain of it, large if it had
# ruled it out.
#
# $$p_d = \frac{e^{z_d}}{\sum_k e^{z_k}} \qquad L = \frac1N \sum_n -\log p_{n, \text{label}_n}$$
#
# $N$ is the number of images, $d$ and $k$ run over the classes, and $\log$ is the natural logarithm, so
# that losses are in *nats*. Two images and three classes by hand:

# %%
logits = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
labels = np.array([0, 2])

powers = np.exp(logits)
p = powers / powers.sum(axis=1, keepdims=True)
surprise = -np.log(p[np.arange(2), labels])
rows = [
    [
        n,
        ", ".join(f"{z:g}" for z in logits[n]),
        ", ".join(f"{q:.3f}" for q in p[n]),
        labels[n],
        f"{surprise[n]:.3f}",
    ]
    for n in range(2)
]
say(table(rows, ["image", "logits", "probabilities", "label", "-log p[label]"]))
say(
    f"The loss is the mean of the last column, {surprise.mean():.4f}. "
    f"mbnp says {cross_entropy.forward(logits, labels):.4f}."
)

# %% [markdown]
# **Before you run the next cell:** you may move each of the six logits by a little. Which way would you move
# the three of the first image to make the loss smaller? And for which image do the logits matter more?

# %%
target = np.array([[1, 0, 0], [0, 0, 1]])
by_hand = (p - target) / 2
say(
    table(
        [[n, *(f"{g:+.3f}" for g in by_hand[n]), f"{abs(by_hand[n].sum()):.3f}"] for n in range(2)],
        ["image", "dL/dz 0", "dL/dz 1", "dL/dz 2", "sum"],
    )
)
assert np.allclose(by_hand, cross_entropy.backward(logits, labels))

# %% [markdown]
# The gradient is what the network said minus what it should have said, divided by the number of images:
#
# $$\frac{\partial L}{\partial z_{n,d}} = \frac{p_{n,d} - [d = \text{label}_n]}{N}$$
#
# The bracket is 1 for the right class and 0 for the others. Three things are worth remembering. Each row adds
# up to 0: what one class wins, the others lose. The second image pulls harder, because the network knew
# less about it. And the $1/N$ is easily forgotten. Without it everything still learns, but the learning rate
# means something else at every batch size. Here is mbnp's own, as plain loops:

# %%
source(cross_entropy.backward_loops)

# %% [markdown]
# `highest` is there because `exp` of 89 is already infinite in float32. Subtracting the same number from
# every logit of a row changes no probability.
#
# ## Check 1: the loss before the first step
#
# **Before you run the next cell:** an untrained network has ten outputs and no opinion. What does it give
# each class, and what is $-\log$ of that?

# %%
net = models.mobilenet_v1_small(seed=0)
rng = np.random.default_rng(0)
batches = datasets.batches(data.train, 64, rng, mean=data.mean, std=data.std)
x, y = next(batches)
logits = fused.convert(net).forward(x, train=True)
first_loss, spread = float(cross_entropy.forward(logits, y)), float(logits.std())
say(
    f"Expected: log 10 = {math.log(10):.4f}. Measured: **{first_loss:.4f}**. Right answers: "
    f"{np.mean(logits.argmax(axis=1) == y):.0%} of 64."
)

# %% [markdown]
# $-\log \frac1{10} = \log 10$. This is the cheapest test there is: one forward pass. Much more than $\log 10$
# means that the network starts with strong opinions, all of them baseless: weights too large, images not
# normalised, labels that do not fit the outputs. Why is it a little more than $\log 10$ even so? Because the
# logits are not equal but random. If they have the spread (standard deviation) $\sigma$ and know nothing of
# the labels, then, as long as $\sigma$ is small, $L \approx \log D + \sigma^2/2$ for $D$ classes. We can blow
# the network's logits up and watch.

# %%
factors = np.linspace(0, 12, 49)
losses = [float(cross_entropy.forward(np.float32(f) * logits, y)) for f in factors]

fig, ax = figure(8, 3.2)
ax.plot(factors * spread, losses, color=BLUE, label="measured: this network's logits, times a factor")
near = factors * spread < 1.7
ax.plot(
    factors[near] * spread,
    math.log(10) + (factors[near] * spread) ** 2 / 2,
    "--",
    color=VERMILION,
    label=r"$\log 10 + \sigma^2/2$",
)
ax.axhline(math.log(10), color=BLACK, lw=0.8, ls=":", label="log 10")
ax.plot([spread], [first_loss], "o", color=BLACK, ms=7, label="as they are")
ax.set_xlabel(r"spread $\sigma$ of the logits of an untrained network")
ax.set_ylabel("loss (nats)")
ax.set_ylim(bottom=2)
ax.legend()
show(fig, "The loss of an untrained network is log 10 for small logits and grows with their spread")

# %% [markdown]
# A network that knows nothing does best by saying nothing. Confident and wrong is the only way to do worse.
#
# ## One step
#
# Everything is in place: lesson 3 and 4 gave every layer its backward, lesson 5 chained them. One step is:
# forget the old gradients, go forward, go back, and move every weight a little against its gradient. This is
# mbnp's, with what it does when the loss is no longer a number:

# %%
source(train._step)

# %% [markdown]
# ## Check 2: overfit one batch
#
# Before you train on 10,000 images, train on 64, the same 64 again and again. A network with thousands of
# weights for each image must be able to learn 64 labels by heart. If the loss does not go to nearly 0, do
# not tune anything: something is broken. A wrong gradient, a layer that gets none, an update with the wrong
# sign, a learning rate off by a thousand: this test finds them in a few seconds.
#
# Does it also find labels that do not belong to their images? **Before you run the next cell:** we do it
# twice, once with the right labels and once with labels drawn by dice. Does the loss go to 0 the second time?


# %%
def overfit(labels, steps=4 if SMALL else 60):
    net = fused.convert(models.mobilenet_v1_small(seed=0))
    opt = optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    return [train.step(net, opt, x, labels) for _ in range(steps)]


honest, dice = overfit(y), overfit(np.random.default_rng(1).integers(0, 10, len(y)))

fig, ax = figure(8, 3.2)
ax.semilogy(honest, color=BLUE, label="right labels")
ax.semilogy(dice, "--", color=VERMILION, label="labels drawn by dice")
ax.axhline(math.log(10), color=BLACK, lw=0.8, ls=":", label="log 10")
ax.set_xlabel("step, always on the same 64 images")
ax.set_ylabel("loss (nats), logarithmic")
ax.legend()
show(fig, "The loss on one batch falls towards zero with right labels and with random ones")
say(
    f"After {len(honest)} steps the loss is {honest[-1]:.5f} with the right labels and {dice[-1]:.5f} with random ones."
)

# %% [markdown]
# It learns nonsense just as well. So this test says that the machinery works: gradients arrive and have the
# right sign. It says nothing about whether the network has understood anything. Only images that it has
# never seen can say that, which is why the test images are kept apart. (Zhang et al. did this with all of
# ImageNet, "Understanding deep learning requires rethinking generalization", arXiv:1611.03530.)
#
# ## How large a step?
#
# The learning rate is the one setting that matters more than all others together. Leslie Smith's range test
# (section 3.3 of arXiv:1506.01186) finds it in one short run: begin with a rate that is far too small,
# multiply it a little after each batch, and write down the loss. Too small, and nothing moves. Too large, and
# the loss rises.
#
# Where do we begin? A fresh network is nearly deaf to images that are new in every batch and to rates that
# begin near zero: for the first hundred steps hardly anything happens (one batch that came again and again at
# a high rate, as in check 2, is much easier). The test would only show where it blows up. So we do it twice,
# with a fresh network and with one that has had two epochs at a modest rate. (An epoch is once through all
# training images.)
#
# **Before you run the next cell:** the rate runs from 0.0001 to 10. At which rate do you expect the loss to
# begin to fall, and at which to blow up?

# %%
fresh = models.mobilenet_v1_small(seed=0)
young = models.mobilenet_v1_small(seed=0)
modest = train.Recipe(epochs=1 if SMALL else 2, lr=0.05, schedule="constant", augment=False)
train.fit(fused.convert(young), data, modest)


def range_test(net, low=1e-4, high=10.0, steps=5 if SMALL else 110):
    opt = optim.SGD(net.parameters(), lr=low, momentum=0.9, nesterov=True, weight_decay=5e-4)
    rates, losses = low * (high / low) ** (np.arange(steps) / (steps - 1)), []
    options = {"mean": data.mean, "std": data.std, "augment": datasets.augment}
    batches = datasets.batches(data.train, 64, np.random.default_rng(0), **options)
    for rate, (x, y) in zip(rates, batches, strict=False):
        opt.set(lr=rate)
        try:
            losses.append(train.step(net, opt, x, y))
        except DivergedError:  # the loss is infinite: there is nothing beyond
            break
    smooth = [np.mean(losses[max(0, i - 4) : i + 5]) for i in range(len(losses))]
    return rates[: len(losses)], np.array(losses), np.array(smooth)


fig, ax = figure(8, 3.6)
for net, name, colour, line in ((fresh, "fresh", VERMILION, "--"), (young, "after two epochs", BLUE, "-")):
    rates, losses, smooth = range_test(fused.convert(net))
    ax.semilogx(rates, losses, ".", color=colour, alpha=0.35, ms=4)
    ax.semilogx(rates, smooth, line, color=colour, label=name)
ax.axhline(math.log(10), color=BLACK, lw=0.8, ls=":", label="log 10")
ax.axvline(0.1, color=GREEN, ls="-.", label="what we take: 0.1")
ax.set_xlabel("learning rate, a little larger after every batch")
ax.set_ylabel("loss (nats), mean of nine batches")
ax.set_ylim(0, 5)
ax.legend(loc="upper left")
show(fig, "Learning-rate range test: the loss is flat at small rates, then falls, then blows up")

best = rates[smooth.argmin()]
too_large = rates[(rates > best) & (smooth > 2 * smooth[0])]
blown = too_large[0] if len(too_large) else rates[-1]
say(
    f"After two epochs the loss begins at {smooth[0]:.2f}, is lowest, {smooth.min():.2f}, at about {best:.2g}, "
    f"and at {blown:.2g} it is twice what it was."
)

# %% [markdown]
# Three regions: too small to matter, useful, too large. (Beyond, the loss comes back to $\log 10$: BatchNorm
# keeps the numbers finite, but all has been forgotten, and the network guesses again.) The useful one is
# about as wide as a factor of ten, and we take its upper end, 0.1: as large as it can be without blowing up.
# That is daring for a whole run, but the schedule below stays there only for a moment. Read such a plot for
# its order of magnitude, not for its second digit. The axis is logarithmic, and every batch is seen at one
# rate only.
#
# ## A rate for each step
#
# A large rate crosses the landscape quickly and cannot settle; a small one settles wherever it stands. So we
# use both, in a *one-cycle* schedule: up to the peak while the network is young, then slowly down to almost
# nothing. Momentum, which keeps a step going in the direction of the ones before, goes the other way.

# %%
total = 5 * (len(data.train) // 64)
schedule = optim.one_cycle(0.1, total)
at = [schedule(step) for step in range(total)]

fig, (left, right) = figure(8, 2.6, ncols=2)
left.plot([s["lr"] for s in at], color=BLUE)
left.set(title="learning rate", xlabel="step")
right.plot([s["momentum"] for s in at], color=VERMILION)
right.set(title="momentum", xlabel="step")
show(fig, "One cycle: the learning rate goes up and then down, momentum the other way")
source(optim._between)

# %% [markdown]
# ## More images than there are
#
# A shape is still the same shape two pixels to the left. Moving and mirroring the images at random gives
# the network new ones in every epoch, so it cannot learn
# them by heart. What moves in from outside is the image's own reflection. The first column is the original.

# %%
fig, axes = figure(8, 2.6, nrows=3, ncols=10)
some = data.train.images[:3]
for row, original in zip(axes, some, strict=True):
    moved = datasets.augment(np.repeat(original[None], 9, axis=0), np.random.default_rng(2))
    for ax, image in zip(row, [original, *moved], strict=True):
        ax.imshow(image)
        ax.axis("off")
axes[0, 0].set_title("original", fontsize=10)
axes[0, 1].set_title("as the network sees it", fontsize=10, loc="left")
show(fig, "Three images and nine random shifts and mirror images of each")
source(datasets.augment)

# %% [markdown]
# An augmentation says: this must not change the answer. Look whether that is true of your images. A
# mirrored car is a car. A mirrored 3 is not a 3. And in shapes10 a crescent is always open to the right, so a
# mirrored one is still called a crescent but never comes up in the test.
#
# ## Training
#
# Now all of it. **Before you run the next cell:** the curves show accuracy on the training images and on
# test images that the network never learns from. Which of the two will be higher, and why?

# %%
recipe = train.Recipe(epochs=2 if SMALL else 5, seed=0)
fast = fused.convert(models.mobilenet_v1_small(seed=0))
history = train.fit(fast, data, recipe)

say(
    table(
        [
            [
                r.epoch,
                f"{r.loss:.3f}",
                f"{r.accuracy:.1%}",
                f"{r.test_loss:.3f}",
                f"{r.test_accuracy:.1%}",
                f"{r.seconds:.1f}",
            ]
            for r in history
        ],
        ["epoch", "training loss", "training accuracy", "test loss", "test accuracy", "seconds"],
    )
)

# %%
epochs = [r.epoch for r in history]
fig, (left, right) = figure(8, 3.2, ncols=2)
for ax, ours, theirs in (
    (left, [r.loss for r in history], [r.test_loss for r in history]),
    (right, [100 * r.accuracy for r in history], [100 * r.test_accuracy for r in history]),
):
    ax.plot(epochs, ours, "o--", color=BLUE, label="training")
    ax.plot(epochs, theirs, "s-", color=VERMILION, label="test")
    ax.set_xlabel("epoch")
    ax.set_xticks(epochs)
left.axhline(math.log(10), color=BLACK, lw=0.8, ls=":", label="log 10")
left.set(title="loss (nats)", ylim=(0, None))
right.axhline(10, color=BLACK, lw=0.8, ls=":", label="guessing")
right.set(title="accuracy (%)", ylim=(0, 100))
left.legend()
right.legend(loc="center right")
show(fig, "Training and test loss and accuracy by epoch")

loss, accuracy, predicted = train.evaluate(fast, data.test)
error = 100 * math.sqrt(accuracy * (1 - accuracy) / len(data.test))
behind = sum(r.accuracy < r.test_accuracy for r in history)
say(
    f"**Test accuracy {accuracy:.2%}** after {sum(r.seconds for r in history):.0f} seconds. One standard error, from "
    f"having {len(data.test):,} test images and not infinitely many, is {error:.1f} percentage points. "
    f"In {behind} of {len(history)} epochs the test accuracy is the higher one."
)

# %% [markdown]
# The training numbers are taken *while* the network learns, from moved and mirrored images, so they are the
# mean over an epoch of a network that was worse at its beginning. The test comes at the epoch's end, with
# unmoved images. That is why the test can be ahead. A training curve far above the test curve would mean
# something else: images learned by heart.
#
# We have not chosen anything by looking at the test images: not the epoch, not the rate. Whoever tries
# twenty settings and reports the best test accuracy reports luck as well.
#
# ## What it confuses
#
# One number hides a lot. A confusion matrix has a row for what an image shows and a column for what the
# network said.

# %%
confusion = np.zeros((10, 10), int)
np.add.at(confusion, (data.test.labels, predicted), 1)

fig, ax = figure(6.4, 5.4)
ax.imshow(np.sqrt(confusion), cmap="Blues")  # the root, so that single mistakes are seen beside hundreds
for i, j in np.ndindex(10, 10):
    if confusion[i, j]:
        white = confusion[i, j] > 0.4 * confusion.max()
        ax.text(
            j, i, confusion[i, j], ha="center", va="center", color="white" if white else BLACK, fontsize=10
        )
ax.set_xticks(range(10), data.classes, rotation=45, ha="right")
ax.set_yticks(range(10), data.classes)
ax.set_xlabel("the network said")
ax.set_ylabel("the image shows")
ax.spines[:].set_visible(False)
show(fig, "Confusion matrix: how often each class was taken for each other one")

off = confusion - np.diag(np.diag(confusion))
i, j = np.unravel_index(off.argmax(), off.shape)
recall = np.diag(confusion) / confusion.sum(axis=1).clip(1)
say(
    f"The most frequent mistake: {data.classes[i]} taken for {data.classes[j]}, {off[i, j]} times. "
    f"Recognised best: {data.classes[recall.argmax()]} ({recall.max():.0%}), "
    f"worst: {data.classes[recall.argmin()]} ({recall.min():.0%})."
)

# %% [markdown]
# ## Look at the mistakes
#
# The best ten minutes in machine learning are spent looking at what is wrong. Sort the mistakes by how sure
# the network was. You will often find wrong labels, images that nobody could name, or a pattern that you
# can fix.

# %%
x = datasets.normalise(data.test.images, data.mean, data.std)
p = np.concatenate([cross_entropy.softmax(fast(part)) for part in np.array_split(x, max(1, len(x) // 250))])
wrong = np.flatnonzero(predicted != data.test.labels)
surest = wrong[np.argsort(-p[wrong, predicted[wrong]])][:12]

fig, axes = figure(8, 3.6, nrows=2, ncols=6)
for ax in axes.flat:
    ax.axis("off")
for ax, i in zip(axes.flat, surest, strict=False):
    said, shown = data.classes[predicted[i]], data.classes[data.test.labels[i]]
    ax.imshow(data.test.images[i])
    ax.set_title(f"{said} {p[i, predicted[i]]:.0%}\nis: {shown}", fontsize=10)
show(fig, "The mistakes that the network was surest of, with what it said and what is right")
say(f"{len(wrong)} of {len(data.test):,} test images are wrong; these are the ones it was surest of.")

# %% [markdown]
# Could you tell? A shape half outside or in nearly the colours of its background is hard for you, too. Others
# you would name at a glance, and these are the interesting ones. Look for what they have in common: a bar, a
# shadow, a texture. Then ask whether there are enough training images with just that. Lesson 11 looks at
# which pixels made the network say what it said.
#
# The article that mbnp began with ends with the advice to exchange one line of "the train.py from before" and
# to run it. That script is not part of the article. Now you have one, and it is shorter than you may have
# thought: `mbnp/train.py`.
#
# ## Questions
#
# 1. A network for 1000 classes starts with a loss of 6.91. Is that good? And one that starts with 11?
# 2. Your loss does not fall. Overfitting one batch works. Name two things that may be wrong, and two that
#    cannot be.
# 3. Somebody computes the sum of the losses of a batch instead of the mean. Which learning rate gives them
#    the same training as ours at batch size 64?
# 4. Why does the gradient of each image's logits add up to zero? Which change of the logits changes no
#    probability?
# 5. Mirroring helps with photographs of animals. What would it do to a network that reads road signs?
# 6. The test accuracy of two runs differs by half a percentage point. What must you know before you call one
#    better?
#
# ## Exercises
#
# The stubs are in [`tutorials/exercises/06.py`](exercises/06.py). Fill them in, then run
#
#     mbnp grade tutorials/exercises/06.py
#
# **1. `loss_gradient`**: the gradient of the mean cross-entropy with respect to the logits.
#
# <details><summary>Hint</summary>
#
# Probabilities minus 1 at the right class, divided by the number of images. To reach one number in each
# row, index with two lists: `dlogits[np.arange(N), labels]`. Mind logits as large as 200.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def loss_gradient(logits, labels):
#     N = len(labels)
#     powers = np.exp(logits - logits.max(axis=1, keepdims=True))
#     dlogits = powers / powers.sum(axis=1, keepdims=True)
#     dlogits[np.arange(N), labels] -= 1
#     return dlogits / N
# ```
#
# </details>
#
# **2. `one_cycle`**: the learning rate of every step of a run.
#
# <details><summary>Hint</summary>
#
# Half a cosine from `a` to `b` is $b + \frac{a - b}{2}(1 + \cos \pi s)$, where $s$ goes from 0 to 1. Before
# the peak, $s$ is the step divided by the peak's step; after it, count from the peak to the last step.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def one_cycle(peak, total, warm):
#     start, end = peak / 25, peak / 25 / 10_000
#     top, last = warm * total - 1, total - 1
#     rates = np.empty(total)
#     for step in range(total):
#         if step <= top:
#             a, b, s = start, peak, step / top
#         else:
#             a, b, s = peak, end, (step - top) / (last - top)
#         rates[step] = b + (a - b) / 2 * (1 + np.cos(np.pi * s))
#     return rates
# ```
#
# </details>
#
# **3. `mirror_and_crop`**: an augmentation whose random draws are already made.
#
# <details><summary>Hint</summary>
#
# One image after the other is fine. `np.pad` has a mode for the reflection, and takes a pair for every
# axis: the channels get `(0, 0)`. After the cut, `[:, ::-1]` of one image (H, W, C) mirrors it.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def mirror_and_crop(images, top, left, mirrored, pad):
#     N, H, W, C = images.shape
#     result = np.empty_like(images)
#     for n in range(N):
#         padded = np.pad(images[n], ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
#         cut = padded[top[n] : top[n] + H, left[n] : left[n] + W]
#         result[n] = cut[:, ::-1] if mirrored[n] else cut
#     return result
# ```
#
# </details>
