"""Every figure. Each function writes one PNG, and an older file is replaced only by a whole one."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # matplotlib takes half a second to import: inside the functions
    from matplotlib.figure import Figure

    from mbnp.train import Record

# Okabe and Ito's blue and vermilion: apart for every kind of colour vision, and in grey.
TRAINING, TEST = "#0072B2", "#D55E00"


def curves(history: Sequence["Record"], path: str | os.PathLike, title: str = "") -> None:
    """Loss and accuracy by epoch, training and test, from the records of `train.fit`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [record.epoch for record in history]
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for axes, training, test in (
        (loss, [r.loss for r in history], [r.test_loss for r in history]),
        (accuracy, [100 * r.accuracy for r in history], [100 * r.test_accuracy for r in history]),
    ):
        axes.plot(epochs, training, "o--", color=TRAINING, markersize=4, label="training (while it learns)")
        axes.plot(epochs, test, "s-", color=TEST, markersize=4, label="test (after the epoch)")
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right" if axes is accuracy else "upper right")
    loss.set_ylabel("cross-entropy (nats)")
    loss.set_ylim(0, 1.05 * max(max(r.loss, r.test_loss) for r in history))
    accuracy.set_ylabel("accuracy (%)")
    accuracy.set_ylim(0, 100)
    figure.suptitle(title)
    _save(figure, path)


def _save(figure: "Figure", path: str | os.PathLike) -> None:
    partial = Path(f"{os.fspath(path)}.part")
    try:
        figure.savefig(partial, format="png", dpi=150)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
