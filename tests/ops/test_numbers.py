"""Every operation and implementation against PyTorch: any shape, any layout in memory, and any number.

What is compared: where a result is NaN, +inf or -inf, exactly; what is finite, within what rounding explains, which is
measured by the operation on absolute values. Only where these are so large that a sum might overflow on the way, in
one order and not in another, nothing is asked.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mbnp import MbnpError, backend
from mbnp.ops import (
    batchnorm,
    conv,
    depthwise,
    gate,
    hard_sigmoid,
    hard_swish,
    linear,
    matmul,
    pointwise,
    pool,
    relu,
    softmax_cross_entropy,
    window,
)
from tests.oracle import nchw, nhwc, padded
from tests.tally import NIGHTLY

EXAMPLES = 2000 if NIGHTLY else 100  # of each operation
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-13}
ROOM = 1e6  # between what may be summed up and the largest number of a type
BUDGET = 6000  # multiplications, which the loops make one by one

# Derandomised: a failure today is one tomorrow. No deadline: kernels compile.
usual = settings(max_examples=EXAMPLES, deadline=None, derandomize=True)


class Case(NamedTuple):
    """The shapes of an operation's arrays (None for one that is left out) and its options."""

    shapes: tuple
    options: dict[str, Any]


class Operation(NamedTuple):
    """An operation: forward(*arrays, **options) -> y, backward(dy, *arrays, **options) -> a gradient of each array."""

    forward: Callable
    backward: Callable
    torch: Callable
    draw: Callable
    bounds: Callable | None = None  # of y and of the gradients; None: the operation on absolute values
    signs: bool = True  # whether NaN, +inf and -inf are told apart, too
    positive: tuple = ()  # arrays whose numbers are not negative


# ---- shapes and options ----------------------------------------------------------------------------------------------

small, channels = st.integers(1, 3), st.sampled_from([1, 2, 3, 5, 9, 17])
sizes = st.integers(1, 7)


def _window(draw, x, pooling=False):
    """(KH, KW), stride and padding that fit x: rectangular, one-sided, "same"; of pooling less than the window."""
    kernel, stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4))), draw(st.tuples(small, small))
    most = [K - 1 if pooling else 3 for K in kernel]
    sides = st.tuples(*(st.tuples(st.integers(0, m), st.integers(0, m)) for m in most))
    padding = draw(st.one_of(st.just("same"), st.integers(0, min(most)), sides))
    sides = window.explicit_padding(padding, x[1:3], kernel, stride)
    assume(all(H + sum(side) >= K for H, side, K in zip(x[1:3], sides, kernel, strict=True)))
    return kernel, {"stride": stride, "padding": padding}


def _map(draw):
    return draw(st.tuples(small, sizes, sizes, channels))


def _weighted(shape_of_weights):
    """Draw x and weights with a bias or none; windows where the weights have four or three axes."""

    def draw_case(draw):
        x, D = _map(draw), draw(channels)
        kernel, options = _window(draw, x)
        w, options = shape_of_weights(kernel, x[3], D), options
        assume(math.prod(x[:3]) * math.prod(w) <= BUDGET)
        return Case((x, w, draw(st.sampled_from([None, w[-1:]]))), options)

    return draw_case


def _matrices(draw):
    rows, K, N = draw(sizes), draw(channels), draw(channels)
    return Case(((rows, K), (K, N)), {})


def _linear(draw):
    (x, w), _ = _matrices(draw)
    return Case((x, w, draw(st.sampled_from([None, w[1:]]))), {})


def _pointwise(draw):
    x, D = _map(draw), draw(channels)
    return Case((x, (x[3], D), draw(st.sampled_from([None, (D,)]))), {})


def _pool(draw):
    x = _map(draw)
    size, options = _window(draw, x, pooling=True)
    return Case((x,), {"size": size, **options})


def _average_pool(draw):
    (x,), options = _pool(draw)
    return Case((x,), options | {"count_padding": draw(st.booleans())})


def _gated(draw):
    x = _map(draw)
    return Case((x, (x[0], x[3])), {})


def _normalised(draw):
    x = _map(draw)
    assume(math.prod(x[:3]) > 1)
    return Case((x, x[3:], x[3:]), {"eps": draw(st.sampled_from([1e-5, 1e-3]))})


def _inferred(draw):
    (x, *_), options = _normalised(draw)
    return Case((x, *[x[3:]] * 4), options)


def _logits(draw):
    N, D = draw(sizes), draw(channels)
    labels = draw(st.lists(st.integers(0, D - 1), min_size=N, max_size=N))
    return Case(((N, D),), {"labels": np.array(labels), "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0]))})


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def _sides(x, kernel, stride, padding):
    return window.explicit_padding(padding, tuple(x.shape[1:3]), tuple(kernel), stride)


def _torch_conv(x, w, b, stride, padding):
    x = padded(nchw(x), _sides(x, w.shape[:2], stride, padding))
    return nhwc(F.conv2d(x, w.permute(3, 2, 0, 1).contiguous(), b, stride))


def _torch_depthwise(x, w, b, stride, padding):
    x = padded(nchw(x), _sides(x, w.shape[:2], stride, padding))
    return nhwc(F.conv2d(x, w.permute(2, 0, 1)[:, None].contiguous(), b, stride, groups=w.shape[2]))


def _torch_product(x, w, b=None):
    return x @ w if b is None else x @ w + b


def _torch_max(x, size, stride, padding):
    # By itself PyTorch pads no more than half a window. Beside padding, too, -inf in x wins, as it does there.
    sides, above_padding = _sides(x, size, stride, padding), torch.where(x == -np.inf, -1e300, x)
    _, winner = F.max_pool2d(padded(nchw(above_padding), sides, -np.inf), size, stride, return_indices=True)
    pixels = padded(nchw(x), sides, -np.inf).flatten(2)
    return nhwc(pixels.gather(2, winner.flatten(2)).view(winner.shape))


def _torch_average(x, size, stride, padding, count_padding):
    sides = _sides(x, size, stride, padding)
    y = F.avg_pool2d(padded(nchw(x), sides), size, stride)
    if not count_padding:  # the share of pixels inside
        y = y / F.avg_pool2d(padded(x.new_ones(1, 1, *x.shape[1:3]), sides), size, stride)
    return nhwc(y)


def _torch_normalise(x, gamma, beta, eps):
    return F.batch_norm(x.reshape(-1, x.shape[-1]), None, None, gamma, beta, True, eps=eps).reshape(x.shape)


def _torch_infer(x, gamma, beta, mean, var, eps):
    mean, var = mean.detach(), var.detach()
    return F.batch_norm(x.reshape(-1, x.shape[-1]), mean, var, gamma, beta, False, eps=eps).reshape(x.shape)


def _torch_relu(x, max_value):
    y = torch.relu(x)  # hardtanh's gradient at NaN is 0 in the middle of an array and dy at its end
    return y if max_value is None else torch.where(x >= max_value, torch.full_like(x, max_value), y)


def _torch_hard_sigmoid(x):
    y = F.relu6(x + 3) / 6  # F.hardsigmoid's gradient in float64 has float32's 1/6
    return torch.where(x.isnan(), x.detach(), y)  # NaN, with a gradient of 0 even where dy is NaN, as F.hardsigmoid's


def _torch_hard_swish(x):
    y = F.hardswish(torch.where(x.isnan(), 0, x))  # whose gradient at NaN depends on the place in the array
    return torch.where(x.isnan(), x * torch.where(x.isnan(), x.detach(), 1), y)


# ---- what is not linear: another gradient's arguments, another measure of rounding -----------------------------------


def _normalise_backward(dy, x, gamma, beta, eps):
    _, mean, var = batchnorm.forward(x, gamma, beta, eps)
    return batchnorm.backward(dy, x, gamma, mean, var, eps)


def _infer_backward(dy, x, gamma, beta, mean, var, eps):
    return (*batchnorm.inference_backward(dy, x, gamma, mean, var, eps), None, None)


def _loss_backward(dy, z, **options):
    return (softmax_cross_entropy.backward(z, **options) * dy,)  # it ends a network: its own dy is 1


def _max_bounds(dy, x, size, stride, padding):
    how = {"size": size, "stride": stride, "padding": padding}
    return pool.max_forward(x, **how), [pool.average_backward(np.abs(dy), x, **how) * math.prod(size)]


def _batchnorm_bounds(dy, x, gamma, beta, *statistics, eps):
    """What rounding of x and of its mean does to a channel, beside values as large as its largest."""
    axes, largest = (0, 1, 2), np.abs(x).max((0, 1, 2))
    mean, var = statistics or (x.mean(axes), x.var(axes))
    s = np.sqrt(var + eps)
    xhat = 1 + np.abs(x - mean).max(axes) / s + (largest + np.abs(mean)) / s
    total = np.abs(dy).sum(axes)
    y, dx, dgamma = np.abs(gamma) * xhat**2 + np.abs(beta), np.abs(gamma) / s * total * xhat**3, total * xhat**2
    huge = max(map(np.max, (largest, np.abs(gamma), np.abs(beta), np.abs(dy), np.abs(mean))))
    if huge > 1e12:  # what is squared may overflow in float32
        y, dx, dgamma = y * huge**3, dx * huge**3, dgamma * huge**3
    bounds = np.broadcast_to(dx, x.shape), dgamma, total * max(1, huge * (huge > 1e12))
    return np.broadcast_to(y, x.shape), [*bounds, *[None] * len(statistics)]


def _loss_bounds(dy, z, **options):
    rows = 1 + 2 * np.abs(z).max(axis=1, keepdims=True)
    return np.array(rows.max() + np.log(z.shape[1])), [np.broadcast_to(rows * np.abs(dy), z.shape)]


def _ignoring_bias(backward):
    return lambda dy, x, w, b=None, **options: backward(dy, x, w, **options)


def _alone(backward):
    return lambda *arrays, **options: (backward(*arrays, **options),)


OPERATIONS = {
    "conv": Operation(
        conv.forward, _ignoring_bias(conv.backward), _torch_conv, _weighted(lambda kernel, C, D: (*kernel, C, D))
    ),
    "depthwise": Operation(
        depthwise.forward, _ignoring_bias(depthwise.backward), _torch_depthwise,
        _weighted(lambda kernel, C, D: (*kernel, C)),
    ),
    "pointwise": Operation(pointwise.forward, _ignoring_bias(pointwise.backward), _torch_product, _pointwise),
    "linear": Operation(linear.forward, _ignoring_bias(linear.backward), _torch_product, _linear),
    "matmul": Operation(matmul.forward, matmul.backward, torch.matmul, _matrices),
    "batchnorm": Operation(
        lambda *arrays, **options: batchnorm.forward(*arrays, **options)[0], _normalise_backward, _torch_normalise,
        _normalised, _batchnorm_bounds, signs=False,
    ),
    "batchnorm inference": Operation(
        batchnorm.inference, _infer_backward, _torch_infer, _inferred, _batchnorm_bounds, signs=False, positive=(4,)
    ),
    "relu": Operation(
        relu.forward, _alone(relu.backward), _torch_relu,
        lambda draw: Case((_map(draw),), {"max_value": draw(st.sampled_from([None, 6.0, 0.5]))}),
    ),
    "hard-sigmoid": Operation(
        hard_sigmoid.forward, _alone(hard_sigmoid.backward), _torch_hard_sigmoid, lambda draw: Case((_map(draw),), {})
    ),
    "hard-swish": Operation(
        hard_swish.forward, _alone(hard_swish.backward), _torch_hard_swish, lambda draw: Case((_map(draw),), {})
    ),
    "gate": Operation(gate.forward, gate.backward, lambda x, s: x * s[:, None, None, :], _gated),
    "max pool": Operation(
        pool.max_forward, _alone(pool.max_backward), _torch_max, _pool,
        _max_bounds,
    ),
    "average pool": Operation(
        pool.average_forward, _alone(pool.average_backward),
        _torch_average, _average_pool,
    ),
    "global average": Operation(
        pool.global_average_forward, _alone(pool.global_average_backward),
        lambda x: x.mean((1, 2)), lambda draw: Case((_map(draw),), {}),
    ),
    "softmax and cross-entropy": Operation(
        softmax_cross_entropy.forward, _loss_backward,
        lambda z, labels, label_smoothing: F.cross_entropy(z, torch.tensor(labels), label_smoothing=label_smoothing),
        _logits, _loss_bounds,
    ),
}  # fmt: skip

# ---- numbers, and how arrays lie in memory ---------------------------------------------------------------------------

NUMBERS = [math.nan, math.inf, -math.inf, 1e-40, -1e-310, 1e30, -1e30, 0.0, -0.0, 1.0]
LAYOUTS = {
    "contiguous": lambda a: a,
    "Fortran": lambda a: np.asfortranarray(a),
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "reversed": lambda a: np.flip(np.flip(a).copy()),
    "read-only": lambda a: _read_only(a.copy()),
}
REFUSED = {
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "empty": lambda a: a[:0],
    "masked": lambda a: np.ma.masked_array(a, np.zeros(a.shape)),
    "whole numbers": lambda a: a.astype(np.int32),
}


def _read_only(a):
    a.flags.writeable = False
    return a


def _draw_arrays(data, operation, case):
    """Return dy and the arrays, random numbers in float32, and up to three numbers of NUMBERS among them."""
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    arrays = [None if shape is None else rng.standard_normal(shape) for shape in case.shapes]
    with np.errstate(all="ignore"):
        dy = rng.standard_normal(np.shape(operation.forward(*arrays, **case.options)))
    arrays = [dy, *arrays]
    there = [i for i, a in enumerate(arrays) if a is not None and a.ndim]
    for _ in range(data.draw(st.integers(0, 3))):
        a = arrays[data.draw(st.sampled_from(there))]
        a[np.unravel_index(data.draw(st.integers(0, a.size - 1)), a.shape)] = data.draw(st.sampled_from(NUMBERS))
    for i in operation.positive:
        arrays[1 + i] = np.abs(arrays[1 + i])
    return [None if a is None else a.astype(np.float32) for a in arrays]


def _expected(operation, arrays, options):
    """Return y and the gradients by PyTorch in float64, and their bounds."""
    dy, *inputs = [None if a is None else torch.tensor(a, dtype=torch.float64) for a in arrays]
    for tensor in inputs:
        if tensor is not None:
            tensor.requires_grad_()
    y = operation.torch(*inputs, **options)
    y.backward(dy)
    exact = [y.detach().numpy(), *(None if t is None or t.grad is None else t.grad.numpy() for t in inputs)]
    finite = [None if a is None else np.where(np.isfinite(a), a, 0).astype(np.float64) for a in arrays]
    with backend.use("numpy"):
        if operation.bounds:
            bound, bounds = operation.bounds(*finite, **options)
        else:
            finite = [None if a is None else np.abs(a) for a in finite]
            bound, bounds = operation.forward(*finite[1:], **options), operation.backward(*finite, **options)
    return list(zip(exact, [bound, *bounds], strict=False))


def _compare(actual, expected, bound, dtype, signs, what):
    assert np.shape(actual) == expected.shape, f"{what}: {np.shape(actual)} instead of {expected.shape}"
    assert actual.dtype == dtype, f"{what}: {actual.dtype}"
    asked = np.abs(bound) * ROOM < np.finfo(dtype).max
    actual, expected, bound = (np.asarray(a)[asked] for a in (actual, expected, np.abs(bound)))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(actual), finite, err_msg=what)
    if signs:
        np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=what)
    allowed = TOLERANCE[dtype] * bound[finite] + np.finfo(dtype).tiny
    off = np.abs(actual[finite] - expected[finite]) > allowed
    assert not off.any(), f"{what}: {actual[finite][off]} instead of {expected[finite][off]}"


@pytest.mark.parametrize("name", OPERATIONS)
@usual
@given(data=st.data())
def test_any_numbers_agree_with_torch(name, data):
    operation = OPERATIONS[name]
    case = operation.draw(data.draw)
    drawn = _draw_arrays(data, operation, case)
    dtype, layout = data.draw(st.sampled_from([np.float32, np.float64])), data.draw(st.sampled_from(sorted(LAYOUTS)))
    with np.errstate(all="ignore"):
        expected = _expected(operation, drawn, case.options)
        for implementation in backend.BACKENDS:
            arrays = [None if a is None else LAYOUTS[layout](a.astype(dtype)) for a in drawn]
            with backend.use(implementation):
                y = operation.forward(*arrays[1:], **case.options)
                results = y, *operation.backward(*arrays, **case.options)
            for k, (result, (exact, bound)) in enumerate(zip(results, expected, strict=False)):
                if exact is not None:
                    what = f"{'gradient ' * (k > 0)}{k or 'y'} by {implementation}"
                    _compare(result, exact, bound, dtype, operation.signs, what)
            for given_array, a in zip(arrays, drawn, strict=True):
                np.testing.assert_array_equal(given_array, None if a is None else a.astype(dtype))


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", OPERATIONS)
@settings(usual, max_examples=5)
@given(data=st.data())
def test_what_no_operation_takes_is_one_line(name, kind, data):
    operation = OPERATIONS[name]
    case = operation.draw(data.draw)
    arrays = [None if shape is None else np.ones(shape, np.float32) for shape in case.shapes]
    i = data.draw(st.sampled_from([i for i, a in enumerate(arrays) if a is not None]))
    arrays[i] = REFUSED[kind](arrays[i])
    with pytest.raises(MbnpError, match=r"masked|must be float32|empty|is int32|is >f4|expects|shape") as raised:
        operation.forward(*arrays, **case.options)
    assert "\n" not in str(raised.value)
