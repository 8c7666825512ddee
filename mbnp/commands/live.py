"""`mbnp train --live`: loss and accuracy as curves, and what each layer does, in the terminal."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import Progress
from rich.text import Text

from mbnp import tasks
from mbnp.commands.console import Console
from mbnp.network import Network
from mbnp.pages import statistics
from mbnp.train import Record

COLOURS = {"training": "#56b4e9", "test": "#e69f00"}  # Okabe and Ito's
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # of a Braille character: 4 rows, 2 columns
CELL = 38  # columns of a layer's line
HEAD = f"{'layer':13} {'weights':>7} {'gradient':>8} {'0':>3} {'dead':>4}"


class Dashboard:
    """What the terminal shows while a network trains; a context, within which it does."""

    def __init__(self, console: Console, bar: Progress, epochs: int, net: Network) -> None:
        self.console, self.bar, self.epochs = console, bar, epochs
        self.words = tasks.of(net).words
        self.names = [row.name for row in statistics.layers(net)]
        self.history: Sequence[Record] = []
        self.measured: Sequence[dict[str, Any]] = []
        self.now: Record | None = None
        self.live = Live(get_renderable=self.render, console=console, redirect_stdout=False, redirect_stderr=False)

    def __enter__(self) -> "Dashboard":
        self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.update(self.bar.task_ids[0], visible=False)
        self.live.__exit__(*error)

    def show(self, history: Sequence[Record], measured: Sequence[dict[str, Any]]) -> None:
        """Take over what is known after an epoch."""
        self.history, self.measured, self.now = history, measured, None

    def render(self) -> RenderableType:
        """Return the charts, the layers, and the bar of the epoch, in not more lines than the terminal has."""
        width, height = self.console.width, self.console.height
        rows = max(4, (height - 8) // 2)  # of a chart
        return Group(*self.charts(width, rows), *self.layers(width, height - rows - 5), self.bar.get_renderable())

    def charts(self, width: int, rows: int) -> list[Text]:
        """Return loss and accuracy by epoch, side by side."""
        now = [] if self.now is None else [self.now]
        records = [*self.history, *now]
        width = (width - 2) // 2
        losses = {"training": [r.loss for r in records], "test": [r.test_loss for r in self.history]}
        right = {"training": [100 * r.accuracy for r in records], "test": [100 * r.test_accuracy for r in self.history]}
        known = [v for values in losses.values() for v in values if math.isfinite(v)]
        one = self.chart("loss", losses, (0, max(known, default=1)), width, rows, "{:.3f}")
        other = self.chart(f"{self.words.measure} %", right, (0, 100), width, rows, "{:.1f}")
        return [left + Text("  ") + line for left, line in zip(one, other, strict=True)]

    def chart(
        self, name: str, series: dict[str, list[float]], limits: tuple[float, float], width: int, rows: int, form: str
    ) -> list[Text]:
        """Return a chart in `rows` + 2 lines of `width` columns."""
        head = Text(name)
        for which, values in series.items():
            said = form.format(values[-1]) if values else "-"
            head.append(f"  {which} {said}", COLOURS[which])
        head.truncate(width, pad=True)
        margin, width = 6, max(width, 8)
        cells = [_cells(values, limits, width - margin, rows, self.epochs) for values in series.values()]
        lines = [head]
        for row in range(rows):
            label = {0: f"{limits[1]:5.3g}", rows - 1: f"{limits[0]:5.3g}"}.get(row, "")
            line = Text(f"{label:>5}") + Text("|" if self.console.options.ascii_only else "│", "bright_black")
            for column in range(width - margin):
                bits = [int(each[row, column]) for each in cells]
                last_drawn = max((k for k, some in enumerate(bits) if some), default=0)
                line.append(self.glyph(bits[0] | bits[1]), list(COLOURS.values())[last_drawn])
            lines.append(line)
        last = f"epoch {self.epochs}"
        lines.append(Text(" " * margin + "1" + last.rjust(width - margin - 1), "bright_black"))
        return lines

    def glyph(self, bits: int) -> str:
        """Return the character of a cell whose dots are these."""
        if not bits:
            return " "
        return "*" if self.console.options.ascii_only else chr(0x2800 + bits)

    def layers(self, width: int, lines: int) -> list[Text]:
        """Return the layers in columns, their numbers those of the last epoch; as many of them as there is room for."""
        if not self.measured or lines < 3:
            return []
        last = self.measured[-1]
        columns, rows = max(1, (width + 2) // (CELL + 2)), lines - 2
        chosen = np.unique(np.linspace(0, len(self.names) - 1, min(len(self.names), columns * rows)).astype(int))
        rows = -(-len(chosen) // columns)
        columns = -(-len(chosen) // rows)
        found = [Text("  ".join([HEAD] * columns), "bright_black")]
        for row in range(rows):
            found.append(Text("  ".join(self.layer(last, i) for i in chosen[row::rows])))
        left_out = len(self.names) - len(chosen)
        said = f"{left_out} of {len(self.names)} layers are left out; " if left_out else ""
        said += "norms, % of outputs at 0, % of channels dead"
        return [*found, Text(said[:width], "bright_black")]

    def layer(self, last: dict[str, Any], i: int) -> str:
        name = self.names[i]
        name = name if len(name) <= 13 else f"~{name[-12:]}"
        zeros, dead = ("" if last[kind][i] is None else f"{100 * last[kind][i]:.0f}" for kind in ("zeros", "dead"))
        return f"{name:13} {last['weights'][i]:7.3g} {last['gradients'][i]:8.2g} {zeros:>3} {dead:>4}"


def _cells(values: list[float], limits: tuple[float, float], width: int, rows: int, epochs: int) -> np.ndarray:
    """Return the bits of the Braille dots (rows, width) of a line through values at the epochs 1, 2, ..."""
    bits = np.zeros((rows, width), int)
    known = [(i, v) for i, v in enumerate(values) if math.isfinite(v)]
    if not known:
        return bits
    at = np.array([i for i, _ in known]) * (2 * width - 1) / max(1, epochs - 1)
    columns = np.arange(round(at[0]), round(at[-1]) + 1)
    low, high = limits
    heights = (np.interp(columns, at, [v for _, v in known]) - low) / ((high - low) or 1)
    dots = np.round((4 * rows - 1) * (1 - np.clip(heights, 0, 1))).astype(int)
    for column, dot, before in zip(columns, dots, [dots[0], *dots[:-1]], strict=True):
        for y in range(min(dot, before), max(dot, before) + 1):
            bits[y // 4, column // 2] |= DOTS[y % 4, column % 2]
    return bits
