"""What every lesson imports: ways to show text, code, tables, figures and times.

In a notebook they are displayed; where a lesson runs as a plain script they are printed, with the text between the
cells, and figures open in a window where there is a screen. MBNP_LESSONS=small in the environment cuts every lesson
down to a few seconds.
"""

import inspect
import io
import itertools
import os
import re
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

SMALL = os.environ.get("MBNP_LESSONS") == "small"

# Okabe and Ito's colours, which people with any kind of colour vision can distinguish. Give lines that cross
# different markers or dashes too, for readers who print.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)

_STYLE = {
    "axes.prop_cycle": f"cycler(color={list(COLOURS)})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.facecolor": "white",  # opaque, so that black labels are legible on dark pages too
    "font.size": 10,
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "savefig.facecolor": "white",
}


def say(text: str) -> None:
    """Show text in Markdown: an f-string, so that its numbers are the ones just computed."""
    _display(inspect.cleandoc(text))


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
    """Return a table in Markdown, to be shown with `say`. Columns of numbers are right-aligned."""
    rows = [[cell if isinstance(cell, str) else f"{cell:,}" for cell in row] for row in rows]
    numeric = [all(_is_number(row[k]) for row in rows) for k in range(len(header))]
    lines = [header, ["---:" if right else "---" for right in numeric], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def source(*code: Callable | str) -> None:
    """Show code of mbnp as it stands: functions and classes, or text. A page is stale once it has changed."""
    texts = [item if isinstance(item, str) else inspect.getsource(_plain(item)) for item in code]
    names = [f"{_plain(item).__module__}:{item.__qualname__}" for item in code if not isinstance(item, str)]
    text = "\n\n\n".join(textwrap.dedent(each).strip("\n") for each in texts)
    _display(f"```python\n{text}\n```", shown=[name for name in names if not name.startswith("__main__")])


def figure(width: float = 8, height: float = 3.5, **subplots: Any) -> tuple[Any, Any]:
    """Make matplotlib's `(figure, axes)` in the style of the lessons, in inches; `subplots` as in plt.subplots."""
    import matplotlib.pyplot as plt

    plt.rcParams.update(_STYLE)
    return plt.subplots(figsize=(width, height), **subplots)


def show(fig: Any, alt: str = "") -> None:
    """Show a figure and close it. `alt` describes it in words; without it, the titles do."""
    import matplotlib.pyplot as plt

    titles = [fig.get_suptitle(), *(axes.get_title() for axes in fig.axes)]
    alt = " ".join((alt or "; ".join(filter(None, titles)) or "figure").split())
    if _in_notebook():
        from IPython.display import Image, display

        png = io.BytesIO()
        fig.savefig(png, format="png", pil_kwargs={"optimize": True})
        display(Image(png.getvalue(), format="png", alt=alt))
    elif plt.get_backend().lower() == "agg":  # there is no screen
        _display(f"[figure: {alt}]")
    else:
        plt.show()
    plt.close(fig)


def grid(axes: Any, numbers: Any, title: str = "", box: tuple[int, int, int, int] | None = None) -> None:
    """Draw a small matrix with its numbers written in; `box` (row, column, height, width) frames a region."""
    import numpy as np
    from matplotlib.patches import Rectangle

    numbers = np.asarray(numbers)
    limit = max(float(np.abs(numbers).max()), 1e-9)
    axes.imshow(numbers, cmap="RdBu_r", vmin=-2 * limit, vmax=2 * limit)  # pale, so that the numbers stay legible
    for (row, column), number in np.ndenumerate(numbers):
        axes.text(column, row, f"{number:g}", ha="center", va="center")
    if box:
        row, column, height, width = box
        frame = Rectangle((column - 0.5, row - 0.5), width, height, fill=False, edgecolor=BLACK, linewidth=2.5)
        axes.add_patch(frame).set_clip_on(False)
    axes.set(xticks=[], yticks=[], title=title)
    axes.spines[:].set_visible(False)


def timed(call: Callable[[], object], repeat: int = 7) -> float:
    """Return the median seconds of `call()`, after one run that compiles and warms up."""
    return statistics.median(_seconds(call, repeat))


def fastest(call: Callable[[], object], repeat: int = 30) -> float:
    """Return the seconds of the fastest of many calls: other programs on the machine can only add to it."""
    return min(_seconds(call, repeat))


def _seconds(call: Callable[[], object], repeat: int) -> list[float]:
    call()
    seconds = []
    for _ in range(min(repeat, 2) if SMALL else repeat):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def measured_here() -> None:
    """Say which machine the numbers of a page are from, and warn if other programs would distort its times."""
    from mbnp import backend
    from mbnp.bench import machine

    say(
        f"*Times and accuracies on this page are from {machine.processor()}, {backend.get_num_threads()} threads. "
        f"Another machine takes other times, and rounds differently in training.*"
    )
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1):
        say("**Other programs are busy on this machine. The times on this page are unreliable.**")


def _plain(code: Any) -> Any:
    return getattr(code, "py_func", code)  # the Python function inside a compiled one


def _is_number(cell: str) -> bool:
    return cell.strip(" %x+-").replace(",", "").replace(".", "", 1).isdigit()


def _display(text: str, shown: Sequence[str] = ()) -> None:
    if _in_notebook():
        from IPython.display import Markdown, display

        # build.py reads from the metadata which code a page depends on.
        display(Markdown(text), metadata={"mbnp": {"shown": list(shown)}})
    else:
        print(_broken(text), end="\n\n")


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")


# --- a lesson as a plain script ---


def _broken(text: str) -> str:
    """Break paragraphs, lists and tables at 80 columns; code, formulas and titles stay as they are."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    for k in range(0, len(parts), 2):
        parts[k] = "\n\n".join(map(_broken_block, parts[k].split("\n\n")))
    return "".join(parts)


def _broken_block(block: str) -> str:
    if block.startswith(("    ", "$$", "#")) or not block.strip():
        return block
    if block.startswith("|"):
        return _aligned([[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()])
    lines = []
    for item in re.split(r"\n(?=(?:[-*]|\d+\.) )", block):
        marker = re.match(r"(?:[-*]|\d+\.) |", item)
        indent = " " * (marker.end() if marker else 0)
        wrap = textwrap.TextWrapper(80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines += wrap.wrap(" ".join(item.split()))
    return "\n".join(lines)


def _aligned(rows: list[list[str]]) -> str:
    """Align the columns of a Markdown table. Where it is too wide, break its widest columns between words."""
    right = [mark.endswith(":") for mark in rows.pop(1)]
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    least = [max(map(len, " ".join(column).split()), default=0) for column in columns]
    while sum(widths) + 2 * len(widths) - 2 > 80 and (broad := [k for k, w in enumerate(widths) if w > least[k]]):
        widths[max(broad, key=widths.__getitem__)] -= 1
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, w or 1, break_on_hyphens=False) for cell, w in zip(row, widths, strict=True)]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            aligned = (f"{part:{'>' if r else '<'}{w}}" for part, r, w in zip(parts, right, widths, strict=True))
            lines.append("  ".join(aligned).rstrip())
        if row is rows[0]:
            lines.append("-" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join(lines)


def _run_script(path: Path, names: dict[str, Any]) -> None:
    """Run a lesson cell by cell, and print the text of its cells of Markdown, which for Python are comments."""
    cells = re.split(r"^(?=# %%)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    line = 0
    for cell in cells:
        if cell.startswith("# %% [markdown]"):
            text = re.sub(r"^# ?", "", cell.partition("\n")[2], flags=re.MULTILINE)
            text = re.sub(r"<!--.*?-->|<details>.*?</details>", "", text, flags=re.DOTALL)
            print(_broken(re.sub(r"\n{3,}", "\n\n", text).strip()), end="\n\n", flush=True)
        else:  # as many empty lines before it as in the file, so that a traceback names the right one
            exec(compile("\n" * line + cell, path, "exec", dont_inherit=True), names)
        line += cell.count("\n")


_main = sys.modules["__main__"]
_script = Path(getattr(_main, "__file__", None) or "")
if re.match(r"\d\d_.*\.py$", _script.name) and not _in_notebook():
    # Python reads the lesson, and its first cell imports this file, which runs all of the lesson instead.
    _run_script(_script, vars(_main))
    sys.exit()
