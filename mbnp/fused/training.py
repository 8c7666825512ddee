"""A training step through the fused kernels: the steps of a plan, their memory, and both passes as few calls."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mbnp.backend import Call, joined
from mbnp.fused import kernels
from mbnp.fused.kernels.arrays import Target
from mbnp.fused.match import UNLIMITED, Operation, only_convolved
from mbnp.fused.steps import KINDS, AnyConvolution, Clock, FeatureMap, Step
from mbnp.fused.workspace import Arena, Shape, Slots, Workspace, middle
from mbnp.ops import checks


class Plan:
    """The steps of a pass over a batch of one shape, with all their memory.

    Its input is `images` (N, H, W, C): a batch, or what `first` frozen operations before it made, `flat` where that
    stands for (N, C). needs_dx: whether backward returns the gradient of it.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        shape: Shape,
        dtype: Any,
        needs_dx: bool,
        first: int = 0,
        flat: bool = False,
    ) -> None:
        unlimited = np.array(UNLIMITED, dtype)
        arena, self.work = Arena(dtype), Workspace()
        as_given = not needs_dx and only_convolved(first, operations)
        z = np.empty(shape, dtype) if as_given else None  # until images are given: of their type and shape
        self.images = FeatureMap(shape, unlimited, z, plain=True, flat=flat)
        self.images.needed = needs_dx
        if not as_given:
            self.images.z = arena.array(*self.images.shape)
        self.as_given = as_given
        maps = {first: self.images}
        self.steps: list[Step] = []
        for i, operation in enumerate(operations, start=first):
            inputs = [maps[j] for j in operation.inputs]
            if operation.kind == "activation":
                maps[i + 1] = inputs[0].view(operation)
                continue
            plain = operation.kind not in ("conv", "depthwise")
            bounds = unlimited if plain else operation.bounds(dtype)
            out = maps[i + 1] = FeatureMap(operation.shape, bounds, None, plain, operation.flat)
            out.swish = not plain and operation.swish()
            out.z = arena.array(*out.shape)
            out.needed = operation.learns() or any(source.needed for source in inputs)
            self.steps.append(KINDS[operation.kind](operation, inputs, out, self.work))
        self.maps, self.out = list(maps.values()), maps[first + len(operations)]
        self.seen = operations[-1].seen()
        self.work.ask("sums", self.out.shape[0], 2, self.out.shape[3])
        self._plan_gradients(arena)
        for step in self.steps:
            step.reserve()
        self.work.allocate(arena)
        for step in self.steps:
            step.prepare()
        out = self.out
        target = Target(out.g, False, self.work.part("sums", out.shape[0], 2, out.shape[3]), out.sums)
        self.begin = Call(kernels.pass_back, out.g, out.g, unlimited, out.source(), target)
        self.back = [step for step in reversed(self.steps) if step.out.needed]
        forth = (call for step in self.steps for call in step.forwards or [step.forward])
        self.forwards = joined([*forth, *out.activation()])
        back = (call for step in self.back for call in step.backwards or [step.backward])
        self.backwards = joined([self.begin, *back])
        # What a user may change between two passes.
        self.convolutions = [step for step in self.steps if isinstance(step, AnyConvolution)]
        self.versions: list[int] = []
        self.learned = [p for step in self.convolutions for p in step.learned if step.out.needed]
        # Kernels may clear the gradients that they add to where nothing else goes back, and none of them twice to one.
        once = len({*map(id, self.learned)}) == len(self.learned)
        self.may_clear = once and all(step.backwards for step in self.back)
        self.clears = False
        self.normalising = [(step, step.bn) for step in self.convolutions if step.bn and not step.exact]
        self.statistics = [v for _, bn in self.normalising for v in (bn.running_mean, bn.running_var)]
        self.constants: list[tuple[float, float]] = []

    def _plan_gradients(self, arena: Arena) -> None:
        """Give each gradient a buffer: it is needed from the last consumer on until its own step has gone back.

        One may take the place of another, where the step between them has read what it needs before it writes there.
        """
        slots, taken = Slots(), {}
        made = {step.out: k for k, step in enumerate(self.steps)} | {self.images: -1}
        reads = [[source.viewed for source in step.inputs] for step in self.steps]
        read = {source: [k for k, inputs in enumerate(reads) if source in inputs] for source in made}

        def give(source: FeatureMap) -> None:
            taken[source] = slots.take(int(np.prod(source.shape)))

        def apart(one: FeatureMap, other: FeatureMap, k: int) -> bool:
            """Return whether nothing is added to either gradient after step k while the other one is still needed."""
            pairs = (one, other), (other, one)
            return all(reader < made[b] for a, b in pairs for reader in read[a] if reader != k)

        if self.out.needed:
            give(self.out.viewed)
        for k, step in reversed(list(enumerate(self.steps))):
            if not step.out.needed:
                continue
            slot = taken[step.out]
            alone, sharing = slots.users[slot] == 1, list[FeatureMap]()
            for i, read_as in enumerate(step.inputs):
                source = read_as.viewed
                if not source.needed:
                    continue
                step.adds[i] = source in taken
                if source in taken:
                    continue
                if step.shares(read_as) and alone and all(apart(source, other, k) for other in sharing):
                    taken[source] = slot
                    slots.users[slot] += 1
                    sharing.append(source)
                else:
                    give(source)
            slots.users[slot] -= 1
        buffers = [arena.array(size) for size in slots.sizes]
        for source in self.maps:
            if source.viewed in taken:
                source.g = middle(buffers[taken[source.viewed]], source.shape)

    def forward(self, x: np.ndarray, clock: Clock | None = None) -> np.ndarray:
        """Return the output of the last step for x, which is kept, and read again by `backward`."""
        if self.as_given:
            self.images.z = x
            self.images.source().change(z=x)
        else:
            self.images.z[..., : self.images.channels] = x
        self._prepare_forward()
        if clock:
            for step in self.steps:
                clock(step.operation.names, False, step.forward)
            return self.out.values().reshape(self.seen)
        for call in self.forwards:
            call()
        return self.out.read().reshape(self.seen)

    def _prepare_forward(self) -> None:
        self.versions = [step.layer.weight.version for step in self.convolutions]
        for step in self.convolutions:
            if step.stored is not None:
                step.weights()
            if step.exact:
                step.refresh()
        constants = [(bn.eps, bn.momentum) for _, bn in self.normalising]
        if constants != self.constants:
            for step, bn in self.normalising:
                step.statistics.change(eps=float(bn.eps), momentum=float(bn.momentum))
            self.constants = constants
        for statistic in self.statistics:  # the kernels will change them
            statistic.touch()

    def _prepare_backward(self, may_clear: bool) -> None:
        versions = [step.layer.weight.version for step in self.convolutions]
        if versions != self.versions:
            for step in self.convolutions:
                step.reread()
            self.versions = versions
        clears = may_clear and all(p.cleared for p in self.learned)
        if clears != self.clears:
            self.clears = clears
            for step in self.convolutions:
                step.gradient.change(clears=clears)
        for p in self.learned:
            if clears:
                p.take_grad()
            else:
                p.settle()

    def backward(self, dy: np.ndarray, clock: Clock | None = None) -> np.ndarray | None:
        """Add every gradient, from that of what `forward` returned; return that of its input where it is needed."""
        out = self.out
        dy = checks.gradient(dy, self.seen, out.z).reshape((*out.shape[:3], out.channels))
        if not out.needed:
            return None
        out.g[..., : out.channels] = dy
        out.g[..., out.channels :] = 0
        kept = [(p, p.grad.copy()) for p in self.learned if p.frozen]  # since forward
        self._prepare_backward(self.may_clear and not clock)
        if clock:
            self.begin()
            for step in self.back:
                clock(step.operation.names, True, step.backward)
        else:
            for call in self.backwards:
                call()
        for p, grad in kept:
            p.grad = grad
        return np.array(self.images.g[..., : self.images.channels]) if self.images.needed else None
