"""Pyramid, the container of detectors: its rows, its gradients with parts of it frozen, and its descriptions."""

import copy
import json

import numpy as np
import onnxruntime
import pytest
import torch

from mbnp import MbnpError, backend, cost, fused, models, spec, weights
from mbnp.containers import join_rows, split_rows
from mbnp.layers import Conv, Network, Pointwise, Pyramid, ReLU, Sequential
from mbnp.weights import onnx
from tests.twins import assert_close, assert_gradients, batch, gradients, relative, tensor, torch_network, vary

NAME = "ssd-mobilenet-v1-small"


def small(dtype=np.float32, **options):
    return vary(models.create(NAME, num_classes=3, width_mult=0.25, dtype=dtype, **options))


def two_stages(dtype=np.float64):
    """A detector of two classes, with one anchor on its first stage and two on its second."""
    rng = np.random.default_rng(3)
    stages = {
        "a": Sequential([Conv(4, 5, 3, 2, 1, rng=rng, dtype=dtype), ReLU()]),
        "b": Conv(5, 6, 3, 2, 1, dtype=dtype),
    }
    boxes = {"a": Pointwise(5, 4, rng=rng, dtype=dtype), "b": Pointwise(6, 8, rng=rng, dtype=dtype)}
    scores = {"a": Pointwise(5, 3, rng=rng, dtype=dtype), "b": Pointwise(6, 6, rng=rng, dtype=dtype)}
    return Network({"stem": Pointwise(3, 4, rng=rng, dtype=dtype), "ssd": Pyramid(stages, boxes, scores)}, 8)


def test_rows_are_by_stage_row_column_and_anchor():
    net = two_stages()
    x, _ = batch(2, 8, np.float64)
    y, found = net.forward(x), net.activations(x)
    assert y.shape == (2, *net.output_shape((8, 8, 3))) == (2, 4 * 4 + 2 * 2 * 2, 4 + 3)
    assert net.num_classes == 2
    assert net.grids() == [(4, 4), (2, 2)]
    np.testing.assert_array_equal(y[:, 4 * 2 + 3, :4], found["ssd.boxes.a"][:, 2, 3])
    row = 16 + 2 * (2 * 1 + 0) + 1  # the second anchor of the cell in row 1 and column 0
    np.testing.assert_array_equal(y[:, row, :4], found["ssd.boxes.b"][:, 1, 0, 4:])
    np.testing.assert_array_equal(y[:, row, 4:], found["ssd.scores.b"][:, 1, 0, 3:])
    np.testing.assert_array_equal(found["ssd"], y)
    assert [row.name for row in cost.of(net).rows if row.params] == [
        "stem", "ssd.a.0", "ssd.boxes.a", "ssd.scores.a", "ssd.b", "ssd.boxes.b", "ssd.scores.b",
    ]  # fmt: skip


def test_rows_go_back_into_maps():
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal(shape) for shape in ((2, 3, 4, 8), (2, 3, 4, 10), (2, 1, 2, 4), (2, 1, 2, 5))]
    for found, expected in zip(split_rows(join_rows(maps), [m.shape for m in maps]), maps, strict=True):
        np.testing.assert_array_equal(found, expected)


FROZEN = [None, "conv1", "conv2_2", "ssd.stride8", "ssd.boxes.stride8", "ssd.stride16", "ssd.scores.stride16"]


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("needs_dx", [False, True])
def test_with_parts_frozen_the_gradients_are_those_of_pytorch(frozen, needs_dx):
    net = small(np.float64)
    other = torch_network(net).double().train()
    if frozen is not None:
        net.freeze_until(frozen)
    for module in other.modules():  # what a frozen BatchNorm does
        if hasattr(module, "running_mean"):
            name = next(name for name, each in other.named_modules() if each is module)
            module.train(not net.parameters()[f"{name}.weight"].frozen)
    x, _ = batch(3, 64, np.float64)
    image = tensor(x).requires_grad_(needs_dx)
    expected = other(image)
    dy = np.random.default_rng(2).standard_normal(expected.shape)
    expected.backward(torch.from_numpy(dy))
    for run in (net, fused.convert(copy.deepcopy(net))):
        run.needs_dx = needs_dx
        for p in run.parameters().values():
            p.grad[...] = 0
        with backend.use("numba"):
            y = run.forward(x, train=True)
            dx = run.backward(dy)
        assert relative(y, expected.detach().numpy()) < 1e-10
        if needs_dx:
            assert dx is not None
            assert_close(dx, image.grad.numpy().transpose(0, 2, 3, 1), 1e-10, "dx")
        theirs = copy.deepcopy(net)
        weights.from_torch(theirs, other.state_dict() | {key: p.grad for key, p in other.named_parameters()})
        frozen_names = {name for name, p in net.parameters().items() if p.frozen}
        assert all(not p.grad.any() for name, p in run.parameters().items() if name in frozen_names)
        wanted = {key: p.value for key, p in theirs.parameters().items() if key not in frozen_names}
        assert_gradients(gradients(run), wanted, 1e-10)


def test_a_second_backward_says_what_is_missing():
    for run in (small(), fused.convert(small())):
        x, _ = batch(2, 64, np.float32)
        y = run.forward(x, train=True)
        run.backward(np.ones_like(y))
        with pytest.raises(MbnpError, match="forward"):
            run.backward(np.ones_like(y))


def test_files_keep_what_makes_boxes_of_the_rows(tmp_path):
    net = small(resolution=64)
    net.classes, net.preprocessing = ["a", "b", "c"], {"mean": [0.5] * 3, "std": [0.5] * 3}
    net.detection = copy.deepcopy(net.detection) | {"scores": "sigmoid", "resize": "pad"}
    weights.save(net, tmp_path / "net.safetensors")
    again = weights.load(tmp_path / "net.safetensors")
    assert (again.detection, again.classes, again.resolution) == (net.detection, net.classes, 64)
    x, _ = batch(1, 64, np.float32)
    np.testing.assert_array_equal(again.forward(x), net.forward(x))
    assert fused.convert(net).detection == net.detection
    net.detection = None
    weights.save(net, tmp_path / "net.safetensors")
    assert weights.load(tmp_path / "net.safetensors").detection == models.create(NAME).detection


GOOD = models.create(NAME, width_mult=0.25).detection


@pytest.mark.parametrize(
    "bad",
    [
        [], "softmax", GOOD | {"more": 1}, {key: GOOD[key] for key in ("anchors", "scales", "scores")},
        GOOD | {"scores": "relu"}, GOOD | {"resize": "crop"}, GOOD | {"scales": [1, 1, 1]},
        GOOD | {"scales": [10, 10, 5, 0]}, GOOD | {"scales": [10, 10, 5, float("nan")]}, GOOD | {"anchors": 3},
        GOOD | {"anchors": GOOD["anchors"][:2]}, GOOD | {"anchors": [[[0.1, 0.1]]] * 3},
        GOOD | {"anchors": [[[0.1]] * 4] * 3}, GOOD | {"anchors": [[[0.1, -1]] * 4] * 3},
        GOOD | {"anchors": [[["a", 1]] * 4] * 3},
    ],
)  # fmt: skip
def test_a_detection_that_does_not_fit_is_refused(bad, tmp_path):
    net = small()
    net.detection = bad
    with pytest.raises(MbnpError, match=r"its detection is|anchors for a cell"):
        weights.save(net, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
    net = vary(models.create("resnet20", width_mult=0.25))
    net.detection = copy.deepcopy(GOOD)
    with pytest.raises(MbnpError, match="no heads"):
        weights.save(net, tmp_path / "net.safetensors")


def test_hostile_descriptions_of_a_pyramid_are_one_line():
    good = spec.describe(small())

    def changed(change):
        bad = json.loads(json.dumps(good))
        change(bad["layers"][-1])
        return bad

    cases = {
        "lacks 'scores'": lambda entry: entry.pop("scores"),
        "lists no layers": lambda entry: entry.update(boxes=[]),
        "are not those of its stages": lambda entry: entry.update(boxes=entry["boxes"][::-1]),
        "are not those of its stages ": lambda entry: entry["scores"].pop(),
        "cannot follow": lambda entry: entry["boxes"][0]["layers"][0].update(channels=7),
        "heads make": lambda entry: entry["boxes"][0]["layers"][3].update(c_out=6),
        "4 numbers for each anchor": lambda entry: entry["scores"][0]["layers"][3].update(c_out=18),
        "differ in how many scores": lambda entry: entry["scores"][0]["layers"][3].update(c_out=20),
    }
    for says, change in cases.items():
        with pytest.raises(MbnpError, match=says.strip()):
            spec.build(changed(change))


def test_stages_and_heads_have_the_same_names():
    with pytest.raises(MbnpError, match="two heads on each of its stages a, b: got boxes for a and scores for a, b"):
        Pyramid({"a": ReLU(), "b": ReLU()}, {"a": ReLU()}, {"a": ReLU(), "b": ReLU()})


def test_a_new_head_is_refused():
    with pytest.raises(MbnpError, match="heads on several feature maps"):
        models.with_new_head(small(), 5)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_written_as_onnx_it_computes_the_same(layout, tmp_path):
    net = small(resolution=64)
    onnx.save(net, tmp_path / "net.onnx", layout)
    x, _ = batch(2, 64, np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": x if layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))})
    assert_close(found, net.forward(x), 1e-5, "logits")


@pytest.mark.parametrize("width", [0.25, 0.4])
def test_the_fast_network_is_the_same_at_odd_sizes(width):
    for size, n in ((33, 1), (70, 3), (96, 17)):
        net = vary(models.create(NAME, num_classes=4, width_mult=width))
        x, _ = batch(n, size, np.float32)
        with backend.use("numpy"):
            expected = net.forward(x)
        assert_close(fused.convert(net).forward(x), expected, 1e-5, f"{size}")


def test_the_fast_network_keeps_shapes_and_no_older_ones():
    net = small()
    fast = fused.convert(net)
    for size in (96, 64, 96):
        net.resolution = size
        for _ in range(2):
            fast.grids().clear()  # a list of the caller's own
            assert fast.grids() == net.grids()
            assert fast.output_shape((size, size, 3)) == net.output_shape((size, size, 3))
            assert fast.num_classes == net.num_classes
    assert len({fast.output_shape((size, size, 3)) for size in (96, 64)}) == 2
