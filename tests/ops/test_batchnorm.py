import functools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mbnp import MbnpError, backend
from mbnp.ops import batchnorm
from tests import oracle


def check(x, gamma, beta, eps=1e-5, **options):
    def reference(x, gamma, beta):
        y = F.batch_norm(x.reshape(-1, x.shape[-1]), None, None, gamma, beta, training=True, eps=eps)
        return y.reshape(x.shape)

    def backward(dy, x, gamma, beta):
        _, mean, var = batchnorm.forward(x, gamma, beta, eps)
        return batchnorm.backward(dy, x, gamma, mean, var, eps)

    oracle.check(functools.partial(batchnorm.forward, eps=eps), backward, reference, x, gamma, beta, **options)


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (8, 3), (1, 1, 3, 4), (3, 4, 5, 17), (3, 1, 1, 2)])
def test_agrees_with_torch(shape, eps):
    check(shape, shape[-1:], shape[-1:], eps)


def test_sums_over_many_rows_agree_with_torch():
    """More rows than a tile of the kernel's sums, in chunks that do not divide them."""
    check((3, 61, 67, 3), (3,), (3,), finite=False, backends=("numpy", "numba"))


def test_a_large_mean_does_not_cancel():
    """Mean 1000, spread 1: a variance from mean(x^2) - mean^2 would be off by 6 % in float32.

    backward is handed the mean in float32, half a unit in the last place (3e-5) beside the true one. The
    loops take it at its word, which is all that their looser tolerance stands for.
    """
    x = (1e3 + np.random.default_rng(0).standard_normal((4, 7, 5, 3))).astype(np.float32)
    check(x, (3,), (3,), finite=False, backends=("numpy", "numba"))
    check(x, (3,), (3,), finite=False, backends=("loops",), tolerance={np.float64: 1e-10, np.float32: 1e-4})
    exact, _, _ = batchnorm.forward(x.astype(np.float64), np.ones(3), np.zeros(3))
    for name in backend.BACKENDS:
        with backend.use(name):
            y, _, _ = batchnorm.forward(x, np.ones(3, np.float32), np.zeros(3, np.float32))
        oracle.close(y, exact, 1e-5, name)  # forward knows the mean exactly


def test_nan_shows_in_its_channel():
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 2)).astype(np.float32)
    x[0, 0, 0, 1] = np.nan
    check(x, (2,), (2,), finite=False)
    dy = np.random.default_rng(1).standard_normal((2, 3, 3, 2)).astype(np.float32)
    dy[1, 2, 0, 0] = np.nan
    check((2, 3, 3, 2), (2,), (2,), finite=False, dy=dy)


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_a_variance_that_overflows_leaves_beta_as_in_torch(name):
    x = np.array([[1e30, 1], [-1e30, 2], [1, 4]], np.float32)
    gamma, beta, dy = (np.array(a, np.float32) for a in ([2, 3], [5, 6], [[1, 2], [3, 4], [5, 5]]))
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    expected = F.batch_norm(tensors[0], None, None, *tensors[1:], training=True)
    expected.backward(torch.tensor(dy))
    with backend.use(name), np.errstate(over="ignore"):
        y, mean, var = batchnorm.forward(x, gamma, beta)
        dx, dgamma, dbeta = batchnorm.backward(dy, x, gamma, mean, var)
    assert np.isposinf(var[0])
    np.testing.assert_array_equal([y[:, 0], dx[:, 0]], [[5, 5, 5], [0, 0, 0]])
    oracle.close(y, expected.detach().numpy(), 1e-5, "y")
    for actual, tensor in zip((dx, dgamma, dbeta), tensors, strict=True):
        oracle.close(actual, tensor.grad.numpy(), 1e-5, "gradient")


@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (4, 3), (1, 1, 1, 4)])
def test_inference_agrees_with_torch(shape):
    C = shape[-1]
    mean, var = np.linspace(-1, 1, C, dtype=np.float32), np.linspace(0.1, 2, C, dtype=np.float32)

    def statistics(x):
        return mean.astype(x.dtype), var.astype(x.dtype)

    def reference(x, gamma, beta):
        rows = x.reshape(-1, C)
        mean64, var64 = (torch.from_numpy(a.astype(np.float64)) for a in (mean, var))
        return F.batch_norm(rows, mean64, var64, gamma, beta, training=False).reshape(shape)

    def forward(x, gamma, beta):
        return batchnorm.inference(x, gamma, beta, *statistics(x))

    def backward(dy, x, gamma, beta):
        return batchnorm.inference_backward(dy, x, gamma, *statistics(x))

    oracle.check(forward, backward, reference, shape, (C,), (C,))


def test_running_averages_are_torchs():
    """Biased variance to normalise, unbiased variance in the average; momentum is the new batch's share."""
    rng = np.random.default_rng(0)
    layer = torch.nn.BatchNorm1d(3, momentum=0.2).double()
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(3):
        x = rng.standard_normal((5, 3)) * 3 + 1
        layer(torch.from_numpy(x))
        _, batch_mean, batch_var = batchnorm.forward(x, np.ones(3), np.zeros(3))
        before = mean.copy(), var.copy()
        new = batchnorm.update_running(mean, var, batch_mean, batch_var, len(x), momentum=0.2)
        np.testing.assert_array_equal((mean, var), before)
        mean, var = new
    oracle.close(mean, layer.running_mean.numpy(), 1e-12, "running mean")
    oracle.close(var, layer.running_var.numpy(), 1e-12, "running variance")


def test_running_averages_keep_float32():
    one = np.ones(3, np.float32)
    assert [a.dtype for a in batchnorm.update_running(one, one, one, one, 10)] == [np.float32, np.float32]


def test_bad_input():
    x, g = np.zeros((2, 3, 8, 9), np.float32), np.ones(3, np.float32)
    with pytest.raises(MbnpError, match=r"3 channels second, .* use x.transpose\(0, 2, 3, 1\)"):
        batchnorm.forward(x, g, g)
    with pytest.raises(MbnpError, match=r"x has 8 channels .* gamma \(3,\) expects 3"):
        batchnorm.forward(np.zeros((2, 8), np.float32), g, g)
    with pytest.raises(MbnpError, match="cannot train on one value per channel"):
        batchnorm.forward(np.zeros((1, 1, 1, 3), np.float32), g, g)
    with pytest.raises(MbnpError, match="no variance"):
        batchnorm.update_running(g, g, g, g, count=1)
    with pytest.raises(MbnpError, match="beta is float64 where the input is float32"):
        batchnorm.forward(np.zeros((2, 3), np.float32), g, np.ones(3))
    with pytest.raises(MbnpError, match=r"dy must have the shape \(2, 3\), got \(3, 2\)"):
        batchnorm.backward(np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float32), g, g, g)
