"""Errors in what the caller gave, each as one clear line."""

import difflib
import os
import reprlib
import unicodedata
from collections.abc import Iterable

LONGEST = 1000  # characters of a message


class MbnpError(ValueError):
    """The caller's input is at fault. The message is one line: the bad value, and what to do about it."""

    def __init__(self, message: str = "") -> None:
        line = printable(message)  # names in it may come from a file, and be of any length
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}")


class DivergedError(MbnpError):
    """The loss became NaN or infinite; the message names the step and the layer."""


def printable(text: str, kept: str = "") -> str:
    """Return `text` with all but the characters `kept` escaped that move a terminal's cursor, hide or turn text."""
    if text.isprintable():
        return text
    return "".join(c if c in kept or _shows(c) else ascii(c)[1:-1] for c in text)


def _shows(c: str) -> bool:
    return c.isprintable() or unicodedata.category(c) == "Zs"  # a space, of whatever width


def short(value: object, most: int = 60) -> str:
    """Return `value`, which comes from a file, for one line of a message: ASCII, cut at `most` characters."""
    try:
        text = ascii(value) if isinstance(value, str | int | float) else ascii(reprlib.repr(value))[1:-1]
    except ValueError:  # Python refuses to write out integers of thousands of digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= most else f"{text[: most - 3]}..."


LAYERS = ("default", "forksafe", "omp", "safe", "tbb", "threadsafe", "workqueue")  # of Numba's threads
MOST_THREADS = 4096


def check_environment() -> None:
    """Raise MbnpError if the environment asks Numba for threads that there cannot be: its own errors are tracebacks."""
    name, count = "NUMBA_NUM_THREADS", os.environ.get("NUMBA_NUM_THREADS", "1")
    if not (count.strip().isdecimal() and 1 <= int(count) <= MOST_THREADS):
        raise MbnpError(f"{name} must be a whole number from 1 to {MOST_THREADS}, got {short(count)}: mend or unset it")
    name, layer = "NUMBA_THREADING_LAYER", os.environ.get("NUMBA_THREADING_LAYER", "default")
    if layer.lower() not in LAYERS:
        raise MbnpError(f"{name} must be one of {', '.join(LAYERS)}, got {short(layer)}: mend or unset it")


def refuse_mask(name: str, value: object) -> None:
    """Raise MbnpError for a masked array: nothing here looks at masks, and what is masked would count silently."""
    import numpy as np  # not at the top: `mbnp --help` does without

    if isinstance(value, np.ma.MaskedArray):
        raise MbnpError(f"{name} is a masked array, and its mask would be lost: pass its .filled(0), or the like")


def unknown(kind: str, name: object, known: Iterable[str]) -> MbnpError:
    """Return the error for a name that is none of `known`; it suggests the nearest one.

    >>> raise unknown("model", "mobilenet-v1-smal", ["mobilenet-v1-small", "resnet20"])
    Traceback (most recent call last):
    mbnp.errors.MbnpError: unknown model 'mobilenet-v1-smal': did you mean 'mobilenet-v1-small'? ...
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return MbnpError(f"unknown {kind} {name!r}: {hint}known are {', '.join(known)}")
