"""Python threads, forked processes, and threads that there cannot be. What may crash runs in a process of its own."""

import os
import subprocess
import sys
import textwrap
import timeit
from pathlib import Path

import numba
import numpy as np
import pytest

from mbnp import backend, fused, models, ops
from mbnp.backend import launch
from mbnp.backend.jit import Kernel
from mbnp.backend.launch import PreparedKernel
from mbnp.parameter import Parameter
from tests.tally import NIGHTLY

ROOT = Path(backend.__file__).parents[2]
needs_jit = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def run(code, seconds=240, **environment):
    """Run code in a process of its own; return its status, standard output and standard error."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": paths, "NUMBA_NUM_THREADS": "2"} | environment
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    return done.returncode, done.stdout, done.stderr


def ends_well(code, **environment):
    status, out, err = run(code, **environment)
    assert status == 0, f"{status}\n{out}\n{err}"
    return out


# ---- Python threads --------------------------------------------------------------------------------------------


@needs_jit
def test_python_threads_may_run_any_kernels_at_once_under_every_layer():
    """Numba's own pool, workqueue, ends a process that gives it two kernels at once."""
    code = f"""
    import threading
    import numba
    import numpy as np
    from mbnp import layers, models, network, ops, optim, train

    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 16, 16, 8)).astype(np.float32)
    w = rng.normal(size=(3, 3, 8)).astype(np.float32)
    full = rng.normal(size=(3, 3, 8, 8)).astype(np.float32)
    net = models.create("resnet20", num_classes=3, width_mult=0.5, seed=0)
    opt = optim.SGD(net.parameters(), lr=0.0)
    images, labels = rng.normal(size=(2, 32, 32, 3)).astype(np.float32), np.array([0, 1])
    calls = [
        lambda: ops.relu.forward(x),
        lambda: ops.relu.backward(x, x),
        lambda: ops.depthwise.forward(x, w, None, 1, 1),
        lambda: ops.depthwise.backward(x, x, w, 1, 1)[1],
        lambda: ops.conv.forward(x, full, None, 1, 1),
        lambda: ops.pointwise.forward(x, full[0, 0], None),
        lambda: train.step(net, opt, images, labels),
    ]
    expected = [call() for call in calls]
    failed = []

    def work(first):
        try:
            for i in range({60 if NIGHTLY else 6} * len(calls)):
                k = (first + i) % len(calls)
                np.testing.assert_array_equal(calls[k](), expected[k])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    print(numba.threading_layer())
    """
    assert ends_well(code, NUMBA_THREADING_LAYER="workqueue") == "workqueue\n"


@needs_jit
def test_every_kernel_takes_the_lock():
    from tests.test_warmup import modules

    found = [v for m in modules() for v in vars(m).values() if isinstance(v, Kernel) and v.__module__ == m.__name__]
    assert len(found) > 30
    for kernel in found:
        assert isinstance(kernel, PreparedKernel) or type(kernel).__call__ is Kernel.__call__
    assert type(launch._run).__call__ is Kernel.__call__  # which makes the calls of those that are prepared


@needs_jit
def test_the_lock_that_nobody_else_wants_costs_less_than_a_microsecond():
    def add(a, b):
        a[0] += b[0]

    kernel, without = backend.jit(add), numba.njit(nogil=True)(add)
    a, b = np.zeros(4), np.ones(4)
    seconds = {kernel: [], without: []}
    kernel(a, b)
    without(a, b)
    for _ in range(200):  # in alternation, and the best of each: other processes run, too
        for each, times in seconds.items():
            times.append(timeit.timeit(lambda each=each: each(a, b), number=500) / 500)
    assert min(seconds[kernel]) - min(seconds[without]) < 1e-6


# ---- forked processes ------------------------------------------------------------------------------------------

BEGIN = """
    import multiprocessing, os, threading, time
    import numpy as np
    from mbnp import MbnpError, backend, ops, optim
    from mbnp.parameter import Parameter

    x = np.ones((1, 2, 2, 3), np.float32)

    def kernel(_=None):
        return float(ops.relu.forward(x).sum())

    def in_child(function):
        child = os.fork()
        if not child:
            status = 1
            try:
                function()
                status = 0
            finally:
                os._exit(status)
        for _ in range(600):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0, status
                return
            time.sleep(0.05)
        os.kill(child, 9)
        raise SystemExit("it hangs")

    def refused():
        try:
            kernel()
        except MbnpError as error:
            assert "spawn" in str(error) and "forked" in str(error)
            assert str(error).count(chr(10)) == 0
        else:
            raise SystemExit("it was not refused")
"""


@needs_jit
@needs_fork
@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_a_process_forked_after_a_kernel_is_refused_by_one_line(layer):
    code = """
    kernel()
    for _ in range(3):
        in_child(refused)
    in_child(lambda: in_child(refused))  # a child's child

    def numpy_runs():
        with backend.use("numpy"), backend.one_pool():
            assert kernel() == 12

    in_child(numpy_runs)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        try:
            pool.map(kernel, range(4))
        except MbnpError as error:
            assert "spawn" in str(error)
        else:
            raise SystemExit("it was not refused")
    assert kernel() == 12  # the parent goes on
    """
    ends_well(BEGIN + code, NUMBA_THREADING_LAYER=layer)


@needs_jit
@needs_fork
def test_a_process_forked_before_any_kernel_runs_its_own():
    code = """
    def works():
        assert kernel() == 12

    in_child(works)
    in_child(works)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(kernel, range(4)) == [12] * 4
    works()
    """
    ends_well(BEGIN + code)


@needs_fork
def test_a_process_forked_while_another_thread_has_the_lock_does_not_wait_for_it():
    code = f"""
    holds, ends = threading.Event(), threading.Event()

    def hold():
        with backend.one_pool():
            holds.set()
            ends.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()

    def trains():
        with backend.use("numpy"):
            opt = optim.SGD({{"p": Parameter(np.ones(3, np.float32))}}, lr=1)
            opt.zero_grad()
            opt.step()

    for _ in range({60 if NIGHTLY else 6}):
        in_child(trains)
    ends.set()
    thread.join()
    """
    ends_well(BEGIN + code)


@needs_jit
@needs_fork
def test_a_process_forked_while_another_thread_runs_kernels_is_refused():
    code = f"""
    kernel()
    going = True

    def go_on():
        while going:
            kernel()

    thread = threading.Thread(target=go_on)
    thread.start()
    for _ in range({100 if NIGHTLY else 10}):
        in_child(refused)
    going = False
    thread.join()
    """
    ends_well(BEGIN + code)


@needs_jit
@needs_fork
def test_a_training_step_in_a_forked_process_is_refused_by_the_name_of_a_kernel():
    code = """
    from mbnp import fused, models
    net = fused.convert(models.mobilenet_v1_small(width_mult=0.25))
    images = np.ones((2, 32, 32, 3), np.float32)

    def kernel(_=None):
        try:
            net.backward(net.forward(images, train=True))
        except MbnpError as error:
            assert "conv_forward" in str(error), error
            raise

    kernel()
    in_child(refused)
    kernel()
    """
    ends_well(BEGIN + code)


# ---- read-only arrays ------------------------------------------------------------------------------------------


def frozen(*arrays):
    for array in arrays:
        array.flags.writeable = False
    return arrays


@needs_jit
def test_read_only_arrays_compile_nothing():
    from mbnp.commands.common import compilation

    rng = np.random.default_rng(0)
    x, w, full = (rng.normal(size=shape).astype(np.float32) for shape in [(2, 8, 8, 8), (3, 3, 8), (3, 3, 8, 8)])
    gamma = np.ones(8, np.float32)
    net = fused.convert(models.create("mobilenet-v1-small", num_classes=3, width_mult=0.25))
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    labels = np.array([0, 1])

    def everything():
        y = ops.conv.forward(x, full, gamma, 1, 1)
        ops.conv.backward(x, x, full, 1, 1)
        ops.depthwise.forward(x, w, gamma, 1, 1)
        ops.depthwise.backward(x, x, w, 1, 1)
        ops.pointwise.forward(x, full[0, 0], gamma)
        ops.pointwise.backward(x, x, full[0, 0])
        ops.relu.backward(x, ops.relu.forward(x))
        logits = net.forward(images, train=True)
        loss = ops.softmax_cross_entropy.forward(logits, labels)
        net.backward(*frozen(np.ones_like(logits)))
        return y, logits, loss, net.forward(images)

    everything()
    frozen(x, w, full, gamma, images, labels)
    with compilation() as count:
        everything()
    assert count.compiled == 0


def test_a_read_only_array_keeps_its_values_its_memory_and_its_flag():
    (x,) = frozen(np.arange(6.0).reshape(2, 3))
    seen = backend.of_one_type(x)
    assert np.shares_memory(seen, x)
    np.testing.assert_array_equal(seen, x)
    assert not x.flags.writeable
    y = np.ones(3)
    assert backend.of_one_type(y) is y
    before = seen.copy()
    del x
    np.testing.assert_array_equal(seen, before)
    assert backend.of_one_type(*frozen(np.empty((0, 3)))).shape == (0, 3)


def test_a_parameter_that_is_given_a_read_only_array_takes_a_copy():
    (value,) = frozen(np.ones(3, np.float32))
    p = Parameter(value)
    p.value = p.value + 1
    assert value[0] == 1
    assert p.value[0] == 2


# ---- the environment -------------------------------------------------------------------------------------------

COMMAND = "from mbnp import cli\nraise SystemExit(cli.main(['train', '--threads', '1', '--data', '/nowhere']))"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NUMBA_NUM_THREADS", "0", "from 1 to 4096, got '0'"),
        ("NUMBA_NUM_THREADS", "two", "got 'two'"),
        ("NUMBA_NUM_THREADS", "", "got ''"),
        ("NUMBA_NUM_THREADS", "-1", "got '-1'"),
        ("NUMBA_NUM_THREADS", "1000000", "got '1000000'"),
        ("NUMBA_THREADING_LAYER", "tbd", "must be one of default, forksafe, omp"),
        ("NUMBA_THREADING_LAYER", "", "got ''"),
        pytest.param("NUMBA_THREADING_LAYER", "tbb", "no threads: ", marks=needs_jit),
        pytest.param("NUMBA_THREADING_LAYER_PRIORITY", "omp tbb", "no threads: ", marks=needs_jit),
    ],
)
def test_threads_that_there_cannot_be_are_one_line(name, value, said):
    if value == "tbb" and importable("numba.np.ufunc.tbbpool"):
        pytest.skip("TBB is here")
    status, out, err = run(COMMAND, **{name: value})
    assert (status, out) == (2, "")
    assert err.startswith("mbnp: error: ")
    assert err.count("\n") == 1
    assert said in err
    assert name in err


def importable(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def test_in_python_they_are_an_error_of_ours():
    status, _, err = run("import mbnp.ops", NUMBA_NUM_THREADS="two")
    assert status == 1
    assert err.splitlines()[-1].startswith("mbnp.errors.MbnpError: NUMBA_NUM_THREADS must be a whole number")


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
@pytest.mark.parametrize(
    ("chosen", "turns"), [({}, "10000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_threads_wait_for_a_short_time_unless_the_user_has_chosen_another(chosen, turns):
    code = """
    import os
    from mbnp import backend
    before = dict(os.environ)
    backend.get_num_threads()
    assert os.environ == before
    """
    quiet = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = quiet | {"PYTHONPATH": paths, "OMP_DISPLAY_ENV": "verbose"} | chosen
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("Numba's threads are not those of GNU's OpenMP here")
    assert f"GOMP_SPINCOUNT = '{turns}'" in done.stderr
