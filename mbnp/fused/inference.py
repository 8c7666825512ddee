"""Inference through the fused kernels: BatchNorm folded into the weights, and each block one pass over its input.

A block is the first convolution, or a depthwise convolution and the pointwise one after it. Weights are folded once
for each version of the parameters and statistics they come from.
"""

from typing import Any, NamedTuple

import numpy as np

from mbnp.fused import kernels
from mbnp.fused.buffers import Arena, Cache, Scratch
from mbnp.fused.chain import Triple, geometry
from mbnp.layers import AveragePool, Flatten, GlobalAveragePool, Linear
from mbnp.network import Layer

CHUNK = 16  # pictures at a time: what one block writes is still in the cache when the next one reads it
PIXELS = 128  # of a task, at least: fewer would load the weights of its matrix product for too little work
TILE = 1 << 15  # floats of a task's widest array, at most
CHANNELS = 256  # of a task's product where the pixels are too few to share among the threads

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How an output is stored for its reader: padded, and at stride 2 with even columns first."""

    rows: int
    columns: int
    stride: int = 1
    top: int = 0
    left: int = 0


class Prepared(NamedTuple):
    """What a block needs for one input shape."""

    numbers: tuple[int, ...]  # of the kernel's call
    floats: int  # of scratch, for each thread
    layout: Layout  # of the output


class Block:
    """One or two triples whose kernel is one call."""

    def __init__(self, *triples: Triple) -> None:
        self.triples = triples

    def output_shape(self, shape: Shape) -> Shape:
        for triple in self.triples:
            shape = (shape[0], *triple.conv.output_shape(shape[1:]))
        return shape

    def fold(self) -> None:
        raise NotImplementedError

    def prepare(self, shape: Shape, layout: Layout) -> Prepared:
        raise NotImplementedError

    def run(self, x: np.ndarray, prepared: Prepared, scratch: np.ndarray, out: np.ndarray) -> None:
        raise NotImplementedError


class Stem(Block):
    """The first convolution."""

    def fold(self) -> None:
        w, self.b = fold(self.triples[0])
        self.w = w.reshape(-1, w.shape[-1])

    def prepare(self, shape: Shape, layout: Layout) -> Prepared:
        _, oh, ow, d = self.output_shape(shape)
        conv = self.triples[0].conv
        kernel, stride, top, left = conv.weight.value.shape[0], *geometry(conv, shape)
        columns = kernel * kernel * shape[-1]
        band = max(1, min(oh, TILE // (ow * max(d, columns))))
        planes = ((band - 1) * stride + kernel) * ((ow - 1) * stride + kernel) * shape[-1]
        floats = band * ow * (d + columns) + planes
        return Prepared((kernel, stride, top, left, oh, ow, band), floats, layout)

    def run(self, x: np.ndarray, prepared: Prepared, scratch: np.ndarray, out: np.ndarray) -> None:
        _, _, *target = prepared.layout
        limits = self.triples[0].limits
        kernels.stem_inference(x, self.w, self.b, limits, *prepared.numbers, scratch, out, *target)


class Separable(Block):
    """A depthwise convolution and the pointwise one after it."""

    def input_layout(self, shape: Shape) -> Layout:
        conv = self.triples[0].conv
        _, oh, ow, _ = (shape[0], *conv.output_shape(shape[1:]))
        stride, top, left = geometry(conv, shape)
        return Layout((oh - 1) * stride + 3, (ow - 1) * stride + 3, stride, top, left)

    def fold(self) -> None:
        w, b = fold(self.triples[0])
        times = kernels.lanes(b.size) // b.size
        self.wd, self.bd = np.tile(w.reshape(9, -1), times), np.tile(b, times)
        self.wp, self.bp = fold(self.triples[1])
        c, d = self.wp.shape
        width = panel_width(c, d)
        self.panels = np.ascontiguousarray(self.wp.reshape(c, d // width, width).swapaxes(0, 1))

    def prepare(self, shape: Shape, layout: Layout) -> Prepared:
        n, oh, ow, d = self.output_shape(shape)
        c, total = shape[-1], n * oh
        count, _, width = self.panels.shape
        if total * ow < 2 * PIXELS:  # too few to share among the threads: these share the panels
            rows, panels = total, max(1, CHANNELS // width)
            panels = max(k for k in range(1, panels + 1) if count % k == 0)
        else:
            rows, panels = max(1, min(max(TILE // max(c, d), PIXELS) // ow, -(-total // 2))), count
        stride, _, _ = geometry(self.triples[0].conv, shape)
        return Prepared((stride, oh, ow, rows, panels), rows * ow * (c + width), layout)

    def run(self, x: np.ndarray, prepared: Prepared, scratch: np.ndarray, out: np.ndarray) -> None:
        stride, oh, ow, rows, panels = prepared.numbers
        _, _, *target = prepared.layout
        depthwise, pointwise = self.triples
        kernels.separable_inference(
            x, self.wd, self.bd, depthwise.limits, stride, oh, ow, self.panels, self.bp, pointwise.limits,
            rows, panels, scratch, out, *target,
        )  # fmt: skip


def panel_width(c: int, d: int) -> int:
    """Output channels of a panel of pointwise weights (C, D): few enough for two dozen rows to be a SMALL product."""
    width = d
    while width % 2 == 0 and width > 32 and c * width * 24 > kernels.SMALL:
        width //= 2
    return width


def fold(triple: Triple) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias (C,) of the convolution that computes BN(conv(x)); worked out in float64."""
    conv, bn = triple.conv, triple.bn
    inv = 1 / np.sqrt(bn.running_var.value.astype(np.float64) + bn.eps)
    scale = bn.weight.value * inv
    bias = 0.0 if conv.bias is None else conv.bias.value
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
        self.folded_from = -1
        self.cache = Cache(self._prepare)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The output of the last layer, in an array of its own."""
        self._fold()
        chunks = [self._forward(x[start : start + CHUNK]) for start in range(0, len(x), CHUNK)]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    def output_shape(self, shape: Shape) -> Shape:
        """What the blocks make of an input of `shape` (N, H, W, C)."""
        for block in self.blocks:
            shape = block.output_shape(shape)
        return shape

    def run_blocks(self, x: np.ndarray, out: np.ndarray) -> None:
        """Into out (N, H, W, C): what the last block puts out."""
        self._fold()
        for start in range(0, len(x), CHUNK):
            self._run(x[start : start + CHUNK], out[start : start + CHUNK])

    def _fold(self) -> None:
        # Versions only ever grow, so that their sum is the same only if each of them is.
        version = sum(v.version for v in self.variables)
        if version != self.folded_from:
            for block in self.blocks:
                block.fold()
            self.folded_from = version

    def _run(self, x: np.ndarray, last: np.ndarray | None = None) -> np.ndarray:
        """The blocks' output as it is stored: in `last`, or else in a buffer."""
        prepared, outputs, scratch, _ = self.cache[x.shape]
        if last is not None:
            outputs = [*outputs[:-1], last.reshape(outputs[-1].shape)]
        for block, its, out in zip(self.blocks, prepared, outputs, strict=True):
            block.run(x, its, scratch, out)
            x = out
        return x

    def _forward(self, x: np.ndarray) -> np.ndarray:
        *_, out_shape = self.cache[x.shape]
        x = self._run(x)
        head = self._head(out_shape)
        if head is not None:
            logits = np.empty((len(x), head.bias.value.size), x.dtype)
            features = np.empty((len(x), out_shape[-1]), x.dtype)
            kernels.head_inference(
                x.reshape(len(x), -1, out_shape[-1]), head.weight.value, head.bias.value, features, logits
            )
            return logits
        y = x.reshape(out_shape).copy()
        for layer in self.tail:
            y = layer.forward(y)
        return y

    def _head(self, shape: Shape) -> Any:
        """The linear layer, if what is left is an average over the whole map and a linear layer with a bias."""
        pool, *middle, last = self.tail if len(self.tail) > 1 else (None, None)
        whole = isinstance(pool, GlobalAveragePool) or (
            isinstance(pool, AveragePool) and pool.size == shape[1:3] and pool.options["padding"] == 0
        )
        plain = [type(layer) for layer in middle] == (
            [] if isinstance(pool, GlobalAveragePool) else [Flatten]
        )
        return last if whole and plain and isinstance(last, Linear) and last.bias is not None else None

    def _prepare(self, shape: Shape) -> tuple[list[Prepared], list[np.ndarray], np.ndarray, Shape]:
        """For one input shape: what each block needs, its output buffer, scratch, and the last output's shape."""
        arena = Arena(self.variables[0].value.dtype)
        prepared, outputs = [], []
        for block, reader in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            out_shape = block.output_shape(shape)
            layout = (
                reader.input_layout(out_shape) if isinstance(reader, Separable) else Layout(*out_shape[1:3])
            )
            prepared.append(block.prepare(shape, layout))
            outputs.append(arena.array(out_shape[0], layout.rows, layout.columns * out_shape[-1]))
            outputs[-1][...] = 0  # what no kernel writes is the padding, zero for good
            shape = out_shape
        scratch = Scratch(max(p.floats for p in prepared), arena)
        return prepared, outputs, scratch.floats, shape
