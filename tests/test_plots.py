"""Figures are written, readable by their size, whole or not at all, and show what they were given."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mbnp import plots
from mbnp.train import Record


def history(epochs):
    return [Record(e, 10 * e, 2 / e, 1 - 0.6 / e, 0.1, 900.0, 9.5, 1.8 / e, 1 - 0.5 / e) for e in range(1, epochs + 1)]


@pytest.mark.parametrize("epochs", [1, 7])
def test_curves(tmp_path, epochs, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: drawn.append(self) or save(self, *a, **k))
    plots.curves(history(epochs), tmp_path / "curves.png", "a title")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1500, 600)
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]

    loss, accuracy = drawn[0].axes
    assert drawn[0].get_suptitle() == "a title"
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
        plots.curves(history(2), path)
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
