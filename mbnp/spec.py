"""Any network as plain JSON and back: what a checkpoint says of a network that no builder of `models` makes.

    {"name": "layers", "resolution": 224, "channels": 3, "layers": [
        {"name": "stem", "kind": "sequential", "layers": [
            {"name": "conv", "kind": "conv", "c_in": 3, "c_out": 32, "kernel": [3, 3], "stride": 2, ...},
            {"name": "relu", "kind": "relu", "cap": 6.0}]},
        {"name": "pool", "kind": "global-average-pool"},
        {"name": "head", "kind": "linear", "c_in": 32, "c_out": 10, "bias": true}]}

A layer's options are its `config()`, its constructor's parameters; two keys of files differ (`_KEYS`, `from_config`).
A description may come from a hostile file: every name, type and limit is checked here, and sizes are added up
before anything of that size is made.
"""

import inspect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from functools import cache, partial
from operator import index
from typing import Any, TypeGuard, get_type_hints

import numpy as np

from mbnp import layers
from mbnp.containers import check_factors
from mbnp.errors import MbnpError, short, unknown
from mbnp.network import Gate, Layer, Network, Pyramid, Residual, Sequential
from mbnp.ops import window

NAME = "layers"  # the name of an architecture that lists its layers, where others have their builder's
DEEPEST = 16  # containers within containers
LONGEST_NAME = 200
MOST_LAYERS = 10_000
LARGEST = 1_000_000  # channels, rows of a kernel, steps of a stride
MOST_NUMBERS = 350_000_000  # in all feature maps together, which the engine keeps: 1.4 GB of float32
VECTOR = 16  # channels that it rounds up to

KINDS: dict[str, Any] = {
    cls.kind: cls for cls in vars(layers).values() if isinstance(cls, type) and issubclass(cls, Layer) and cls.kind
}
# Containers and their keys.
_CONTAINERS = {
    "sequential": ("layers",),
    "gate": ("layers",),
    "residual": ("layers", "shortcut"),
    "pyramid": ("layers", "boxes", "scores"),
}


# Checks of options: each returns the value as plain JSON has it, or raises TypeError or ValueError.


def _whole(value: Any, least: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not least <= index(value) <= LARGEST:
        raise ValueError(f"not from {least} to {LARGEST:,}")
    return index(value)


_count = partial(_whole, least=1)
_margin = partial(_whole, least=0)


def _pair(value: Any, check: Callable) -> list[Any]:
    first, second = value
    return [check(first), check(second)]


_margins = partial(_pair, check=_margin)


def _size(value: Any) -> int | list[int]:
    return _pair(value, _count) if isinstance(value, (tuple, list)) else _count(value)


def _padding(value: Any) -> int | str | list[list[int]]:
    if isinstance(value, (tuple, list)):
        return _pair(value, _margins)
    return "same" if isinstance(value, str) and value == "same" else _margin(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError("neither true nor false")
    return bool(value)


def _number(value: Any) -> float:
    if isinstance(value, (bool, np.bool_, str)) or not 0 <= value < math.inf:
        raise ValueError("no finite number of at least 0")
    return float(value)


def _text(value: Any) -> str:
    if not _is_text(value):
        raise ValueError(f"no printable text of at most {LONGEST_NAME} characters")
    return value


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_NAME


def _order(value: Any) -> str | None:
    if value not in (None, "HWC", "CHW"):
        raise ValueError("neither HWC nor CHW nor null")
    return value


# What an option may be, by its type in the layer's constructor; and for options that their type does not tell.
_BY_TYPE: dict[Any, Callable] = {
    int: _count,
    window.Size: _size,
    window.Size | None: _size,
    window.Margin: _padding,
    window.Pair: _margins,
    bool: _flag,
    float: _number,
    float | None: lambda value: None if value is None else _number(value),
    str: _text,
    str | None: _order,
}
_BY_NAME = {"new_channels": _margin, "seed": _margin}
_KEYS = {"max_value": "cap"}  # keys of files that are older than the option's name


@cache
def _options(kind: str) -> dict[str, tuple[str, Callable]]:
    """Return key in files -> (option, its check) for a kind of layer."""
    make = _constructor(kind)
    hints = get_type_hints(make if inspect.ismethod(make) else make.__init__)
    names = [name for name in inspect.signature(make).parameters if name not in ("rng", "dtype")]
    return {_KEYS.get(name, name): (name, _BY_NAME.get(name) or _BY_TYPE[hints[name]]) for name in names}


def _constructor(kind: str) -> Any:
    return getattr(KINDS[kind], "from_config", KINDS[kind])


def describe(net: Network) -> dict[str, Any]:
    """Return `net` as plain JSON, without its weights. MbnpError for a layer that is none of this package's."""
    check_flow(net, (net.resolution, net.resolution, net.channels))
    entries = describe_layers(net)
    _check_entries(entries)  # or the description could not be built from again
    return {"name": NAME, "resolution": net.resolution, "channels": net.channels, "layers": entries}


def describe_layers(net: Sequential, where: str = "") -> list[dict[str, Any]]:
    """Return the layers of a chain alone, which do not depend on the size of its input."""
    return [_describe(name, layer, f"{where}{name}") for name, layer in net.layers.items()]


def _describe(name: str, layer: Any, where: str) -> dict[str, Any]:
    if type(layer) in (Sequential, Gate):
        return {"name": name, "kind": type(layer).__name__.lower(), "layers": describe_layers(layer, f"{where}.")}
    if type(layer) is Residual:
        shortcut = layer.shortcut and _describe("shortcut", layer.shortcut, f"{where}.shortcut")
        inner = describe_layers(layer, f"{where}.")
        return {"name": name, "kind": "residual", "layers": inner, "shortcut": shortcut}
    if type(layer) is Pyramid:
        heads = {
            key: [_describe(child, head, f"{where}.{key}.{child}") for child, head in getattr(layer, key).items()]
            for key in ("boxes", "scores")
        }
        return {"name": name, "kind": "pyramid", "layers": describe_layers(layer, f"{where}."), **heads}
    kind = getattr(layer, "kind", "")
    if KINDS.get(kind) is not type(layer):
        known = ", ".join(cls.__name__ for cls in KINDS.values())
        raise MbnpError(f"layer {where} is a {type(layer).__name__}, and a checkpoint can hold {known}")
    config, options = layer.config(), _options(kind)
    checked = {key: _checked(key, config[option], check, where) for key, (option, check) in options.items()}
    return {"name": name, "kind": kind, **checked}


def build(description: Any, dtype: Any = np.float32, seed: int = 0, most_numbers: int | None = None) -> Network:
    """Build the network of a description, with fresh weights.

    Raises MbnpError for whatever is not as `describe` writes it, and where the weights and statistics would be
    more than `most_numbers`.
    """
    _expect(description, {"name", "resolution", "channels", "layers"}, "the network")
    resolution, channels = (
        _checked(key, description[key], _count, "the network") for key in ("resolution", "channels")
    )
    size = _check_entries(description["layers"])
    if most_numbers is not None and size > most_numbers:
        raise MbnpError(f"its layers need {size:,} numbers, and there are {most_numbers:,}")
    rng = np.random.default_rng(seed)
    net = Network(_children(description["layers"], rng, dtype), resolution, channels)
    check_flow(net, (resolution, resolution, channels))
    net.arch = description
    return net


def size(entry: dict[str, Any]) -> int:
    """Return how many numbers the described layer, which is no container, holds, running statistics included."""
    return sum(map(math.prod, KINDS[entry["kind"]].shapes(**_config(entry)).values()))


def _config(entry: dict[str, Any]) -> dict[str, Any]:
    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return {option: tuples(entry[key]) for key, (option, _) in _options(entry["kind"]).items()}


def _check_entries(entries: Any) -> int:
    """Return how many numbers the layers hold; MbnpError for names, depths and counts that are not allowed."""
    rows = list(itertools.islice(_rows(entries, "", 1), MOST_LAYERS + 1))
    if len(rows) > MOST_LAYERS:
        raise MbnpError(f"the description has more than {MOST_LAYERS:,} layers")
    total = sum(count for _, count in rows)
    if not total:
        raise MbnpError("the description has no layer with weights")
    known = Counter(name for name, _ in rows)
    for name, count in known.items():
        if count > 1:
            raise MbnpError(f"two layers have the name {name}")
        for above in itertools.accumulate(name.split(".")[:-1], "{}.{}".format):
            if above in known:  # and has its arrays there: `a` and `a.weight`
                raise MbnpError(f"layer {name} has a name below that of layer {above}")
    return total


def check_flow(net: Sequential, shape: tuple[int, ...]) -> int:
    """Return how many numbers the feature maps have that inference makes of an image, with the image.

    MbnpError names the first layer that does not fit the one before it, or with which they are above MOST_NUMBERS.
    """
    total = 0
    for where, y_shape in (("the image", shape), *_flow(net, shape, "")):
        *size, channels = y_shape
        total += math.prod(size) * -(-channels // VECTOR) * VECTOR
        if total > MOST_NUMBERS:
            images = " x ".join(map(short, shape))
            raise MbnpError(f"images of {images} make feature maps of more than {MOST_NUMBERS:,} numbers, at {where}")
    return total


def most_images(net: Sequential, shape: tuple[int, ...], wanted: int) -> int:
    """Return how many images of `shape` inference takes at a time: as many as wanted, within MOST_NUMBERS."""
    return min(wanted, MOST_NUMBERS // check_flow(net, shape))


def _flow(layer: Layer, shape: tuple, where: str) -> Generator[tuple[str, tuple], None, tuple]:
    """Yield full name and output's shape of each layer that is no container; return that of `layer`."""
    if not isinstance(layer, Sequential):
        try:
            y_shape = layer.output_shape(shape)
        except (ValueError, IndexError) as error:  # MbnpError is a ValueError
            raise MbnpError(f"{where} cannot follow what is before it, of shape {shape}: {error}") from None
        yield where, y_shape
        return y_shape
    if isinstance(layer, Pyramid):
        return (yield from _pyramid_flow(layer, shape, where))
    x_shape = shape
    for name, child in layer.layers.items():
        shape = yield from _flow(child, shape, f"{where}.{name}" if where else name)
    if isinstance(layer, Residual):
        other = (yield from _flow(layer.shortcut, x_shape, f"{where}.shortcut")) if layer.shortcut else x_shape
        if shape != other:
            raise MbnpError(f"{where} adds feature maps of {shape} and {other}")
        yield where, shape
    if isinstance(layer, Gate):
        check_factors(where, shape, x_shape)
        shape = x_shape
        yield where, shape
    return shape


def _pyramid_flow(pyramid: Pyramid, x_shape: tuple, where: str) -> Generator[tuple[str, tuple], None, tuple]:
    shape = x_shape
    for (at, stage), *heads in pyramid.branches(where):
        shape = yield from _flow(stage, shape, at)
        for head_at, head in heads:
            made = yield from _flow(head, shape, head_at)
            if len(made) != 3:
                raise MbnpError(f"{head_at} makes {made}, and a pyramid takes feature maps")
    try:
        rows = pyramid.output_shape(x_shape)
    except MbnpError as error:
        raise MbnpError(f"{where}: {error}") from None
    yield where, rows
    return rows


def _rows(entries: Any, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
    """Yield the full name and size of each layer that is no container; MbnpError for what is no description."""
    if depth > DEEPEST:
        raise MbnpError(f"the description has containers more than {DEEPEST} deep")
    container = prefix or "the network"
    if not isinstance(entries, list) or not entries:
        raise MbnpError(f"{container} lists no layers")
    seen: set[str] = set()
    for entry in entries:
        if not isinstance(entry, dict):
            raise MbnpError(f"a layer of {container} is {short(entry)}")
        name, kind = entry.get("name"), entry.get("kind")
        if not _is_text(name) or not all(name.split(".")):
            raise MbnpError(f"a layer of {container} has the name {short(name)}")
        where = f"{prefix}.{name}" if prefix else name
        if name in seen:
            raise MbnpError(f"two layers have the name {where}")
        seen.add(name)
        if not isinstance(kind, str) or kind not in (*KINDS, *_CONTAINERS):
            raise unknown(f"kind of layer {where},", short(kind), [*KINDS, *_CONTAINERS])
        if kind in KINDS:
            options = _options(kind)
            _expect(entry, {"name", "kind", *options}, where)
            for key, (_, check) in options.items():
                _checked(key, entry[key], check, where)
            yield where, size(entry)
            continue
        _expect(entry, {"name", "kind", *_CONTAINERS[kind]}, where)
        yield from _rows(entry["layers"], where, depth + 1)
        for key in ("boxes", "scores") if kind == "pyramid" else ():
            yield from _rows(entry[key], f"{where}.{key}", depth + 1)
            if [head["name"] for head in entry[key]] != [stage["name"] for stage in entry["layers"]]:
                raise MbnpError(f"the {key} of {where} are not those of its stages")
        if (shortcut := entry.get("shortcut")) is not None:
            if not isinstance(shortcut, dict) or shortcut.get("name") != "shortcut":
                raise MbnpError(f"the shortcut of {where} is not described under that name")
            yield from _rows([shortcut], where, depth + 1)


def _children(entries: list[dict[str, Any]], rng: np.random.Generator, dtype: Any) -> dict[str, Layer]:
    return {entry["name"]: _make(entry, rng, dtype) for entry in entries}


def _make(entry: dict[str, Any], rng: np.random.Generator, dtype: Any) -> Layer:
    if entry["kind"] in ("sequential", "gate"):
        return (Gate if entry["kind"] == "gate" else Sequential)(_children(entry["layers"], rng, dtype))
    if entry["kind"] == "pyramid":
        return Pyramid(*(_children(entry[key], rng, dtype) for key in _CONTAINERS["pyramid"]))
    if entry["kind"] == "residual":
        body, shortcut = _children(entry["layers"], rng, dtype), entry["shortcut"]
        return Residual(body, shortcut and _make(shortcut, rng, dtype))
    make = _constructor(entry["kind"])
    taken = inspect.signature(make).parameters
    extra = {name: value for name, value in (("rng", rng), ("dtype", dtype)) if name in taken}
    return make(**_config(entry), **extra)


def _expect(entry: Any, keys: set[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise MbnpError(f"the description of {where} is {short(entry)}")
    if entry.keys() != keys:
        wrong = sorted(keys - entry.keys()) or sorted(map(str, entry.keys() - keys))
        what = "lacks" if keys - entry.keys() else "has an unknown"
        raise MbnpError(f"the description of {where} {what} {short(wrong[0])}")


def _checked(name: str, value: Any, check: Callable, where: str) -> Any:
    try:
        return check(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise MbnpError(f"the {name} of {where} is {short(value)}: {error}") from None
