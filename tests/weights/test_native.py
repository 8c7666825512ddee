"""mbnp's own checkpoints."""

import json
import os
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy

from mbnp import MbnpError, fused, models, weights
from tests.twins import batch, vary


@pytest.fixture
def net():
    net = vary(models.create("mobilenet-v1-small", num_classes=4, width_mult=0.25))
    net.classes, net.preprocessing = list("abcd"), {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    return net


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip(tmp_path, name, dtype):
    net = vary(models.create(name, num_classes=3, width_mult=0.25, dtype=dtype))
    weights.save(fused.convert(net), tmp_path / "net.safetensors")
    again = weights.load(tmp_path / "net.safetensors")
    assert again.arch == net.arch
    assert again.dtype == dtype
    for key, array in net.state().items():
        np.testing.assert_array_equal(again.state()[key], array)


def test_metadata_travels(tmp_path, net):
    weights.save(net, tmp_path / "net.safetensors")
    again = weights.load(tmp_path / "net.safetensors")
    assert (again.classes, again.preprocessing) == (net.classes, net.preprocessing)
    x, _ = batch(2, 32, np.float32)
    np.testing.assert_array_equal(again(x), net(x))


def test_saving_replaces_whole_files_only(tmp_path, net, monkeypatch):
    path = tmp_path / "net.safetensors"
    weights.save(net, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        weights.save(net, path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    assert path.read_bytes() == before


def resave(path, change_metadata=None, change_arrays=None):
    with safetensors.safe_open(path, "numpy") as file:
        metadata, arrays = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    del metadata["sha256"]  # as a forger leaves it out, too
    metadata |= change_metadata or {}
    arrays |= change_arrays or {}
    safetensors.numpy.save_file(arrays, path, metadata)


def test_bad_files(tmp_path, net):
    path = tmp_path / "net.safetensors"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        weights.load(path)
    weights.save(net, path)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(MbnpError, match="damaged"):
            weights.load(path)
    path.write_bytes(whole)
    resave(path, {"arch": json.dumps({"name": "resnet20"})})
    with pytest.raises(MbnpError, match="not a usable checkpoint: the state does not fit"):
        weights.load(path)
    path.write_bytes(whole)
    resave(path, {"arch": json.dumps({"name": "resnet2"})})
    with pytest.raises(MbnpError, match="did you mean 'resnet20'"):
        weights.load(path)
    path.write_bytes(whole)
    resave(path, {"format": "other"})
    with pytest.raises(MbnpError, match=r"looks like mobilenet-v1-small in PyTorch \(.*\), but conv2_1\.0\.weight of"):
        weights.load(path)
    path.write_bytes(whole)
    resave(path, None, {"fc.bias": np.zeros(4, np.int32)})
    with pytest.raises(MbnpError, match="must all be float32 or all float64"):
        weights.load(path)
    for metadata in (
        {"classes": json.dumps(["a"])},
        {"resolution": json.dumps("big")},
        {"preprocessing": json.dumps({"mean": [0], "std": [1]})},
        {"preprocessing": json.dumps({"mean": [0] * 3, "std": [1] * 3, "order": "rbg"})},
        {"preprocessing": json.dumps({"mean": [0] * 3, "std": [1] * 3, "crop": 0.9})},
        {"preprocessing": json.dumps({"mean": [0] * 3, "std": [1, 1, 0]})},
        {"preprocessing": json.dumps([0, 1])},
        {"classes": json.dumps("abcd")},
        {"classes": json.dumps(["a", "b", "c", "d\n"])},
        {"arch": json.dumps({"name": "mobilenet-v1-small", "num_classes": -3})},
    ):
        path.write_bytes(whole)
        resave(path, metadata)
        with pytest.raises(MbnpError, match="not a usable checkpoint"):
            weights.load(path)
    with pytest.raises(MbnpError, match=r"name the checkpoint net\.safetensors"):
        weights.save(net, tmp_path / "net.bin")
    with pytest.raises(FileNotFoundError, match="no folder"):
        weights.save(net, tmp_path / "none" / "net.safetensors")
    (tmp_path / "net.xyz").write_bytes(b"what is this?")
    with pytest.raises(MbnpError, match="unknown kind of checkpoint"):
        weights.load(tmp_path / "net.xyz")


@pytest.mark.parametrize(
    "arch",
    [
        '{"name": "mobilenet-v1-small", "num_classes": 4, "width_mult": 30}',
        '{"name": "mobilenet-v1-small", "num_classes": 1000000, "width_mult": 0.25}',
        '{"name": "mobilenet-v1", "num_classes": 9000, "width_mult": 0.5}',
        '{"name": "mobilenet-v1-small", "num_classes": 4, "width_mult": Infinity}',
        "[" * 100_000,
        '{"name": "mobilenet-v1-small", "num_classes": 4, "width_mult": 0.25, "seed": -1}',
        "3",
    ],
)
def test_hostile_metadata_is_refused_before_it_costs_memory(tmp_path, net, arch):
    path = tmp_path / "net.safetensors"
    weights.save(net, path)
    resave(path, {"arch": arch})
    tracemalloc.start()
    with pytest.raises(MbnpError, match="not a usable checkpoint"):
        weights.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize(("name", "value"), [("fc.bias", np.nan), ("conv1.1.running_var", -1.0)])
def test_weights_that_are_no_numbers_are_refused(tmp_path, net, name, value):
    path = tmp_path / "net.safetensors"
    net.variables()[name].value = np.full(net.state()[name].shape, value)
    weights.save(net, path)
    with pytest.raises(MbnpError, match=f"{name} holds NaN, infinity or a negative variance"):
        weights.load(path)
