"""The layers: each joins one operation of `ops` to its parameters and remembers what backward needs.

Shapes are (N, H, W, C), channels last. Names of arrays are PyTorch's: `weight`, `bias`, `running_mean`.
`stride` and `padding` are what the operation takes: padding is a number, ((top, bottom), (left, right)), or
"same" as TensorFlow means it.
"""

import math
from types import ModuleType
from typing import Any

import numpy as np

from mbnp.errors import MbnpError
from mbnp.network import Buffer, Layer, Network, Parameter, Residual, Sequential
from mbnp.ops import batchnorm, conv, depthwise, linear, pointwise, pool, relu, window

__all__ = [
    "AveragePool",
    "BatchNorm",
    "Buffer",
    "Conv",
    "Depthwise",
    "Flatten",
    "GlobalAveragePool",
    "Layer",
    "Linear",
    "MaxPool",
    "Network",
    "Pad",
    "Parameter",
    "Pointwise",
    "ReLU",
    "Residual",
    "Sequential",
    "Subsample",
]


def _map_shape(shape: tuple[int, ...], kernel: window.Pair, stride: Any, padding: Any) -> tuple[int, ...]:
    """The (H, W, C) that a window of `kernel` makes of an (H, W, C)."""
    size, stride = (shape[0], shape[1]), window.pair("stride", stride)
    padding = window.explicit_padding(padding, size, kernel, stride)
    return (*window.output_size(size, kernel, stride, padding), shape[-1])


# Layers that are made without a generator of their own draw from this one, so that no two begin alike.
_rng = np.random.default_rng(0)


class _Weighted(Layer):
    """y = op(x, weight) + bias, initialised as PyTorch does: uniform within 1 / sqrt(fan_in)."""

    op: ModuleType

    def __init__(
        self,
        shape: tuple[int, ...],
        fan_in: int,
        bias: bool,
        rng: np.random.Generator | None,
        dtype: Any,
        **options: Any,
    ) -> None:
        rng = _rng if rng is None else rng
        bound = fan_in**-0.5
        self.weight = Parameter(rng.uniform(-bound, bound, shape).astype(dtype))
        self.bias = Parameter(rng.uniform(-bound, bound, shape[-1]).astype(dtype)) if bias else None
        self.options = options
        self.x: np.ndarray | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x = x if train else None
        bias = None if self.bias is None else self.bias.value
        return self.op.forward(x, self.weight.value, bias, **self.options)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        dx, dw, db = self.op.backward(dy, self._take("x"), self.weight.value, **self.options)
        self.weight.add_grad(dw)
        if self.bias is not None:
            self.bias.add_grad(db)
        return dx

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels_in = self.weight.value.shape[-1 if self.op is depthwise else -2]
        if shape[-1] != channels_in:
            raise MbnpError(f"{type(self).__name__} takes {channels_in} channels, got {shape[-1]} in {shape}")
        kernel = self.weight.value.shape[:-2] if self.op is conv else self.weight.value.shape[:-1]
        if self.op in (conv, depthwise):
            shape = _map_shape(shape, kernel, **self.options)
        return (*shape[:-1], self.weight.value.shape[-1])


class Conv(_Weighted):
    """Standard convolution: every output channel looks at every input channel. `ops.conv`."""

    op = conv

    def __init__(
        self, c_in: int, c_out: int, kernel=3, stride=1, padding=0, bias=True, rng=None, dtype=np.float32
    ) -> None:
        kh, kw = window.pair("kernel", kernel)
        shape = (kh, kw, c_in, c_out)
        super().__init__(shape, kh * kw * c_in, bias, rng, dtype, stride=stride, padding=padding)


class Depthwise(_Weighted):
    """Depthwise convolution: one kernel a channel, channels never mix. `ops.depthwise`."""

    op = depthwise

    def __init__(
        self, channels: int, kernel=3, stride=1, padding=0, bias=True, rng=None, dtype=np.float32
    ) -> None:
        kh, kw = window.pair("kernel", kernel)
        super().__init__((kh, kw, channels), kh * kw, bias, rng, dtype, stride=stride, padding=padding)


class Pointwise(_Weighted):
    """1x1 convolution: channels mix, pixels do not. `ops.pointwise`."""

    op = pointwise

    def __init__(self, c_in: int, c_out: int, bias=True, rng=None, dtype=np.float32) -> None:
        super().__init__((c_in, c_out), c_in, bias, rng, dtype)


class Linear(_Weighted):
    """Fully connected layer on (N, C). `ops.linear`."""

    op = linear

    def __init__(self, c_in: int, c_out: int, bias=True, rng=None, dtype=np.float32) -> None:
        super().__init__((c_in, c_out), c_in, bias, rng, dtype)


class BatchNorm(Layer):
    """Batch normalisation; training forwards update the running statistics as PyTorch does.

    With its weight frozen the layer is a constant: running statistics normalise, and do not move.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, dtype=np.float32) -> None:
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
        x, gamma = self._take("x"), self.weight.value
        if self.mean is None:
            running = self.running_mean.value, self.running_var.value
            dx, dgamma, dbeta = batchnorm.inference_backward(dy, x, gamma, *running, self.eps)
        else:
            dx, dgamma, dbeta = batchnorm.backward(
                dy, x, gamma, self._take("mean"), self._take("var"), self.eps
            )
        self.weight.add_grad(dgamma)
        self.bias.add_grad(dbeta)
        return dx


class ReLU(Layer):
    """max(x, 0), and no more than `cap` where one is given: ReLU6 is `ReLU(cap=6)`."""

    def __init__(self, cap: float | None = None) -> None:
        self.cap = cap
        self.x: np.ndarray | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x = x if train else None
        return relu.forward(x, self.cap)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return relu.backward(dy, self._take("x"), self.cap)


class _Pool(Layer):
    def __init__(self, size, stride=None, padding=0) -> None:
        self.size = window.pair("size", size)
        self.options = {"stride": self.size if stride is None else stride, "padding": padding}
        self.x: np.ndarray | None = None

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _map_shape(shape, self.size, **self.options)


class MaxPool(_Pool):
    """The largest value in each window. `ops.pool`."""

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x = x if train else None
        return pool.max_forward(x, self.size, **self.options)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return pool.max_backward(dy, self._take("x"), self.size, **self.options)


class AveragePool(_Pool):
    """The mean of each window, padding counted or not. `ops.pool`."""

    def __init__(self, size, stride=None, padding=0, count_padding: bool = True) -> None:
        super().__init__(size, stride, padding)
        self.count_padding = count_padding

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x = x if train else None
        return pool.average_forward(x, self.size, **self.options, count_padding=self.count_padding)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        x = self._take("x")
        return pool.average_backward(dy, x, self.size, **self.options, count_padding=self.count_padding)


class GlobalAveragePool(Layer):
    """The mean of each channel over the whole map: (N, H, W, C) -> (N, C)."""

    def __init__(self) -> None:
        self.x: np.ndarray | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x = x if train else None
        return pool.global_average_forward(x)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return pool.global_average_backward(dy, self._take("x"))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[-1:]


class Flatten(Layer):
    """(N, H, W, C) -> (N, H*W*C), the entries of one picture in the order that the next layer's weights expect.

    order: "HWC" as they lie here, "CHW" as PyTorch flattens. Without one only (N, 1, 1, C) is taken, where the
    orders are the same.
    """

    def __init__(self, hint: str = "", order: str | None = None) -> None:
        if order not in (None, "HWC", "CHW"):
            raise MbnpError(f"order must be 'HWC', 'CHW' or None, got {order!r}")
        self.hint = hint  # what the network says about the sizes of pictures it takes
        self.order = order
        self.x_shape: tuple[int, ...] | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x_shape = x.shape if train else None
        flat = (len(x), *self.output_shape(x.shape[1:]))
        return (x.transpose(0, 3, 1, 2) if self.order == "CHW" else x).reshape(flat)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        n, h, w, c = self._take("x_shape")
        return dy.reshape(n, c, h, w).transpose(0, 2, 3, 1) if self.order == "CHW" else dy.reshape(n, h, w, c)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.order is None and shape[:-1] != (1, 1):
            hint = f": {self.hint}" if self.hint else ""
            raise MbnpError(f"Flatten takes (N, 1, 1, C), got (N, {', '.join(map(str, shape))}){hint}")
        return (math.prod(shape),)


class Pad(Layer):
    """Zeros around the map, and before and after its channels: padding that no window's own padding can say.

    padding: a number for all four sides or ((top, bottom), (left, right)); channels: (before, after).
    """

    def __init__(self, padding=0, channels: tuple[int, int] = (0, 0)) -> None:
        if isinstance(padding, str) or min(channels) < 0:
            raise MbnpError(f"Pad takes numbers from 0 up, got padding {padding!r} and channels {channels!r}")
        self.padding = window.explicit_padding(padding, (1, 1), (1, 1), (1, 1))
        self.channels = channels

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        return np.pad(x, ((0, 0), *self.padding, self.channels))

    def backward(self, dy: np.ndarray) -> np.ndarray:
        before, after = self.channels
        return window.crop(dy, self.padding)[..., before : dy.shape[-1] - after]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        h, w, c = (
            size + sum(margin) for size, margin in zip(shape, (*self.padding, self.channels), strict=True)
        )
        return h, w, c


class Subsample(Layer):
    """A residual's shortcut without parameters: every `stride`-th pixel, and zeros for the new channels.

    Option A of He et al., "Deep Residual Learning for Image Recognition" (2015), section 3.3; the zeros are
    put half before and half after. stride: a number or (vertical, horizontal).
    """

    def __init__(self, c_in: int, c_out: int, stride=1) -> None:
        self.stride = stride
        self.before = (c_out - c_in) // 2
        self.after = c_out - c_in - self.before
        self.x_shape: tuple[int, ...] | None = None

    def forward(self, x: np.ndarray, train: bool = False) -> np.ndarray:
        self.x_shape = x.shape if train else None
        sh, sw = window.pair("stride", self.stride)
        return np.pad(x[:, ::sh, ::sw], ((0, 0), (0, 0), (0, 0), (self.before, self.after)))

    def backward(self, dy: np.ndarray) -> np.ndarray:
        dx = np.zeros(self._take("x_shape"), dy.dtype)
        sh, sw = window.pair("stride", self.stride)
        dx[:, ::sh, ::sw] = dy[..., self.before : dy.shape[-1] - self.after]
        return dx

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        h, w, c = shape
        sh, sw = window.pair("stride", self.stride)
        return -(-h // sh), -(-w // sw), c + self.before + self.after
