"""The structure of the package: what may import what, how its documents are written, what is said of it."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import mbnp
from mbnp import detection, ops

PACKAGE = Path(mbnp.__file__).parent
PAGE = (PACKAGE / "README.md").read_text(encoding="utf-8")
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


@cache
def imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found & MODULES.keys() - {"mbnp", module}


def floors() -> list[list[str]]:
    """Return the rooms of each floor, from the ground up, as mbnp/README.md lists them."""
    (block,) = re.findall(r"```floors\n(.*?)```", PAGE, re.DOTALL)
    return [re.split(r"\s{2,}", line)[0].split() for line in block.strip().splitlines()]


def floor_of(module: str) -> int:
    path = MODULES[module].relative_to(PACKAGE).as_posix()
    return next(i for i, rooms in enumerate(floors()) for room in rooms if path.startswith(room))


def test_every_room_is_on_a_floor():
    rooms = [room for floor in floors() for room in floor]
    assert sorted(rooms) == sorted(
        {
            path.relative_to(PACKAGE).parts[0] + ("/" if path.parent != PACKAGE else "")
            for path in FILES
            if path.name not in ("__init__.py", "__main__.py") or path.parent != PACKAGE
        }
    )


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("mbnp", "mbnp.__main__")])
def test_no_import_points_upward(module):
    higher = [other for other in imports(module) if floor_of(other) > floor_of(module)]
    assert not higher, f"{module} imports from above: {higher}"


def test_there_is_no_circle():
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module not in done:
            for other in imports(module):
                visit(other, (*above, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def docstrings() -> Iterator[tuple[str, str]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 1)}", text


def test_no_docstring_is_a_fragment():
    fragment = re.compile(r"(Of|For|From|As|Into|Within|How many|Whether)\b")
    bad = [f"{where}: {text.splitlines()[0]}" for where, text in docstrings() if fragment.match(text)]
    assert not bad, "\n".join(bad)


def test_every_public_operation_is_typed():
    """mypy refuses untyped definitions elsewhere; here kernels and loops have no types, and the rest has."""
    internal = re.compile(r"_(loops|numpy|numba)$")
    for name in (
        m.name for folder in (ops, detection) for m in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}.")
    ):
        module = importlib.import_module(name)
        for function in (f for f in vars(module).values() if inspect.isfunction(f)):
            if function.__module__ == module.__name__ and not internal.search(function.__name__):
                if function.__name__.startswith("_"):
                    continue
                signature = inspect.signature(function)
                hints = [p.annotation for p in signature.parameters.values()]
                assert inspect.Signature.empty not in [*hints, signature.return_annotation], function


def test_the_reading_order_counts_right():
    """Each count of lines on the page is within a tenth of what is there."""
    rows = re.findall(r"^\| (.+?) \| ([\d,]+) \|", PAGE, re.MULTILINE)
    assert len(rows) > 8
    seen: set[Path] = set()
    for what, count in rows:
        paths: set[Path] = set()
        for name in re.findall(r"`([\w/.]+)`", what.split(", beginning")[0]):
            place = PACKAGE / name
            paths |= set(place.rglob("*.py")) - seen if place.is_dir() else {place}
        seen |= paths
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
        assert abs(lines - int(count.replace(",", ""))) <= 0.1 * lines, f"{what}: {lines} lines, not {count}"
    read = sum(int(count.replace(",", "")) for what, count in rows if not what.startswith("`fused/`"))
    for page in (PAGE, (PACKAGE.parent / "README.md").read_text(encoding="utf-8")):
        (said,) = re.findall(r"About ([\d,]+)\s+lines", page)
        assert abs(read - int(said.replace(",", ""))) <= 0.03 * read, f"{read} lines are to be read, not {said}"


def test_everything_the_page_names_is_there():
    root = PACKAGE.parent
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (PACKAGE / link).exists(), link
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE):
        assert any((place / name).exists() for place in (PACKAGE, root)) or "NAME" in name, name
