"""The kernels: convolution, the BatchNorm and ReLU before it and the statistics after it in one pass over memory.

A network is a chain of  z -> a = act(BN(z)) -> next convolution. Only the raw outputs z of convolutions are
stored. Whoever reads z makes a while it loads, and whoever writes z sums up its statistics while it is in
cache; backward likewise in reverse (BatchNorm fission-fusion: Jung et al., "Restructuring Batch Normalization to
Accelerate CNN Training", MLSys 2019).

Read `vectors.py` for what a kernel can say, `batchnorm.py` for the passes that all share, `pointwise.py`, which shows
the whole idea, then `depthwise.py`, `stem.py` and `head.py`, a network's two ends, and for inference `separable.py`.
Each kernel's docstring states its law in terms of `ops`, to which tests hold networks made of them, layer by layer and
in every gradient.

The symbols, for one BatchNorm over the channels of z (N, H, W, C):
    affine   (5, C)   rows mean, scale = gamma*inv, shift, inv = 1 / sqrt(var + eps), rest:
                      a = clip((z - mean)*scale + shift); mean is rounded to z's type, shift = beta + rest*scale
                      makes up for it, and rest is what rounding added
    limits   (2,)     the clip: (0, inf) for ReLU, (0, 6) for ReLU6, (-inf, inf) for none
    g        like z   dL/da where the clip let it through, else 0:  the gradient of BN's output
    sums     (tiles, 2, C)  of g and of g * (z - mean), from which BN's backward follows; in float64
    adjoint  (3, C)   rows k, c1, c0:  dL/dz = k*g + c1*(z - mean) + c0,  the whole of BN's backward

C is a whole number of vectors: a network's channels, and after them as many of zeros as fill the last vector. Loops
take one vector of channels after another and let the pixels pass by, so that what belongs to the channels (weights,
mean and scale, sums) stays in registers. Times the zeros, an infinity becomes NaN: a network that overflows does so
here in all channels, unless they fill vectors by themselves.

Most kernels wait for memory and not for the multiplier. So whoever reads what no cache holds asks for it a run or a row
ahead (`prefetch`); when it was tried with and without, that took a tenth off a training step.

Parallel loops run over tiles whose number depends on the shapes alone, and partial sums are added in the order of the
tiles: results do not depend on the number of threads. With OpenMP a thread gets the same share of every loop, so that
it mostly reads what it wrote itself: a cache line that another core wrote last takes far longer than one's own.
The loops' bodies hand whole arrays and indices to serial functions, because an array sliced in the body would cost all
of Numba's no-alias guarantees.
"""

from mbnp.fused.kernels.batchnorm import (
    batchnorm_backward,
    finish_adjoint,
    finish_statistics,
    normalise,
    normalise_backward,
    statistics,
)
from mbnp.fused.kernels.depthwise import DEPTHWISE_ROWS, depthwise_backward, depthwise_forward
from mbnp.fused.kernels.head import head_backward, head_forward, head_inference
from mbnp.fused.kernels.pointwise import SMALL, pointwise_backward, pointwise_forward
from mbnp.fused.kernels.separable import separable_inference
from mbnp.fused.kernels.stem import stem_backward, stem_forward, stem_inference
from mbnp.fused.kernels.vectors import whole, width

__all__ = [
    "DEPTHWISE_ROWS",
    "SMALL",
    "batchnorm_backward",
    "depthwise_backward",
    "depthwise_forward",
    "finish_adjoint",
    "finish_statistics",
    "head_backward",
    "head_forward",
    "head_inference",
    "normalise",
    "normalise_backward",
    "pointwise_backward",
    "pointwise_forward",
    "separable_inference",
    "statistics",
    "stem_backward",
    "stem_forward",
    "stem_inference",
    "whole",
    "width",
]
