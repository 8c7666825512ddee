"""The architectures by name. Each builder is a list copied from its paper and a few lines that read it.

net = models.mobilenet_v1_small(num_classes=10, seed=0)
net = models.create("mobilenet-v1-small", num_classes=10, seed=0)    # the same, by the command line's name
net = models.with_new_head(net, num_classes=5)    # the same body and weights, for other classes
net = models.from_description(models.description(net))    # what files say of a network, and back
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from mbnp import spec
from mbnp.errors import MbnpError, short, unknown
from mbnp.models.article import mobilenet_v1_small, standard_small
from mbnp.models.mobilenet_v1 import mobilenet_v1, mobilenet_v1_cifar
from mbnp.models.mobilenet_v2 import mobilenet_v2, mobilenet_v2_cifar
from mbnp.models.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small, mobilenet_v3_small_cifar
from mbnp.models.new_head import with_new_head
from mbnp.models.resnet import resnet20
from mbnp.models.ssd import ssd_mobilenet_v1_small, ssdlite320_mobilenet_v3_large
from mbnp.models.xception import xception, xception_cifar
from mbnp.network import Network

__all__ = [
    "create",
    "description",
    "from_description",
    "mobilenet_v1",
    "mobilenet_v1_cifar",
    "mobilenet_v1_small",
    "mobilenet_v2",
    "mobilenet_v2_cifar",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "mobilenet_v3_small_cifar",
    "names",
    "resnet20",
    "ssd_mobilenet_v1_small",
    "ssdlite320_mobilenet_v3_large",
    "standard_small",
    "with_new_head",
    "xception",
    "xception_cifar",
]

_BUILDERS: dict[str, Callable[..., Network]] = {
    builder.__name__.replace("_", "-"): builder
    for builder in (
        mobilenet_v1_small,
        standard_small,
        mobilenet_v1_cifar,
        mobilenet_v1,
        mobilenet_v2,
        mobilenet_v2_cifar,
        mobilenet_v3_large,
        mobilenet_v3_small,
        mobilenet_v3_small_cifar,
        xception,
        xception_cifar,
        resnet20,
        ssd_mobilenet_v1_small,
        ssdlite320_mobilenet_v3_large,
    )
}


def names() -> list[str]:
    """Return the names that `create` knows."""
    return list(_BUILDERS)


def options(name: str) -> list[str]:
    """Return the options that the model `name` takes."""
    if name not in _BUILDERS:
        raise unknown("model", name, _BUILDERS)
    return list(inspect.signature(_BUILDERS[name]).parameters)


def create(name: str, **chosen: Any) -> Network:
    """Build the model `name` with the options of its builder (num_classes, seed, dtype, width_mult, ...)."""
    known = options(name)
    for option in chosen:
        if option not in (*known, getattr(_BUILDERS[name], "old_keyword", None)):
            raise MbnpError(f"{name} has no option {option!r}: it takes {', '.join(known)}")
    return _BUILDERS[name](**chosen)


def description(net: Network) -> dict[str, Any]:
    """Return what builds `net` again, as plain JSON: its builder and options, or the layers if they were changed."""
    described = spec.describe(net)
    return net.arch if net.built_as == described["layers"] else described


def from_description(arch: Any, dtype: Any = np.float32, numbers: int | None = None) -> Network:
    """Build the network that a file describes, with fresh weights.

    MbnpError, before anything large is made, for what is no description, and if the file's count of `numbers` is
    too small for the network.
    """
    if not isinstance(arch, dict):
        raise MbnpError(f"its architecture is {short(arch)}")
    if arch.get("name") == spec.NAME:
        return spec.build(arch, dtype, most_numbers=numbers)
    if not isinstance(arch.get("name"), str):
        raise MbnpError(f"its architecture has no name: {short(arch)}")
    for key, value in arch.items():
        if key != "name" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise MbnpError(f"the {short(key)} of its architecture is {short(value)}, no number")
    if numbers is not None:
        # Of width w a builder's network has 36,864 w^2 weights or more (30,000: rounded down), 64 w of them per class,
        # 144 w per channel of the images.
        width, classes = min(arch.get("width_mult", 1.0), 1e9), arch.get("num_classes", 1)
        least = max(classes * max(1, int(64 * width)), 9 * arch.get("channels", 3) * max(1, int(16 * width)))
        if least > numbers or (width > 1 and 30_000 * width**2 > numbers):
            raise MbnpError(f"its {numbers:,} numbers are too few for {short(arch['name'])}")
    chosen: dict[str, Any] = dict(arch)
    if "relu_cap" in chosen:  # the key that files have
        chosen["max_value"] = chosen.pop("relu_cap")
    return create(**chosen, dtype=dtype)
