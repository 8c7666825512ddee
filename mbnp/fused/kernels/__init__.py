"""The kernels: convolution, the BatchNorm and activation before it and the statistics after it in one pass over memory.

A network is a chain of  z -> a = act(BN(z)) -> next convolution. Only the raw outputs z of convolutions are stored. The
consumer of z makes a while it loads, and the producer of z accumulates its statistics while it is in cache; backward
likewise in reverse (BatchNorm fission-fusion: Jung et al., "Restructuring Batch Normalization to Accelerate CNN
Training", MLSys 2019).

Read `backend/vectors.py` for what a kernel can say and `ops/matmul.py` for the product, then `arrays.py` for what
kernels take, `batchnorm.py` for the passes that all share, `conv.py`, which shows the whole idea, with `weights.py`,
`depthwise.py`, `average.py`, `largest.py` and `gate.py`; and `program.py`, which runs a whole network in inference.
Each kernel's docstring states its reference equation in terms of `ops`, to which tests hold networks made of them,
layer by layer and in every gradient.

What has to be done between two passes (weights packed, statistics made, partial gradients added up) is a part of the
kernel before or after it. And the kernels of a pass are called by one compiled loop, with arguments that were written
down once (`backend/launch.py`): between two layers a call from Python takes some tens of microseconds, and a training
step has forty of them.

The symbols, for one BatchNorm over the channels of z (N, H, W, C):
    scale_shift   (5, C)   rows mean, scale = gamma*inv, shift, inv = 1 / sqrt(var + eps), rest:
                           a = clip((z - mean)*scale + shift); mean is rounded to z's type, shift = beta + rest*scale
                           makes up for it, and rest is what rounding added
    bounds        (2,)     the clip: (0, NaN) for ReLU, (0, 6) for ReLU6, NaN for none; hard-swish is a tag beside
                           them, and hard-sigmoid the clip to (0, 1) of v/6 + 1/2, which is in scale and shift
    g             like z   dL/da times the slope of the activation: the gradient of BN's output
    sums          (2, C)   of g and of g * (z - mean), from which BN's backward follows; in float64
    coefficients  (3, C)   k, c1, c0:  dL/dz = k*g + c1*(z - mean) + c0,  the whole of BN's backward

C is rounded up to the vector width: a network's channels, and after them zeros. Loops take one vector of channels after
another and let the pixels pass by, so that what belongs to the channels (weights, mean and scale, sums) stays in
registers. Times the zeros, an infinity becomes NaN: a network that overflows does so here in all channels, unless they
fill vectors by themselves.

An activation is two functions of a vector, `activation` and `activation_back` in `batchnorm.py`, which every reader of
a feature map calls. One map may have readers with different activations (Xception's blocks begin with a ReLU that their
shortcut does not see): each activates, and masks its part of the gradient, by its own.

Most kernels wait for memory and not for the multiplier. So the reader of what no cache holds asks for it a run or a row
ahead (`prefetch`); when it was tried with and without, that took a tenth off a training step.

Parallel loops run over tiles whose number depends on the shapes alone, and partial sums are added in the order of the
tiles: results do not depend on the number of threads. With OpenMP a thread gets the same part of every loop, so that
it mostly reads what it wrote itself: a cache line that another core wrote last takes far longer than one's own.
"""

from mbnp.fused.kernels.average import average_backward, average_forward
from mbnp.fused.kernels.batchnorm import activate, add, normalise_backward, pass_back
from mbnp.fused.kernels.conv import conv_backward, conv_forward
from mbnp.fused.kernels.depthwise import (
    depthwise_any_backward,
    depthwise_any_forward,
    depthwise_backward,
    depthwise_forward,
)
from mbnp.fused.kernels.gate import gate_backward, gate_forward
from mbnp.fused.kernels.largest import largest_backward, largest_forward
from mbnp.fused.kernels.weights import pack_weights

__all__ = [
    "activate",
    "add",
    "average_backward",
    "average_forward",
    "conv_backward",
    "conv_forward",
    "depthwise_any_backward",
    "depthwise_any_forward",
    "depthwise_backward",
    "depthwise_forward",
    "gate_backward",
    "gate_forward",
    "largest_backward",
    "largest_forward",
    "normalise_backward",
    "pack_weights",
    "pass_back",
]
