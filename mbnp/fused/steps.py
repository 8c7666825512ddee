"""What each kind of operation does in a training step through the fused kernels, and the feature maps between them.

A step is one operation of `match.py`. A convolution's step keeps its raw output z, and what the consumers of z need to
activate it. Everything else is made again where it is needed.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mbnp.backend import Call
from mbnp.backend.vectors import padded
from mbnp.containers import join_rows, split_rows
from mbnp.errors import MbnpError
from mbnp.fused import kernels, windows
from mbnp.fused.kernels.arrays import Gradient, Source, Statistics, Target, Work
from mbnp.fused.kernels.depthwise import Window, is_three, scratch_vectors
from mbnp.fused.kernels.largest import Pool
from mbnp.fused.match import UNLIMITED, Operation, channels_before, geometry
from mbnp.fused.workspace import Arena, Shape, Workspace
from mbnp.network import Layer, Pyramid, Residual, Sequential
from mbnp.ops import batchnorm
from mbnp.parameter import Parameter

Clock = Callable[[tuple[str, ...], bool, Callable[[], None]], None]  # (names, backward, a step) runs the step


class FeatureMap:
    """What one step makes and others read: z, and the BatchNorm and activation that its consumers apply to it."""

    def __init__(
        self, shape: Shape, bounds: np.ndarray, z: np.ndarray | None = None, plain: bool = False, flat: bool = False
    ) -> None:
        dtype = bounds.dtype
        self.channels = shape[3]
        self.shape = shape if z is not None else (*shape[:3], padded(shape[3], dtype))
        self.pixels = int(np.prod(shape[:3]))
        self.z = np.empty(0, dtype) if z is None else z
        self.bounds, self.swish, self.plain, self.flat = bounds, False, plain, flat
        self._viewed: FeatureMap | None = None  # not itself: a cycle would keep all memory until it is collected
        self.scale_shift = np.zeros((5, self.shape[3]), dtype)
        self.scale_shift[[1, 3]] = 1
        self.sums = np.zeros((2, self.shape[3]))  # of the gradient g; see `kernels`
        self.needed = False  # whether its gradient is
        self._source: Source | None = None
        self._activation: list[Call] = []
        self.g = np.empty((0, *self.shape[1:]), dtype)

    def source(self) -> Source:
        if self._source is None:
            self._source = Source(self.z, self.scale_shift, self.bounds[0], self.bounds[1], self.swish, self.plain)
        return self._source

    @property
    def viewed(self) -> "FeatureMap":
        """The map whose z and gradient these are: this one, or where it is a view, which has only its activation."""
        return self._viewed or self

    def view(self, operation: Operation) -> "FeatureMap":
        """Return this map as consumers read it that apply one more activation."""
        view = copy.copy(self)
        (low, high), (low2, high2) = self.bounds, operation.bounds(self.bounds.dtype)
        view.bounds = np.array([np.fmax(low, low2), np.fmin(high, high2)], self.bounds.dtype)
        view._viewed = self.viewed
        view.swish, view.plain, view._source, view._activation = operation.swish(), False, None, []
        return view

    def linear(self) -> bool:
        """Return whether no activation is applied to it."""
        return not (self.swish or np.isfinite(self.bounds).any())

    def activation(self) -> list[Call]:
        """Return the call that makes what `read` returns, if one has to."""
        if not (self.plain or self._activation):
            self._activated = np.empty(self.shape, self.z.dtype)
            self._activation = [Call(kernels.activate, self.source(), self._activated)]
        return self._activation

    def read(self) -> np.ndarray:
        """Return what its consumers see, (N, H, W, C) or where it is flat (N, C), in an array of the caller's own."""
        y = np.array((self._activated if self._activation else self.z)[..., : self.channels])
        return y.reshape(len(y), -1) if self.flat else y

    def values(self) -> np.ndarray:
        """Activate it and return what `read` does."""
        for call in self.activation():
            call()
        return self.read()


class Step:
    """One operation, its arrays for one input shape, and whether the gradient of each input is needed and added to."""

    def __init__(self, operation: Operation, inputs: list[FeatureMap], out: FeatureMap, work: Workspace) -> None:
        self.operation, self.inputs, self.out, self.work = operation, inputs, out, work
        self.adds = [False] * len(inputs)
        self._targets: dict[tuple[int, int], Target] = {}
        self.forwards: list[Callable[[], None]] = []
        self.backwards: list[Callable[[], None]] = []

    def reserve(self) -> None:
        """Find out what depends on which gradients are added to, and ask for memory to work in."""

    def prepare(self) -> None:
        """Once all memory is there, say which calls go forward, and which go back.

        Those that go back add to the gradients of parameters, and make or add to those of the inputs, from out.g and
        out.sums. A step without calls has `forward` and `backward` of its own.
        """

    def forward(self) -> None:
        for call in self.forwards:
            call()

    def backward(self) -> None:
        for call in self.backwards:
            call()

    def shares(self, source: FeatureMap) -> bool:
        """Return whether an input's gradient may take the place of the output's."""
        return False

    def give_back(self, i: int, dx: np.ndarray) -> None:
        """Make or add to the gradient of an input from dx, of what was read of it."""
        source = self.inputs[i]
        if source.needed:
            unlimited = np.array(UNLIMITED, source.bounds.dtype)
            incoming = self.work.part("incoming", *source.shape)
            incoming[..., : source.channels] = np.reshape(dx, (*source.shape[:3], source.channels))
            incoming[..., source.channels :] = 0
            kernels.pass_back(incoming, incoming, unlimited, source.source(), self.target(i, source.shape[0]))

    def target(self, i: int, parts: int) -> Target:
        """Return where the gradient of an input goes, once all memory is there."""
        source, key = self.inputs[i], (i, parts)
        if key not in self._targets:
            sums = self.work.part("sums", parts, 2, source.shape[3])
            self._targets[key] = Target(source.g, self.adds[i], sums, source.sums)
        return self._targets[key]


class AnyConvolution(Step):
    """What convolutions of all kinds share: weights as they are stored, and the BatchNorm after them."""

    counts: np.ndarray  # (tiles,) pixels of each tile that moments are taken of

    def __init__(self, operation: Operation, inputs: list[FeatureMap], out: FeatureMap, work: Workspace) -> None:
        super().__init__(operation, inputs, out, work)
        self.layer, self.bn = operation.layer, operation.bn
        dtype, D = out.bounds.dtype, out.shape[3]
        self.line = operation.line(dtype)
        self.coefficients = np.zeros((3, D), dtype)
        self.coefficients[0] = out.scale_shift[1] = self.line[0]
        self.no_bias = np.zeros(out.channels, dtype)

    def _store(self, rows: int, channels: int) -> None:
        """Make room for the weights (rows, channels in, D) where their channels do not fill vectors."""
        self.stored: np.ndarray | None = None
        if self.layer.weight.value[..., 0].size != rows * channels or self.out.channels != self.out.shape[3]:
            self.stored = np.zeros((rows, channels, self.out.shape[3]), self.out.bounds.dtype)

    def weights(self) -> np.ndarray:
        w = self.layer.weight.value
        if self.stored is None:
            return w.reshape(-1, w.shape[-1])
        matrix = w.reshape(len(self.stored), -1, w.shape[-1])
        self.stored[:, : matrix.shape[1], : matrix.shape[2]] = matrix
        return self.stored.reshape(-1, self.stored.shape[2])

    def _bias(self) -> np.ndarray:
        return self.no_bias if self.layer.bias is None else self.layer.bias.value

    def prepare(self) -> None:
        out, bn, bias = self.out, self.bn, self.layer.bias
        none = np.empty(0, out.bounds.dtype)
        pixels, normalises = np.inf, (none, none, none, none, self._bias(), 0.0, 0.0)
        self.exact = bn is None or bn.weight.frozen  # whether scale and shift are constants
        if bn is not None and not bn.weight.frozen:
            batchnorm.check_count(out.pixels)
            pixels, (mean, var) = float(out.pixels), (bn.running_mean.value, bn.running_var.value)
            normalises = bn.weight.value, bn.bias.value, mean, var, self._bias(), bn.eps, bn.momentum
        dbias = none if bias is None or not self.exact else _gradient(bias)
        moments = self.work.part("moments", len(self.counts), 2, out.shape[3])
        self.statistics = Statistics(moments, self.counts, *normalises, out.scale_shift)
        dgamma, dbeta = (none, none) if bn is None else (_gradient(bn.weight), _gradient(bn.bias))
        self.gradient = Gradient(
            out.g, out.z, out.scale_shift, self.coefficients, out.sums, pixels, dgamma, dbeta, dbias, False
        )  # fmt: skip
        after = [] if bn is None else [bn.weight, bn.bias]
        added = [self.layer.weight, *([bias] if dbias.size else []), *after]  # to whose gradients the kernel adds
        self.learned = [p for p in added if not p.frozen]

    def refresh(self) -> None:
        """Before forward, make scale_shift of a frozen BatchNorm's running statistics, or of a bias alone."""
        bn, out, C = self.bn, self.out, self.out.channels
        if bn is None:
            slope, offset = self.line
            out.scale_shift[2, :C] = self._bias() * slope + offset
        else:
            inv = 1 / np.sqrt(bn.running_var.value.astype(np.float64) + bn.eps)
            mean = bn.running_mean.value - self._bias()
            out.scale_shift[:, :C] = np.stack([mean, bn.weight.value * inv, bn.bias.value, inv, 0 * inv])

    def reread(self) -> None:
        """Read the weights again, which have changed since forward."""
        if self.stored is not None:
            self.weights()


class Conv(AnyConvolution):
    """A convolution of any kernel that is no depthwise one, or a linear layer."""

    def __init__(self, operation: Operation, inputs: list[FeatureMap], out: FeatureMap, work: Workspace) -> None:
        super().__init__(operation, inputs, out, work)
        shape = geometry(self.layer, inputs[0].shape)
        C, D, P, dtype, w = inputs[0].shape[3], out.shape[3], out.pixels, out.bounds.dtype, self.layer.weight
        self.taps, self.rows = shape[0] * shape[1], shape[0] * shape[1] * C
        self._store(self.taps, C)
        self.flat = shape == (1, 1, 1, 0, 0)
        # Partial gradients of many weights and few pixels would take as much memory as copies of what they are made of.
        self.whole = self.flat and self.stored is None and padded(C, dtype) == C and not w.frozen
        self.whole = self.whole and windows.groups(P, self.rows * D) * self.rows * D >= P * (C + D)
        plan = windows.flat(P, C, D, padded(1, dtype), self.whole) if self.flat else None
        self.plan = plan or windows.plan(shape, inputs[0].shape, out.shape)
        self.counts = self.plan.counts
        self.groups = windows.groups(self.plan.tiles, self.rows * D)
        # Forward, and transposed where it is needed; or the parameter's own array, from which tasks pack panels.
        self.packed = w.value.reshape(1, -1)
        if not self.whole:
            self.packed = Arena(dtype, 0).array(1 + inputs[0].needed, self.rows * D)
        self.copied = P * self.whole  # pixels
        self.parts = (0, 0, D) if self.whole else (self.groups, self.rows, D)
        self.summed = self.plan.tiles if self.whole else self.groups
        work.ask("a", self.copied, C)
        work.ask("dz", self.copied, D)
        work.ask("scratch", self.plan.scratch)
        work.ask("parts", *self.parts)
        work.ask("moments", self.plan.tiles, 2, D)
        work.ask("sums", self.summed, 2, C)

    def shares(self, source: FeatureMap) -> bool:
        return self.flat and source.shape == self.out.shape

    def reserve(self) -> None:
        # The products are added to before they are masked, which is the same only for one clip that all readers share.
        source = self.inputs[0]
        self.apart = self.adds[0] and (source.swish or source.viewed is not source)
        if self.apart:
            self.work.ask("incoming", *source.shape)
            self.work.ask("sums", source.shape[0], 2, source.shape[3])

    def prepare(self) -> None:
        super().prepare()
        out, source, w = self.out, self.inputs[0], self.layer.weight
        C, D = source.shape[3], out.shape[3]
        a, dz = self.work.part("a", self.copied * C), self.work.part("dz", self.copied * D)
        work = Work(self.work.scratch(), self.work.part("parts", *self.parts), self.plan.tiles, a, dz)
        tables = self.plan.windows, self.plan.tables
        shared, weights = (self.packed, *tables, work), self.weights()
        self.packing = None if self.whole else Call(kernels.pack_weights, weights, self.packed, *tables)
        self.forwards = [Call(kernels.conv_forward, source.source(), weights, *shared, out.z, self.statistics)]
        if w.frozen and not source.needed:
            self.backwards = [Call(kernels.normalise_backward, self.gradient)]
            return
        target, last = self.target(0, self.summed), list[Call]()
        if self.apart:
            incoming, unlimited = self.work.part("incoming", *source.shape), np.array(UNLIMITED, out.bounds.dtype)
            target = replace(target, g=incoming, add=False)
            linear = replace(source.source(), low=unlimited[0], high=unlimited[1], swish=False)
            last = [Call(kernels.pass_back, incoming, incoming, unlimited, linear, self.target(0, len(incoming)))]
        self.backwards = [Call(kernels.conv_backward, self.gradient, source.source(), *shared, target, _rows(w)), *last]

    def reread(self) -> None:
        super().reread()
        if self.packing:
            self.packing()


class Depthwise(AnyConvolution):
    def __init__(self, operation: Operation, inputs: list[FeatureMap], out: FeatureMap, work: Workspace) -> None:
        super().__init__(operation, inputs, out, work)
        (N, H, W, C), (_, OH, OW, _) = inputs[0].shape, out.shape
        kernel, _, stride, top, left = geometry(self.layer, inputs[0].shape)
        self.window = Window(kernel, stride, top, left)
        self.counts = np.full(N, OH * OW, np.int64)
        self.taps = kernel * kernel
        self._store(self.taps, 1)
        vector = padded(1, out.bounds.dtype)
        work.ask("scratch", scratch_vectors(self.window, H, W, OH, OW) * vector + C)
        # Whether the input's gradient, which the kernel makes on the way, is read by nobody.
        self.unused = out.needed and not inputs[0].needed
        if self.unused:
            work.ask("unused", *inputs[0].shape)
        self.groups = windows.groups(N, self.taps * C)
        work.ask("parts", self.groups, self.taps, C)
        work.ask("moments", N, 2, C)
        work.ask("sums", self.groups, 2, C)

    def shares(self, source: FeatureMap) -> bool:
        return source.shape == self.out.shape

    def prepare(self) -> None:
        super().prepare()
        (N, *_, C), source, w = self.out.shape, self.inputs[0], self.layer.weight
        if self.unused:
            source.g = self.work.part("unused", *source.shape)
        none = self.out.z[:0]
        parts = self.work.part("parts", self.groups, self.taps, C)
        work = Work(self.work.scratch(), parts, N, none.ravel(), none.ravel())
        shared = source.source(), self.weights(), self.window, work
        three = is_three(self.window)
        run = kernels.depthwise_forward if three else kernels.depthwise_any_forward
        self.forwards = [Call(run, *shared, self.out.z, self.statistics)]
        run = kernels.depthwise_backward if three else kernels.depthwise_any_backward
        self.backwards = [Call(run, self.gradient, *shared, self.target(0, self.groups), _rows(w))]
        if w.frozen and not source.needed:
            self.backwards = [Call(kernels.normalise_backward, self.gradient)]


class Sum(Step):
    """A residual's branches, added and activated."""

    def __init__(self, operation: Operation, inputs: list[FeatureMap], out: FeatureMap, work: Workspace) -> None:
        super().__init__(operation, inputs, out, work)
        self.bounds = operation.bounds(out.bounds.dtype)
        work.ask("sums", out.shape[0], 2, out.shape[3])

    def shares(self, source: FeatureMap) -> bool:
        return source.linear()

    def prepare(self) -> None:
        out, (first, second) = self.out, self.inputs
        self.forwards = [Call(kernels.add, first.source(), second.source(), self.bounds, out.z)]
        self.backwards = [
            Call(kernels.pass_back, out.g, out.z, self.bounds, source.source(), self.target(i, out.shape[0]))
            for i, source in enumerate(self.inputs)
            if source.needed
        ]


class Average(Step):
    def __init__(self, operation: Operation, inputs: list[FeatureMap], out: FeatureMap, work: Workspace) -> None:
        super().__init__(operation, inputs, out, work)
        N, *_, C = out.shape
        work.ask("sums", N, 2, C)
        work.ask("means", N, C)

    def prepare(self) -> None:
        N, *_, C = self.out.shape
        source, means = self.inputs[0].source(), self.work.part("means", N, C)
        self.forwards = [Call(kernels.average_forward, source, self.out.z)]
        self.backwards = [Call(kernels.average_backward, self.out.g, source, means, self.target(0, N))]


class Largest(Step):
    """Max pooling, or every stride-th pixel."""

    def __init__(self, operation: Operation, inputs: list[FeatureMap], out: FeatureMap, work: Workspace) -> None:
        super().__init__(operation, inputs, out, work)
        N, H, W, C = inputs[0].shape
        self.pool = Pool(*geometry(operation.layer, inputs[0].shape), channels_before(operation.layer))
        work.ask("scratch", H * W * padded(1, out.bounds.dtype))
        work.ask("sums", N, 2, C)

    def prepare(self) -> None:
        out, source, scratch = self.out, self.inputs[0].source(), self.work.scratch()
        self.forwards = [Call(kernels.largest_forward, source, self.pool, out.z)]
        target = self.target(0, out.shape[0])
        self.backwards = [Call(kernels.largest_backward, out.g, source, self.pool, scratch, target)]


class Gate(Step):
    """A feature map, times a factor for each image and channel."""

    def __init__(self, operation: Operation, inputs: list[FeatureMap], out: FeatureMap, work: Workspace) -> None:
        super().__init__(operation, inputs, out, work)
        self.unlimited = np.array(UNLIMITED, out.bounds.dtype)
        N, *_, C = out.shape
        work.ask("sums", N, 2, C)
        work.ask("ds", N, 1, 1, C)
        work.ask("unused", *out.shape)

    def prepare(self) -> None:
        out, (first, second) = self.out, self.inputs
        N, *_, C = out.shape
        source, factors = first.source(), second.source()
        ds, target = self.work.part("ds", N, 1, 1, C), self.target(0, N)
        if not first.needed:
            target = replace(target, g=self.work.part("unused", *first.shape))
        self.forwards = [Call(kernels.gate_forward, source, factors, out.z)]
        self.backwards = [Call(kernels.gate_backward, out.g, source, factors, target, ds)]
        if second.needed:
            self.backwards.append(Call(kernels.pass_back, ds, ds, self.unlimited, factors, self.target(1, N)))


class Reference(Step):
    """A layer of the reference network as it is: a copy, which shares its parameters and not what forward saves."""

    def __init__(self, operation: Operation, inputs: list[FeatureMap], out: FeatureMap, work: Workspace) -> None:
        super().__init__(operation, inputs, out, work)
        self.layer = own(operation.layer)
        N, *_, C = inputs[0].shape
        work.ask("sums", N, 2, C)
        work.ask("incoming", N, *inputs[0].shape[1:])

    def forward(self) -> None:
        x = self.inputs[0].values()
        self.out.z[..., : self.out.channels] = run_layer(self.layer, self.operation, x, True)
        self.out.z[..., self.out.channels :] = 0

    def backward(self) -> None:
        out = self.out
        dy = np.ascontiguousarray(out.g[..., : out.channels])
        self.give_back(0, self.layer.backward(dy.reshape(len(dy), -1) if self.operation.flat else dy))


class Rows(Step):
    """A row for each anchor, of what a detector's heads make."""

    def __init__(self, operation: Operation, inputs: list[FeatureMap], out: FeatureMap, work: Workspace) -> None:
        super().__init__(operation, inputs, out, work)
        for source in inputs:
            work.ask("sums", source.shape[0], 2, source.shape[3])
            work.ask("incoming", *source.shape)

    def forward(self) -> None:
        self.out.z[:, 0, :, : self.out.channels] = join_rows([source.values() for source in self.inputs])
        self.out.z[..., self.out.channels :] = 0

    def backward(self) -> None:
        shapes = [(*source.shape[:3], source.channels) for source in self.inputs]
        for i, dx in enumerate(split_rows(self.out.g[:, 0, :, : self.out.channels], shapes)):
            self.give_back(i, dx)


def run_layer(layer: Layer, operation: Operation, x: np.ndarray, train: bool) -> np.ndarray:
    """Return a reference layer's output (N, H, W, C) for x, which is flat where its input is."""
    y = layer.forward(x, train)
    expected = operation.seen()
    if y.shape != expected:
        raise MbnpError(f"{operation.names[0]} made {y.shape} where its output_shape says {expected}")
    return y.reshape(operation.shape)


def own(layer: Any) -> Any:
    """Return a copy of a layer that shares its parameters but not what forward saves for backward."""
    layer = copy.copy(layer)
    if isinstance(layer, Sequential):
        layer.layers = {name: own(child) for name, child in layer.layers.items()}
    if isinstance(layer, Residual):
        layer.shortcut = layer.shortcut and own(layer.shortcut)
    if isinstance(layer, Pyramid):
        layer.boxes, layer.scores = (
            {name: own(head) for name, head in heads.items()} for heads in (layer.boxes, layer.scores)
        )
    return layer


def _gradient(parameter: Parameter) -> np.ndarray:
    """Return the array that a gradient is added to; a throw-away one where the parameter is frozen."""
    return np.zeros_like(parameter.grad) if parameter.frozen else parameter.grad


def _rows(parameter: Parameter) -> np.ndarray:
    """Return the gradient as the kernels add to it: a row for each tap, or each tap's channel; no row if frozen."""
    rows = parameter.grad.reshape(-1, parameter.grad.shape[-1])
    return rows[:0] if parameter.frozen else rows


KINDS: dict[str, type[Step]] = {
    "conv": Conv, "depthwise": Depthwise, "sum": Sum, "average": Average, "largest": Largest, "sample": Largest,
    "gate": Gate, "rows": Rows, "layer": Reference,
}  # fmt: skip
