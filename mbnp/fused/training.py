"""A training step through the fused kernels: the stages, their buffers, and the order of the calls.

A stage is one convolution with the BatchNorm and ReLU after it. It keeps its raw output z, and what whoever reads z
needs to activate it. Everything else is made again where it is needed.
"""

import itertools
import math
from typing import Any

import numpy as np

from mbnp.fused import batchnorm, kernels
from mbnp.fused.buffers import Arena, scratch
from mbnp.fused.chain import (
    Shape,
    Triple,
    fill,
    geometry,
    head,
    identity,
    limits_of,
    output_shape,
    padded_picture,
    stored,
)
from mbnp.fused.kernels import width
from mbnp.layers import Conv, Depthwise, Pointwise
from mbnp.network import Layer
from mbnp.ops import checks
from mbnp.parameter import Parameter

GROUPS = 8  # partial weight gradients of a pointwise convolution: for threads to share, and few to add up
TILE = 1 << 14  # floats of a tile of a pointwise convolution: it and its neighbours are in half of 1 MB of L2
PIXELS = 128  # of such a tile, at least: fewer would load the weights for too little work


class Stored:
    """A matrix of weights as the kernels read it: itself, or where its channels do not fill vectors a larger copy."""

    def __init__(self, weights: np.ndarray, rows: int, columns: int, arena: Arena) -> None:
        self.weights = weights
        self.matrix = weights if weights.shape == (rows, columns) else arena.zeros(rows, columns)

    def refresh(self) -> None:
        """Take over what the weights are now."""
        if self.matrix is not self.weights:
            fill(self.weights, self.matrix)


class Stage:
    """A convolution, its BatchNorm and ReLU, and their buffers for one input shape.

    `shape` is of the input and the output as they are stored, with channels of zeros that fill up the last vector.
    """

    def __init__(self, triple: Triple, shape: Shape, arena: Arena) -> None:
        self.conv, self.bn, self.limits = triple.conv, triple.bn, triple.limits
        self.dtype = triple.limits.dtype
        self.unlimited = limits_of(None, self.bn)
        self.in_shape, self.shape = shape, stored(output_shape(triple, shape), self.dtype)
        self.channels = self.shape[-1]
        self.pixels = int(np.prod(self.shape[:-1]))
        self.z = arena.array(*self.shape)
        self.affine, self.adjoint = arena.zeros(5, self.channels), arena.zeros(3, self.channels)
        # Arguments of the kernels, put together once, at the first call.
        self.forward_arguments: tuple = ()
        self.backward_arguments: tuple = ()
        self.counts = self._counts()
        # Lent by the plan: g, of which two are needed at once, and what `working` has a shape for, of which one is.
        self.g = self.moments = self.parts = self.w_t = self.sums_in = np.empty(0, self.dtype)
        self.working: dict[str, Shape] = {"moments": (len(self.counts), 2, self.channels)}
        self.sums = np.empty((0, 2, self.channels))  # made with g, by the stage that follows or the end

    def _counts(self) -> np.ndarray:
        """Pixels of each part of z that `moments` has an entry for: the images, unless a stage says otherwise."""
        n, h, w, _ = self.shape
        return np.full(n, h * w, np.int64)

    def scratch_floats(self) -> int:
        """Floats of scratch that a thread needs."""
        raise NotImplementedError

    def normalise(self) -> None:
        """From the moments that forward left: `affine`, and the running statistics."""
        if self.bn.weight.frozen:
            batchnorm.running_affine(self.bn, self.affine)
        else:
            batchnorm.finish_forward(self.bn, self.moments, self.counts, self.pixels, self.affine)

    def finish_gradient(self) -> None:
        """From the sums over g: BatchNorm's own gradients, and `adjoint`."""
        batchnorm.finish_backward(self.bn, self.sums, self.pixels, self.affine, self.adjoint)


class Given:
    """What a chain begins with that is no stage: the activated output of what is frozen before it, in `z`."""

    def __init__(self, shape: Shape, arena: Arena) -> None:
        self.shape = shape
        self.affine, self.limits = identity(shape[-1], arena.dtype)
        self.z = arena.array(*shape)
        self.g = np.empty(0, arena.dtype)  # lent by the plan, as a stage's
        self.sums = np.empty((0, 2, shape[-1]))  # made with g; nobody reads either


def _pixels(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _middle(buffer: np.ndarray, shape: Shape) -> np.ndarray:
    """An array of `shape` in the middle of a buffer, so that of two threads each writes where it wrote before.

    At the beginning cores would take cache lines from one another, which depthwise backward at stride 2 pays for most.
    """
    size = math.prod(shape)
    first = (buffer.size - size) // 32 * 16
    return buffer[first : first + size].reshape(shape)


def _target(parameter: Parameter) -> np.ndarray:
    """The rows that a kernel adds a gradient to: none where nobody learns from it."""
    rows = _pixels(parameter.grad)
    return rows[:0] if parameter.frozen else rows


class StemStage(Stage):
    """The first convolution, on pictures, whose gradient nobody needs."""

    def __init__(self, triple: Triple, shape: Shape, arena: Arena) -> None:
        super().__init__(triple, shape, arena)
        self.geometry = geometry(self.conv, shape)
        self.padded = padded_picture(self.conv, self.geometry[0], *self.shape[1:3])
        taps = self.padded.offsets.size
        self.eights = np.concatenate([self.padded.offsets, np.zeros(-taps % 8, np.int64)])
        self.w = arena.zeros(taps + 1, self.channels)
        self.working["parts"] = (shape[0], self.eights.size + 1, self.channels)
        self.no_bias = arena.array(0, self.channels)

    def scratch_floats(self) -> int:
        return self.padded.size + self.shape[2] * width(self.dtype)

    def forward(self, x: np.ndarray, scratch: np.ndarray) -> None:
        fill(_pixels(self.conv.weight.value), self.w)
        if self.conv.bias is not None:
            fill(self.conv.bias.value[None], self.w[-1:])
        offsets, shape = self.padded
        kernels.stem_forward(x, self.w, offsets, self.unlimited, shape, *self.geometry, scratch, self.z, self.moments)

    def backward(self, x: np.ndarray, scratch: np.ndarray) -> None:
        kernels.stem_backward(
            self.g, self.z, self.affine, self.adjoint, x, self.eights, self.padded.shape, *self.geometry, scratch,
            self.parts, _target(self.conv.weight), self.no_bias if self.conv.bias is None else _target(self.conv.bias),
        )  # fmt: skip


class DepthwiseStage(Stage):
    def __init__(self, triple: Triple, shape: Shape, arena: Arena) -> None:
        super().__init__(triple, shape, arena)
        self.geometry = geometry(self.conv, shape)
        self.taps = Stored(self.conv.weight.value.reshape(9, -1), 9, self.channels, arena)
        self.working["parts"] = (shape[0], 9, self.channels)
        self.working["sums_in"] = (shape[0], 2, self.channels)

    def scratch_floats(self) -> int:
        (_, _, w, c), (_, _, ow, _) = self.in_shape, self.shape
        # Forward: rows of (ow - 1) * stride + 3 pixels; backward: of w + 2 or, at stride 2, of 2 * ow + 2.
        padded = max(w, 2 * ow) + 2
        return kernels.DEPTHWISE_ROWS * padded * width(self.dtype) + c

    def forward(self, source: Stage, scratch: np.ndarray) -> None:
        self.taps.refresh()
        if not self.forward_arguments:
            self.forward_arguments = (
                source.z, source.affine, source.limits, self.taps.matrix, self.unlimited, *self.geometry, scratch,
                self.z, self.moments,
            )  # fmt: skip
        kernels.depthwise_forward(*self.forward_arguments)

    def backward(self, source: Stage, scratch: np.ndarray) -> None:
        self.taps.refresh()
        if not self.backward_arguments:
            self.backward_arguments = (
                self.g, self.z, self.affine, self.adjoint, source.z, source.affine, source.limits, self.taps.matrix,
                *self.geometry, scratch, source.g, self.parts, self.sums_in,
            )  # fmt: skip
        kernels.depthwise_backward(*self.backward_arguments, _target(self.conv.weight))
        source.sums = self.sums_in


class PointwiseStage(Stage):
    def __init__(self, triple: Triple, shape: Shape, arena: Arena) -> None:
        super().__init__(triple, shape, arena)
        tiles = len(self.counts)
        # Two tiles are worth a partial gradient of their own. Of up to three each has one, for threads to share.
        self.group = max(-(-tiles // GROUPS), min(2, tiles // 2)) * self.tile
        groups = -(-self.pixels // self.group)
        self.w = Stored(self.conv.weight.value, shape[-1], self.channels, arena)
        self.working["w_t"] = (self.channels, shape[-1])
        self.working["parts"] = (groups, shape[-1], self.channels)
        self.working["sums_in"] = (groups, 2, shape[-1])

    def _counts(self) -> np.ndarray:
        widest = max(self.in_shape[-1], self.channels)
        self.tile = min(max(TILE // widest, PIXELS), -(-self.pixels // 2))
        starts = np.arange(0, self.pixels, self.tile)
        return np.minimum(self.tile, self.pixels - starts)

    def scratch_floats(self) -> int:
        return self.tile * (self.in_shape[-1] + self.channels) + self.in_shape[-1] * self.channels

    def forward(self, source: Stage, scratch: np.ndarray) -> None:
        self.w.refresh()
        if not self.forward_arguments:
            self.forward_arguments = (
                _pixels(source.z), source.affine, source.limits, self.w.matrix, self.tile, scratch, _pixels(self.z),
                self.moments,
            )  # fmt: skip
        kernels.pointwise_forward(*self.forward_arguments)

    def backward(self, source: Stage, scratch: np.ndarray) -> None:
        self.w.refresh()
        if not self.backward_arguments:
            self.backward_arguments = (
                _pixels(self.g), _pixels(self.z), self.affine, self.adjoint, _pixels(source.z), source.affine,
                source.limits, self.w.matrix, self.tile, self.group, scratch, self.w_t, _pixels(source.g), self.parts,
                self.sums_in,
            )  # fmt: skip
        kernels.pointwise_backward(*self.backward_arguments, _target(self.conv.weight))
        source.sums = self.sums_in


class Map:
    """The end of a chain where other layers go on: the last stage's output, activated."""

    def __init__(self, last: Stage, channels: int, arena: Arena) -> None:
        self.last, self.channels = last, channels
        self.out = arena.array(*last.shape)
        self.sums = np.empty((last.shape[0], 2, last.channels))

    def forward(self) -> np.ndarray:
        last = self.last
        kernels.normalise(last.z, last.affine, last.limits, last.z, False, self.out)
        return self.out[..., : self.channels].copy()

    def backward(self, dy: np.ndarray) -> None:
        last = self.last
        last.g[..., : self.channels] = checks.gradient(dy, (*last.shape[:-1], self.channels), last.z)
        last.g[..., self.channels :] = 0
        kernels.normalise_backward(last.g, self.out, last.z, last.affine, last.limits, last.g, self.sums)
        last.sums = self.sums


class Head:
    """A network's end: the average over the last stage's map, and the linear layer."""

    def __init__(self, last: Stage, linear: Any, arena: Arena) -> None:
        self.last, self.linear = last, linear
        n, w = last.shape[0], linear.weight.value
        self.z = last.z.reshape(n, -1, last.channels)
        self.group = -(-n // GROUPS)
        self.features, self.df = arena.array(n, len(w)), arena.array(n, len(w))
        self.da, self.part = arena.zeros(n, last.channels), arena.array(*w.shape)
        self.sums = np.empty((-(-n // self.group), 2, last.channels))

    def forward(self) -> np.ndarray:
        last, w, b = self.last, self.linear.weight.value, self.linear.bias.value
        logits = np.empty((len(self.z), b.size), b.dtype)
        kernels.head_forward(
            self.z, last.affine, last.limits, w, b, self.group, self.features, logits
        )  # fmt: skip
        return logits

    def backward(self, dy: np.ndarray) -> None:
        last, dw, db = self.last, _target(self.linear.weight), _target(self.linear.bias)
        dy = checks.gradient(dy, (len(self.z), self.linear.bias.value.size), last.z)
        kernels.head_backward(
            dy, self.features, self.linear.weight.value, self.z, last.affine, last.limits, self.group, self.df, self.da,
            last.g.reshape(self.z.shape), self.sums, self.part, dw, db,
        )  # fmt: skip
        last.sums = self.sums


class Plan:
    """The stages of a chain for one input shape, with all their buffers, and its end.

    A chain that begins with a depthwise convolution begins after frozen blocks: `given.z` is their output.
    `complete`: the end is the network's, too, and `forward` returns logits; else the layers of `tail` go on.
    """

    def __init__(self, triples: list[Triple], tail: list[Layer], shape: Shape) -> None:
        arena = Arena(triples[0].limits.dtype)
        kinds = {Conv: StemStage, Depthwise: DepthwiseStage, Pointwise: PointwiseStage}
        self.given = None
        if not isinstance(triples[0].conv, Conv):
            shape = stored(shape, arena.dtype)
            self.given = Given(shape, arena)
        self.stages: list[Any] = []
        for triple in triples:
            self.stages.append(kinds[type(triple.conv)](triple, shape, arena))
            shape = self.stages[-1].shape
        self._lend_gradients(arena)
        for name in ("moments", "sums_in"):
            self._lend(name, Arena(np.float64, block=0))  # means may be large
        for name in ("parts", "w_t"):
            self._lend(name, arena)
        self.scratch = scratch(max(s.scratch_floats() for s in self.stages), arena)
        last, channels = self.stages[-1], triples[-1].bn.weight.value.size
        linear = head(tail, (*shape[:-1], channels), arena.dtype)
        self.complete = linear is not None
        self.end = Head(last, linear, arena) if linear else Map(last, channels, arena)

    def _lend_gradients(self, arena: Arena) -> None:
        """A gradient is needed only until the one before it is made, so that two buffers take turns.

        Neighbours of one shape share theirs: a kernel has read what it needs of a gradient before it writes there.
        """
        borrowers = [self.given, *self.stages] if self.given else self.stages
        alike = [list(group) for _, group in itertools.groupby(borrowers, lambda borrower: borrower.shape)]
        for offset in (0, 1):
            turn = [borrower for group in alike[offset::2] for borrower in group]
            lent = arena.array(max((math.prod(b.shape) for b in turn), default=0))
            for borrower in turn:
                borrower.g = _middle(lent, borrower.shape)

    def _lend(self, name: str, arena: Arena) -> None:
        """One array for all stages that work in something of that name, since one stage at a time does."""
        shapes = {stage: stage.working[name] for stage in self.stages if name in stage.working}
        lent = arena.array(max(map(math.prod, shapes.values()), default=0))
        for stage, shape in shapes.items():
            setattr(stage, name, _middle(lent, shape))

    def _sources(self, x: np.ndarray) -> list[Any]:
        """What each stage reads."""
        return [self.given or x, *self.stages[:-1]]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The logits, or where the plan is not complete the activated output of the last stage (N, H, W, C)."""
        for stage, source in zip(self.stages, self._sources(x), strict=True):
            stage.forward(source, self.scratch)
            stage.normalise()
        return self.end.forward()

    def backward(self, x: np.ndarray, dy: np.ndarray) -> None:
        """Add every gradient, from dy, the gradient of what `forward` returned."""
        self.end.backward(dy)
        for stage, source in reversed(list(zip(self.stages, self._sources(x), strict=True))):
            stage.finish_gradient()
            # The gradient of what the first stage reads is needed by nobody.
            if stage is not self.stages[0] or stage.conv.trainable():
                stage.backward(source, self.scratch)
