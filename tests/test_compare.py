"""Runs side by side: the table and the page agree with the runs, and a damaged run spoils nothing."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mbnp import cli, cost, runs, weights
from mbnp.pages import compare
from tests.test_cli import SMALL, _elsewhere, _threads, write_records  # noqa: F401
from tests.test_report import NASTY, self_contained


def altered(folder, to, accuracy=None, seconds=None, epochs=None, **recipe):
    """A copy of a run that says something else."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    config["recipe"] |= recipe | ({"epochs": epochs} if epochs else {})
    runs.save_config(to, config)
    head, *rows = (to / "metrics.csv").read_text().splitlines()
    values = dict(zip(head.split(","), rows[-1].split(","), strict=True))
    values |= {} if accuracy is None else {"test_accuracy": str(accuracy)}
    values |= {} if seconds is None else {"seconds": str(seconds)}
    (to / "metrics.csv").write_text("\n".join([head, *rows[:-1], ",".join(values.values())]) + "\n")
    return to


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("compared")
    records = write_records(place / "records")
    for name, options in (("a", []), ("wide", ["--width-mult", "0.5"])):
        arguments = ["train", *SMALL, *options, "--epochs", "1", "--data", str(records), "--out", str(place / name)]
        assert cli.main(arguments) == 0
    altered(place / "a", place / "a0", accuracy=0.5)
    altered(place / "a", place / "a1", accuracy=0.6, seed=1, seconds=100.0)
    altered(place / "a", place / "a2", accuracy=0.7, seed=2)
    altered(place / "wide", place / "b0", accuracy=0.65)
    return place


def test_the_numbers_are_the_runs(folders):
    (run,), notes = compare.read([folders / "wide"])
    assert notes == []
    net = weights.load(folders / "wide" / "model.safetensors")
    counted = cost.of(net)
    assert (run.name, run.parameters, run.macs) == ("wide", counted.params, counted.macs)
    history = runs.load_history(folders / "wide")
    assert (run.accuracy, run.seconds) == (history[-1].test_accuracy, history[-1].seconds)
    momentum = sum(p.value.nbytes for p in net.parameters().values())
    assert run.memory == 16 * counted.activation_bytes + counted.weight_bytes + 2 * momentum


def test_a_table_in_80_columns(folders, capsys):
    assert cli.main(["compare", *(str(folders / name) for name in ("a0", "a1", "a2", "b0"))]) == 0
    output, error = capsys.readouterr()
    assert error == ""
    assert max(map(len, output.splitlines())) <= 80
    (run,), _ = compare.read([folders / "a1"])
    table, _, differ, seeds, front = output.strip().split("\n\n")
    cells = table.splitlines()[3].split()
    assert cells[:5] == ["a1", "60.00", "%", f"{run.parameters:,}", f"{run.macs:,}"]
    assert cells[5] == "100.0"
    assert differ.splitlines()[0].split() == ["they", "differ", "in", "width", "mult", "seed"]
    rows = [row.split() for row in differ.splitlines()[2:]]
    assert rows == [["a0", "0.25", "0"], ["a1", "0.25", "1"], ["a2", "0.25", "2"], ["b0", "0.5", "0"]]
    assert "60.00 ± 10.00 %" in seeds
    assert seeds.splitlines()[2].split()[:4] == ["width", "mult", "0.25", "3"]
    assert seeds.splitlines()[3].split()[:5] == ["width", "mult", "0.5", "1", "65.00"]
    assert front.endswith(": a2")


def test_settings_that_do_not_fit_beside_one_another_are_lines(folders, tmp_path, capsys):
    many = {
        "momentum": [0.5, 0.6],
        "nesterov": False,
        "lr": 0.2,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "label_smoothing": 0.25,
        "augment": False,
        "seed": 7,
    }
    altered(folders / "a", tmp_path / ("a-run-with-a-rather-long-name-" * 2), **many)
    assert cli.main(["compare", str(folders / "a"), *map(str, tmp_path.iterdir())]) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    output = re.sub(r"\n {4}", " ", output)
    assert "\n  lr: 0.1 (a); 0.2 (a-run-" in output
    assert "\n  augment: yes (a); no (a-run-" in output


def test_damaged_and_unfinished_runs_are_a_line_each(folders, tmp_path, capsys):
    damaged = {name: Path(shutil.copytree(folders / "a", tmp_path / name)) for name in ("one", "two", "three", "four")}
    (damaged["one"] / "config.json").write_text("{")
    (damaged["two"] / "metrics.csv").write_text("epoch,loss\n1,2\n")
    data = bytearray((damaged["three"] / "model.safetensors").read_bytes())
    data[-9] ^= 1
    (damaged["three"] / "model.safetensors").write_bytes(data)
    (damaged["four"] / "metrics.csv").unlink()
    altered(folders / "a", tmp_path / "five", epochs=9)
    places = [*damaged.values(), tmp_path / "five", tmp_path / "six", folders / "a"]
    assert cli.main(["compare", *map(str, places)]) == 1
    output, error = capsys.readouterr()
    lines = error.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("mbnp: left out: ") for line in lines)
    for line, place in zip(lines, places, strict=False):
        assert str(place) in line
    assert lines[4].endswith(f"1 of 9 epochs are done; mbnp train --resume {tmp_path / 'five'}")
    assert re.search(r"^a +\d", output, re.MULTILINE)
    assert cli.main(["compare", str(tmp_path / "six")]) == 2
    assert "there is nothing to compare" in capsys.readouterr().err


def test_a_folder_of_runs_stands_for_them(folders):
    found, notes = compare.read([folders, folders / "a"])
    assert [run.name for run in found] == ["a", "a0", "a1", "a2", "b0", "wide"]
    assert notes == []
    found, _ = compare.read(
        [folders / "a", folders / "wide" / ".." / "wide", Path(str(folders / "a")), folders / "wide"]
    )
    assert len(found) == 2


def test_a_seed_counts_once(folders, tmp_path):
    again = altered(folders / "a", tmp_path / "again", accuracy=0.9)
    found, _ = compare.read([folders / "a0", folders / "a1", again])
    (group,) = compare.groups(found)
    assert [run.name for run in group.runs] == ["again", "a1"]
    assert compare.groups(found[::2]) == []


@pytest.mark.parametrize(
    "row",
    [{"test_accuracy": "nan"}, {"test_accuracy": "1e308"}, {"seconds": "inf"}, {"epoch": "100000000000"}],
    ids=str,
)
def test_numbers_that_no_run_has_are_damage(folders, tmp_path, row, capsys):
    shutil.copytree(folders / "a", tmp_path / "odd")
    head, last = (tmp_path / "odd" / "metrics.csv").read_text().splitlines()
    values = dict(zip(head.split(","), last.split(","), strict=True)) | row
    (tmp_path / "odd" / "metrics.csv").write_text(f"{head}\n{','.join(values.values())}\n")
    assert cli.main(["compare", str(tmp_path / "odd"), str(folders / "a"), "--html", str(tmp_path / "c.html")]) == 1
    assert "metrics.csv is damaged" in capsys.readouterr().err


def test_the_page_and_the_picture(folders, capsys):
    places = [str(folders / name) for name in ("a0", "a1", "a2", "b0", "missing")]
    assert cli.main(["compare", *places, "--html", "all.html", "--out", "front.png"]) == 1
    page = Path("all.html").read_text(encoding="utf-8")
    elements = self_contained(page)
    for text in ("60.00 ± 10.00 %", "50.00 %", "width mult", "missing"):
        assert text in elements.text
    labels = {each.get("aria-label") for each in elements.all("svg")}
    assert labels >= {"accuracy against MACs of an image", "accuracy against parameters", "test accuracy", "test loss"}
    front = page.split('aria-label="accuracy against MACs of an image"')[1].split("</svg>")[0]
    assert front.count("<rect") == 1  # a2 is as cheap as any, and the best
    assert front.count("<circle") == 3
    with Image.open("front.png") as image:
        assert image.size == (1500, 900)


def test_names_are_text(folders, tmp_path):
    place = altered(folders / "a", tmp_path / NASTY.replace("/", "|"))
    config = json.loads((place / "config.json").read_text())
    config["data"]["name"] = NASTY
    runs.save_config(place, config)
    found, _ = compare.read([place, folders / "a"])
    page = compare.page(found, NASTY, [f"left out: {NASTY}"])
    elements = self_contained(page)
    assert elements.text.count(NASTY) >= 3  # the title, the heading, the note, the data
    assert "<script" not in page


def test_runs_on_different_images_are_said_not_to_compare(folders, tmp_path, capsys):
    other = altered(folders / "a", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["data"]["sha256"] = "0" * 64
    runs.save_config(other, config)
    assert cli.main(["compare", str(other), str(folders / "a1")]) == 0
    assert "so that accuracies do not compare" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["compare", str(folders / "a"), str(folders / "a1")]) == 0
    assert "so that accuracies do not compare" not in " ".join(capsys.readouterr().out.split())
