"""The command line as a user meets it: what it prints, what it writes, and one line for every mistake."""

import contextlib
import csv
import functools
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest
from PIL import Image

import mbnp
from mbnp import backend, cli, datasets, models, runs, spec, tables, train, weights
from mbnp.commands import check, common
from mbnp.commands import train as train_command
from mbnp.datasets.images import read_image
from mbnp.errors import MbnpError

COMMANDS = ["train", "sweep", "compare", "evaluate", "predict", "detect", "watch", "explain"]
COMMANDS += ["summary", "check", "data", "bench", "warmup", "convert", "grade"]
SMALL = ["--width-mult", "0.25", "--batch-size", "16", "--threads", "1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory, monkeypatch):
    """An empty working folder and an empty cache, so that no data but the test's own is found."""
    folder = tmp_path_factory.mktemp("work")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MBNP_DATA", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda project: folder / "cache" / project)


@pytest.fixture(autouse=True)
def _threads():
    before = mbnp.backend.get_num_threads()
    yield
    mbnp.set_num_threads(before)


def write_records(folder, train_count=88, test_count=30):
    """Pictures that are told apart by their colour, in CIFAR-10's layout: label, red, green, blue bytes."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (10, 3, 1))
    folder.mkdir()
    for name, count in (("data_batch_1.bin", train_count), ("test_batch.bin", test_count)):
        labels = np.arange(count) % 10
        planes = np.clip(colours[labels] + rng.integers(-20, 20, (count, 3, 1024)), 0, 255)
        records = np.concatenate([labels[:, None], planes.reshape(count, -1)], axis=1)
        (folder / name).write_bytes(records.astype(np.uint8).tobytes())
    return folder


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("data") / "records")


@pytest.fixture(scope="session")
def trained(records, tmp_path_factory):
    """A finished run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        arguments = ["--data", str(records), "--epochs", "2", "--out", str(folder), "--seed", "3"]
        assert cli.main(["train", *SMALL, *arguments]) == 0
    return folder, output.getvalue().splitlines()


def fails(capsys, *arguments):
    """Run a command that must fail: the one line it prints on stderr."""
    try:
        status = cli.main(list(arguments))
    except SystemExit as stopped:
        status = stopped.code
    output, error = capsys.readouterr()
    assert status == 2
    assert error.startswith("mbnp: error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in output + error
    return error.removeprefix("mbnp: error: ").rstrip()


def unwrapped(output):
    """What was printed, with the lines that hang put back into one."""
    return re.sub(r"\n +(?=\S)", " ", output)


# -- help --------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_model(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    output = capsys.readouterr().out
    assert re.findall(r"^    (\w+) ", output, re.MULTILINE) == COMMANDS
    assert all((Path(cli.__file__).parent / "commands" / f"{command}.py").exists() for command in COMMANDS)
    assert sorted(cli.MODELS.split(", ")) == sorted(models.names())


@pytest.mark.parametrize("command", ["", *COMMANDS, "data show", "data samples", "data download", "data subset"])
def test_help_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    output = capsys.readouterr().out
    assert output.startswith(f"usage: mbnp {command}".rstrip())
    assert max(map(len, output.splitlines())) <= 80


def test_version_from_the_module_too():
    command = [sys.executable, "-m", "mbnp", "--version"]
    root = Path(mbnp.__file__).parents[1]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout == f"mbnp {mbnp.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND; see mbnp --help"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--epochs", "many"], "invalid int value: 'many'; see mbnp train --help"),
        (["train", "--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (["data"], "required: ACTION"),
        (["predict", "x.png"], "required: --checkpoint"),
    ],
    ids=str,
)
def test_a_command_line_that_is_not_understood(capsys, arguments, message):
    assert message in fails(capsys, *arguments)


# -- train -------------------------------------------------------------------------------------------------


def test_train_says_what_it_does(trained, records):
    folder, lines = trained
    said = unwrapped("\n".join(lines)).splitlines()
    assert said[0] == f"data: cifar10, 88 training and 30 test images ({records})"
    assert said[1].startswith("each epoch leaves out 8 training images")
    assert sum(line.startswith("each epoch leaves") for line in lines) == 1
    assert f"run folder: {folder}" in lines
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    head = lines[lines.index(epochs[0]) - 1]
    assert head.split("  ")[-6:] == ["loss", "accuracy", "test loss", "accuracy", "images/s", "seconds"]
    assert {len(line) for line in epochs} == {len(head)}
    assert re.fullmatch(r"test accuracy \d+\.\d\d %", lines[-3])
    checkpoint = f"{folder}/model.safetensors"
    assert lines[-2] == f"mbnp evaluate {checkpoint} --data {records}"
    assert lines[-1] == f"mbnp predict IMAGE --checkpoint {checkpoint}"
    copied = (str(folder), str(records))  # what is meant to be copied is not broken
    assert all(len(line) <= 80 or any(path in line for path in copied) for line in lines)
    assert "\x1b" not in "".join(lines)


def test_train_writes_a_run_folder(trained, records):
    folder, lines = trained
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["config.json", "curves.png", "metrics.csv", "model.safetensors", "report.html", "state"]
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == train.Record._fields
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert lines[-3] == f"test accuracy {100 * float(rows[-1]['test_accuracy']):.2f} %"
    net = weights.load(folder / "model.safetensors")
    tested = train.evaluate(net, datasets.load(records).test)
    assert tested.loss == pytest.approx(float(rows[-1]["test_loss"]), rel=1e-6)
    with Image.open(folder / "curves.png") as image:
        assert image.size == (1500, 600)


def test_config_holds_what_repeats_the_run(trained, records, tmp_path):
    folder, _ = trained
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == {"name": "mobilenet-v1-small", "num_classes": 10, "width_mult": 0.25}
    assert config["recipe"]["batch_size"] == 16
    assert config["recipe"]["momentum"] == [0.85, 0.95]
    assert (config["seed"], config["recipe"]["seed"], config["threads"]) == (3, 3, 1)
    assert (config["data"]["train"], config["data"]["test"]) == (88, 30)
    assert len(config["data"]["sha256"]) == 64
    assert {"mbnp", "python", "numpy", "numba"} <= set(config["versions"])
    assert (config["backend"], config["dtype"]) == ("numba", "float32")

    command = shlex.split(config["command"])
    assert command[:2] == ["mbnp", "train"]
    assert cli.main([*command[1:], "--out", str(tmp_path / "again")]) == 0
    first, again = (weights.load(run / "model.safetensors").state() for run in (folder, tmp_path / "again"))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


def test_a_checksum_knows_every_image_and_label(records):
    data = datasets.load(records)
    before = runs.describe(data)["sha256"]
    data.test.labels[-1] += 1
    changed = runs.describe(data)["sha256"]
    data.test.labels[-1] -= 1
    data.train.images[0, 0, 0, 0] ^= 1
    assert len({before, changed, runs.describe(data)["sha256"]}) == 3


def test_runs_get_the_next_free_number(records, capsys):
    for n in (1, 2):
        one_step = ["--epochs", "1", "--batch-size", "64"]
        assert cli.main(["train", *SMALL, "--data", str(records), *one_step]) == 0
        assert f"run folder: runs/mobilenet-v1-small-{n}\n" in capsys.readouterr().out
    assert sorted(os.listdir("runs")) == ["mobilenet-v1-small-1", "mobilenet-v1-small-2"]


def test_every_model_and_option_reaches_the_run(records, capsys):
    options = ["--model", "mobilenet-v1", "--lr", "0.01", "--weight-decay", "0", "--schedule", "cosine"]
    options += ["--label-smoothing", "0.1", "--no-augment", "--readable", "--epochs", "1"]
    assert cli.main(["train", *SMALL, *options, "--data", str(records), "--out", "run"]) == 0
    config = json.loads(Path("run/config.json").read_text())
    assert (
        config["recipe"] | {"lr": 0.01, "weight_decay": 0, "schedule": "cosine", "label_smoothing": 0.1}
        == config["recipe"]
    )
    assert config["recipe"]["augment"] is False
    assert config["engine"] == "readable"
    assert "--no-augment --seed 0 --threads 1 --readable" in config["command"]
    assert weights.load("run/model.safetensors").resolution == 32  # the images', not the paper's 224


def test_train_draws_its_own_images_and_says_how_to_get_cifar10(capsys, monkeypatch):
    made = datasets.shapes10.make(train=32, test=20)
    monkeypatch.setattr(datasets.shapes10, "make", lambda: made)
    assert cli.main(["train", *SMALL]) == 0
    lines = unwrapped(capsys.readouterr().out).splitlines()
    assert lines[0].startswith("data: shapes10, 32 training and 20 test images (drawn by mbnp")
    assert lines[0].endswith("; for CIFAR-10: mbnp data download")
    assert lines[-2:] == [  # without --data, as the run had none
        "mbnp evaluate runs/mobilenet-v1-small-1/model.safetensors",
        "mbnp predict IMAGE --checkpoint runs/mobilenet-v1-small-1/model.safetensors",
    ]
    config = json.loads(Path("runs/mobilenet-v1-small-1/config.json").read_text())
    assert f"--data shapes10 --epochs {made.epochs} " in config["command"]


def test_the_number_of_epochs_is_the_datas_own(records, capsys, monkeypatch):
    seen = []

    def fit(net, data, recipe, *callbacks):
        seen.append((recipe.epochs, data.epochs))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", fit)
    assert cli.main(["train", "--data", str(records)]) == 130
    assert seen == [(20, 20)]


def shown(capsys):
    """The states of the bar on a terminal, one after another, and the plain lines."""
    output = capsys.readouterr().out.replace("\r", "\n")
    lines = [re.sub(r"\x1b\[[\d;?]*\w", "", line).rstrip() for line in output.splitlines()]
    return [line for line in lines if "\u2501" in line], [line for line in lines if line and "\u2501" not in line]


def in_a_terminal(monkeypatch, module=train_command):
    options = {"force_terminal": True, "width": 80, "legacy_windows": False}
    monkeypatch.setattr(module, "Console", functools.partial(module.Console, **options))
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_gets_a_bar_and_plain_last_lines(records, capsys, monkeypatch):
    in_a_terminal(monkeypatch)
    assert cli.main(["train", *SMALL, "--data", str(records), "--epochs", "2"]) == 0
    states, lines = shown(capsys)
    assert re.fullmatch(
        r"epoch 2/2 \u2501+ loss \d\.\d{4}  accuracy \d+\.\d\d %  [\d,]+ images/s +\d\d:\d\d left", states[-1]
    )
    assert max(map(len, states)) <= 80
    assert re.fullmatch(r"epoch 1/2 \u2501+", states[0])  # neither loss nor speed nor time left before there is one
    checkpoint = "runs/mobilenet-v1-small-1/model.safetensors"
    accuracy, *commands = lines[-3:]
    assert re.fullmatch(r"test accuracy \d+\.\d\d %", accuracy)
    assert commands == [
        f"mbnp evaluate {checkpoint} --data {records}",
        f"mbnp predict IMAGE --checkpoint {checkpoint}",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_kernels_that_compile_are_counted(records, capsys, monkeypatch, terminal):
    def compile_kernels(net, names, on_kernel):
        for done in range(1, len(names) + 1):
            time.sleep(0.15)  # the bar is drawn ten times in a second
            on_kernel(done)
        time.sleep(0.15)

    def fit(net, data, recipe, *callbacks):
        numba.njit(lambda x: x + 1)(1)  # a kernel that is compiled when it is needed
        time.sleep(0.15)
        raise KeyboardInterrupt

    if terminal:
        in_a_terminal(monkeypatch)
    monkeypatch.setattr(common.ahead, "missing", lambda net: ["one", "two"])
    monkeypatch.setattr(common.ahead, "compile_kernels", compile_kernels)
    monkeypatch.setattr(train, "fit", fit)
    assert cli.main(["train", *SMALL, "--data", str(records)]) == 130
    states, lines = shown(capsys)
    said = [line for line in lines if "compiling" in line]
    found = list(dict.fromkeys(re.sub(r" *[\u2501\u2578\u257a]+", "", state) for state in states))
    if terminal:
        assert [state for state in found if state != "epoch 1/20"] == [
            *(f"compiling kernels {done} of 2" for done in range(3)),
            "compiling kernels",
        ]
        assert said == []
    else:
        assert (found, said) == ([], ["compiling kernels (once) ..."])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "mobilenet-v1-smal"],
            "unknown model 'mobilenet-v1-smal': did you mean 'mobilenet-v1-small'?",
        ),
        (["--epochs", "0"], "at least 1, got 0"),
        (["--batch-size", "0"], "at least 1, got 20 and 0"),
        (["--batch-size", "89"], "88 training images do not fill one batch of 89"),
        (["--lr", "-1"], "lr must be a finite number of at least 0, got -1.0"),
        (["--lr", "nan"], "argument --lr: invalid number value: 'nan'"),
        (["--width-mult", "inf"], "argument --width-mult: invalid number value: 'inf'"),
        (["--width-mult", "1e10"], "makes more than 8,192 channels"),
        (["--seed", "-1"], "a seed is at least 0, got -1"),
        (["--schedule", "cosin"], "did you mean 'cosine'?"),
        (["--label-smoothing", "1.5"], "label_smoothing must be from 0 to 1"),
        (["--threads", "1000"], "threads must be 1 to"),
        (["--width-mult", "0"], "width_mult 0.0 leaves no channel"),
        (["--data", "missing/folder"], "there is no file or folder missing/folder"),
        (["--data", "cifar1"], "unknown data set 'cifar1': did you mean 'cifar10'?"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_leaves_no_folder(capsys, records, arguments, message):
    found = fails(capsys, "train", "--data", str(records), "--out", "run", *arguments)
    assert message in found
    assert os.listdir() == []


def test_an_existing_run_folder_is_refused_before_any_work(capsys, records, monkeypatch):
    Path("run").mkdir()
    Path("run/mine.txt").write_text("precious")
    monkeypatch.setattr(datasets, "load", lambda spec: pytest.fail("data was loaded"))
    message = fails(capsys, "train", "--data", str(records), "--out", "run")
    assert message == "the run folder run exists already: name another one with --out"
    assert os.listdir("run") == ["mine.txt"]


def test_truncated_and_mislabelled_records(capsys, tmp_path):
    folder = write_records(tmp_path / "records")
    path = folder / "data_batch_1.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert "data_batch_1.bin" in fails(capsys, "train", "--data", str(folder))
    path.write_bytes(b"\x0a" + whole[1:])
    assert "data_batch_1.bin" in fails(capsys, "train", "--data", str(folder))
    assert os.listdir() == []


def poison_at(monkeypatch, step, value=np.inf):
    """Break the weights right after a step, as an exploding update would."""
    from mbnp import optim

    update = optim.SGD.step

    def broken(self):
        update(self)
        if self.steps == step:
            self.parameters["conv2_3.3.weight"].value.fill(value)

    monkeypatch.setattr(optim.SGD, "step", broken)


@pytest.mark.parametrize(
    ("step", "message"),
    [(12, "at step 13: layer conv2_3.3 is the first"), (15, "the test loss is nan after step 15")],
)
def test_divergence_keeps_the_last_good_checkpoint(capsys, records, monkeypatch, step, message):
    poison_at(monkeypatch, step)
    found = fails(capsys, "train", *SMALL, "--data", str(records), "--epochs", "4", "--out", "run")
    assert message in found
    kept = {12: 2, 15: 2}[step]  # five steps an epoch; epoch 3 breaks off, or ends with a broken test
    assert found.endswith(f"; run/model.safetensors has the weights after epoch {kept}")
    net = weights.load("run/model.safetensors")
    assert all(np.isfinite(array).all() for array in net.state().values())
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 1 + kept
    assert Path("run/curves.png").exists()


def test_divergence_in_the_first_epoch(capsys, records, monkeypatch):
    poison_at(monkeypatch, 2)
    found = fails(capsys, "train", *SMALL, "--data", str(records), "--out", "run")
    assert found.endswith("; no epoch was finished, so there is no checkpoint")


def test_control_c_keeps_the_checkpoint(records, tmp_path):
    # A job in the background of a shell inherits that SIGINT is ignored, and Python then leaves it so.
    start = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mbnp.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", start, "train", *SMALL, "--data", str(records), "--epochs", "10000"]
    environment = os.environ | {"PYTHONPATH": str(Path(mbnp.__file__).parents[1])}
    with subprocess.Popen(
        [*command, "--out", "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        deadline = time.monotonic() + 120
        while not Path("run/model.safetensors").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    go_on = "to go on: mbnp train --resume run"
    assert re.fullmatch(rf"mbnp: stopped; run/model.safetensors has the weights after epoch \d+; {go_on}\n", error)
    weights.load("run/model.safetensors")
    names = ["config.json", "curves.png", "metrics.csv", "model.safetensors", "report.html", "state"]
    assert sorted(os.listdir("run")) == names


def test_compiling_is_announced_once_and_only_when_it_happens():
    said = []
    with common.announced(said.append):
        pass  # nothing is compiled
    assert said == []
    with common.announced(said.append):
        for function in (lambda x: x + 1, lambda x: x + 2):
            kernel = numba.njit(function)
            kernel(1)
            kernel(2)
    assert said == ["compiling kernels (once) ..."]
    with common.announced(said.append):
        kernel(3)
    assert len(said) == 1


# -- evaluate and predict ----------------------------------------------------------------------------------


def test_evaluate_repeats_the_runs_last_line(trained, records, capsys):
    folder, lines = trained
    assert cli.main(["evaluate", str(folder / "model.safetensors"), "--data", str(records)]) == 0
    found = capsys.readouterr().out.splitlines()
    assert found[0] == lines[0]
    assert found[-1] == lines[-3]
    assert re.fullmatch(r"  airplane +\d+\.\d\d %  of 3", next(line for line in found if "airplane" in line))


def test_evaluate_on_other_classes(trained, capsys):
    folder, _ = trained
    message = fails(capsys, "evaluate", str(folder / "model.safetensors"), "--data", "shapes10")
    assert "knows airplane, automobile, bird, ..., but shapes10 has" in message


def test_predict_names_classes_with_probabilities(trained, records, capsys):
    folder, _ = trained
    data = datasets.load(records)
    for i in range(2):
        Image.fromarray(data.test.images[i]).save(f"{i}.png")
    arguments = ["0.png", "1.png", "--checkpoint", str(folder / "model.safetensors")]
    assert cli.main(["predict", *arguments, "--top", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[11]) == ("0.png", "1.png")
    shares = [float(line.split()[0]) for line in lines[1:11]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert sorted(line.split()[-1] for line in lines[1:11]) == sorted(data.classes)
    predicted = train.evaluate(weights.load(folder / "model.safetensors"), data.test).predictions
    assert lines[1].split()[-1] == data.classes[predicted[0]]
    assert lines[12].split()[-1] == data.classes[predicted[1]]
    assert cli.main(["predict", *arguments]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 * (1 + 3)


@pytest.mark.parametrize("command", ["predict", "explain", "evaluate"])
def test_a_checkpoint_is_a_file_or_a_run_folder_by_either_name(command, trained, records, capsys):
    Image.effect_noise((40, 40), 90).save("x.png")
    folder = str(trained[0])
    rest = ["--data", str(records)] if command == "evaluate" else []

    def out(*arguments):
        assert cli.main([command, *arguments, *rest]) == 0
        return capsys.readouterr().out

    if command == "evaluate":
        assert out(folder) == out(f"{folder}/model.safetensors")
        return
    expected = out("x.png", "--checkpoint", f"{folder}/model.safetensors")
    for given in (["--checkpoint", folder], ["--weights", folder], ["--weights", f"{folder}/model.safetensors"]):
        assert out("x.png", *given) == expected
    assert "required: --checkpoint" in fails(capsys, command, "x.png")
    assert "no checkpoint at raw" in fails(capsys, command, "x.png", "--weights", "raw")


@pytest.mark.parametrize("command", ["predict", "detect", "watch", "explain"])
def test_weights_beside_a_checkpoint_choose_among_those_in_it(command, capsys, monkeypatch):
    """What --weights means where --checkpoint names the file, as before."""
    asked = []

    def load(path, which, say):
        asked.append((path, which))
        raise MbnpError("enough")

    monkeypatch.setattr(weights, "load", load)
    for given in (["--checkpoint", "a.pt", "--weights", "raw"], ["--checkpoint", "a.pt"], ["--weights", "a.pt"]):
        fails(capsys, command, "x.png", *given)
    assert asked == [("a.pt", "raw"), ("a.pt", None), ("a.pt", None)]


def test_predict_without_names_of_classes(capsys):
    net = models.create("mobilenet-v1-small", num_classes=2, width_mult=0.25)
    net.preprocessing = {"mean": [0.5] * 3, "std": [0.25] * 3}
    weights.save(net, "model.safetensors")
    Image.new("L", (9, 40)).save("grey.png")
    assert cli.main(["predict", "grey.png", "--checkpoint", "model.safetensors"]) == 0
    assert {line.split("%  ")[-1] for line in capsys.readouterr().out.splitlines()[1:]} == {
        "class 0",
        "class 1",
    }
    net.preprocessing = None
    weights.save(net, "model.safetensors")
    message = fails(capsys, "predict", "grey.png", "--checkpoint", "model.safetensors")
    assert "does not say how its images were normalised" in message


def test_what_predict_and_evaluate_cannot_read(trained, capsys):
    checkpoint = str(trained[0] / "model.safetensors")
    Path("text.png").write_text("no image")
    Image.effect_noise((64, 64), 90).save("whole.png")
    Path("half.png").write_bytes(Path("whole.png").read_bytes()[:900])
    for name, message in (("none", "no image at none.png"), ("text", "text.png is no"), ("half", "half.png is no")):
        assert cli.main(["predict", f"{name}.png", "--checkpoint", checkpoint]) == 1
        assert f"mbnp: error: {message}" in capsys.readouterr().err
    assert "at least 1, got 0" in fails(capsys, "predict", "whole.png", "--checkpoint", checkpoint, "--top", "0")
    assert "no checkpoint at" in fails(capsys, "evaluate", "none.safetensors")
    Path("broken.safetensors").write_bytes(Path(checkpoint).read_bytes()[:5000])
    assert "broken.safetensors" in fails(capsys, "evaluate", "broken.safetensors")


def test_a_checkpoint_of_another_architecture(trained, capsys):
    import safetensors
    import safetensors.numpy

    with safetensors.safe_open(trained[0] / "model.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    metadata["arch"] = json.dumps({"name": "resnet20", "num_classes": 10})
    del metadata["sha256"]  # which is of other arrays
    state = models.create("mobilenet-v1-small", width_mult=0.25).state()
    safetensors.numpy.save_file(state, "other.safetensors", metadata)
    assert "does not fit" in fails(capsys, "evaluate", "other.safetensors")


def test_an_image_is_upright_cropped_in_the_middle_and_resized(tmp_path):
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255  # the middle square is white
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = read_image(tmp_path / "wide.png", 32)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    assert found[:, 1:-1].min() == 255  # at its edges the neighbours shine through

    left_red = np.zeros((32, 32, 3), np.uint8)
    left_red[:, :16, 0] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    Image.fromarray(left_red).save(tmp_path / "turned.png", exif=turned)
    found = read_image(tmp_path / "turned.png", 32)
    assert found[:14, :, 0].min() > 250  # what was left is now above
    assert found[18:, :, 0].max() < 5

    small = read_image(tmp_path / "wide.png", 224)
    assert small.shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (8, 8), 90), (90, 90, 90)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.fromarray(np.full((8, 8), 90 * 257, np.uint16)), (90, 90, 90)),
        (Image.new("RGB", (8, 8), (10, 200, 30)).quantize(4), (10, 200, 30)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("LA", (8, 8), (60, 255)), (60, 60, 60)),
    ],
    ids=["grey", "bitmap", "16-bit grey", "palette", "transparent", "opaque", "grey with alpha"],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, image, expected):
    image.save(tmp_path / "image.png")
    found = read_image(tmp_path / "image.png", 4)
    assert found.shape == (4, 4, 3)
    np.testing.assert_array_equal(found.reshape(-1, 3), np.tile(expected, (16, 1)))


# -- summary, check, data ----------------------------------------------------------------------------------


def test_summary_of_the_papers_network(capsys):
    assert cli.main(["summary", "mobilenet-v1", "--resolution", "224"]) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    for text in (
        "568,740,352",
        "1,137,480,704",
        "4,231,976",
        "Pointwise 94.86 %, Depthwise 3.06 %, Conv 1.91 %, Linear 0.18 %",
        "27,000 standard; 2,700 + 3,000 = 5,700 separable",
        "standard convolution   H·W·K·K·Cin·Cout",
        "depthwise convolution  H·W·K·K·Cin",
        "pointwise convolution  H·W·Cin·Cout",
        "1/Cout + 1/K²",
    ):
        assert text in output
    assert cli.main(["summary", "mobilenet-v1", "--resolution", "128", "--width-mult", "0.25"]) == 0
    assert re.search(r"^MACs +13,\d", capsys.readouterr().out, re.MULTILINE)
    assert cli.main(["summary", "mobilenet-v1", "--num-classes", "10"]) == 0
    assert re.search(r"^classifier +Linear +10 +10,250 ", capsys.readouterr().out, re.MULTILINE)


def test_summary_of_a_checkpoint(trained, capsys):
    path = str(trained[0] / "model.safetensors")
    assert cli.main(["summary", path]) == 0
    assert capsys.readouterr().out.startswith("mobilenet-v1-small, images of 32 x 32\n")
    assert "a checkpoint has its own width_mult" in fails(capsys, "summary", path, "--width-mult", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mobilnet-v1"], "did you mean 'mobilenet-v1'?"),
        (["runs/none.safetensors"], "no checkpoint at runs/none.safetensors"),
        (["mobilenet-v1-small", "--resolution", "64"], "17 to 48 pixels"),
        (["mobilenet-v1", "--resolution", "-1"], "(height, width, channels)"),
        (["mobilenet-v1", "--resolution", "0"], "(height, width, channels)"),
        (["mobilenet-v1", "--num-classes", "0"], "num_classes must be a whole number of at least 1"),
    ],
    ids=str,
)
def test_summary_of_what_is_not_there(capsys, arguments, message):
    assert message in fails(capsys, "summary", *arguments)


def test_a_reader_that_has_seen_enough(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(mbnp.__file__).parents[1])}
    command = f"{shlex.quote(sys.executable)} -m mbnp summary mobilenet-v1-small | head -n 1"
    found = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=True)
    assert found.stdout == "mobilenet-v1-small, images of 32 x 32\n"
    assert found.stderr == ""


def test_check_compares_every_operation(capsys):
    assert cli.main(["check"]) == 0
    output = capsys.readouterr().out
    assert output.endswith("\nall agree\n")
    header, _, *rows = output.splitlines()[-4 - len(list(check.cases())) : -2]
    assert header.split() == ["numpy", "numba", "float32", "differences", "torch"]
    columns = {row.split("  ")[0]: len(re.findall(r"\d\.\de[+-]\d\d", row)) for row in rows}
    assert columns.pop("dropout") == 4  # PyTorch draws other masks
    assert set(columns.values()) == {5}
    names = {row.split(",")[0].split("  ")[0] for row in rows}
    assert names == {*spec.KINDS, "gate", "softmax cross-entropy"}
    assert max(map(len, output.splitlines())) <= 80


def test_check_finds_an_operation_that_is_wrong(capsys, monkeypatch):
    good = next(case for case in check.cases() if case.name == "relu")
    wrong = good._replace(backward=lambda dy, x: (2 * good.backward(dy, x)[0],))
    monkeypatch.setattr(check, "cases", lambda: [wrong])
    assert cli.main(["check"]) == 1
    output = capsys.readouterr().out
    assert output.endswith("\n2 comparisons failed, marked with !\n")  # finite differences, and torch
    assert "inf!" in output


def test_check_sees_nan_in_one_implementation(capsys, monkeypatch):
    good = next(case for case in check.cases() if case.name == "relu")

    def backward(dy, x):
        (dx,) = good.backward(dy, x)
        return (np.full_like(dx, np.nan) if backend.current() == "numba" else dx,)

    monkeypatch.setattr(check, "cases", lambda: [good._replace(backward=backward)])
    assert cli.main(["check"]) == 1
    assert capsys.readouterr().out.count("nan!") == 2


def test_help_without_docstrings():
    subprocess.run([sys.executable, "-OO", "-m", "mbnp", "--version"], capture_output=True, check=True)


def test_check_without_torch(capsys, monkeypatch):
    last = list(check.cases())[-1:]
    monkeypatch.setattr(check, "cases", lambda: last)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["check"]) == 0
    output = capsys.readouterr().out
    assert "PyTorch is not installed" in output
    assert output.splitlines()[-7].split() == ["numpy", "numba", "float32", "differences"]


def test_data_show_and_subset(records, capsys):
    assert cli.main(["data", "show", "--data", str(records)]) == 0
    output = capsys.readouterr().out
    assert output.startswith(tables.hang(f"cifar10, 88 training and 30 test images ({records})") + "\n")
    assert "\n  airplane          9 training,      3 test\n" in output
    arguments = ["--data", str(records), "--out", "small", "--train", "40", "--test", "10"]
    assert cli.main(["data", "subset", *arguments]) == 0
    assert capsys.readouterr().out == "cifar10, 40 training and 10 test images (small)\n"
    assert set(np.bincount(datasets.load("small").train.labels)) == {4}
    assert "small exists already" in fails(capsys, "data", "subset", *arguments)
    assert "mbnp data download" in fails(capsys, "data", "subset", "--out", "other")


def test_data_download_hands_over_and_says_where_it_is(capsys, monkeypatch):
    asked = []

    def download(url, folder, progress, layout):
        asked.append((url, folder, layout.name))
        progress(10, None)
        progress(20, 20)
        return Path(folder) / layout.archive

    monkeypatch.setattr(datasets, "download", download)
    assert cli.main(["data", "download", "--url", "http://mirror/x", "--out", "there"]) == 0
    assert capsys.readouterr().out == f"CIFAR-10 is in {Path('there/cifar-10-binary.tar.gz')}\n"
    assert cli.main(["data", "download", "cifar100", "--out", "there"]) == 0
    assert capsys.readouterr().out == f"CIFAR-100 is in {Path('there/cifar-100-binary.tar.gz')}\n"
    assert asked == [("http://mirror/x", "there", "cifar10"), (None, "there", "cifar100")]
    assert "did you mean 'cifar100'" in fails(capsys, "data", "download", "cifar-100")


def test_data_download_without_a_server(capsys):
    message = fails(capsys, "data", "download", "--url", "http://localhost:9/none", "--out", "there")
    assert "cannot download http://localhost:9/none" in message
