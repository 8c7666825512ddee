"""A Keras configuration, Functional or Sequential, nested or not, as one chain of layers.

Keras 2 writes the inputs of a layer as [[["conv1", 0, 0, {}]]], Keras 3 as {"args": [{"class_name":
"__keras_tensor__", "config": {"keras_history": ["conv1", 0, 0]}}], "kwargs": {}}. Both say: the output of call 0 of
`conv1`. The chain is followed from the network's one output back to its one input, so a layer with two inputs, or
two uses of a layer with weights, ends in an error that names it.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mbnp.errors import MbnpError

# The arrays of a layer in the order in which Keras numbers them.
WEIGHTS = {
    "Conv2D": ("kernel", "bias"),
    "DepthwiseConv2D": ("kernel", "bias"),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Normalization": ("mean", "variance", "count"),
}
MODELS = ("Functional", "Model", "Sequential")
DEEPEST_MODEL = 8

# Arithmetic with a constant, which is how `preprocess_input` appears in a model.
_FUNCTIONS = {
    "math.truediv": "TrueDivide",
    "math.divide": "TrueDivide",
    "math.multiply": "Multiply",
    "math.subtract": "Subtract",
    "math.add": "Add",
    "__operators__.add": "Add",
}


@dataclass
class Node:
    """One layer of the chain."""

    kind: str  # Keras's class
    name: str
    config: dict[str, Any]
    owners: tuple[str, ...] = ()  # the models it is nested in, from the outside, then its own name
    steps: tuple[tuple[str, int], ...] = ()  # the same, as (class in snake case, which of its class)
    operands: list[Any] = field(default_factory=list)  # what it was called with: _INPUT or a number
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def wants(self) -> tuple[str, ...]:
        """The names of its arrays, as its configuration has them, in Keras's order."""
        left_out = {"bias": "use_bias", "gamma": "scale", "beta": "center"}
        if self.kind == "Normalization" and self.config.get("mean") is not None:
            return ()
        names = WEIGHTS.get(self.kind, ())
        return tuple(n for n in names if n not in left_out or self.config.get(left_out[n], True) is not False)

    def __str__(self) -> str:
        return f"layer {self.name[:60]!r} ({self.kind[:40]})"


INPUT = object()  # the operand that is the layer's input


def chain(model: Any, depth: int = 0) -> list[Node]:
    """The layers of a model from input to output, those of models inside it in their place."""
    kind, config, name = _described(model)
    if depth > DEEPEST_MODEL:
        raise MbnpError(f"its models are nested deeper than {DEEPEST_MODEL}")
    if kind not in MODELS:
        raise MbnpError(f"it holds a {kind[:60]!r}; mbnp reads Sequential and Functional models")
    entries = config if isinstance(config, list) else config.get("layers")  # a list in Keras before 2.2.3
    if not isinstance(entries, list) or not entries:
        raise MbnpError(f"its model {name[:60]!r} lists no layers")
    parts: dict[str, list[Node]] = {}
    counts: Counter[str] = Counter()
    for entry in entries:
        part_kind, part_config, part_name = _described(entry)
        if part_name in parts:
            raise MbnpError(f"its configuration has two layers {part_name[:60]!r}")
        nested = part_kind in MODELS
        nodes = chain(entry, depth + 1) if nested else [_node(part_kind, part_name, part_config)]
        step: tuple[tuple[str, int], ...] = ()
        if any(node.wants() for node in nodes):
            snake = _snake_case(part_kind)
            step = ((snake, counts[snake]),)
            counts[snake] += 1
        for node in nodes:
            node.owners, node.steps = (part_name, *node.owners), (*step, *node.steps)
        parts[part_name] = nodes
    if kind == "Sequential":
        return [node for nodes in parts.values() for node in nodes]
    calls = {_described(entry)[2]: entry.get("inbound_nodes") for entry in entries}
    return _follow(config, parts, calls)


def _follow(config: dict[str, Any], parts: dict[str, list[Node]], calls: dict[str, Any]) -> list[Node]:
    """The layers of a Functional model in the order in which data passes through them."""
    (name, call), *more = _inputs(config.get("output_layers")) or [("", 0)]
    if more:
        raise MbnpError("its model has several outputs; mbnp reads chains")
    backwards: list[list[Node]] = []
    used: set[tuple[str, int]] = set()
    while True:
        if name not in parts or (name, call) in used:
            raise MbnpError(f"its layers do not lead from one input to the output, at {name[:60]!r}")
        used.add((name, call))
        nodes = parts[name]
        if nodes[0].kind == "InputLayer" and len(nodes) == 1:
            break
        backwards.append(nodes)
        uses = calls[name]
        if isinstance(uses, list) and len(uses) == 1 and nodes[0].kind == "InputLayer" and call == 1:
            call = 0  # Keras 2 counts the making of a nested model as its call 0
        if not isinstance(uses, list) or not 0 <= call < len(uses):
            raise MbnpError(f"{nodes[-1]} has no input")
        operands = _operands(uses[call])
        inputs = [operand for operand in operands if isinstance(operand, tuple)]
        if len(inputs) != 1:
            raise MbnpError(
                f"layer {name[:60]!r} ({nodes[-1].kind[:40]}) has {len(inputs)} inputs; mbnp reads chains"
            )
        if len(nodes) == 1:
            nodes[0].operands = [INPUT if isinstance(o, tuple) else o for o in operands]
        name, call = inputs[0]
    reached = {at for at, _ in used}
    for other in parts:
        if other not in reached:
            raise MbnpError(
                f"layer {other[:60]!r} is not between the input and the output; mbnp reads chains"
            )
    for at, times in Counter(at for at, _ in used).items():
        if times > 1 and any(node.wants() for node in parts[at]):
            raise MbnpError(f"layer {at[:60]!r} is used twice with the same weights, which mbnp cannot")
    return parts[name] + [node for nodes in reversed(backwards) for node in nodes]


def _inputs(value: Any) -> list[tuple[str, int]]:
    return [operand for operand in _operands(value) if isinstance(operand, tuple)]


def _operands(value: Any) -> list[Any]:
    """What a call was given, in order: (layer, call) for another layer's output, and plain numbers."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            config = value.get("config")
            return _operands(config.get("keras_history") if isinstance(config, dict) else None)
        return [operand for entry in value.values() for operand in _operands(entry)]
    if isinstance(value, list):
        if 3 <= len(value) <= 4 and [type(v) for v in value[:3]] == [str, int, int]:
            return [(value[0], value[1]), *_operands(value[3:])]
        return [operand for entry in value for operand in _operands(entry)]
    return [value] if type(value) in (int, float) else []


def _described(entry: Any) -> tuple[str, Any, str]:
    """(class, configuration, name) of a layer or model."""
    if not isinstance(entry, dict) or not isinstance(entry.get("class_name"), str):
        raise MbnpError(f"its configuration has something that is no layer: {repr(entry)[:60]}")
    kind, config = entry["class_name"], entry.get("config")
    if not isinstance(config, dict) and not (kind == "Sequential" and isinstance(config, list)):
        raise MbnpError(f"its configuration says nothing about a {kind[:60]!r}")
    name = entry.get("name") or (config.get("name") if isinstance(config, dict) else kind)
    if not isinstance(name, str):
        raise MbnpError(f"its configuration has a {kind[:60]!r} without a name")
    return kind, config, name


def _node(kind: str, name: str, config: dict[str, Any]) -> Node:
    if kind == "TFOpLambda":  # TensorFlow's name for an operation that is no layer
        kind = _FUNCTIONS.get(str(config.get("function")), kind)
    return Node(kind, name, config)


def _snake_case(kind: str) -> str:
    """Keras's file names of classes: DepthwiseConv2D is depthwise_conv2d."""
    kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)
    return re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
