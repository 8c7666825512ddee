"""Any network as plain JSON and back: what a checkpoint says of a network that no builder of `models` makes.

    {"name": "layers", "resolution": 224, "channels": 3, "layers": [
        {"name": "stem", "kind": "sequential", "layers": [
            {"name": "conv", "kind": "conv", "c_in": 3, "c_out": 32, "kernel": [3, 3], "stride": 2, ...},
            {"name": "relu", "kind": "relu", "cap": 6.0}]},
        {"name": "pool", "kind": "global-average-pool"},
        {"name": "head", "kind": "linear", "c_in": 32, "c_out": 10, "bias": true}]}

Options are those of the layers' constructors. A description may come from a hostile file: every name, type and
limit is checked here, and sizes are added up before anything of that size is made.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from operator import index
from typing import Any, NamedTuple

import numpy as np

from mbnp import layers
from mbnp.errors import MbnpError, unknown
from mbnp.network import Layer, Network, Residual, Sequential
from mbnp.ops import window

NAME = "layers"  # of the architecture "whatever is listed", where others have their builder's
DEEPEST = 16  # containers within containers
LONGEST_NAME = 200
MOST_LAYERS = 10_000
LARGEST = 1_000_000  # channels, rows of a kernel, steps of a stride
LARGEST_MAP = 200_000_000  # numbers that a layer puts out for one picture


# Checks: each returns the value as plain JSON has it, or raises TypeError or ValueError (MbnpError is one).


def _whole(value: Any, least: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not least <= index(value) <= LARGEST:
        raise ValueError(f"not from {least} to {LARGEST:,}")
    return index(value)


_count = partial(_whole, least=1)
_margin = partial(_whole, least=0)


def _pair(value: Any) -> int | list[int]:
    if isinstance(value, (tuple, list)):
        vertical, horizontal = value
        return [_count(vertical), _count(horizontal)]
    return _count(value)


def _padding(value: Any) -> int | str | list[list[int]]:
    if isinstance(value, (tuple, list)):
        (top, bottom), (left, right) = value
        return [[_margin(top), _margin(bottom)], [_margin(left), _margin(right)]]
    return "same" if isinstance(value, str) and value == "same" else _margin(value)


def _margins(value: Any) -> list[int]:
    before, after = value
    return [_margin(before), _margin(after)]


def _order(value: Any) -> str | None:
    if value not in (None, "HWC", "CHW"):
        raise ValueError("neither HWC nor CHW nor null")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError("neither true nor false")
    return bool(value)


def _number(value: Any) -> float:
    if isinstance(value, (bool, np.bool_, str)) or not 0 <= value < math.inf:
        raise ValueError("no finite number of at least 0")
    return float(value)


def _number_or_none(value: Any) -> float | None:
    return None if value is None else _number(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > LONGEST_NAME:
        raise ValueError(f"no printable text of at most {LONGEST_NAME} characters")
    return value


class Kind(NamedTuple):
    """A kind of layer: its class, the check of each option of its constructor, and how to get them from a layer.

    size: how many numbers a layer of these options holds, running statistics included; make: what takes the
    options, if not the class itself.
    """

    layer: type[Layer]
    checks: dict[str, Callable[[Any], Any]]
    read: Callable[[Any], dict[str, Any]]
    size: Callable[[dict[str, Any]], int] = lambda o: 0
    make: Callable[..., Layer] | None = None


def _area(options: dict[str, Any]) -> int:
    return math.prod(window.pair("kernel", options["kernel"]))


def _dense_size(options: dict[str, Any]) -> int:
    return (options["c_in"] + options["bias"]) * options["c_out"]


def _dense(layer: Any) -> dict[str, Any]:
    c_in, c_out = layer.weight.value.shape
    return {"c_in": c_in, "c_out": c_out, "bias": layer.bias is not None}


def _conv(layer: Any) -> dict[str, Any]:
    *kernel, c_in, c_out = layer.weight.value.shape
    channels = {"c_in": c_in, "c_out": c_out}
    return channels | {"kernel": kernel, **layer.options, "bias": layer.bias is not None}


def _depthwise(layer: Any) -> dict[str, Any]:
    *kernel, channels = layer.weight.value.shape
    return {"channels": channels, "kernel": kernel, **layer.options, "bias": layer.bias is not None}


def _batchnorm(layer: Any) -> dict[str, Any]:
    return {"channels": layer.weight.value.size, "eps": layer.eps, "momentum": layer.momentum}


def _pool(layer: Any) -> dict[str, Any]:
    return {"size": layer.size, **layer.options}


def _subsample(layer: Any) -> dict[str, Any]:
    return {"new_channels": layer.before + layer.after, "stride": layer.stride}


_WINDOW: dict[str, Callable] = {"stride": _pair, "padding": _padding}
_DENSE: dict[str, Callable] = {"c_in": _count, "c_out": _count, "bias": _flag}

KINDS: dict[str, Kind] = {
    "conv": Kind(
        layers.Conv,
        {"c_in": _count, "c_out": _count, "kernel": _pair, **_WINDOW, "bias": _flag},
        _conv,
        lambda o: (_area(o) * o["c_in"] + o["bias"]) * o["c_out"],
    ),
    "depthwise": Kind(
        layers.Depthwise,
        {"channels": _count, "kernel": _pair, **_WINDOW, "bias": _flag},
        _depthwise,
        lambda o: (_area(o) + o["bias"]) * o["channels"],
    ),
    "pointwise": Kind(layers.Pointwise, _DENSE, _dense, _dense_size),
    "linear": Kind(layers.Linear, _DENSE, _dense, _dense_size),
    "batchnorm": Kind(
        layers.BatchNorm,
        {"channels": _count, "eps": _number, "momentum": _number},
        _batchnorm,
        lambda o: 4 * o["channels"],
    ),
    "relu": Kind(layers.ReLU, {"cap": _number_or_none}, lambda layer: {"cap": layer.cap}),
    "max-pool": Kind(layers.MaxPool, {"size": _pair, **_WINDOW}, _pool),
    "average-pool": Kind(
        layers.AveragePool,
        {"size": _pair, **_WINDOW, "count_padding": _flag},
        lambda layer: _pool(layer) | {"count_padding": layer.count_padding},
    ),
    "global-average-pool": Kind(layers.GlobalAveragePool, {}, lambda layer: {}),
    "flatten": Kind(
        layers.Flatten,
        {"hint": _text, "order": _order},
        lambda layer: {"hint": layer.hint, "order": layer.order},
    ),
    "pad": Kind(
        layers.Pad,
        {"padding": _padding, "channels": _margins},
        lambda layer: {"padding": layer.padding, "channels": layer.channels},
    ),
    "subsample": Kind(
        layers.Subsample,
        {"new_channels": _margin, "stride": _pair},
        _subsample,
        make=lambda new_channels, stride: layers.Subsample(0, new_channels, stride),
    ),
}
_KIND_OF = {kind.layer: name for name, kind in KINDS.items()}


def describe(net: Network) -> dict[str, Any]:
    """`net` as plain JSON, without its weights. MbnpError for a layer that is none of this package's."""
    _flow(net, (net.resolution, net.resolution, net.channels), "")
    entries = [_describe(name, layer, name) for name, layer in net.layers.items()]
    _check_entries(entries)  # or the description could not be built from again
    return {"name": NAME, "resolution": net.resolution, "channels": net.channels, "layers": entries}


def _describe(name: str, layer: Layer, where: str) -> dict[str, Any]:
    if type(layer) in (Sequential, Residual):
        inner = [_describe(child, x, f"{where}.{child}") for child, x in layer.layers.items()]  # type: ignore[attr-defined]
        if not isinstance(layer, Residual):
            return {"name": name, "kind": "sequential", "layers": inner}
        shortcut = layer.shortcut and _describe("shortcut", layer.shortcut, f"{where}.shortcut")
        return {"name": name, "kind": "residual", "layers": inner, "shortcut": shortcut}
    kind = _KIND_OF.get(type(layer))
    if kind is None:
        known = ", ".join(x.__name__ for x in _KIND_OF)
        raise MbnpError(f"layer {where} is a {type(layer).__name__}, and a checkpoint can hold {known}")
    options = _checked(KINDS[kind].read(layer), KINDS[kind].checks, where)
    return {"name": name, "kind": kind, **options}


def build(
    description: Any, dtype: Any = np.float32, seed: int = 0, most_numbers: int | None = None
) -> Network:
    """The network that a description says, with fresh weights.

    Raises MbnpError for whatever is not as `describe` writes it, and where the weights and statistics would be
    more than `most_numbers`.
    """
    _expect(description, {"name", "resolution", "channels", "layers"}, "the network")
    resolution = _checked_one("resolution", description["resolution"], _count, "the network")
    channels = _checked_one("channels", description["channels"], _count, "the network")
    size = _check_entries(description["layers"])
    if most_numbers is not None and size > most_numbers:
        raise MbnpError(f"its layers need {size:,} numbers, and there are {most_numbers:,}")
    rng = np.random.default_rng(seed)
    net = Network(_children(description["layers"], rng, dtype), resolution, channels)
    _flow(net, (resolution, resolution, channels), "")
    net.arch = description
    return net


def _check_entries(entries: Any) -> int:
    """How many numbers the layers hold; MbnpError for names, depths and counts that are not allowed."""
    rows = list(itertools.islice(_rows(entries, "", 1), MOST_LAYERS + 1))
    if len(rows) > MOST_LAYERS:
        raise MbnpError(f"the description has more than {MOST_LAYERS:,} layers")
    size = sum(size for _, size in rows)
    if not size:
        raise MbnpError("the description has no layer with weights")
    _unique([name for name, _ in rows])
    return size


def _flow(layer: Layer, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    """`layer.output_shape(shape)`; MbnpError where a layer does not take what the one before it gives."""
    if isinstance(layer, Sequential):
        x_shape = shape
        for name, child in layer.layers.items():
            shape = _flow(child, shape, f"{where}.{name}" if where else name)
        if isinstance(layer, Residual):
            other = _flow(layer.shortcut, x_shape, f"{where}.shortcut") if layer.shortcut else x_shape
            if shape != other:
                raise MbnpError(f"{where} adds maps of {shape} and {other}")
        return shape
    try:
        if isinstance(layer, layers.BatchNorm) and layer.weight.value.shape != shape[-1:]:
            raise MbnpError(f"it normalises {layer.weight.value.size} channels of {shape[-1]}")
        y_shape = layer.output_shape(shape)
        if math.prod(y_shape) > LARGEST_MAP:
            raise MbnpError(f"it makes a map of {y_shape}, more than {LARGEST_MAP:,} numbers")
        return y_shape
    except (ValueError, IndexError) as error:  # MbnpError is a ValueError
        raise MbnpError(f"{where} cannot follow what is before it, a map of {shape}: {error}") from None


def _rows(entries: Any, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
    """The full name and size of each layer that is no container; MbnpError for what is no description."""
    if depth > DEEPEST:
        raise MbnpError(f"the description has containers more than {DEEPEST} deep")
    if not isinstance(entries, list) or not entries:
        raise MbnpError(f"{prefix or 'the network'} lists no layers")
    seen: set[str] = set()
    for entry in entries:
        if not isinstance(entry, dict):
            raise MbnpError(f"a layer of {prefix or 'the network'} is {_short(entry)}")
        name = _name(entry.get("name"), prefix)
        where = f"{prefix}.{name}" if prefix else name
        if name in seen:
            raise MbnpError(f"two layers have the name {where}")
        seen.add(name)
        kind = entry.get("kind")
        if kind == "sequential":
            _expect(entry, {"name", "kind", "layers"}, where)
            yield from _rows(entry["layers"], where, depth + 1)
        elif kind == "residual":
            _expect(entry, {"name", "kind", "layers", "shortcut"}, where)
            yield from _rows(entry["layers"], where, depth + 1)
            if entry["shortcut"] is not None:
                if not isinstance(entry["shortcut"], dict) or entry["shortcut"].get("name") != "shortcut":
                    raise MbnpError(f"the shortcut of {where} is not described under that name")
                yield from _rows([entry["shortcut"]], where, depth + 1)
        elif isinstance(kind, str) and kind in KINDS:
            _expect(entry, {"name", "kind", *KINDS[kind].checks}, where)
            yield where, KINDS[kind].size(_checked(entry, KINDS[kind].checks, where))
        else:
            raise unknown(f"kind of layer {where},", _short(kind), [*KINDS, "sequential", "residual"])


def _children(entries: list[dict[str, Any]], rng: np.random.Generator, dtype: Any) -> dict[str, Layer]:
    return {entry["name"]: _make(entry, rng, dtype) for entry in entries}


def _make(entry: dict[str, Any], rng: np.random.Generator, dtype: Any) -> Layer:
    if entry["kind"] == "sequential":
        return Sequential(_children(entry["layers"], rng, dtype))
    if entry["kind"] == "residual":
        body, shortcut = _children(entry["layers"], rng, dtype), entry["shortcut"]
        return Residual(body, shortcut and _make(shortcut, rng, dtype))
    kind = KINDS[entry["kind"]]
    make = kind.make or kind.layer
    taken = inspect.signature(make).parameters
    extra = {name: value for name, value in (("rng", rng), ("dtype", dtype)) if name in taken}
    return make(**{option: _tuples(entry[option]) for option in kind.checks}, **extra)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _name(name: Any, prefix: str) -> str:
    """A layer's name: parts joined by dots, none of them empty."""
    plain = isinstance(name, str) and name.isprintable() and len(name) <= LONGEST_NAME
    if not plain or not all(name.split(".")):
        raise MbnpError(f"a layer of {prefix or 'the network'} has the name {_short(name)}")
    return name


def _unique(names: list[str]) -> None:
    """MbnpError if two layers share a name, or one's is where another's arrays are: `a` and `a.weight`."""
    known: set[str] = set()
    for name in names:
        if name in known:
            raise MbnpError(f"two layers have the name {name}")
        known.add(name)
    for name in names:
        parts = name.split(".")
        for i in range(1, len(parts)):
            above = ".".join(parts[:i])
            if above in known:
                raise MbnpError(f"layer {name} has a name below that of layer {above}")


def _expect(entry: Any, keys: set[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise MbnpError(f"the description of {where} is {_short(entry)}")
    if entry.keys() != keys:
        wrong = sorted(keys - entry.keys()) or sorted(map(str, entry.keys() - keys))
        what = "lacks" if keys - entry.keys() else "has an unknown"
        raise MbnpError(f"the description of {where} {what} {_short(wrong[0])}")


def _checked(options: dict[str, Any], checks: dict[str, Callable], where: str) -> dict[str, Any]:
    return {name: _checked_one(name, options[name], check, where) for name, check in checks.items()}


def _checked_one(name: str, value: Any, check: Callable, where: str) -> Any:
    try:
        return check(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise MbnpError(f"the {name} of {where} is {_short(value)}: {error}") from None


def _short(value: Any) -> str:
    """What a message shows of a value that may be a megabyte, or nested without end."""
    text = ascii(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
