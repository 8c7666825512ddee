"""report.html says what the run was, agrees with it, survives interruption, and costs a run nothing that it has not."""

import dataclasses
import html
import io
import json
import re
import shlex
import time
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mbnp import cli, datasets, fused, models, runs, train
from mbnp.commands import train as command
from mbnp.commands.live import Dashboard
from mbnp.pages import charts, report, statistics
from mbnp.train import Progress
from tests.tally import NIGHTLY
from tests.test_cli import SMALL, _elsewhere, _threads, in_a_terminal, records, trained  # noqa: F401
from tests.test_train import RECIPE, make_data, make_net

NASTY = "<script>alert(1)</script> & \"'"


class Elements(HTMLParser):
    """The elements of a page, each as (tag, attributes), and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self.open = [], "", []
        self.feed(page)
        assert not self.open, "elements are left open"

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def self_contained(page):
    """Check that a page asks for nothing, and return its elements."""
    elements = Elements(page)
    for tag, attributes in elements.found:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "action", "data") and tag != "a":
                assert value.startswith("data:"), (tag, name, value)
    assert "url(" not in page
    assert "@import" not in page
    assert not elements.all("script")
    return elements


@pytest.fixture(scope="module")
def watched():
    """A run of two epochs that was watched, its data with names that nobody should have."""
    data = dataclasses.replace(make_data(), classes=["red", NASTY, "blue"])
    net, kept, watch = make_net(), [], statistics.Watch(data)
    train.fit(net, data, RECIPE, keep=kept.append, every=3, watch=watch)
    return data, net, kept, watch


# -- what is measured --------------------------------------------------------------------------------------


def test_what_is_measured_is_so(watched):
    data, net, kept, watch = watched
    first, last = kept[-1].progress.measured
    assert (first["epoch"], last["epoch"]) == (1, 2)
    names = statistics.layers(net)
    assert [row.name for row in names][:3] == ["conv1.0", "conv2_1.0", "conv2_1.3"]
    assert names[0].activation == "conv1.2"
    assert names[-1] == ("fc", None)
    parameters = net.parameters()
    for row, weights, gradients in zip(names, last["weights"], last["gradients"], strict=True):
        mine = [p for name, p in parameters.items() if name.rpartition(".")[0] == row.name]
        assert weights == pytest.approx(np.linalg.norm(np.concatenate([p.value.ravel() for p in mine])), rel=1e-5)
        assert gradients == pytest.approx(np.linalg.norm(np.concatenate([p.grad.ravel() for p in mine])), rel=1e-5)
        assert gradients > 0
    x = datasets.normalise(statistics.sample(data), **net.preprocessing)
    activations = net.activations(x)
    for row, zeros, dead in zip(names[:-1], last["zeros"], last["dead"], strict=False):
        y = activations[row.activation]
        assert zeros == pytest.approx(np.mean(y == 0), abs=0.01)
        assert dead == pytest.approx(np.mean((y == 0).all(axis=(0, 1, 2))), abs=0.01)
    assert (last["zeros"][-1], last["dead"][-1]) == (None, None)
    tested = train.evaluate(net, data.test)
    np.testing.assert_array_equal(watch.outcome.predictions, tested.predictions)
    probabilities = train.probabilities(net, data.test.images)
    np.testing.assert_allclose(watch.outcome.confidence, probabilities.max(axis=1), rtol=1e-4)


def test_a_dead_channel_is_found():
    net, data = make_net(), make_data()
    net.preprocessing = {"mean": [0.5] * 3, "std": [0.25] * 3}
    norm = dict(net.leaves())["conv1.1"]
    norm.bias.value = np.where(np.arange(norm.bias.value.size) < 2, -1e3, 1e3)
    zeros, dead = statistics.silent(net, data.test.images)
    share = 2 / norm.bias.value.size
    assert (zeros["conv1.2"], dead["conv1.2"]) == (pytest.approx(share), pytest.approx(share))


def test_the_phases_are_the_epochs_time(watched):
    _, _, kept, _ = watched
    for record, measured in zip(kept[-1].progress.history, kept[-1].progress.measured, strict=True):
        assert set(measured["phases"]) == set(report.PHASES)
        assert all(seconds > 0 for seconds in measured["phases"].values())
        assert sum(measured["phases"].values()) <= record.seconds * 1.001
        assert sum(measured["phases"].values()) >= record.seconds * 0.95


def test_to_watch_changes_no_number(watched):
    data, net, kept, _ = watched
    other = make_net()
    history = train.fit(other, data, RECIPE)
    for name, array in other.state().items():
        np.testing.assert_array_equal(array, net.state()[name], err_msg=name)
    assert [r.test_loss for r in history] == [r.test_loss for r in kept[-1].progress.history]


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_run_that_goes_on_measures_the_same(watched, at):
    data, _, kept, _ = watched
    assert [(s.progress.epoch, s.progress.batch) for s in kept] == [(1, 0), (1, 3), (2, 0), (2, 2), (3, 0)]
    snapshot = kept[at]._replace(progress=Progress(**json.loads(json.dumps(dataclasses.asdict(kept[at].progress)))))
    snapshot.progress.history = [train.Record(*row) for row in snapshot.progress.history]
    again, watch = [], statistics.Watch(data)
    train.fit(make_net(seed=5), data, RECIPE, keep=again.append, resume=snapshot, watch=watch)
    whole, mine = kept[-1].progress.measured, again[-1].progress.measured
    for one, other in zip(whole, mine, strict=True):
        assert {**one, "phases": 0} == {**other, "phases": 0}
    if at == 3:
        assert mine[0] == whole[0]  # to the last digit of its times
        assert mine[1]["phases"]["forward"] >= snapshot.progress.phases["forward"] > 0


@pytest.mark.skipif(not NIGHTLY, reason="measures time: in the long setting")
def test_to_measure_costs_little(monkeypatch):
    data, net, spent = datasets.load("shapes10"), fused.convert(models.create("mobilenet-v1-small")), []
    watch = statistics.Watch(data)
    measure = watch.measure

    def timed(net):
        began = time.perf_counter()
        found = measure(net)
        spent.append(time.perf_counter() - began)
        return found

    monkeypatch.setattr(watch, "measure", timed)
    history = train.fit(net, data, train.Recipe(epochs=2), watch=watch)
    assert spent[-1] < 0.02 * history[-1].seconds


def test_the_fast_engine_is_measured_too():
    data, net, kept = make_data(), fused.convert(make_net()), []
    train.fit(net, data, dataclasses.replace(RECIPE, epochs=1), keep=kept.append, watch=statistics.Watch(data))
    (measured,) = kept[-1].progress.measured
    assert [row.name for row in statistics.layers(net)] == [row.name for row in statistics.layers(net.reference)]
    assert all(value > 0 for value in measured["gradients"])


@pytest.mark.parametrize("name", ["mobilenet-v2-cifar", "mobilenet-v3-small-cifar", "resnet20"])
def test_every_kind_of_network_has_its_layers(name):
    net = models.create(name)
    net.preprocessing = {"mean": [0.5] * 3, "std": [0.25] * 3}
    names = statistics.layers(net)
    zeros, _ = statistics.silent(net, np.zeros((1, 32, 32, 3), np.uint8))
    assert len({row.name for row in names}) == len(names) >= 19
    assert {row.activation for row in names} - {None} <= zeros.keys()


# -- what is computed --------------------------------------------------------------------------------------


def test_calibration_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    bins, error = report.calibration(confidence, right)
    assert [each.images for each in bins] == [2, 4]
    assert (bins[0].confidence, bins[0].accuracy) == (pytest.approx(0.55), 0.5)
    assert (bins[1].low, bins[1].high, bins[1].accuracy) == (pytest.approx(14 / 15), 1, 0.75)
    assert error == pytest.approx(2 / 6 * 0.05 + 4 / 6 * 0.2)
    assert report.calibration(np.array([1.0, 0.0]), np.array([True, False]))[1] == 0


def test_calibration_against_histograms():
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(0.1, 1, 1000), rng.random(1000) < 0.6
    edges = np.linspace(0, 1, report.BINS + 1)
    claimed, so = (np.histogram(confidence, edges, weights=weights)[0] for weights in (confidence, right.astype(float)))
    expected = np.abs(claimed - so).sum() / 1000
    assert report.calibration(confidence, right)[1] == pytest.approx(expected)


def test_precision_and_recall_by_hand():
    labels, predictions = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 1])
    confusion = report.confused(labels, predictions, 4)
    np.testing.assert_array_equal(confusion, [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert report.scores(confusion, "abcd") == [
        ("a", 3, 2 / 3, 2 / 3), ("b", 2, 1 / 3, 1 / 2), ("c", 1, None, 0.0), ("d", 0, None, None),
    ]  # fmt: skip
    assert report.mixed_up(confusion, "abcd") == [(1, "a", "b"), (1, "b", "a"), (1, "c", "b")]


def test_mistakes_are_the_most_confident_ones():
    data = make_data(test_count=40)
    rng = np.random.default_rng(0)
    outcome = statistics.Outcome((data.test.labels + (np.arange(40) % 4 > 0)) % 3, rng.random(40))
    found = report.mistakes(data, outcome)
    wrong = np.flatnonzero(np.arange(40) % 4)
    assert [each.number for each in found] == sorted(wrong, key=lambda i: -outcome.confidence[i])[: report.SHOWN]
    assert all(each.label != each.prediction for each in found)
    picture = Image.open(io.BytesIO(b64decode(found[0].picture.split(",")[1])))
    np.testing.assert_array_equal(np.asarray(picture), data.test.images[found[0].number])
    large = np.zeros((300, 200, 1), np.uint8)
    assert Image.open(io.BytesIO(b64decode(report.thumbnail(large).split(",")[1]))).size == (64, 96)


def test_charts_are_to_scale():
    lines = [charts.Series("a", [1, 2, 3], [0.5, float("nan"), 1.0], 0), charts.Series("b", [1], [None], 1)]
    chart = charts.chart("a title", "epoch", "loss", lines)
    assert (chart.x(1), chart.x(3)) == (charts.LEFT, charts.RIGHT)
    assert (chart.y(0), chart.y(1.05)) == (charts.BOTTOM, charts.TOP)
    assert len(chart.lines[0].stretches) == 2  # broken where a number is missing
    assert chart.lines[0].dots[1][:2] == (charts.RIGHT, chart.y(1.0))
    assert [text for _, text in chart.x.ticks()] == ["1", "2", "3"]
    assert [text for _, text in chart.y.ticks()] == ["0", "0.5", "1"]
    logarithmic = charts.chart("a title", "layer", "norm", [charts.Series("a", [1, 2], [1e-3, 10], 0)], log=True)
    assert [text for _, text in logarithmic.y.ticks()] == ["0.001", "0.01", "0.1", "1", "10"]
    assert charts.chart("a title", "x", "y", [charts.Series("a", [1], [float("inf")], 0)]) is None
    assert len({charts.style(i) for i in range(21)}) == 21
    assert charts.loss_limits([2.0, 1.0], [2.5, 1.5]) == (0, pytest.approx(1.05 * 2.5))
    assert charts.loss_limits([2.0, 1.0], [113.0, 1.5]) == (0, pytest.approx(1.05 * 6))
    for low, high in ((0, 1), (0, 3.7e6), (1, 2), (1, 400), (-3, 5), (0.912, 0.913)):
        assert 2 <= len(charts.vertical("y", low, high).ticks()) <= 8


# -- the page ----------------------------------------------------------------------------------------------


def test_a_run_folder_has_a_report(trained):  # noqa: F811
    folder, lines = trained
    page = (folder / "report.html").read_text(encoding="utf-8")
    elements = self_contained(page)
    config = json.loads((folder / "config.json").read_text())
    history = runs.load_history(folder)
    assert f"{100 * history[-1].test_accuracy:.2f} %" in page
    assert lines[-3] == f"test accuracy {100 * history[-1].test_accuracy:.2f} %"
    assert config["command"] in html.unescape(page)
    for version in config["versions"].values():
        assert version in page
    assert "Finished: all 2 epochs are done" in elements.text
    titles = ("loss", "accuracy", "learning rate", "reliability diagram", "gradient norm", "weight norm")
    assert {each.get("aria-label") for each in elements.all("svg")} >= set(titles)
    assert len(page) < 400_000
    confusion = re.search(r'<table class="confusion">.*?</table>', page, re.DOTALL)[0]
    counts = [int(count) for count in re.findall(r"<td[^>]*>(\d+)</td>", confusion)]
    assert sum(counts) == 30
    assert sum(counts[:: 10 + 1]) == round(30 * history[-1].test_accuracy)


def test_names_are_text(watched, tmp_path):
    data, net, kept, watch = watched
    folder = tmp_path / f"run {NASTY.replace('/', '')}"
    config = make_config(data, {"name": "mobilenet-v1-small", "width_mult": NASTY}, f"mbnp train --data {NASTY}")
    folder.mkdir()
    runs.save_config(folder, config)
    report.write(folder, net, data, kept[-1].progress, watch.outcome)
    page = (folder / "report.html").read_text(encoding="utf-8")
    elements = self_contained(page)
    assert NASTY in elements.text
    assert "<script" not in page


def make_config(data, arch, said):
    recipe = {**dataclasses.asdict(RECIPE)}
    return {
        "command": said, "model": arch, "init": None, "freeze_until": None, "recipe": recipe, "every": None,
        "data": runs.describe(data) | {"argument": None}, "seed": 0, "engine": "readable", "dtype": "float32",
        **runs.environment(),
    }  # fmt: skip


def test_many_classes_are_a_picture(tmp_path):
    data = make_data(test_count=120)
    names = [f"class {i}" for i in range(40)]
    test = datasets.Split(data.test.images, np.arange(120) % 40)
    data = dataclasses.replace(data, classes=names, test=test)
    outcome = statistics.Outcome(np.arange(120) % 39, np.full(120, 0.5))
    net = models.create("mobilenet-v1-small", num_classes=40, width_mult=0.25)
    runs.save_config(tmp_path, make_config(data, {}, "mbnp train"))
    history = [train.Record(1, 4, 2.0, 0.5, 0.1, 100.0, 1.0, 2.1, 0.4)]
    page = report.page(tmp_path, net, data, Progress(history=history), outcome)
    elements = self_contained(page)
    assert "Nothing was measured" in elements.text  # as in a state from before there was a report
    (matrix,) = [each["src"] for each in elements.all("img") if each.get("class") == "matrix"]
    pixels = np.asarray(Image.open(io.BytesIO(b64decode(matrix.split(",")[1]))))
    assert pixels.shape == (40, 40, 4)
    np.testing.assert_array_equal(pixels[..., 3] > 0, report.confused(test.labels, outcome.predictions, 40) > 0)


# -- when it is written ------------------------------------------------------------------------------------


def test_it_is_written_after_an_epoch_while_little_time_has_gone_into_it(records, monkeypatch):  # noqa: F811
    seen, clock = [], [0.0]

    def write(folder, net, data, progress, outcome):
        seen.append(len(progress.history))
        assert outcome is not None
        clock[0] += 1.0  # it takes a second

    class Time:
        @staticmethod
        def perf_counter():
            clock[0] += 0.25  # and an epoch ends 0.25 s or a little more after it was asked for the last time
            return clock[0]

    monkeypatch.setattr(report, "write", write)
    monkeypatch.setattr(command, "time", Time)
    assert cli.main(["train", *SMALL, "--data", str(records), "--epochs", "4", "--out", "run"]) == 0
    assert seen == [1, 4]  # first, when nothing had gone into it, and at the end
    monkeypatch.setattr(command, "REPORTING", 100.0)
    seen.clear()
    assert cli.main(["train", *SMALL, "--data", str(records), "--epochs", "3", "--out", "other"]) == 0
    assert seen == [1, 2, 3]


def test_a_report_that_cannot_be_written_ends_no_run(records, monkeypatch, capsys):  # noqa: F811
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write", full)
    assert cli.main(["train", *SMALL, "--data", str(records), "--epochs", "2", "--out", "run"]) == 0
    output, error = capsys.readouterr()
    assert error == "mbnp: no report: [Errno 28] No space left on device\n"
    assert "test accuracy" in output
    assert Path("run/curves.png").exists()
    monkeypatch.setattr(runs, "save_curves", full)
    assert cli.main(["train", "--resume", "run"]) == 0
    assert capsys.readouterr().err == "mbnp: no curves and no report: [Errno 28] No space left on device\n"
    monkeypatch.undo()


def test_a_run_that_is_resumed_has_its_report(records, monkeypatch):  # noqa: F811
    fit = train.fit

    def stopped(net, data, recipe, on_batch, *others):
        def on_step(record):
            on_batch(record)
            if record.step == 7:  # within the second epoch
                raise KeyboardInterrupt

        return fit(net, data, recipe, on_step, *others)

    arguments = ["train", *SMALL, "--data", str(records), "--epochs", "3", "--every", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", stopped)
        assert cli.main([*arguments, "--out", "run"]) == 130
        assert "After epoch 1 of 3" in Path("run/report.html").read_text()
        Path("run/report.html").unlink()
        assert cli.main(["train", "--resume", "run"]) == 130  # at the same step, before another epoch is over
    page = Path("run/report.html").read_text()
    assert "After epoch 1 of 3" in page
    assert "Sums over 1 epoch;" in page
    assert cli.main(["train", "--resume", "run"]) == 0
    assert cli.main([*arguments, "--out", "whole"]) == 0
    resumed, whole = (points(Path(name, "report.html").read_text()) for name in ("run", "whole"))
    assert resumed == whole
    Path("run/report.html").unlink()
    assert cli.main(["train", "--resume", "run"]) == 0  # which is finished
    assert points(Path("run/report.html").read_text()) == whole


def points(page):
    """The lines of a page's charts, and the counts and shares in its tables but for times."""
    return re.findall(r'points="[^"]+"', page), re.findall(r"<td[^>]*>[^<]*%", page.split("Where the time went")[0])


# -- in the terminal ---------------------------------------------------------------------------------------


def test_live_fits_a_small_terminal(watched):
    _, net, kept, _ = watched
    for width, height in ((80, 24), (60, 16), (120, 50)):
        console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, legacy_windows=False)
        bar = command.Progress("{task.description}", console=console)
        bar.add_task("epoch 2/2", total=1)
        board = Dashboard(console, bar, 2, net)
        for _ in range(2):
            console.print(board.render())
            board.show(kept[-1].progress.history, kept[-1].progress.measured)
        console.file.truncate(0)
        with console.capture() as captured:
            console.print(board.render())
        lines = re.sub(r"\x1b\[[\d;]*m", "", captured.get()).splitlines()
        assert len(lines) < height
        assert max(map(len, lines)) <= width
        text = "\n".join(lines)
        if width >= 80:
            assert f"test {kept[-1].progress.history[-1].test_loss:.3f}" in text
            assert f"test {100 * kept[-1].progress.history[-1].test_accuracy:.1f}" in text
        assert "conv1.0" in text
        assert re.search("[\u2801-\u28ff]", text)
        shown = sum(f"{row.name} " in text for row in statistics.layers(net))
        left_out = len(statistics.layers(net)) - shown
        assert (f"{left_out} of 18 layers are left out" in text) == (left_out > 0) == (height < 24)


def test_a_terminal_gets_the_board_and_plain_last_lines(records, capsys, monkeypatch):  # noqa: F811
    in_a_terminal(monkeypatch)
    assert cli.main(["train", *SMALL, "--data", str(records), "--epochs", "2", "--live"]) == 0
    output = re.sub(r"\x1b\[[\d;?]*\w", "", capsys.readouterr().out)
    assert "accuracy" in output
    assert "conv1.0" in output
    assert re.search(r"\ntest accuracy \d+\.\d\d %\s+mbnp evaluate ", output.replace("\r", ""))
    config = json.loads(Path("runs/mobilenet-v1-small-1/config.json").read_text())
    assert "--live" not in shlex.split(config["command"])


def test_without_a_terminal_live_is_a_line_an_epoch(records, capsys):  # noqa: F811
    assert cli.main(["train", *SMALL, "--data", str(records), "--epochs", "1", "--live"]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "epoch 1/1:" in output
