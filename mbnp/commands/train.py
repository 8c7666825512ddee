"""`mbnp train`: train a network, and write a run folder."""

import dataclasses
import functools
import hashlib
import os
import re
import shlex
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, Task, TimeRemainingColumn
from rich.text import Text

from mbnp import datasets, models, plots, runs, tables, tasks, train, weights
from mbnp.commands import common
from mbnp.commands.console import Console
from mbnp.commands.live import Dashboard
from mbnp.datasets import Dataset, drawing
from mbnp.errors import DivergedError, MbnpError, printable
from mbnp.network import Network
from mbnp.pages import detections, report, statistics
from mbnp.recipe import Recipe
from mbnp.train import Record, Snapshot

NOT_REPEATED = ("command", "given", "out", "every", "resume", "live")  # of the options, in a run's command
# What may differ when a run goes on. Epochs only where the schedule does not depend on their number.
CHANGEABLE = ("--threads", "--every", "--data", "--epochs", "--live")
MODEL = "mobilenet-v1-small"  # where none is named
REPORTING = 0.02  # the share of the time that may go into report.html before a run ends


def run(options: Namespace) -> int:
    if options.resume is not None:
        runs.load_config(options.resume)  # before a lock is made in what may be no run folder
        with runs.locked(options.resume):
            return _go_on(options)
    if options.out is not None:
        runs.require_new(options.out)
    _check(options)
    loaded = None if options.init is None else weights.load(options.init, options.weights, tables.note)
    known = loaded or models.create(options.model, width_mult=0.25)
    resolution = known.resolution if options.resolution is None else options.resolution
    channels = 3 if options.channels is None else options.channels
    channels = channels if loaded is None else loaded.channels
    spec = options.data or common.default_data(known)
    data = common.load_data(spec, resolution, channels, asked=options.resolution is not None)
    tasks.of(known).check_split(data.train, data.name)
    recipe = _recipe(options, data, known)
    net, notes = (_fresh(options, data), []) if loaded is None else _fine_tuned(loaded, options, data)
    return _Session(common.engine(net, options.readable), data, recipe, options).run(notes)


def _go_on(options: Namespace) -> int:
    """Go on with the run folder `options.resume`, as its config.json says."""
    folder: Path = options.resume
    config, notes = runs.load_config(folder), []  # type: dict[str, Any], list[str]
    if surplus := sorted(options.given - {"--resume", *CHANGEABLE}):
        raise MbnpError(f"{surplus[0]} is settled by the run; beside --resume may stand {', '.join(CHANGEABLE)}")
    net, snapshot = runs.latest(folder, notes.append)
    recipe = _recipe_of(config, options, snapshot.progress)
    known = config["data"]
    spec = options.data or datasets.absolute(known["source"]) or known["name"]
    data = common.load_data(spec, net.resolution, net.channels)
    if runs.describe(data)["sha256"] != known["sha256"]:
        raise MbnpError(f"the run was trained on other images than those of {data.source}: name its own with --data")
    if (last := config["freeze_until"]) is not None:
        net.freeze_until(last)
    if recipe.epochs != config["recipe"]["epochs"]:
        config["recipe"]["epochs"] = recipe.epochs
        config["command"] = re.sub(r"--epochs \d+", f"--epochs {recipe.epochs}", config["command"])
        runs.save_config(folder, config)
    now = runs.environment()
    if changed := [key for key in now if key != "threads" and now[key] != config[key]]:
        notes.append(f"{' and '.join(changed)} changed since the run began: its numbers may differ in the last digits")
    init = config["init"] and config["init"]["path"]
    said = known["argument"]
    if said and not os.path.exists(said):
        said = spec  # from another working folder
    options.init, options.data, options.out = init, options.data or said, folder
    options.every = options.every or config["every"]
    session = _Session(common.engine(net, config["engine"] == "readable"), data, recipe, options, snapshot)
    return session.run(notes)


def _recipe_of(config: dict[str, Any], options: Namespace, progress: train.Progress) -> Recipe:
    """Return the recipe of a run, with more epochs if they are asked for."""
    recipe = runs.recipe(config)
    if options.epochs in (None, recipe.epochs):
        return recipe
    if recipe.schedule != "constant":
        raise MbnpError(f"the schedule {recipe.schedule} was made for {recipe.epochs} epochs: leave out --epochs")
    if options.epochs < progress.epoch - 1:
        raise MbnpError(f"the run has done {progress.epoch - 1} epochs already: --epochs must be at least that")
    return dataclasses.replace(recipe, epochs=options.epochs)


def _check(options: Namespace) -> None:
    """Raise MbnpError for options that do not go together; fill in what has a default only without --init."""
    if options.init is None:
        if options.freeze_until is not None:
            raise MbnpError("--freeze-until keeps what was learned before: name a checkpoint with --init")
        if options.weights is not None:
            raise MbnpError("--weights chooses among those of a checkpoint: name one with --init")
        options.model = options.model or MODEL
        options.width_mult = 1.0 if options.width_mult is None else options.width_mult
        models.options(options.model)  # an unknown name shows before the data is loaded
    elif surplus := options.given & {"--model", "--width-mult", "--channels"}:
        raise MbnpError(f"--init brings the architecture of its checkpoint: leave out {min(surplus)}")


def _fresh(options: Namespace, data: Dataset) -> Network:
    chosen = {"num_classes": len(data.classes), "width_mult": options.width_mult, "seed": options.seed}
    chosen["channels"] = data.train.images.shape[3]
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


def _recipe(options: Namespace, data: Dataset, net: Network) -> Recipe:
    if options.augment and options.no_augment:
        raise MbnpError(f"--augment {options.augment} and --no-augment do not go together: leave out one")
    augment = not options.no_augment and (options.augment or True)
    epochs = data.epochs if options.epochs is None else options.epochs
    most = 64 if net.detection is None else 32
    batch_size = min(most, max(2, len(data.train) // 4)) if options.batch_size is None else options.batch_size
    same = ("lr", "weight_decay", "schedule", "label_smoothing", "seed")
    return Recipe(epochs, batch_size, augment=augment, **{name: getattr(options, name) for name in same})


class _TimeLeft(TimeRemainingColumn):
    """The time left, from the second step on."""

    def render(self, task: Task) -> Text:
        known = task.fields["state"] and task.time_remaining is not None
        return super().render(task) + " left" if known else Text()


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM raise _Terminated within the block."""

    def stop(*_: Any) -> None:
        raise _Terminated

    with common.on_signals(stop, signal.SIGTERM):
        yield


@contextmanager
def _unstoppable(later: bool = False) -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM within the block, which is short and leaves nothing half done; later: put them off."""
    came: list[int] = []
    with common.on_signals(lambda number, _: came.append(number), signal.SIGINT, signal.SIGTERM):
        yield
    if later and came:
        signal.raise_signal(came[0])


class _Session:
    """One run as it goes: what is shown, and what is written."""

    def __init__(
        self, net: Network, data: Dataset, recipe: Recipe, options: Namespace, snapshot: Snapshot | None = None
    ) -> None:
        self.net, self.data, self.recipe, self.options = net, data, recipe, options
        self.words = tasks.of(net).words
        self.snapshot = snapshot  # what the run goes on from
        self.folder: Path = options.out  # made at the first step, where it is a new one
        self.made = snapshot is not None
        self.progress = train.Progress() if snapshot is None else snapshot.progress
        self.history: list[Record] = list(self.progress.history)
        self.watch = statistics.Watch(data)
        self.outcome: statistics.Outcome | statistics.Detections | None = None  # of the last epoch of `progress`
        self.began, self.reporting = time.perf_counter(), 0.0  # the seconds that went into the report
        self.reported = 0  # the last epoch that is in it
        self.console = Console()
        self.animated = self.console.is_terminal and not self.console.is_dumb_terminal
        columns = "{task.description}", BarColumn(None), "{task.fields[state]}", _TimeLeft(compact=True)
        self.bar = Progress(*columns, console=self.console, transient=True, expand=True, disable=not self.animated)
        self.task = self.bar.add_task(f"epoch {len(self.history) + 1}/{recipe.epochs}", total=None, state="")
        self.steps = recipe.epochs * datasets.count_batches(len(data.train), recipe.batch_size, train=True)
        self.announce = functools.cache(lambda: self.say("compiling kernels (once) ..."))
        self.head = functools.cache(self.say)
        self.lock = ExitStack()
        self.board = Dashboard(self.console, self.bar, recipe.epochs, net) if options.live and self.animated else None

    def run(self, notes: list[str]) -> int:
        with self.lock, _stoppable():
            try:
                self.say_what_is_used(notes)
                self.train()
            except DivergedError as error:
                raise DivergedError(f"{error}; {self.kept()}") from None
            except OSError as error:
                raise OSError(f"{error}; {self.kept()}{self.how_to_go_on()}") from None
            except KeyboardInterrupt as error:
                print(f"mbnp: stopped; {self.kept()}{self.how_to_go_on()}", file=sys.stderr)
                return 143 if isinstance(error, _Terminated) else 130
            finally:
                with _unstoppable():
                    self.draw()
        checkpoint = shlex.quote(str(self.folder / "model.safetensors"))
        data = "" if self.options.data is None else f" --data {shlex.quote(self.options.data)}"
        if isinstance(self.outcome, statistics.Detections):
            side = self.data.test.images.shape[2]
            self.say("\n".join(detections.lines(self.outcome.scores, side)))
        self.say(f"test {self.words.measure} {100 * self.history[-1].test_accuracy:.2f} %")
        self.say(f"mbnp evaluate {checkpoint}{data}")
        self.say(f"mbnp {'predict' if self.net.detection is None else 'detect'} IMAGE --checkpoint {checkpoint}")
        return 0

    def train(self) -> None:
        finished = len(self.history) == self.recipe.epochs
        if self.snapshot is not None:
            runs.complete(self.folder, self.net, self.snapshot)
            if finished and (self.folder / "report.html").exists():
                self.say_finished()
                return
        with self.board or self.bar, common.compilation(self.compiling):
            train.check(self.net, self.data, self.recipe, self.options.every)  # before minutes of compiling
            common.compile_ahead(self.net, self.compiling)
            if self.history:
                self.look_back()
            if finished:
                self.say_finished()
                return
            train.fit(
                self.net, self.data, self.recipe, self.on_batch, self.on_epoch,
                self.keep, self.options.every, self.snapshot, self.watch,
            )  # fmt: skip

    def say_finished(self) -> None:
        self.say(f"{self.folder} is finished: all {self.recipe.epochs} epochs are done")

    def look_back(self) -> None:
        """Test the checkpoint that the run has, for the report, in case that no other epoch comes to its end."""
        net = weights.load(self.folder / "model.safetensors")
        self.watch.look(common.engine(net, type(self.net) is Network), self.data.test)
        self.outcome = self.watch.outcome
        if self.board:
            self.board.show(self.history, self.progress.measured)

    def draw(self) -> None:
        """Draw the curves, and write the report; the run folder is worth more than they are."""
        if not self.history:
            return
        title = f"{self.name()} on {printable(self.data.name)}"  # of a folder, which may be no text
        failed = {}
        for what, make in (
            ("curves", lambda: runs.save_curves(self.folder, self.history, title, self.words)),
            ("report", self.report),
            ("pictures", lambda: self.draw_found(title)),
        ):
            try:
                make()
            except Exception as error:  # whatever it is, it must not end a run
                failed[what] = error
        if failed:
            print(f"mbnp: no {' and no '.join(failed)}: {failed.popitem()[1]}", file=sys.stderr)

    def report(self) -> None:
        """Write report.html, of the last epoch that was kept, unless that is in it."""
        if self.outcome is not None and self.reported < len(self.history):
            began = time.perf_counter()
            try:
                report.write(self.folder, self.net, self.data, self.progress, self.outcome)
                self.reported = len(self.history)
            finally:
                self.reporting += time.perf_counter() - began

    def draw_found(self, title: str) -> None:
        """Draw the precision-recall curves of a detector, and a sheet of the boxes that it finds."""
        if not isinstance(self.outcome, statistics.Detections):
            return
        what = self.outcome.found, self.data.test, self.data.classes
        last = self.history[-1]
        title = f"{title}: test {self.words.measure} {100 * last.test_accuracy:.2f} % after {last.epoch} epochs"
        plots.save(plots.precision_recall(detections.curves(*what), title), self.folder / "precision_recall.png")
        drawing.save(detections.sheet(*what), self.folder / "found.png")

    def keep(self, snapshot: Snapshot) -> None:
        if not self.made:
            self.snapshot = snapshot
            return
        with _unstoppable(later=True):
            runs.keep(self.folder, self.net, snapshot)
            self.progress, self.outcome = snapshot.progress, self.watch.outcome
            self.history = self.progress.history

    def say(self, text: str) -> None:
        """Print plain text, above the bar where there is one. A run goes on if nobody can read it any more."""
        try:
            if self.animated:
                self.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, flush=True)
        except OSError:  # a closed pipe, or a full disk
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say_what_is_used(self, notes: list[str]) -> None:
        hint = "; for CIFAR-10: mbnp data download" if self.data.name == "shapes10" else ""
        lines, size = [f"data: {self.data}{hint}", *common.about(self.data, 5), *notes], self.recipe.batch_size
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
        if not self.made:
            # Not before: bad input of whatever kind shows in the first step, and leaves no folder behind.
            assert self.snapshot is not None  # from before that step
            with _unstoppable(later=True):
                self.folder = runs.make(self.options.out, self.name(), self.config(), self.snapshot, self.net)
                self.made = True
            self.lock.enter_context(runs.locked(self.folder))
            self.say(f"run folder: {self.folder}")
        self.bar.update(
            self.task,
            completed=record.step,
            total=self.steps,
            description=f"epoch {record.epoch}/{self.recipe.epochs}",
            state=f"loss {record.loss:.4f}  {self.words.learning} {100 * record.accuracy:.2f} %  "
            f"{record.images_per_second:,.0f} images/s",
        )
        if self.board:
            self.board.now = record

    def on_epoch(self, record: Record) -> None:
        self.say_epoch(record)
        if self.reporting <= REPORTING * (time.perf_counter() - self.began):
            with suppress(Exception):  # what is wrong is said at the end, where it is tried again
                self.report()

    def say_epoch(self, record: Record) -> None:
        if self.board:
            self.board.show(self.history, self.progress.measured)
            return
        last = str(self.recipe.epochs)
        name = f"epoch {record.epoch:{len(last)}}/{last}:"
        learning, measure = self.words.learning, self.words.measure
        self.head(" " * len(name) + f"    loss  {learning:>8}  test loss  {measure:>8}  images/s  seconds")
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
        if not self.made:
            return "nothing was kept"
        if not self.history:
            return "no epoch was finished, so there is no checkpoint"
        return f"{self.folder / 'model.safetensors'} has the weights after epoch {self.history[-1].epoch}"

    def how_to_go_on(self) -> str:
        return f"; to go on: mbnp train --resume {shlex.quote(str(self.folder))}" if self.made else ""

    def config(self) -> dict[str, Any]:
        init = self.options.init and Path(os.path.abspath(self.options.init))
        return {
            "command": self.command(),
            "model": self.net.arch,
            "init": init and {"path": str(init), "sha256": hashlib.sha256(init.read_bytes()).hexdigest()},
            "freeze_until": self.options.freeze_until,
            "recipe": dataclasses.asdict(self.recipe),
            "every": self.options.every,
            "data": runs.describe(self.data) | {"argument": self.options.data},
            "seed": self.recipe.seed,
            "engine": "readable" if type(self.net) is Network else "fused",
            "dtype": str(self.net.dtype),
            **runs.environment(),
        }

    def command(self) -> str:
        """Return the command that repeats this run, with every default given."""
        data = datasets.absolute(self.data.source) or self.data.name
        init = self.options.init and os.path.abspath(self.options.init)
        known = vars(self.options) | {"epochs": self.recipe.epochs, "batch_size": self.recipe.batch_size}
        known |= {"data": data, "init": init}
        words = ["mbnp", "train"]
        for name, value in known.items():
            if name not in NOT_REPEATED and value is not None and value is not False:
                words += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
        return shlex.join(words)
