"""The layer interface, and the containers that hold a network together.

    layer.forward(x, train=True)    saves what backward needs, as named attributes
    layer.backward(dy)              consumes it, adds to parameter.grad, returns dx

MobileNet is a chain, so running the layers' backwards in reverse order is the whole autograd engine
(`Sequential.backward`). A branch is a container with a backward of its own (`Residual`, `Gate`, `Pyramid`). There is no
tape and no global training mode. The arrays are in `parameter.py`, the layers themselves in `layers.py`.
"""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbnp import parameter, renamed, tables
from mbnp.errors import MbnpError, refuse_mask
from mbnp.ops import gate

__getattr__ = renamed.module_names(
    __name__, {name: f"mbnp.parameter:{name}" for name in ("Variable", "Parameter", "Buffer")}
)


class _Skipped(NamedTuple):
    missing_keys: tuple[str, ...]  # arrays of the network that are not in the state: they stay as they were
    unexpected_keys: tuple[str, ...]  # arrays of the state that are not in the network
    shape_mismatches: tuple[str, ...]  # "NAME has shape ..., not ..."


class Skipped(_Skipped):
    """What `load_state` did not load; false if there is nothing. As text, one line."""

    missing = renamed.attribute("missing", "missing_keys")
    left_over = renamed.attribute("left_over", "unexpected_keys")
    misfits = renamed.attribute("misfits", "shape_mismatches")

    def __bool__(self) -> bool:
        return any(tuple(self))

    def __str__(self) -> str:
        lines = [f"missing {name}" for name in self.missing_keys]
        lines += [f"unexpected {name}" for name in self.unexpected_keys] + list(self.shape_mismatches)
        more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
        return ", ".join(lines[:4]) + more


class Layer:
    """The interface of every layer. A subclass writes forward and backward, and output_shape if the shape changes.

    A layer also describes itself here, once: files, costs, checks and other frameworks read config, shapes, macs and
    torch.
    """

    kind = ""  # the name of this class of layers in files; a subclass has one of its own
    needs_dx = True  # whether the gradient that backward returns is used; containers set it, and read it

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        raise NotImplementedError

    def backward(self, dy: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one output for one input of `shape`, both without the batch axis."""
        return shape

    def config(self) -> dict[str, Any]:
        """Return the constructor's options (but rng and dtype) as they are now: what builds this layer again."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names if name not in ("rng", "dtype")}

    @staticmethod
    def shapes(**config: Any) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array of a layer with this `config`, by name, before any is made."""
        return {}

    def macs(self, output_shape: tuple[int, ...]) -> int:
        """Return the multiply-accumulates for one output of `output_shape`."""
        return 0

    def torch(self, F: Any) -> Callable[..., Any]:
        """Return this layer as a function of PyTorch, f(x, train, **arrays), made of F = torch.nn.functional.

        x is (N, C, H, W) or (N, C); arrays have this layer's names and PyTorch's layout.
        """
        raise MbnpError(f"{type(self).__name__} has no counterpart in PyTorch")

    def __call__(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        return self.forward(x, train)

    def variables(self) -> dict[str, parameter.Variable]:
        """Return every array by name, parameters and running statistics, in PyTorch's order."""
        return {name: v for name, v in vars(self).items() if isinstance(v, parameter.Variable)}

    def parameters(self) -> dict[str, parameter.Parameter]:
        """Return the learnable arrays by name."""
        return {name: v for name, v in self.variables().items() if isinstance(v, parameter.Parameter)}

    def buffers(self) -> dict[str, parameter.Buffer]:
        """Return the running statistics by name."""
        return {name: v for name, v in self.variables().items() if isinstance(v, parameter.Buffer)}

    def generators(self) -> dict[str, np.random.Generator]:
        """Return by name what draws random numbers in training: the generators of dropout."""
        return {
            f"{name}.{key}" if name else key: value
            for name, layer in self.leaves()
            for key, value in vars(layer).items()
            if isinstance(value, np.random.Generator)
        }

    def trainable(self) -> bool:
        """Return whether there is a parameter that is not frozen."""
        return any(not p.frozen for p in self.parameters().values())

    def still(self) -> None:
        """Make a training forward compute what inference does. A layer that draws random numbers stops that, too."""
        for p in self.parameters().values():
            p.frozen = True

    def touch(self) -> None:
        """Mark the arrays of this layer as changed, after they were written in place."""
        for variable in self.variables().values():
            variable.touch()

    def state(self) -> dict[str, np.ndarray]:
        """Return a copy of every array by name, running statistics included."""
        return {name: v.value.copy() for name, v in self.variables().items()}

    def load_state(self, mapping: Mapping[str, np.ndarray], strict: bool = True) -> Skipped:
        """Copy the arrays of `mapping` in, cast to the network's dtype; return what was skipped.

        All names and shapes must fit, or MbnpError says what does not and nothing is changed. strict=False loads
        what fits and returns what does not.
        """
        variables = self.variables()
        shared = {name: v for name, v in variables.items() if name in mapping}
        fitting = {name: v for name, v in shared.items() if np.shape(mapping[name]) == v.value.shape}
        skipped = Skipped(
            tuple(name for name in variables if name not in mapping),
            tuple(name for name in mapping if name not in variables),
            tuple(
                f"{name} has shape {np.shape(mapping[name])}, not {v.value.shape}"
                for name, v in shared.items()
                if name not in fitting
            ),
        )
        if strict and skipped:
            raise MbnpError(f"the state does not fit this network: {skipped}")
        for name in fitting:
            refuse_mask(name, mapping[name])
        arrays = {name: np.asarray(mapping[name]) for name in fitting}
        for name, array in arrays.items():  # all of them before the first is copied
            if array.dtype.kind not in "fiub":
                raise MbnpError(f"{name} holds {array.dtype}, not numbers")
        for name, variable in fitting.items():
            variable.value = arrays[name]
        return skipped

    def activations(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Return every layer's output in inference, by the layer's name; containers have theirs, too."""
        return {name: y for name, y in self._visit(x, "") if name}

    def walk(self, shape: tuple[int, ...]) -> Iterator[tuple[str, "Layer", tuple, tuple]]:
        """Yield (name, layer, input shape, output shape) of each layer that computes; no batch axis."""
        return self._walk(tuple(shape), "")

    def parts(self, name: str = "") -> Iterator[tuple[str, "Layer"]]:
        """Yield (full name, layer) of every layer, a container after what is in it."""
        yield name, self

    def leaves(self, name: str = "") -> Iterator[tuple[str, "Layer"]]:
        """Yield (full name, layer) of each layer that is no container."""
        return ((at, layer) for at, layer in self.parts(name) if not isinstance(layer, Sequential))

    def _visit(self, x: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
        yield name, self.forward(x)

    def _walk(self, shape: tuple, name: str) -> Iterator[tuple[str, "Layer", tuple, tuple]]:
        yield name, self, shape, self.output_shape(shape)

    def pop_saved(self, name: str) -> Any:
        """Return what forward saved as attribute `name`, and forget it, so that memory is freed as backward proceeds.

        MbnpError if there is nothing, because forward did not run with train=True.
        """
        saved = getattr(self, name, None)
        if saved is None:
            raise MbnpError(
                f"{type(self).__name__}.backward has nothing to go back through: call forward(x, train=True) "
                "first, once for every backward"
            )
        setattr(self, name, None)
        return saved


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def run(layer: Layer, x: np.ndarray, train: bool, needs_dx: bool) -> np.ndarray:
    """Return layer.forward(x, train), with the layer's `needs_dx` set during the call."""
    before, layer.needs_dx = layer.needs_dx, needs_dx
    try:
        return layer.forward(x, train)
    finally:
        layer.needs_dx = before


def _count_frozen(layers: Sequence[Layer]) -> int:
    """Count the leading layers whose parameters are all frozen.

    A layer without parameters counts only if a frozen one follows: it may behave differently in training, as dropout
    does.
    """
    count = 0
    for i, layer in enumerate(layers, start=1):
        if layer.trainable():
            break
        if layer.parameters():
            count = i
    return count


class Sequential(Layer):
    """Layers one after another, named by the keys of a mapping or, from a sequence, by their index.

    Where the gradient of the input is not used (`needs_dx` is false, as in a network), frozen layers at the start run
    as in inference and save nothing, and backward ends at the first layer that learns.
    """

    def __init__(self, layers: Mapping[str, Layer] | Sequence[Layer]) -> None:
        if not isinstance(layers, Mapping):
            layers = {str(i): layer for i, layer in enumerate(layers)}
        self.layers = dict(layers)
        self._learning: list[Layer] | None = None  # the layers of the next backward, after a training forward

    def __getitem__(self, name: str) -> Layer:
        return self.layers[name]

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        return self._train(x) if train else self._infer(x)

    def _infer(self, x: np.ndarray) -> np.ndarray:
        self._learning = None
        for layer in self.layers.values():
            x = layer.forward(x)
        return x

    def _train(self, x: np.ndarray) -> np.ndarray:
        layers, needed = list(self.layers.values()), self.needs_dx
        frozen = 0 if needed else _count_frozen(layers)
        self._learning = []
        for i, layer in enumerate(layers):
            learns = needed or layer.trainable()
            x = run(layer, x, i >= frozen, needed)
            if learns:
                self._learning.append(layer)
                needed = True
        return x

    def backward(self, dy: np.ndarray) -> np.ndarray | None:  # type: ignore[override]
        """Return dx, or None where it was not needed and backward ended before it."""
        layers, self._learning = self._learning, None
        if layers is None:  # a subclass may run its layers itself; otherwise the last one misses what forward saves
            layers = list(self.layers.values())
        for layer in reversed(layers):
            dy = layer.backward(dy)
        return dy if len(layers) == len(self.layers) else None

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for layer in self.layers.values():
            shape = layer.output_shape(shape)
        return shape

    def variables(self) -> dict[str, parameter.Variable]:
        return {f"{at}.{name}": v for at, layer in self.layers.items() for name, v in layer.variables().items()}

    def parts(self, name: str = "") -> Iterator[tuple[str, Layer]]:
        for child, layer in self.layers.items():
            yield from layer.parts(_join(name, child))
        yield name, self

    def flat(self, name: str = "") -> list[tuple[str, Layer]]:
        """Return (full name, layer) in order, with plain Sequentials opened; a Residual counts as one layer."""
        pairs: list[tuple[str, Layer]] = []
        for child, layer in self.layers.items():
            at = _join(name, child)
            pairs += layer.flat(at) if type(layer) is Sequential else [(at, layer)]
        return pairs

    def _visit(self, x: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
        for child, layer in self.layers.items():
            for inner, y in layer._visit(x, _join(name, child)):
                yield inner, y
            x = y
        yield name, x

    def _walk(self, shape: tuple, name: str) -> Iterator[tuple[str, Layer, tuple, tuple]]:
        for child, layer in self.layers.items():
            yield from layer._walk(shape, _join(name, child))
            shape = layer.output_shape(shape)


class Residual(Sequential):
    """body(x) + shortcut(x): the gradient goes back through both and is added. No shortcut means x itself."""

    def __init__(self, body: Mapping[str, Layer] | Sequence[Layer], shortcut: Layer | None = None) -> None:
        super().__init__(body)
        self.shortcut = shortcut
        self._branch = Sequential([])  # the shortcut as a chain, whose backward may end early, too

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self._branch = Sequential([self.shortcut] if self.shortcut else [])
        return super().forward(x, train) + run(self._branch, x, train, self.needs_dx)

    def backward(self, dy: np.ndarray) -> np.ndarray | None:  # type: ignore[override]
        body, branch = super().backward(dy), self._branch.backward(dy)
        return None if body is None or branch is None else body + branch

    def variables(self) -> dict[str, parameter.Variable]:
        shortcut = self.shortcut.variables() if self.shortcut else {}
        return super().variables() | {f"shortcut.{name}": v for name, v in shortcut.items()}

    def parts(self, name: str = "") -> Iterator[tuple[str, Layer]]:
        *body, itself = super().parts(name)
        yield from body
        if self.shortcut:
            yield from self.shortcut.parts(_join(name, "shortcut"))
        yield itself

    def _visit(self, x: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
        *body, (_, y) = super()._visit(x, name)
        yield from body
        for inner, x in self.shortcut._visit(x, _join(name, "shortcut")) if self.shortcut else ():  # noqa: B020
            yield inner, x
        yield name, y + x

    def _walk(self, shape: tuple, name: str) -> Iterator[tuple[str, Layer, tuple, tuple]]:
        yield from super()._walk(shape, name)
        if self.shortcut:
            yield from self.shortcut._walk(shape, _join(name, "shortcut"))


class Gate(Sequential):
    """x * s, where the layers inside make of x a factor s for each image and channel: squeeze-and-excite. `ops.gate`.

    The gradient goes back through both factors and is added. Hu et al., arXiv:1709.01507; the layers are an average
    over each feature map (squeeze), and two 1x1 convolutions that end in a sigmoid (excite).
    """

    def __init__(self, layers: Mapping[str, Layer] | Sequence[Layer]) -> None:
        super().__init__(layers)
        self.x: np.ndarray | None = None
        self.s: np.ndarray | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        s = super().forward(x, train)
        self.x, self.s = (x, s) if train else (None, None)
        return gate.forward(x, s.reshape(len(s), -1))

    def backward(self, dy: np.ndarray) -> np.ndarray | None:  # type: ignore[override]
        s = self.pop_saved("s")
        dx, ds = gate.backward(dy, self.pop_saved("x"), s.reshape(len(s), -1))
        through = super().backward(ds.reshape(s.shape))
        return None if through is None else dx + through

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        check_factors("a gate", super().output_shape(shape), shape)
        return shape

    def _visit(self, x: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
        *inner, (_, s) = super()._visit(x, name)
        yield from inner
        yield name, gate.forward(x, s.reshape(len(s), -1))


def check_factors(where: str, factors: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raise MbnpError unless `factors`, what the layers of a gate make, is a number for each channel of `shape`."""
    if factors not in (shape[-1:], (1, 1, *shape[-1:])):
        raise MbnpError(f"{where} needs a factor for each of {shape[-1]} channels, and its layers make {factors}")


class Pyramid(Sequential):
    """Stages one after another, and on what each makes two heads that look for objects of its scale: a detector.

    stages: layers by name; boxes, scores: for each stage a layer from its feature map (H, W, C) to 4 numbers, and to D
    numbers, for each anchor of a cell: (H, W, anchors * 4) and (H, W, anchors * D). What comes out has a row for each
    anchor, (N, A, 4 + D): stage after stage, by rows and columns of its feature map. Liu et al., "SSD: Single Shot
    MultiBox Detector", 2016, arXiv:1512.02325, section 2.1.
    """

    def __init__(self, stages: Mapping[str, Layer], boxes: Mapping[str, Layer], scores: Mapping[str, Layer]) -> None:
        super().__init__(stages)
        self.boxes, self.scores = dict(boxes), dict(scores)
        if not self.layers.keys() == self.boxes.keys() == self.scores.keys():
            raise MbnpError(
                f"a pyramid needs two heads on each of its stages {', '.join(self.layers)}: got boxes for "
                f"{', '.join(self.boxes)} and scores for {', '.join(self.scores)}"
            )
        self.shapes_out: list[tuple[int, ...]] | None = None  # of the heads' outputs, in the order of `branches`
        self._needed: list[bool] = []  # whether the gradient of a stage's output is

    def branches(self, name: str = "") -> list[tuple[tuple[str, Layer], tuple[str, Layer], tuple[str, Layer]]]:
        """Return for each stage (full name, layer) of itself, of its head for boxes and of its head for scores."""
        return [
            (
                (_join(name, stage), layer),
                (_join(name, f"boxes.{stage}"), self.boxes[stage]),
                (_join(name, f"scores.{stage}"), self.scores[stage]),
            )
            for stage, layer in self.layers.items()
        ]

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        found, needed = list[np.ndarray](), self.needs_dx
        self._needed = []
        for (_, stage), *heads in self.branches():
            x = run(stage, x, train, needed)
            needed = needed or stage.trainable()
            self._needed.append(needed)
            found += [run(head, x, train, needed) for _, head in heads]
        self.shapes_out = [y.shape for y in found] if train else None
        return join_rows(found)

    def backward(self, dy: np.ndarray) -> np.ndarray | None:  # type: ignore[override]
        """Return dx, or None where it was not needed."""
        parts = split_rows(dy, self.pop_saved("shapes_out"))
        dx: Any = 0
        for needed, ((_, stage), *heads) in reversed(list(zip(self._needed, self.branches(), strict=True))):
            dscores, dboxes = (head.backward(parts.pop()) for _, head in reversed(heads))
            if needed:
                dx = stage.backward(dboxes + dscores + dx)
        return dx if self.needs_dx else None

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        anchors, columns = 0, set[int]()
        for (_, boxes), (_, scores) in self.head_shapes(shape):
            each, rest = divmod(boxes[-1], 4)
            if rest or not each or boxes[:-1] != scores[:-1] or scores[-1] % each:
                raise MbnpError(f"heads make {boxes} for boxes, 4 numbers for each anchor, and {scores} for scores")
            anchors += each * boxes[0] * boxes[1]
            columns.add(4 + scores[-1] // each)
        if len(columns) > 1:
            raise MbnpError(f"the heads differ in how many scores an anchor has: {sorted(c - 4 for c in columns)}")
        return anchors, columns.pop()

    def head_shapes(self, shape: tuple[int, ...]) -> list[list[tuple[str, tuple[int, ...]]]]:
        """Return (full name, output shape) of each stage's head for boxes and head for scores, for x of `shape`."""
        found = []
        for (_, stage), *heads in self.branches():
            shape = stage.output_shape(shape)
            found.append([(name, head.output_shape(shape)) for name, head in heads])
        return found

    def variables(self) -> dict[str, parameter.Variable]:
        named = super().variables()
        for _, *heads in self.branches():
            named |= {f"{at}.{name}": v for at, head in heads for name, v in head.variables().items()}
        return named

    def parts(self, name: str = "") -> Iterator[tuple[str, Layer]]:
        for branch in self.branches(name):
            for at, layer in branch:
                yield from layer.parts(at)
        yield name, self

    def _visit(self, x: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
        found = []
        for (at, stage), *heads in self.branches(name):
            for inner, y in stage._visit(x, at):
                yield inner, y
            x = y
            for head_at, head in heads:
                for inner, y in head._visit(x, head_at):
                    yield inner, y
                found.append(y)
        yield name, join_rows(found)

    def _walk(self, shape: tuple, name: str) -> Iterator[tuple[str, Layer, tuple, tuple]]:
        for (at, stage), *heads in self.branches(name):
            yield from stage._walk(shape, at)
            shape = stage.output_shape(shape)
            for head_at, head in heads:
                yield from head._walk(shape, head_at)


def join_rows(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Return (N, A, 4 + D), a row for each anchor, of the outputs of heads for boxes and for scores in turn.

    They are (N, H, W, anchors * 4) and (N, H, W, anchors * D).
    """
    rows = []
    for boxes, scores in zip(maps[::2], maps[1::2], strict=True):
        n, h, w, c = boxes.shape
        count = h * w * c // 4
        rows.append(np.concatenate([boxes.reshape(n, count, 4), scores.reshape(n, count, -1)], axis=2))
    return np.concatenate(rows, axis=1)


def split_rows(rows: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Return the maps of these shapes that `join_rows` made `rows` of."""
    maps, at = list[np.ndarray](), 0
    for boxes, scores in zip(shapes[::2], shapes[1::2], strict=True):
        end = at + math.prod(boxes[1:]) // 4
        maps += [rows[:, at:end, :4].reshape(boxes), rows[:, at:end, 4:].reshape(scores)]
        at = end
    return maps


class Network(Sequential):
    """A whole network: images in, logits out, with what a checkpoint needs to build it again.

    needs_dx: set to True, backward returns the gradient of the images, even through frozen layers at the start.
    """

    needs_dx = False

    def __init__(self, layers: Mapping[str, Layer], resolution: int, channels: int = 3) -> None:
        super().__init__(layers)
        self.resolution = resolution  # of the images it is meant for; forward takes what the layers allow
        self.channels = channels
        self.arch: dict[str, Any] = {}  # what builds it again, for `models.from_description`
        self.built_as: list[Any] | None = None  # the layers that `arch` builds, as spec.py describes them
        self.classes: list[str] | None = None  # the names of the classes, where they are known
        # {"mean": [...], "std": [...]} of x, on a scale of 0 to 1, and "order": "rgb" (where not given) or "bgr".
        self.preprocessing: dict[str, Any] | None = None
        # Of a detector: {"anchors": [[[width, height], ...], ...] for each stage, in shares of the image's, "scales":
        # [x, y, width, height], "scores": "softmax" or "sigmoid", "resize": "stretch" or "pad"}; see mbnp/detection.
        self.detection: dict[str, Any] | None = None

    def __str__(self) -> str:
        """List layers, output shapes and parameters, for images of the network's own resolution."""
        walked: list[tuple[str, Layer, tuple]]
        try:
            walk = self.walk((self.resolution, self.resolution, self.channels))
            walked = [(name, layer, shape) for name, layer, _, shape in walk]
        except MbnpError:  # layers that do not take images of this resolution
            walked = [(name, layer, ()) for name, layer in self.leaves()]
        rows = []
        for name, layer, shape in walked:
            count = sum(p.value.size for p in layer.parameters().values())
            rows.append((name, type(layer).__name__, "x".join(map(str, shape)), f"{count:,}" if count else ""))
        total = sum(p.value.size for p in self.parameters().values())
        name = self.arch.get("name", type(self).__name__)
        title = f"{name}, images of {self.resolution} x {self.resolution}; {total:,} parameters"
        return f"{title}\n{tables.table(('layer', 'kind', 'output', 'parameters'), rows, left=3)}"

    @property
    def num_classes(self) -> int:
        """The number of logits: the outputs of the last layer with weights. A detector's first logit is background."""
        if self.detects():
            return self.output_shape((self.resolution, self.resolution, self.channels))[-1] - 5
        *_, last = (layer for _, layer in self.leaves() if "weight" in layer.variables())
        return last.variables()["weight"].value.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        """The type of its parameters; float32 where it has none."""
        values = (v.value.dtype for _, layer in self.leaves() for v in layer.variables().values())
        return next(values, np.dtype(np.float32))

    def detects(self) -> bool:
        """Return whether this is a detector: its last layer is a Pyramid."""
        return bool(self.layers) and isinstance(list(self.layers.values())[-1], Pyramid)

    def grids(self) -> list[tuple[int, int]]:
        """Return rows and columns of each feature map on which a detector has heads, at its own resolution."""
        *body, pyramid = self.layers.values()
        shape: tuple[int, ...] = (self.resolution, self.resolution, self.channels)
        for layer in body:
            shape = layer.output_shape(shape)
        assert isinstance(pyramid, Pyramid)
        return [(h, w) for (_, (h, w, _)), _ in pyramid.head_shapes(shape)]

    def freeze_until(self, name: str) -> None:
        """Freeze every parameter up to the end of the layer or block `name`, and unfreeze all later ones.

        What is frozen does not learn, the statistics of its BatchNorms stay, and backward costs nothing there.
        The name is a block's (`conv2_5`, `features.7`) or a layer's (`conv2_5.3`); MbnpError for one that is unknown.
        """
        leaves = list(self.leaves())
        inside = [i for i, (leaf, _) in enumerate(leaves) if f"{leaf}.".startswith(f"{name}.")]
        if not inside:
            blocks = dict.fromkeys(leaf.rpartition(".")[0] or leaf for leaf, layer in leaves if layer.parameters())
            raise MbnpError(f"no layer is named {name!r}: choose one of {', '.join(blocks)}, or a layer inside one")
        for i, (_, layer) in enumerate(leaves):
            for p in layer.parameters().values():
                p.frozen = i <= inside[-1]

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        """Return the logits (N, classes) of normalised images x (N, H, W, 3) in the network's dtype.

        A detector returns (N, anchors, 4 + 1 + classes): a box's offsets, and the logits of background and the classes.
        """
        self.check_input(x)
        return super().forward(x, train)

    def gradients(self, x: np.ndarray, dlogits: np.ndarray) -> dict[str, np.ndarray]:
        """Return the gradient of sum(logits * dlogits) with respect to every layer's output in inference.

        The names are those of `activations`; "input" is the gradient of the images x (N, H, W, 3), so that no layer may
        have this name. BatchNorm uses its running statistics, and dropout does nothing. dlogits has the logits' shape
        (N, classes) and dtype: for the gradient of one logit it is 1 there, and 0 elsewhere. All of it happens in a
        copy: the network and the gradients of its parameters stay as they are.
        """
        self.check_input(x)
        if "input" in self.layers:
            raise MbnpError("a layer is named 'input', as the gradient of the images would be: rename the layer")
        net, found = copy.deepcopy(self), dict[str, np.ndarray]()
        names = [name for name, _ in net.parts() if name]
        for name, layer in net.parts():
            layer.still()
            _record_dy(layer, name, found)
        net.needs_dx = True
        _check_dlogits(dlogits, net.forward(x, train=True))
        dx = net.backward(dlogits.copy())
        assert dx is not None  # since needs_dx is true
        return {name: found[name] for name in names if name in found} | {"input": dx}

    def check_input(self, x: np.ndarray) -> None:
        """Raise an MbnpError that names what is wrong with x, if anything is."""
        if not isinstance(x, np.ndarray):
            raise MbnpError(f"x must be a NumPy array (N, H, W, {self.channels}), got {type(x).__name__}")
        refuse_mask("x", x)
        if x.ndim == 4 and x.shape[3] != self.channels and x.shape[1] == self.channels:
            raise MbnpError(f"x has shape {x.shape}, channels first; pass x.transpose(0, 2, 3, 1)")
        if x.ndim != 4 or x.shape[3] != self.channels:
            raise MbnpError(f"x must have shape (N, H, W, {self.channels}), got {x.shape}")
        if len(x) == 0:
            raise MbnpError(f"x holds no images: its shape is {x.shape}")
        if x.dtype != self.dtype:
            raise MbnpError(f"x is {x.dtype} and the network {self.dtype}; pass x.astype(net.dtype)")


def _record_dy(layer: Layer, name: str, found: dict[str, np.ndarray]) -> None:
    """Make the layer's backward keep dy, the gradient of its output, in `found`."""
    backward = layer.backward

    def recorded(dy: np.ndarray) -> np.ndarray:
        found[name] = dy
        return backward(dy)

    layer.backward = recorded  # type: ignore[method-assign]


def _check_dlogits(dlogits: np.ndarray, logits: np.ndarray) -> None:
    got = dlogits.shape if isinstance(dlogits, np.ndarray) else f"a {type(dlogits).__name__}"
    if got != logits.shape:
        raise MbnpError(f"dlogits must be a NumPy array of the logits' shape {logits.shape}, got {got}")
    refuse_mask("dlogits", dlogits)
    if dlogits.dtype != logits.dtype:
        raise MbnpError(f"dlogits is {dlogits.dtype} and the logits are {logits.dtype}; pass dlogits.astype(net.dtype)")
