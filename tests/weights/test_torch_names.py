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


def test_gradients_to_torch():
    other, net = article().double().train(), models.mobilenet_v1_small(dtype=np.float64)
    weights.from_torch(net, other.state_dict())
    net.freeze_until("conv1")
    other.conv1[1].eval()
    x, _ = batch(4, 32, np.float64)
    dy = np.random.default_rng(0).standard_normal((4, 10))
    net.forward(x, train=True)
    net.backward(dy)
    other(tensor(x)).backward(torch.from_numpy(dy))
    found = weights.grads_to_torch(net)
    expected = {name: p.grad for name, p in other.named_parameters() if not name.startswith("conv1.")}
    assert list(found) == list(expected)
    for name, gradient in expected.items():
        assert found[name].shape == gradient.shape
        assert relative(found[name].numpy(), gradient.numpy()) < 1e-9, name
    found["fc.bias"].zero_()
    assert net.parameters()["fc.bias"].grad.any()


def test_gradients_to_torch_by_timms_names():
    net = models.mobilenet_v1(3, 0.125, max_value=6)
    names = [n for n in weights.to_torch(net, "timm") if not n.endswith(("running_mean", "running_var"))]
    assert list(weights.grads_to_torch(net, "timm")) == names


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
        ("conv2_1.0.weight", torch.zeros(32, 2, 3, 3), "no weight of a Depthwise, which has the axes c1hw"),
        ("conv2_1.3.weight", torch.zeros(32, 32, 3, 3), "no weight of a Pointwise, which has the axes oi11"),
        ("conv1.0.weight", torch.zeros(3, 3), "no weight of a Conv, which has the axes oihw"),
        ("fc.weight", torch.zeros(12, 512), r"fc.weight has shape \(512, 12\), not \(512, 10\)"),
        ("fc.scale", torch.zeros(1), "unexpected fc.scale"),
    ]:
        with pytest.raises(MbnpError, match=message):
            weights.from_torch(net, state | {name: bad})
    for name, array in net.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_partial_loading_says_what_it_skipped():
    net = models.mobilenet_v1_small(num_classes=3)
    before, state = net.state(), article().state_dict()
    del state["conv2_3.0.weight"]
    state["conv2_4.0.weight"] = torch.zeros(64, 2, 3, 3)  # of a grouped convolution, no depthwise one
    state["teacher.bias"] = torch.zeros(2)
    skipped = weights.from_torch(net, state, strict=False)
    assert skipped.missing_keys == ("conv2_3.0.weight",)
    assert skipped.unexpected_keys == ("teacher.bias",)
    assert sorted(skipped.shape_mismatches) == [
        "conv2_4.0.weight has shape (64, 2, 3, 3), not (3, 3, 64)",
        "fc.bias has shape (10,), not (3,)",
        "fc.weight has shape (512, 10), not (512, 3)",
    ]
    assert str(skipped).startswith("missing conv2_3.0.weight, unexpected teacher.bias, ")
    assert str(skipped).endswith(" and 1 more")
    kept = {"conv2_3.0.weight", "conv2_4.0.weight", "fc.weight", "fc.bias"}
    expected = models.mobilenet_v1_small(num_classes=10)
    weights.from_torch(expected, article().state_dict())
    for name, array in net.state().items():
        np.testing.assert_array_equal(array, before[name] if name in kept else expected.state()[name])


def test_nothing_skipped_is_false_and_empty():
    skipped = weights.from_torch(models.mobilenet_v1_small(), article().state_dict(), strict=False)
    assert not skipped
    assert str(skipped) == ""


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_no_number_changes_nothing(strict):
    net = models.mobilenet_v1_small()
    before, state = net.state(), net.state()
    state["fc.weight"] += 1
    state["fc.bias"] = np.array([None] * 10)
    with pytest.raises(MbnpError, match=r"fc\.bias holds object, not numbers"):
        net.load_state(state, strict)
    for name, array in net.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_unknown_names():
    with pytest.raises(MbnpError, match="did you mean 'timm'"):
        weights.to_torch(models.mobilenet_v1_small(), names="tim")
    with pytest.raises(MbnpError, match="not timm's"):
        weights.to_torch(models.mobilenet_v1(10, 0.25), names="timm")


def test_a_matrix_where_a_1x1_kernel_belongs_is_skipped_and_not_loaded_transposed():
    net = models.mobilenet_v1_small(width_mult=0.25)
    name = "conv2_3.3.weight"  # as many channels in as out
    before = net.state()[name]
    state = weights.to_torch(net)
    state[name] = state[name][:, :, 0, 0] + 1
    skipped = weights.from_torch(net, state, strict=False)
    assert len(skipped.shape_mismatches) == 1
    assert name in str(skipped)
    assert not skipped.missing_keys
    np.testing.assert_array_equal(net.state()[name], before)
