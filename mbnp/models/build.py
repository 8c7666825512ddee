"""Helpers that the builders share: scaled channel counts, and the record of how a network was built."""

from typing import Any

import numpy as np

from mbnp import spec
from mbnp.errors import MbnpError
from mbnp.network import Network

MOST_CHANNELS = 8192
MOST_CLASSES = 100_000


def scaled(channels: int, width_mult: float) -> int:
    """Return `int(channels * width_mult)`: the width multiplier of the paper's section 3.3, for every layer."""
    if not width_mult > 0 or channels * width_mult < 1:
        raise MbnpError(f"width_mult {width_mult} leaves no channel of {channels}: use a larger one, such as 0.25")
    if channels * width_mult > MOST_CHANNELS:
        raise MbnpError(
            f"width_mult {width_mult} makes more than {MOST_CHANNELS:,} channels of {channels}: use a smaller one"
        )
    return int(channels * width_mult)


def divisible(channels: float, by: int = 8) -> int:
    """Return the multiple of `by` nearest to `channels`, at least `by`, and at most a tenth below `channels`.

    So do the code of the papers' authors and all that follow it round what a width multiplier makes, for the vectors of
    processors.
    """
    if not 0 < channels <= MOST_CHANNELS:
        raise MbnpError(f"{channels:g} channels: a width_mult must leave more than 0 and at most {MOST_CHANNELS:,}")
    near = max(by, int(channels + by / 2) // by * by)
    return near + by if near < 0.9 * channels else near


def begin(num_classes: int, seed: int, dtype: Any, channels: int = 3) -> np.random.Generator:
    """Check the options that every builder has, and return the generator that initial weights are drawn from."""
    for name, value, least in (("num_classes", num_classes, 1), ("seed", seed, 0), ("channels", channels, 1)):
        if not isinstance(value, (int, np.integer)) or value < least:
            raise MbnpError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if num_classes > MOST_CLASSES:
        raise MbnpError(f"num_classes must be at most {MOST_CLASSES:,}, got {num_classes}")
    if channels > MOST_CHANNELS:
        raise MbnpError(f"images may have at most {MOST_CHANNELS:,} channels, got {channels}")
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise MbnpError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")
    return np.random.default_rng(seed)


def finish(net: Network, name: str, **options: Any) -> Network:
    """Note in `net` what builds it again, and which layers that makes; seed and dtype are in its arrays."""
    if net.channels != 3:  # files from before there was a choice do not say it
        options["channels"] = net.channels
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in options.items()}
    net.arch = {"name": name, **plain}
    net.built_as = spec.describe_layers(net)
    return net
