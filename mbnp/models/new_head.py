"""A new classifier on a trained network, to fine-tune it for another number of classes."""

import copy
from typing import Any

from mbnp import spec
from mbnp.errors import MbnpError
from mbnp.models.build import begin
from mbnp.network import Network

_HEADS = ("linear", "pointwise", "conv")  # a 1x1 convolution is a linear layer of one pixel


def with_new_head(net: Network, num_classes: int, seed: int = 0) -> Network:
    """Return a copy of `net` whose last layer has `num_classes` outputs and fresh weights; all else is kept.

    The last layer with weights must be Linear or a 1x1 convolution. The copy shares no array with `net`, has its
    dtype, resolution and preprocessing; its `classes` are None.
    """
    begin(num_classes, seed, net.dtype)  # raises for what no builder takes
    if net.detects():
        raise MbnpError("a detector has heads on several feature maps, and none of them can be replaced alone")
    description = copy.deepcopy(spec.describe(net))
    name, head = _last_with_weights(description["layers"]) or ("", {"kind": "nothing"})
    if head["kind"] not in _HEADS or head.get("kernel", [1, 1]) != [1, 1]:
        raise MbnpError(
            f"this network has no head to replace: its last weights are in {name or 'no layer'}, a "
            f"{head['kind']}, not in a linear layer or 1x1 convolution"
        )
    made_by_builder = net.built_as == description["layers"]
    head["c_out"] = num_classes
    new = spec.build(description, net.dtype, seed)
    body = {key: array for key, array in net.state().items() if not key.startswith(f"{name}.")}
    new.load_state(body, strict=False)
    new.needs_dx = net.needs_dx
    for key, p in new.parameters().items():
        p.frozen = key in body and net.parameters()[key].frozen
    new.preprocessing = copy.deepcopy(net.preprocessing)
    if "num_classes" in net.arch:
        new.arch = net.arch | {"num_classes": num_classes}
        new.built_as = description["layers"] if made_by_builder else None
    return new


def _last_with_weights(entries: list[dict[str, Any]]) -> tuple[str, dict[str, Any]] | None:
    """Return the full name and entry of the last layer that holds numbers."""
    for entry in reversed(entries):
        if "layers" in entry:
            found = _last_with_weights(entry["layers"])
            if found:
                return f"{entry['name']}.{found[0]}", found[1]
        elif spec.size(entry):
            return entry["name"], entry
    return None
