"""Are the gradients right? Finite differences and PyTorch say so, in float64.

gradcheck.compare(forward, backward, [x, w])          a pair of functions, by finite differences
gradcheck.layer(layer, x)                             a layer: dx and the gradient of every parameter, likewise
gradcheck.op_against_torch(forward, backward, torch_function, [x, w])    a pair of functions, against PyTorch
gradcheck.against_torch(net, module, x, labels)       a network, against a PyTorch module with the same weights

Each returns the error of every array and raises MbnpError where one is too large, with the worst entry. Those of a
layer, and all against PyTorch, are a mapping that prints as a table.
"""

from mbnp.gradcheck.finite import compare, layer
from mbnp.gradcheck.pytorch import against_torch, op_against_torch
from mbnp.gradcheck.report import Errors

__all__ = ["Errors", "against_torch", "compare", "layer", "op_against_torch"]
