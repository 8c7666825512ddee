"""A Keras file as parsed configuration and arrays: `reader.py`, run in a process of its own."""

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load

from mbnp import parent
from mbnp.errors import MbnpError
from mbnp.weights.keras import reader

SECONDS, SECONDS_A_MEGABYTE = 20, 0.2  # ten times what a slow machine needs


def read(path: Path) -> reader.Content:
    """Return the content of a file in any of Keras's formats, told apart by content, not by name."""
    content = _run(path)
    text = content.config
    if text is None:
        return content
    if len(text) > reader.LONGEST_CONFIG:
        raise MbnpError(f"its configuration has {len(text):,} bytes, more than {reader.LONGEST_CONFIG:,}")
    try:
        config = json.loads(text)
    except ValueError as error:
        raise MbnpError(f"its configuration is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise MbnpError(f"its configuration is a {type(config).__name__}, not an object")
    return content._replace(config=config)


def command(path: Path) -> list[str]:
    """Return the command that reads a file, and ends with this process."""
    # The text itself, since mbnp may be in a zip file. -P: the folder we are in is no place to import from.
    program = f"{inspect.getsource(parent)}\nend_with_parent(int(sys.argv[2]))\n{inspect.getsource(reader)}"
    return [sys.executable, "-P", "-c", program, str(path.absolute()), str(os.getpid())]


def _run(path: Path) -> reader.Content:
    if importlib.util.find_spec("h5py") is None:
        raise MbnpError('h5py reads Keras files; install it with: pip install "mbnp[keras]"')
    seconds = SECONDS + SECONDS_A_MEGABYTE * path.stat().st_size / 1e6
    try:
        done = subprocess.run(command(path), capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise MbnpError(f"it is damaged: reading it has not ended after {seconds:.0f} seconds") from None
    if done.returncode == 1 and not done.stderr.startswith(b"Traceback"):
        raise MbnpError(done.stderr.decode("utf-8", "replace"))
    if done.returncode:
        raise MbnpError("it is damaged: the HDF5 library failed on it, or asked for too much memory or time")
    tensors = load(done.stdout)
    whole, names, numbered = json.loads(tensors.pop("notes").tobytes())
    config = tensors.pop("config").tobytes()
    arrays = {name.removeprefix("array "): array for name, array in tensors.items()}
    return reader.Content(config if whole else None, arrays, names, numbered)
