"""The layers: each joins one operation of `ops` to its parameters and remembers what backward needs.

Shapes are (N, H, W, C), channels last. Names of arrays are PyTorch's: `weight`, `bias`, `running_mean`.
`stride` and `padding` are what the operation takes: padding is a number, ((top, bottom), (left, right)), or
"same" as TensorFlow means it. What a layer says of itself (`config`, `shapes`, `macs`, `torch`) is explained in
`network.Layer`; the axes of its weights are in `weights/layouts.py`.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from mbnp import renamed
from mbnp.errors import MbnpError, refuse_mask
from mbnp.network import Gate, Layer, Network, Pyramid, Residual, Sequential
from mbnp.ops import (
    batchnorm,
    conv,
    depthwise,
    dropout,
    hard_sigmoid,
    hard_swish,
    linear,
    pointwise,
    pool,
    relu,
    window,
)
from mbnp.ops.window import Margin, Pair, Size
from mbnp.parameter import Buffer, Parameter

__all__ = [
    "AveragePool",
    "BatchNorm",
    "Buffer",
    "Conv",
    "Depthwise",
    "Dropout",
    "Flatten",
    "Gate",
    "GlobalAveragePool",
    "HardSigmoid",
    "HardSwish",
    "Layer",
    "Linear",
    "MaxPool",
    "Network",
    "Pad",
    "Parameter",
    "Pointwise",
    "Pyramid",
    "ReLU",
    "Residual",
    "Sequential",
    "Squeeze",
    "Subsample",
]

Shape = tuple[int, ...]
Rng = np.random.Generator | None

# Layers that are made without a generator of their own draw from this one, so that no two begin alike.
_rng = np.random.default_rng(0)


def _window_shape(shape: Shape, kernel: Pair, stride: Any, padding: Any) -> Shape:
    """Return the output shape (H, W, C) of a window of size `kernel` over an input of `shape` (H, W, C)."""
    size, stride = (shape[0], shape[1]), window.pair("stride", stride)
    padding = window.explicit_padding(padding, size, kernel, stride)
    return (*window.output_size(size, kernel, stride, padding), shape[-1])


def _torch_pad(F: Any, kernel: Pair, stride: Any, padding: Any, value: float = 0.0) -> Callable[[Any], tuple]:
    """Return a function of x (N, C, H, W): x, padded where the sides differ, and the padding left to PyTorch."""

    def pad(x: Any) -> tuple[Any, Pair]:
        size, steps = tuple(x.shape[2:]), window.pair("stride", stride)
        (top, bottom), (left, right) = window.explicit_padding(padding, size, kernel, steps)
        if (top, left) == (bottom, right):
            return x, (top, left)
        return F.pad(x, (left, right, top, bottom), value=value), (0, 0)

    return pad


class _Weighted(Layer):
    """y = op(x, weight) + bias, initialised as PyTorch does: uniform within 1 / sqrt(fan_in)."""

    op: ModuleType  # the module of `ops` whose forward and backward this layer calls
    axes: tuple[str, ...]  # the options that say how long each axis of `weight` is; "kernel" is two

    def __init__(self, bias: bool, rng: Rng, dtype: Any, sizes: dict[str, Any], **options: Any) -> None:
        self.options = options  # of the operation
        self.groups = 1  # of channels that do not mix
        shape = self.shapes(**sizes, bias=bias)["weight"]
        rng = _rng if rng is None else rng
        bound = math.prod(shape[:-1]) ** -0.5  # an output is a sum over fan_in inputs
        self.weight = Parameter(rng.uniform(-bound, bound, shape).astype(dtype))
        self.bias = Parameter(rng.uniform(-bound, bound, shape[-1]).astype(dtype)) if bias else None
        self.x: np.ndarray | None = None

    @classmethod
    def shapes(cls, **config: Any) -> dict[str, Shape]:
        weight: Shape = ()
        for axis in cls.axes:
            weight += window.pair(axis, config[axis]) if axis == "kernel" else (config[axis],)
        return {"weight": weight, "bias": weight[-1:]} if config["bias"] else {"weight": weight}

    @property
    def sizes(self) -> dict[str, Any]:
        """The options that `axes` names, read off the weight."""
        shape = list(self.weight.value.shape)
        return {axis: (shape.pop(0), shape.pop(0)) if axis == "kernel" else shape.pop(0) for axis in self.axes}

    @property
    def channels_in(self) -> int:
        sizes = self.sizes
        return sizes["c_in"] if "c_in" in sizes else sizes["channels"]

    def config(self) -> dict[str, Any]:
        return {**self.sizes, **self.options, "bias": self.bias is not None}

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x = x if train else None
        bias = None if self.bias is None else self.bias.value
        return self.op.forward(x, self.weight.value, bias, **self.options)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        dx, dw, db = self.op.backward(dy, self.pop_saved("x"), self.weight.value, **self.options)
        self.weight.add_grad(dw)
        if self.bias is not None:
            self.bias.add_grad(db)
        return dx

    def output_shape(self, shape: Shape) -> Shape:
        if shape[-1] != self.channels_in:
            name = type(self).__name__
            raise MbnpError(f"{name} takes {self.channels_in} channels, got {shape[-1]} in {shape}")
        if "kernel" in self.axes:
            shape = _window_shape(shape, self.sizes["kernel"], self.options["stride"], self.options["padding"])
        return (*shape[:-1], self.weight.value.shape[-1])

    def macs(self, output_shape: Shape) -> int:
        return math.prod(output_shape[:-1]) * self.weight.value.size  # each weight once for each output pixel

    def torch(self, F: Any) -> Callable[..., Any]:
        stride, groups = self.options["stride"], self.groups
        pad = _torch_pad(F, self.sizes["kernel"], stride, self.options["padding"])

        def conv(x: Any, train: bool, weight: Any, bias: Any = None) -> Any:
            x, padding = pad(x)
            return F.conv2d(x, weight, bias, stride, padding, groups=groups)

        return conv


class Conv(_Weighted):
    """Standard convolution: every output channel looks at every input channel. `ops.conv`."""

    kind, op, axes = "conv", conv, ("kernel", "c_in", "c_out")

    def __init__(
        self, c_in: int, c_out: int, kernel: Size = 3, stride: Size = 1, padding: Margin = 0, bias: bool = True,
        rng: Rng = None, dtype: Any = np.float32,
    ) -> None:  # fmt: skip
        sizes = {"c_in": c_in, "c_out": c_out, "kernel": kernel}
        super().__init__(bias, rng, dtype, sizes, stride=stride, padding=padding)


class Depthwise(_Weighted):
    """Depthwise convolution: one kernel per channel, channels never mix. `ops.depthwise`."""

    kind, op, axes = "depthwise", depthwise, ("kernel", "channels")

    def __init__(
        self, channels: int, kernel: Size = 3, stride: Size = 1, padding: Margin = 0, bias: bool = True,
        rng: Rng = None, dtype: Any = np.float32,
    ) -> None:  # fmt: skip
        sizes = {"channels": channels, "kernel": kernel}
        super().__init__(bias, rng, dtype, sizes, stride=stride, padding=padding)
        self.groups = channels


class Pointwise(_Weighted):
    """1x1 convolution: channels mix, pixels do not. `ops.pointwise`."""

    kind, op, axes = "pointwise", pointwise, ("c_in", "c_out")

    def __init__(self, c_in: int, c_out: int, bias: bool = True, rng: Rng = None, dtype: Any = np.float32) -> None:
        super().__init__(bias, rng, dtype, {"c_in": c_in, "c_out": c_out})

    def torch(self, F: Any) -> Callable[..., Any]:
        return lambda x, train, weight, bias=None: F.conv2d(x, weight, bias)


class Linear(_Weighted):
    """Fully connected layer on (N, C). `ops.linear`."""

    kind, op, axes = "linear", linear, ("c_in", "c_out")

    def __init__(self, c_in: int, c_out: int, bias: bool = True, rng: Rng = None, dtype: Any = np.float32) -> None:
        super().__init__(bias, rng, dtype, {"c_in": c_in, "c_out": c_out})

    def torch(self, F: Any) -> Callable[..., Any]:
        return lambda x, train, weight, bias=None: F.linear(x, weight, bias)


class BatchNorm(Layer):
    """Batch normalisation; training forwards update the running statistics as PyTorch does.

    With its weight frozen the layer uses its running statistics, and does not update them.
    """

    kind = "batchnorm"

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, dtype: Any = np.float32) -> None:
        self.weight = Parameter(np.ones(channels, dtype))
        self.bias = Parameter(np.zeros(channels, dtype))
        self.running_mean = Buffer(np.zeros(channels, dtype))
        self.running_var = Buffer(np.ones(channels, dtype))
        self.eps, self.momentum = eps, momentum
        self.x: np.ndarray | None = None
        self.mean: np.ndarray | None = None
        self.var: np.ndarray | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        gamma, beta = self.weight.value, self.bias.value
        running_mean, running_var = self.running_mean.value, self.running_var.value
        self.x = x if train else None
        self.mean = self.var = None
        if not train or self.weight.frozen:
            return batchnorm.inference(x, gamma, beta, running_mean, running_var, self.eps)
        y, self.mean, self.var = batchnorm.forward(x, gamma, beta, self.eps)
        self.running_mean.value, self.running_var.value = batchnorm.update_running(
            running_mean, running_var, self.mean, self.var, x.size // x.shape[-1], self.momentum
        )
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        x, gamma = self.pop_saved("x"), self.weight.value
        if self.mean is None:
            running = self.running_mean.value, self.running_var.value
            dx, dgamma, dbeta = batchnorm.inference_backward(dy, x, gamma, *running, self.eps)
        else:
            dx, dgamma, dbeta = batchnorm.backward(
                dy, x, gamma, self.pop_saved("mean"), self.pop_saved("var"), self.eps
            )
        self.weight.add_grad(dgamma)
        self.bias.add_grad(dbeta)
        return dx

    def output_shape(self, shape: Shape) -> Shape:
        if self.weight.value.shape != shape[-1:]:
            raise MbnpError(f"BatchNorm normalises {self.weight.value.size} channels, got {shape[-1]} in {shape}")
        return shape

    def config(self) -> dict[str, Any]:
        return {"channels": self.weight.value.size, "eps": self.eps, "momentum": self.momentum}

    @staticmethod
    def shapes(**config: Any) -> dict[str, Shape]:
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (config["channels"],))

    def torch(self, F: Any) -> Callable[..., Any]:
        eps, momentum = self.eps, self.momentum
        return lambda x, train, weight, bias, running_mean, running_var: F.batch_norm(
            x, running_mean, running_var, weight, bias, train, momentum, eps
        )


class ReLU(Layer):
    """max(x, 0), and no more than `max_value` where one is given: ReLU6 is `ReLU(max_value=6)`. `ops.relu`."""

    kind = "relu"
    cap = renamed.attribute("cap", "max_value")

    @renamed.keyword("cap", "max_value")
    def __init__(self, max_value: float | None = None) -> None:
        self.max_value = max_value
        self.x: np.ndarray | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x = x if train else None
        return relu.forward(x, self.max_value)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return relu.backward(dy, self.pop_saved("x"), self.max_value)

    def torch(self, F: Any) -> Callable[..., Any]:
        most = self.max_value
        return lambda x, train: F.relu(x) if most is None else F.hardtanh(x, 0.0, most)


class _Elementwise(Layer):
    """y = op(x), without parameters or options."""

    op: ModuleType

    def __init__(self) -> None:
        self.x: np.ndarray | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x = x if train else None
        return self.op.forward(x)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return self.op.backward(dy, self.pop_saved("x"))


class HardSigmoid(_Elementwise):
    """min(max(x + 3, 0), 6) / 6. `ops.hard_sigmoid`."""

    kind, op = "hard-sigmoid", hard_sigmoid

    def torch(self, F: Any) -> Callable[..., Any]:
        return lambda x, train: F.relu6(x + 3) / 6  # F.hardsigmoid's gradient has float32's 1/6, in float64, too


class HardSwish(_Elementwise):
    """x * min(max(x + 3, 0), 6) / 6. `ops.hard_swish`."""

    kind, op = "hard-swish", hard_swish

    def torch(self, F: Any) -> Callable[..., Any]:
        return lambda x, train: F.hardswish(x)


class Dropout(Layer):
    """In training, set a share of `rate` of all entries to zero and scale the others up; nothing else. `ops.dropout`.

    seed: of the layer's own generator, whose masks differ from call to call. A layer that is frozen around it still
    drops, as in PyTorch.
    """

    kind = "dropout"

    def __init__(self, rate: float = 0.2, seed: int = 0) -> None:
        self.rate, self.seed = rate, seed
        self.generator = np.random.default_rng(seed)
        self.mask: np.ndarray | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.mask = dropout.draw(x.shape, self.rate, self.generator, x.dtype.type) if train else None
        return x if self.mask is None else dropout.forward(x, self.mask)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return dropout.backward(dy, self.pop_saved("mask"))

    def still(self) -> None:
        self.rate = 0.0

    def torch(self, F: Any) -> Callable[..., Any]:
        """Return PyTorch's dropout, which draws other masks."""
        return lambda x, train: F.dropout(x, self.rate, train)


class _Pool(Layer):
    """A window of `size` that moves by `stride` (the size, where there is none) over each channel."""

    def __init__(self, size: Size, stride: Size | None = None, padding: Margin = 0) -> None:
        self.size = window.pair("size", size)
        self.options: dict[str, Any] = {"stride": self.size if stride is None else stride, "padding": padding}
        self.x: np.ndarray | None = None

    def output_shape(self, shape: Shape) -> Shape:
        return _window_shape(shape, self.size, self.options["stride"], self.options["padding"])

    def config(self) -> dict[str, Any]:
        return {"size": self.size, **self.options}

    def _torch(self, F: Any, pool: Callable, value: float = 0.0) -> Callable[..., Any]:
        size, stride = self.size, self.options["stride"]
        pad = _torch_pad(F, size, stride, self.options["padding"], value)

        def run(x: Any, train: bool = False) -> Any:
            x, padding = pad(x)
            return pool(x, size, stride, padding)

        return run


class MaxPool(_Pool):
    """The largest value in each window. `ops.pool`."""

    kind = "max-pool"

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x = x if train else None
        return pool.max_forward(x, self.size, **self.options)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return pool.max_backward(dy, self.pop_saved("x"), self.size, **self.options)

    def torch(self, F: Any) -> Callable[..., Any]:
        return self._torch(F, F.max_pool2d, -math.inf)


class AveragePool(_Pool):
    """The mean of each window, padding counted or not. `ops.pool`."""

    kind = "average-pool"
    count_padding = property(lambda self: self.options["count_padding"])

    def __init__(self, size: Size, stride: Size | None = None, padding: Margin = 0, count_padding: bool = True) -> None:
        super().__init__(size, stride, padding)
        self.options["count_padding"] = count_padding

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x = x if train else None
        return pool.average_forward(x, self.size, **self.options)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return pool.average_backward(dy, self.pop_saved("x"), self.size, **self.options)

    def torch(self, F: Any) -> Callable[..., Any]:
        mean = self._torch(F, F.avg_pool2d)
        if self.options["count_padding"]:
            return mean
        return lambda x, train: mean(x) / mean(x.new_ones(1, 1, *x.shape[2:]))  # the share of pixels inside


class GlobalAveragePool(Layer):
    """The mean of each channel over the feature map: (N, H, W, C) -> (N, C). `ops.pool`."""

    kind = "global-average-pool"

    def __init__(self) -> None:
        self.x: np.ndarray | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x = x if train else None
        return pool.global_average_forward(x)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return pool.global_average_backward(dy, self.pop_saved("x"))

    def output_shape(self, shape: Shape) -> Shape:
        return shape[-1:]

    def torch(self, F: Any) -> Callable[..., Any]:
        return lambda x, train: x.mean((2, 3))


class Squeeze(GlobalAveragePool):
    """The same mean, which keeps its axes: (N, H, W, C) -> (N, 1, 1, C), for 1x1 convolutions after it."""

    kind = "squeeze"

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        return super().forward(x, train)[:, None, None, :]

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return super().backward(dy[:, 0, 0, :])

    def output_shape(self, shape: Shape) -> Shape:
        return 1, 1, shape[-1]

    def torch(self, F: Any) -> Callable[..., Any]:
        return lambda x, train: x.mean((2, 3), keepdim=True)


class Flatten(Layer):
    """(N, H, W, C) -> (N, H*W*C), the entries of one image in the order that the next layer's weights expect.

    order: "HWC" as they lie here, "CHW" as PyTorch flattens. Without one only (N, 1, 1, C) is taken, where the
    orders are the same.
    """

    kind = "flatten"

    def __init__(self, hint: str = "", order: str | None = None) -> None:
        if order not in (None, "HWC", "CHW"):
            raise MbnpError(f"order must be 'HWC', 'CHW' or None, got {order!r}")
        self.hint = hint  # what the network says about the sizes of images it takes
        self.order = order
        self.x_shape: Shape | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x_shape = x.shape if train else None
        flat = (len(x), *self.output_shape(x.shape[1:]))
        return (x.transpose(0, 3, 1, 2) if self.order == "CHW" else x).reshape(flat)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        n, h, w, c = self.pop_saved("x_shape")
        return dy.reshape(n, c, h, w).transpose(0, 2, 3, 1) if self.order == "CHW" else dy.reshape(n, h, w, c)

    def output_shape(self, shape: Shape) -> Shape:
        if self.order is None and shape[:-1] != (1, 1):
            hint = f": {self.hint}" if self.hint else ""
            raise MbnpError(f"Flatten takes (N, 1, 1, C), got (N, {', '.join(map(str, shape))}){hint}")
        return (math.prod(shape),)

    def torch(self, F: Any) -> Callable[..., Any]:
        order = self.order
        return lambda x, train: (x.permute(0, 2, 3, 1) if order == "HWC" else x).flatten(1)


class Pad(Layer):
    """Zeros around the feature map, and before and after its channels: padding that no other layer can do.

    padding: a number for all four sides or ((top, bottom), (left, right)); channels: (before, after).
    """

    kind = "pad"

    def __init__(self, padding: Margin = 0, channels: Pair = (0, 0)) -> None:
        if isinstance(padding, str) or min(channels) < 0:
            raise MbnpError(f"Pad takes numbers from 0 up, got padding {padding!r} and channels {channels!r}")
        self.padding = window.explicit_padding(padding, (1, 1), (1, 1), (1, 1))
        self.channels = channels

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        refuse_mask("x", x)
        return np.pad(x, ((0, 0), *self.padding, self.channels))

    def backward(self, dy: np.ndarray) -> np.ndarray:
        before, after = self.channels
        return window.crop(dy, self.padding)[..., before : dy.shape[-1] - after]

    def output_shape(self, shape: Shape) -> Shape:
        h, w, c = (size + sum(margin) for size, margin in zip(shape, (*self.padding, self.channels), strict=True))
        return h, w, c

    def torch(self, F: Any) -> Callable[..., Any]:
        (top, bottom), (left, right) = self.padding
        sides = (left, right, top, bottom, *self.channels)
        return lambda x, train: F.pad(x, sides)


class Subsample(Layer):
    """A residual's shortcut without parameters: every `stride`-th pixel, and zeros for the new channels.

    Option A of He et al., "Deep Residual Learning for Image Recognition" (2015), section 3.3; the zeros are
    put half before and half after. stride: a number or (vertical, horizontal).
    """

    kind = "subsample"

    def __init__(self, c_in: int, c_out: int, stride: Size = 1) -> None:
        if c_out < c_in:
            raise MbnpError(f"Subsample adds channels of zeros and takes none away, got {c_in} in and {c_out} out")
        self.stride = stride
        self.before = (c_out - c_in) // 2
        self.after = c_out - c_in - self.before
        self.x_shape: Shape | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        refuse_mask("x", x)
        self.x_shape = x.shape if train else None
        sh, sw = window.pair("stride", self.stride)
        return np.pad(x[:, ::sh, ::sw], ((0, 0), (0, 0), (0, 0), (self.before, self.after)))

    def backward(self, dy: np.ndarray) -> np.ndarray:
        dx = np.zeros(self.pop_saved("x_shape"), dy.dtype)
        sh, sw = window.pair("stride", self.stride)
        dx[:, ::sh, ::sw] = dy[..., self.before : dy.shape[-1] - self.after]
        return dx

    def output_shape(self, shape: Shape) -> Shape:
        h, w, c = shape
        sh, sw = window.pair("stride", self.stride)
        return -(-h // sh), -(-w // sw), c + self.before + self.after

    def config(self) -> dict[str, Any]:
        return {"new_channels": self.before + self.after, "stride": self.stride}

    @classmethod
    def from_config(cls, new_channels: int, stride: Size) -> "Subsample":
        """Make the layer of a `config()`, which does not know how many channels come in."""
        return cls(0, new_channels, stride)

    def torch(self, F: Any) -> Callable[..., Any]:
        (sh, sw), sides = window.pair("stride", self.stride), (0, 0, 0, 0, self.before, self.after)
        return lambda x, train: F.pad(x[:, :, ::sh, ::sw], sides)
