"""Each operation of ONNX in mbnp: a function that appends to the value it works on.

It gets the node, the value, and the node's constant inputs after that one, None where one is left out.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from mbnp import layers
from mbnp.errors import MbnpError
from mbnp.network import Layer
from mbnp.weights.onnx import windows
from mbnp.weights.onnx.constants import FLOATS, Array, named_axes
from mbnp.weights.onnx.read import Node
from mbnp.weights.onnx.value import BATCH, Value, numbers

# Linear layers


def gemm(node: Node, x: Value, w: np.ndarray, b: Array = None) -> None:
    if x.axes != "NC" or not x.flat:
        raise MbnpError(f"its input has the axes {x.axes}, and nothing flattens it before")
    a = node.attributes
    if a.get("transA", 0) or w.ndim != 2:
        raise MbnpError(f"it has transA {a.get('transA', 0)} and weights {w.shape}; mbnp has x W + b")
    w = a.get("alpha", 1.0) * numbers("weights", w.T if a.get("transB", 0) else w, x.dtype)
    if b is not None:
        b = a.get("beta", 1.0) * _per_channel(numbers("bias", b, x.dtype), w.shape[1])
    x.add_weighted(node, layers.Linear, w, b)


def matmul(node: Node, x: Value, w: np.ndarray) -> None:
    if w.ndim != 2 or x.axes[-1] != "C":
        raise MbnpError(f"it multiplies the axes {x.axes} by an array of shape {w.shape}; mbnp has x W")
    x.add_weighted(node, layers.Linear if x.flat else layers.Pointwise, w, None)


def add_constant(node: Node, x: Value, constant: np.ndarray) -> None:
    """Add a constant: the bias of the layer before, or a part of hard-sigmoid; at the start, of preprocessing."""
    bias = _channels(x, constant)
    if x.at_start:
        x.pixels.shift = x.pixels.shift + bias
    else:
        x.affine(node, 1.0, bias)


def subtract(node: Node, x: Value, constant: np.ndarray) -> None:
    add_constant(node, x, -constant)


def multiply(node: Node, x: Value, constant: np.ndarray) -> None:
    """Scale pixels at the start, a sum to the mean, or what weights make, as BatchNorm does."""
    factor = _channels(x, constant)
    if x.at_start:
        x.pixels.scale, x.pixels.shift = x.pixels.scale * factor, x.pixels.shift * factor
    elif x.scale != 1 and constant.size == 1:
        x.scale *= constant.item()
        x.scale = 1.0 if math.isclose(x.scale, 1, rel_tol=1e-6) else x.scale
    else:
        x.affine(node, factor, 0.0)


def divide(node: Node, x: Value, constant: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        multiply(node, x, 1 / constant.astype(np.float64))


def _channels(x: Value, constant: np.ndarray) -> np.ndarray:
    """Return a constant as one number for each channel."""
    shape = (1,) * (len(x.axes) - constant.ndim) + constant.shape
    expected = [x.channels if axis == "C" else 1 for axis in x.axes]
    if constant.size != 1 and list(shape) != expected:
        raise MbnpError(f"it adds a constant of shape {constant.shape}, no bias of {x.channels} channels")
    return _per_channel(numbers("constant", constant, x.dtype).reshape(-1), x.channels)


def _per_channel(b: np.ndarray, channels: int) -> np.ndarray:
    return np.broadcast_to(b, (1, channels)).reshape(channels)


def batchnorm(node: Node, x: Value, *arrays: np.ndarray) -> None:
    a = node.attributes
    if x.axes[1] != "C":
        raise MbnpError(f"its input has the axes {x.axes}, where it needs NCHW")
    if a.get("training_mode", 0) or not a.get("spatial", 1) or len(node.outputs) > 1:
        raise MbnpError("it is exported for training, or normalises pixels apart: export it in inference")
    smallest = arrays[3].min()
    if any(array.shape != (x.channels,) for array in arrays) or smallest < 0:
        raise MbnpError(f"its arrays are not those of {x.channels} channels, or a variance is negative")
    eps = _decimal(a.get("epsilon", 1e-5))
    momentum = round(1 - _decimal(a.get("momentum", 0.9)), 7)  # ONNX's is the weight of the old average
    if not (0 <= momentum <= 1 and 0 <= eps < np.inf and smallest + eps > 0):
        raise MbnpError(f"its epsilon {eps} or its momentum {1 - momentum} is out of bounds")
    layer = layers.BatchNorm(x.channels, eps, momentum, x.dtype)
    for (name, variable), array in zip(layer.variables().items(), arrays, strict=True):
        variable.value = numbers(name, array, x.dtype)
    x.add(node, layer, node.inputs[1])


def _decimal(value: float) -> float:
    """Return the shortest number that rounds to this float32, as attributes are stored: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


# Activations


def _elementwise(kind: type[Layer], node: Node, x: Value) -> None:
    x.add(node, kind())


def relu(node: Node, x: Value) -> None:
    _bound(node, x, 0.0, None)


def clip(node: Node, x: Value, low: Array = None, high: Array = None) -> None:
    least = node.attributes.get("min") if low is None else low.item()
    most = node.attributes.get("max") if high is None else high.item()
    _bound(node, x, least, most)


def maximum(node: Node, x: Value, least: np.ndarray) -> None:
    _bound(node, x, least.item(), None)


def minimum(node: Node, x: Value, most: np.ndarray) -> None:
    _bound(node, x, None, most.item())


def hard_sigmoid(node: Node, x: Value) -> None:
    """Compute min(max(alpha x + beta, 0), 1); mbnp's alpha is 1/6 and its beta 1/2."""
    alpha, beta = (node.attributes.get(key, default) for key, default in (("alpha", 0.2), ("beta", 0.5)))
    x.affine(node, 6 * alpha, 6 * beta - 3)
    x.settle()
    x.add(node, layers.HardSigmoid())


def _bound(node: Node, x: Value, least: float | None, most: float | None) -> None:
    """Clip the values: a ReLU, or the max_value of the ReLU before or after."""
    lowest = np.finfo(np.float32).min
    least, most = (None if b is None or abs(b) >= -lowest else b for b in (least, most))
    if least is None and most is None:
        return
    if least not in (None, 0) or (most is not None and not most > 0):
        raise MbnpError(f"it clips to {least} and {most}; mbnp has ReLU, from 0 up to a max_value")
    if most is not None and x.dtype == np.float32:
        most = _decimal(most)
    before = x.last
    known = [b for b in (most, x.most, before.max_value if isinstance(before, layers.ReLU) else None) if b is not None]
    x.most = min(known, default=None)
    if isinstance(before, layers.ReLU):
        x.entries[-1] = (x.entries[-1][0], layers.ReLU(x.most))
    elif least == 0:
        x.add(node, layers.ReLU(x.most))
    else:
        return  # and the ReLU comes after
    x.most = None
    x.bounded()


def sigmoid(node: Node, x: Value) -> None:
    if not x.flat and x.shape[:2] != (1, 1):
        raise MbnpError("it is of a feature map; mbnp leaves out one at the end")
    x.probabilities = True


def softmax(node: Node, x: Value) -> None:
    axis = node.attributes.get("axis", 1 if node.opset < 13 else -1)
    if x.axes[axis] != "C" or (not x.flat and x.shape[:2] != (1, 1)):
        raise MbnpError(f"it is over axis {axis} of {x.axes}; mbnp leaves out one over the classes")
    x.probabilities = True


# Pooling over all pixels, and the shape


def global_pool(pool: Callable, node: Node, x: Value) -> None:
    x.expect_nchw(feature_map=False)
    if not x.flat:
        pool(node, x)


def mean(node: Node, x: Value) -> None:
    x.add(node, layers.GlobalAveragePool())


def largest(node: Node, x: Value) -> None:
    """Take the largest pixel of each channel: a window of the whole feature map, flattened."""
    h, w, _ = x.shape
    x.add(node, layers.MaxPool((h, w)))
    x.add(node, layers.Flatten(f"this network takes feature maps of {h} x {w} there"))


def reduce(pool: Callable, node: Node, x: Value, axes: Array = None) -> None:
    named = named_axes(node, axes)
    reduced = {x.axes[at] for at in named or ()}
    pixels = {*"".join(reduced).replace("P", "HW")}
    if not pixels or not pixels <= {"H", "W"} or (pool is largest and pixels != {"H", "W"}):
        raise MbnpError(f"it takes the {node.op[6:].lower()} over the axes {named} of {x.axes}; mbnp over H and W")
    if not x.flat:
        if node.op == "ReduceSum":
            x.scale *= math.prod(size for axis, size in zip("HW", x.shape, strict=False) if axis in pixels)
        x.averaged |= pixels
        if x.averaged == {"H", "W"}:
            x.averaged = frozenset()
            pool(node, x)
    if not node.attributes.get("keepdims", 1):
        x.axes = "".join(axis for axis in x.axes if axis not in reduced)


def flatten(node: Node, x: Value) -> None:
    axis = node.attributes.get("axis", 1)
    if axis not in (1, 1 - len(x.axes)):
        raise MbnpError(f"it flattens from axis {axis} on; mbnp does from axis 1")
    x.flatten(node)


def reshape(node: Node, x: Value, shape: Array = None) -> None:
    if shape is None or shape.ndim != 1 or shape.size < 2:
        raise MbnpError("its shape is no list of numbers")
    dims, asked = x.dims(), [int(d) for d in shape]
    keeps = not node.attributes.get("allowzero", 0)
    wanted = [dims[i] if d == 0 and keeps and i < len(dims) else d for i, d in enumerate(asked)]
    numbers_each = math.prod(dims[1:])
    rest = wanted[1:]
    if rest.count(-1) == 1 and wanted[0] != -1:
        rest[rest.index(-1)] = numbers_each // max(math.prod(d for d in rest if d != -1), 1)
    if wanted[0] not in (-1, BATCH, x.batch) or min(rest) < 1 or math.prod(rest) != numbers_each:
        made, given = (["N" if d == BATCH else d for d in sizes] for sizes in (asked, dims))
        raise MbnpError(f"it makes {made} of {given}; mbnp flattens each image")
    if len(rest) == 1:
        x.flatten(node)
    elif rest != dims[1:]:
        whole = {"C": x.channels, "P": numbers_each // x.channels}
        whole |= {"H": 1, "W": 1} if x.flat else dict(zip("HW", x.shape, strict=False))
        alike = ("NCHW", "NCP", "NHWC", "NPC") if x.flat else ("NCHW", "NCP") if x.axes[1] == "C" else ("NHWC", "NPC")
        found = [axes for axes in alike if rest == [whole[axis] for axis in axes[1:]]]
        if not found:
            raise MbnpError(f"it makes {rest} of an image of {dims[1:]}; mbnp flattens it")
        x.axes = found[0]


def squeeze(node: Node, x: Value, axes: Array = None) -> None:
    named = named_axes(node, axes)
    if named is None:
        named = tuple(i for i, size in enumerate(x.dims()) if size == 1)
    if not {x.axes[at] for at in named} <= {"H", "W", "P"} or any(x.dims()[at] != 1 for at in named):
        raise MbnpError(f"it removes the axes {named} of {x.axes}; mbnp those of one pixel")
    rest = "".join(axis for i, axis in enumerate(x.axes) if i not in {at % len(x.axes) for at in named})
    if rest == "NC":
        x.flatten(node)
    x.axes = rest


def transpose(node: Node, x: Value) -> None:
    order = node.attributes.get("perm", [*range(len(x.axes))][::-1])
    axes = "".join(x.axes[at] for at in order)
    if axes[0] != "N" or sorted(axes) != sorted(x.axes):
        raise MbnpError(f"it moves the axes {x.axes} to {axes}; images come first in mbnp")
    x.axes = axes


# Nodes that do nothing in inference


def dropout(node: Node, x: Value, ratio: Array = None, training: Array = None) -> None:
    if training is not None and training.any():
        raise MbnpError("it is exported for training; export the network in inference")


def cast(node: Node, x: Value) -> None:
    if node.attributes["to"] not in FLOATS:
        raise MbnpError("it makes whole numbers of a feature map")


# Activations, layers without weights that are one operation of ONNX: read and written with their default options.
ELEMENTWISE: dict[str, type[Layer]] = {"HardSwish": layers.HardSwish, "Relu": layers.ReLU}

OPERATIONS: dict[str, Callable[..., None]] = {
    **{op: partial(_elementwise, kind) for op, kind in ELEMENTWISE.items()},
    "AveragePool": partial(windows.pool, layers.AveragePool),
    "BatchNormalization": batchnorm,
    "Cast": cast,
    "Clip": clip,
    "Conv": windows.conv,
    "Div": divide,
    "Dropout": dropout,
    "Flatten": flatten,
    "Gemm": gemm,
    "GlobalAveragePool": partial(global_pool, mean),
    "GlobalMaxPool": partial(global_pool, largest),
    "HardSigmoid": hard_sigmoid,
    "Identity": lambda node, x: None,
    "LogSoftmax": softmax,
    "MatMul": matmul,
    "Max": maximum,
    "MaxPool": partial(windows.pool, layers.MaxPool),
    "Min": minimum,
    "Mul": multiply,
    "Pad": windows.pad,
    "ReduceMax": partial(reduce, largest),
    "ReduceMean": partial(reduce, mean),
    "ReduceSum": partial(reduce, mean),
    "Relu": relu,
    "Reshape": reshape,
    "Sigmoid": sigmoid,
    "Slice": windows.slice_,
    "Softmax": softmax,
    "Squeeze": squeeze,
    "Sub": subtract,
    "Transpose": transpose,
}
COMMUTE = ("Add", "Max", "Min", "Mul")
# Operations before which a constant that was added or multiplied may wait for the next.
WAIT = ("Add", "Cast", "Clip", "Div", "Dropout", "HardSigmoid", "Identity", "Max", "Min", "Mul", "Relu", "Sub")
# Operations that may come after the softmax at the end.
KEEP_VALUES = ("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose")
