"""The arrays that travel together: what kernels take, as bundles."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mbnp.backend.bundle import Bundle


class Activation(NamedTuple):
    """What the functions of an activation take: a Source, or where there is none, this."""

    z: np.ndarray  # of the type of what is activated
    low: np.floating
    high: np.floating
    swish: bool


@dataclass(frozen=True, eq=False)
class Source(Bundle):
    """A feature map as its consumers read it: a = activation((z - mean)*scale + shift).

    The activation is a clip, or where `swish` is set hard-swish. plain: it is a that is stored, so that there is
    nothing to apply.
    """

    z: np.ndarray  # (N, H, W, C)
    scale_shift: np.ndarray  # (5, C)
    low: np.floating  # of z's type
    high: np.floating
    swish: bool
    plain: bool


@dataclass(frozen=True, eq=False)
class Gradient(Bundle):
    """A convolution's output and the gradient behind its BatchNorm: dz = k*g + c1*(z - mean) + c0.

    The coefficients follow from sums and pixels: the kernel that reads a Gradient makes them first, and adds to the
    gradients of BatchNorm. Without one these are empty, and the coefficients constants.
    """

    g: np.ndarray  # (N, H, W, C)
    z: np.ndarray
    scale_shift: np.ndarray  # (5, C)
    coefficients: np.ndarray  # (3, C)
    sums: np.ndarray  # (2, C): see Target
    pixels: float  # that the statistics are of; inf where they are constants
    dgamma: np.ndarray  # (C,) or (0,)
    dbeta: np.ndarray
    dbias: np.ndarray  # (C,), or (0,) where a BatchNorm takes away what a bias before it adds: its gradient is 0
    clears: bool  # whether what is added to the gradients of parameters takes the place of what they are


@dataclass(frozen=True, eq=False)
class Statistics(Bundle):
    """What the statistics of a convolution's output are made of, and what a BatchNorm makes of them, if there is one.

    Without one, or where it is frozen, gamma is empty, and scale_shift is left as it is.
    """

    moments: np.ndarray  # (tiles, 2, C): mean and centred squares of each tile
    counts: np.ndarray  # (tiles,) pixels of each tile
    gamma: np.ndarray  # (C,) or (0,)
    beta: np.ndarray
    running_mean: np.ndarray
    running_var: np.ndarray
    bias: np.ndarray  # (C,) of the convolution: zeros where it has none
    eps: float
    momentum: float
    scale_shift: np.ndarray  # (5, C)


@dataclass(frozen=True, eq=False)
class Target(Bundle):
    """Where the gradient of a Source goes, if anywhere.

    g: (N, H, W, C), or (0, H, W, C) where no gradient is needed; add: to what is there already
    sums: (2, C) of g and of g*(z - mean), from which BatchNorm's backward follows, in float64; parts: of each tile
    """

    g: np.ndarray
    add: bool
    parts: np.ndarray  # (tiles, 2, C)
    sums: np.ndarray  # (2, C)


@dataclass(frozen=True, eq=False)
class Windows(Bundle):
    """How a convolution's windows lie: the geometry, and how its pixels are divided into tiles.

    A flat one has a 1x1 kernel at stride 1 without padding: its tiles are runs of `tile` pixels of the whole batch.
    Else a tile is `images` whole images, or where these are large `band` rows of output of one, `bands` tiles an image.
    """

    flat: bool
    kernel: int  # rows of the kernel
    columns: int  # columns of the kernel
    stride: int
    top: int
    left: int
    height: int  # of the output
    width: int
    images: int
    band: int
    bands: int
    tile: int  # pixels of output of a full tile
    patch_rows: int  # of an image in a tile's padded copy of the input
    patch_columns: int
    dz_before: int  # rows of zeros or of the band before in the padded copy of dz, ahead of its first row
    dz_left: int
    dz_rows: int
    dz_columns: int
    # Backward's copies of the input and of dz: of a flat one in panels, each some channels of all pixels; else they are
    # padded images, and a panel of the input is what a row of the kernel sees.
    a_panels: int
    a_apart: int  # entries from panel to panel
    a_rows: int  # of weights that see a panel
    a_step: int  # from pixel to pixel
    dz_apart: int
    dz_step: int


@dataclass(frozen=True, eq=False)
class Tables(Bundle):
    """Offsets in the padded copies, as `ops.matmul` reads its matrices; int64."""

    windows: np.ndarray  # (tile,) each output pixel's window in the input
    taps: np.ndarray  # (kernel,) each row of the kernel in a window; or where all pixels are copied, each panel
    out: np.ndarray  # (tile,) each output pixel in the output
    weights_out: np.ndarray  # (a_rows,) each row of weights of a panel in dw
    strips: np.ndarray  # each row of output of a tile: its first window in the input
    strips_k: np.ndarray  # likewise, its first pixel in dz
    # Input pixels by their place modulo the stride: those of a class were seen by the same taps.
    classes: np.ndarray  # (classes, 11): see `windows._tables`
    class_pixels: np.ndarray  # each input pixel's first dz that saw it
    class_out: np.ndarray  # each input pixel in the input
    class_taps: np.ndarray  # segments of dz


@dataclass(frozen=True, eq=False)
class Work(Bundle):
    """Arrays that a kernel works in, and that mean nothing between two calls."""

    scratch: np.ndarray  # (threads, n)
    parts: np.ndarray  # partial gradients of the weights, (groups, rows, D)
    tiles: int  # or images, which the groups divide among them, if there are groups
    a: np.ndarray  # (P * C,) the whole input, where all its P pixels are taken at once; else empty, and so is
    dz: np.ndarray  # (P * D,)


def offsets(values: Any) -> np.ndarray:
    """Return a table of offsets."""
    return np.ascontiguousarray(np.ravel(values), np.int64)
