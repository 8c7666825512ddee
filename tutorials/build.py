"""Execute the lessons into the pages that people read: tutorials/rendered/NN_name.md and its figures.

    python tutorials/build.py            those whose page was not made from their current source
    python tutorials/build.py 03 10      these
    python tutorials/build.py --all      every one, in less than ten minutes
    python tutorials/build.py --notebooks   every one, or those named, into tutorials/notebooks/NN_name.ipynb instead
    python tutorials/build.py --outdated    what is not translated, or no longer; nothing is built
    python tutorials/build.py --translated 03   after reading: its translation is that of the English as it is now

It needs `pip install -e ".[tutorials]"` and no network. The first line of a page says what it was made from: the
lesson, lesson.py and the code of mbnp that the page shows, with their common SHA-256. A page is stale when that is
no longer true; what a page measures (seconds, accuracies) may differ from one build to the next. The code of a cell
that is tagged `# %% tags=["hide-input"]`, a figure's mostly, is folded away. Hints and solutions are kept out of
sight of those who read a lesson's source: the line `# <!-- mbnp/grading/lessons/hints/03.md: conv_dx -->` stands for
that file's part on conv_dx. What files a lesson writes into its working folder come beside its figures.

A notebook has its results in it, brings lesson.py along, and installs mbnp in its first cell where it is missing. Its
links lead into the repository that pyproject.toml names in [project.urls], if it names one; then the map of the
lessons, README.md, links each of them to Colab.

Where zh/ has a lesson, its Chinese page is made of the English one, without running it again (see chinese.py).
"""

import argparse
import hashlib
import importlib.util
import inspect
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chinese

import mbnp

HERE = Path(__file__).resolve().parent
RENDERED = HERE / "rendered"
HINTS = re.compile(r"^# <!-- mbnp/grading/lessons/hints/(\d\d)\.md: (\w+) -->$", re.MULTILINE)

# The first cell of a notebook. Where no repository is named, mbnp is installed from the clone around the notebook.
SETUP = """\
#@title Run this first: it installs mbnp where it is missing, and loads lesson.py, whose text it holds.
import importlib.util
import sys
import types
from pathlib import Path

if not all(importlib.util.find_spec(name) for name in ("mbnp", "scipy", "threadpoolctl")):
    around = (folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "mbnp" / "grading").is_dir())
    found = next(around, None) or REPOSITORY
    if not found:
        raise ModuleNotFoundError("mbnp is not installed, and this notebook is not in a clone of it")
    %pip install --quiet "{found}" scipy threadpoolctl

sys.modules["lesson"] = types.ModuleType("lesson")
exec(r'''
LESSON''', vars(sys.modules["lesson"]))
"""

TEMPLATE = """\
{% extends 'markdown/index.md.j2' %}
{% macro fenced(text, language) %}{% if text.strip() %}
```{{ language }}
{{ text | strip_ansi | trim('\\n') }}
```
{% endif %}{% endmacro %}
{% block input %}{% if 'hide-input' in cell.metadata.tags %}
<details><summary>The code of this figure</summary>

{{ fenced(cell.source, 'python') }}
</details>
{% else %}{{ fenced(cell.source, 'python') }}{% endif %}{% endblock %}
{% block stream %}{{ fenced(output.text, 'text') }}{% endblock %}
{% block data_text scoped %}{{ fenced(output.data['text/plain'], 'text') }}{% endblock %}
{% block data_markdown scoped %}
{{ output.data['text/markdown'] }}
{% endblock %}
{% block data_png %}
![{{ output.metadata['image/png']['alt'] }}]({{ output.metadata.filenames['image/png'] }})
{% endblock %}
{% block markdowncell scoped %}
{{ cell.source }}
{% endblock %}
"""


class LessonError(Exception):
    """A lesson that failed, as one line: which lesson, which cell, what happened."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="build.py", description="Execute lessons into tutorials/rendered.")
    parser.add_argument("lessons", nargs="*", metavar="NN", help="such as 03 (default: those that changed)")
    parser.add_argument("--all", action="store_true", help="every lesson")
    parser.add_argument("--notebooks", action="store_true", help="write notebooks instead of pages, of every lesson")
    parser.add_argument("--outdated", action="store_true", help="list what is to be translated, and build nothing")
    parser.add_argument("--translated", action="store_true", help="these lessons' translations fit their English")
    options = parser.parse_args()
    try:
        if options.outdated or options.translated:
            return _translations(options.lessons, options.translated)
        _check_tools()
        chosen = _chosen(options.lessons, options.all or options.notebooks)
    except (LessonError, chinese.TranslationError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 2
    if not chosen:
        print("every page is made from its current source")
    start = time.perf_counter()
    failed = {lesson for lesson in chosen if not _done(build_notebook if options.notebooks else build, lesson)}
    if len(chosen) > 1:
        print(f"{'total':32} {time.perf_counter() - start:6.1f} s")
    if options.notebooks:
        _link_map()
    else:
        rest = (lesson for lesson in (chosen if options.lessons else lessons()) if lesson not in failed)
        failed |= {lesson for lesson in rest if not _done(translate, lesson)}
    return 1 if failed else 0


def _done(make: Callable[[Path], Path | None], lesson: Path) -> bool:
    """Make something of a lesson, and say what it took, or what is wrong."""
    start = time.perf_counter()
    try:
        written = make(lesson)
    except LessonError as error:
        print(f"build.py: {error}; what was built before is untouched", file=sys.stderr)
        return False
    if written:
        print(f"{lesson.stem:32} {time.perf_counter() - start:6.1f} s  {_size(written)}", flush=True)
    return True


def lessons() -> list[Path]:
    """Return the sources, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def page_of(lesson: Path) -> Path:
    """Return the path of a lesson's page."""
    return RENDERED / f"{lesson.stem}.md"


def source_of(lesson: Path) -> str:
    """Return a lesson's source with the hints and solutions where they belong, commented as the text around them."""
    from mbnp.grading import hints

    def block(place: re.Match[str]) -> str:
        text = hints.folded(int(place[1])).get(place[2])
        if text is None:
            raise LessonError(f"{lesson.name}: hints/{place[1]}.md has nothing on {place[2]}")
        return "\n".join(f"# {line}".rstrip() for line in text.splitlines())

    return HINTS.sub(block, lesson.read_text(encoding="utf-8"))


def chinese_of(lesson: Path) -> Path | None:
    """Return the translation of a lesson, if there is one."""
    file = HERE / "zh" / f"{lesson.stem}.md"
    return file if file.is_file() else None


def is_fresh(lesson: Path) -> bool:
    """Return whether the page was made from the current lesson, lesson.py and mbnp code, with the current links."""
    try:
        first, *rest = page_of(lesson).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False
    shown = re.findall(r"[\w.]+:[\w.]+", first)
    return first == _stamp(lesson, shown) and _links(lesson) in rest


def build(lesson: Path) -> Path:
    """Execute a lesson and write its page, its figures, and beside them what files it made in its working folder.

    LessonError, and nothing written, if a cell fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        notebook = _execute(lesson, Path(folder))
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = {name for output in outputs for name in output.get("metadata", {}).get("mbnp", {}).get("shown", ())}
    body, figures = _convert(notebook, f"{lesson.stem}_files")
    parts = [_stamp(lesson, sorted(shown)), _links(lesson), body, "---", _links(lesson)]
    return _write("\n\n".join(parts) + "\n", figures | files, page_of(lesson))


def translate(lesson: Path) -> None:
    """Write the Chinese page of a lesson, if it is translated, from the English page. LessonError if it cannot be."""
    if chinese_of(lesson):
        page = RENDERED / "zh" / f"{lesson.stem}.md"
        os.replace(_beside(page, chinese_page(lesson)), page)


def chinese_page(lesson: Path) -> str:
    """Return the Chinese page of a lesson whose translation and English page are up to date."""
    source, translation = source_of(lesson), _translation(lesson)
    if not is_fresh(lesson):
        raise LessonError(f"{lesson.name}: its English page is stale, so that there is no Chinese one")
    if lines := chinese.outdated(source, translation):
        raise LessonError(f"zh/{lesson.stem}.md: {lines[0]} (build.py --outdated lists all {len(lines)})")
    english = [_tidy(_linked(cell, "{}.md", "../{}")) for cell in chinese.prose(source)]
    texts = [_linked(text, "../{}.md", "../../{}") for _, text in translation.cells]
    body = page_of(lesson).read_text(encoding="utf-8").partition(f"{_links(lesson)}\n")[2].rpartition("\n---\n")[0]
    try:
        body = chinese.page(body.strip(), list(zip(english, texts, strict=True)), translation, "../")
    except chinese.TranslationError as error:
        raise LessonError(f"zh/{lesson.stem}.md: {str(error).splitlines()[0]}") from None
    made_from = f"<!-- made by tutorials/build.py from rendered/{lesson.stem}.md and zh/{lesson.stem}.md -->"
    return "\n\n".join([made_from, _chinese_links(lesson), body, "---", _chinese_links(lesson)]) + "\n"


def _translation(lesson: Path) -> chinese.Translation:
    from mbnp.grading import hints

    files = (chinese_of(lesson), HERE / "zh" / "lesson.md")
    found = chinese.read(*(file for file in files if file and file.is_file()))
    found.cells = [(hash_, chinese.with_hints(text, hints.chinese)) for hash_, text in found.cells]
    return found


def _translations(names: list[str], stamp: bool) -> int:
    """List what is outdated in translations, if `stamp` after writing their hashes anew."""
    if stamp and not names:
        raise LessonError("--translated needs the lessons whose translation you have read beside their English")
    lines = []
    for lesson in _chosen(names, True):
        if file := chinese_of(lesson):
            source = source_of(lesson)
            if stamp:
                chinese.stamp(source, file)
            lines += [f"zh/{file.name}: {line}" for line in chinese.outdated(source, _translation(lesson))]
    print("\n".join(lines) or "every translation is of the current English")
    return 1 if lines else 0


def build_notebook(lesson: Path) -> Path:
    """Execute a lesson into a notebook with its results, in an empty folder: it has to run wherever it is opened."""
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        notebook = _execute(lesson, Path(folder), _setup())
    online = _colab("{}"), f"{repository()}/blob/main/tutorials/{{}}"
    _relink(notebook, *(online if repository() else ("{}.ipynb", "../{}")))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "hide-input" in cell.metadata.get("tags", ()):
            cell.metadata["jupyter"] = {"source_hidden": True}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    path = HERE / "notebooks" / f"{lesson.stem}.ipynb"
    os.replace(_beside(path, nbformat.writes(notebook) + "\n"), path)
    return path


def repository() -> str:
    """Return the address that pyproject.toml has as Repository in [project.urls], or nothing."""
    file = HERE.parent / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"] if file.is_file() else {}
    return project.get("urls", {}).get("Repository", "").rstrip("/").removesuffix(".git")


def linked_to_colab(text: str) -> str:
    """Return the map of the lessons with a link to each notebook on Colab, or without if there is no repository."""
    row = re.compile(r"^(\| \[[^]]+\]\(rendered/(\w+)\.md\))( \(\[Colab\]\([^)]+\)\))?", re.MULTILINE)
    return row.sub(lambda found: found[1] + (f" ([Colab]({_colab(found[2])}))" if repository() else ""), text)


def _link_map() -> None:
    file = HERE / "README.md"
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        file.write_text(linked_to_colab(text), encoding="utf-8", newline="\n")


def _colab(stem: str) -> str:
    name = repository().partition("github.com/")[2]
    return f"https://colab.research.google.com/github/{name}/blob/main/tutorials/notebooks/{stem}.ipynb"


def _setup() -> str:
    text = (HERE / "lesson.py").read_text(encoding="utf-8")
    found = f"git+{repository()}" if repository() else ""
    return SETUP.replace("REPOSITORY", repr(found)).replace("LESSON", text).strip()


def _check_tools() -> None:
    for name in ("jupytext", "nbclient", "nbconvert", "ipykernel"):
        if importlib.util.find_spec(name) is None:
            raise LessonError(f'{name} is not installed: pip install -e ".[tutorials]"')


def _chosen(names: list[str], everything: bool) -> list[Path]:
    if not names:
        return [lesson for lesson in lessons() if everything or not is_fresh(lesson)]
    chosen = []
    for name in names:
        stem = Path(name).stem
        found = [lesson for lesson in lessons() if stem in (lesson.stem, lesson.stem[:2])]
        if not found:
            raise LessonError(f"no lesson {name!r}: known are {', '.join(path.stem for path in lessons())}")
        chosen += found
    return chosen


def _environment(*folders: Path) -> dict[str, str]:
    """Return the environment of a fresh clone: full size, the data that mbnp draws itself, the default backend.

    A page is the same where there are photographs and weights for lesson 14 (MBNP_FACES), and where there are none.

    The mbnp in it is the one that is imported here, whose code is stamped, from whatever folder the lesson runs; it
    finds modules in `folders`, too.
    """
    ours = ("MBNP_LESSONS", "MBNP_DATA", "MBNP_BACKEND", "MBNP_FACES", "MPLBACKEND")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    paths = [
        str(Path(mbnp.__file__).parents[1]),
        *map(str, folders),
        *map(os.path.abspath, filter(None, env.get("PYTHONPATH", "").split(os.pathsep))),
    ]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    return {**env, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # or the kernel warns about frozen modules


def _execute(lesson: Path, folder: Path, setup: str = "") -> Any:
    """Return the lesson as a notebook with its results; `setup` is a cell before all others, instead of lesson.py."""
    import jupytext
    import nbformat
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = jupytext.reads(source_of(lesson), fmt="py:percent")
    if setup:
        notebook.cells.insert(
            0, nbformat.v4.new_code_cell(setup, metadata={"tags": ["hide-input"], "cellView": "form"})
        )
    # No folder of kernels: a "python3" that the user once installed may be another Python than this one.
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=600,
        extra_arguments=["--log-level=ERROR"],  # the kernel talks to this process alone
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute(env=_environment(*([] if setup else [HERE])))
    except CellExecutionError as error:
        what = f"{error.ename}: {error.evalue}".strip(": ").splitlines()[0]
        at = _failing_line(lesson, notebook, error.traceback)
    except CellTimeoutError:
        what, at = "took longer than 600 seconds", _failing_line(lesson, notebook)
    except DeadKernelError:
        what, at = "Python ended in the middle of it", _failing_line(lesson, notebook)
    else:
        _pass_on_warnings(lesson, notebook)
        return notebook
    raise LessonError(f"{lesson.name}, {at}: {what}")


def _failing_line(lesson: Path, notebook: Any, traceback: str = "") -> str:
    """Name the last cell that was begun, and the line in it that failed, or the cell's first line."""
    begun = [k for k, cell in enumerate(notebook.cells) if cell.get("execution_count") or cell.get("outputs")]
    number = max(begun, default=0)
    code = notebook.cells[number].source
    before = lesson.read_text(encoding="utf-8").partition(code)[0].count("\n")
    arrow = re.search(r"^-+> (\d+)", re.sub(r"\x1b\[[\d;]*m", "", traceback), re.MULTILINE)
    line = int(arrow[1]) if arrow else 1
    return f"cell {number + 1}, line {before + line} ({code.splitlines()[line - 1].strip()})"


def _pass_on_warnings(lesson: Path, notebook: Any) -> None:
    """Print what a lesson wrote to stderr, and take it off the page."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                print(f"{lesson.name}: {output.text.rstrip()}", file=sys.stderr)
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def _convert(notebook: Any, folder: str) -> tuple[str, dict[str, bytes]]:
    """Return the page's body, and its figures by their path beside the page."""
    from jinja2 import DictLoader
    from nbconvert import MarkdownExporter
    from traitlets.config import Config

    naming = Config({"ExtractOutputPreprocessor": {"output_filename_template": "{unique_key}/{cell_index}{extension}"}})
    exporter = MarkdownExporter(config=naming, extra_loaders=[DictLoader({"lesson": TEMPLATE})], template_file="lesson")
    _relink(notebook, "{}.md", "../{}")
    body, resources = exporter.from_notebook_node(notebook, {"unique_key": folder})
    return _tidy(body), resources["outputs"]


def _relink(notebook: Any, to_lesson: str, to_file: str) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _linked(cell.source, to_lesson, to_file)


def _linked(text: str, to_lesson: str, to_file: str) -> str:
    """Write relative links as `to_lesson` with {} for the name of a lesson, and `to_file` for other files.

    A file of `rendered` need not be there yet: a lesson may link what it makes.
    """

    def link(target: re.Match[str]) -> str:
        file = HERE / target[0]
        if not (file.exists() or target[0].startswith("rendered/")):
            return target[0]
        return to_lesson.format(file.stem) if file in lessons() else to_file.format(target[0])

    return re.sub(r"(?<=\]\()[\w./-]+(?=\))", link, text)


def _tidy(body: str) -> str:
    """Leave one blank line between blocks; code keeps its own."""
    blocks = re.split(r"(^```.*?^```$)", body, flags=re.MULTILINE | re.DOTALL)
    for k in range(0, len(blocks), 2):
        blocks[k] = re.sub(r"[ \t]*\n(?:[ \t]*\n)+", "\n\n", blocks[k])
    return "".join(blocks).strip()


def _write(page: str, figures: dict[str, bytes], path: Path) -> Path:
    """Write everything beside the old page, then replace the old one: a failure before that leaves it untouched."""
    folder = path.with_name(f"{path.stem}_files")
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, data in figures.items():
        (partial / Path(name).name).write_bytes(data)
    text = _beside(path, page)
    shutil.rmtree(folder, ignore_errors=True)
    if figures:
        os.replace(partial, folder)
    else:
        partial.rmdir()
    os.replace(text, path)
    return path


def _beside(path: Path, text: str) -> Path:
    """Write a text beside the file that it is to replace, and return where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8", newline="\n")
    return partial


def _stamp(lesson: Path, shown: list[str]) -> str:
    """Return the first line of a page."""
    digest = hashlib.sha256()
    for text in (source_of(lesson), (HERE / "lesson.py").read_text(encoding="utf-8")):
        digest.update(text.encode())  # as text: line ends differ between systems
    for name in shown:
        digest.update(_code(name).encode())
    made_from = ", ".join((lesson.name, "lesson.py", *shown))
    return f"<!-- made by tutorials/build.py from {made_from}; sha256 {digest.hexdigest()} -->"


def _code(name: str) -> str:
    """Return the source of module:qualname as it is now; nothing if there is no such thing any more."""
    module, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
        return inspect.getsource(getattr(found, "py_func", found))
    except (ImportError, AttributeError):
        return ""


def _links(lesson: Path) -> str:
    """Return the line at the top and the bottom of a page: its neighbours, all lessons, its source and exercises."""
    before, after = _neighbours(lesson)
    links = [f"[← {_title(path)}]({path.stem}.md)" for path in before]
    links += ["[All lessons](../README.md)", f"[Source](../{lesson.name})"]
    links += [f"[Exercises](../exercises/{lesson.stem[:2]}.py)"]
    links += [f"[中文](zh/{lesson.stem}.md)"] if chinese_of(lesson) else []
    links += [f"[{_title(path)} →]({path.stem}.md)" for path in after]
    return " · ".join(links)


def _chinese_links(lesson: Path) -> str:
    """Return the line at the top and the bottom of a Chinese page."""
    before, after = _neighbours(lesson)
    links = [f"[← {_chinese_title(path)}]({_chinese_link(path)})" for path in before]
    links += ["[全部课程](../../README.zh-CN.md)", f"[源代码](../../{lesson.name})"]
    links += [f"[练习](../../exercises/{lesson.stem[:2]}.py)", f"[English](../{lesson.stem}.md)"]
    links += [f"[{_chinese_title(path)} →]({_chinese_link(path)})" for path in after]
    return " · ".join(links)


def _neighbours(lesson: Path) -> tuple[list[Path], list[Path]]:
    """Return the lesson before, if there is one, and the one after."""
    order = lessons()
    at = order.index(lesson)
    return order[:at][-1:], order[at + 1 :][:1]


def _chinese_link(lesson: Path) -> str:
    return f"{lesson.stem}.md" if chinese_of(lesson) else f"../{lesson.stem}.md"


def _chinese_title(lesson: Path) -> str:
    file = chinese_of(lesson)
    found = re.search(r"^# (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if file else None
    return found[1] if found else f"{_title(lesson)}（英文）"


def _title(lesson: Path) -> str:
    number, _, words = lesson.stem.partition("_")
    return f"{int(number)}. {words.replace('_', ' ').capitalize().replace('Flops', 'FLOPs')}"


def _size(written: Path) -> str:
    if written.suffix == ".ipynb":
        return f"{written.stat().st_size / 1e3:5.0f} kB"
    figures = written.with_name(f"{written.stem}_files").glob("*")
    return f"{sum(file.stat().st_size for file in figures) / 1e3:5.0f} kB of figures"


if __name__ == "__main__":
    sys.exit(main())
