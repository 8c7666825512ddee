"""Figures show what they were given, and are written whole or not at all."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mbnp import plots
from mbnp.train import Record


def history(epochs):
    return [Record(e, 10 * e, 2 / e, 1 - 0.6 / e, 0.1, 900.0, 9.5, 1.8 / e, 1 - 0.5 / e) for e in range(1, epochs + 1)]


@pytest.mark.parametrize("epochs", [1, 7])
def test_curves(tmp_path, epochs):
    figure = plots.curves(history(epochs), "a title")
    plots.save(figure, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1500, 600)
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]

    loss, accuracy = figure.axes
    assert figure.get_suptitle() == "a title"
    assert [axes.get_xlabel() for axes in (loss, accuracy)] == ["epoch", "epoch"]
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("cross-entropy (nats)", "accuracy (%)")
    training, test = accuracy.lines
    np.testing.assert_allclose(test.get_ydata(), [100 * (1 - 0.5 / e) for e in range(1, epochs + 1)])
    np.testing.assert_allclose(training.get_ydata(), [100 * (1 - 0.6 / e) for e in range(1, epochs + 1)])
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [2 / e for e in range(1, epochs + 1)])
    np.testing.assert_allclose(loss.lines[1].get_ydata(), [1.8 / e for e in range(1, epochs + 1)])
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in loss.lines}) == 2
    ticks = [tick for tick in loss.get_xticks() if loss.get_xlim()[0] <= tick <= loss.get_xlim()[1]]
    assert ticks
    assert all(tick == int(tick) for tick in ticks)


def test_a_figure_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"the old one")

    def break_off(self, path, **options):
        path.write_bytes(b"half a fig")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", break_off)
    with pytest.raises(OSError, match="disk full"):
        plots.save(plots.curves(history(2)), path)
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_the_front_is_what_nothing_beats():
    costs, accuracies = [3e6, 1e6, 2e6, 2e6, 4e6], [0.9, 0.6, 0.8, 0.7, 0.85]
    assert plots.best(costs, accuracies) == [1, 2, 0]
    assert plots.best([1, 1, 2], [0.5, 0.5, 0.5]) == [0, 1]
    figure = plots.front(
        ["wide", "narrow", "middle", "worse", "late $x"], costs, accuracies, "MACs of an image", "a title"
    )
    (axes,) = figure.axes
    line, *points = axes.lines
    np.testing.assert_allclose(line.get_xdata(), [1e6, 2e6, 3e6])
    np.testing.assert_allclose(line.get_ydata(), [60, 80, 90])
    shown = [(x, y) for each in points for x, y in zip(each.get_xdata(), each.get_ydata(), strict=True)]
    assert sorted(shown) == sorted(zip(costs, [90, 60, 80, 70, 85], strict=True))
    assert {text.get_text() for text in axes.texts} == {"wide", "narrow", "middle", "worse", "late $x"}
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "MACs of an image", "test accuracy (%)")


def test_a_name_that_finds_no_room_is_left_out():
    figure = plots.front([f"run {i}" for i in range(9)], [1e6] * 9, [0.5] * 9)
    assert 1 <= len(figure.axes[0].texts) <= 4
