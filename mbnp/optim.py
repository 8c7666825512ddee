"""Optimisers, and schedules that move their hyperparameters.

    opt = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = optim.one_cycle(0.1, total=1000)
    for i in range(1000):
        opt.set(**schedule(i))         # {"lr": ..., "momentum": ...}
        train.step(net, opt, x, y)     # zero_grad, forward, backward, opt.step

Symbols: w a weight, g its gradient, t the number of the step from 1; everything is element by element.
An update writes into `parameter.value` itself and then touches it; frozen parameters are left alone.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mbnp.backend import jit
from mbnp.errors import MbnpError, unknown
from mbnp.network import Parameter

DECAYS = ("l2", "decoupled")
SCHEDULES = ("one-cycle", "cosine", "step", "constant")

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

    def zero_grad(self) -> None:
        """Set every gradient to zero; backward adds to them."""
        for parameter in self.parameters.values():
            parameter.grad.fill(0)

    def step(self) -> None:
        """Update every parameter that is not frozen, once, from its gradient."""
        self.steps += 1
        for name, parameter in self.parameters.items():
            if not parameter.frozen:
                self._update(name, parameter)
                parameter.touch()

    def set(self, **hyperparameters: float) -> None:
        """Change hyperparameters by name, as a schedule says."""
        for name, value in hyperparameters.items():
            if name not in ("lr", "momentum", "weight_decay"):
                raise MbnpError(f"{type(self).__name__} has no hyperparameter {name!r}")
            check_range(name, value)
            setattr(self, name, value)

    def _update(self, name: str, parameter: Parameter) -> None:
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

    def _update(self, name: str, parameter: Parameter) -> None:
        l2, shrink = 0.0, 1.0
        if self.decay == "l2":
            l2 = self.weight_decay
        else:
            shrink = 1 - self.lr * self.weight_decay
        arrays = _flat(parameter.value, parameter.grad, self.velocity[name])
        _sgd(*arrays, *_like(parameter, self.lr, self.momentum, l2, shrink), self.nesterov)


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

    def _update(self, name: str, parameter: Parameter) -> None:
        beta1, beta2 = self.betas
        rate = self.lr / (1 - beta1**self.steps)
        square_scale = 1 / (1 - beta2**self.steps)
        shrink = 1 - self.lr * self.weight_decay
        arrays = _flat(parameter.value, parameter.grad, self.mean[name], self.square[name])
        numbers = (beta1, 1 - beta1, beta2, 1 - beta2, rate, square_scale, self.eps, shrink)
        _adamw(*arrays, *_like(parameter, *numbers))


# One kernel a rule: it reads and writes each number once, where NumPy would pass over the arrays seven times
# (280,650 parameters in 54 arrays: 0.1 ms against 0.4 ms).


@jit
def _sgd(w, g, v, lr, momentum, l2, shrink, nesterov):
    for i in range(w.size):
        d = g[i] + l2 * w[i]
        v[i] = momentum * v[i] + d
        w[i] = shrink * w[i] - lr * (d + momentum * v[i] if nesterov else v[i])


@jit
def _adamw(w, g, m, v, beta1, rest1, beta2, rest2, rate, square_scale, eps, shrink):
    for i in range(w.size):
        m[i] = beta1 * m[i] + rest1 * g[i]
        v[i] = beta2 * v[i] + rest2 * g[i] * g[i]
        w[i] = shrink * w[i] - rate * m[i] / (np.sqrt(square_scale * v[i]) + eps)


def _flat(*arrays: np.ndarray) -> list[np.ndarray]:
    # Views, so that a kernel is compiled for one dimension only.
    return [array.reshape(-1) for array in arrays]


def _like(parameter: Parameter, *numbers: float) -> list[np.floating]:
    # In the parameter's dtype: a float64 scalar would promote a float32 kernel's arithmetic.
    return [parameter.value.dtype.type(number) for number in numbers]


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
