"""Counts of what a test tried, for `tests/nightly.py`, which adds them up."""

import json
import os

NIGHTLY = bool(os.environ.get("MBNP_NIGHTLY"))  # the long setting


def tally(what: str, **counts: int) -> None:
    """Note the counts of one test, such as tried=50, right=50, where somebody asked for them."""
    if path := os.environ.get("MBNP_TALLY"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **counts}) + "\n")
