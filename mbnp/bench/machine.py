"""What this machine is, and the two limits of every kernel: multiplications and memory traffic a second."""

import os
import platform
import re
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import prange
from threadpoolctl import ThreadpoolController, threadpool_limits

import mbnp
from mbnp import backend
from mbnp.backend import jit

SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # they choose another kernel than the processor's own
PACKAGES = {
    "numpy": "NumPy",
    "numba": "Numba",
    "scipy": "SciPy",
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
}
CACHE, MEMORY = (
    32 << 20,
    256 << 20,
)  # bytes: of the last cache where nobody says, and of the least large array


class Peaks(NamedTuple):
    """What the machine was seen to do. GFLOP/s and GB/s are in powers of ten."""

    gflops: float  # the better of the two below
    gflops_numpy: float  # NumPy's product on its own threads
    gflops_kernel: float  # one-threaded products inside prange, as the fast engine makes them
    memory: float  # GB/s of a += s*b over arrays far larger than any cache, three accesses an entry
    cache: float  # GB/s of the same in half of the last cache
    cache_bytes: int


def describe() -> dict[str, Any]:
    """Processor, threads, BLAS kernels, versions, and what is set that slows things down. For JSON, too."""
    with backend.one_blas_thread():  # loads SciPy's BLAS, which kernels use, so that it is seen
        pass
    blas = [
        {
            "of": "NumPy"
            if "numpy" in library["filepath"]
            else "SciPy"
            if "scipy" in library["filepath"]
            else "",
            "library": library["internal_api"],
            "version": library["version"],
            "kernel": library.get("architecture"),
        }
        for library in ThreadpoolController().select(user_api="blas").info()
    ]
    return {
        "processor": processor(),
        "processors": os.cpu_count(),
        "threads": backend.get_num_threads(),
        "system": " ".join([platform.system(), platform.machine(), *filter(None, platform.libc_ver())]),
        "python": platform.python_version(),
        "versions": {"mbnp": mbnp.__version__, **versions()},
        "blas": blas,
        "threading_layer": threading_layer(),
        "slowing": {name: os.environ[name] for name in SLOWING if name in os.environ},
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the packages that decide the speed, as far as they are installed; none is imported."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def threading_layer() -> str:
    """The pool that Numba's kernels run on; it is chosen when the first parallel kernel runs."""
    try:
        return numba.threading_layer()
    except ValueError:
        return "not chosen yet"


def last_cache_bytes() -> int:
    """The size of the last cache, as the system tells it."""
    sizes = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, size = (index / "level").read_text(), (index / "size").read_text()
            sizes[int(level)] = int(size.strip().rstrip("K")) << 10
        except (OSError, ValueError):
            continue
    return sizes[max(sizes)] if sizes else CACHE


@jit(parallel=True)
def _products(a, b, out):
    """out[t] = a[t] @ b for every t, each product by one thread."""
    for t in prange(a.shape[0]):
        np.dot(a[t], b, out[t])


@jit(parallel=True)
def _triad(a, b, s, out):
    """out = a + s*b over (chunks, n): two loads and a store an entry."""
    for t in prange(a.shape[0]):
        for i in range(a.shape[1]):
            out[t, i] = a[t, i] + s * b[t, i]


def measure(threads: int, rounds: int = 30) -> Peaks:
    """Measure both limits on `threads` threads; the best of `rounds`, since a limit is what is never exceeded."""
    before = backend.get_num_threads()
    backend.set_num_threads(threads)
    try:
        return _measure(threads, rounds)
    finally:
        backend.set_num_threads(before)


def _measure(threads: int, rounds: int) -> Peaks:
    rng = np.random.default_rng(0)
    a, b = (
        rng.standard_normal((4 * threads, 256, 1024), np.float32),
        rng.standard_normal((1024, 1024), np.float32),
    )
    out = np.empty_like(a)
    flops = 2 * a.size * b.shape[1]
    with backend.one_blas_thread():
        kernel = flops / _best(lambda: _products(a, b, out), rounds)
    flat, flat_out = a.reshape(-1, 1024), out.reshape(-1, 1024)
    with threadpool_limits(threads, user_api="blas"):
        numpy = flops / _best(lambda: np.matmul(flat, b, out=flat_out), rounds)
    cache_bytes = last_cache_bytes()
    return Peaks(
        max(kernel, numpy) / 1e9,
        numpy / 1e9,
        kernel / 1e9,
        _bandwidth(max(4 * cache_bytes, MEMORY), threads, rounds) / 1e9,
        _bandwidth(cache_bytes // 2, threads, 3 * rounds) / 1e9,
        cache_bytes,
    )


def _bandwidth(total: int, threads: int, rounds: int) -> float:
    """Bytes a second of _triad over three arrays of `total` bytes together."""
    shape = (threads, total // (3 * 4 * threads))
    a, b, out = (np.ones(shape, np.float32) for _ in range(3))
    return 3 * a.nbytes / _best(lambda: _triad(a, b, np.float32(0.5), out), rounds)


def _best(run: Callable[[], object], rounds: int) -> float:
    run()  # compiles, and touches every page
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
