"""Files that an earlier mbnp wrote still load, and give the same logits to the last bit."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from mbnp import backend, weights
from mbnp.train import Record

FIXTURES = Path(__file__).parent / "fixtures"
LOGITS = dict(np.load(FIXTURES / "logits.npz"))


def path_of(name: str) -> Path:
    if name == "run":
        return FIXTURES / "run" / "model.safetensors"
    return FIXTURES / (name if "." in name else f"{name}.safetensors")


@pytest.mark.parametrize("name", LOGITS)
def test_same_logits(name):
    net = weights.load(path_of(name))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, net.resolution, net.resolution, 3)).astype(net.dtype)
    with backend.use("loops"):  # whose order of additions is the same on every machine
        logits = net(x)
    assert logits.dtype == LOGITS[name].dtype
    np.testing.assert_array_equal(logits, LOGITS[name])


@pytest.mark.parametrize("name", [name for name in LOGITS if "." not in name])
def test_written_again_they_say_the_same(name, tmp_path):
    import safetensors

    net = weights.load(path_of(name))
    weights.save(net, tmp_path / "again.safetensors")
    said = []
    for path in (path_of(name), tmp_path / "again.safetensors"):
        with safetensors.safe_open(path, framework="numpy") as file:
            said.append(
                {key: v if key == "format" else json.loads(v) for key, v in file.metadata().items() if key != "sha256"}
            )
    assert said[0] == said[1]


def test_a_run_folder_has_the_same_columns_and_keys():
    with (FIXTURES / "run" / "metrics.csv").open(newline="") as file:
        assert tuple(next(csv.reader(file))) == Record._fields
    config = json.loads((FIXTURES / "run" / "config.json").read_text())
    assert config["command"].startswith("mbnp train --model mobilenet-v1-small")
