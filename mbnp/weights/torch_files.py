"""PyTorch's files. They hold arrays by name and no architecture: names and shapes say which network they are of.

Known are the state dicts of the article's class (and of the same class with full convolutions), of kuangliu's CIFAR
MobileNet, of timm's mobilenetv1_*, of ResNet-20, and those that mbnp writes of `models.mobilenet_v1`.

Where in the file the state dict is, `nested.py` finds. A `.pt` file is a pickle: PyTorch's weights-only loader reads
it, and only after a look at its opcodes (`pickles.py`).
"""

import io
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbnp import models, spec
from mbnp.errors import MbnpError, short
from mbnp.network import Network
from mbnp.storage import replacing
from mbnp.weights import files, nested, pickles
from mbnp.weights.torch_names import array_of, from_torch, is_timm, to_torch


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


def load(path: Path, which: str | None = None, say: Callable[[str], object] = lambda text: None) -> Network:
    """Return the network that a state dict in a file of PyTorch's is of. Needs PyTorch.

    which: "averaged" (the default) or "raw" weights, where a file has both, or the name of the place where they are;
    say: gets notes on what was left out.
    """
    torch = _torch(path)
    with files.reading(path, "file of PyTorch's weights"):
        pickles.check(path)
        # By a name, PyTorch would go by the suffix. It warns of kinds of tensors that no network here has.
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            content = torch.load(file, map_location="cpu", weights_only=True)
        return recognise(content, path, which, say, path.stat().st_size)


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
    with replacing(path) as partial:
        partial.write_bytes(content.getbuffer())


def recognise(
    content: Any, path: Path, which: str | None, say: Callable[[str], object], most: float = math.inf
) -> Network:
    """Return the network whose arrays are somewhere in `content`; MbnpError if it is none of FAMILIES.

    most: how many bytes they may have.
    """
    try:
        found = nested.choose(
            content, [(f"{f.widest}.weight", f"{f.classifier}.weight") for f in FAMILIES], which, say, most
        )
    except MbnpError as error:
        raise MbnpError(f"{path} cannot be used: {error}") from None
    arrays = {name: array_of(x) for name, x in (found or {}).items()}
    arch = _architecture({name: x.shape for name, x in arrays.items()})
    if arch is None:
        raise _unknown(content, path)
    try:
        dtype = np.float64 if {x.dtype for x in arrays.values()} == {np.dtype(np.float64)} else np.float32
        net = models.from_description(arch, dtype, sum(x.size for x in arrays.values()))
        from_torch(net, arrays)
        files.check_values(net.state())
        if "relu_cap" in arch:
            _add_timm_config(net, path.with_name("config.json"), say)
    except (MbnpError, OverflowError) as error:
        raise MbnpError(f"{path} looks like {arch['name']} in PyTorch, but {error}") from None
    return net


def _unknown(content: Any, path: Path) -> MbnpError:
    """Return the error for a file without a network that mbnp knows."""
    arrays = max(nested.levels(content), key=len, default=None)
    if arrays is None:
        return MbnpError(f"{path} holds no state dict but a {type(content).__name__}")
    names = ", ".join([*map(ascii, list(arrays)[:3]), *(["..."] if len(arrays) > 3 else [])])
    known = ", ".join(family.whose for family in FAMILIES)
    problem = f"its names ({names}) are of no state dict that mbnp knows ({known})"
    advice = "build the network and call weights.from_torch(net, state_dict)"
    return MbnpError(f"{path} has no mbnp architecture in its metadata, and {problem}: {advice}")


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


# What timm's model_args may say that changes nothing in inference.
_HARMLESS = ("drop_rate", "drop_path_rate", "pretrained", "checkpoint_path", "scriptable", "exportable")


def _add_timm_config(net: Network, config: Path, say: Callable[[str], object]) -> None:
    """Add preprocessing and classes from the config.json that timm's downloads have beside the weights.

    All of it is honoured, or MbnpError says what cannot be; a file of another network's is left alone.
    """
    if not config.is_file() or config.stat().st_size > 10_000_000:
        return
    try:
        said = json.loads(config.read_bytes())
        architecture = str(said["architecture"])
    except (KeyError, TypeError, ValueError, RecursionError):
        architecture = "none"
    if not architecture.startswith("mobilenetv1"):
        say(f"{config.name} beside it is of {short(architecture)}: not used")
        return
    trained = said.get("pretrained_cfg", said)  # before timm 0.9 in one level
    arguments = said.get("model_args") or {}
    if not isinstance(trained, dict) or not isinstance(arguments, dict):
        raise MbnpError(f"{config} has no table of {'pretrained_cfg' if isinstance(arguments, dict) else 'model_args'}")
    classes, shape = said.get("label_names") or trained.get("label_names"), trained.get("input_size")
    expected = {"num_classes": net.num_classes, "in_chans": net.channels, "global_pool": "avg"}
    top = {key: said[key] for key in expected if key in said}
    for key, value in (*top.items(), *arguments.items()):
        if key not in _HARMLESS and (key not in expected or value != expected[key]):
            has = f"the network has {expected[key]!r}" if key in expected else "mbnp does not know what that changes"
            raise MbnpError(f"{config} says {short(key)[1:-1]} {short(value)}, and {has}: mend it, or take it away")
    if not isinstance(shape, list) or len(shape) != 3 or shape[0] != net.channels or shape[1] != shape[2]:
        raise MbnpError(f"{config} says input_size {short(shape)}; mbnp takes square images of {net.channels} channels")
    preprocessing = {"mean": trained.get("mean"), "std": trained.get("std")}
    files.set_description(net, shape[1], classes, preprocessing)
    if (part := trained.get("crop_pct", 1)) != 1:
        say(f"{config.name} crops images to {short(part)} of their side, which mbnp predict does not")


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise MbnpError(f'{path}: such files need PyTorch: pip install "torch"; or take .safetensors') from None
    return torch
