"""`mbnp detect`, with a detector whose answers are known: each bright or dark quarter of an image is an object."""

import json
import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mbnp import MbnpError, cli, models, spec, weights
from mbnp.datasets import drawing
from mbnp.datasets.images import read_whole, resize
from mbnp.detection import whole
from mbnp.detection.detect import Found
from mbnp.layers import Conv, Pointwise, Pyramid
from mbnp.network import Network

LOGITS = np.array([[0.0, -9.0, 9.0]])  # background, dark and bright, of a mean from -1 to 1


def detector(how="stretch", channels=3):
    mean, boxes, scores = Conv(channels, 1, 4, 4), Pointwise(1, 4), Pointwise(1, 3)
    mean.weight.value = np.full((4, 4, channels, 1), 1 / (16 * channels))
    mean.bias.value = np.zeros(1)
    boxes.weight.value, boxes.bias.value = np.zeros((1, 4)), np.zeros(4)
    scores.weight.value, scores.bias.value = LOGITS, np.array([5.0, 0, 0])
    net = Network({"ssd": Pyramid({"a": mean}, {"a": boxes}, {"a": scores})}, 8, channels)
    net.classes, net.preprocessing = ["dark", "bright"], {"mean": [0.5] * channels, "std": [0.5] * channels}
    net.detection = {"anchors": [[[0.5, 0.5]]], "scales": [10.0, 10.0, 5.0, 5.0], "scores": "softmax", "resize": how}
    net.arch = spec.describe(net)
    return net


def quarters(width, height, values=(255, 128, 128, 0)):
    """Return an image of four quarters, row by row."""
    h, w = height // 2, width // 2
    return np.block([[np.full((h, w), a) for a in pair] for pair in (values[:2], values[2:])]).astype(np.uint8)


def save(path, pixels, **options):
    Image.fromarray(pixels).convert("RGB").save(path, **options)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights.save(detector(), "net.safetensors")


@pytest.fixture
def run(capsys):
    def call(*arguments, status=0):
        assert cli.main(["detect", *map(str, arguments)]) == status
        return capsys.readouterr()

    return call


@pytest.fixture
def fails(capsys):
    def call(*arguments, command="detect"):
        assert cli.main([command, *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return call


NET = ("--checkpoint", "net.safetensors")


def test_json_is_an_object_a_line_and_image(run):
    save("a.png", quarters(40, 20))
    save("b.png", np.full((10, 10), 128, np.uint8))
    lines = run("a.png", "b.png", *NET, "--json").out.splitlines()
    first, second = map(json.loads, lines)
    assert list(first) == ["file", "width", "height", "objects"]
    assert (first["file"], first["width"], first["height"]) == ("a.png", 40, 20)
    assert [list(each) for each in first["objects"]] == [["label", "score", "box"]] * 2
    found = {each["label"]: (each["score"], each["box"]) for each in first["objects"]}
    score = 1 / (1 + np.exp(5 - 9) + np.exp(-18))
    assert found["bright"] == (pytest.approx(score, abs=1e-6), [0, 0, 20, 10])
    assert found["dark"] == (pytest.approx(score, abs=1e-6), [20, 10, 40, 20])
    assert second == {"file": "b.png", "width": 10, "height": 10, "objects": []}
    assert not list(Path().glob("*detected*")), "drawn only where --out says"


def test_both_engines_and_both_names_of_the_checkpoint_say_the_same(run):
    save("a.png", quarters(16, 16))
    expected = run("a.png", *NET, "--json").out
    assert run("a.png", *NET, "--json", "--readable").out == expected
    assert run("a.png", "--weights", "net.safetensors", "--json").out == expected


def test_boxes_are_drawn_beside_the_image_or_elsewhere(run):
    Path("photos").mkdir()
    save("photos/a.jpg", quarters(600, 400), quality=95)
    before = Path("photos/a.jpg").read_bytes()
    out = run("photos", *NET).out
    assert out.splitlines()[0] == "photos/a.jpg: 2 objects, drawn in photos/a-detected.png"
    assert "98.20 %      0     0   300   200  bright" in out
    picture = read_whole("photos/a-detected.png")
    assert picture.shape == (400, 600, 3)
    bright = (picture == drawing.colour(1)).all(axis=2)
    assert bright[150, 300:304].any(), "the right side of the bright quarter"
    assert bright[200:204, 150].any(), "its lower side"
    assert Path("photos/a.jpg").read_bytes() == before
    run("photos/a.jpg", *NET, "--json", "--out", "found")
    np.testing.assert_array_equal(read_whole("found/a-detected.png"), picture)


def test_boxes_are_those_of_the_image_as_it_is_displayed(run):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    save("a.jpg", quarters(40, 20), exif=exif, quality=95)
    answer = json.loads(run("a.jpg", *NET, "--json").out)
    assert (answer["width"], answer["height"]) == (20, 40)
    assert {each["label"]: each["box"] for each in answer["objects"]} == {
        "bright": [10, 0, 20, 20],
        "dark": [0, 20, 10, 40],
    }
    run("a.jpg", *NET)
    height, width, _ = read_whole("a-detected.png").shape
    assert width < height


def test_what_lies_beside_a_padded_image_is_no_object(run):
    weights.save(detector("pad"), "net.safetensors")
    save("a.png", quarters(40, 20, (255, 128, 255, 128)))
    answer = json.loads(run("a.png", *NET, "--json").out)
    assert [(each["label"], each["box"]) for each in answer["objects"]] == [("bright", [0, 0, 20, 20])]


def test_an_image_that_cannot_be_read_leaves_the_others(run):
    save("a.png", quarters(16, 16))
    Path("b.png").write_bytes(Path("a.png").read_bytes()[:60])
    Path("empty").mkdir()
    said = run("b.png", "none.png", "empty", "a.png", *NET, "--json", status=1)
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert [list(each) for each in answers[:3]] == [["file", "error"]] * 3
    assert len(answers[3]["objects"]) == 2
    assert "no image at none.png" in said.err
    assert "the folder empty has no images" in said.err
    assert "3 of 4 failed" in said.err
    run("b.png", "none.png", "a.png", *NET, status=1)
    assert Path("a-detected.png").exists()
    assert not Path("b-detected.png").exists()


def test_no_input_is_overwritten(run, fails):
    Path("photos").mkdir()
    save("photos/a.png", quarters(16, 16))
    save("photos/a-detected.png", quarters(16, 16))  # not ours
    before = Path("photos/a-detected.png").read_bytes()
    assert "a-detected.png is read, too" in fails("photos", *NET)
    assert "a-detected.png is there already, and mbnp detect did not write it" in fails("photos/a.png", *NET)
    assert Path("photos/a-detected.png").read_bytes() == before
    run("photos", *NET, "--out", "found")
    assert sorted(os.listdir("found")) == ["a-detected-detected.png", "a-detected.png"]


def test_a_folder_can_be_looked_at_again(run):
    Path("photos").mkdir()
    save("photos/a.png", quarters(16, 16))
    for _ in range(2):
        said = run("photos", *NET)
        assert sorted(os.listdir("photos")) == ["a-detected.png", "a.png"]
    assert "left out, as pictures that mbnp detect wrote: 1" in said.err


def test_images_of_one_name_get_pictures_of_their_own(run):
    for name in ("a.png", "a.bmp", "x/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        save(name, quarters(16, 16))
    run("a.png", "a.bmp", "x/a.png", *NET, "--out", "found")
    assert sorted(os.listdir("found")) == ["a-2-detected.png", "a-3-detected.png", "a-detected.png"]


def test_options_choose_among_the_objects(run):
    save("a.png", quarters(16, 16, (255, 128, 190, 0)))
    count = {}
    for options in (("--score", "0.5"), ("--score", "0.01"), ("--most", "1"), ("--score", "1")):
        count[options] = len(json.loads(run("a.png", *NET, "--json", *options).out)["objects"])
    assert list(count.values()) == [2, 3, 1, 0]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--score", "1.5"), "--score must be from 0 to 1, got 1.5"),
        (("--overlap", "-1"), "--overlap must be from 0 to 1, got -1"),
        (("--most", "0"), "--most must be at least 1, got 0"),
        (("--out", "a.png"), "a.png is no folder"),
        (("--out", "no/folder"), "no/folder"),
    ],
)
def test_bad_options_are_one_line(fails, options, problem):
    save("a.png", quarters(16, 16))
    assert problem in fails("a.png", *NET, *options)


def test_a_classifier_is_sent_to_predict_and_a_detector_to_detect(fails):
    save("a.png", quarters(16, 16))
    net = models.create("mobilenet-v1-small", num_classes=2, width_mult=0.1)
    net.preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3}
    weights.save(net, "classifier.safetensors")
    assert "is a classifier: mbnp predict IMAGE..." in fails("a.png", "--checkpoint", "classifier.safetensors")
    for command in ("predict", "explain"):
        assert "is a detector: mbnp detect IMAGE..." in fails("a.png", *NET, command=command)
    net = detector()
    net.detection = None
    weights.save(net, "net.safetensors")
    assert "has heads for boxes, and does not say of which anchors" in fails("a.png", *NET)


def test_grey_detectors_look_at_grey(run):
    weights.save(detector(channels=1), "net.safetensors")
    save("a.png", quarters(16, 16))
    assert len(json.loads(run("a.png", *NET, "--json").out)["objects"]) == 2
    run("a.png", *NET)
    assert read_whole("a-detected.png").shape == (480, 480, 3)


# --- images in full, and how they are resized and drawn ---


def test_a_whole_image_is_upright_and_on_white():
    pixels = np.zeros((3, 5, 4), np.uint8)
    pixels[0, 0] = 255, 0, 0, 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels, "RGBA").save("a.png", exif=exif)
    image = read_whole("a.png")
    assert image.shape == (3, 5, 3)
    assert image[2, 4].tolist() == [255, 0, 0]
    assert (image[:2] == 255).all()
    assert read_whole("a.png", channels=1).shape == (3, 5, 1)


def test_stretch_is_pytorchs_interpolate():
    import torch

    image = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    for size in (16, 61, 100):
        expected = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        found = resize(image, size, "stretch")
        np.testing.assert_allclose(found, expected[0].permute(1, 2, 0).numpy(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("shape", [(37, 61), (61, 37), (40, 40)])
@pytest.mark.parametrize("size", [16, 61, 100])
def test_pad_is_tensorflow_js(shape, size):
    """Its resizeBilinear of a square with zeros at the right or the bottom, pixel by pixel."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    side = max(shape)
    square = np.zeros((side, side, 3))
    square[: shape[0], : shape[1]] = image
    expected = np.empty((size, size, 3))
    for i in range(size):
        for j in range(size):
            y, x = i * side / size, j * side / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, side - 1), min(left + 1, side - 1)
            upper = square[top, left] + (square[top, right] - square[top, left]) * (x - left)
            lower = square[bottom, left] + (square[bottom, right] - square[bottom, left]) * (x - left)
            expected[i, j] = upper + (lower - upper) * (y - top)
    np.testing.assert_allclose(resize(image, size, "pad"), expected, rtol=0, atol=1e-3)


def test_no_images_and_several_at_once():
    net = detector()
    assert whole.find(net, []) == []
    images = [np.repeat(quarters(w, h)[..., None], 3, axis=2) for w, h in ((16, 16), (40, 20))]
    for together, image in zip(whole.find(net, images), images, strict=True):
        (alone,) = whole.find(net, [image])
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a, b)


def test_labels_are_read_at_every_size_and_overlap_nothing():
    names = ["a circle", "x" * 200, "star"]
    for height, width in ((8, 8), (30, 400), (400, 30), (1500, 2000)):
        boxes = np.array([[0, 0, width, height], [0, 0, width, height], [width - 1, height - 1, width, height]], "f")
        found = Found(boxes, np.array([0, 1, 9]), np.array([0.999, 0.8, 0.6], "f"))
        picture = drawing.draw(np.zeros((height, width, 1), np.uint8), found, names, 480)
        times = len(picture) // height
        assert picture.shape == (height * times, width * times, 3)
        assert max(picture.shape) >= 480
        assert (picture == drawing.colour(0)).all(axis=2).sum() > 13 * 13


def test_wrong_outputs_are_drawn_without_an_error():
    found = Found(np.full((1, 4), np.nan, "f"), np.array([0]), np.array([np.nan], "f"))
    assert drawing.draw(np.zeros((20, 20, 3), np.uint8), found, ["a"]).shape == (20, 20, 3)


def test_a_sheet_has_each_image_at_its_place():
    images = np.stack([np.full((40, 60, 3), 10 * k, np.uint8) for k in range(5)])
    there = Namespace(labels=np.array([1]), boxes=np.array([[10.0, 20, 30, 38]]), scores=None)
    nothing = Namespace(labels=np.zeros(0, int), boxes=np.zeros((0, 4)), scores=None)
    page = drawing.sheet(images, [nothing, nothing, there, nothing, nothing], ["a", "b"], columns=2)
    tile = drawing.draw(images[2], there, ["b"], drawing.TILE)
    height, width = tile.shape[0] + drawing.GAP, tile.shape[1] + drawing.GAP
    assert page.shape == (3 * height - drawing.GAP, 2 * width - drawing.GAP, 3)
    np.testing.assert_array_equal(page[height : 2 * height - drawing.GAP, : width - drawing.GAP], tile)
    assert np.all(page[height : 2 * height - drawing.GAP, width:] == 30)
    assert np.all(page[2 * height :, width:] == 255), "there is no sixth image"
    with_score = drawing.draw(images[2], Namespace(**vars(there) | {"scores": np.array([0.5])}), ["b"], drawing.TILE)
    assert np.any(with_score != tile)


def test_a_box_beyond_the_image_and_a_name_without_end_are_drawn():
    there = Namespace(labels=np.array([0]), boxes=np.array([[200.0, 150, 400, 300]]), scores=np.array([0.9]))
    picture = drawing.draw(np.zeros((40, 60, 3), np.uint8), there, ["x" * 100_000])
    assert picture.shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("image", "size", "how", "says"),
    [
        (np.zeros((4, 4)), 8, "pad", r"must be \(H, W, C\), got the shape \(4, 4\)"),
        (np.zeros((0, 4, 3)), 8, "pad", r"the shape \(0, 4, 3\)"),
        (np.zeros((4, 4, 3)), 0, "pad", "a whole number of pixels, got 0"),
        (np.zeros((4, 4, 3)), 1.5, "pad", "got 1.5"),
        (np.zeros((4, 4, 3)), 8, "crop", "unknown way to resize 'crop'"),
    ],
)
def test_what_cannot_be_resized(image, size, how, says):
    with pytest.raises(MbnpError, match=says):
        resize(image, size, how)
