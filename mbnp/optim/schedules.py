"""Schedules: functions from a step, counted from 0, to its hyperparameters, which stay after the last step."""

import math
from collections.abc import Callable

from mbnp.errors import MbnpError

SCHEDULES = ("one-cycle", "cosine", "step", "constant")

Schedule = Callable[[int], dict[str, float]]


def constant(lr: float) -> Schedule:
    """Keep the same learning rate at every step."""
    return lambda step: {"lr": lr}


def step(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """Go down a staircase: lr * factor^floor(step / every)."""
    if every < 1:
        raise MbnpError(f"every must be at least 1 step, got {every}")
    return lambda step: {"lr": lr * factor ** (step // every)}


def cosine(lr: float, total: int, final: float = 0.0) -> Schedule:
    """Go down half a cosine from lr at step 0 to `final` at step `total`.

    Loshchilov & Hutter, "SGDR", arXiv:1608.03983, equation 5, without restarts.
    """
    _check_total(total)
    return lambda step: {"lr": _between(lr, final, min(step / total, 1))}


def one_cycle(
    peak: float,
    total: int,
    warm: float = 0.2,
    momentum: tuple[float, float] | None = (0.85, 0.95),
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Go up to `peak` during the first fraction `warm` of `total` steps, then down to almost nothing.

    The learning rate goes from peak / div_factor to peak, and from there to peak / div_factor /
    final_div_factor, each along half a cosine; momentum goes the other way, from its upper end to its lower
    and back (None: leave it alone). Smith & Topin, "Super-Convergence", arXiv:1708.07120, as PyTorch's
    OneCycleLR has it in two phases: the peak is reached at step `warm * total - 1`, a fraction included.
    """
    _check_total(total)
    if not 0 <= warm <= 1:
        raise MbnpError(f"warm must be a fraction between 0 and 1, got {warm}")
    start, end = peak / div_factor, peak / div_factor / final_div_factor
    low, high = momentum or (0.0, 0.0)
    top, last = warm * total - 1, total - 1

    def at(step: int) -> dict[str, float]:
        step = min(step, last)
        if step <= top and top > 0:
            fraction = step / top
            lr, m = _between(start, peak, fraction), _between(high, low, fraction)
        else:
            # A run too short for a warm-up begins after its peak, as top < 0 says.
            fraction = (step - top) / (last - top) if last > top else 1.0
            lr, m = _between(peak, end, fraction), _between(low, high, fraction)
        return {"lr": lr, "momentum": m} if momentum else {"lr": lr}

    return at


def _between(start: float, end: float, fraction: float) -> float:
    """Return the value after a fraction of the way from `start` to `end`, along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def _check_total(total: int) -> None:
    if total < 1:
        raise MbnpError(f"a schedule needs at least 1 step in total, got {total}")
