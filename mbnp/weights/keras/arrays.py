"""Give each layer of the sequence its arrays of the file.

Older files name an array after its layer (`conv1/conv1/kernel:0`; inside a model, `mobilenet_1.00_224/conv1/...`).
Keras 3's name the layer's class and number it (`layers/conv2d_3/vars/0`), TensorFlow 2.12 to 2.15 with gaps; there
the n-th group of a class is the n-th layer of that class, and where the file notes names they must agree. No
array may be missing or left over.
"""

import re
from collections import Counter

from mbnp.errors import MbnpError
from mbnp.weights.files import short
from mbnp.weights.keras.layer import KerasLayer
from mbnp.weights.keras.reader import CONTAINERS, Content


def match(layers: list[KerasLayer], saved: Content) -> list[KerasLayer]:
    """Return the same layers with their arrays."""
    find = _Numbered(saved) if saved.numbered else _Named(saved)
    left = set(saved.arrays)
    for layer in layers:
        expected = layer.expected_arrays()
        for variable, path in (find.paths(layer, expected) if expected else {}).items():
            if path not in left:
                raise MbnpError(f"two layers share {short(path)}")
            left.remove(path)
            layer.arrays[variable] = saved.arrays[path]
    if left:
        more = f" and {len(left) - 1} more arrays" if len(left) > 1 else ""
        raise MbnpError(f"no layer of its configuration takes {short(min(left))}{more}")
    return layers


class _Named:
    """Files that name layers."""

    def __init__(self, saved: Content) -> None:
        self.by_layer: dict[tuple[str, ...], dict[str, list[str]]] = {}
        for path in saved.arrays:
            *owners, leaf = path.split("/")
            variable = leaf.partition(":")[0]
            separable = path.replace("/depthwise_kernel", "/pointwise_kernel") in saved.arrays
            if variable == "depthwise_kernel" and not separable:
                variable = "kernel"
            for key in ((owners[0],), (owners[0], owners[-1])) if owners else ():
                self.by_layer.setdefault(key, {}).setdefault(variable, []).append(path)

    def paths(self, layer: KerasLayer, expected: tuple[str, ...]) -> dict[str, str]:
        nested = len(layer.owners) > 1
        found = self.by_layer.get((layer.owners[0], layer.name) if nested else (layer.name,), {})
        for variable in expected:
            if len(found.get(variable, ())) != 1:
                count = "no" if variable not in found else "more than one"
                raise MbnpError(f"it has {count} {variable} for {layer}")
        return {variable: found[variable][0] for variable in expected}


class _Numbered:
    """Files that number the layers of each class."""

    def __init__(self, saved: Content) -> None:
        self.names = saved.names
        self.groups: dict[str, dict[str, list[str]]] = {}  # container -> class -> its groups in order
        self.sizes: Counter[str] = Counter()  # the number of arrays of each layer's group
        nested: set[tuple[str, str]] = set()  # (container, group)
        for path in saved.arrays:
            group, _, index = path.rpartition("/vars/")
            self.sizes[group] += 1
            parts = group.split("/")
            # Containers and their content alternate: layers/functional/layers/conv2d_3.
            if not index.isdecimal() or any(word not in CONTAINERS for word in parts[::2]) or len(parts) % 2:
                raise MbnpError(f"it has an array where Keras puts none, {short(path)}")
            nested |= {("/".join(parts[: n - 2]), "/".join(parts[:n])) for n in range(2, len(parts) + 1, 2)}
        for container, group in sorted(nested, key=lambda pair: natural(pair[1])):
            kind = natural(group)[0].rpartition("/")[2]
            self.groups.setdefault(container, {}).setdefault(kind, []).append(group)

    def paths(self, layer: KerasLayer, expected: tuple[str, ...]) -> dict[str, str]:
        group = ""
        for kind, index in layer.steps:
            groups = self.groups.get(group, {}).get(kind, [])
            if index >= len(groups):
                raise MbnpError(f"it has no weights for {layer}: only {len(groups)} of {kind} are stored")
            group = groups[index]
        stored, name = self.sizes[group], self.names.get(group, layer.name)
        if name != layer.name:
            raise MbnpError(f"its order does not fit: {layer} has its weights in {group!r} of {short(name)}")
        if stored != len(expected):
            raise MbnpError(f"{layer} has {', '.join(expected)}; {stored} arrays are stored in {group!r}")
        return {variable: f"{group}/vars/{index}" for index, variable in enumerate(expected)}


def natural(name: str) -> tuple[str, int]:
    """Return (stem, number), which sorts conv2d before conv2d_2 before conv2d_10."""
    stem, number = re.fullmatch(r"(.*?)(?:_(\d{1,9}))?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return stem, int(number or 0)
