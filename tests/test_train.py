"""A step does what it says, in that order; a run is repeatable, learns, and stops when it diverges."""

import dataclasses
import itertools
import types

import numpy as np
import pytest
import threadpoolctl

from mbnp import datasets, models, optim, train
from mbnp.errors import DivergedError, MbnpError
from mbnp.ops import softmax_cross_entropy as cross_entropy


def make_data(train_count=70, test_count=23):
    """Three classes told apart by the colour of a noisy image."""
    rng = np.random.default_rng(0)
    colours = np.array([[180, 60, 60], [60, 180, 60], [60, 60, 180]])

    def split(count):
        labels = np.arange(count) % 3
        noise = rng.integers(-50, 50, (count, 20, 20, 3))
        return datasets.Split((colours[labels][:, None, None] + noise).astype(np.uint8), labels)

    names = ["red", "green", "blue"]
    splits = split(train_count), split(test_count)
    return datasets.Dataset("colours", "drawn here", *splits, names, (0.4, 0.4, 0.4), (0.3, 0.3, 0.3), 3)


def make_net(seed=0, dtype=np.float32):
    return models.create("mobilenet-v1-small", num_classes=3, width_mult=0.25, seed=seed, dtype=dtype)


def make_batch(dtype=np.float32, n=4):
    rng = np.random.default_rng(3)
    return rng.standard_normal((n, 20, 20, 3)).astype(dtype), np.arange(n) % 3


RECIPE = train.Recipe(epochs=2, batch_size=16, lr=0.05)


# -- step --------------------------------------------------------------------------------------------------


def test_a_step_is_forward_loss_backward_update():
    (x, y), ours, by_hand = make_batch(np.float64), make_net(dtype=np.float64), make_net(dtype=np.float64)
    opts = [optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-3) for net in (ours, by_hand)]
    for p in ours.parameters().values():
        p.grad += 7  # from an earlier backward
    for _ in range(3):
        loss = train.step(ours, opts[0], x, y, label_smoothing=0.1)
        opts[1].zero_grad()
        logits = by_hand.forward(x, train=True)
        assert isinstance(loss, float)
        assert loss == pytest.approx(float(cross_entropy.forward(logits, y, 0.1)), rel=1e-12)
        by_hand.backward(cross_entropy.backward(logits, y, 0.1))
        opts[1].step()
    for (name, a), b in zip(ours.state().items(), by_hand.state().values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_step_leaves_the_threads_of_blas_alone():
    class Spy:
        def __init__(self, net):
            self.net = net
            self.seen = []

        def __getattr__(self, name):
            return getattr(self.net, name)

        def forward(self, x, train=False):
            self.seen.append(blas_threads())
            return self.net.forward(x, train)

    net = Spy(make_net())
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            before = blas_threads()
            train.step(net, optim.SGD(net.parameters(), 0.1), *make_batch())
            assert net.seen.pop() == blas_threads() == before
            assert max(before) == threads


def blas_threads():
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x.astype(np.float64), y), "float64"),
        (lambda x, y: (x.transpose(0, 3, 1, 2), y), "channels first"),
        (lambda x, y: (x, y.astype(float)), "labels must be whole numbers"),
        (lambda x, y: (x, y + 1), "labels must be 0 to 2 .* got 3"),
        (lambda x, y: (x, y[:-1]), "labels must have the shape"),
    ],
)
def test_bad_batches_leave_the_weights_alone(change, message):
    net = make_net()
    before = {name: p.value.copy() for name, p in net.parameters().items()}
    with pytest.raises(MbnpError, match=message):
        train.step(net, optim.SGD(net.parameters(), 0.1), *change(*make_batch()))
    for name, p in net.parameters().items():
        np.testing.assert_array_equal(p.value, before[name])


def poison_weight(net, x):
    net.parameters()["conv2_3.3.weight"].value[0, 0] = np.inf


def poison_image(net, x):
    x[1, 2, 3, 0] = np.nan


def stretch_logits(net, x):
    net.parameters()["fc.weight"].value[...] = np.linspace(-3e38, 3e38, 3, dtype=np.float32)


@pytest.mark.parametrize(
    ("poison", "message"),
    [
        (
            poison_weight,
            "at step 3: layer conv2_3.3 is the first that is not finite; try a lower learning rate",
        ),
        (poison_image, "at step 3: its images are not finite"),
        (stretch_logits, "at step 3: layer fc is the first"),
    ],
)
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(poison, message):
    net, (x, y) = make_net(), make_batch()
    opt = optim.SGD(net.parameters(), 0.01)
    train.step(net, opt, x, y)
    train.step(net, opt, x, y)
    poison(net, x)
    before = {name: p.value.copy() for name, p in net.parameters().items()}
    with pytest.raises(DivergedError, match=message):
        train.step(net, opt, x, y)
    for name, p in net.parameters().items():
        np.testing.assert_array_equal(p.value, before[name])
    assert opt.steps == 2


# -- fit ---------------------------------------------------------------------------------------------------


def test_a_run_learns_and_says_how_it_goes():
    net, data = make_net(), make_data()
    batches, epochs = [], []
    recipe = dataclasses.replace(RECIPE, epochs=12)
    history = train.fit(net, data, recipe, on_batch=batches.append, on_epoch=epochs.append)
    assert epochs == history
    assert [r.epoch for r in history] == list(range(1, 13))
    assert [r.step for r in batches] == list(range(1, 49))  # 70 images are four batches of 16
    assert [r.step for r in history] == list(range(4, 49, 4))
    assert history[-1].loss < history[0].loss / 2
    assert history[-1].test_accuracy > 0.9
    assert batches[-1].accuracy == history[-1].accuracy
    assert all(np.isnan(r.test_loss) for r in batches)
    assert all(r.images_per_second > 0 and r.seconds > 0 for r in history)
    rates = optim.one_cycle(0.05, total=48)
    assert [r.lr for r in batches] == [rates(i)["lr"] for i in range(48)]
    assert net.classes == ["red", "green", "blue"]
    assert net.preprocessing == {"mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3]}
    tested = train.evaluate(net, data.test)
    assert (tested.loss, tested.accuracy) == (history[-1].test_loss, history[-1].test_accuracy)


def test_images_per_second_are_those_of_the_median_batch(monkeypatch):
    """Beside a clock on which the first batch, while kernels compile, takes ten seconds, and others a quarter."""
    now = itertools.accumulate(itertools.chain([0, 0, 10], itertools.repeat(0.25)))
    monkeypatch.setattr(train, "time", types.SimpleNamespace(perf_counter=lambda: next(now)))
    records = []
    (last,) = train.fit(make_net(), make_data(), dataclasses.replace(RECIPE, epochs=1), on_batch=records.append)
    assert [r.images_per_second for r in records] == [16 / 10, 16 / 5.125, 16 / 0.25, 16 / 0.25]
    assert [r.seconds for r in records] == [10, 10.25, 10.5, 10.75]
    assert (last.images_per_second, last.seconds) == (64, 11)


def test_a_run_is_batches_rates_and_steps():
    data, net, records = make_data(), make_net(), []
    recipe = dataclasses.replace(RECIPE, epochs=1, seed=5, label_smoothing=0.1)
    train.fit(net, data, recipe, on_batch=records.append)

    by_hand, losses, right = make_net(), [], []
    opt, rates = recipe.optimiser(by_hand), recipe.rates(4)
    options = {"mean": data.mean, "std": data.std, "augment": datasets.augment}
    for x, y in datasets.batches(data.train, 16, np.random.default_rng(5), **options):
        opt.set(**rates(opt.steps))
        before = by_hand.state()
        right.append(np.mean(by_hand.forward(x, train=True).argmax(axis=1) == y))
        by_hand.load_state(before)
        losses.append(train.step(by_hand, opt, x, y, label_smoothing=0.1))
        assert records[opt.steps - 1].loss == pytest.approx(np.mean(losses))
        assert records[opt.steps - 1].accuracy == pytest.approx(np.mean(right))
    for name, array in net.state().items():
        np.testing.assert_array_equal(array, by_hand.state()[name], err_msg=name)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    data = make_data()

    def weights(recipe):
        net = make_net()
        train.fit(net, data, recipe)
        return np.concatenate([a.ravel() for a in net.state().values()])

    first = weights(RECIPE)
    np.testing.assert_array_equal(first, weights(RECIPE))
    assert not np.array_equal(first, weights(dataclasses.replace(RECIPE, seed=1)))
    assert not np.array_equal(first, weights(dataclasses.replace(RECIPE, augment=False)))


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.05] * 8),
        ("step", [0.05] * 3 + [0.005] * 3 + [0.0005] * 2),
        ("cosine", [0.05 * (1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)]),
    ],
)
def test_other_schedules(schedule, rates):
    found = []
    recipe = dataclasses.replace(RECIPE, schedule=schedule)
    train.fit(make_net(), make_data(), recipe, on_batch=lambda r: found.append(r.lr))
    np.testing.assert_allclose(found, rates)


def test_the_default_recipe():
    recipe = train.Recipe()
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (20, 64, 0.1, 5e-4)
    assert (recipe.nesterov, recipe.schedule, recipe.momentum) == (True, "one-cycle", (0.85, 0.95))
    opt = recipe.optimiser(make_net())
    assert (opt.nesterov, opt.decay, opt.momentum) == (True, "l2", pytest.approx(0.9))
    rates = recipe.rates(3120)
    assert rates(0) == pytest.approx({"lr": 0.1 / 25, "momentum": 0.95})
    assert rates(623) == pytest.approx({"lr": 0.1, "momentum": 0.85})
    assert rates(3119) == pytest.approx({"lr": 0.1 / 25 / 1e4, "momentum": 0.95})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "at least 1, got 0 and 16"),
        ({"batch_size": 0}, "at least 1, got 2 and 0"),
        ({"batch_size": 71}, "70 training images do not fill one batch of 71"),
        ({"schedule": "one-cycel"}, "did you mean 'one-cycle'"),
        ({"lr": -1}, "lr must be"),
        ({"label_smoothing": 2}, "label_smoothing must be from 0 to 1"),
    ],
)
def test_bad_recipes(change, message):
    with pytest.raises(MbnpError, match=message):
        train.fit(make_net(), make_data(), dataclasses.replace(RECIPE, **change))


def test_weights_that_break_in_an_epochs_last_step_are_not_reported_as_good():
    net, good = make_net(), []

    def poison(record):
        if record.step == 8:
            net.parameters()["fc.bias"].value.fill(np.inf)

    with pytest.raises(DivergedError, match="test loss is nan after step 8"):
        train.fit(net, make_data(), RECIPE, on_batch=poison, on_epoch=good.append)
    assert [record.epoch for record in good] == [1]


# -- evaluate ----------------------------------------------------------------------------------------------


def test_evaluate_takes_every_image_whatever_the_batch():
    net, data = make_net(), make_data()
    x = datasets.normalise(data.test.images, data.mean, data.std)
    logits = net.forward(x)
    for batch_size in (256, 23, 8, 1):
        loss, accuracy, predictions = train.evaluate(net, data.test, batch_size, data.mean, data.std)
        assert loss == pytest.approx(float(cross_entropy.forward(logits, data.test.labels)), rel=1e-5)
        assert accuracy == np.mean(logits.argmax(axis=1) == data.test.labels)
        np.testing.assert_array_equal(predictions, logits.argmax(axis=1))


def test_evaluate_wants_to_know_how_to_normalise():
    with pytest.raises(MbnpError, match="pass mean and std"):
        train.evaluate(make_net(), make_data().test)
