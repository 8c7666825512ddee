"""A run that is killed, that fills its disk or loses its power goes on to the same bits, whenever that happened."""

import csv
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mbnp
from mbnp import cli, runs
from tests.tally import NIGHTLY, tally
from tests.test_cli import write_records
from tests.test_resume import ARGUMENTS, checkpoint_agrees, is_like

ENGINES = {"fused": [], "readable": ["--readable"]} if NIGHTLY else {"fused": []}
TIMES = 50 if NIGHTLY else 2
DISKS = 20 if NIGHTLY else 2
DEAD = 2**22 + 1  # more than the number of any process

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of open files and mounts")

# Says when it begins, and waits before and after whatever changes a name or flushes a file.
SLOWED = """
import os, sys, time
from mbnp import cli
from mbnp.commands import train
def slowed(function, pause):
    def wrapped(*arguments, **options):
        time.sleep(pause)
        done = function(*arguments, **options)
        time.sleep(pause)
        return done
    return wrapped
if pause := float(sys.argv[1]):
    for name in ("replace", "rename", "fsync", "unlink"):
        setattr(os, name, slowed(getattr(os, name), pause))
print("begins", flush=True)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("data") / "records")


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    return ENGINES[request.param]


@pytest.fixture(scope="module")
def arguments(engine, records):
    return ["train", *ARGUMENTS, *engine, "--data", str(records)]


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.main([*arguments, "--out", str(folder)]) == 0
    return folder


def begin(arguments, pause=0.0):
    environment = os.environ | {"PYTHONPATH": str(Path(mbnp.__file__).parents[1])}
    command = [sys.executable, "-c", SLOWED, str(pause), *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process


def finish(folder, arguments, whole):
    """Go on with a folder, or begin again where there is none, and compare with the run that nothing interrupted."""
    if folder.exists():
        checkpoint_agrees(folder)
        assert cli.main(["train", "--resume", str(folder)]) == 0
    else:
        assert cli.main([*arguments, "--out", str(folder)]) == 0
    is_like(folder, whole)
    assert os.listdir(folder.parent) == [folder.name]  # nothing half-written is left beside it


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_killed_at_random_moments(arguments, whole, tmp_path, pause):
    measured = begin([*arguments, "--out", tmp_path / "measured"], pause)
    began = time.perf_counter()
    measured.communicate()
    seconds = time.perf_counter() - began
    assert measured.returncode == 0
    rng, killed, had_folder = np.random.default_rng(int(100 * pause)), 0, 0
    for i in itertools.count():
        if killed == TIMES // 2:  # a run may have ended before
            break
        folder = tmp_path / str(i) / "run"
        folder.parent.mkdir()
        process = begin([*arguments, "--out", folder], pause)
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        had_folder += folder.exists()
        finish(folder, arguments, whole)
        shutil.rmtree(folder.parent)
    tally("runs killed at random moments", tried=i, killed=killed, with_a_folder=had_folder, right=i)


@linux
def test_a_disk_that_fills(arguments, whole, tmp_path):
    mounts = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*mounts, "true"], capture_output=True).returncode:
        pytest.skip("needs a file system of its own: unshare --map-root-user --mount")
    most = sum(path.stat().st_size for path in whole.rglob("*")) // 1024
    rng, early, late = np.random.default_rng(0), 0, 0
    script = 'mount -t tmpfs -o size="$1"k tmpfs "$2" && shift 2 && "$@"; s=$?; cp -a "$0"/disk/. "$0"/copy; exit $s'
    for i in range(DISKS):
        place = tmp_path / str(i)
        (place / "disk").mkdir(parents=True)
        (place / "copy").mkdir()
        command = [sys.executable, "-m", "mbnp", *arguments, "--out", str(place / "disk" / "run")]
        size = str(rng.integers(4, most))
        full = subprocess.run(
            [*mounts, "bash", "-c", script, str(place), size, str(place / "disk"), *command],
            env=os.environ | {"PYTHONPATH": str(Path(mbnp.__file__).parents[1])}, capture_output=True, text=True,
        )  # fmt: skip
        assert full.returncode in (0, 2), full.stderr  # 0: the curves alone did not fit
        assert "No space left on device" in full.stderr
        assert "Traceback" not in full.stderr
        assert len(full.stderr.splitlines()) <= 2
        folder = place / "copy" / "run"
        early, late = early + (not folder.exists()), late + folder.exists()
        finish(folder, arguments, whole)
    tally("runs whose disk filled", tried=DISKS, before_there_was_a_folder=early, with_a_folder=late, right=DISKS)


class Disk:
    """What a power cut would leave of a folder, at each moment of a program that writes into it.

    Of a file only what was flushed is sure to be there. Of names, those that were there when their folder was flushed
    are sure; what changed since then may be there or not, and each moment is looked at both ways.
    """

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.contents, self.names = {}, {folder.stat().st_ino: {}}
        self.moments = []
        self.open = []  # so that no number of a file is given to another one
        for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir"):
            monkeypatch.setattr(os, name, self.watched(name, getattr(os, name)))

    def watched(self, name, function):
        def wrapped(*arguments, **options):
            self.look()
            done = function(*arguments, **options)
            if name == "fsync":
                self.flushed(arguments[0])
            return done

        return wrapped

    def flushed(self, handle):
        self.open.append(os.dup(handle))
        about = os.fstat(handle)
        if stat.S_ISDIR(about.st_mode):
            self.names[about.st_ino] = {entry.name: entry.inode() for entry in os.scandir(handle)}
        else:
            self.contents[about.st_ino] = os.pread(handle, about.st_size, 0)

    def look(self):
        """Note the files, by path, that a power cut now would leave, in both cases."""
        sure = dict(self.sure(self.folder.stat().st_ino, Path()))
        likely = {
            path.relative_to(self.folder): self.contents.get(path.stat().st_ino, b"")
            for path in self.folder.rglob("*")
            if path.is_file()
        }
        self.moments += [files for files in (sure, likely) if files not in self.moments]

    def sure(self, folder, path):
        for name, number in self.names[folder].items():
            if number in self.names:
                yield from self.sure(number, path / name)
            else:
                yield path / name, self.contents.get(number, b"")

    def close(self):
        for handle in self.open:
            os.close(handle)


@linux
def test_a_power_cut_at_every_moment(arguments, whole, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        disk = Disk(place, monkeypatch)
        try:
            assert cli.main([*arguments, "--out", str(place / "run")]) == 0
        finally:
            disk.close()
    assert len(disk.moments) > 30
    every, steps = 1 if NIGHTLY else 12, []
    for i, files in enumerate(disk.moments):
        folder = tmp_path / str(i) / "run"
        folder.parent.mkdir()
        for path, content in files.items():
            path = Path(str(path).replace(f"mbnp-{os.getpid()}.", f"mbnp-{DEAD}."))
            (folder.parent / path).parent.mkdir(parents=True, exist_ok=True)
            (folder.parent / path).write_bytes(content)
        if folder.exists():
            checkpoint_agrees(folder)
            said = []
            steps.append(int(runs.latest(folder, said.append)[1].optimiser["steps"]))
            assert not said  # no state is damaged
        if i % every == 0:
            shutil.rmtree(place)
            place.mkdir()
            if folder.exists():
                folder.rename(place / "run")
            finish(place / "run", arguments, whole)
    assert steps == sorted(steps)
    assert set(steps) == {0, 2, 4, 5, 6, 8, 10, 12, 14, 15}  # each state that was ever kept
    gone_on = len(range(0, len(disk.moments), every))
    tally("moments of a power cut", tried=len(disk.moments), right=len(disk.moments), gone_on_to_the_end=gone_on)


@pytest.mark.skipif(not NIGHTLY, reason="measures time: in the long setting")
def test_saving_costs_little(tmp_path, monkeypatch):
    spent, keep = [], runs.keep

    def timed(*arguments):
        began = time.perf_counter()
        keep(*arguments)
        spent.append(time.perf_counter() - began)

    monkeypatch.setattr(runs, "keep", timed)
    assert cli.main(["train", "--data", "shapes10", "--epochs", "3", "--out", str(tmp_path / "run")]) == 0
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    share = sum(spent) / seconds
    tally("the time that saving takes, in thousandths", of_an_epoch=round(1000 * share))
    assert share < 0.02
