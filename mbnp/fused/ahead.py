"""Compile the kernels of a network ahead, in several processes at once.

Numba compiles one function at a time in a process, so that the first training step would use one processor for most
of a minute. Here each kernel that a network needs is compiled by the next free process, into the cache on disk.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core.dispatcher import Dispatcher

from mbnp import spec
from mbnp.backend import one_pool
from mbnp.fused import kernels
from mbnp.fused.chain import split
from mbnp.fused.inference import Inference
from mbnp.fused.training import Plan
from mbnp.network import Network


def missing(net: Network) -> list[str]:
    """Return the fused kernels of `net` that no cache on disk holds yet and that several processes could compile."""
    if _processes() < 2 or numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return []
    return [name for name in signatures(net) if not _is_cached(name)]


def compile_kernels(net: Network, names: list[str], on_kernel: Callable[[int], Any] = lambda done: None) -> None:
    """Compile these kernels for `net` into the cache, and call on_kernel(how many are done) after each of them.

    A kernel that is not compiled here, because a process was stopped, is compiled by its first call.
    """
    about = spec.describe(net), net.dtype.name
    context = multiprocessing.get_context("spawn")
    with (
        contextlib.suppress(BrokenProcessPool, OSError),
        ProcessPoolExecutor(min(_processes(), len(names)), context, _remember, about) as pool,
    ):
        for done, future in enumerate(as_completed([pool.submit(_compile, name) for name in names]), start=1):
            future.result()
            on_kernel(done)


def _processes() -> int:
    return min(4, os.cpu_count() or 1)  # a dozen kernels of unequal size do not keep more than four busy


def signatures(net: Network) -> dict[str, tuple]:
    """Return the types of the arguments that `net` calls each kernel with, by its name; longest first.

    They are those of a training step and of inference.
    """
    blocks, named_tail = split(net)
    tail = [layer for _, layer in named_tail]
    if not blocks:
        return {}
    x = np.zeros((2, net.resolution, net.resolution, net.channels), net.dtype)
    with _recording() as calls:
        plan = Plan(blocks, tail, x.shape)
        plan.backward(x, np.zeros_like(plan.forward(x)))
        Inference(blocks, tail if plan.complete else []).forward(x)
    # The more arguments, the more a kernel does: the largest are begun first.
    return dict(sorted(calls.items(), key=lambda call: -len(call[1])))


@contextlib.contextmanager
def _recording() -> Iterator[dict[str, tuple]]:
    """Make kernels do nothing within the block but note the types that they are called with."""
    calls: dict[str, tuple] = {}
    found = {name: f for name, f in vars(kernels).items() if isinstance(f, Dispatcher) and name[0] != "_"}

    def recorder(name: str) -> Any:
        return lambda *arguments: calls.setdefault(name, tuple(map(numba.typeof, arguments)))

    with one_pool():  # no other thread runs kernels meanwhile
        try:
            for name in found:
                setattr(kernels, name, recorder(name))
            yield calls
        finally:
            for name, kernel in found.items():
                setattr(kernels, name, kernel)


def _is_cached(name: str) -> bool:
    """Return whether the kernel has an entry in the cache, or there is no cache to put one into.

    One that is stale, or of another dtype, is looked into only by the kernel's first call, which then compiles.
    """
    kernel = getattr(kernels, name)
    folder, file = kernel.stats.cache_path, kernel.__module__.rpartition(".")[2]
    return folder is None or any(Path(folder).glob(f"{file}.{name}-*.nbi"))


_known: dict[str, tuple] = {}  # the signatures, in a process that compiles


def _remember(description: dict[str, Any], dtype: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a traceback
    _known.update(signatures(spec.build(description, dtype)))


def _compile(name: str) -> None:
    getattr(kernels, name).compile(_known[name])
