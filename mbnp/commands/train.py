"""`mbnp train`: train a network, and write a run folder."""

import dataclasses
import hashlib
import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mbnp import datasets, models, runs, train, weights
from mbnp.commands import common
from mbnp.datasets import Dataset
from mbnp.errors import DivergedError, MbnpError
from mbnp.network import Network
from mbnp.recipe import Recipe
from mbnp.train import Record


def run(options: Namespace) -> int:
    common.set_up(options)
    out = None if options.out is None else Path(options.out)
    if out is not None:
        runs.require_new(out)
    _check(options)
    loaded = None if options.init is None else weights.load(options.init)
    data = datasets.load(options.data)
    recipe = _recipe(options, data)
    net, notes = _fresh(options, data) if loaded is None else _fine_tuned(loaded, options, data)
    session = _Session(common.engine(net, options.readable), data, recipe, out, options, notes)
    return session.run()


def _check(options: Namespace) -> None:
    """MbnpError for options that do not go together; fills in what has a default only without --init."""
    if options.init is None:
        if options.freeze_until is not None:
            raise MbnpError("--freeze-until keeps what was learned before: name a checkpoint with --init")
        options.model = options.model or "mobilenet-v1-small"
        options.width_mult = 1.0 if options.width_mult is None else options.width_mult
        models.options(options.model)  # an unknown name shows before the data is loaded
    elif options.model is not None or options.width_mult is not None:
        surplus = "--model" if options.model is not None else "--width-mult"
        raise MbnpError(f"--init brings the architecture of its checkpoint: leave out {surplus}")


def _fresh(options: Namespace, data: Dataset) -> tuple[Network, list[str]]:
    """The network that is named, with new weights; nothing to note."""
    takes_size = "resolution" in models.options(options.model)
    size = {"resolution": data.train.images.shape[1]} if takes_size else {}
    net = models.create(
        options.model, num_classes=len(data.classes), width_mult=options.width_mult, seed=options.seed, **size
    )
    return net, []


def _fine_tuned(net: Network, options: Namespace, data: Dataset) -> tuple[Network, list[str]]:
    """The checkpoint's network, made ready for the data, and what there is to say about it."""
    notes = [f"weights: {options.init}"]
    before, now = net.num_classes, len(data.classes)
    if before != now or net.classes not in (None, list(data.classes)):
        net = models.with_new_head(net, now, options.seed)
        notes.append(f"the last layer begins afresh: {now} classes of {data.name} for the {before} it knew")
    elif net.classes is None:
        notes.append(f"the checkpoint does not name its classes: they are taken for the {now} of {data.name}")
    if net.preprocessing is None:
        notes.append(
            "the checkpoint does not say how its pictures were normalised: they are as the data asks"
        )
    height, width = data.train.images.shape[1:3]
    if (height, width) != (net.resolution, net.resolution):
        notes.append(
            f"the checkpoint is for pictures of {net.resolution}x{net.resolution}, these are {height}x{width}"
        )
    if options.freeze_until is not None:
        net.freeze_until(options.freeze_until)
        if not net.trainable():
            raise MbnpError(
                f"--freeze-until {options.freeze_until} leaves nothing to train: name an earlier layer"
            )
        sizes = [(p.frozen, p.value.size) for p in net.parameters().values()]
        frozen, total = sum(size for frozen, size in sizes if frozen), sum(size for _, size in sizes)
        notes.append(f"frozen up to {options.freeze_until}: {frozen:,} of {total:,} parameters")
    return net, notes


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
        self,
        net: Network,
        data: Dataset,
        recipe: Recipe,
        out: Path | None,
        options: Namespace,
        notes: list[str],
    ) -> None:
        self.net, self.data, self.recipe, self.out, self.options = net, data, recipe, out, options
        self.notes = notes
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
            with self.bar, common.announced(self.say) as announce:
                common.compile_ahead(self.net, announce)
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
            runs.save_curves(self.folder, self.history, f"{self.name()} on {name}")

    def say(self, line: str) -> None:
        """One plain line, above the bar where there is one."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def say_what_is_used(self) -> None:
        hint = "; for CIFAR-10: mbnp data download" if self.data.name == "shapes10" else ""
        for line in [f"data: {self.data}{hint}", *self.notes]:
            self.say(line)
        left_out = len(self.data.train) % self.recipe.batch_size
        if left_out:
            self.say(
                f"each epoch leaves out {left_out} training pictures, always others, that do not fill a "
                f"batch of {self.recipe.batch_size}"
            )

    def on_batch(self, record: Record) -> None:
        if record.step == 1:
            # Not before: bad input of whatever kind shows in the first step, and leaves no folder behind.
            self.folder = runs.make(self.out, self.name(), self.config())
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

    def name(self) -> str:
        """The architecture's name, or the file's where it is an architecture of its own."""
        name = self.net.arch.get("name")
        return name if name in models.names() else Path(self.options.init).stem

    def kept(self) -> str:
        """What is left of a run that ends early."""
        if not self.history:
            return "no epoch was finished, so there is no checkpoint"
        return f"{self.folder / 'model.safetensors'} has the weights after epoch {self.history[-1].epoch}"

    def config(self) -> dict[str, Any]:
        return {
            "command": self.command(),
            "model": self.net.arch,
            "init": self.init(),
            "freeze_until": self.options.freeze_until,
            "recipe": dataclasses.asdict(self.recipe),
            "data": runs.describe(self.data),
            "seed": self.recipe.seed,
            "engine": "readable" if type(self.net) is Network else "fused",
            "dtype": str(self.net.dtype),
            **runs.environment(),
        }

    def init(self) -> dict[str, str] | None:
        if self.options.init is None:
            return None
        path = os.path.abspath(self.options.init)
        with open(path, "rb") as file:
            return {"path": path, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def command(self) -> str:
        """The command that repeats this run, with every default spelled out."""
        known = vars(self.options) | {"epochs": self.recipe.epochs, "data": self.source()}
        if self.options.init is not None:
            known["init"] = os.path.abspath(self.options.init)
        words = ["mbnp", "train"]
        for name, value in known.items():
            if name in ("command", "out") or value is None or value is False:
                continue
            words.append("--" + name.replace("_", "-"))
            words += [] if value is True else [str(value)]
        return shlex.join(words)

    def source(self) -> str:
        return os.path.abspath(self.data.source) if os.path.exists(self.data.source) else self.data.name
