"""The candidates of a comparison: mbnp, its matrix products alone, PyTorch and ONNX Runtime.

The last two run as their own documentation says that they are fastest on a CPU.
"""

import copy
import math
import multiprocessing
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from mbnp import backend, fused, train, weights
from mbnp.bench import blas, floor, isa
from mbnp.bench.workload import SGD_OPTIONS, Workload, optimiser, part
from mbnp.detection.multibox import NEGATIVES
from mbnp.errors import MbnpError, unknown
from mbnp.network import Network
from mbnp.parent import end_with_parent

# What --against knows -> the packages that it needs.
PEERS = {"readable": [], "torch": ["torch"], "onnxruntime": ["onnxruntime", "onnx", "torch"]}
MBNP, READABLE, TORCH, ONNX = "mbnp", "mbnp readable", "PyTorch", "ONNX Runtime"
MATMULS = "its matrix products alone"
INSTALLED, TUNED = "as installed", "tuned"  # the allocator: comparison.py says how

Arrays = dict[str, np.ndarray]


@dataclass
class Candidate:
    """One entry of a comparison. What a subclass computes by, it makes in `prepare` and `build`."""

    name: str  # a group, and one of its configurations: "PyTorch, NCHW", "ONNX Runtime (not held)"
    option: Any = None
    allocator: str = INSTALLED

    infer: ClassVar[Callable[..., Any]]  # (self) returns the logits of the batch
    train: ClassVar[Callable[..., None]]  # (self) runs one training step
    gradients: ClassVar[Callable[..., Arrays]]  # (self, dtype): see `outputs`; {} if it has no such dtype

    @property
    def group(self) -> str:
        return self.name.partition(", ")[0].partition(" (")[0]

    @property
    def configuration(self) -> str:
        return self.name.removeprefix(self.group).lstrip(", ")

    def prepare(self, workload: Workload) -> None:
        """Import what is needed, and make what is needed from others."""
        self.workload, (self.x, self.y) = workload, workload.batch()

    def build(self) -> None:
        """Make the network; the memory that is measured is what it takes from here on."""

    def run(self) -> None:
        """Run one training step or one inference, which is what is timed."""
        if self.workload.work == "training":
            self.train()
        else:
            self.infer()

    def outputs(self) -> Arrays:
        """Return what is compared; {} if there is nothing.

        In inference logits; in training loss and grad.NAME of each parameter, in our names and layouts, and the same
        as float64.loss, ... of the same code in float64 where it has it.
        """
        if self.workload.work == "inference":
            return {"logits": np.asarray(self.infer())[: self.workload.compared()]}
        found, exact = self.gradients(np.float32), self.gradients(np.float64)
        return found | {f"float64.{name}": array for name, array in exact.items()}


def check_peers(names: Sequence[str]) -> None:
    """Raise an MbnpError that says what to install, where something is missing."""
    for name in names:
        if name not in PEERS:
            raise unknown("peer", name, PEERS)
        missing = " and ".join(package for package in PEERS[name] if find_spec(package) is None)
        if missing:
            install = 'pip install -e ".[bench]"'
            raise MbnpError(f"{missing} not installed, which --against {name} needs: {install}")


def for_workload(
    workload: Workload, peers: Sequence[str], readable: bool, compiled: bool, held_to: str | None = None
) -> list[Candidate]:
    """Return mbnp (its reference network, if `readable`), its matrix products, and the peers that are asked for.

    held_to: the instruction set of this process, which a candidate that it does not hold says of itself.
    """
    found: list[Candidate] = [Mbnp(MBNP, "readable" if readable else "fused")]
    found += [Matmuls(MATMULS, floor.run), Matmuls("the same by NumPy's threads", floor.run_numpy)]
    if "readable" in peers and not readable:
        found.append(Mbnp(READABLE, "readable"))
    allocators = [INSTALLED, TUNED] if platform.libc_ver()[0] == "glibc" else [INSTALLED]
    if "torch" in peers:
        ways = ["channels_last", "NCHW", *(["torch.compile"] if compiled else [])]
        found += [Torch(f"{TORCH}, {way}", way, a) for a in allocators for way in ways]
    if "onnxruntime" in peers and workload.work == "inference":
        name = f"{ONNX} ({isa.NOT_HELD})" if held_to else ONNX
        found += [OnnxRuntime(name, allocator=allocator) for allocator in allocators]
    return found


def for_memory(workload: Workload, peers: Sequence[str], readable: bool) -> list[Candidate]:
    """Return the candidates of a comparison of memory: without torch.compile, whose compiler is in its process."""
    found = for_workload(workload, peers, readable, compiled=False)
    return [c for c in found if c.group in (MBNP, READABLE, TORCH) and c.allocator == INSTALLED]


class Mbnp(Candidate):
    """Our network. option: "fused" or "readable", the reference network."""

    def prepare(self, workload: Workload) -> None:
        super().prepare(workload)
        backend.set_num_threads(workload.threads)

    def build(self) -> None:
        self.net = self._network(np.float32)
        self.optimiser = optimiser(self.net)

    def _network(self, dtype: Any) -> Network:
        net = self.workload.network(dtype)
        return fused.convert(net) if self.option == "fused" else net

    def infer(self) -> Any:
        return self.net.forward(self.x)

    def train(self) -> None:
        train.step(self.net, self.optimiser, self.x, self.y, loss=self.workload.loss())

    def gradients(self, dtype: Any) -> Arrays:
        net = self.net if self.net.dtype == dtype else self._network(dtype)
        x, y = (part(each, self.workload.compared()) for each in self.workload.batch(dtype))
        loss, logits = self.workload.loss(), net.forward(x, train=True)
        net.backward(loss.backward(logits, y))
        grads = {f"grad.{name}": p.grad.copy() for name, p in net.parameters().items()}
        return {"loss": np.asarray(loss.forward(logits, y)), **grads}


class Reference(Mbnp):
    """The reference network in NumPy and float64, which every candidate is compared with; it compiles nothing."""

    def _network(self, dtype: Any) -> Network:
        return self.workload.network(np.float64)

    def outputs(self) -> Arrays:
        with backend.use("numpy"):
            if self.workload.work == "training":
                return self.gradients(np.float64)
            return {"logits": self.net.forward(self.x[: self.workload.compared()].astype(np.float64))}


class Matmuls(Candidate):
    """The network's matrix products. option: floor.run, as the fast engine runs them, or floor.run_numpy."""

    def build(self) -> None:
        work = self.workload
        backend.set_num_threads(work.threads)
        blas.limit(work.threads)  # for as long as this process lives
        self.layers = floor.allocate(floor.matmuls(work.network(), work.shape, work.batch_size).values())

    def run(self) -> None:
        self.option(self.layers, backward=self.workload.work == "training")

    def outputs(self) -> Arrays:
        return {}


class Torch(Candidate):
    """PyTorch. option: "channels_last" or "NCHW", or "torch.compile" of the former.

    The optimiser is SGD as it comes: its `fused` and `foreach` variants were measured to change nothing.
    """

    def prepare(self, workload: Workload) -> None:
        import torch

        super().prepare(workload)
        torch.set_num_threads(workload.threads)
        self.torch: Any = torch
        self.net = workload.network()
        self.loss = self._multibox if workload.detects() else torch.nn.functional.cross_entropy

    def build(self) -> None:
        from mbnp.bench.torch_network import torch_network

        torch = self.torch
        layout = torch.contiguous_format if self.option == "NCHW" else torch.channels_last
        self.images = torch.from_numpy(self.x).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        self.labels = self._tensors(self.y)
        module: Any = torch_network(self.net)
        del self.net
        self.module = module.to(memory_format=layout).train(self.workload.work == "training")
        self.optimiser = torch.optim.SGD(self.module.parameters(), **SGD_OPTIONS)
        self.compute = self.module
        if self.option == "torch.compile":
            # Static shapes: it is compared and timed on batches of different size where memory is short.
            self.compute = torch.compile(self.module, dynamic=False)

    def infer(self) -> Any:
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
        y = self._tensors(part(self.workload.batch(x.numpy().dtype)[1], n))
        loss = self.loss(compute(x[:n]), y)
        loss.backward()
        # Into our layouts by from_torch, in a network that is used for nothing else.
        net = self.workload.network(np.float64)
        grads = {name: p.grad for name, p in module.named_parameters()}
        weights.from_torch(net, weights.to_torch(net) | grads)
        module.zero_grad()
        return {"loss": loss.detach().numpy()} | {f"grad.{n}": p.value for n, p in net.parameters().items()}

    def _tensors(self, y: Any) -> Any:
        return self.torch.from_numpy(y) if isinstance(y, np.ndarray) else type(y)(*map(self.torch.from_numpy, y))

    def _multibox(self, outputs: Any, targets: Any) -> Any:
        """Return the loss of `mbnp.detection.multibox`, of tensors."""
        F, (classes, offsets) = self.torch.nn.functional, targets
        matched = classes > 0
        where = F.smooth_l1_loss(outputs[..., :4][matched], offsets[matched], reduction="sum")
        entropy = F.cross_entropy(outputs[..., 4:].flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
        hardest = entropy.detach().masked_fill(matched, -math.inf).argsort(dim=1, descending=True, stable=True)
        chosen = matched | (hardest.argsort(dim=1) < NEGATIVES * matched.sum(dim=1, keepdim=True))
        return (where + entropy[chosen].sum()) / matched.sum().clamp(min=1)


class OnnxRuntime(Candidate):
    """ONNX Runtime on the graph that PyTorch exports, with all its optimisations. Inference only."""

    def build(self) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.workload.threads
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/network.onnx"
            # By another process: PyTorch in this one would bring its own threads and a warmer allocator.
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, spawn, end_with_parent, (os.getpid(),)) as another:
                another.submit(_export, self.workload, path).result()
            self.session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        self.feed = {self.session.get_inputs()[0].name: np.ascontiguousarray(self.x.transpose(0, 3, 1, 2))}

    def infer(self) -> Any:
        return self.session.run(None, self.feed)[0]


def _export(workload: Workload, path: str) -> None:
    """Write the workload's network as an ONNX graph for one batch of its shape."""
    import torch

    from mbnp.bench.torch_network import torch_network

    x = torch.zeros(*workload.batch()[0].transpose(0, 3, 1, 2).shape)
    # The exporter that needs no package beyond onnx.
    torch.onnx.export(torch_network(workload.network()).eval(), (x,), path, dynamo=False)
