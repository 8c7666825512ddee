"""The article's network from a PyTorch state dict and back."""

import numpy as np
import pytest
import torch

from mbnp import MbnpError, fused, models, weights
from tests.twins import Article, batch, relative, tensor, vary


def article() -> Article:
    torch.manual_seed(0)
    other = Article()
    for module in other.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.2, 1.0)
    return other.eval()


def test_logits_from_torch():
    other, net = article(), models.mobilenet_v1_small()
    weights.from_torch(net, other.state_dict())
    x, _ = batch(4, 32, np.float32)
    expected = other(tensor(x)).detach().numpy()
    assert relative(net(x), expected) < 1e-5
    assert relative(fused.convert(net)(x), expected) < 1e-5


def test_logits_to_torch():
    other, net = article(), vary(models.mobilenet_v1_small(seed=4))
    other.load_state_dict(weights.to_torch(fused.convert(net)))
    x, _ = batch(4, 32, np.float32)
    assert relative(net(x), other(tensor(x)).detach().numpy()) < 1e-5


def test_to_torch_gives_copies():
    net = models.mobilenet_v1_small()
    weights.to_torch(net)["fc.bias"].zero_()
    assert np.any(net.state()["fc.bias"])


def test_arrays_and_half_precision_are_taken():
    other, net = article(), models.mobilenet_v1_small(dtype=np.float64)
    weights.from_torch(net, {name: t.numpy() for name, t in other.state_dict().items()})
    before = net.state()
    weights.from_torch(net, {name: t.bfloat16() for name, t in other.state_dict().items()})
    assert 0 < relative(net.state()["fc.weight"], before["fc.weight"]) < 0.01


def test_what_does_not_fit_changes_nothing():
    net = models.mobilenet_v1_small()
    before = net.state()
    state = article().state_dict()
    for name, bad, message in [
        ("conv2_1.0.weight", torch.zeros(32, 2, 3, 3), "no weight of a depthwise convolution"),
        ("conv2_1.3.weight", torch.zeros(32, 32, 3, 3), "no weight of a pointwise convolution"),
        ("conv1.0.weight", torch.zeros(3, 3), "must have 4 dimensions"),
        ("fc.weight", torch.zeros(12, 512), r"fc.weight has shape \(512, 12\), not \(512, 10\)"),
        ("fc.scale", torch.zeros(1), "left over fc.scale"),
    ]:
        with pytest.raises(MbnpError, match=message):
            weights.from_torch(net, state | {name: bad})
    for name, array in net.state().items():
        np.testing.assert_array_equal(array, before[name])
