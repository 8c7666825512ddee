"""`mbnp bench`: where the time goes, what the machine allows, and how peers compare."""

import dataclasses
import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from mbnp import backend, models, plots
from mbnp.bench import lineup, machine, parts, race, report, scaling
from mbnp.bench.jobs import Job
from mbnp.commands import common
from mbnp.errors import MbnpError, unknown

DEFAULT = "mobilenet-v1-small"
WORKS = ("training", "inference", "single", "mobilenet-v1")  # single: a batch of one picture


def run(options: Namespace) -> int:
    common.set_up(options)
    peers = _names(options.against)
    lineup.check_peers(peers)
    if options.rounds < 1:
        raise MbnpError(f"--rounds must be at least 1, got {options.rounds}")
    for path in filter(None, (options.json, options.out)):  # before minutes of measuring, not after
        if not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(f"no folder for {path}: make it first")
    job = _job(options)
    jobs = _jobs(job, options)
    with _progress() as say:
        say("what this machine can do")
        with common.announced(print):
            peaks = machine.measure(job.threads)
        described = machine.describe()
        print(report.header(described, peaks))
        found = {"machine": described, "peaks": peaks._asdict(), "settings": _settings(job, options, peers)}
        if options.scaling:
            _scaling(job, options, found, say)
            good = True
        else:
            _layers(job, options, peaks, found, say)
            good = _races(jobs, job, peers, options, found, say)
    if options.json:
        _write(Path(options.json), found)
    return 0 if good else 1


def _job(options: Namespace) -> Job:
    net = models.create(options.model, width_mult=options.width_mult)
    size = net.resolution if options.resolution is None else options.resolution
    job = Job(
        "training", options.model, options.batch_size, size, backend.get_num_threads(), options.width_mult
    )
    net.output_shape((size, size, 3))  # raises for pictures that the network does not take
    return job


def _jobs(job: Job, options: Namespace) -> list[Job]:
    """The comparisons: those that were asked for, or two, or with peers as many as make sense."""
    chosen = _names(options.work)
    for name in chosen:
        if name not in WORKS:
            raise unknown("work", name, WORKS)
    if not chosen:
        chosen = list(WORKS[:2])
        if options.against:
            chosen = list(WORKS if options.model == DEFAULT else WORKS[:3])
    known = {
        "training": job,
        "inference": dataclasses.replace(job, work="inference"),
        "single": dataclasses.replace(job, work="inference", batch_size=1),
        "mobilenet-v1": Job("inference", "mobilenet-v1", 1, 224, job.threads),
    }
    return [known[name] for name in WORKS if name in chosen]


def _layers(job: Job, options: Namespace, peaks: machine.Peaks, found: dict, say: Callable) -> None:
    net = common.engine(job.network(), options.readable)
    found["layers"] = {}
    for work, measure in (("training", parts.training), ("inference", parts.inference)):
        say(f"the layers, {work}")
        its = dataclasses.replace(job, work=work)
        with common.announced(print):
            measured = measure(net, its, max(5, 2 * options.rounds))
        print(f"\n{its}; {'readable layers' if options.readable else 'the fast engine'}, times in ms")
        print(report.layers(measured))
        found["layers"][work] = _layers_json(measured)
        if work == "training" and options.out:
            title = f"{its}; {machine.processor()}, {_threads(job)}"
            plots.roofline(measured, peaks, options.out, title)


def _races(
    jobs: list[Job], job: Job, peers: list[str], options: Namespace, found: dict, say: Callable
) -> bool:
    """Whether mbnp itself took part to the end everywhere."""
    compiled = "torch" in peers and not options.no_compile
    if compiled and not lineup.compiler():
        compiled = False
        print("\ntorch.compile is left out: it needs a C++ compiler, and there is none.")
    print(f"\n{report.agreement()}")
    comparisons = []
    for its in jobs:
        contenders = lineup.for_job(its, peers, options.readable, compiled)
        results = race.race(its, contenders, options.rounds, say)
        comparisons.append((its, results))
        print(f"\n{report.race(its, results, options.rounds)}")
    found["comparisons"] = [_race_json(its, results) for its, results in comparisons]
    standings = report.standings(comparisons)
    everybody = [result for _, results in comparisons for result in results]
    if job in jobs:
        results = race.memory(job, lineup.for_memory(peers, options.readable), say)
        print(f"\n{report.memory(job, results)}")
        found["memory"] = _race_json(job, results)
        standings += report.memory_standings(job, results)
        everybody += results
    if standings:
        print(f"\n{report.standing(standings)}")
    found["standings"] = [{**s._asdict(), "ratio": s.ratio} for s in standings]
    return not any(r.refused for r in everybody if r.contender.group == lineup.MBNP)


def _scaling(job: Job, options: Namespace, found: dict, say: Callable) -> None:
    with common.announced(print):
        sweeps = scaling.sweeps(job, options.rounds, "readable" if options.readable else "fused", say)
    print(f"\n{report.scaling(sweeps)}")
    found["scaling"] = [
        {"varied": s.name, "fixed": s.fixed, "points": [p._asdict() for p in s.points]} for s in sweeps
    ]
    if options.out:
        plots.scaling(sweeps, options.out, f"{machine.processor()}, {_threads(job)}")


def _settings(job: Job, options: Namespace, peers: list[str]) -> dict[str, Any]:
    return {
        "model": job.model,
        "width_mult": job.width_mult,
        "batch_size": job.batch_size,
        "resolution": job.resolution,
        "threads": job.threads,
        "rounds": options.rounds,
        "engine": "readable" if options.readable else "fused",
        "against": peers,
    }


def _layers_json(measured: parts.Measured) -> dict[str, Any]:
    def rate(r: parts.Rate | None) -> dict[str, float] | None:
        if r is None:
            return None
        return {**r._asdict(), "gflops": r.gflops, "gb_per_s": r.bandwidth}

    rows = [
        {
            "name": row.name,
            "kind": row.kind,
            "output": list(row.output),
            "forward": rate(row.forward),
            "backward": rate(row.backward),
            "share": row.seconds / measured.total,
        }
        for row in measured.rows
    ]
    return {"rows": rows, "optimiser": measured.optimiser, "rest": measured.rest, "total": measured.total}


def _race_json(job: Job, results: list[race.Result]) -> dict[str, Any]:
    def one(r: race.Result) -> dict[str, Any]:
        known: dict[str, Any] = {
            "name": r.contender.name,
            "allocator": r.contender.allocator,
            "refused": r.refused,
        }
        if r.seconds and r.refused is None:
            known |= {"median": r.median, "quartiles": list(r.quartiles), "steps": len(r.seconds)}
        return known | ({"bytes": r.bytes} if r.bytes is not None else {})

    return {
        "what": str(job),
        "work": job.work,
        "model": job.model,
        "batch_size": job.batch_size,
        "resolution": job.resolution,
        "contenders": [one(r) for r in results],
    }


def _threads(job: Job) -> str:
    return "1 thread" if job.threads == 1 else f"{job.threads} threads"


def _write(path: Path, found: dict[str, Any]) -> None:
    partial = Path(f"{path}.part")
    try:
        # A number that is not one, where BatchNorm cannot train, is null: JSON knows no NaN.
        partial.write_text(json.dumps(_without_nan(found), indent=2, allow_nan=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Where there is a terminal, what is going on, on stderr; it leaves no trace."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: None
        return
    with console.status("") as status:
        yield lambda line: status.update(line)
