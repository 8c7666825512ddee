"""`net.gradients`: the gradient at every layer's output is PyTorch's, and the network stays as it was."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from mbnp import MbnpError, backend, fused, models
from mbnp.layers import Dropout, Network, Pyramid, ReLU, Residual, Sequential
from mbnp.network import Layer
from tests import twins

NETWORKS = {
    "mobilenet-v1-small": (32, {}),
    "mobilenet-v1": (64, {"width_mult": 0.25}),
    "resnet20": (32, {"width_mult": 0.5}),
    "mobilenet-v2": (64, {"width_mult": 0.25}),
    "mobilenet-v3-small": (64, {"width_mult": 0.5}),
    "xception-cifar": (32, {"width_mult": 0.25}),
    "ssd-mobilenet-v1-small": (64, {"width_mult": 0.25}),
}


def partners(layer: Layer, module: nn.Module, name: str = "") -> dict[str, nn.Module]:
    """Return by full name the module that computes what a layer does; both list their parts in the same order."""
    children = list(getattr(layer, "layers", {}).items())
    if isinstance(layer, Residual) and layer.shortcut:
        children.append(("shortcut", layer.shortcut))
    if isinstance(layer, Pyramid):
        children += [("boxes", Sequential(layer.boxes)), ("scores", Sequential(layer.scores))]
    found = {name: module}
    for (child, part), other in zip(children, module.children(), strict=False):  # a shortcut may be nn.Identity
        found |= partners(part, other, f"{name}.{child}" if name else child)
    return found


def from_torch(array: torch.Tensor) -> np.ndarray:
    return array.numpy().transpose(0, 2, 3, 1) if array.ndim == 4 else array.numpy()


def torch_gradients(net: Network, x: np.ndarray, dlogits: np.ndarray) -> dict[str, np.ndarray]:
    module, outputs = twins.torch_network(net).double().eval(), {}

    def keep(name):
        def hook(module, inputs, output):
            output.retain_grad()
            outputs[name] = output

        return hook

    for name, part in partners(net, module).items():
        part.register_forward_hook(keep(name))
    images = twins.tensor(x).requires_grad_(True)
    module(images).backward(torch.from_numpy(dlogits))
    return {name: from_torch(y.grad) for name, y in outputs.items() if name} | {"input": from_torch(images.grad)}


def prepared(name: str, dtype: type = np.float64) -> tuple[Network, np.ndarray, np.ndarray]:
    resolution, options = NETWORKS[name]
    net = twins.vary(models.create(name, num_classes=7, dtype=dtype, **options))
    x, _ = twins.batch(2, resolution, dtype)
    shape = 2, *net.output_shape(x.shape[1:])
    return net, x, np.random.default_rng(1).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("name", NETWORKS)
def test_are_those_of_pytorch(name):
    net, x, dlogits = prepared(name)
    with backend.use("numpy"):
        found, names = net.gradients(x, dlogits), list(net.activations(x))
    assert list(found) == [*names, "input"]
    expected = torch_gradients(net, x, dlogits)
    assert set(expected) == set(found)
    for name, gradient in expected.items():
        twins.assert_close(found[name], gradient, 1e-10, name)


def test_are_the_same_of_the_fast_network():
    net, x, dlogits = prepared("mobilenet-v1-small", np.float32)
    x, dlogits = x[:1], dlogits[:1]
    found, fast = net.gradients(x, dlogits), fused.convert(net).gradients(x, dlogits)
    assert list(found) == list(fast)
    for name, gradient in found.items():
        np.testing.assert_array_equal(fast[name], gradient)
    with backend.use("numpy"):
        for name, gradient in net.gradients(x, dlogits).items():
            twins.assert_close(found[name], gradient, 1e-4, name)


@pytest.mark.parametrize("wrap", [lambda net: net, fused.convert], ids=["reference", "fused"])
@pytest.mark.parametrize("wrong", [False, True], ids=["", "raises"])
def test_leave_everything_as_it_was(wrap, wrong):
    net, x, dlogits = prepared("mobilenet-v3-small", np.float32)
    net.freeze_until("features.2")
    with backend.use("numpy"):
        wrapped, given = wrap(net), (x.copy(), dlogits.copy())
        wrapped.forward(x, train=True)  # saves what a backward needs
        before, twin = pickle.dumps(net), copy.deepcopy(net)
        if wrong:
            with pytest.raises(MbnpError, match="dlogits"):
                wrapped.gradients(x, dlogits[:1])
        else:
            found = wrapped.gradients(x, dlogits)
            assert not any(np.shares_memory(dlogits, gradient) for gradient in found.values())
        assert pickle.dumps(net) == before, "with its generators, and what the forward saved"
        np.testing.assert_array_equal(x, given[0])
        np.testing.assert_array_equal(dlogits, given[1])
        assert wrapped.backward(dlogits) is None, "up to the frozen layers"
        twin.backward(dlogits)
    for name, p in net.parameters().items():
        np.testing.assert_array_equal(p.grad, twin.parameters()[name].grad, name)
        assert np.any(p.grad) != p.frozen, name


def test_dropout_does_nothing():
    net = Network({"a": Residual([Dropout(0.5)], Dropout(0.9)), "r": ReLU()}, 2)
    x = np.ones((3, 2, 2, 3), np.float32)
    found = net.gradients(x, np.full_like(x, 2))
    np.testing.assert_array_equal(found["a.0"], np.full_like(x, 2))
    np.testing.assert_array_equal(found["a.shortcut"], np.full_like(x, 2))
    np.testing.assert_array_equal(found["input"], np.full_like(x, 4))


@pytest.mark.parametrize(
    ("dlogits", "says"),
    [
        (np.zeros((2, 7)), r"dlogits is float64 and the logits are float32; pass dlogits\.astype"),
        (np.zeros((2, 8), np.float32), r"the logits' shape \(2, 7\), got \(2, 8\)"),
        (np.zeros((7,), np.float32), r"the logits' shape \(2, 7\), got \(7,\)"),
        ([[1.0] * 7] * 2, "got a list"),
        (np.ma.masked_array(np.zeros((2, 7), np.float32)), "dlogits is a masked array"),
    ],
)
def test_bad_dlogits_are_one_line(dlogits, says):
    net, x, _ = prepared("mobilenet-v1-small", np.float32)
    with pytest.raises(MbnpError, match=says):
        net.gradients(x, dlogits)


def test_a_layer_named_input_is_refused():
    net = Network({"input": ReLU()}, 2)
    x = np.ones((1, 2, 2, 3), np.float32)
    with pytest.raises(MbnpError, match="a layer is named 'input'"):
        net.gradients(x, x)
