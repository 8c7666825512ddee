"""A bundle comes into a kernel as what it is, and no copy reads the arrays of another; calls that are prepared."""

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import NamedTuple

import numba
import numpy as np
import pytest

from mbnp.backend import Call, jit, joined, prepared
from mbnp.backend.bundle import Bundle
from mbnp.errors import MbnpError


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


@prepared
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


@pytest.mark.parametrize("before", [True, False])
def test_what_is_changed_is_seen_by_calls_that_were_prepared(before):
    bundle, out = made(), np.full(9, np.nan)
    call = Call(read, bundle, out)
    if before:
        call()
    bundle.change(matrix=made(1).matrix, eps=0.5, no=True)
    call()
    assert out.tolist()[:1] + out.tolist()[4:] == [float(made(1).matrix[1, 2]), 0.5, 1, 1, 12, 0]
    assert (bundle.eps, bundle.no) == (0.5, True)


@pytest.mark.parametrize("fields", [{"matrix": np.zeros((3, 4))}, {"matrix": np.zeros(3, np.float32)}, {"whole": 1.5}])
def test_another_type_is_refused(fields):
    bundle = made()
    before = what(bundle)
    with pytest.raises(MbnpError, match=next(iter(fields))):
        bundle.change(**fields)
    np.testing.assert_array_equal(what(bundle), before)


class Place(NamedTuple):
    row: int
    column: int


@prepared
def add(x, place, factor, out):
    out[place.row, place.column] += factor * x[0]


def test_calls_are_made_in_their_order_and_once_each():
    x, out, seen = np.array([3.0]), np.zeros((2, 2)), []
    calls = [
        Call(add, x, Place(0, 1), 2.0, out),
        Call(add, x, Place(1, 0), 1.0, out),
        lambda: seen.append(out.copy()),
        lambda: x.fill(10),
        Call(add, x, Place(0, 1), 1.0, out),
    ]
    together = joined(calls)
    assert len(together) == (5 if numba.config.DISABLE_JIT else 4)
    for _ in range(2):
        x[0], out[...] = 3, 0
        for call in together:
            call()
        np.testing.assert_array_equal(out, [[0, 16], [3, 0]])
    np.testing.assert_array_equal(seen, [[[0, 6], [3, 0]]] * 2)
    add(x, Place(1, 1), 0.5, out)
    assert out[1, 1] == 5


def test_other_types_are_another_function():
    for dtype in (np.float32, np.float64):
        out = np.zeros((1, 1), dtype)
        add(np.ones(1, dtype), Place(0, 0), 1.0, out)
        assert out[0, 0] == 1


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_another_kernel_refuses_bundles():
    with pytest.raises(MbnpError, match="prepared"):
        jit(lambda bundle: bundle.whole)(made())
