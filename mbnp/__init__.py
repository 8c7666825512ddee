"""mbnp: MobileNet from scratch in NumPy and Numba.

>>> from mbnp import models
>>> net = models.create("mobilenet-v1-small", num_classes=10)
>>> logits = net(images)          # images: (N, H, W, 3), normalised

Modules are imported when they are first used, so `import mbnp` costs next to nothing and numba comes
with the first operation.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "MbnpError",
    "__version__",
    "backend",
    "cost",
    "datasets",
    "detection",
    "fused",
    "gradcheck",
    "layers",
    "models",
    "ops",
    "optim",
    "plots",
    "set_num_threads",
    "train",
    "weights",
]

# Public names that live in a module: name -> the module that defines it.
_FROM = {"MbnpError": "errors", "set_num_threads": "backend"}


def __getattr__(name: str) -> Any:
    """Import a public module, or the module of a public name, on first use (PEP 562)."""
    if name in _FROM:
        return getattr(importlib.import_module(f"mbnp.{_FROM[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"mbnp.{name}")
    raise AttributeError(f"module 'mbnp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
