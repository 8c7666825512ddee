"""Names for the layers of a graph: each the one it would like to have, unless another layer's array could be meant."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from mbnp.network import Gate, Layer, Residual, Sequential
from mbnp.weights.onnx.value import Entry, Product, Sum

LONGEST = 80


class Names:
    """The names that the layers of one network have so far."""

    def __init__(self) -> None:
        self.leaves: set[str] = set()
        self.above: set[str] = set()  # what leaves' names begin with, up to a dot
        self.sums: set[str] = set()
        self.numbers: dict[str, Iterator[int]] = defaultdict(lambda: itertools.count(2))

    def layers(self, entries: list[Entry], prefix: str = "") -> dict[str, Layer]:
        """Return the layers by name, without `prefix`, each sum as a Residual and each product as a Gate."""
        named: dict[str, Layer] = {}
        for wanted, entry in entries:
            layer: Any
            if isinstance(entry, Product):
                name = self.container(wanted, entry, prefix, "gate")
                layer = Gate(self.layers(entry.body, f"{name}."))
            elif isinstance(entry, Sum):
                name = self.container(wanted, entry, prefix, "sum")
                body = self.layers(entry.body, f"{name}.")
                numbered = [(str(i), layer) for i, (_, layer) in enumerate(entry.shortcut)]
                shortcut = [*self.layers(numbered, f"{name}.shortcut.").values()]
                branch: Layer = shortcut[0] if len(shortcut) == 1 else Sequential(shortcut)
                layer = Residual(body, branch if shortcut else None)
            else:
                name, layer = self.free(_clean(wanted), prefix, self.above), entry
                self.leaves.add(name)
                self.above.update(_above(name))
            named[name.removeprefix(prefix)] = layer
        return named

    def container(self, wanted: str, entry: Sum | Product, prefix: str, kind: str) -> str:
        """Return the name of a sum or a gate: what its weighted layers' names begin with, as in `layer1.0.conv1`.

        That is its own name, `wanted`, where they begin with it.
        """
        weighted = [_clean(name) for name, x in entry.body if isinstance(x, Layer) and x.variables()]
        common = set.intersection(*({*_above(name)} for name in weighted)) if weighted else set()
        longest = max(common, key=len, default="")
        wanted = _clean(wanted) if _clean(wanted) in common else longest
        wanted = wanted if wanted.startswith(prefix) and wanted else kind
        name = self.free(wanted, prefix, self.sums)
        self.sums.add(name)
        self.above.update(_above(f"{name}.shortcut.0"))
        return name

    def candidates(self, wanted: str, prefix: str) -> Iterator[str]:
        """Yield names below `prefix` that are like the wanted one, the best first."""
        own = wanted.removeprefix(prefix)
        yield prefix + own
        plain = prefix + own.replace(".", "_")
        yield plain
        yield from (f"{plain}_{k}" for k in self.numbers[plain])

    def free(self, wanted: str, prefix: str, taken: set[str]) -> str:
        """Return the first candidate that is not `taken`, and not where the arrays of another layer are."""
        names = (name for name in self.candidates(wanted, prefix) if name not in taken)
        return next(name for name in names if self.leaves.isdisjoint([name, *_above(name)]))


def _above(name: str) -> list[str]:
    return [name[:i] for i, character in enumerate(name) if character == "."]


def _clean(name: str) -> str:
    parts = re.sub(r"[^A-Za-z0-9_.]+", "_", name)[:LONGEST].split(".")
    return ".".join(part for part in parts if part) or "layer"
