"""`mbnp check`: compare all implementations of every operation with each other and with outside references.

With --op, an operation of the reader's own with finite differences and with PyTorch.
"""

import importlib
import inspect
import sys
import traceback
import types
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbnp import backend, gradcheck, spec, tables
from mbnp.commands import common
from mbnp.errors import MbnpError
from mbnp.gradcheck import finite
from mbnp.network import Layer
from mbnp.ops import gate
from mbnp.ops import softmax_cross_entropy as cross_entropy
from mbnp.parameter import Parameter
from mbnp.weights import layouts

TITLE = (
    "Every operation's plain loops, which define it, against its NumPy and Numba implementations, finite differences "
    "and PyTorch: the largest error over output and gradients, relative to the largest entry."
)

# The largest error of each comparison, relative to the largest entry of the array.
ALLOWED = {"numpy": 1e-10, "numba": 1e-10, "float32": 1e-5, "differences": 1e-6, "torch": 1e-10}

SHAPES = [(2, 7, 6, 4), (2, 1, 1, 4), (5, 4)]  # of inputs: the first one that a layer takes
REQUIRED = {"c_in": 4, "c_out": 6, "channels": 4, "size": 3}  # where a constructor has no default
VARIANTS: dict[str, dict[str, Any]] = {  # of options, for the layers that have them
    "": {},
    ", padding 1": {"padding": 1},
    ", stride 2": {"stride": 2, "padding": ((0, 1), (1, 0))},  # one-sided, as TensorFlow pads
    ", max 0.7": {"max_value": 0.7},
    ", rows first": {"order": "HWC"},
}
FIXED = ", running"  # BatchNorm with a frozen weight: running statistics normalise
LABELS = np.array([2, 0, 3, 3])


class Case(NamedTuple):
    """One operation: forward(*inputs) -> y, and backward(dy, *inputs) -> a gradient for each input.

    torch(torch, *inputs) -> y, the same for PyTorch's tensors; None where that draws numbers of its own.
    """

    name: str
    inputs: list[np.ndarray]
    forward: Callable
    backward: Callable
    torch: Callable | None


def run(options: Namespace) -> int:
    torch = None
    with suppress(ImportError):
        torch = importlib.import_module("torch")
    if options.op is not None:
        return _check_own(options.op, torch)
    columns = [name for name in ALLOWED if name != "torch" or torch]
    with common.announced(print):
        results = {case.name: _errors(case, torch) for case in cases()}
    print(tables.hang(TITLE, indent=0) + "\n")
    rows = [
        # Written so that NaN fails.
        [name, *(f"{errors[c]:.1e}{' ' if errors[c] <= ALLOWED[c] else '!'}" if c in errors else "" for c in columns)]
        for name, errors in results.items()
    ]
    print(tables.table(["", *columns], rows))
    if not torch:
        print("\nPyTorch is not installed, so nothing was compared with it.")
    failed = sum(cell.endswith("!") for row in rows for cell in row)
    print(f"\n{failed} comparisons failed, marked with !" if failed else "\nall agree")
    return 1 if failed else 0


def cases() -> Iterator[Case]:
    """Yield every kind of layer with every variant of its options, a gate's product, and the loss."""
    for kind, layer in spec.KINDS.items():
        parameters = inspect.signature(layer).parameters
        required = {n: REQUIRED.get(n, 2) for n, p in parameters.items() if p.default is p.empty}
        for variant, chosen in VARIANTS.items():
            if chosen.keys() <= parameters.keys():
                make = partial(_make, layer, {**required, **chosen})
                yield _layer_case(kind + variant, make)
                if make(np.float64).buffers():
                    yield _layer_case(kind + variant + FIXED, partial(make, fixed=True))
    rng = np.random.default_rng(0)
    yield Case(
        "gate",
        [rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 5))],
        gate.forward,
        gate.backward,
        lambda torch, x, s: x * s[:, None, None, :],
    )
    yield Case(
        "softmax cross-entropy",
        [np.random.default_rng(0).standard_normal((4, 5))],
        lambda z: cross_entropy.forward(z, LABELS, label_smoothing=0.1),
        lambda dy, z: (dy * cross_entropy.backward(z, LABELS, label_smoothing=0.1),),
        lambda torch, z: torch.nn.functional.cross_entropy(z, torch.tensor(LABELS), label_smoothing=0.1),
    )


def _make(kind: Any, options: dict[str, Any], dtype: Any, fixed: bool = False) -> Any:
    """Make a layer with the same random arrays each time, in `dtype`; with `fixed`, its weight is frozen."""
    layer = kind(**options, **({"dtype": dtype} if "dtype" in inspect.signature(kind).parameters else {}))
    rng = np.random.default_rng(1)
    for variable in layer.variables().values():
        variable.value = rng.uniform(0.5, 1.5, variable.value.shape).astype(np.float32)
    if fixed:
        layer.weight.frozen = True
    return layer


def _layer_case(name: str, make: Callable[..., Any]) -> Case:
    def run(x: np.ndarray, *values: np.ndarray) -> tuple[Layer, np.ndarray]:
        layer = make(x.dtype)
        for parameter, value in zip(_learning(layer).values(), values, strict=True):
            parameter.value = value
        return layer, layer.forward(x, train=True)

    def backward(dy: np.ndarray, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        layer, _ = run(*inputs)
        return layer.backward(dy), *(p.grad for p in _learning(layer).values())

    layer = make(np.float64)
    x = np.random.default_rng(0).standard_normal(_shape(layer))
    inputs = [x, *(p.value for p in _learning(layer).values())]
    torch = None if layer.generators() else partial(_torch_layer, layer)
    return Case(name, inputs, lambda *a: run(*a)[1], backward, torch)


def _learning(layer: Layer) -> dict[str, Parameter]:
    return {name: p for name, p in layer.parameters().items() if not p.frozen}


def _shape(layer: Layer) -> tuple[int, ...]:
    for shape in SHAPES:
        with suppress(MbnpError):
            layer.forward(np.zeros(shape))
            return shape
    raise MbnpError(f"{layer.kind} takes none of the shapes {SHAPES}")


def _errors(case: Case, torch: Any) -> dict[str, float]:
    """Return the error of each comparison, by the names of ALLOWED."""
    inputs = [a.astype(np.float32).astype(np.float64) for a in case.inputs]
    with backend.use("loops"):
        y = np.asarray(case.forward(*inputs))
        dy = np.random.default_rng(2).standard_normal(y.shape).astype(np.float32).astype(np.float64)
        truth = [y, *case.backward(dy, *inputs)]
        errors = {"differences": np.inf}
        with suppress(MbnpError):  # where they differ by more than is allowed
            found = gradcheck.compare(case.forward, case.backward, inputs, tol=ALLOWED["differences"], entries=20)
            errors["differences"] = max(error for error in found if error is not None)
    for name in ("numpy", "numba", "float32"):
        cast = [a.astype(np.float32 if name == "float32" else np.float64) for a in (dy, *inputs)]
        with backend.use("numpy" if name == "numpy" else "numba"):
            errors[name] = _largest([case.forward(*cast[1:]), *case.backward(*cast)], truth)
    if torch and case.torch:
        tensors = [torch.tensor(a, requires_grad=True) for a in inputs]
        y = case.torch(torch, *tensors)
        y.backward(torch.tensor(dy))
        errors["torch"] = _largest([a.numpy() for a in (y.detach(), *(t.grad for t in tensors))], truth)
    return errors


def _torch_layer(layer: Layer, torch: Any, x: Any, *values: Any) -> Any:
    """Run the layer in PyTorch, in its layouts, on tensors in ours; return the output in ours."""
    learned = dict(zip(_learning(layer), values, strict=True))
    tensors = {name: torch.tensor(v.value) for name, v in layer.variables().items()} | learned
    if "weight" in tensors:  # its entries in the order of PyTorch's axes, by their index
        index = np.arange(tensors["weight"].numel()).reshape(tensors["weight"].shape)
        order = layouts.convert(index, type(layer), "mbnp", "torch")
        tensors["weight"] = tensors["weight"].flatten()[torch.tensor(order)]
    training = not layer.buffers() or "weight" in learned
    channels_first = x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x
    y = layer.torch(torch.nn.functional)(channels_first, training, **tensors)
    return y.permute(0, 2, 3, 1) if y.ndim == 4 else y


def _largest(found: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """Return the largest error, relative to the largest entry of each array; NaN if there is one."""
    return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, truth, strict=True)]))


# --- an operation of the reader's own ---

OWN = "an operation has forward(*inputs), backward(dy, *inputs), example_inputs(), and torch(*tensors) if you like"


def _check_own(argument: str, torch: Any) -> int:
    """Compare the operation that FILE.py:NAME names with finite differences and PyTorch; return the exit status."""
    path, _, name = argument.rpartition(":")
    if not path.endswith(".py") or not name:
        raise MbnpError(f"--op takes FILE.py:NAME, such as ops.py:HardSwish, got {argument!r}")
    found: dict[str, dict[str, float]] = {}
    failures = []
    with _blaming(path):
        op = _load(Path(path), name)
        inputs = finite.in_float64(op.example_inputs())
        names = finite.argument_names(op.forward, len(inputs))
        for column in ("differences", *(["torch"] if torch and hasattr(op, "torch") else [])):
            try:
                found[column] = _errors_of_own(op, inputs, names, column)
            except MbnpError as error:
                failures.append(tables.hang(f"{column}: {error}"))
    shapes = ", ".join(f"{of} {a.shape}" for of, a in zip(names, inputs, strict=True))
    print(tables.hang(f"{name} of {path}, in float64, with {shapes}") + "\n")
    if found:
        rows = [key for key in ("output", *map(finite.gradient_name, names)) if any(key in e for e in found.values())]
        cells = [[key, *(f"{e[key]:.1e}" if key in e else "" for e in found.values())] for key in rows]
        print(tables.table(["", *found], cells) + "\n")
    if not hasattr(op, "torch"):
        print("It has no torch function, so nothing was compared with PyTorch.\n")
    elif not torch:
        print("PyTorch is not installed, so nothing was compared with it.\n")
    print("\n".join(failures) or "all agree")
    return 1 if failures else 0


def _errors_of_own(op: Any, inputs: list[np.ndarray], names: list[str], column: str) -> dict[str, float]:
    """Return the error of each array against what `column` names; MbnpError for one that is too large."""
    if column == "torch":
        return gradcheck.op_against_torch(op.forward, op.backward, op.torch, inputs, tol=ALLOWED[column])
    errors = finite.differences(op.forward, op.backward, inputs, names, tol=ALLOWED[column])
    return {finite.gradient_name(of): e for of, e in zip(names, errors, strict=True) if e is not None}


def _load(path: Path, name: str) -> Any:
    """Return the operation `name` of a file, which is executed: it is the reader's own program."""
    if not path.is_file():
        raise MbnpError(f"there is no file {path}")
    sys.path.insert(0, str(path.resolve().parent))  # it may import a helper beside it
    module = sys.modules["own_operation"] = types.ModuleType("own_operation")
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), vars(module))
    if name not in vars(module):
        known = [n for n, value in vars(module).items() if hasattr(value, "example_inputs")]
        hint = f"its operations are {', '.join(known)}" if known else OWN
        raise MbnpError(f"{path} has nothing named {name!r}: {hint}")
    found = vars(module)[name]
    op = found() if isinstance(found, type) else found
    for method in ("forward", "backward", "example_inputs"):
        if not callable(getattr(op, method, None)):
            raise MbnpError(f"{name} of {path} has no {method}: {OWN}")
    return op


@contextmanager
def _blaming(path: str) -> Iterator[None]:
    """Let what goes wrong in the reader's file be one line, which names the file's line."""
    try:
        yield
    except MbnpError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f"{path}, line {lines[-1]}" if lines else path
        raise MbnpError(": ".join([where, type(error).__name__, *str(error).strip().splitlines()[:1]])) from None
