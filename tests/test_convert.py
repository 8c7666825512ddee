"""`mbnp convert`, and the other commands on files of every format."""

import numpy as np
import pytest
from PIL import Image

from mbnp import MbnpError, cli, datasets, models, weights
from tests.twins import vary


@pytest.fixture
def checkpoint(tmp_path):
    net = models.mobilenet_v1_small(num_classes=3, width_mult=0.25)
    vary(net)
    net.classes = ["cat", "dog", "eel"]
    net.preprocessing = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    path = tmp_path / "model.safetensors"
    weights.save(net, path)
    return path


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["out.onnx", "out.pt", "again.safetensors"])
def test_there_and_back_the_logits_stay(checkpoint, tmp_path, capsys, name):
    assert run("convert", checkpoint, tmp_path / name) == 0
    assert name in capsys.readouterr().out
    assert run("convert", tmp_path / name, tmp_path / "back.safetensors") == 0
    x = np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32)
    expected, net = weights.load(checkpoint)(x), weights.load(tmp_path / "back.safetensors")
    assert np.abs(net(x) - expected).max() <= 1e-5 * np.abs(expected).max()
    if name != "out.pt":  # a state dict holds arrays and nothing else
        assert net.classes == ["cat", "dog", "eel"]
        assert net.preprocessing["mean"] == [0.5, 0.5, 0.5]


def test_options_of_onnx(checkpoint, tmp_path):
    onnx = pytest.importorskip("onnx")
    out = tmp_path / "out.onnx"
    assert run("convert", checkpoint, out, "--layout", "NHWC", "--keep-batchnorm") == 0
    graph = onnx.load(out).graph
    assert graph.input[0].type.tensor_type.shape.dim[3].dim_value == 3
    assert "BatchNormalization" in {node.op_type for node in graph.node}


def test_an_older_file_is_replaced_only_by_force(checkpoint, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    assert run("convert", checkpoint, out) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert run("convert", checkpoint, out, "--force") == 0
    assert weights.load(out).classes == ["cat", "dog", "eel"]


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("out.h5", [], "does not write them"),
        ("out.txt", [], "mbnp writes"),
        ("nowhere/out.pt", [], "there is no folder"),
        ("out.pt", ["--layout", "NHWC"], "--layout is not for .pt files"),
        ("out.safetensors", ["--keep-batchnorm"], "--keep-batchnorm is not for .safetensors"),
        ("out.onnx", ["--names", "timm"], "--names is not for .onnx"),
        ("out.pt", ["--names", "timm"], "not timm's"),
    ],
)
def test_what_cannot_be_written_is_one_line(checkpoint, tmp_path, capsys, out, options, message):
    assert run("convert", checkpoint, tmp_path / out, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [checkpoint]


@pytest.mark.parametrize("name", ["out.onnx", "out.pt"])
def test_summary_of_other_formats(checkpoint, tmp_path, capsys, name):
    assert run("convert", checkpoint, tmp_path / name) == 0
    assert run("summary", tmp_path / name) == 0
    out = capsys.readouterr().out
    assert run("summary", checkpoint) == 0
    assert _macs(out) == _macs(capsys.readouterr().out) > 100_000


def _macs(summary):
    (line,) = [line for line in summary.splitlines() if line.startswith("MACs ")]
    return int(line.split()[1].replace(",", ""))


def test_summary_tells_of_images_and_classes(checkpoint, capsys):
    assert run("summary", checkpoint) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "less (0.5, 0.5, 0.5), divided by (0.25, 0.25, 0.25), RGB" in out
    assert "cat, dog, eel" in out


# -- what a file does not say ------------------------------------------------------------------------------


def test_images_and_classes_are_added(checkpoint, tmp_path, capsys):
    bare, out = tmp_path / "bare.pt", tmp_path / "out.safetensors"
    assert run("convert", checkpoint, bare) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith("a PyTorch file has no place for preprocessing and names of classes")
    Image.new("RGB", (40, 50), "red").save(tmp_path / "red.png")
    assert run("predict", tmp_path / "red.png", "--checkpoint", bare) == 2
    assert f"add it: mbnp convert {bare} NEW.safetensors --mean" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("cat\ndog\neel\n")
    said = ["--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6", "--order", "bgr"]
    assert run("convert", bare, out, *said, "--classes", tmp_path / "names.txt") == 0
    net = weights.load(out)
    assert net.preprocessing == {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "order": "bgr"}
    assert net.classes == ["cat", "dog", "eel"]

    capsys.readouterr()
    assert run("predict", tmp_path / "red.png", "--checkpoint", out, "--top", 3) == 0
    shares = {line.split()[-1]: float(line.split()[0]) for line in capsys.readouterr().out.splitlines()[-3:]}
    blue_first = (np.array([0, 0, 1]) - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    logits = net(np.broadcast_to(blue_first, (1, 32, 32, 3)).astype(np.float32))[0]
    expected = 100 * np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose([shares[name] for name in net.classes], expected, atol=0.02)


@pytest.mark.parametrize("mean", ["-0.5,-.25,1e-3", "-1e-3,0,0.5", "0,0,0", "1,1,1"])
def test_numbers_may_be_negative(checkpoint, tmp_path, mean):
    out = tmp_path / "out.safetensors"
    assert run("convert", checkpoint, out, "--mean", mean, "--std", "1,1,1") == 0
    assert weights.load(out).preprocessing["mean"] == [float(number) for number in mean.split(",")]


def test_images_of_bytes_are_refused_wherever_they_are_written(checkpoint, tmp_path):
    net = weights.load(checkpoint)
    net.preprocessing = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "order": "rgb"}
    for name in ("out.safetensors", "out.pt", "out.onnx"):
        with pytest.raises(MbnpError, match=r"on a scale of 0 to 255.* 0\.485,0\.456,0\.406 and 0\.229,0\.224,0\.225"):
            weights.save(net, tmp_path / name)
    assert list(tmp_path.iterdir()) == [checkpoint]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mean", "0.5,0.5,0.5"], "--mean and --std go together"),
        (["--mean", "0.5", "--std", "1"], "its preprocessing is"),
        (["--mean", "0,0,0", "--std", "1,1,0"], "its preprocessing is"),
        (["--classes", "nowhere.txt"], "nowhere.txt"),
        (
            ["--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375"],
            "divided by 255 they are 0.485,0.456,0.406 and 0.229,0.224,0.225",
        ),
        (["--mean", "103.939,116.779,123.68", "--std", "1,1,1"], "0.4076,0.458,0.485 and 0.003922,"),
        (["--mean", "-127.5,-127.5,-127.5", "--std", "1,1,1"], "divided by 255 they are -0.5,-0.5,-0.5"),
        (["--mean", "0,0,0", "--std", "255,255,255"], "0,0,0 and 1,1,1"),
    ],
)
def test_what_is_added_must_fit(checkpoint, tmp_path, capsys, options, message):
    out = tmp_path / "out.safetensors"
    assert run("convert", checkpoint, out, *options) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_names_of_classes_must_be_as_many_and_text(checkpoint, tmp_path, capsys):
    for content, message in (
        (b"cat\ndog\n", "it names 2 classes for 3 outputs"),
        (b"\xff\xfe", "no text in UTF-8"),
    ):
        (tmp_path / "names.txt").write_bytes(content)
        assert run("convert", checkpoint, tmp_path / "out.onnx", "--classes", tmp_path / "names.txt") == 2
        assert message in capsys.readouterr().err


def test_evaluate_wants_as_many_classes_and_a_normalisation(tmp_path, capsys, monkeypatch):
    made = datasets.shapes10.make(train=10, test=10)
    monkeypatch.setattr(datasets.shapes10, "make", lambda: made)
    for classes, message in (
        (3, "tells 3 classes apart and shapes10 has 10"),
        (10, "does not say how its images"),
    ):
        out = tmp_path / "out.safetensors"
        weights.save(models.mobilenet_v1_small(num_classes=classes, width_mult=0.25), out)
        assert run("evaluate", out, "--data", "shapes10") == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.safetensors", "out.onnx"])
def test_preprocessing_may_be_numpys(checkpoint, tmp_path, name):
    net = weights.load(checkpoint)
    net.preprocessing = {"mean": np.array([0.5, 0.25, 0.5]), "std": [np.float32(0.5)] * 3}
    weights.save(net, tmp_path / name)
    assert weights.load(tmp_path / name).preprocessing == {"mean": [0.5, 0.25, 0.5], "std": [0.5] * 3}
    net.preprocessing = {"mean": ["0.5"] * 3, "std": [0.5] * 3}
    with pytest.raises(MbnpError, match="preprocessing is"):
        weights.save(net, tmp_path / name)


def test_a_mean_does_not_lose_the_order_of_channels(checkpoint, tmp_path):
    bgr, out = tmp_path / "bgr.safetensors", tmp_path / "out.safetensors"
    assert run("convert", checkpoint, bgr, "--order", "bgr") == 0
    assert run("convert", bgr, out, "--mean", "0.1,0.2,0.3", "--std", "1,1,1") == 0
    assert weights.load(out).preprocessing == {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "order": "bgr"}


def test_one_output_is_a_sigmoid(tmp_path, capsys):
    net = models.mobilenet_v1_small(num_classes=1, width_mult=0.25)
    net.preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3}
    weights.save(net, tmp_path / "one.safetensors")
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    logit = float(net.forward(np.full((1, 32, 32, 3), -1, np.float32))[0, 0])
    assert run("predict", image, "--checkpoint", tmp_path / "one.safetensors") == 0
    assert capsys.readouterr().out == f"{image}\n  {100 / (1 + np.exp(-logit)):6.2f} %  class 1, of 0 and 1\n"
