"""What several commands need."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numba.core import event

from mbnp import backend, fused
from mbnp.errors import MbnpError
from mbnp.fused import ahead
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


def require_preprocessing(net: Network, path: str) -> None:
    """MbnpError if the weights came without the normalisation that their pictures need."""
    if net.preprocessing is None:
        raise MbnpError(
            f"{path} does not say how its pictures were normalised; add it: mbnp convert {path} "
            "NEW.safetensors --mean R,G,B --std R,G,B"
        )


def compile_ahead(net: Network, announce: Callable[[], None]) -> int:
    """Compile what the fast engine `net` needs and no cache holds, on all processors; how many kernels."""
    if not isinstance(net, fused.FusedNetwork):
        return 0
    names = ahead.missing(net)
    if names:
        announce()
        ahead.compile_kernels(net.reference, names)
    return len(names)


@contextmanager
def announced(say: Callable[[str], object]) -> Iterator[Callable[[], None]]:
    """Within the block, say it once if Numba compiles a kernel and does not find it in its cache.

    What the block is given says it at once, for kernels that are compiled ahead.
    """

    class Announce(event.Listener):
        said = False

        def __call__(self) -> None:
            if not self.said:
                self.said = True
                say("compiling kernels (once) ...")

        def on_start(self, event: event.Event) -> None:
            self()

        def on_end(self, event: event.Event) -> None:
            pass

    announce = Announce()
    with event.install_listener("numba:compile", announce):
        yield announce
