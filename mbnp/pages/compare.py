"""Runs side by side: what they cost, how good they are, and where their settings differ; as text and as a page."""

import math
import os
import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mbnp import cost, pages, plots, runs, tables, tasks, weights
from mbnp.errors import MbnpError
from mbnp.pages import charts
from mbnp.pages.charts import Scale, Series
from mbnp.train import Record

COSTS = {"macs": "MACs of an image", "parameters": "parameters", "seconds": "seconds"}
NOTE = "seconds: of all epochs, tests included. memory: of a training step, computed: feature maps, weights, gradients "
NOTE += "and momentum; the process, its images and the engine's working memory come on top"


class Run(NamedTuple):
    """A finished run."""

    name: str
    folder: Path
    settings: dict[str, str]  # all that may differ, by name
    history: list[Record]
    accuracy: float  # of the last epoch, from 0 to 1
    parameters: int
    macs: int  # of one image
    seconds: float
    memory: int  # bytes of a training step, computed
    measure: str = "accuracy"  # what `accuracy` is: of a detector mAP@0.5


class Group(NamedTuple):
    """Runs that differ in nothing but their seed: mean and standard deviation of their accuracy."""

    settings: dict[str, str]
    runs: list[Run]
    accuracy: float
    spread: float
    seconds: float


class Point(NamedTuple):
    """A run on a chart of accuracy against cost."""

    x: float
    y: float
    text: str
    best: bool
    label: tuple[float, float, str, str]  # where its name stands, how it is anchored, the name


class Front(NamedTuple):
    """A chart of accuracy against a cost, and the line that joins the runs that no other beats."""

    title: str
    x: Scale
    y: Scale
    points: list[Point]
    line: str


def read(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the finished runs, and a line for each that cannot be compared.

    A folder that is no run but holds some, as that of a sweep, stands for them.
    """
    every = list({run.resolve(): run for folder in folders for run in _inside(folder)}.values())
    found, notes = [], []
    for folder, name in zip(every, _names(every), strict=True):
        try:
            found.append(load(folder, name))
        except (MbnpError, OSError) as error:
            notes.append(f"left out: {error}")
    return found, notes


def load(folder: Path, name: str) -> Run:
    """Return a run; MbnpError or OSError if it is damaged or not finished."""
    config, history = runs.load_config(folder), runs.load_history(folder)
    recipe = runs.recipe(config)
    if len(history) < recipe.epochs:
        go_on = f"mbnp train --resume {shlex.quote(str(folder))}"
        raise MbnpError(f"{folder} is not finished: {len(history)} of {recipe.epochs} epochs are done; {go_on}")
    net = weights.load(folder / "model.safetensors")
    counted = cost.of(net)
    step = recipe.batch_size * counted.activation_bytes + counted.weight_bytes
    memory = step + 2 * counted.params * net.dtype.itemsize
    seconds = sum(record.seconds for record in history)
    accuracy = history[-1].test_accuracy
    measure = tasks.of(net).words.measure
    return Run(
        name, folder, _settings(config), history, accuracy, counted.params, counted.macs, seconds, memory, measure
    )


def measure(found: Sequence[Run]) -> str:
    """Return what the runs are measured by."""
    return " or ".join(sorted({run.measure for run in found})) or "accuracy"


def _inside(folder: Path) -> list[Path]:
    if folder.is_dir() and not (folder / "config.json").exists():
        return sorted(path.parent for path in folder.glob("*/config.json")) or [folder]
    return [folder]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as many as it takes to tell them apart."""
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]
    for count in range(1, max(map(len, paths), default=1) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _settings(config: dict[str, Any]) -> dict[str, str]:
    model = {name: value for name, value in config["model"].items() if name not in ("name", "layers", "num_classes")}
    found = {"model": runs.model_name(config), **model, **config["recipe"]}
    found |= {"data": config["data"]["name"], "images": config["data"]["sha256"][:8]}
    found |= {"init": config["init"] and config["init"]["path"], "freeze until": config["freeze_until"]}
    found |= {name: config.get(name) for name in ("engine", "backend", "dtype", "threads", "machine")}
    return {name.replace("_", " "): tables.setting(value) for name, value in found.items()}


def differences(found: Sequence[Run]) -> dict[str, list[str]]:
    """Return the settings that are not the same in all runs, with each run's value."""
    names = dict.fromkeys(name for run in found for name in run.settings)
    values = {name: [run.settings.get(name, "-") for run in found] for name in names}
    return {name: each for name, each in values.items() if len(set(each)) > 1}


def note(found: Sequence[Run]) -> str:
    """Return what is to be known of the numbers."""
    different = "images" in differences(found)
    return NOTE + ("; the images of these runs differ, so that accuracies do not compare" if different else "")


def groups(found: Sequence[Run]) -> list[Group]:
    """Return the runs by all settings but the seed, if a group has several seeds; else nothing. Of a seed the last."""
    differ = [name for name in differences(found) if name != "seed"]
    together: dict[tuple[tuple[str, str], ...], dict[str, Run]] = {}
    for run in found:
        alike = tuple((name, run.settings.get(name, "-")) for name in differ)
        together.setdefault(alike, {})[run.settings["seed"]] = run
    if all(len(mine) == 1 for mine in together.values()):
        return []
    return [
        Group(
            dict(settings),
            mine,
            statistics.mean(run.accuracy for run in mine),
            statistics.stdev(run.accuracy for run in mine) if len(mine) > 1 else math.nan,
            statistics.mean(run.seconds for run in mine),
        )
        for settings, seeds in together.items()
        for mine in [list(seeds.values())]
    ]


def best(found: Sequence[Run], kind: str = "macs") -> list[Run]:
    """Return the runs that no other beats in accuracy and cost, the cheapest first."""
    at = plots.best([getattr(run, kind) for run in found], [run.accuracy for run in found])
    return [found[i] for i in at]


def text(found: Sequence[Run]) -> str:
    """Return the comparison for a terminal of 80 columns."""
    head = ("run", measure(found), "parameters", "MACs", "seconds", "memory")
    parts = [_table(head, [(run.name, *_numbers(run)) for run in found]), tables.hang(note(found))]
    if differ := differences(found):
        rows = [(run.name, *values) for run, *values in zip(found, *differ.values(), strict=True)]
        wide = _table(("they differ in", *differ), rows)
        if max(map(len, wide.splitlines())) > tables.WIDTH:
            lines = ["they differ in", *(_by_value(found, *each) for each in differ.items())]
            wide = tables.hang("\n".join(lines), indent=4)
        parts.append(wide)
    if together := groups(found):
        rows = [(_label(g), str(len(g.runs)), _mean(g), f"{g.seconds:,.1f}") for g in together]
        parts.append(_table(("over seeds", "n", f"mean {measure(found)} ± sd", "seconds"), rows))
    if len(found) > 1:
        names = ", ".join(run.name for run in best(found))
        parts.append(tables.hang(f"no other run has as few MACs and is as accurate: {names}"))
    return "\n\n".join(parts)


def _numbers(run: Run) -> tuple[str, ...]:
    accuracy, memory = f"{100 * run.accuracy:.2f} %", f"{run.memory / 1e6:,.1f} MB"
    return accuracy, f"{run.parameters:,}", f"{run.macs:,}", f"{run.seconds:,.1f}", memory


def _label(group: Group) -> str:
    return ", ".join(f"{name} {value}" for name, value in group.settings.items()) or "all"


def _mean(group: Group) -> str:
    spread = "" if math.isnan(group.spread) else f" ± {100 * group.spread:.2f}"
    return f"{100 * group.accuracy:.2f}{spread} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is cut, at its beginning, to what 80 columns leave it."""
    others = sum(2 + max(len(row[i]) for row in (head, *rows)) for i in range(1, len(head)))
    room = max(12, tables.WIDTH - others)
    cut = [(row[0] if len(row[0]) <= room else f"~{row[0][1 - room :]}", *row[1:]) for row in rows]
    return tables.table(head, cut)


def _by_value(found: Sequence[Run], name: str, values: Sequence[str]) -> str:
    by: dict[str, list[str]] = {}
    for run, value in zip(found, values, strict=True):
        by.setdefault(value, []).append(run.name)
    return f"  {name}: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in by.items())


def write(path: Path, found: Sequence[Run], title: str, notes: Sequence[str] = ()) -> None:
    """Write the comparison as a page."""
    pages.write(path, page(found, title, notes))


def page(found: Sequence[Run], title: str, notes: Sequence[str] = ()) -> str:
    """Return the comparison as a page."""
    records = [record for run in found for record in run.history]
    loss = "cross-entropy (nats)" if measure(found) == "accuracy" else "loss"
    losses = charts.loss_limits([record.loss for record in records], [record.test_loss for record in records])
    return pages.render(
        "compare.html",
        title=title,
        notes=notes,
        note=note(found),
        measure=measure(found),
        runs=[(run, _numbers(run), charts.style(i)) for i, run in enumerate(found)],
        differences=differences(found),
        groups=[(_label(group), _mean(group), group) for group in groups(found)],
        curves=[
            _overlaid(found, f"test {measure(found)}", "%", lambda record: 100 * record.test_accuracy, (0, 100)),
            _overlaid(found, "test loss", loss, lambda record: record.test_loss, losses),
            _overlaid(found, "training loss", loss, lambda record: record.loss),
        ],
        fronts=[front(found, kind) for kind in COSTS],
    )


def _overlaid(
    found: Sequence[Run],
    title: str,
    label: str,
    of: Callable[[Record], float],
    limits: tuple[float, float] | None = None,
) -> charts.Chart | None:
    lines = [
        Series(run.name, [record.epoch for record in run.history], [of(record) for record in run.history], i)
        for i, run in enumerate(found)
    ]
    return charts.chart(title, "epoch", label, lines, limits=limits)


def front(found: Sequence[Run], kind: str) -> Front:
    """Place the runs on a chart of accuracy against a cost; its x axis is logarithmic where they are far apart."""
    costs, percent = [max(getattr(run, kind), 1e-9) for run in found], [100 * run.accuracy for run in found]
    low, high = min(costs), max(costs)
    log = plots.wide(costs)
    apart = 0.08 * (high - low) or 0.1 * high
    x = charts.horizontal(COSTS[kind], *((low / 1.4, 1.4 * high) if log else (low - apart, high + apart)), log=log)
    margin = max(1.0, 0.12 * (max(percent) - min(percent)))
    y = charts.vertical(f"test {measure(found)} (%)", min(percent) - margin, max(percent) + margin)
    chosen = plots.best(costs, percent)
    places = [(x(c), y(p), run.name) for c, p, run in zip(costs, percent, found, strict=True)]
    first = [*chosen, *(i for i in range(len(found)) if i not in chosen)]
    labels = dict(zip(first, charts.place_labels([places[i] for i in first]), strict=True))
    points = [
        Point(places[i][0], places[i][1], f"{run.name}: {percent[i]:.2f} %, {costs[i]:,.6g}", i in chosen, labels[i])
        for i, run in enumerate(found)
    ]
    corners = []
    for before, i in zip([None, *chosen], chosen, strict=False):
        if before is not None:
            corners.append(f"{points[i].x},{points[before].y}")
        corners.append(f"{points[i].x},{points[i].y}")
    return Front(f"{measure(found)} against {COSTS[kind]}", x, y, points, " ".join(corners))
