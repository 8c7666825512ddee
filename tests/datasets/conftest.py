import pytest

from mbnp.datasets import Dataset, cifar10, shapes10


@pytest.fixture(scope="session")
def drawn() -> Dataset:
    """A few images of shapes10."""
    return shapes10.make(train=400, test=100)


@pytest.fixture(scope="session")
def records(drawn, tmp_path_factory):
    """A folder of record files as the official archive unpacks to, but smaller. Not to be written to."""
    folder = tmp_path_factory.mktemp("records") / cifar10.FOLDER
    folder.mkdir()
    for k in range(5):
        part = slice(80 * k, 80 * (k + 1))
        content = cifar10.to_records(drawn.train.images[part], drawn.train.labels[part])
        (folder / f"data_batch_{k + 1}.bin").write_bytes(content)
    (folder / "test_batch.bin").write_bytes(cifar10.to_records(drawn.test.images, drawn.test.labels))
    (folder / "batches.meta.txt").write_text("\n".join(cifar10.CLASSES) + "\n\n")
    return folder


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No CIFAR-10 in any place that is looked at: an empty working folder, an empty cache, no MBNP_DATA."""
    monkeypatch.delenv("MBNP_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path
