"""`mbnp warmup`: compile ahead what training, evaluating and predicting need."""

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from numba.core import event

from mbnp import datasets, models, train
from mbnp.commands import common
from mbnp.network import Network
from mbnp.optim import update


def run(options: Namespace) -> None:
    if options.model is not None:
        models.options(options.model)  # raises for a name that is unknown
    some_kernel: Any = update.sgd
    cache = some_kernel.stats.cache_path
    if cache is None:
        print("nothing to warm up: compiled kernels cannot be kept; every process compiles its own")
        return
    compiled, began = 0, time.perf_counter()
    for name in models.names() if options.model is None else [options.model]:
        start = time.perf_counter()
        net = common.engine(models.create(name, num_classes=2), options.readable)
        ahead = common.compile_ahead(net, lambda: None)
        with Counter() as count:
            rehearse(net)
        count.compiled += ahead
        compiled += count.compiled
        print(f"{name}: {_count(count.compiled)}, {time.perf_counter() - start:.1f} s")
    print(f"{_count(compiled)} in {time.perf_counter() - began:.1f} s; kept under {Path(cache).parent}")


def rehearse(net: Network) -> None:
    """Train `net` for a step and test it, on a few random pictures: what calls kernels, in full."""
    size = net.resolution
    rng = np.random.default_rng(0)
    split = datasets.Split(rng.integers(0, 256, (4, size, size, 3), np.uint8), np.array([0, 1, 0, 1]))
    data = datasets.Dataset("random", "", split, split, ["a", "b"], (0.5,) * 3, (0.25,) * 3, epochs=1)
    train.fit(net, data, train.Recipe(epochs=1, batch_size=4, lr=1e-3))


class Counter(event.Listener):
    """Counts the kernels that Numba compiles because they are not in its cache, their pieces not counted."""

    def __enter__(self) -> "Counter":
        self.compiled = self.depth = 0
        event.register("numba:compile", self)
        return self

    def __exit__(self, *_: object) -> None:
        event.unregister("numba:compile", self)

    def on_start(self, event: event.Event) -> None:
        self.compiled += self.depth == 0
        self.depth += 1

    def on_end(self, event: event.Event) -> None:
        self.depth -= 1


def _count(compiled: int) -> str:
    if not compiled:
        return "everything was compiled already"
    return f"{compiled} kernels compiled" if compiled > 1 else "1 kernel compiled"
