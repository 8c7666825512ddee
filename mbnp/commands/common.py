"""What several commands need."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numba.core import event

from mbnp import backend, fused
from mbnp.network import Network


def set_up(options: Namespace) -> None:
    """Apply `--threads`."""
    if options.threads is not None:
        backend.set_num_threads(options.threads)


def engine(net: Network, readable: bool) -> Network:
    """What runs the network: the fast engine, which shares its parameters, or the network itself.

    The engine has one spelling of its own, so MBNP_BACKEND=numpy or loops means the network itself too.
    """
    if readable or backend.current() != "numba":
        return net
    return fused.convert(net)


@contextmanager
def announced(say: Callable[[str], object]) -> Iterator[None]:
    """Within the block, say it once if Numba compiles a kernel and does not find it in its cache."""

    class Announce(event.Listener):
        said = False

        def on_start(self, event: event.Event) -> None:
            if not self.said:
                self.said = True
                say("compiling kernels (once) ...")

        def on_end(self, event: event.Event) -> None:
            pass

    with event.install_listener("numba:compile", Announce()):
        yield
