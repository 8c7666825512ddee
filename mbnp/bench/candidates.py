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
        self.x, self.y = workload.batch()

    def build(self) -> None:
        """Make the network; the memory that is measured is what it takes from here on."""

    def infer(self) -> np.ndarray:
        """Return the logits of the batch."""
        raise NotImplementedError

    def train(self) -> None:
        """Run one training step."""
        raise NotImplementedError

    def gradients(self, dtype: Any) -> Arrays:
        """Return loss and grad.NAME of each parameter, in our names and layouts; {} if it has no such dtype."""
        raise NotImplementedError

    def run(self) -> None:
        """Run one training step or one inference, which is what is timed."""
        if self.workload.work == "training":
            self.train()
        else:
            self.infer()

    def outputs(self) -> Arrays:
        """Return what is compared: logits or gradients, those in float64 as float64.NAME; {} if there is nothing."""
        if self.workload.work == "inference":
            return {"logits": np.asarray(self.infer())[: self.workload.compared()]}
        found, exact = self.gradients(np.float32), self.gradients(np.float64)
        return found | {f"float64.{name}": array for name, array in exact.items()}


class Mbnp(Runner):
    """Our network. option: "fused" or "readable", the reference network."""

    def __init__(self, workload: Workload, option: str = "fused") -> None:
        super().__init__(workload, option)
        backend.set_num_threads(workload.threads)
        with backend.one_blas_thread():  # imports SciPy's BLAS
            pass

    def build(self) -> None:
        self.net = self._network(np.float32)
        self.optimiser = optimiser(self.net)

    def _network(self, dtype: Any) -> Network:
        net = self.workload.network(dtype)
        return fused.convert(net) if self.option == "fused" else net

    def infer(self) -> np.ndarray:
        return self.net.forward(self.x)

    def train(self) -> None:
        train.step(self.net, self.optimiser, self.x, self.y)

    def gradients(self, dtype: Any) -> Arrays:
        net = self.net if self.net.dtype == dtype else self._network(dtype)
        x, y = (array[: self.workload.compared()] for array in self.workload.batch(dtype))
        logits = net.forward(x, train=True)
        net.backward(cross_entropy.backward(logits, y))
        grads = {f"grad.{name}": p.grad.copy() for name, p in net.parameters().items()}
        return {"loss": np.asarray(cross_entropy.forward(logits, y)), **grads}


class Reference(Mbnp):
    """What every candidate is compared with: the reference network in NumPy and float64, which compiles nothing."""

    def _network(self, dtype: Any) -> Network:
        return self.workload.network(np.float64)

    def outputs(self) -> Arrays:
        with backend.use("numpy"):
            if self.workload.work == "training":
                return self.gradients(np.float64)
            return {"logits": self.net.forward(self.x[: self.workload.compared()].astype(np.float64))}


class Matmuls(Runner):
    """The network's matrix products. option: "kernel", as the fast engine runs them, or "numpy"."""

    def build(self) -> None:
        work = self.workload
        found = floor.matmuls(work.network(), work.shape, work.batch_size)
        alone = floor.Floor(found.values(), work.work == "training", work.threads)
        self.multiply = alone.run if self.option == "kernel" else alone.run_numpy
        if self.option == "numpy":
            threadpool_limits(work.threads, user_api="blas")  # for as long as this process lives

    def run(self) -> None:
        self.multiply()

    def outputs(self) -> Arrays:
        return {}


class Torch(Runner):
    """PyTorch. option: "channels_last" or "NCHW", or "torch.compile" of the former.

    The optimiser is SGD as it comes: its `fused` and `foreach` variants were measured to change nothing.
    """

    def __init__(self, workload: Workload, option: str = "channels_last") -> None:
        import torch

        super().__init__(workload, option)
        torch.set_num_threads(workload.threads)
        self.torch: Any = torch
        self.net = workload.network()
        self.loss = torch.nn.functional.cross_entropy

    def build(self) -> None:
        from mbnp.bench.torch_network import torch_network

        torch = self.torch
        layout = torch.contiguous_format if self.option == "NCHW" else torch.channels_last
        self.images = torch.from_numpy(self.x).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        self.labels = torch.from_numpy(self.y)
        module: Any = torch_network(self.net)
        del self.net
        self.module = module.to(memory_format=layout).train(self.workload.work == "training")
        self.optimiser = torch.optim.SGD(
            self.module.parameters(), LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        self.compute = self.module
        if self.option == "torch.compile":
            # Static shapes: it is compared and timed on batches of different size where memory is short.
            self.compute = torch.compile(self.module, dynamic=False)

    def infer(self) -> np.ndarray:
        with self.torch.inference_mode():
            return self.compute(self.images)

    def train(self) -> None:
        self.optimiser.zero_grad()
        loss = self.loss(self.compute(self.images), self.labels)
        loss.backward()
        self.optimiser.step()
        loss.item()

    def gradients(self, dtype: Any) -> Arrays:
        n, module, compute, x = self.workload.compared(), self.module, self.compute, self.images
        if dtype == np.float64:
            if self.option == "torch.compile":  # it would compile once more
                return {}
            module = compute = copy.deepcopy(self.module).double()
            x = x.double()
        loss = self.loss(compute(x[:n]), self.labels[:n])
        loss.backward()
        # Into our layouts by from_torch, in a network that is used for nothing else.
        net = self.workload.network(np.float64)
        weights.from_torch(
            net, weights.to_torch(net) | {name: p.grad for name, p in module.named_parameters()}
        )
        module.zero_grad()
        grads = {f"grad.{name}": p.value for name, p in net.parameters().items()}
        return {"loss": loss.detach().numpy(), **grads}


class OnnxRuntime(Runner):
    """ONNX Runtime on the graph that PyTorch exports, with all its optimisations. Inference only."""

    def build(self) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.workload.threads
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/network.onnx"
            # By another process: PyTorch in this one would bring its own threads and a warmer allocator.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as another:
                another.submit(_export, self.workload, path).result()
            self.session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        self.feed = {self.session.get_inputs()[0].name: np.ascontiguousarray(self.x.transpose(0, 3, 1, 2))}

    def infer(self) -> np.ndarray:
        return self.session.run(None, self.feed)[0]


def _export(workload: Workload, path: str) -> None:
    """Write the workload's network as an ONNX graph for one batch of its shape."""
    import torch

    from mbnp.bench.torch_network import torch_network

    x = torch.zeros(*workload.batch()[0].transpose(0, 3, 1, 2).shape)
    # The exporter that needs no package beyond onnx.
    torch.onnx.export(torch_network(workload.network()).eval(), (x,), path, dynamo=False)
