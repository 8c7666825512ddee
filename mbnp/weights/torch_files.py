"""PyTorch's files. They hold arrays by name and no architecture: names and shapes say which network they are of.

Which ones are known is in `torch_known.py`: the article's class, kuangliu's, torchvision's, timm's, Hugging Face's and
marvis's MobileNets, ResNet-20, and what mbnp writes of its own models. Where in the file the state dict is, `nested.py`
finds. A `.pt` file is a pickle: PyTorch's weights-only loader reads it, and only after a look at its opcodes
(`pickles.py`).
"""

import io
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mbnp.errors import MbnpError, short
from mbnp.network import Network
from mbnp.storage import replacing
from mbnp.weights import files, nested, pickles, torch_known
from mbnp.weights.torch_known import FAMILIES, Family
from mbnp.weights.torch_names import array_of, from_torch, is_timm, to_torch


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

    names: "mbnp" or "timm"; None: timm's, if those of mbnp would be taken for another network and timm's would not.
    Such a file cannot say padding, eps or ReLU6: a network that would be taken for another one is refused.
    """
    torch = _torch(path)
    tensors = to_torch(net, names or "mbnp")
    if (other := _taken_for(net, tensors)) and names is None and is_timm(net):
        tensors, other = to_torch(net, "timm"), None
    if other:
        problem = f"without its padding, eps or ReLU6 this network would be taken for another {other}"
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
        found = nested.choose(content, [(f.widest, f.classifier) for f in FAMILIES], which, say, most)
    except MbnpError as error:
        raise MbnpError(f"{path} cannot be used: {error}") from None
    arrays = {name: array_of(x) for name, x in (found or {}).items()}
    shapes = {name: x.shape for name, x in arrays.items()}
    family = torch_known.family_of(shapes)
    if family is None:
        raise _unknown(content, path)
    try:
        dtype = np.float64 if {x.dtype for x in arrays.values()} == {np.dtype(np.float64)} else np.float32
        net = torch_known.network(family, shapes, dtype)
        from_torch(net, arrays)
        files.check_values(net.state())
        _add_config(net, family, path.with_name("config.json"), say)
    except (MbnpError, OverflowError) as error:
        raise MbnpError(f"{path} looks like {family.builder} in PyTorch ({family.whose}), but {error}") from None
    return net


def _taken_for(net: Network, tensors: Mapping[str, Any]) -> str | None:
    """Return what reading this state dict would make of it, if that computes something else than `net` does."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    family = torch_known.family_of(shapes)
    if family is None:
        return None
    try:
        if torch_known.computes(torch_known.network(family, shapes)) == torch_known.computes(net):
            return None
    except MbnpError:  # which reading it would say
        pass
    return family.builder


# What else is often found in such files, by a name that only it has. The first that fits is said.
_OTHERS = {
    r"\.conv_pwl\.weight$": "a network of timm's with inverted residuals, and no MobileNetV2 or V3 that mbnp knows",
    r"^(module\.|model\.)*features\.\d+\.conv\.\d": "torchvision's MobileNetV2 without its classifier, or cut",
    r"^(module\.|model\.)*features\.\d+\.block\.\d": "torchvision's MobileNetV3 or EfficientNet, cut or changed",
    r"^(module\.)?layers\.\d+\.conv3\.weight$": "kuangliu's MobileNetV2 with other blocks, or of another class of his",
    r"mobilenet_v[12]\.": "Hugging Face's MobileNetV2, or its MobileNetV1 without the classifier",
    r"layer4\.\d+\.conv\d\.weight$": "a ResNet of ImageNet's size, of which mbnp has ResNet-20 only",
    r"\.(attn|attention|self_attn)\.": "a transformer, which mbnp does not have",
}


def _unknown(content: Any, path: Path) -> MbnpError:
    """Return the error for a file without a network that mbnp knows."""
    arrays = max(nested.levels(content), key=len, default=None)
    if arrays is None:
        return MbnpError(f"{path} holds no state dict but a {type(content).__name__}")
    names = ", ".join([*map(ascii, list(arrays)[:3]), *(["..."] if len(arrays) > 3 else [])])
    known = ", ".join(family.whose for family in FAMILIES)
    problem = f"its names ({names}) are of no state dict that mbnp knows ({known})"
    for pattern, what in _OTHERS.items():
        if any(re.search(pattern, name) for name in arrays):
            problem = f"its names ({names}) are those of {what}"
            break
    advice = "build the network and call weights.from_torch(net, state_dict), or export it to ONNX"
    return MbnpError(f"{path} has no mbnp architecture in its metadata, and {problem}: {advice}")


# What timm's model_args may say that changes nothing in inference.
_HARMLESS = ("drop_rate", "drop_path_rate", "pretrained", "checkpoint_path", "scriptable", "exportable")


def _add_config(net: Network, family: Family, config: Path, say: Callable[[str], object]) -> None:
    """Honour the config.json that timm's and Hugging Face's downloads have beside the weights."""
    known = {"timm": _add_timm_config, "Hugging": _add_hugging_faces_config}
    add = known.get(re.split("[' ]", family.whose)[0])
    if add is None:
        return
    said: dict[str, Any] = {}
    if config.is_file() and config.stat().st_size <= 10_000_000:
        try:
            read = json.loads(config.read_bytes())
            said = read if isinstance(read, dict) else {}
        except (ValueError, RecursionError):
            said = {"architecture": "none"}
    add(net, family, said, config, say)


def _add_hugging_faces_config(
    net: Network, family: Family, said: dict[str, Any], config: Path, say: Callable[[str], object]
) -> None:
    """Add classes and the size of images; MbnpError for what this network does not have."""
    has = {"tf_padding": True, "layer_norm_eps": 1e-3, "hidden_act": "relu6", "num_channels": net.channels}
    for key, value in has.items():
        if said.get(key, value) != value:
            raise MbnpError(f"{config} says {key} {short(said[key])}, and mbnp knows this network with {value!r}")
    labels = said.get("id2label")
    classes = [labels.get(str(i)) for i in range(net.num_classes)] if isinstance(labels, dict) else None
    files.set_description(net, said.get("image_size", net.resolution), classes, net.preprocessing)


def _add_timm_config(
    net: Network, family: Family, said: dict[str, Any], config: Path, say: Callable[[str], object]
) -> None:
    """Add preprocessing and classes from the config.json that timm's downloads have beside the weights.

    All of it is honoured, or MbnpError says what cannot be; a file of another network's is left alone.
    """
    architecture = str(said.get("architecture", "none"))
    kind = family.builder.replace("mobilenet-", "mobilenet").replace("-", "_")
    if not said:
        if kind != "mobilenetv1":
            say(f"it is taken for timm's {kind}_*: tf_{kind}_* has the same names, and computes otherwise")
        return
    tensorflows, bare = architecture.startswith("tf_"), architecture.removeprefix("tf_")
    if not bare.startswith(kind):
        say(f"{config.name} beside it is of {short(architecture)}: not used")
        return
    if tensorflows:
        torch_known.as_tensorflow(net)
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
