"""Old names of public things, kept for a release: each still works, and warns with a DeprecationWarning."""

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any


def keyword(old: str, new: str) -> Callable[[Callable], Callable]:
    """Decorate a function whose keyword `old` is called `new` now."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def accept(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                if new in inspect.signature(function).bind_partial(*args).arguments or new in kwargs:
                    raise TypeError(f"{old} is the old name of {new}: pass only {new}")
                _warn(f"the keyword {old}", new)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        accept.old_keyword = old  # type: ignore[attr-defined]
        return accept

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
    warnings.warn(
        f"{old} is called {new} now; the old name goes with the next release", DeprecationWarning, 3
    )
