"""Kernels that are compiled ahead are those that a network calls."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest

from mbnp import fused, models
from mbnp.fused import ahead, kernels
from mbnp.layers import GlobalAveragePool, Linear
from mbnp.network import Network

pytestmark = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")


@pytest.mark.parametrize("name", ["mobilenet-v1-small", "mobilenet-v1-cifar"])
def test_the_signatures_are_those_of_real_calls(name):
    net = models.create(name, num_classes=2, width_mult=0.25)
    expected = ahead.signatures(net)
    fast = fused.convert(net)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    fast.backward(fast.forward(x, train=True))
    fast(x)
    assert {
        "stem_forward",
        "pointwise_backward",
        "depthwise_backward",
        "separable_inference",
        "head_forward",
        "head_backward",
        "head_inference",
    } <= expected.keys()
    for kernel, signature in expected.items():
        assert signature in getattr(kernels, kernel).signatures, kernel


def test_recording_leaves_the_kernels_as_they_were():
    before = dict(vars(kernels))
    ahead.signatures(models.mobilenet_v1_small(width_mult=0.25))
    assert vars(kernels) == before


def test_a_network_needs_what_its_blocks_call(monkeypatch):
    monkeypatch.setattr(ahead, "_is_cached", lambda name: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert ahead.missing(Network({"pool": GlobalAveragePool(), "fc": Linear(3, 2)}, resolution=4)) == []
    needed = ahead.missing(models.resnet20())  # its first convolution alone
    assert {"stem_forward", "stem_backward", "stem_inference"} < set(needed)
    assert not any("wise" in name for name in needed)


def test_compiled_in_other_processes_they_are_loaded_here(tmp_path):
    code = (
        "from mbnp import models\n"
        "from mbnp.fused import ahead, kernels\n"
        "if __name__ == '__main__':\n"
        "    net = models.mobilenet_v1_small(width_mult=0.25)\n"
        "    names = ['finish_adjoint', 'head_forward']\n"
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
