"""`mbnp bench`: where the time goes, what the machine allows, and how other libraries compare."""

import json
import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mbnp import backend, models, plots
from mbnp.bench import candidates, comparison, machine, profile, report, scaling
from mbnp.bench.workload import Workload
from mbnp.commands import common
from mbnp.errors import MbnpError, unknown
from mbnp.tables import hang
from mbnp.weights.files import replacing

DEFAULT = "mobilenet-v1-small"
WORKS = ("training", "inference", "single", "mobilenet-v1")  # single: a batch of one image


def run(options: Namespace) -> int:
    common.set_up(options)
    peers = _names(options.against)
    candidates.check_peers(peers)
    if options.rounds < 1:
        raise MbnpError(f"--rounds must be at least 1, got {options.rounds}")
    for path in filter(None, (options.json, options.out)):  # before minutes of measuring, not after
        if not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(f"no folder for {path}: make it first")
    workload = _workload(options)
    compared = _compared(workload, options)
    with _progress() as say:
        say("what this machine can do")
        with common.announced(print):
            peaks = machine.measure(workload.threads)
        described = machine.describe()
        print(report.header(described, peaks))
        settings = {
            name: getattr(workload, name) for name in ("model", "width_mult", "batch_size", "resolution")
        }
        settings |= {"threads": workload.threads, "rounds": options.rounds}
        settings |= {"engine": "readable" if options.readable else "fused", "against": peers}
        found = {"machine": described, "peaks": peaks._asdict(), "settings": settings}
        if options.scaling:
            _scaling(workload, options, found, say)
            good = True
        else:
            _layers(workload, options, peaks, found, say)
            good = _comparisons(compared, workload, peers, options, found, say)
    if options.json:
        # A number that is not one, where BatchNorm cannot train, is null: JSON knows no NaN.
        known = json.loads(json.dumps(found), parse_constant=lambda name: None)
        with replacing(Path(options.json)) as partial:
            partial.write_text(json.dumps(known, indent=2) + "\n")
    return 0 if good else 1


def _workload(options: Namespace) -> Workload:
    net = models.create(options.model, width_mult=options.width_mult)
    size = net.resolution if options.resolution is None else options.resolution
    threads = backend.get_num_threads()
    workload = Workload("training", options.model, options.batch_size, size, threads, options.width_mult)
    net.output_shape(workload.shape)  # raises for images that the network does not take
    return workload


def _compared(workload: Workload, options: Namespace) -> list[Workload]:
    """Return the comparisons: those that were asked for, or two, or with peers as many as make sense."""
    chosen = _names(options.work)
    for name in chosen:
        if name not in WORKS:
            raise unknown("work", name, WORKS)
    if not chosen:
        chosen = list(WORKS[: 2 if not options.against else 4 if options.model == DEFAULT else 3])
    known = {
        "training": workload,
        "inference": replace(workload, work="inference"),
        "single": replace(workload, work="inference", batch_size=1),
        "mobilenet-v1": Workload("inference", "mobilenet-v1", 1, 224, workload.threads),
    }
    return [known[name] for name in WORKS if name in chosen]


def _layers(workload: Workload, options: Namespace, peaks: machine.Peaks, found: dict, say: Callable) -> None:
    net = common.engine(workload.network(), options.readable)
    engine = "reference layers" if options.readable else "the fast engine"
    found["layers"] = {}
    for work in ("training", "inference"):
        say(f"the layers, {work}")
        its_workload = replace(workload, work=work)
        with common.announced(print):
            measured = profile.measure(net, its_workload, max(5, 2 * options.rounds))
        print(f"\n{hang(f'{its_workload}; {engine}')}\n{report.layers(measured)}")
        found["layers"][work] = _layers_json(measured)
        if work == "training" and options.out:
            plots.roofline(measured, peaks, options.out, f"{its_workload}; {_machine(workload)}")


def _comparisons(
    compared: list[Workload],
    workload: Workload,
    peers: list[str],
    options: Namespace,
    found: dict,
    say: Callable,
) -> bool:
    """Return whether mbnp itself was timed to the end everywhere."""
    compiled = "torch" in peers and not options.no_compile
    if compiled and not shutil.which(os.environ.get("CXX", "g++")):
        compiled = False
        print("\ntorch.compile is left out: it needs a C++ compiler, and there is none.")
    print(f"\n{report.agreement()}")
    found["comparisons"], standings, everything = [], [], []
    for each in compared:
        chosen = candidates.for_workload(each, peers, options.readable, compiled)
        results = comparison.compare(each, chosen, options.rounds, say)
        print(f"\n{report.comparison(each, results, options.rounds)}")
        found["comparisons"].append(_comparison_json(each, results))
        standings += report.standings(each, results)
        everything += results
    if workload in compared:
        results = comparison.memory(workload, candidates.for_memory(workload, peers, options.readable), say)
        print(f"\n{report.memory(workload, results)}")
        found["memory"] = _comparison_json(workload, results)
        standings += report.standings(workload, results, memory=True)
        everything += results
    if standings:
        print(f"\n{report.standing(standings)}")
    found["standings"] = [{**s._asdict(), "ratio": s.ratio} for s in standings]
    return not any(r.refused for r in everything if r.candidate.group == candidates.MBNP)


def _scaling(workload: Workload, options: Namespace, found: dict, say: Callable) -> None:
    with common.announced(print):
        sweeps = scaling.sweeps(workload, options.rounds, "readable" if options.readable else "fused", say)
    print(f"\n{report.scaling(sweeps)}")
    found["scaling"] = [
        {"varied": s.name, "fixed": s.fixed, "points": [p._asdict() for p in s.points]} for s in sweeps
    ]
    if options.out:
        plots.scaling(sweeps, options.out, _machine(workload))


def _layers_json(measured: profile.Profile) -> dict[str, Any]:
    def rate(r: profile.Rate | None) -> dict[str, float] | None:
        return r and {**r._asdict(), "gflops": r.gflops, "gb_per_s": r.bandwidth}

    rows = [
        {
            **row._asdict(),
            "forward": rate(row.forward),
            "backward": rate(row.backward),
            "share": row.seconds / measured.total,
        }
        for row in measured.rows
    ]
    return {**measured._asdict(), "rows": rows, "total": measured.total}


def _comparison_json(workload: Workload, results: list[comparison.Result]) -> dict[str, Any]:
    def one(r: comparison.Result) -> dict[str, Any]:
        known: dict[str, Any] = {
            "name": r.candidate.name,
            "allocator": r.candidate.allocator,
            "refused": r.refused,
        }
        if r.seconds and r.refused is None:
            known |= {"median": r.median, "quartiles": list(r.quartiles), "steps": len(r.seconds)}
        return known | ({"bytes": r.bytes} if r.bytes is not None else {})

    fields = {name: getattr(workload, name) for name in ("work", "model", "batch_size", "resolution")}
    # "contenders" is what files written so far call the candidates.
    return {"what": str(workload), **fields, "contenders": [one(r) for r in results]}


def _machine(workload: Workload) -> str:
    return f"{machine.processor()}, {workload.threads} thread{'s' if workload.threads > 1 else ''}"


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Within the block, show what is going on, on stderr where that is a terminal; it leaves no trace."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: None
        return
    with console.status("") as status:
        yield status.update
