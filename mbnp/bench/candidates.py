"""What is compared: mbnp, its matrix products alone, and PyTorch and ONNX Runtime, each as its own documentation says
that it is fastest on a CPU.
"""

import copy
import multiprocessing
import platform
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from mbnp import backend, fused, train, weights
from mbnp.bench import floor
from mbnp.bench.workload import LR, MOMENTUM, WEIGHT_DECAY, Workload, optimiser
from mbnp.errors import MbnpError, unknown
from mbnp.network import Network
from mbnp.ops import softmax_cross_entropy as cross_entropy

# What --against knows -> the packages that it needs.
PEERS = {"readable": [], "torch": ["torch"], "onnxruntime": ["onnxruntime", "onnx", "torch"]}
MBNP, READABLE, MATMULS, TORCH, ONNX = "mbnp", "mbnp readable", "matmuls", "PyTorch", "ONNX Runtime"
INSTALLED, TUNED = "as installed", "tuned"  # the allocator: worker.py says how

Arrays = dict[str, np.ndarray]


class Candidate(NamedTuple):
    """One entry of a comparison. `group` is what its time is reported under: mbnp, matmuls, PyTorch, ..."""

    name: str
    group: str
    runner: Callable[..., "Runner"]  # its class
    option: Any = None
    allocator: str = INSTALLED


def check_peers(names: Sequence[str]) -> None:
    """Raise an MbnpError that says what to install, where something is missing."""
    for name in names:
        if name not in PEERS:
            raise unknown("peer", name, PEERS)
        missing = " and ".join(package for package in PEERS[name] if find_spec(package) is None)
        if missing:
            install = 'pip install -e ".[bench]"'
            raise MbnpError(f"{missing} not installed, which --against {name} needs: {install}")


def for_workload(workload: Workload, peers: Sequence[str], readable: bool, compiled: bool) -> list[Candidate]:
    """Return mbnp (its reference network, if `readable`), its matrix products, and the peers.

    compiled: with torch.compile
    """
    found = [
        Candidate(MBNP, MBNP, Mbnp, "readable" if readable else "fused"),
        Candidate("its matrix products alone", MATMULS, Matmuls, "kernel"),
        Candidate("the same by NumPy's threads", "", Matmuls, "numpy"),
    ]
    if "readable" in peers and not readable:
        found.append(Candidate(READABLE, READABLE, Mbnp, "readable"))
    ways = ["channels_last", "NCHW", *(["torch.compile"] if compiled else [])] if "torch" in peers else []
    glibc = platform.libc_ver()[0] == "glibc"
    allocators = [INSTALLED, TUNED] if glibc else [INSTALLED]
    found += [Candidate(f"{TORCH}, {w}", TORCH, Torch, w, a) for a in allocators for w in ways]
    if "onnxruntime" in peers and workload.work == "inference":
        found += [Candidate(ONNX, ONNX, OnnxRuntime, None, allocator) for allocator in allocators]
    return found


def for_memory(workload: Workload, peers: Sequence[str], readable: bool) -> list[Candidate]:
    """Return the candidates of a comparison of memory: without torch.compile, whose compiler is in its process."""
    found = for_workload(workload, peers, readable, compiled=False)
    return [c for c in found if c.group in (MBNP, READABLE, TORCH) and c.allocator == INSTALLED]


class Runner:
    """A candidate at work. The constructor imports what it needs, and makes what it needs from others."""

    def __init__(self, workload: Workload, option: Any = None) -> None:
        self.workload, self.option = workload, option
        self.training = workload.work == "training"

    def build(self) -> None:
        """Make the network; the memory that is measured is what it takes from here on."""

    def outputs(self) -> Arrays:
        """Return what it computes from the workload's weights and batch, to be compared; {} if there is nothing.

        In inference logits; in training loss and grad.NAME of each parameter, in our names and layouts, and the same
        as float64.loss, ... of the same code in float64 where it has it.
        """
        return {}

    def run(self) -> None:
        """Run one training step or one inference, which is what is timed."""


class Mbnp(Runner):
    """Our network. option: "fused" or "readable", the reference network."""

    def __init__(self, workload: Workload, option: str = "fused") -> None:
        super().__init__(workload, option)
        backend.set_num_threads(workload.threads)
        self.x, self.y = workload.batch()
        with backend.one_blas_thread():  # imports SciPy's BLAS
            pass

    def build(self) -> None:
        self.net = self._network(np.float32)
        self.optimiser = optimiser(self.net)

    def _network(self, dtype: Any) -> Network:
        net = self.workload.network(dtype)
        return fused.convert(net) if self.option == "fused" else net

    def outputs(self) -> Arrays:
        found = _compute(self.workload, self.net)
        return found | (_float64(_compute(self.workload, self._network(np.float64))) if self.training else {})

    def run(self) -> None:
        if self.training:
            train.step(self.net, self.optimiser, self.x, self.y)
        else:
            self.net.forward(self.x)


class Reference(Runner):
    """What every candidate is compared with: the reference network in NumPy and float64, which compiles nothing."""

    def outputs(self) -> Arrays:
        with backend.use("numpy"):
            return _compute(self.workload, self.workload.network(np.float64))


def _compute(workload: Workload, net: Network) -> Arrays:
    """Return the outputs of one of our networks, in its dtype."""
    x, y = (array[: workload.compared()] for array in workload.batch(net.dtype))
    if workload.work == "inference":
        return {"logits": net.forward(x)}
    logits = net.forward(x, train=True)
    net.backward(cross_entropy.backward(logits, y))
    grads = {f"grad.{name}": p.grad.copy() for name, p in net.parameters().items()}
    return {"loss": np.asarray(cross_entropy.forward(logits, y)), **grads}


def _float64(outputs: Arrays) -> Arrays:
    return {f"float64.{name}": array for name, array in outputs.items()}


class Matmuls(Runner):
    """The network's matrix products. option: "kernel", as the fast engine runs them, or "numpy"."""

    def build(self) -> None:
        found = floor.matmuls(self.workload.network(), self.workload.shape, self.workload.batch_size)
        alone = floor.Floor(found, self.training, self.workload.threads)
        self.multiply = alone.run
        if self.option == "numpy":
            threadpool_limits(self.workload.threads, user_api="blas")  # for as long as this process lives
            self.multiply = alone.run_numpy

    def run(self) -> None:
        self.multiply()


class Torch(Runner):
    """PyTorch. option: "channels_last" or "NCHW", or "torch.compile" of the former.

    The optimiser is SGD as it comes: its `fused` and `foreach` variants were measured to change nothing.
    """

    def __init__(self, workload: Workload, option: str = "channels_last") -> None:
        super().__init__(workload, option)
        import torch

        torch.set_num_threads(workload.threads)
        self.torch, self.net, (x, y) = torch, workload.network(), workload.batch()
        self.layout: Any = torch.contiguous_format if option == "NCHW" else torch.channels_last
        self.x, self.y = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)

    def build(self) -> None:
        from mbnp.bench.torch_network import torch_network

        self.x = self.x.contiguous(memory_format=self.layout)
        module: Any = torch_network(self.net)
        del self.net
        self.module = module.to(memory_format=self.layout).train(self.training)
        self.optimiser = self.torch.optim.SGD(
            self.module.parameters(), LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        self.compute = self.module
        if self.option == "torch.compile":
            # Static shapes: it is compared and timed on batches of different size where memory is short.
            self.compute = self.torch.compile(self.module, dynamic=False)

    def outputs(self) -> Arrays:
        if not self.training:
            with self.torch.inference_mode():
                return {"logits": self.compute(self.x)[: self.workload.compared()].numpy()}
        found = self._losses_and_gradients(self.module, self.compute, self.x)
        self.module.zero_grad()
        if self.compute is self.module:  # torch.compile would compile once more
            exact = copy.deepcopy(self.module).double()
            found |= _float64(self._losses_and_gradients(exact, exact, self.x.double()))
        return found

    def _losses_and_gradients(self, module: Any, compute: Callable, x: Any) -> Arrays:
        n = self.workload.compared()
        loss = self.torch.nn.functional.cross_entropy(compute(x[:n]), self.y[:n])
        loss.backward()
        # In our layouts: by from_torch, into a network that is used for nothing else.
        net = self.workload.network(np.float64)
        weights.from_torch(
            net, weights.to_torch(net) | {name: p.grad for name, p in module.named_parameters()}
        )
        grads = {f"grad.{name}": p.value for name, p in net.parameters().items()}
        return {"loss": loss.detach().numpy(), **grads}

    def run(self) -> None:
        if not self.training:
            with self.torch.inference_mode():
                self.compute(self.x)
            return
        self.optimiser.zero_grad()
        loss = self.torch.nn.functional.cross_entropy(self.compute(self.x), self.y)
        loss.backward()
        self.optimiser.step()
        loss.item()


class OnnxRuntime(Runner):
    """ONNX Runtime on the graph that PyTorch exports, with all its optimisations. Inference only."""

    def build(self) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.workload.threads
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "network.onnx")
            # By another process: PyTorch in this one would bring its own threads and a warmer allocator.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as another:
                another.submit(_export, self.workload, path).result()
            self.session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        x, _ = self.workload.batch()
        self.feed = {self.session.get_inputs()[0].name: np.ascontiguousarray(x.transpose(0, 3, 1, 2))}

    def outputs(self) -> Arrays:
        return {"logits": self.session.run(None, self.feed)[0][: self.workload.compared()]}

    def run(self) -> None:
        self.session.run(None, self.feed)


def _export(workload: Workload, path: str) -> None:
    """Write the workload's network as an ONNX graph for one batch of its shape."""
    import torch

    from mbnp.bench.torch_network import torch_network

    x = torch.zeros(*workload.batch()[0].transpose(0, 3, 1, 2).shape)
    # The exporter that needs no package beyond onnx.
    torch.onnx.export(torch_network(workload.network()).eval(), (x,), path, dynamo=False)
