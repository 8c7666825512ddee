"""Image files as arrays, of any kind that Pillow reads.

`read_image` is what predicts; `decode` is the same for many threads at once, inside a `quiet` block. What detects reads
a whole image, by `read_whole`, and `resize` makes it as the detector wants it.
"""

import contextlib
import io
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from mbnp.errors import MbnpError, unknown

Note = Callable[[str], Any]

RESIZES = "stretch", "pad"
ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The brands of HEIC in the first box of a file: one image or a sequence, 8 bits or more.
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_DARK = 16  # an image that would use less than a 16th of its range is all but black


def read_image(path: str | Path, size: int, channels: int = 3, note: Note = lambda text: None) -> np.ndarray:
    """Return an image file as (size, size, channels) uint8: upright, the shorter side resized, the middle cropped.

    channels: 3 for RGB, 1 for grey. Transparent pixels become white. note(text) is called where the range of the
    values had to be guessed. Raise MbnpError for a file that is no image, is damaged or has too many pixels.
    """
    with quiet():
        image, _ = decode(path, size, channels, note)
    return np.asarray(image).reshape(size, size, channels)


def read_whole(path: str | Path, channels: int = 3, note: Note = lambda text: None) -> np.ndarray:
    """Return an image file as (H, W, channels) uint8, as it is displayed: upright, at its own size. As `read_image`."""
    with quiet():
        image, (width, height) = decode(path, None, channels, note)
    return np.asarray(image).reshape(height, width, channels)


def resize(image: np.ndarray, size: int, how: str) -> np.ndarray:
    """Return an image (H, W, C) of 0 to 255 as (size, size, C) float32: bilinear, of four pixels, without antialiasing.

    how: "stretch", as PyTorch's interpolate does it: pixel i has its centre at (i + 0.5) * H / size of the image; or
    "pad", as TensorFlow.js does it: black at the right or the bottom makes it square, of L pixels, and pixel i is the
    image at i * L / size.
    """
    if image.ndim != 3 or 0 in image.shape:
        raise MbnpError(f"an image must be (H, W, C), got the shape {image.shape}")
    if not isinstance(size, int) or size < 1:
        raise MbnpError(f"size must be a whole number of pixels, got {size!r}")
    if how not in RESIZES:
        raise unknown("way to resize", how, RESIZES)
    height, width = image.shape[:2]
    if how == "pad":
        longer = max(height, width)
        down = across = np.arange(size) * (longer / size)
        return _between(_between(image, down, longer, 0), across, longer, 1)
    down, across = ((np.arange(size) + 0.5) * (side / size) - 0.5 for side in (height, width))
    return _between(_between(image, down, height, 0), across, width, 1)


def _between(values: np.ndarray, positions: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Return `values` at positions along an axis, linear between two neighbours, as float32.

    length: of the axis, which may be longer than that of the values: they go on with zeros.
    """
    positions = positions.clip(0, length - 1)
    before = positions.astype(np.int64)
    share = (positions - before).astype(np.float32).reshape(-1, *(1,) * (2 - axis))
    low, high = (_taken(values, at, axis) for at in (before, np.minimum(before + 1, length - 1)))
    high -= low
    high *= share
    high += low
    return high


def _taken(values: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Return the values with rising indices along an axis, as float32; 0 beyond its end."""
    inside = int(np.searchsorted(at, values.shape[axis]))
    found = values.take(np.minimum(at, values.shape[axis] - 1), axis).astype(np.float32)
    np.moveaxis(found, axis, 0)[inside:] = 0
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turn Pillow's warning of too many pixels into an error within the block, and ignore its others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(
    path: str | Path, size: int | None, channels: int = 3, note: Note = lambda text: None
) -> tuple[Image.Image, tuple[int, int]]:
    """Return the image of `read_image`, whole if size is None, and its full width and height. Call it in `quiet`."""
    if channels not in (1, 3):
        raise MbnpError(f"image files have 1 channel, grey, or 3, and {channels} were asked for")
    if os.path.exists(path) and not os.path.isfile(path):
        raise MbnpError(f"{path} is no file")
    try:
        return _decode(path, size, channels, lambda text: note(f"{path}: {text}"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no image at {path}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MbnpError(f"{path} is too large: {str(error).split(',')[0]}; make it smaller first") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise what they like
        with contextlib.suppress(Exception):  # the damage may be in what is not needed
            if (plain := _other_reader(path)) is not None:
                return _decode(plain, size, channels, lambda text: note(f"{path}: {text}"))
        raise MbnpError(f"{path} is no image that can be read: {_hint(path) or error}") from None


def _decode(
    file: str | Path | io.BytesIO, size: int | None, channels: int, note: Note
) -> tuple[Image.Image, tuple[int, int]]:
    with Image.open(file) as image:
        width, height = image.size
        if size is not None:
            # A large JPEG is decoded at a half, a quarter or an eighth, but no smaller than twice what is asked for.
            image.draft(None, (2 * size * width // min(image.size), 2 * size * height // min(image.size)))
        deep = ";16" in str(image.tile)  # of more than 8 bits in the file, whatever Pillow makes of them
        image.load()
        turn = _turn(image)  # after load(): Pillow turns TIFF and AVIF itself
        flat = _eight_bits(image, channels, deep, note)
        if size is not None:
            flat = ImageOps.fit(flat, (size, size), Image.Resampling.BILINEAR)
        flat.load()
    if turn is not None:
        flat = flat.transpose(turn)
        if turn not in (_TURNS[2], _TURNS[3], _TURNS[4]):
            width, height = height, width
    return flat, (width, height)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn the image upright; None for what no camera wrote, whatever is wrong with it."""
    try:
        return _TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # struct's errors, Pillow's and others, by what is broken
        return None


def _eight_bits(image: Image.Image, channels: int, deep: bool, note: Note) -> Image.Image:
    """Return the image as RGB or L, on white. deep: it has 16 bits a channel in its file."""
    signed = _tag(getattr(image, "tag_v2", {}), "SampleFormat") == 2
    if image.mode[0] in "IF" or (image.mode == "L" and signed):  # more than 8 bits, floating point, below 0
        image = Image.fromarray(_scaled(image, note))
    elif deep and 0 < (most := int(np.max(image.convert("RGB").getextrema()))) < 256 // _DARK:
        note("of its 16 bits a channel only the lower are used: brightened, with coarse steps")
        brighter = image.convert("RGB").point(lambda value: value * 255 // most)
        if "A" in image.getbands():
            brighter.putalpha(image.getchannel("A"))
        image = brighter
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _scaled(image: Image.Image, note: Note) -> np.ndarray:
    """Return grey values of any range as uint8: by the range that the file says, else by their own, with a note."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if _tag(tags, "BitsPerSample") in (8, 32) and image.mode in (
        "L",
        "I",
    ):  # Pillow takes 8 for unsigned, 32 for signed
        values = values.view(f"{'i' if _tag(tags, 'SampleFormat') == 2 else 'u'}{values.itemsize}")
    finite = np.isfinite(values)
    if not finite.any():
        note("none of its values is a number: black")
        return np.zeros(values.shape, np.uint8)
    own = float(values[finite].min()), float(values[finite].max())
    low, high = _stated(tags, image.mode) or _usual(image, tags, own) or (0.0, 0.0)
    if low == high:
        low, high = min(own[0], 0.0), max(own[1], 0.0)
        note(f"the file does not say the range of its values: scaled by their own, {own[0]:g} to {own[1]:g}")
    share: np.ndarray = np.where(finite, values, low).astype(np.float32)
    share = (share - low) / (high - low)
    share = 1 - share if _tag(tags, "PhotometricInterpretation") == 0 else share  # white is zero
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)


def _tag(tags: Any, name: str) -> Any:
    """Return a TIFF tag's first value, None where there is none."""
    value = tags.get(_TAGS[name])
    return value[0] if isinstance(value, tuple) and value else value


_TAGS = {
    "BitsPerSample": 258, "PhotometricInterpretation": 262, "MinSampleValue": 280, "MaxSampleValue": 281,
    "SampleFormat": 339, "SMinSampleValue": 340, "SMaxSampleValue": 341,
}  # fmt: skip


def _stated(tags: Any, mode: str) -> tuple[float, float] | None:
    """Return the least and greatest value as a TIFF's tags say them, if they do."""
    for prefix in ("SM", "M"):
        low, high = _tag(tags, f"{prefix}inSampleValue"), _tag(tags, f"{prefix}axSampleValue")
        if isinstance(high, int | float) and np.isfinite(high):
            low = low if isinstance(low, int | float) and np.isfinite(low) else 0
            if low < high:
                return float(low), float(high)
    bits = _tag(tags, "BitsPerSample")
    return (0.0, 2.0**bits - 1) if mode.startswith("I;16") and isinstance(bits, int) and bits < 16 else None


def _usual(image: Image.Image, tags: Any, own: tuple[float, float]) -> tuple[float, float] | None:
    """Return the range that values of this type usually have, unless they leave it or would all be dark."""
    if _tag(tags, "SampleFormat") == 2 and own != (0, 0):
        return None  # signed: nobody can tell which number is black
    if image.mode == "F":
        high = 1.0
    else:
        high = 2.0**32 - 1 if _tag(tags, "BitsPerSample") == 32 else 65535.0
    return (0.0, high) if own == (0, 0) or (own[0] >= 0 and high / _DARK <= own[1] <= high) else None


def _other_reader(path: str | Path) -> io.BytesIO | None:
    """Return the file for a second attempt: without its metadata, or as it is where a plugin was found for it."""
    with open(path, "rb") as file:
        head = file.read(12)
        if _is_heic(head) and _heif_plugin():
            return io.BytesIO(head + file.read())
        if head[4:12] in (b"ftypavif", b"ftypavis"):  # an item of a kind that nobody reads
            return io.BytesIO((head + file.read()).replace(b"Exif", b"none", 1))
        if head[:4] in (b"II*\0", b"MM\0*"):
            return io.BytesIO(_bare_tiff(head + file.read()))
        if head.startswith(b"\xff\xd8"):
            return io.BytesIO(_bare_jpeg(head + file.read()))
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return io.BytesIO(_bare_png(head + file.read()))
    return None


def _bare_jpeg(content: bytes) -> bytes:
    """Return a JPEG without the segments for applications, except Adobe's, which says what the colours are."""
    kept, at = [content[:2]], 2
    while content[at : at + 1] == b"\xff" and (marker := content[at + 1]) != 0xDA:
        if marker == 0xFF:  # fill
            at += 1
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if not (0xE1 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE:
            kept.append(content[at:end])
        at = end
    return b"".join(kept) + content[at:]


def _bare_png(content: bytes) -> bytes:
    """Return a PNG with nothing but the chunks that make its pixels."""
    kept, at = [content[:8]], 8
    while at + 8 <= len(content):
        (size,), name = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(content[at : at + 12 + size])
        at += 12 + size
    return b"".join(kept)


def _bare_tiff(content: bytes) -> bytes:
    """Return a TIFF whose orientation and later tags, of metadata, have a number that nobody reads."""
    order: Literal["little", "big"] = "little" if content.startswith(b"II") else "big"
    changed, at = bytearray(content), int.from_bytes(content[4:8], order)
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(content[at : at + 2], order), 12):
        tag = int.from_bytes(content[entry : entry + 2], order)
        if tag in (ORIENTATION, 700) or tag >= 33000:
            unread = (65000, 2), (1, 2), (1, 4)  # its number, its type and count: a byte, which is in the entry
            changed[entry : entry + 8] = b"".join(value.to_bytes(size, order) for value, size in unread)
    return bytes(changed)


def _is_heic(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC


def _heif_plugin() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _hint(path: str | Path) -> str:
    """Return what to do about a file that Pillow does not read by itself."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        head = file.read(12)
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return "a damaged TIFF, or of a kind that Pillow does not read, as those of 64 bits are"
        if _is_heic(head):
            return "it is HEIC, which the plugin pillow-heif reads (pip install pillow-heif)"
    return ""


def files_in(folder: str | Path) -> list[str]:
    """Return the files in a folder and in those inside it, in order; but none whose name begins with a dot."""
    found: list[str] = []
    seen = set(map(str, Path(os.path.realpath(folder)).parents))  # to which a link may lead, and so to other classes

    def unreadable(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        found += [] if real in seen else [os.path.join(root, name) for name in sorted(names) if name[0] != "."]
        seen.add(real)
    return found
