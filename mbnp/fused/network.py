"""`convert`: the same network, run by the fused kernels where they apply and by its own layers elsewhere."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from mbnp import backend, renamed
from mbnp.errors import MbnpError
from mbnp.fused import match
from mbnp.fused.inference import Inference, chunks, share
from mbnp.fused.match import Operation
from mbnp.fused.steps import Clock
from mbnp.fused.training import Plan
from mbnp.fused.workspace import Cache, Shape
from mbnp.network import Network
from mbnp.parameter import Parameter, Variable


def convert(net: Network) -> "FusedNetwork":
    """Return a network that computes what `net` computes, faster.

    It shares `net`'s parameters, gradients, running statistics and description: train one and the other has
    learned. dtype is kept. `report()` says which layers the fused kernels run. Calls from several threads wait for
    one another. MBNP_BACKEND or `backend.use` other than numba runs `net` itself. Copies (`copy.deepcopy`, pickle)
    are networks of their own.

    A number that is not finite in the outputs of `net` is not finite here, and a NaN in an image shows in the same
    outputs; in inference the other images of its batch do not see it. But an infinity may reach other channels of its
    pixel, too, and statistics whose squares overflow are NaN in training; BatchNorm within weights may spare an
    overflow before it; and the gradient of a bias before BatchNorm is 0, whatever the others are.

    The layers and their options (strides, padding, the bound of a ReLU6) are those of now: after replacing one, convert
    again.
    """
    return FusedNetwork(net)


def _shared(name: str) -> Any:
    """Make an attribute that is the reference network's."""
    return property(
        lambda self: getattr(self.reference, name), lambda self, value: setattr(self.reference, name, value)
    )


class Timing(NamedTuple):
    """The seconds of one step of the engine within a `timed` block, forward and backward."""

    forward: float
    backward: float


class _Frozen(NamedTuple):
    """How a training pass is divided: operations at the start that learn nothing, and the plan of the others."""

    operations: int
    plan: Plan | None


class _Nothing:
    """Stands for a training pass in which nothing learns."""

    def backward(self, dy: np.ndarray) -> None:
        """Do nothing."""


class FusedNetwork(Network):
    """What `convert` returns: the reference network's own, but for forward and backward, and shapes once worked out."""

    reference: Network
    readable = renamed.attribute("readable", "reference")
    layers = property(lambda self: self.reference.layers)  # to replace one here would change nothing: convert again
    arch = _shared("arch")
    built_as = _shared("built_as")
    classes = _shared("classes")
    preprocessing = _shared("preprocessing")
    resolution = _shared("resolution")
    channels = _shared("channels")
    detection = _shared("detection")
    needs_dx = _shared("needs_dx")

    def __init__(self, net: Network) -> None:
        self.reference = net.reference if isinstance(net, FusedNetwork) else net
        self._variables, self._generators = self.reference.variables(), self.reference.generators()
        self._parameters = [v for v in self._variables.values() if isinstance(v, Parameter)]
        # Nothing here leads back to this object, so that its memory is free as soon as it is dropped.
        self._operations = Cache()
        self._programs = Cache(8)  # of a full batch and the last one, their chunks, and after frozen layers, too
        self._plans = Cache()
        self._shapes, self._grids = Cache(8), Cache()
        self._casts = Variable.casts
        self._last: Network | Plan | _Nothing | None = None  # what goes back through the last training forward
        self._spent: dict[tuple[str, ...], list[float]] | None = None  # within `timed`

    def __reduce__(self) -> tuple:
        """Copy and pickle the reference network: a copy makes its own arrays to compute in."""
        return convert, (self.reference,)

    def variables(self) -> dict[str, Variable]:
        return dict(self._variables)

    def generators(self) -> dict[str, np.random.Generator]:
        return dict(self._generators)

    @property
    def dtype(self) -> np.dtype:
        """The type of the parameters, as the reference network has it, without a walk through its layers."""
        return next((v.value.dtype for v in self._variables.values()), np.dtype(np.float32))

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape that an image of a shape becomes: worked out once, since each step and frame asks."""
        with backend.one_pool():  # a cache is for one thread at a time
            return self._shapes.get(tuple(shape), self.reference.output_shape)

    def grids(self) -> list[tuple[int, int]]:
        """Return rows and columns of the feature maps with heads, likewise."""
        with backend.one_pool():
            return list(self._grids.get((self.resolution, self.channels), lambda _: self.reference.grids()))

    def gradients(self, x: np.ndarray, dlogits: np.ndarray) -> dict[str, np.ndarray]:
        """Return the gradient at every layer's output, from the reference network: the engine keeps few of them."""
        return self.reference.gradients(x, dlogits)

    def report(self) -> str:
        """Return what runs as one, a line for each step, for images of the network's resolution."""
        try:
            return match.report(match.match(self.reference, (1, self.resolution, self.resolution, self.channels)))
        except MbnpError as error:
            return f"every layer as it is: {error}"

    @contextmanager
    def timed(self) -> Iterator[dict[tuple[str, ...], Timing]]:
        """Run each step by itself within the block, on all threads, and time it.

        Yield a dict which at the end holds, by the full names of the layers that a step computes, in their order, the
        seconds of all its calls. What joins the steps is in none of them.
        """
        found: dict[tuple[str, ...], Timing] = {}
        spent: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._spent = spent
        try:
            yield found
        finally:
            self._spent = None
            found.update({names: Timing(*seconds) for names, seconds in spent.items()})

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        """Return the logits (N, classes) of normalised images x (N, H, W, 3). The array is the caller's to keep."""
        self.check_input(x)
        x = backend.of_one_type(np.ascontiguousarray(x))
        with backend.one_pool():  # one call at a time: memory is reused
            if self._casts != Variable.casts:
                self._operations, self._programs, self._plans = Cache(), Cache(8), Cache()
                self._casts = Variable.casts
            operations = self._operations.get(x.shape, self._match) if backend.current() == "numba" else None
            if not operations:
                self._last = self.reference if train else self._last
                return self.reference.forward(x, train)
            return self._forward(operations, x) if train else self._inferred(operations, x)

    def backward(self, dy: np.ndarray) -> np.ndarray | None:  # type: ignore[override]
        """Add to every parameter's gradient; return the gradient of the images where `needs_dx` is set, else None."""
        with backend.one_pool():
            if self._last is None:
                raise MbnpError("backward has nothing to go back through: call forward(x, train=True) before it")
            last, self._last = self._last, None
            dx = last.backward(dy, self._clock()) if isinstance(last, Plan) else last.backward(dy)
            return dx if self.needs_dx else None

    # -- plans and programs, one for each shape --

    def _match(self, shape: Shape) -> list[Operation] | None:
        """Return the operations for images of this shape; None where the reference network runs itself.

        That is where there is nothing to fuse, and where a layer does not take the images and says so.
        """
        try:
            operations = match.match(self.reference, shape)
        except MbnpError:
            return None
        return operations if any(operation.kind != "layer" for operation in operations) else None

    def _program(self, key: tuple[Shape, int, int]) -> Inference:
        shape, count, _ = key
        return Inference(match.match(self.reference, shape)[:count], shape, self.dtype)

    def _by_images(self, key: tuple[Shape, int, int]) -> Inference | None:
        """Return a program for as many images as a thread takes of a batch of this shape, if that is better."""
        shape, count, _ = key
        images = share(match.match(self.reference, shape)[:count], shape)
        if not 0 < images < shape[0]:
            return None
        shape = images, *shape[1:]
        return Inference(match.match(self.reference, shape)[:count], shape, self.dtype, backend.max_threads())

    def _inferred(self, operations: list[Operation], x: np.ndarray, count: int | None = None) -> np.ndarray:
        """Return what the first `count` operations make of x: by images, or step by step for a few at a time."""
        count = len(operations) if count is None else count
        clock = self._clock()
        if len(x) > 1 and not clock:
            by_images = self._programs.get((x.shape, count, backend.get_num_threads()), self._by_images)
            if by_images:
                return by_images.batch(x)
        found = []
        for chunk in chunks(len(x)):
            program = self._programs.get((x[chunk].shape, count, 0), self._program)
            found.append(program.forward(x[chunk], clock))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _plan(self, key: tuple) -> _Frozen:
        shape, needs_dx, _ = key
        operations = self._operations.get(shape, self._match)
        assert operations
        frozen = 0 if needs_dx else _count_frozen(operations)
        if frozen == len(operations):
            return _Frozen(frozen, None)
        begins, flat = (operations[frozen - 1].shape, operations[frozen - 1].flat) if frozen else (shape, False)
        return _Frozen(frozen, Plan(operations[frozen:], begins, self.dtype, needs_dx, frozen, flat))

    def _forward(self, operations: list[Operation], x: np.ndarray) -> np.ndarray:
        learning = tuple([p.frozen for p in self._parameters])
        frozen, plan = self._plans.get((x.shape, bool(self.needs_dx), learning), self._plan)
        y = self._inferred(operations, x, frozen) if frozen else x
        if plan is None:
            self._last = _Nothing()
            return y
        if frozen and operations[frozen - 1].flat:
            y = y.reshape(len(y), 1, 1, -1)
        y = plan.forward(y, self._clock())
        self._last = plan
        return y

    def _clock(self) -> Clock | None:
        """Return what runs a step and adds its seconds, where steps are timed."""
        if (spent := self._spent) is None:
            return None

        def clock(names: tuple[str, ...], backward: bool, run: Callable[[], None]) -> None:
            began = time.perf_counter()
            run()
            spent[names][backward] += time.perf_counter() - began

        return clock


def _count_frozen(operations: list[Operation]) -> int:
    """Return how many operations at the start learn nothing, up to where a single feature map is read by the rest."""
    learning = next((i for i, operation in enumerate(operations) if operation.learns()), len(operations))
    for count in range(learning, 0, -1):
        if all(min(later.inputs) >= count for later in operations[count:]):
            return count
    return 0
