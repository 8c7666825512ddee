"""PyTorch's files. They hold arrays by name and no architecture: names and shapes say which network they are of.

Known are the state dicts of the article's class (and of the same class with full convolutions), of kuangliu's CIFAR
MobileNet, of timm's mobilenetv1_*, of ResNet-20, and those that mbnp writes of `models.mobilenet_v1`.

A `.pt` file is a pickle. It is read by PyTorch's weights-only loader, and only after a look at its opcodes, which
runs none of them: whatever it asks for beyond tensors and plain containers is refused.
"""

import io
import json
import mmap
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbnp import models, spec
from mbnp.errors import MbnpError
from mbnp.network import Network
from mbnp.weights import files
from mbnp.weights.torch_names import array_of, from_torch, is_timm, to_torch

# Where checkpoints keep the state dict, and what wrappers put before every name.
NESTS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")

# Names that the pickle of a state dict may ask for. torch.Size and dtypes come with optimisers' states.
_TYPES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_DTYPES = ("Size", "float64", "float32", "float16", "bfloat16", "int64", "int32")
_HARMLESS = {
    *("collections OrderedDict", "collections defaultdict", "builtins dict", "__builtin__ dict"),
    *(f"torch._utils _rebuild_{what}" for what in ("tensor", "tensor_v2", "parameter")),
    *(f"torch {name}" for name in (*_DTYPES, *(f"{kind}Storage" for kind in _TYPES))),
}
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how a file from before PyTorch 1.6 begins


class Family(NamedTuple):
    """A kind of state dict: its builder, the names of its first and widest convolution and of its classifier."""

    whose: str
    builder: str
    first: str
    widest: str
    channels: int  # of the widest convolution, at width 1
    classifier: str
    max_value: float | None = None  # of its ReLUs


FAMILIES = (
    Family("the article's class", "mobilenet-v1-small", "conv1.0", "conv2_8.3", 512, "fc"),
    Family("its full convolutions", "standard-small", "conv1.0", "conv2_8.0", 512, "fc"),
    Family("kuangliu's MobileNet", "mobilenet-v1-cifar", "conv1", "layers.12.conv2", 1024, "linear"),
    Family("timm's MobileNet", "mobilenet-v1", "conv_stem", "blocks.4.1.conv_pw", 1024, "classifier", 6.0),
    Family("mobilenet-v1", "mobilenet-v1", "features.0.0", "features.13.3", 1024, "classifier"),
    Family("ResNet-20", "resnet20", "conv1", "layer3.2.conv2", 64, "linear"),
)


def load(path: Path) -> Network:
    """Return the network that the state dict in a `.pt` or `.pth` file is of. Needs PyTorch."""
    return recognise(_tensors(path), path)


def save(net: Network, path: Path, names: str | None = None) -> None:
    """Write the state dict of `net`, a plain dict of tensors, for `load_state_dict`.

    names: "mbnp" or "timm"; None: timm's for timm's networks. Such a file cannot say padding, eps or ReLU6, so a
    network whose names would be taken for those of another one is refused.
    """
    torch = _torch(path)
    names = names or ("timm" if is_timm(net) else "mbnp")
    tensors = to_torch(net, names)
    arch = _architecture({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if arch and models.from_description(arch).built_as != spec.describe_layers(net):
        problem = f"without its padding, eps or ReLU6 this network would be taken for another {arch['name']}"
        raise MbnpError(f"{path}: {problem}: write .safetensors or .onnx, or take weights.to_torch(net)")
    content = io.BytesIO()  # torch's own writer raises a RuntimeError on a full disk
    torch.save(tensors, content)
    with files.replacing(path) as partial:
        partial.write_bytes(content.getbuffer())


def recognise(arrays: Mapping[str, Any], path: Path) -> Network:
    """Return the network of a state dict of arrays, with its weights; MbnpError if it is none of FAMILIES."""
    arrays = {name: array_of(x) for name, x in _without_prefix(arrays).items()}
    arrays = {name: x for name, x in arrays.items() if not name.endswith("num_batches_tracked")}
    arch = _architecture({name: x.shape for name, x in arrays.items()})
    if arch is None:
        names = ", ".join([*map(ascii, list(arrays)[:3]), *(["..."] if len(arrays) > 3 else [])]) or "none"
        known = ", ".join(family.whose for family in FAMILIES)
        problem = f"its names ({names}) are of no state dict that mbnp knows ({known})"
        advice = "build the network and call weights.from_torch(net, state_dict)"
        raise MbnpError(f"{path} has no mbnp architecture in its metadata, and {problem}: {advice}")
    try:
        dtype = np.float64 if {x.dtype for x in arrays.values()} == {np.dtype(np.float64)} else np.float32
        net = models.from_description(arch, dtype, sum(x.size for x in arrays.values()))
        from_torch(net, arrays)
        files.check_values(net.state())
        if "relu_cap" in arch:
            _add_timm_config(net, path.with_name("config.json"))
    except (MbnpError, OverflowError) as error:
        raise MbnpError(f"{path} looks like {arch['name']} in PyTorch, but {error}") from None
    return net


def _architecture(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Return the builder and options for a state dict of these names and shapes, or None."""
    for f in FAMILIES:
        first, widest, classifier = (shapes.get(f"{name}.weight", ()) for name in (f.first, f.widest, f.classifier))
        if widest and classifier:
            width = _width(widest[0], f.channels)
            options = {"relu_cap": f.max_value} if f.max_value else {}
            if len(first) == 4 and first[1] != 3:
                options["channels"] = first[1]
            return {"name": f.builder, "num_classes": classifier[0], "width_mult": width, **options}
    return None


def _width(channels: int, at_width_1: int) -> float:
    """Return the shortest width_mult with int(width_mult * at_width_1) == channels.

    Narrower layers have powers of two fewer channels at width 1, so the widest decides for all of them.
    """
    exact = channels / at_width_1
    for digits in range(1, 7):
        if int(at_width_1 * (width := round(exact, digits))) == channels:
            return width
    return exact


def _without_prefix(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Remove from the names what wrappers put before all of them."""
    names = list(arrays)
    prefix = next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), None)
    if prefix is None:
        return dict(arrays)
    return _without_prefix({name.removeprefix(prefix): x for name, x in arrays.items()})


def _add_timm_config(net: Network, config: Path) -> None:
    """Add preprocessing and resolution from the config.json that timm's downloads have beside the weights."""
    if not config.is_file() or config.stat().st_size > 10_000_000:
        return
    try:
        said = json.loads(config.read_bytes())
        if not str(said["architecture"]).startswith("mobilenetv1"):
            return
        pretrained = said["pretrained_cfg"]
        preprocessing = {"mean": pretrained["mean"], "std": pretrained["std"]}
        resolution, classes = pretrained["input_size"][1], said.get("label_names")
    except (KeyError, TypeError, ValueError, IndexError, RecursionError):
        return  # somebody else's file
    if not isinstance(classes, list) or len(classes) != net.num_classes:
        classes = None
    files.set_description(net, resolution, classes, preprocessing)


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise MbnpError(f'{path}: such files need PyTorch: pip install "torch"; or take .safetensors') from None
    return torch


def _tensors(path: Path) -> dict[str, Any]:
    """Return the state dict in a file, read by the weights-only loader."""
    torch = _torch(path)
    with files.reading(path, "file of PyTorch's weights"):
        _check_pickles(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    for nest in NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise MbnpError(f"{path} holds no state dict but a {type(content).__name__}")
    strange = next((name for name, x in content.items() if not isinstance(x, torch.Tensor)), None)
    if strange is not None:
        raise MbnpError(f"{path} holds no state dict: {ascii(strange)[:80]} is no tensor")
    # A view of one number can claim any shape, and would be copied in full.
    if sum(x.numel() * x.element_size() for x in content.values()) > path.stat().st_size:
        raise MbnpError(f"{path} is not a usable state dict: its tensors are larger than the file")
    return content


def _check_pickles(path: Path) -> None:
    """Raise MbnpError unless the pickles in a file ask for nothing but tensors, and no archive expands when read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
        if start.startswith(b"PK"):
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
                if packed or sum(entry.file_size for entry in entries) > size:
                    raise MbnpError(f"{path} is an archive that expands when it is read; PyTorch writes none")
                for entry in entries:
                    if entry.filename.lower().endswith(".pkl"):
                        _check_pickle(path, io.BytesIO(archive.read(entry)))
        elif start == _LEGACY:
            # As a map of memory, which gives no more than there is: a length in the file may be anything.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            # Magic number, protocol, system, contents, keys; then come the bytes of the storages.
            for _ in range(5):
                _check_pickle(path, content, largest=max(size, 100_000))
        else:
            raise MbnpError(f"{path} is damaged or no file of PyTorch's weights")


def _check_pickle(path: Path, file: Any, largest: int | None = None) -> None:
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in ("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "OBJ", "NEWOBJ", "NEWOBJ_EX"):
            raise MbnpError(f"{path} asks to run {name} of a pickle, which no state dict needs: not loaded")
        if name == "GLOBAL" and argument not in _HARMLESS:
            asked = ascii(str(argument).replace(" ", "."))[:80]
            raise MbnpError(f"{path} asks for {asked}, which no state dict needs: not loaded")
        # The old format reserves memory for as many numbers as it says.
        number = argument if name.startswith(("BININT", "LONG1")) and type(argument) is int else 0
        if largest is not None and largest < number < 1 << 64:
            raise MbnpError(f"{path} is damaged: it speaks of {number:,} numbers")
