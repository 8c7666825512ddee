"""A Keras configuration, Functional or Sequential, nested or not, as one sequence of layers; an Add has its branches.

Keras 2 writes the inputs of a layer as [[["conv1", 0, 0, {}]]], Keras 3 as {"args": [{"class_name":
"__keras_tensor__", "config": {"keras_history": ["conv1", 0, 0]}}], "kwargs": {}}. Both say: the output of call 0 of
`conv1`. The sequence is followed from the network's one output back to its one input. Where an Add or a Multiply has
two inputs, what leads to each from the last layer that both pass is a branch. Other layers with two inputs, and two
uses of a layer with weights, end in an error that names them.
"""

import re
from collections import Counter
from typing import Any

from mbnp.errors import MbnpError, short
from mbnp.weights.keras.layer import KerasLayer, flat

SEQUENCES = ("Sequential", "Pipeline")
MODELS = ("Functional", "Model", *SEQUENCES)
DEEPEST_MODEL = 8
JOINS = ("Add", "Multiply")  # of two tensors
MOST_LAYERS = 10_000

# Arithmetic with a constant, which is how `preprocess_input` appears in a model.
_FUNCTIONS = {
    "math.truediv": "TrueDivide",
    "math.divide": "TrueDivide",
    "math.multiply": "Multiply",
    "math.subtract": "Subtract",
    "math.add": "Add",
    "__operators__.add": "Add",
}
INPUT = object()  # the operand that is the layer's input


def layers(model: Any, depth: int = 0) -> list[KerasLayer]:
    """Return the layers of a model from input to output, those of models inside it in their place."""
    kind, config, name = _described(model)
    if depth > DEEPEST_MODEL:
        raise MbnpError(f"its models are nested deeper than {DEEPEST_MODEL}")
    if kind not in MODELS:
        raise MbnpError(f"it holds a {short(kind)}; mbnp reads Sequential and Functional models")
    entries = config if isinstance(config, list) else config.get("layers")  # a list in Keras before 2.2.3
    if not isinstance(entries, list) or not entries:
        raise MbnpError(f"its model {short(name)} lists no layers")
    found: dict[str, list[KerasLayer]] = {}
    counts: Counter[str] = Counter()
    for at, entry in enumerate(entries):
        kind_of, config_of, name_of = _described(entry)
        if name_of in found:
            raise MbnpError(f"its configuration has two layers {short(name_of)}")
        if kind_of == "TFOpLambda":  # TensorFlow's name for an operation that is no layer
            kind_of = _FUNCTIONS.get(str(config_of.get("function")), kind_of)
        leaf = KerasLayer(kind_of, name_of, config_of)
        inner = layers(entry, depth + 1) if kind_of in MODELS else [leaf]
        step: tuple[tuple[str, int], ...] = ()
        if any(layer.expected_arrays() for layer in flat(inner)):
            snake = snake_case(kind_of)
            step = ((snake, counts[snake]),)
            counts[snake] += 1
        for layer in flat(inner):
            layer.place = (at, *layer.place)
            frozen = isinstance(config_of, dict) and config_of.get("trainable") is False
            layer.trainable = layer.trainable and not frozen
            layer.owners, layer.steps = (name_of, *layer.owners), (*step, *layer.steps)
        found[name_of] = inner
    if kind in SEQUENCES:
        return [layer for inner in found.values() for layer in inner]
    calls = {_described(entry)[2]: entry.get("inbound_nodes") for entry in entries}
    return _follow(config, found, calls)


def _follow(config: dict[str, Any], found: dict[str, list[KerasLayer]], calls: dict[str, Any]) -> list[KerasLayer]:
    """Return the layers of a Functional model in the order in which data passes through them."""
    (name, call), *more = _inputs(config.get("output_layers")) or [("", 0)]
    if more:
        raise MbnpError("its model has several outputs; mbnp reads layers in sequence")
    walk = _Walk(found, calls)
    sequence, end = walk.back((name, call), None)
    for at, inner in found.items():
        if not walk.times[at]:
            raise MbnpError(f"layer {short(at)} is not between the input and the output")
        if walk.times[at] > 1 and any(layer.expected_arrays() for layer in flat(inner)):
            raise MbnpError(f"layer {short(at)} is used twice with the same weights, which mbnp cannot")
    return found[end[0]] + sequence


Call = tuple[str, int]  # a layer's name, and which of its calls


class _Walk:
    """A walk from the output back to the input."""

    def __init__(self, found: dict[str, list[KerasLayer]], calls: dict[str, Any]) -> None:
        self.found, self.calls = found, calls
        self.times: Counter[str] = Counter()
        self.before: dict[Call, tuple[Call, int]] = {}  # the last layer that all ways to one pass, and its depth

    def inputs(self, at: Call) -> list[Call]:
        """Return what one call of a layer takes: one output of another, or two; none at the beginning."""
        name, call = at
        if name not in self.found:
            raise MbnpError(f"its layers do not lead from one input to the output, at {short(name)}")
        inner, uses = self.found[name], self.calls[name]
        begins = inner[0].kind == "InputLayer"
        if begins and len(inner) == 1:
            return []
        if isinstance(uses, list) and len(uses) == 1 and begins and call == 1:
            call = 0  # Keras 2 counts the making of a nested model as its call 0
        if not isinstance(uses, list) or not 0 <= call < len(uses):
            raise MbnpError(f"{inner[-1]} has no input")
        if _trains(uses[call]):
            raise MbnpError(f"{inner[-1]} is called with training=True: it acts in inference, too")
        if len(inner) == 1:
            inner[0].operands = [INPUT if isinstance(o, tuple) else o for o in _operands(uses[call])]
        taken = _inputs(uses[call])
        if len(taken) != 1 and not (len(taken) == 2 and len(inner) == 1 and inner[0].kind in JOINS):
            where = f"layer {short(name)} ({inner[-1].kind[:40]})"
            raise MbnpError(f"{where} has {len(taken)} inputs; mbnp reads one, or two that it adds or multiplies")
        return taken

    def passed(self, at: Call) -> tuple[Call, int]:
        """Return the last layer before `at` that all ways to it pass, and the depth of `at`."""
        waiting, open_ = [at], {at}
        while waiting:
            now = waiting[-1]
            inputs = [] if now in self.before else self.inputs(now)
            missing = [one for one in inputs if one not in self.before]
            if open_.intersection(missing) or len(waiting) > MOST_LAYERS:
                raise MbnpError(f"its layers do not lead from one input to the output, at {short(now[0])}")
            if missing:
                open_.add(now)  # whose inputs are looked at
                waiting.append(missing[0])
                continue
            if now not in self.before:
                last = self.common(*inputs) if inputs else now
                self.before[now] = last, self.before[last][1] + 1 if inputs else 0
            open_.discard(now)
            waiting.pop()
        return self.before[at]

    def common(self, a: Call, b: Call | None = None) -> Call:
        """Return the last layer that all ways to `a` and to `b` pass, which may be one of them."""
        b = a if b is None else b
        while a != b:
            (up_a, deep_a), (up_b, deep_b) = self.before[a], self.before[b]
            if deep_a == deep_b == 0:
                raise MbnpError(f"its layers do not lead from one input to the output, at {short(a[0])}")
            a, b = (up_a, b) if deep_a >= deep_b else (a, up_b)
        return a

    def back(self, at: Call, stop: Call | None) -> tuple[list[KerasLayer], Call]:
        """Return the layers from `stop` (not with it; None: the beginning) to `at`, and where that began."""
        parts: list[list[KerasLayer]] = []
        while at != stop:
            before, _ = self.passed(at)
            inputs = self.inputs(at)
            self.times[at[0]] += 1
            if self.times.total() > MOST_LAYERS:
                raise MbnpError(f"its branches make more than {MOST_LAYERS:,} layers")
            if not inputs:
                break
            parts.append(self.found[at[0]])
            if len(inputs) == 2:
                (join,) = self.found[at[0]]
                join.branches = [self.back(one, before)[0] for one in inputs]
            at = before
        return [layer for part in reversed(parts) for layer in part], at


def _trains(value: Any) -> bool:
    """Return whether a call has training=True among its arguments."""
    if isinstance(value, dict):
        return value.get("training") is True or any(map(_trains, value.values()))
    return isinstance(value, list) and any(map(_trains, value))


def _inputs(value: Any) -> list[tuple[str, int]]:
    return [operand for operand in _operands(value) if isinstance(operand, tuple)]


def _operands(value: Any) -> list[Any]:
    """Return what a call was given, in order: (layer, call) for another layer's output, and plain numbers."""
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
    """Return (class, configuration, name) of a layer or model."""
    if not isinstance(entry, dict) or not isinstance(entry.get("class_name"), str):
        raise MbnpError(f"its configuration has something that is no layer: {short(entry)}")
    kind, config = entry["class_name"], entry.get("config")
    if not isinstance(config, dict) and not (kind == "Sequential" and isinstance(config, list)):
        raise MbnpError(f"its configuration says nothing about a {short(kind)}")
    name = entry.get("name") or (config.get("name") if isinstance(config, dict) else kind)
    if not isinstance(name, str):
        raise MbnpError(f"its configuration has a {short(kind)} without a name")
    return kind, config, name


def snake_case(kind: str) -> str:
    """Return the name of a class in Keras's files: DepthwiseConv2D is depthwise_conv2d."""
    kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)
    return re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
