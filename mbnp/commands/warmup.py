"""`mbnp warmup`: compile ahead what training, evaluating and predicting need."""

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numba
import numpy as np

from mbnp import datasets, models, tables, train
from mbnp.commands import common
from mbnp.commands.console import Console
from mbnp.network import Network
from mbnp.optim import update


def run(options: Namespace) -> None:
    if options.model is not None:
        models.options(options.model)  # raises for a name that is unknown
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        print("nothing to warm up: NUMBA_DISABLE_JIT is set, and nothing is compiled")
        return
    some_kernel: Any = update.sgd
    cache = some_kernel.stats.cache_path
    if cache is None:
        text = "nothing to warm up: compiled kernels cannot be kept; every process compiles its own"
        print(tables.hang(text))
        return
    compiled, began = 0, time.perf_counter()
    for name in models.names() if options.model is None else [options.model]:
        start = time.perf_counter()
        count = _warm_up(name, options.readable)
        compiled += count
        print(f"{name}: {_count(count)}, {time.perf_counter() - start:.1f} s")
    seconds = time.perf_counter() - began
    print(tables.hang(f"{_count(compiled)} in {seconds:.1f} s; kept under {Path(cache).parent}"))


def _warm_up(name: str, readable: bool) -> int:
    """Compile every kernel for the model `name`; return how many were not compiled already."""
    net = common.engine(models.create(name, num_classes=2), readable)
    with Console().status(f"{name} ...") as status:  # shown in a terminal only
        ahead = common.compile_ahead(
            net, lambda done, total: status.update(f"{name}: compiling kernels {done} of {total}")
        )
        with common.compilation(lambda: status.update(f"{name}: compiling kernels")) as compilation:
            rehearse(net)
    return ahead + compilation.compiled


def rehearse(net: Network) -> None:
    """Train `net` for a step on a few random images, with an object each, and test it, which calls every kernel."""
    size, channels = net.resolution, net.channels
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, channels), np.uint8)
    labels, boxes = np.array([0, 1, 0, 1]), None
    if net.detects():
        labels, boxes = labels[:, None], np.tile(np.array([0, 0, size / 2, size / 2], np.float32), (4, 1, 1))
    split = datasets.Split(images, labels, boxes=boxes)
    data = datasets.Dataset("random", "", split, split, ["a", "b"], (0.5,) * channels, (0.25,) * channels, epochs=1)
    train.fit(net, data, train.Recipe(epochs=1, batch_size=4, lr=1e-3))


def _count(compiled: int) -> str:
    return f"{compiled} kernel{'s'[: compiled > 1]} compiled" if compiled else "everything was compiled already"
