"""State dicts of MobileNets as torchvision, timm, kuangliu, Hugging Face and marvis have them, at several widths.

The modules are those of tests/models/papers.py; names are written once more here, from the sources that
weights/torch_known.py names.
"""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mbnp import MbnpError, models, weights
from mbnp.layers import BatchNorm
from tests.models import papers
from tests.twins import batch, relative, tensor
from tests.weights.test_torch_files import BODY, Timm, random, write

STAGES = {17: (1, 2, 3, 4, 3, 3, 1), 15: (1, 2, 3, 4, 2, 3), 11: (1, 2, 3, 2, 3)}
INVERTED = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
FIRST = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}


def timms(state):
    """Return the state dict of papers.mobilenet_v2 or v3 by timm's names."""
    v3 = "classifier.3.weight" in state
    count = max(int(name.split(".")[1]) for name in state if name.startswith("features.")) - 1
    places = [f"blocks.{s}.{b}" for s, size in enumerate(STAGES[count]) for b in range(size)]
    renamed = {}
    for name, x in state.items():
        first, at, *rest = name.split(".")
        inside, last = ".".join(rest[:-1]), rest[-1]
        if first == "classifier":
            new = {"0": "conv_head", "1": "classifier", "3": "classifier"}[at]
            x = x[:, :, None, None] if new == "conv_head" and x.ndim == 2 else x
        elif at == "0":
            new = {"0": "conv_stem", "1": "bn1"}[inside]
        elif int(at) > count:
            head = f"blocks.{len(STAGES[count])}.0."
            new = {"0": f"{head}conv", "1": f"{head}bn1"} if v3 else {"0": "conv_head", "1": "bn2"}
            new = new[inside]
        else:
            new = f"{places[int(at) - 1]}.{_in_block(state, f'features.{at}.', inside.split('.', 1)[1], at == '1', v3)}"
        renamed[f"{new}.{last}"] = x
    return renamed


def _in_block(state, block, inside, first, v3):
    if not v3:
        return (FIRST if first else INVERTED)[inside]
    if "fc" in inside:
        return {"fc1": "se.conv_reduce", "fc2": "se.conv_expand"}[inside.rpartition(".")[2]]
    units = sorted({key.split(".")[3] for key in state if key.startswith(block) and "fc" not in key})
    number = units.index(inside.split(".")[0])
    conv = (("conv_dw", "conv_pw") if first else ("conv_pw", "conv_dw", "conv_pwl"))[number]
    return conv if inside.endswith("0") else f"bn{number + 1}"


class MarvisBody(nn.Sequential):
    def __init__(self, width):
        c = [int(32 * width)] + [int(out * width) for out, _ in BODY]

        def bn(conv):
            return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()]

        parts = [nn.Sequential(*bn(nn.Conv2d(3, c[0], 3, 2, 1, bias=False)))]
        for (a, b), (_, stride) in zip(itertools.pairwise(c), BODY, strict=True):
            depthwise = bn(nn.Conv2d(a, a, 3, stride, 1, groups=a, bias=False))
            parts.append(nn.Sequential(*depthwise, *bn(nn.Conv2d(a, b, 1, bias=False))))
        super().__init__(*parts)


class Marvis(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.model, self.fc = MarvisBody(width), nn.Linear(int(1024 * width), classes)

    def forward(self, x):
        return self.fc(self.model(x).mean((2, 3)))


class Unit(nn.Module):
    """Hugging Face's MobileNetV1ConvLayer."""

    def __init__(self, c_in, c_out, kernel, stride, groups=1):
        super().__init__()
        self.convolution = nn.Conv2d(c_in, c_out, kernel, stride, groups=groups, bias=False)
        self.normalization = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x):
        k, s = self.convolution.kernel_size[0], self.convolution.stride[0]
        h, w = (max(k - s, 0) if n % s == 0 else max(k - n % s, 0) for n in x.shape[2:])
        x = F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
        return F.relu6(self.normalization(self.convolution(x)))


class HuggingFace(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        c = [max(int(32 * width), 8)] + [max(int(out * width), 8) for out, _ in BODY]
        self.mobilenet_v1 = nn.Module()
        self.mobilenet_v1.conv_stem = Unit(3, c[0], 3, 2)
        layers = []
        for (a, b), (_, stride) in zip(itertools.pairwise(c), BODY, strict=True):
            layers += [Unit(a, a, 3, stride, a), Unit(a, b, 1, 1)]
        self.mobilenet_v1.layer = nn.ModuleList(layers)
        self.classifier = nn.Linear(c[-1], classes)

    def forward(self, x):
        x = self.mobilenet_v1.conv_stem(x)
        for layer in self.mobilenet_v1.layer:
            x = layer(x)
        return self.classifier(x.mean((2, 3)))


class TimmH(Timm):
    """timm's mobilenetv1_100h."""

    def __init__(self, width, classes):
        super().__init__(classes, width)
        c = int(1024 * width)
        self.conv_head, self.bn2 = nn.Conv2d(c, 1024, 1, bias=False), nn.BatchNorm2d(1024)
        self.classifier = nn.Linear(1024, classes)

    def forward(self, x):
        x = self.blocks(F.relu6(self.bn1(self.conv_stem(x))))
        return self.classifier(F.relu6(self.bn2(self.conv_head(x))).mean((2, 3)))


def v3(size, **options):
    return lambda width, classes: papers.mobilenet_v3(size, width, classes, **options)


SAME = dict
CASES = {  # module, widths, names, the builder that is found at those widths (None: its layers)
    "torchvision v2": (papers.mobilenet_v2, (0.35, 0.37, 1.4), SAME, "mobilenet-v2"),
    "torchvision v3 large": (v3("large", columns=True), (0.5, 1.25), SAME, None),
    "torchvision v3 large 1.0": (v3("large", columns=True), (1.0,), SAME, "mobilenet-v3-large"),
    "torchvision v3 small": (v3("small", columns=True), (0.1, 0.75), SAME, None),
    "keras's widths": (v3("small"), (0.5,), SAME, "mobilenet-v3-small"),
    "kuangliu v2": (papers.MobileNetV2Cifar, (0.25, 1.0), SAME, "mobilenet-v2-cifar"),
    "timm v2": (papers.mobilenet_v2, (0.5,), timms, "mobilenet-v2"),
    "timm v3 large": (v3("large", eps=1e-5), (0.5,), timms, None),
    "timm v3 small": (v3("small", eps=1e-5, columns=True), (0.75,), timms, None),
    "timm v1 100h": (TimmH, (0.25,), SAME, None),
    "hugging face v1": (HuggingFace, (0.25,), SAME, None),
    "marvis v1": (Marvis, (0.25,), SAME, "mobilenet-v1"),
}


@pytest.mark.parametrize(("case", "width"), [(case, width) for case in CASES for width in CASES[case][1]])
def test_a_state_dict_is_recognised(tmp_path, case, width):
    make, _, rename, builder = CASES[case]
    module = random(make, width, 5)
    write(tmp_path / "net.pt", rename(module.state_dict()))
    net = weights.load(tmp_path / "net.pt")
    assert net.arch["name"] == (builder or "layers")
    assert net.preprocessing == ({"mean": [0.5] * 3, "std": [0.5] * 3} if "hugging" in case else None)
    x, _ = batch(2, 45, np.float32)
    expected = module(tensor(x)).detach().numpy()
    assert expected.std() > 0.01
    assert relative(net(x), expected) < 1e-5
    for _, layer in net.leaves():  # or what is said of eps would not be seen
        if isinstance(layer, BatchNorm):
            layer.eps = 1e-5 if layer.eps == 1e-3 else 1e-3
    assert relative(net(x), expected) > 1e-4


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("timm")])
def test_timms_names_come_back(tmp_path, case):
    make, (width, *_), rename, _ = CASES[case]
    state = {n: x for n, x in rename(random(make, width, 5).state_dict()).items() if not n.endswith("tracked")}
    write(tmp_path / "net.pt", state)
    back = weights.to_torch(weights.load(tmp_path / "net.pt"), names="timm")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], x) for name, x in state.items())


def test_eps_and_head_are_timms_or_it_is_not_timms():
    with pytest.raises(MbnpError, match="not timm's"):
        weights.to_torch(models.mobilenet_v3_small(), names="timm")  # torchvision's eps
    assert "conv_head.weight" in weights.to_torch(models.mobilenet_v2(seed=3), names="timm")


def test_torchvisions_width_scales_every_column(tmp_path):
    module = v3("large", columns=True)(0.75, 1000)
    assert sum(p.numel() for p in module.parameters()) == 3_377_576
    write(tmp_path / "net.safetensors", module.state_dict())
    net = weights.load(tmp_path / "net.safetensors")
    assert sum(p.value.size for p in net.parameters().values()) == 3_377_576


@pytest.mark.parametrize("case", ["torchvision v2", "kuangliu v2", "keras's widths"])
def test_ours_are_written_for_pytorch(tmp_path, case):
    make, (width, *_), _, builder = CASES[case]
    net = models.create(builder, num_classes=5, width_mult=width, seed=7)
    weights.save(net, tmp_path / "net.pt")
    module = make(width, 5).eval()
    module.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True), strict=False)
    x, _ = batch(2, 45, np.float32)
    assert relative(net(x), module(tensor(x)).detach().numpy()) < 1e-5
    assert weights.load(tmp_path / "net.pt").arch["name"] == builder


def test_tensorflows_weights_in_timm(tmp_path):
    """tf_mobilenetv3_* have timm's names, another padding and another eps: their config.json tells."""
    path = tmp_path / "model.safetensors"
    write(path, {n: x.contiguous() for n, x in timms(random(v3("small"), 0.5, 5).state_dict()).items()})
    notes = []
    assert dict(weights.load(path, say=notes.append).leaves())["features.0.1"].eps == 1e-5
    assert "tf_mobilenetv3_small_* has the same names" in notes[0]
    said = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 224, 224]}
    config = {"architecture": "tf_mobilenetv3_small_050", "pretrained_cfg": said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    net = weights.load(path)
    leaves = dict(net.leaves())
    assert (leaves["features.0.1"].eps, leaves["features.0.0"].options["padding"]) == (1e-3, "same")
    assert net.preprocessing == {"mean": [0.5] * 3, "std": [0.5] * 3}


def test_hugging_faces_config_is_honoured(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, random(HuggingFace, 0.25, 3).state_dict())
    config = {"image_size": 192, "id2label": {"0": "background", "1": "cat", "2": "dog"}, "tf_padding": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    net = weights.load(path)
    assert (net.resolution, net.classes) == (192, ["background", "cat", "dog"])
    for wrong in ({"tf_padding": False}, {"layer_norm_eps": 1e-5}, {"hidden_act": "relu"}):
        (tmp_path / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(MbnpError, match=f"says {next(iter(wrong))}"):
            weights.load(path)


V2 = papers.MobileNetV2Cifar(0.25, 5).state_dict()
BIG = {"features.5.block.1.0.weight": torch.zeros(10**8, 1, 0, 0)}
STRANGE = {
    "kuangliu's MobileNetV2 with other blocks": {n: x for n, x in V2.items() if not n.startswith("layers.16.")},
    "mobilenet-v2-cifar .*missing layers.3.bn1": {n: x for n, x in V2.items() if n != "layers.3.bn1.weight"},
    "mobilenet-v2-cifar .*conv2": V2 | {"conv2.weight": torch.zeros(7)},
    "of no width multiplier": V2 | {"conv1.weight": torch.zeros(16, 3, 3, 3)},
    "a network of timm's with inverted residuals": {
        "blocks.1.0.conv_pwl.weight": torch.zeros(2),
        "x.weight": torch.ones(1),
    },
    "mobilenet-v2 .*features.7.conv.1.0 and what is around": papers.mobilenet_v2(0.35, 5).state_dict()
    | {"features.7.conv.1.0.weight": torch.zeros(7, 1, 3, 3)},
    "has a kernel of 7": papers.mobilenet_v2(0.35, 5).state_dict()
    | {"features.1.conv.0.0.weight": torch.zeros(16, 1, 7, 7)},
    "mobilenet-v3-small .*features.5.block": v3("small")(0.35, 5).state_dict() | BIG,
    "torchvision's MobileNetV2 without": {
        n: x for n, x in papers.mobilenet_v2(0.35, 5).state_dict().items() if "classifier" not in n
    },
    "Hugging Face's MobileNetV2, or": {"mobilenet_v2.conv_stem.first_conv.convolution.weight": torch.zeros(2)},
    "a transformer": {"blocks.0.attn.qkv.weight": torch.zeros(2)},
}


@pytest.mark.parametrize("message", STRANGE)
def test_a_refused_file_says_what_it_is(tmp_path, message):
    write(tmp_path / "net.pt", STRANGE[message])
    with pytest.raises(MbnpError, match=message) as caught:
        weights.load(tmp_path / "net.pt")
    assert "v1-cifar in" not in str(caught.value)
    assert "\n" not in str(caught.value)
