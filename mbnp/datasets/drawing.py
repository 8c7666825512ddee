"""An image with boxes around the objects in it, and a label at each.

Every class has a colour, of the seven that Okabe and Ito chose to be apart for every kind of colour vision. Lines and
letters grow with the image, and a small one can be enlarged, so that labels can be read. A label stands where it covers
no other one, as far as there is room.
"""

import functools
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from mbnp.errors import printable
from mbnp.storage import replacing

COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
LETTERS, SMALLEST = 1 / 45, 13  # the height of letters as a share of the image's mean side; in pixels, at least
HALO = "white"  # around lines and labels, which makes them stand out on any image
LONGEST = 60  # letters of a class's name
TILE, GAP = 240, 8  # pixels of an image's longer side on a sheet, at least, and between images
LIGHT = 140  # of 255: black is read better than white on a colour that is lighter

SIGNED = "Software", "mbnp detect"  # in the text of a picture

Place = tuple[float, ...]  # left, top, right, bottom


class _Label(NamedTuple):
    text: str
    colour: tuple[int, int, int]
    box: Place
    width: int
    height: int


def colour(label: int) -> tuple[int, int, int]:
    """Return the red, green and blue of a class."""
    return COLOURS[label % len(COLOURS)]


def draw(image: np.ndarray, found: Any, names: Sequence[str], smallest: int = 0) -> np.ndarray:
    """Return the image (H, W, C) uint8 with what is found in it, as (H', W', 3) uint8.

    found: `labels` and `scores` (n,), by falling score, and `boxes` (n, 4) in pixels, or None where the first label is
    the image's; scores may be None, too: of what is known to be there. names: that of each label. H' and W' are H and W
    times a whole number, the first with which the longer side is at least `smallest`.
    """
    height, width, channels = image.shape
    times = max(1, -(-smallest // max(height, width)))
    picture = Image.fromarray(image if channels == 3 else image[..., 0]).convert("RGB")
    picture = picture.resize((width * times, height * times), Image.Resampling.NEAREST)
    font = _font(max(SMALLEST, round(LETTERS * (picture.width * picture.height) ** 0.5)))
    line = max(2, round(font.size / 6))
    boxes = np.zeros((len(found.labels[:1]), 4)) if found.boxes is None else np.nan_to_num(found.boxes) * times
    scores = [None] * len(found.labels) if found.scores is None else found.scores.tolist()
    objects = zip(boxes.tolist(), found.labels.tolist(), scores, names, strict=False)
    labels = [_label(tuple(box), label, score, name, font, picture.width) for box, label, score, name in objects]
    drawing = ImageDraw.Draw(picture)
    for label in reversed(labels if found.boxes is not None else []):  # the surest on top
        drawing.rectangle(_around(label.box, line, picture.size), outline=HALO, width=line + 2)
        drawing.rectangle(_around(label.box, line - 1, picture.size), outline=label.colour, width=line)
    taken: list[Place] = []
    for label in labels:
        place = _place(label, picture.size, taken, line)
        taken.append(place)
        drawing.rectangle(place, fill=label.colour, outline=HALO)
        middle = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
        drawing.text(middle, label.text, "black" if _lightness(label.colour) > LIGHT else "white", font, anchor="mm")
    return np.asarray(picture)


def sheet(images: np.ndarray, found: Sequence[Any], classes: Sequence[str], columns: int = 6) -> np.ndarray:
    """Return images (N, H, W, C) uint8 with what is found in each, as for `draw`, in rows on one (H', W', 3) uint8."""
    drawn = [
        draw(image, each, [classes[k] for k in each.labels], TILE) for image, each in zip(images, found, strict=True)
    ]
    height, width, rows = *drawn[0].shape[:2], -(-len(drawn) // columns)
    page = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, picture in enumerate(drawn):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        page[top : top + height, left : left + width] = picture
    return page


def save(picture: np.ndarray, path: str | Path) -> None:
    """Write a picture as PNG, whole or not at all, signed so that `is_drawn` knows it."""
    content, notes = io.BytesIO(), PngInfo()
    notes.add_text(*SIGNED)
    Image.fromarray(picture).save(content, "PNG", pnginfo=notes)
    with replacing(Path(path), lasting=False) as partial:
        partial.write_bytes(content.getbuffer())


def is_drawn(path: str | Path) -> bool:
    """Return whether a file is a picture that `save` wrote."""
    if not str(path).endswith(".png") or not os.path.isfile(path):
        return False
    try:
        with Image.open(path) as image:
            return image.info.get(SIGNED[0]) == SIGNED[1]
    except Exception:  # whatever Pillow raises on a file that is no picture
        return False


@functools.lru_cache(16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # has a font of many alphabets; takes a moment to import

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _lightness(rgb: tuple[int, int, int]) -> float:
    red, green, blue = rgb
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _label(box: Place, label: int, score: float | None, name: str, font: ImageFont.FreeTypeFont, most: int) -> _Label:
    """Return the label of one box; its class's name is cut where it is wider than the image."""
    # Rounded down: what is not certain is not 100 %.
    percent = "" if score is None else f" {int(100 * score)} %" if score == score else " NaN"
    name, margin = printable(name[:LONGEST])[:LONGEST], round(font.size / 3)
    text = name + percent
    while len(name) > 1 and font.getlength(text) + 2 * margin > most:
        name = name[:-1]
        text = f"{name}…{percent}"
    return _Label(text, colour(label), box, round(font.getlength(text)) + 2 * margin, round(1.4 * font.size))


def _around(box: Place, by: int, size: tuple[int, int]) -> Place:
    """Return a box moved outwards, so that its line lies around the object, as far as the image goes."""
    left, top, right, bottom = box
    width, height = size
    left, top = min(max(left - by, 0), width - 1), min(max(top - by, 0), height - 1)
    return left, top, max(min(right + by, width - 1), left), max(min(bottom + by, height - 1), top)


def _place(label: _Label, size: tuple[int, int], taken: Sequence[Place], line: int) -> Place:
    """Return where a label stands: the first place within the image that no other label has, or else the first."""
    width, height = size
    found = []
    for x, y in _corners(label, line):
        x = min(max(x, 0), max(width - 1 - label.width, 0))
        y = min(max(y, 0), max(height - 1 - label.height, 0))
        found.append((x, y, x + label.width, y + label.height))
    free = (place for place in found if not any(_meet(place, other) for other in taken))
    return next(free, found[0])


def _corners(label: _Label, line: int) -> Iterator[tuple[float, float]]:
    """Yield the corners at which a label may begin, the best first: above its box, below it, inside."""
    left, top, right, bottom = label.box
    for y in (top - line - label.height, bottom + line, top + line, bottom - line - label.height):
        yield from ((left - line, y), (right + line - label.width, y))


def _meet(a: Place, b: Place) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
