"""Errors in what the caller gave, each as one clear line."""

import difflib
import reprlib
from collections.abc import Iterable

import numpy as np


class MbnpError(ValueError):
    """The caller's input is at fault. The message is one line: the bad value, and what to do about it."""


class DivergedError(MbnpError):
    """The loss became NaN or infinite; the message names the step and the layer."""


def short(value: object, most: int = 60) -> str:
    """Return `value`, which comes from a file, for one line of a message: ASCII, cut at `most` characters."""
    try:
        text = ascii(value) if isinstance(value, str | int | float) else ascii(reprlib.repr(value))[1:-1]
    except ValueError:  # Python refuses to write out integers of thousands of digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def refuse_mask(name: str, value: object) -> None:
    """Raise MbnpError for a masked array: nothing here looks at masks, and what is masked would count silently."""
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
