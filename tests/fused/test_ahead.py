"""Kernels that are compiled ahead are those that a network calls."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest

from mbnp import backend, fused, models
from mbnp.backend.jit import Kernel
from mbnp.fused import ahead, kernels
from mbnp.fused.kernels import program
from mbnp.layers import AveragePool, BatchNorm, Conv
from mbnp.network import Network

pytestmark = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")


def of_real_calls(monkeypatch, run):
    """Return the types of the arguments that every kernel is called with in run(), by its name."""
    calls = {}

    def watched(name, kernel):
        def call(*arguments):
            calls.setdefault(name, set()).add(kernel.types_of(arguments))
            return kernel(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name, module in ahead.KERNELS.items():
            patch.setattr(module, name, watched(name, getattr(module, name)))
        run()
    return calls


@pytest.mark.parametrize("name", ["mobilenet-v1-small", "mobilenet-v1-cifar", "resnet20"])
def test_the_signatures_are_those_of_real_calls(name, monkeypatch):
    net = models.create(name, num_classes=2, width_mult=0.25 if name != "resnet20" else 1)
    expected = ahead.signatures(net)
    fast = fused.convert(net)
    x = np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32)

    def run():
        fast.backward(fast.forward(x, train=True))
        fast(x)

    assert of_real_calls(monkeypatch, run) == {kernel: {signature} for kernel, signature in expected.items()}
    # and what was typed is what a call compiles
    assert all(signature in ahead._kernel(kernel).signatures for kernel, signature in expected.items())


def test_recording_leaves_the_kernels_as_they_were():
    before = dict(vars(kernels)), dict(vars(program))
    ahead.signatures(models.mobilenet_v1_small(width_mult=0.25))
    assert (vars(kernels), vars(program)) == before


def test_a_network_needs_what_its_operations_call(monkeypatch):
    monkeypatch.setattr(Kernel, "is_cached", lambda self, types: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert ahead.missing(Network({"bn": BatchNorm(3), "pool": AveragePool(2)}, resolution=4)) == []
    needed = ahead.missing(models.resnet20())
    assert {"conv_forward", "conv_backward", "run_program", "add", "pass_back"} < set(needed)
    assert not any("depthwise" in name for name in needed)
    assert not {"add", "depthwise_forward"} & set(ahead.missing(Network({"fc": Conv(3, 2, 1)}, resolution=4)))


def test_what_takes_longest_is_begun_first():
    assert list(ahead.signatures(models.mobilenet_v1_small()))[:5] == list(ahead.LONGEST)
    assert list(ahead.signatures(models.resnet20()))[:3] == ["conv_backward", "run_program", "conv_forward"]


def test_layers_that_run_as_they_are_compile_nothing_while_signatures_are_recorded():
    class Watched(AveragePool):
        def forward(self, x, train=False):
            seen.append(backend.current())
            return super().forward(x, train)

    seen = []
    net = Network({"conv": Conv(3, 16, 3, padding=1), "pool": Watched(2)}, resolution=8)
    assert "conv_backward" in ahead.signatures(net)
    assert set(seen) == {"numpy"}


def test_compiled_in_other_processes_they_are_loaded_here(tmp_path):
    code = (
        "from mbnp import models\n"
        "from mbnp.fused import ahead, kernels\n"
        "if __name__ == '__main__':\n"
        "    net = models.mobilenet_v1_small(width_mult=0.25)\n"
        "    names = ['average_backward', 'average_forward']\n"
        "    assert set(names) <= set(ahead.missing(net))\n"
        "    told = []\n"
        "    ahead.compile_kernels(net, names, told.append)\n"
        "    assert told == [1, 2]\n"
        "    assert not set(names) & set(ahead.missing(net))\n"
        "    for name in names:\n"
        "        kernel = getattr(kernels, name)\n"
        "        kernel.compile(ahead.signatures(net)[name])\n"
        "        assert sum(kernel.stats.cache_hits.values()) == 1, name\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
