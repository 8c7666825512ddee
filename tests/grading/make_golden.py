"""Make mbnp/grading/lessons/golden/NN.npz: what PyTorch computes for the exercises' cases.

    python tests/grading/make_golden.py

golden_NN.py beside this file has `torch_golden(name, case)` for the exercises of lesson NN: an array, or a tuple of
arrays in the order of the exercise's outputs, or None where PyTorch has no such operation.
"""

import importlib.util
from pathlib import Path

import numpy as np

from mbnp import grading

HERE = Path(__file__).resolve().parent
GOLDEN = Path(grading.__file__).parent / "lessons" / "golden"


def make(lesson: int) -> dict[str, np.ndarray]:
    """Return PyTorch's results for every case of every exercise, by `grading.golden_key`."""
    file = HERE / f"golden_{lesson:02}.py"
    if not file.exists():
        return {}
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arrays = {}
    for exercise in grading.exercises(lesson):
        for number, case in enumerate(exercise.make_cases()):
            result = module.torch_golden(exercise.name, case)
            if result is None:
                continue
            outputs = result if isinstance(result, tuple) else (result,)
            for k, output in enumerate(outputs):
                name = exercise.output_name(k) if isinstance(result, tuple) else ""
                arrays[grading.golden_key(exercise.name, number, name)] = np.asarray(output)
    return arrays


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Return whether keys and types are the same, and numbers but for the rounding of another PyTorch version."""
    return a.keys() == b.keys() and all(_near(a[key], b[key]) for key in a)


def _near(a: np.ndarray, b: np.ndarray) -> bool:
    tolerance = 1e-12 if a.dtype == np.float64 else 1e-6
    same_kind = a.shape == b.shape and a.dtype == b.dtype
    return same_kind and np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for lesson in grading.lessons():
        made = make(lesson)
        if made and not equal(made, grading.golden(lesson)):
            np.savez_compressed(GOLDEN / f"{lesson:02}.npz", allow_pickle=False, **made)
            print(f"{lesson:02}.npz: {len(made)} arrays")


if __name__ == "__main__":
    main()
