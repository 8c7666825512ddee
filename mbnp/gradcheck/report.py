"""What a comparison found: the errors of all arrays, and the worst entry of one in a line."""

from collections.abc import Mapping

from mbnp import tables
from mbnp.errors import MbnpError


class Errors(dict[str, float]):
    """The error of each array by its name; as text, a table, with a mark at what is above `tol`."""

    def __init__(self, errors: Mapping[str, float], tol: float) -> None:
        super().__init__(errors)
        self.tol = tol

    def wrong(self) -> list[str]:
        """Return the names of the arrays whose errors are above `tol`, or NaN."""
        return [name for name, error in self.items() if not error <= self.tol]

    def __repr__(self) -> str:
        """Return one table of what belongs to no layer, and one with a row for each layer."""
        split = {name: name.rpartition(".")[::2] for name in self}
        layers, arrays = (dict.fromkeys(parts[i] for parts in split.values() if parts[0]) for i in (0, 1))
        found = []
        if plain := [(name, self._cell(name)) for name in self if not split[name][0]]:
            found.append(tables.table(["", "error"], plain))
        if layers:
            rows = [(layer, *(self._cell(f"{layer}.{array}") for array in arrays)) for layer in layers]
            found.append(tables.table(["layer", *arrays], rows))
        return "\n\n".join(found)

    def _cell(self, name: str) -> str:
        return f"{self[name]:.1e}{' ' if self[name] <= self.tol else '!'}" if name in self else ""


def worst(
    what: str, at: tuple[int, ...], values: tuple[float, float], say: tuple[str, str], error: float, tol: float
) -> MbnpError:
    """Return the error for the entry `at` of `what`: its two values, and who says so."""
    where = f" at {at}" if at else ""
    return MbnpError(
        f"{what} is wrong{where}: {say[0]} {values[0]:.9g}, {say[1]} {values[1]:.9g} "
        f"(error {error:.1e} of the largest entry, allowed {tol:.0e})"
    )
