"""Old names of public things, kept for a release: each still works, and warns with a DeprecationWarning."""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any


def keyword(old: str, new: str) -> Callable[[Callable], Callable]:
    """Decorate a function whose keyword `old` is called `new` now."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                _warn(f"the keyword {old}", new)
                return function(*args, **{new: kwargs.pop(old)}, **kwargs)  # TypeError if both names are given
            return function(*args, **kwargs)

        wrapper.old_keyword = old  # type: ignore[attr-defined]
        return wrapper

    return decorate


def attribute(old: str, new: str) -> Any:
    """Make the attribute `old` of a class stand for the attribute `new`."""

    def get(self: Any) -> Any:
        _warn(f"the attribute {old}", new)
        return getattr(self, new)

    def set_(self: Any, value: Any) -> None:
        _warn(f"the attribute {old}", new)
        setattr(self, new, value)

    return property(get, set_)


def module_names(module: str, moved: dict[str, str]) -> Callable[[str], Any]:
    """Make a module's `__getattr__` (PEP 562) that finds names which moved: old name -> "module:name"."""

    def find(name: str) -> Any:
        if name not in moved:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new = moved[name].partition(":")
        _warn(f"{module}.{name}", f"{place}.{new}")
        return getattr(importlib.import_module(place), new)

    return find


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is called {new} now; the old name will be removed in the next release", DeprecationWarning, 3)
