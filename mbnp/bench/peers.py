"""The peers' contenders: PyTorch and ONNX Runtime, each as its own documentation says it is fastest on a CPU.

What a contender is, `ours.py` says.
"""

import copy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mbnp import weights
from mbnp.bench.jobs import LR, MOMENTUM, WEIGHT_DECAY, Job


class Torch:
    """PyTorch. Options: layout "NCHW" or "channels_last"; compile, whether torch.compile rewrites it.

    The optimiser is SGD as it comes: its `fused` and `foreach` variants were measured to change nothing.
    """

    def __init__(self, job: Job, options: dict[str, Any], before_network: Callable[[], object]) -> None:
        import torch

        from mbnp.bench.torch_network import torch_network

        torch.set_num_threads(job.threads)
        self.torch, self.job = torch, job
        net = job.network()
        x, y = job.batch()
        before_network()
        module: Any = torch_network(net)
        layout: Any = torch.channels_last if options["layout"] == "channels_last" else torch.contiguous_format
        self.module = module.to(memory_format=layout).train(job.work == "training")
        self.x = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        self.y = torch.from_numpy(y)
        self.optimiser = torch.optim.SGD(
            self.module.parameters(), LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        # Static shapes: the network is compared and timed on batches of different size where memory is short.
        self.compute: Any = (
            torch.compile(self.module, dynamic=False) if options.get("compile") else self.module
        )

    def outputs(self) -> dict[str, np.ndarray]:
        if self.job.work == "inference":
            with self.torch.inference_mode():
                return {"logits": self.compute(self.x)[: self.job.compared()].numpy()}
        found = self._losses_and_gradients(self.module, self.compute, self.x)
        self.module.zero_grad()
        if self.compute is self.module:  # torch.compile would compile once more
            exact = copy.deepcopy(self.module).double()
            results = self._losses_and_gradients(exact, exact, self.x.double())
            found |= {f"float64.{name}": array for name, array in results.items()}
        return found

    def _losses_and_gradients(self, module: Any, compute: Callable, x: Any) -> dict[str, np.ndarray]:
        n = self.job.compared()
        loss = self.torch.nn.functional.cross_entropy(compute(x[:n]), self.y[:n])
        loss.backward()
        grads = self._ours({name: p.grad for name, p in module.named_parameters()})
        return {"loss": loss.detach().numpy(), **{f"grad.{name}": array for name, array in grads.items()}}

    def _ours(self, grads: dict[str, Any]) -> dict[str, np.ndarray]:
        """Gradients in our layouts: from_torch, into a network that is used for nothing else."""
        net = self.job.network(np.float64)
        weights.from_torch(net, weights.to_torch(net) | grads)
        return {name: p.value for name, p in net.parameters().items()}

    def run(self) -> None:
        if self.job.work == "inference":
            with self.torch.inference_mode():
                self.compute(self.x)
            return
        self.optimiser.zero_grad()
        loss = self.torch.nn.functional.cross_entropy(self.compute(self.x), self.y)
        loss.backward()
        self.optimiser.step()
        loss.item()


class OnnxRuntime:
    """ONNX Runtime on the graph that PyTorch exports, with all its optimisations. Inference only."""

    def __init__(self, job: Job, options: dict[str, Any], before_network: Callable[[], object]) -> None:
        import onnxruntime

        self.job = job
        x, _ = job.batch()
        before_network()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = job.threads
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            # By another process: PyTorch in this one would bring its own threads and a warmer allocator.
            command = f"import sys; from mbnp.bench import peers; peers.export({job!r}, sys.argv[1])"
            code = f"from mbnp.bench.jobs import Job; {command}"
            subprocess.run([sys.executable, "-c", code, str(path)], stdout=subprocess.DEVNULL, check=True)
            self.session = onnxruntime.InferenceSession(
                str(path), settings, providers=["CPUExecutionProvider"]
            )
        self.feed = {self.session.get_inputs()[0].name: np.ascontiguousarray(x.transpose(0, 3, 1, 2))}

    def outputs(self) -> dict[str, np.ndarray]:
        return {"logits": self.session.run(None, self.feed)[0][: self.job.compared()]}

    def run(self) -> None:
        self.session.run(None, self.feed)


def export(job: Job, path: str) -> None:
    """Write the job's network as an ONNX graph for one batch of the job's shape."""
    import torch

    from mbnp.bench.torch_network import torch_network

    module = torch_network(job.network())
    x = torch.zeros(job.batch_size, 3, job.resolution, job.resolution)
    # The exporter that needs no package beyond onnx.
    torch.onnx.export(module.eval(), (x,), path, dynamo=False)
