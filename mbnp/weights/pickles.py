"""A look at the pickles in a PyTorch file before PyTorch's weights-only loader reads it.

`check` goes through the opcodes and runs none. It knows which functions a pickle would call, and with what: whatever
the loader would not load is refused here already, and so is what would take more memory than the file has bytes.
"""

import io
import mmap
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

from mbnp.errors import MbnpError, short

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how a file from before PyTorch 1.6 begins

# What PyTorch's loader allows by default: functions that a pickle may call, and what may only be a value.
_REBUILD = (
    *("parameter", "parameter_with_state", "tensor", "tensor_v2", "tensor_v3", "qtensor", "sparse_tensor"),
    *("meta_tensor_no_storage", "nested_tensor", "wrapper_subclass"),
    *("device_tensor_from_numpy", "device_tensor_from_cpu_tensor"),
)
_CALLED = {
    *("collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex", "builtins.bytearray"),
    *("_codecs.encode", "torch.Size", "torch.device", "torch.nn.parameter.Parameter"),
    *("torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2"),
    *(f"torch._utils._rebuild_{what}" for what in _REBUILD),
}
_NUMBER = r"bfloat16|bool|(float|complex|q?u?int|bits)\d+(x\d|_e\w+)?|per_(tensor|channel)_(a|symm)\w+"
_KIND = r"(BFloat16|Bool|Byte|Char|(Complex)?(Double|Float)|Half|Int|Long|Short|QU?Int\d\w*)"
_VALUE = re.compile(
    rf"torch\.({_NUMBER}|storage\.(Unt|T)ypedStorage|(cuda\.)?({_KIND}Storage|(sparse\.)?{_KIND}Tensor)|Tensor)"
)

_PUTS, _GETS = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
_INTEGERS, _TEXTS = ("BININT", "BININT1", "BININT2", "LONG1"), ("BINUNICODE", "SHORT_BINSTRING")
_TUPLES = ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_OPCODES = {  # that the loader reads
    *(*_PUTS, *_GETS, *_INTEGERS, *_TEXTS, *_TUPLES, "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK", "NONE", "NEWFALSE", "NEWTRUE", "BINFLOAT"),
    *("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "PROTO", "STOP"),
}
# Nothing that a class of a network comes from; a file that asks for these is not one to trust.
_NO_CLASSES = re.compile(r"(os|posix|nt|sys|subprocess|builtins|importlib|runpy|shutil|socket|pty|ctypes)\.")
_WHAT = {
    "TorchScript": 'model = torch.jit.load({path!r}); torch.save(model.state_dict(), "state.pt")',
    "torch.export": 'program = torch.export.load({path!r}); torch.save(program.state_dict, "state.pt")',
    "a whole module": 'model = torch.load({path!r}, weights_only=False); torch.save(model.state_dict(), "state.pt")',
}


class _Name(str):
    """The full name of a function or class that a pickle asks for."""


def check(path: Path) -> None:
    """Raise MbnpError unless the loader would load the file, and no archive in it expands when it is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LEGACY))
        if start.startswith(b"PK"):
            with zipfile.ZipFile(file) as archive:
                _check_archive(path, archive, size)
        elif start == LEGACY:
            # As a map of memory, which gives no more than there is: a length in the file may be anything.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            # Magic number, protocol, system, contents, keys; then come the bytes of the storages.
            for _ in range(5):
                _check(path, content, size)
        else:
            raise MbnpError(f"{path} is damaged or no file of PyTorch's weights")


def _check_archive(path: Path, archive: zipfile.ZipFile, size: int) -> None:
    entries = archive.infolist()
    names = [entry.filename.partition("/")[2] for entry in entries]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise _other(path, "TorchScript")
    if "models/model.json" in names or any(e.filename.endswith("exported_program.json") for e in entries):
        raise _other(path, "torch.export")
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
        raise MbnpError(f"{path} is an archive that expands when it is read; PyTorch writes none")
    for entry in entries:
        if entry.filename.lower().endswith(".pkl"):
            _check(path, io.BytesIO(archive.read(entry)))


def _other(path: Path, what: str, asks: str = "") -> MbnpError:
    how = _WHAT[what].format(path=str(path))
    trust = ", if you trust where it is from," if what == "a whole module" else ""
    return MbnpError(f"{path} is {what}{asks}, and no state dict: not loaded; these two lines{trust} make one: {how}")


def _check(path: Path, file: Any, largest: int | None = None) -> None:
    """Follow one pickle on a stack of names, numbers, texts, bytes and tuples of them; anything else is None there.

    largest: how many numbers its storages may have, where room is made before they are read.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    refused: list[str] = []
    storages: dict[Any, int] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        op, made = opcode.name, None  # type: str, Any
        if op == "PROTO" and argument > 2:
            problem = f"is written in protocol {argument} of pickle, and PyTorch's weights-only loader reads 2"
            raise MbnpError(f"{path} {problem}: not loaded")
        if op not in _OPCODES:
            raise MbnpError(f"{path} asks for {op} of a pickle, which PyTorch's loader does not read: not loaded")
        if op in _PUTS:
            memo[argument] = stack[-1]
            continue
        taken = _pop(stack, opcode)
        if op == "GLOBAL":
            made = _Name(argument.replace(" ", ".").replace("__builtin__.", "builtins.", 1))
            if made not in _CALLED and not _VALUE.fullmatch(made):
                refused.append(made)
        elif op in ("REDUCE", "NEWOBJ"):
            if taken[0] not in refused:
                _check_call(path, *taken)
            made = b"" if taken[0] == "_codecs.encode" else None
        elif op == "BINPERSID" and isinstance(taken[0], tuple) and len(taken[0]) > 1:
            kind, made, *rest = taken[0]  # ("module", its class, its code) in old files
            if kind == "storage" and len(rest) > 2:
                storages[rest[0]] = rest[2]
        elif op in _TUPLES:
            made = tuple(taken)
        elif op in _GETS:
            made = memo[argument]
        elif op in (*_INTEGERS, *_TEXTS):
            made = argument
        stack += [opcode if op == "MARK" else made] * len(opcode.stack_after)
    if refused:
        raise _refusal(path, refused)
    count = sum(n for n in storages.values() if type(n) is int)
    if largest is not None and count > largest:
        raise MbnpError(f"{path} is damaged: it speaks of {count:,} numbers")


def _pop(stack: list[Any], opcode: Any) -> list[Any]:
    """Take from the stack what an opcode takes: what is above a mark, or a number of entries."""
    before = opcode.stack_before
    if pickletools.markobject not in before:
        at = len(stack) - len(before)
        if at < 0:
            raise ValueError("its pickle takes more from its stack than is there")
        taken, stack[at:] = stack[at:], []
        return taken
    at = next(i for i in range(len(stack) - 1, -1, -1) if isinstance(stack[i], pickletools.OpcodeInfo))
    taken = stack[at + 1 :]
    del stack[at - before.index(pickletools.markobject) :]
    return taken


def _check_call(path: Path, function: Any, arguments: Any) -> None:
    """Raise MbnpError for a call of anything but the functions that a state dict is made by."""
    inner = arguments[0] if isinstance(arguments, tuple) and arguments else None
    wrong = function not in _CALLED
    if function == "builtins.bytearray":  # of a number it is so many bytes, for which there may be no room
        wrong = arguments != () and not isinstance(inner, str | bytes)
    if function == "torch._tensor._rebuild_from_type_v2":  # calls its first argument
        wrong = not str(inner).startswith("torch._utils._rebuild_")
    if wrong or not isinstance(function, _Name):
        raise MbnpError(f"{path} asks to call {short(function)}, which no state dict needs: not loaded")


def _refusal(path: Path, refused: list[str]) -> MbnpError:
    if any(map(_NO_CLASSES.match, refused)):
        refused = [name for name in refused if _NO_CLASSES.match(name)]
    elif any(name.startswith("torch.nn.") for name in refused):
        return _other(path, "a whole module", f" (of {short(refused[0])[1:-1]})")
    problem = f"asks for {short(refused[0], 80)[1:-1]}, which PyTorch's weights-only loader does not load"
    advice = "" if _NO_CLASSES.match(refused[0]) else "; if you trust where it is from, save its state dict alone"
    return MbnpError(f"{path} {problem}: not loaded{advice}")
