"""Inference through the fused kernels: BatchNorm folded into the weights, and each block one pass over its input.

A block is the first convolution, or a depthwise convolution and the pointwise one after it. Weights are folded once
for each version of the parameters and statistics they come from.
"""

from typing import Any, NamedTuple

import numpy as np

from mbnp.fused import kernels
from mbnp.fused.buffers import Arena, Cache, scratch
from mbnp.fused.chain import Shape, Triple, fill, geometry, head, identity, output_shape, padded_picture, stored
from mbnp.fused.kernels import whole, width
from mbnp.network import Layer

SHARES = 2  # tasks of a block, at least: a number of threads here would make results depend on it
CHUNK = 16  # pictures at a time: what one block writes is still in the cache when the next one reads it
PIXELS = 128  # of a task, at least: fewer would load the weights of its matrix product for too little work
TILE = 1 << 15  # floats of a task's widest array, at most


class Layout(NamedTuple):
    """How an output is stored for its reader: padded, and without rows and columns that no window of it reaches."""

    rows: int
    columns: int
    top: int = 0
    left: int = 0


class Buffers(NamedTuple):
    """What a block reads and writes for one input shape, and what threads work in."""

    x: np.ndarray
    out: np.ndarray
    scratch: np.ndarray


class Block:
    """One or two triples whose kernel is one call; their folded weights, which keep their place when made again."""

    def __init__(self, *triples: Triple) -> None:
        self.triples = triples

    def output_shape(self, shape: Shape) -> Shape:
        """Of the output as it is stored."""
        for triple in self.triples:
            shape = stored(output_shape(triple, shape), triple.limits.dtype)
        return shape

    def fold(self) -> None:
        raise NotImplementedError

    def plan(self, shape: Shape) -> tuple[tuple, int]:
        """For one input shape: numbers for the kernel, and the floats of scratch that a thread needs."""
        raise NotImplementedError

    def arguments(self, numbers: tuple, buffers: Buffers, layout: Layout) -> tuple:
        """Of the kernel, all of them, so that a call has nothing left to work out."""
        raise NotImplementedError

    def run(self, arguments: tuple) -> None:
        raise NotImplementedError


class Stem(Block):
    """The first convolution."""

    def __init__(self, triple: Triple) -> None:
        super().__init__(triple)
        kernel, _, channels, d = triple.conv.weight.value.shape
        self.w = empty(triple, kernel * kernel * channels + 1, d)

    def fold(self) -> None:
        w, b = fold(self.triples[0])
        fill(np.concatenate([w.reshape(-1, b.size), b[None]]), self.w)

    def plan(self, shape: Shape) -> tuple[tuple, int]:
        _, oh, ow, d = self.output_shape(shape)
        stride, top, left = geometry(self.triples[0].conv, shape)
        band = max(1, min(oh, TILE // (ow * d), -(-shape[0] * oh // SHARES)))
        padded = padded_picture(self.triples[0].conv, stride, band, ow)
        numbers = (padded.offsets, self.triples[0].limits, padded.shape, stride, top, left, oh, ow, band)
        return numbers, padded.size

    def arguments(self, numbers: tuple, buffers: Buffers, layout: Layout) -> tuple:
        return self.w, *numbers, buffers.scratch, buffers.out, layout.top, layout.left

    def run(self, arguments: tuple) -> None:
        kernels.stem_inference(*arguments)


class Separable(Block):
    """A depthwise convolution and the pointwise one after it."""

    def __init__(self, *triples: Triple) -> None:
        super().__init__(*triples)
        c, d = triples[1].conv.weight.value.shape
        self.taps, self.bp = empty(triples[0], 10, c), empty(triples[1], 1, d)
        c, d = self.taps.shape[1], self.bp.shape[1]
        panel = panel_width(c, d, width(self.bp.dtype))
        self.panels = empty(triples[1], d // panel * c, panel).reshape(d // panel, c, panel)

    def input_layout(self, shape: Shape) -> Layout:
        conv = self.triples[0].conv
        _, oh, ow, _ = output_shape(self.triples[0], shape)
        stride, top, left = geometry(conv, shape)
        return Layout((oh - 1) * stride + 3, (ow - 1) * stride + 3, top, left)

    def fold(self) -> None:
        w, b = fold(self.triples[0])
        fill(np.concatenate([w.reshape(9, -1), b[None]]), self.taps)
        w, b = fold(self.triples[1])
        fill(b[None], self.bp)
        count, c, panel = self.panels.shape
        w = fill(w, np.zeros((c, count * panel), w.dtype))
        self.panels[...] = w.reshape(c, count, panel).swapaxes(0, 1)

    def plan(self, shape: Shape) -> tuple[tuple, int]:
        n, oh, ow, d = self.output_shape(shape)
        total = n * oh
        count, c, panel = self.panels.shape
        if total * ow < 2 * PIXELS:  # too few to share among the threads: these share the panels
            rows, panels = total, next(k for k in range(-(-count // SHARES), count + 1) if count % k == 0)
        else:
            rows, panels = max(1, min(max(TILE // max(c, d), PIXELS) // ow, -(-total // SHARES))), count
        stride, _, _ = geometry(self.triples[0].conv, shape)
        return (stride, oh, ow, rows, panels), rows * ow * (c + panel)

    def arguments(self, numbers: tuple, buffers: Buffers, layout: Layout) -> tuple:
        stride, oh, ow, rows, panels = numbers
        limits = [triple.limits for triple in self.triples]
        return (
            buffers.x, self.taps, limits[0], stride, oh, ow, self.panels, self.bp[0], limits[1], rows, panels,
            buffers.scratch, buffers.out, layout.top, layout.left,
        )  # fmt: skip

    def run(self, arguments: tuple) -> None:
        kernels.separable_inference(*arguments)


def empty(triple: Triple, rows: int, columns: int) -> np.ndarray:
    """Zeros of the triple's type, from a cache line on, the columns filled up to whole vectors."""
    dtype = triple.limits.dtype
    return Arena(dtype, block=0).zeros(rows, whole(columns, dtype))


def panel_width(c: int, d: int, vector: int) -> int:
    """Output channels of a panel of pointwise weights (C, D).

    At most 64, with which OpenBLAS was fastest, and few enough for two dozen rows to be a SMALL product.
    """
    panel = d
    while panel % (2 * vector) == 0 and panel > 32 and (panel > 64 or c * panel * 24 > kernels.SMALL):
        panel //= 2
    return panel


def fold(triple: Triple) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias (C,) of the convolution that computes BN(conv(x)); worked out in float64."""
    conv, bn = triple.conv, triple.bn
    inv = 1 / np.sqrt(bn.running_var.value.astype(np.float64) + bn.eps)
    scale = bn.weight.value * inv
    bias = np.float64(0) if conv.bias is None else conv.bias.value.astype(np.float64)
    shift = bn.bias.value + (bias - bn.running_mean.value) * scale
    dtype = conv.weight.value.dtype
    return np.ascontiguousarray((conv.weight.value * scale).astype(dtype)), shift.astype(dtype)


def frozen_blocks(triples: list[Triple]) -> int:
    """How many triples at the start have nothing to learn, in whole blocks."""
    learning = (i for i, t in enumerate(triples) if t.conv.trainable() or t.bn.trainable())
    frozen = next(learning, len(triples))
    return frozen - (frozen > 0 and frozen % 2 == 0)


class Inference:
    """A chain of triples and the layers after it, folded."""

    def __init__(self, triples: list[Triple], tail: list[Layer]) -> None:
        self.triples = triples
        pairs = [Separable(*pair) for pair in zip(triples[1::2], triples[2::2], strict=True)]
        self.blocks: list[Block] = [Stem(triples[0]), *pairs]
        self.tail = tail
        self.variables = [v for t in triples for layer in (t.conv, t.bn) for v in layer.variables().values()]
        self.folded_from: tuple = ()
        self.cache = Cache(self._prepare)
        self.channels = triples[-1].bn.weight.value.size
        dtype = triples[-1].limits.dtype
        self.activated = identity(whole(self.channels, dtype), dtype)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output of the last layer, in an array of its own."""
        self._fold()
        chunks = [self._forward(x[start : start + CHUNK]) for start in range(0, len(x), CHUNK)]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    def output_shape(self, shape: Shape) -> Shape:
        """What the blocks make of an input of `shape` (N, H, W, C), as it is stored."""
        for block in self.blocks:
            shape = block.output_shape(shape)
        return shape

    def run_blocks(self, x: np.ndarray, out: np.ndarray) -> None:
        """Into out (N, H, W, C): what the last block puts out."""
        self._fold()
        for start in range(0, len(x), CHUNK):
            made, _ = self._run(x[start : start + CHUNK])
            out[start : start + CHUNK] = made.reshape(out[start : start + CHUNK].shape)

    def _fold(self) -> None:
        # Versions only ever grow, so that their sum is the same only if each of them is.
        version = (sum(v.version for v in self.variables), *(triple.bn.eps for triple in self.triples))
        if version != self.folded_from:
            for block in self.blocks:
                block.fold()
            self.folded_from = version

    def _run(self, x: np.ndarray) -> tuple[np.ndarray, Shape]:
        """The blocks' output as it is stored, in a buffer, and its shape."""
        calls, out, shape = self.cache[x.shape]
        (first, arguments), *others = calls
        first.run((x, *arguments))
        for block, arguments in others:
            block.run(arguments)
        return out, shape

    def _forward(self, x: np.ndarray) -> np.ndarray:
        x, out_shape = self._run(x)
        linear = self.head(out_shape)
        if linear is not None:
            logits = np.empty((len(x), linear.bias.value.size), x.dtype)
            features = np.empty((len(x), self.channels), x.dtype)
            maps = x.reshape(len(x), -1, out_shape[-1])
            weights = linear.weight.value, linear.bias.value
            kernels.head_inference(maps, *self.activated, *weights, features, logits)
            return logits
        y = x.reshape(out_shape)[..., : self.channels].copy()
        for layer in self.tail:
            y = layer.forward(y)
        return y

    def head(self, out_shape: Shape) -> Any:
        """The linear layer, if all that follows the blocks' output of `out_shape`, as it is stored, is one kernel."""
        return head(self.tail, (*out_shape[:-1], self.channels), self.activated[1].dtype)

    def _prepare(self, shape: Shape) -> tuple[list[tuple[Block, tuple]], np.ndarray, Shape]:
        """For one input shape: the blocks with their arguments, the last output's buffer, and its shape."""
        arena = Arena(self.variables[0].value.dtype)
        layouts, planned, outputs = [], [], []
        for block, reader in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            out_shape = block.output_shape(shape)
            layout = reader.input_layout(out_shape) if isinstance(reader, Separable) else Layout(*out_shape[1:3])
            layouts.append(layout)
            planned.append(block.plan(shape))
            # What no kernel writes is the padding, zero for good.
            outputs.append(arena.zeros(out_shape[0], layout.rows, layout.columns * out_shape[-1]))
            shape = out_shape
        work = scratch(max(floats for _, floats in planned), arena)
        inputs = [outputs[0], *outputs[:-1]]  # the first block is told the pictures when it runs
        calls = [
            (block, block.arguments(numbers, Buffers(x, out, work), layout))
            for block, (numbers, _), x, out, layout in zip(self.blocks, planned, inputs, outputs, layouts, strict=True)
        ]
        return calls, outputs[-1], shape
