"""NumPy's BLAS: its name and its threads, by threadpoolctl where that is installed. mbnp itself uses no BLAS."""

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

WITHOUT = 'unnamed, and on all its threads: threadpoolctl is missing (pip install -e ".[bench]")'


def installed() -> bool:
    """Return whether threadpoolctl is there."""
    return find_spec("threadpoolctl") is not None


def limit(threads: int) -> AbstractContextManager[Any]:
    """Hold BLAS at so many threads from now on, to the end of the returned context or else of the process."""
    if not installed():
        return nullcontext()
    from threadpoolctl import threadpool_limits

    return threadpool_limits(threads, user_api="blas")


def describe() -> list[dict[str, Any]] | None:
    """Return library, version and kernel of NumPy's BLAS; None if nothing tells.

    Numba loads SciPy's, too, where that is installed. Which of several is NumPy's, a path that names it says.
    """
    if not installed():
        return None
    import numpy  # noqa: F401  so that its BLAS is loaded
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().select(user_api="blas").info()
    found = [b for b in found if "numpy" in b["filepath"].lower()] or found
    return [{"library": b["internal_api"], "version": b["version"], "kernel": b.get("architecture")} for b in found]
