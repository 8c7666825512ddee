"""The interface of every layer.

    layer.forward(x, train=True)    saves what backward needs, as named attributes
    layer.backward(dy)              consumes it, adds to parameter.grad, returns dx

There is no tape and no global training mode. Arrays of a layer are in `parameter.py`, containers that put layers
together in `containers.py`, and the layers themselves in `layers.py`.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mbnp import parameter, renamed
from mbnp.errors import MbnpError, refuse_mask


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
    contains = False  # whether it is a container of other layers

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
        return ((at, layer) for at, layer in self.parts(name) if not layer.contains)

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


def run(layer: Layer, x: np.ndarray, train: bool, needs_dx: bool) -> np.ndarray:
    """Return layer.forward(x, train), with the layer's `needs_dx` set during the call."""
    before, layer.needs_dx = layer.needs_dx, needs_dx
    try:
        return layer.forward(x, train)
    finally:
        layer.needs_dx = before
