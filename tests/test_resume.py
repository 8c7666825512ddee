"""A run goes on from wherever it was interrupted, to the same bits, and its folder never contradicts itself."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import mbnp
from mbnp import cli, fused, optim, runs, storage, train
from mbnp.errors import MbnpError
from mbnp.layers import Conv, Dropout, GlobalAveragePool, HardSwish, Linear, Network
from mbnp.recipe import Recipe
from mbnp.weights import native
from tests.test_cli import SMALL, fails, write_records
from tests.test_train import RECIPE, make_data, make_net

ENGINES = {"readable": lambda net: net, "fused": fused.convert}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def timeless(records):
    return [record._replace(images_per_second=0, seconds=0) for record in records]


# -- in Python -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_every_snapshot_leads_to_the_same_end(engine):
    data, kept = make_data(), []
    net = ENGINES[engine](make_net())
    net.freeze_until("conv2_1")
    history = train.fit(net, data, RECIPE, keep=kept.append, every=1)
    assert [(s.progress.epoch, s.progress.batch) for s in kept] == [
        (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0),
    ]  # fmt: skip
    for snapshot in kept[:-1]:
        other, again = ENGINES[engine](make_net(seed=9)), []
        other.freeze_until("conv2_1")
        found = train.fit(other, data, RECIPE, keep=again.append, every=1, resume=snapshot)
        assert timeless(found) == timeless(history)
        assert len(again) == len(kept) - 1 - [k is snapshot for k in kept].index(True)
        same(other.state(), net.state())
        same(again[-1].optimiser, kept[-1].optimiser)
        assert other.classes == data.classes


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_goes_on_with_the_masks_that_it_would_have_drawn(engine):
    def make(seed):
        rng = np.random.default_rng(seed)
        body = {"conv": Conv(3, 8, 3, 2, rng=rng), "swish": HardSwish(), "pool": GlobalAveragePool()}
        return ENGINES[engine](Network({**body, "drop": Dropout(0.5, seed), "fc": Linear(8, 3, rng=rng)}, 20))

    data, kept, net, other = make_data(), [], make(1), make(2)
    history = train.fit(net, data, RECIPE, keep=kept.append, every=1)
    assert timeless(train.fit(other, data, RECIPE, resume=kept[3])) == timeless(history)
    same(other.state(), net.state())
    with pytest.raises(MbnpError, match="its dropouts are not this one's"):
        train.fit(make_net(), data, RECIPE, resume=kept[3])


def test_a_snapshot_is_not_changed_by_the_run_that_goes_on():
    data, kept = make_data(), []
    train.fit(make_net(), data, RECIPE, keep=kept.append)
    before = kept[1].network["conv1.0.weight"].copy(), dataclasses.replace(kept[1].progress)
    for _ in range(2):
        assert len(train.fit(make_net(), data, RECIPE, resume=kept[1])) == 2
    np.testing.assert_array_equal(kept[1].network["conv1.0.weight"], before[0])
    assert kept[1].progress == before[1]
    assert len(kept[1].progress.history) == 1


@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, 0.1, momentum=0.9), lambda p: optim.AdamW(p, 0.01)])
def test_an_optimiser_goes_on(make):
    from tests.test_train import make_batch

    (x, y), net, other = make_batch(), make_net(), make_net(seed=1)
    opt, again = make(net.parameters()), make(other.parameters())
    for _ in range(2):
        train.step(net, opt, x, y)
    other.load_state(net.state())
    again.load_state(opt.state())
    for each, its in ((net, opt), (other, again)):
        train.step(each, its, x, y)
    assert again.steps == 3
    same(net.state(), other.state())
    with pytest.raises(MbnpError, match="does not fit this optimiser"):
        again.load_state({"steps": np.array(3)})


# -- run folders ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("data") / "records")


ARGUMENTS = [*SMALL, "--epochs", "3", "--every", "2"]


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.main(["train", *ARGUMENTS, "--data", str(records), "--out", str(folder)]) == 0
    return folder


def is_like(folder, whole):
    """Check that two runs are the same, but for the times in their metrics."""
    same(native.read(folder / "model.safetensors")[1], native.read(whole / "model.safetensors")[1])
    mine, others = (list(csv.reader((f / "metrics.csv").read_text().splitlines())) for f in (folder, whole))
    timed = [mine[0].index(name) for name in ("images_per_second", "seconds")]
    for row, other in zip(mine, others, strict=True):
        assert [v for i, v in enumerate(row) if i not in timed] == [v for i, v in enumerate(other) if i not in timed]
    assert sorted(os.listdir(folder)) == sorted(os.listdir(whole))
    states = [sorted((f / "state").glob("*.safetensors")) for f in (folder, whole)]
    assert [path.name for path in states[0]] == [path.name for path in states[1]]
    same(native.read(states[0][-1])[1], native.read(states[1][-1])[1])


def checkpoint_agrees(folder):
    """Check that the checkpoint of a folder, in whatever state it is, is of an epoch that its metrics have."""
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    checkpoint = folder / "model.safetensors"
    if checkpoint.exists():
        assert native.read(checkpoint)[0]["epoch"] in [row["epoch"] for row in rows]
    else:
        assert len(rows) <= 1


KILLED = """
import itertools, os, signal, sys
from mbnp import cli
count, first, last, number = itertools.count(1), *map(int, sys.argv[1:4])
def killing(function):
    def wrapped(*arguments, **options):
        if first <= next(count) <= last:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)
    return wrapped
for name in ("replace", "fsync", "unlink"):
    setattr(os, name, killing(getattr(os, name)))
sys.exit(cli.main(sys.argv[4:]))
"""


def run_killed(event, *arguments, number=signal.SIGKILL, times=1):
    environment = os.environ | {"PYTHONPATH": str(Path(mbnp.__file__).parents[1])}
    events = str(event), str(event + times - 1), str(int(number))
    command = [sys.executable, "-c", KILLED, *events, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("event", [13, 17, 20, 34])
def test_a_run_killed_between_its_writes_goes_on(records, whole, tmp_path, event, capsys):
    folder = tmp_path / "run"
    killed = run_killed(event, "train", *ARGUMENTS, "--data", records, "--out", folder)
    assert killed.returncode == -signal.SIGKILL
    checkpoint_agrees(folder)
    assert cli.main(["train", "--resume", str(folder)]) == 0
    is_like(folder, whole)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("times", [1, 9])  # also again and again, by somebody who does not wait for the curves
def test_a_run_that_is_stopped_says_how_to_go_on(records, whole, tmp_path, number, status, times):
    folder = tmp_path / "run"
    arguments = "train", *ARGUMENTS, "--data", records, "--out", folder
    stopped = run_killed(20, *arguments, number=number, times=times)
    assert stopped.returncode == status
    assert stopped.stderr.splitlines() == [
        f"mbnp: stopped; {folder}/model.safetensors has the weights after epoch 1; "
        f"to go on: mbnp train --resume {folder}"
    ]
    assert (folder / "curves.png").exists()
    assert cli.main(["train", "--resume", str(folder)]) == 0
    is_like(folder, whole)


def test_a_run_killed_before_it_had_a_folder_leaves_nothing_for_long(records, whole, tmp_path):
    arguments = ["train", *ARGUMENTS, "--data", str(records), "--out", str(tmp_path / "run")]
    assert run_killed(5, *arguments).returncode == -signal.SIGKILL
    assert not (tmp_path / "run").exists()
    assert cli.main(arguments) == 0
    assert os.listdir(tmp_path) == ["run"]
    is_like(tmp_path / "run", whole)


def test_a_signal_while_the_folder_gets_its_name_is_for_the_run_that_it_then_is(
    records, whole, tmp_path, capsys, monkeypatch
):
    folder, flush, came = tmp_path / "run", storage.flush, []

    def flushed(path):
        flush(path)
        if path == tmp_path and not came:
            came.append(signal.raise_signal(signal.SIGTERM))

    monkeypatch.setattr(storage, "flush", flushed)
    assert cli.main(["train", *ARGUMENTS, "--data", str(records), "--out", str(folder)]) == 143
    assert capsys.readouterr().err.endswith(f"; to go on: mbnp train --resume {folder}\n")
    assert cli.main(["train", "--resume", str(folder)]) == 0
    is_like(folder, whole)


def test_a_run_in_a_thread_which_no_signal_reaches(records, whole, tmp_path):
    arguments, status = ["train", *ARGUMENTS, "--data", str(records), "--out", str(tmp_path / "run")], []
    thread = threading.Thread(target=lambda: status.append(cli.main(arguments)))
    thread.start()
    thread.join()
    assert status == [0]
    is_like(tmp_path / "run", whole)


def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "run"))


def test_a_finished_run_says_so_and_loses_nothing(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    for name in ("metrics.csv", "model.safetensors", "curves.png"):
        (folder / name).unlink()
    assert cli.main(["train", "--resume", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{folder} is finished: all 3 epochs are done" in lines
    assert lines[-3].startswith("test accuracy ")
    is_like(folder, whole)


def test_a_damaged_state_is_passed_over(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    before, last = sorted((folder / "state").glob("*.safetensors"))
    data = bytearray(last.read_bytes())
    data[-100] ^= 1
    last.write_bytes(data)
    assert cli.main(["train", "--resume", str(folder)]) == 0
    assert "is damaged" in capsys.readouterr().out
    is_like(folder, whole)
    for path in (before, last):
        path.write_bytes(b"nothing")
    assert "has no state to go on from" in fails(capsys, "train", "--resume", str(folder))


def test_a_run_is_held_by_one_process(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    with runs.locked(folder):
        assert "is still running" in fails(capsys, "train", "--resume", str(folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "0.2"], "--lr is settled by the run; beside --resume may stand --threads, --every, --data, --epochs"),
        (["--seed=0"], "--seed is settled"),
        (["--epochs", "9"], "the schedule one-cycle was made for 3 epochs"),
        (["--data", "shapes10"], "other images than those of drawn by mbnp"),
    ],
)
def test_what_may_not_change(whole, tmp_path, capsys, options, message):
    assert message in fails(capsys, "train", "--resume", str(copy(whole, tmp_path)), *options)


def test_more_epochs_of_a_constant_schedule(records, tmp_path):
    arguments = ["train", *SMALL, "--schedule", "constant", "--data", str(records)]
    for epochs, name in (("1", "short"), ("2", "long")):
        assert cli.main([*arguments, "--epochs", epochs, "--out", str(tmp_path / name)]) == 0
    assert cli.main(["train", "--resume", str(tmp_path / "short"), "--epochs", "2"]) == 0
    is_like(tmp_path / "short", tmp_path / "long")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    assert config["recipe"]["epochs"] == 2
    assert "--epochs 2 " in config["command"]


@pytest.mark.parametrize("epochs", ["0", "-1"])
def test_epochs_that_are_refused_change_nothing(records, tmp_path, capsys, epochs):
    folder = tmp_path / "run"
    arguments = ["train", *SMALL, "--schedule", "constant", "--epochs", "1", "--data", str(records)]
    assert run_killed(12, *arguments, "--out", folder).returncode == -signal.SIGKILL
    before = (folder / "config.json").read_bytes()
    assert "epochs" in fails(capsys, "train", "--resume", str(folder), "--epochs", epochs)
    assert (folder / "config.json").read_bytes() == before
    assert cli.main(["train", "--resume", str(folder)]) == 0


def test_a_snapshot_that_does_not_fit_changes_nothing():
    data, kept, net = make_data(), [], make_net(seed=9)
    train.fit(make_net(), data, RECIPE, keep=kept.append)
    before = {name: array.copy() for name, array in net.state().items()}
    with pytest.raises(MbnpError, match="does not fit this optimiser"):
        train.fit(net, data, RECIPE, resume=kept[0]._replace(optimiser={"steps": np.array(3)}))
    same(net.state(), before)
    assert net.classes is None


def test_no_run_folder(tmp_path, capsys):
    assert "is no run folder" in fails(capsys, "train", "--resume", str(tmp_path / "typo"))
    assert not (tmp_path / "typo").exists()
    assert "is no run folder" in fails(capsys, "train", "--resume", str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged" in fails(capsys, "train", "--resume", str(tmp_path))


@pytest.mark.parametrize("lost", [field.name for field in dataclasses.fields(Recipe)])
def test_a_recipe_that_lost_a_line_does_not_become_another(whole, tmp_path, capsys, lost):
    folder = copy(whole, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["recipe"][lost]
    (folder / "config.json").write_text(json.dumps(config))
    said = fails(capsys, "train", "--resume", str(folder))
    assert "config.json is damaged" in said
    assert f"its recipe has no {lost}" in said


def test_files_of_one_network_are_the_same_bytes(tmp_path):
    from mbnp import weights

    net, found = make_net(), set()
    for i in range(8):
        weights.save(net, tmp_path / f"{i}.safetensors")
        found.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(found) == 1
    data = bytearray(found.pop())
    data[-5] ^= 4
    (tmp_path / "flipped.safetensors").write_bytes(data)
    with pytest.raises(MbnpError, match="is damaged: its content is not what was written"):
        weights.load(tmp_path / "flipped.safetensors")
