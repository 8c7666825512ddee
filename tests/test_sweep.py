"""A sweep makes a run for each combination, goes on where it stopped, and ends with the comparison."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from mbnp import cli, optim, train, weights
from mbnp.commands import sweep as command_sweep
from mbnp.commands import train as command
from mbnp.errors import DivergedError
from tests.test_cli import _elsewhere, _threads, fails, records  # noqa: F401
from tests.test_report import self_contained

SMALL = ["--batch-size", "16", "--threads", "1", "--epochs", "1"]
WIDTHS = ["--width-mult", "0.25,0.3", "--seed", "0,1"]
NAMES = [f"width-mult-{width}_seed-{seed}" for width in ("0.25", "0.3") for seed in (0, 1)]


def test_a_run_for_each_combination(records, capsys):  # noqa: F811
    assert cli.main(["sweep", *SMALL, *WIDTHS, "--data", str(records)]) == 0
    output, error = capsys.readouterr()
    assert error == ""
    folder = Path("runs/sweep-1")
    assert sorted(os.listdir(folder)) == [*["compare.html", "sweep.json"], *NAMES]
    assert [line for line in output.splitlines() if " of 4: " in line] == [
        f"{i} of 4: {folder / name}" for i, name in enumerate(NAMES, start=1)
    ]
    configs = [json.loads((folder / name / "config.json").read_text()) for name in NAMES]
    assert [(c["model"]["width_mult"], c["seed"]) for c in configs] == [(0.25, 0), (0.25, 1), (0.3, 0), (0.3, 1)]
    assert {c["recipe"]["batch_size"] for c in configs} == {16}
    assert "over seeds" in output
    assert "±" in output
    assert output.splitlines()[-1] == f"the comparison as a page: {folder / 'compare.html'}"
    elements = self_contained((folder / "compare.html").read_text(encoding="utf-8"))
    assert all(name in elements.text for name in NAMES)

    # Each is what mbnp train makes of the command that it says.
    words = shlex.split(configs[3]["command"])
    assert cli.main([*words[1:], "--out", "alone"]) == 0
    alone, swept = (weights.load(path / "model.safetensors").state() for path in (Path("alone"), folder / NAMES[3]))
    for name, array in alone.items():
        np.testing.assert_array_equal(array, swept[name], err_msg=name)

    capsys.readouterr()
    before = {name: (folder / name / "metrics.csv").stat().st_mtime_ns for name in NAMES}
    assert cli.main(["sweep", *SMALL, *WIDTHS, "--data", str(records), "--out", str(folder)]) == 0
    assert capsys.readouterr().out.count("finished before") == 4
    assert before == {name: (folder / name / "metrics.csv").stat().st_mtime_ns for name in NAMES}
    assert "is a sweep with other options" in fails(
        capsys, "sweep", *SMALL, *WIDTHS, "--data", str(records), "--lr", "0.2", "--out", str(folder)
    )


def test_a_sweep_that_is_stopped_goes_on(records, capsys, monkeypatch):  # noqa: F811
    fit, begun = train.fit, []

    def stopped(net, data, recipe, on_batch, *others):
        begun.append(recipe.seed)

        def on_step(record):
            on_batch(record)
            if recipe.seed == 1 and record.step == 3:
                raise KeyboardInterrupt

        return fit(net, data, recipe, on_step, *others)

    arguments = ["sweep", *SMALL, "--width-mult", "0.25", "--seed=0,1,2", "--every", "2", "--no-augment"]
    arguments += ["--data", str(records)]
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", stopped)
        assert cli.main(arguments) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("mbnp: to go on with the sweep: mbnp sweep ")
    words = shlex.split(line.split(": ", 2)[2])
    assert {"--seed", "0,1,2", "--no-augment", "--out", "runs/sweep-1"} <= set(words)
    assert begun == [0, 1]
    assert sorted(os.listdir("runs/sweep-1")) == ["seed-0", "seed-1", "sweep.json"]
    resumed = []
    run = command.run
    monkeypatch.setattr(command, "run", lambda options: resumed.append(options.resume) or run(options))
    assert cli.main(words[1:]) == 0
    assert resumed == [Path("runs/sweep-1/seed-1"), None]
    assert sorted(os.listdir("runs")) == ["sweep-1"]
    assert cli.main(["compare", "runs/sweep-1"]) == 0
    assert "all" in capsys.readouterr().out


def test_a_run_that_diverges_is_noted(records, capsys, monkeypatch):  # noqa: F811
    update = optim.SGD.step

    def broken(self):
        update(self)
        if self.lr == 0.2:
            self.parameters["fc.bias"].value.fill(np.inf)

    monkeypatch.setattr(optim.SGD, "step", broken)
    arguments = ["sweep", *SMALL, "--width-mult", "0.25", "--lr", "0.2,0.1", "--schedule", "constant"]
    arguments += ["--data", str(records), "--out", "rates"]
    assert cli.main(arguments) == 0
    output, error = capsys.readouterr()
    assert error.startswith("mbnp: rates/lr-0.2 diverged: the loss is nan at step 2")
    assert len(error.splitlines()) == 1
    assert "lr-0.2 diverged: " in output
    assert "lr-0.2 diverged" in Path("rates/compare.html").read_text()
    assert "lr-0.1 " in output
    assert cli.main(arguments) == 0
    assert "diverged before: the loss is nan" in capsys.readouterr().out
    assert issubclass(DivergedError, ValueError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "3"], "nothing is varied: give an option several values, as in --seed 0,1,2"),
        (["--seed", "0,x"], "argument --seed: invalid list of int values value: '0,x'"),
        (["--lr", "0.1,-1"], "lr must be a finite number of at least 0, got -1.0"),
        (["--lr", "0.1,nan"], "argument --lr: invalid list of number values value"),
        (["--data", "/nope", "--seed", "0,1"], "/nope"),
        (["--width-mult", "0.25,0"], "width"),
        (["--model", "resnet20,resnet21"], "unknown model 'resnet21': did you mean 'resnet20'?"),
        (["--schedule", "cosine,linear"], "unknown schedule 'linear'"),
        (["--augment", "shift,turn"], "argument --augment: invalid list out of shift, crop value"),
        (["--resume", "runs/sweep-1"], "unrecognized arguments: --resume"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_leaves_no_folder(capsys, arguments, message):
    assert message in fails(capsys, "sweep", *arguments)
    assert os.listdir() == []


def test_a_folder_that_is_no_sweep(capsys):
    Path("mine").mkdir()
    assert "is no sweep: name another folder" in fails(capsys, "sweep", "--seed", "0,1", "--out", "mine")
    Path("mine/sweep.json").write_text("[]")
    assert "sweep.json is damaged" in fails(capsys, "sweep", "--seed", "0,1", "--out", "mine")


def test_settings_that_are_nearly_the_same_are_two_runs():
    names = {command_sweep._name({"lr": lr, "model": "resnet20"}) for lr in (0.1, 0.1000000000000001, 5e-4)}
    assert names == {"lr-0.1_resnet20", "lr-0.1000000000000001_resnet20", "lr-0.0005_resnet20"}
