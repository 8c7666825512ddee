"""MobileNetV2, V3, Xception and SSDLite in PyTorch, written from their papers; names of modules as in torchvision.

Nothing of mbnp is used here, channels included: the tables are copied once more, and are to be compared with the paper.
"""

import torch
from torch import nn


def to_multiple(value: float, by: int = 8) -> int:
    near = max(by, int(value + by / 2) // by * by)
    return near + by if near < 0.9 * value else near


def unit(
    c_in: int, c_out: int, kernel: int, stride: int, groups: int, activation: nn.Module | None, **bn
) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out, **bn), *([activation] if activation else []))


class Inverted(nn.Module):
    """What a block adds to its input, where it may; `name` is what torchvision calls the layers inside."""

    def __init__(self, name: str, layers: list[nn.Module], adds: bool) -> None:
        super().__init__()
        self.name, self.adds = name, adds
        setattr(self, name, nn.Sequential(*layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = getattr(self, self.name)(x)
        return x + y if self.adds else y


class Classified(nn.Module):
    def __init__(self, features: list[nn.Module], classifier: list[nn.Module]) -> None:
        super().__init__()
        self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v2(width: float, classes: int) -> nn.Module:
    """Sandler et al., table 2."""
    table = "1 16 1 1, 6 24 2 2, 6 32 3 2, 6 64 4 2, 6 96 3 1, 6 160 3 2, 6 320 1 1"
    c = to_multiple(32 * width)
    features: list[nn.Module] = [unit(3, c, 3, 2, 1, nn.ReLU6())]
    for row in table.split(", "):
        t, c_out, n, s = map(int, row.split())
        for i in range(n):
            out, wide, stride = to_multiple(c_out * width), c * t, s if i == 0 else 1
            layers = [unit(c, wide, 1, 1, 1, nn.ReLU6())] if t != 1 else []
            layers += [unit(wide, wide, 3, stride, wide, nn.ReLU6())]
            layers += [nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out)]
            features.append(Inverted("conv", layers, stride == 1 and c == out))
            c = out
    head = to_multiple(1280 * max(1.0, width))
    features.append(unit(c, head, 1, 1, 1, nn.ReLU6()))
    return Classified(features, [nn.Dropout(0.2), nn.Linear(head, classes)])


class SqueezeExcite(nn.Module):
    def __init__(self, c: int, few: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(c, few, 1), nn.Conv2d(few, c, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * (torch.clamp(z + 3, 0, 6) / 6)


V3 = {  # Howard et al., tables 1 and 2: input, kernel, widened, out, SE, activation, stride; the last layers
    "large": (
        "16 3 16 16 - RE 1, 16 3 64 24 - RE 2, 24 3 72 24 - RE 1, 24 5 72 40 SE RE 2, 40 5 120 40 SE RE 1, "
        "40 5 120 40 SE RE 1, 40 3 240 80 - HS 2, 80 3 200 80 - HS 1, 80 3 184 80 - HS 1, 80 3 184 80 - HS 1, "
        "80 3 480 112 SE HS 1, 112 3 672 112 SE HS 1, 112 5 672 160 SE HS 2, 160 5 960 160 SE HS 1, "
        "160 5 960 160 SE HS 1",
        960,
        1280,
    ),
    "small": (
        "16 3 16 16 SE RE 2, 16 3 72 24 - RE 2, 24 3 88 24 - RE 1, 24 5 96 40 SE HS 2, 40 5 240 40 SE HS 1, "
        "40 5 240 40 SE HS 1, 40 5 120 48 SE HS 1, 48 5 144 48 SE HS 1, 48 5 288 96 SE HS 2, 96 5 576 96 SE HS 1, "
        "96 5 576 96 SE HS 1",
        576,
        1024,
    ),
}


V3["reduced"] = (  # the large one's tail halved
    V3["large"][0].rsplit(", ", 3)[0] + ", 112 5 672 80 SE HS 2, 80 5 480 80 SE HS 1, 80 5 480 80 SE HS 1",
    480,
    640,
)


def mobilenet_v3(
    size: str, width: float, classes: int, columns: bool = False, eps: float = 1e-3, momentum: float = 0.01
) -> nn.Module:
    """Width as Keras has it: the stem stays, widened channels follow from the scaled input.

    columns: width as torchvision has it, which scales every column of the table.
    """
    table, last_conv, last = V3[size]
    bn = {"eps": eps, "momentum": momentum}
    c = to_multiple(16 * width) if columns else 16
    features: list[nn.Module] = [unit(3, c, 3, 2, 1, nn.Hardswish(), **bn)]
    for row in table.split(", "):
        c_in, kernel, wide, c_out, se, activation, stride = (int(v) if v.isdigit() else v for v in row.split())
        wide, out = to_multiple(wide * width if columns else c * (wide / c_in)), to_multiple(c_out * width)
        activate = nn.ReLU if activation == "RE" else nn.Hardswish
        layers = [unit(c, wide, 1, 1, 1, activate(), **bn)] if wide != c else []
        layers += [unit(wide, wide, kernel, stride, wide, activate(), **bn)]
        layers += [SqueezeExcite(wide, to_multiple(wide / 4))] if se == "SE" else []
        layers += [unit(wide, out, 1, 1, 1, None, **bn)]
        features.append(Inverted("block", layers, stride == 1 and c == out))
        c = out
    wide, last = to_multiple(6 * c), to_multiple(last * (width if columns else max(1.0, width)))
    assert width != 1 or wide == last_conv
    features.append(unit(c, wide, 1, 1, 1, nn.Hardswish(), **bn))
    return Classified(features, [nn.Linear(wide, last), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(last, classes)])


class SSDLite(nn.Module):
    """torchvision's ssdlite320_mobilenet_v3_large up to its outputs: (N, anchors, 4), (N, anchors, classes + 1).

    From its models/detection/ssdlite.py and ssd.py.
    """

    def __init__(self, size: str, classes: int) -> None:
        super().__init__()
        bn = {"eps": 0.001, "momentum": 0.03}
        features = mobilenet_v3(size, 1.0, 2, **bn).features
        c4 = 13
        c_last = features[-1][0].out_channels
        self.backbone = nn.Module()
        self.backbone.features = nn.Sequential(
            nn.Sequential(*features[:c4], features[c4].block[0]),
            nn.Sequential(features[c4].block[1:], *features[c4 + 1 :]),
        )
        outs = [512, 256, 256, 128]
        self.backbone.extra = nn.ModuleList(
            nn.Sequential(
                unit(c_in, out // 2, 1, 1, 1, nn.ReLU6(), **bn),
                unit(out // 2, out // 2, 3, 2, out // 2, nn.ReLU6(), **bn),
                unit(out // 2, out, 1, 1, 1, nn.ReLU6(), **bn),
            )
            for c_in, out in zip([c_last, *outs], outs, strict=False)
        )
        self.head = nn.Module()
        self.columns = {"regression_head": 4, "classification_head": classes + 1}
        for name, columns in self.columns.items():
            head = nn.Module()
            head.module_list = nn.ModuleList(
                nn.Sequential(unit(c, c, 3, 1, c, nn.ReLU6(), **bn), nn.Conv2d(c, 6 * columns, 1))
                for c in [672, c_last, *outs]
            )
            setattr(self.head, name, head)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for block in [*self.backbone.features, *self.backbone.extra]:
            x = block(x)
            maps.append(x)
        found = []
        for name, columns in self.columns.items():
            rows = []
            for x, block in zip(maps, getattr(self.head, name).module_list, strict=True):
                y = block(x)
                n, _, h, w = y.shape
                rows.append(y.view(n, -1, columns, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, columns))
            found.append(torch.cat(rows, dim=1))
        return found


class Separable(nn.Sequential):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in, bias=False)
        self.pointwise = nn.Conv2d(c_in, c_out, 1, bias=False)


class Xception(nn.Module):
    """Chollet, figure 5; names of layers as Keras has them, with a dot after the block's."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.block1 = self.convs("conv", nn.Conv2d(3, 32, 3, 2, bias=False), nn.Conv2d(32, 64, 3, bias=False))
        c = 64
        self.blocks = []
        for number, outs in enumerate([(128,) * 2, (256,) * 2, (728,) * 2, *[(728,) * 3] * 8, (728, 1024)], start=2):
            self.blocks.append((number, len(outs), len(outs) == 2))
            body = {}
            for i, out in enumerate(outs, start=1):
                body |= {f"sepconv{i}": Separable(c if i == 1 else outs[i - 2], out)}
                body |= {f"sepconv{i}_bn": nn.BatchNorm2d(out, eps=1e-3)}
            module = nn.ModuleDict(body)
            if len(outs) == 2:
                module["shortcut"] = nn.Sequential(
                    nn.Conv2d(c, outs[1], 1, 2, bias=False), nn.BatchNorm2d(outs[1], eps=1e-3)
                )
            self.add_module(f"block{number}", module)
            c = outs[-1]
        self.block14 = self.convs("sepconv", Separable(1024, 1536), Separable(1536, 2048))
        self.predictions = nn.Linear(2048, classes)

    def convs(self, name: str, *convs: nn.Module) -> nn.ModuleDict:
        modules = {}
        for i, conv in enumerate(convs, start=1):
            channels = (conv.pointwise if isinstance(conv, Separable) else conv).out_channels
            modules |= {f"{name}{i}": conv, f"{name}{i}_bn": nn.BatchNorm2d(channels, eps=1e-3)}
        return nn.ModuleDict(modules)

    def run(self, x: torch.Tensor, module: nn.ModuleDict) -> torch.Tensor:
        for name in [name for name in module if not name.endswith("_bn")]:
            x = torch.relu(module[f"{name}_bn"](module[name](x)))
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.run(x, self.block1)
        for number, count, pooled in self.blocks:
            module, y = getattr(self, f"block{number}"), x
            for i in range(1, count + 1):
                name = f"sepconv{i}"
                y = y if number == 2 and i == 1 else torch.relu(y)
                y = module[f"{name}_bn"](module[name](y))
            if pooled:  # the padding of TensorFlow: where it is odd, one more below and to the right
                sides = [max(0, (-(-n // 2) - 1) * 2 + 3 - n) for n in y.shape[2:]]
                padding = (sides[1] // 2, sides[1] - sides[1] // 2, sides[0] // 2, sides[0] - sides[0] // 2)
                y = nn.functional.max_pool2d(nn.functional.pad(y, padding, value=-torch.inf), 3, 2)
            x = y + (module["shortcut"](x) if pooled else x)
        return self.predictions(self.run(x, self.block14).mean((2, 3)))


class CifarBlock(nn.Module):
    """The inverted residual of kuangliu/pytorch-cifar."""

    def __init__(self, c_in: int, t: int, c_out: int, stride: int) -> None:
        super().__init__()
        wide = c_in * t
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(c_in, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3, self.bn3 = nn.Conv2d(wide, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if stride == 1 and c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        return y + self.shortcut(x) if self.stride == 1 else y


class MobileNetV2Cifar(nn.Module):
    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        table = "1 16 1 1, 6 24 2 1, 6 32 3 2, 6 64 4 2, 6 96 3 1, 6 160 3 2, 6 320 1 1"
        c = to_multiple(32 * width)
        self.conv1, self.bn1, layers = nn.Conv2d(3, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c), []
        for row in table.split(", "):
            t, c_out, n, s = map(int, row.split())
            for i in range(n):
                layers.append(CifarBlock(c, t, to_multiple(c_out * width), s if i == 0 else 1))
                c = to_multiple(c_out * width)
        self.layers, head = nn.Sequential(*layers), to_multiple(1280 * max(1.0, width))
        self.conv2, self.bn2 = nn.Conv2d(c, head, 1, bias=False), nn.BatchNorm2d(head)
        self.linear = nn.Linear(head, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(torch.relu(self.bn1(self.conv1(x))))
        return self.linear(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))
