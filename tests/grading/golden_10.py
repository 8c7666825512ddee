"""Lesson 10's exercises by PyTorch: its folding, BatchNorm and matrix product, and statistics of all pixels at once."""

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights


def torch_golden(name: str, case: dict):
    functions = {"fold": _fold, "normalise_relu": _normalise_relu, "blocked_matmul": _matmul, "combine": _combine}
    return functions[name](**case)


def _tensor(a):
    return torch.tensor(np.asarray(a, np.float64))


def _fold(w, b, gamma, beta, mean, var, eps):
    weight, bias = fuse_conv_bn_weights(
        _tensor(w.transpose(3, 2, 0, 1)),
        _tensor(b),
        _tensor(mean),
        _tensor(var),
        eps,
        _tensor(gamma),
        _tensor(beta),
    )
    return weight.detach().numpy().transpose(2, 3, 1, 0), bias.detach().numpy()


def _normalise_relu(z, mean, var, gamma, beta, eps):
    z, mean, var, gamma, beta = map(_tensor, (z, mean, var, gamma, beta))
    y = F.batch_norm(z.permute(0, 3, 1, 2), mean, var, gamma, beta, training=False, eps=eps)
    return F.relu(y).permute(0, 2, 3, 1).numpy()


def _matmul(a, b):
    return torch.matmul(_tensor(a), _tensor(b)).numpy()


def _combine(counts, means, m2s):
    """Compute them by torch.var_mean, from pixels that are made to have exactly these statistics."""
    pixels = []
    for n, mean, m2 in zip(counts, _tensor(means), _tensor(m2s), strict=True):
        # n pixels with this mean and m2: one up, one down by sqrt(m2 / 2), the others on the mean.
        tile = mean.repeat(int(n), 1)
        if n > 1:
            step = (m2 / 2).sqrt()
            tile[0] += step
            tile[1] -= step
        pixels.append(tile)
    variance, mean = torch.var_mean(torch.cat(pixels), dim=0, unbiased=False)
    return mean.numpy(), variance.numpy()
