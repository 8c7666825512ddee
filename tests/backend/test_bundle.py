"""A bundle comes into a kernel as what it is, and no copy of it reads the arrays of another."""

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import pytest

from mbnp.backend import jit
from mbnp.backend.bundle import Bundle


@dataclass(frozen=True, eq=False)
class Everything(Bundle):
    matrix: np.ndarray
    indices: np.ndarray
    whole: int
    low: np.floating
    eps: float
    yes: bool
    no: bool
    nothing: np.ndarray


@jit(literal=True)
def read(bundle, out):
    out[0], out[1], out[2] = bundle.matrix[1, 2], bundle.indices[1], bundle.whole
    out[3], out[4], out[5], out[6] = bundle.low, bundle.eps, bundle.yes, bundle.no
    out[7], out[8] = bundle.matrix.size, bundle.nothing.size
    bundle.matrix[0, 0] = 9


def made(seed=0, dtype=np.float32):
    matrix = np.random.default_rng(seed).standard_normal((3, 4)).astype(dtype)
    return Everything(
        matrix, np.array([5, -6]), -(2**40), dtype(-np.inf), 1e-3, True, False, np.empty((0, 7), dtype)
    )  # fmt: skip


def what(bundle):
    out = np.full(9, np.nan)
    read(bundle, out)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_kernel_reads_every_kind_of_field(dtype):
    bundle = made(dtype=dtype)
    expected = bundle.matrix[1, 2], -6, -(2**40), -np.inf, 1e-3, 1, 0, 12, 0
    np.testing.assert_array_equal(what(bundle), expected)
    assert bundle.matrix[0, 0] == 9  # the array itself, no copy


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda bundle: pickle.loads(pickle.dumps(bundle))])
def test_a_copy_has_addresses_of_its_own(again):
    bundle = made()
    what(bundle)
    second = again(bundle)
    assert second.address != bundle.address
    if second.matrix is not bundle.matrix:
        second.matrix[1, 2] = 7
        assert what(second)[0] == 7 != what(bundle)[0]
    np.testing.assert_array_equal(what(second)[1:], what(bundle)[1:])


def test_what_is_replaced_is_read_anew():
    bundle = made()
    what(bundle)
    assert what(replace(bundle, matrix=made(1).matrix, yes=False)).tolist()[:6:5] == [float(made(1).matrix[1, 2]), 0]
    with pytest.raises(FrozenInstanceError):
        bundle.whole = 3
