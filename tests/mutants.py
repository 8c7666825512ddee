"""Mutants: one small change to the code at a time, which the tests should notice.

    pip install cosmic-ray
    python -m tests.mutants --count 100 --seed 0 --log mutants.jsonl

Each mutant is drawn from the operators of cosmic-ray, put into a copy of the project, and shown to the tests of its
room: first as plain Python, where nothing is compiled, then compiled; and if it survives to the whole suite without
lessons and grader. The log has a line for each; the same command goes on where it was stopped. What survived is to be
read by somebody, who says whether it changes anything at all.
"""

import argparse
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
ROOMS = {  # where mutants are made, and the tests of that room
    "mbnp/ops": ["tests/ops", "tests/test_gradcheck.py"],
    "mbnp/layers.py": ["tests/test_layers.py", "tests/test_spec.py", "tests/models", "tests/ops/test_loops.py"],
    "mbnp/layer.py": ["tests/test_layers.py", "tests/models", "tests/test_train.py", "tests/test_finetune.py"],
    "mbnp/containers.py": ["tests/test_layers.py", "tests/test_pyramid.py", "tests/models", "tests/test_gradients.py"],
    "mbnp/network.py": ["tests/test_layers.py", "tests/models", "tests/test_train.py", "tests/test_finetune.py"],
    "mbnp/train.py": ["tests/test_train.py", "tests/test_train_step.py", "tests/test_resume.py", "tests/test_cli.py"],
    "mbnp/optim": ["tests/test_optim.py", "tests/test_resume.py"],
    "mbnp/detection": ["tests/detection"],
    "mbnp/fused": ["tests/fused"],
}
PLAIN = {  # of these, what runs without a compiler in a reasonable time
    "mbnp/ops": ["tests/ops", "tests/test_gradcheck.py"],
    "mbnp/fused": ["tests/fused/test_fused.py::test_reference_equation"],
}
REST = ["tests", "--ignore=tests/tutorials", "--ignore=tests/grading", "--ignore=tests/test_bench.py"]
# Of annotations, or nothing changes: `is` of small integers, `|` of types.
LEFT_OUT = "BitOr", "_Is", "Variable", "Exception"


class Mutant(NamedTuple):
    room: str
    path: str
    operator: str
    occurrence: int


def possible(room: str) -> dict[str, list[Mutant]]:
    """Return the mutants of a room by their family, such as ReplaceComparisonOperator."""
    found = collections.defaultdict(list)
    for path in sorted([ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py")):
        nodes = list(ast_nodes(get_ast(path.read_text(encoding="utf-8"))))
        for name in plugins.operator_names():
            if not any(word in name for word in LEFT_OUT):
                operator = plugins.get_operator(name)()
                count = sum(1 for node in nodes for _ in operator.mutation_positions(node))
                family = name.split("/")[1].split("_")[0]
                mutants = (Mutant(room, str(path.relative_to(ROOT)), name, i) for i in range(count))
                found[family].extend(mutants)
    return {family: mutants for family, mutants in found.items() if mutants}


def draw(count: int, seed: int) -> list[Mutant]:
    """Draw mutants: as many of each room and family, so that the many signs of arithmetic do not hide the rest."""
    rng, by_room = random.Random(seed), {room: possible(room) for room in ROOMS}
    drawn: dict[Mutant, None] = {}
    while len(drawn) < count:
        families = by_room[list(ROOMS)[len(drawn) % len(ROOMS)]]
        drawn[rng.choice(families[rng.choice(sorted(families))])] = None
    return list(drawn)


def line_of(before: str, after: str) -> str:
    """Return the first line that differs, as it was and as it is."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    number, (was, now) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    return f"{number}: {was.strip()}  ->  {now.strip()}"


def passes(tree: Path, tests: list[str], timeout: float, **environment: str) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    about = os.environ | {"PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(tree / ".kernels")} | environment
    try:
        done = subprocess.run(command, cwd=tree, env=about, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode > 2:  # 2: an error before the first test; below 0: a crash, which is noticed, too
        raise SystemExit(done.stdout.decode() + done.stderr.decode())
    return done.returncode == 0


def fate(tree: Path, mutant: Mutant, timeout: float) -> str:
    """Return what noticed the mutant that `tree` holds: plain Python, its room, the rest, or nothing."""
    if mutant.room in PLAIN and not passes(tree, PLAIN[mutant.room], timeout, NUMBA_DISABLE_JIT="1"):
        return "plain Python"
    if not passes(tree, ROOMS[mutant.room], timeout):
        return "its room"
    return "survived" if passes(tree, REST, 3 * timeout) else "the rest"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument(
        "--minutes", type=float, default=20, help="for one run of the tests, three times as long for all"
    )
    parser.add_argument("--list", action="store_true", help="only say what would be tried")
    options = parser.parse_args()
    mutants = draw(options.count, options.seed)
    lines = options.log.read_text().splitlines() if options.log.exists() else []
    known = {tuple(line["mutant"]): line["fate"] for line in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "mbnp"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "__pycache__", "runs", "*.nbc", "*.nbi"))
        for mutant in mutants:
            if mutant in known:
                continue
            code = (ROOT / mutant.path).read_text(encoding="utf-8")
            mutated = mutate_code(code, plugins.get_operator(mutant.operator)(), mutant.occurrence)
            what = line_of(code, mutated)
            if not options.list:
                (tree / mutant.path).write_text(mutated, encoding="utf-8")
                known[mutant] = fate(tree, mutant, 60 * options.minutes)
                (tree / mutant.path).write_text(code, encoding="utf-8")
                with options.log.open("a") as file:
                    file.write(json.dumps({"mutant": mutant, "line": what, "fate": known[mutant]}) + "\n")
            print(f"{known.get(mutant, ''):12} {mutant.path}:{what}", flush=True)
    print(dict(collections.Counter(known[mutant] for mutant in mutants if mutant in known)))


if __name__ == "__main__":
    main()
