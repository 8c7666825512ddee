"""`mbnp train`: train a network, and write a run folder."""

import dataclasses
import functools
import hashlib
import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TimeRemainingColumn
from rich.text import Text

from mbnp import datasets, models, runs, tables, train, weights
from mbnp.commands import common
from mbnp.datasets import Dataset
from mbnp.errors import DivergedError, MbnpError
from mbnp.network import Network
from mbnp.recipe import Recipe
from mbnp.train import Record


def run(options: Namespace) -> int:
    if options.out is not None:
        runs.require_new(options.out)
    _check(options)
    loaded = None if options.init is None else weights.load(options.init)
    data = datasets.load(options.data)
    recipe = _recipe(options, data)
    net, notes = (_fresh(options, data), []) if loaded is None else _fine_tuned(loaded, options, data)
    return _Session(common.engine(net, options.readable), data, recipe, options).run(notes)


def _check(options: Namespace) -> None:
    """Raise MbnpError for options that do not go together; fill in what has a default only without --init."""
    if options.init is None:
        if options.freeze_until is not None:
            raise MbnpError("--freeze-until keeps what was learned before: name a checkpoint with --init")
        options.model = options.model or "mobilenet-v1-small"
        options.width_mult = 1.0 if options.width_mult is None else options.width_mult
        models.options(options.model)  # an unknown name shows before the data is loaded
    elif options.model is not None or options.width_mult is not None:
        surplus = "--model" if options.model is not None else "--width-mult"
        raise MbnpError(f"--init brings the architecture of its checkpoint: leave out {surplus}")


def _fresh(options: Namespace, data: Dataset) -> Network:
    chosen = {"num_classes": len(data.classes), "width_mult": options.width_mult, "seed": options.seed}
    if "resolution" in models.options(options.model):
        chosen["resolution"] = data.train.images.shape[1]
    return models.create(options.model, **chosen)


def _fine_tuned(net: Network, options: Namespace, data: Dataset) -> tuple[Network, list[str]]:
    """Return the checkpoint's network, made ready for the data, and what there is to say about it."""
    notes = [f"weights: {options.init}"]
    before, now = net.num_classes, len(data.classes)
    if before != now or net.classes not in (None, list(data.classes)):
        net = models.with_new_head(net, now, options.seed)
        notes.append(f"the last layer begins afresh: {now} classes of {data.name} for the {before} it knew")
    elif net.classes is None:
        notes.append(f"the checkpoint does not name its classes: they are taken for the {now} of {data.name}")
    if net.preprocessing is None:
        notes.append("the checkpoint does not say how its images were normalised: they are as the data asks")
    (height, width), side = data.train.images.shape[1:3], net.resolution
    if not height == width == side:
        notes.append(f"the checkpoint is for images of {side}x{side}, these are {height}x{width}")
    if (last := options.freeze_until) is not None:
        net.freeze_until(last)
        if not net.trainable():
            raise MbnpError(f"--freeze-until {last} leaves nothing to train: name an earlier layer")
        total = sum(p.value.size for p in net.parameters().values())
        frozen = sum(p.value.size for p in net.parameters().values() if p.frozen)
        notes.append(f"frozen up to {last}: {frozen:,} of {total:,} parameters")
    return net, notes


def _recipe(options: Namespace, data: Dataset) -> Recipe:
    epochs = data.epochs if options.epochs is None else options.epochs
    same = ("batch_size", "lr", "weight_decay", "schedule", "label_smoothing", "seed")
    return Recipe(epochs, augment=not options.no_augment, **{name: getattr(options, name) for name in same})


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on training when the reader of the output has left."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _TimeLeft(TimeRemainingColumn):
    """The time left, from the second step on."""

    def render(self, task: Task) -> Text:
        known = task.fields["state"] and task.time_remaining is not None
        return super().render(task) + " left" if known else Text()


class _Session:
    """One run as it goes: what is shown, and what is written."""

    def __init__(self, net: Network, data: Dataset, recipe: Recipe, options: Namespace) -> None:
        self.net, self.data, self.recipe, self.options = net, data, recipe, options
        self.folder: Path  # made at the first step
        self.history: list[Record] = []
        self.console = _Console()
        self.animated = self.console.is_terminal and not self.console.is_dumb_terminal
        columns = "{task.description}", BarColumn(None), "{task.fields[state]}", _TimeLeft(compact=True)
        self.bar = Progress(*columns, console=self.console, transient=True, expand=True, disable=not self.animated)
        self.task = self.bar.add_task(f"epoch 1/{recipe.epochs}", total=None, state="")
        self.steps = recipe.epochs * datasets.count_batches(len(data.train), recipe.batch_size, train=True)
        self.announce = functools.cache(lambda: self.say("compiling kernels (once) ..."))

    def run(self, notes: list[str]) -> int:
        self.say_what_is_used(notes)
        try:
            with self.bar, common.compilation(self.compiling):
                common.compile_ahead(self.net, self.compiling)
                train.fit(self.net, self.data, self.recipe, self.on_batch, self.on_epoch)
        except DivergedError as error:
            raise DivergedError(f"{error}; {self.kept()}") from None
        except KeyboardInterrupt:
            print(f"mbnp: stopped; {self.kept()}", file=sys.stderr)
            return 130
        finally:
            if self.history:
                name = self.data.name.encode(errors="replace").decode()  # of a folder, which may be no text
                runs.save_curves(self.folder, self.history, f"{self.name()} on {name}")
        checkpoint = shlex.quote(str(self.folder / "model.safetensors"))
        data = "" if self.options.data is None else f" --data {shlex.quote(self.options.data)}"
        print(f"test accuracy {100 * self.history[-1].test_accuracy:.2f} %")
        print(f"mbnp evaluate {checkpoint}{data}")
        print(f"mbnp predict IMAGE --checkpoint {checkpoint}")
        return 0

    def say(self, text: str) -> None:
        """Print plain text, above the bar where there is one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def say_what_is_used(self, notes: list[str]) -> None:
        hint = "; for CIFAR-10: mbnp data download" if self.data.name == "shapes10" else ""
        lines, size = [f"data: {self.data}{hint}", *notes], self.recipe.batch_size
        if left_out := len(self.data.train) % size:
            images = f"{left_out} training images, always others, that do not fill a batch of {size}"
            lines.append(f"each epoch leaves out {images}")
        self.say(tables.hang("\n".join(lines)))

    def compiling(self, done: int = 0, total: int | None = None) -> None:
        """Say that kernels are compiled: `total` of them ahead, of which so many are done, or one that is needed."""
        if not self.animated:
            self.announce()
        elif total:
            self.bar.update(self.task, description=f"compiling kernels {done} of {total}", completed=done, total=total)
        else:
            self.bar.update(self.task, description="compiling kernels")
            if not self.bar.tasks[0].fields["state"]:
                self.bar.tasks[0].total = None  # nothing tells how many there will be

    def on_batch(self, record: Record) -> None:
        if record.step == 1:
            # Not before: bad input of whatever kind shows in the first step, and leaves no folder behind.
            self.folder = runs.make(self.options.out, self.name(), self.config())
            self.say(f"run folder: {self.folder}")
        self.bar.update(
            self.task,
            completed=record.step,
            total=self.steps,
            description=f"epoch {record.epoch}/{self.recipe.epochs}",
            state=f"loss {record.loss:.4f}  accuracy {100 * record.accuracy:.2f} %  "
            f"{record.images_per_second:,.0f} images/s",
        )

    def on_epoch(self, record: Record) -> None:
        runs.save_epoch(self.folder, self.net, record)
        self.history.append(record)
        last = str(self.recipe.epochs)
        name = f"epoch {record.epoch:{len(last)}}/{last}:"
        if record.epoch == 1:
            self.say(" " * len(name) + "    loss  accuracy  test loss  accuracy  images/s  seconds")
        self.say(
            f"{name}{record.loss:8.4f}  {100 * record.accuracy:6.2f} %  {record.test_loss:9.4f}  "
            f"{100 * record.test_accuracy:6.2f} %  {record.images_per_second:8,.0f}  {record.seconds:7.1f}"
        )

    def name(self) -> str:
        """Return the architecture's name, or the file's where it is an architecture of its own."""
        name = self.net.arch.get("name")
        return name if name in models.names() else Path(self.options.init).stem

    def kept(self) -> str:
        """Return a sentence on what is left of a run that ends early."""
        if not self.history:
            return "no epoch was finished, so there is no checkpoint"
        return f"{self.folder / 'model.safetensors'} has the weights after epoch {self.history[-1].epoch}"

    def config(self) -> dict[str, Any]:
        init = self.options.init and Path(os.path.abspath(self.options.init))
        return {
            "command": self.command(),
            "model": self.net.arch,
            "init": init and {"path": str(init), "sha256": hashlib.sha256(init.read_bytes()).hexdigest()},
            "freeze_until": self.options.freeze_until,
            "recipe": dataclasses.asdict(self.recipe),
            "data": runs.describe(self.data),
            "seed": self.recipe.seed,
            "engine": "readable" if type(self.net) is Network else "fused",
            "dtype": str(self.net.dtype),
            **runs.environment(),
        }

    def command(self) -> str:
        """Return the command that repeats this run, with every default given."""
        source = self.data.source
        data = os.path.abspath(source) if os.path.exists(source) else self.data.name
        init = self.options.init and os.path.abspath(self.options.init)
        known = vars(self.options) | {"epochs": self.recipe.epochs, "data": data, "init": init}
        words = ["mbnp", "train"]
        for name, value in known.items():
            if name not in ("command", "out") and value is not None and value is not False:
                words += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
        return shlex.join(words)
