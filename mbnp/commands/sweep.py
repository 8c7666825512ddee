"""`mbnp sweep`: train with every combination of several settings, and compare."""

import itertools
import json
import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from mbnp import models, tables
from mbnp.commands import train
from mbnp.errors import DivergedError, MbnpError, short
from mbnp.pages import compare
from mbnp.recipe import Recipe
from mbnp.storage import replacing

PLAN = "sweep.json"
SAME = ("epochs", "batch_size", "lr", "weight_decay", "schedule", "label_smoothing", "seed")  # in options and recipes
PLAIN = ("model", "schedule", "augment")  # whose values say what they are


def run(options: Namespace) -> int:
    words = _words(options)
    varied = _varied(options)
    points = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    for point in points:
        _check(vars(options) | point)
    folder = _folder(options.out)
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]  # by this sweep
    diverged = _begin(folder, options, list(varied))
    names = [_name(point) for point in points]
    status = 1
    try:
        for number, (name, point) in enumerate(zip(names, points, strict=True), start=1):
            place = folder / name
            print(f"{number} of {len(points)}: {place}", flush=True)
            if name in diverged or _finished(place):
                print(f"diverged before: {diverged[name]}" if name in diverged else "finished before")
                continue
            try:
                if status := train.run(_options(options, point, place)):  # Ctrl-C or SIGTERM
                    return status
            except DivergedError as error:
                diverged[name] = str(error)
                _save(folder, options, list(varied), diverged)
                print(f"mbnp: {place} diverged: {error}", file=sys.stderr)
            print()
        status = 0
    except KeyboardInterrupt:
        status = 130
        return status
    except (MbnpError, OSError):
        if made and not any(path.is_dir() for path in folder.iterdir()):  # nothing to go on with
            (folder / PLAN).unlink()
            for path in made:
                path.rmdir()
        raise
    finally:
        if status and folder.exists():
            command = shlex.join([*words, "--out", str(folder)])
            print(f"mbnp: to go on with the sweep: {command}", file=sys.stderr)
    found, notes = compare.read([folder / name for name in names if name not in diverged])
    notes += [f"{name} diverged: {message}" for name, message in diverged.items() if name in names]
    if not found:
        raise MbnpError(f"no run of {folder} came to its end")
    print(f"\n{compare.text(found)}\n")
    for note in notes:
        print(tables.hang(note))
    title = f"{folder.absolute().name}: {', '.join(varied)}".replace("_", "-")
    compare.write(folder / "compare.html", found, title, notes)
    print(f"the comparison as a page: {folder / 'compare.html'}")
    return 0


def _words(options: Namespace) -> list[str]:
    """Return the command as it was given, but for --out."""
    words = ["mbnp", "sweep"]
    for name, value in vars(options).items():
        option = "--" + name.replace("_", "-")
        if option in options.given and name != "out":
            values = value if isinstance(value, list) else [value]
            words += [option, *([] if value is True else [",".join(map(str, values))])]
    return words


def _varied(options: Namespace) -> dict[str, list]:
    """Return the options with several values; those with one become plain in `options`."""
    varied = {}
    for name, value in list(vars(options).items()):
        if isinstance(value, list):
            values = list(dict.fromkeys(value))
            setattr(options, name, values[0])
            if len(values) > 1:
                varied[name] = values
    if not varied:
        raise MbnpError("nothing is varied: give an option several values, as in --seed 0,1,2")
    return varied


def _check(chosen: dict[str, Any]) -> None:
    """Raise MbnpError for what no run can be made of, before the first one begins."""
    if chosen["init"] is None:
        width = 1.0 if chosen["width_mult"] is None else chosen["width_mult"]
        models.create(chosen["model"] or train.MODEL, width_mult=width)
    known = {name: chosen[name] for name in SAME if chosen[name] is not None}
    Recipe(**known)


def _folder(out: Path | None) -> Path:
    if out is not None:
        return out
    return next(p for n in itertools.count(1) if not (p := Path("runs", f"sweep-{n}")).exists())


def _begin(folder: Path, options: Namespace, varied: list[str]) -> dict[str, str]:
    """Make the folder, or go on with it; return which of its runs diverged, and how."""
    if not os.path.lexists(folder):
        folder.mkdir(parents=True)
        _save(folder, options, varied, {})
        return {}
    path = folder / PLAN
    if not path.is_file():
        raise FileExistsError(f"{folder} exists already, and is no sweep: name another folder with --out")
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        before, its, diverged = known["options"], list(map(str, known["varied"])), dict(known["diverged"])
        if not all(isinstance(text, str) for text in diverged.values()):
            raise TypeError("what diverged is no text")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MbnpError(f"{path} is damaged: {short(str(error))}") from None
    now = _fixed(options, varied)
    if sorted(its) != sorted(varied) or before != now:
        raise MbnpError(f"{folder} is a sweep with other options, {short(known)}: name another folder with --out")
    return diverged


def _save(folder: Path, options: Namespace, varied: list[str], diverged: dict[str, str]) -> None:
    plan = {"options": _fixed(options, varied), "varied": varied, "diverged": diverged}
    with replacing(folder / PLAN) as partial:
        partial.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")


def _fixed(options: Namespace, varied: list[str]) -> dict[str, Any]:
    """Return what is the same for all runs, and decides their numbers."""
    others = ("command", "given", "out", "threads", "every", *varied)
    return {name: value for name, value in vars(options).items() if name not in others}


def _name(point: dict[str, Any]) -> str:
    """Return the name of a run's folder: what is varied, and how."""
    said = {name: str(value) for name, value in point.items()}
    return "_".join(text if name in PLAIN else f"{name.replace('_', '-')}-{text}" for name, text in said.items())


def _finished(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        compare.load(folder, folder.name)
    except (MbnpError, OSError):
        return False
    return True


def _options(options: Namespace, point: dict[str, Any], folder: Path) -> Namespace:
    """Return what `mbnp train` takes for one run: a new one, or the rest of one that was interrupted."""
    known = vars(options) | point | {"command": "train", "live": False, "out": folder, "resume": None}
    if folder.exists():
        known |= {"out": None, "resume": folder, "epochs": None, "given": {"--resume"}}
    return Namespace(**known)
