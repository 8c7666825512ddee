"""Calls that are the same in every step: prepared once, and made one after another without Python.

To call a kernel takes Python some microseconds, and between two layers of a network, whose kernels leave nothing of
Python in the caches, some tens. So a prepared kernel takes its arguments from where they are written down, and the
calls of a whole pass are a table of two columns, of functions and of where their arguments are, which one compiled loop
goes through.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from mbnp.backend import threads
from mbnp.backend.bundle import read, words
from mbnp.backend.jit import Kernel, entry, jit, piece, refuse

_LONG = ir.IntType(64)
_POINTER = ir.IntType(8).as_pointer()
# A compiled function of Numba's: (where it returns to, where its error goes, where its arguments are).
_ENTRY = ir.FunctionType(ir.IntType(32), [_POINTER.as_pointer(), _POINTER.as_pointer(), _LONG.as_pointer()])


class _Written(types.Type):
    """The type of the address of arguments of these types."""

    def __init__(self, kinds: Iterable[types.Type]) -> None:
        self.kinds = tuple(kinds)
        super().__init__(f"Written({', '.join(map(str, self.kinds))})")


@register_model(_Written)
class _WrittenModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Written) -> None:
        super().__init__(manager, kind, _LONG.as_pointer())


@intrinsic
def _arguments(context, written):
    """Return the arguments that are written down."""
    values = types.Tuple(written.kinds)

    def lower(context, builder, sig, args):
        return context.make_tuple(builder, values, read(context, builder, values.types, args[0]))

    return values(written), lower


@intrinsic
def _call(context, where, arguments):
    """Call the function at an address."""

    def lower(context, builder, sig, args):
        function = builder.inttoptr(args[0], _ENTRY.as_pointer())
        nothing = [cgutils.alloca_once_value(builder, ir.Constant(_POINTER, None)) for _ in range(2)]
        builder.call(function, [*nothing, builder.inttoptr(args[1], _LONG.as_pointer())])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), lower


@jit
def _run(table):
    for i in range(table.shape[0]):
        _call(table[i, 0], table[i, 1])  # type: ignore[call-arg]


def prepared(function: Callable) -> Callable:
    """Compile a kernel of explicit vectors whose calls are prepared, as `jit` does with `literal`.

    It returns nothing and raises nothing: an error would be lost.
    """
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return function
    kernel = piece(function, allocates=True)

    def run(written):
        kernel(*_arguments(written))  # type: ignore[call-arg]

    return entry(run, function, PreparedKernel)


class PreparedKernel(Kernel):
    """What `prepared` makes of a function. To call it as a function is a call that is prepared for once."""

    def types_of(self, arguments: tuple) -> tuple:
        return (_Written(map(numba.typeof, arguments)),)

    def address(self, arguments: tuple) -> int:
        """Return where its code for arguments of these types is, compiled or loaded now if need be."""
        kinds = self.types_of(arguments)
        self.compile(kinds)
        made: Any = self.overloads[kinds]
        return made.library.get_pointer_to_function(made.fndesc.llvm_func_name)

    def __call__(self, *arguments: Any) -> None:
        Call(self, *arguments)()


class Call:
    """A call of a kernel, which is made again and again with the same arguments.

    They may change in what arrays hold, and as `Bundle.change` allows.
    """

    def __init__(self, kernel: Callable, *arguments: Any) -> None:
        self.kernel, self.arguments = kernel, arguments

    @functools.cached_property
    def _written(self) -> np.ndarray:
        return np.array(words(self.arguments), np.int64)

    def row(self) -> tuple[int, int]:
        """Return the addresses of the function and of its arguments, which are there as long as this is."""
        assert isinstance(self.kernel, PreparedKernel)
        return self.kernel.address(self.arguments), self._written.ctypes.data

    @functools.cached_property
    def _table(self) -> np.ndarray:
        return np.array([self.row()], np.int64)

    def __call__(self) -> None:
        if isinstance(self.kernel, PreparedKernel):
            if threads.forked:
                refuse(self.kernel)
            _run(self._table)
        else:
            self.kernel(*self.arguments)


class _Calls:
    """Calls of prepared kernels, as one."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls

    @functools.cached_property
    def _table(self) -> np.ndarray:
        return np.array([call.row() for call in self.calls], np.int64)

    def __call__(self) -> None:
        if threads.forked:
            refuse(self.calls[0].kernel)
        _run(self._table)


def joined(calls: Iterable[Callable[[], None]]) -> list[Callable[[], None]]:
    """Return what does the same in fewer calls: neighbours of prepared kernels are one."""
    made: list[Callable[[], None]] = []
    for call in calls:
        if not (isinstance(call, Call) and isinstance(call.kernel, PreparedKernel)):
            made.append(call)
        elif made and isinstance(made[-1], _Calls):
            made[-1].calls.append(call)
        else:
            made.append(_Calls([call]))
    return made
