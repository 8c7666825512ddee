"""The arrays that belong to a network: parameters with their gradients, and running statistics."""

import itertools
from typing import Any

import numpy as np

from mbnp.backend import one_pool
from mbnp.errors import MbnpError, refuse_mask

_clock = itertools.count(1)


class Variable:
    """An array that belongs to a network, and the version of its contents.

    Assigning to `value` copies into the same array and increments the version; optimisers increment it, too. Code that
    writes into `value` in place calls `touch()` afterwards, which marks it as changed: weights that were folded from an
    older version are then folded again.
    """

    casts = 0  # of all variables: who writes down where their arrays are looks whether these are other ones

    def __init__(self, value: np.ndarray) -> None:
        self._value = np.require(value, requirements=["C", "W"])  # a copy where it cannot be written
        self.version = 0

    @property
    def value(self) -> np.ndarray:
        return self._value

    @value.setter
    def value(self, new: np.ndarray) -> None:
        _copy_into(self._value, new, "an array")
        self.touch()

    def touch(self) -> None:
        """Mark the contents as changed."""
        self.version = next(_clock)

    def cast(self, dtype: Any) -> None:
        """Take another dtype, in a new array; whatever holds the old one no longer sees this variable."""
        self._value = self._value.astype(dtype)
        self.touch()
        Variable.casts += 1


class Parameter(Variable):
    """A learnable array and its gradient, to which backward adds. A frozen parameter accumulates no gradient.

    Assigning to `grad` copies, as with `value`. A gradient that was cleared is zero when it is asked for, but its array
    is not written before: what is added first is stored there instead. So ask again after `clear_grad`.
    """

    _cleared = False

    def __init__(self, value: np.ndarray) -> None:
        super().__init__(value)
        self._grad = np.zeros_like(self._value)
        self.frozen = False

    @property
    def grad(self) -> np.ndarray:
        if self._cleared:
            self.settle()
        return self._grad

    @grad.setter
    def grad(self, new: np.ndarray) -> None:
        if new is not self._grad:  # `p.grad += g` assigns the same array back
            _copy_into(self._grad, new, "a gradient")
        self._cleared = False

    def clear_grad(self) -> None:
        """Set the gradient to zero."""
        self._cleared = True

    @property
    def cleared(self) -> bool:
        """Say whether the array of the gradient is still to be cleared."""
        return self._cleared

    def take_grad(self) -> np.ndarray:
        """Return the array of the gradient to who will write all of it, whether it was cleared or not."""
        self._cleared = False
        return self._grad

    def settle(self) -> None:
        """Clear the array of a gradient that was cleared."""
        with one_pool():  # another Python thread's backward may be writing there
            if self._cleared:
                self.take_grad().fill(0)

    def add_grad(self, grad: np.ndarray) -> None:
        """Add to the gradient, unless the parameter is frozen."""
        if not self.frozen:
            if self._cleared:
                self._grad[...] = grad
                self._cleared = False
            else:
                self._grad += grad

    def cast(self, dtype: Any) -> None:
        """Take another dtype; the gradient begins at zero."""
        super().cast(dtype)
        self._grad = np.zeros_like(self._value)
        self._cleared = False


class Buffer(Variable):
    """A running statistic: part of the state, changed by training forwards and not by the optimiser."""


def _copy_into(array: np.ndarray, new: np.ndarray, what: str) -> None:
    if np.shape(new) != array.shape:
        raise MbnpError(f"expected {what} of shape {array.shape}, got {np.shape(new)}")
    refuse_mask(what, new)
    array[...] = new
