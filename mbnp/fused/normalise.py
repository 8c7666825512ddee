"""After the chain: BatchNorm, the sum with a residual's shortcut where there is one, and ReLU, in one kernel.

The convolutions of full 3x3 kernels stay the readable layers they are.
"""

import copy
from typing import Any

import numpy as np

from mbnp.fused import batchnorm, kernels
from mbnp.fused.chain import limits_of
from mbnp.fused.kernels import whole
from mbnp.layers import BatchNorm, ReLU
from mbnp.network import Layer, Residual, Sequential, run
from mbnp.parameter import Variable


class Normalise(Layer):
    """clip(BN(z) + shortcut) with the parameters of `bn`; law: relu.forward(batchnorm.forward(z) + shortcut)."""

    def __init__(self, bn: BatchNorm, relu: Layer | None) -> None:
        self.bn, self.limits = bn, limits_of(relu, bn)
        dtype = self.limits.dtype
        self.channels = bn.weight.value.size
        self.affine, self.adjoint = np.empty((5, self.channels), dtype), np.empty((3, self.channels), dtype)
        self.z: np.ndarray | None = None
        self.y: np.ndarray | None = None

    def variables(self) -> dict[str, Variable]:
        return self.bn.variables()

    def forward(self, z: np.ndarray, train: bool = False, shortcut: np.ndarray | None = None) -> np.ndarray:
        if train and not self.bn.weight.frozen:
            moments = np.empty((len(z), 2, self.channels))
            kernels.statistics(z, moments)
            counts = np.full(len(z), z[0].size // self.channels)
            batchnorm.finish_forward(self.bn, moments, counts, z.size // self.channels, self.affine)
        else:
            batchnorm.running_affine(self.bn, self.affine)
        y = np.empty_like(z)
        summed = shortcut is not None
        kernels.normalise(z, self.affine, self.limits, shortcut if summed else z, summed, y)
        self.z, self.y = (z, y) if train else (None, None)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return self.backward_both(dy)[0]

    def backward_both(self, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gradients of z and of the shortcut, which is that of the sum."""
        y, z = self.pop_saved("y"), self.pop_saved("z")
        sums = np.empty((len(z), 2, self.channels))
        d, dz = np.empty_like(z), np.empty_like(z)
        kernels.normalise_backward(dy, y, z, self.affine, self.limits, d, sums)
        batchnorm.finish_backward(self.bn, sums, z.size // self.channels, self.affine, self.adjoint)
        kernels.batchnorm_backward(d, z, self.affine, self.adjoint, dz)
        return dz, d


class FusedResidual(Layer):
    """A Residual that ends in a BatchNorm, and the ReLU after it."""

    def __init__(self, body: list[Layer], last: Normalise, shortcut: Layer | None) -> None:
        self.body, self.last, self.shortcut = body, last, shortcut
        # Both ways as chains, which know how far backward goes.
        self._through, self._beside = Sequential(body), Sequential([shortcut] if shortcut else [])

    def variables(self) -> dict[str, Variable]:
        ways = {"through": self._through, "last": self.last, "beside": self._beside}
        return {f"{way}.{name}": v for way, layer in ways.items() for name, v in layer.variables().items()}

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        z, s = (run(way, x, train, self.needs_dx) for way in (self._through, self._beside))
        return self.last.forward(z, train, s)

    def backward(self, dy: np.ndarray) -> np.ndarray | None:  # type: ignore[override]
        dz, d = self.last.backward_both(dy)
        through, beside = self._through.backward(dz), self._beside.backward(d)
        return None if through is None or beside is None else through + beside


def own(layer: Any) -> Any:
    """A copy of a layer that shares its parameters but not what forward saves for backward."""
    layer = copy.copy(layer)
    if isinstance(layer, Sequential):
        layer.layers = {name: own(child) for name, child in layer.layers.items()}
    if isinstance(layer, Residual):
        layer.shortcut = layer.shortcut and own(layer.shortcut)
    return layer


def _whole(bn: BatchNorm) -> bool:
    """Whether the channels are whole vectors, as the kernels need them."""
    gamma = bn.weight.value
    return gamma.size == whole(gamma.size, gamma.dtype)


def fuse(layers: list[tuple[str, Layer]]) -> tuple[list[Layer], list[str]]:
    """The same computation with every BatchNorm and what follows it in one kernel, and the names that are fused."""
    layer: Any
    made: list[Layer] = []
    names: list[str] = []
    at = 0
    while at < len(layers):
        name, layer = layers[at]
        relu = layers[at + 1][1] if at + 1 < len(layers) else None
        is_relu = type(relu) is ReLU
        inside = list(layer.layers.items()) if type(layer) is Residual else []
        if type(layer) is BatchNorm and _whole(layer):
            made.append(Normalise(layer, relu))
            names.append(name)
        elif inside and type(inside[-1][1]) is BatchNorm and _whole(inside[-1][1]):
            body, body_names = fuse(inside[:-1])
            made.append(FusedResidual(body, Normalise(inside[-1][1], relu), layer.shortcut and own(layer.shortcut)))
            names += [f"{name}.{inner}" for inner in [*body_names, inside[-1][0]]]
        else:
            made.append(own(layer))
            is_relu = False
        at += 2 if is_relu else 1
    return made, names
