"""Who takes part in which comparison, and what has to be installed for it."""

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec

from mbnp.bench.jobs import Job
from mbnp.bench.race import INSTALLED, TUNED, Contender, can_tune_allocator
from mbnp.errors import MbnpError, unknown

# What --against knows -> the packages that it needs.
PEERS: dict[str, list[str]] = {
    "readable": [],
    "torch": ["torch"],
    "onnxruntime": ["onnxruntime", "onnx", "torch"],
}
MBNP, READABLE, PRODUCTS, TORCH, ONNX = "mbnp", "mbnp readable", "products", "PyTorch", "ONNX Runtime"


def check_peers(names: Sequence[str]) -> None:
    """Raise an MbnpError that says what to install, where something is missing."""
    for name in names:
        if name not in PEERS:
            raise unknown("peer", name, PEERS)
        missing = [package for package in PEERS[name] if find_spec(package) is None]
        if missing:
            raise MbnpError(
                f'{" and ".join(missing)} not installed, which --against {name} needs: pip install -e ".[bench]"'
            )


def compiler() -> str | None:
    """The C++ compiler that torch.compile would call, if there is one."""
    return shutil.which(os.environ.get("CXX", "g++"))


def for_job(job: Job, peers: Sequence[str], readable: bool, compiled: bool) -> list[Contender]:
    """The contenders of one comparison: mbnp (the readable layers, if so), its products, and the peers."""
    everyone = [_mbnp(readable)]
    everyone += [
        Contender("its matrix products alone", PRODUCTS, "mbnp.bench.ours:Products", {"by": "kernel"}),
        Contender("the same by NumPy's threads", "", "mbnp.bench.ours:Products", {"by": "numpy"}),
    ]
    allocators = [INSTALLED, TUNED] if can_tune_allocator() else [INSTALLED]
    if "readable" in peers and not readable:
        everyone.append(Contender(READABLE, READABLE, "mbnp.bench.ours:Mbnp", {"engine": "readable"}))
    if "torch" in peers:
        everyone += [_torch(way, allocator) for allocator in allocators for way in _ways(compiled)]
    if "onnxruntime" in peers and job.work == "inference":
        everyone += [
            Contender(ONNX, ONNX, "mbnp.bench.peers:OnnxRuntime", allocator=allocator)
            for allocator in allocators
        ]
    return everyone


def for_memory(peers: Sequence[str], readable: bool) -> list[Contender]:
    """Whose memory is compared. Not torch.compile's, because its compiler works in the same process."""
    everyone = [_mbnp(readable)]
    if "readable" in peers and not readable:
        everyone.append(Contender(READABLE, READABLE, "mbnp.bench.ours:Mbnp", {"engine": "readable"}))
    if "torch" in peers:
        everyone += [_torch(way, INSTALLED) for way in _ways(compiled=False)]
    return everyone


def _mbnp(readable: bool) -> Contender:
    return Contender(MBNP, MBNP, "mbnp.bench.ours:Mbnp", {"engine": "readable" if readable else "fused"})


def _ways(compiled: bool) -> list[str]:
    return ["channels_last", "NCHW"] + (["torch.compile"] if compiled else [])


def _torch(way: str, allocator: str) -> Contender:
    compiled = way == "torch.compile"
    options = {"layout": "channels_last" if compiled else way, "compile": compiled}
    return Contender(f"PyTorch, {way}", TORCH, "mbnp.bench.peers:Torch", options, allocator)
