"""Weights in and out, one file per format.

weights.save(net, "model.safetensors"); net = weights.load("model.safetensors")
weights.from_torch(net, state_dict);    state_dict = weights.to_torch(net)
"""

from mbnp.weights.native import load, save
from mbnp.weights.torch_names import from_torch, to_torch

__all__ = ["from_torch", "load", "save", "to_torch"]
