"""PyTorch's checkpoints as people save them: names, nesting, averages, counters; and what only looks like one."""

import builtins
import collections
import io
import os
import pickle
import random as python_random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import _weights_only_unpickler

from mbnp import MbnpError, cli, weights
from mbnp.weights import nested, pickles
from tests.weights.test_torch_files import Cifar, archive, random

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODULE = random(Cifar, width=0.125)
RAW = MODULE.state_dict()
AVERAGE = {name: x + 0.5 if x.is_floating_point() else x for name, x in RAW.items()}
PARAMETERS = {name: x for name, x in AVERAGE.items() if name in dict(MODULE.named_parameters())}
COUNTERS = {"total_ops": torch.zeros(1), "layers.3.conv1.total_params": torch.zeros(1, dtype=torch.float64)}


def under(prefix, state):
    return {prefix + name: x for name, x in state.items()}


def loaded(path, content, which=None, **options):
    """Return which weights are taken, and what was said of that."""
    torch.save(content, path, **options)
    notes = []
    bias = weights.load(path, which, notes.append).state()["linear.bias"]
    return {0.0: "raw", 0.5: "average"}[float(np.median(bias - RAW["linear.bias"].numpy()).round(3))], " | ".join(notes)


BOTH = {"model": RAW, "model_ema": AVERAGE}
FOUND = [
    ("thop", RAW | COUNTERS, "raw", "left out: total_ops, layers.3.conv1.total_params$"),
    ("among others", {**RAW, "epoch": 4, "_extra_state": None}, "raw", "left out: epoch, _extra_state$"),
    (
        "criterion",
        {"state_dict": under("model.", RAW) | {"criterion.weight": torch.ones(9)}},
        "raw",
        "criterion.weight",
    ),
    ("metrics", under("net.", RAW) | {"train_acc.tp": torch.ones(1), "val_loss.sum": torch.ones(1)}, "raw", "val_loss"),
    ("deep", {"a": [1, {"b": under("any.prefix.", RAW)}]}, "raw", "^$"),
    ("twice the same", {"model": RAW, "net": under("module.", RAW)}, "raw", "^$"),
    ("averaged model", {"n_averaged": torch.tensor(4)} | under("module.", AVERAGE), "average", "weights of module are"),
    ("both", BOTH, "average", "of model_ema are taken, not the raw ones of model; --weights raw"),
    (
        "both, timm",
        {"state_dict": RAW, "state_dict_ema": AVERAGE},
        "average",
        "of state_dict_ema are taken, not the raw",
    ),
    (
        "both, swa",
        {"net": RAW, "swa_model": {"n_averaged": torch.tensor(2)} | under("module.", AVERAGE)},
        "average",
        "",
    ),
    ("both, in one", {"state_dict": under("net.", RAW) | under("net_ema.", AVERAGE)}, "average", "state_dict.net_ema"),
    ("ema in module", under("module.", RAW) | under("module.ema.", AVERAGE), "average", "of module.ema are taken"),
    ("parameters", {"model": RAW, "ema": {"decay": 0.9, "shadow": PARAMETERS}}, "average", "running statistics are"),
]


@pytest.mark.parametrize(("content", "which", "note"), [case[1:] for case in FOUND], ids=[case[0] for case in FOUND])
def test_a_state_dict_is_found_where_it_is(tmp_path, content, which, note):
    taken, notes = loaded(tmp_path / "checkpoint.pth.tar", content)
    assert taken == which
    assert re.search(note, notes)


WORDS = ("net", "module", "backbone", "encoder_q", "schema", "x", "0", "averages_of_what")
NOISE = {"total_ops": np.zeros(1), "criterion.weight": np.ones(3), "epoch": 3, "args": None, "val_loss.sum": np.ones(1)}
TIMES = 2000 if os.environ.get("MBNP_NIGHTLY") else 50


def test_random_nesting_prefixes_and_noise():
    """Whatever is around a state dict, it is found, and what is left out is said."""
    ends, rng = [("conv.weight", "fc.weight")], python_random.Random(0)
    state = {name: np.ones(i + 1) for i, name in enumerate(("conv.weight", "bn.running_mean", "fc.weight"))}
    for _ in range(TIMES):
        prefix = "".join(f"{word}." for word in rng.choices(WORDS, k=rng.randrange(4)))
        noise = dict(rng.sample(sorted(NOISE.items(), key=str), rng.randrange(4)))
        pairs = [*under(prefix, state).items(), *noise.items()]
        rng.shuffle(pairs)
        content = dict(pairs)
        for word in rng.choices(WORDS, k=rng.randrange(4)):
            content = rng.choice(
                [{"epoch": 1, word: content, "optimizer": {0: {"step": np.ones(1)}}}, [3, content], (content,)]
            )
        notes = []
        assert nested.choose(content, ends, None, notes.append, 1e9) == state
        assert len(notes) == bool(noise)


def test_a_maze_of_containers_comes_to_an_end():
    maze = []
    for _ in range(50):
        maze = [maze] * 50
    maze.append(maze)
    assert nested.choose(maze, [("a", "b")], None, print, 1e9) is None


@pytest.mark.parametrize("nest", ["state_dict", "model_state_dict", "model", "net", "module", "ema", "whatever"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "any.prefix."])
def test_wrappers_are_taken_off(tmp_path, nest, prefix):
    taken, notes = loaded(tmp_path / "net.pth", {nest: under(prefix, RAW), "epoch": 7, "acc": 91.5})
    assert taken == "raw"
    assert ("averaged" in notes) == (nest == "ema")


def test_raw_weights_or_those_of_a_place_are_chosen(tmp_path, capsys):
    path = tmp_path / "net.th"
    assert loaded(path, BOTH, "raw") == (
        "raw",
        "the raw weights of model are taken, not the averaged ones of model_ema",
    )
    assert loaded(path, {"teacher": RAW, "student": AVERAGE}, "student")[0] == "average"
    for content, which, message in (
        ({"teacher": RAW, "student": AVERAGE}, None, "several networks: choose one by --weights, of teacher, student"),
        ({"ema": AVERAGE}, "raw", "has no 'raw' weights, but ema"),
        (BOTH, "best", "has no 'best' weights, but model, model_ema"),
        (
            under("body.", RAW) | {"head.weight": torch.ones(3, 3)},
            None,
            "beside the network of body it has head.weight",
        ),
    ):
        with pytest.raises(MbnpError, match=message):
            loaded(path, content, which)
    torch.save(BOTH, path)
    assert cli.main(["convert", str(path), str(tmp_path / "raw.safetensors"), "--weights", "raw"]) == 0
    assert "the raw weights of model" in capsys.readouterr().err
    np.testing.assert_array_equal(weights.load(tmp_path / "raw.safetensors").state()["linear.bias"], RAW["linear.bias"])
    assert cli.main(["summary", str(path)]) == 0
    assert "averaged weights of model_ema" in capsys.readouterr().err
    assert cli.main(["train", "--weights", "raw"]) == 2


# What stands beside a state dict: all that torch.save writes and the weights-only loader reads.
PARAMETER, TENSOR = torch.nn.Parameter(torch.ones(2)), torch.ones(2)
PARAMETER.mine, TENSOR.mine = 1, 2
BESIDE = {
    "plain": [
        collections.Counter("aab"),
        collections.OrderedDict(a=1),
        {1, 2},
        (1, None, True),
        b"x",
        bytearray(b"y"),
        1j,
    ],
    "torch": [torch.device("cpu"), torch.float16, torch.int64, torch.Size([1, 2]), torch.strided, PARAMETER, TENSOR],
    "tensors": [torch.ones(2, dtype=torch.bfloat16), torch.eye(2).to_sparse(), torch.empty(9, device="meta")],
    "numbers": [10**12, 2**63, 2**70, -1, 0.5],
    "rng": torch.get_rng_state(),
}


@pytest.mark.parametrize("new", [True, False], ids=["archive", "legacy"])
def test_what_the_weights_only_loader_loads_is_loaded(tmp_path, new):
    module = random(Cifar, width=0.125)
    adam = torch.optim.Adam(module.parameters(), foreach=True)
    module(torch.ones(2, 3, 32, 32)).sum().backward()
    adam.step()
    content = {"state_dict": RAW, "optimizer": adam.state_dict(), "scheduler": {"seen": 3 * 10**9}, "beside": BESIDE}
    path = tmp_path / "net.bin"
    assert loaded(path, content, _use_new_zipfile_serialization=new)[0] == "raw"
    torch.load(path, weights_only=True)


def pickled(*opcodes):
    return b"\x80\x02" + b"".join(opcodes) + b"."


def something(rng, depth=0):
    """Return what a checkpoint may hold beside tensors, of any kind and depth."""
    if depth < 4 and rng.random() < 0.6:
        inside = [something(rng, depth + 1) for _ in range(rng.randrange(4))]
        return rng.choice([list, tuple, lambda x: dict(enumerate(x)), lambda x: collections.OrderedDict(enumerate(x))])(
            inside
        )
    plain = [
        rng.getrandbits(rng.randrange(1, 90)),
        rng.random(),
        None,
        True,
        "é" * rng.randrange(300),
        b"ab",
        bytearray(b"c"),
    ]
    return rng.choice([*plain, {1, "a"}, set(), collections.Counter("aab"), 1 + 2j, torch.float16, torch.Size([3])])


def test_random_pickles_that_pytorchs_loader_loads_are_loaded():
    rng = python_random.Random(0)
    for _ in range(TIMES):
        data = pickle.dumps(something(rng), 2)
        _weights_only_unpickler.load(io.BytesIO(data), encoding="utf-8")
        pickles._check(Path("net.pt"), io.BytesIO(data), largest=0)


def asking(name):
    module, _, attribute = name.rpartition(".")
    return b"c" + f"{module}\n{attribute}\n".encode()


def allowed(path, data):
    try:
        pickles._check(path, io.BytesIO(data))
    except MbnpError as error:
        return "not loaded" not in str(error)
    return True


def test_the_names_that_a_file_may_ask_for_are_those_of_pytorchs_loader(tmp_path):
    known, path = _weights_only_unpickler._get_allowed_globals(), tmp_path / "net.pt"
    assert len(known) > 100
    modules = (torch, torch._utils, torch.storage, builtins, collections)
    names = {f"{module.__name__}.{name}" for module in modules for name in dir(module)}
    names |= {"os.system", "posix.system", "torch.hub.load", "torch.jit.load", "numpy._core.multiarray._reconstruct"}
    names |= {"torch.nn.modules.linear.Linear", "torch.cuda.FloatTensor.new", "torch.float16.x", "pickle.loads"}
    assert {name for name in known if not allowed(path, pickled(asking(name)))} == set()
    assert {name for name in names - known.keys() if allowed(path, pickled(asking(name)))} == set()


CALL = b"\x85R"  # of the last name, with the last value
HUGE = b"\x8a\x06\x00\x00\x00\x00\x00\x01"
REBUILD = asking("torch._tensor._rebuild_from_type_v2") + b"("


@pytest.mark.parametrize(
    "data",
    [
        pickled(asking("builtins.bytearray"), HUGE, CALL),  # so many bytes of memory
        pickled(asking("builtins.bytearray"), b"q\x000", b"h\x00", HUGE, CALL),
        pickled(asking("builtins.bytearray"), b"q\x00h\x00", HUGE, CALL),
        pickled(asking("builtins.bytearray"), asking("torch.Size"), b")R", CALL),
        pickled(REBUILD, asking("builtins.bytearray"), asking("torch.Tensor"), HUGE, b"\x85}tR"),
        pickled(asking("torch.FloatTensor"), HUGE, CALL),
        pickled(asking("torch.Tensor"), HUGE, b"\x85\x81"),
        pickled(b"}", HUGE, CALL),
        pickled(b"0"),
    ],
)
def test_calls_that_no_state_dict_needs_are_refused(tmp_path, data):
    assert not allowed(tmp_path / "net.pt", data)


def test_a_file_that_needs_more_than_it_may_have_is_damaged(tmp_path):
    archive(tmp_path / "net.pt", pickled(b"R"))
    with pytest.raises(MbnpError, match=r"damaged.*its pickle takes more from its stack than is there"):
        weights.load(tmp_path / "net.pt")


OTHERS = {
    "TorchScript": lambda path: torch.jit.save(torch.jit.trace(MODULE, torch.ones(1, 3, 32, 32)), str(path)),
    "torch.export": lambda path: torch.export.save(torch.export.export(MODULE, (torch.ones(1, 3, 32, 32),)), str(path)),
    "a whole module": lambda path: torch.save(MODULE, path),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_state_dict_is_called_by_name_and_made_one(tmp_path, monkeypatch, what):
    """The two lines of the message are run, and what they make is read."""
    path = tmp_path / ("net.pt2" if what == "torch.export" else "net.pt")
    OTHERS[what](path)
    with pytest.raises(MbnpError, match=f"is {what}.* and no state dict: not loaded; these two lines") as caught:
        weights.load(path)
    monkeypatch.chdir(tmp_path)
    lines = str(caught.value).rpartition("make one: ")[2]
    exec("import torch; " + lines)
    np.testing.assert_array_equal(weights.load("state.pt").state()["linear.bias"], RAW["linear.bias"])


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_module_inside_is_named(tmp_path, options):
    torch.save({"epoch": 3, "net": MODULE}, tmp_path / "net.t7", **options)
    with pytest.raises(MbnpError, match=r"is a whole module \(of tests\.weights\.test_torch_files\.Cifar\)"):
        weights.load(tmp_path / "net.t7")


def test_no_advice_to_run_what_asks_for_more_than_classes(tmp_path):
    archive(tmp_path / "net.pt", pickled(asking("torch.nn.modules.linear.Linear"), asking("posix.system"), b"\x86"))
    with pytest.raises(MbnpError, match=r"asks for posix\.system, .* not loaded$"):
        weights.load(tmp_path / "net.pt")


@pytest.mark.parametrize("name", ["small.pt", "small.onnx", "small.keras", "small.h5", "resnet20.safetensors"])
def test_the_content_decides_and_not_the_suffix(tmp_path, name):
    expected = weights.load(FIXTURES / name).state()
    for suffix in (".pth.tar", ".h5", ".onnx", ".safetensors", ""):
        shutil.copy(FIXTURES / name, tmp_path / f"net{suffix}")
        found = weights.load(tmp_path / f"net{suffix}").state()
        assert all(np.array_equal(found[key], array) for key, array in expected.items())


def test_what_is_no_checkpoint_is_called_by_name(tmp_path):
    npz = io.BytesIO()
    np.savez(npz, a=1)
    for content, message in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08\x00", "compressed"),
        (npz.getvalue(), "archive of NumPy's arrays"),
        (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite"),
        (pickle.dumps({"a": 1}), "no file of PyTorch's weights"),
        (b"hello", "unknown kind of checkpoint"),
        (b"", "unknown kind of checkpoint"),
    ):
        (tmp_path / "net.model").write_bytes(content)
        with pytest.raises(MbnpError, match=message):
            weights.load(tmp_path / "net.model")


def test_averages_are_told_apart_in_safetensors_too(tmp_path):
    both = under("net.", RAW) | under("ema.", AVERAGE)
    save_file({name: x.clone() for name, x in both.items()}, tmp_path / "net.safetensors")
    notes = []
    weights.load(tmp_path / "net.safetensors", "raw", notes.append)
    assert notes == ["the raw weights of net are taken, not the averaged ones of ema"]
