"""A run gives the same numbers however its kernels came to be, and on however many threads."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numba
import pytest

from tests.tally import NIGHTLY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled"),
]

TRAIN = """
import hashlib
import sys
import numpy as np
from mbnp import fused, models, optim, train
from tests.twins import batch

if __name__ == "__main__":
    nets = [models.create(name, width_mult=0.25) for name in ("mobilenet-v1-small", "resnet20")]
    for net in nets if "ahead" in sys.argv else ():
        from mbnp.fused import ahead

        names = ahead.missing(net)
        assert names or net is not nets[0]
        if names:
            ahead.compile_kernels(net, names)
    for net in nets:
        fast = fused.convert(net)
        opt = optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        x, y = batch(10, 32, np.float32)
        losses = [train.step(fast, opt, x, y) for _ in range(10)]
        digest = hashlib.sha256(np.array(losses).tobytes() + fast(x).tobytes())
        for variable in net.variables().values():
            digest.update(variable.value.tobytes())
        for parameter in net.parameters().values():
            digest.update(parameter.grad.tobytes())
        print(net.arch["name"], digest.hexdigest())
"""


def digests(folder: Path, cache: str, *arguments: str, threads: int = 2) -> list[str]:
    """Run ten steps of two networks in a process of its own; return a digest of all numbers of each."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(TRAIN))
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(folder / cache),
        "NUMBA_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder whose cache "one" was cold, and what the run that compiled it made."""
    folder = tmp_path_factory.mktemp("repeatable")
    made = digests(folder, "one")
    assert len(made) == 2
    return folder, made


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_run_that_loads_its_kernels_makes_the_numbers_of_the_one_that_compiled_them(first, threads):
    folder, made = first
    assert digests(folder, "one", threads=threads) == made


def test_compiled_in_other_processes_kernels_make_the_same_numbers(first):
    folder, made = first
    assert digests(folder, "ahead", "ahead") == made
    assert digests(folder, "ahead") == made


@pytest.mark.skipif(not NIGHTLY, reason="compiles all kernels once more; set MBNP_NIGHTLY")
def test_compiled_on_one_thread_kernels_make_the_same_numbers(first):
    folder, made = first
    assert digests(folder, "single", threads=1) == made
