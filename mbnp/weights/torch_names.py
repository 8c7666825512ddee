"""PyTorch state dicts. Their layouts are in `layouts.py`; only timm's networks have other names, too.

`models.mobilenet_v1_small` has the names of the article's class, `models.mobilenet_v1_cifar` those of
kuangliu/pytorch-cifar. timm's mobilenetv1_* are `models.mobilenet_v1(max_value=6)` by other names:
`conv_stem, bn1, blocks.S.I.{conv_dw,bn1,conv_pw,bn2}, classifier`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mbnp import spec
from mbnp.errors import MbnpError, unknown
from mbnp.layers import ReLU
from mbnp.models.mobilenet_v1 import BLOCKS, STEM, mobilenet_v1
from mbnp.network import Network, Skipped
from mbnp.weights import layouts


def _timm_names() -> dict[str, str]:
    """Map timm's name of each layer of MobileNetV1 to ours. timm begins a stage where the feature map gets smaller."""
    names = {"conv_stem": "features.0.0", "bn1": "features.0.1", "classifier": "classifier"}
    stage = block = 0
    for i, (_, stride) in enumerate(BLOCKS, start=1):
        if stride == 2:
            stage, block = stage + 1, 0
        for theirs, ours in (("conv_dw", 0), ("bn1", 1), ("conv_pw", 3), ("bn2", 4)):
            names[f"blocks.{stage}.{block}.{theirs}"] = f"features.{i}.{ours}"
        block += 1
    return names


_FROM_TIMM = _timm_names()
_TO_TIMM = {ours: theirs for theirs, ours in _FROM_TIMM.items()}


def from_torch(net: Network, state_dict: Mapping[str, Any], strict: bool = True) -> Skipped:
    """Copy a PyTorch state dict, of tensors or arrays, into `net`, cast to its dtype.

    Names are the network's own, or timm's. Every name and shape must fit, or MbnpError says what does not and `net`
    is left as it was; `num_batches_tracked` is ignored. strict=False copies what fits and returns what was skipped,
    such as the classifier of a network with another number of classes.
    """
    owner = layouts.owners(net)
    from_timm = "conv_stem.weight" in state_dict and "features.0.0.weight" in owner
    if from_timm and any(isinstance(layer, ReLU) and layer.max_value != 6 for _, layer in net.leaves()):
        raise MbnpError("timm's weights are for ReLU6: build models.mobilenet_v1(max_value=6)")
    arrays, mismatches = {}, {}
    for name, tensor in state_dict.items():
        layer_name, _, last = name.rpartition(".")
        if last == "num_batches_tracked":
            continue
        if from_timm:
            name = f"{_FROM_TIMM.get(layer_name, layer_name)}.{last}"
        array = array_of(tensor)
        try:
            kind = type(owner[name]) if name in owner else None
            arrays[name] = layouts.convert(array, kind, "torch", "mbnp", name) if kind else array
        except MbnpError:
            if strict:
                raise
            expected = owner[name].variables()["weight"].value.shape
            mismatches[name] = f"{name} has shape {array.shape}, not {expected}"
    skipped = net.load_state(arrays, strict)
    missing = tuple(name for name in skipped.missing_keys if name not in mismatches)
    both = (*skipped.shape_mismatches, *mismatches.values())
    return skipped._replace(missing_keys=missing, shape_mismatches=both)


def to_torch(net: Network, names: str = "mbnp") -> dict[str, Any]:
    """Return what `load_state_dict` of the same architecture in PyTorch takes: copies, as tensors.

    names="timm" for timm's mobilenetv1_*; MbnpError if `net` is no such network.
    """
    return _tensors(net, net.state(), names)


def grads_to_torch(net: Network, names: str = "mbnp") -> dict[str, Any]:
    """Return the gradient of every parameter that is not frozen, as PyTorch has it: copies, as tensors.

    The names are those of `to_torch`, which `named_parameters()` of the same architecture has in PyTorch.
    """
    learned = {name: p for name, p in net.parameters().items() if not p.frozen}
    return _tensors(net, {name: p.grad.copy() for name, p in learned.items()}, names)


def _tensors(net: Network, arrays: Mapping[str, np.ndarray], names: str) -> dict[str, Any]:
    """Return arrays of `net` in PyTorch's layout and by its names, as tensors that may share their memory."""
    import torch

    if names not in ("mbnp", "timm"):
        raise unknown("kind of names", names, ("mbnp", "timm"))
    if names == "timm" and not is_timm(net):
        raise MbnpError("not timm's network: models.mobilenet_v1(max_value=6), with its padding and eps")
    owner = layouts.owners(net)
    state = {}
    for name, array in arrays.items():
        if name in owner:
            array = np.ascontiguousarray(layouts.convert(array, type(owner[name]), "mbnp", "torch"))
        if names == "timm":
            layer_name, _, last = name.rpartition(".")
            name = f"{_TO_TIMM[layer_name]}.{last}"
        state[name] = torch.from_numpy(array)
    return state


def is_timm(net: Network) -> bool:
    """Return whether `net` computes what timm's mobilenetv1_* of its width computes, whatever its weights."""
    stem = net.variables().get("features.0.0.weight")
    if stem is None:
        return False
    try:
        timm = mobilenet_v1(net.num_classes, stem.value.shape[-1] / STEM, net.resolution, max_value=6.0)
    except MbnpError:  # wider than any
        return False
    return timm.built_as == spec.describe_layers(net)


def array_of(tensor: Any) -> np.ndarray:
    """Return a tensor, or what is an array already, as an array of at least 32 bits a number."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()  # NumPy has no bfloat16
        tensor = tensor.numpy()
    return np.asarray(tensor)
