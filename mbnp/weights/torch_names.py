"""PyTorch state dicts. Names are the same on both sides; only the layouts differ.

layer           mbnp                  PyTorch
Conv            (KH, KW, Cin, Cout)   (Cout, Cin, KH, KW)
Depthwise       (KH, KW, C)           (C, 1, KH, KW)
Pointwise       (Cin, Cout)           (Cout, Cin, 1, 1)
Linear          (Cin, Cout)           (Cout, Cin)
everything else (C,)                  (C,)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.layers import Conv, Depthwise, Linear, Pointwise
from mbnp.network import Layer, Network


def from_torch(net: Network, state_dict: Mapping[str, Any]) -> None:
    """Copy a PyTorch state dict, of tensors or arrays, into `net`, cast to its dtype.

    Every name and shape must fit, or `net` is left as it was; `num_batches_tracked` is ignored.
    """
    owner = _weight_owners(net)
    arrays = {}
    for name, tensor in state_dict.items():
        if name.rpartition(".")[2] == "num_batches_tracked":
            continue
        arrays[name] = _array(tensor)
        if name in owner:
            arrays[name] = _layout_from_torch(name, owner[name], arrays[name])
    net.load_state(arrays)


def to_torch(net: Network) -> dict[str, Any]:
    """What `load_state_dict` of the same architecture in PyTorch takes: copies, as tensors."""
    import torch

    owner = _weight_owners(net)
    return {
        name: torch.from_numpy(np.ascontiguousarray(_layout_to_torch(owner.get(name), array)))
        for name, array in net.state().items()
    }


def _weight_owners(net: Network) -> dict[str, Layer]:
    kinds = (Conv, Depthwise, Pointwise, Linear)
    return {f"{name}.weight": layer for name, layer in net.leaves() if isinstance(layer, kinds)}


def _array(tensor: Any) -> np.ndarray:
    if hasattr(tensor, "detach"):
        # By way of float64, because NumPy has no bfloat16 and every smaller float fits in a float64.
        tensor = tensor.detach().cpu().double().numpy()
    return np.asarray(tensor)


def _layout_from_torch(name: str, layer: Layer, w: np.ndarray) -> np.ndarray:
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
