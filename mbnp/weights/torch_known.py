"""Which network the names and shapes of a PyTorch state dict are of, and that network, with fresh weights.

A state dict says nothing of padding, eps, or activations: those are its family's. Widths are read from the file, since
the codes round differently. What would load and be wrong otherwise:

    torchvision's V3           eps is 1e-3, where its V2, timm's networks and kuangliu's have 1e-5
    timm's V3                  pools before its last 1x1 convolution, which has a bias and no BatchNorm
    timm's tf_mobilenetv3_*    have the same names, TensorFlow's padding and eps 1e-3: only a config.json tells
    torchvision's SSDLite      has eps 1e-3, and either tail of V3; pixels (x - 0.5) / 0.5
    timm's mobilenetv1_100h    has one more 1x1 convolution to 1024 channels
    Hugging Face's V1          has TensorFlow's padding, eps 1e-3, and pixels (x - 0.5) / 0.5

Sources: torchvision's models/mobilenetv2.py, mobilenetv3.py and detection/ssdlite.py, timm's efficientnet.py,
mobilenetv3.py and _efficientnet_blocks.py, transformers' modeling_mobilenet_v1.py.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mbnp import models, spec
from mbnp.errors import MbnpError
from mbnp.layers import BatchNorm, Conv, Depthwise, Pointwise, ReLU
from mbnp.models.mobilenet_v2 import HEAD
from mbnp.models.mobilenet_v2 import Channels as V2Channels
from mbnp.models.mobilenet_v2 import build as v2_build
from mbnp.models.mobilenet_v2 import widths as v2_widths
from mbnp.models.mobilenet_v3 import LARGE, LAST_LARGE, LAST_SMALL, SMALL, Row
from mbnp.models.mobilenet_v3 import Channels as V3Channels
from mbnp.models.mobilenet_v3 import Rows as V3Rows
from mbnp.models.mobilenet_v3 import build as v3_build
from mbnp.models.mobilenet_v3 import widths as v3_widths
from mbnp.models.ssd import COCO, EXTRAS, REDUCED, TAPPED, ssdlite
from mbnp.network import Layer, Network, Sequential

Shapes = Mapping[str, tuple[int, ...]]

STAGES = {13: (1, 2, 2, 6, 2), 17: (1, 2, 3, 4, 3, 3, 1), 15: (1, 2, 3, 4, 2, 3), 11: (1, 2, 3, 2, 3)}
FIRST = (
    "backbone.features.0.0.0",
    "conv_stem",
    "mobilenet_v1.conv_stem.convolution",
    "model.0.0",
    "features.0.0",
    "conv1.0",
    "conv1",
)
ANCHORS = 6  # of a cell, in torchvision's SSDLite
# COCO's categories by number, from 1; N/A has no boxes. From torchvision's models/_meta.py.
COCO_NAMES = (  # noqa: SIM905
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,N/A,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,N/A,backpack,umbrella,N/A,N/A,"
    "handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
    "tennis racket,bottle,N/A,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
    "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,N/A,dining table,N/A,N/A,toilet,N/A,tv,laptop,mouse,remote,"
    "keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,N/A,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush"
).split(",")
HUGGING_FACE = {"mean": [0.5] * 3, "std": [0.5] * 3}
_WIDTHS = [*(k / 20 for k in range(1, 41)), *(k / 100 for k in range(5, 151))]


class Family(NamedTuple):
    """A kind of state dict: its builder, the names of two of its arrays, and how the rest is read.

    widest, channels: its widest convolution, and that one's channels at width 1; never: the end of a name that it does
    not have and others of these names do.
    """

    whose: str
    builder: str
    widest: str
    classifier: str
    channels: int = 0
    max_value: float | None = None  # of its ReLUs
    never: str = "."
    build: Callable[["Family", Shapes, Any], Network] | None = None


class _Reader:
    """The shapes of a state dict, each of which must be what the others make it."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes

    def take(self, name: str, *expected: int | None) -> int:
        """Return the length of the one axis that is None; all others must be as long as expected."""
        found = self.shapes.get(f"{name}.weight")
        if found is None:
            raise MbnpError(f"missing {name}.weight")
        if len(found) != len(expected) or any(e not in (None, n) for n, e in zip(found, expected, strict=True)):
            wanted = ", ".join("any" if e is None else str(e) for e in expected)
            raise MbnpError(f"{name}.weight has shape {found}, not ({wanted})")
        (length,) = (n for n, e in zip(found, expected, strict=True) if e is None)
        if length < 1:
            raise MbnpError(f"{name}.weight has shape {found}: its numbers are too few")
        return length

    def kernel(self, name: str) -> int:
        return (self.shapes.get(f"{name}.weight") or (0,))[-1]

    def block(self, names: Mapping[str, str], c_in: int) -> tuple[int, int, int, int]:
        """Return kernel, widened channels, channels out and those of squeeze-and-excite (0: none) of a block."""
        kernel = self.kernel(names["filter"])
        wide = self.take(names["widen"], None, c_in, 1, 1) if "widen" in names else c_in
        self.take(names["filter"], None, 1, kernel, kernel)
        few = self.take(names["few"], None, wide, 1, 1) if "few" in names else 0
        if few:
            self.take(names["many"], None, few, 1, 1)
        c_out = self.take(names["narrow"], None, wide, 1, 1)
        if any(self.shapes[f"{names[role]}.weight"][0] != wide for role in ("filter", "many") if role in names):
            raise MbnpError(f"{names['filter']} and what is around it are not of {wide} channels")
        return kernel, wide, c_out, few


def _torchvision_block(shapes: Shapes, at: str, last: str) -> dict[str, str]:
    """Return the names of the convolutions of a block: `at`.0.0, `at`.1.0, ..., and `last` after the number."""
    found: dict[str, str] = {}
    for k in range(4):
        if f"{at}.{k}.fc1.weight" in shapes:
            found |= {"few": f"{at}.{k}.fc1", "many": f"{at}.{k}.fc2"}
            continue
        name = f"{at}.{k}.0" if f"{at}.{k}.0.weight" in shapes and "filter" not in found else f"{at}.{k}{last}"
        if len(shape := shapes.get(f"{name}.weight", ())) == 4:
            role = "filter" if shape[1] == 1 and shape[2] > 1 else "narrow" if "filter" in found else "widen"
            found[role] = name
    return _checked(found, at)


def _timm_block(shapes: Shapes, at: str) -> dict[str, str]:
    inverted = f"{at}.conv_pwl.weight" in shapes
    found = {"filter": f"{at}.conv_dw", "narrow": f"{at}.{'conv_pwl' if inverted else 'conv_pw'}"}
    found |= {"widen": f"{at}.conv_pw"} if inverted else {}
    if f"{at}.se.conv_reduce.weight" in shapes:
        found |= {"few": f"{at}.se.conv_reduce", "many": f"{at}.se.conv_expand"}
    return _checked(found, at)


def _checked(found: dict[str, str], at: str) -> dict[str, str]:
    if missing := {"filter", "narrow"} - found.keys():
        raise MbnpError(f"missing the {min(missing)} convolution of {at}")
    return found


def _places(count: int) -> Iterator[str]:
    """Yield timm's names of blocks in order."""
    for stage, size in enumerate(STAGES[count]):
        yield from (f"blocks.{stage}.{b}" for b in range(size))


def _mobilenet_v1(family: Family, shapes: Shapes, dtype: Any) -> Network:
    """Return a network that its widest convolution and its classifier tell everything about."""
    options: dict[str, Any] = {"relu_cap": family.max_value} if family.max_value else {}
    if (channels := _image_channels(shapes)) != 3:
        options["channels"] = channels
    width = width_of(shapes[family.widest][0], family.channels)
    arch = {"name": family.builder, "num_classes": shapes[family.classifier][0], "width_mult": width, **options}
    return models.from_description(arch, dtype, sum(map(_size, shapes.values())))


def _image_channels(shapes: Shapes) -> int:
    """Return the channels that the first convolution takes."""
    found = next((shapes[f"{name}.weight"] for name in FIRST if f"{name}.weight" in shapes), ())
    return found[1] if len(found) == 4 else 3


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=object))


def _timm_v1(family: Family, shapes: Shapes, dtype: Any) -> Network:
    """Return timm's MobileNetV1, and for mobilenetv1_100h with one more 1x1 convolution at its end."""
    if "conv_head.weight" not in shapes:
        return _mobilenet_v1(family, shapes, dtype)
    c = shapes[family.widest][0]
    head = _Reader(shapes).take("conv_head", None, c, 1, 1)
    net = _mobilenet_v1(family, {**shapes, family.classifier: (shapes[family.classifier][0], c)}, dtype)
    features: Any = net.layers["features"]
    parts = [Pointwise(c, head, bias=False, dtype=dtype), BatchNorm(head, dtype=dtype), ReLU(family.max_value)]
    features.layers[str(len(features.layers))] = Sequential(parts)
    last = _Reader(shapes).take("classifier", None, head)
    net.layers["classifier"] = type(net.layers["classifier"])(head, last, dtype=dtype)  # type: ignore[call-arg]
    return _described(net)


def _hugging_face(family: Family, shapes: Shapes, dtype: Any) -> Network:
    net = as_tensorflow(_mobilenet_v1(family, shapes, dtype))
    net.preprocessing = HUGGING_FACE
    return net


def as_tensorflow(net: Network) -> Network:
    """Return `net` with the padding and the eps that TensorFlow's code has."""
    for _, layer in net.leaves():
        if isinstance(layer, BatchNorm):
            layer.eps = 1e-3
        elif isinstance(layer, Conv | Depthwise):
            layer.options["padding"] = "same"
    return _described(net)


def _described(net: Network) -> Network:
    net.arch, net.built_as = spec.describe(net), None
    return net


def _mobilenet_v2(family: Family, shapes: Shapes, dtype: Any) -> Network:
    """Return torchvision's or timm's, whose channels are the builder's at most widths."""
    timm, read, images = family.widest.startswith("blocks."), _Reader(shapes), _image_channels(shapes)
    stem = c = read.take("conv_stem" if timm else "features.0.0", None, images, 3, 3)
    count, rows = len(v2_widths(1.0).blocks), []
    places = [*_places(count)] if timm else [f"features.{i}.conv" for i in range(1, count + 1)]
    for at, (_, _, stride) in zip(places, v2_widths(1.0).blocks, strict=True):
        names = _timm_block(shapes, at) if timm else _torchvision_block(shapes, at, "")
        kernel, wide, c, few = read.block(names, c)
        if kernel != 3 or few:
            raise MbnpError(f"{at} has a kernel of {kernel} or squeeze-and-excite, as no MobileNetV2 has")
        rows.append((wide, c, stride))
    head = read.take("conv_head" if timm else "features.18.0", None, c, 1, 1)
    found = V2Channels(stem, tuple(rows), head)
    classes = read.take("classifier" if timm else "classifier.1", None, head)
    for width in _candidates(head / HEAD, c / 320):
        if v2_widths(width) == found:
            return models.mobilenet_v2(classes, width, dtype=dtype, channels=images)
    return _described(v2_build(found, classes, dtype=dtype, channels=images))


def _mobilenet_v2_cifar(family: Family, shapes: Shapes, dtype: Any) -> Network:
    """Return kuangliu's, whose stem, last convolution and classifier tell its width."""
    read, images = _Reader(shapes), _image_channels(shapes)
    stem, last = read.take("conv1", None, images, 3, 3), shapes.get("conv2.weight") or ()
    c = last[1] if len(last) == 4 else 0
    head = read.take("conv2", None, c, 1, 1)
    classes = read.take("linear", None, head)
    for width in _candidates(head / HEAD, c / 320, stem / 32):
        found = v2_widths(width)
        if (found.stem, found.blocks[-1][1], found.head) == (stem, c, head):
            least = sum(wide * (wide // 6 + c_out) for wide, c_out, _ in found.blocks)
            if least > sum(map(_size, shapes.values())):
                raise MbnpError("its numbers are too few")
            return models.mobilenet_v2_cifar(classes, width, dtype=dtype, channels=images)
    raise MbnpError(f"its {stem} channels at the beginning and {c}, {head} at the end are of no width multiplier")


def _mobilenet_v3(family: Family, shapes: Shapes, dtype: Any) -> Network:
    """Return torchvision's or timm's: rows of the paper's table, with the channels of the file."""
    timm, read, large = family.widest.startswith("blocks."), _Reader(shapes), family.builder.endswith("large")
    images = _image_channels(shapes)
    table, last_of = (LARGE, LAST_LARGE) if large else (SMALL, LAST_SMALL)
    stem, rows = _v3_rows(read, table, images, timm)
    c = rows[-1].c_out
    head = f"blocks.{len(STAGES[len(table)])}.0.conv" if timm else f"features.{len(table) + 1}.0"
    wide = read.take(head, None, c, 1, 1)
    last = read.take("conv_head", None, wide, 1, 1) if timm else read.take("classifier.0", None, wide)
    classes = read.take("classifier" if timm else "classifier.3", None, last)
    channels = V3Channels(stem, tuple(rows), wide, last)
    if not timm:
        for width in _candidates(c / table[-1][2], last / last_of):
            if v3_widths(table, last_of, width) == channels:
                return models.create(
                    family.builder, num_classes=classes, width_mult=width, dtype=dtype, channels=images
                )
    eps, momentum = (1e-5, 0.1) if timm else (1e-3, 0.01)
    layers = v3_build(channels, classes, dtype=dtype, channels=images, eps=eps, momentum=momentum)
    return _described(Network(layers, 224, images))


def _v3_rows(read: _Reader, table: V3Rows, images: int, timm: bool = False) -> tuple[int, list[Row]]:
    """Return the stem's channels and the paper's rows with the channels of the file."""
    stem = c = read.take("conv_stem" if timm else "features.0.0", None, images, 3, 3)
    places = [*_places(len(table))] if timm else [f"features.{i}.block" for i in range(1, len(table) + 1)]
    rows = []
    for at, (kernel, _, _, se, activation, stride) in zip(places, table, strict=True):
        names = _timm_block(read.shapes, at) if timm else _torchvision_block(read.shapes, at, ".0")
        found, wide, c, few = read.block(names, c)
        if found != kernel or bool(few) != bool(se):
            gate = "with" if few else "without"
            raise MbnpError(f"{at} has a kernel of {found}, {gate} squeeze-and-excite, and the paper's is another")
        rows.append(Row(kernel, wide, c, few, activation, stride))
    return stem, rows


def _ssdlite(family: Family, shapes: Shapes, dtype: Any) -> Network:
    """Return torchvision's detector, with the tail of the file: reduced, or as its V3 for classification has it."""
    read, images = _Reader({_in_v3(name): shape for name, shape in shapes.items()}), _image_channels(shapes)
    stem, rows = _v3_rows(read, LARGE, images)
    wide = read.take("features.16.0", None, rows[-1].c_out, 1, 1)
    extras = list[int]()
    for i in range(len(EXTRAS)):
        half = read.take(f"backbone.extra.{i}.0.0", None, extras[-1] if extras else wide, 1, 1)
        extras.append(read.take(f"backbone.extra.{i}.2.0", None, half, 1, 1))
    logits = read.take(family.classifier.removesuffix(".weight"), None, rows[TAPPED - 1].wide, 1, 1)
    classes = logits // ANCHORS - 1
    if logits % ANCHORS or classes < 1:
        raise MbnpError(
            f"{family.classifier} makes {logits} numbers, no multiple of {ANCHORS} anchors and above {ANCHORS}"
        )
    seen = rows[TAPPED - 1].wide + wide + sum(extras)  # channels under the heads
    if (4 * ANCHORS + logits) * seen > sum(map(_size, shapes.values())):
        raise MbnpError("its numbers are too few")
    found, usual = V3Channels(stem, tuple(rows), wide, LAST_LARGE), v3_widths(REDUCED, LAST_LARGE, 1.0)
    if (found, tuple(extras)) == (usual, EXTRAS):
        net = models.ssdlite320_mobilenet_v3_large(classes, dtype=dtype, channels=images)
    else:
        net = _described(ssdlite(found, tuple(extras), classes, dtype=dtype, channels=images))
    net.preprocessing = {"mean": [0.5] * images, "std": [0.5] * images}
    net.classes = list(COCO_NAMES) if classes == COCO else None
    return net


def _in_v3(name: str) -> str:
    """Return the name in V3 of an array of the body, which is cut in two after the first convolution of a block."""
    part, _, rest = name.removeprefix("backbone.features.").partition(".")
    at, _, inside = rest.partition(".")
    if not name.startswith("backbone.features.") or part not in ("0", "1") or not at.isdecimal():
        return name
    cut = int(at) == (TAPPED if part == "0" else 0)
    number = int(at) if part == "0" else TAPPED + int(at)
    return f"features.{number}.{('block.0.' if part == '0' else 'block.') if cut else ''}{inside}"


def _candidates(*ratios: float) -> list[float]:
    """Return widths that are likely, round ones first."""
    exact = [round(ratio, digits) for digits in (2, 3, 6) for ratio in ratios]
    return [width for width in dict.fromkeys([1.0, *_WIDTHS, *exact]) if 0.02 < width < 6]


_CLASSIFIER, _HF_WIDEST = "classifier.weight", "mobilenet_v1.layer.25.convolution.weight"
_SSD_WIDEST, _SSD_LOGITS = "backbone.features.1.3.0.weight", "head.classification_head.module_list.0.1.weight"
FAMILIES = (
    Family("torchvision's ssdlite320_mobilenet_v3_large", "ssdlite320-mobilenet-v3-large", _SSD_WIDEST, _SSD_LOGITS)
    ._replace(build=_ssdlite),
    Family("the article's class", "mobilenet-v1-small", "conv2_8.3.weight", "fc.weight", 512),
    Family("its full convolutions", "standard-small", "conv2_8.0.weight", "fc.weight", 512),
    Family("kuangliu's MobileNetV2", "mobilenet-v2-cifar", "layers.16.conv3.weight", "linear.weight")
    ._replace(build=_mobilenet_v2_cifar),
    Family("kuangliu's MobileNet", "mobilenet-v1-cifar", "layers.12.conv2.weight", "linear.weight", 1024)
    ._replace(never=".conv3.weight"),
    Family("timm's mobilenetv2_*", "mobilenet-v2", "blocks.6.0.conv_pwl.weight", _CLASSIFIER)
    ._replace(build=_mobilenet_v2),
    Family("timm's mobilenetv3_large_*", "mobilenet-v3-large", "blocks.6.0.conv.weight", _CLASSIFIER)
    ._replace(build=_mobilenet_v3),
    Family("timm's mobilenetv3_small_*", "mobilenet-v3-small", "blocks.5.0.conv.weight", _CLASSIFIER)
    ._replace(build=_mobilenet_v3),
    Family("timm's MobileNet", "mobilenet-v1", "blocks.4.1.conv_pw.weight", _CLASSIFIER, 1024, 6.0, "conv_pwl.weight")
    ._replace(build=_timm_v1),
    Family("torchvision's mobilenet_v2", "mobilenet-v2", "features.18.0.weight", "classifier.1.weight")
    ._replace(build=_mobilenet_v2),
    Family("torchvision's mobilenet_v3_large", "mobilenet-v3-large", "features.16.0.weight", "classifier.3.weight")
    ._replace(build=_mobilenet_v3),
    Family("torchvision's mobilenet_v3_small", "mobilenet-v3-small", "features.12.0.weight", "classifier.3.weight")
    ._replace(build=_mobilenet_v3),
    Family("Hugging Face's MobileNetV1", "mobilenet-v1", _HF_WIDEST, _CLASSIFIER, 1024, 6.0)
    ._replace(build=_hugging_face),
    Family("marvis's MobileNet", "mobilenet-v1", "model.13.3.weight", "fc.weight", 1024),
    Family("mobilenet-v1", "mobilenet-v1", "features.13.3.weight", _CLASSIFIER, 1024),
    Family("ResNet-20", "resnet20", "layer3.2.conv2.weight", "linear.weight", 64, never=".conv3.weight"),
)  # fmt: skip


def family_of(shapes: Shapes) -> Family | None:
    """Return the family that a state dict of these names is of, or None."""
    for family in FAMILIES:
        both = family.widest in shapes and family.classifier in shapes
        if both and not any(name.endswith(family.never) for name in shapes):
            return family if shapes[family.widest] and shapes[family.classifier] else None
    return None


def network(family: Family, shapes: Shapes, dtype: Any = np.float32) -> Network:
    """Return the network of a family that has these shapes; MbnpError if none has."""
    if family.build:
        return family.build(family, shapes, dtype)
    return _mobilenet_v1(family, shapes, dtype)


def computes(net: Network) -> list[Any]:
    """Return all that inference by `net` depends on but its weights, to compare."""
    return _inference(spec.describe_layers(net))


def _inference(entries: list[dict[str, Any]]) -> list[Any]:
    found = []
    for entry in entries:
        if entry["kind"] == "dropout":
            continue
        entry = {key: value for key, value in entry.items() if key != "momentum"}
        if "layers" in entry:
            entry["layers"] = _inference(entry["layers"])
        if entry.get("shortcut"):
            (entry["shortcut"],) = _inference([entry["shortcut"]])
        found.append(entry)
    return found


def width_of(channels: int, at_width_1: int) -> float:
    """Return the shortest width_mult with int(width_mult * at_width_1) == channels.

    Narrower layers have powers of two fewer channels at width 1, so the widest decides for all of them.
    """
    exact = channels / at_width_1
    for digits in range(1, 7):
        if int(at_width_1 * (width := round(exact, digits))) == channels:
            return width
    return exact


# Their names of layers, and ours


def their_names(net: Network, scheme: str) -> dict[str, str]:
    """Map our name of each layer of `net` with arrays to "timm"'s, "hf"'s, "marvis"'s or, of a detector, "ssdlite"'s.

    {} if it has no `features` (no `ssd`) and so is none of theirs; of another network with them, names no file has.
    """
    if scheme == "ssdlite":
        return {name: _ssdlites_name(name) for name, _ in net.leaves() if name.startswith("ssd.")}
    features = net.layers.get("features")
    if type(features) is not Sequential:
        return {}
    stem, *blocks = features.layers.items()
    rest = [(f"features.{stem[0]}", stem[1])]
    found: dict[str, str] = {}
    if scheme == "marvis":
        names = {name: name.replace("features", "model", 1) for name, _ in net.leaves() if name.startswith("features")}
        return names | {"classifier": "fc"}
    if scheme == "hf":
        for i, (at, layer) in enumerate([*rest, *((f"features.{at}", block) for at, block in blocks)]):
            leaves = _with_arrays(layer, at)
            for k, name in enumerate(leaves):
                where = f"layer.{2 * (i - 1) + k // 2}" if i else "conv_stem"
                found[name] = f"mobilenet_v1.{where}.{('convolution', 'normalization')[k % 2]}"
        return found | {"classifier": "classifier"}
    counts = [count for count in (len(blocks), len(blocks) - 1) if count in STAGES]
    if not counts:
        return {}
    found |= dict(zip(_with_arrays(stem[1], f"features.{stem[0]}"), ("conv_stem", "bn1"), strict=False))
    for (at, block), place in zip(blocks, _places(counts[0]), strict=False):
        found |= _names_in_block(block, f"features.{at}", place)
    v3 = counts[0] in (11, 15)
    for at, head in blocks[counts[0] :]:
        stage = f"blocks.{len(STAGES[counts[0]])}.0."
        two = (f"{stage}conv", f"{stage}bn1") if v3 else ("conv_head", "bn2")
        found |= dict(zip(_with_arrays(head, f"features.{at}"), two, strict=False))
    classifier = _with_arrays(net.layers.get("classifier", Sequential({})), "classifier")
    return found | dict(zip(classifier, ("conv_head", "classifier") if v3 else ("classifier",), strict=False))


def _ssdlites_name(name: str) -> str:
    _, at, rest = name.split(".", 2)
    if at in ("boxes", "scores"):
        return f"head.{'regression' if at == 'boxes' else 'classification'}_head.module_list.{rest}"
    return f"backbone.features.{at}.{rest}" if int(at) < 2 else f"backbone.extra.{int(at) - 2}.{rest}"


def _with_arrays(layer: Layer, at: str) -> list[str]:
    return [name for name, leaf in layer.leaves(at) if leaf.variables()]


def _names_in_block(block: Layer, at: str, place: str) -> dict[str, str]:
    leaves = [(name, leaf) for name, leaf in block.leaves(at) if leaf.variables()]
    inverted = bool(leaves) and not isinstance(leaves[0][1], Depthwise)
    convs, norms = iter(("conv_pw", "conv_dw", "conv_pwl") if inverted else ("conv_dw", "conv_pw")), iter("123")
    found = {}
    for name, leaf in leaves:
        if name.endswith((".fc1", ".fc2")):
            theirs = "se.conv_reduce" if name.endswith("1") else "se.conv_expand"
        else:
            theirs = f"bn{next(norms, '')}" if isinstance(leaf, BatchNorm) else next(convs, "conv")
        found[name] = f"{place}.{theirs}"
    return found


def scheme_of(state: Mapping[str, Any]) -> str | None:
    """Return whose names a state dict has, if they are not those of `models`."""
    markers = {
        "timm": "conv_stem.weight",
        "hf": "mobilenet_v1.conv_stem.convolution.weight",
        "marvis": "model.0.0.weight",
        "ssdlite": _SSD_LOGITS,
    }
    return next((scheme for scheme, name in markers.items() if name in state), None)
