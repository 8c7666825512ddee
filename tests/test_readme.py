"""The README's Python examples run as they stand, on fewer images, and the files that it names are there."""

import re
from pathlib import Path

import numpy as np
import pytest

from mbnp import datasets, layers, weights
from mbnp.datasets import Dataset, Split

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def run(example: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict:
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "example"}
    exec(EXAMPLES[example], names)
    return names


def test_the_data_trains_a_network(monkeypatch, tmp_path, capsys):
    data = datasets.load("shapes10")

    def few(split: Split) -> Split:
        return Split(split.images[:128], split.labels[:128])

    fields = vars(data) | {"train": few(data.train), "test": few(data.test)}
    monkeypatch.setattr(datasets, "load", lambda name: Dataset(**fields))
    names = run(0, monkeypatch, tmp_path)
    assert capsys.readouterr().out.count("Record(epoch=") == 5
    assert weights.load("model.safetensors").classes == list(data.classes)
    assert all(p.grad.any() for name, p in names["net"].parameters().items() if name.startswith("fc"))


def test_a_network_of_ones_own(monkeypatch, tmp_path, capsys):
    names = run(1, monkeypatch, tmp_path)
    assert "block.0" in capsys.readouterr().out
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(weights.load("own.safetensors")(x), names["net"](x))


def test_a_layer_of_ones_own(monkeypatch, tmp_path):
    from mbnp import gradcheck

    layer = run(2, monkeypatch, tmp_path)["Scale"](3)
    assert isinstance(layer, layers.Layer)

    def backward(dy, x, w):
        layer.weight = layers.Parameter(w)
        layer.forward(x, train=True)
        return layer.backward(dy), layer.weight.grad

    x, w = np.random.default_rng(0).standard_normal((2, 4, 5, 3)), np.array([0.5, 2.0, -1.0])
    gradcheck.compare(lambda x, w: x * w, backward, [x, w])


def test_an_operation_of_ones_own(monkeypatch, tmp_path, capsys):
    run(3, monkeypatch, tmp_path)
    (error,) = eval(capsys.readouterr().out)
    assert 0 < error < 1e-6


def test_gradients_against_pytorch(monkeypatch, tmp_path, capsys):
    run(4, monkeypatch, tmp_path)
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:5]] == ["output", "loss", "dx"]
    assert [len(row) for row in rows[-3:]] == [3, 5, 3]  # a convolution, a BatchNorm, a linear layer
    assert len(EXAMPLES) == 5


def test_no_block_is_a_placeholder():
    blocks = re.findall(r"^```\w*\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert all(len(block.split()) > 3 for block in blocks)


def test_examples_are_short():
    assert all(len(re.findall(r"^\s*\S", example, re.MULTILINE)) <= 16 for example in EXAMPLES)


def test_every_file_it_names_is_there():
    text = README.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:mbnp|tests|data)/[\w/.]*)`", text) + re.findall(r"\]\(([\w./-]+)\)", text):
        assert (README.parent / name).exists() or name == "data/small", name


def test_the_table_of_guarantees_is_that_of_the_long_run():
    from tests import nightly

    assert nightly.table() in README.read_text(encoding="utf-8")
    for guarantee in nightly.GUARANTEES:
        for name in guarantee.tests:
            assert (README.parent / name).exists(), name
