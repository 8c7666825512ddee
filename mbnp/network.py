"""What holds a network together: parameters, the layer interface, and the two containers.

    layer.forward(x, train=True)    saves what backward needs, as named attributes
    layer.backward(dy)              consumes it, adds to parameter.grad, returns dx

MobileNet is a chain, so running the layers' backwards in reverse order is the whole autograd engine
(`Sequential.backward`). A branch is a container with a backward of its own (`Residual`). There is no tape
and no global training mode. The layers themselves are in `layers.py`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
    """A learnable array and its gradient, which backward adds to. A frozen one gets none."""

    def __init__(self, value: np.ndarray) -> None:
        super().__init__(value)
        self.grad = np.zeros_like(self._value)
        self.frozen = False

    def add_grad(self, grad: np.ndarray) -> None:
        if not self.frozen:
            self.grad += grad


class Buffer(Variable):
    """A running statistic: part of the state, changed by training forwards and not by the optimiser."""


class Layer:
    """What every layer has. A subclass writes forward, backward and output_shape."""

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

    def touch(self) -> None:
        """Say that arrays of this layer were written in place."""
        for variable in self.variables().values():
            variable.touch()

    def state(self) -> dict[str, np.ndarray]:
        """A copy of every array by name, running statistics included."""
        return {name: v.value.copy() for name, v in self.variables().items()}

    def load_state(self, mapping: Mapping[str, np.ndarray]) -> None:
        """Copy every array of `mapping` in. All names and shapes must fit, or nothing is changed."""
        variables = self.variables()
        problems = [f"missing {name}" for name in variables if name not in mapping]
        problems += [f"left over {name}" for name in mapping if name not in variables]
        problems += [
            f"{name} has shape {np.shape(mapping[name])}, not {v.value.shape}"
            for name, v in variables.items()
            if name in mapping and np.shape(mapping[name]) != v.value.shape
        ]
        if problems:
            more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
            raise MbnpError(f"the state does not fit this network: {', '.join(problems[:4])}{more}")
        for name, variable in variables.items():
            variable.value = mapping[name]

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


class Sequential(Layer):
    """Layers one after another, named by the keys of a mapping or, from a sequence, by their index."""

    def __init__(self, layers: Mapping[str, Layer] | Sequence[Layer]) -> None:
        if not isinstance(layers, Mapping):
            layers = {str(i): layer for i, layer in enumerate(layers)}
        self.layers = dict(layers)

    def __getitem__(self, name: str) -> Layer:
        return self.layers[name]

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        for layer in self.layers.values():
            x = layer.forward(x, train)
        return x

    def backward(self, dy: np.ndarray) -> np.ndarray:
        for layer in reversed(self.layers.values()):
            dy = layer.backward(dy)
        return dy

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

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        return super().forward(x, train) + (self.shortcut.forward(x, train) if self.shortcut else x)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return super().backward(dy) + (self.shortcut.backward(dy) if self.shortcut else dy)

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
    """A whole network: pictures in, logits out, with what a checkpoint needs to build it again."""

    def __init__(self, layers: Mapping[str, Layer], resolution: int, channels: int = 3) -> None:
        super().__init__(layers)
        self.resolution = resolution  # of the pictures it is meant for; forward takes what the layers allow
        self.channels = channels
        self.arch: dict[str, Any] = {}  # the name and options that `models.create` builds it from
        self.classes: list[str] | None = None  # the names of the classes, where they are known
        self.preprocessing: dict[str, list[float]] | None = None  # mean and std of x, on a scale of 0 to 1

    @property
    def dtype(self) -> np.dtype:
        return next(v for _, layer in self.leaves() for v in layer.variables().values()).value.dtype

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
