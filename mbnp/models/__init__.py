"""The architectures by name. Each builder is a list copied from its paper and a few lines that read it.

net = models.mobilenet_v1_small(num_classes=10, seed=0)
net = models.create("mobilenet-v1-small", num_classes=10, seed=0)    # the same, by the command line's name
net = models.with_new_head(net, num_classes=5)    # the same body and weights, for other classes
"""

import inspect
from collections.abc import Callable
from typing import Any

from mbnp.errors import MbnpError, unknown
from mbnp.models.mobilenet_v1 import mobilenet_v1, mobilenet_v1_cifar
from mbnp.models.mobilenet_v1_small import mobilenet_v1_small, standard_small
from mbnp.models.new_head import with_new_head
from mbnp.models.resnet import resnet20
from mbnp.network import Network

__all__ = [
    "create",
    "mobilenet_v1",
    "mobilenet_v1_cifar",
    "mobilenet_v1_small",
    "names",
    "resnet20",
    "standard_small",
    "with_new_head",
]

_BUILDERS: dict[str, Callable[..., Network]] = {
    builder.__name__.replace("_", "-"): builder
    for builder in (mobilenet_v1_small, standard_small, mobilenet_v1_cifar, mobilenet_v1, resnet20)
}


def names() -> list[str]:
    """The names that `create` knows."""
    return list(_BUILDERS)


def options(name: str) -> list[str]:
    """The options that the model `name` takes."""
    if name not in _BUILDERS:
        raise unknown("model", name, _BUILDERS)
    return list(inspect.signature(_BUILDERS[name]).parameters)


def create(name: str, **chosen: Any) -> Network:
    """Build the model `name` with the options of its builder (num_classes, seed, dtype, width_mult, ...)."""
    known = options(name)
    for option in chosen:
        if option not in known:
            raise MbnpError(f"{name} has no option {option!r}: it takes {', '.join(known)}")
    return _BUILDERS[name](**chosen)
