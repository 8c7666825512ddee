"""Compile the kernels of a network ahead, in several processes at once.

Numba compiles one function at a time in a process, so that the first training step would use one processor for most
of a minute. Here each kernel that a network needs is compiled by the next free process, into the cache on disk.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numba
import numpy as np

from mbnp import backend, spec
from mbnp.fused import kernels, match
from mbnp.fused.inference import Inference
from mbnp.fused.kernels import program
from mbnp.fused.training import Plan
from mbnp.network import Network
from mbnp.parent import serve, starting

# The kernels by their name, each with the module in which the engine looks it up when it calls it.
KERNELS: dict[str, Any] = {**dict.fromkeys(kernels.__all__, kernels), "run_program": program}
# Those that take longest to compile, which are begun first.
LONGEST = "conv_backward", "run_program", "depthwise_backward", "conv_forward", "depthwise_forward"


def missing(net: Network) -> list[str]:
    """Return the fused kernels of `net` that no cache on disk holds yet and that several processes could compile."""
    if _processes() < 2 or numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return []
    return [name for name, types in signatures(net).items() if not _kernel(name).is_cached(types)]


def compile_kernels(net: Network, names: list[str], on_kernel: Callable[[int], Any] = lambda done: None) -> None:
    """Compile these kernels for `net` into the cache, and call on_kernel(how many are done) after each of them.

    A kernel that is not compiled here, because a process was stopped, is compiled by its first call.
    """
    about = spec.describe(net), net.dtype.name, os.getpid()
    context = multiprocessing.get_context("spawn")
    with (
        contextlib.suppress(BrokenProcessPool, OSError),
        ProcessPoolExecutor(min(_processes(), len(names)), context, _remember, about) as pool,
    ):
        with starting():
            futures = [pool.submit(_compile, name) for name in names]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            on_kernel(done)


def _processes() -> int:
    return min(4, os.cpu_count() or 1)  # a dozen kernels of unequal size do not keep more than four busy


def signatures(net: Network) -> dict[str, tuple]:
    """Return the types of the arguments that `net` calls each kernel with, by its name; longest to compile first.

    They are those of a training step and of inference. A network of nothing but layers as they are needs no kernel.
    """
    shape = 2, net.resolution, net.resolution, net.channels
    operations = match.match(net, shape)
    if all(operation.kind == "layer" for operation in operations):
        return {}
    x = np.zeros(shape, net.dtype)
    drawn = {name: generator.bit_generator.state for name, generator in net.generators().items()}
    with _recording() as calls:
        plan = Plan(operations, shape, net.dtype, needs_dx=False)
        plan.backward(np.zeros_like(plan.forward(x)))
        Inference(operations, shape, net.dtype).forward(x)
    for name, generator in net.generators().items():
        generator.bit_generator.state = drawn[name]
    order = [name for name in LONGEST if name in calls] + [name for name in calls if name not in LONGEST]
    return {name: calls[name] for name in order}


@contextlib.contextmanager
def _recording() -> Iterator[dict[str, tuple]]:
    """Make kernels do nothing within the block but note the types that they are called with.

    Layers that run as they are compile nothing, either, and compute with whatever is in memory.
    """
    calls: dict[str, tuple] = {}
    found = {name: _kernel(name) for name in KERNELS}

    def recorder(name: str) -> Any:
        return lambda *arguments: calls.setdefault(name, found[name].types_of(arguments))

    with backend.one_pool(), backend.use("numpy"), np.errstate(all="ignore"):  # no other thread runs kernels meanwhile
        try:
            for name, module in KERNELS.items():
                setattr(module, name, recorder(name))
            yield calls
        finally:
            for name, module in KERNELS.items():
                setattr(module, name, found[name])


def _kernel(name: str) -> Any:
    return getattr(KERNELS[name], name)


_known: dict[str, tuple] = {}  # the signatures, in a process that compiles


def _remember(description: dict[str, Any], dtype: str, parent: int) -> None:
    serve(parent)
    _known.update(signatures(spec.build(description, dtype)))


def _compile(name: str) -> None:
    _kernel(name).compile(_known[name])
