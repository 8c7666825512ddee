"""`import mbnp` and `mbnp --help` are quick, because nothing heavy comes with them."""

import subprocess
import sys
import time

import pytest

import mbnp

HEAVY = ("numba", "scipy", "threadpoolctl", "matplotlib", "rich", "PIL", "torch")


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy():
    loaded = python("import sys, mbnp; print(*(name.split('.')[0] for name in sys.modules))").split()
    assert not set(HEAVY) & set(loaded)


def test_import_costs_next_to_nothing_beyond_numpys():
    code = "import time, numpy; t = time.perf_counter(); import mbnp; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.1


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]], ids=str)
def test_help_answers_at_once(arguments):
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mbnp", *arguments], capture_output=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from mbnp.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*(name.split('.')[0] for name in sys.modules))"
    )
    assert not {*HEAVY, "numpy"} & set(python(code).split())


def test_every_public_name_is_there_on_first_use():
    code = "import mbnp\nfor name in mbnp.__all__: assert getattr(mbnp, name) is not None, name"
    python(code)
    assert dir(mbnp) == sorted(mbnp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nets'"):
        mbnp.nets  # noqa: B018


def test_nothing_but_the_extras_needs_scipy_or_threadpoolctl():
    """Every module can be imported without them, and a network trains."""
    code = (
        "import sys, pkgutil, importlib, numpy as np\n"
        "sys.modules |= {'scipy': None, 'threadpoolctl': None}  # to import one is an error\n"
        "import mbnp\n"
        "from mbnp import fused, layers, network, optim, train\n"
        "for module in pkgutil.walk_packages(mbnp.__path__, 'mbnp.'):\n"
        "    if module.name not in ('mbnp.__main__', 'mbnp.bench.torch_network'):\n"
        "        importlib.import_module(module.name)\n"
        "net = network.Network({'conv': layers.Conv(3, 2, 3), 'pool': layers.GlobalAveragePool()}, resolution=4)\n"
        "x = np.zeros((2, 4, 4, 3), np.float32)\n"
        "train.step(fused.convert(net), optim.SGD(net.parameters(), 0.1), x, np.array([0, 1]))\n"
        "print(sorted(name for name in sys.modules if name.startswith(('scipy.', 'threadpoolctl.'))))\n"
    )
    assert python(code) == "[]\n"
