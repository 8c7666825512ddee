"""The rules of `optimisers.py` as kernels, which read and write each number once.

One call updates all parameters: a network has dozens of small ones, and a call for each would cost more than the
arithmetic. So a kernel takes a table of the arrays' addresses (`Tables`), and `array_at` turns an address into an array
again: its overload in a compiled kernel, its Python under NUMBA_DISABLE_JIT=1. Every parameter is divided into the same
number of CHUNKS, so that most rows are updated by the thread that made their gradient and updated them before: no core
has to fetch them from another.
"""

import ctypes
import itertools

import numpy as np
from numba import carray, prange, types
from numba.extending import intrinsic, overload

from mbnp.backend import jit, piece
from mbnp.errors import MbnpError

CHUNKS = 8  # that each parameter is divided into


@piece(allocates=True)
def _chunk(address, size, chunk, like):
    """Return one chunk of the array (size,) at the address: all but the last are multiples of 16 numbers long."""
    length = -(-size // (CHUNKS * 16)) * 16
    return array_at(address, size, like)[chunk * length : (chunk + 1) * length]


@piece(allocates=True)
def _sgd_chunk(table, chunk, like, lr, momentum, l2, shrink, nesterov):
    for w_at, g_at, v_at, size in table:
        w, g = _chunk(w_at, size, chunk, like), _chunk(g_at, size, chunk, like)
        v = _chunk(v_at, size, chunk, like)
        for i in range(w.size):
            d = g[i] + l2 * w[i]
            v[i] = momentum * v[i] + d
            w[i] = shrink * w[i] - lr * (d + momentum * v[i] if nesterov else v[i])


@jit(parallel=True, literal=True)
def sgd(table, like, lr, momentum, l2, shrink, nesterov):
    for chunk in prange(CHUNKS):
        _sgd_chunk(table, chunk, like, lr, momentum, l2, shrink, nesterov)


@piece(allocates=True)
def _adamw_chunk(table, chunk, like, beta1, rest1, beta2, rest2, rate, square_scale, eps, shrink):
    for w_at, g_at, m_at, v_at, size in table:
        w, g = _chunk(w_at, size, chunk, like), _chunk(g_at, size, chunk, like)
        m, v = _chunk(m_at, size, chunk, like), _chunk(v_at, size, chunk, like)
        for i in range(w.size):
            m[i] = beta1 * m[i] + rest1 * g[i]
            v[i] = beta2 * v[i] + rest2 * g[i] * g[i]
            w[i] = shrink * w[i] - rate * m[i] / (np.sqrt(square_scale * v[i]) + eps)


@jit(parallel=True, literal=True)
def adamw(table, like, beta1, rest1, beta2, rest2, rate, square_scale, eps, shrink):
    for chunk in prange(CHUNKS):
        _adamw_chunk(table, chunk, like, beta1, rest1, beta2, rest2, rate, square_scale, eps, shrink)


def array_at(address, size, like):
    """Return the array (size,) of the type of `like` whose memory begins at the address."""
    memory = (ctypes.c_byte * int(size * like.itemsize)).from_address(int(address))
    return np.frombuffer(memory, like.dtype)  # type: ignore[call-overload]


@overload(array_at)
def _array_at(address, size, like):
    return lambda address, size, like: carray(_pointer(address, like), size)  # type: ignore[call-arg]


@intrinsic
def _pointer(context, address, like):
    def generate(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(like.dtype)(address, like), generate


class Tables:
    """Tables of addresses, one for each dtype: a row a parameter, with its arrays' addresses and their size.

    They are made again when an array is another object. A copy or an unpickled one begins without tables, since its
    arrays are elsewhere.
    """

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []  # held, so that their memory stays what the tables say
        self.ids: list[int] = []  # of these arrays: two lists of numbers are compared faster than arrays one by one
        self.made: list[tuple[np.ndarray, np.ndarray]] = []

    def __reduce__(self) -> tuple:
        return Tables, ()

    def of(self, columns: list[list[np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the tables for columns of one array of each parameter, each with an empty array of its type."""
        arrays = [*itertools.chain(*columns)]
        if [*map(id, arrays)] != self.ids:
            rows = [(group[0].dtype, _row(group)) for group in zip(*columns, strict=True)]
            dtypes = dict.fromkeys(dtype for dtype, _ in rows)
            self.made = [
                (np.array([row for its_dtype, row in rows if its_dtype == dtype]), np.empty(0, dtype))
                for dtype in dtypes
            ]
            self.arrays, self.ids = arrays, [*map(id, arrays)]
        return self.made


def _row(arrays: tuple[np.ndarray, ...]) -> list[int]:
    like = arrays[0]
    for array in arrays:
        if not array.flags.carray or (array.dtype, array.shape) != (like.dtype, like.shape):
            raise MbnpError(
                f"what an optimiser keeps for a parameter must be like it, writable and contiguous: {like.dtype} of "
                f"shape {like.shape}, got {array.dtype} of shape {array.shape}: write into the array instead"
            )
    return [*(array.ctypes.data for array in arrays), like.size]
