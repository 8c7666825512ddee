"""`mbnp watch --live`: frames and what is seen in them, in the terminal."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.console
from PIL import Image, ImageDraw
from rich.color import Color
from rich.console import ConsoleOptions, ConsoleRenderable, Group, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from mbnp.commands.console import Console
from mbnp.datasets import drawing

RATE = 12  # times a second that the terminal is drawn, at most
SHARE = 0.2  # of the time that this may take: a large terminal is drawn less often
LINES = 5  # of text below the image


class Screen:
    """A terminal that shows the newest frame; a context, within which it does."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self.next = 0.0  # time.perf_counter() from which it is drawn again

    @classmethod
    def in_terminal(cls) -> "Screen | None":
        """Return the screen of the terminal; None where there is none that can be drawn on."""
        console = Console()
        return cls(console) if console.is_terminal and not console.is_dumb_terminal else None

    def __enter__(self) -> "Screen":
        self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.live.__exit__(*error)

    def show(self, image: np.ndarray, answer: Any, names: Sequence[str], state: str) -> None:
        """Draw a frame with its answer, unless one was drawn just now."""
        began = time.perf_counter()
        if began >= self.next:
            self.live.update(self.render(image, answer, names, state), refresh=True)
            self.next = began + max(1 / RATE, (time.perf_counter() - began) / SHARE)

    def render(self, image: np.ndarray, answer: Any, names: Sequence[str], state: str) -> ConsoleRenderable:
        """Return the frame, the best answers and the state, in fewer lines than the terminal has."""
        width, height = self.console.width, self.console.height
        parts: list[ConsoleRenderable] = []
        if not self.console.options.ascii_only and height > LINES + 2:
            parts.append(Blocks(_small(image, answer, width, 2 * (height - LINES - 1))))
        for name, label, score in list(zip(names, answer.labels.tolist(), answer.scores, strict=True))[: LINES - 2]:
            line = Text(f"{100 * score:6.1f} %  ").append(name, "#{:02x}{:02x}{:02x}".format(*drawing.colour(label)))
            line.truncate(width)
            parts.append(line)
        return Group(*parts, Text(state[:width], "bright_black"))


class Blocks:
    """An image (2 H, W, 3) uint8 as H lines of W characters, each of which is two pixels, one above the other."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels & 0xF8  # fewer colours, so that their styles are found again

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> RenderResult:
        for upper, lower in zip(self.pixels[::2], self.pixels[1::2], strict=True):
            for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
                yield Segment("▀", _style(*above, *below))
            yield Segment.line()


@functools.lru_cache(1 << 14)
def _style(red: int, green: int, blue: int, *below: int) -> Style:
    return Style(color=Color.from_rgb(red, green, blue), bgcolor=Color.from_rgb(*below))


def _small(image: np.ndarray, answer: Any, columns: int, rows: int) -> np.ndarray:
    """Return the frame as large as fits into columns x rows pixels, rows even, with its boxes."""
    height, width = image.shape[:2]
    scale = min(columns / width, rows / height)
    size = max(1, int(width * scale)), max(2, int(height * scale) // 2 * 2)
    small = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    if answer.boxes is not None:
        lines = ImageDraw.Draw(small)
        for label, box in zip(answer.labels.tolist(), np.nan_to_num(answer.boxes), strict=True):
            left, top, right, bottom = (box * np.tile((size[0] / width, size[1] / height), 2)).tolist()
            lines.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=drawing.colour(label))
    return np.asarray(small)
