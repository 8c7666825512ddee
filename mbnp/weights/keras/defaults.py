"""The layers of a file that holds weights and no configuration: keras.applications.MobileNet, if they fit it.

Names decide where they are keras.applications' (`conv1`, `conv_dw_7_bn`, ...). Otherwise the layers of each class
are taken in the order of their numbers (`conv2d`, `conv2d_1`, ...). Strides, padding, activations and eps are
keras.applications': a file cannot contradict them, so widths that are not MobileNet's are refused.
"""

from collections import defaultdict

from mbnp.errors import MbnpError
from mbnp.models.mobilenet_v1 import BLOCKS, STEM
from mbnp.weights.files import short
from mbnp.weights.keras.arrays import natural
from mbnp.weights.keras.layer import KerasLayer
from mbnp.weights.keras.reader import CONTAINERS, Content

_KINDS = {
    "conv2d": "Conv2D",
    "depthwise_conv2d": "DepthwiseConv2D",
    "batch_normalization": "BatchNormalization",
    "dense": "Dense",
}

_Stored = tuple[str, str, KerasLayer]  # the path of a layer's group, its name, and the layer with its arrays
_Pairs = list[tuple[KerasLayer, KerasLayer]]  # each convolution with its BatchNorm, in MobileNet's order


def layers(saved: Content) -> list[KerasLayer]:
    """Return the layers with their arrays; MbnpError where they are not those of a MobileNet."""
    stored = _layers(saved)
    named = any(name == "conv1" for _, name, _ in stored)
    convolutions, rest = _by_name(stored) if named else _by_number(stored)
    if len(rest) > 1:
        raise _refusal(f"more than one layer after the pooling, {rest[0]} and {rest[1]}")
    for classifier in rest:
        kernel = classifier.arrays.get("kernel", classifier.arrays.get("0"))
        classifier.kind = "Dense" if kernel is not None and kernel.ndim == 2 else "Conv2D"
        _name_arrays(classifier)
    for pair in convolutions:
        for layer in pair:
            _name_arrays(layer)
    _check_widths([conv.arrays["kernel"].shape for conv, _ in convolutions])
    found = [KerasLayer("InputLayer", "input", {})]
    for i, (conv, bn) in enumerate(convolutions):
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


def _by_name(stored: list[_Stored]) -> tuple[_Pairs, list[KerasLayer]]:
    """Return the body's layers by keras.applications' names, and the rest."""
    by_name = {name: layer for _, name, layer in stored}
    if len(by_name) != len(stored):
        raise MbnpError("two of its layers have the same name")
    pairs = []
    for name in ["conv1"] + [f"conv_{kind}_{i + 1}" for i in range(len(BLOCKS)) for kind in ("dw", "pw")]:
        if not {name, f"{name}_bn"} <= by_name.keys():
            raise _refusal(f"no {name} with its BatchNormalization, as in keras.applications.MobileNet")
        conv, bn = by_name.pop(name), by_name.pop(f"{name}_bn")
        conv.kind = "DepthwiseConv2D" if name.startswith("conv_dw") else "Conv2D"
        bn.kind = "BatchNormalization"
        pairs.append((conv, bn))
    return pairs, list(by_name.values())


def _by_number(stored: list[_Stored]) -> tuple[_Pairs, list[KerasLayer]]:
    """Return the body's layers by class and number, and the rest."""
    by_kind: dict[str, list[KerasLayer]] = {kind: [] for kind in _KINDS.values()}
    for at, _, layer in sorted(stored, key=lambda entry: natural(entry[0])):
        if layer.kind not in by_kind:
            raise _refusal(f"{short(at)} is no layer of a MobileNet")
        by_kind[layer.kind].append(layer)
    convs, depthwise, bns, dense = by_kind.values()
    n = len(BLOCKS)
    if len(depthwise) != n or len(bns) != 2 * n + 1 or len(convs) < n + 1:
        raise _refusal(
            f"{len(convs)} convolutions, {len(depthwise)} depthwise ones and {len(bns)} BatchNormalizations "
            "are no MobileNet's (14 or 15, 13 and 27)"
        )
    ordered = [convs[0]] + [conv for pair in zip(depthwise, convs[1 : n + 1], strict=True) for conv in pair]
    return list(zip(ordered, bns, strict=True)), convs[n + 1 :] + dense


def _name_arrays(layer: KerasLayer) -> None:
    """Give arrays 0, 1, ... their names, as far as their number tells them; MbnpError if one is missing."""
    expected, is_bn = layer.expected_arrays(), layer.kind == "BatchNormalization"
    if "0" in layer.arrays or not layer.arrays:
        count = len(layer.arrays)
        if is_bn and count == 2:
            expected = expected[2:]  # without gamma and beta
        elif count not in (len(expected), len(expected) - (not is_bn)):
            raise _refusal(f"nothing says which the {count} arrays of {layer} are")
        if layer.arrays.keys() != {str(i) for i in range(count)}:
            raise MbnpError(f"the arrays of {layer} are not numbered from 0")
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
