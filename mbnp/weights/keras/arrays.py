"""Give each layer of the sequence its arrays of the file.

Whole-model `.h5` files have a group for each layer of the outermost model, and list its arrays in order: of a model
inside, those that are trained come first. Without a list, the names must tell (`conv1/conv1/kernel:0`; inside a model,
`mobilenet_1.00_224/conv1/...`). Keras 3's other files name the layer's class and number it (`layers/conv2d_3/vars/0`),
TensorFlow 2.12 to 2.15 with gaps; there the n-th group of a class is the n-th layer of that class, and where the file
notes names they must agree. No array may be missing or left over.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable

from mbnp.errors import MbnpError, short
from mbnp.weights.keras.layer import STATISTICS, KerasLayer
from mbnp.weights.keras.reader import CONTAINERS, Content

# A function of a layer and the names of its arrays that returns the path of each.
_Paths = Callable[[KerasLayer, tuple[str, ...]], dict[str, str]]


def match(layers: list[KerasLayer], saved: Content) -> list[KerasLayer]:
    """Return the same layers with their arrays."""
    left = dict(saved.arrays)
    if saved.order:
        paths = _by_order(layers, saved)
    else:
        paths = (_by_number if saved.numbered else _by_name)(saved)
    for layer in layers:
        expected = layer.expected_arrays()
        for variable, path in (paths(layer, expected) if expected else {}).items():
            if path not in left:
                raise MbnpError(f"two layers share {short(path)}")
            layer.arrays[variable] = left.pop(path)
    if left:
        more = f" and {len(left) - 1} more arrays" if len(left) > 1 else ""
        raise MbnpError(f"no layer of its configuration takes {short(min(left))}{more}")
    return layers


def _by_order(layers: list[KerasLayer], saved: Content) -> _Paths:
    """Return the function for a file that lists the arrays of each layer or model in the outermost one."""
    members: dict[str, list[KerasLayer]] = defaultdict(list)
    for layer in sorted(layers, key=lambda layer: layer.place):
        members[layer.owners[0]].append(layer)
    found: dict[tuple[int, ...], dict[str, str]] = defaultdict(dict)
    for owner, inside in members.items():
        slots = [(layer, variable) for layer in inside for variable in layer.expected_arrays()]
        slots.sort(key=lambda slot: slot[1] in STATISTICS or not slot[0].trainable)
        listed = saved.order.get(owner, [])
        if len(listed) != len(slots):
            raise MbnpError(f"it lists {len(listed)} arrays for {short(owner)}, whose configuration has {len(slots)}")
        for (layer, variable), path in zip(slots, listed, strict=True):
            leaf = path.rpartition("/")[2].partition(":")[0]
            if variable != (leaf.removeprefix("depthwise_") if layer.kind == "DepthwiseConv2D" else leaf):
                raise MbnpError(f"its order does not fit: {short(path)} stands where {layer} has its {variable}")
            if path not in saved.arrays:
                raise MbnpError(f"it lists {short(path)} and does not have it")
            found[layer.place][variable] = path
    return lambda layer, expected: found[layer.place]


def _by_name(saved: Content) -> _Paths:
    """Return the function for a file that names layers."""
    by_layer: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in saved.arrays:
        *owners, leaf = path.split("/")
        variable = leaf.partition(":")[0]
        separable = path.replace("/depthwise_kernel", "/pointwise_kernel") in saved.arrays
        if variable == "depthwise_kernel" and not separable:
            variable = "kernel"
        for key in ((owners[0],), (owners[0], owners[-1])) if owners else ():
            by_layer[key][variable].append(path)

    def paths(layer: KerasLayer, expected: tuple[str, ...]) -> dict[str, str]:
        nested = len(layer.owners) > 1
        found = by_layer.get((layer.owners[0], layer.name) if nested else (layer.name,), {})
        for variable in expected:
            if len(found.get(variable, ())) != 1:
                count = "no" if variable not in found else "more than one"
                raise MbnpError(f"it has {count} {variable} for {layer}")
        return {variable: found[variable][0] for variable in expected}

    return paths


def _by_number(saved: Content) -> _Paths:
    """Return the function for a file that numbers the layers of each class."""
    sizes: Counter[str] = Counter()  # the number of arrays of each layer's group
    nested: set[tuple[str, str]] = set()  # (container, group)
    for path in saved.arrays:
        group, _, index = path.rpartition("/vars/")
        sizes[group] += 1
        parts = group.split("/")
        # Containers and their content alternate: layers/functional/layers/conv2d_3.
        if not index.isdecimal() or any(word not in CONTAINERS for word in parts[::2]) or len(parts) % 2:
            raise MbnpError(f"it has an array where Keras puts none, {short(path)}")
        nested |= {("/".join(parts[: n - 2]), "/".join(parts[:n])) for n in range(2, len(parts) + 1, 2)}
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)  # (container, class) -> its groups in order
    for container, group in sorted(nested, key=lambda pair: natural(pair[1])):
        groups[container, natural(group)[0].rpartition("/")[2]].append(group)

    def paths(layer: KerasLayer, expected: tuple[str, ...]) -> dict[str, str]:
        group = ""
        for kind, index in layer.steps:
            found = groups.get((group, kind), [])
            if index >= len(found):
                raise MbnpError(f"it has no weights for {layer}: only {len(found)} of {kind} are stored")
            group = found[index]
        stored, name = sizes[group], saved.names.get(group, layer.name)
        if name != layer.name:
            raise MbnpError(f"its order does not fit: {layer} has its weights in {group!r} of {short(name)}")
        if stored != len(expected):
            raise MbnpError(f"{layer} has {', '.join(expected)}; {stored} arrays are stored in {group!r}")
        return {variable: f"{group}/vars/{index}" for index, variable in enumerate(expected)}

    return paths


def natural(name: str) -> tuple[str, int]:
    """Return (stem, number), which sorts conv2d before conv2d_2 before conv2d_10."""
    stem, number = re.fullmatch(r"(.*?)(?:_(\d{1,9}))?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return stem, int(number or 0)
