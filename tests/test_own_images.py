"""Your own images from the command line: train, evaluate, predict, show, samples, go on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mbnp import cli, datasets, models, weights
from mbnp.datasets import shapes10
from tests.test_cli import SMALL, _elsewhere, _threads, fails, unwrapped, write_records  # noqa: F401

NIGHTLY = pytest.mark.skipif(not os.environ.get("MBNP_NIGHTLY"), reason="takes minutes; set MBNP_NIGHTLY")


def diamond(u, v):
    return (abs(u) + abs(v) - 1) * 0.7


def half_disc(u, v):
    return np.maximum(np.hypot(u, v) - 0.95, -v - 0.1)


def bars(u, v):
    return np.maximum(abs(abs(u) - 0.6) - 0.25, abs(v) - 0.85)


def draw(folder, counts=(10, 30), seed=0):
    """Three classes that shapes10 has not, each image of the same mean colour: train/ and test/ with that many each."""
    across, down = shapes10.places(32)
    for part, count in zip(("train", "test"), counts, strict=True):
        for shape in (diamond, half_disc, bars):
            rng = np.random.default_rng([seed, *f"{part}/{shape.__name__}".encode()])
            hue, shift, turn, radius, other = (
                rng.uniform(low, high, (count, 1, 1)).astype(np.float32)
                for low, high in ((0, 1), (-5, 5), (-0.3, 0.3), (9, 13.5), (0.25, 0.75))
            )
            u, v = (axis / radius for axis in shapes10.turn(across - shift, down + shift, turn))
            coverage = np.clip(0.5 - shape(u, v) * radius, 0, 1)[..., None]
            ground, paint = shapes10.paint(rng, hue, 0.35, 0.9), shapes10.paint(rng, hue + other, 0.6, 1)
            images = 255 * (ground + (paint - ground) * coverage)
            levelled = (images + 120 - images.mean((1, 2), keepdims=True)).clip(0, 255).round().astype(np.uint8)
            for i, image in enumerate(levelled):
                path = Path(folder, part, shape.__name__, f"{i}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC).save(path)
    return folder


def run(capsys, *arguments):
    """What a command that succeeds prints; of train, with lines that hang put together."""
    assert cli.main([str(argument) for argument in arguments]) == 0
    output = capsys.readouterr().out
    return (unwrapped(output) if arguments[0] == "train" else output).splitlines()


@pytest.fixture
def photos():
    return draw("photos", (8, 2))


def test_a_folder_from_train_to_predict(photos, capsys):
    Path(photos, "train", "bars", "broken.jpg").write_bytes(b"\xff\xd8")
    lines = run(capsys, "train", *SMALL[:2], "--threads", "1", "--data", photos, "--epochs", "1", "--out", "run")
    assert lines[0] == "preparing 31 images (once) ..."
    assert lines[1] == "data: photos, 24 training and 6 test images (photos)"
    assert lines[3] == "could not be read and are left out, 1:"
    assert "broken.jpg is no image that can be read" in lines[4]
    config = json.loads(Path("run/config.json").read_text())
    assert config["recipe"]["batch_size"] == 6, "a quarter of the images"
    net = weights.load("run/model.safetensors")
    data = datasets.load(photos)
    assert (net.classes, net.resolution) == (["bars", "diamond", "half_disc"], 32)
    assert net.preprocessing == {"mean": list(data.mean), "std": list(data.std)}, "the set's own"
    assert run(capsys, "evaluate", "run/model.safetensors", "--data", photos)[-1] == lines[-3]
    answers = run(capsys, "predict", f"{photos}/test/bars", "--checkpoint", "run/model.safetensors", "--top", "1")
    assert [line for line in answers if not line.startswith(" ")] == [f"{photos}/test/bars/{i}.png" for i in (0, 1)]


def test_a_run_on_a_folder_goes_on_and_repeats(photos, capsys, monkeypatch):
    options = ["train", *SMALL[:2], "--threads", "1", "--schedule", "constant"]
    options += ["--resolution", "24", "--augment", "crop"]
    run(capsys, *options, "--data", photos, "--epochs", "2", "--out", "whole")
    run(capsys, *options, "--data", photos, "--epochs", "1", "--out", "half")
    assert json.loads(Path("half/config.json").read_text())["recipe"]["augment"] == "crop"
    run(capsys, "train", "--resume", "half", "--epochs", "2")
    first, second = (weights.load(f"{name}/model.safetensors").state() for name in ("whole", "half"))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    os.utime(next(Path(photos).glob("train/*/*.png")))  # prepared again, and the same
    run(capsys, "train", "--resume", "half", "--epochs", "3")
    next(Path(photos).glob("train/*/*.png")).unlink()
    assert "trained on other images" in fails(capsys, "train", "--resume", "half", "--epochs", "4")


def test_grey_networks_take_grey_and_colour(photos, capsys):
    run(capsys, "train", *SMALL[:2], "--data", photos, "--channels", "1", "--epochs", "1", "--out", "run")
    checkpoint = "run/model.safetensors"
    net, data = weights.load(checkpoint), datasets.load(photos, channels=1)
    assert (net.channels, net.preprocessing) == (1, {"mean": list(data.mean), "std": list(data.std)})
    run(capsys, "evaluate", checkpoint, "--data", photos)
    Image.new("L", (30, 20), 90).save("grey.png")
    run(capsys, "predict", "grey.png", f"{photos}/test", "--checkpoint", checkpoint)
    run(capsys, "convert", checkpoint, "run/net.onnx")
    run(capsys, "predict", "grey.png", "--checkpoint", "run/net.onnx")
    records = write_records(Path("records"))
    lines = run(capsys, "train", "--init", checkpoint, "--data", records, "--epochs", "1", "--out", "other")
    assert any("10 classes" in line for line in lines)
    assert weights.load("other/model.safetensors").preprocessing == net.preprocessing, "of --init"
    assert "leave out --channels" in fails(capsys, "train", "--init", checkpoint, "--channels", "1")
    for channels in ("0", "2"):
        assert f"{channels} were asked for" in fails(capsys, "train", "--channels", channels)


def test_resolution_is_for_folders(capsys):
    records = write_records(Path("records"))
    message = fails(capsys, "train", "--data", str(records), "--resolution", "48")
    assert "the images of cifar10 are 32x32: --resolution is for a folder of images" in message
    message = fails(capsys, "train", "--data", str(records), "--augment", "crop", "--no-augment")
    assert "do not go together" in message


def test_show_and_samples(photos, capsys):
    Path(photos, "train", "bars", "broken.jpg").write_bytes(b"\xff\xd8")
    lines = run(capsys, "data", "show", photos)
    data = datasets.load(photos)
    assert "files of 96x96 pixels, shown to the network as 32x32" in "\n".join(lines)
    assert "broken.jpg is no image" in "\n".join(lines)
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (data.mean, data.std))
    assert f"  images 32x32x3, mean {mean}, standard deviation {std}" in lines
    assert "  diamond           8 training,      2 test" in lines
    assert lines[-1] == "samples of each class: samples.png"
    with Image.open("samples.png") as sheet:
        assert sheet.size == (160 + 10 * 50, 3 * 50)
        cell = np.asarray(sheet.crop((160, 50, 208, 98)).convert("RGB").resize((32, 32))).astype(int)
    first = data.train.images[data.train.labels == 1][0]
    assert abs(cell - first).mean() < 6, "the first diamond is in the row of diamonds"
    assert run(capsys, "data", "show", "--data", photos, "--out", "other.png")[0] == str(data)
    assert "name one" in fails(capsys, "data", "show", photos, "--data", photos)

    assert run(capsys, "data", "samples", "few", "--data", photos, "--count", "4")[-1].startswith("4 test images of")
    names = sorted(path.name for path in Path("few").iterdir())
    assert [name.split("-")[0] for name in names] == ["bars", "bars", "diamond", "half_disc"]
    for name in names:
        number = int(name.split("-")[1].removesuffix(".png"))
        np.testing.assert_array_equal(np.asarray(Image.open(Path("few", name))), data.test.images[number])
    assert "few exists already" in fails(capsys, "data", "samples", "few", "--data", photos)
    assert "at least 1" in fails(capsys, "data", "samples", "none", "--data", photos, "--count", "0")
    assert not Path("none").exists()


def test_names_of_classes_stay_in_the_folder(capsys):
    records = write_records(Path("records"))
    names = ["../../up", "a/b", "con:", "c\\d", *(f"k{k}" for k in range(6))]
    Path("records/batches.meta.txt").write_text("\n".join(names))
    run(capsys, "data", "samples", "few", "--data", records)
    assert len(list(Path("few").iterdir())) == 10
    assert sorted(path.name for path in Path().iterdir()) == ["few", "records"]


@pytest.fixture
def checkpoint():
    net = models.create("mobilenet-v1-small", num_classes=3, width_mult=0.25)
    net.classes, net.preprocessing = ["a", "b", "c"], {"mean": [0.5] * 3, "std": [0.25] * 3}
    weights.save(net, "net.safetensors")
    return net


def test_predict_takes_patterns_and_folders_and_names_what_is_broken(checkpoint, capsys):
    Path("in/deep").mkdir(parents=True)
    for name in ("1.png", "2.png", "deep/3.jpg", "b[1].png"):
        Image.new("RGB", (40, 40), (9, 99, 200)).save(Path("in", name))
    Path("in/notes.txt").write_text("no image")
    Path("in/.DS_Store").touch()
    arguments = ["predict", "in", "in/[12].png", "in/b[1].png", "none.png", "*.tiff", "--checkpoint", "net.safetensors"]
    assert cli.main(arguments) == 1
    output, error = capsys.readouterr()
    good = ["in/1.png", "in/2.png", "in/b[1].png", "in/deep/3.jpg", "in/1.png", "in/2.png", "in/b[1].png"]
    assert [line for line in output.splitlines() if line.startswith("in")] == good
    assert len(output.splitlines()) == 4 * len(good)
    assert "mbnp: error: in/notes.txt is no image" in error
    assert "mbnp: error: no image at none.png" in error
    assert "mbnp: error: no image at *.tiff" in error
    assert error.splitlines()[-1] == "mbnp: 3 of 10 could not be read"

    Path("empty").mkdir()
    assert cli.main(["predict", "empty", "in/1.png", "--checkpoint", "net.safetensors"]) == 1
    output, error = capsys.readouterr()
    assert output.startswith("in/1.png")
    assert error.startswith("mbnp: error: the folder empty has no images")
    assert cli.main([*arguments, "--json", "--top", "2"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in found if "classes" in entry] == good
    assert all(list(entry) == ["image", "error"] for entry in found if "classes" not in entry)
    best = found[0]["classes"]
    assert len(best) == 2
    assert best[0]["probability"] >= best[1]["probability"] > 0
    assert f"  {100 * best[0]['probability']:6.2f} %  {best[0]['class']}" in output


def test_predict_says_how_it_read_what_is_deep(checkpoint, capsys):
    Image.fromarray(np.tile(np.arange(0, 4096, 128, dtype=np.uint16), (32, 1))).save("deep.png")
    assert cli.main(["predict", "deep.png", "--checkpoint", "net.safetensors"]) == 0
    assert "mbnp: deep.png: the file does not say the range of its values" in capsys.readouterr().err


@NIGHTLY
def test_what_shapes10_taught_helps_with_thirty_images(capsys):
    """At least 81 of 90, and 10 points more than without."""
    draw("three"), draw("new", (1, 1), seed=1)
    run(capsys, "train", "--data", "shapes10", "--out", "before")
    init = ["--init", "before/model.safetensors", "--freeze-until", "conv2_6"]
    accuracy = []
    for out, options in (("with", init), ("without", [])):
        began = time.perf_counter()
        lines = run(capsys, "train", "--data", "three", *options, "--out", out)
        assert time.perf_counter() - began < 60
        accuracy.append(float(lines[-3].split()[2]))
    assert accuracy[0] >= 90, "81 of 90"
    assert accuracy[0] >= accuracy[1] + 10
    for name in ("diamond", "half_disc", "bars"):
        checkpoint = "with/model.safetensors"
        assert run(capsys, "predict", f"new/test/{name}", "--checkpoint", checkpoint, "--top", "1")[1].endswith(name)


PLAIN = """
import glob, sys
from PIL import Image
for path in sorted(glob.glob("many/*/*.jpg"))[int(sys.argv[1]) :: 2]:
    with Image.open(path) as image:
        image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
"""


@NIGHTLY
def test_many_photographs_are_prepared_as_fast_as_pillow_decodes():
    """At least 0.8 of the rate of two processes that only decode and resize; the second start takes a moment."""
    rng = np.random.default_rng(0)
    count = 20_000
    for i in range(count):
        path = Path(f"many/{i % 10}/{i}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        small.resize((256, 256), Image.Resampling.BICUBIC).save(path, quality=90)
    began = time.perf_counter()
    plain = [subprocess.Popen([sys.executable, "-c", PLAIN, str(k)]) for k in range(2)]
    assert [process.wait() for process in plain] == [0, 0]
    middle = time.perf_counter()
    first = datasets.load("many", 224, processes=True)
    ended = time.perf_counter()
    again = datasets.load("many", 224, processes=True)
    assert time.perf_counter() - ended < 1
    assert first.sha256 == again.sha256
    assert len(first.train) + len(first.test) == count
    assert (middle - began) / (ended - middle) >= 0.8
