"""Whole networks against PyTorch: outputs, gradients, statistics, and training loss by loss."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mbnp import MbnpError, fused, models, optim, train, weights
from mbnp.weights import torch_known
from tests.twins import Article, assert_gradients, batch, gradients, relative, tensor, torch_network, vary

CASES = [
    ("mobilenet-v1-small", {}, 32),
    ("mobilenet-v1-small", {"width_mult": 0.4, "num_classes": 7}, 33),
    ("standard-small", {"width_mult": 0.25}, 32),
    ("mobilenet-v1-cifar", {"width_mult": 0.25}, 32),
    ("mobilenet-v1", {"width_mult": 0.25, "num_classes": 12}, 65),
    ("resnet20", {"width_mult": 0.5}, 32),
    ("ssd-mobilenet-v1-small", {"width_mult": 0.25, "num_classes": 7}, 65),
]


def torch_state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    state = {name: t.numpy() for name, t in module.state_dict().items()}
    return {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(("name", "options", "size"), CASES)
@pytest.mark.parametrize("engine", ["readable", "fused"])
def test_forward_backward_and_statistics_agree_with_torch(name, options, size, engine):
    net = vary(models.create(name, dtype=np.float64, **options))
    other = torch_network(net).double()
    other.load_state_dict(weights.to_torch(net))
    run = fused.convert(net) if engine == "fused" else net
    x, _ = batch(3, size, np.float64)
    with torch.no_grad():
        assert relative(run.forward(x), other.eval()(tensor(x)).numpy()) < 1e-10
    y = run.forward(x, train=True)
    expected = other.train()(tensor(x))
    assert relative(y, expected.detach().numpy()) < 1e-10
    dy = np.random.default_rng(5).standard_normal(y.shape)
    run.backward(dy)
    expected.backward(torch.from_numpy(dy))

    ours = models.create(name, dtype=np.float64, **options)  # to turn PyTorch's arrays into our layout
    weights.from_torch(ours, other.state_dict())
    statistics = ours.state()
    for key, buffer in net.buffers().items():
        assert relative(buffer.value, statistics[key]) < 1e-10, key
    weights.from_torch(ours, other.state_dict() | {key: p.grad for key, p in other.named_parameters()})
    assert_gradients(gradients(net), {key: p.value for key, p in ours.parameters().items()}, 1e-10)


def test_names_are_those_of_the_articles_class():
    net = models.mobilenet_v1_small()
    state = torch_state(Article())
    assert list(net.state()) == list(state)
    assert sum(p.value.size for p in net.parameters().values()) == 280_650


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenet-v1-cifar", ["conv1.weight", "bn1.running_var", "layers.12.conv2.weight", "linear.bias"]),
        ("mobilenet-v1", ["features.0.0.weight", "features.13.3.weight", "classifier.bias"]),
        ("resnet20", ["conv1.weight", "layer3.2.conv2.weight", "layer1.0.bn1.bias", "linear.weight"]),
        ("standard-small", ["conv1.0.bias", "conv2_8.0.weight", "fc.weight"]),
    ],
)
def test_names_are_those_of_pytorchs_networks(name, expected):
    assert set(expected) <= set(models.create(name).state())


def ten_steps(engine: str, dtype: type, steps: int) -> tuple[list[float], list[float]]:
    """Losses of ours and of PyTorch's from the same weights and batches."""
    torch.manual_seed(0)
    other = Article().to(torch.float64 if dtype is np.float64 else torch.float32)
    net = models.mobilenet_v1_small(dtype=dtype)
    weights.from_torch(net, other.state_dict())
    run = fused.convert(net) if engine == "fused" else net
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    opt, torch_opt = optim.SGD(net.parameters(), **options), torch.optim.SGD(other.parameters(), **options)
    losses, expected = [], []
    for i in range(steps):
        x, y = batch(16, 32, dtype, seed=i)
        losses.append(train.step(run, opt, x, y))
        torch_opt.zero_grad()
        loss = F.cross_entropy(other(tensor(x)), torch.from_numpy(y))
        loss.backward()
        torch_opt.step()
        expected.append(loss.item())
    return losses, expected


@pytest.mark.parametrize("engine", ["readable", "fused"])
def test_ten_training_steps_loss_by_loss(engine):
    losses, expected = ten_steps(engine, np.float64, 10)
    assert len(set(expected)) == 10
    np.testing.assert_allclose(losses, expected, rtol=1e-8)


@pytest.mark.parametrize("engine", ["readable", "fused"])
def test_two_training_steps_in_float32(engine):
    # Only two: after that float32 is chaotic, and PyTorch's own layouts drift apart by per cents.
    losses, expected = ten_steps(engine, np.float32, 2)
    assert losses[0] == pytest.approx(expected[0], rel=1e-5)
    assert losses[1] == pytest.approx(expected[1], rel=5e-3)


def test_a_seed_gives_the_same_weights_in_both_types():
    single, double = (models.mobilenet_v1_small(seed=3, dtype=t).state() for t in (np.float32, np.float64))
    for name in single:
        np.testing.assert_array_equal(single[name], double[name].astype(np.float32))
    assert not np.array_equal(single["fc.weight"], models.mobilenet_v1_small(seed=4).state()["fc.weight"])


def test_initial_weights_are_spread_as_pytorchs():
    ours, theirs = models.mobilenet_v1_small().state(), torch_state(Article())
    for name in ("conv1.0.weight", "conv2_8.0.weight", "conv2_8.3.weight", "fc.weight", "fc.bias"):
        bound = np.abs(theirs[name]).max()
        assert np.abs(ours[name]).max() == pytest.approx(bound, rel=0.2)
        assert ours[name].std() == pytest.approx(theirs[name].std(), rel=0.25)


@pytest.mark.parametrize("engine", [lambda net: net, fused.convert])
def test_bad_images(engine):
    net = engine(models.mobilenet_v1_small())
    with pytest.raises(MbnpError, match=r"channels first; pass x.transpose\(0, 2, 3, 1\)"):
        net(np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(MbnpError, match=r"\(N, H, W, 3\), got \(1, 32, 32, 4\)"):
        net(np.zeros((1, 32, 32, 4), np.float32))
    with pytest.raises(MbnpError, match=r"x is float64 and the network float32"):
        net(np.zeros((1, 32, 32, 3)))
    for size in (16, 49):
        with pytest.raises(MbnpError, match=r"17 to 48 pixels|does not fit"):
            net(np.zeros((1, size, size, 3), np.float32))
    for size in (17, 48):
        assert net(np.zeros((1, size, size, 3), np.float32)).shape == (1, 10)
    with pytest.raises(MbnpError, match="forward"):
        net.backward(np.zeros((1, 10), np.float32))
    net.forward(np.zeros((1, 32, 32, 3), np.float32))  # inference saves nothing
    with pytest.raises(MbnpError, match="forward"):
        net.backward(np.zeros((1, 10), np.float32))


def test_batch_of_one_over_one_pixel_cannot_train():
    net = models.mobilenet_v1(width_mult=0.25, num_classes=3)
    x = np.zeros((1, 32, 32, 3), np.float32)
    for run in (net, fused.convert(net)):
        with pytest.raises(MbnpError, match="larger batch"):
            run.forward(x, train=True)


def test_unknown_names_and_options():
    with pytest.raises(MbnpError, match="did you mean 'mobilenet-v1-small'"):
        models.create("mobilenet-v1-smal")
    with pytest.raises(MbnpError, match="no option 'resolution'"):
        models.create("resnet20", resolution=3)
    with pytest.raises(MbnpError, match="width_mult 0"):
        models.create("resnet20", width_mult=0)
    for bad in (0, -1, 2.5):
        with pytest.raises(MbnpError, match="num_classes must be a whole number of at least 1"):
            models.create("resnet20", num_classes=bad)
    with pytest.raises(MbnpError, match="seed must be a whole number of at least 0, got -1"):
        models.create("mobilenet-v1", seed=-1)
    with pytest.raises(MbnpError, match="float32 or float64, got int64"):
        models.create("mobilenet-v1-small", dtype=int)


@pytest.mark.parametrize("name", models.names())
def test_grey_networks_are_described_saved_and_converted(name, tmp_path):
    net = vary(models.create(name, channels=1, width_mult=0.25, num_classes=4))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 32, 32, 1), np.float32)
    expected = net.forward(x)
    with pytest.raises(MbnpError, match=r"shape \(N, H, W, 1\)"):
        net.forward(np.zeros((1, 32, 32, 3), np.float32))
    assert models.description(net) == net.arch
    assert net.arch["channels"] == 1
    assert "channels" not in models.create(name).arch, "as in files from before there was a choice"
    if not net.detects():
        assert models.with_new_head(net, 7).arch == net.arch | {"num_classes": 7}
    assert relative(fused.convert(net).forward(x), expected) < 1e-5
    read = {family.builder for family in torch_known.FAMILIES}  # by their names in a state dict
    for suffix in (".safetensors", ".onnx", *[".pt"] * (name in read)):
        weights.save(net, tmp_path / f"net{suffix}")
        if suffix != ".safetensors" and net.detects():  # written only, or with names of our own
            continue
        again = weights.load(tmp_path / f"net{suffix}")
        assert again.channels == 1
        assert relative(again.forward(x), expected) < 1e-5, suffix


@pytest.mark.parametrize("channels", [0, -1, 1.0, "1", 8193])
def test_channels_that_no_image_has(channels):
    with pytest.raises(MbnpError, match="channels"):
        models.create("mobilenet-v1-small", channels=channels)
