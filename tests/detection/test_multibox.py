import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mbnp import MbnpError, backend, gradcheck, models, optim, train
from mbnp.detection import anchors, matching, multibox
from mbnp.detection.matching import Targets
from tests import oracle
from tests.detection import cases


def torchvision_loss(outputs, classes, offsets):
    """torchvision.models.detection.ssd.SSD.compute_loss, written out.

    Its hard negatives are by rank among all anchors; where there are more of them than anchors left, it counts matched
    ones a second time, and this does not.
    """
    boxes, logits = outputs[..., :4], outputs[..., 4:]
    foreground = classes > 0
    bbox_loss = F.smooth_l1_loss(boxes[foreground], offsets[foreground], reduction="sum")
    cls_loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), classes.reshape(-1), reduction="none")
    cls_loss = cls_loss.view(classes.shape)
    num_negative = 3 * foreground.sum(1, keepdim=True)
    negative_loss = cls_loss.clone()
    negative_loss[foreground] = -float("inf")
    _, order = negative_loss.sort(dim=1, descending=True, stable=True)
    background = (order.sort(1)[1] < num_negative) & ~foreground
    matched = max(1, int(foreground.sum()))
    return bbox_loss / matched + (cls_loss[foreground].sum() + cls_loss[background].sum()) / matched


def random_targets(rng, N, A, K, share):
    """Classes of which about a share are objects', in the first image none."""
    classes = np.where(rng.random((N, A)) < share, rng.integers(1, K + 1, (N, A)), 0)
    classes[0] = 0
    return Targets(classes, rng.standard_normal((N, A, 4)) * (classes > 0)[..., None])


def check(outputs, targets, dtype=np.float64, tolerance=1e-10):
    """Compare loss and gradient with PyTorch's, times a random upstream gradient, by every backend."""
    z = torch.from_numpy(outputs.astype(np.float64)).requires_grad_()
    loss = torchvision_loss(z, torch.from_numpy(targets.classes), torch.from_numpy(targets.offsets))
    upstream = np.random.default_rng(5).standard_normal()
    (loss * upstream).backward()
    outputs, targets = outputs.astype(dtype), targets._replace(offsets=targets.offsets.astype(dtype))
    before = outputs.copy(), targets.classes.copy(), targets.offsets.copy()
    for name in backend.BACKENDS:
        with backend.use(name):
            value, gradient = multibox.forward(outputs, targets), multibox.backward(outputs, targets)
        oracle.close(value, loss.detach().numpy(), tolerance, f"loss ({name})", dtype)
        oracle.close(gradient * dtype(upstream), z.grad.numpy(), tolerance, f"gradient ({name})", dtype)
        for after, copy in zip((outputs, *targets), before, strict=True):
            np.testing.assert_array_equal(after, copy)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.6, 1.0])
def test_agrees_with_torch(share):
    """Few objects, and so many that there are fewer anchors left than hard negatives wanted."""
    rng = np.random.default_rng(0)
    for N, A, K in ((3, 20, 4), (2, 7, 1), (1, 5, 3)):
        targets = random_targets(rng, N, A, K, share)
        check(rng.standard_normal((N, A, 5 + K)) * 2, targets)
        check(rng.standard_normal((N, A, 5 + K)).astype(np.float32), targets, np.float32, 1e-5)


def test_a_thousand_cases():
    rng = np.random.default_rng(1)
    for _ in range(1000):
        N, A, K = rng.integers(1, 4), rng.integers(1, 12), rng.integers(1, 4)
        targets = random_targets(rng, N, A, K, rng.random())
        outputs = rng.standard_normal((N, A, 5 + K)) * 3
        z = torch.from_numpy(outputs).requires_grad_()
        loss = torchvision_loss(z, *(torch.from_numpy(t) for t in targets))
        loss.backward()
        oracle.close(multibox.forward(outputs, targets), loss.detach().numpy(), 1e-10, "loss")
        oracle.close(multibox.backward(outputs, targets), z.grad.numpy(), 1e-10, "gradient")


def test_finite_differences():
    rng = np.random.default_rng(2)
    targets = random_targets(rng, 2, 30, 3, 0.1)
    outputs = rng.standard_normal((2, 30, 8))
    gradcheck.compare(
        lambda z: multibox.forward(z, targets), lambda dy, z: multibox.backward(z, targets) * dy, [outputs], entries=60
    )


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_by_hand(name):
    """One matched anchor, off by 3 and by 1/2; of four others, all equal, the first three are learnt from."""
    outputs = np.zeros((1, 5, 7))
    outputs[0, 2, :4] = [3, 0.5, 0, 0]
    targets = Targets(np.array([[0, 0, 1, 0, 0]]), np.zeros((1, 5, 4)))
    with backend.use(name):
        assert multibox.forward(outputs, targets) == pytest.approx((3 - 0.5) + 0.5**2 / 2 + 4 * np.log(3))
        np.testing.assert_array_equal(multibox.chosen(outputs, targets), [[True, True, True, True, False]])
        gradient = multibox.backward(outputs, targets)
    np.testing.assert_allclose(gradient[0, 2], [1, 0.5, 0, 0, 1 / 3, -2 / 3, 1 / 3], atol=1e-15)
    np.testing.assert_allclose(gradient[0, 0], [0, 0, 0, 0, -2 / 3, 1 / 3, 1 / 3], atol=1e-15)
    assert not gradient[0, 4].any()


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_nan_shows(name):
    """In the logits of any anchor, even of an image without objects, and in the offsets of a matched one."""
    targets = Targets(np.array([[0, 0, 0], [0, 2, 0]]), np.zeros((2, 3, 4)))
    for place in ((0, 1, 4), (0, 2, 6), (1, 0, 5), (1, 1, 4), (1, 1, 0)):
        outputs = np.zeros((2, 3, 7))
        outputs[place] = np.nan
        with backend.use(name):
            assert np.isnan(multibox.forward(outputs, targets)), place
            gradient = multibox.backward(outputs, targets)
        assert np.isnan(gradient[place]), place
        others = np.ones((2, 3), bool)
        others[place[:2]] = False
        assert np.isfinite(gradient[others]).all(), place


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_large_logits_do_not_overflow(name):
    targets = Targets(np.array([[0, 2, 0]]), np.zeros((1, 3, 4), np.float32))
    outputs = np.full((1, 3, 7), 1e30, np.float32)
    outputs[0, 1, 4] = -1e30
    with backend.use(name):
        assert np.isfinite(multibox.backward(outputs, targets)).all()
        assert multibox.forward(outputs, targets) == pytest.approx(4e30, rel=1e-6)


def test_a_step_of_training():
    """The gradient reaches every parameter, and steps along it make the loss smaller."""
    rng = np.random.default_rng(3)
    net = models.create("ssd-mobilenet-v1-small", num_classes=3, width_mult=0.25, seed=0)
    x = rng.standard_normal((4, net.resolution, net.resolution, 3)).astype(np.float32)
    labels, boxes = rng.integers(0, 3, (4, 2)), cases.boxes(rng, 4, 2)
    targets = matching.targets(labels, boxes, anchors.of(net), net.detection["scales"])
    opt = optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    with backend.use("numpy"):  # no kernel is compiled for a few steps
        losses = [train.step(net, opt, x, targets, loss=multibox) for _ in range(8)]
    assert all(p.grad.any() for p in net.parameters().values())
    assert losses[-1] < 0.8 * losses[0]


def test_bad_input():
    targets = Targets(np.array([[0, 3]]), np.zeros((1, 2, 4)))
    with pytest.raises(MbnpError, match=r"outputs \(1, 2, 5\) must hold 4 offsets and the logits of background and"):
        multibox.forward(np.zeros((1, 2, 5)), targets)
    with pytest.raises(MbnpError, match=r"classes must be whole numbers from 0 to 2, .* got int64 from 0 to 3"):
        multibox.forward(np.zeros((1, 2, 7)), targets)
    with pytest.raises(MbnpError, match=r"the targets' classes must have the shape \(1, 3\), got \(1, 2\)"):
        multibox.backward(np.zeros((1, 3, 8)), targets)
    with pytest.raises(MbnpError, match="offsets is float64 where the input is float32"):
        multibox.forward(np.zeros((1, 2, 8), np.float32), targets)
    with pytest.raises(MbnpError, match=r"outputs must have the axes \(N, A, 4 \+ 1 \+ K\)"):
        multibox.forward(np.zeros((2, 8)), targets)
