"""Every figure: one function each, which takes what is drawn and returns a matplotlib Figure; and `save`.

plots.save(plots.curves(history, "a title"), "curves.png")
"""

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbnp import tables
from mbnp.errors import printable
from mbnp.storage import replacing
from mbnp.tasks import CLASSIFIER, Words

if TYPE_CHECKING:  # matplotlib takes half a second to import: inside the functions
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mbnp.bench.machine import Peaks
    from mbnp.bench.profile import Profile
    from mbnp.bench.scaling import Sweep
    from mbnp.train import Record

# Okabe and Ito's blue and vermilion: apart for every kind of colour vision, and in grey.
TRAINING, TEST = "#0072B2", "#D55E00"

OKABE_ITO = (TRAINING, TEST, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# More of theirs, and a marker each.
KINDS = {
    "standard": ("#009E73", "s", "standard convolution"),
    "pointwise": ("#0072B2", "o", "pointwise convolution"),
    "depthwise": ("#D55E00", "^", "depthwise convolution"),
    "separable": ("#CC79A7", "P", "depthwise and pointwise in one"),
    "other": ("#000000", "D", "linear, pooling"),
}


def save(figure: "Figure", path: str | os.PathLike) -> None:
    """Write a figure as PNG; an older file is replaced when the new one is complete."""
    with replacing(Path(path)) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names of data may have characters that no font here has
        figure.savefig(partial, format="png", dpi="figure")


def curves(history: Sequence["Record"], title: str = "", words: Words = CLASSIFIER) -> "Figure":
    """Draw loss and accuracy by epoch, training and test, from the records of `train.fit`.

    words: what a detector's are called.
    """
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
    loss.set_ylabel(words.loss)
    accuracy.set(ylabel=f"{words.measure} (%)", ylim=(0, 100))
    if words.learning != words.measure:
        accuracy.lines[0].set_label(f"{words.learning} of training images (while it learns)")
        accuracy.legend(frameon=False, loc="lower right")
    return figure


def precision_recall(
    curves: "Sequence[tuple[str, np.ndarray, np.ndarray]]", title: str = "", most: int = 21
) -> "Figure":
    """Draw (class, recall, precision) of the first `most` classes, after each box by falling score."""
    figure, (axes,) = _figure(title, 6)
    for k, (name, recall, precision) in enumerate(curves[:most]):
        style = ("-", "--", ":")[k // 7 % 3]
        axes.plot(100 * recall, 100 * precision, style, color=OKABE_ITO[k % 7], linewidth=1.3, label=printable(name))
    axes.set(
        xlabel="recall: objects that are found (%)",
        ylabel="precision: boxes that are right (%)",
    )
    axes.set(xlim=(0, 101), ylim=(0, 101))
    figure.legend(frameon=False, loc="outside right center")
    return figure


def contact_sheet(images: "np.ndarray", labels: "np.ndarray", classes: Sequence[str], columns: int = 10) -> "Figure":
    """Show images (N, H, W, C) uint8, evenly spread over each of the first hundred classes: a row and its name each."""
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    classes, side = classes[:100], images.shape[1]
    cell = max(side, 48) if side < 128 else 128
    left, row = 160, cell + 2
    sheet = np.full((len(classes) * row, left + columns * row, 3), 255, np.uint8)
    height, width, _ = sheet.shape
    figure = Figure(figsize=((width + 0.01) / 100, (height + 0.01) / 100), dpi=100)  # never a pixel less
    for k, name in enumerate(classes):
        mine = np.flatnonzero(labels == k)
        y = (k + 0.5) * row
        figure.text(4 / width, 1 - y / height, printable(name[:25]), va="center", fontsize=8, parse_math=False)
        for column, i in enumerate(mine[np.linspace(0, len(mine) - 1, min(columns, len(mine))).astype(int)]):
            image = images[i] if images.shape[3] == 3 else images[i, ..., 0]
            shown = Image.fromarray(image).convert("RGB").resize((cell, cell), Image.Resampling.BICUBIC)
            sheet[k * row : k * row + cell, left + column * row : left + column * row + cell] = np.asarray(shown)
    figure.figimage(sheet)
    return figure


def roofline(profile: "Profile", peaks: "Peaks", title: str = "") -> "Figure":
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
    return figure


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


def scaling(sweeps: Sequence["Sweep"], title: str = "") -> "Figure":
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
    return figure


def best(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Return where the front is, cheapest first: the points that no other beats in one and equals in the other."""
    found: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -accuracies[i])):
        tie = found and (costs[i], accuracies[i]) == (costs[found[-1]], accuracies[found[-1]])
        if not found or tie or accuracies[i] > accuracies[found[-1]]:
            found.append(i)
    return found


def wide(costs: Sequence[float]) -> bool:
    """Return whether these are so far apart that they are drawn on a logarithmic axis."""
    return max(costs) >= 4 * min(costs) > 0


def front(
    names: Sequence[str], costs: Sequence[float], accuracies: Sequence[float], cost: str = "MACs", title: str = "",
    measure: str = "accuracy",
) -> "Figure":  # fmt: skip
    """Draw accuracy (from 0 to 1) against what it costs: a point and its name for each run.

    The axis of the cost is logarithmic where the runs are far apart. The line joins those that no other run beats. A
    name that would lie on another is left out.
    """
    from matplotlib.ticker import LogLocator

    figure, (axes,) = _figure(title, 6)
    percent, line = [100 * a for a in accuracies], best(costs, accuracies)
    front: dict[str, Any] = {"color": TEST, "linewidth": 1.5, "drawstyle": "steps-post", "zorder": 1}
    axes.plot([costs[i] for i in line], [percent[i] for i in line], "-", label="the front", **front)
    for chosen, colour, marker, label in (
        (line, TEST, "s", "no other run is cheaper and as good"),
        ([i for i in range(len(costs)) if i not in line], TRAINING, "o", "another run is"),
    ):
        axes.plot([costs[i] for i in chosen], [percent[i] for i in chosen], marker, color=colour, label=label)
    axes.set(xscale="log" if wide(costs) else "linear", xlabel=cost, ylabel=f"test {measure} (%)")
    apart = 0.08 * (max(costs) - min(costs)) or 0.1 * max(costs)
    axes.set_xlim(*((min(costs) / 1.3, 1.3 * max(costs)) if wide(costs) else (min(costs) - apart, max(costs) + apart)))
    margin = max(1.0, 0.12 * (max(percent) - min(percent)))
    axes.set_ylim(min(percent) - margin, max(percent) + margin)
    if wide(costs):
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: tables.quantity(value))
    axes.minorticks_off()
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    figure.draw_without_rendering()
    taken: list[Any] = []
    for i in [*line, *(i for i in range(len(costs)) if i not in line)]:
        _label(axes, printable(names[i]), (costs[i], percent[i]), taken)
    return figure


def _label(axes: "Axes", name: str, at: tuple[float, float], taken: list) -> None:
    """Write a name beside its point, on the first side where there is room."""
    for offset, ha, va in (((7, 3), "left", "bottom"), ((-7, 3), "right", "bottom"), ((7, -3), "left", "top"),
                           ((-7, -3), "right", "top")):  # fmt: skip
        text = axes.annotate(name, at, offset, textcoords="offset points", fontsize=9, ha=ha, va=va, parse_math=False)
        box, inside = text.get_window_extent(), axes.get_window_extent()
        if inside.x0 <= box.x0 and box.x1 <= inside.x1 and not any(box.overlaps(other) for other in taken):
            taken.append(box)
            return
        text.remove()


def _figure(title: str, height: float, rows: int = 1, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """Return an empty figure, 10 inches wide, and its panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), dpi=150, layout="constrained")
    figure.suptitle(title)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels
