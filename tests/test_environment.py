"""Odd environments: no compiler, optimised Python, warnings as errors, a zip file, folders that cannot be written."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numba
import pytest

import mbnp
from tests.tally import NIGHTLY

ROOT = Path(mbnp.__file__).parents[1]
needs_jit = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")

KERNEL = """
import sys
import numpy as np
from mbnp import ops
ops.relu.forward(np.array([-1.0, 2.0], np.float32)).tolist() == [0, 2] or sys.exit("wrong")
"""


def python(*arguments, root=ROOT, **environment):
    """Run Python and return its status, standard output and standard error."""
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "") if root == ROOT else ""]))
    environment = os.environ | {"PYTHONPATH": paths} | environment
    command = [sys.executable, *arguments]
    folder = None if root == ROOT else root.parent  # Python imports from the folder it is in, too
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)
    return done.returncode, done.stdout, done.stderr


def test_nothing_to_warm_up_where_nothing_is_compiled():
    status, out, err = python("-m", "mbnp", "warmup", NUMBA_DISABLE_JIT="1")
    assert (status, err) == (0, "")
    assert out == "nothing to warm up: NUMBA_DISABLE_JIT is set, and nothing is compiled\n"


def test_nothing_is_measured_where_nothing_is_compiled():
    status, out, err = python("-m", "mbnp", "bench", NUMBA_DISABLE_JIT="1")
    assert (status, out) == (2, "")
    assert err.startswith("mbnp: error: NUMBA_DISABLE_JIT is set")
    assert err.count("\n") == 1


OPTIONS = [["-OO"], ["-W", "error"], ["-O"], ["-I", "-X", "dev"], ["-b"]]


@pytest.mark.parametrize("options", OPTIONS if NIGHTLY else OPTIONS[:2])
def test_python_with_options(options):
    if "-I" in options:
        options = [*options, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); from mbnp.cli import main; main()"]
    else:
        options = [*options, "-m", "mbnp"]
    status, out, err = python(*options, "summary", "resnet20")
    assert status == 0, err
    assert "resnet20" in out
    assert err == ""


@needs_jit
def test_kernels_under_optimised_python_with_warnings_as_errors():
    assert python("-OO", "-W", "error", "-c", KERNEL) == (0, "", "")


@needs_jit
def test_warnings_as_errors_are_one_line():
    code = "from mbnp import cli; from mbnp.commands import summary; import warnings\n"
    code += "summary.run = lambda options: warnings.warn('odd')\nraise SystemExit(cli.main(['summary', 'resnet20']))"
    assert python("-W", "error", "-c", code) == (2, "", "mbnp: error: odd\n")


@needs_jit
def test_a_cache_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = python("-c", KERNEL, NUMBA_CACHE_DIR=str(tmp_path / "file"))
    assert status == 0, err
    assert "Traceback" not in err


@needs_jit
def test_the_package_in_a_zip_file(tmp_path):
    archive = tmp_path / "mbnp.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (ROOT / "mbnp").rglob("*"):
            if path.suffix != ".pyc" and path.is_file():
                file.write(path, path.relative_to(ROOT))
    cache = str(tmp_path / "cache")
    code = (
        KERNEL
        + "import mbnp; assert '.zip' in mbnp.__file__\nprint(sum(ops.relu._forward_kernel.stats.cache_hits.values()))"
    )
    assert python("-c", code, root=archive, NUMBA_CACHE_DIR=cache) == (0, "0\n", "")
    assert python("-c", code, root=archive, NUMBA_CACHE_DIR=cache) == (0, "1\n", "")
    status, out, err = python("-m", "mbnp", "summary", "resnet20", root=archive, NUMBA_CACHE_DIR=cache)
    assert status == 0, err
    assert "resnet20" in out
    pytest.importorskip("h5py")
    (tmp_path / "damaged.h5").write_bytes(b"\x89HDF" + bytes(100))
    arguments = "-m", "mbnp", "summary", str(tmp_path / "damaged.h5")
    status, out, err = python(*arguments, root=archive, NUMBA_CACHE_DIR=cache)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "damaged" in err
