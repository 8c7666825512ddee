import time

import numpy as np
import pytest
import torch

from mbnp import MbnpError, backend, models
from mbnp.detection import anchors, detect
from tests.detection import cases
from tests.detection.test_boxes import torchvision_decode
from tests.detection.test_suppression import torchvision_nms


def reference(net, outputs, least, limit, most):
    """torchvision's SSD.postprocess_detections for one image, written out, but that no candidates are cut off."""
    logits = torch.from_numpy(outputs[:, 4:])
    scores = torch.softmax(logits, 1) if net.detection["scores"] == "softmax" else torch.sigmoid(logits)
    places = torch.from_numpy(anchors.of(net))
    boxes = torchvision_decode(torch.from_numpy(outputs[:, :4]), places, cases.SCALES).clamp(0, 1).numpy()
    rows = []
    for label in range(1, scores.shape[1]):
        at = np.flatnonzero(scores[:, label].numpy() >= least)
        kept = at[torchvision_nms(boxes[at], scores[at, label].numpy(), limit)]
        rows += [(-float(scores[n, label]), label - 1, boxes[n]) for n in kept]
    rows.sort(key=lambda row: row[:2])
    return rows[:most]


@pytest.mark.parametrize("kind", detect.SCORES)
@pytest.mark.parametrize("name", backend.BACKENDS)
def test_against_torchvision(name, kind):
    net, rng = cases.detector(kind, classes=3), np.random.default_rng(0)
    for least, limit, most in ((0.5, 0.5, 100), (0.1, 0.3, 100), (0.01, 0.6, 7), (0.999, 0.5, 100)):
        outputs = rng.standard_normal((3, 13, 4 + 1 + 3)) * 2
        with backend.use(name):
            found = detect.read(net, outputs, least, limit, most)
        assert len(found) == 3
        for one, of_image in zip(found, outputs, strict=True):
            expected = reference(net, of_image, least, limit, most)
            np.testing.assert_allclose(one.scores, [-row[0] for row in expected], atol=1e-12)
            np.testing.assert_array_equal(one.labels, [row[1] for row in expected])
            np.testing.assert_allclose(one.boxes, np.reshape([row[2] for row in expected], (-1, 4)), atol=1e-12)


def test_nothing_found():
    outputs = np.zeros((2, 13, 7), np.float32)
    outputs[..., 4] = 100
    found = detect.read(cases.detector(dtype=np.float32), outputs)
    for one in found:
        assert (one.boxes.shape, one.labels.shape, one.scores.shape) == ((0, 4), (0,), (0,))
        assert (one.boxes.dtype, one.labels.dtype, one.scores.dtype) == (np.float32, np.int64, np.float32)


def test_nan_shows():
    """One anchor's logits and another one's offsets are NaN: both are found, and the rest as before."""
    outputs = np.zeros((1, 13, 7))
    outputs[..., 4] = 9
    outputs[0, 3, 5], outputs[0, 5, 6] = np.nan, 20
    outputs[0, 5, 0] = np.nan
    (found,) = detect.read(cases.detector(), outputs)
    assert np.isnan(found.scores).tolist() == [True, True, False]  # both classes of the anchor whose softmax is NaN
    assert found.labels.tolist() == [0, 1, 1]
    assert np.isnan(found.boxes[2, 0])


def test_large_logits():
    outputs = np.full((1, 13, 7), -1e4, np.float32)
    outputs[0, 0, 5] = 1e4
    for kind in detect.SCORES:
        (found,) = detect.read(cases.detector(kind, dtype=np.float32), outputs)
        assert found.scores.tolist() == [1]


@pytest.mark.parametrize(("scores", "K"), [("sigmoid", 1), ("softmax", 10)])
@cases.fast
def test_five_thousand_anchors_take_milliseconds(scores, K):
    net = cases.detector(scores, ((47, 54), (6, 7)), np.float32, K)
    outputs = np.random.default_rng(1).standard_normal((1, 2 * 47 * 54 + 42, 5 + K)).astype(np.float32)
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        detect.read(net, outputs)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05  # 1 ms on a quiet machine


def test_detect_a_network():
    """It normalises, and finds what `read` does in the outputs of the network."""
    net = models.create("ssd-mobilenet-v1-small", num_classes=3, width_mult=0.25, seed=0)
    images = np.random.default_rng(2).integers(0, 256, (2, net.resolution, net.resolution, 3), np.uint8)
    with pytest.raises(MbnpError, match="does not say how its images were normalised"):
        detect.detect(net, images)
    net.preprocessing = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    found = detect.detect(net, images, least=0.2, most=20)
    expected = detect.read(net, net.forward(((images / 255 - 0.5) / 0.25).astype(np.float32)), least=0.2, most=20)
    assert any(len(one.scores) for one in found)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-4)


def test_bad_input():
    net = cases.detector()
    with pytest.raises(MbnpError, match=r"outputs \(1, 12, 7\) must be \(N, 13, 7\).*13 anchors"):
        detect.read(net, np.zeros((1, 12, 7)))
    for outputs, options, says in (
        (np.zeros((1, 13, 8)), {}, "and 2 classes"),
        (np.zeros((1, 13, 7)), {"least": np.nan}, "least must be a number from 0 to 1, got nan"),
        (np.zeros((1, 13, 7)), {"least": "0.5"}, "least must be a number from 0 to 1, got '0.5'"),
        (np.zeros((1, 13, 7)), {"overlap": 2}, "overlap must be a number from 0 to 1, got 2"),
        (np.zeros((1, 13, 7)), {"most": 1.5}, "most must be at least 1 box, got 1.5"),
    ):
        with pytest.raises(MbnpError, match=says):
            detect.read(net, outputs, **options)
    with pytest.raises(MbnpError, match="outputs is float32 where the input is float64"):
        detect.read(net, np.zeros((1, 13, 7), np.float32))
    net.detection["scores"] = "sigmoyd"
    with pytest.raises(MbnpError, match="unknown kind of scores 'sigmoyd': did you mean 'sigmoid'"):
        detect.read(net, np.zeros((1, 13, 7)))
    with pytest.raises(MbnpError, match="finds no boxes"):
        detect.detect(models.create("mobilenet-v1-small", width_mult=0.25), np.zeros((1, 32, 32, 3), np.uint8))
