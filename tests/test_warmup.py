"""`mbnp warmup`, and what it relies on: Numba's cache, which every kernel must be fit for."""

import ast
import functools
import importlib
import os
import pkgutil
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import numba
import pytest
from numba.core.dispatcher import Dispatcher

import mbnp
from mbnp import cli, models

ROOT = Path(mbnp.__file__).parents[1]

needs_jit = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")

# Instead of the rehearsal of a whole model, one small kernel: what these tests are about is the cache.
BRIEFLY = """
    import os
    import time
    import numpy as np
    from mbnp import cli, optim
    from mbnp.commands import warmup
    from mbnp.parameter import Parameter

    def rehearse(net):
        wait_for_others()
        p = Parameter(np.ones(8, np.float32))
        p.grad[:] = 1
        optim.SGD({"w": p}, lr=0.5).step()
        assert p.value[0] == 0.5

    def wait_for_others():
        folder = os.environ.get("MEET_IN")  # where two processes meet, so that they compile at the same moment
        if folder:
            open(os.path.join(folder, str(os.getpid())), "w").close()
            while len(os.listdir(folder)) < 2:
                time.sleep(0.001)

    warmup.rehearse = rehearse
    warmup.common.compile_ahead = lambda net, on_kernel: 0
"""


def start(code, **environment):
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


@needs_jit
def test_two_processes_warm_up_at_once(tmp_path):
    code = BRIEFLY + '\n    raise SystemExit(cli.main(["warmup", "--model", "mobilenet-v1-small"]))'
    cache, meeting = tmp_path / "cache", tmp_path / "meeting"
    meeting.mkdir()
    both = [start(code, NUMBA_CACHE_DIR=str(cache), MEET_IN=str(meeting)) for _ in range(2)]
    for out, err in [finish(process) for process in both]:
        assert err == ""
        assert "mobilenet-v1-small: 1 kernel compiled" in out
        assert f"kept under {cache}" in " ".join(out.split())
    out, err = finish(start(code, NUMBA_CACHE_DIR=str(cache)))
    assert err == ""
    assert "mobilenet-v1-small: everything was compiled already" in out


@needs_jit
def test_without_a_writable_cache_there_is_one_warning_and_everything_works():
    # Folders that cannot be written, as Numba finds them; a test that runs as root could write them all.
    code = (
        """
    from numba.core import caching

    def refuse(self):
        raise PermissionError("read-only")

    caching._CacheLocator.ensure_cache_path = refuse
    """
        + BRIEFLY
        + """
    import mbnp.fused  # every kernel is declared

    status = cli.main(["warmup"])
    rehearse(None)
    raise SystemExit(status)
    """
    )
    out, err = finish(start(code))
    assert out == "nothing to warm up: compiled kernels cannot be kept; every process compiles its\n  own\n"
    assert err.count("Warning") == 1
    assert "set NUMBA_CACHE_DIR to a writable folder" in err


@needs_jit
def test_an_upgraded_kernel_is_compiled_again(tmp_path):
    kernel = tmp_path / "kernel.py"
    lines = "from mbnp.backend import jit\n@jit\ndef f(x):\n    return x + {}\n"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import kernel; print(kernel.f(1))"
    for added in (1, 1, 20):
        kernel.write_text(lines.format(added))
        os.utime(kernel, (time.time() + added, time.time() + added))  # not within one tick of the clock
        out, _ = finish(start(code, NUMBA_CACHE_DIR=str(tmp_path / "cache"), PYTHONDONTWRITEBYTECODE="1"))
        assert out == f"{1 + added}\n"
    assert list((tmp_path / "cache").rglob("*.nbc"))


@needs_jit
def test_a_kernel_is_compiled_again_when_what_it_calls_in_another_file_changes(tmp_path):
    (tmp_path / "kernel.py").write_text(
        "from mbnp.backend import jit\nfrom neighbour import g\n@jit\ndef f(x):\n    return g(x)\n"
    )
    code = f"""
    import sys
    sys.path.insert(0, {str(tmp_path)!r})
    import kernel
    print(kernel.f(1), sum(kernel.f.stats.cache_hits.values()))
    """
    results = []
    for added in (1, 1, 20):
        (tmp_path / "neighbour.py").write_text(
            f"from mbnp.backend import piece\n@piece\ndef g(x):\n    return x + {added}\n"
        )
        out, _ = finish(start(code, NUMBA_CACHE_DIR=str(tmp_path / "cache"), PYTHONDONTWRITEBYTECODE="1"))
        results.append(out)
    assert results == ["2 0\n", "2 1\n", "21 0\n"]  # the result, and how often it came from the cache


@needs_jit
def test_after_it_training_evaluating_and_predicting_compile_nothing(tmp_path):
    code = f"""
    import os
    import numpy as np
    from PIL import Image
    from mbnp import cli
    from mbnp.commands import common

    os.chdir({str(tmp_path)!r})
    rng = np.random.default_rng(0)
    os.mkdir("data")
    for name, count in (("data_batch_1.bin", 40), ("test_batch.bin", 20)):
        records = rng.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] = np.arange(count) % 10
        records.tofile(f"data/{{name}}")
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save("image.png")
    for more in ([], ["--readable"]):
        assert cli.main(["warmup", "--model", "mobilenet-v1-small", *more]) == 0
        with common.compilation() as count:
            small = ["--epochs", "1", "--batch-size", "16", "--width-mult", "0.25", "--data", "data", *more]
            run = f"run{{len(more)}}"
            assert cli.main(["train", *small, "--out", run]) == 0
            checkpoint = f"{{run}}/model.safetensors"
            assert cli.main(["evaluate", checkpoint, "--data", "data", *more]) == 0
            assert cli.main(["predict", "image.png", "--checkpoint", checkpoint, *more]) == 0
        assert count.compiled == 0, count.compiled
    """
    out, _ = finish(start(code))
    assert "compiling" not in out
    assert out.count("mobilenet-v1-small: ") == 2


@needs_jit
def test_what_it_counts():
    from mbnp.backend import piece
    from mbnp.commands.common import compilation

    inner = piece(lambda x: x + 1)
    kernel = numba.njit(lambda x: inner(x) * 2)
    with compilation() as count:
        assert kernel(1) == 4
        assert kernel(2) == 6
        assert kernel(1.5) == 5.0
    assert count.compiled == 2  # once for whole numbers and once for others, and with each what it calls
    with compilation() as count:
        kernel(3)
    assert count.compiled == 0


@needs_jit
def test_a_detector_warms_up():
    from mbnp.commands import warmup

    warmup.rehearse(models.create("ssd-mobilenet-v1-small", num_classes=2, width_mult=0.25))


def test_an_unknown_model_is_one_line(capsys):
    assert cli.main(["warmup", "--model", "mobilenet"]) == 2
    assert "unknown model 'mobilenet'" in capsys.readouterr().err


# ---- a cached kernel notices changes in its folder, in the backend and in the product: it may use nothing else -----


def modules():
    for info in pkgutil.walk_packages(mbnp.__path__, "mbnp."):
        if info.name != "mbnp.__main__":
            yield importlib.import_module(info.name)


def kernels(module):
    """Functions of a module that Numba compiles."""
    if numba.config.DISABLE_JIT:
        return []
    compiled = [v for v in vars(module).values() if isinstance(v, Dispatcher)]
    return [v.py_func for v in compiled if v.py_func.__module__ == module.__name__]


def names_used(function):
    """Names of globals that a function's code reads, nested code included."""
    codes, names = [function.__code__], set()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return names & set(function.__globals__)


@functools.cache
def made_here(module):
    """Names that a module's own top level defines: functions and values, not imports."""
    tree = ast.parse(Path(module.__file__).read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in filter(None, targets):
            names |= {inner.id for inner in ast.walk(target) if isinstance(inner, ast.Name)}
    return names


def noticed(module):
    """The modules whose changes a module's kernels notice: those of its folder, of the backend, and the product."""
    files = [(Path(m.__file__), m) for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
    folders, alone = (Path(module.__file__).parent, ROOT / "mbnp" / "backend"), ROOT / "mbnp" / "ops" / "matmul.py"
    return [m for file, m in files if file.parent in folders or file == alone]


def foreign(module):
    """What kernels of a module use that a change elsewhere in ours would change unnoticed."""
    if not kernels(module):
        return
    known = noticed(module)
    own = set().union(*(made_here(m) for m in known))
    for function in kernels(module):
        for name in names_used(function) - own:
            value = function.__globals__[name]
            if any(value is m for m in known):
                continue
            home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if home is None or home.split(".")[0] == "mbnp":  # a plain number has no home: it was imported
                yield f"{module.__name__}.{function.__name__} uses {name}"


@needs_jit
def test_kernels_use_nothing_that_their_cache_would_not_notice():
    found = [line for module in modules() for line in foreign(module)]
    assert not found, "\n".join(found)
    assert sum(len(kernels(module)) for module in modules()) > 20


@needs_jit
def test_and_the_test_would_notice(tmp_path, monkeypatch):
    """A kernel that uses a function, a number or a module of ours is found."""
    (tmp_path / "importer.py").write_text(
        "import numpy as np\nfrom elsewhere import GIVEN\nfrom mbnp.backend import jit\n"
        "from mbnp.backend.vectors import BYTES\nfrom mbnp.ops.matmul import ROWS, multiply\n"
        "from mbnp.fused.kernels.batchnorm import RUN, total\nfrom mbnp.fused import kernels\nHERE = 3\n"
        "@jit\ndef f(x):\n    multiply(x)\n"
        "    return total(x) + RUN + HERE + GIVEN + kernels.batchnorm.RUN + np.abs(x) + BYTES + ROWS\n"
    )
    (tmp_path / "elsewhere.py").write_text("GIVEN = 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("importer")
    assert sorted(foreign(module)) == [f"importer.f uses {name}" for name in ("RUN", "kernels", "total")]


def test_every_kernel_goes_through_backend():
    """So that flags, cache and the fallback without a cache are the same for all."""
    for path in (ROOT / "mbnp").rglob("*.py"):
        if path.parent.name != "backend":
            assert "njit" not in path.read_text().replace("`njit", ""), path
