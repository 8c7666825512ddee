"""Bundles: arrays and numbers that travel together into kernels, and are written down for them.

Numba asks each element of a tuple for its type, and takes it out of its Python object, in every call. A convolution has
dozens, and between two layers none of them is in the cache: that took as long as a small layer. The addresses, shapes
and numbers of a bundle are written down once, as words of 8 bytes, one after another, and read from there.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import models, register_model, unbox
from numba.np.arrayobj import populate_array

from mbnp.errors import MbnpError


class Bundle:
    """The base of frozen dataclasses of arrays and numbers: for a kernel a NamedTuple, whose fields are attributes."""

    _fields: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        cls._fields = tuple(cls.__annotations__)

    def __reduce__(self) -> tuple:
        """Copy and pickle the fields alone: another array has another address."""
        return type(self), tuple(self._values())

    def change(self, **fields: Any) -> None:
        """Let fields be others of the same types; every kernel that was given this bundle sees them."""
        for name, value in fields.items():
            if _kind(value) != _kind(getattr(self, name)):
                raise MbnpError(f"{name} cannot become {_kind(value)}: the kernels were compiled for another type")
            object.__setattr__(self, name, value)
            if "_written" in vars(self):
                before = self._fields[: self._fields.index(name)]
                first = sum(len(words(getattr(self, each))) for each in before)
                new = words(value)
                self._written[first : first + len(new)] = new

    def _values(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self._fields)

    @functools.cached_property
    def _numba_type_(self) -> types.Type:
        return _BundleType([numba.typeof(value) for value in self._values()], type(self))

    @functools.cached_property
    def _written(self) -> np.ndarray:
        return np.array([word for value in self._values() for word in words(value)], np.int64)

    @functools.cached_property
    def address(self) -> int:
        """Say where the fields are written down."""
        return self._written.ctypes.data


def _kind(value: Any) -> tuple:
    """Return what distinguishes the types for which kernels are compiled, but for the order of an array's axes."""
    return (type(value), value.dtype, value.ndim) if isinstance(value, np.ndarray) else (type(value),)


def words(value: Any) -> tuple[int, ...]:
    """Return what a kernel needs to know of a bundle, an array, a tuple or a number."""
    if isinstance(value, Bundle):
        return (value.address,)
    if isinstance(value, np.ndarray):
        return value.ctypes.data, *value.shape, *value.strides
    if isinstance(value, tuple):
        return tuple(word for each in value for word in words(each))
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
def _refuse(kind: _BundleType, bundle: Any, c: Any) -> Any:
    raise MbnpError("a kernel that takes bundles is one that is prepared: use backend.prepared and not jit")


def read(context: Any, builder: Any, kinds: Any, place: Any) -> list[Any]:
    """Return the values of these types that are written down from a place on, in compiled code.

    No array's reference is counted, since the bundle or the call that they are of holds them all.
    """
    places = (builder.gep(place, [ir.Constant(ir.IntType(64), i)]) for i in itertools.count())
    return [_read(context, builder, kind, places) for kind in kinds]


def _read(context: Any, builder: Any, kind: Any, places: Iterator[Any]) -> Any:
    if isinstance(kind, _BundleType):
        place = builder.inttoptr(builder.load(next(places)), ir.IntType(64).as_pointer())
        return context.make_tuple(builder, kind, read(context, builder, kind.types, place))
    if isinstance(kind, types.BaseTuple):
        kinds: Any = kind
        return context.make_tuple(builder, kind, [_read(context, builder, each, places) for each in kinds])
    if isinstance(kind, types.Array):
        data, *rest = (builder.load(next(places)) for _ in range(1 + 2 * kind.ndim))
        made = context.make_array(kind)(context, builder)
        itemsize = context.get_constant(types.intp, kind.dtype.bitwidth // 8)
        populate_array(
            made, data=builder.inttoptr(data, made.data.type), shape=rest[: kind.ndim], strides=rest[kind.ndim :],
            itemsize=itemsize, meminfo=None,
        )  # fmt: skip
        return made._getvalue()
    number = context.get_value_type(kind)
    if isinstance(kind, types.Float):
        return builder.load(builder.bitcast(next(places), number.as_pointer()))
    word = builder.load(next(places))
    return word if word.type == number else builder.trunc(word, number)
