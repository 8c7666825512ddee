"""`mbnp train`: train a network, and write a run folder."""

import dataclasses
import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mbnp import datasets, models, runs, train
from mbnp.commands import common
from mbnp.datasets import Dataset
from mbnp.errors import DivergedError
from mbnp.network import Network
from mbnp.recipe import Recipe
from mbnp.train import Record


def run(options: Namespace) -> int:
    common.set_up(options)
    out = None if options.out is None else Path(options.out)
    if out is not None:
        runs.require_new(out)
    accepted = models.options(options.model)
    data = datasets.load(options.data)
    recipe = _recipe(options, data)
    size = {"resolution": data.train.images.shape[1]} if "resolution" in accepted else {}
    net = models.create(
        options.model, num_classes=len(data.classes), width_mult=options.width_mult, seed=options.seed, **size
    )
    session = _Session(common.engine(net, options.readable), data, recipe, out, options)
    return session.run()


def _recipe(options: Namespace, data: Dataset) -> Recipe:
    return Recipe(
        epochs=data.epochs if options.epochs is None else options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
        schedule=options.schedule,
        label_smoothing=options.label_smoothing,
        augment=not options.no_augment,
        seed=options.seed,
    )


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Training goes on when the reader of its output has left."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Session:
    """One run as it goes: what is shown, and what is written."""

    def __init__(
        self, net: Network, data: Dataset, recipe: Recipe, out: Path | None, options: Namespace
    ) -> None:
        self.net, self.data, self.recipe, self.out, self.options = net, data, recipe, out, options
        self.folder: Path  # made at the first step
        self.history: list[Record] = []
        self.console = _Console()
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.2f} %"),
            TextColumn("{task.fields[speed]:,.0f} images/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        batches = datasets.count_batches(len(data.train), recipe.batch_size, train=True)
        self.task = self.bar.add_task(
            "", total=batches * recipe.epochs, epoch=f"1/{recipe.epochs}", loss=0, accuracy=0, speed=0
        )

    def run(self) -> int:
        self.say_what_is_used()
        try:
            with self.bar, common.announced(self.say):
                train.fit(self.net, self.data, self.recipe, self.on_batch, self.on_epoch)
        except DivergedError as error:
            self.draw()
            raise DivergedError(f"{error}; {self.kept()}") from None
        except KeyboardInterrupt:
            self.draw()
            print(f"mbnp: stopped; {self.kept()}", file=sys.stderr)
            return 130
        self.draw()
        print(f"test accuracy {100 * self.history[-1].test_accuracy:.2f} %")
        print(f"mbnp predict IMAGE --checkpoint {shlex.quote(str(self.folder / 'model.safetensors'))}")
        return 0

    def draw(self) -> None:
        if self.history:
            name = self.data.name.encode(errors="replace").decode()  # of a folder, which may be no text
            runs.save_curves(self.folder, self.history, f"{self.net.arch['name']} on {name}")

    def say(self, line: str) -> None:
        """One plain line, above the bar where there is one."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def say_what_is_used(self) -> None:
        hint = "; for CIFAR-10: mbnp data download" if self.data.name == "shapes10" else ""
        self.say(f"data: {self.data}{hint}")
        left_out = len(self.data.train) % self.recipe.batch_size
        if left_out:
            self.say(
                f"each epoch leaves out {left_out} training pictures, always others, that do not fill a "
                f"batch of {self.recipe.batch_size}"
            )

    def on_batch(self, record: Record) -> None:
        if record.step == 1:
            # Not before: bad input of whatever kind shows in the first step, and leaves no folder behind.
            self.folder = runs.make(self.out, self.net.arch["name"], self.config())
            self.say(f"run folder: {self.folder}")
        self.bar.update(
            self.task,
            completed=record.step,
            epoch=f"{record.epoch}/{self.recipe.epochs}",
            loss=record.loss,
            accuracy=100 * record.accuracy,
            speed=record.images_per_second,
        )

    def on_epoch(self, record: Record) -> None:
        runs.save_epoch(self.folder, self.net, record)
        self.history.append(record)
        self.say(
            f"epoch {record.epoch}/{self.recipe.epochs}: "
            f"loss {record.loss:.4f}, accuracy {100 * record.accuracy:.2f} %; "
            f"test loss {record.test_loss:.4f}, accuracy {100 * record.test_accuracy:.2f} %; "
            f"{record.images_per_second:,.0f} images/s, {record.seconds:.1f} s"
        )

    def kept(self) -> str:
        """What is left of a run that ends early."""
        if not self.history:
            return "no epoch was finished, so there is no checkpoint"
        return f"{self.folder / 'model.safetensors'} has the weights after epoch {self.history[-1].epoch}"

    def config(self) -> dict[str, Any]:
        return {
            "command": self.command(),
            "model": self.net.arch,
            "recipe": dataclasses.asdict(self.recipe),
            "data": runs.describe(self.data),
            "seed": self.recipe.seed,
            "engine": "readable" if type(self.net) is Network else "fused",
            "dtype": str(self.net.dtype),
            **runs.environment(),
        }

    def command(self) -> str:
        """The command that repeats this run, with every default spelled out."""
        known = vars(self.options) | {"epochs": self.recipe.epochs, "data": self.source()}
        words = ["mbnp", "train"]
        for name, value in known.items():
            if name in ("command", "out") or value is None or value is False:
                continue
            words.append("--" + name.replace("_", "-"))
            words += [] if value is True else [str(value)]
        return shlex.join(words)

    def source(self) -> str:
        return os.path.abspath(self.data.source) if os.path.exists(self.data.source) else self.data.name
