"""torchvision's ssdlite320_mobilenet_v3_large: outputs from its state dict, its anchors, and what is refused."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mbnp import MbnpError, fused, models, weights
from mbnp.layers import BatchNorm
from tests.models import papers
from tests.twins import batch, relative, tensor
from tests.weights.test_torch_files import random

PARAMETERS = 3_440_060  # of the published weights, says torchvision


def module(tail, classes):
    return random(lambda: papers.SSDLite(tail, classes)).double().eval()


@pytest.mark.parametrize(("tail", "classes", "size"), [("reduced", 90, 96), ("large", 3, 64)])
def test_same_outputs_as_in_pytorch(tmp_path, tail, classes, size):
    """The published weights have the reduced tail; what is trained from V3's weights has the large one."""
    other = module(tail, classes)
    torch.save(other.state_dict(), tmp_path / "ssd.pth")
    net = weights.load(tmp_path / "ssd.pth")
    assert net.dtype == np.float64
    x, _ = batch(2, size, np.float64)
    with torch.no_grad():
        expected = torch.cat(other(tensor(x)), dim=2).numpy()
    for engine in (net, fused.convert(net)):
        assert relative(engine.forward(x), expected) < 1e-10
    assert {(bn.eps, bn.momentum) for _, bn in net.leaves() if isinstance(bn, BatchNorm)} == {(1e-3, 0.03)}
    assert net.preprocessing == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert net.num_classes == classes
    again = tmp_path / "again.safetensors"
    weights.save(net, again)
    found = weights.load(again)
    assert (found.arch, found.detection, found.classes) == (net.arch, net.detection, net.classes)
    np.testing.assert_array_equal(found(x), net(x))


def test_the_builder_is_torchvisions():
    net = models.ssdlite320_mobilenet_v3_large()
    other = papers.SSDLite("reduced", 90)
    assert sum(p.value.size for p in net.parameters().values()) == PARAMETERS
    assert sum(p.numel() for p in other.parameters()) == PARAMETERS
    assert weights.from_torch(net, other.state_dict()) == ((), (), ())
    assert net.output_shape((320, 320, 3)) == (3234, 95)
    assert net.grids() == [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]


def test_the_anchors_are_torchvisions():
    """DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95), with its clip=True, written out."""
    sides = [0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0]
    stages = models.ssdlite320_mobilenet_v3_large().detection["anchors"]
    for sizes, s, larger in zip(stages, sides, sides[1:], strict=False):
        expected = [(s, s), ((s * larger) ** 0.5, (s * larger) ** 0.5)]
        for ratio in (2, 3):
            w, h = s * ratio**0.5, s / ratio**0.5
            expected += [(w, h), (h, w)]
        np.testing.assert_allclose(sizes, np.minimum(expected, 1), rtol=1e-12)


def test_cocos_classes_have_names(tmp_path):
    other = module("reduced", 90)
    torch.save(other.state_dict(), tmp_path / "ssd.pth")
    names = weights.load(tmp_path / "ssd.pth").classes
    assert (names[0], names[11], names[17], names[89]) == ("person", "N/A", "dog", "toothbrush")


LOGITS = "head.classification_head.module_list.0.1"
WRONG = {
    "anchors": ({f"{LOGITS}.weight": (25, 672, 1, 1)}, "25 numbers, no multiple of 6 anchors"),
    "one class": ({f"{LOGITS}.weight": (6, 672, 1, 1)}, "6 numbers, no multiple of 6 anchors"),
    "extra": ({"backbone.extra.1.0.0.weight": (128, 511, 1, 1)}, r"shape \(128, 511, 1, 1\), not \(any, 512, 1, 1\)"),
    "tail": ({"backbone.features.1.3.0.weight": (480, 81, 1, 1)}, "features.16.0.weight has shape"),
    "body": ({"backbone.features.0.13.0.weight": None}, r"features.13.block.2.fc1.weight has shape"),
    "head": (
        {"head.regression_head.module_list.2.1.weight": (24, 9, 1, 1)},
        "ssd.boxes.2.1.weight|module_list.2.1.weight",
    ),
    "no head": ({"head.regression_head.module_list.2.1.bias": None}, "missing ssd.boxes.2.1.bias"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_line(tmp_path, case):
    changes, problem = WRONG[case]
    state = {name: x.float().numpy() for name, x in module("reduced", 3).state_dict().items() if x.ndim}
    for name, shape in changes.items():
        state[name] = np.zeros(shape or 0, np.float32)
        if shape is None:
            del state[name]
    save_file(state, tmp_path / "ssd.safetensors")
    with pytest.raises(MbnpError, match=problem) as error:
        weights.load(tmp_path / "ssd.safetensors")
    assert "\n" not in str(error.value)


def test_a_small_file_makes_no_large_network(tmp_path):
    """Logits of one head alone, on one channel, would ask for five more of their number."""
    state = {name: x.float().numpy() for name, x in module("reduced", 3).state_dict().items() if x.ndim}
    state["backbone.features.0.13.0.weight"] = np.zeros((1, 112, 1, 1), np.float32)
    state["backbone.features.1.0.1.0.weight"] = np.zeros((1, 1, 5, 5), np.float32)
    state["backbone.features.1.0.2.fc1.weight"] = np.zeros((8, 1, 1, 1), np.float32)
    state["backbone.features.1.0.2.fc2.weight"] = np.zeros((1, 8, 1, 1), np.float32)
    state["backbone.features.1.0.3.0.weight"] = np.zeros((80, 1, 1, 1), np.float32)
    state[f"{LOGITS}.weight"] = np.zeros((6 * 90_000, 1, 1, 1), np.float32)
    save_file(state, tmp_path / "ssd.safetensors")
    with pytest.raises(MbnpError, match="too few"):
        weights.load(tmp_path / "ssd.safetensors")
