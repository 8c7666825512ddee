"""`mbnp convert`: take weights from one format into another."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from mbnp import tables, weights
from mbnp.errors import MbnpError
from mbnp.network import Network
from mbnp.weights import files

OPTIONS = {"layout": [".onnx"], "keep_batchnorm": [".onnx"], "names": [".pt", ".pth"]}  # and their formats


def run(options: Namespace) -> None:
    source, target = Path(options.file), Path(options.out)
    weights.check_target(target)  # before a large file is read
    if target.exists() and not options.force:
        raise MbnpError(f"{target} exists: --force replaces it")
    how = _how(target.suffix.lower(), options)
    net = weights.load(source, options.weights, tables.note)
    try:
        _add(net, options)
    except MbnpError as error:
        raise MbnpError(f"cannot convert {source}: {error}") from None
    weights.save(net, target, **how)
    print(tables.hang(f"{target}: {target.stat().st_size / 1e6:.2f} MB{_lost(net, target)}"))


def _how(suffix: str, options: Namespace) -> dict[str, Any]:
    """Return the options of `weights.save` for this format; raise MbnpError for those of another one."""
    how = {name: value for name in OPTIONS if (value := getattr(options, name))}
    for name in how:
        if suffix not in OPTIONS[name]:
            raise MbnpError(f"--{name.replace('_', '-')} is not for {suffix} files: leave it out")
    if how.pop("keep_batchnorm", False):
        how["fold"] = False
    return how


def _add(net: Network, options: Namespace) -> None:
    """Put what the command line says of images and classes into the network."""
    if (options.mean is None) != (options.std is None):
        raise MbnpError("--mean and --std go together")
    if options.order is not None and options.mean is None and net.preprocessing is None:
        raise MbnpError("--order needs --mean and --std, which the file does not have")
    if said := {name: value for name in ("mean", "std", "order") if (value := getattr(options, name))}:
        net.preprocessing = {**(net.preprocessing or {}), **said}
    if options.classes is not None:
        try:
            net.classes = Path(options.classes).read_text(encoding="utf-8-sig").rstrip().splitlines()
        except UnicodeDecodeError:
            raise MbnpError(f"{options.classes} is no text in UTF-8, one class a line") from None
    files.set_description(net, net.resolution, net.classes, net.preprocessing)
    files.check_scale(net)


def _lost(net: Network, target: Path) -> str:
    """Return the end of a line that says what the format has no place for."""
    if target.suffix.lower() == ".onnx" and net.detects():
        return "; of a detector ONNX has the rows as they are, and mbnp does not read it back"
    if target.suffix.lower() not in (".pt", ".pth"):
        return ""
    known = {"preprocessing": net.preprocessing, "names of classes": net.classes, "anchors": net.detection}
    lost = [name for name, value in known.items() if value is not None]
    return f"; a PyTorch file has no place for {' and '.join(lost)}" if lost else ""
