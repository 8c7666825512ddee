"""Memory of the fused engine: allocated once for each input shape, reused in every step, never handed out."""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from mbnp import backend

SHAPES_KEPT = 2  # a full batch and the last one

Shape = tuple[int, ...]


class Arena:
    """Arrays cut from few large blocks, each beginning at a cache line.

    NumPy's own large arrays begin 16 bytes after one, and then every vector load of 64 bytes touches two lines, which
    the depthwise kernels, bound by their loads, pay for most. Large blocks get the system's large pages, too.
    """

    BLOCK = 1 << 25  # bytes; what of it is never written costs no memory, since the system gives zeros where it is

    def __init__(self, dtype: Any, block: int = BLOCK) -> None:
        self.dtype, self.block = np.dtype(dtype), block
        self.free = np.zeros(0, np.uint8)

    def array(self, *shape: int) -> np.ndarray:
        """Return an array of zeros of `shape`."""
        size = math.prod(shape) * self.dtype.itemsize
        if self.free.size < size + 64:
            self.free = np.zeros(max(self.block, size + 64), np.uint8)
        first = -self.free.ctypes.data % 64
        taken, self.free = self.free[first : first + size], self.free[first + size :]
        return taken.view(self.dtype).reshape(shape)


class Workspace:
    """Arrays that all steps of a plan work in, one step at a time: each as large as the largest that was asked for.

    ask(name, size) while steps are planned; then `part(name, shape)` is an array of that shape.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {"scratch": 16}
        self.arrays: dict[str, np.ndarray] = {}

    def ask(self, name: str, *shape: int) -> None:
        self.sizes[name] = max(self.sizes.get(name, 0), math.prod(shape))

    def allocate(self, arena: Arena) -> None:
        exact = Arena(np.float64, block=0)  # means may be large
        self.sizes["scratch"] = backend.max_threads() * (-(-self.sizes["scratch"] // 16) * 16)
        for name, size in self.sizes.items():
            self.arrays[name] = (exact if name in ("moments", "sums") else arena).array(size)

    def part(self, name: str, *shape: int) -> np.ndarray:
        return middle(self.arrays[name], shape)

    def scratch(self) -> np.ndarray:
        """Return the working memory (threads, n) of every thread, in which n entries of "scratch" were asked for."""
        return self.arrays["scratch"].reshape(backend.max_threads(), -1)


class Slots:
    """Buffers of which each is in use for a while: which buffer is whose is planned before any is made."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.users: list[int] = []

    def take(self, size: int) -> int:
        """Return the number of a buffer that is free, for so many entries."""
        free = [i for i, users in enumerate(self.users) if users == 0]
        if not free:
            self.sizes.append(0)
            self.users.append(0)
            free = [len(self.sizes) - 1]
        slot = min(free, key=lambda i: (max(size - self.sizes[i], 0), self.sizes[i]))
        self.sizes[slot] = max(self.sizes[slot], size)
        self.users[slot] = 1
        return slot


def middle(buffer: np.ndarray, shape: Shape) -> np.ndarray:
    """Return an array of `shape` in the middle of a buffer, so that of two threads each writes where it wrote before.

    At the beginning cores would take cache lines from one another, which depthwise backward at stride 2 pays for most.
    """
    size = math.prod(shape)
    first = (buffer.size - size) // 32 * 16
    return buffer[first : first + size].reshape(shape)


class Cache:
    """What was made for the last keys that were asked for."""

    def __init__(self, kept: int = SHAPES_KEPT) -> None:
        self.most = kept
        self.kept: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[Any], Any]) -> Any:
        """Return what is kept for a key, or else make(key)."""
        if key not in self.kept:
            if len(self.kept) == self.most:
                self.kept.popitem(last=False)  # before the new one is made, so that both are never there at once
            self.kept[key] = make(key)
        self.kept.move_to_end(key)
        return self.kept[key]
