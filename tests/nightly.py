"""What mbnp promises, and the long run of the tests that hold it to that.

    python -m tests.nightly              a few hours; MBNP_DATA as for pytest
    python -m tests.nightly --table      the README's table of guarantees

Each line names the tests of a promise. Here they run in their long setting (MBNP_NIGHTLY), and what they counted is
added up.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Guarantee(NamedTuple):
    """A promise, how it is tested, in words, and pytest's arguments for these tests."""

    promise: str
    tested: str
    tests: tuple[str, ...]


GUARANTEES = (
    Guarantee(
        "A run that is interrupted goes on to the same bits: Ctrl-C, SIGTERM, SIGKILL, a full disk, a power cut",
        "killed at 50 random moments with each engine, 20 disks that fill, every moment between two writes of a run",
        ("tests/test_resume.py", "tests/test_crashes.py"),
    ),
    Guarantee(
        "A batch that is refused, or a step that is interrupted, changes no weight and no statistic",
        "each kind of bad label and image, on both engines",
        ("tests/test_train_step.py",),
    ),
)


def table() -> str:
    """Return the README's table."""
    lines = ["| promised | how it is tested | by |", "| --- | --- | --- |"]
    for promise, tested, tests in GUARANTEES:
        lines.append(f"| {promise} | {tested} | {', '.join(f'`{name}`' for name in tests)} |")
    return "\n".join(lines)


def run(guarantee: Guarantee) -> bool:
    """Run the tests of a promise, say how they ended, and what they counted."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *guarantee.tests]
        environment = os.environ | {"MBNP_NIGHTLY": "1", "MBNP_TALLY": str(counts)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        lines = counts.read_text(encoding="utf-8").splitlines() if counts.exists() else []
    if done.returncode:
        print(done.stdout, done.stderr)
    passed, failed = (sum(map(int, re.findall(rf"(\d+) {word}", done.stdout))) for word in ("passed", "failed"))
    seconds = time.perf_counter() - began
    print(f"{guarantee.promise}\n  {passed} tests passed, {failed} failed, in {seconds:,.0f} s", flush=True)
    sums: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for line in map(json.loads, lines):
        sums[line.pop("what")].update(line)
    for what, numbers in sums.items():
        print(f"  {what}: {', '.join(f'{name} {number:,}' for name, number in numbers.items())}", flush=True)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="print the README's table of guarantees")
    if parser.parse_args().table:
        print(table())
        return 0
    kept = [run(guarantee) for guarantee in GUARANTEES]  # all of them, whatever became of the first
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
