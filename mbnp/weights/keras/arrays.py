"""Which array of the file belongs to which layer of the chain.

Older files name an array after its layer (`conv1/conv1/kernel:0`; inside a model, `mobilenet_1.00_224/conv1/...`).
Keras 3's name the layer's class and number it (`layers/conv2d_3/vars/0`), TensorFlow 2.12 to 2.15 with gaps; there
the n-th group of a class is the n-th layer of that class, and where the file notes names they must agree. No
array may be missing or left over.
"""

import re
from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.weights.keras.files import Saved
from mbnp.weights.keras.graph import Node
from mbnp.weights.keras.reader import CONTAINERS


def match(nodes: list[Node], saved: Saved) -> list[Node]:
    """The same layers with their arrays."""
    find = _Numbered(saved) if saved.numbered else _Named(saved)
    left = set(saved.arrays)
    for node in nodes:
        wanted = node.wants()
        if not wanted:
            continue
        paths = find.paths(node, wanted)
        for variable, path in paths.items():
            if path not in left:
                raise MbnpError(f"two layers share {path[:80]!r}")
            left.remove(path)
            node.arrays[variable] = saved.arrays[path]
    if left:
        raise MbnpError(f"no layer of its configuration takes {_some(left)}")
    return nodes


class _Named:
    """Files that name layers."""

    def __init__(self, saved: Saved) -> None:
        self.by_layer: dict[tuple[str, ...], dict[str, list[str]]] = {}
        for path in saved.arrays:
            *owners, leaf = path.split("/")
            variable = leaf.partition(":")[0]
            variable = (
                "kernel" if variable == "depthwise_kernel" and not _separable(path, saved) else variable
            )
            for key in ((owners[0],), (owners[0], owners[-1])) if owners else ():
                self.by_layer.setdefault(key, {}).setdefault(variable, []).append(path)

    def paths(self, node: Node, wanted: tuple[str, ...]) -> dict[str, str]:
        nested = len(node.owners) > 1
        found = self.by_layer.get((node.owners[0], node.name) if nested else (node.name,), {})
        for variable in wanted:
            if len(found.get(variable, ())) != 1:
                count = "no" if variable not in found else "more than one"
                raise MbnpError(f"it has {count} {variable} for {node}")
        return {variable: found[variable][0] for variable in wanted}


class _Numbered:
    """Files that number the layers of each class."""

    def __init__(self, saved: Saved) -> None:
        self.saved = saved
        self.groups: dict[str, dict[str, list[str]]] = {}  # container -> class -> its groups in order
        self.sizes: dict[str, int] = {}  # group of a layer -> how many arrays
        children: dict[str, set[str]] = {}
        for path in saved.arrays:
            group, _, index = path.rpartition("/vars/")
            self.sizes[group] = self.sizes.get(group, 0) + 1
            parts = group.split("/")
            # Containers and their content take turns: layers/functional/layers/conv2d_3.
            if not index.isdecimal() or any(word not in CONTAINERS for word in parts[::2]) or len(parts) % 2:
                raise MbnpError(f"it has an array where Keras puts none, {path[:80]!r}")
            for end in range(2, len(parts) + 1, 2):
                children.setdefault("/".join(parts[: end - 2]), set()).add("/".join(parts[:end]))
        for container, groups in children.items():
            for group in sorted(groups, key=natural):
                kind = natural(group)[0].rpartition("/")[2]
                self.groups.setdefault(container, {}).setdefault(kind, []).append(group)

    def paths(self, node: Node, wanted: tuple[str, ...]) -> dict[str, str]:
        group = ""
        for kind, index in node.steps:
            groups = self.groups.get(group, {}).get(kind, [])
            if index >= len(groups):
                raise MbnpError(f"it has no weights for {node}: only {len(groups)} of {kind} are stored")
            group = groups[index]
        stored, name = self.sizes.get(group, 0), self.saved.names.get(group, node.name)
        if name != node.name:
            raise MbnpError(
                f"its order does not fit: the weights of {node} are in {group!r} of {name[:60]!r}"
            )
        if stored != len(wanted):
            raise MbnpError(
                f"{node} has {len(wanted)} arrays ({', '.join(wanted)}); {stored} are stored in {group!r}"
            )
        return {variable: f"{group}/vars/{index}" for index, variable in enumerate(wanted)}


def natural(name: str) -> tuple[str, int]:
    """(stem, number): conv2d before conv2d_2 before conv2d_10."""
    stem, number = re.fullmatch(r"(.*?)(?:_(\d{1,9}))?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return stem, int(number or 0)


def _separable(path: str, saved: Saved) -> bool:
    return path.replace("/depthwise_kernel", "/pointwise_kernel") in saved.arrays


def _some(paths: Any) -> str:
    first, *more = sorted(paths)
    return f"{first[:80]!r}" + (f" and {len(more)} more arrays" if more else "")


def floats(node: Node, variable: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """An array of a layer, which must be of floats, finite, and of `shape`, where None is any size but 0."""
    array = node.arrays[variable]
    if array.dtype.kind != "f":
        raise MbnpError(f"the {variable} of {node} is {array.dtype}, not floating point")
    fits = array.ndim == len(shape) and all(
        n > 0 and want in (None, n) for n, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        want = ", ".join("any" if n is None else str(n) for n in shape)
        raise MbnpError(f"the {variable} of {node} has shape {array.shape}, not ({want})")
    if not np.isfinite(array).all():
        raise MbnpError(f"the {variable} of {node} holds NaN or infinity")
    return array
