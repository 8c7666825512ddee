"""The chain for a file that holds weights and no configuration: keras.applications.MobileNet, if they fit it.

Names decide where they are keras.applications' (`conv1`, `conv_dw_7_bn`, ...). Otherwise the layers of each class
are taken in the order of their numbers (`conv2d`, `conv2d_1`, ...). Strides, padding, activations and eps are
keras.applications': a file cannot contradict them, so widths that are not MobileNet's are refused.
"""

from mbnp.errors import MbnpError
from mbnp.models.mobilenet_v1 import BLOCKS, STEM
from mbnp.weights.keras.arrays import natural
from mbnp.weights.keras.files import Saved
from mbnp.weights.keras.graph import Node
from mbnp.weights.keras.reader import CONTAINERS

_KINDS = {
    "conv2d": "Conv2D",
    "depthwise_conv2d": "DepthwiseConv2D",
    "batch_normalization": "BatchNormalization",
    "dense": "Dense",
}
_ADVICE = "save the whole model instead, with model.save('model.keras')"


def chain(saved: Saved) -> list[Node]:
    """The layers with their arrays; MbnpError where they are not those of a MobileNet."""
    stored = _layers(saved)
    names = {name for _, name, _ in stored}
    convolutions, head = _by_name(stored) if "conv1" in names else _by_number(stored)
    _check_widths([node.arrays["kernel"].shape for node, _ in convolutions])
    nodes = [Node("InputLayer", "input", {})]
    for i, (conv, bn) in enumerate(convolutions):
        stride = 2 if i == 0 else BLOCKS[(i - 1) // 2][1]
        same = {"padding": "same", "strides": 1}
        if i == 0:
            conv.config = {"padding": "same", "strides": 2}
        elif i % 2 and stride == 2:
            nodes.append(Node("ZeroPadding2D", f"{conv.name}_pad", {"padding": [[0, 1], [0, 1]]}))
            conv.config = {"padding": "valid", "strides": 2}
        else:
            conv.config = same
        nodes += [conv, bn, Node("ReLU", f"{conv.name}_relu", {"max_value": 6.0})]
    nodes.append(Node("GlobalAveragePooling2D", "pool", {}))
    return nodes + ([] if head is None else [head])


_Pairs = list[tuple[Node, Node]]  # each convolution with its BatchNorm, in MobileNet's order


def _by_name(stored: list[tuple[str, str, Node]]) -> tuple[_Pairs, Node | None]:
    layers = {name: node for _, name, node in stored}
    if len(layers) != len(stored):
        raise MbnpError("two of its layers have the same name")
    wanted = ["conv1"] + [f"conv_{kind}_{i + 1}" for i in range(len(BLOCKS)) for kind in ("dw", "pw")]
    missing = [name for conv in wanted for name in (conv, f"{conv}_bn") if name not in layers]
    if missing:
        raise MbnpError(
            f"it has no {missing[0]} of keras.applications.MobileNet, and no configuration: {_ADVICE}"
        )
    pairs = []
    for i, name in enumerate(wanted):
        conv, bn = layers.pop(name), layers.pop(f"{name}_bn")
        conv.kind, bn.kind = "DepthwiseConv2D" if i % 2 else "Conv2D", "BatchNormalization"
        pairs.append((_named(conv), _named(bn)))
    return pairs, _head(list(layers.values()))


def _by_number(stored: list[tuple[str, str, Node]]) -> tuple[_Pairs, Node | None]:
    by_kind: dict[str, list[Node]] = {kind: [] for kind in _KINDS.values()}
    for group, _, node in sorted(stored, key=lambda layer: natural(layer[0])):
        if node.kind not in by_kind:
            raise MbnpError(
                f"it has no configuration, and {group[:80]!r} is no layer of a MobileNet: {_ADVICE}"
            )
        by_kind[node.kind].append(node)
    convs, depthwise, bns, dense = by_kind.values()
    n = len(BLOCKS)
    if len(depthwise) != n or len(bns) != 2 * n + 1 or len(convs) < n + 1:
        raise MbnpError(
            f"it has no configuration, and {len(convs)} convolutions, {len(depthwise)} depthwise ones and "
            f"{len(bns)} BatchNormalizations are no MobileNet's (14 or 15, 13 and 27): {_ADVICE}"
        )
    ordered = [convs[0]] + [conv for pair in zip(depthwise, convs[1 : n + 1], strict=True) for conv in pair]
    pairs = [(_named(conv), _named(bn)) for conv, bn in zip(ordered, bns, strict=True)]
    return pairs, _head(convs[n + 1 :] + dense)


def _head(rest: list[Node]) -> Node | None:
    if len(rest) > 1:
        raise MbnpError(
            f"it has no configuration, and more than one layer after the pooling, {rest[0]} and {rest[1]}: {_ADVICE}"
        )
    if not rest:
        return None
    head = rest[0]
    kernel = head.arrays.get("kernel", head.arrays.get("0"))
    head.kind = "Dense" if kernel is not None and kernel.ndim == 2 else "Conv2D"
    return _named(head)


def _check_widths(shapes: list[tuple[int, ...]]) -> None:
    """MbnpError unless the channels are those of the paper's table, thinned or not: only then are the strides."""
    table = [STEM] + [c for c, _ in BLOCKS]
    widths = [shape[-1] for shape in shapes[::2]]
    alpha = widths[-1] / table[-1]
    if any(abs(c - full * alpha) > 1 + alpha / 2 for c, full in zip(widths, table, strict=True)):
        raise MbnpError(
            f"it has no configuration, and its channels {widths} are not MobileNet's {table}: {_ADVICE}"
        )


def _layers(saved: Saved) -> list[tuple[str, str, Node]]:
    """(group, name, layer) of everything that has arrays; kinds as far as the names of groups tell them."""
    groups: dict[str, dict] = {}
    for path, array in saved.arrays.items():
        group, _, leaf = path.rpartition("/")
        if saved.numbered and not group.endswith("/vars"):
            raise MbnpError(f"it has an array where Keras puts none, {path[:80]!r}")
        groups.setdefault(group, {})[leaf.partition(":")[0]] = array
    layers = []
    for group, arrays in groups.items():
        group = group.removesuffix("/vars") if saved.numbered else group
        short = "/".join(word for word in group.split("/") if word not in CONTAINERS)
        last = short.rpartition("/")[2]
        if "depthwise_kernel" in arrays:
            arrays["kernel"] = arrays.pop("depthwise_kernel")
        node = Node(_KINDS.get(natural(last)[0], last), last, {}, arrays=arrays)
        layers.append((short, saved.names.get(group, last), node))
    return layers


def _named(node: Node) -> Node:
    """Arrays 0, 1, ... by their names, as far as their number tells them."""
    if "0" in node.arrays or not node.arrays:
        wanted = node.wants()
        if node.kind == "BatchNormalization" and len(node.arrays) == 2:
            wanted = wanted[2:]
        elif len(node.arrays) not in (len(wanted), len(wanted) - (node.kind != "BatchNormalization")):
            raise MbnpError(
                f"{node} has {len(node.arrays)} arrays, and no configuration says which: {_ADVICE}"
            )
        numbered = node.arrays
        if set(numbered) != {str(i) for i in range(len(numbered))}:
            raise MbnpError(f"the arrays of {node} are not numbered from 0")
        node.arrays = {name: numbered[str(i)] for i, name in zip(range(len(numbered)), wanted, strict=False)}
    needed = ("moving_mean", "moving_variance") if node.kind == "BatchNormalization" else ("kernel",)
    for name in needed:
        if name not in node.arrays:
            raise MbnpError(f"{node} has no {name}")
    if left := set(node.arrays) - set(node.wants()):
        raise MbnpError(f"{node} has an array too many, {min(left)[:60]!r}")
    return node
