"""What a network looks at: exact where it has to be, PyTorch's where that has the same, and clear about bad input."""

import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mbnp import MbnpError, backend, explain, fused, models
from mbnp.layers import (
    AveragePool,
    Conv,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Network,
    Pointwise,
    ReLU,
    Residual,
    Squeeze,
)
from tests import twins

HEADS = {
    "global average": [GlobalAveragePool(), Dropout(0.5), Linear(5, 4, dtype=np.float64)],
    "1x1 convolution": [Squeeze(), Dropout(0.5), Pointwise(5, 4, dtype=np.float64), Flatten()],
    "average of a window": [AveragePool(4), Flatten(), Linear(5, 4, dtype=np.float64)],
    "two linear layers": [GlobalAveragePool(), Linear(5, 6, dtype=np.float64), Linear(6, 4, dtype=np.float64)],
    "average of the middle": [AveragePool(2, 2, padding=1), Flatten(order="CHW"), Linear(45, 4, dtype=np.float64)],
    "average alone": [Pointwise(5, 4, dtype=np.float64), GlobalAveragePool()],
}


def small(*head) -> Network:
    """Return a network whose last feature map has 4x4 cells for images of 8x8."""
    body = [Conv(3, 5, 3, stride=2, padding=1, dtype=np.float64), ReLU()]
    return Network({f"layer{i}": layer for i, layer in enumerate([*body, *head])}, 8)


def images(size: int = 8, count: int = 3, dtype: type = np.float64) -> np.ndarray:
    return twins.batch(count, size, dtype)[0]


@pytest.fixture(autouse=True)
def in_numpy():
    with backend.use("numpy"):
        yield


# --- class activation maps ---


@pytest.mark.parametrize("head", HEADS)
def test_the_mean_of_a_class_activation_map_and_the_bias_is_the_logit(head):
    net, x, classes = small(*HEADS[head]), images(), np.array([0, 3, 1])
    maps = explain.class_activation_map(net, x, classes)
    assert maps.shape == (3, 4, 4)
    nothing = np.zeros((1, 4, 4, 5))
    for layer in HEADS[head]:
        nothing = layer.forward(nothing)
    bias = 0 if head == "average alone" else nothing[0, classes]  # there it is in the feature map
    logits = net.forward(x)[np.arange(3), classes]
    np.testing.assert_allclose(maps.mean(axis=(1, 2)) + bias, logits, atol=1e-12)


def test_a_class_activation_map_is_the_weighted_sum():
    net, x = twins.vary(models.create("mobilenet-v1", width_mult=0.25, num_classes=6)), images(96, 2, np.float32)
    f = net.activations(x)["features"]
    assert f.shape == (2, 3, 3, 256)
    by_hand = f @ net["classifier"].weight.value[:, 4]
    for each in (net, fused.convert(net)):
        twins.assert_close(explain.class_activation_map(each, x, 4), by_hand, 1e-5, "map")


def test_the_articles_network_has_four_cells():
    net, x = twins.vary(models.create("mobilenet-v1-small", width_mult=0.25)), images(32, 2, np.float32)
    maps = explain.class_activation_map(net, x, [3, 5])
    logits = net.forward(x) - net["fc"].bias.value
    assert maps.shape == (2, 2, 2)
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), [logits[0, 3], logits[1, 5]], rtol=1e-4)


def test_cells_that_no_average_reads_contribute_nothing():
    net = small(AveragePool(3), Flatten(), Linear(5, 4, dtype=np.float64))
    maps = explain.class_activation_map(net, images(), 0)
    assert np.all(maps[:, 3] == 0)
    assert np.all(maps[:, :, 3] == 0)
    assert np.any(maps[:, :3, :3])


@pytest.mark.parametrize("name", ["mobilenet-v1-small", "mobilenet-v1-cifar", "resnet20", "mobilenet-v2", "xception"])
def test_these_have_one(name):
    net = models.create(name, width_mult=0.25, num_classes=3)
    size = 32 if "resolution" not in models.options(name) else 64
    assert explain.class_activation_map(net, images(size, 1, np.float32), 0).ndim == 3


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (models.create("mobilenet-v3-small", width_mult=0.25), r"classifier\.1 \(HardSwish\) comes after the average"),
        (small(GlobalAveragePool(), ReLU(), Linear(5, 4)), r"layer3 \(ReLU\)"),
        (small(MaxPool(4), Flatten(), Linear(5, 4)), r"layer2 \(MaxPool\)"),
        (small(GlobalAveragePool(), Residual([Linear(5, 5)]), Linear(5, 4)), r"layer3 \(Residual\)"),
        (Network({"a": Flatten(order="HWC"), "b": Linear(192, 4)}, 8), "takes no average"),
    ],
)
def test_others_are_refused(net, says):
    with pytest.raises(MbnpError, match=f"no class activation map: .*{says}"):
        explain.class_activation_map(net, images(8, 1, net.dtype), 0)


# --- gradients ---


@pytest.mark.parametrize("name", ["mobilenet-v1", "resnet20", "xception-cifar"])
def test_grad_cam_is_the_class_activation_map_before_an_average(name):
    net = twins.vary(models.create(name, width_mult=0.25, num_classes=5, dtype=np.float64))
    x = images(64 if name == "mobilenet-v1" else 32)
    last = net.flat()[-3][0]
    cam = explain.class_activation_map(net, x, [4, 0, 1])
    assert cam.shape[1] > 1
    signed = explain.grad_cam(net, x, [4, 0, 1], last, signed=True) * cam.shape[1] * cam.shape[2]
    twins.assert_close(signed, cam, 1e-12, "Grad-CAM")
    rectified = explain.grad_cam(net, x, [4, 0, 1], last) * cam.shape[1] * cam.shape[2]
    twins.assert_close(rectified, np.maximum(cam, 0), 1e-12, "Grad-CAM")


def test_grad_cam_at_every_layer_is_that_of_pytorch():
    net, x = (
        small(Pointwise(5, 6, dtype=np.float64), ReLU(), MaxPool(4), Flatten(), Linear(6, 4, dtype=np.float64)),
        images(),
    )
    module, outputs = twins.torch_network(net).double().eval(), []
    for part in module.children():
        part.register_forward_hook(lambda module, inputs, y: (y.retain_grad(), outputs.append(y))[0])
    module(twins.tensor(x))[:, 2].sum().backward()
    dlogits = np.zeros((3, 4))
    dlogits[:, 2] = 1
    at_once = explain.grad_cams(net.activations(x), net.gradients(x, dlogits))
    assert list(at_once) == [f"layer{i}" for i in range(5)], "those with feature maps"
    for (name, found), y in zip(at_once.items(), outputs, strict=False):
        expected = F.relu((y.grad.mean((2, 3), keepdim=True) * y).sum(1)).detach().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-12)
        np.testing.assert_array_equal(found, explain.grad_cam(net, x, 2, name))


def test_saliency_is_the_largest_slope_of_the_colours(monkeypatch):
    net, x, classes = small(*HEADS["global average"]), images(), np.array([1, 0, 3])
    pixels = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    twins.torch_network(net).double().eval()(pixels)[range(3), classes].sum().backward()
    expected = pixels.grad.abs().amax(1).numpy()
    np.testing.assert_allclose(explain.saliency(net, x, classes), expected, atol=1e-14)
    monkeypatch.setattr(explain, "_BYTES", 1)
    np.testing.assert_allclose(explain.saliency(net, x, classes), expected, atol=1e-14, err_msg="one at a time")
    np.testing.assert_allclose(explain.saliency(fused.convert(net), x, classes), expected, atol=1e-14)


# --- occlusion ---


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (2, 3), (4, 4), (1, 1), (5, 4), (20, 3), (1, 9)])
def test_occlusion_hides_a_square_in_each_cell(size, stride):
    net, x, classes = small(*HEADS["global average"]), images(7, 5), np.array([1, 0, 3, 2, 2])
    x = x[:, :, :6]
    drops = explain.occlusion(net, x, classes, size, stride, fill=[1.0, 2.0, 3.0])
    assert drops.shape == (5, -(-7 // stride), -(-6 // stride))
    before = net.forward(x)[np.arange(5), classes]
    for i, j in np.ndindex(drops.shape[1:]):
        hidden = x.copy()
        for p, q in np.ndindex(7, 6):
            ends = (min((i + 1) * stride, 7) + i * stride, min((j + 1) * stride, 6) + j * stride)
            top, left = (end // 2 - size // 2 - (size % 2 > end % 2) for end in ends)
            if top <= p < top + size and left <= q < left + size:
                hidden[:, p, q] = [1, 2, 3]
        assert not np.array_equal(hidden, x), "each square hides something"
        np.testing.assert_allclose(drops[:, i, j], before - net.forward(hidden)[np.arange(5), classes], atol=1e-12)


def test_occlusion_of_a_fast_network_finds_what_matters():
    """A network that sees nothing but one corner loses nothing where another part is hidden."""
    net = Network({"crop": MaxPool(2, 8), "pool": GlobalAveragePool(), "fc": Linear(3, 2)}, 8)
    x = np.full((40, 8, 8, 3), 2, np.float32)
    with backend.use("numba"):
        drops = explain.occlusion(fused.convert(net), x, 1, size=2, stride=2)
    assert drops.shape == (40, 4, 4)
    assert drops.dtype == np.float32
    np.testing.assert_allclose(drops[:, 0, 0], 2 * net["fc"].weight.value[:, 1].sum(), rtol=1e-5)
    assert not np.any(drops[:, 1:])
    assert not np.any(drops[:, :, 1:])


# --- statistics and sizes ---


def test_statistics_count_what_is_dead():
    f = np.zeros((2, 3, 3, 4), np.float32)
    f[0, 1, 2, 0] = 18
    f[1, 0, 0, 1] = -18
    found = explain.statistics({"a": f, "b": np.array([[1.0, 0.0], [3.0, -4.0]]), "c": f - 1})
    assert found["a"] == (0.0, pytest.approx(3), pytest.approx(70 / 72), 0.5)
    assert found["b"] == (0.0, pytest.approx(np.sqrt(6.5)), 0.25, 0)
    assert found["c"].dead == 0
    assert found["c"].zeros == 0


def test_statistics_of_all_layers():
    net = models.create("mobilenet-v3-small", width_mult=0.25)
    activations = net.activations(images(64, 2, np.float32))
    found = explain.statistics(activations)
    assert list(found) == list(activations)
    assert found["features.1.block.0.2"].zeros > 0.1, "a ReLU"


@pytest.mark.parametrize(("shape", "size"), [((8, 8), (32, 32)), ((2, 3), (7, 8)), ((1, 1), (5, 4)), ((4, 4), (4, 4))])
def test_enlarge_is_bilinear(shape, size):
    maps = np.random.default_rng(0).standard_normal((3, *shape))
    expected = F.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False)[0].numpy()
    np.testing.assert_allclose(explain.enlarge(maps, *size), expected, atol=1e-12)
    assert explain.enlarge(maps[0].astype(np.float32), *size).dtype == np.float32
    np.testing.assert_allclose(explain.enlarge(maps[0], *size), expected[0], atol=1e-12)


# --- all of them ---

METHODS = {
    "class_activation_map": lambda net, x, classes: explain.class_activation_map(net, x, classes),
    "grad_cam": lambda net, x, classes: explain.grad_cam(net, x, classes, "layer1"),
    "saliency": explain.saliency,
    "occlusion": lambda net, x, classes: explain.occlusion(net, x, classes, 2, 2),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_network_stays_as_it_was(method):
    net = small(GlobalAveragePool(), Dropout(0.5), Linear(5, 4, dtype=np.float64))
    net["layer0"].weight.grad[:] = 1
    before = pickle.dumps(net)
    METHODS[method](net, images(), 1)
    assert pickle.dumps(net) == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("count", "classes", "says"),
    [
        (3, 4, "there is no class 4: the network's are 0 to 3"),
        (3, [0, -1, 0], "there is no class -1"),
        (3, [0, 1], r"one for each of 3 images, got int64 of shape \(2,\)"),
        (3, 1.0, "classes must be a whole number, .* got float64"),
        (3, True, "got bool"),
        (0, 0, "x holds no images"),
    ],
)
def test_bad_images_and_classes_are_one_line(method, count, classes, says):
    with pytest.raises(MbnpError, match=says):
        METHODS[method](small(*HEADS["global average"]), images(count=count), classes)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda net, x: explain.grad_cam(net, x, 0, "layer9"), "unknown layer 'layer9': did you mean 'layer"),
        (lambda net, x: explain.grad_cam(net, x, 0, "layer4"), r"layer4 has no feature map, but outputs \(4,\)"),
        (lambda net, x: explain.occlusion(net, x, 0, 0, 1), "size must be a whole number of pixels from 1 up, got 0"),
        (lambda net, x: explain.occlusion(net, x, 0, 2, 1.5), r"stride must be .* got 1\.5"),
        (lambda net, x: explain.occlusion(net, x, 0, 2, 2, [1, 2]), "fill must be a number or 3 of them"),
    ],
)
def test_bad_options_are_one_line(call, says):
    with pytest.raises(MbnpError, match=says):
        call(small(*HEADS["global average"]), images())
