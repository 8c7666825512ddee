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
        "100 kills at random moments, 40 disks that fill, every moment between two writes of a run; both engines",
        ("tests/test_resume.py", "tests/test_crashes.py"),
    ),
    Guarantee(
        "What is refused changes nothing: no weight, no statistic, no file",
        "each kind of bad label, image, description and option, with both engines",
        ("tests/test_train_step.py", "tests/test_train.py", "tests/test_cli.py"),
    ),
    Guarantee(
        "Every implementation of an operation gives PyTorch's numbers, NaN and infinities where it does",
        "2,000 examples of each operation: any shape, stride, padding, layout in memory, any number",
        ("tests/ops",),
    ),
    Guarantee(
        "The fast engine gives the reference layers' numbers, whatever the network and the number of threads",
        "300 random networks; order of a batch, its parts, mirrors, permuted channels, scaled weights",
        ("tests/fused", "tests/test_metamorphic.py"),
    ),
    Guarantee(
        "A network is trained as well as by PyTorch",
        "five pairs of runs over the CIFAR-10 subset, from the same weights, on the same batches: within 1.8 points",
        ("tests/test_accuracy.py",),
    ),
    Guarantee(
        "Any kernels run from any Python threads; a forked process gets an answer or one line, never a signal",
        "every kernel from several threads with each of Numba's kinds of threads, 160 forks while kernels run",
        ("tests/backend/test_threads.py",),
    ),
    Guarantee(
        "A damaged cache of kernels costs a line and a compilation",
        "300 flipped bits, every kind of truncation, folders in a file's place, full disks",
        ("tests/backend/test_cache.py",),
    ),
    Guarantee(
        "No process that mbnp started outlives it (on Linux and macOS), and an interrupt at its start is one line",
        "parents that are killed, 100 interrupts in the first two seconds",
        ("tests/test_parent.py", "tests/test_environment.py", "tests/test_warmup.py"),
    ),
    Guarantee(
        "A file from elsewhere loads or is refused in one printable line; nothing in it is executed",
        "ten minutes of mutated files for each of seven formats, with limits of memory, time and access",
        ("tests/test_outside.py", "tests/weights"),
    ),
    Guarantee(
        "PyTorch's checkpoints of known networks are read whatever their suffix, nesting or prefix",
        "2,000 random nestings, 2,000 random pickles; what is called, against PyTorch's own weights-only list",
        ("tests/weights/test_wild.py",),
    ),
    Guarantee(
        "A folder of images becomes a data set, whole or not at all; only what cannot be read is left out, and listed",
        "kinds of damage, kills and 100 interrupts while images are prepared, a damaged cache, files that change",
        ("tests/datasets", "tests/test_own_images.py"),
    ),
    Guarantee(
        "A film is watched to its end, whatever is damaged, in memory that does not grow; Ctrl-C leaves a whole film",
        "damaged and cut files, a camera that is too fast; 2,000 frames of moving shapes: what is found, how fast",
        ("tests/datasets/test_video.py", "tests/test_watch_command.py"),
    ),
    Guarantee(
        "A page asks nothing of anybody, what names hold is text, and its numbers are the network's to three digits",
        "every layer of six networks opened in a browser without a network, by mouse, keys and finger",
        ("tests/test_pages.py", "tests/test_report.py", "tests/test_compare.py"),
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
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *guarantee.tests]
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
    return done.returncode == 0 and passed > 0  # nothing is held by tests that are all skipped


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
