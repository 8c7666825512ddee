"""The README's Python example runs as it stands, on fewer pictures."""

import re
from pathlib import Path

from mbnp import datasets, weights
from mbnp.datasets import Dataset, Split

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs(monkeypatch, tmp_path, capsys):
    data = datasets.load("shapes10")

    def few(split: Split) -> Split:
        return Split(split.images[:128], split.labels[:128])

    fields = vars(data) | {"train": few(data.train), "test": few(data.test)}
    monkeypatch.setattr(datasets, "load", lambda name: Dataset(**fields))
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert capsys.readouterr().out.count("Record(epoch=") == 5
    assert weights.load("model.safetensors").classes == list(data.classes)
    assert all(p.grad.any() for name, p in names["net"].parameters().items() if name.startswith("fc"))


def test_every_file_it_names_is_there():
    for name in re.findall(r"`((?:mbnp|tests|data)/[\w/.]*)`", README.read_text()):
        assert (README.parent / name).exists(), name
