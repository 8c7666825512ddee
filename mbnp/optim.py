"""Optimisers, and schedules that move their hyperparameters.

    opt = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = optim.one_cycle(0.1, total=1000)
    for i in range(1000):
        opt.set(**schedule(i))         # {"lr": ..., "momentum": ...}
        train.step(net, opt, x, y)     # zero_grad, forward, backward, opt.step

Symbols: w a weight, g its gradient, t the number of the step from 1; everything is element by element.
An update writes into `parameter.value` itself and then touches it; frozen parameters are left alone.
"""

import ctypes
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numba import carray, prange, types
from numba.extending import intrinsic, overload

from mbnp.backend import current, jit, one_blas_thread, piece
from mbnp.errors import MbnpError, unknown
from mbnp.network import Parameter

DECAYS = ("l2", "decoupled")
SCHEDULES = ("one-cycle", "cosine", "step", "constant")
SHARES = 8  # of an update, for threads to divide among them

Schedule = Callable[[int], dict[str, float]]


class Optimiser:
    """What every optimiser has. Hyperparameters are attributes, free to change between steps."""

    lr: float
    momentum: Any
    weight_decay: float

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        if not isinstance(parameters, Mapping) or not parameters:
            raise MbnpError("an optimiser takes the parameters of a network by name: pass net.parameters()")
        self.parameters = dict(parameters)
        self.steps = 0  # updates done
        self._gradients, self._tables = _Tables(), _Tables()

    def zero_grad(self) -> None:
        """Set every gradient to zero; backward adds to them."""
        with one_blas_thread():  # whoever holds that is the only one to run kernels
            for table, like in self._gradients.of([[p.grad] for p in self.parameters.values()]):
                _chosen(_zero, _zero_alone)(table, like)

    def step(self) -> None:
        """Update every parameter that is not frozen, once, from its gradient."""
        moving = {name: p for name, p in self.parameters.items() if not p.frozen}
        with one_blas_thread():
            tables = self._tables.of([self._arrays(name, p) for name, p in moving.items()])
            self.steps += 1
            for table, like in tables:
                self._update(table, like)
        for parameter in moving.values():
            parameter.touch()

    def set(self, **hyperparameters: float) -> None:
        """Change hyperparameters by name, as a schedule says."""
        for name, value in hyperparameters.items():
            if name not in ("lr", "momentum", "weight_decay"):
                raise MbnpError(f"{type(self).__name__} has no hyperparameter {name!r}")
            check_range(name, value)
            setattr(self, name, value)

    def _arrays(self, name: str, parameter: Parameter) -> list[np.ndarray]:
        """The parameter, its gradient and what the rule remembers of it, as its kernel takes them."""
        raise NotImplementedError

    def _update(self, table: np.ndarray, like: np.ndarray) -> None:
        """One step for the parameters of a table, all of the type of `like`."""
        raise NotImplementedError

    def _zeros(self) -> dict[str, np.ndarray]:
        return {name: np.zeros_like(p.value) for name, p in self.parameters.items()}


class SGD(Optimiser):
    """Stochastic gradient descent with momentum, in PyTorch's form.

        d = g + weight_decay * w            decay="l2"; with "decoupled", d = g and w shrinks by itself:
        v = momentum * v + d                w = (1 - lr * weight_decay) * w - lr * ...
        w = w - lr * v                      nesterov: w - lr * (d + momentum * v)

    v starts at zero, so the first step is along d itself. Sutskever et al., "On the importance of
    initialization and momentum in deep learning" (ICML 2013), section 2, with lr outside v instead of inside,
    which matters when lr changes. The decoupled decay is Loshchilov & Hutter, arXiv:1711.05101, algorithm 1.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay: str = "l2",
    ) -> None:
        super().__init__(parameters)
        check_range("lr", lr)
        check_range("momentum", momentum, below=1)
        check_range("weight_decay", weight_decay)
        if nesterov and momentum == 0:
            raise MbnpError("Nesterov looks ahead along the momentum, and momentum is 0: pass momentum=0.9")
        if decay not in DECAYS:
            raise unknown("weight decay", decay, DECAYS)
        self.lr, self.momentum, self.nesterov = lr, momentum, nesterov
        self.weight_decay, self.decay = weight_decay, decay
        self.velocity = self._zeros()

    def _arrays(self, name: str, parameter: Parameter) -> list[np.ndarray]:
        return [parameter.value, parameter.grad, self.velocity[name]]

    def _update(self, table: np.ndarray, like: np.ndarray) -> None:
        l2, shrink = 0.0, 1.0
        if self.decay == "l2":
            l2 = self.weight_decay
        else:
            shrink = 1 - self.lr * self.weight_decay
        _chosen(_sgd, _sgd_alone)(
            table, like, *_numbers(like, self.lr, self.momentum, l2, shrink), self.nesterov
        )


class AdamW(Optimiser):
    """Adam with decoupled weight decay.

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g²
        w = (1 - lr * weight_decay) * w - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Kingma & Ba, "Adam", arXiv:1412.6980, algorithm 1; Loshchilov & Hutter, "Decoupled Weight Decay
    Regularization", arXiv:1711.05101, algorithm 2. The defaults are PyTorch's. `momentum` is another name for
    beta1, so that a schedule can cycle it.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters)
        check_range("lr", lr)
        check_range("beta1", betas[0], below=1)
        check_range("beta2", betas[1], below=1)
        check_range("eps", eps)
        check_range("weight_decay", weight_decay)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.mean = self._zeros()
        self.square = self._zeros()

    @property
    def momentum(self) -> float:
        return self.betas[0]

    @momentum.setter
    def momentum(self, value: float) -> None:
        self.betas = (value, self.betas[1])

    def _arrays(self, name: str, parameter: Parameter) -> list[np.ndarray]:
        return [parameter.value, parameter.grad, self.mean[name], self.square[name]]

    def _update(self, table: np.ndarray, like: np.ndarray) -> None:
        beta1, beta2 = self.betas
        rate = self.lr / (1 - beta1**self.steps)
        square_scale = 1 / (1 - beta2**self.steps)
        shrink = 1 - self.lr * self.weight_decay
        numbers = (beta1, 1 - beta1, beta2, 1 - beta2, rate, square_scale, self.eps, shrink)
        _chosen(_adamw, _adamw_alone)(table, like, *_numbers(like, *numbers))


# One kernel a rule, which reads and writes each number once, and one call for all parameters: a network has dozens of
# small ones, and a call for each would cost more than the arithmetic. So kernels are told where the arrays are. Each
# of their shares is the same stretch of every parameter: most rows were the same thread's when their gradient was made,
# and when they were last updated, and no core has to ask another one for them.


def _chosen(by_threads: Callable, alone: Callable) -> Callable:
    """The kernel of the two that runs: another backend than numba has no threads, and lives on in a forked process."""
    return by_threads if current() == "numba" else alone


@piece
def _part(address, size, share, like):
    """That share of the array (size,) at the address. All but the last end where a cache line of float32 may."""
    length = -(-size // (SHARES * 16)) * 16
    return array_at(address, size, like)[share * length : (share + 1) * length]


@piece
def _zero_share(table, share, like):
    for address, size in table:
        _part(address, size, share, like)[:] = 0


@jit(parallel=True)
def _zero(table, like):
    for share in prange(SHARES):
        _zero_share(table, share, like)


@jit
def _zero_alone(table, like):
    for share in range(SHARES):
        _zero_share(table, share, like)


@piece
def _sgd_share(table, share, like, lr, momentum, l2, shrink, nesterov):
    for w_at, g_at, v_at, size in table:
        w, g = _part(w_at, size, share, like), _part(g_at, size, share, like)
        v = _part(v_at, size, share, like)
        for i in range(w.size):
            d = g[i] + l2 * w[i]
            v[i] = momentum * v[i] + d
            w[i] = shrink * w[i] - lr * (d + momentum * v[i] if nesterov else v[i])


@jit(parallel=True)
def _sgd(table, like, lr, momentum, l2, shrink, nesterov):
    for share in prange(SHARES):
        _sgd_share(table, share, like, lr, momentum, l2, shrink, nesterov)


@jit
def _sgd_alone(table, like, lr, momentum, l2, shrink, nesterov):
    for share in range(SHARES):
        _sgd_share(table, share, like, lr, momentum, l2, shrink, nesterov)


@piece
def _adamw_share(table, share, like, beta1, rest1, beta2, rest2, rate, square_scale, eps, shrink):
    for w_at, g_at, m_at, v_at, size in table:
        w, g = _part(w_at, size, share, like), _part(g_at, size, share, like)
        m, v = _part(m_at, size, share, like), _part(v_at, size, share, like)
        for i in range(w.size):
            m[i] = beta1 * m[i] + rest1 * g[i]
            v[i] = beta2 * v[i] + rest2 * g[i] * g[i]
            w[i] = shrink * w[i] - rate * m[i] / (np.sqrt(square_scale * v[i]) + eps)


@jit(parallel=True)
def _adamw(table, like, beta1, rest1, beta2, rest2, rate, square_scale, eps, shrink):
    for share in prange(SHARES):
        _adamw_share(table, share, like, beta1, rest1, beta2, rest2, rate, square_scale, eps, shrink)


@jit
def _adamw_alone(table, like, beta1, rest1, beta2, rest2, rate, square_scale, eps, shrink):
    for share in range(SHARES):
        _adamw_share(table, share, like, beta1, rest1, beta2, rest2, rate, square_scale, eps, shrink)


def array_at(address, size, like):
    """The array (size,) of the type of `like` whose memory begins at the address."""
    memory = (ctypes.c_byte * int(size * like.itemsize)).from_address(int(address))
    return np.frombuffer(memory, like.dtype)  # type: ignore[call-overload]


@overload(array_at)
def _array_at(address, size, like):
    return lambda address, size, like: carray(_pointer(address, like), size)  # type: ignore[call-arg]


@intrinsic
def _pointer(context, address, like):
    def generate(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(like.dtype)(address, like), generate


class _Tables:
    """Where arrays are, a table (parameters, addresses and the size) for each dtype; made again when one is another.

    A copy, or what comes back from a file, begins without: its arrays are elsewhere.
    """

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []  # held, so that their memory stays what the tables say
        self.made: list[tuple[np.ndarray, np.ndarray]] = []

    def __reduce__(self) -> tuple:
        return _Tables, ()

    def of(self, groups: list[list[np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The tables, each with an empty array of its type, for the arrays of each parameter."""
        arrays = [array for group in groups for array in group]
        if len(arrays) != len(self.arrays) or any(
            a is not b for a, b in zip(arrays, self.arrays, strict=True)
        ):
            rows = [(group[0].dtype, _row(group)) for group in groups]
            dtypes = dict.fromkeys(dtype for dtype, _ in rows)
            self.made = [
                (np.array([row for its, row in rows if its == dtype]), np.empty(0, dtype)) for dtype in dtypes
            ]
            self.arrays = arrays
        return self.made


def _row(arrays: list[np.ndarray]) -> list[int]:
    like = arrays[0]
    for array in arrays:
        if not array.flags.carray or (array.dtype, array.shape) != (like.dtype, like.shape):
            raise MbnpError(
                f"what an optimiser keeps for a parameter must be like it, writable and contiguous: {like.dtype} of "
                f"shape {like.shape}, got {array.dtype} of shape {array.shape}: write into the array instead"
            )
    return [*(array.ctypes.data for array in arrays), like.size]


def _numbers(like: np.ndarray, *numbers: float) -> list[np.floating]:
    # In the parameters' dtype: a float64 scalar would promote a float32 kernel's arithmetic.
    return [like.dtype.type(number) for number in numbers]


def check_range(name: str, value: float, below: float = math.inf) -> None:
    """MbnpError unless 0 <= value < below."""
    if not 0 <= value < below:  # false for NaN too
        limit = "" if below == math.inf else f" and below {below}"
        raise MbnpError(f"{name} must be a finite number of at least 0{limit}, got {value}")


# -- schedules: from a step, counted from 0, to its hyperparameters; after the last step they stay ---------


def constant(lr: float) -> Schedule:
    """The same learning rate at every step."""
    return lambda step: {"lr": lr}


def step(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """lr * factor^floor(step / every): a staircase."""
    if every < 1:
        raise MbnpError(f"every must be at least 1 step, got {every}")
    return lambda step: {"lr": lr * factor ** (step // every)}


def cosine(lr: float, total: int, final: float = 0.0) -> Schedule:
    """Half a cosine from lr at step 0 to `final` at step `total`.

    Loshchilov & Hutter, "SGDR", arXiv:1608.03983, equation 5, without restarts.
    """
    _check_total(total)
    return lambda step: {"lr": _between(lr, final, min(step / total, 1))}


def one_cycle(
    peak: float,
    total: int,
    warm: float = 0.2,
    momentum: tuple[float, float] | None = (0.85, 0.95),
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Up to `peak` during the first share `warm` of `total` steps, then down to almost nothing.

    The learning rate goes from peak / div_factor to peak, and from there to peak / div_factor /
    final_div_factor, each along half a cosine; momentum goes the other way, from its upper end to its lower
    and back (None: leave it alone). Smith & Topin, "Super-Convergence", arXiv:1708.07120, as PyTorch's
    OneCycleLR has it in two phases: the peak is reached at step `warm * total - 1`, a fraction included.
    """
    _check_total(total)
    if not 0 <= warm <= 1:
        raise MbnpError(f"warm must be a share between 0 and 1, got {warm}")
    start, end = peak / div_factor, peak / div_factor / final_div_factor
    low, high = momentum or (0.0, 0.0)
    top, last = warm * total - 1, total - 1

    def at(step: int) -> dict[str, float]:
        step = min(step, last)
        if step <= top and top > 0:
            share = step / top
            lr, m = _between(start, peak, share), _between(high, low, share)
        else:
            # A run too short for a warm-up begins after its peak, as top < 0 says.
            share = (step - top) / (last - top) if last > top else 1.0
            lr, m = _between(peak, end, share), _between(low, high, share)
        return {"lr": lr, "momentum": m} if momentum else {"lr": lr}

    return at


def _between(start: float, end: float, share: float) -> float:
    """From `start` to `end` along half a cosine."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _check_total(total: int) -> None:
    if total < 1:
        raise MbnpError(f"a schedule needs at least 1 step in total, got {total}")
