"""Which data `load` takes: what is named, then what lies about, then shapes10."""

import shutil
from pathlib import Path

import pytest

from mbnp import datasets
from mbnp.errors import MbnpError

pytestmark = pytest.mark.usefixtures("nowhere")


@pytest.fixture(autouse=True)
def quick_shapes(drawn, monkeypatch):
    monkeypatch.setattr("mbnp.datasets.shapes10.make", lambda: drawn)


def test_without_anything_it_is_shapes10(drawn):
    assert datasets.load() is drawn
    assert datasets.load("shapes10") is drawn


def test_the_order(nowhere, records, drawn, monkeypatch):
    """Cache, then ./data, then MBNP_DATA, then the argument: each beats those before it."""
    cache = shutil.copytree(records, nowhere / "cache" / "mbnp" / datasets.cifar10.FOLDER)
    assert datasets.load().source == str(cache)
    data = shutil.copytree(records, Path("data") / datasets.cifar10.FOLDER)
    assert datasets.load().source == str(data)
    assert datasets.load("cifar10").source == str(data)
    monkeypatch.setenv("MBNP_DATA", str(records))
    assert datasets.load().source == str(records)
    assert datasets.load("cifar10").source == str(records)
    assert datasets.load(str(cache)).source == str(cache)
    assert datasets.load(cache).source == str(cache)
    assert datasets.load("shapes10") is drawn


def test_the_variable_may_name_a_data_set(records, drawn, monkeypatch):
    data = shutil.copytree(records, "data/anything")
    monkeypatch.setenv("MBNP_DATA", "shapes10")
    assert datasets.load() is drawn
    assert datasets.load("cifar10").source == data
    monkeypatch.setenv("MBNP_DATA", "cifar10")
    assert datasets.load().source == data
    monkeypatch.setenv("MBNP_DATA", "")
    assert datasets.load().source == data


@pytest.mark.parametrize("missing", ["no/such/folder", "missing.tar.gz", Path("missing")])
def test_a_named_path_must_be_there(missing, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        datasets.load(missing)
    if "/" in str(missing):
        monkeypatch.setenv("MBNP_DATA", str(missing))
        with pytest.raises(FileNotFoundError, match=r"folder no/such/folder \(from MBNP_DATA\)"):
            datasets.load()


@pytest.mark.parametrize(
    ("name", "near"), [("shape10", "shapes10"), ("cifar-10", "cifar10"), ("imagenet", None), ("", None)]
)
def test_an_unknown_name(name, near, monkeypatch):
    hint = f"did you mean '{near}'" if near else "known are cifar10, cifar100, scenes10, shapes10"
    with pytest.raises(MbnpError, match=f"unknown data set '{name}'.*{hint}"):
        datasets.load(name)
    if name:
        monkeypatch.setenv("MBNP_DATA", name)
        with pytest.raises(MbnpError, match=rf"unknown data set \(from MBNP_DATA\) '{name}'"):
            datasets.load()


def test_cifar10_where_there_is_none(nowhere):
    with pytest.raises(FileNotFoundError, match="`mbnp data download cifar10` fetches it") as raised:
        datasets.load("cifar10")
    assert str(nowhere / "cache" / "mbnp") in str(raised.value)
    assert str(Path("data").absolute()) in str(raised.value)


def test_damaged_data_that_lies_about_is_an_error_and_not_passed_over(records):
    data = shutil.copytree(records, Path("data") / datasets.cifar10.FOLDER)
    (data / "test_batch.bin").write_bytes(b"")
    with pytest.raises(MbnpError, match=r"test_batch\.bin is empty"):
        datasets.load()


def test_home_is_expanded(records, nowhere, monkeypatch):
    monkeypatch.setenv("HOME", str(nowhere))
    shutil.copytree(records, nowhere / "mine")
    assert len(datasets.load("~/mine").train) == 400


def test_each_is_one_line(drawn):
    assert str(drawn) == "shapes10, 400 training and 100 test images (drawn by mbnp, seed 0)"
    assert repr(drawn) == f"<Dataset {drawn}>"
    assert repr(drawn.train) == "<Split of 400 images of 32x32x3>"


PYTHON = {
    "cifar-10-batches-py": ("CIFAR-10 for Python", "`mbnp data download` "),
    "cifar-10-python.tar.gz": ("CIFAR-10 for Python", "`mbnp data download` "),
    "cifar-100-python": ("CIFAR-100 for Python", "`mbnp data download cifar100` "),
    "cifar-100-python.tar.gz": ("CIFAR-100 for Python", "`mbnp data download cifar100` "),
}


@pytest.mark.parametrize("where", ["data", "cache"])
@pytest.mark.parametrize("name", PYTHON)
def test_a_version_for_python_is_named(name, where, nowhere, records, drawn):
    """It is neither opened nor passed over; what can be read comes first, and shapes10 is there when asked for."""
    place = (Path("data") if where == "data" else nowhere / "cache" / "mbnp") / name
    place.parent.mkdir(parents=True)
    if name.endswith(".gz"):
        place.write_bytes(b"")
    else:
        place.mkdir()
        names = ("train", "test", "meta") if "100" in name else ("data_batch_1", "test_batch", "batches.meta")
        for file in names:
            (place / file).write_bytes(b"pickle")
        with pytest.raises(MbnpError, match="a pickle, which could run any program"):
            datasets.load(place)
    what, download = PYTHON[name]
    for spec in (None, "cifar10", "cifar100"):
        with pytest.raises(MbnpError) as raised:
            datasets.load(spec)
        assert f"{name} is there, but is {what}, a pickle" in str(raised.value)
        assert f"{download}fetches the binary version; --data shapes10 trains without it" in str(raised.value)
    assert datasets.load("shapes10") is drawn
    shutil.copytree(records, Path("data") / datasets.cifar10.FOLDER)
    assert len(datasets.load().train) == 400


def test_a_subset_never_hides_the_whole_set(records, nowhere, monkeypatch):
    whole = shutil.copytree(records, nowhere / "cache" / "mbnp" / datasets.cifar10.FOLDER)
    small = datasets.subset(datasets.load(records), "data/small", train=50, test=10)
    assert datasets.load("cifar10").source == str(small), "what is in ./data comes first, but for a subset"
    assert datasets.whole().source == str(whole)
    shutil.copytree(records, "data/whole")
    assert datasets.whole().source == str(Path("data/whole"))
    monkeypatch.setenv("MBNP_DATA", str(small))
    assert datasets.whole().source == str(Path("data/whole"))
    Path("data", datasets.cifar10.ARCHIVE).write_bytes(b"damaged")
    with pytest.raises(MbnpError, match="is no archive"):
        datasets.whole()


def test_grey_is_what_pillow_makes_of_it(records, drawn):
    import numpy as np
    from PIL import Image

    data = datasets.load(records, channels=1)
    assert data.train.images.shape == (400, 32, 32, 1)
    assert len(data.mean) == len(data.std) == 1
    expected = np.asarray(Image.fromarray(drawn.test.images[3]).convert("L"))
    np.testing.assert_array_equal(data.test.images[3, :, :, 0], expected)
    np.testing.assert_allclose(data.mean, data.train.images.mean() / 255, atol=1e-6)
