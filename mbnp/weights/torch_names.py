"""PyTorch state dicts. Their layouts are in `layouts.py`; others' names of our layers in `torch_known.py`.

`models.mobilenet_v1_small` has the names of the article's class, `models.mobilenet_v1_cifar` and `mobilenet_v2_cifar`
those of kuangliu/pytorch-cifar, `models.mobilenet_v2` and `mobilenet_v3_*` torchvision's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mbnp.errors import MbnpError, unknown
from mbnp.layers import Linear, ReLU
from mbnp.network import Network, Skipped
from mbnp.weights import layouts, torch_known


def from_torch(net: Network, state_dict: Mapping[str, Any], strict: bool = True) -> Skipped:
    """Copy a PyTorch state dict, of tensors or arrays, into `net`, cast to its dtype.

    Names are the network's own, or timm's, Hugging Face's or marvis's. Every name and shape must fit, or MbnpError says
    what does not and `net` is left as it was; `num_batches_tracked` is ignored. strict=False copies what fits and
    returns what was skipped, such as the classifier of a network with another number of classes.
    """
    owner = layouts.owners(net)
    scheme = torch_known.scheme_of(state_dict)
    names = torch_known.their_names(net, scheme) if scheme else {}
    ours = {theirs: own for own, theirs in names.items()}
    caps = [layer.max_value for _, layer in net.leaves() if isinstance(layer, ReLU)]
    if scheme == "timm" and names and "classifier.0" not in names and any(cap != 6 for cap in caps):
        raise MbnpError("timm's weights are for ReLU6: build models.mobilenet_v1(max_value=6)")
    arrays, mismatches = {}, {}
    for name, tensor in state_dict.items():
        layer_name, _, last = name.rpartition(".")
        if last == "num_batches_tracked":
            continue
        if ours:
            name = f"{ours.get(layer_name, layer_name)}.{last}"
        array = array_of(tensor)
        if isinstance(owner.get(name), Linear) and array.shape[2:] == (1, 1):
            array = array[:, :, 0, 0]  # after the average, a 1x1 convolution is a linear layer
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

    names="timm" for timm's MobileNets; MbnpError if `net` is no such network.
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
    theirs = torch_known.their_names(net, "timm") if names == "timm" else {}
    state = {}
    for name, array in arrays.items():
        layer_name, _, last = name.rpartition(".")
        if name in owner:
            array = np.ascontiguousarray(layouts.convert(array, type(owner[name]), "mbnp", "torch"))
        if theirs.get(layer_name) == "conv_head" and array.ndim == 2:
            array = array[:, :, None, None]
        state[f"{theirs.get(layer_name, layer_name)}.{last}"] = torch.from_numpy(array)
    return state


def is_timm(net: Network) -> bool:
    """Return whether `net` computes what timm's network of its widths computes, whatever its weights."""
    names = torch_known.their_names(net, "timm")
    owner, shapes = layouts.owners(net), {}
    for name, variable in net.variables().items():
        layer_name, _, last = name.rpartition(".")
        if layer_name not in names:
            return False
        kind = type(owner[name]) if name in owner else None
        shape = layouts.convert(variable.value, kind, "mbnp", "torch").shape if kind else variable.value.shape
        shape = (*shape, 1, 1) if names[layer_name] == "conv_head" and len(shape) == 2 else shape
        shapes[f"{names[layer_name]}.{last}"] = shape
    family = torch_known.family_of(shapes)
    try:
        built = torch_known.network(family, shapes) if family else None
    except MbnpError:
        return False
    return built is not None and torch_known.computes(built) == torch_known.computes(net)


def array_of(tensor: Any) -> np.ndarray:
    """Return a tensor, or what is an array already, as an array of at least 32 bits a number."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()  # NumPy has no bfloat16
        tensor = tensor.numpy()
    return np.asarray(tensor)
