"""report.html: what a run was, how it went and what it learned, in the run's folder."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mbnp import cost, pages, runs, tables, tasks
from mbnp.bench import machine
from mbnp.datasets import Dataset
from mbnp.network import Network
from mbnp.pages import charts, detections, statistics
from mbnp.pages.charts import Series
from mbnp.pages.statistics import Detections, Outcome
from mbnp.tasks import CLASSIFIER, Words
from mbnp.train import Progress

BINS = 15  # of confidence, as in the paper
SHOWN = 24  # mistakes
CELLS = 30  # classes whose confusion is a table; of more of them it is a picture
THUMBNAIL = 96  # pixels
PHASES = {
    "data": "choosing, augmenting and normalising images",
    "forward": "from images to the loss",
    "backward": "from the loss to every gradient",
    "update": "the optimiser, and zeros for the next gradients",
    "test": "the test images after each epoch",
    "other": "showing how far it is, and keeping states within an epoch",
}


class ClassScore(NamedTuple):
    """How a class fares; None where it was never predicted, or has no test images."""

    name: str
    images: int
    precision: float | None
    recall: float | None


class Bin(NamedTuple):
    """The test images whose confidence is within `low` and `high`: the means of what was claimed and of what was so."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


class Mistake(NamedTuple):
    """A test image that was taken for something else."""

    picture: str
    label: str
    prediction: str
    confidence: float
    number: int


def write(folder: Path, net: Network, data: Dataset, progress: Progress, outcome: Outcome | Detections) -> None:
    """Write report.html into a run folder; `progress` and `outcome` are those of its last finished epoch."""
    pages.write(folder / "report.html", page(folder, net, data, progress, outcome))


def page(folder: Path, net: Network, data: Dataset, progress: Progress, outcome: Outcome | Detections) -> str:
    """Return the report of a run."""
    config, history = runs.load_config(folder), progress.history
    words = tasks.of(net).words
    names = [row.name for row in statistics.layers(net)]
    measured = [each for each in progress.measured if len(each["weights"]) == len(names)]
    return pages.render(
        "report.html" if isinstance(outcome, Outcome) else "detections.html",
        **(recognised(data, outcome) if isinstance(outcome, Outcome) else found(data, outcome)),
        words=words,
        title=f"{folder.absolute().name}: {runs.model_name(config)} on {data.name}",
        config=config,
        recipe=runs.recipe(config),
        last=history[-1],
        seconds=sum(record.seconds for record in history),
        counted=cost.of(net, data.test.images.shape[1:]),
        settings=settings(config),
        commands=commands(folder, config, history[-1].epoch == config["recipe"]["epochs"], words),
        curves=curves(history, runs.recipe(config), words),
        layers=layer_rows(names, measured),
        depth=depth_charts(measured),
        looked_at=len(statistics.sample(data)),
        phases=phases(measured, history[-1].step / len(history)),
        phase_epochs=len(measured),
    )


def recognised(data: Dataset, outcome: Outcome) -> dict[str, Any]:
    """Return what report.html says of a classifier's answers."""
    labels, classes = data.test.labels, list(data.classes)
    confusion = confused(labels, outcome.predictions, len(classes))
    bins, error = calibration(outcome.confidence, outcome.predictions == labels)
    return {
        "classes": classes,
        "confusion": confusion.tolist(),
        "matrix": picture(confusion) if len(classes) > CELLS else None,
        "mixed_up": mixed_up(confusion, classes),
        "scores": scores(confusion, classes),
        "mistakes": mistakes(data, outcome),
        "wrong": int(np.count_nonzero(outcome.predictions != labels)),
        "tested": len(labels),
        "bins": bins,
        "most_bins": BINS,
        "calibration_error": error,
        "mean_confidence": float(outcome.confidence.mean()),
        "share": charts.horizontal("what it claims: the probability of its answer", 0.0, 1.0),
        "right": charts.vertical("how often that is so", 0.0, 1.0),
        "many": charts.vertical("images", 0.0, 1.05 * max(each.images for each in bins)),
    }


def found(data: Dataset, outcome: Detections) -> dict[str, Any]:
    """Return what detections.html says of a detector's boxes."""
    split, classes = data.test, list(data.classes)
    wrong = detections.mistakes(outcome.found, split, classes)
    return {
        "scores": outcome.scores,
        "side": split.images.shape[2],
        "precision_recall": detections.chart(outcome.found, split, classes),
        "sure": detections.SURE,
        "counts": [(kind, what, sum(each.kind == kind for each in wrong)) for kind, what in detections.KINDS.items()],
        "objects": int(np.count_nonzero(split.labels >= 0)),
        "tested": len(split),
        "worst": {
            kind: [
                (each, thumbnail(split.images[each.number]), [detections.percent(*box) for box in each.boxes])
                for each in some
            ]
            for kind, some in detections.worst(wrong).items()
        },
    }


def settings(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what decided the run, as (name, value)."""
    found: dict[str, Any] = {"model": runs.model_name(config)}
    found |= {name: value for name, value in config["model"].items() if name not in ("name", "layers")}
    found |= config["recipe"]
    found |= {"data": config["data"]["name"], "images from": config["data"]["source"]}
    for name in ("train", "test"):
        if name in config["data"]:
            found[f"{name} images"] = f"{config['data'][name]:,}"
    found["sha256 of the images"] = config["data"]["sha256"][:16]
    found |= {"begun from": config["init"] and config["init"]["path"], "frozen until": config["freeze_until"]}
    found |= {name: config.get(name) for name in ("engine", "dtype", "backend", "threads", "machine")}
    found |= {"processor": f"{machine.processor()}, {os.cpu_count()} threads"}
    found |= {name: config["versions"][name] for name in sorted(config["versions"])}
    return [(name.replace("_", " "), tables.setting(value)) for name, value in found.items() if value is not None]


def commands(folder: Path, config: dict[str, Any], finished: bool, words: Words) -> list[tuple[str, str]]:
    """Return what can be done with the run, as (what, command)."""
    checkpoint = shlex.quote(str(folder / "model.safetensors"))
    data = config["data"]["argument"]
    data = "" if data is None else f" --data {shlex.quote(data)}"
    use = "predict" if words == CLASSIFIER else "detect"
    go_on = [] if finished else [("go on with it", f"mbnp train --resume {shlex.quote(str(folder))}")]
    return [
        ("repeat it", config["command"]),
        *go_on,
        ("test it", f"mbnp evaluate {checkpoint}{data}"),
        ("use it", f"mbnp {use} IMAGE --checkpoint {checkpoint}"),
    ]


def curves(history: Sequence[Any], recipe: Any, words: Words = CLASSIFIER) -> list[charts.Chart | None]:
    """Return the charts of loss, accuracy and learning rate."""
    epochs = [record.epoch for record in history]
    total = recipe.epochs * history[-1].step // len(history)
    rates, steps = recipe.rates(total), np.unique(np.linspace(0, total - 1, 240).astype(int)).tolist()
    done = [step for step in steps if step < history[-1].step]

    def planned(name: str, chosen: list[int], style: int) -> Series:
        lr = [rates(step).get("lr", recipe.lr) for step in chosen]
        return Series(name, [recipe.epochs * step / total for step in chosen], lr, style, dots=False)

    learning = "training, while it learns" if words == CLASSIFIER else f"{words.learning} of training images, see below"
    percent = [(100 * record.accuracy, 100 * record.test_accuracy) for record in history]
    return [
        charts.chart("loss", "epoch", words.loss, [
            Series("training, while it learns", epochs, [record.loss for record in history], 0),
            Series("test, after the epoch", epochs, [record.test_loss for record in history], 1),
        ], limits=charts.loss_limits([r.loss for r in history], [r.test_loss for r in history])),
        charts.chart(words.measure, "epoch", "%", [
            Series(learning, epochs, [training for training, _ in percent], 0),
            Series("test, after the epoch", epochs, [test for _, test in percent], 1),
        ], limits=(0, 100)),
        charts.chart("learning rate", "epochs done", "learning rate", [
            planned("planned", steps, len(charts.COLOURS)), planned("done", done, 2),
        ], whole=False),
    ]  # fmt: skip


def confused(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Return how many images of each class (row) were taken for each class (column)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def scores(confusion: np.ndarray, classes: Sequence[str]) -> list[ClassScore]:
    """Return precision (of what was called so, how much is) and recall (of what is so, how much was called so)."""
    right, actual, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        ClassScore(name, int(n), float(r / c) if c else None, float(r / n) if n else None)
        for name, r, n, c in zip(classes, right, actual, called, strict=True)
    ]


def mixed_up(confusion: np.ndarray, classes: Sequence[str], most: int = 5) -> list[tuple[int, str, str]]:
    """Return the most frequent mistakes as (how many, what it is, what it was taken for)."""
    wrong = confusion - np.diag(np.diag(confusion))
    first = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(i), len(classes)) for i in first]
    return [(int(wrong[i, j]), classes[i], classes[j]) for i, j in pairs if wrong[i, j]]


def calibration(confidence: np.ndarray, right: np.ndarray) -> tuple[list[Bin], float]:
    """Return the bins of the reliability diagram that hold images, and the expected calibration error.

    The error is the mean over all images of how far their bin's confidence and accuracy are apart. Guo et al., "On
    Calibration of Modern Neural Networks", arXiv:1706.04599, section 2.
    """
    bins, error = [], 0.0
    inside = np.clip(np.ceil(BINS * confidence.astype(np.float64)).astype(int) - 1, 0, BINS - 1)
    for i in range(BINS):
        mine = inside == i
        if mine.any():
            claimed, so = float(confidence[mine].mean(dtype=np.float64)), float(right[mine].mean())
            bins.append(Bin(i / BINS, (i + 1) / BINS, int(mine.sum()), claimed, so))
            error += abs(claimed - so) * mine.mean()
    return bins, float(error)


def mistakes(data: Dataset, outcome: Outcome) -> list[Mistake]:
    """Return the test images that were mistaken with the most confidence, that first."""
    wrong = np.flatnonzero(outcome.predictions != data.test.labels)
    first = wrong[np.argsort(-outcome.confidence[wrong], kind="stable")][:SHOWN]
    return [
        Mistake(
            thumbnail(data.test.images[i]), data.classes[data.test.labels[i]], data.classes[outcome.predictions[i]],
            float(outcome.confidence[i]), int(i),
        )
        for i in first
    ]  # fmt: skip


def thumbnail(image: np.ndarray) -> str:
    """Return an image (H, W, C) uint8 as a data URI, made smaller where it is large."""
    small = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return pages.data_uri(small)


def picture(confusion: np.ndarray) -> str:
    """Return a confusion matrix as a data URI: a pixel a cell, the stronger the larger its share of the row."""
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    pixels = np.empty((*confusion.shape, 4), np.uint8)
    pixels[..., :3] = (213, 94, 0)  # vermilion, and where the prediction is right blue
    pixels[np.diag_indices(len(confusion))] = (0, 114, 178, 0)
    pixels[..., 3] = np.round(255 * np.sqrt(share))
    return pages.data_uri(Image.fromarray(pixels))


def layer_rows(names: Sequence[str], measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each layer, by what was measured, its values over time: a small line, the first and the last."""
    rows = []
    for i, name in enumerate(names if measured else ()):
        row: dict[str, Any] = {"name": name}
        for kind in ("weights", "gradients", "zeros", "dead"):
            values = [each[kind][i] for each in measured]
            row[kind] = {"spark": charts.spark(values), "first": values[0], "last": values[-1]}
        rows.append(row)
    return rows


def depth_charts(measured: Sequence[dict[str, Any]]) -> list[charts.Chart | None]:
    """Return charts over the depth of the network: norms after the first, a middle and the last epoch; what is dead."""
    if not measured:
        return []
    chosen = sorted({0, (len(measured) - 1) // 2, len(measured) - 1})
    layers = range(1, len(measured[0]["weights"]) + 1)

    def over_time(kind: str) -> list[Series]:
        return [Series(f"epoch {measured[i]['epoch']}", layers, measured[i][kind], k) for k, i in enumerate(chosen)]

    silent = [
        Series(name, layers, [value if value is None else 100 * value for value in measured[-1][kind]], style)
        for kind, name, style in (("zeros", "outputs that are 0", 0), ("dead", "channels that are always 0", 1))
    ]
    place = "layer, from the image on"
    return [
        charts.chart("gradient norm", place, "norm", over_time("gradients"), log=True),
        charts.chart("weight norm", place, "norm", over_time("weights"), log=True),
        charts.chart("silent activations, last epoch", place, "%", silent, limits=(0, 100)),
    ]


def phases(measured: Sequence[dict[str, Any]], batches: float) -> list[dict[str, Any]]:
    """Return the seconds of each phase over all epochs that were measured, its share, and milliseconds a step."""
    total = {name: sum(each["phases"].get(name, 0.0) for each in measured) for name in PHASES}
    everything = sum(total.values()) or 1.0
    return [
        {
            "name": name,
            "what": what,
            "seconds": total[name],
            "share": total[name] / everything,
            "step": 1e3 * total[name] / (len(measured) * batches) if name not in ("test", "other") else None,
            "colour": charts.COLOURS[i],
        }
        for i, (name, what) in enumerate(PHASES.items())
        if measured
    ]
