"""Memory of the fused engine: allocated once for each input shape, reused in every step, never handed out."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from mbnp import backend

SHAPES_KEPT = 2  # a full batch and the last one


class Arena:
    """Arrays cut from few large blocks, each beginning at a cache line.

    NumPy's own large arrays begin 16 bytes after one, and then every vector load of 64 bytes touches two lines, which
    the depthwise kernels, bound by their loads, pay for most. Large blocks get the system's large pages, too.
    """

    BLOCK = 1 << 25  # bytes; what of it is never written costs no memory

    def __init__(self, dtype: Any, block: int = BLOCK) -> None:
        self.dtype, self.block = np.dtype(dtype), block
        self.free = np.empty(0, np.uint8)

    def array(self, *shape: int) -> np.ndarray:
        """An uninitialised array of `shape`."""
        size = int(np.prod(shape)) * self.dtype.itemsize
        if self.free.size < size + 64:
            self.free = np.empty(max(self.block, size + 64), np.uint8)
        first = -self.free.ctypes.data % 64
        taken, self.free = self.free[first : first + size], self.free[first + size :]
        return taken.view(self.dtype).reshape(shape)

    def zeros(self, *shape: int) -> np.ndarray:
        """An array of zeros."""
        made = self.array(*shape)
        made[...] = 0
        return made


def scratch(floats: int, arena: Arena) -> np.ndarray:
    """Working memory (threads, floats) of every thread, shared by all stages of a network."""
    return arena.array(backend.max_threads(), -(-floats // 16) * 16)


class Cache:
    """What `make(shape)` makes, for the last shapes that were asked for."""

    def __init__(self, make: Callable[[tuple[int, ...]], Any]) -> None:
        self.make = make
        self.kept: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __getitem__(self, shape: tuple[int, ...]) -> Any:
        if shape not in self.kept:
            if len(self.kept) == SHAPES_KEPT:
                self.kept.popitem(last=False)  # before the new one is made, so that both are never there at once
            self.kept[shape] = self.make(shape)
        self.kept.move_to_end(shape)
        return self.kept[shape]
