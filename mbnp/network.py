"""What holds a network together: parameters, the layer interface, and the two containers.

    layer.forward(x, train=True)    saves what backward needs, as named attributes
    layer.backward(dy)              consumes it, adds to parameter.grad, returns dx

MobileNet is a chain, so running the layers' backwards in reverse order is the whole autograd engine
(`Sequential.backward`). A branch is a container with a backward of its own (`Residual`). There is no tape
and no global training mode. The layers themselves are in `layers.py`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbnp.errors import MbnpError

_clock = itertools.count(1)


class Variable:
    """An array that belongs to a network, and the version of its contents.

    Assigning to `value` copies into the array, whose identity never changes, and raises the version; so do
    optimisers. Whoever writes into `value` in place calls `touch()`: weights that were folded from an older
    version are then made again.
    """

    def __init__(self, value: np.ndarray) -> None:
        self._value = np.ascontiguousarray(value)
        self.version = 0

    @property
    def value(self) -> np.ndarray:
        return self._value

    @value.setter
    def value(self, new: np.ndarray) -> None:
        if np.shape(new) != self._value.shape:
            raise MbnpError(f"expected an array of shape {self._value.shape}, got {np.shape(new)}")
        self._value[...] = new
        self.touch()

    def touch(self) -> None:
        """Say that the contents changed."""
        self.version = next(_clock)


class Parameter(Variable):
    """A learnable array and its gradient, which backward adds to. A frozen one gets none.

    Assigning to `grad` copies, as with `value`.
    """

    def __init__(self, value: np.ndarray) -> None:
        super().__init__(value)
        self._grad = np.zeros_like(self._value)
        self.frozen = False

    @property
    def grad(self) -> np.ndarray:
        return self._grad

    @grad.setter
    def grad(self, new: np.ndarray) -> None:
        if np.shape(new) != self._grad.shape:
            raise MbnpError(f"expected a gradient of shape {self._grad.shape}, got {np.shape(new)}")
        if new is not self._grad:  # what += assigns
            self._grad[...] = new

    def add_grad(self, grad: np.ndarray) -> None:
        if not self.frozen:
            self._grad += grad


class Buffer(Variable):
    """A running statistic: part of the state, changed by training forwards and not by the optimiser."""


class Skipped(NamedTuple):
    """What `load_state` did not load; false if there is nothing. As text, one line."""

    missing: tuple[str, ...]  # arrays of the network that the state has not: they stay as they were
    left_over: tuple[str, ...]  # arrays of the state that the network has not
    misfits: tuple[str, ...]  # "NAME has shape ..., not ..."

    def __bool__(self) -> bool:
        return any(map(len, self))

    def __str__(self) -> str:
        lines = [f"missing {name}" for name in self.missing]
        lines += [f"left over {name}" for name in self.left_over] + list(self.misfits)
        more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
        return ", ".join(lines[:4]) + more


class Layer:
    """What every layer has. A subclass writes forward, backward and output_shape."""

    # Whether anybody uses the gradient that backward returns. A container tells its layers while it runs them.
    needs_dx = True

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        raise NotImplementedError

    def backward(self, dy: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one output, without the batch axis, for one input of `shape`."""
        return shape

    def __call__(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        return self.forward(x, train)

    def variables(self) -> dict[str, Variable]:
        """Every array by name, parameters and running statistics, in PyTorch's order."""
        return {name: v for name, v in vars(self).items() if isinstance(v, Variable)}

    def parameters(self) -> dict[str, Parameter]:
        return {name: v for name, v in self.variables().items() if isinstance(v, Parameter)}

    def buffers(self) -> dict[str, Buffer]:
        return {name: v for name, v in self.variables().items() if isinstance(v, Buffer)}

    def trainable(self) -> bool:
        """Whether there is a parameter that is not frozen."""
        return any(not parameter.frozen for parameter in self.parameters().values())

    def touch(self) -> None:
        """Say that arrays of this layer were written in place."""
        for variable in self.variables().values():
            variable.touch()

    def state(self) -> dict[str, np.ndarray]:
        """A copy of every array by name, running statistics included."""
        return {name: v.value.copy() for name, v in self.variables().items()}

    def load_state(self, mapping: Mapping[str, np.ndarray], strict: bool = True) -> "Skipped":
        """Copy the arrays of `mapping` in, cast to the network's dtype; returns what was skipped: nothing.

        All names and shapes must fit, or MbnpError says what does not and nothing is changed. strict=False loads
        what fits and returns what does not.
        """
        variables = self.variables()
        shared = {name: v for name, v in variables.items() if name in mapping}
        skipped = Skipped(
            tuple(name for name in variables if name not in mapping),
            tuple(name for name in mapping if name not in variables),
            tuple(
                f"{name} has shape {np.shape(mapping[name])}, not {v.value.shape}"
                for name, v in shared.items()
                if np.shape(mapping[name]) != v.value.shape
            ),
        )
        if strict and skipped:
            raise MbnpError(f"the state does not fit this network: {skipped}")
        fitting = {n: v for n, v in shared.items() if np.shape(mapping[n]) == v.value.shape}
        arrays = {name: np.asarray(mapping[name]) for name in fitting}
        for name, array in arrays.items():  # all of them before the first is copied
            if array.dtype.kind not in "fiub":
                raise MbnpError(f"{name} holds {array.dtype}, not numbers")
        for name, variable in fitting.items():
            variable.value = arrays[name]
        return skipped

    def activations(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Every layer's output in inference, by the layer's name; a container's is its last layer's."""
        return {name: y for name, y in self._visit(x, "") if name}

    def walk(self, shape: tuple[int, ...]) -> Iterator[tuple[str, "Layer", tuple, tuple]]:
        """Each layer that computes something: name, layer, input shape, output shape, without batch axis."""
        return self._walk(tuple(shape), "")

    def leaves(self, name: str = "") -> Iterator[tuple[str, "Layer"]]:
        """Each layer that is no container, with its full name."""
        yield name, self

    def _visit(self, x: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
        yield name, self.forward(x)

    def _walk(self, shape: tuple, name: str) -> Iterator[tuple[str, "Layer", tuple, tuple]]:
        yield name, self, shape, self.output_shape(shape)

    def _take(self, name: str) -> np.ndarray:
        """What forward saved under `name`; once, so that memory is free as backward goes."""
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
    """layer.forward(x, train); the layer knows meanwhile whether anybody needs the gradient of x."""
    before, layer.needs_dx = layer.needs_dx, needs_dx
    try:
        return layer.forward(x, train)
    finally:
        layer.needs_dx = before


def _count_frozen(layers: Sequence[Layer]) -> int:
    """How many layers at the start have nothing to learn; those without parameters count only before frozen ones.

    After them they may be what, like dropout, differs in training.
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

    Where nobody needs the gradient of the input, as in a network, frozen layers at the start run as in inference and
    save nothing, and backward ends at the first layer that learns.
    """

    def __init__(self, layers: Mapping[str, Layer] | Sequence[Layer]) -> None:
        if not isinstance(layers, Mapping):
            layers = {str(i): layer for i, layer in enumerate(layers)}
        self.layers = dict(layers)
        self._learning: list[Layer] | None = None  # what backward goes through, after a training forward

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
        """dx, or None where it was not needed and backward ended before it."""
        layers, self._learning = self._learning, None
        if layers is None:
            layers = list(self.layers.values())  # the last one says that forward is missing
        for layer in reversed(layers):
            dy = layer.backward(dy)
        return dy if len(layers) == len(self.layers) else None

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for layer in self.layers.values():
            shape = layer.output_shape(shape)
        return shape

    def variables(self) -> dict[str, Variable]:
        return {
            f"{at}.{name}": v for at, layer in self.layers.items() for name, v in layer.variables().items()
        }

    def leaves(self, name: str = "") -> Iterator[tuple[str, Layer]]:
        for child, layer in self.layers.items():
            yield from layer.leaves(_join(name, child))

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
        self._beside = Sequential([])  # the shortcut as a chain of its own, which knows how far backward goes

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self._beside = Sequential([self.shortcut] if self.shortcut else [])
        return super().forward(x, train) + run(self._beside, x, train, self.needs_dx)

    def backward(self, dy: np.ndarray) -> np.ndarray | None:  # type: ignore[override]
        through, beside = super().backward(dy), self._beside.backward(dy)
        return None if through is None or beside is None else through + beside

    def variables(self) -> dict[str, Variable]:
        shortcut = self.shortcut.variables() if self.shortcut else {}
        return super().variables() | {f"shortcut.{name}": v for name, v in shortcut.items()}

    def leaves(self, name: str = "") -> Iterator[tuple[str, Layer]]:
        yield from super().leaves(name)
        if self.shortcut:
            yield from self.shortcut.leaves(_join(name, "shortcut"))

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


class Network(Sequential):
    """A whole network: pictures in, logits out, with what a checkpoint needs to build it again.

    needs_dx: backward returns the gradient of the pictures even where it has to pass frozen layers to get there.
    """

    needs_dx = False

    def __init__(self, layers: Mapping[str, Layer], resolution: int, channels: int = 3) -> None:
        super().__init__(layers)
        self.resolution = resolution  # of the pictures it is meant for; forward takes what the layers allow
        self.channels = channels
        self.arch: dict[
            str, Any
        ] = {}  # what builds it again: the name and options that `models.create` takes
        self.classes: list[str] | None = None  # the names of the classes, where they are known
        # {"mean": [...], "std": [...]} of x, on a scale of 0 to 1, and "order": "rgb" (where not given) or "bgr".
        self.preprocessing: dict[str, Any] | None = None

    @property
    def num_classes(self) -> int:
        """How many logits the last layer with weights gives."""
        *_, last = (layer for _, layer in self.leaves() if "weight" in layer.variables())
        return last.variables()["weight"].value.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        return next(v for _, layer in self.leaves() for v in layer.variables().values()).value.dtype

    def freeze_until(self, name: str) -> None:
        """Freeze every parameter up to the layer or block `name` and in it, and no parameter after it.

        What is frozen does not learn, the statistics of its BatchNorms stay, and backward costs nothing there.
        The name is a block's (`conv2_5`, `features.7`) or a layer's (`conv2_5.3`); MbnpError if there is none such.
        """
        leaves = list(self.leaves())
        inside = [i for i, (leaf, _) in enumerate(leaves) if f"{leaf}.".startswith(f"{name}.")]
        if not inside:
            blocks = dict.fromkeys(
                leaf.rpartition(".")[0] or leaf for leaf, layer in leaves if layer.parameters()
            )
            raise MbnpError(
                f"no layer is named {name!r}: choose one of {', '.join(blocks)}, or a layer inside one"
            )
        for i, (_, layer) in enumerate(leaves):
            for parameter in layer.parameters().values():
                parameter.frozen = i <= inside[-1]

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        """Logits (N, classes) of normalised pictures x (N, H, W, 3) in the network's dtype."""
        self.check_input(x)
        return super().forward(x, train)

    def check_input(self, x: np.ndarray) -> None:
        """Raise an MbnpError that names what is wrong with x, if anything is."""
        if not isinstance(x, np.ndarray):
            raise MbnpError(f"x must be a NumPy array (N, H, W, {self.channels}), got {type(x).__name__}")
        if x.ndim == 4 and x.shape[3] != self.channels and x.shape[1] == self.channels:
            raise MbnpError(f"x has shape {x.shape}, channels first; pass x.transpose(0, 2, 3, 1)")
        if x.ndim != 4 or x.shape[3] != self.channels:
            raise MbnpError(f"x must have shape (N, H, W, {self.channels}), got {x.shape}")
        if len(x) == 0:
            raise MbnpError(f"x holds no pictures: its shape is {x.shape}")
        if x.dtype != self.dtype:
            raise MbnpError(f"x is {x.dtype} and the network {self.dtype}; pass x.astype(net.dtype)")
