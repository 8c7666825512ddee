"""Files of solutions, as a reader may have written them."""

from mbnp import grading
from mbnp.grading import hints


def solved(lesson: int, *names: str) -> str:
    """Return a file with the solutions of a lesson, or of these exercises alone; the others are not begun."""
    parts = ["import math", "import numpy as np"]
    for exercise in grading.exercises(lesson):
        *_, solution = hints.steps(lesson, exercise.name)
        stub = f"def {exercise.name}(*arguments, **options):\n    raise NotImplementedError"
        code = "\n".join(line.removeprefix("    ") for line in solution.partition("\n\n")[2].splitlines())
        parts.append(code if exercise.name in names or not names else stub)
    return "\n\n\n".join(parts) + "\n"
