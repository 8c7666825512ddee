"""Our contenders: the network, and its matrix products alone.

A contender is made by Contender(job, options, before_network). It calls before_network() when all that it imports and
all that it needs from others is in memory, and nothing of its network is yet. Then it has

    outputs() -> dict    what it computes from the job's weights and batch, to be compared: logits in inference; in
                         training loss and grad.NAME of each parameter, in our names and layouts, and the same as
                         float64.loss, ... of the same code in float64 where it has it; {} if there is nothing
    run()                one training step or one inference, which is what is timed
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from mbnp import backend, fused, train
from mbnp.bench import products
from mbnp.bench.jobs import Job, optimiser
from mbnp.network import Network
from mbnp.ops import softmax_cross_entropy as cross_entropy


class Mbnp:
    """Our network. Option `engine`: "fused" or "readable"."""

    def __init__(self, job: Job, options: dict[str, Any], before_network: Callable[[], object]) -> None:
        backend.set_num_threads(job.threads)
        self.job, self.engine = job, options["engine"]
        self.x, self.y = job.batch()
        with backend.one_blas_thread():  # imports SciPy's BLAS
            pass
        before_network()
        self.net = self._network(np.float32)
        self.optimiser = optimiser(self.net)

    def _network(self, dtype: Any) -> Network:
        net = self.job.network(dtype)
        return fused.convert(net) if self.engine == "fused" else net

    def outputs(self) -> dict[str, np.ndarray]:
        found = compute(self.job, self.net)
        if self.job.work == "training":
            exact = compute(self.job, self._network(np.float64))
            found |= {f"float64.{name}": array for name, array in exact.items()}
        return found

    def run(self) -> None:
        if self.job.work == "inference":
            self.net.forward(self.x)
        else:
            train.step(self.net, self.optimiser, self.x, self.y)


class Reference:
    """What every contender is compared with: the readable network in NumPy and float64, which compiles nothing."""

    def __init__(self, job: Job, options: dict[str, Any], before_network: Callable[[], object]) -> None:
        self.job, self.net = job, job.network(np.float64)

    def outputs(self) -> dict[str, np.ndarray]:
        with backend.use("numpy"):
            return compute(self.job, self.net)


def compute(job: Job, net: Network) -> dict[str, np.ndarray]:
    """The outputs of one of our networks, in its dtype."""
    x, y = (array[: job.compared()] for array in job.batch(net.dtype))
    if job.work == "inference":
        return {"logits": net.forward(x)}
    logits = net.forward(x, train=True)
    net.backward(cross_entropy.backward(logits, y))
    grads = {f"grad.{name}": p.grad.copy() for name, p in net.parameters().items()}
    return {"loss": np.asarray(cross_entropy.forward(logits, y)), **grads}


class Products:
    """The network's matrix products. Option `by`: "kernel", as the fast engine runs them, or "numpy"."""

    def __init__(self, job: Job, options: dict[str, Any], before_network: Callable[[], object]) -> None:
        net = job.network()
        before_network()
        backward = job.work == "training"
        its = products.of(net, (job.resolution, job.resolution, 3), job.batch_size)
        floor = products.Floor(its, backward, job.threads)
        self.run = floor.run
        if options["by"] == "numpy":
            self.threads = ExitStack()  # for as long as this process lives
            self.threads.enter_context(floor.numpy_threads())
            self.run = floor.run_numpy

    def outputs(self) -> dict[str, np.ndarray]:
        return {}
