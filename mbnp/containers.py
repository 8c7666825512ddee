"""Containers of layers: chains and branches, each with a backward of its own.

MobileNet is a chain, so running the layers' backwards in reverse order is the whole autograd engine
(`Sequential.backward`). A branch is a container that adds the gradients of its ways: `Residual`, `Gate`, `Pyramid`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mbnp import parameter
from mbnp.errors import MbnpError
from mbnp.layer import Layer, run
from mbnp.ops import gate


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


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

    contains = True

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
    anchor, (N, A, 4 + D): stage after stage, by rows and columns of its feature map. Nothing flows back from coarse
    maps to fine ones, as it does in a feature pyramid network. Liu et al., "SSD: Single Shot MultiBox Detector", 2016,
    arXiv:1512.02325, section 2.1.
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
