"""Hold everything that is measured to the instruction set of an older processor: `mbnp bench --isa avx2`.

mbnp, Numba, PyTorch and OpenBLAS read variables for it when they are imported. So the command is run once more, in a
process that has them, and so have the candidates' processes, which it starts.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from llvmlite import binding

from mbnp.errors import MbnpError, unknown
from mbnp.parent import end_with_parent

# What --isa knows -> what holds mbnp, PyTorch (its own kernels, oneDNN, MKL and torch.compile) and OpenBLAS to it.
KNOWN = {
    "avx2": {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx2,+fma",  # without it Numba adds all that this processor has
        "MBNP_VECTOR_BYTES": "32",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "TORCHINDUCTOR_CPP_MARCH": "haswell",
        "OPENBLAS_CORETYPE": "Haswell",
    }
}
PARENT = "MBNP_PARENT"  # the variable with the number of the process that this one must not outlive
NOT_HELD = "not held"  # what is said of a library that has no such variable


def check(name: str) -> None:
    """Raise an MbnpError for an instruction set that is not known, or that this processor does not have."""
    if name not in KNOWN:
        raise unknown("instruction set", name, KNOWN)
    if not binding.get_host_cpu_features().get(name):
        raise MbnpError(f"--isa {name}: this processor has no {name.upper()}")


def held(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a process with this environment is held to the instruction set."""
    return all(environment.get(variable) == value for variable, value in KNOWN[name].items())


def begin() -> None:
    """Let this process end with that of `run_again`, if that has started it."""
    if PARENT in os.environ:
        end_with_parent(int(os.environ.pop(PARENT)))


def run_again(name: str, arguments: Sequence[str]) -> int:
    """Run `mbnp` with these arguments in a process that is held to the instruction set; return its exit status."""
    sys.stdout.flush()
    command = [sys.executable, "-m", "mbnp", *arguments]
    return subprocess.run(command, env={**os.environ, **KNOWN[name], PARENT: str(os.getpid())}).returncode
