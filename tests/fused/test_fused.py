"""The fast engine: the law of its kernels in every odd corner, never a stale answer, nothing leaking out."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest

from mbnp import MbnpError, backend, fused, models, optim, train
from mbnp.fused import training
from mbnp.layers import (
    AveragePool,
    BatchNorm,
    Conv,
    Depthwise,
    Flatten,
    GlobalAveragePool,
    Linear,
    Pointwise,
    ReLU,
    Sequential,
)
from mbnp.network import Network
from tests.twins import assert_gradients, batch, gradients, relative, vary

TOLERANCE = {np.float64: 1e-10, np.float32: 1e-4}


def network(stride, padding, channels, cap, dtype, relu=True):
    """Two separable blocks after a stem, with channel counts that no vector width divides."""
    rng = np.random.default_rng(7)
    c0, c1, c2 = channels
    activation = [ReLU(cap)] if relu else []
    options = {"bias": False, "rng": rng, "dtype": dtype}
    blocks = {
        "stem": Sequential([Conv(3, c0, 3, 1, padding=1, **options), BatchNorm(c0, dtype=dtype), ReLU(cap)]),
        "one": Sequential(
            [
                Depthwise(c0, 3, stride, padding, **options),
                BatchNorm(c0, dtype=dtype),
                *activation,
                Pointwise(c0, c1, **options),
                BatchNorm(c1, dtype=dtype),
                ReLU(cap),
            ]
        ),
        "two": Sequential(
            [
                Depthwise(c1, 3, 3 - stride, padding, **options),
                BatchNorm(c1, dtype=dtype),
                ReLU(cap),
                Pointwise(c1, c2, **options),
                BatchNorm(c2, dtype=dtype),
                ReLU(cap),
            ]
        ),
        "pool": GlobalAveragePool(),
        "fc": Linear(c2, 5, rng=rng, dtype=dtype),
    }
    net = Network(blocks, resolution=9)
    net.arch = {"name": "test"}
    return vary(net)


def copy_of(net, build):
    other = build()
    other.load_state(net.state())
    return other


CASES = [
    # stride, padding, channels, cap, pictures, height, width
    (1, 1, (5, 7, 3), None, 2, 9, 7),
    (2, 1, (5, 7, 3), 6.0, 3, 8, 9),
    (2, ((0, 1), (0, 1)), (17, 33, 20), None, 1, 12, 11),
    (1, ((2, 0), (1, 2)), (3, 300, 16), 0.9, 2, 6, 5),
    (2, "same", (32, 64, 48), None, 2, 10, 10),
    (1, 0, (16, 16, 16), None, 5, 9, 9),
    (1, 1, (1, 1, 1), None, 4, 5, 4),
    (1, 1, (18, 33, 20), None, 19, 6, 5),  # enough pixels for a transposed copy of the weights
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", CASES)
def test_law(case, dtype):
    """Outputs, statistics and every gradient are what the readable layers compute (in float64)."""
    stride, padding, channels, cap, n, h, w = case
    readable = network(stride, padding, channels, cap, np.float64)
    fast = fused.convert(copy_of(readable, lambda: network(stride, padding, channels, cap, dtype)))
    assert fast.report().splitlines()[0].endswith(": stem.0, one.0, one.3, two.0, two.3")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n, h, w, 3)).astype(np.float32)
    dy = rng.standard_normal((n, 5)).astype(np.float32)
    tolerance = TOLERANCE[dtype]
    with backend.use("numpy"):
        assert relative(fast.forward(x.astype(dtype)), readable.forward(x.astype(np.float64))) < tolerance
        expected = readable.forward(x.astype(np.float64), train=True)
        readable.backward(dy.astype(np.float64))
    y = fast.forward(x.astype(dtype), train=True)
    assert y.dtype == dtype
    assert relative(y, expected) < tolerance
    fast.backward(dy.astype(dtype))
    for name, buffer in fast.buffers().items():
        assert relative(buffer.value, readable.buffers()[name].value) < tolerance, name
    assert_gradients(gradients(fast), gradients(readable), tolerance)


@pytest.mark.parametrize("case", [CASES[2], CASES[-1]])
def test_law_of_many_small_tiles(case, monkeypatch):
    """Several tiles a group and several groups, whose sizes do not divide the pixels."""
    monkeypatch.setattr(training, "TILE", 1)
    monkeypatch.setattr(training, "PIXELS", 7)
    test_law(case, np.float64)


ENDS = [
    # layers after the chain of channels (7, 9, 7) on maps of 5 x 5, and whether one kernel runs them all
    (lambda **o: {"pool": GlobalAveragePool(), "fc": Linear(7, 4, **o)}, True),
    (lambda **o: {"pool": AveragePool(5), "flat": Flatten(), "fc": Linear(7, 4, **o)}, True),
    (lambda **o: {"pool": AveragePool(2), "flat": Flatten(order="CHW"), "fc": Linear(28, 4, **o)}, False),
    (lambda **o: {"pool": AveragePool(5, padding=1), "flat": Flatten(), "fc": Linear(7, 4, **o)}, False),
    (lambda **o: {"pool": GlobalAveragePool(), "fc": Linear(7, 4, bias=False, **o)}, False),
    (lambda **o: {"pool": GlobalAveragePool(), "hidden": Linear(7, 5, **o), "fc": Linear(5, 4, **o)}, False),
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("frozen", [(), ("fc.weight",), ("fc.bias",), ("fc.weight", "fc.bias")], ids=str)
@pytest.mark.parametrize(("end", "in_one"), ENDS)
def test_law_of_a_networks_end(end, in_one, frozen, dtype):
    """In training and in inference, with more pictures than groups of them."""

    def build(dtype):
        blocks = dict(network(1, 1, (7, 9, 7), None, dtype).layers)
        del blocks["pool"], blocks["fc"]
        net = vary(Network({**blocks, **end(rng=np.random.default_rng(2), dtype=dtype)}, resolution=9), seed=2)
        for name in set(frozen) & set(net.parameters()):
            net.parameters()[name].frozen = True
        return net

    exact, fast = build(np.float64), fused.convert(build(dtype))
    fast.load_state(exact.state())
    assert fast.report().splitlines()[2].endswith(": fc" if in_one else ": none")
    x, _ = batch(19, 9, np.float32)
    dy = np.random.default_rng(4).standard_normal((19, 4)).astype(np.float32)
    with backend.use("numpy"):
        inferred = exact.forward(x.astype(np.float64))
        expected = exact.forward(x.astype(np.float64), train=True)
        exact.backward(dy.astype(np.float64))
    assert relative(fast.forward(x.astype(dtype)), inferred) < TOLERANCE[dtype]
    assert relative(fast.forward(x.astype(dtype), train=True), expected) < TOLERANCE[dtype]
    fast.backward(dy.astype(dtype))
    assert_gradients(gradients(fast), gradients(exact), TOLERANCE[dtype])
    assert not any(fast.parameters()[name].grad.any() for name in set(frozen) & set(fast.parameters()))


@pytest.mark.parametrize("wrong", [np.ones((2, 6), np.float32), np.ones((3, 5), np.float32), np.ones((2, 5))], ids=str)
def test_a_gradient_unlike_the_logits_is_refused(wrong):
    fast = fused.convert(network(1, 1, (5, 6, 7), None, np.float32))
    x, _ = batch(2, 9, np.float32)
    fast.forward(x, train=True)
    with pytest.raises(MbnpError, match="dy"):
        fast.backward(wrong)


@pytest.mark.parametrize("channels", [7, 16])
def test_backward_takes_the_weights_of_now(channels):
    """Whether or not channels fill vectors, as the readable layers do."""
    net, other = (network(1, 1, (5, 6, channels), None, np.float64) for _ in range(2))
    fast = fused.convert(other)
    x, _ = batch(3, 9, np.float64)
    for each in (net, fast):
        dy = each.forward(x, train=True)
        for name in ("fc.weight", "two.3.weight", "two.0.weight"):
            each.parameters()[name].value = 2 * each.parameters()[name].value
        each.backward(dy)
    assert_gradients(gradients(fast), gradients(net), 1e-10)


def test_the_average_of_a_large_map_is_exact():
    def build(dtype):
        blocks = [
            Conv(3, 8, 3, padding=1, dtype=dtype),
            BatchNorm(8, dtype=dtype),
            ReLU(),
            GlobalAveragePool(),
        ]
        return vary(Network({str(i): b for i, b in enumerate([*blocks, Linear(8, 4, dtype=dtype)])}, resolution=200))

    exact, fast = build(np.float64), fused.convert(build(np.float32))
    fast.load_state(exact.state())
    x, _ = batch(2, 200, np.float32)
    for mode in (True, False):
        assert relative(fast.forward(x, train=mode), exact.forward(x.astype(np.float64), train=mode)) < 5e-7


STEMS = [
    # channels, outputs, kernel, stride, padding, bias, height, width
    (3, 8, 1, 1, 0, True, 5, 9),
    (1, 16, 5, 2, 2, True, 12, 11),
    (4, 20, 3, 3, 1, False, 13, 26),
    (3, 33, 7, 2, ((3, 2), (2, 3)), True, 23, 17),
    (2, 5, 3, 2, "same", True, 9, 40),
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", STEMS)
def test_law_of_the_first_convolution(case, dtype):
    channels, outputs, kernel, stride, padding, bias, h, w = case

    def build(dtype):
        options = {"rng": np.random.default_rng(5), "dtype": dtype}
        blocks = [Conv(channels, outputs, kernel, stride, padding=padding, bias=bias, **options)]
        blocks += [
            BatchNorm(outputs, dtype=dtype),
            ReLU(),
            GlobalAveragePool(),
            Linear(outputs, 4, **options),
        ]
        return vary(Network({str(i): block for i, block in enumerate(blocks)}, resolution=h, channels=channels))

    exact, fast = build(np.float64), fused.convert(build(dtype))
    fast.load_state(exact.state())
    x = np.random.default_rng(3).standard_normal((3, h, w, channels)).astype(np.float32)
    dy = np.random.default_rng(4).standard_normal((3, 4))
    with backend.use("numpy"):
        y, inferred = exact.forward(x.astype(np.float64), train=True), exact
        exact.backward(dy)
    assert fast.report().splitlines()[0].endswith(": 0")
    assert relative(fast.forward(x.astype(dtype), train=True), y) < TOLERANCE[dtype]
    fast.backward(dy.astype(dtype))
    assert_gradients(gradients(fast), gradients(exact), TOLERANCE[dtype])
    with backend.use("numpy"):
        expected = inferred(x.astype(np.float64))
    assert relative(fast(x.astype(dtype)), expected) < TOLERANCE[dtype]


def test_a_large_bias_costs_no_precision():
    def build(dtype):
        conv = Conv(3, 16, 7, padding=3, rng=np.random.default_rng(0), dtype=dtype)
        conv.bias.value = np.full(16, 1e3)
        return Network({"conv": conv, "bn": BatchNorm(16, dtype=dtype)}, resolution=16)

    x = np.random.default_rng(0).standard_normal((8, 16, 16, 3)).astype(np.float32)
    with backend.use("numpy"):
        y = build(np.float64).forward(x.astype(np.float64), train=True)
    assert relative(fused.convert(build(np.float32)).forward(x, train=True), y) < 3e-5


@pytest.mark.parametrize("relu", [True, False])
def test_no_activation_between_two_convolutions(relu):
    readable = network(2, 1, (5, 6, 7), None, np.float64, relu)
    fast = fused.convert(copy_of(readable, lambda: network(2, 1, (5, 6, 7), None, np.float64, relu)))
    x, _ = batch(2, 9, np.float64)
    y = readable.forward(x, train=True)
    assert relative(fast.forward(x, train=True), y) < 1e-10
    readable.backward(y)
    fast.backward(y)
    assert_gradients(gradients(fast), gradients(readable), 1e-10)


@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_large_means_do_not_cancel(spread):
    """Mean 1e3 before a BatchNorm: float32 keeps what its input has, in outputs, statistics and gradients."""
    build = lambda dtype: network(1, 1, (8, 8, 8), None, dtype)  # noqa: E731
    exact = build(np.float64)
    conv = exact["stem"].layers["0"]
    conv.weight.value = np.zeros_like(conv.weight.value)
    conv.weight.value[1, 1, 0] = 1  # each channel is the first one of the picture
    conv.touch()
    fast = build(np.float32)
    fast.load_state(exact.state())
    fast = fused.convert(fast)
    x = np.random.default_rng(0).normal(1e3, spread, (8, 16, 16, 3)).astype(np.float32)
    dy = np.random.default_rng(1).standard_normal((8, 5))
    with backend.use("numpy"):
        y = exact.forward(x.astype(np.float64), train=True)
        exact.backward(dy)
    assert relative(fast.forward(x, train=True), y) < 1e-5
    fast.backward(dy.astype(np.float32))
    for name in ("stem.1.running_mean", "stem.1.running_var"):
        assert relative(fast.buffers()[name].value, exact.buffers()[name].value) < 1e-5
    for name in ("stem.1.weight", "stem.1.bias", "one.0.weight"):
        assert relative(gradients(fast)[name], gradients(exact)[name]) < 1e-4, name


@pytest.mark.parametrize("what", ["frozen", "all frozen"])
def test_frozen_parameters_and_statistics_stay(what):
    build = lambda: network(1, 1, (5, 6, 7), None, np.float64)  # noqa: E731
    readable, other = build(), build()
    other.load_state(readable.state())
    for net in (readable, other):
        for name, parameter in net.parameters().items():
            parameter.frozen = what == "all frozen" or name.startswith(("stem", "one"))
    fast = fused.convert(other)
    x, _ = batch(3, 9, np.float64)
    y = readable.forward(x, train=True)
    assert relative(fast.forward(x, train=True), y) < 1e-10
    readable.backward(y)
    fast.backward(y)
    assert_gradients(gradients(fast), gradients(readable), 1e-10)
    for name, variable in fast.variables().items():
        np.testing.assert_allclose(variable.value, readable.variables()[name].value, rtol=1e-10, err_msg=name)
    for name, parameter in fast.parameters().items():
        assert not parameter.frozen or not parameter.grad.any(), name


def test_never_a_stale_answer():
    """Every way the interface has of changing weights or statistics, between two inferences."""
    net = vary(models.mobilenet_v1_small(width_mult=0.25, dtype=np.float64))
    fast = fused.convert(net)
    x, y = batch(4, 32, np.float64)
    opt = optim.SGD(net.parameters(), lr=0.1)

    def assign():
        net.parameters()["conv2_1.0.weight"].value = 2 * net.parameters()["conv2_1.0.weight"].value

    def assign_statistics():
        net.buffers()["conv1.1.running_var"].value = 3 * net.buffers()["conv1.1.running_var"].value

    def write_in_place():
        net.parameters()["conv2_8.3.weight"].value[:] *= 0.5
        net.parameters()["conv2_8.3.weight"].touch()

    def write_in_place_and_touch_the_network():
        net.buffers()["conv2_8.4.running_mean"].value[:] += 0.1
        net.touch()

    changes = [
        assign,
        assign_statistics,
        write_in_place,
        write_in_place_and_touch_the_network,
        lambda: setattr(net.parameters()["fc.bias"], "value", np.arange(10.0)),
        lambda: setattr(net["conv2_3"].layers["1"], "eps", 0.1),
        lambda: net.load_state({name: 1.1 * array for name, array in net.state().items()}),
        lambda: net.forward(x, train=True),
        lambda: fast.forward(x, train=True),
        lambda: train.step(net, opt, x, y),
        lambda: train.step(fast, opt, x, y),
    ]
    before = fast(x)
    for i, change in enumerate(changes):
        change()
        after = fast(x)
        assert relative(after, before) > 1e-6, f"change {i} did nothing"
        assert relative(after, net(x)) < 1e-10, f"stale after change {i}"
        before = after


def test_what_it_returns_is_the_callers():
    net = models.mobilenet_v1_small(width_mult=0.25)
    fast = fused.convert(net)
    x, _ = batch(4, 32, np.float32)
    for mode in (False, True):
        first = fast.forward(x, train=mode)
        kept = first.copy()
        fast.forward(2 * x, train=mode)
        np.testing.assert_array_equal(first, kept)


def test_only_two_shapes_keep_buffers():
    fast = fused.convert(models.mobilenet_v1_small(width_mult=0.25))
    for n in (1, 2, 3, 4):
        x = np.zeros((n, 32, 32, 3), np.float32)
        fast(x)
        fast.forward(x, train=True)
    assert [shape[0] for shape in fast._plans.kept] == [3, 4]
    assert [shape[0] for shape in fast._inference.cache.kept] == [3, 4]


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_results_do_not_depend_on_threads():
    """However many there are, and however many of them are used."""
    code = """
    import hashlib
    import sys
    import numpy as np
    from mbnp import fused, models, set_num_threads
    from tests.twins import batch, vary

    for threads in range(1, int(sys.argv[1]) + 1):
        set_num_threads(threads)
        digest = hashlib.sha256()
        for n, width in ((1, 1.0), (3, 0.25), (35, 0.25)):
            fast = fused.convert(vary(models.mobilenet_v1_small(width_mult=width)))
            x, _ = batch(n, 32, np.float32)
            digest.update(fast(x).tobytes())
            if n > 1:
                fast.backward(fast.forward(x, train=True))
            for p in fast.parameters().values():
                digest.update(p.grad.tobytes())
        print(digest.hexdigest())
    """
    digests = set()
    for most in (1, 2, 5):
        environment = os.environ | {"NUMBA_NUM_THREADS": str(most)}
        command = [sys.executable, "-c", textwrap.dedent(code), str(most)]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) == most
        digests |= set(done.stdout.split())
    assert len(digests) == 1


def test_a_second_backward_needs_a_second_forward():
    fast = fused.convert(models.mobilenet_v1_small(width_mult=0.25))
    x, _ = batch(2, 32, np.float32)
    dy = fast.forward(x, train=True)
    fast.backward(dy)
    with pytest.raises(MbnpError, match="call forward"):
        fast.backward(dy)


def test_gradients_add_up():
    fast = fused.convert(models.mobilenet_v1_small(width_mult=0.25, dtype=np.float64))
    x, _ = batch(2, 32, np.float64)
    for _ in range(2):
        fast.backward(np.ones_like(fast.forward(x, train=True)))
    twice = {name: p.grad.copy() for name, p in fast.parameters().items()}
    for p in fast.parameters().values():
        p.grad[:] = 0
    fast.backward(np.ones_like(fast.forward(x, train=True)))
    for name, p in fast.parameters().items():
        np.testing.assert_allclose(twice[name], 2 * p.grad, rtol=1e-9, atol=1e-12, err_msg=name)


def test_views_and_large_batches_are_taken():
    net = vary(models.mobilenet_v1_small(width_mult=0.25, dtype=np.float64))
    fast = fused.convert(net)
    x, _ = batch(130, 32, np.float64)
    assert relative(fast(x[::-1]), net(x)[::-1]) < 1e-10
    with pytest.raises(MbnpError, match="no images"):
        fast(x[:0])


def test_a_network_without_a_chain_runs_as_it_is():
    net = Network({"pool": GlobalAveragePool(), "fc": Linear(3, 2)}, resolution=4)
    fast = fused.convert(net)
    assert fast.report().splitlines()[0].endswith(": none")
    x, _ = batch(2, 4, np.float32)
    np.testing.assert_array_equal(fast(x), net(x))
    fast.forward(x, train=True)
    fast.backward(np.ones((2, 2), np.float32))
    assert net.parameters()["fc.weight"].grad.any()


def test_the_rest_of_a_residual_network_is_fused_too():
    report = fused.convert(models.create("resnet20")).report().splitlines()
    assert report[0].endswith(": conv1")
    assert "layer1.0.bn1, layer1.0.bn2, layer1.1.bn1" in report[1]
    assert report[1].count("bn") == 18
    assert report[2].endswith(": none")


@pytest.mark.parametrize(("frozen", "width"), [(False, 1.0), (True, 1.0), (False, 0.3)])
def test_residual_sum_in_float32_and_frozen(frozen, width):
    """At width 0.3 the channels do not fill vectors, and BatchNorms run as they are."""
    exact = vary(models.create("resnet20", width_mult=width, dtype=np.float64))
    net = models.create("resnet20", width_mult=width)
    net.load_state(exact.state())
    for each in (exact, net):
        for name, parameter in each.parameters().items():
            parameter.frozen = frozen and "bn" in name
    fast = fused.convert(net)
    x, _ = batch(4, 32, np.float32)
    y = exact.forward(x.astype(np.float64), train=True)
    assert relative(fast.forward(x, train=True), y) < 1e-4
    dy = np.random.default_rng(0).standard_normal(y.shape)
    exact.backward(dy)
    fast.backward(dy.astype(np.float32))
    assert relative(gradients(fast)["linear.weight"], gradients(exact)["linear.weight"]) < 1e-4
    assert relative(fast(x), exact(x.astype(np.float64))) < 1e-4
    for name, buffer in fast.buffers().items():
        assert relative(buffer.value, exact.buffers()[name].value) < 1e-4, name


def test_nan_shows():
    fast = fused.convert(models.mobilenet_v1_small(width_mult=0.25))
    x, _ = batch(3, 32, np.float32)
    x[1, 5, 5, 0] = np.nan
    assert np.isnan(fast(x)[1]).all()
    assert np.isfinite(fast(x)[[0, 2]]).all()
    assert np.isnan(fast.forward(x, train=True)).all()


def test_both_networks_may_run_between_forward_and_backward():
    """They share parameters, but not what forward saves for backward."""
    net = models.mobilenet_v1_small(width_mult=0.25, dtype=np.float64)
    fast = fused.convert(net)
    (x1, _), (x2, _) = batch(3, 32, np.float64, seed=1), batch(3, 32, np.float64, seed=2)
    dy = fast.forward(x1, train=True)
    fast.backward(dy)
    expected = {name: g.copy() for name, g in gradients(fast).items()}
    for p in net.parameters().values():
        p.grad[:] = 0
    fast.forward(x1, train=True)
    net.forward(x2, train=True)
    net(x2)
    fast(x2)
    fast.backward(dy)
    for name, gradient in gradients(net).items():
        np.testing.assert_array_equal(gradient, expected[name], err_msg=name)


def test_the_description_is_shared():
    net = models.mobilenet_v1_small()
    fast = fused.convert(net)
    fast.classes = ["a"] * 10
    net.preprocessing = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    assert net.classes == ["a"] * 10
    assert fast.preprocessing == net.preprocessing
    assert fused.convert(fast).reference is net


def test_two_threads_wait_for_one_another():
    net = vary(models.mobilenet_v1_small(width_mult=0.25))
    fast = fused.convert(net)
    pictures = [batch(4, 32, np.float32, seed=i)[0] for i in range(2)]
    expected = [fast(x) for x in pictures]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            for y, right in zip(pool.map(fast, pictures), expected, strict=True):
                np.testing.assert_array_equal(y, right)


def test_training_in_one_thread_and_inference_in_another():
    fast = fused.convert(models.mobilenet_v1_small(width_mult=0.25))
    opt = optim.SGD(fast.parameters(), lr=0.01)
    x, y = batch(4, 32, np.float32)
    with ThreadPoolExecutor(2) as pool:
        steps = [pool.submit(train.step, fast, opt, x, y) for _ in range(20)]
        answers = [pool.submit(fast, x) for _ in range(20)]
        assert all(np.isfinite(done.result(timeout=60)).all() for done in steps + answers)


def test_layers_that_do_not_fit_together_say_so():
    def net(**sizes):
        c0, bn, c1 = (sizes.get(name, 16) for name in ("c0", "bn", "c1"))
        blocks = [Conv(3, c0, 3, padding=1), BatchNorm(bn), Depthwise(c0, 3), BatchNorm(c0), Pointwise(c1, 8)]
        return Network({str(i): block for i, block in enumerate([*blocks, BatchNorm(8)])}, resolution=8)

    x = np.zeros((2, 8, 8, 3), np.float32)
    fused.convert(net())(x)
    for wrong in ({"bn": 12}, {"c1": 12}, {"c1": 20}):
        for train_mode in (False, True):
            with pytest.raises(MbnpError):
                fused.convert(net(**wrong)).forward(x, train=train_mode)
    chain = network(1, 1, (5, 6, 7), None, np.float32).layers
    for linear, message in ((Linear(9, 2), "expects 9"), (Linear(7, 2, dtype=np.float64), "float64")):
        for train_mode in (False, True):
            with pytest.raises(MbnpError, match=message):
                fused.convert(Network({**chain, "fc": linear}, resolution=8)).forward(x, train=train_mode)


def test_another_backend_runs_the_readable_network():
    net = models.mobilenet_v1_small(width_mult=0.25)
    fast = fused.convert(net)
    x, _ = batch(2, 32, np.float32)
    with backend.use("numpy"):
        np.testing.assert_array_equal(fast(x), net(x))
        fast.forward(x, train=True)
        fast.backward(np.ones((2, 10), np.float32))
    assert gradients(net)["fc.bias"].any()


def test_a_chain_alone_gives_its_output_away():
    blocks = dict(network(1, 1, (5, 6, 7), None, np.float64).layers)
    del blocks["pool"], blocks["fc"]
    fast = fused.convert(Network(blocks, resolution=9))
    x, _ = batch(2, 9, np.float64)
    first = fast.forward(x, train=True)
    kept = first.copy()
    fast.forward(2 * x, train=True)
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(MbnpError, match="dy"):
        fast.backward(np.ones((1, 1, 1, 7)))


class Leaky(ReLU):
    """A subclass that computes something else."""

    def forward(self, x, train=False):
        return np.where(x > 0, super().forward(x, train), np.float64(0.1) * x).astype(x.dtype)


class Doubled(Conv):
    def forward(self, x, train=False):
        return 2 * super().forward(x, train)


@pytest.mark.parametrize("part", ["stem", "relu"])
def test_a_subclass_of_a_layer_runs_as_it_is(part):
    net = network(1, 1, (16, 16, 16), None, np.float64)
    if part == "stem":
        net.layers["stem"].layers["0"] = Doubled(3, 16, 3, 1, padding=1, bias=False, dtype=np.float64)
    else:
        net.layers["stem"].layers["2"] = Leaky()
    x, _ = batch(2, 8, np.float64)
    fast = fused.convert(net)
    assert relative(fast(x), net(x)) < 1e-10
    y = fast.forward(x, train=True)
    dy = np.random.default_rng(3).standard_normal(y.shape)
    fast.backward(dy)
    found = {name: p.grad.copy() for name, p in net.parameters().items()}
    for p in net.parameters().values():
        p.grad[...] = 0
    assert relative(y, net.forward(x, train=True)) < 1e-10
    net.backward(dy)
    assert_gradients(found, gradients(net), 1e-10)
