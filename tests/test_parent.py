"""No process that mbnp starts outlives its parent, however that ends; an interrupt of the imports is one line."""

import os
import signal
import time
from pathlib import Path

import numba
import psutil
import pytest
from PIL import Image

import mbnp
from tests.tally import NIGHTLY
from tests.test_warmup import start

ROOT = Path(mbnp.__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows does not tell who a process's parent is")


def children_end(code, count, settled=lambda children: True, **environment):
    """Run code until it has `count` child processes and they are `settled`, kill it, and wait until they are gone."""
    process = start(code, **environment)
    children = []
    try:
        for _ in range(1200):
            children = psutil.Process(process.pid).children(recursive=True)
            if len(children) >= count and settled(children):
                break
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        assert len(children) >= count
        process.kill()
        process.wait(60)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive, [child.cmdline()[:3] for child in alive]
    finally:
        process.kill()
        for child in children:
            if child.is_running():
                child.kill()
        process.communicate()


def test_the_reader_of_a_keras_file_that_never_returns(tmp_path):
    """What keeps Python from running in it is a regular expression of exponential time, in place of HDF5's loop."""
    pytest.importorskip("h5py")
    busy = tmp_path / "busy.py"
    busy.write_text(
        "import re, sys\nfrom pathlib import Path\nPath(sys.argv[1]).with_suffix('.begun').touch()\n"
        "re.match('(a*)*b', 'a' * 60)\n"
    )
    file = tmp_path / "damaged.h5"
    file.write_bytes(b"\x89HDF")
    code = f"""
    import types
    from pathlib import Path
    from mbnp.weights.keras import files

    source = files.inspect.getsource
    text = Path({str(busy)!r}).read_text()
    files.inspect = types.SimpleNamespace(getsource=lambda m: text if m is files.reader else source(m))
    files.read(Path({str(file)!r}))
    """
    children_end(code, 1, lambda _: file.with_suffix(".begun").exists())


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_the_processes_that_compile_ahead(tmp_path):
    code = """
    from mbnp import fused, models
    from mbnp.fused import ahead

    ahead._processes = lambda: 2
    net = models.create("mobilenet-v1-small", num_classes=2)
    ahead.compile_kernels(net, ahead.missing(net))
    """

    def compile(children):
        return sum(child.cpu_times().user > 0.5 for child in children) >= 2

    children_end(code, 3, compile, NUMBA_CACHE_DIR=str(tmp_path / "cache"))  # and the tracker of multiprocessing


@pytest.fixture
def slow_images(tmp_path):
    """A folder of images that take a while, and the code that prepares them in processes."""
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
    first = tmp_path / "photos" / "a" / "0.png"
    Image.effect_noise((3000, 3000), 90).save(first)
    for i in range(40):
        os.link(first, tmp_path / "photos" / "ab"[i % 2] / f"{i + 1}.png")
    return f"""
    import os, sys
    from mbnp import cli
    from mbnp.datasets import folder

    os.setsid()
    os.environ["XDG_CACHE_HOME"] = {str(tmp_path / "cache")!r}
    folder._WORTH_IT = 1
    folder._CHUNK = 1
    print("begun", flush=True)
    raise SystemExit(cli.main(["data", "show", {str(tmp_path / "photos")!r}]))
    """


def test_the_processes_that_decode_images(slow_images):
    children_end(slow_images, 3, lambda children: sum(child.cpu_times().user > 0.5 for child in children) >= 2)


def test_a_program_that_is_graded_and_never_ends(tmp_path):
    begun = tmp_path / "begun"
    code = f"""
    import time
    from mbnp.grading import program

    process = program._Process()
    text = "import os, time, pathlib\\ntime.sleep = os.getppid = print\\npathlib.Path({str(begun)!r}).touch()\\n"
    process.load("/nowhere/01.py", text + "while True:\\n    pass\\n", None, [])
    time.sleep(600)
    """
    children_end(code, 1, lambda _: begun.exists())


def test_a_thread_watches_where_the_system_does_not():
    code = """
    import os, subprocess, sys, time
    inner = "import os, sys, time; from mbnp import parent; sys.platform = 'darwin'; "
    inner += f"parent.end_with_parent({os.getpid()}); print('begun', flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", inner], stdout=subprocess.PIPE)
    child.stdout.readline()
    time.sleep(600)
    """
    children_end(code, 1, lambda children: any(child.num_threads() > 1 for child in children))


def test_a_parent_that_has_ended_already_is_noticed():
    inner = "from mbnp import parent; import sys, time; sys.platform = 'darwin'; parent.end_with_parent(1 << 30);"
    process = start(inner + " time.sleep(600)")
    assert process.wait(60) == 1
    process.communicate()


# ---- interrupts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["summary resnet20", "evaluate nothing.safetensors"])
def test_an_interrupt_at_any_moment_of_the_start_is_one_line(command):
    code = f"""
    import sys
    from mbnp import __main__
    sys.argv[1:] = {command.split()!r}
    print("begun", flush=True)
    raise SystemExit(__main__.main())
    """
    stopped = 0
    for delay in [0.0, 0.05, 0.2, 0.5] if not NIGHTLY else [k / 50 for k in range(100)]:
        process = start(code)
        assert process.stdout.readline() == "begun\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        if process.returncode == 130:
            stopped += 1
            assert err == "mbnp: stopped\n"
        else:
            assert "Traceback" not in err
            assert err.count("\n") <= 1
    assert stopped


@pytest.mark.parametrize(
    "elsewhere",
    [
        'multiprocessing.get_context("spawn").Pool(1).apply(exec, (code,))',
        "thread = threading.Thread(target=lambda: found.append(exec(code))); thread.start(); thread.join(); found[0]",
    ],
    ids=["process", "thread"],
)
def test_only_the_process_of_the_command_answers_interrupts_while_it_starts(elsewhere):
    code = f"""
    import multiprocessing, threading
    found = []
    code = "import signal; from mbnp import __main__; "
    code += "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    {elsewhere}
    """
    process = start(code)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def test_an_interrupt_while_images_are_prepared_is_one_line(slow_images, tmp_path):
    """Of all processes together, as Ctrl-C in a terminal is, also while those that decode start."""
    for delay in [0.1, 0.3, 0.6, 1.5] if not NIGHTLY else [k / 50 for k in range(100)]:
        process = start(slow_images)
        assert process.stdout.readline() == "begun\n"
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert err.splitlines()[-1:] == ["mbnp: stopped"]
        assert not [line for line in (out + err).splitlines() if not line.startswith(("preparing", "mbnp: stopped"))]
        assert not list((tmp_path / "cache").glob("mbnp/images/*/"))


def test_an_interrupt_waits_for_the_processes_that_start_whichever_thread_gets_it():
    code = """
    import os, signal, threading, time
    from mbnp.parent import starting
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    try:
        with starting():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            print("all have started", flush=True)
        print("it was lost")
    except KeyboardInterrupt:
        print("interrupted")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    """
    process = start(code)
    out, err = process.communicate(timeout=120)
    assert (out, err, process.returncode) == ("all have started\ninterrupted\n", "", 0)


def test_a_process_that_ignores_interrupts_goes_on_doing_so():
    code = """
    import signal, sys
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from mbnp import __main__
    sys.argv[1:] = ["summary", "resnet20"]
    __main__.main()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    """
    process = start(code)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def test_an_interrupt_that_ends_the_processes_first_is_the_same_line(slow_images):
    process = start(slow_images)
    parent = psutil.Process(process.pid)
    for _ in range(600):
        if sum(child.cpu_times().user > 0.5 for child in parent.children()) >= 2:
            break
        time.sleep(0.05)
    for child in parent.children():
        child.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err.splitlines()[-1:]) == (130, ["mbnp: stopped"]), out + err
