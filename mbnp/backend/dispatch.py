"""Which of an operation's implementations runs: the plain loops, NumPy or Numba.

The choice is a context variable, so that a block in one thread or task changes nothing for the others.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from mbnp.errors import check_environment, unknown

check_environment()  # here, since this is the first of the package's modules, and Numba comes with the next

BACKENDS = ("loops", "numpy", "numba")

_chosen: ContextVar[str | None] = ContextVar("mbnp_backend", default=None)


def current() -> str:
    """Return the name of the current backend: that of `use(...)`, else of the variable MBNP_BACKEND, else numba."""
    return _valid(_chosen.get() or os.environ.get("MBNP_BACKEND") or "numba")


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run every operation within the block by the backend `name`: loops, numpy or numba."""
    token = _chosen.set(_valid(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def pick(*, loops: Callable, numpy: Callable, numba: Callable | None = None) -> Callable:
    """Make one function that calls the implementation of the current backend, looked up at each call.

    Where NumPy is already the fast way an operation has no kernel, and numba means NumPy's implementation.
    """
    implementations = {"loops": loops, "numpy": numpy, "numba": numba or numpy}

    @functools.wraps(numpy)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        return implementations[current()](*args, **kwargs)

    return dispatch


def _valid(name: str) -> str:
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    return name
