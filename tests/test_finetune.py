"""Frozen layers: the gradients of the rest are PyTorch's; they themselves stay bit for bit, and backward ends there."""

import dataclasses
import hashlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mbnp import MbnpError, cli, datasets, fused, layers, models, optim, train, weights
from mbnp.network import Layer, Network, Residual, Sequential
from tests.test_cli import _elsewhere, fails, write_records  # noqa: F401  (a fixture of every test)
from tests.test_train import RECIPE, make_data
from tests.twins import assert_gradients, batch, frozen_twin, gradients, relative, tensor, vary

ENGINES = {"reference": lambda net: net, "fused": fused.convert}

# Where to freeze: whole blocks, in the middle of a block and of a residual, all but the last layer.
UNTIL = [
    ("mobilenet-v1-small", "conv1"),
    ("mobilenet-v1-small", "conv2_3"),
    ("mobilenet-v1-small", "conv2_4.0"),
    ("mobilenet-v1-small", "conv2_4.1"),
    ("mobilenet-v1-small", "conv2_4.3"),
    ("mobilenet-v1-small", "pool"),
    ("mobilenet-v1", "features.7"),
    ("mobilenet-v1-cifar", "bn1"),
    ("mobilenet-v1-cifar", "layers.3"),
    ("standard-small", "conv2_2"),
    ("resnet20", "bn1"),
    ("resnet20", "layer2.0"),
    ("resnet20", "layer2.0.bn1"),
    ("resnet20", "layer2.1.conv2"),
    ("resnet20", "layer3"),
]


def make(name: str, max_value: float | None = None) -> Network:
    """A float64 network of odd widths, with a bound on ReLU where `max_value` is given."""
    net = vary(models.create(name, num_classes=5, width_mult=0.3, dtype=np.float64))
    for _, layer in net.leaves():
        if isinstance(layer, layers.ReLU):
            layer.max_value = max_value
    return net


def assert_agrees_with_torch(net: Network, engine: str, n: int = 5) -> None:
    """Output, gradients and statistics of a training step are PyTorch's, and what is frozen did not move."""
    reference, before = frozen_twin(net), net.state()
    x, _ = batch(n, 40, np.float64)
    fast = ENGINES[engine](net)
    y = fast.forward(x, train=True)
    expected = reference(tensor(x))
    assert relative(y, expected.detach().numpy()) < 1e-10
    dy = np.random.default_rng(1).standard_normal(y.shape)
    fast.backward(dy)
    expected.backward(torch.from_numpy(dy))

    theirs = models.create(**net.arch, dtype=np.float64)  # to turn PyTorch's arrays into our layout
    nothing = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    learned = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
    weights.from_torch(theirs, reference.state_dict() | nothing | learned)
    assert_gradients(gradients(net), {name: p.value for name, p in theirs.parameters().items()}, 1e-10)
    for name, parameter in net.parameters().items():
        assert not parameter.frozen or not parameter.grad.any(), name
    for name, buffer in net.buffers().items():
        frozen = net.parameters()[f"{name.rpartition('.')[0]}.weight"].frozen
        assert relative(buffer.value, theirs.buffers()[name].value) < 1e-10, name
        assert np.array_equal(buffer.value, before[name]) == frozen, name


# -- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "until"), UNTIL)
def test_a_frozen_start_agrees_with_torch(name, until, engine):
    net = make(name, max_value=6.0 if name == "mobilenet-v1" else None)
    net.freeze_until(until)
    assert_agrees_with_torch(
        net, engine, n=18 if until == "conv2_3" else 5
    )  # of 18, folded inference takes 16 at a time


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mobilenet-v1-small", "resnet20"])
@pytest.mark.parametrize("seed", range(4))
def test_arrays_frozen_here_and_there_agree_with_torch(name, seed, engine):
    net, rng = make(name, max_value=0.9), np.random.default_rng(seed)
    for i, parameter in enumerate(net.parameters().values()):
        parameter.frozen = bool(rng.random() < 0.5) or i < 10 * seed
    assert_agrees_with_torch(net, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_ten_steps_follow_torch_loss_by_loss(engine):
    net = models.with_new_head(make("mobilenet-v1-small"), 7, seed=1)
    net.freeze_until("conv2_3")
    reference = frozen_twin(net)
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}
    opt = optim.SGD(net.parameters(), **options)
    theirs = torch.optim.SGD([p for p in reference.parameters() if p.requires_grad], **options)
    fast, before = ENGINES[engine](net), net.state()
    for i in range(10):
        x, y = batch(8, 32, np.float64, seed=i, classes=7)
        loss = F.cross_entropy(reference(tensor(x)), torch.from_numpy(y))
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        assert train.step(fast, opt, x, y) == pytest.approx(loss.item(), rel=1e-8), f"step {i}"
    for name, array in net.state().items():
        assert np.array_equal(array, before[name]) == name.startswith(("conv1", "conv2_1", "conv2_2", "conv2_3")), name


# -- cost --------------------------------------------------------------------------------------------------


def watch_backward(net: Network) -> list[str]:
    """The names of the layers whose backward is called from now on, in that order."""
    called: list[str] = []

    def watched(name, backward):
        return lambda dy: called.append(name) or backward(dy)

    for name, layer in net.leaves():
        layer.backward = watched(name, layer.backward)
    return called


@pytest.mark.parametrize(
    ("name", "until", "last", "first"),
    [
        ("mobilenet-v1-small", "conv2_5", "conv2_5.4", "conv2_6.0"),
        ("mobilenet-v1-small", "conv2_5.1", "conv2_5.1", "conv2_5.3"),
        ("mobilenet-v1-small", "conv2_8", "conv2_8.4", "fc"),
        ("mobilenet-v1", "features.7", "features.7.4", "features.8.0"),
        ("resnet20", "layer2.0.bn1", "layer2.0.bn1", "layer2.0.conv2"),
        ("resnet20", "layer2.0", "layer2.0.bn2", "layer2.1.conv1"),
    ],
)
def test_backward_ends_at_the_first_layer_that_learns_and_frozen_ones_save_nothing(name, until, last, first):
    net = make(name)
    net.freeze_until(until)
    called = watch_backward(net)
    x, _ = batch(2, 32, np.float64)
    y = net.forward(x, train=True)
    names = [leaf for leaf, _ in net.leaves()]
    for leaf, layer in list(net.leaves())[: names.index(last) + 1]:
        assert layer.x is None, leaf
    assert net.backward(y) is None
    learning = names[names.index(first) :]  # less the shortcut that lies beside it: its gradient is not needed
    assert sorted(called) == sorted(leaf for leaf in learning if leaf != "layer2.0.shortcut")
    assert called[-1] == first


def test_a_frozen_block_in_the_middle_is_passed():
    net = make("mobilenet-v1-small")
    for parameter in net["conv2_4"].parameters().values():
        parameter.frozen = True
    called = watch_backward(net)
    x, _ = batch(2, 32, np.float64)
    net.backward(net.forward(x, train=True))
    assert called == [leaf for leaf, _ in net.leaves()][::-1]


def test_the_gradient_of_the_images_on_demand():
    net = make("resnet20")
    net.freeze_until("layer1")
    x, _ = batch(2, 32, np.float64)
    reference, images = frozen_twin(net), tensor(x).requires_grad_()
    dy = np.random.default_rng(2).standard_normal((2, 5))
    reference(images).backward(torch.from_numpy(dy))
    net.needs_dx = True
    net.forward(x, train=True)
    assert relative(net.backward(dy), images.grad.permute(0, 2, 3, 1).numpy()) < 1e-10
    net.needs_dx = False
    net.forward(x, train=True)
    assert net.backward(dy) is None
    assert net["layer1"].needs_dx  # a block that is run by itself gives its gradient


def test_a_shortcut_with_weights_learns_beside_a_frozen_body():
    rng = np.random.default_rng(0)
    body = [layers.Conv(3, 4, 3, 2, padding=1, rng=rng, dtype=np.float64), layers.ReLU()]
    net = Network({"r": Residual(body, layers.Conv(3, 4, 1, 2, rng=rng, dtype=np.float64))}, resolution=5)
    x, _ = batch(2, 5, np.float64)
    for frozen in ("r.0", "r.shortcut"):
        expected = {}
        for run in (False, True):
            for name, p in net.parameters().items():
                p.frozen = run and name.startswith(frozen)
                p.grad[...] = 0
            assert (net.backward(net.forward(x, train=True)) is None) == run
            expected = expected or {name: g.copy() for name, g in gradients(net).items()}
        for name, g in gradients(net).items():
            np.testing.assert_array_equal(g, 0 if name.startswith(frozen) else expected[name], err_msg=name)


class Noted(Layer):
    """A layer of the reader's own, which differs in training as dropout does."""

    def forward(self, x, train=False):
        self.train = train
        return x

    def backward(self, dy):
        return dy


def test_a_layer_without_parameters_goes_on_training_unless_frozen_ones_follow_it():
    options = {"rng": np.random.default_rng(0), "dtype": np.float64}
    parts = {
        "a": Noted(),
        "body": layers.Pointwise(3, 3, **options),
        "b": Noted(),
        "pool": layers.GlobalAveragePool(),
    }
    net = Network({**parts, "c": Sequential([Noted()]), "fc": layers.Linear(3, 2, **options)}, resolution=4)
    noted = [net["a"], net["b"], net["c"]["0"]]
    x, _ = batch(2, 4, np.float64)
    net.forward(x, train=True)
    assert [layer.train for layer in noted] == [True, True, True]
    net.freeze_until("body")
    net.backward(net.forward(x, train=True))
    assert [layer.train for layer in noted] == [False, True, True]


def test_a_container_of_the_readers_own_goes_on_working():
    class Doubled(Sequential):
        def forward(self, x, train=False):
            for layer in self.layers.values():
                x = layer.forward(x, train)
            return 2 * x

        def backward(self, dy):
            return super().backward(2 * dy)

    options = {"rng": np.random.default_rng(0), "dtype": np.float64}
    frozen = Sequential([layers.Pointwise(4, 4, **options)])
    frozen.parameters()["0.weight"].frozen = frozen.parameters()["0.bias"].frozen = True
    inside = Doubled([layers.Pointwise(3, 4, **options), frozen, layers.GlobalAveragePool()])
    x, _ = batch(2, 4, np.float64)
    found = {}
    for learns in (True, False):
        for p in frozen.parameters().values():
            p.frozen = not learns
        net = Network({"d": inside, "fc": layers.Linear(4, 2, rng=np.random.default_rng(1), dtype=np.float64)}, 4)
        inside["0"].weight.grad[...] = 0
        net.backward(net.forward(x, train=True))
        found[learns] = inside["0"].weight.grad.copy()
    assert found[True].any()
    np.testing.assert_array_equal(found[True], found[False])


# -- naming what is frozen ---------------------------------------------------------------------------------


def test_freeze_until_freezes_from_the_start_and_nothing_after():
    net = models.create("mobilenet-v1-cifar", width_mult=0.25)
    cases = {
        "layers.10": "layers.10.bn2.bias",
        "layers.1.conv2": "layers.1.conv2.weight",
        "conv1": "conv1.weight",
        "layers": "layers.12.bn2.bias",
        "pool": "layers.12.bn2.bias",
    }
    for until, last in cases.items():
        net.freeze_until(until)
        names = list(net.parameters())
        frozen = [name for name, p in net.parameters().items() if p.frozen]
        assert frozen == names[: names.index(last) + 1], until


@pytest.mark.parametrize("name", ["conv2_9", "conv2_", "", "conv2_5.", "fc.weight"])
def test_an_unknown_name_lists_the_names_to_choose_from(name):
    net = models.create("mobilenet-v1-small", width_mult=0.25)
    net.freeze_until("conv1")
    with pytest.raises(MbnpError, match=r"no layer is named '.*': choose one of conv1, conv2_1, .*, conv2_8, fc, or a"):
        net.freeze_until(name)
    assert sum(p.frozen for p in net.parameters().values()) == 4


# -- fit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_epochs_leave_what_is_frozen_bit_for_bit(engine):
    data = make_data()
    net = models.create("mobilenet-v1-small", num_classes=3, width_mult=0.25)
    net.freeze_until("conv2_4")
    opts = []
    recipe = dataclasses.replace(RECIPE, weight_decay=0.1)
    object.__setattr__(recipe, "optimiser", lambda net: opts.append(train.Recipe.optimiser(recipe, net)) or opts[0])
    before = net.state()
    train.fit(ENGINES[engine](net), data, recipe)
    for name, array in net.state().items():
        frozen = name.startswith(("conv1.", "conv2_1.", "conv2_2.", "conv2_3.", "conv2_4."))
        assert np.array_equal(array, before[name]) == frozen, name
        if name in opts[0].velocity:
            assert opts[0].velocity[name].any() != frozen, name


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_learned_helps_with_other_classes(engine):
    data, net = make_data(), models.create("mobilenet-v1-small", num_classes=3, width_mult=0.25)
    train.fit(ENGINES[engine](net), data, dataclasses.replace(RECIPE, epochs=12))
    halves = [datasets.Split(split.images, (split.labels == 1).astype(np.int64)) for split in (data.train, data.test)]
    green = dataclasses.replace(data, train=halves[0], test=halves[1], classes=["not green", "green"])
    tuned = models.with_new_head(net, 2)
    tuned.freeze_until("conv2_6")
    fresh = models.create("mobilenet-v1-small", num_classes=2, width_mult=0.25)
    losses = [train.fit(ENGINES[engine](each), green, RECIPE)[-1] for each in (tuned, fresh)]
    assert losses[0].test_accuracy > 0.95
    assert losses[0].test_loss < losses[1].test_loss / 2


def test_fit_keeps_a_networks_own_normalisation_and_takes_over_the_rest():
    data, net = make_data(), models.create("mobilenet-v1-small", num_classes=3, width_mult=0.25)
    net.preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "order": "bgr"}
    seen = []
    forward = net.forward
    net.forward = lambda x, train=False: seen.append(x) or forward(x, train)
    train.fit(net, data, dataclasses.replace(RECIPE, epochs=1, augment=False))
    assert net.preprocessing == {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "order": "bgr"}
    assert (net.classes, net.resolution) == (["red", "green", "blue"], 20)
    first = np.random.default_rng(RECIPE.seed).permutation(70)[:16]
    blue_first = (data.train.images[first][..., ::-1] / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(seen[0], blue_first, rtol=1e-5, atol=1e-5)
    tested = (data.test.images[..., ::-1] / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(seen[-1], tested, rtol=1e-5, atol=1e-5)


def test_an_unknown_order_of_channels_is_named():
    with pytest.raises(MbnpError, match=r"unknown order of channels 'gray'.*known are bgr, rgb"):
        datasets.normalise(np.zeros((1, 2, 2, 3), np.uint8), [0] * 3, [1] * 3, order="gray")


def test_nothing_to_train_and_other_classes_are_refused():
    net = models.create("mobilenet-v1-small", num_classes=4, width_mult=0.25)
    with pytest.raises(MbnpError, match=r"4 outputs and colours has 3 classes: .* models.with_new_head\(net, 3\)"):
        train.fit(net, make_data(), RECIPE)
    net = models.with_new_head(net, 3)
    net.freeze_until("fc")
    with pytest.raises(MbnpError, match="every parameter of the network is frozen"):
        train.fit(net, make_data(), RECIPE)


# -- mbnp train --init -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """Pictures of CIFAR-10's size of ten classes that are not CIFAR-10's."""
    folder = write_records(tmp_path_factory.mktemp("data") / "animals")
    (folder / "batches.meta.txt").write_text("".join(f"animal {i}\n" for i in range(10)))
    return folder


def checkpoint(path="start.safetensors", name="mobilenet-v1-small", classes=None, **options):
    """A file with a network that knows how to look at images, and the network."""
    net = vary(models.create(name, width_mult=0.25, **options))
    net.preprocessing = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    net.classes = classes
    if path.endswith(".pt"):
        torch.save(weights.to_torch(net), path)
    else:
        weights.save(net, path)
    return net


def tune(data, *arguments):
    return ["train", "--data", str(data), "--batch-size", "16", "--threads", "1", "--epochs", "1", *arguments]


def test_fine_tuning_on_other_classes_keeps_what_is_frozen(animals, capsys):
    start = checkpoint(classes=[f"thing {i}" for i in range(10)])
    assert (
        cli.main(
            tune(
                animals,
                *("--init", "start.safetensors", "--freeze-until", "conv2_5", "--seed", "4", "--lr", "0.005"),
            )
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("data: animals, 88 training and 30 test images")
    assert "weights: start.safetensors" in lines
    assert "the last layer begins afresh: 10 classes of animals for the 10 it knew" in lines
    frozen = sum(p.value.size for name, p in start.parameters().items() if re.match(r"conv1|conv2_[1-5]", name))
    total = sum(p.value.size for p in start.parameters().values())
    assert f"frozen up to conv2_5: {frozen:,} of {total:,} parameters" in lines
    assert re.fullmatch(r"test accuracy \d+\.\d\d %", lines[-3])

    net = weights.load("runs/mobilenet-v1-small-1/model.safetensors")
    assert net.classes == [f"animal {i}" for i in range(10)]
    assert net.preprocessing == start.preprocessing
    for name, array in net.state().items():
        same = name.startswith(("conv1", *(f"conv2_{i}" for i in range(1, 6))))
        assert np.array_equal(array, start.state()[name]) == same, name
    head = models.with_new_head(start, 10, seed=4)["fc"].weight.value
    assert np.abs(net["fc"].weight.value - head).max() < np.abs(start["fc"].weight.value - head).max() / 3

    config = json.loads(Path("runs/mobilenet-v1-small-1/config.json").read_text())
    path = Path("start.safetensors").absolute()
    assert config["init"] == {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert config["freeze_until"] == "conv2_5"
    assert f"--init {path} --freeze-until conv2_5 " in config["command"]
    assert cli.main([*shlex.split(config["command"])[1:], "--out", "again"]) == 0
    for name, array in weights.load("again/model.safetensors").state().items():
        np.testing.assert_array_equal(array, net.state()[name], err_msg=name)

    capsys.readouterr()
    assert cli.main(["evaluate", "again/model.safetensors", "--data", str(animals)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == lines[-3]
    Image.fromarray(datasets.load(animals).test.images[0]).save("image.png")
    assert cli.main(["predict", "image.png", "--checkpoint", "again/model.safetensors"]) == 0
    assert "animal" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_same_classes_keep_the_head(suffix, animals, capsys):
    names = datasets.load(animals).classes
    start = checkpoint(f"start{suffix}", classes=names if suffix == ".safetensors" else None)
    stand_still = ["--lr", "0", "--weight-decay", "0", "--out", "run"]
    assert cli.main(tune(animals, "--init", f"start{suffix}", *stand_still)) == 0
    output = capsys.readouterr().out
    assert "afresh" not in output
    assert ("does not name its classes: they are taken for the 10 of animals" in output) == (suffix == ".pt")
    assert ("does not say how its images were normalised" in output) == (suffix == ".pt")
    net = weights.load("run/model.safetensors")
    for name, parameter in net.parameters().items():
        np.testing.assert_array_equal(parameter.value, start.parameters()[name].value, err_msg=name)
    assert net.preprocessing == (start.preprocessing if suffix == ".safetensors" else net.preprocessing)
    assert not np.array_equal(
        net.buffers()["conv1.1.running_mean"].value, start.buffers()["conv1.1.running_mean"].value
    )


def test_a_network_for_larger_images_goes_on_with_smaller_ones(animals, capsys):
    checkpoint("large.safetensors", "mobilenet-v1", num_classes=7, resolution=64)
    assert cli.main(tune(animals, "--init", "large.safetensors", "--freeze-until", "features", "--readable")) == 0
    output = capsys.readouterr().out
    assert "the checkpoint is for images of 64x64, these are 32x32" in output
    assert "the last layer begins afresh: 10 classes of animals for the 7 it knew" in output
    assert weights.load("runs/mobilenet-v1-1/model.safetensors").resolution == 32


def test_a_network_that_no_builder_makes_gives_the_run_its_files_name(animals):
    rng = np.random.default_rng(0)
    body = {
        "conv": layers.Conv(3, 4, 3, 2, rng=rng),
        "bn": layers.BatchNorm(4),
        "relu": layers.ReLU(max_value=6),
    }
    net = Network(body | {"pool": layers.GlobalAveragePool(), "out": layers.Linear(4, 6, rng=rng)}, resolution=32)
    weights.save(net, "mine.safetensors")
    assert cli.main(tune(animals, "--init", "mine.safetensors", "--freeze-until", "bn")) == 0
    tuned = weights.load("runs/mine-1/model.safetensors")
    np.testing.assert_array_equal(tuned["conv"].weight.value, net["conv"].weight.value)
    assert tuned["out"].weight.value.shape == (4, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init", "start.safetensors", "--model", "resnet20"], "leave out --model"),
        (["--init", "start.safetensors", "--width-mult", "1"], "leave out --width-mult"),
        (
            ["--freeze-until", "conv1"],
            "--freeze-until keeps what was learned before: name a checkpoint with --init",
        ),
        (["--init", "none.h5"], "no checkpoint at none.h5"),
        (
            ["--init", "start.safetensors", "--freeze-until", "conv3"],
            "no layer is named 'conv3': choose one of conv1,",
        ),
        (
            ["--init", "start.safetensors", "--freeze-until", "fc"],
            "--freeze-until fc leaves nothing to train",
        ),
    ],
)
def test_bad_fine_tuning_is_one_line_and_leaves_nothing_behind(arguments, message, animals, capsys):
    checkpoint()
    assert message in fails(capsys, *tune(animals, *arguments))
    assert [path.name for path in Path().iterdir()] == ["start.safetensors"]


def test_images_that_do_not_fit_leave_the_network_as_it_was(tmp_path):
    net = models.mobilenet_v1_small(num_classes=2, width_mult=0.25)
    net.classes = ["cat", "dog"]
    split = datasets.Split(np.zeros((8, 96, 96, 3), np.uint8), np.arange(8) % 2)
    data = datasets.Dataset("large", "", split, split, ["a", "b"], (0.5,) * 3, (0.5,) * 3, epochs=1)
    with pytest.raises(MbnpError, match="17 to 48"):
        train.fit(net, data, train.Recipe(epochs=1, batch_size=4))
    assert (net.classes, net.resolution, net.preprocessing) == (["cat", "dog"], 32, None)
