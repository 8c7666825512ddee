"""PyTorch's files without a description: recognised by names and shapes; and .pt files, hostile ones among them."""

import io
import itertools
import json
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from mbnp import MbnpError, fused, layers, models, optim, train, weights
from mbnp.network import Network
from mbnp.weights import pickles, torch_known
from tests.twins import Article, batch, relative, tensor, vary

WIDTH = 0.25
BODY = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), *[(512, 2)], *[(512, 1)] * 5, (1024, 2), (1024, 1)]


class CifarBlock(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv2 = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Cifar(nn.Module):
    """The names of kuangliu/pytorch-cifar's MobileNet."""

    def __init__(self, num_classes=10, width=WIDTH):
        super().__init__()
        c = int(32 * width)
        self.conv1, self.bn1 = nn.Conv2d(3, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        channels = [c] + [int(out * width) for out, _ in BODY]
        self.layers = nn.Sequential(*[CifarBlock(channels[i], channels[i + 1], s) for i, (_, s) in enumerate(BODY)])
        self.linear = nn.Linear(channels[-1], num_classes)

    def forward(self, x):
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.linear(F.avg_pool2d(x, 2).flatten(1))


class TimmBlock(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv_dw = nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv_pw = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)

    def forward(self, x):
        return F.relu6(self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x))))))


class Timm(nn.Module):
    """The names of timm's mobilenetv1_*: stages of 1, 2, 2, 6 and 2 blocks."""

    def __init__(self, num_classes=10, width=WIDTH):
        super().__init__()
        c = int(32 * width)
        self.conv_stem, self.bn1 = nn.Conv2d(3, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c)
        channels = [c] + [int(out * width) for out, _ in BODY]
        made = [TimmBlock(channels[i], channels[i + 1], s) for i, (_, s) in enumerate(BODY)]
        ends = [0, 1, 3, 5, 11, 13]
        self.blocks = nn.Sequential(*[nn.Sequential(*made[a:b]) for a, b in itertools.pairwise(ends)])
        self.classifier = nn.Linear(channels[-1], num_classes)

    def forward(self, x):
        return self.classifier(self.blocks(F.relu6(self.bn1(self.conv_stem(x)))).mean((2, 3)))


def random(make, *arguments, **options):
    """Return a module with random weights and statistics, so large that ReLU6 clips."""
    torch.manual_seed(0)
    module = make(*arguments, **options)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -0.2, 0.2)
            nn.init.uniform_(m.running_var, 0.1, 1.0)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 5.0)
    return module.eval()


def write(path, state):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize(
    ("make", "builder", "options", "size"),
    [
        (Article, "mobilenet-v1-small", {"width_mult": 1.0}, 32),
        (Cifar, "mobilenet-v1-cifar", {"width_mult": WIDTH}, 32),
        (Timm, "mobilenet-v1", {"width_mult": WIDTH, "relu_cap": 6.0, "resolution": 224}, 65),
    ],
)
def test_a_state_dict_is_recognised(tmp_path, make, builder, options, size, dtype, tolerance, suffix):
    module, path = random(make, num_classes=7).to(dtype), tmp_path / f"net{suffix}"
    write(path, module.state_dict())
    net = weights.load(path)
    assert net.arch == {"name": builder, "num_classes": 7, **options}
    assert net.preprocessing is None  # nobody said what the images were
    x, _ = batch(3, size, net.dtype)
    expected = module(tensor(x)).detach().numpy()
    assert relative(net(x), expected) < tolerance
    assert relative(fused.convert(net)(x), expected) < tolerance


@pytest.mark.parametrize(
    ("make", "net"),
    [
        (Article, models.mobilenet_v1_small()),
        (Cifar, models.mobilenet_v1_cifar(width_mult=WIDTH)),
        (Timm, models.mobilenet_v1(10, WIDTH, max_value=6)),
    ],
)
def test_and_written_for_pytorch(tmp_path, make, net):
    weights.save(vary(net), tmp_path / "net.pt")
    module = make().eval()
    module.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True), strict=False)
    x, _ = batch(3, 32, np.float32)
    assert relative(net(x), module(tensor(x)).detach().numpy()) < 1e-5
    again = weights.load(tmp_path / "net.pt")
    np.testing.assert_array_equal(again(x), net(x))


def test_timms_weights_are_for_relu6():
    module = random(Timm)
    with pytest.raises(MbnpError, match="max_value=6"):
        weights.from_torch(models.mobilenet_v1(10, WIDTH), module.state_dict())
    capped, plain = models.mobilenet_v1(10, WIDTH, max_value=6), models.mobilenet_v1(10, WIDTH)
    weights.from_torch(capped, module.state_dict())
    plain.load_state(capped.state())
    x, _ = batch(3, 32, np.float32)
    assert relative(plain(x), capped(x)) > 0.01  # or the comparisons above would not see the difference
    back = weights.to_torch(capped, names="timm")
    assert all(torch.equal(back[name], x) for name, x in module.state_dict().items() if name in back)
    assert len(back) == 5 * 27 + 2


@pytest.mark.parametrize("width", [0.1, 0.25, 0.35, 0.7, 1.0, 1.25])
def test_any_width_is_found(width):
    for channels in (64, 512, 1024):
        found = torch_known.width_of(int(channels * width), channels)
        narrower = [2**k for k in range(5, channels.bit_length())]
        assert [int(c * found) for c in narrower] == [int(c * width) for c in narrower]


def test_training_goes_on_with_pytorchs_losses(tmp_path):
    torch.manual_seed(0)
    module = Article().double().train()

    def step(opt, x, y):
        opt.zero_grad()
        loss = F.cross_entropy(module(tensor(x)), torch.from_numpy(y))
        loss.backward()
        opt.step()
        return loss.item()

    def optimiser():
        return torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)

    batches = [batch(8, 32, np.float64, seed) for seed in range(9)]
    before = optimiser()
    for x, y in batches[:3]:
        step(before, x, y)
    torch.save({"epoch": 3, "state_dict": module.state_dict()}, tmp_path / "checkpoint.pt")
    net = weights.load(tmp_path / "checkpoint.pt")
    assert net.dtype == np.float64
    ours, theirs = optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4), optimiser()
    for x, y in batches[3:]:
        assert train.step(net, ours, x, y) == pytest.approx(step(theirs, x, y), rel=1e-8)


def test_what_timm_puts_beside_its_weights(tmp_path):
    write(tmp_path / "model.safetensors", random(Timm, num_classes=2).state_dict())
    said = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "input_size": [3, 160, 160]}
    config = {"architecture": "mobilenetv1_100", "pretrained_cfg": said, "label_names": ["cat", "dog"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    net = weights.load(tmp_path / "model.safetensors")
    assert net.preprocessing == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    assert (net.resolution, net.classes) == (160, ["cat", "dog"])
    for other in ("[]", "{", json.dumps(config | {"architecture": "resnet18"})):
        (tmp_path / "config.json").write_text(other)
        assert weights.load(tmp_path / "model.safetensors").preprocessing is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"model_args": {"drop_rate": 0.2, "in_chans": 3, "global_pool": "avg"}, "num_classes": 2}, None),
        ({"pretrained_cfg": None, "mean": [0.5] * 3, "std": [0.2] * 3, "input_size": [3, 64, 64]}, None),
        ({"global_pool": "max"}, "global_pool 'max', and the network has 'avg'"),
        ({"num_classes": 1000}, "num_classes 1000, and the network has 2"),
        ({"model_args": {"bn_eps": 1e-3}}, "bn_eps 0.001, and mbnp does not know what that changes"),
        ({"model_args": {"in_chans": 1}}, "in_chans 1"),
        ({"model_args": {"global_pool": "avgmax"}}, "global_pool 'avgmax'"),
        ({"model_args": [1]}, "no table of model_args"),
        ({"label_names": ["cat"]}, "names 1 classes for 2 outputs"),
        ({"pretrained_cfg": {"mean": [0, 0, 0], "std": [0, 0, 0], "input_size": [3, 8, 8]}}, "its preprocessing is"),
        (
            {"pretrained_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1], "input_size": [3, 8, 9]}},
            "mbnp takes square images",
        ),
        ({"pretrained_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, "input_size None"),
    ],
)
def test_a_config_of_timms_is_honoured_whole_or_refused(tmp_path, change, message):
    write(tmp_path / "model.safetensors", random(Timm, num_classes=2).state_dict())
    said = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "input_size": [3, 64, 64]}
    config = {"architecture": "mobilenetv1_100", "global_pool": "avg", "pretrained_cfg": said} | change
    config = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if message is None:
        assert weights.load(tmp_path / "model.safetensors").resolution == 64
        return
    with pytest.raises(MbnpError, match=message):
        weights.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_half_precision_becomes_float32(tmp_path, dtype, suffix):
    module = random(Cifar).to(dtype)
    write(tmp_path / f"net{suffix}", module.state_dict())
    net = weights.load(tmp_path / f"net{suffix}")
    assert net.dtype == np.float32
    np.testing.assert_array_equal(net.state()["conv1.weight"], module.conv1.weight.float().detach().permute(2, 3, 1, 0))


def test_the_format_before_pytorch_1_6(tmp_path):
    module = random(Cifar)
    torch.save(module.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(weights.load(tmp_path / "old.pth").state()["bn1.bias"], module.bn1.bias.detach())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.3.conv1.weight": None}, "missing layers.3.conv1.weight"),
        ({"extra.weight": torch.zeros(2)}, "unexpected extra.weight"),
        ({"layers.2.conv2.weight": torch.zeros(2, 3, 1, 1)}, "has shape"),
        ({"layers.2.conv2.weight": torch.zeros(5)}, "no weight of a Pointwise"),
        ({"layers.12.conv2.weight": torch.zeros(100_000_000, 0, 1, 1)}, "too few"),
        ({"linear.weight": torch.zeros(100_000_000, 0)}, "too few"),
        ({"bn1.running_var": torch.full((8,), -1.0)}, "negative variance"),
        ({"bn1.bias": torch.full((8,), torch.nan)}, "holds NaN"),
        ({"linear.weight": None}, "of no state dict that mbnp knows"),
    ],
)
def test_what_does_not_fit(tmp_path, suffix, change, message):
    state = {name: x for name, x in (random(Cifar).state_dict() | change).items() if x is not None}
    write(tmp_path / f"net{suffix}", state)
    with pytest.raises(MbnpError, match=message) as caught:
        weights.load(tmp_path / f"net{suffix}")
    assert "\n" not in str(caught.value)


def test_a_strange_state_dict_says_what_names_it_has(tmp_path):
    write(tmp_path / "net.safetensors", {f"encoder.{i}.weight": torch.zeros(2) for i in range(5)})
    with pytest.raises(MbnpError, match=r"its names \('encoder.0.weight', 'encoder.1.weight', .*, \.\.\.\)"):
        weights.load(tmp_path / "net.safetensors")


def test_a_network_that_would_be_taken_for_another_is_not_written(tmp_path):
    net = models.mobilenet_v1(10, WIDTH)
    for layer in (layer for _, layer in net.leaves() if isinstance(layer, layers.BatchNorm)):
        layer.eps = 1e-3  # Keras's
    with pytest.raises(MbnpError, match="would be taken for another mobilenet-v1"):
        weights.save(net, tmp_path / "net.pt")
    with pytest.raises(MbnpError, match="not timm's"):
        weights.save(net, tmp_path / "net.pt", names="timm")
    assert not list(tmp_path.iterdir())
    own = Network({"last": layers.Pointwise(3, 2), "pool": layers.GlobalAveragePool()}, resolution=8)
    weights.save(own, tmp_path / "own.pt")
    assert list(torch.load(tmp_path / "own.pt", weights_only=True)) == ["last.weight", "last.bias"]


# -- hostile files -----------------------------------------------------------------------------------------


class Payload:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refused(path, message):
    tracemalloc.start()
    with pytest.raises(MbnpError, match=message) as caught:
        weights.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 30_000_000


def archive(path, data=b"", storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("net/data.pkl", data)
        file.writestr("net/version", "3\n")
        file.writestr("net/byteorder", "little")
        for i, storage in enumerate(storages):
            file.writestr(f"net/data/{i}", storage)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", ["archive", "legacy", "bare"])
def test_a_pickle_is_never_run(tmp_path, kind, protocol):
    path, trace = tmp_path / "net.pt", tmp_path / "trace"
    data = pickle.dumps({"conv1.weight": Payload(trace)}, protocol)
    if kind == "archive":
        archive(path, data)
    elif kind == "legacy":
        path.write_bytes(pickles.LEGACY + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + data)
    else:
        path.write_bytes(data)
    refused(path, "not loaded" if kind != "bare" else "damaged or no file")
    assert not trace.exists()
    pickle.loads(data)  # the payload does work
    assert trace.exists()


def test_an_archive_that_expands_is_refused(tmp_path):
    archive(tmp_path / "net.pt", b"\x80\x02}.", [bytes(200_000_000)], zipfile.ZIP_DEFLATED)
    assert (tmp_path / "net.pt").stat().st_size < 1_000_000
    refused(tmp_path / "net.pt", "expands when it is read")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    one = torch.zeros(1).expand(40_000, 40_000)
    torch.save(random(Cifar).state_dict() | {"linear.weight": one}, tmp_path / "view.pt")
    refused(tmp_path / "view.pt", "its tensors are larger than the file")
    buffer = io.BytesIO()
    torch.save({"linear.weight": torch.zeros(4)}, buffer)
    with zipfile.ZipFile(buffer) as file:
        data = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    assert data.count(b"K\x04") == 2
    archive(tmp_path / "claim.pt", data.replace(b"K\x04", b"\x8a\x06\x00\x00\x00\x00\x00\x01"), [bytes(16)])
    refused(tmp_path / "claim.pt", "damaged or no file of PyTorch's weights")


def test_an_old_file_that_claims_much_is_refused(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "net.pt").read_bytes()
    assert data.count(b"K\x04") >= 2
    (tmp_path / "net.pt").write_bytes(data.replace(b"K\x04", b"\x8a\x06\x00\x00\x00\x00\x00\x01"))
    refused(tmp_path / "net.pt", "damaged: it speaks of")


@pytest.mark.parametrize("old", [False, True])
def test_truncated_files(tmp_path, old):
    path = tmp_path / "net.pt"
    torch.save(random(Cifar).state_dict(), path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    for size in (0, 1, 10, 200, 5_000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "damaged")


@pytest.mark.parametrize("content", [3, [torch.zeros(2)], {1: torch.zeros(2)}, {"a": 1}, {"a": [torch.zeros(1)]}])
def test_what_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "holds no state dict")


def test_without_pytorch(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "net.pt")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MbnpError, match="need PyTorch"):
        weights.load(tmp_path / "net.pt")


@pytest.mark.parametrize("suffix", [".pt", ".keras", ".safetensors"])
def test_an_archive_on_several_disks_is_refused(suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    locator = b"PK\x06\x07" + bytes(12) + (2).to_bytes(4, "little")  # of ZIP64: the end of the directory is elsewhere
    path.write_bytes(b"PK\x03\x04" + bytes(100) + locator + b"PK\x05\x06" + bytes(18))
    with pytest.raises(MbnpError, match=f"net{suffix} is damaged or no checkpoint"):
        weights.load(path)
