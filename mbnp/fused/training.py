"""A training step through the fused kernels: the stages, their buffers, and the order of the calls.

A stage is one convolution with the BatchNorm and ReLU after it. It keeps its raw output z, and what whoever reads z
needs to activate it. Everything else is made again where it is needed.
"""

import math
from typing import Any

import numpy as np

from mbnp.fused import batchnorm, kernels
from mbnp.fused.buffers import Arena, Scratch
from mbnp.fused.chain import Triple, geometry
from mbnp.layers import Conv, Depthwise, Pointwise
from mbnp.network import Parameter

GROUPS = (
    8  # partial weight gradients of a pointwise convolution: enough threads to share, few enough to add up
)
TILE = 1 << 14  # floats of a tile of a pointwise convolution: it and its neighbours are in half of 1 MB of L2
PIXELS = 128  # of such a tile, at least: fewer would load the weights for too little work


class Stage:
    """A convolution, its BatchNorm and ReLU, and their buffers for one input shape."""

    def __init__(self, triple: Triple, shape: tuple[int, ...], arena: Arena) -> None:
        self.conv, self.bn, self.limits = triple.conv, triple.bn, triple.limits
        self.dtype = triple.limits.dtype
        self.in_shape, self.shape = shape, (shape[0], *triple.conv.output_shape(shape[1:]))
        self.channels = self.shape[-1]
        self.pixels = int(np.prod(self.shape[:-1]))
        self.lanes = kernels.lanes(self.channels)
        self.z = arena.array(*self.shape)
        self.g = np.empty(0, self.dtype)  # lent by the plan: two buffers serve all stages
        self.affine = arena.array(5, self.lanes)
        self.adjoint = arena.array(3, self.lanes)
        self.counts = self._counts()
        self.moments = np.empty((len(self.counts), 2, self.channels))  # float64: means may be large
        self.sums = np.empty((0, 2, self.channels), self.dtype)  # made with g, by the stage that follows

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
            batchnorm.finish_forward(self.bn, self.moments, self.counts, self.affine)

    def finish_gradient(self) -> None:
        """From the sums over g: BatchNorm's own gradients, and `adjoint`."""
        batchnorm.finish_backward(self.bn, self.sums, self.pixels, self.affine, self.adjoint)


class Given:
    """What a chain begins with that is no stage: the activated output of what is frozen before it, in `z`."""

    def __init__(self, shape: tuple[int, ...], arena: Arena) -> None:
        self.shape = shape
        self.lanes = kernels.lanes(shape[-1])
        self.affine = arena.array(5, self.lanes)
        self.affine[...] = np.array([0, 1, 0, 1, 0])[:, None]  # the identity
        self.limits = np.array([-np.inf, np.inf], arena.dtype)
        self.z = arena.array(*shape)
        self.g = np.empty(0, arena.dtype)  # lent by the plan, as a stage's


def _add(parts: np.ndarray, parameter: Parameter) -> None:
    """The parameter's gradient += the sum of parts over their first axis."""
    if not parameter.frozen:
        kernels.add_parts(parts.reshape(len(parts), -1), parameter.grad.reshape(-1))


def _pixels(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


class StemStage(Stage):
    """The first convolution, on pictures, whose gradient nobody needs."""

    def __init__(self, triple: Triple, shape: tuple[int, ...], arena: Arena) -> None:
        super().__init__(triple, shape, arena)
        kernel, _, c_in, c_out = self.conv.weight.value.shape
        self.geometry = (kernel, *geometry(self.conv, shape))
        self.no_bias = np.zeros(c_out, self.dtype)
        self.dw = arena.array(shape[0], kernel * kernel * c_in, c_out)
        self.db = arena.array(shape[0], c_out)

    def scratch_floats(self) -> int:
        _, oh, ow, c_out = self.shape
        kernel, stride, _, _ = self.geometry
        padded = ((oh - 1) * stride + kernel) * ((ow - 1) * stride + kernel) * self.in_shape[-1]
        return oh * ow * (self.dw.shape[1] + c_out) + padded

    def forward(self, x: np.ndarray, scratch: Scratch) -> None:
        w, b = self.conv.weight.value.reshape(self.dw.shape[1:]), self.conv.bias
        lanes = scratch.lanes(3, self.lanes)
        kernels.stem_forward(
            x,
            w,
            self.no_bias if b is None else b.value,
            *self.geometry,
            scratch.floats,
            lanes,
            self.z,
            self.moments,
        )

    def backward(self, x: np.ndarray, scratch: Scratch) -> None:
        kernels.stem_backward(
            self.g, self.z, self.affine, self.adjoint, x, *self.geometry, scratch.floats, self.dw, self.db
        )
        _add(self.dw, self.conv.weight)
        if self.conv.bias is not None:
            _add(self.db, self.conv.bias)


class DepthwiseStage(Stage):
    def __init__(self, triple: Triple, shape: tuple[int, ...], arena: Arena) -> None:
        super().__init__(triple, shape, arena)
        self.geometry = self.stride, _, _ = geometry(self.conv, shape)
        self.w = arena.array(9, self.lanes)
        self.dw = arena.array(shape[0], 9, self.channels)
        self.sums_in = arena.array(shape[0], 2, self.channels)

    def scratch_floats(self) -> int:
        (_, h, w, c), (_, oh, ow, _), s = self.in_shape, self.shape, self.stride
        padded = ((oh - 1) * s + 3) * ((ow - 1) * s + 3)
        margins = (max(h, oh) + 2) * (max(w, ow) + 2)
        return (padded + margins + max(w, 2 * ow + 1)) * c

    def forward(self, source: Stage, scratch: Scratch) -> None:
        kernels.spread_taps(self.conv.weight.value, False, self.w)
        kernels.depthwise_forward(
            source.z, source.affine, source.limits, self.w, *self.geometry, scratch.floats,
            scratch.lanes(3, self.lanes), self.z, self.moments,
        )  # fmt: skip

    def backward(self, source: Stage, scratch: Scratch) -> None:
        kernels.spread_taps(self.conv.weight.value, self.stride == 1, self.w)
        kernels.depthwise_backward(
            self.g, self.z, self.affine, self.adjoint, source.z, source.affine, source.limits, self.w, *self.geometry,
            scratch.floats, scratch.lanes(3, self.lanes), scratch.lanes(9, self.lanes), source.g, self.dw, self.sums_in,
        )  # fmt: skip
        source.sums = self.sums_in
        _add(self.dw, self.conv.weight)


class PointwiseStage(Stage):
    def __init__(self, triple: Triple, shape: tuple[int, ...], arena: Arena) -> None:
        super().__init__(triple, shape, arena)
        tiles = len(self.counts)
        self.group = -(-tiles // GROUPS) * self.tile
        groups = -(-self.pixels // self.group)
        self.dw = arena.array(groups, *self.conv.weight.value.shape)
        self.w_t = arena.array(self.channels, shape[-1])
        self.sums_in = arena.array(groups, 2, shape[-1])

    def _counts(self) -> np.ndarray:
        widest = max(self.in_shape[-1], self.channels)
        self.tile = min(max(TILE // widest, PIXELS), -(-self.pixels // 2))
        starts = np.arange(0, self.pixels, self.tile)
        return np.minimum(self.tile, self.pixels - starts)

    def scratch_floats(self) -> int:
        return self.tile * (self.in_shape[-1] + self.channels) + self.conv.weight.value.size

    def forward(self, source: Stage, scratch: Scratch) -> None:
        kernels.pointwise_forward(
            _pixels(source.z), source.affine, source.limits, self.conv.weight.value, self.tile, scratch.floats,
            scratch.lanes(3, self.lanes), _pixels(self.z), self.moments,
        )  # fmt: skip

    def backward(self, source: Stage, scratch: Scratch) -> None:
        self.w_t[...] = self.conv.weight.value.T
        kernels.pointwise_backward(
            _pixels(self.g), _pixels(self.z), self.affine, self.adjoint, _pixels(source.z), source.affine,
            source.limits, self.w_t, self.tile, self.group, scratch.floats,
            scratch.lanes(3, source.lanes), _pixels(source.g), self.dw, self.sums_in,
        )  # fmt: skip
        source.sums = self.sums_in
        _add(self.dw, self.conv.weight)


class Plan:
    """The stages of a chain for one input shape, with all their buffers.

    A chain that begins with a depthwise convolution begins after frozen blocks: `given.z` is their output.
    """

    def __init__(self, triples: list[Triple], shape: tuple[int, ...]) -> None:
        arena = Arena(triples[0].limits.dtype)
        kinds = {Conv: StemStage, Depthwise: DepthwiseStage, Pointwise: PointwiseStage}
        self.given = None if isinstance(triples[0].conv, Conv) else Given(shape, arena)
        self.stages: list[Any] = []
        for triple in triples:
            self.stages.append(kinds[type(triple.conv)](triple, shape, arena))
            shape = self.stages[-1].shape
        self._lend_gradients(arena)
        last = self.stages[-1]
        self.scratch = Scratch(max(s.scratch_floats() for s in self.stages), arena)
        self.out = arena.array(*last.shape)
        self.sums = arena.array(1, 2, shape[-1])

    def _lend_gradients(self, arena: Arena) -> None:
        """A gradient is needed only until the one before it is made, so that two buffers take turns."""
        borrowers = [self.given, *self.stages] if self.given else self.stages
        for offset in (0, 1):
            turn = borrowers[offset::2]
            lent = arena.array(max((math.prod(b.shape) for b in turn), default=0))
            for borrower in turn:
                borrower.g = lent[: math.prod(borrower.shape)].reshape(borrower.shape)

    def _sources(self, x: np.ndarray) -> list[Any]:
        """What each stage reads."""
        return [self.given or x, *self.stages[:-1]]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The activated output of the last stage (N, H, W, C), in a buffer of the plan's."""
        for stage, source in zip(self.stages, self._sources(x), strict=True):
            stage.forward(source, self.scratch)
            stage.normalise()
        last = self.stages[-1]
        kernels.activate(last.z, last.affine, last.limits, self.out)
        return self.out

    def backward(self, x: np.ndarray, dy: np.ndarray) -> None:
        """Add every gradient, from dy, the gradient of what `forward` returned."""
        last = self.stages[-1]
        last.g[...] = dy
        last.sums = self.sums
        kernels.activate_backward(
            last.z, last.affine, last.limits, self.scratch.lanes(3, last.lanes)[0], last.g, self.sums
        )
        for stage, source in reversed(list(zip(self.stages, self._sources(x), strict=True))):
            stage.finish_gradient()
            # The gradient of what the first stage reads is needed by nobody.
            if stage is not self.stages[0] or stage.conv.trainable():
                stage.backward(source, self.scratch)
