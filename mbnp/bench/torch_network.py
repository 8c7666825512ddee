"""The comparison network: the same architecture and weights in PyTorch, made of what each layer says of itself."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mbnp.network import Gate, Layer, Pyramid, Residual, Sequential
from mbnp.parameter import Parameter
from mbnp.weights import layouts


def torch_network(layer: Layer) -> nn.Module:
    """Return a PyTorch module that computes what `layer` does, with a copy of its arrays, under the same names.

    In PyTorch a module's own name has no dots: there they are underscores.
    """
    if not isinstance(layer, Sequential):
        return _Leaf(layer)
    kinds = {Residual: _Residual, Gate: _Gate, Pyramid: _Pyramid}
    module = next((made for kind, made in kinds.items() if isinstance(layer, kind)), nn.Sequential)()
    for name, child in layer.layers.items():
        module.add_module(name.replace(".", "_"), torch_network(child))
    if isinstance(layer, Residual):
        module.shortcut = nn.Identity() if layer.shortcut is None else torch_network(layer.shortcut)
    if isinstance(layer, Pyramid):
        module.boxes, module.scores = (torch_network(Sequential(heads)) for heads in (layer.boxes, layer.scores))
    return module


class _Leaf(nn.Module):
    """One layer that is no container; `kind` is our class of it."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.kind, self.compute, self.names = type(layer), layer.torch(F), list(layer.variables())
        for name, variable in layer.variables().items():
            array, holder = variable.value, nn.Parameter if isinstance(variable, Parameter) else nn.Buffer
            if name == "weight":
                array = layouts.convert(array, self.kind, "mbnp", "torch")
            setattr(self, name, holder(torch.from_numpy(array.copy())))

    def forward(self, x: Any) -> Any:
        return self.compute(x, self.training, **{name: getattr(self, name) for name in self.names})


class _Residual(nn.Sequential):
    shortcut: nn.Module

    def forward(self, x: Any) -> Any:
        y = x
        for name, module in self.named_children():
            y = y if name == "shortcut" else module(y)
        return y + self.shortcut(x)


class _Gate(nn.Sequential):
    def forward(self, x: Any) -> Any:
        return x * super().forward(x).flatten(1)[:, :, None, None]


class _Pyramid(nn.Sequential):
    boxes: nn.Sequential
    scores: nn.Sequential

    def forward(self, x: Any) -> Any:
        rows = []
        heads = zip(self.boxes, self.scores, strict=True)
        for stage in [module for name, module in self.named_children() if name not in ("boxes", "scores")]:
            x = stage(x)
            boxes, scores = (head(x).permute(0, 2, 3, 1) for head in next(heads))
            count = boxes[0].numel() // 4
            rows.append(torch.cat([boxes.reshape(-1, count, 4), scores.reshape(len(x), count, -1)], dim=2))
        return torch.cat(rows, dim=1)
