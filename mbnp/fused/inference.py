"""Inference: BatchNorm folded into the weights, and the operations of a network as a program for one kernel.

Weights are folded once for each version of the parameters and statistics they come from.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from mbnp import backend
from mbnp.backend.vectors import padded, width
from mbnp.containers import join_rows
from mbnp.fused.kernels import program as kernels
from mbnp.fused.match import Operation, channels_before, geometry, only_convolved
from mbnp.fused.steps import Clock, own, run_layer
from mbnp.fused.workspace import Arena, Shape
from mbnp.layers import BatchNorm, Dropout

CHUNK = 16  # images that a program is for, at most
LANE = 1 << 18  # entries of the largest feature map of the images that a thread takes, so that its cache holds it
PIXELS = 128  # of a task, at least: fewer would load the weights of its matrix product for too little work
TILE = 1 << 15  # floats of a task's widest array, at most
SHARES = 2  # of panels of weights among tasks, where pixels are few; a number of threads would change results

_version, _eps = attrgetter("version"), attrgetter("eps")


class Margins(NamedTuple):
    """Zeros around a feature map as it is stored, as its consumers' windows reach beyond it."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def or_wider(self, other: "Margins") -> "Margins":
        return Margins(*map(max, self, other))


class Stored(NamedTuple):
    """Where a feature map is: the entry of its first pixel, entries from image to image and from row to row."""

    at: int
    image: int
    row: int
    shape: Shape  # (N, H, W, C) as stored
    channels: int

    def view(self, data: np.ndarray) -> np.ndarray:
        """Return the feature map (N, H, W, C) without margins and further channels, in place."""
        strides = [step * data.itemsize for step in (self.image, self.row, self.shape[3], 1)]
        shape = (*self.shape[:3], self.channels)
        return np.lib.stride_tricks.as_strided(data[self.at :], shape, strides)


def fold(conv: Any, bn: BatchNorm | None) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and bias (D,) of the convolution that computes BN(conv(x)); worked out in float64."""
    w, dtype = conv.weight.value, conv.weight.value.dtype
    bias = np.zeros(w.shape[-1]) if conv.bias is None else conv.bias.value.astype(np.float64)
    if bn is None:
        return w, bias.astype(dtype)
    scale = bn.weight.value / np.sqrt(bn.running_var.value.astype(np.float64) + bn.eps)
    shift = bn.bias.value + (bias - bn.running_mean.value) * scale
    return np.ascontiguousarray((w * scale).astype(dtype)), shift.astype(dtype)


def pack(w: np.ndarray) -> np.ndarray:
    """Return w (K, D), D filling vectors, as panels of two vectors of columns (the last of one): see `ops.matmul`."""
    K, D = w.shape
    panel = 2 * width(w.dtype)
    pairs = D // panel
    panels = w[:, : pairs * panel].reshape(K, pairs, panel).swapaxes(0, 1)
    return np.concatenate([panels.ravel(), w[:, pairs * panel :].ravel()])


class Inference:
    """The program of a network's operations, for one shape of input, with the memory of all its feature maps.

    lanes: memories in which threads may run all of it at the same time, each for images of its own; see `batch`.
    """

    def __init__(self, operations: Sequence[Operation], shape: Shape, dtype: Any, lanes: int = 1) -> None:
        self.operations, self.dtype, self.seen = operations, np.dtype(dtype), operations[-1].seen()
        self.maps: dict[int, Stored] = {}
        self.weights_size = self.data_size = 0
        self.tables: list[int] = []
        self.folds: list[tuple[int, int, Operation]] = []  # offsets of weights and bias
        self.variables = [v for op in operations for layer in op.layers() for v in layer.variables().values()]
        self.bns = [op.bn for op in operations if op.bn]
        self.folded_from: tuple = ()
        margins = self._margins(shape)
        self._place(0, shape, margins[0], only_convolved(0, operations))
        for i, operation in enumerate(operations, start=1):
            if _is_nothing(operation):
                self.maps[i] = self.maps[operation.inputs[0]]
            elif not self._inside(i):
                self._place(i, operation.shape, margins[i])
        records: list[np.ndarray] = []
        self.parts: list[tuple[slice, Operation | None, tuple[str, ...]]] = []  # records, or a layer as it is
        self.layers: dict[int, Any] = {}
        self.scratch_size = 16
        records.append(self._copy())
        begin = 0
        for i, operation in enumerate(operations):
            if _is_nothing(operation):
                continue
            if operation.kind in ("layer", "rows"):
                if len(records) > begin:
                    self.parts.append((slice(begin, len(records)), None, ()))
                self.layers[i] = operation.layer and own(operation.layer)
                self.parts.append((slice(i, i), operation, operation.names))
            elif not self._inside(i + 1):
                records.append(self._record(i, operation))
                names = operation.names if not self._fused(i) else operations[i - 1].names + operation.names
                self.parts.append((slice(begin, len(records)), None, names))
            else:
                continue  # runs with the next operation
            begin = len(records)
        self.joined = _join(self.parts)
        self.program = np.array(records, kernels.STEP)
        self.table = np.array([*self.tables, *[0] * 8], np.int64)
        arena = Arena(dtype)
        self.weights, self.lanes = arena.array(self.weights_size + 64), arena.array(lanes, self.data_size)
        self.data = self.lanes[0]
        self.made = self.maps[len(operations)].view(self.data)  # once: for one small image NumPy's views take long
        self.whole = np.zeros(1, np.int64), np.empty((1, 1, 1, 1), dtype)  # of a program that all threads run together
        self.scratch = arena.array(backend.max_threads(), -(-self.scratch_size // 16) * 16)

    # -- which operations run as one, and where their outputs lie --

    def _consumers(self, i: int) -> list[Operation]:
        return [operation for operation in self.operations if i in operation.inputs]

    def _inside(self, i: int) -> bool:
        """Return whether map i lies between a depthwise and a pointwise convolution that run as one."""
        if i == 0 or self.operations[i - 1].kind != "depthwise" or i == len(self.operations):
            return False
        following = self.operations[i]
        return (
            self._consumers(i) == [following]
            and following.kind == "conv"
            and _is_pointwise(following, self.operations[i - 1].shape)
        )

    def _fused(self, i: int) -> bool:
        """Return whether operation i runs with the depthwise convolution before it."""
        return i > 0 and self.operations[i].inputs == (i,) and self._inside(i)

    def _margins(self, shape: Shape) -> list[Margins]:
        shapes = [shape, *(operation.shape for operation in self.operations)]
        margins = [Margins() for _ in shapes]
        for i, operation in reversed(list(enumerate(self.operations, start=1))):
            source = operation.inputs[0]
            if _is_nothing(operation):
                margins[source] = margins[source].or_wider(margins[i])
            elif operation.kind in ("conv", "depthwise"):
                _, H, W, _ = shapes[source]
                _, OH, OW, _ = operation.shape
                kernel, columns, stride, top, left = geometry(operation.layer, shapes[source])
                bottom, right = (OH - 1) * stride + kernel - top - H, (OW - 1) * stride + columns - left - W
                needed = Margins(top, max(bottom, 0), left, max(right, 0))
                margins[source] = margins[source].or_wider(needed)
        return margins

    def _place(self, i: int, shape: Shape, margins: Margins, as_given: bool = False) -> None:
        """Reserve memory for map i; images for a standard convolution keep their number of channels."""
        N, H, W, channels = shape
        C = channels if as_given else padded(channels, self.dtype)
        row = (margins.left + W + margins.right) * C
        image = (margins.top + H + margins.bottom) * row
        at = self.data_size + margins.top * row + margins.left * C
        self.maps[i] = Stored(at, image, row, (N, H, W, C), channels)
        # A whole number of cache lines, and a vector more, since the last load may reach beyond.
        self.data_size += -(-(N * image + width(self.dtype)) // 64) * 64

    # -- records --

    def _copy(self) -> np.ndarray:
        step, out = np.zeros((), kernels.STEP), self.maps[0]
        N, H, W, D = out.shape
        step["kind"], step["bands"], step["tasks"] = kernels.COPY, SHARES, N * SHARES
        step["H"], step["W"], step["C"], step["D"] = H, W, out.channels, D
        step["out"], step["out_image"], step["out_row"] = out.at, out.image, out.row
        return step

    def _record(self, i: int, operation: Operation) -> np.ndarray:
        step = np.zeros((), kernels.STEP)
        depthwise = self.operations[i - 1] if self._fused(i) else operation if operation.kind == "depthwise" else None
        source = self.maps[(depthwise or operation).inputs[0]]
        out = self.maps[i + 1]
        N, H, W, C = source.shape
        _, OH, OW, D = out.shape
        step["images"], step["H"], step["W"], step["C"], step["OH"], step["OW"], step["D"] = N, H, W, C, OH, OW, D
        step["source"], step["source_image"], step["source_row"] = source.at, source.image, source.row
        step["out"], step["out_image"], step["out_row"] = out.at, out.image, out.row
        step["low"], step["high"] = operation.bounds(self.dtype)
        step["swish"] = operation.swish()
        step["group"], step["band"], step["bands"], step["shares"], step["tasks"] = 1, OH, 1, 1, N
        if depthwise:
            kernel, _, stride, top, left = geometry(depthwise.layer, source.shape)
            step["depth_kernel"], step["depth_stride"], step["depth_top"], step["depth_left"] = (
                kernel,
                stride,
                top,
                left,
            )
            step["depth_low"], step["depth_high"] = depthwise.bounds(self.dtype)
            step["depth_swish"] = depthwise.swish()
            step["depth_weights"] = self._reserve(depthwise, (kernel * kernel + 1) * C)
        if operation.kind == "sum":
            second = self.maps[operation.inputs[1]]
            step["kind"] = kernels.SUM
            step["second"], step["second_image"], step["second_row"] = second.at, second.image, second.row
        elif operation.kind == "average":
            step["kind"] = kernels.AVERAGE
        elif operation.kind in ("largest", "sample"):
            step["kind"], step["before"] = kernels.LARGEST, channels_before(operation.layer)
            for name, value in zip(kernels.GEOMETRY, geometry(operation.layer, source.shape), strict=True):
                step[name] = value
        elif operation.kind == "activation":
            step["kind"] = kernels.ACTIVATION
        elif operation.kind == "gate":
            step["kind"], step["second"] = kernels.GATE, self.maps[operation.inputs[1]].at
            step["second_image"] = self.maps[operation.inputs[1]].image
        elif operation.kind == "depthwise":
            step["kind"] = kernels.DEPTHWISE
            self._tiles(step)
        else:
            step["kind"] = kernels.SEPARABLE if depthwise else kernels.CONV
            self._product(step, operation, source, out)
        return step

    def _product(self, step: Any, operation: Operation, source: Stored, out: Stored) -> None:
        C, D, OW = int(step["C"]), int(step["D"]), int(step["OW"])
        before = operation.layer if step["kind"] == kernels.CONV else None
        kernel, columns, stride, *_ = shape = geometry(before, source.shape) if before else (1, 1, 1, 0, 0)
        for name, value in zip(kernels.GEOMETRY, shape, strict=True):
            step[name] = value
        step["weights"] = self._reserve(operation, kernel * columns * C * D)
        step["bias"] = self._reserve(None, D)
        self.folds.append((int(step["weights"]), int(step["bias"]), operation))
        self._tiles(step)
        g, r, j = np.ogrid[: step["group"], : step["band"], :OW]
        if step["kind"] == kernels.SEPARABLE:
            rows = ((g * step["band"] + r) * OW + j) * C
        else:
            rows = g * source.image + r * stride * source.row + j * stride * C
        step["rows_at"] = self._table(rows)
        step["out_at"] = self._table(g * out.image + r * out.row + j * D)
        step["taps_at"] = self._table(np.arange(kernel) * source.row)

    def _tiles(self, step: Any) -> None:
        """Divide the output among tasks: bands of rows of an image, or groups of whole images, or panels of weights."""
        N, OH, OW, widest = int(step["images"]), int(step["OH"]), int(step["OW"]), max(int(step["C"]), int(step["D"]))
        pixels, total = max(TILE // widest, PIXELS), N * OH * OW
        panels = -(-int(step["D"]) // (2 * width(self.dtype)))
        if total < SHARES * PIXELS and step["kind"] != kernels.DEPTHWISE and panels >= SHARES:
            step["group"], step["shares"] = N, SHARES
        elif pixels <= OH * OW or N == 1:
            step["band"] = _band(N, OH, max(1, min(pixels // OW, -(-OH // SHARES))))
            step["bands"] = -(-OH // step["band"])
        else:
            step["group"] = max(1, min(pixels // (OH * OW), -(-N // SHARES)))
        step["tasks"] = -(-N // step["group"]) * step["bands"] * step["shares"]
        if step["kind"] == kernels.SEPARABLE:
            self.scratch_size = max(self.scratch_size, int(step["group"] * step["band"]) * OW * int(step["C"]))

    def _reserve(self, operation: Operation | None, size: int) -> int:
        at = self.weights_size
        self.weights_size += -(-size // 16) * 16
        if operation is not None and operation.kind == "depthwise":
            self.folds.append((at, -1, operation))
        return at

    def _table(self, values: Any) -> int:
        at = len(self.tables)
        self.tables += np.ravel(values).tolist()
        return at

    # -- running --

    def fold(self) -> None:
        """Fold the weights, unless they are of this version already."""
        # Versions only ever grow, so that their sum is the same only if each of them is.
        version = sum(map(_version, self.variables)), *map(_eps, self.bns)
        if version == self.folded_from:
            return
        for at, bias_at, operation in self.folds:
            (w, b), (slope, offset) = fold(operation.layer, operation.bn), operation.line(self.dtype)
            if offset:
                w, b = w * slope, b * slope + offset
            D = padded(b.size, self.dtype)
            rows = w.reshape(-1, b.size)
            if operation.kind == "depthwise":
                taps = np.zeros((len(rows) + 1, D), self.dtype)
                taps[:-1, : b.size], taps[-1, : b.size] = rows, b
                self.weights[at : at + taps.size] = taps.ravel()
                continue
            source = self.maps.get(operation.inputs[0])
            C = source.shape[3] if source else padded(w.shape[-2], self.dtype)
            taps = w.size // (w.shape[-2] * b.size)
            matrix = np.zeros((taps, C, D), self.dtype)
            matrix[:, : w.shape[-2], : b.size] = w.reshape(taps, w.shape[-2], b.size)
            self.weights[at : at + matrix.size] = pack(matrix.reshape(-1, D))
            self.weights[bias_at : bias_at + b.size] = b
        self.folded_from = version

    def forward(self, x: np.ndarray, clock: Clock | None = None) -> np.ndarray:
        """Return the last feature map for x (N, H, W, C), in an array of its own.

        Steps between two reference layers are one call of the kernel; with a clock each is one.
        """
        self.fold()
        for records, operation, names in self.parts if clock else self.joined:
            if operation is None:
                run = partial(self._kernel, self.program[records], x)
            else:
                run = partial(self._layer, records.start, operation)
            if clock:
                clock(names, False, run)
            else:
                run()
        return np.array(self.made).reshape(self.seen)

    def batch(self, x: np.ndarray) -> np.ndarray:
        """Return the last feature map for more images than the program is for; each thread runs all of it by itself."""
        self.fold()
        out = np.empty((len(x), *self.operations[-1].shape[1:]), self.dtype)
        self._call(self.program, x, _starts(len(x), self.maps[0].shape[0]), out)
        return out.reshape(len(x), *self.seen[1:])

    def _kernel(self, program: np.ndarray, x: np.ndarray) -> None:
        self._call(program, x, *self.whole)

    def _call(self, program: np.ndarray, x: np.ndarray, starts: np.ndarray, out: np.ndarray) -> None:
        kernels.run_program(program, self.table, self.weights, self.lanes, self.scratch, x.reshape(-1), starts, out)

    def _layer(self, i: int, operation: Operation) -> None:
        if operation.kind == "rows":
            self.maps[i + 1].view(self.data)[:, 0] = join_rows([self.maps[j].view(self.data) for j in operation.inputs])
            return
        source = np.ascontiguousarray(self.maps[operation.inputs[0]].view(self.data))
        flat = operation.inputs[0] > 0 and self.operations[operation.inputs[0] - 1].flat
        y = run_layer(self.layers[i], operation, source.reshape(len(source), -1) if flat else source, False)
        self.maps[i + 1].view(self.data)[...] = y


@functools.lru_cache
def _starts(images: int, size: int) -> np.ndarray:
    """Return the first image of each turn of `size`; the last begins earlier: what is made twice is the same twice."""
    return np.minimum(np.arange(0, images, size), images - size)


def _band(images: int, rows: int, about: int) -> int:
    """Return how many rows a task has: about so many, but so that two or four threads have equally much to do."""

    def longest(band: int) -> int:
        tasks = images * -(-rows // band)
        return sum(-(-tasks // threads) * band for threads in (2, 4))

    candidates = range(-(-about // 2), min(2 * about, rows) + 1)
    return min(candidates, key=lambda band: (longest(band), max(band / about, about / band)))


def _join(parts: list) -> list:
    """Return the parts, with records that follow one another as one part."""
    joined: list = []
    for records, operation, names in parts:
        if operation is None and joined and joined[-1][1] is None:
            before = joined.pop()
            records, names = slice(before[0].start, records.stop), before[2] + names
        joined.append((records, operation, names))
    return joined


def _is_nothing(operation: Operation) -> bool:
    """Return whether inference has nothing to do for it."""
    return type(operation.layer) is Dropout


def _is_pointwise(operation: Operation, shape: Shape) -> bool:
    return geometry(operation.layer, shape) == (1, 1, 1, 0, 0)


def chunks(n: int) -> Iterator[slice]:
    """Yield the parts that a batch of n images is run in."""
    for start in range(0, n, CHUNK):
        yield slice(start, min(n, start + CHUNK))


def share(operations: Sequence[Operation], shape: Shape) -> int:
    """Return how many images of a batch a thread runs the whole program for at a time; 0 where all run each step.

    That is where a layer runs as it is, and where threads would be idle for more than a quarter of the time.
    """
    if any(operation.kind in ("layer", "rows") and not _is_nothing(operation) for operation in operations):
        return 0
    images, threads = shape[0], backend.get_num_threads()
    largest = max(math.prod(each[1:]) for each in (shape, *(operation.shape for operation in operations)))
    most = min(max(LANE // largest, 1), CHUNK)
    turns = threads * -(-images // (threads * most))
    size = -(-images // turns)
    return size if images >= 0.75 * turns * size else 0
