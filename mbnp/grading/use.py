"""`mbnp grade --use`: a small network trains with the reader's own gradients of a convolution, beside mbnp's.

Two networks of two standard convolutions begin with the same weights and get the same images of 8 x 8. In one of them
the functions of lesson 3 (and of lesson 1, if that is solved) take the place of mbnp's. If they are right, both have
the same losses.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mbnp import backend, grading, layers, optim, tables, train, translation
from mbnp.errors import MbnpError
from mbnp.grading import progress
from mbnp.grading.exercise import StoppedError
from mbnp.grading.program import Program
from mbnp.grading.source import read
from mbnp.ops import conv

STEPS = 60
SHOWN = (1, 2, 3, 5, 10, 20, 30, 40, 50)  # steps that get a line, and the last one
SECONDS = 12  # after these no step begins, but for the second, the first that depends on the gradients
NEAR = 1e-4  # two losses that differ by less are the same: float32 rounds each sum, in whatever order it is added

Function = Callable[..., Any]


def run(file: Path) -> int:
    """Grade the file of lesson 3, then train with its functions; return 0 if the losses are those of mbnp."""
    report = grading.grade_file(file)
    if report.lesson != 3:
        raise MbnpError(f"--use trains with the functions of lesson 3, not {report.lesson}: mbnp grade 3 --use")
    missing = [name for name in ("conv_dx", "conv_dw") if not _is_solved(report, name)]
    if missing:
        raise MbnpError(f"{' and '.join(missing)} of {report.file} must be solved first: mbnp grade {report.file}")
    return train_with({report.file: ("conv_dx", "conv_dw"), **_first_lesson()})


def _first_lesson() -> dict[Path, Sequence[str]]:
    """Return the file with the reader's own forward pass, if lesson 1 is solved so far."""
    kept = progress.load()
    file = progress.file_of(kept, 1)
    if file is None or "convolve" not in kept[1].solved:
        return {}
    try:
        return {file: ("convolve",)} if _is_solved(grading.grade_file(file), "convolve") else {}
    except MbnpError:  # the file has changed since
        return {}


def _is_solved(report: grading.Report, name: str) -> bool:
    return any((outcome.name, outcome.status) == (name, "solved") for outcome in report.outcomes)


def train_with(files: dict[Path, Sequence[str]]) -> int:
    """Train with these functions of these files and print what happens; return 0 if all is well, or else 1."""
    calls: list[str] = []
    functions: dict[str, Function] = {}
    with ExitStack() as stack, backend.use("numpy"):  # NumPy's implementations need no compilation
        for file, names in files.items():
            program, source = stack.enter_context(Program()), read(file)
            program.load(source, names if source.cells else None)  # a notebook also trains and draws
            functions |= {name: _noted(name, program.function(name), calls) for name in names}
        return _train(functions, calls)


def _noted(name: str, function: Function, calls: list[str]) -> Function:
    def call(**arguments: Any) -> Any:
        shown = (f"{key} {value.shape if isinstance(value, np.ndarray) else value}" for key, value in arguments.items())
        calls.append(f"{name}({', '.join(shown)})")
        try:
            return function(**arguments)
        except (Exception, StoppedError, SystemExit) as error:
            what = str(error) if isinstance(error, StoppedError) else f"{type(error).__name__}: {error}"
            raise MbnpError(f"in a training step, {calls[-1]}: {what}") from None

    return call


def network(functions: dict[str, Function]) -> layers.Network:
    """Return the network, the same weights each time; `functions` take the place of those of `ops.conv`."""
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "conv1": layers.Conv(3, 4, padding=1, rng=rng),
        "relu1": layers.ReLU(),
        "conv2": layers.Conv(4, 8, stride=2, padding=1, rng=rng),
        "relu2": layers.ReLU(),
        "pool": layers.GlobalAveragePool(),
        "classifier": layers.Linear(8, 4, rng=rng),
    }
    op: Any = SimpleNamespace(forward=conv.forward, backward=conv.backward)
    if "convolve" in functions:
        op.forward = lambda x, w, b, **window: functions["convolve"](x=x, w=w, b=b, **window)
    if functions:
        op.backward = lambda dy, x, w, **window: _backward(functions, dy, x, w, **window)
    for name in ("conv1", "conv2"):
        parts[name].op = op
    return layers.Network(parts, resolution=8)


def _backward(functions: dict[str, Function], dy: Any, x: Any, w: Any, stride: int, padding: int) -> tuple:
    dx = functions["conv_dx"](dy=dy, w=w, shape=x.shape, stride=stride, padding=padding)
    dw = functions["conv_dw"](dy=dy, x=x, kernel=w.shape[:2], stride=stride, padding=padding)
    for name, got, like in (("conv_dx", dx, x), ("conv_dw", dw, w)):
        if not isinstance(got, np.ndarray) or got.shape != like.shape:
            raise MbnpError(f"in a training step, {name} did not return an array of shape {like.shape}")
    return dx, dw, dy.sum((0, 1, 2))


def images(rng: np.random.Generator, count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Draw stripes of any colour, with noise: x (count, 8, 8, 3), and in which of four directions they run."""
    labels = rng.integers(0, 4, count)
    i, j = np.mgrid[:8, :8]
    angles = (labels * np.pi / 4)[:, None, None]
    waves = np.sin(1.6 * (i * np.sin(angles) + j * np.cos(angles)) + rng.uniform(0, 6, (count, 1, 1)))
    x = waves[..., None] * rng.uniform(0.5, 1.5, (count, 1, 1, 3)) + 0.3 * rng.standard_normal((count, 8, 8, 3))
    return x.astype(np.float32), labels


def losses(functions: dict[str, Function]) -> Iterator[tuple[float, float]]:
    """Yield each step's loss with the reader's functions and with mbnp's own, on the same images."""
    nets = network(functions), network({})
    optimisers = [optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in nets]
    rng = np.random.default_rng(1)
    while True:
        x, labels = images(rng)
        yours, own = (train.step(net, opt, x, labels) for net, opt in zip(nets, optimisers, strict=True))
        yield yours, own


def _train(functions: dict[str, Function], calls: list[str]) -> int:
    start = time.perf_counter()
    for step, (yours, own) in enumerate(losses(functions), start=1):
        if step == 1:
            _show_calls(functions, calls)
            print(_say("  step  loss with yours  with mbnp's  difference"))
        seconds = time.perf_counter() - start
        last = step == STEPS or (seconds > SECONDS and step > 1)
        same = abs(yours - own) <= NEAR
        if last or not same or step in SHOWN:
            print(f"{step:6}{yours:17.6f}{own:13.6f}{abs(yours - own):12.1e}", flush=True)
        if not same:
            what = "a gradient is wrong for a case that the exercise does not have"
            print(_say(f"the losses part at step {step}: {what}"))
            return 1
        if last:
            break
    print(_say(f"{step} steps in {seconds:.1f} s: your gradients train this network as mbnp's do"))
    return 0


def _show_calls(functions: dict[str, Function], calls: list[str]) -> None:
    """Print what one step called, one line for a function and the arguments of its first call below."""
    for name in functions:
        own = [call for call in calls if call.startswith(f"{name}(")]
        print(_say(f"one training step called your {name} {len(own)} times; first"))
        print(tables.hang(f"  {own[0]}", indent=4), flush=True)


def _say(text: str) -> str:
    """Return a message in the reader's language."""
    return translation.say(text, "mbnp.grading")
