"""What comes from outside: files that are damaged or hostile, names that steer a terminal, output that nobody takes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from mbnp import MbnpError, cli, layers, models, spec, storage, train, weights
from mbnp.network import Network, Residual
from mbnp.weights import native
from tests import fuzz
from tests.tally import NIGHTLY, tally
from tests.test_cli import write_records

NASTY = "\x1b[2J\x1b]0;title\x07\u202e\x9b1m"


def make_net(classes="abcdefghij"):
    net = models.mobilenet_v1_small(width_mult=0.25)
    net.classes, net.preprocessing = list(classes), {"mean": [0.5] * 3, "std": [0.5] * 3}
    return net


# --- mutated files ---


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of memory")
@pytest.mark.parametrize("kind", fuzz.FORMATS if NIGHTLY else ["safetensors", "onnx", "keras", "run"])
def test_mutated_files_load_or_are_refused_in_one_line(kind):
    counts, wrong = fuzz.run(kind, seconds=600 if NIGHTLY else 3, seed=int(time.time()) if NIGHTLY else 1)
    tally(f"mutated files of the format {kind}", **counts)
    print(f"{kind}: {dict(counts)}")
    assert not wrong, "\n".join(wrong)
    assert counts["refused"] > 0 or not NIGHTLY  # a busy machine may need all three seconds to begin


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1] * 70, "data_offsets": [0, 4]}},  # NumPy has at most 64 axes
        {"a": {"dtype": "F32", "shape": [0, 1 << 62], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}},
    ],
)
def test_what_a_library_raises_that_is_not_its_own_error(tmp_path, header):
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + bytes(header["a"]["data_offsets"][1])
    )
    with pytest.raises(MbnpError, match=r"x\.safetensors"):
        weights.load(tmp_path / "x.safetensors")


def test_every_flipped_bit_of_a_checkpoint_is_noticed_or_means_nothing(tmp_path):
    """A flip in spaces or in the name of the checksum leaves the same network; any other is an error."""
    net = Network({"conv": layers.Conv(3, 2, 1), "pool": layers.GlobalAveragePool(), "fc": layers.Linear(2, 2)}, 4)
    net.preprocessing, net.classes = {"mean": [0.5] * 3, "std": [0.25] * 3}, ["a", "b"]
    path = tmp_path / "net.safetensors"
    weights.save(net, path)
    whole, before = path.read_bytes(), native.describe(net)
    rng = np.random.default_rng(0)
    bits = range(8 * len(whole)) if NIGHTLY else rng.choice(8 * len(whole), 1500, replace=False)
    refused = 0
    for bit in map(int, bits):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            loaded = weights.load(path)
        except MbnpError:
            refused += 1
            continue
        assert native.describe(loaded) == before
        assert all(np.array_equal(a, b) for a, b in zip(loaded.state().values(), net.state().values(), strict=True))
    assert refused > 0.9 * len(bits)


# --- what a description may ask for ---


def forge(net, path, **said):
    metadata = native.describe(net) | {key: json.dumps(value) for key, value in said.items()}
    safetensors.numpy.save_file(net.state(), path, metadata)


@pytest.mark.parametrize("resolution", [10_000, 10**30])
def test_a_resolution_that_would_take_gigabytes_is_refused(tmp_path, capsys, resolution):
    forge(models.mobilenet_v1(num_classes=3, width_mult=0.04), tmp_path / "big.safetensors", resolution=resolution)
    Image.new("RGB", (8, 8)).save(tmp_path / "i.png")
    assert cli.main(["predict", str(tmp_path / "i.png"), "--checkpoint", str(tmp_path / "big.safetensors")]) == 2
    assert f"make feature maps of more than {spec.MOST_NUMBERS:,} numbers, at the image" in capsys.readouterr().err


def test_other_formats_have_the_same_limit(tmp_path):
    import onnx

    weights.save(models.mobilenet_v1(num_classes=3, width_mult=0.04), tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx")
    for axis in (2, 3):
        graph.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 9999
    onnx.save(graph, tmp_path / "net.onnx")
    with (
        zipfile.ZipFile(fuzz.HERE / "fixtures" / "small.keras") as old,
        zipfile.ZipFile(tmp_path / "net.keras", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"[null, 16, 16, 3]", b"[null, 9999, 9999, 3]"))
    for name in ("net.onnx", "net.keras"):
        with pytest.raises(MbnpError, match=r"images of 9999 x 9999 x 3 make feature maps of more than"):
            weights.load(tmp_path / name)


def test_many_layers_are_counted_together(tmp_path):
    """The engine keeps every feature map, so that a chain of small ones may be as much as one that is large."""

    def nest(depth):
        return Residual({"pad": layers.Pad(0), **({"in": nest(depth - 1)} if depth else {})})

    last = {"pool": layers.GlobalAveragePool(), "fc": layers.Linear(3, 2)}
    net = Network({"nest": nest(12), **last}, 720)
    assert spec.check_flow(net, (720, 720, 3)) > 0.6 * spec.MOST_NUMBERS
    net.resolution = 1000
    with pytest.raises(MbnpError, match=r"a checkpoint of this network could not be read again: images of 1000 x 1000"):
        weights.save(net, tmp_path / "net.safetensors")


def test_a_batch_is_as_large_as_memory_allows():
    for name, most in [("mobilenet-v1-small", 256), ("mobilenet-v1-cifar", 256), ("mobilenet-v1", 21)]:
        net = models.create(name)
        assert spec.most_images(net, (net.resolution, net.resolution, 3), 256) == most
    assert spec.most_images(net, (1040, 1040, 3), 256) == 1


def test_predict_takes_images_a_few_at_a_time(tmp_path, capsys, monkeypatch):
    weights.save(make_net(), tmp_path / "net.safetensors")
    for i in range(5):
        Image.effect_noise((32, 32), 50 + i).save(tmp_path / f"{i}.png")
    command = [
        "predict",
        *(str(tmp_path / f"{i}.png") for i in range(5)),
        "--checkpoint",
        str(tmp_path / "net.safetensors"),
    ]
    seen, probabilities = [], train.probabilities
    monkeypatch.setattr(train, "probabilities", lambda net, x: seen.append(len(x)) or probabilities(net, x))
    assert cli.main([*command, "--readable"]) == 0
    together = capsys.readouterr().out.removeprefix("compiling kernels (once) ...\n")
    monkeypatch.setattr(spec, "MOST_NUMBERS", 2 * spec.check_flow(make_net(), (32, 32, 3)))
    assert cli.main([*command, "--readable"]) == 0
    assert capsys.readouterr().out == together
    assert seen == [5, 2, 2, 1]


def test_a_step_that_no_machine_has_memory_for(tmp_path, monkeypatch, capsys):
    net = Network({"pad": layers.Pad(900), "pool": layers.GlobalAveragePool(), "fc": layers.Linear(3, 10)}, 32)
    net.preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3}
    weights.save(net, tmp_path / "net.safetensors")
    records = write_records(tmp_path / "records")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 10**8}))
    monkeypatch.chdir(tmp_path)
    command = ["train", "--init", str(tmp_path / "net.safetensors"), "--data", str(records)]
    assert cli.main(command) == 2
    assert (
        "a step on 22 images keeps up to 0.9 GB of feature maps, and this machine has 0.1 GB" in capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()


# --- what is written ---


SUFFIXES = (".safetensors", ".onnx", ".pt")


def python(code, folder, **environment):
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])} | environment
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_same_network_is_the_same_file(tmp_path):
    for seed in ("1", "2"):  # of hashes, which order sets
        code = "from mbnp import models, weights; net = models.mobilenet_v1_small(width_mult=0.1)\n"
        code += f"for suffix in {SUFFIXES}: weights.save(net, '{seed}' + suffix)"
        assert python(code, tmp_path, PYTHONHASHSEED=seed).stderr == ""
    for suffix in SUFFIXES:
        assert (tmp_path / f"1{suffix}").read_bytes() == (tmp_path / f"2{suffix}").read_bytes()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    pytest.importorskip("resource")
    weights.save(make_net(), tmp_path / "net.safetensors")
    (tmp_path / "out").mkdir()
    code = "import resource; from mbnp import cli\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    code += f"for suffix in {SUFFIXES}: print(cli.main(['convert', 'net.safetensors', 'out/x' + suffix]))"
    done = python(code, tmp_path)
    assert done.stdout.split() == ["2"] * 3
    assert done.stderr == "mbnp: error: [Errno 27] File too large\n" * 3
    assert os.listdir(tmp_path / "out") == []


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path):
    code = "import os, pathlib, signal\nfrom mbnp import storage\n"
    code += "with storage.replacing(pathlib.Path('a.pt')): os.kill(os.getpid(), signal.SIGKILL)"
    assert python(code, tmp_path).returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    foreign = re.sub(r"mbnp-\w+-", "mbnp-01234567-", left)  # of another machine, where its process may run
    running = f"{storage.unfinished(Path('b'))}abcd_123.part"
    kept = [foreign, running, left.replace("mbnp-", "mbnp-x"), ".a.mbnp-.part"]
    for name in kept:
        (tmp_path / name).touch()
    with storage.replacing(tmp_path / "other.json") as partial:  # of whatever name
        partial.write_text("{}")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "other.json"])
    os.utime(tmp_path / foreign, (0, 0))
    storage.clear(tmp_path / "other.json")
    assert not (tmp_path / foreign).exists()  # after a day, wherever it was written


# --- the terminal ---


def test_names_from_files_steer_no_terminal(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_records(tmp_path / f"data{NASTY}")
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    data = ["--data", str(folder)]
    weights.save(make_net(), tmp_path / "net.safetensors")
    state = {f"layer{NASTY}.weight": np.ones(3, np.float32)}
    safetensors.numpy.save_file(state, tmp_path / "torch.safetensors")
    safetensors.numpy.save_file(make_net().state() | state, tmp_path / "more.safetensors", native.describe(make_net()))
    forge(make_net(), tmp_path / "classes.safetensors", classes=[NASTY, *"abcdefghi"])
    forge(make_net(), tmp_path / "kind.safetensors", arch={"name": NASTY})
    image = tmp_path / f"{NASTY}.png"
    Image.new("RGB", (8, 8)).save(image)
    commands = [
        ["data", "show", *data],
        ["evaluate", "net.safetensors", *data],
        ["train", "--epochs", "1", "--readable", "--width-mult", "0.25", "--batch-size", "16", *data],
        ["train", "--init", "net.safetensors", "--freeze-until", NASTY, *data],
        ["predict", str(image), "--checkpoint", "net.safetensors"],
        ["predict", f"no{NASTY}", "--checkpoint", "net.safetensors"],
        ["summary", f"./{NASTY}"],
        ["convert", "net.safetensors", f"x{NASTY}.onnx"],
        ["data", "subset", "--out", f"s{NASTY}", "--train", "20", "--test", "10", *data],
        *(["summary", f"{name}.safetensors"] for name in ("torch", "more", "classes", "kind")),
    ]
    for command in commands:
        status = cli.main(command)
        out, err = capfd.readouterr()
        assert status in (0, 1, 2), command
        text = (out + err).replace("\n", "")
        assert text, command
        assert text.isprintable(), f"{command}: {text!r}"
    with pytest.raises(MbnpError) as caught:  # in Python, too
        weights.load("more.safetensors")
    assert str(caught.value).isprintable()
    assert r"\x1b[2J" in str(caught.value)


# --- standard output ---


def mbnp(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, "-m", "mbnp", *map(str, arguments)], env=environment, **pipes)


def closed_pipe():
    read, write = os.pipe()
    os.close(read)
    return write


OUTPUTS = {"full": lambda: os.open("/dev/full", os.O_WRONLY), "closed": closed_pipe}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize("where", OUTPUTS if NIGHTLY else ["full"])
def test_training_goes_on_if_nobody_takes_what_it_says(where, tmp_path):
    records = write_records(tmp_path / "records")
    options = ["--epochs", "2", "--batch-size", "16", "--width-mult", "0.25", "--threads", "1", "--readable"]
    done = mbnp("train", "--data", records, *options, "--out", tmp_path / "run", stdout=OUTPUTS[where]())
    assert (done.returncode, done.stderr) == (0, b"")
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3
    assert (tmp_path / "run" / "curves.png").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_other_commands_end_if_nobody_takes_what_they_say():
    done = mbnp("summary", "resnet20", stdout=OUTPUTS["full"]())
    assert (done.returncode, done.stderr) == (2, b"mbnp: error: [Errno 28] No space left on device\n")
    done = mbnp("summary", "resnet20", stdout=OUTPUTS["closed"]())
    assert (done.returncode, done.stderr) == (141, b"")
    assert mbnp("summary", "nothing", stderr=OUTPUTS["full"]()).returncode == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a pipe with a name")
@pytest.mark.parametrize("what", ["pipe", "folder"])
def test_what_is_no_file_is_not_replaced(what, tmp_path, monkeypatch):
    """A user who may would otherwise lose a device, such as /dev/null, to a picture."""
    monkeypatch.chdir(tmp_path)
    (os.mkfifo if what == "pipe" else os.mkdir)("out.png")
    with pytest.raises(MbnpError, match=r"out\.png is no file: name another one"), storage.replacing(Path("out.png")):
        pass
    assert os.listdir() == ["out.png"]
    assert not Path("out.png").is_file()
