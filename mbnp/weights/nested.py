"""Find the state dict in what a checkpoint holds: at any level of nesting, behind any prefix, among other things.

A network is known by two of its arrays, so each mapping that has both, with the same prefix before their names, holds
one: {"epoch": 7, "model_ema": {"module.conv1.weight": ..., "module.linear.weight": ...}}.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mbnp.errors import MbnpError, short

DEEPEST, MOST = 5, 100_000  # levels, and containers, that are looked into

# Arrays that belong to no layer: counters of thop and of averaging, BatchNorm's; and what stands beside a network.
_COUNTERS = {"total_ops", "total_params", "n_averaged", "num_updates", "decay"}
_BESIDE = re.compile(r"[^.]*(criterion|loss|metric|accuracy)[^.]*\..*|[^.]*_?(acc|auroc|f1)\..*", re.IGNORECASE)
_NET = "(model|net|weights?|state)?"
_AVERAGES = re.compile(rf"(?<![a-z])({_NET}ema{_NET}|swa|averaged?|avg|shadow|polyak)(?![a-z])")


class Found(NamedTuple):
    """One network's arrays by its own names."""

    at: str  # where they are, as in "model_ema.module"
    arrays: dict[str, Any]
    averaged: bool
    noise: list[str]  # what stands among them or beside them, and is of no layer
    strange: list[str]  # arrays beside them that nothing is known of


def choose(
    content: Any, ends: Collection[tuple[str, str]], which: str | None, say: Callable[[str], object], most: float
) -> dict[str, Any] | None:
    """Return the arrays of the one network in `content`, None if there is none.

    ends: two names that each kind of network has. which: "averaged" (the default), which are the raw ones where there
    are no others; "raw"; or where the network is. most: bytes that its arrays may have. say: gets notes on the choice.
    """
    networks = [found for at, level in _levels(content) for found in _networks(at, level, ends)]
    if not networks:
        return None
    for found in networks:
        # A view of one number can claim any shape, and would be copied in full.
        if sum(x.nbytes for x in found.arrays.values()) > most:
            raise MbnpError("its tensors are larger than the file")
    averaged, raw = ([found for found in networks if found.averaged is is_average] for is_average in (True, False))
    which = which or "averaged"
    wanted = {"averaged": averaged or raw, "raw": raw}.get(which, [found for found in networks if found.at == which])
    places = ", ".join(found.at for found in networks)
    if not wanted:
        raise MbnpError(f"it has no {short(which)} weights, but {places}")
    first, *others = wanted
    if not all(_same(first.arrays, other.arrays) for other in others):
        raise MbnpError(f"it holds several networks: choose one by --weights, of {places}")
    if first.strange:
        raise MbnpError(f"beside the network of {first.at} it has {_listed(first.strange)}, which nothing is known of")
    if first.noise:
        say(f"what is of no layer is left out: {_listed(first.noise)}")
    if first.averaged:
        also = f", not the raw ones of {raw[0].at}; --weights raw takes those" if raw else ""
        say(f"the averaged weights of {first.at} are taken{also}")
    elif averaged:
        say(f"the raw weights of {first.at} are taken, not the averaged ones of {averaged[0].at}")
    return _with_statistics(first.arrays, raw[0].arrays, say) if first.averaged and raw else first.arrays


def levels(content: Any) -> list[dict[str, Any]]:
    """Return the arrays by name of every mapping in `content` that has some."""
    return [arrays for _, level in _levels(content) if (arrays := _arrays(level))]


def _levels(content: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield every mapping within `content` with its place, the outer ones first; each once, however often it is met."""
    waiting, seen = [("", content, 0)], {id(content)}
    for at, value, depth in waiting:  # grows meanwhile
        pairs: Iterable[tuple[Any, Any]] = enumerate(value) if isinstance(value, list | tuple) else ()
        if isinstance(value, Mapping):
            yield at, value
            pairs = value.items()
        for key, child in pairs if depth < DEEPEST else ():
            if isinstance(child, Mapping | list | tuple) and id(child) not in seen and len(seen) < MOST:
                seen.add(id(child))
                waiting.append((f"{at}.{key}".lstrip("."), child, depth + 1))


def _arrays(level: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the entries that are arrays, or tensors of plain numbers in memory."""
    return {name: x for name, x in level.items() if isinstance(name, str) and _is_plain(x)}


def _is_plain(x: Any) -> bool:
    if not hasattr(x, "detach"):
        return isinstance(x, np.ndarray)
    plain = str(x.layout) == "torch.strided" and x.device.type == "cpu" and not (x.is_quantized or x.is_nested)
    return plain and (x.data_ptr() != 0 or x.numel() == 0)


def _networks(at: str, level: Mapping[Any, Any], ends: Collection[tuple[str, str]]) -> list[Found]:
    """Return the networks whose arrays are in one mapping."""
    arrays = {name: x for name, x in _arrays(level).items() if not name.endswith("num_batches_tracked")}
    prefixes = {
        prefix
        for first, second in ends
        for name in arrays
        if name.endswith(first) and f"{(prefix := name.removesuffix(first))}{second}" in arrays
        if prefix == "" or prefix.endswith(".")
    }
    noise = [name for name in map(str, level) if name not in arrays and not name.endswith("num_batches_tracked")]
    noise += [name for name in arrays if name.rpartition(".")[2] in _COUNTERS or _BESIDE.fullmatch(name)]
    rest = [name for name in arrays if name not in noise]
    owner = {name: max((p for p in prefixes if name.startswith(p)), key=len, default=None) for name in rest}
    strange = [name for name in rest if owner[name] is None]
    found = []
    for prefix in sorted(prefixes):
        own = {name.removeprefix(prefix): arrays[name] for name in rest if owner[name] == prefix}
        place = f"{at}.{prefix}".strip(".")
        averaged = bool(_AVERAGES.search(place.lower())) or f"{prefix.removesuffix('module.')}n_averaged" in arrays
        found.append(Found(place or "the file itself", own, averaged, noise, strange))
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(short(name)[1:-1] for name in names[:3]) + more


def _with_statistics(averaged: dict[str, Any], raw: dict[str, Any], say: Callable[[str], object]) -> dict[str, Any]:
    """Return the averaged arrays with the running statistics of the raw ones, where only parameters were averaged."""
    missing = raw.keys() - averaged.keys()
    if not missing or not all(name.rpartition(".")[2].startswith("running_") for name in missing):
        return averaged
    say("only its parameters are averaged: the running statistics are the raw ones")
    return {**averaged, **{name: raw[name] for name in missing}}


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[n].shape == b[n].shape and bool((a[n] == b[n]).all()) for n in a)
