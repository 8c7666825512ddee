"""Helpers that several commands share."""

import functools
import glob
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numba.core import event
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from mbnp import backend, datasets, fused
from mbnp.commands.console import Console
from mbnp.datasets import Dataset
from mbnp.datasets.images import files_in
from mbnp.errors import MbnpError
from mbnp.fused import ahead
from mbnp.network import Network


def load_data(
    spec: str | None,
    resolution: int | None,
    channels: int = 3,
    say: Callable[[str], object] = print,
    asked: bool = False,
) -> Dataset:
    """Return the data set, with a bar or, where there is no terminal, a line while its images are decoded.

    asked: the resolution is the user's wish; MbnpError if the images have another.
    """
    console = Console(stderr=True)
    columns = "preparing images", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            if done == 0 and not console.is_terminal:
                say(f"preparing {total:,} images (once) ...")
            bar.update(task, completed=done, total=total, visible=True)

        data = datasets.load(spec, resolution, channels, progress, processes=True)
    height, width = data.train.images.shape[1:3]
    if asked and not height == width == resolution:
        raise MbnpError(f"the images of {data.name} are {height}x{width}: --resolution is for a folder of images")
    return data


def default_data(net: Network) -> str | None:
    """Return the data of a network where none are named: a detector's are scenes10."""
    return None if net.detection is None else "scenes10"


def about(data: Dataset, most: int) -> list[str]:
    """Return what else there is to say about a data set, in lines; not more than `most` damaged files."""
    lines = [*data.notes]
    if count := len(data.damaged):
        rest = "; mbnp data show lists them" if count > most else ""
        lines += [f"could not be read and are left out, {count:,}{rest}:", *data.damaged[:most]]
    return lines


def engine(net: Network, readable: bool) -> Network:
    """Return the network that runs: the fast engine, which shares the parameters of `net`, or `net` itself.

    The engine has one implementation of its own, so MBNP_BACKEND=numpy or loops means the network itself too.
    """
    if readable or backend.current() != "numba":
        return net
    return fused.convert(net)


def image_files(names: Sequence[str]) -> list[str]:
    """Return what is meant by each name: a file, the files in a folder, or those that fit a pattern.

    What is none of these stays as it is, so that reading it says what is wrong.
    """
    found: list[str] = []
    for name in names:
        if os.path.isdir(name):
            found += files_in(name) or [name]
        else:
            found += [name] if os.path.lexists(name) else sorted(glob.glob(name, recursive=True)) or [name]
    return found


def check_output(path: str | Path, suffix: str, inputs: Iterable[str | Path] = ()) -> None:
    """Raise an error in one line for a file that cannot, or should not, be written, before work goes into it.

    It must end in `suffix`, such as .html, be a file or nothing yet, be in a folder, and be none of `inputs`.
    """
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise MbnpError(f"{path} does not end in {suffix}: give the file that is written a name that does")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder for {path}: make it first")
    if path.exists() and not path.is_file():
        raise MbnpError(f"{path} is no file: name another one to write to")
    if path.exists() and any(os.path.exists(each) and path.samefile(each) for each in inputs):
        raise MbnpError(f"{path} is read, too: name another file to write to")


def require_preprocessing(net: Network, path: str) -> None:
    """Raise MbnpError if the weights came without the normalisation that their images need."""
    if net.preprocessing is None:
        command = f"mbnp convert {path} NEW.safetensors --mean R,G,B --std R,G,B"
        raise MbnpError(f"{path} does not say how its images were normalised; add it: {command}")


def require_classifier(net: Network, path: str) -> None:
    """Raise MbnpError for a detector."""
    if net.detects():
        raise MbnpError(
            f"{path} is a detector: mbnp detect IMAGE... --checkpoint {path} draws boxes around what it finds"
        )


def require_detector(net: Network, path: str) -> None:
    """Raise MbnpError for a network that finds no boxes."""
    if not net.detects():
        raise MbnpError(f"{path} is a classifier: mbnp predict IMAGE... --checkpoint {path} names what images show")
    if net.detection is None:
        raise MbnpError(f"{path} has heads for boxes, and does not say of which anchors")


def require_scores(net: Network, path: str) -> None:
    """Raise MbnpError if a network is no classifier."""
    if len(net.output_shape((net.resolution, net.resolution, net.channels))) != 1:
        raise MbnpError(f"{path} does not give one score for each class")


def class_name(net: Network, label: int) -> str:
    """Return what a class is called, or its number where it has no name."""
    if net.classes:
        return net.classes[label]
    return "class 1, of 0 and 1" if net.num_classes == 1 and not net.detects() else f"class {label}"


def objects(names: Sequence[str], scores: np.ndarray, boxes: np.ndarray) -> list[dict[str, Any]]:
    """Return objects as --json prints them; boxes are left, top, right, bottom in pixels."""
    return [
        {"label": name, "score": round(float(score), 6), "box": [round(float(side), 2) for side in box]}
        for name, score, box in zip(names, scores, boxes, strict=True)
    ]


@contextmanager
def on_signals(call: Callable[[int, Any], object], *numbers: int) -> Iterator[None]:
    """Let `call` be what signals call within the block; only the main thread may say, and gets them."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, call) for number in numbers if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def compile_ahead(net: Network, on_kernel: Callable[[int, int], Any]) -> int:
    """Compile what the fast engine `net` needs and no cache holds, on all processors; return how many kernels.

    on_kernel(done, total) is called before the first kernel and after each.
    """
    if not isinstance(net, fused.FusedNetwork):
        return 0
    if names := ahead.missing(net):
        on_kernel(0, len(names))
        ahead.compile_kernels(net.reference, names, lambda done: on_kernel(done, len(names)))
    return len(names)


class _Compilation(event.Listener):
    """Count kernels and call `on_kernel`; the functions that a kernel calls are compiled with it, and not counted."""

    def __init__(self, on_kernel: Callable[[], Any]) -> None:
        self.on_kernel = on_kernel
        self.compiled = self.depth = 0

    def on_start(self, event: event.Event) -> None:
        if self.depth == 0:
            self.compiled += 1
            self.on_kernel()
        self.depth += 1

    def on_end(self, event: event.Event) -> None:
        self.depth -= 1


def compilation(on_kernel: Callable[[], Any] = lambda: None) -> Any:
    """Return a context in which on_kernel() is called when Numba begins a kernel; as `compiled`, it counts them."""
    return event.install_listener("numba:compile", _Compilation(on_kernel))


def announced(say: Callable[[str], object]) -> Any:
    """Return a context that says once if Numba compiles a kernel and does not find it in its cache."""
    return compilation(functools.cache(lambda: say("compiling kernels (once) ...")))
