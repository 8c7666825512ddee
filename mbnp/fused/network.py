"""`convert`: the same network, run by the fused kernels where they apply and by its own layers elsewhere."""

import numpy as np

from mbnp import backend
from mbnp.errors import MbnpError
from mbnp.fused.buffers import Cache
from mbnp.fused.chain import split
from mbnp.fused.inference import Inference
from mbnp.fused.normalise import fuse
from mbnp.fused.training import Plan
from mbnp.network import Network


def convert(net: Network) -> "FusedNetwork":
    """A network that computes what `net` computes, several times faster.

    It shares `net`'s layers, so that parameters, gradients and running statistics are the same objects: train one
    and the other has learned. dtype is kept. `report()` says which layers the fused kernels run.
    """
    return FusedNetwork(net)


class FusedNetwork(Network):
    """What `convert` returns. Everything but forward and backward is the readable network's own."""

    def __init__(self, net: Network) -> None:
        super().__init__(net.layers, net.resolution, net.channels)
        self.arch, self.classes, self.preprocessing = net.arch, net.classes, net.preprocessing
        self._triples, named_tail = split(net)
        self._tail, self._fused_after = fuse(named_tail)
        self._plans = Cache(lambda shape: Plan(self._triples, shape))
        self._inference = Inference(self._triples, self._tail) if self._triples else None
        self._forwarded: tuple[Plan | None, np.ndarray] | None = None

    def report(self) -> str:
        """What is fused with what, in a few lines."""
        chain = ", ".join(triple.name for triple in self._triples) or "none"
        after = ", ".join(self._fused_after) or "none"
        return (
            f"convolutions fused with their BatchNorm and ReLU: {chain}\n"
            f"BatchNorms fused with their residual sum and ReLU: {after}\n"
            "everything else runs as it is"
        )

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        """Logits (N, classes) of normalised pictures x (N, H, W, 3). The array is the caller's to keep."""
        self.check_input(x)
        x = np.ascontiguousarray(x)
        with backend.one_blas_thread():
            if self._inference and not train:
                return self._inference.forward(x)
            plan = self._plans[x.shape] if self._triples else None
            y = plan.forward(x) if plan else x
            for layer in self._tail:
                y = layer.forward(y, train)
        self._forwarded = (plan, x) if train else None
        return y

    def backward(self, dy: np.ndarray) -> None:  # type: ignore[override]
        """Add to every parameter's gradient. The gradient of the pictures is not computed: the readable one does."""
        if self._forwarded is None:
            raise MbnpError("backward has nothing to go back through: call forward(x, train=True) before it")
        plan, x = self._forwarded
        self._forwarded = None
        with backend.one_blas_thread():
            for layer in reversed(self._tail):
                dy = layer.backward(dy)
            if plan:
                plan.backward(x, dy)
