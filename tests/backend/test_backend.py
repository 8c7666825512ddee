import gc
import importlib
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.registry import CPUDispatcher

from mbnp import MbnpError, backend

jit = importlib.import_module("mbnp.backend.jit")  # the module, whose name in the package is its function


def which():
    return backend.pick(loops=lambda: "loops", numpy=lambda: "numpy", numba=lambda: "numba")()


def test_numba_is_the_default(monkeypatch):
    monkeypatch.delenv("MBNP_BACKEND", raising=False)
    assert backend.current() == which() == "numba"


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_using_chooses_and_restores(name):
    before = backend.current()
    with backend.use(name):
        assert backend.current() == which() == name
        with backend.use("loops"):
            assert which() == "loops"
        assert which() == name
    assert backend.current() == before


def test_using_restores_after_an_error():
    before = backend.current()
    with pytest.raises(ZeroDivisionError), backend.use("loops"):
        raise ZeroDivisionError
    assert backend.current() == before


def test_the_environment_is_read_at_each_call(monkeypatch):
    monkeypatch.setenv("MBNP_BACKEND", "numpy")
    assert which() == "numpy"
    with backend.use("loops"):
        assert which() == "loops"
    monkeypatch.setenv("MBNP_BACKEND", "nump")
    with pytest.raises(MbnpError, match="unknown backend 'nump': did you mean 'numpy'"):
        which()


def test_an_unknown_name_is_refused():
    with (
        pytest.raises(MbnpError, match=r"unknown backend 'torch': known are loops, numba, numpy"),
        backend.use("torch"),
    ):
        pass


def test_two_implementations_will_do():
    operation = backend.pick(loops=lambda: "loops", numpy=lambda: "numpy")
    with backend.use("numba"):
        assert operation() == "numpy"
    with backend.use("loops"):
        assert operation() == "loops"


def test_a_choice_is_its_threads_own():
    seen = []
    with backend.use("loops"):
        thread = threading.Thread(target=lambda: seen.append(backend.current()))
        thread.start()
        thread.join()
    assert seen == ["numba"] or seen == [backend.current()]


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_kernels_keep_nan():
    """fastmath must not let the compiler assume that there are none."""

    @numba.njit(fastmath=jit.FASTMATH)
    def is_nan(x):
        return x != x

    assert is_nan(np.float32(np.nan))


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled, nor cached")
def test_jit_without_a_writable_cache_warns_once_and_compiles(monkeypatch):
    def refuse(function):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(jit, "_Cache", refuse)
    jit._warn_uncached.cache_clear()
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        double = backend.jit(lambda x: 2 * x)
    assert double(3) == 6
    backend.jit(parallel=True)(lambda x: x)  # warnings are errors here: a second one would raise
    jit._warn_uncached.cache_clear()


def test_threads():
    before = backend.get_num_threads()
    backend.set_num_threads(1)
    assert backend.get_num_threads() == 1
    backend.set_num_threads(before)
    for bad in (0, numba.config.NUMBA_NUM_THREADS + 1):
        with pytest.raises(MbnpError, match=f"threads must be 1 to .*, got {bad}"):
            backend.set_num_threads(bad)


def test_the_pool_of_threads_may_be_taken_again_within_its_own_block():
    with backend.one_pool(), backend.one_pool():
        assert in_another_thread(can_take_the_pool) is False
    assert in_another_thread(can_take_the_pool) is True  # given back as often as it was taken


def test_one_thread_waits_for_the_pool_that_another_has():
    order, waits = [], threading.Event()

    def wait():
        waits.set()
        with backend.one_pool():
            order.append("second")

    with backend.one_pool():
        thread = threading.Thread(target=wait)
        thread.start()
        assert waits.wait(10)
        thread.join(0.05)
        assert thread.is_alive()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_the_pool_is_given_back_after_an_error():
    with pytest.raises(ZeroDivisionError), backend.one_pool():
        raise ZeroDivisionError
    assert in_another_thread(can_take_the_pool) is True


def can_take_the_pool():
    taken = backend.one_pool().acquire(blocking=False)
    if taken:
        backend.one_pool().release()
    return taken


def in_another_thread(run):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def test_no_kernel_is_compiled_again_when_the_command_line_changes():
    """A kernel's cache notices every file of its folder, so that none lies beside cli.py."""
    package = Path(backend.__file__).parents[1]
    compiled = re.compile(r"^@(backend\.)?(jit|piece|inlined)\b|\bjit\(", re.MULTILINE)
    assert any(compiled.search(path.read_text()) for path in package.glob("ops/*.py"))
    assert not [path.name for path in package.glob("*.py") if compiled.search(path.read_text())]
    before = jit._stamp.__wrapped__(package / "ops")
    assert before != jit._stamp.__wrapped__(package / "optim")
    assert before == jit._stamp.__wrapped__(package / "ops")


@pytest.mark.parametrize(
    ("file", "noticed"),
    [("backend/vectors.py", True), ("ops/matmul.py", True), ("optim/update.py", True), ("ops/conv.py", False)],
)
def test_a_kernels_cache_notices_its_folder_and_what_all_kernels_are_made_of(file, noticed, monkeypatch):
    package = Path(backend.__file__).parents[1]
    before = jit._stamp.__wrapped__(package / "optim")
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path == package / file))
    assert (jit._stamp.__wrapped__(package / "optim") != before) == noticed


@pytest.fixture
def usual_threshold():
    before = gc.get_threshold()
    gc.set_threshold(600, 10, 9)
    yield 600, 10, 9
    gc.set_threshold(*before)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize("first", [600, 0, jit.SELDOM + 1])
def test_garbage_is_looked_for_less_often_while_a_kernel_is_compiled(first, usual_threshold, monkeypatch):
    """Not more often than the user has it, nor at all where it is switched off; and afterwards as before."""
    seen = []

    def fail(kernel, sig):
        seen.append(gc.get_threshold())
        raise ZeroDivisionError

    monkeypatch.setattr(CPUDispatcher, "compile", fail)
    gc.set_threshold(first, 10, 9)
    with pytest.raises(ZeroDivisionError):
        backend.jit(lambda x: x).compile((numba.float64,))
    assert seen == [(jit.SELDOM if first == 600 else first, 10, 9)]
    assert gc.get_threshold() == (first, 10, 9)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_two_threads_that_compile_leave_the_threshold_as_it_was(usual_threshold, monkeypatch):
    monkeypatch.setattr(CPUDispatcher, "compile", lambda kernel, seconds: time.sleep(seconds))
    threads = [threading.Thread(target=backend.jit(lambda x: x).compile, args=(t,)) for t in (0.1, 0.3)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # so that the second one begins while the first compiles, and ends after it
    for thread in threads:
        thread.join()
    assert gc.get_threshold() == usual_threshold
