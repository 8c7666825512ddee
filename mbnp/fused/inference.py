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

CHUNK = 64  # pictures at a time: more would only push each other's activations out of the cache
PIXELS = 128  # of a task, at least: fewer would load the weights of its matrix product for too little work
TILE = 1 << 15  # floats of a task's widest array, at most
CHANNELS = 256  # of a task's product where the pixels are too few to share among the threads


class Layout(NamedTuple):
    """How an output is stored for its reader: padded, and at stride 2 with even columns first."""

    rows: int
    columns: int
    stride: int = 1
    top: int = 0
    left: int = 0


class Stem:
    """The first convolution."""

    def __init__(self, triple: Triple) -> None:
        self.triple = triple

    def fold(self) -> None:
        w, b = fold(self.triple)
        self.w, self.b, self.limits = w.reshape(-1, w.shape[-1]), b, self.triple.limits

    def prepare(
        self, shape: tuple[int, ...], out_shape: tuple[int, ...], layout: Layout, arena: Arena
    ) -> "Prepared":
        conv = self.triple.conv
        kernel = conv.weight.value.shape[0]
        stride, top, left = geometry(conv, shape)
        _, oh, ow, d = out_shape
        band = max(1, min(oh, TILE // (ow * max(d, self.w.shape[0]))))
        padded = ((band - 1) * stride + kernel) * ((ow - 1) * stride + kernel) * shape[-1]
        floats = band * ow * (d + self.w.shape[0]) + padded
        return Prepared(
            (kernel, stride, top, left, oh, ow, band), floats, padded_output(out_shape, layout, arena), layout
        )

    def run(self, x: np.ndarray, prepared: "Prepared", scratch: np.ndarray) -> None:
        _, _, *target = prepared.layout
        kernels.stem_inference(
            x, self.w, self.b, self.limits, *prepared.numbers, scratch, prepared.out, *target
        )


class Separable:
    """A depthwise convolution and the pointwise one after it."""

    def __init__(self, depthwise: Triple, pointwise: Triple) -> None:
        self.depthwise, self.pointwise = depthwise, pointwise

    def fold(self) -> None:
        w, b = fold(self.depthwise)
        times = kernels.lanes(b.size) // b.size
        self.wd, self.bd = np.tile(w.reshape(9, -1), times), np.tile(b, times)
        self.w, self.bp = fold(self.pointwise)
        self.blocks: dict[int, np.ndarray] = {}

    def split(self, blocks: int) -> np.ndarray:
        """The pointwise weights (C, D) as (blocks, C, D / blocks)."""
        if blocks not in self.blocks:
            c, d = self.w.shape
            self.blocks[blocks] = np.ascontiguousarray(self.w.reshape(c, blocks, d // blocks).swapaxes(0, 1))
        return self.blocks[blocks]

    def prepare(
        self, shape: tuple[int, ...], out_shape: tuple[int, ...], layout: Layout, arena: Arena
    ) -> "Prepared":
        n, oh, ow, d = out_shape
        c = shape[-1]
        stride, _, _ = geometry(self.depthwise.conv, shape)
        total = n * oh
        blocks = d // CHANNELS if total * ow < 2 * PIXELS and d % CHANNELS == 0 else 1
        rows = max(1, min(max(TILE // max(c, d), PIXELS) // ow, -(-total // 2)))
        if blocks > 1:
            rows = total
        floats = rows * ow * (c + d // blocks)
        return Prepared(
            (stride, oh, ow, blocks, rows), floats, padded_output(out_shape, layout, arena), layout
        )

    def run(self, x: np.ndarray, prepared: "Prepared", scratch: np.ndarray) -> None:
        stride, oh, ow, blocks, rows = prepared.numbers
        _, _, *target = prepared.layout
        kernels.separable_inference(
            x, self.wd, self.bd, self.depthwise.limits, stride, oh, ow, self.split(blocks), self.bp,
            self.pointwise.limits, rows, scratch, prepared.out, *target,
        )  # fmt: skip


class Prepared(NamedTuple):
    """What one block needs for one input shape."""

    numbers: tuple[int, ...]
    floats: int  # of scratch, for each thread
    out: np.ndarray
    layout: Layout


def padded_output(shape: tuple[int, ...], layout: Layout, arena: Arena) -> np.ndarray:
    """The buffer (N, rows, columns * C) of an output; what no kernel writes is its padding, zero for good."""
    out = arena.array(shape[0], layout.rows, layout.columns * shape[-1])
    out[...] = 0
    return out


def fold(triple: Triple) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias (C,) of the convolution that computes BN(conv(x)); worked out in float64."""
    conv, bn = triple.conv, triple.bn
    inv = 1 / np.sqrt(bn.running_var.value.astype(np.float64) + bn.eps)
    scale = bn.weight.value * inv
    bias = 0.0 if conv.bias is None else conv.bias.value
    shift = bn.bias.value + (bias - bn.running_mean.value) * scale
    dtype = conv.weight.value.dtype
    return np.ascontiguousarray((conv.weight.value * scale).astype(dtype)), shift.astype(dtype)


class Inference:
    """A chain of triples and the layers after it, folded."""

    def __init__(self, triples: list[Triple], tail: list[Layer]) -> None:
        self.blocks: list[Any] = [Stem(triples[0])]
        self.blocks += [Separable(*pair) for pair in zip(triples[1::2], triples[2::2], strict=True)]
        self.tail = tail
        self.variables = [v for t in triples for layer in (t.conv, t.bn) for v in layer.variables().values()]
        self.folded_from = -1
        self.cache = Cache(self._prepare)

    def forward(self, x: np.ndarray) -> np.ndarray:
        # Versions only ever grow, so that their sum is the same only if each of them is.
        version = sum(v.version for v in self.variables)
        if version != self.folded_from:
            for block in self.blocks:
                block.fold()
            self.folded_from = version
        chunks = [self._forward(x[start : start + CHUNK]) for start in range(0, len(x), CHUNK)]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    def _forward(self, x: np.ndarray) -> np.ndarray:
        prepared, scratch, out_shape = self.cache[x.shape]
        for block, its in zip(self.blocks, prepared, strict=True):
            block.run(x, its, scratch)
            x = its.out
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

    def _head(self, shape: tuple[int, ...]) -> Linear | None:
        """The classifier, if what is left is an average over the whole map and a linear layer with a bias."""
        pool, *middle, last = self.tail if len(self.tail) > 1 else (None, None)
        whole = isinstance(pool, GlobalAveragePool) or (
            isinstance(pool, AveragePool) and pool.size == shape[1:3] and pool.options["padding"] == 0
        )
        plain = all(isinstance(layer, Flatten) for layer in middle)
        return last if whole and plain and isinstance(last, Linear) and last.bias is not None else None

    def _prepare(self, shape: tuple[int, ...]) -> tuple[list[Prepared], np.ndarray, tuple[int, ...]]:
        shapes = [shape]
        for block in self.blocks:
            out = shapes[-1][1:]
            for triple in [block.triple] if isinstance(block, Stem) else [block.depthwise, block.pointwise]:
                out = triple.conv.output_shape(out)
            shapes.append((shape[0], *out))
        layouts = [
            _layout(block.depthwise.conv, given, made)
            for block, given, made in zip(self.blocks[1:], shapes[1:], shapes[2:], strict=False)
        ]
        layouts.append(Layout(*shapes[-1][1:3]))
        arena = Arena(self.variables[0].value.dtype)
        prepared = [
            block.prepare(given, made, layout, arena)
            for block, given, made, layout in zip(self.blocks, shapes, shapes[1:], layouts, strict=False)
        ]
        scratch = Scratch(max(p.floats for p in prepared), arena)
        return prepared, scratch.floats, shapes[-1]


def _layout(conv: Layer, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Layout:
    stride, top, left = geometry(conv, shape)
    return Layout((out_shape[1] - 1) * stride + 3, (out_shape[2] - 1) * stride + 3, stride, top, left)
