"""Which implementation of an operation runs, how kernels are compiled, and the one pool of threads they share.

    with backend.use("loops"): ...     run every operation as plain loops, for as long as the block lasts
    backend.set_num_threads(2)

`dispatch.py` chooses among an operation's implementations, `jit.py` has Numba's flags and cache, `threads.py` the pool
of threads, `parallel.py` a loop on it, and `vectors.py` the vectors of the processor, as values that kernels compute
with; `tiles.py` makes tiles of a matrix product of them. `bundle.py` has arguments that are written down for kernels,
and `launch.py` makes many calls at once.
"""

from mbnp.backend.dispatch import BACKENDS, current, pick, use
from mbnp.backend.jit import inlined, jit, of_one_type, piece
from mbnp.backend.launch import Call, joined, prepared
from mbnp.backend.parallel import in_parallel
from mbnp.backend.threads import get_num_threads, max_threads, one_pool, set_num_threads
from mbnp.renamed import module_names

__all__ = [
    "BACKENDS",
    "Call",
    "current",
    "get_num_threads",
    "in_parallel",
    "inlined",
    "jit",
    "joined",
    "max_threads",
    "of_one_type",
    "one_pool",
    "pick",
    "piece",
    "prepared",
    "set_num_threads",
    "use",
]

__getattr__ = module_names(
    __name__,
    {"using": "mbnp.backend:use", "FASTMATH": "mbnp.backend.jit:FASTMATH", "one_blas_thread": "mbnp.backend:one_pool"},
)
