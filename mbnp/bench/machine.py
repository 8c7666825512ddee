"""This machine, and the two limits that it sets every kernel: operations and memory traffic a second."""

import os
import platform
import re
import timeit
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import prange

import mbnp
from mbnp import backend
from mbnp.backend import jit
from mbnp.bench import blas, floor, isa

SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # NumPy's BLAS then has another kernel than the processor's own
PACKAGES = {"numpy": "NumPy", "numba": "Numba", "torch": "PyTorch"}
PACKAGES["onnxruntime"] = "ONNX Runtime"
CACHE = 32 << 20  # bytes of the last cache, where the system does not tell
MEMORY = 256 << 20  # bytes of the arrays that no cache holds, at least


class Peaks(NamedTuple):
    """The best that the machine was seen to do. GFLOP/s and GB/s are in powers of ten."""

    gflops: float  # the better of the two below
    gflops_numpy: float  # NumPy's matrix product on its own threads
    gflops_kernel: float  # the fast engine's own
    memory: float  # GB/s of a += s*b over arrays far larger than any cache, three accesses an entry
    cache: float  # GB/s of the same in half of the last cache
    cache_bytes: int


def describe(held_to: str | None = None) -> dict[str, Any]:
    """Return processor, threads, BLAS, versions, and variables that slow things down, ready for JSON.

    held_to: the instruction set that everything is held to on purpose, by variables that are then no mistake.
    """
    purpose = isa.KNOWN[held_to] if held_to else {}
    versions = {name: version(name) for name in PACKAGES if find_spec(name)}
    layer = "not chosen yet"
    with suppress(ValueError):  # before the first parallel kernel runs
        layer = numba.threading_layer()
    return {
        "processor": processor(),
        "processors": os.cpu_count(),
        "threads": backend.get_num_threads(),
        "system": " ".join([platform.system(), platform.machine(), *filter(None, platform.libc_ver())]),
        "python": platform.python_version(),
        "versions": {"mbnp": mbnp.__version__, **versions},
        "blas": blas.describe(),
        "threading_layer": layer,
        "slowing": {name: os.environ[name] for name in SLOWING if name in os.environ and name not in purpose},
        "held_to": held_to,
    }


def processor() -> str:
    """Return the processor's name, as the system tells it."""
    with suppress(OSError, IndexError):
        return re.findall(r"^model name\s*:(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0].strip()
    return platform.processor() or platform.machine()


def last_cache_bytes() -> int:
    """Return the size of the last cache, as the system tells it."""
    with suppress(OSError, ValueError):  # the last one is the largest
        sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        return max(int(size.read_text().strip().rstrip("K")) << 10 for size in sizes)
    return CACHE


@jit(parallel=True)
def _triad(a: np.ndarray, b: np.ndarray, s: np.floating, out: np.ndarray) -> None:
    """Set out = a + s*b over (chunks, n): two loads and a store an entry."""
    for t in prange(a.shape[0]):
        for i in range(a.shape[1]):
            out[t, i] = a[t, i] + s * b[t, i]


def measure(threads: int, rounds: int = 30) -> Peaks:
    """Measure both limits on `threads` threads; the best of `rounds`, since a limit is what is never exceeded."""
    before = backend.get_num_threads()
    backend.set_num_threads(threads)
    try:
        rng = np.random.default_rng(0)
        a = rng.standard_normal((threads * 1024, 1024), np.float32)
        b, out = rng.standard_normal((1024, 1024), np.float32), np.empty_like(a)
        packed, no_bias, chunks = floor.packed(b), np.zeros(1024, np.float32), len(a) // 256
        with backend.one_pool():
            kernel = _best(lambda: floor.multiply(a, packed, no_bias, chunks, out), rounds)
        with blas.limit(threads):
            numpy = _best(lambda: np.matmul(a, b, out=out), rounds)
        size = last_cache_bytes()
        memory = _bandwidth(max(4 * size, MEMORY), threads, rounds)
        cache = _bandwidth(size // 2, threads, 3 * rounds)
    finally:
        backend.set_num_threads(before)
    flops = 2e-9 * a.size * b.shape[1]
    return Peaks(flops / min(kernel, numpy), flops / numpy, flops / kernel, memory, cache, size)


def _bandwidth(total: int, threads: int, rounds: int) -> float:
    """Return the GB/s of _triad over three arrays of `total` bytes together."""
    shape = (threads, total // (3 * 4 * threads))
    a, b, out = (np.ones(shape, np.float32) for _ in range(3))
    return 3e-9 * a.nbytes / _best(lambda: _triad(a, b, np.float32(0.5), out), rounds)


def _best(run: Callable[[], object], rounds: int) -> float:
    run()  # compiles, and touches every page
    return min(timeit.repeat(run, repeat=rounds, number=1))
