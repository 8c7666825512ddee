"""MobileNet in one file: the layers, their gradients and the training, in NumPy and nothing else.

    python tutorials/mobilenet.py

trains it for three epochs on 10,000 images of ten shapes, and says how many of 2,000 others it recognises: 93 % with
seed 0 and 94 % with seed 1, in four minutes of processor time on one core of a Xeon. It is the network of `mbnp train`,
without anything that makes it fast: read it from top to bottom, there is nothing else to open.

IMAGES are arrays of four axes (N, H, W, C): which image, row, column, channel. The network begins with 3 channels, red,
green and blue, and makes more of them, and fewer pixels, until each image is one row of 512 numbers, and then ten
scores, one for each class.

A LAYER is a function that returns its output y, and another function, `back`. `back` answers one question: given dy,
how fast the loss changes with each number of y, how fast does it change with each number of the layer's input, dx, and
of its weights, dw? A gradient has the shape of what it belongs to.

THE NETWORK is a chain of layers. Forward it keeps every `back`; backward it calls them in reverse order. That is all of
backpropagation.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
https://arxiv.org/abs/1704.04861
"""

import numpy as np

from mbnp.datasets import shapes10

PIXELS = (0, 1, 2)  # the axes of all pixels of all images: what a channel's statistics and sums are taken over
BLOCKS = [(32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]  # channels out, stride


# ---------------------------------------------------------------- convolutions
#
# A 3x3 convolution multiplies the pixel in row i*stride + u, column j*stride + v by the weight of tap (u, v), and adds
# up the nine products. We do one tap at a time, for all pixels of all images at once.
#
#     standard     y[n,i,j,d] = sum of x[n,p,q,c] w[u,v,c,d] over u, v and c      pixels and channels are mixed
#     depthwise    y[n,i,j,c] = sum of x[n,p,q,c] w[u,v,c]   over u and v         pixels only
#     pointwise    y[n,i,j,d] = sum of x[n,i,j,c] w[c,d]     over c               channels only
#
# The first needs 9*C*D multiplications for a pixel, the other two together 9*C + C*D: for 128 channels an eighth.
# This is MobileNet's idea, and all of it.


def pad(x):
    """Put a border of zeros, one pixel wide, around each image."""
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def tap(padded, u, v, stride=1):
    """Return the pixels that tap (u, v) multiplies, one for each output pixel: a view, nothing is copied."""
    _, rows, columns, _ = padded.shape
    return padded[:, u : u + rows - 2 : stride, v : v + columns - 2 : stride]


def mix(x, w):
    """Return x (..., C) @ w (C, D) as one matrix product of all pixels."""
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[-1])


def standard(x, w):
    """Convolve x (N, H, W, C) with w (3, 3, C, D): every output channel uses every input channel."""
    padded = pad(x)
    y = sum(mix(tap(padded, u, v), w[u, v]) for u, v in np.ndindex(3, 3))

    def back(dy):
        dpadded, dw = np.zeros_like(padded), np.empty_like(w)
        for u, v in np.ndindex(3, 3):
            pixels, dpixels = tap(padded, u, v), tap(dpadded, u, v)
            dw[u, v] = np.tensordot(pixels, dy, (PIXELS, PIXELS))  # a weight is used at every pixel: a sum over them
            dpixels += mix(dy, w[u, v].T)  # a pixel is used by nine windows: dpixels is a view, and adds to dpadded
        return dpadded[:, 1:-1, 1:-1], dw

    return y, back


def depthwise(x, w, stride):
    """Convolve each channel of x (N, H, W, C) with its own kernel of w (3, 3, C)."""
    padded = pad(x)
    y = sum(tap(padded, u, v, stride) * w[u, v] for u, v in np.ndindex(3, 3))

    def back(dy):
        dpadded, dw = np.zeros_like(padded), np.empty_like(w)
        for u, v in np.ndindex(3, 3):
            pixels, dpixels = tap(padded, u, v, stride), tap(dpadded, u, v, stride)
            dw[u, v] = np.einsum("nijc,nijc->c", pixels, dy)
            dpixels += dy * w[u, v]
        return dpadded[:, 1:-1, 1:-1], dw

    return y, back


def pointwise(x, w):
    """Mix the channels of each pixel: x (N, H, W, C) and w (C, D) give (N, H, W, D)."""
    return mix(x, w), lambda dy: (mix(dy, w.T), np.tensordot(x, dy, (PIXELS, PIXELS)))


# ------------------------------------------------- what stands between two convolutions


def batchnorm(x, gamma, beta, mean, var, train, momentum=0.1, eps=1e-5):
    """Give every channel mean 0 and variance 1, then the mean beta and the standard deviation gamma.

    In training mean and variance are those of the batch, and `mean` and `var`, running averages of them, are updated in
    place. Otherwise those averages are used: then the output for an image does not depend on the images beside it.
    """
    if not train:
        return (x - mean) * (gamma / np.sqrt(var + eps)) + beta, None
    count, mu = x[..., 0].size, x.mean(PIXELS)
    centred = x - mu
    variance = np.square(centred).mean(PIXELS)
    mean += momentum * (mu - mean)
    var += momentum * (variance * count / (count - 1) - var)  # unbiased: it stands for images not yet seen
    s = np.sqrt(variance + eps)
    xhat = centred / s

    def back(dy):
        # A value of x acts on its channel three ways: by itself, through the mean, and through s. Hence three terms.
        dgamma, dbeta = np.einsum("nijc,nijc->c", dy, xhat), dy.sum(PIXELS)
        return gamma / s * (dy - dbeta / count - xhat * (dgamma / count)), dgamma, dbeta

    return gamma * xhat + beta, back


def relu(x):
    """Replace what is negative by 0, and let the gradient through where x was positive."""
    return np.maximum(x, 0), lambda dy: (dy * (x > 0),)


# ------------------------------------------------------------ the end of the network


def average(x):
    """Return the mean of all pixels of each image: (N, H, W, C) becomes (N, C)."""
    _, rows, columns, _ = x.shape
    return x.mean((1, 2)), lambda dy: (np.broadcast_to(dy[:, None, None] / (rows * columns), x.shape),)


def linear(x, w, b):
    """Return one score for each class: x (N, C), w (C, D) and b (D,) give (N, D)."""
    return x @ w + b, lambda dy: (dy @ w.T, x.T @ dy, dy.sum(0))


def cross_entropy(scores, labels):
    """Return the loss, the mean of -log p[label] with p = softmax(scores), and its gradient with respect to scores."""
    right = np.arange(len(labels)), labels
    scores = scores - scores.max(1, keepdims=True)  # changes no p, and exp cannot overflow
    total = np.exp(scores).sum(1)
    p = np.exp(scores) / total[:, None]
    loss = (np.log(total) - scores[right]).mean()  # -log p, but finite where p is rounded to 0
    p[right] -= 1  # what was predicted minus what should have been
    return loss, p / len(labels)


# ------------------------------------------------------------------ the network


def convolutions():
    """Yield the network's convolutions in order: name, layer, shape of its weights, options."""
    yield "stem", standard, (3, 3, 3, 32), {}
    channels = 32
    for number, (out, stride) in enumerate(BLOCKS, start=1):
        yield f"block{number}.depthwise", depthwise, (3, 3, channels), {"stride": stride}
        yield f"block{number}.pointwise", pointwise, (channels, out), {}
        channels = out


def create(classes=10, seed=0, dtype=np.float32):
    """Return a new network, its arrays by name, with random weights.

    BatchNorm removes the scale of w from y, but not from its gradient: a w half as large has a gradient twice as large,
    and for its size a step moves it four times as far. So we begin with small weights.
    """
    rng, net = np.random.default_rng(seed), {}
    for name, _, shape, _ in convolutions():
        fan_in, channels = np.prod(shape[:-1]), shape[-1]  # an output is a sum of fan_in products
        net[name + ".w"] = rng.normal(0, 0.25 / np.sqrt(fan_in), shape)
        net |= {name + ".gamma": np.ones(channels), name + ".beta": np.zeros(channels)}
        net |= {name + ".mean": np.zeros(channels), name + ".var": np.ones(channels)}
    net |= {"classes.w": rng.normal(0, np.sqrt(1 / channels), (channels, classes)), "classes.b": np.zeros(classes)}
    return {name: array.astype(dtype) for name, array in net.items()}


def forward(net, x, train=False):
    """Return the scores (N, classes) of images x and, in training, `back`: from their gradient to dx and all others."""
    trail = []  # every layer's weights by name, and its `back`

    def run(layer, *names, **options):
        nonlocal x
        x, back = layer(x, *(net[name] for name in names), **options)
        trail.append((names, back))

    for name, convolution, _, options in convolutions():
        run(convolution, name + ".w", **options)
        running = {"mean": net[name + ".mean"], "var": net[name + ".var"]}  # not weights: no gradient, no decay
        run(batchnorm, name + ".gamma", name + ".beta", **running, train=train)
        run(relu)
    run(average)
    run(linear, "classes.w", "classes.b")

    def back(dy):
        gradients = {}
        for names, layer_back in reversed(trail):
            dy, *of_weights = layer_back(dy)
            gradients |= dict(zip(names, of_weights, strict=True))
        return dy, gradients

    return x, back


# ------------------------------------------------------------------ the training


def step(net, velocity, x, labels, rate, momentum=0.9, decay=5e-4):
    """Move every weight a little against its gradient (SGD with momentum); return the loss before it."""
    scores, back = forward(net, x, train=True)
    loss, dscores = cross_entropy(scores, labels)
    _, gradients = back(dscores)
    for name, gradient in gradients.items():
        velocity[name] = momentum * velocity.get(name, 0) + gradient + decay * net[name]
        net[name] -= rate * velocity[name]
    return loss


def accuracy(net, x, labels, batch=100):
    """Return the fraction of images whose highest score is that of their class."""
    guesses = [forward(net, x[k : k + batch])[0].argmax(1) for k in range(0, len(x), batch)]
    return np.mean(np.concatenate(guesses) == labels)


def train(net, data, epochs=3, batch=64, peak=0.1, seed=0, report=print):
    """Go through the training images `epochs` times, in a new order each time, with one step for each batch."""
    x, x_test = (normalise(split.images, data) for split in (data.train, data.test))
    rng, velocity, steps = np.random.default_rng(seed), {}, len(x) // batch
    for epoch in range(epochs):
        order, losses = rng.permutation(len(x)), []
        for k in range(steps):
            done = (epoch * steps + k) / (epochs * steps)
            rate = peak * min(5 * done, 1.25 * (1 - done))  # up during the first fifth of the steps, then down to 0
            chosen = order[k * batch : (k + 1) * batch]
            losses.append(step(net, velocity, x[chosen], data.train.labels[chosen], rate))
            if (k + 1) % 26 == 0:
                report(f"epoch {epoch + 1}/{epochs}, step {k + 1} of {steps}: loss {np.mean(losses[-26:]):.3f}")
        report(f"epoch {epoch + 1}/{epochs}: test accuracy {accuracy(net, x_test, data.test.labels):.1%}")


def normalise(images, data):
    """Return images of bytes as numbers whose mean is 0 and whose standard deviation is 1, channel by channel."""
    return (images / np.float32(255) - np.float32(data.mean)) / np.float32(data.std)


if __name__ == "__main__":
    network = create()
    weights = sum(array.size for name, array in network.items() if not name.endswith((".mean", ".var")))
    print(f"MobileNet with {weights:,} weights; shapes10, drawn by mbnp")
    train(network, shapes10.make())
