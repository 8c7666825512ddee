"""Optimisers: the rules by which gradients change weights.

Symbols: w a weight, g its gradient, t the number of the step from 1; everything is element by element.

Each rule is a method `update` in NumPy, which the backends loops and numpy run. Under numba the same rule runs as a
kernel of `update.py`, for all parameters in one call. Both write into `parameter.value` itself, which is then marked
as changed; frozen parameters are left alone.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mbnp.backend import current, one_pool
from mbnp.errors import MbnpError, unknown
from mbnp.optim import update
from mbnp.parameter import Parameter

DECAYS = ("l2", "decoupled")


class Optimiser:
    """The base class of optimisers. Hyperparameters are attributes, free to change between steps."""

    lr: float
    momentum: Any
    weight_decay: float
    kernel: Callable[..., None] | None = None  # `update` for all parameters at once
    memory: tuple[str, ...] = ()  # attributes with the arrays {parameter's name: array} that the rule keeps

    def __init_subclass__(cls) -> None:
        if "_memory" in vars(cls):  # what a rule keeps was said by this method, which nothing calls any more
            raise MbnpError(f'{cls.__name__} defines _memory: say what the rule keeps by memory = ("velocity",)')

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        if not isinstance(parameters, Mapping) or not parameters:
            raise MbnpError("an optimiser takes the parameters of a network by name: pass net.parameters()")
        self.parameters = dict(parameters)
        self.steps = 0  # updates made so far
        self._tables = update.Tables()

    def zero_grad(self) -> None:
        """Set every gradient to zero; backward adds to them."""
        for p in self.parameters.values():
            p.clear_grad()

    def step(self) -> None:
        """Update every parameter that is not frozen, once, from its gradient."""
        moving = [name for name, p in self.parameters.items() if not p.frozen]
        parameters = [self.parameters[name] for name in moving]
        kept = [[arrays[name] for name in moving] for arrays in (getattr(self, kind) for kind in self.memory)]
        columns = [[p.value for p in parameters], [p.grad for p in parameters], *kept]
        t = self.steps + 1
        with one_pool():  # after whatever kernels another Python thread runs
            self._update(t, columns)
        self.steps = t
        for p in parameters:
            p.touch()

    def set(self, **hyperparameters: float) -> None:
        """Change hyperparameters by name, as a schedule says."""
        for name, value in hyperparameters.items():
            if name not in ("lr", "momentum", "weight_decay"):
                raise MbnpError(f"{type(self).__name__} has no hyperparameter {name!r}")
            check_range(name, value)
            setattr(self, name, value)

    def state(self) -> dict[str, np.ndarray]:
        """Return a copy of what it keeps from step to step, by name: `steps`, and `velocity.NAME` and the like.

        Hyperparameters are not among it.
        """
        kept = {f"{kind}.{name}": a.copy() for kind in self.memory for name, a in getattr(self, kind).items()}
        return {"steps": np.array(self.steps), **kept}

    def load_state(self, mapping: Mapping[str, np.ndarray]) -> None:
        """Go on from a `state`. MbnpError, and nothing is changed, if it is not of such an optimiser and network."""
        now = self.state()
        for name in now.keys() | mapping.keys():
            if name not in now or name not in mapping or np.shape(mapping[name]) != now[name].shape:
                raise MbnpError(f"the state does not fit this optimiser: look at {name}")
        for kind in self.memory:
            for name, array in getattr(self, kind).items():
                array[...] = mapping[f"{kind}.{name}"]
        self.steps = int(mapping["steps"])

    def update(self, t: int, w: np.ndarray, g: np.ndarray, *memory: Any) -> None:
        """Change w, and the arrays that the rule keeps for it, by step t: the rule itself, in place."""
        raise NotImplementedError

    def _kernel(self) -> Callable | None:
        """Return the kernel of the class that wrote `update`, if it has one: a rule of one's own may have none."""
        return next(vars(cls).get("kernel") for cls in type(self).__mro__ if "update" in vars(cls))

    def _update(self, t: int, columns: list[list[np.ndarray]]) -> None:
        """Apply the rule to each parameter's arrays, or the kernel to all of them, as the backend says."""
        kernel = self._kernel()
        if kernel is None or current() != "numba":
            for arrays in zip(*columns, strict=True):
                self.update(t, *arrays)
            return
        constants = self._constants(t)
        for table, like in self._tables.of(columns):
            # In the parameters' dtype: a float64 scalar would promote a float32 kernel's arithmetic.
            kernel(table, like, *(c if isinstance(c, bool) else like.dtype.type(c) for c in constants))

    def _constants(self, t: int) -> tuple:
        """Return the numbers that the kernel takes after the arrays, for step t."""
        return ()

    def _zeros(self) -> dict[str, np.ndarray]:
        return {name: np.zeros_like(p.value) for name, p in self.parameters.items()}


class SGD(Optimiser):
    """Stochastic gradient descent with momentum, in PyTorch's form.

        d = g + weight_decay * w
        v = momentum * v + d
        w = w - lr * v                      with nesterov: w - lr * (d + momentum * v)

    decay="decoupled" leaves weight_decay * w out of d, and multiplies w by 1 - lr * weight_decay before the last line.
    v starts at zero, so the first step is along d itself. Sutskever et al., "On the importance of
    initialization and momentum in deep learning" (ICML 2013), section 2, with lr outside v instead of inside,
    which matters when lr changes. The decoupled decay is Loshchilov & Hutter, arXiv:1711.05101, algorithm 1.
    """

    kernel = update.sgd
    memory = ("velocity",)

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

    def update(self, t: int, w: np.ndarray, g: np.ndarray, v: np.ndarray) -> None:
        lr, momentum, l2, shrink, nesterov = self._constants(t)
        d = g + l2 * w
        v[...] = momentum * v + d
        w[...] = shrink * w - lr * (d + momentum * v if nesterov else v)

    def _constants(self, t: int) -> tuple:
        l2, shrink = self.weight_decay, 1.0
        if self.decay == "decoupled":
            l2, shrink = 0.0, 1 - self.lr * self.weight_decay
        return self.lr, self.momentum, l2, shrink, bool(self.nesterov)


class AdamW(Optimiser):
    """Adam with decoupled weight decay.

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g²
        w = (1 - lr * weight_decay) * w - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Kingma & Ba, "Adam", arXiv:1412.6980, algorithm 1; Loshchilov & Hutter, "Decoupled Weight Decay
    Regularization", arXiv:1711.05101, algorithm 2. The defaults are PyTorch's. `momentum` is another name for
    beta1, so that a schedule can cycle it.
    """

    kernel = update.adamw
    memory = ("mean", "square")

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

    def update(self, t: int, w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray) -> None:
        beta1, beta2 = self.betas
        m[...] = beta1 * m + (1 - beta1) * g
        v[...] = beta2 * v + (1 - beta2) * g * g
        step = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + self.eps)
        w[...] = (1 - self.lr * self.weight_decay) * w - self.lr * step

    def _constants(self, t: int) -> tuple:
        beta1, beta2 = self.betas
        rate = self.lr / (1 - beta1**t)
        square_scale = 1 / (1 - beta2**t)
        shrink = 1 - self.lr * self.weight_decay
        return beta1, 1 - beta1, beta2, 1 - beta2, rate, square_scale, self.eps, shrink


def check_range(name: str, value: float, below: float = math.inf) -> None:
    """Raise MbnpError unless 0 <= value < below."""
    if not 0 <= value < below:  # false for NaN too
        limit = "" if below == math.inf else f" and below {below}"
        raise MbnpError(f"{name} must be a finite number of at least 0{limit}, got {value}")
