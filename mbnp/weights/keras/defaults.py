"""The layers of a file that holds weights and no configuration: keras.applications.MobileNet, if they fit it.

Names decide where they are keras.applications' (`conv1`, `conv_dw_7_bn`, ...). Otherwise the layers of each class
are taken in the order of their numbers (`conv2d`, `conv2d_1`, ...). Strides, padding, activations and eps are
keras.applications': a file cannot contradict them, so widths that are not MobileNet's are refused.
"""

import itertools
from collections import defaultdict

from mbnp.errors import MbnpError, short
from mbnp.models.mobilenet_v1 import BLOCKS, STEM
from mbnp.weights.keras.arrays import natural
from mbnp.weights.keras.graph import snake_case
from mbnp.weights.keras.layer import KerasLayer
from mbnp.weights.keras.reader import CONTAINERS, Content

_KINDS = {snake_case(kind): kind for kind in ("Conv2D", "DepthwiseConv2D", "BatchNormalization", "Dense")}
# The convolutions in MobileNet's order, by keras.applications' names. A BatchNorm follows each.
_NAMES = ["conv1"] + [f"conv_{kind}_{i + 1}" for i in range(len(BLOCKS)) for kind in ("dw", "pw")]

_Stored = tuple[str, str, KerasLayer]  # the path of a layer's group, its name, and the layer with its arrays


def layers(saved: Content) -> list[KerasLayer]:
    """Return the layers with their arrays; MbnpError where they are not those of a MobileNet."""
    by_name = _by_name(_layers(saved))
    body = [(by_name.pop(name), by_name.pop(f"{name}_bn")) for name in _NAMES]
    rest = list(by_name.values())
    if len(rest) > 1:
        raise _refusal(f"more than one layer after the pooling, {rest[0]} and {rest[1]}")
    for classifier in rest:
        kernel = classifier.arrays.get("kernel", classifier.arrays.get("0"))
        classifier.kind = "Dense" if kernel is not None and kernel.ndim == 2 else "Conv2D"
    for layer in itertools.chain(*body, rest):
        _name_arrays(layer)
    _check_widths([conv.arrays["kernel"].shape for conv, _ in body])
    found = [KerasLayer("InputLayer", "input", {})]
    for i, (conv, bn) in enumerate(body):
        conv.config = {"padding": "same", "strides": 2 if i == 0 else 1}
        if i % 2 and BLOCKS[i // 2][1] == 2:
            found.append(KerasLayer("ZeroPadding2D", f"{conv.name}_pad", {"padding": [[0, 1], [0, 1]]}))
            conv.config = {"padding": "valid", "strides": 2}
        found += [conv, bn, KerasLayer("ReLU", f"{conv.name}_relu", {"max_value": 6.0})]
    return [*found, KerasLayer("GlobalAveragePooling2D", "pool", {}), *rest]


def _refusal(problem: str) -> MbnpError:
    advice = "save the whole model instead, with model.save('model.keras')"
    return MbnpError(f"it has no configuration, and {problem}: {advice}")


def _layers(saved: Content) -> list[_Stored]:
    """Return everything that has arrays; kinds as far as the names of groups tell them."""
    groups: dict[str, dict] = defaultdict(dict)
    for path, array in saved.arrays.items():
        group, _, leaf = path.rpartition("/")
        if saved.numbered and not group.endswith("/vars"):
            raise MbnpError(f"it has an array where Keras puts none, {short(path)}")
        groups[group][leaf.partition(":")[0]] = array
    found = []
    for group, arrays in groups.items():
        group = group.removesuffix("/vars") if saved.numbered else group
        at = "/".join(word for word in group.split("/") if word not in CONTAINERS)
        last = at.rpartition("/")[2]
        if "depthwise_kernel" in arrays:
            arrays["kernel"] = arrays.pop("depthwise_kernel")
        layer = KerasLayer(_KINDS.get(natural(last)[0], last), last, {}, arrays=arrays)
        found.append((at, saved.names.get(group, last), layer))
    return found


def _by_name(stored: list[_Stored]) -> dict[str, KerasLayer]:
    """Return the layers by name: all of _NAMES with their BatchNorms, and what comes after the pooling."""
    by_name = {name: layer for _, name, layer in stored}
    if "conv1" not in by_name:
        return _by_number(stored)
    if len(by_name) != len(stored):
        raise MbnpError("two of its layers have the same name")
    for name in _NAMES:
        if not {name, f"{name}_bn"} <= by_name.keys():
            raise _refusal(f"no {name} with its BatchNormalization, as in keras.applications.MobileNet")
        by_name[name].kind = "DepthwiseConv2D" if name.startswith("conv_dw") else "Conv2D"
        by_name[f"{name}_bn"].kind = "BatchNormalization"
    return by_name


def _by_number(stored: list[_Stored]) -> dict[str, KerasLayer]:
    """Return the same where only the numbers of the classes say which layer is which."""
    by_kind: dict[str, list[KerasLayer]] = {kind: [] for kind in _KINDS.values()}
    for at, _, layer in sorted(stored, key=lambda entry: natural(entry[0])):
        if layer.kind not in by_kind:
            raise _refusal(f"{short(at)} is no layer of a MobileNet")
        by_kind[layer.kind].append(layer)
    convs, depthwise, bns, dense = by_kind.values()
    n = len(BLOCKS)
    if len(depthwise) != n or len(bns) != 2 * n + 1 or len(convs) < n + 1:
        counts = f"{len(convs)} convolutions, {len(depthwise)} depthwise ones, {len(bns)} BatchNormalizations"
        raise _refusal(f"{counts} are no MobileNet's (14 or 15, 13 and 27)")
    body = [convs[0], *itertools.chain(*zip(depthwise, convs[1 : n + 1], strict=True))]
    by_name = dict(zip(_NAMES, body, strict=True))
    by_name |= {f"{name}_bn": bn for name, bn in zip(_NAMES, bns, strict=True)}
    return by_name | {str(i): layer for i, layer in enumerate(convs[n + 1 :] + dense)}


def _name_arrays(layer: KerasLayer) -> None:
    """Give arrays 0, 1, ... their names, as far as their number tells them; MbnpError if one is missing."""
    expected, is_bn = layer.expected_arrays(), layer.kind == "BatchNormalization"
    if "0" in layer.arrays or not layer.arrays:
        count = len(layer.arrays)
        if is_bn and count == 2:
            expected = expected[2:]  # without gamma and beta
        known = count in (len(expected), len(expected) - (not is_bn))
        if not known or layer.arrays.keys() != {str(i) for i in range(count)}:
            raise _refusal(f"nothing says which the {count} arrays of {layer} are")
        layer.arrays = {name: layer.arrays[str(i)] for i, name in enumerate(expected[:count])}
    for name in ("moving_mean", "moving_variance") if is_bn else ("kernel",):
        if name not in layer.arrays:
            raise MbnpError(f"{layer} has no {name}")
    if left := layer.arrays.keys() - layer.expected_arrays():
        raise MbnpError(f"{layer} has an array too many, {short(min(left))}")


def _check_widths(shapes: list[tuple[int, ...]]) -> None:
    """Raise MbnpError unless the channels are the paper's, thinned or not: only then are the strides."""
    table = [STEM] + [c for c, _ in BLOCKS]
    widths = [shape[-1] if shape else 0 for shape in shapes[::2]]
    alpha = widths[-1] / table[-1]
    if any(abs(c - full * alpha) > 1 + alpha / 2 for c, full in zip(widths, table, strict=True)):
        raise _refusal(f"its channels {widths} are not MobileNet's {table}")
