"""Helpers that several commands share."""

import functools
from collections.abc import Callable
from typing import Any

from numba.core import event

from mbnp import backend, fused
from mbnp.errors import MbnpError
from mbnp.fused import ahead
from mbnp.network import Network


def engine(net: Network, readable: bool) -> Network:
    """Return the network that runs: the fast engine, which shares the parameters of `net`, or `net` itself.

    The engine has one implementation of its own, so MBNP_BACKEND=numpy or loops means the network itself too.
    """
    if readable or backend.current() != "numba":
        return net
    return fused.convert(net)


def require_preprocessing(net: Network, path: str) -> None:
    """Raise MbnpError if the weights came without the normalisation that their images need."""
    if net.preprocessing is None:
        command = f"mbnp convert {path} NEW.safetensors --mean R,G,B --std R,G,B"
        raise MbnpError(f"{path} does not say how its images were normalised; add it: {command}")


def compile_ahead(net: Network, on_kernel: Callable[[int, int], Any]) -> int:
    """Compile what the fast engine `net` needs and no cache holds, on all processors; return how many kernels.

    on_kernel(done, total) is called before the first kernel and after each.
    """
    if not isinstance(net, fused.FusedNetwork):
        return 0
    if names := ahead.missing(net):
        on_kernel(0, len(names))
        ahead.compile_kernels(net.reference, names, lambda done: on_kernel(done, len(names)))
    return len(names)


class _Compilation(event.Listener):
    """Count kernels and call `on_kernel`; the functions that a kernel calls are compiled with it, and not counted."""

    def __init__(self, on_kernel: Callable[[], Any]) -> None:
        self.on_kernel = on_kernel
        self.compiled = self.depth = 0

    def on_start(self, event: event.Event) -> None:
        if self.depth == 0:
            self.compiled += 1
            self.on_kernel()
        self.depth += 1

    def on_end(self, event: event.Event) -> None:
        self.depth -= 1


def compilation(on_kernel: Callable[[], Any] = lambda: None) -> Any:
    """Return a context in which on_kernel() is called when Numba begins a kernel; as `compiled`, it counts them."""
    return event.install_listener("numba:compile", _Compilation(on_kernel))


def announced(say: Callable[[str], object]) -> Any:
    """Return a context that says once if Numba compiles a kernel and does not find it in its cache."""
    return compilation(functools.cache(lambda: say("compiling kernels (once) ...")))
