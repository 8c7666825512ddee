"""Tiles and tables of a convolution: how `kernels/conv.py` divides its pixels and finds its windows."""

from typing import NamedTuple

import numpy as np

from mbnp.fused.kernels.arrays import Tables, Windows, offsets
from mbnp.fused.kernels.conv import TOGETHER

Shape = tuple[int, ...]

TILE = 1 << 14  # floats of a tile of a flat product: it and its neighbours are in half of 1 MB of L2
LEAST = 128  # pixels of a tile, at least: fewer would load the weights for too little work
PIXELS = 256  # of a tile of windows, about
PANEL = 64  # channels


class Plan(NamedTuple):
    """The windows of one convolution for one input shape, cut into tiles."""

    windows: Windows
    tables: Tables
    tiles: int
    scratch: int  # entries that a thread works in, in backward, which needs more
    counts: np.ndarray  # (tiles,) pixels of each tile


def plan(geometry: tuple[int, ...], source: Shape, out: Shape) -> Plan:
    """Return the tiles of a convolution of windows, for stored shapes (N, H, W, C) and (N, OH, OW, D)."""
    kernel, columns, stride, top, left = geometry
    N, H, W, C = source
    _, OH, OW, D = out
    images, band = 1, max(1, PIXELS // OW)
    if PIXELS >= OH * OW:
        images, band = max(1, min(PIXELS // (OH * OW), -(-N // 2))), OH
    bands = -(-OH // band)
    tiles = -(-N // images) if bands == 1 else N * bands
    deepest = H if bands == 1 else max(band * stride, H - (bands - 1) * band * stride)  # rows of input of a tile
    before, rows = _dz_extent(kernel, stride, top, deepest, band)
    beside, dz_columns = _dz_extent(columns, stride, left, W, OW)
    windows = Windows(
        flat=False, kernel=kernel, columns=columns, stride=stride, top=top, left=left, height=OH, width=OW,
        images=images, band=band, bands=bands, tile=images * band * OW,
        patch_rows=(band - 1) * stride + kernel, patch_columns=(OW - 1) * stride + columns,
        dz_before=before, dz_left=beside, dz_rows=rows, dz_columns=dz_columns,
        a_panels=kernel, a_apart=((OW - 1) * stride + columns) * C, a_rows=columns * C, a_step=C, dz_apart=0, dz_step=D,
    )  # fmt: skip
    patch = windows.patch_rows * windows.patch_columns * C
    scratch = images * (patch + rows * dz_columns * D)
    counts = np.array([_pixels(windows, N, t) for t in range(tiles)], np.int64)
    return Plan(windows, _tables(windows, deepest, H, W, C, D), tiles, scratch, counts)


def _pixels(windows: Windows, N: int, t: int) -> int:
    if windows.bands > 1:
        first = t % windows.bands * windows.band
        return min(windows.band, windows.height - first) * windows.width
    return min(windows.images, N - t * windows.images) * windows.height * windows.width


def panel(channels: int, vector: int) -> int:
    """Return how many channels a panel of a flat product's copies has: PANEL, somewhat fewer, or if none divides, all.

    A product across pixels reads some channels of one pixel after another. With all channels of a pixel together, each
    would lie in another page, and a power of two apart: in a few sets of the first cache, where they push each other
    out. In a panel they are neighbours.
    """
    widths = range(PANEL, PANEL // 2 - 1, -2 * vector)  # whole panels of weights; a narrow one is not worth its loops
    return next((width for width in widths if channels % width == 0), channels)


def flat(P: int, C: int, D: int, vector: int, whole: bool) -> Plan:
    """Return the tiles of a product over P pixels, without windows.

    whole: whether the copies hold all pixels, and not those of a tile.
    """
    largest = max(TILE // max(C, D), LEAST)
    tiles = -(-P // (8 * largest)) * 8  # as many for each of up to eight threads
    tile = min(LEAST if whole else max(-(-P // tiles), 32), P)
    tiles = -(-P // tile)
    a, dz, span = panel(C, vector), panel(D, vector), P if whole else tile
    windows = Windows(
        flat=True, kernel=1, columns=1, stride=1, top=0, left=0, height=1, width=tile, images=1, band=1, bands=1,
        tile=tile, patch_rows=1, patch_columns=tile, dz_before=0, dz_left=0, dz_rows=1, dz_columns=tile,
        a_panels=C // a, a_apart=span * a, a_rows=a, a_step=a, dz_apart=span * dz, dz_step=dz,
    )  # fmt: skip
    pixels, zero = np.arange(tile), offsets(0)
    rows, taps = (a, np.arange(C // a) * span * a) if whole else (C, 0)
    kind = [[0, 1, 0, 1, 0, dz, 0, 0, 0, 0, D // dz]]
    tables = Tables(
        windows=offsets(pixels * rows), taps=offsets(taps), out=offsets(pixels * D),
        weights_out=offsets(np.arange(a) * D), strips=zero, strips_k=zero,
        classes=np.array(kind, np.int64), class_pixels=offsets(pixels * dz), class_out=offsets(pixels * C),
        class_taps=offsets(np.arange(D // dz) * span * dz),
    )  # fmt: skip
    counts = np.minimum(tile, P - np.arange(tiles) * tile)
    scratch = TOGETHER * 2 * vector * max(C, D) if whole else tile * (C + D)  # panels of weights, or copies of a tile
    return Plan(windows, tables, tiles, scratch, counts)


def _first_taps(size: int, stride: int, before: int) -> list[tuple[int, int]]:
    """Return, for each class of input rows, the first tap that saw them and how many taps did."""
    firsts = [(c + before) % stride for c in range(stride)]
    return [(u, len(range(u, size, stride))) for u in firsts]


def _dz_extent(size: int, stride: int, before: int, inputs: int, outputs: int) -> tuple[int, int]:
    """Return the rows of dz ahead of a tile's first one that saw its input, and all rows that its copy holds."""
    ahead = max(count - 1 - (c + before) // stride for c, (_, count) in enumerate(_first_taps(size, stride, before)))
    ahead = max(ahead, 0)
    return ahead, max(ahead + outputs, ahead + (inputs - 1 + before) // stride + 1)


def _tables(w: Windows, deepest: int, H: int, W: int, C: int, D: int) -> Tables:
    S, KH, KW = w.stride, w.kernel, w.columns
    row, image = w.patch_columns * C, w.patch_rows * w.patch_columns * C
    dz_row, dz_image = w.dz_columns, w.dz_rows * w.dz_columns  # in pixels
    g = np.arange(w.images)[:, None, None]
    i, j = np.arange(w.band)[:, None], np.arange(w.width)
    classes: list[list[int]] = []
    pixels, outs, taps = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    packed = 0
    down, across = _first_taps(KH, S, w.top), _first_taps(KW, S, w.left)
    for p, (u0, nu) in enumerate(down):
        for q, (v0, nv) in enumerate(across):
            run = nv * D
            rows, cols = np.arange(p, deepest, S)[:, None], np.arange(q, W, S)
            r = (rows + w.top) // S - (nu - 1) + w.dz_before
            c = (cols + w.left) // S - (nv - 1) + w.dz_left
            segments = nu if nv else 0
            seen, tap = sum(p.size for p in pixels), sum(t.size for t in taps)
            # The first tap that saw it and how many, down and across; where their weights are packed; a segment of dz,
            # the class, where its tables begin, and how many segments.
            classes.append([u0, segments, v0, nv, packed, run, p, q, seen, tap, segments])
            pixels.append(offsets((g * dz_image + r * dz_row + c) * D))
            outs.append(offsets(((g * H + rows) * W + cols) * C))
            taps.append(offsets(np.arange(segments) * dz_row * D))
            packed += segments * run
    return Tables(
        windows=offsets(g * image + i * S * row + j * S * C),
        taps=offsets(np.arange(KH) * row),
        out=offsets(np.arange(w.tile) * D),
        weights_out=offsets(np.arange(KW * C) * D),
        strips=offsets(g[..., 0] * image + np.arange(w.band) * S * row),
        strips_k=offsets(g[..., 0] * dz_image + (w.dz_before + np.arange(w.band)) * dz_row + w.dz_left),
        classes=np.array(classes, np.int64),
        class_pixels=np.concatenate(pixels),
        class_out=np.concatenate(outs),
        class_taps=np.concatenate(taps),
    )


def groups(tiles: int, weights: int) -> int:
    """Return how many partial gradients of so many weights the tiles are divided among: it depends on shapes alone."""
    most = 8 if weights < 1 << 18 else 4
    return min(most, tiles)
