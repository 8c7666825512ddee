"""Every figure. Each function writes one PNG; an older file is replaced when the new one is complete."""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbnp.storage import replacing

if TYPE_CHECKING:  # matplotlib takes half a second to import: inside the functions
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mbnp.bench.machine import Peaks
    from mbnp.bench.profile import Profile
    from mbnp.bench.scaling import Sweep
    from mbnp.datasets import Dataset
    from mbnp.train import Record

# Okabe and Ito's blue and vermilion: apart for every kind of colour vision, and in grey.
TRAINING, TEST = "#0072B2", "#D55E00"

# More of theirs, and a marker each.
KINDS = {
    "standard": ("#009E73", "s", "standard convolution"),
    "pointwise": ("#0072B2", "o", "pointwise convolution"),
    "depthwise": ("#D55E00", "^", "depthwise convolution"),
    "separable": ("#CC79A7", "P", "depthwise and pointwise in one"),
    "other": ("#000000", "D", "linear, pooling"),
}


def curves(history: Sequence["Record"], path: str | os.PathLike, title: str = "") -> None:
    """Draw loss and accuracy by epoch, training and test, from the records of `train.fit`."""
    from matplotlib.ticker import MaxNLocator

    epochs = [record.epoch for record in history]
    figure, (loss, accuracy) = _figure(title, 4, 1, 2)
    for axes, training, test in (
        (loss, [r.loss for r in history], [r.test_loss for r in history]),
        (accuracy, [100 * r.accuracy for r in history], [100 * r.test_accuracy for r in history]),
    ):
        axes.plot(epochs, training, "o--", color=TRAINING, markersize=4, label="training (while it learns)")
        axes.plot(epochs, test, "s-", color=TEST, markersize=4, label="test (after the epoch)")
        axes.set(xlabel="epoch", xlim=(0.5, epochs[-1] + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.legend(frameon=False, loc="lower right" if axes is accuracy else "upper right")
    loss.set_ylim(0, 1.05 * max(max(r.loss, r.test_loss) for r in history))
    loss.set_ylabel("cross-entropy (nats)")
    accuracy.set(ylabel="accuracy (%)", ylim=(0, 100))
    _save(figure, path)


def contact_sheet(data: "Dataset", path: str | os.PathLike, columns: int = 10) -> None:
    """Show training images, evenly spread over each of the first hundred classes: a row and its name for each."""
    import numpy as np
    from PIL import Image, ImageDraw

    classes, side = data.classes[:100], data.train.images.shape[1]
    cell = max(side, 48) if side < 128 else 128
    left, row = 160, cell + 2
    sheet = Image.new("RGB", (left + columns * row, len(classes) * row), "white")
    draw = ImageDraw.Draw(sheet)
    for k, name in enumerate(classes):
        mine = np.flatnonzero(data.train.labels == k)
        draw.text((4, k * row + cell // 2 - 6), name[:25], fill="black")
        for column, i in enumerate(mine[np.linspace(0, len(mine) - 1, min(columns, len(mine))).astype(int)]):
            image = data.train.images[i]
            shown = Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).convert("RGB")
            sheet.paste(shown.resize((cell, cell), Image.Resampling.BICUBIC), (left + column * row, k * row))
    with replacing(Path(path)) as partial:
        sheet.save(partial, "PNG")


def roofline(profile: "Profile", peaks: "Peaks", path: str | os.PathLike, title: str = "") -> None:
    """Draw every layer's GFLOP/s by its FLOPs a byte, under the machine's limits; both axes are logarithmic.

    No layer can be higher than the matrix product, nor than its bytes allow. Williams, Waterman and Patterson,
    "Roofline: An Insightful Visual Performance Model", Communications of the ACM, 2009.
    """
    figure, (axes,) = _figure(title, 7)
    points: list[tuple[float, float]] = []
    for kind, (flops, seconds, rate) in profile.shares().items():
        if not rate.flops:  # pools, and BatchNorm and ReLU where they run by themselves
            continue
        colour, marker, name = KINDS[kind]
        rates = [row.rates for row in profile.rows if row.kind == kind and row.forward.flops]
        forward = [(rate.intensity, rate.gflops) for rate, *_ in rates]
        backward = [(rate.intensity, rate.gflops) for _, *both in rates for rate in both]
        style: dict[str, Any] = {"marker": marker, "linestyle": "none", "color": colour, "markersize": 8}
        label = f"{name}: {100 * flops:.0f} % of the FLOPs, {100 * seconds:.0f} % of the time"
        axes.plot(*zip(*forward, strict=True), label=label, **style)
        if backward:
            axes.plot(*zip(*backward, strict=True), markerfacecolor="none", **style)
        points += forward + backward
    axes.plot([], [], "o", color="grey", label="filled: forward")
    axes.plot([], [], "o", color="grey", markerfacecolor="none", label="hollow: backward")
    intensities, speeds = zip(*points, strict=True)
    axes.set(xscale="log", yscale="log")
    corner = peaks.gflops / min(peaks.cache, peaks.memory)
    axes.set_xlim(min(intensities) / 2, 2 * max(corner, *intensities))
    axes.set_ylim(min(speeds) / 2, 2.5 * max(peaks.gflops, *speeds))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="FLOPs for each byte that a layer must at least move", ylabel="GFLOP/s")
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    axes.set_title("Fewer FLOPs, so why is it not faster? Grey is what the machine can do", fontsize=11)
    figure.draw_without_rendering()  # the layout decides how steep a slope is
    _roofs(axes, peaks)
    _save(figure, path)


def _roofs(axes: "Axes", peaks: "Peaks") -> None:
    """Draw the limits: the matrix product, and a slope for each of cache and memory."""
    left, right = axes.get_xlim()
    fastest = max(peaks.cache, peaks.memory)
    line: dict[str, Any] = {"color": "grey", "linewidth": 1.2}
    text: dict[str, Any] = {"textcoords": "offset points", "color": "#404040", "fontsize": 9}
    for bandwidth, name, style in ((peaks.cache, "last cache", "-"), (peaks.memory, "memory", "--")):
        corner = peaks.gflops / bandwidth
        axes.plot([left, corner], [left * bandwidth, peaks.gflops], style, **line)
        at = 1.1 * max(left, axes.get_ylim()[0] / bandwidth)
        (x0, y0), (x1, y1) = axes.transData.transform([(at, at * bandwidth), (2 * at, 2 * at * bandwidth)])
        angle = math.degrees(math.atan2(y1 - y0, x1 - x0))
        # The name is written beside its slope, outside both.
        name, outside = f"{name}: {bandwidth:.0f} GB/s", (-2, 6) if bandwidth == fastest else (4, -14)
        axes.annotate(name, (at, at * bandwidth), outside, rotation=angle, rotation_mode="anchor", **text)
    axes.plot([peaks.gflops / fastest, right], [peaks.gflops] * 2, "-", **line)
    name = f"matrix product: {peaks.gflops:.0f} GFLOP/s"
    axes.annotate(name, (right, peaks.gflops), (-4, 5), ha="right", **text)


def scaling(sweeps: Sequence["Sweep"], path: str | os.PathLike, title: str = "") -> None:
    """Draw the time for one image of a training step and of an inference, a panel for each thing that was varied."""
    figure, panels = _figure(title, 7, 2, 2)
    for axes, sweep in zip(panels, sweeps, strict=True):
        values = [point.value for point in sweep.points]
        for times, style, colour, label in (
            ([1e3 * p.training for p in sweep.points], "o--", TRAINING, "training step"),
            ([1e3 * p.inference for p in sweep.points], "s-", TEST, "inference"),
        ):
            axes.plot(values, times, style, color=colour, markersize=5, label=label)
        if sweep.name == "batch size":
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.set(xlabel=sweep.name, ylabel="ms for one image")
        axes.set_title(sweep.fixed, fontsize=10)
        axes.legend(frameon=False)
    _save(figure, path)


def _figure(title: str, height: float, rows: int = 1, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """Return an empty figure, 10 inches wide, and its panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), layout="constrained")
    figure.suptitle(title)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _save(figure: "Figure", path: str | os.PathLike) -> None:
    with replacing(Path(path)) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names of data may have characters that no font here has
        figure.savefig(partial, format="png", dpi=150)
