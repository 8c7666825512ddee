"""`convert`: the same network, run by the fused kernels where they apply and by its own layers elsewhere."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from mbnp import backend, renamed
from mbnp.errors import MbnpError
from mbnp.fused.buffers import Cache
from mbnp.fused.chain import split
from mbnp.fused.inference import Inference, frozen_blocks
from mbnp.fused.normalise import FusedResidual, Normalise, fuse
from mbnp.fused.training import Plan
from mbnp.network import Layer, Network, Sequential, run
from mbnp.parameter import Variable


def convert(net: Network) -> "FusedNetwork":
    """A network that computes what `net` computes, faster.

    It shares `net`'s parameters, gradients, running statistics and description: train one and the other has
    learned. dtype is kept. `report()` says which layers the fused kernels run. Calls from several threads wait for
    one another. MBNP_BACKEND or `backend.use` other than numba runs `net` itself.

    The layers and their options (strides, padding, the bound of a ReLU6) are those of now: after replacing one, convert
    again.
    """
    return FusedNetwork(net)


def _shared(name: str) -> Any:
    """Make an attribute that is the reference network's."""
    return property(
        lambda self: getattr(self.reference, name), lambda self, value: setattr(self.reference, name, value)
    )


class Step(NamedTuple):
    """A part of a pass through a network that runs as one: what it computes, and the calls that do the work.

    layers: the full names of the layers it computes, in order, as in the rows of `cost.of(net)`
    forward, backward: (object, name of the method) of each call, in order; backward is empty where nothing goes back
    """

    layers: tuple[str, ...]
    forward: tuple[tuple[Any, str], ...]
    backward: tuple[tuple[Any, str], ...] = ()


class FusedNetwork(Network):
    """What `convert` returns. Everything but forward and backward is the reference network's own."""

    reference: Network
    readable = renamed.attribute("readable", "reference")
    layers = property(lambda self: self.reference.layers)  # to replace one here would change nothing: convert again
    arch = _shared("arch")
    built_as = _shared("built_as")
    classes = _shared("classes")
    preprocessing = _shared("preprocessing")
    resolution = _shared("resolution")
    channels = _shared("channels")

    def __init__(self, net: Network) -> None:
        self.reference = net.reference if isinstance(net, FusedNetwork) else net
        self._triples, named_tail = split(net)
        self._tail, self._fused_after = fuse(named_tail)
        self._last = named_tail[-1][0] if named_tail else ""
        self._after = Sequential(self._tail)  # the same layers, as a chain that knows how far backward goes
        self._inference = Inference(self._triples, self._tail) if self._triples else None
        self._freeze(0)
        self._backward: Any = None  # what goes back through the last training forward
        self._variables = self.reference.variables()

    def variables(self) -> dict[str, Variable]:
        return dict(self._variables)

    def report(self) -> str:
        """What is fused with what, in a few lines."""
        chain = ", ".join(triple.name for triple in self._triples) or "none"
        after = ", ".join(self._fused_after) or "none"
        return (
            f"convolutions fused with their BatchNorm and ReLU: {chain}\n"
            f"BatchNorms fused with their residual sum and ReLU: {after}\n"
            f"linear layer fused with the average before it: {self._head_name()}\n"
            "everything else runs as it is"
        )

    def _head_name(self) -> str:
        if not self._inference:
            return "none"
        shape = self._inference.output_shape((1, self.resolution, self.resolution, self.channels))
        return self._last if self._inference.head(shape) else "none"

    def steps(self, shape: tuple[int, ...], train: bool = False) -> list[Step]:
        """Return the steps of a pass over images of `shape` (N, H, W, C), in the order of forward.

        With `train`, those of a training step, backward included; else those of inference. A layer is in one step at
        most; one that is in none, and what joins the steps, runs between these calls. The objects are those that run
        until two other shapes were passed or a layer was frozen: `mbnp bench` times their methods in place.
        """
        if backend.current() != "numba":
            return [layer_step([name], layer, train) for name, layer in self.reference.leaves()]
        inference, plan = self._inference, None
        if train:
            with backend.one_blas_thread():
                plan, _ = self._pass_frozen(np.zeros(shape, self.dtype))
            inference = self._frozen
        blocks = inference.blocks if inference else []
        calls: list[tuple] = [(block.triples[0].conv, _calls(block, "run")) for block in blocks]
        for stage in plan.stages if plan else []:
            forward, backward = ("forward", "normalise"), ("finish_gradient", "backward")
            calls.append((stage.conv, _calls(stage, *forward), _calls(stage, *backward)))
        names, layers = zip(*self.reference.flat(), strict=True)
        named_tail = split(self.reference)[1]
        starts = [*(layers.index(conv) for conv, *_ in calls), len(names) - len(named_tail)]
        spans = itertools.pairwise(starts)
        found = [Step(names[first:last], *call[1:]) for call, (first, last) in zip(calls, spans, strict=True)]
        if plan and plan.complete:
            end = plan.end
            return [*found, Step(names[starts[-1] :], _calls(end, "forward"), _calls(end, "backward"))]
        if inference and not train and inference.head(inference.output_shape(shape)) is not None:
            return found  # the head is a kernel's call without an object
        return found + _tail_steps(named_tail, self._tail, train)

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        """Logits (N, classes) of normalised images x (N, H, W, 3). The array is the caller's to keep."""
        self.check_input(x)
        x = np.ascontiguousarray(x)
        with backend.one_blas_thread():  # one call at a time: buffers are shared
            if backend.current() != "numba":
                self._backward = self.reference.backward if train else None
                return self.reference.forward(x, train)
            if self._inference and not train:
                return self._inference.forward(x)
            return self._forward(x, train)

    def _freeze(self, triples: int) -> None:
        """From now on, run that many triples at the start of a training step as in inference."""
        learning = self._triples[triples:]
        self._frozen = Inference(self._triples[:triples], []) if triples else None
        self._plans = Cache(lambda shape: Plan(learning, self._tail, shape))

    def _pass_frozen(self, x: np.ndarray) -> tuple[Any, np.ndarray]:
        """The plan of what learns, if any of the triples does, and its input: what the frozen ones make of x."""
        frozen = frozen_blocks(self._triples)
        if frozen != (len(self._frozen.triples) if self._frozen else 0):
            self._freeze(frozen)
        shape = self._frozen.output_shape(x.shape) if self._frozen else x.shape
        plan = self._plans[shape] if frozen < len(self._triples) else None
        if self._frozen is None:
            return plan, x
        given = plan.given.z if plan else np.empty(shape, x.dtype)
        self._frozen.run_blocks(x, given)
        return plan, given[..., : self._frozen.channels]

    def _forward(self, x: np.ndarray, train: bool) -> np.ndarray:
        plan, x = self._pass_frozen(x)
        y = plan.forward(x) if plan else x
        complete = plan is not None and plan.complete
        if not complete:
            y = run(self._after, y, train, needs_dx=plan is not None)

        def backward(dy: Any) -> None:
            if not complete:
                dy = self._after.backward(dy)
            if plan:
                plan.backward(x, dy)

        self._backward = backward if train else None
        return y

    def backward(self, dy: np.ndarray) -> None:  # type: ignore[override]
        """Add to every parameter's gradient. The gradient of the images is not computed: the reference network does."""
        with backend.one_blas_thread():
            if self._backward is None:
                raise MbnpError("backward has nothing to go back through: call forward(x, train=True) before it")
            backward, self._backward = self._backward, None
            backward(dy)


def _calls(owner: Any, *methods: str) -> tuple[tuple[Any, str], ...]:
    return tuple((owner, method) for method in methods)


def layer_step(names: Iterable[str], layer: Layer, train: bool) -> Step:
    """Return the step of one layer that runs by itself."""
    backward = "backward_both" if isinstance(layer, Normalise) else "backward"
    return Step(tuple(names), _calls(layer, "forward"), _calls(layer, backward) if train else ())


def _tail_steps(named_tail: list[tuple[str, Layer]], tail: list[Layer], train: bool) -> list[Step]:
    """Return a step for each layer that runs after the chain, by the names of the layers it stands for."""
    running = list(_running(tail))
    names: dict[Layer, list[str]] = {}
    for name, layer in Sequential(dict(named_tail)).leaves():
        runs = running[0] if running else None
        if type(layer) is type(runs.bn if isinstance(runs, Normalise) else runs):
            names[running.pop(0)] = [name]
        else:  # a ReLU, which the last Normalise computes
            names[next(made for made in reversed(names) if isinstance(made, Normalise))].append(name)
    return [layer_step(names[layer], layer, train) for layer in names]


def _running(layers: Iterable[Layer]) -> Iterator[Layer]:
    """Yield what runs inside `layers`, one after another."""
    for layer in layers:
        if isinstance(layer, FusedResidual):
            yield from _running([*layer.body, layer.last, *([layer.shortcut] if layer.shortcut else [])])
        else:
            yield from (leaf for _, leaf in layer.leaves())
