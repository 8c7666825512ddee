"""Build a network from the graph of an ONNX file: layers in sequence, with a sum or a gate where two branches meet."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mbnp import models, spec
from mbnp.errors import MbnpError, short
from mbnp.layers import Dropout, HardSigmoid
from mbnp.network import Gate, Layer, Network, Residual, Sequential
from mbnp.weights import files
from mbnp.weights.onnx import constants, nodes
from mbnp.weights.onnx.names import Names
from mbnp.weights.onnx.read import METADATA, Graph, Node, read
from mbnp.weights.onnx.value import Pixels, Value

LARGEST_OF_ONE = 2.0
RESOLUTIONS = (224, 32)  # of a graph that takes images of any size: the first that fits
LARGEST_IMAGE = 10_000
MOST_LAYERS, DEEPEST = 10_000, 12
_BEFORE_TRANSPOSE = ("Add", "Cast", "Clip", "Div", "Identity", "Mul", "Pad", "Sub")
JOIN = ("Add", "Mul")  # two branches
KNOWN = {*nodes.OPERATIONS, *constants.OPERATIONS, *JOIN, "Shape"}


def load(path: str | os.PathLike, say: Callable[[str], object] = lambda text: None) -> Network:
    """Return the network in an ONNX file, with its weights. Its forward gives logits, before a closing softmax.

    Images are (N, H, W, C) for mbnp whatever the graph's layout. Layers are called what PyTorch's exporters wrote of
    their names. Dropout is left out. MbnpError names the first node that mbnp cannot compute, or all operations that it
    does not have.
    """
    path = Path(path)
    with files.reading(path, "ONNX file"):
        try:
            return from_graph(_read(path), say)
        except MbnpError as error:
            raise MbnpError(f"{path} cannot be imported: {error}") from None


def from_graph(graph: Graph, say: Callable[[str], object]) -> Network:
    """Return the network of a graph that was checked."""
    if METADATA + "detection" in graph.metadata:
        what = "a detector, which mbnp writes for other programs and does not read back"
        raise MbnpError(f"it is {what}: use the checkpoint that it was made from")
    return _described(graph, _network(graph, say))


def _read(path: Path) -> Graph:
    try:
        return read(path, KNOWN)
    except (AttributeError, TypeError, UnicodeError):  # a name that is no text comes as bytes, or not at all
        raise MbnpError("it is damaged: it has names that are no text") from None


def _network(graph: Graph, say: Callable[[str], object]) -> Network:
    axes = _input_axes(graph)
    sizes = dict(zip(axes, graph.dims, strict=True))
    channels = sizes["C"]
    if channels is None or channels > LARGEST_IMAGE:
        raise MbnpError(f"its input {short(graph.input)} has {channels or 'any number of'} channels")
    h, w = sizes["H"] or sizes["W"], sizes["W"] or sizes["H"]
    refusals = []
    for size in [(h, w)] if h and w else [(r, r) for r in RESOLUTIONS]:
        if max(size) > LARGEST_IMAGE:
            raise MbnpError(f"its images are {size[0]} x {size[1]}, and mbnp takes up to {LARGEST_IMAGE}")
        try:
            return _Builder(graph, say).network(Value("", (*size, channels), axes, sizes["N"], graph.dtype))
        except MbnpError as error:
            refusals.append(error)
    raise refusals[0]


def _input_axes(graph: Graph) -> str:
    """Return NHWC if the first thing that happens to the axes is that they are brought to NCHW."""
    at = graph.input
    for node in graph.nodes:
        if at in node.inputs:
            if node.op == "Transpose":
                return "NHWC" if node.attributes.get("perm") == [0, 3, 1, 2] else "NCHW"
            if node.op not in (*nodes.ELEMENTWISE, *_BEFORE_TRANSPOSE):
                break
            at = node.outputs[0]
    return "NCHW"


class _Builder:
    """A run through the nodes, in order, with values in place of numbers."""

    def __init__(self, graph: Graph, say: Callable[[str], object]) -> None:
        self.graph, self.say = graph, say
        self.constants = dict(graph.constants)
        self.values: dict[str, Value] = {}
        self.dims: dict[str, list[int]] = {}  # of each value when it was new; its consumer goes on with it
        self.forks: dict[str, Value] = {}  # the tensors that several nodes use
        self.live = _live(graph)
        self.uses = Counter([graph.output])
        self.uses.update(name for node in self.live if node.op != "Shape" for name in node.inputs)
        # The arrays of a file may be used more than once, small ones by every layer, but not without end.
        self.budget = 2 * graph.numbers + 100_000

    def network(self, x: Value) -> Network:
        """Return the network whose input is x."""
        size = x.shape
        self.put(self.graph.input, x)
        for node in self.live:
            try:
                self.run(node)
            except MbnpError as error:
                raise MbnpError(f"{node}: {error}") from None
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise MbnpError(f"{node} is not as ONNX has it: {short(repr(error))}") from None
        y = self.values.get(self.graph.output)
        if y is None or y.root:
            raise MbnpError(f"its output {short(self.graph.output)} does not come from all of its branches")
        try:
            y.check("the output")
            y.settle()
        except MbnpError as error:
            raise MbnpError(f"its output {short(self.graph.output)}: {error}") from None
        if y.shape[:2] == (1, 1) and not y.flat:
            y.flatten(self.live[-1])
        net = Network(Names().layers(y.entries), min(size[:2]), size[2])
        if not net.variables():
            raise MbnpError("it has no weights")
        files.check_square(net, size, y.shape)
        net.preprocessing = self.preprocessing(x.pixels, net.channels)
        if any(node.op == "Sigmoid" for node in self.live) and net.num_classes > 1:
            self.say("its sigmoid answers for every class by itself; the probabilities of mbnp predict add up to 1")
        return net

    def preprocessing(self, pixels: Pixels, channels: int) -> dict[str, Any] | None:
        """Return pixel * scale + shift as mean and standard deviation on a scale of 0 to 1; None if it is nothing."""
        scale, shift = (np.broadcast_to(a, channels).astype(np.float64) for a in (pixels.scale, pixels.shift))
        if (scale == 1).all() and not shift.any():
            return None
        if not (np.isfinite(scale).all() and np.isfinite(shift).all() and (scale > 0).all()):
            raise MbnpError("its arithmetic before all layers turns pixels over, makes them equal or infinite")
        mean, std = -shift / scale, 1 / scale
        # No mean or deviation of pixels from 0 to 1 is more than 1, and hardly one of pixels to 255 is less than 2.
        most = 255 if max(np.abs(mean).max(), std.max()) > LARGEST_OF_ONE else 1
        self.say(f"its arithmetic before all layers is taken for preprocessing, of pixels from 0 to {most}")
        return {"mean": (mean / most).tolist(), "std": (std / most).tolist()}

    def run(self, node: Node) -> None:
        """Give the node's first output a value, or a constant."""
        arrays = [self.constants.get(name) for name in node.inputs]
        absent = [name for name, a in zip(node.inputs, arrays, strict=True) if name and a is None]
        if node.op == "Shape":
            dims = self.dims[absent[0]] if absent else self.constants[node.inputs[0]].shape
            ends = slice(node.attributes.get("start"), node.attributes.get("end"))
            self.constants[node.outputs[0]] = np.array(dims)[ends]
        elif not absent and node.op in constants.OPERATIONS:
            made = constants.OPERATIONS[node.op](node, *arrays)
            if not any(a is not None and np.may_share_memory(a, made) for a in arrays):
                self.spend(made.size)
            self.constants[node.outputs[0]] = made
        elif len(absent) == 2 and node.op in JOIN:
            self.put(node.outputs[0], self.join(node, *map(self.take, absent)))
        else:
            self.put(node.outputs[0], self.apply(node, arrays, absent))

    def apply(self, node: Node, arrays: list[np.ndarray | None], absent: list[str]) -> Value:
        operation: Any = nodes.add_constant if node.op == "Add" else nodes.OPERATIONS.get(node.op)
        at = node.inputs.index(absent[0]) if absent else 0
        if operation is None or len(absent) != 1 or (at and node.op not in nodes.COMMUTE):
            raise MbnpError("mbnp has it with one input that depends on the images and constants after it")
        if node.op in ("Max", "Min") and (len(arrays) != 2 or arrays[1 - at].size != 1):  # type: ignore[union-attr]
            raise MbnpError("mbnp has it with one number")
        x = self.take(absent[0])
        if x.probabilities and node.op not in nodes.KEEP_VALUES:
            raise MbnpError("it comes after a softmax, which mbnp leaves out at the end and has nowhere else")
        x.check(node.op, node.op in nodes.KEEP_VALUES)
        if node.op not in nodes.WAIT:
            x.settle()
        before = x.last
        operation(node, x, *(a for i, a in enumerate(arrays) if i != at))
        if isinstance(x.last, Layer) and x.last is not before:
            self.spend(sum(v.value.size for v in x.last.variables().values()))
        return x

    def put(self, name: str, value: Value) -> None:
        self.values[name], self.dims[name] = value, value.dims()

    def take(self, name: str) -> Value:
        """Return the value of a tensor; a new branch that begins at it, if it has other uses too."""
        if name not in self.values:
            raise MbnpError(f"its input {short(name)} is an output that mbnp does not compute")
        if self.uses[name] == 1:
            return self.values.pop(name)
        value = self.values[name]
        if name not in self.forks:
            value.settle()
            value.open, value.depth = self.uses[name], 1
            if value.root in self.forks:
                value.depth += self.forks[value.root].depth
            if value.depth > DEEPEST:
                raise MbnpError(f"its branches have branches, more than {DEEPEST} deep")
            self.forks[name] = value
        return value.branch(name)

    def join(self, node: Node, a: Value, b: Value) -> Value:
        """Return a + b or a * b, of branches from one tensor, whose own layers go on once all branches are joined."""
        does = "adds" if node.op == "Add" else "multiplies"
        if a.root != b.root or a.root not in self.forks:
            raise MbnpError(f"it {does} what does not come from one tensor by two branches")
        if node.op == "Add" and not a.entries and not b.entries:
            raise MbnpError("it adds a tensor to itself, which mbnp's sums of branches do not")
        if a.probabilities or b.probabilities:
            what = "a softmax" if node.op == "Add" else "a sigmoid or softmax"
            raise MbnpError(f"it {does} what comes from {what}, which mbnp leaves out at the end")
        for branch in (a, b):
            branch.check(node.op)
            if branch.scale != 1:
                raise MbnpError("it comes after a sum over pixels which no division makes a mean")
        factor = 1.0
        if node.op == "Mul":
            factor = a.factor() * b.factor()
            a, b = (b, a) if a.entries else (a, b)  # x itself first
        for branch in (a, b):
            branch.settle()
        if node.op == "Add" and (a.dims() != b.dims() or a.axes != b.axes or a.shape != b.shape):
            raise MbnpError(f"it adds feature maps of {a.shape} and {b.shape}")
        fork = self.forks[a.root]
        fork.open -= 1
        start = fork if fork.open == 1 else fork.branch(a.root)
        if node.op == "Add":
            start.add_sum(node, a, b)
        else:
            self.check_factors(a, b)
            start.add_product(node, b.entries)
            start.axes = a.axes
            start.affine(node, factor, 0.0)
        return start

    def check_factors(self, x: Value, s: Value) -> None:
        """Raise MbnpError unless `s` is made of x and has a factor for each channel, or is its hard-sigmoid."""
        if x.entries or not s.entries:
            raise MbnpError("it multiplies two tensors that are both computed, or one by itself; mbnp has x * gate(x)")
        hard = [type(entry) for _, entry in s.entries] == [HardSigmoid]
        one_each = s.channels == x.channels and (s.flat or s.shape[:2] == (1, 1))
        if s.axes != x.axes or not (hard or one_each):
            raise MbnpError(f"it multiplies feature maps of {x.shape} by {s.shape}; mbnp has a factor for each channel")

    def spend(self, numbers: int) -> None:
        self.budget -= numbers
        if self.budget < 0:
            held = self.graph.numbers
            raise MbnpError(f"it makes more of the {held:,} numbers in the file than a network does")


def _live(graph: Graph) -> list[Node]:
    """Return the nodes that the output depends on."""
    needed, found = {graph.output}, []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            found.append(node)
    if len(found) > MOST_LAYERS:
        raise MbnpError(f"it has {len(found):,} nodes; mbnp takes up to {MOST_LAYERS:,}")
    return found[::-1]


# The description that mbnp writes beside the graph


def _described(graph: Graph, net: Network) -> Network:
    """Return `net` with its images and classes as the file says, built as it was before where that is the same."""
    net.arch, found = spec.describe(net), net.preprocessing
    try:
        said = {key.removeprefix(METADATA): json.loads(value) for key, value in graph.metadata.items()}
        same = _rebuilt(net, said.get("arch"))
        files.set_description(same, net.resolution, said.get("classes"), said.get("preprocessing") or found)
    except (ValueError, RecursionError) as error:
        raise MbnpError(f"what it says of its classes and images is damaged: {error}") from None
    return same


def _rebuilt(net: Network, arch: Any) -> Network:
    """Return what `arch` builds with the arrays of `net`, if both have the same layers; `net` otherwise."""
    try:
        built = models.from_description(arch, net.dtype, sum(array.size for array in net.state().values()))
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError):
        return net
    if _plain(built) != _plain(net):
        return net
    built.load_state(net.state())
    return built


def _plain(net: Sequential, name: str = "") -> list[Any]:
    """Return full name, kind and options of the layers of `net`, without the containers that only group them."""
    rows: list[Any] = []
    for at, layer in net.flat(name):
        if isinstance(layer, Gate):
            rows.append((at, "gate", _plain(layer, at)))
        elif isinstance(layer, Residual):
            shortcut = Sequential({"shortcut": layer.shortcut} if layer.shortcut else {})
            rows.append((at, _plain(layer, at), _plain(shortcut, at)))
        elif not isinstance(layer, Dropout):  # which a graph for inference does not have
            options = {key: _collapsed(value) for key, value in layer.config().items() if key != "hint"}
            rows.append((at, layer.kind, options))
    return rows


def _collapsed(value: Any) -> Any:
    """Return one number for a pair of equal ones, and for a pair of such pairs."""
    while isinstance(value, (tuple, list)) and value[0] == value[1]:
        value = value[0]
    return value
