"""Draw the README's pictures into tutorials/rendered/.

    python tutorials/pictures.py separable     one block of a trained network, with its real feature maps; a minute
    python tutorials/pictures.py front         accuracy against cost, of networks trained alike; about ten minutes

Both train on shapes10, which needs no download.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from mbnp import cost, datasets, fused, models, plots, train
from mbnp.network import Network

RENDERED = Path(__file__).parent / "rendered"
EPOCHS = 5
# Model and width: networks for images of 32x32, each at sizes that cost about as much as the others.
TRAINED = (
    *(("mobilenet-v1-small", width) for width in (0.25, 0.5, 1.0)),
    *(("standard-small", width) for width in (0.25, 0.5)),
    *(("mobilenet-v1-cifar", width) for width in (0.25, 0.5)),
    *(("mobilenet-v2-cifar", width) for width in (0.25, 0.5)),
    *(("mobilenet-v3-small-cifar", width) for width in (0.5, 1.0)),
    *(("xception-cifar", width) for width in (0.25, 0.5)),
    ("resnet20", 1.0),
)
INPUTS, OUTPUTS = 4, 3  # feature maps that the first picture shows


def trained(name: str, width: float) -> tuple[Network, float]:
    """Return a network trained on shapes10, and its test accuracy."""
    data = datasets.load("shapes10")
    chosen = {"width_mult": width} if width != 1 else {}
    net = models.create(name, num_classes=len(data.classes), **chosen)
    history = train.fit(fused.convert(net), data, train.Recipe(epochs=EPOCHS))
    return net, history[-1].test_accuracy


def apart(maps: np.ndarray, worth: np.ndarray, count: int) -> list[int]:
    """Return channels of maps (H, W, C) that are worth showing, and of which no two look alike."""
    alike = np.nan_to_num(np.abs(np.corrcoef(maps.reshape(-1, maps.shape[2]).T)))
    chosen = [int(worth.argmax())]
    while len(chosen) < count:
        chosen.append(int((worth * (1 - alike[chosen].max(axis=0))).argmax()))
    return chosen


def separable() -> Figure:
    """Draw the first block of the article's network at work: a kernel for each map, then sums of all maps."""
    net, _ = trained("mobilenet-v1-small", 1.0)
    data = datasets.load("shapes10")
    image = data.test.images[np.flatnonzero(data.test.labels == data.classes.index("star"))[3]]
    found = net.activations(datasets.normalise(image[None], data.mean, data.std))
    before, middle, after = (found[name][0] for name in ("conv1.2", "conv2_1.2", "conv2_1.5"))
    kernels, weights = net["conv2_1"]["0"].weight.value, net["conv2_1"]["3"].weight.value
    outputs = apart(after, after.std(axis=(0, 1)), OUTPUTS)
    inputs = apart(middle, np.abs(weights[:, outputs]).sum(axis=1) * middle.std(axis=(0, 1)), INPUTS)

    figure = Figure(figsize=(9.6, 4.9), layout="none", facecolor="white")
    columns = {"image": 0.02, "before": 0.2, "kernel": 0.395, "middle": 0.52, "after": 0.85}

    def panel(left: float, k: int, count: int, values: np.ndarray, size: float = 0.185, **style: Any):
        top = 0.86 - (k + 0.5) * 0.86 / count
        axes = figure.add_axes((left, top - size / 2, size * 4.9 / 9.6, size))
        axes.imshow(values, interpolation="nearest", **style)
        axes.set(xticks=[], yticks=[])
        return axes

    signed = LinearSegmentedColormap.from_list("signed", [plots.TEST, "white", plots.TRAINING])
    picture = panel(columns["image"], 0, 1, image, 0.3)
    ends = []
    for k, channel in enumerate(inputs):
        first = panel(columns["before"], k, INPUTS, before[..., channel], cmap="cividis")
        kernel = kernels[..., channel]
        most = np.abs(kernel).max()
        by = panel(columns["kernel"], k, INPUTS, kernel, 0.11, cmap=signed, vmin=-most, vmax=most)
        second = panel(columns["middle"], k, INPUTS, middle[..., channel], cmap="cividis")
        _arrow(figure, picture, first, "#888888", 1)
        _arrow(figure, first, by, "#333333", 1.2)
        _arrow(figure, by, second, "#333333", 1.2)
        ends.append(second)
    largest = np.abs(weights[np.ix_(inputs, outputs)]).max()
    for k, channel in enumerate(outputs):
        last = panel(columns["after"], k, OUTPUTS, after[..., channel], 0.22, cmap="cividis")
        for start, weight in zip(ends, weights[inputs, channel], strict=True):
            _arrow(figure, start, last, plots.TRAINING if weight > 0 else plots.TEST, 0.4 + 4 * abs(weight) / largest)
    texts = {
        0.07: "image",
        0.247: "feature maps",
        0.49: "depthwise: a kernel each",
        0.735: "pointwise:\nweighted sums",
        0.906: "new maps",
    }
    for x, text in texts.items():
        figure.text(x, 0.92, text, ha="center", va="center", fontsize=11, color="black")
    figure.text(0.735, 0.03, "blue adds, red takes away", ha="center", fontsize=9, color="#444444")
    return figure


def _arrow(figure: Figure, start, end, colour: str, width: float) -> None:
    ends = {"xyA": (1, 0.5), "coordsA": start.transAxes, "xyB": (0, 0.5), "coordsB": end.transAxes}
    figure.add_artist(ConnectionPatch(**ends, color=colour, linewidth=width, shrinkA=2, shrinkB=2))


def front() -> Figure:
    """Draw the accuracy of networks that were trained alike against their MACs."""
    names, macs, accuracies = [], [], []
    for name, width in TRAINED:
        net, accuracy = trained(name, width)
        names.append(f"{name}{f' {width:g}' if width != 1 else ''}")
        macs.append(cost.of(net).macs)
        accuracies.append(accuracy)
        print(f"{names[-1]}: {macs[-1]:,} MACs, {100 * accuracy:.2f} %", flush=True)
    return plots.front(names, macs, accuracies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("picture", choices=("separable", "front"))
    chosen = parser.parse_args().picture
    path = RENDERED / f"{chosen}.png"
    plots.save(globals()[chosen](), path)
    print(path)


if __name__ == "__main__":
    main()
