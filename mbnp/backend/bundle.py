"""Bundles: arrays and numbers that travel together into kernels, and are read there at once.

Numba asks each element of a tuple for its type, and takes it out of its Python object, in every call. A convolution has
dozens, and between two layers none of them is in the cache: that took as long as a small layer. What is in a bundle
never changes, so that its addresses, shapes and numbers are written down once, one after another, and read from there.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import NativeValue, models, register_model, unbox
from numba.np.arrayobj import populate_array


class Bundle:
    """The base of frozen dataclasses of arrays and numbers: for a kernel a NamedTuple, whose fields are attributes."""

    _fields: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        cls._fields = tuple(cls.__annotations__)

    def __reduce__(self) -> tuple:
        """Copy and pickle the fields alone: another array has another address."""
        return type(self), tuple(self._values())

    def _values(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self._fields)

    @functools.cached_property
    def _numba_type_(self) -> types.Type:
        return _BundleType([numba.typeof(value) for value in self._values()], type(self))

    @functools.cached_property
    def _written(self) -> np.ndarray:
        return np.array([word for value in self._values() for word in _words(value)], np.int64)

    @functools.cached_property
    def address(self) -> int:
        """Where the fields are written down, as words of 8 bytes."""
        return self._written.ctypes.data


def _words(value: Any) -> tuple[int, ...]:
    """Return what a kernel needs to know of an array or a number."""
    if isinstance(value, np.ndarray):
        return value.ctypes.data, *value.shape, *value.strides
    if isinstance(value, (float, np.floating)):
        bits = np.asarray(value)
        return (int(bits.view(np.int32 if bits.itemsize == 4 else np.int64)),)
    return (int(value),)


class _BundleType(types.NamedTuple):
    """A type that differs from a NamedTuple's in how its values come into a kernel."""

    def __init__(self, kinds: list[types.Type], cls: type[Bundle]) -> None:
        super().__init__(kinds, cls)
        self.name = f"Bundle{self.name}"


register_model(_BundleType)(models.TupleModel)


@unbox(_BundleType)
def _unbox(kind: _BundleType, bundle: Any, c: Any) -> NativeValue:
    """Load the fields from where `address` says; no array's reference is counted, since the bundle holds them all."""
    number = c.pyapi.object_getattr_string(bundle, "address")
    words = c.builder.bitcast(c.pyapi.long_as_voidptr(number), ir.IntType(64).as_pointer())
    c.pyapi.decref(number)
    addresses = (c.builder.gep(words, [ir.Constant(ir.IntType(64), i)]) for i in itertools.count())
    return NativeValue(c.context.make_tuple(c.builder, kind, [_read(c, each, addresses) for each in kind.types]))


def _read(c: Any, kind: types.Type, addresses: Iterator[Any]) -> Any:
    """Return the next array or number, of the words that `_words` made of it."""
    builder = c.builder
    if isinstance(kind, types.Array):
        data, *rest = (builder.load(next(addresses)) for _ in range(1 + 2 * kind.ndim))
        made = c.context.make_array(kind)(c.context, builder)
        itemsize = c.context.get_constant(types.intp, kind.dtype.bitwidth // 8)
        populate_array(
            made, data=builder.inttoptr(data, made.data.type), shape=rest[: kind.ndim], strides=rest[kind.ndim :],
            itemsize=itemsize, meminfo=None,
        )  # fmt: skip
        return made._getvalue()
    number = c.context.get_value_type(kind)
    if isinstance(kind, types.Float):
        return builder.load(builder.bitcast(next(addresses), number.as_pointer()))
    word = builder.load(next(addresses))
    return word if word.type == number else builder.trunc(word, number)
