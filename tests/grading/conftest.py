"""No test changes what the one who runs it has solved."""

import pytest


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Return the file of a reader who has solved nothing yet, outside of the folders that tests grade in."""
    file = tmp_path / "kept" / "progress.json"
    monkeypatch.setenv("MBNP_PROGRESS", str(file))
    return file
