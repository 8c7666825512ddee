# %% [markdown]
# # 6. Training
#
# **A new network is a few hundred thousand random numbers, and it is wrong nine times out of ten. How does it
# become a network that is right, and how do you notice in the first minute that something is broken, instead
# of after an hour?**
#
# At the end you can train a network and check that it works: you know what the loss must be before the first
# step, you have a test that finds most bugs in seconds, you can choose a learning rate from a plot, and you
# can see what the network gets wrong. You need lesson 5. It takes about half an hour.

# %%
import dataclasses
import math
import os

import numpy as np
from lesson import BLACK, BLUE, GREEN, SMALL, VERMILION, figure, measured_here, say, show, source, table

from mbnp import datasets, fused, models, optim, train
from mbnp.errors import DivergedError
from mbnp.ops import softmax_cross_entropy as cross_entropy
from mbnp.optim import schedules

measured_here()

# %% [markdown]
# ## The images
#
# If the environment variable `MBNP_DATA` names CIFAR-10, this lesson uses 10,000 of its photographs.
# Otherwise mbnp draws a data set of its own: *shapes10*, ten shapes on busy backgrounds, often with a bar
# across them. The rendered page of this lesson was made with shapes10. A label is a number from 0 to 9, the
# index of the right class in a list of names.

# %%
counts = (320, 100) if SMALL else (10_000, 2_000)
spec = os.environ.get("MBNP_DATA") or "shapes10"
data = datasets.shapes10.make(*counts) if spec == "shapes10" else datasets.load(spec)
splits = [
    datasets.Split(split.images[:count], split.labels[:count])
    for split, count in zip((data.train, data.test), counts, strict=True)
]
data = dataclasses.replace(data, train=splits[0], test=splits[1])
say(f"{data}. The classes: {', '.join(data.classes)}.")

fig, axes = figure(8, 2.2, nrows=2, ncols=10)
for label, column in enumerate(axes.T):
    for ax, i in zip(column, np.flatnonzero(data.train.labels == label), strict=False):
        ax.imshow(data.train.images[i])
        ax.axis("off")
    column[0].set_title(data.classes[label], fontsize=10)
show(fig, "Two training images of each of the ten classes")

# %% [markdown]
# ## One number for the error
#
# The network gives each class a score, a *logit*, and any score is allowed. Training needs one number that
# says how bad the scores are, and that can be differentiated everywhere. It is computed in two steps. Softmax
# turns the scores $z$ of an image into probabilities $p$, which are positive and add up to 1. The loss of the
# image, its *cross-entropy*, is then $-\log$ of the right class's probability: 0 if the network was certain
# of it, large if it considered it nearly impossible.
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
losses = -np.log(p[np.arange(2), labels])
rows = [
    [
        n,
        ", ".join(f"{z:g}" for z in logits[n]),
        ", ".join(f"{q:.3f}" for q in p[n]),
        labels[n],
        f"{losses[n]:.3f}",
    ]
    for n in range(2)
]
say(table(rows, ["image", "logits", "probabilities", "label", "-log p[label]"]))
say(
    f"The loss is the mean of the last column, {losses.mean():.4f}. "
    f"mbnp says {cross_entropy.forward(logits, labels):.4f}."
)

# %% [markdown]
# **Before you run the next cell:** you may change each of the six logits a little. In which direction would
# you change the three of the first image to make the loss smaller? And for which image do the logits matter
# more?

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
# The gradient is the predicted probability minus the desired one, divided by the number of images:
#
# $$\frac{\partial L}{\partial z_{n,d}} = \frac{p_{n,d} - [d = \text{label}_n]}{N}$$
#
# The bracket is 1 for the right class and 0 for the others. Three things are worth remembering. Each row adds
# up to 0: what one class gains, the others lose. The second image has the larger gradient, because the
# network was less certain about it. And the $1/N$ is easily forgotten. Without it the network still learns,
# but the learning rate then means something different for every batch size. Here is mbnp's own
# implementation, as plain loops:

# %%
source(cross_entropy.backward_loops)

# %% [markdown]
# `highest` is there because `exp` of 89 is already infinite in float32. Subtracting the same number from
# every logit of a row changes no probability.
#
# ## Check 1: the loss before the first step
#
# **Before you run the next cell:** an untrained network has ten outputs and no reason to prefer any class.
# Which probability does it give each of them, and what is $-\log$ of that?

# %%
net = models.mobilenet_v1_small(seed=0)
rng = np.random.default_rng(0)
batches = datasets.batches(data.train, 64, rng, mean=data.mean, std=data.std)
x, y = next(batches)
logits = fused.convert(net).forward(x, train=True)
first_loss, sigma = float(cross_entropy.forward(logits, y)), float(logits.std())
say(
    f"Expected: log 10 = {math.log(10):.4f}. Measured: **{first_loss:.4f}**. Accuracy: "
    f"{np.mean(logits.argmax(axis=1) == y):.0%} of 64 images."
)

# %% [markdown]
# $-\log \frac1{10} = \log 10$. This is the cheapest test there is: one forward pass. Much more than $\log 10$
# means that the network starts with confident predictions that have no basis: the weights are too large, the
# images are not normalised, or the labels do not fit the outputs. Why is the loss a little more than $\log
# 10$ even so? Because the logits are not equal but random. If they have the standard deviation $\sigma$ and
# are independent of the labels, then, as long as $\sigma$ is small, $L \approx \log D + \sigma^2/2$ for $D$
# classes. We can scale the network's logits up and watch.

# %%
factors = np.linspace(0, 12, 49)
losses = [float(cross_entropy.forward(np.float32(f) * logits, y)) for f in factors]

fig, ax = figure(8, 3.2)
ax.plot(factors * sigma, losses, color=BLUE, label="measured: this network's logits, times a factor")
near = factors * sigma < 1.7
ax.plot(
    factors[near] * sigma,
    math.log(10) + (factors[near] * sigma) ** 2 / 2,
    "--",
    color=VERMILION,
    label=r"$\log 10 + \sigma^2/2$",
)
ax.axhline(math.log(10), color=BLACK, lw=0.8, ls=":", label="log 10")
ax.plot([sigma], [first_loss], "o", color=BLACK, ms=7, label="as they are")
ax.set_xlabel(r"standard deviation $\sigma$ of the logits of an untrained network")
ax.set_ylabel("loss (nats)")
ax.set_ylim(bottom=2)
ax.legend()
show(fig, "The loss of an untrained network is log 10 for small logits and grows with their standard deviation")

# %% [markdown]
# A network that knows nothing does best with equal probabilities. The only way to do worse is to be confident
# and wrong.
#
# ## One step
#
# Everything is ready: lessons 3 and 4 gave every layer its backward pass, and lesson 5 chained them. One step
# is: set the gradients to zero, run forward, run backward, and change every weight a little against its
# gradient. This is mbnp's step, including what it does when the loss is NaN or infinite:

# %%
source(train._step)

# %% [markdown]
# ## Check 2: overfit one batch
#
# Before you train on 10,000 images, train on 64, the same 64 again and again. A network with thousands of
# weights for each image must be able to memorise 64 labels. If the loss does not go to nearly 0, do not tune
# anything: something is broken. A wrong gradient, a layer that gets none, an update with the wrong sign, a
# learning rate that is wrong by a factor of a thousand: this test finds them in a few seconds.
#
# Does it also find labels that do not belong to their images? **Before you run the next cell:** we do it
# twice, once with the right labels and once with random labels. Does the loss go to 0 the second time?


# %%
def overfit(labels, steps=4 if SMALL else 60):
    net = fused.convert(models.mobilenet_v1_small(seed=0))
    opt = optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    return [train.step(net, opt, x, labels) for _ in range(steps)]


right_labels, random_labels = overfit(y), overfit(np.random.default_rng(1).integers(0, 10, len(y)))

fig, ax = figure(8, 3.2)
ax.semilogy(right_labels, color=BLUE, label="right labels")
ax.semilogy(random_labels, "--", color=VERMILION, label="random labels")
ax.axhline(math.log(10), color=BLACK, lw=0.8, ls=":", label="log 10")
ax.set_xlabel("step, always on the same 64 images")
ax.set_ylabel("loss (nats), logarithmic")
ax.legend()
show(fig, "The loss on one batch falls towards zero with right labels and with random ones")
say(
    f"After {len(right_labels)} steps the loss is {right_labels[-1]:.5f} with the right labels and "
    f"{random_labels[-1]:.5f} with random ones."
)

# %% [markdown]
# The network memorises random labels just as well. So this test shows that training works: every layer gets a
# gradient, with the right sign. It does not show that the network generalises. Only images that it has never
# seen can show that, which is why the test images are kept apart. (Zhang et al. did this with all of
# ImageNet, "Understanding deep learning requires rethinking generalization", arXiv:1611.03530.)
#
# ## How large a step?
#
# The learning rate matters more than all other settings together. Leslie Smith's range test (section 3.3 of
# arXiv:1506.01186) finds it in one short run: begin with a rate that is far too small, increase it by a
# constant factor after each batch, and record the loss. If the rate is too small, nothing happens. If it is
# too large, the loss rises.
#
# Which network do we test? An untrained network hardly learns from images that are new in every batch and at
# rates that begin near zero: for the first hundred steps its loss hardly changes (one batch repeated at a
# high rate, as in check 2, is much easier). The test would only show where training diverges. So we do it
# twice, with an untrained network and with one that has been trained for two epochs at a moderate rate. (An
# epoch is one pass over all training images.)
#
# **Before you run the next cell:** the rate runs from 0.0001 to 10. At which rate do you expect the loss to
# begin to fall, and at which to diverge?

# %%
untrained = models.mobilenet_v1_small(seed=0)
trained = models.mobilenet_v1_small(seed=0)
moderate = train.Recipe(epochs=1 if SMALL else 2, lr=0.05, schedule="constant", augment=False)
train.fit(fused.convert(trained), data, moderate)


def range_test(net, low=1e-4, high=10.0, steps=5 if SMALL else 110):
    opt = optim.SGD(net.parameters(), lr=low, momentum=0.9, nesterov=True, weight_decay=5e-4)
    rates, losses = low * (high / low) ** (np.arange(steps) / (steps - 1)), []
    options = {"mean": data.mean, "std": data.std, "augment": datasets.augment}
    batches = datasets.batches(data.train, 64, np.random.default_rng(0), **options)
    for rate, (x, y) in zip(rates, batches, strict=False):
        opt.set(lr=rate)
        try:
            losses.append(train.step(net, opt, x, y))
        except DivergedError:  # the loss is not finite: larger rates are useless
            break
    smooth = [np.mean(losses[max(0, i - 4) : i + 5]) for i in range(len(losses))]
    return rates[: len(losses)], np.array(losses), np.array(smooth)


fig, ax = figure(8, 3.6)
for net, name, colour, line in (
    (untrained, "untrained", VERMILION, "--"),
    (trained, "after two epochs", BLUE, "-"),
):
    rates, losses, smooth = range_test(fused.convert(net))
    ax.semilogx(rates, losses, ".", color=colour, alpha=0.35, ms=4)
    ax.semilogx(rates, smooth, line, color=colour, label=name)
ax.axhline(math.log(10), color=BLACK, lw=0.8, ls=":", label="log 10")
ax.axvline(0.1, color=GREEN, ls="-.", label="our choice: 0.1")
ax.set_xlabel("learning rate, a little larger after every batch")
ax.set_ylabel("loss (nats), mean of nine batches")
ax.set_ylim(0, 5)
ax.legend(loc="upper left")
show(fig, "Learning-rate range test: the loss is flat at small rates, then falls, then diverges")

best = rates[smooth.argmin()]
too_large = rates[(rates > best) & (smooth > 2 * smooth[0])]
diverged = too_large[0] if len(too_large) else rates[-1]
say(
    f"After two epochs the loss begins at {smooth[0]:.2f}, is lowest, {smooth.min():.2f}, at about {best:.2g}, "
    f"and at {diverged:.2g} it is twice what it was."
)

# %% [markdown]
# Three regions: too small to matter, useful, too large. (At still larger rates the loss comes back to about
# $\log 10$, because BatchNorm keeps the numbers finite: what was learned is lost, and the network guesses
# again. Towards the end it rises once more, since large steps make large logits, and a confident guess costs
# more than a cautious one.) The useful region spans about a factor of ten, and we take its upper end, 0.1: as large
# as possible without divergence. For a whole run that would be risky, but the schedule below stays there only
# briefly. Read only the order of magnitude from such a plot, not the second digit. The axis is logarithmic, and
# every batch is seen at one rate only.
#
# ## A rate for each step
#
# A large rate makes fast progress but cannot settle in a minimum; a small one settles in whatever minimum is
# near. So we use both, in a *one-cycle* schedule: up to the peak early in training, then slowly down to
# almost zero. In numbers: it begins at a 25th of the peak, reaches the peak after `warm`, a fifth of all steps
# (at step `warm * total - 1`, since steps are counted from 0), and ends at a 10,000th of where it began. Momentum,
# which keeps each step going in the direction of the previous ones, moves the other way. The learning rate and
# the momentum are all that the update rule of stochastic gradient descent needs, besides weight decay. Here they
# are: half a cosine for the schedule, and the rule.

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
source(schedules._between, optim.SGD.update)

# %% [markdown]
# ## Augmentation: more images than there are
#
# A shape is still the same shape two pixels to the left. Shifting and mirroring the images at random gives
# the network new ones in every epoch, so it cannot memorise them. The pixels that are shifted in from outside
# are the image's own reflection. The first column is the original.

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
# An augmentation assumes that the change does not change the class. Check whether that is true of your
# images. A mirrored car is a car. A mirrored 3 is not a 3. And in shapes10 a crescent is always open to the
# right, so a mirrored one is still labelled a crescent but never occurs in the test images.
#
# ## Training
#
# Now the whole training run. **Before you run the next cell:** the curves show accuracy on the training
# images and on test images that the network never learns from. Which of the two will be higher, and why?

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
# The training numbers are taken *while* the network learns, from shifted and mirrored images, so they are the
# mean over an epoch at whose beginning the network was worse. The test comes at the epoch's end, with
# unchanged images. That is why the test accuracy can be the higher one. A training curve far above the test
# curve would mean something else: memorised images, that is, overfitting.
#
# We have not chosen anything by looking at the test images: neither the epoch nor the learning rate. If you
# try twenty settings and report the best test accuracy, part of what you report is luck.
#
# ## Which classes it confuses
#
# One number hides a lot. A confusion matrix has a row for each true class and a column for each predicted
# class.

# %%
confusion = np.zeros((10, 10), int)
np.add.at(confusion, (data.test.labels, predicted), 1)

fig, ax = figure(6.4, 5.4)
ax.imshow(np.sqrt(confusion), cmap="Blues")  # the square root, so that single mistakes are visible beside hundreds
for i, j in np.ndindex(10, 10):
    if confusion[i, j]:
        white = confusion[i, j] > 0.4 * confusion.max()
        ax.text(j, i, confusion[i, j], ha="center", va="center", color="white" if white else BLACK, fontsize=10)
ax.set_xticks(range(10), data.classes, rotation=45, ha="right")
ax.set_yticks(range(10), data.classes)
ax.set_xlabel("predicted class")
ax.set_ylabel("true class")
ax.spines[:].set_visible(False)
show(fig, "Confusion matrix: how often each class was predicted as each other class")

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
# Ten minutes spent looking at the mistakes are always worth it. Sort them by how confident the network was.
# You will often find wrong labels, images that nobody could recognise, or a pattern that you can fix.

# %%
x = datasets.normalise(data.test.images, data.mean, data.std)
p = np.concatenate([cross_entropy.softmax(fast(chunk)) for chunk in np.array_split(x, max(1, len(x) // 250))])
wrong = np.flatnonzero(predicted != data.test.labels)
most_confident = wrong[np.argsort(-p[wrong, predicted[wrong]])][:12]

fig, axes = figure(8, 3.6, nrows=2, ncols=6)
for ax in axes.flat:
    ax.axis("off")
for ax, i in zip(axes.flat, most_confident, strict=False):
    guess, truth = data.classes[predicted[i]], data.classes[data.test.labels[i]]
    ax.imshow(data.test.images[i])
    ax.set_title(f"{guess} {p[i, predicted[i]]:.0%}\nis: {truth}", fontsize=10)
show(fig, "The mistakes with the highest confidence, with the predicted and the true class")
say(f"{len(wrong)} of {len(data.test):,} test images are classified wrongly. These are the most confident mistakes.")

# %% [markdown]
# Could you classify them? A shape half outside the image or in nearly the colours of its background is hard
# for you, too. Others you would recognise at a glance, and these are the interesting ones. Look for what they
# have in common: a bar, a shadow, a texture. Then ask whether there are enough training images with that
# feature. Lesson 11 looks at which pixels led the network to its prediction.
#
# The article that mbnp began with ends with the advice to replace one line of "the train.py from before" and
# to run it. That script is not part of the article. Now you have one, and it is shorter than you may have
# thought: `mbnp/train.py`. It also takes a loss of your own, `train.step(..., loss=...)`, and a function that
# may change the gradients before the update, such as one that clips them, `train.step(...,
# on_gradients=...)`.
#
# ## Questions
#
# 1. A network for 1000 classes starts with a loss of 6.91. Is that good? And one that starts with 11?
# 2. Your loss does not fall. Overfitting one batch works. Name two things that may be wrong, and two that
#    cannot.
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
# <!-- mbnp/grading/lessons/hints/06.md: loss_gradient -->
#
# **2. `one_cycle`**: the learning rate of every step of a run.
#
# <!-- mbnp/grading/lessons/hints/06.md: one_cycle -->
#
# **3. `mirror_and_crop`**: an augmentation whose random numbers are given.
#
# <!-- mbnp/grading/lessons/hints/06.md: mirror_and_crop -->
