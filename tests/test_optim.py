"""Every rule against torch.optim, step by step; the schedules against torch's, at every step."""

import copy
import math
import os
import pickle
import subprocess
import sys
import textwrap

import numba
import numpy as np
import pytest
import torch

from mbnp import backend, optim
from mbnp.errors import MbnpError
from mbnp.parameter import Parameter

SHAPES = {"conv.weight": (3, 3, 4, 5), "bn.weight": (5,), "fc.weight": (5, 7)}


def pair(dtype=np.float64):
    """The same parameters twice: ours, and torch's."""
    rng = np.random.default_rng(1)
    ours = {name: Parameter(rng.standard_normal(shape).astype(dtype)) for name, shape in SHAPES.items()}
    theirs = [torch.tensor(p.value.copy(), requires_grad=True) for p in ours.values()]
    return ours, theirs


def walk_together(opt, torch_opt, ours, theirs, tolerance, steps=12, before_step=lambda i: None):
    rng = np.random.default_rng(2)
    for i in range(steps):
        before_step(i)
        for p, t in zip(ours.values(), theirs, strict=True):
            p.grad[...] = rng.standard_normal(p.grad.shape)
            t.grad = torch.tensor(p.grad.copy())
        opt.step()
        torch_opt.step()
        for p, t in zip(ours.values(), theirs, strict=True):
            np.testing.assert_allclose(p.value, t.detach().numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_sgd_is_torchs(options):
    ours, theirs = pair()
    torch_opt = torch.optim.SGD(theirs, lr=0.1, **options)
    walk_together(optim.SGD(ours, lr=0.1, **options), torch_opt, ours, theirs, 1e-13)


def test_sgd_in_float32():
    ours, theirs = pair(np.float32)
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    opt = optim.SGD(ours, lr=0.1, **options)
    walk_together(opt, torch.optim.SGD(theirs, lr=0.1, **options), ours, theirs, 2e-6)
    assert all(p.value.dtype == np.float32 for p in ours.values())
    assert all(v.dtype == np.float32 for v in opt.velocity.values())


@pytest.mark.parametrize("options", [{}, {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.3}])
def test_adamw_is_torchs(options):
    ours, theirs = pair()
    torch_opt = torch.optim.AdamW(theirs, **options)
    walk_together(optim.AdamW(ours, **options), torch_opt, ours, theirs, 1e-13)


@pytest.mark.parametrize("nesterov", [False, True])
def test_decoupled_decay_shrinks_the_weight_and_stays_out_of_the_momentum(nesterov):
    ours, theirs = pair()
    torch_opt = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, nesterov=nesterov)
    opt = optim.SGD(ours, lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.3, decay="decoupled")

    def shrink_theirs(i):
        with torch.no_grad():
            for t in theirs:
                t.mul_(1 - 0.1 * 0.3)

    walk_together(opt, torch_opt, ours, theirs, 1e-13, before_step=shrink_theirs)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_schedule_moves_learning_rate_and_momentum(kind):
    ours, theirs = pair()
    if kind == "SGD":
        opt = optim.SGD(ours, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        torch_opt = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    else:
        opt, torch_opt = optim.AdamW(ours), torch.optim.AdamW(theirs)
    torch_schedule = torch.optim.lr_scheduler.OneCycleLR(torch_opt, 0.1, total_steps=12, pct_start=0.2)
    schedule = optim.one_cycle(0.1, total=12)

    def advance(i):
        opt.set(**schedule(i))
        if i:
            torch_schedule.step()

    walk_together(opt, torch_opt, ours, theirs, 1e-13, before_step=advance)
    assert opt.steps == 12


def test_an_update_writes_in_place_and_says_so():
    ours, _ = pair()
    arrays = {name: p.value for name, p in ours.items()}
    versions = {name: p.version for name, p in ours.items()}
    ours["bn.weight"].frozen = True
    frozen = ours["bn.weight"].value.copy()
    for p in ours.values():
        p.grad[...] = 1
    before = ours["fc.weight"].value.copy()
    opt = optim.SGD(ours, lr=0.5)
    opt.step()
    np.testing.assert_allclose(ours["fc.weight"].value, before - 0.5)
    np.testing.assert_array_equal(ours["bn.weight"].value, frozen)
    assert all(p.value is arrays[name] for name, p in ours.items())
    assert [name for name, p in ours.items() if p.version > versions[name]] == ["conv.weight", "fc.weight"]
    opt.zero_grad()
    assert not any(p.grad.any() for p in ours.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: optim.SGD(p, lr=-0.1), "lr must be .* got -0.1"),
        (lambda p: optim.SGD(p, lr=math.nan), "lr must be .* got nan"),
        (lambda p: optim.SGD(p, lr=math.inf), "lr must be .* got inf"),
        (lambda p: optim.SGD(p, lr=0.1, momentum=1), "momentum must be .* below 1, got 1"),
        (lambda p: optim.SGD(p, lr=0.1, weight_decay=-1), "weight_decay must be .* got -1"),
        (lambda p: optim.SGD(p, lr=0.1, nesterov=True), "pass momentum=0.9"),
        (lambda p: optim.SGD(p, lr=0.1, decay="L2"), "unknown weight decay 'L2'"),
        (lambda p: optim.SGD({}, lr=0.1), r"pass net.parameters\(\)"),
        (lambda p: optim.AdamW(p, lr=-1), "lr must be .* got -1"),
        (lambda p: optim.AdamW(p, betas=(1.0, 0.99)), "beta1 must be .* below 1, got 1.0"),
        (lambda p: optim.AdamW(p, betas=(math.nan, 0.99)), "beta1 must be .* got nan"),
        (lambda p: optim.AdamW(p, betas=(0.9, 1.5)), "beta2 must be .* got 1.5"),
        (lambda p: optim.AdamW(p, weight_decay=-0.1), "weight_decay must be .* got -0.1"),
        (lambda p: optim.AdamW(p, eps=-1e-8), "eps must be"),
        (lambda p: optim.SGD(p, lr=0.1).set(rate=1), "SGD has no hyperparameter 'rate'"),
    ],
)
def test_bad_hyperparameters_are_refused(make, message):
    with pytest.raises(MbnpError, match=message):
        make(pair()[0])


def torch_schedule_values(make, total):
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3, momentum=0.9)
    schedule = make(opt)
    for _ in range(total):
        yield opt.param_groups[0]["lr"], opt.param_groups[0]["momentum"]
        opt.step()
        schedule.step()


@pytest.mark.parametrize(
    ("total", "warm"), [(1, 0.2), (2, 0.2), (4, 0.2), (7, 0.3), (100, 0.2), (3120, 0.2), (50, 0.9)]
)
def test_one_cycle_is_torchs_at_every_step(total, warm):
    def make(opt):
        return torch.optim.lr_scheduler.OneCycleLR(opt, 0.3, total_steps=total, pct_start=warm)

    ours = optim.one_cycle(0.3, total, warm)
    for i, (lr, momentum) in enumerate(torch_schedule_values(make, total)):
        assert ours(i) == pytest.approx({"lr": lr, "momentum": momentum}, rel=1e-12, abs=1e-15)


def test_one_cycle_where_torch_divides_zero_by_zero():
    at = optim.one_cycle(0.3, total=5, warm=0.2)
    assert at(0) == {"lr": 0.3, "momentum": 0.85}
    assert at(4)["lr"] == pytest.approx(0.3 / 25 / 1e4)
    assert at(400) == at(4)
    assert optim.one_cycle(0.3, total=1, warm=1.0)(0)["lr"] == pytest.approx(0.3 / 25 / 1e4)


def test_one_cycle_leaves_momentum_alone_when_told():
    assert optim.one_cycle(0.3, 10, momentum=None)(3).keys() == {"lr"}


def test_cosine_and_step_are_torchs():
    schedulers = torch.optim.lr_scheduler
    cosine = optim.cosine(0.3, 50, final=0.01)
    for i, (lr, _) in enumerate(torch_schedule_values(lambda o: schedulers.CosineAnnealingLR(o, 50, 0.01), 51)):
        assert cosine(i)["lr"] == pytest.approx(lr, rel=1e-12)
    assert cosine(1000)["lr"] == 0.01
    stairs = optim.step(0.3, every=7, factor=0.5)
    for i, (lr, _) in enumerate(torch_schedule_values(lambda o: schedulers.StepLR(o, 7, 0.5), 40)):
        assert stairs(i)["lr"] == pytest.approx(lr, rel=1e-12)
    assert optim.constant(0.3)(0) == optim.constant(0.3)(10**6) == {"lr": 0.3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.one_cycle(0.1, total=0), "at least 1 step in total, got 0"),
        (lambda: optim.one_cycle(0.1, total=10, warm=20), "fraction between 0 and 1, got 20"),
        (lambda: optim.cosine(0.1, total=0), "at least 1 step in total"),
        (lambda: optim.step(0.1, every=0), "every must be at least 1 step, got 0"),
    ],
)
def test_bad_schedules_are_refused(make, message):
    with pytest.raises(MbnpError, match=message):
        make()


def test_parameters_of_two_types_and_gradients_that_were_replaced():
    single, double = Parameter(np.ones(3, np.float32)), Parameter(np.ones((2, 2)))
    opt = optim.SGD({"a": single, "b": double}, lr=0.5)
    for p in (single, double):
        p.grad[...] = 1
    opt.step()
    np.testing.assert_array_equal(single.value, np.full(3, 0.5))
    np.testing.assert_array_equal(double.value, np.full((2, 2), 0.5))
    double.grad = np.full((2, 2), -1.0)
    opt.step()
    np.testing.assert_array_equal(single.value, np.zeros(3))
    np.testing.assert_array_equal(double.value, np.ones((2, 2)))
    single.frozen = True
    opt.step()
    np.testing.assert_array_equal(single.value, np.zeros(3))
    np.testing.assert_array_equal(double.value, np.full((2, 2), 1.5))


@pytest.mark.parametrize("wrong", [np.ones(4), np.ones(3, np.float64), np.ones(6, np.float32)[::2]])
def test_a_memory_unlike_its_parameter_is_refused_and_nothing_moves(wrong):
    first, second = Parameter(np.ones(3, np.float32)), Parameter(np.ones(3, np.float32))
    opt = optim.AdamW({"first": first, "second": second})
    first.grad[...] = 1
    opt.mean["second"] = wrong
    with pytest.raises(MbnpError, match="write into the array"):
        opt.step()
    np.testing.assert_array_equal(first.value, np.ones(3))
    assert opt.steps == 0


def test_a_gradient_that_is_assigned_is_copied():
    """So that no array of whatever kind gets where kernels write through addresses."""
    p = Parameter(np.ones((2, 3), np.float32))
    opt = optim.SGD({"p": p}, lr=1)
    kept, immutable = p.grad, np.frombuffer(np.arange(6, dtype=np.float32).tobytes(), np.float32)
    for new in (
        immutable.reshape(2, 3),
        np.asfortranarray(immutable.reshape(2, 3)),
        np.arange(6.0).reshape(2, 3),
    ):
        p.grad = new
        assert p.grad is kept
        np.testing.assert_array_equal(p.grad, np.arange(6).reshape(2, 3))
        opt.zero_grad()
        assert not p.grad.any()
        assert new.any()
    p.grad += 2
    opt.step()
    np.testing.assert_array_equal(p.value, np.full((2, 3), -1))
    with pytest.raises(MbnpError, match=r"shape \(2, 3\), got \(3,\)"):
        p.grad = np.ones(3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"])
@pytest.mark.parametrize("rule", [optim.SGD, optim.AdamW])
def test_a_copy_updates_its_own_parameters(rule, copied):
    opt = rule({"p": Parameter(np.ones(3, np.float32))}, lr=0.1)
    opt.zero_grad()
    opt.step()
    other = copied(opt)
    (ours,), (theirs,) = opt.parameters.values(), other.parameters.values()
    ours.grad, theirs.grad, kept = np.full(3, 7), np.full(3, 7), ours.value.copy()
    other.step()
    other.zero_grad()
    np.testing.assert_array_equal(ours.value, kept)
    assert ours.grad.all()
    assert not theirs.grad.any()
    assert (theirs.value < kept).all()


RULES = [
    (optim.SGD, {"weight_decay": 0.1}),
    (optim.SGD, {"momentum": 0.9, "weight_decay": 0.1, "decay": "decoupled"}),
    (optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (optim.AdamW, {"weight_decay": 0.1}),
]


@pytest.mark.parametrize(("rule", "options"), RULES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-14), (np.float32, 2e-7)])
def test_kernels_do_what_the_rules_in_numpy_say(rule, options, dtype, tolerance):
    def stepped(name):
        rng = np.random.default_rng(3)
        p = Parameter(rng.standard_normal(300).astype(dtype))
        opt = rule({"p": p}, lr=0.1, **options)
        with backend.use(name):
            for _ in range(3):
                opt.zero_grad()
                p.grad += rng.standard_normal(300).astype(dtype)
                opt.step()
        return p.value, *(
            memory["p"] for memory in vars(opt).values() if isinstance(memory, dict) and memory is not opt.parameters
        )

    for rules, kernels in zip(stepped("numpy"), stepped("numba"), strict=True):
        assert rules.dtype == kernels.dtype == dtype
        np.testing.assert_allclose(kernels, rules, rtol=0, atol=tolerance * np.abs(rules).max())


class Sign(optim.SGD):
    """A rule of a reader's own, on top of SGD, which has no kernel."""

    def update(self, t, w, g, v):
        w[...] = w - self.lr * np.sign(g)


class Plain(optim.Optimiser):
    def __init__(self, parameters, lr):
        super().__init__(parameters)
        self.lr = lr

    def update(self, t, w, g):
        w[...] = w - self.lr * t * g

    def _memory(self, name):
        return []


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_a_rule_of_ones_own_is_what_runs(name):
    for rule, expected in ((Sign, [-1.0, -2.0]), (Plain, [-5.0, -15.0])):
        p = Parameter(np.zeros(1))
        opt = rule({"p": p}, lr=1.0)
        with backend.use(name):
            for value in expected:
                p.grad[...] = 5
                opt.step()
                assert p.value == value


def run_python(code, **variables):
    """In a process of its own, which may crash, with these environment variables."""
    command, environment = [sys.executable, "-c", textwrap.dedent(code)], os.environ | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_may_train_without_threads():
    code = """
    import os
    import numpy as np
    from mbnp import optim
    from mbnp.parameter import Parameter

    opt = optim.SGD({"p": Parameter(np.ones(3, np.float32))}, lr=1)
    opt.zero_grad()
    opt.step()
    child = os.fork()
    opt.zero_grad()
    opt.step()
    if child:
        assert os.waitpid(child, 0)[1] == 0
    """
    run_python(code, MBNP_BACKEND="numpy")


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 127, 128, 129, 100_003])
def test_every_entry_is_updated_once(size):
    p = Parameter(np.arange(size, dtype=np.float32))
    opt = optim.SGD({"p": p}, lr=1)
    p.grad[...] = 1
    opt.step()
    np.testing.assert_array_equal(p.value, np.arange(size) - 1)
    opt.zero_grad()
    assert not p.grad.any()


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing runs in parallel")
def test_threads_of_python_take_turns():
    """Numba's own thread pool, which it falls back on, ends the process when two of them run kernels at once."""
    code = """
    from concurrent.futures import ThreadPoolExecutor
    import numpy as np
    from mbnp import optim
    from mbnp.parameter import Parameter

    def train(seed):
        p = Parameter(np.ones(50_000, np.float32))
        opt = optim.SGD({"p": p}, lr=1)
        for _ in range(300):
            opt.zero_grad()
            p.grad[...] = 1
            opt.step()
        return float(p.value[0])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(train, range(2))) == [-299, -299]
    """
    run_python(code, NUMBA_THREADING_LAYER="workqueue")
