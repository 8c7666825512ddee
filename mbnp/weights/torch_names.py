"""PyTorch state dicts. Only layouts differ, and for timm's networks names.

layer           mbnp                  PyTorch
Conv            (KH, KW, Cin, Cout)   (Cout, Cin, KH, KW)
Depthwise       (KH, KW, C)           (C, 1, KH, KW)
Pointwise       (Cin, Cout)           (Cout, Cin, 1, 1)
Linear          (Cin, Cout)           (Cout, Cin)
everything else (C,)                  (C,)

`models.mobilenet_v1_small` has the names of the article's class, `models.mobilenet_v1_cifar` those of
kuangliu/pytorch-cifar. timm's mobilenetv1_* are `models.mobilenet_v1(relu_cap=6)` by other names:
`conv_stem, bn1, blocks.S.I.{conv_dw,bn1,conv_pw,bn2}, classifier`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mbnp.errors import MbnpError, unknown
from mbnp.layers import Conv, Depthwise, Linear, Pointwise, ReLU
from mbnp.models import described
from mbnp.models.mobilenet_v1 import BLOCKS, STEM, mobilenet_v1
from mbnp.network import Layer, Network, Skipped


def _timm_names() -> dict[str, str]:
    """timm's name of each layer of MobileNetV1: ours. timm begins a stage where the map gets smaller."""
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
    such as the head of a network with another number of classes.
    """
    owner = _weight_owners(net)
    from_timm = "conv_stem.weight" in state_dict and "features.0.0.weight" in owner
    if from_timm and any(isinstance(layer, ReLU) and layer.cap != 6 for _, layer in net.leaves()):
        raise MbnpError(
            "timm's weights are for ReLU6: build the network with models.mobilenet_v1(relu_cap=6)"
        )
    arrays, misfits = {}, {}
    for name, tensor in state_dict.items():
        layer_name, _, last = name.rpartition(".")
        if last == "num_batches_tracked":
            continue
        if from_timm:
            name = f"{_FROM_TIMM.get(layer_name, layer_name)}.{last}"
        array = array_of(tensor)
        try:
            arrays[name] = _ours(name, owner[name], array) if name in owner else array
        except MbnpError:
            if strict:
                raise
            expected = owner[name].variables()["weight"].value.shape
            misfits[name] = f"{name} has shape {array.shape}, not {expected}"
    skipped = net.load_state(arrays, strict)
    missing = tuple(name for name in skipped.missing if name not in misfits)
    return skipped._replace(missing=missing, misfits=(*skipped.misfits, *misfits.values()))


def to_torch(net: Network, names: str = "mbnp") -> dict[str, Any]:
    """What `load_state_dict` of the same architecture in PyTorch takes: copies, as tensors.

    names="timm" for timm's mobilenetv1_*; MbnpError if `net` is no such network.
    """
    import torch

    if names not in ("mbnp", "timm"):
        raise unknown("kind of names", names, ("mbnp", "timm"))
    if names == "timm" and not is_timm(net):
        raise MbnpError(
            "this network is not timm's: that is models.mobilenet_v1(relu_cap=6), with its padding and eps"
        )
    owner = _weight_owners(net)
    return {
        _timm_name(name) if names == "timm" else name: torch.from_numpy(
            np.ascontiguousarray(_layout_to_torch(owner.get(name), array))
        )
        for name, array in net.state().items()
    }


def is_timm(net: Network) -> bool:
    """Whether `net` computes what timm's mobilenetv1_* of its width computes, whatever its weights."""
    ours = described.describe(net)["layers"]
    stem = net.variables().get("features.0.0.weight")
    if stem is None:
        return False
    try:
        timm = mobilenet_v1(net.num_classes, stem.value.shape[-1] / STEM, net.resolution, relu_cap=6.0)
    except MbnpError:  # wider than any
        return False
    return described.describe(timm)["layers"] == ours


def _timm_name(name: str) -> str:
    layer_name, _, last = name.rpartition(".")
    return f"{_TO_TIMM[layer_name]}.{last}"


def _weight_owners(net: Network) -> dict[str, Layer]:
    kinds = (Conv, Depthwise, Pointwise, Linear)
    return {f"{name}.weight": layer for name, layer in net.leaves() if isinstance(layer, kinds)}


def array_of(tensor: Any) -> np.ndarray:
    """A tensor, or what is one already, as an array of at least 32 bits a number."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()  # NumPy has no bfloat16
        tensor = tensor.numpy()
    return np.asarray(tensor)


def _ours(name: str, layer: Layer, w: np.ndarray) -> np.ndarray:
    dimensions = 2 if isinstance(layer, Linear) else 4
    if w.ndim != dimensions:
        raise MbnpError(f"{name} must have {dimensions} dimensions in PyTorch's layout, got shape {w.shape}")
    if isinstance(layer, Linear):
        return w.T
    if isinstance(layer, Conv):
        return w.transpose(2, 3, 1, 0)
    if isinstance(layer, Depthwise) and w.shape[1] == 1:
        return w[:, 0].transpose(1, 2, 0)
    if isinstance(layer, Pointwise) and w.shape[2:] == (1, 1):
        return w[:, :, 0, 0].T
    raise MbnpError(f"{name} of shape {w.shape} is no weight of a {type(layer).__name__.lower()} convolution")


def _layout_to_torch(layer: Layer | None, w: np.ndarray) -> np.ndarray:
    if isinstance(layer, Linear):
        return w.T
    if isinstance(layer, Conv):
        return w.transpose(3, 2, 0, 1)
    if isinstance(layer, Depthwise):
        return w.transpose(2, 0, 1)[:, None]
    if isinstance(layer, Pointwise):
        return w.T[:, :, None, None]
    return w
