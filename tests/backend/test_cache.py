"""The cache of kernels: damage is noticed, and what several processes have put there goes together."""

import collections
import errno
import importlib.util
import os
import pkgutil
import random
import re
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core import config

import mbnp
from mbnp import backend, storage
from mbnp.backend.jit import Kernel, _Cache, _said
from tests.tally import NIGHTLY

pytestmark = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled, nor cached")
CASES = 300 if NIGHTLY else 12


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Return a function that makes the same kernel again, as another process would, and calls it."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "kernel.py"
    source.write_text("def f(x):\n    return x + 1\n")
    spec = importlib.util.spec_from_file_location("kernel", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call():
        _said.clear()
        made = backend.jit(module.f)
        assert made(41) == 42
        return sum(made.stats.cache_hits.values())

    assert call() == 0
    assert call() == 1
    yield call
    _said.clear()


def file_of(tmp_path):
    (found,) = (path for path in (tmp_path / "cache").rglob("*") if re.search(r"\.nbc", path.name))
    return found


def bits(content):
    dice = random.Random(0)
    for _ in range(CASES):
        position = dice.randrange(8 * len(content))
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        yield bytes(changed)


def lengths(content):
    dice = random.Random(1)
    yield from (content[:length] for length in (0, 1, 31, 32, 33, 63, 64, 65, len(content) - 1))
    yield from (content[: dice.randrange(len(content))] for _ in range(CASES))


def others(content):
    yield from (content + b"\0", b"\0" * len(content), content[::-1], b"\x80\x05.", b"cos\nsystem\n(S'exit 1'\ntR.")


@pytest.mark.parametrize("damage", [bits, lengths, others])
def test_a_damaged_file_is_compiled_again_and_replaced(damage, kernel, tmp_path, capfd):
    file = file_of(tmp_path)
    content = file.read_bytes()
    for changed in damage(content):
        file.write_bytes(changed)
        assert kernel() == 0
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith(
            "mbnp: a compiled kernel is compiled again, because its file cannot be used (its checksum"
        )
        assert str(file) in err
        assert kernel() == 1
        assert file.read_bytes()[32:64] == content[32:64]
    assert capfd.readouterr().err == ""


def test_a_kernel_that_was_loaded_becomes_part_of_one_that_is_compiled(tmp_path, monkeypatch):
    """What the second is linked with is kept as it was read, until then."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "pair.py").write_text(
        "from mbnp import backend\n@backend.jit\ndef inner(x):\n    return x * 2\n"
        "@backend.jit\ndef outer(x):\n    return inner(x) + 1\n"
    )

    def pair():
        spec = importlib.util.spec_from_file_location("pair", tmp_path / "pair.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    assert pair().inner(3) == 6
    module = pair()
    assert module.outer(3) == 7
    assert sum(module.inner.stats.cache_hits.values()) == 1
    assert sum(module.outer.stats.cache_hits.values()) == 0
    (loaded,) = module.inner.overloads.values()
    assert loaded.library._bitcode
    module = pair()
    assert module.outer(3) == 7
    assert sum(module.outer.stats.cache_hits.values()) == 1


PARTS = """
import sys
import numpy as np
from mbnp import backend

def made_for(n):
    @backend.piece
    def part(x, power):  # too much to be inlined everywhere
        for i in range(x.size):
            STATEMENTS
    return part

once, twice = made_for(1), made_for(2)

@backend.jit
def add_once(x):
    once(x, 1.5); once(x[1:], 2.5); once(x[2:], 3.5); once(x[:2], x[0])

@backend.jit
def add_twice(x):
    twice(x, 1.5); twice(x[1:], 2.5); twice(x[2:], 3.5); twice(x[:2], x[0])

for name in sys.argv[1:]:
    x = np.ones(4)
    globals()[name](x)
    print(*x)
""".replace("STATEMENTS", "; ".join(f"x[i] += np.sin(n * x[i] + {k}) * power" for k in range(40)))


def test_no_kernel_runs_a_part_that_another_process_compiled(tmp_path):
    """Two processes compile a kernel each, whose parts have one name and one number; a third one loads both."""
    (tmp_path / "parts.py").write_text(PARTS)
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(mbnp.__file__).parents[1]),
        "PYTHONHASHSEED": "0",  # Numba's names depend on it, too
    }

    def lines(*kernels):
        command = [sys.executable, str(tmp_path / "parts.py"), *kernels]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    alone = lines("add_once") + lines("add_twice")
    assert alone[0] != alone[1]
    assert lines("add_once", "add_twice") == alone


def test_kernels_have_names_of_their_own():
    """Those are what others are linked with by: see `_KernelLibrary`."""
    named = collections.defaultdict(set)
    for info in pkgutil.walk_packages(mbnp.__path__, "mbnp."):
        if info.name != "mbnp.__main__":
            for found in vars(importlib.import_module(info.name)).values():
                if isinstance(found, Kernel):
                    named[found.py_func.__module__, found.py_func.__qualname__].add(id(found))
    assert ("mbnp.fused.kernels.conv", "conv_forward") in named
    assert not [name for name, kernels in named.items() if len(kernels) > 1]


@pytest.mark.parametrize("inside", [None, "something"])
def test_a_folder_in_the_place_of_a_file(inside, kernel, tmp_path, capfd):
    file = file_of(tmp_path)
    file.unlink()
    file.mkdir()
    if inside:
        (file / inside).write_text("")
    assert kernel() == 0
    assert capfd.readouterr().err.count("\n") == 1
    assert kernel() == 1
    assert file.is_file()


def test_a_link_that_leads_to_a_folder_is_replaced_and_the_folder_stays(kernel, tmp_path):
    file = file_of(tmp_path)
    file.unlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("")
    file.symlink_to(tmp_path / "folder")
    assert kernel() == 0
    assert kernel() == 1
    assert (tmp_path / "folder" / "precious").exists()


@pytest.mark.parametrize("call", ["write_bytes", "replace"])
def test_a_disk_that_is_full(call, kernel, tmp_path, monkeypatch, capfd):
    file = file_of(tmp_path)
    file.unlink()

    def full(path, *data):
        if call == "write_bytes":
            path.write_text("the first ")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(*((type(file), call, full) if call == "write_bytes" else (os, call, full)))
        assert kernel() == 0
    err = capfd.readouterr().err
    assert err.startswith("mbnp: a compiled kernel cannot be kept (No space left on device): ")
    assert err.count("\n") == 1
    assert list(file.parent.iterdir()) == []  # no part of a file
    assert kernel() == 0
    assert kernel() == 1


def test_what_a_killed_process_left_half_written_goes(kernel, tmp_path):
    file = file_of(tmp_path)
    file.unlink()
    running = file.with_name(f"{storage.unfinished(file)}abcd_123.part")
    killed = file.with_name(
        running.name.replace(f"-{os.getpid()}.", f"-{2**22 + 1}.")
    )  # more than any process's number
    for left in (running, killed):
        left.write_bytes(b"half")
    assert kernel() == 0
    assert running.exists()
    assert not killed.exists()


def test_the_folder_may_be_gone(kernel, tmp_path):
    file = file_of(tmp_path)
    file.unlink()
    file.parent.rmdir()
    assert kernel() == 0
    assert kernel() == 1


def test_what_was_compiled_from_other_sources_is_not_loaded_and_no_damage(kernel, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(numba, "__version__", "0.0")
        assert kernel() == 0
        assert kernel() == 1
    assert kernel() == 0
    assert capfd.readouterr().err == ""
    assert file_of(tmp_path)  # still one: it was replaced


def test_the_first_of_many_is_told(kernel, tmp_path, capfd):
    file_of(tmp_path).write_bytes(b"")
    assert kernel() == 0
    file_of(tmp_path).write_bytes(b"")
    assert "compiled again" in capfd.readouterr().err
    made = backend.jit(lambda x: x)
    file = made._cache._path((numba.int64,), made.targetctx.codegen())
    file.write_bytes(b"")
    assert made(3) == 3
    assert capfd.readouterr().err == ""


def test_whether_it_is_cached_is_known_for_each_type(kernel, tmp_path):
    made = backend.jit(lambda x: x)
    assert isinstance(made._cache, _Cache)
    assert not made.is_cached((numba.int64,))
    assert made(3) == 3
    assert made.is_cached((numba.int64,))
    assert not made.is_cached((numba.float32,))
    made.recompile()
    assert made(3) == 3
