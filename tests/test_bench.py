"""`mbnp bench`: counts, comparisons and what is printed; not how fast anything is."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import mbnp
from mbnp import backend, cli, cost, fused, models, plots, weights
from mbnp.bench import blas, candidates, comparison, floor, isa, machine, profile, report, scaling, workload
from mbnp.bench.candidates import INSTALLED, TUNED
from mbnp.bench.comparison import Result
from mbnp.bench.workload import Workload
from mbnp.commands import bench
from mbnp.layers import BatchNorm, Conv, GlobalAveragePool, Linear
from mbnp.network import Network, Residual
from tests.candidates import Idle, OnnxWithoutTorch, WrongWeights
from tests.tally import NIGHTLY

SMALL = Workload("training", "mobilenet-v1-small", 2, 32, threads=1, width_mult=0.25)
PEAKS = machine.Peaks(100.0, 90.0, 100.0, 20.0, 60.0, 32 << 20)


@pytest.fixture(autouse=True)
def _threads():
    before = backend.get_num_threads()
    yield
    backend.set_num_threads(before)


def inference(work):
    return dataclasses.replace(work, work="inference")


# ---- workloads -------------------------------------------------------------------------------------------------


def test_a_file_of_weights_is_a_model(tmp_path, capsys):
    net = models.create("ssd-mobilenet-v1-small", width_mult=0.25, num_classes=3, seed=4)
    path = str(tmp_path / "net.safetensors")
    weights.save(net, path)
    work = Workload("training", path, 2, net.resolution, threads=1)
    for dtype in (np.float32, np.float64):
        made = work.network(dtype)
        assert (made.dtype, made.detection) == (dtype, net.detection)
        for name, array in net.state().items():
            np.testing.assert_array_equal(made.state()[name], array)
    _, targets = work.batch()
    assert targets.classes.max() <= 3
    assert cli.main(["bench", "--model", path, "--width-mult", "0.5"]) == 2
    assert "has its own width: leave out --width-mult" in capsys.readouterr().err


def test_a_workload_is_the_same_in_every_process_and_dtype():
    code = (
        "from mbnp.bench.workload import Workload; import numpy as np\n"
        f"workload = {SMALL!r}\n"
        "print(repr([float(sum(np.abs(a).sum() for a in workload.network().state().values())), "
        "float(workload.batch()[0].sum()), workload.batch()[1].tolist()]))"
    )
    other = eval(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    x, y = SMALL.batch()
    mine = [float(sum(np.abs(a).sum() for a in SMALL.network().state().values())), float(x.sum()), y.tolist()]
    assert other == mine
    for name, array in SMALL.network(np.float64).state().items():
        np.testing.assert_array_equal(array, SMALL.network().state()[name])


def test_batchnorms_of_a_workload_are_not_all_alike():
    state = SMALL.network().state()
    for name in ("conv1.1.weight", "conv1.1.bias", "conv1.1.running_mean", "conv1.1.running_var"):
        assert len(set(state[name])) > 1


def test_outputs_are_compared_on_as_many_images_as_there_is_memory_for(monkeypatch):
    assert dataclasses.replace(SMALL, batch_size=64).compared() == 64
    monkeypatch.setattr(workload, "COMPARED_FLOATS", 30 << 17)
    assert 2 < dataclasses.replace(SMALL, batch_size=64).compared() < 64
    monkeypatch.setattr(workload, "COMPARED_FLOATS", 0)
    assert dataclasses.replace(SMALL, batch_size=64).compared() == 2
    assert dataclasses.replace(SMALL, batch_size=1).compared() == 1


# ---- the profile -----------------------------------------------------------------------------------------------


def profiled(net, work, name="training", steps=1):
    return profile.measure(net, dataclasses.replace(work, work=name), steps)


@pytest.mark.parametrize("engine", ["fused", "reference"])
@pytest.mark.parametrize("work", ["training", "inference"])
def test_rows_add_up_to_the_network(engine, work):
    reference = SMALL.network()
    net = fused.convert(reference) if engine == "fused" else reference
    measured = profiled(net, SMALL, work, steps=2)
    counted = cost.of(reference, (32, 32, 3))
    named = {name for row in measured.rows for name in row.name.split(" + ")}
    forward, backward = (
        sum(getattr(row, way).flops for row in measured.rows if getattr(row, way)) for way in ("forward", "backward")
    )
    assert forward == SMALL.batch_size * counted.flops
    first = counted.rows[0].flops if engine == "fused" else 0  # images need no gradient
    assert backward == (SMALL.batch_size * (2 * counted.flops - first) if work == "training" else 0)
    assert "conv1.0" in named
    assert measured.total == pytest.approx(
        sum(row.seconds for row in measured.rows) + measured.optimiser + measured.rest
    )
    assert all(row.forward.seconds > 0 and row.forward.bytes > 0 for row in measured.rows)
    assert (measured.optimiser > 0) == (work == "training")
    assert sum(share for share, _, _ in measured.shares().values()) == pytest.approx(1)


def test_kinds_and_bytes_of_rows():
    net = fused.convert(SMALL.network())
    rows = {row.name: row for row in profiled(net, SMALL).rows}
    assert [rows[name].kind for name in ("conv1.0", "conv2_1.0", "conv2_1.3", "pool + flatten", "fc")] == [
        "standard", "depthwise", "pointwise", "other", "other",
    ]  # fmt: skip
    pixels = 2 * 32 * 32
    assert rows["conv2_1.0"].forward.bytes == 4 * (pixels * 8 + pixels * 8 + 9 * 8)
    # dz of the output is made from its gradient and the output itself; the input is read, its gradient written
    assert rows["conv2_1.0"].backward.bytes == 4 * (4 * pixels * 8 + 2 * 9 * 8)
    assert rows["conv1.0"].backward.bytes == 4 * (2 * pixels * 8 + pixels * 3 + 2 * (27 * 8 + 8))
    rows = {row.name: row.kind for row in profiled(net, SMALL, "inference").rows}
    assert rows["conv2_1.0 + 3"] == "separable"


@pytest.mark.parametrize("model", models.names())
@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_every_model_has_a_profile(model, engine):
    work = small(model)
    net = work.network() if engine == "reference" else fused.convert(work.network())
    layers = {name for name, _ in net.leaves()}
    for name in ("training", "inference"):
        measured = profiled(net, work, name)
        names = [row.name for row in measured.rows]
        assert len(set(names)) == len(names)
        assert {name.split(" + ")[0] for name in names} <= layers
        assert sum(row.forward.flops for row in measured.rows) == work.batch_size * cost.of(net, work.shape).flops
        assert all((row.backward is not None) == (name == "training") for row in measured.rows)
        assert max(map(len, report.layers(measured).splitlines())) <= 80
        if model == "resnet20":
            # The sum of a residual's branches is computed with the ReLU after it, and only a step by itself has a row.
            assert {"conv1", "layer1.0.conv1", "layer1.0.relu", "layer3.2.conv2", "linear"} <= set(names)
            assert "layer2.0.shortcut" in names
            assert ("layer1.0.bn2" in names) == (engine == "reference")


def small(model):
    """Return a workload of two images and few channels, of the smallest resolution that the model trains on."""
    size = 64 if "resolution" in models.options(model) else 32
    width_mult = 1.0 if model == "resnet20" else 0.25
    return dataclasses.replace(SMALL, model=model, resolution=size, width_mult=width_mult)


def test_a_sum_reads_two_feature_maps():
    rows = {row.name: row for row in profiled(fused.convert(small("resnet20").network()), small("resnet20")).rows}
    pixels = 2 * 32 * 32
    assert rows["layer1.0.relu"].kind == "other"
    assert rows["layer1.0.relu"].forward.bytes == 4 * 3 * pixels * 16
    assert rows["layer1.0.relu"].backward.bytes == 4 * 4 * pixels * 16  # dy, the output, and two gradients


def test_what_no_layer_names_is_in_the_rest():
    """A sum without an activation, as MobileNetV2 has, is nobody's row."""
    rng = np.random.default_rng(0)
    body = {"conv": Conv(4, 4, 3, padding=1, rng=rng), "bn": BatchNorm(4)}
    layers = {"first": Conv(3, 4, 1, rng=rng), "res": Residual(body)}
    net = fused.convert(Network({**layers, "pool": GlobalAveragePool(), "fc": Linear(4, 10, rng=rng)}, resolution=8))
    work = dataclasses.replace(SMALL, resolution=8)
    measured = profiled(net, work, steps=3)
    assert [row.name for row in measured.rows] == ["first", "res.conv", "pool", "fc"]
    with net.timed() as steps:
        net.forward(work.batch()[0], train=True)
    assert steps[()].forward > 0
    assert measured.rest > 0


def test_a_row_without_time_is_left_out(monkeypatch):
    net = fused.convert(SMALL.network())
    frozen = profile.time.perf_counter()
    monkeypatch.setattr("mbnp.fused.network.time.perf_counter", lambda: frozen)
    measured = profiled(net, SMALL, steps=1)
    assert measured.rows == []
    report.layers(measured)
    json.dumps(bench._layers_json(measured))
    rate = profile.Rate(0.0, 10, 20)
    assert np.isnan([rate.gflops, rate.bandwidth]).all()
    row = profile.Row("a", "other", (1,), rate, profile.Rate(1.0, 10, 20))
    text = report.layers(profile.Profile([row], 0.0, 0.0))
    assert re.search(r"^a +other +1 +0.000 +1000 ", text, re.MULTILINE)


def test_the_profile_leaves_nothing_behind():
    reference = SMALL.network()
    for net in (reference, fused.convert(reference)):
        for name in ("training", "inference"):
            profiled(net, SMALL, name)
    assert not [name for name, layer in reference.leaves() if {"forward", "backward"} & set(vars(layer))]


@pytest.mark.parametrize("until", ["conv1", "conv2_3", "conv2_8"])
def test_frozen_layers_have_no_backward(until):
    reference = SMALL.network()
    reference.freeze_until(until)
    rows = profiled(fused.convert(reference), SMALL).rows
    learning = {name for name, layer in reference.leaves() if layer.trainable()}
    assert {row.name.split(" + ")[0] for row in rows if row.backward} <= learning | {"pool"}
    assert [row for row in rows if not row.backward]
    assert rows[-1].backward


def test_with_another_backend_the_profile_is_the_layers():
    net = fused.convert(SMALL.network())
    with backend.use("numpy"):
        assert {"conv1.0", "conv1.1", "conv1.2", "fc"} <= {row.name for row in profiled(net, SMALL).rows}


# ---- matrix products, machine ----------------------------------------------------------------------------------


def test_the_matrix_products_are_the_networks():
    net = SMALL.network()
    found = floor.matmuls(net, (32, 32, 3), batch_size=3)
    assert list(found.items())[:2] == [("conv1.0", (3 * 1024, 27, 8)), ("conv2_1.3", (3 * 1024, 8, 8))]
    assert list(found.items())[-1] == ("fc", (3, 128, 10))
    counted = cost.of(net, (32, 32, 3))
    flops = 3 * sum(row.flops for row in counted.rows if row.kind != "Depthwise")
    assert 2 * sum(pixels * c * d for pixels, c, d in found.values()) == flops


@pytest.mark.parametrize("by", ["run", "run_numpy"])
def test_the_floor_computes_them(by):
    layers = floor.allocate([(1001, 27, 40), (700, 40, 33), (2, 50, 10)])
    for layer in layers:
        layer.y[...] = layer.dx[...] = layer.dw[...] = np.nan
    getattr(floor, by)(layers, backward=True)
    for layer in layers:
        c, d = layer.w.shape
        dy = layer.dy[:, :d]
        np.testing.assert_allclose(layer.y[:, :d], layer.x @ layer.w, rtol=1e-3, atol=1e-4)
        if layer.dx.size:
            np.testing.assert_allclose(layer.dx[:, :c], dy @ layer.w.T, rtol=1e-3, atol=1e-4)
        dw = layer.dw[0] if by == "run_numpy" else layer.dw.sum(axis=0)
        np.testing.assert_allclose(dw[:, :d], layer.x.T @ dy, rtol=1e-3, atol=1e-3)
    assert [len(layer.dx) for layer in layers] == [0, 700, 2]
    (layer,) = floor.allocate([(1001, 27, 40)])
    layer.dw[...] = np.nan
    getattr(floor, by)([layer], backward=False)
    assert np.isnan(layer.dw).all()


def test_the_machine_is_measured_and_described(monkeypatch):
    monkeypatch.setattr(machine, "MEMORY", 1 << 20)
    monkeypatch.setattr(machine, "last_cache_bytes", lambda: 1 << 18)
    used = set()
    monkeypatch.setattr(floor, "multiply", lambda *arrays: used.add(backend.get_num_threads()))
    before = backend.get_num_threads()
    peaks = machine.measure(threads=1, rounds=2)
    assert (used, backend.get_num_threads()) == ({1}, before)
    assert min(peaks) > 0
    assert peaks.gflops == max(peaks.gflops_numpy, peaks.gflops_kernel)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.delenv("OPENBLAS_L2_SIZE", raising=False)
    found = machine.describe()
    assert found["slowing"] == {"OPENBLAS_CORETYPE": "Haswell"}
    text = report.header(found, peaks)
    assert "OPENBLAS_CORETYPE=Haswell" in text
    assert "env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE mbnp bench" in text
    assert machine.processor() in text
    assert f"NumPy {np.__version__}" in text
    assert max(map(len, text.splitlines())) <= 80
    found["slowing"] = {}
    assert "WARNING" not in report.header(found, peaks)
    json.dumps(found)
    # where it is on purpose, it is no mistake
    found = machine.describe(held_to="avx2")
    assert found["slowing"] == {}
    assert "held to AVX2" in " ".join(report.header(found, peaks).split())


def test_without_threadpoolctl_one_line_says_what_is_missing(monkeypatch):
    assert [set(library) for library in blas.describe()] == [{"library", "version", "kernel"}] * len(blas.describe())
    monkeypatch.setattr(blas, "installed", lambda: False)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)  # to import it is an error
    monkeypatch.setattr(machine, "MEMORY", 1 << 20)
    monkeypatch.setattr(machine, "last_cache_bytes", lambda: 1 << 18)
    peaks = machine.measure(threads=1, rounds=2)
    text = " ".join(report.header(machine.describe(), peaks).split())
    assert (
        'NumPy\'s BLAS: unnamed, and on all its threads: threadpoolctl is missing (pip install -e ".[bench]")' in text
    )
    built(candidates.Matmuls(candidates.MATMULS, floor.run_numpy), inference(SMALL)).run()


# ---- outputs are compared --------------------------------------------------------------------------------------


def built(candidate, work):
    candidate.prepare(work)
    candidate.build()
    return candidate


@pytest.fixture(scope="module")
def reference():
    return built(candidates.Reference("the reference"), SMALL).outputs()


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (candidates.Mbnp, "fused"),
        (candidates.Mbnp, "readable"),
        (candidates.Torch, "channels_last"),
        (candidates.Torch, "NCHW"),
    ],
    ids=str,
)
def test_candidates_agree_in_training(kind, option, reference):
    candidate = built(kind("a name", option), SMALL)
    outputs = candidate.outputs()
    assert {"loss", "grad.conv1.0.weight", "float64.loss", "float64.grad.fc.bias"} <= set(outputs)
    assert comparison.difference(outputs, reference) is None
    candidate.run()


@pytest.mark.parametrize("kind", [candidates.Mbnp, candidates.Torch])
def test_candidates_agree_in_training_a_detector(kind):
    work = dataclasses.replace(SMALL, model="ssd-mobilenet-v1-small", batch_size=6, resolution=64)
    expected = built(candidates.Reference("the reference"), work).outputs()
    assert np.abs(expected["grad.ssd.boxes.stride8.3.weight"]).max() > 0
    candidate = built(kind("a name", "fused" if kind is candidates.Mbnp else "NCHW"), work)
    assert comparison.difference(candidate.outputs(), expected) is None
    candidate.run()


def test_a_layer_without_a_gradient_agrees():
    zero = {"loss": np.ones(1), "grad.a.weight": np.zeros(3), "grad.b.weight": np.ones(2)}
    both = zero | {f"float64.{name}": array for name, array in zero.items()}
    assert comparison.difference(both, zero) is None
    assert "grad.a.weight in float64 is off by" in comparison.difference(
        both | {"float64.grad.a.weight": np.ones(3)}, zero
    )


@pytest.mark.parametrize("model", ["mobilenet-v1-small", "mobilenet-v1", "resnet20", "ssd-mobilenet-v1-small"])
def test_candidates_agree_in_inference(model):
    work = dataclasses.replace(inference(SMALL), model=model)
    expected = built(candidates.Reference("the reference"), work).outputs()
    assert set(expected) == {"logits"}
    assert expected["logits"].dtype == np.float64
    for candidate in (candidates.Mbnp("mbnp", "fused"), candidates.Torch("PyTorch", "NCHW")):
        assert comparison.difference(built(candidate, work).outputs(), expected) is None
        candidate.run()


def test_onnx_runtime_agrees():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    work = inference(SMALL)
    candidate = built(candidates.OnnxRuntime("ONNX Runtime"), work)
    expected = built(candidates.Reference("the reference"), work).outputs()
    assert comparison.difference(candidate.outputs(), expected) is None
    candidate.run()


def test_pytorch_is_not_loaded_where_onnx_runtime_is_timed():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    with comparison.Worker(OnnxWithoutTorch("ONNX Runtime"), inference(SMALL)) as running:
        assert set(running.ask("outputs")) == {"logits"}


def changed(reference, **changes):
    exact = {f"float64.{name}": array for name, array in reference.items()}
    return reference | exact | {name.replace("__", "."): array for name, array in changes.items()}


def test_differences_are_found(reference):
    w = reference["grad.fc.weight"]
    worst = np.abs(w).max()
    off = np.zeros_like(w)
    off.flat[5] = 2e-4 * worst
    nothing = np.zeros_like(w)
    cases = {
        "its loss is off by": {"loss": reference["loss"] * (1 + 2e-4)},
        "its loss is off by nan": {"loss": np.asarray(np.nan)},
        "its gradients in float32 are off by": {"grad__fc__weight": nothing},
        "its grad.fc.weight in float64 is off by 2.0e-04": {"float64__grad__fc__weight": w + off},
        "its loss in float64": {"float64__loss": reference["loss"] + 1},
        "its grad.fc.weight has shape": {"grad__fc__weight": w.T},
        "its outputs are": {"grad__fc__other": w},
    }
    assert comparison.difference(changed(reference), reference) is None
    assert comparison.difference(dict(reference), reference) is None  # no float64: torch.compile
    # Float32's gradients may be as far off as a ReLU that flips moves them, and an irrelevant bias as rounding does.
    bias = reference["float64.grad.conv1.0.bias" if "float64.grad.conv1.0.bias" in reference else "grad.conv1.0.bias"]
    near = changed(reference, grad__fc__weight=w + off, float64__grad__conv1__0__bias=bias + 1e-9)
    assert comparison.difference(near, reference) is None
    for message, changes in cases.items():
        assert message in comparison.difference(changed(reference, **changes), reference)
    assert "its outputs are loss" in comparison.difference({"loss": reference["loss"]}, reference)


# ---- workers and comparisons -----------------------------------------------------------------------------------


def fake(name="fake", **options):
    return Idle(name, options)


def test_a_comparison_times_what_agrees_and_says_why_others_are_out(capfd):
    chosen = [
        candidates.Mbnp("mbnp", "fused"),
        WrongWeights("wrong", "readable"),
        fake("fine", noise=True),
        candidates.Torch("PyTorch, NCHW", "NCHW", TUNED),
        fake("never", dies="at once"),
        fake("halfway", dies="later"),
    ]
    said = []
    results = comparison.compare(SMALL, chosen, rounds=2, say=said.append)
    mine, wrong, fine, torch, never, halfway = results
    assert mine.refused is None
    assert len(mine.seconds) >= 2 * comparison.STEPS
    assert mine.quartiles[0] <= mine.median <= mine.quartiles[1]
    assert re.match(r"not timed, because its .* is allowed$", wrong.refused)
    assert not wrong.seconds
    assert fine.refused is None
    assert 0.001 <= fine.median < 0.1
    assert torch.refused is None
    assert len(torch.seconds) >= 2 * comparison.STEPS
    assert never.refused == "it stopped: RuntimeError: out of luck"
    assert halfway.refused == "it stopped: middle"
    assert "round 2 of 2" in said
    assert capfd.readouterr() == ("", "")
    text = report.comparison(SMALL, results, rounds=2)
    assert "wrong (as installed): not timed" in text
    assert re.search(r"^mbnp +installed +\d", text, re.MULTILINE)
    assert not re.search(r"^never +installed +\d", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80


def test_a_load_computes_only_where_it_is_applied():
    def seconds(process):
        times = process.cpu_times()
        return times.user + times.system

    with comparison.Load(1) as load:
        (busy,) = load.processes
        before = seconds(busy)
        with load.applied():
            time.sleep(0.5)
        during = seconds(busy)
        time.sleep(0.3)
        assert seconds(busy) <= during + 0.05
        assert during > before
    assert not busy.is_running()


def test_everything_is_timed_beside_a_load_too():
    (result,) = comparison.compare(SMALL, [fake()], rounds=2, load=1)
    assert len(result.loaded) == len(result.seconds)
    lines = report.load([result, Result(fake(), refused="no")], 1).splitlines()
    assert lines[0] == "The same beside 1 busy process"
    assert lines[-1].split()[-1] == f"{result.slowdown:.2f}"
    assert result.slowdown == np.median(result.loaded) / np.median(result.seconds)


def test_without_a_reference_nothing_is_timed(monkeypatch):
    class Broken(comparison.Worker):
        def ask(self, *request):
            raise comparison.Died("it stopped: MemoryError")

    monkeypatch.setattr(comparison, "Worker", Broken)
    (result,) = comparison.compare(SMALL, [fake()], rounds=1)
    assert result.refused == "not timed, because the reference failed: it stopped: MemoryError"


def test_a_worker_that_hangs_is_given_up():
    with comparison.Worker(fake(hangs=True), SMALL, patience=60) as running:
        assert running.ask("outputs") == {}
        running.patience = 0.2
        with pytest.raises(comparison.Died, match=r"no answer in 0.2 seconds"):
            running.ask("run", 1)
    assert running.process.exitcode is not None


def test_a_worker_ends_with_its_context():
    with comparison.Worker(fake(), SMALL) as running:
        assert running.ask("outputs") == {}
    assert running.process.exitcode == 0


def test_a_worker_does_not_run_the_script_that_started_it(tmp_path):
    script = tmp_path / "script.py"  # without `if __name__ == "__main__"`, as a lesson is
    script.write_text(
        "print('once')\nfrom mbnp.bench import comparison\nfrom tests import test_bench\n"
        "with comparison.Worker(test_bench.fake(), test_bench.SMALL) as running:\n"
        "    print(len(running.ask('run', 2)), __name__)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env)
    assert (run.stdout, run.stderr) == ("once\n2 __main__\n", "")


def test_peak_memory_counts_what_was_freed_but_not_what_was_imported():
    if comparison._memory("VmHWM") is None:
        pytest.skip("this system does not tell")
    (result,) = comparison.memory(SMALL, [fake(megabytes=80, imports=200)])
    assert 75e6 < result.bytes < 100e6
    assert f"fake  {result.bytes / 1e6:.1f} MB" in report.memory(SMALL, [result])


def test_environments_of_workers(monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    before, main = dict(os.environ), sys.modules["__main__"]
    with comparison.environment(INSTALLED):
        installed = dict(os.environ)
    with comparison.environment(TUNED):
        tuned = dict(os.environ)
    assert "MALLOC_TOP_PAD_" not in installed
    assert tuned["MALLOC_TOP_PAD_"] == str(comparison.ALLOCATOR["MALLOC_TOP_PAD_"]) == "268435456"
    assert installed["OPENBLAS_CORETYPE"] == tuned["OPENBLAS_CORETYPE"] == "Haswell"  # the user's own
    assert installed["TORCHINDUCTOR_COMPILE_THREADS"] == tuned["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
    assert dict(os.environ) == before
    assert sys.modules["__main__"] is main


# ---- candidates ------------------------------------------------------------------------------------------------


def test_the_candidates(monkeypatch):
    monkeypatch.setattr(candidates.platform, "libc_ver", lambda: ("glibc", "2.36"))
    peers = ["torch", "onnxruntime", "readable"]
    found = candidates.for_workload(SMALL, peers, readable=False, compiled=True)
    assert [c.name for c in found if c.allocator == INSTALLED] == [
        "mbnp", "its matrix products alone", "the same by NumPy's threads", "mbnp readable",
        "PyTorch, channels_last", "PyTorch, NCHW", "PyTorch, torch.compile",
    ]  # fmt: skip
    assert [c.name for c in found if c.allocator == TUNED] == [
        "PyTorch, channels_last", "PyTorch, NCHW", "PyTorch, torch.compile",
    ]  # fmt: skip
    found = candidates.for_workload(inference(SMALL), ["onnxruntime"], readable=True, compiled=False)
    names = [c.name for c in found]
    assert names.count("ONNX Runtime") == 2
    assert not [name for name in names if "PyTorch" in name]
    assert [c.name for c in candidates.for_memory(SMALL, ["torch"], readable=False)] == [
        "mbnp", "PyTorch, channels_last", "PyTorch, NCHW",
    ]  # fmt: skip
    monkeypatch.setattr(candidates.platform, "libc_ver", lambda: ("", ""))
    found = candidates.for_workload(SMALL, peers, readable=False, compiled=True)
    assert TUNED not in [c.allocator for c in found]


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(candidates, "find_spec", lambda name: None if "onnx" in name else find(name))
    assert cli.main(["bench", "--against", "torch,onnxruntime"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "mbnp: error: onnxruntime and onnx not installed, which --against onnxruntime needs: "
        'pip install -e ".[bench]"\n'
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "tensorflow"], "unknown peer 'tensorflow': known are onnxruntime, readable, torch"),
        (["--work", "trainig"], "unknown work 'trainig': did you mean 'training'?"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--scaling", "--load", "1"], "--load is for comparisons"),
        (["--batch-size", "0"], "batch size and resolution must be at least 1"),
        (["--resolution", "224"], "17 to 48 pixels"),
        (["--model", "mobilenet"], "unknown model 'mobilenet'"),
        (["--json", "nowhere/b.json"], "no folder for nowhere/b.json"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert cli.main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


# ---- what is printed -------------------------------------------------------------------------------------------


def result(name, median, allocator=INSTALLED, **more):
    return Result(Idle(name, {}, allocator), [median] * 3, **more)


def test_standings_are_against_the_fastest_configuration():
    results = [
        result("mbnp", 0.020),
        result(candidates.MATMULS, 0.010),
        result("by NumPy", 0.001),
        result("PyTorch, NCHW", 0.060),
        result("PyTorch, channels_last", 0.050),
        result("PyTorch, NCHW", 0.030, TUNED),
        result("PyTorch, channels_last", 0.032, TUNED),
        result("PyTorch, torch.compile", 0.001, TUNED, refused="it stopped: x"),
    ]
    found = report.standings(SMALL, results)
    assert [(s["peer"], round(s["ratio"], 3), s["name"]) for s in found] == [
        ("PyTorch, allocator tuned", 1.5, "NCHW"),
        ("PyTorch as installed", 2.5, "channels_last"),
        ("matrix products alone", 0.5, ""),
    ]
    memories = [
        result("mbnp", 1, bytes=50_000_000),
        result("PyTorch, NCHW", 1, bytes=200_000_000),
        result("PyTorch, channels_last", 1, bytes=100_000_000),
    ]
    found += report.standings(SMALL, memories, memory=True)
    assert (found[-1]["ratio"], found[-1]["name"]) == (2.0, "channels_last")
    text = report.standing(found)
    assert re.search(r"PyTorch, allocator tuned +20.0 ms +30.0 ms +1.50  NCHW", text)
    assert re.search(r"matrix products alone +20.0 ms +10.0 ms +0.50$", text, re.MULTILINE)
    assert re.search(r"PyTorch +50.0 MB +100.0 MB +2.00  channels_last", text)
    assert max(map(len, text.splitlines())) <= 80
    assert report.standings(SMALL, results[1:]) == []  # without mbnp there is no ratio


def test_a_busy_machine_is_told():
    calm, busy = result("mbnp", 0.02), result("PyTorch, NCHW", 0.02)
    busy.seconds = [0.02, 0.02, 0.05, 0.05]
    assert "far apart" not in report.comparison(SMALL, [calm], rounds=1)
    assert "far apart" in report.comparison(SMALL, [calm, busy], rounds=1)


def test_the_whole_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "measure", lambda threads: PEAKS)
    paths = tmp_path / "found.json", tmp_path / "roofline.png"
    small = ["--width-mult", "0.25", "--batch-size", "2", "--threads", "1", "--rounds", "1"]
    assert cli.main(["bench", *small, "--work", "inference", "--json", str(paths[0]), "--out", str(paths[1])]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for line in (
        r"^mbnp \S+ on .*, 1 of \d+( |\n  )processors$",
        r"^training step, mobilenet-v1-small, 2 images of 32 x 32; the fast engine$",
        r"^conv2_1.0 +depthwise +32x32x8 +\d",
        r"^pointwise +\d+\.\d % +\d+\.\d %",
        r"^mbnp +installed",
        r"^  matrix products alone",
    ):
        assert re.search(line, out, re.MULTILINE), line
    with Image.open(paths[1]) as image:
        assert image.size == (1500, 1050)
    found = json.loads(paths[0].read_text())
    assert set(found) == {"machine", "peaks", "settings", "layers", "comparisons", "standings"}
    assert found["settings"] == {
        "model": "mobilenet-v1-small", "width_mult": 0.25, "batch_size": 2, "resolution": 32, "threads": 1,
        "rounds": 1, "load": 0, "engine": "fused", "against": [],
    }  # fmt: skip
    assert found["peaks"]["gflops"] == 100
    assert set(found["machine"]["versions"]) >= {"mbnp", "numpy", "numba"}
    row = found["layers"]["training"]["rows"][0]
    assert set(row) == {"name", "kind", "output", "forward", "backward", "share"}
    assert set(row["forward"]) == {"seconds", "flops", "bytes", "gflops", "gb_per_s"}
    (compared,) = found["comparisons"]
    assert (compared["work"], compared["batch_size"]) == ("inference", 2)
    for candidate in compared["contenders"]:
        assert candidate["refused"] is None
        assert candidate["median"] > 0
        assert len(candidate["quartiles"]) == 2
    assert found["standings"][0]["ratio"] == pytest.approx(
        compared["contenders"][1]["median"] / compared["contenders"][0]["median"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", models.names() if NIGHTLY else ["mobilenet-v3-small-cifar"])
def test_the_whole_command_on_every_model(model, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(machine, "measure", lambda threads: PEAKS)
    work = small(model)
    sizes = ["--resolution", str(work.resolution), "--width-mult", str(work.width_mult), "--batch-size", "2"]
    more = ["--threads", "1", "--rounds", "1", "--out", str(tmp_path / "roofline.png")]
    assert cli.main(["bench", "--model", model, *sizes, *more]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "not timed" not in out
    assert out.count("  matrix products alone") == 2
    assert not re.search(r"\+ \d+ +other ", out)  # a convolution and what it computes on the way is of its own kind
    assert (tmp_path / "roofline.png").exists()


def test_it_fails_if_mbnp_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(machine, "measure", lambda threads: PEAKS)
    monkeypatch.setattr(
        comparison,
        "compare",
        lambda *_: [result("mbnp", 1, refused="too far off")],
    )
    small = ["--width-mult", "0.25", "--batch-size", "2", "--threads", "1", "--rounds", "1"]
    assert cli.main(["bench", *small, "--work", "inference"]) == 1
    assert "mbnp (as installed): too far off" in capsys.readouterr().out


# ---- held to an instruction set --------------------------------------------------------------------------------


def features(monkeypatch, **found):
    monkeypatch.setattr(isa.binding, "get_host_cpu_features", lambda: found)


def test_an_instruction_set_is_held_by_a_process_of_its_own(monkeypatch, capfd):
    features(monkeypatch, avx2=True)
    for variable in isa.KNOWN["avx2"]:
        monkeypatch.delenv(variable, raising=False)
    runs = []

    def run(command, env):
        runs.append((command, env))
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(isa.subprocess, "run", run)
    assert cli.main(["bench", "--isa", "avx2", "--rounds", "3"]) == 7
    ((command, env),) = runs
    assert command == [sys.executable, "-m", "mbnp", "bench", "--isa", "avx2", "--rounds", "3"]
    expected = {
        "NUMBA_CPU_NAME": "haswell", "MBNP_VECTOR_BYTES": "32", "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell",
    }  # fmt: skip
    assert env.items() >= {**os.environ, **expected}.items()
    assert isa.held("avx2", env)
    assert not isa.held("avx2", os.environ)
    assert not isa.held("avx2", {**env, "MBNP_VECTOR_BYTES": "64"})
    # a process that is held runs the command itself, and so would its candidates
    for variable, value in isa.KNOWN["avx2"].items():
        monkeypatch.setenv(variable, value)
    assert cli.main(["bench", "--isa", "avx2", "--rounds", "0"]) == 2
    assert len(runs) == 1
    with comparison.environment(TUNED):
        assert isa.held("avx2", os.environ)


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("avx2", {"avx2": False}, "--isa avx2: this processor has no AVX2"),
        ("avx2", {}, "--isa avx2: this processor has no AVX2"),
        ("avx", {"avx2": True}, "unknown instruction set 'avx': did you mean 'avx2'"),
        ("sse9", {"avx2": True}, "unknown instruction set 'sse9'"),
    ],
)
def test_instruction_sets_that_cannot_be(name, found, message, monkeypatch, capsys):
    features(monkeypatch, **found)
    monkeypatch.setattr(isa.subprocess, "run", None)
    assert cli.main(["bench", "--isa", name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "avx2" in err
    assert err.count("\n") == 1


HAS_AVX2 = isa.binding.get_host_cpu_features().get("avx2")


@pytest.mark.skipif(not HAS_AVX2, reason="this processor has no AVX2")
def test_a_process_that_is_held_has_no_wider_instructions():
    code = (
        "from numba.core.registry import cpu_target\n"
        "from mbnp.backend import vectors\n"
        "import torch\n"
        "_, name, features = cpu_target.target_context.codegen().magic_tuple()\n"
        "print(name, 'avx512' in features, vectors.BYTES, vectors.REGISTERS, torch.backends.cpu.get_cpu_capability())\n"
    )
    env = {**os.environ, **isa.KNOWN["avx2"], "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert run.stdout == "haswell False 32 16 AVX2\n"


def test_what_is_not_held_says_so(monkeypatch, capsys):
    found = candidates.for_workload(inference(SMALL), ["onnxruntime", "torch"], False, False, held_to="avx2")
    assert {c.name for c in found if "held" in c.name} == {"ONNX Runtime (not held)"}
    (onnx, *_) = [c for c in found if "held" in c.name]
    assert (onnx.group, onnx.configuration) == (candidates.ONNX, "(not held)")
    results = [result("mbnp", 0.020), result(onnx.name, 0.010)]
    assert [(s["peer"], s["name"]) for s in report.standings(SMALL, results)] == [(candidates.ONNX, "(not held)")]

    monkeypatch.setattr(machine, "measure", lambda threads: PEAKS)
    monkeypatch.setattr(candidates, "check_peers", lambda names: None)
    monkeypatch.setattr(isa, "check", lambda name: None)
    monkeypatch.setattr(isa, "held", lambda name: True)
    monkeypatch.setattr(comparison, "compare", lambda *_: [result("mbnp", 1)])
    small = ["--width-mult", "0.25", "--batch-size", "2", "--threads", "1", "--rounds", "1", "--work", "inference"]
    assert cli.main(["bench", *small, "--isa", "avx2", "--against", "onnxruntime"]) == 0
    out = capsys.readouterr().out
    assert 'ONNX Runtime cannot be held to AVX2: its times say "not held".\n' in out
    assert "held to AVX2" in " ".join(out.partition("Python")[0].split())
    assert cli.main(["bench", *small, "--against", "onnxruntime"]) == 0
    assert "held" not in capsys.readouterr().out


# ---- scaling ---------------------------------------------------------------------------------------------------


def test_scaling(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "measure", lambda threads: PEAKS)
    monkeypatch.setattr(scaling, "BATCHES", (1, 16))
    monkeypatch.setattr(scaling, "WIDTHS", (0.125, 0.25))
    monkeypatch.setattr(scaling, "RESOLUTIONS", (32, 48))
    monkeypatch.setattr(scaling, "RESOLUTION_BATCH", 1)
    monkeypatch.setattr(scaling, "TURN", 0)
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: drawn.append(self) or save(self, *a, **k))
    paths = tmp_path / "found.json", tmp_path / "scaling.png"
    arguments = ["--scaling", "--width-mult", "0.25", "--batch-size", "2", "--threads", "1", "--rounds", "1"]
    assert cli.main(["bench", *arguments, "--json", str(paths[0]), "--out", str(paths[1])]) == 0
    out = capsys.readouterr().out
    found = {sweep["varied"]: sweep["points"] for sweep in json.loads(paths[0].read_text())["scaling"]}
    assert {name: [p["value"] for p in points] for name, points in found.items()} == {
        "batch size": [1, 16], "width": [0.125, 0.25], "resolution": [32, 48], "threads": [1],
    }  # fmt: skip
    # One image of 32 x 32 leaves mobilenet-v1's last BatchNorm one value a channel.
    assert found["resolution"][0]["training"] is None
    assert found["resolution"][0]["inference"] > 0
    assert found["resolution"][1]["training"] > 0
    assert found["batch size"][0]["training"] > 0
    assert "from batch 16 to 256 at most 0 % (training) and 0 % (inference) above the least" in out
    assert [axes.get_xlabel() for axes in drawn[0].axes] == ["batch size", "width", "resolution", "threads"]
    batch = drawn[0].axes[0]
    np.testing.assert_allclose(batch.lines[0].get_ydata(), [1e3 * p["training"] for p in found["batch size"]])


def test_how_far_above_the_least():
    points = [scaling.Point(n, t, i) for n, t, i in ((8, 9, 9), (16, 1.0, 2.0), (64, 1.25, 2.0), (256, 1.1, 2.2))]
    assert scaling.worst_above_minimum(scaling.Sweep("batch size", "", points), 16, 256) == pytest.approx((0.25, 0.1))


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8])], ids=str)
def test_thread_counts(most, counts):
    assert scaling.thread_counts(most) == counts


# ---- the roofline ----------------------------------------------------------------------------------------------


def test_the_roofline_shows_every_layer():
    rate = profile.Rate
    rows = [
        profile.Row("a", "standard", (4, 4, 8), rate(1e-3, 40_000_000, 1_000_000), rate(2e-3, 80_000_000, 4_000_000)),
        profile.Row("b", "depthwise", (4, 4, 8), rate(1e-3, 2_000_000, 1_000_000), rate(2e-3, 4_000_000, 4_000_000)),
        profile.Row("c", "pointwise", (4, 4, 8), rate(1e-3, 20_000_000, 1_000_000), rate(1e-3, 20_000_000, 10_000)),
        profile.Row("d", "other", (8,), rate(1e-3, 0, 1_000_000), rate(1e-3, 0, 1_000_000)),
    ]
    figure = plots.roofline(profile.Profile(rows, 0.0, 0.0), PEAKS, "a title")
    (axes,) = figure.axes
    points = {
        (round(float(x), 6), round(float(y), 6))
        for line in axes.lines
        if line.get_marker() not in ("None", "") and line.get_linestyle() == "None"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    flops = [r for row in rows for r in (row.forward, row.backward) if r.flops]
    assert points == {(round(r.intensity, 6), round(r.gflops, 6)) for r in flops}
    styles = {(line.get_color(), line.get_marker()) for line in axes.lines if line.get_linestyle() == "None"}
    assert len({colour for colour, _ in styles}) == len(styles)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "depthwise convolution: 4 % of the FLOPs, 30 % of the time" in labels
    assert {text.get_text() for text in axes.texts} == {
        "matrix product: 100 GFLOP/s", "memory: 20 GB/s", "last cache: 60 GB/s",
    }  # fmt: skip
    (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
    assert all(left < x < right and low < y < high for x, y in points)
    roofs = [line for line in axes.lines if line.get_linestyle() in ("-", "--") and len(line.get_xdata()) == 2]
    ends = [(line.get_xdata()[1], line.get_ydata()[1]) for line in roofs]
    assert (100 / 60, 100) in ends
    assert (100 / 20, 100) in ends


def test_the_commands_help_names_what_there_is(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in ("torch,onnxruntime,readable", "--scaling", "--isa NAME", "--no-compile", "--json", "roofline"):
        assert name in text
    assert mbnp.__version__
