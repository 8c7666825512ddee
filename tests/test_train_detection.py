"""Detectors train, are tested, go on and are reported through the same doors as classifiers."""

import csv
import functools
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from mbnp import cli, datasets, fused, models, runs, tasks, train, weights
from mbnp.datasets import Split, scenes10, shapes10
from mbnp.detection import anchors, detect, matching, multibox, precision
from mbnp.detection.detect import Found
from mbnp.errors import MbnpError
from mbnp.pages import detections, statistics
from tests import browser
from tests.tally import NIGHTLY
from tests.test_cli import SMALL, _elsewhere, _threads, fails, unwrapped  # noqa: F401
from tests.test_report import self_contained
from tests.test_resume import ENGINES, same, timeless
from tests.test_train import make_data, make_net

MODEL = ["train", "--model", "ssd-mobilenet-v1-small"]
RECIPE = train.Recipe(epochs=2, batch_size=8, lr=0.02)


@pytest.fixture(scope="module")
def scenes():
    return scenes10.make(20, 12, size=48)


@pytest.fixture
def few(monkeypatch):
    """Let commands train and test on a few small scenes."""
    for drawn in (scenes10, shapes10):
        monkeypatch.setattr(drawn, "make", functools.partial(drawn.make, 40, 16))


def make_detector(seed=0, **options):
    return models.create("ssd-mobilenet-v1-small", num_classes=10, width_mult=0.25, seed=seed, resolution=48, **options)


# -- in Python ---------------------------------------------------------------------------------------------


def test_a_fit_is_steps_with_the_multibox_loss(scenes):
    """One epoch in float64 without augmentation, against steps by hand."""
    recipe = train.Recipe(epochs=1, batch_size=10, lr=0.02, augment=False, schedule="constant", seed=3)
    net, by_hand = make_detector(dtype=np.float64), make_detector(dtype=np.float64)
    (record,) = train.fit(net, scenes, recipe)
    opt, losses, right = recipe.optimiser(by_hand), [], []
    norm = {"mean": scenes.mean, "std": scenes.std}
    for x, (labels, boxes) in datasets.batches(scenes.train, 10, np.random.default_rng(3), **norm, dtype=np.float64):
        targets = matching.targets(labels, boxes.astype(np.float64) / 48, anchors.of(by_hand), [10, 10, 5, 5])
        outputs = by_hand.forward(x, train=True)  # its running statistics are not compared
        named = outputs[targets.classes > 0][:, 5:].argmax(axis=1) + 1
        right.append(np.mean(named == targets.classes[targets.classes > 0]))
        losses.append(train.step(by_hand, opt, x, targets, loss=multibox))
    assert record.loss == pytest.approx(np.mean(losses), rel=1e-9)
    assert record.accuracy == pytest.approx(np.mean(right), rel=1e-9)
    for name, p in by_hand.parameters().items():
        np.testing.assert_allclose(net.parameters()[name].value, p.value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_evaluation_is_the_mean_average_precision(scenes):
    net = fused.convert(make_detector())
    history = train.fit(net, scenes, RECIPE)
    tested = train.evaluate(net, scenes.test)
    assert tested.accuracy == history[-1].test_accuracy
    found = detect.detect(net, scenes.test.images, tasks.LEAST, tasks.OVERLAP)
    for one, other in zip(found, tested.predictions, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    truth = precision.truth(scenes.test.labels, scenes.test.boxes / np.float32(48))
    assert tested.accuracy == precision.mean_average_precision(found, truth, 10)
    x = datasets.normalise(scenes.test.images, scenes.mean, scenes.std)
    labels, boxes = scenes.test.labels, scenes.test.boxes / np.float32(48)
    targets = matching.targets(labels, boxes, anchors.of(net), net.detection["scales"])
    assert tested.loss == pytest.approx(float(multibox.forward(net.forward(x), targets)), rel=1e-6)


def test_it_learns():
    """On twenty scenes, in a minute of a slow processor, well enough to tell it from chance."""
    data = scenes10.make(20, 1, size=48)
    data = datasets.Dataset("few", "here", data.train, data.train, data.classes, data.mean, data.std, 1)
    net = models.create("ssd-mobilenet-v1-small", num_classes=10, width_mult=0.5, resolution=48)
    history = train.fit(fused.convert(net), data, train.Recipe(epochs=60, batch_size=10, lr=0.05, augment=False))
    assert history[-1].test_accuracy > 0.5
    assert history[-1].accuracy > 0.8
    assert history[-1].loss < history[0].loss / 3


@pytest.mark.parametrize("engine", ENGINES)
def test_every_snapshot_leads_to_the_same_end(engine, scenes):
    kept = []
    net = ENGINES[engine](make_detector())
    history = train.fit(net, scenes, RECIPE, keep=kept.append, every=1)
    assert [(s.progress.epoch, s.progress.batch) for s in kept] == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]
    for snapshot in kept[:-1]:
        other, again = ENGINES[engine](make_detector(seed=9)), []
        snapshot.progress.right = json.loads(json.dumps(snapshot.progress.right))
        found = train.fit(other, scenes, RECIPE, keep=again.append, every=1, resume=snapshot)
        assert timeless(found) == timeless(history)
        same(other.state(), net.state())
        same(again[-1].optimiser, kept[-1].optimiser)


def test_what_does_not_fit_is_refused_in_one_line(scenes):
    net, plain = make_detector(), make_data()
    with pytest.raises(MbnpError, match="colours has no boxes around objects, and this network is a detector"):
        train.fit(net, plain, RECIPE)
    with pytest.raises(MbnpError, match="scenes10 has boxes around objects, and this network classifies"):
        train.fit(models.create("mobilenet-v1-small"), scenes, RECIPE)
    with pytest.raises(MbnpError, match="the detector knows 3 classes and scenes10 has 10: build it with num_cl"):
        train.fit(models.create("ssd-mobilenet-v1-small", num_classes=3), scenes, RECIPE)
    with pytest.raises(MbnpError, match=r"label_smoothing=0.1 is for classifiers"):
        train.fit(net, scenes, train.Recipe(batch_size=8, label_smoothing=0.1))
    halves = [Split(s.images[:, :32], s.labels, boxes=s.boxes) for s in (scenes.train, scenes.test)]
    with pytest.raises(MbnpError, match="square images, and those of halves are 32x48"):
        train.fit(net, datasets.Dataset("halves", "", *halves, scenes.classes, scenes.mean, scenes.std, 1), RECIPE)
    with pytest.raises(MbnpError, match="this split has no boxes"):
        train.evaluate(net, plain.test, mean=plain.mean, std=plain.std)
    with pytest.raises(MbnpError, match="this split has boxes"):
        train.evaluate(make_net(), scenes.test, mean=plain.mean, std=plain.std)
    with pytest.raises(MbnpError, match="a detector finds objects and does not classify"):
        train.probabilities(net, scenes.test.images)


# -- what is said of a detector ----------------------------------------------------------------------------


def one_image(*objects):
    """A split of one image of 100 x 100 with these objects, (class, left, top, right, bottom)."""
    labels, boxes = np.array([[o[0] for o in objects]]), np.array([[o[1:] for o in objects]], np.float32)
    return Split(np.zeros((1, 100, 100, 3), np.uint8), labels, boxes=boxes)


def boxes_found(*rows):
    """What was found in that image: (class, score, left, top, right, bottom) each."""
    array = np.array(rows, np.float32).reshape(-1, 6)
    return [Found(array[:, 2:] / 100, array[:, 0].astype(int), array[:, 1])]


CLASSES = ["cat", "dog"]


@pytest.mark.parametrize(
    ("found", "kinds"),
    [
        ([], ["missed"]),
        ([(0, 0.9, 10, 10, 50, 50)], []),
        ([(0, 0.4, 10, 10, 50, 50)], ["missed"]),  # it is not sure
        ([(1, 0.9, 10, 10, 50, 50)], ["wrong class"]),
        ([(0, 0.9, 10, 10, 50, 25)], ["badly placed"]),
        ([(0, 0.9, 60, 60, 90, 90)], ["false alarm", "missed"]),
        ([(0, 0.9, 10, 10, 50, 50), (0, 0.8, 10, 10, 50, 45)], ["found twice"]),
        ([(1, 0.9, 10, 10, 50, 50), (0, 0.8, 10, 10, 50, 50)], ["wrong class"]),  # and then found
        ([(0, 0.9, 10, 10, 50, 50), (1, 0.8, 10, 10, 50, 45)], ["wrong class"]),  # of what is found already
        ([(0, 0.9, 10, 10, 50, 50), (0, 0.8, 10, 10, 50, 25)], ["badly placed"]),
        ([(1, 0.9, 10, 10, 50, 25)], ["both", "missed"]),
    ],
)
def test_kinds_of_mistakes(found, kinds):
    wrong = detections.mistakes(boxes_found(*found), one_image((0, 10, 10, 50, 50)), CLASSES)
    assert [each.kind for each in wrong] == kinds
    for each in wrong:
        assert each.boxes
        assert (each.kind == "missed") == (not each.boxes[-1][1])


def test_mistakes_have_a_text_and_the_surest_come_first():
    split = one_image((0, 0, 0, 40, 40), (1, 60, 60, 100, 100))
    found = boxes_found((1, 0.95, 0, 0, 40, 40), (0, 0.6, 60, 60, 100, 100))
    wrong = detections.mistakes(found, split, CLASSES)
    assert [each.text for each in wrong] == ["dog 95 % on cat, overlap 1.00", "cat 60 % on dog, overlap 1.00"]
    assert detections.worst(wrong[::-1])["wrong class"] == wrong
    assert detections.percent(wrong[1].boxes[0][0], False) == (60, 60, 40, 40, False)


def test_scores_by_class_and_size():
    split = one_image((0, 0, 0, 10, 10), (1, 40, 40, 100, 100), (1, 0, 40, 20, 60))
    scores = detections.scores(boxes_found((0, 0.9, 0, 0, 10, 10), (1, 0.8, 40, 40, 100, 100)), split, CLASSES)
    assert [(part.name, part.objects, part.average_precision) for part in scores.classes] == [
        ("cat", 1, 1.0), ("dog", 2, 0.5),
    ]  # fmt: skip
    assert [(part.name, part.objects, part.average_precision) for part in scores.sizes] == [
        ("small", 1, 1.0), ("medium", 1, 0.0), ("large", 1, 1.0),
    ]  # fmt: skip
    assert scores.half == 0.75
    assert scores.voc2007 == pytest.approx((1 + 6 / 11) / 2)
    assert scores.coco == pytest.approx((1 + 51 / 101) / 2)
    lines = detections.lines(scores, 100)
    assert lines[0] == "  cat          100.00 %  of 1"
    assert lines[-1] == "  large        100.00 %  of 1, from 33x33 pixels on"
    (name, recall, exact), _ = detections.curves(boxes_found((0, 0.9, 0, 0, 10, 10)), split, CLASSES)
    assert (name, recall.tolist(), exact.tolist()) == ("cat", [1.0], [1.0])


def test_every_object_has_one_size():
    """Also of an area that is a limit, as many are that have whole pixels."""
    split = scenes10.make(1, 300).test
    scores = detections.scores(
        [Found(np.zeros((0, 4), np.float32), *np.zeros((2, 0), int))] * 300, split, list("abcdefghij")
    )
    areas = (split.boxes[..., 2:] - split.boxes[..., :2]).prod(axis=2)[split.labels >= 0]
    assert np.isin([16**2, 32**2], areas).any()
    assert sum(part.objects for part in scores.sizes) == sum(part.objects for part in scores.classes) == len(areas)


def test_a_class_without_objects_is_left_out():
    scores = detections.scores(boxes_found(), one_image((1, 0, 0, 10, 10)), CLASSES)
    assert len(detections.lines(scores, 100)) == 2
    assert scores.half == 0


# -- the commands ------------------------------------------------------------------------------------------


def test_train_evaluate_compare_and_go_on(few, capsys, tmp_path):
    small = [*SMALL, "--lr", "0.02", "--resolution", "48", "--schedule", "constant", "--epochs", "2"]
    run = tmp_path / "run"
    assert cli.main([*MODEL, *small, "--out", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data: scenes10, 40 training and 16 test images (drawn by mbnp, seed 0)"
    (head,) = (line for line in lines if "test loss" in line)
    assert head.split() == ["loss", "anchors", "test", "loss", "mAP@0.5", "images/s", "seconds"]
    assert any(re.match(r"  large +[\d.]+ %  of \d+, from 16x16 pixels on", line) for line in lines)
    assert re.fullmatch(r"test mAP@0\.5 \d+\.\d\d %", lines[-3])
    assert lines[-2] == f"mbnp evaluate {run}/model.safetensors"
    assert lines[-1] == f"mbnp detect IMAGE --checkpoint {run}/model.safetensors"
    assert {p.name for p in run.iterdir()} == {
        "config.json", "metrics.csv", "model.safetensors", "curves.png", "report.html", "state",
        "precision_recall.png", "found.png",
    }  # fmt: skip
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(train.Record._fields)
    assert lines[-3] == f"test mAP@0.5 {100 * float(rows[-1]['test_accuracy']):.2f} %"
    assert "--data scenes10" in json.loads((run / "config.json").read_text())["command"]

    assert cli.main(["evaluate", str(run / "model.safetensors"), "--threads", "1"]) == 0
    tested = capsys.readouterr().out.splitlines()
    assert tested[-1] == lines[-3]
    assert any(re.fullmatch(r"mAP@\[\.5:\.95\] as COCO counts it: [\d.]+ %", line) for line in tested)
    assert any(re.fullmatch(r"mAP@0\.5 over the 11 recalls of VOC 2007: [\d.]+ %", line) for line in tested)
    details = [line for line in tested if re.match(r"  \w+ +[\d.]+ %  of", line)]
    assert 4 < len(details) <= 13
    assert set(details) <= set(lines)

    page = (run / "report.html").read_text()
    elements = self_contained(page)
    for text in ("test mAP@0.5", "precision and recall", "Mistakes", "mbnp detect IMAGE", "missed", "VOC 2007"):
        assert text in elements.text
    assert "What is taken for what" not in elements.text
    assert elements.all("image")

    assert cli.main(["train", "--resume", str(run), "--epochs", "3"]) == 0
    gone_on = capsys.readouterr().out.splitlines()
    whole = tmp_path / "whole"
    assert cli.main([*MODEL, *small[:-1], "3", "--out", str(whole)]) == 0
    capsys.readouterr()
    a, b = (weights.load(folder / "model.safetensors") for folder in (run, whole))
    same(a.state(), b.state())
    assert timeless(runs.load_history(run)) == timeless(runs.load_history(whole))
    assert re.fullmatch(r"test mAP@0\.5 \d+\.\d\d %", gone_on[-3])

    pictures = ["--html", str(tmp_path / "page.html"), "--out", str(tmp_path / "front.png")]
    assert cli.main(["compare", str(run), str(whole), *pictures]) == 0
    assert re.match(r"run +mAP@0\.5 +parameters", capsys.readouterr().out)
    assert "test mAP@0.5" in (tmp_path / "page.html").read_text()


def test_the_data_follow_from_the_model(few, capsys, monkeypatch):
    monkeypatch.setenv("MBNP_DATA", "shapes10")
    assert "scenes10 has boxes" in fails(capsys, "train", "--data", "scenes10", *SMALL)
    assert "shapes10 has no boxes" in fails(capsys, *MODEL, "--data", "shapes10", *SMALL)
    assert "label_smoothing=0.1 is for classifiers" in fails(capsys, *MODEL, "--label-smoothing", "0.1", *SMALL)
    assert cli.main([*MODEL, *SMALL, "--epochs", "1", "--resolution", "64", "--out", "run64"]) == 0
    assert weights.load("run64/model.safetensors").resolution == 64
    capsys.readouterr()
    error = fails(capsys, "evaluate", "run64/model.safetensors", "--data", "shapes10")
    assert error == "shapes10 has no boxes around objects, and this network is a detector: scenes10 has"


def test_a_sweep_of_detectors(few, capsys):
    small = ["--model", "ssd-mobilenet-v1-small", *SMALL, "--resolution", "48", "--epochs", "1"]
    assert cli.main(["sweep", *small, "--seed", "0,1", "--out", "swept"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^over seeds +n +mean mAP@0\.5 ± sd", output, re.MULTILINE)
    assert len(re.findall(r"^test mAP@0\.5 [\d.]+ %$", output, re.MULTILINE)) == 2


def test_the_report_in_a_browser(few, capsys):
    """It asks for nothing, and its boxes lie on the images where the mistakes are."""
    small = [*SMALL, "--resolution", "48", "--epochs", "1"]
    assert cli.main([*MODEL, *small, "--out", "run"]) == 0
    with browser.started() as started, started.new_context(offline=True) as context:
        page = context.new_page()
        wrong = []
        page.on("console", lambda message: wrong.append(message.text))
        page.goto((Path.cwd() / "run" / "report.html").as_uri())
        image, box = (page.locator(f".mistakes {part}").first.bounding_box() for part in ("svg", "rect"))
        assert image["width"] > 50
        assert image["x"] - 2 <= box["x"] < box["x"] + box["width"] <= image["x"] + image["width"] + 2
        assert not wrong


def test_data_commands_show_boxes(few, capsys):
    assert cli.main(["data", "show", "scenes10"]) == 0
    output = capsys.readouterr().out
    assert "the number of objects" in output
    assert re.search(r"arrow +\d+ training, +\d+ test", output)
    assert cli.main(["data", "samples", "samples", "--data", "scenes10", "--count", "3"]) == 0
    assert "mbnp detect samples --checkpoint FILE" in unwrapped(capsys.readouterr().out)


def test_a_watch_measures_a_detector(scenes):
    net, watch = fused.convert(make_detector()), statistics.Watch(scenes)
    kept = []
    train.fit(net, scenes, RECIPE, keep=kept.append, watch=watch)
    assert len(watch.outcome.found) == 12
    last = kept[-1].progress.measured[-1]
    assert len(last["weights"]) == len(statistics.layers(net))
    assert any(norm > 0 for norm in last["gradients"])
    tested = train.evaluate(net, scenes.test).predictions
    np.testing.assert_array_equal(watch.outcome.found[3].scores, tested[3].scores)


@pytest.mark.skipif(not NIGHTLY, reason="takes minutes; set MBNP_NIGHTLY")
def test_a_detector_trains_in_five_minutes(capsys):
    """`mbnp train --model ssd-mobilenet-v1-small`: at least 85 % mAP@0.5 on scenes that it has not seen."""
    began = time.perf_counter()
    assert cli.main([*MODEL, "--out", "run"]) == 0
    seconds = time.perf_counter() - began
    (percent,) = re.findall(r"^test mAP@0\.5 ([\d.]+) %$", capsys.readouterr().out, re.MULTILINE)
    assert float(percent) >= 85, percent
    assert seconds < 300, seconds
