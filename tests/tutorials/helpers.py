"""The lessons for the tests: their files, their builder, the solutions in their text."""

import importlib.util
import re
import sys
from pathlib import Path

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"
LESSONS = sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))


def builder():
    """Import tutorials/build.py."""
    sys.path.insert(0, str(TUTORIALS))  # for the file beside it that it imports
    spec = importlib.util.spec_from_file_location("build", TUTORIALS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def solutions(lesson: Path) -> list[str]:
    """Return the code in each <details><summary>Solution</summary> of a lesson, in order."""
    text = re.sub(r"^# ?", "", builder().source_of(lesson), flags=re.MULTILINE)
    folded = re.findall(r"<details><summary>Solution</summary>\n(.*?)\n</details>", text, re.DOTALL)
    return ["\n\n".join(re.findall(r"```python\n(.*?)```", block, re.DOTALL)) for block in folded]
