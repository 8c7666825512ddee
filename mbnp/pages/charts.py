"""Charts of pages: numbers become places in an SVG here, and templates/charts.html draws them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mbnp import tables

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 54, 446, 12, 236  # of the axes, in pixels
COLOURS = ("blue", "vermilion", "green", "purple", "orange", "sky", "text")  # of base.css
DASHES = ("", "6 3", "1.5 3")
SPARK = (110, 24)  # width and height of a line within a table


class Series(NamedTuple):
    """A line to draw; what is not finite breaks it, and None is not known."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    style: int  # a colour, and from len(COLOURS) on a dash
    dots: bool = True


class Scale(NamedTuple):
    """An axis: values from `low` to `high` are at `begin` to `end`, in pixels."""

    label: str
    low: float
    high: float
    begin: float
    end: float
    log: bool = False
    whole: bool = False  # whether only whole numbers mean something

    def __call__(self, value: float) -> float:
        low, high, value = map(math.log10, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return round(self.begin + (self.end - self.begin) * (value - low) / (high - low), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the places of a few round numbers, and the numbers."""
        values = _powers(self.low, self.high) if self.log else _steps(self.low, self.high, self.whole)
        return [(self(value), tables.quantity(value)) for value in values]


def horizontal(label: str, low: float, high: float, **options: Any) -> Scale:
    """Return the axis below a chart."""
    return Scale(label, low, high, LEFT, RIGHT, **options)


def vertical(label: str, low: float, high: float, **options: Any) -> Scale:
    """Return the axis at the left of a chart."""
    return Scale(label, low, high, BOTTOM, TOP, **options)


class Line(NamedTuple):
    """A series as it is drawn: each stretch of points as an SVG has them, and (x, y, text) for each dot."""

    name: str
    stretches: list[str]
    dots: list[tuple[float, float, str]]
    colour: str
    dash: str


class Chart(NamedTuple):
    """A chart of lines."""

    title: str
    x: Scale
    y: Scale
    lines: list[Line]


def chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    log: bool = False,
    limits: tuple[float, float] | None = None,
    whole: bool = True,
) -> Chart | None:
    """Place lines between axes that hold all their points, or `limits` of y; None where no line has a point.

    log: the y axis is logarithmic, and what is not above 0 is not on it. whole: x counts.
    """
    known = [(x, y) for each in series for x, y in zip(each.xs, each.ys, strict=True) if _shows(y, log)]
    if not known:
        return None
    xs, ys = zip(*known, strict=True)
    x = horizontal(x_label, *_apart(min(xs), max(xs)), whole=whole)
    if limits is None:
        limits = (min(ys) / 1.25, 1.25 * max(ys)) if log else (min(0.0, *ys), 1.05 * max(0.0, *ys) or 1.0)
    y = vertical(y_label, *limits, log=log)
    return Chart(title, x, y, [_line(each, x, y) for each in series])


def loss_limits(training: Sequence[float], test: Sequence[float]) -> tuple[float, float]:
    """Return limits for losses: a first test with statistics that are not there yet does not flatten all the others.

    What is higher is drawn at the edge, and its text has its value.
    """
    known = [value for value in (*training, *test) if math.isfinite(value)]
    most = max((value for value in training if math.isfinite(value)), default=1.0)
    return 0.0, 1.05 * min(max(known, default=1.0), 3 * most) or 1.0


def _line(series: Series, x: Scale, y: Scale) -> Line:
    stretches: list[list[str]] = [[]]
    dots = []
    for at, value in zip(series.xs, series.ys, strict=True):
        if value is None or not _shows(value, y.log):
            stretches.append([])
            continue
        place = x(at), y(min(max(value, y.low), y.high))
        stretches[-1].append("{},{}".format(*place))
        if series.dots:
            dots.append((*place, f"{series.name}, {x.label} {tables.quantity(at)}: {value:.4g}"))
    colour, dash = style(series.style)
    return Line(series.name, [" ".join(points) for points in stretches if points], dots[:200], colour, dash)


def style(index: int) -> tuple[str, str]:
    """Return a colour of base.css and a dash, another pair for each of the first twenty-one."""
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def spark(values: Sequence[float | None]) -> str:
    """Return the points of a small line from 0 to its largest value."""
    known = [value if _shows(value) else None for value in values]
    most = max((value for value in known if value is not None), default=0) or 1
    width, height = SPARK
    step = (width - 4) / max(1, len(known) - 1)
    return " ".join(
        f"{2 + i * step:.1f},{height - 3 - (height - 6) * value / most:.1f}"
        for i, value in enumerate(known)
        if value is not None
    )


def place_labels(points: Sequence[tuple[float, float, str]]) -> Iterator[tuple[float, float, str, str]]:
    """Yield for each point where its name stands, and how it is anchored; an empty name where there is no room."""
    taken: list[tuple[float, float, float, float]] = [(x - 4, y - 4, x + 4, y + 4) for x, y, _ in points]
    for x, y, name in points:
        width = 6.4 * len(name)
        for dx, dy, anchor in ((8, -7, "start"), (-8, -7, "end"), (8, 15, "start"), (-8, 15, "end")):
            left = x + dx - {"start": 0, "end": width}[anchor]
            box = left, y + dy - 10, left + width, y + dy + 3
            if box[0] > LEFT and box[2] < WIDTH and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                yield x + dx, y + dy, anchor, name
                break
        else:
            yield x, y, "start", ""


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shows(value: float | None, log: bool = False) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not log)


def _apart(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _steps(low: float, high: float, whole: bool) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten, five or six of them."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    step = max(1.0, step) if whole else step
    return [round(n * step, 10) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Return powers of ten, with their double and fivefold where there are few of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(inside) > 6:
        return inside[:: -(-len(inside) // 6)]
    if len(inside) < 3:
        finer = (1, 2, 3, 5, 7) if len(inside) < 2 else (1, 2, 5)
        inside = [m * 10.0**p for p in powers for m in finer if low <= m * 10.0**p <= high]
    return inside
