"""Compiling the kernels ahead, in several processes at once.

Numba compiles one function at a time in a process, so that the first training step would use one processor for most
of a minute. Here each kernel that a network needs is compiled by whichever process is free, into the cache on disk.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core.dispatcher import Dispatcher

from mbnp import spec
from mbnp.backend import one_blas_thread
from mbnp.fused import kernels
from mbnp.fused.chain import split
from mbnp.fused.inference import Inference
from mbnp.fused.training import Plan
from mbnp.network import Network

PROCESSES = 4  # at most: a dozen kernels of unequal size do not keep more busy


def missing(net: Network) -> list[str]:
    """The fused kernels of `net` that no cache on disk holds yet, and that several processes could compile."""
    if min(PROCESSES, os.cpu_count() or 1) < 2 or numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return []
    return [name for name in signatures(net) if not _is_cached(name)]


def compile_kernels(net: Network, names: list[str]) -> None:
    """Compile these kernels for `net` into the cache. What fails here is left to the kernel's first call."""
    processes = min(PROCESSES, os.cpu_count() or 1, len(names))
    about = spec.describe(net), net.dtype.name
    context = multiprocessing.get_context("spawn")
    with (
        contextlib.suppress(BrokenProcessPool, OSError),
        concurrent.futures.ProcessPoolExecutor(processes, context, _remember, about) as pool,
    ):
        list(pool.map(_compile, names))


def signatures(net: Network) -> dict[str, tuple]:
    """The types of the arguments that `net` calls each kernel with, in training and in inference; longest first."""
    triples, named_tail = split(net)
    tail = [layer for _, layer in named_tail]
    if not triples:
        return {}
    x = np.zeros((2, net.resolution, net.resolution, net.channels), net.dtype)
    with _recording() as calls:
        plan = Plan(triples, tail, x.shape)
        plan.backward(x, np.zeros_like(plan.forward(x)))
        Inference(triples, tail if plan.complete else []).forward(x)
    # The more arguments, the more a kernel does: the largest are begun first.
    return dict(sorted(calls.items(), key=lambda call: -len(call[1])))


@contextlib.contextmanager
def _recording() -> Iterator[dict[str, tuple]]:
    """Within the block, kernels do nothing but note the types that they are called with."""
    calls: dict[str, tuple] = {}
    found = {name: f for name, f in vars(kernels).items() if isinstance(f, Dispatcher) and name[0] != "_"}

    def recorder(name: str) -> Any:
        return lambda *arguments: calls.setdefault(name, tuple(map(numba.typeof, arguments)))

    with one_blas_thread():  # nobody else runs kernels meanwhile
        try:
            for name in found:
                setattr(kernels, name, recorder(name))
            yield calls
        finally:
            for name, kernel in found.items():
                setattr(kernels, name, kernel)


def _is_cached(name: str) -> bool:
    """Whether there is a cache entry for the kernel, or no cache to put one into.

    One that is stale, or of another dtype, is looked into only by the kernel's first call, which then compiles.
    """
    kernel = getattr(kernels, name)
    folder, file = kernel.stats.cache_path, kernel.__module__.rpartition(".")[2]
    return folder is None or any(Path(folder).glob(f"{file}.{name}-*.nbi"))


_known: dict[str, tuple] = {}  # in a process that compiles: the signatures


def _remember(description: dict[str, Any], dtype: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a traceback
    _known.update(signatures(spec.build(description, dtype)))


def _compile(name: str) -> None:
    getattr(kernels, name).compile(_known[name])
