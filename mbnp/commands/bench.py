"""`mbnp bench`: where the time goes, what the machine allows, and how other libraries compare."""

import json
import os
import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba

from mbnp import backend, models, pages, plots, weights
from mbnp.bench import candidates, comparison, isa, machine, profile, report, scaling
from mbnp.bench.workload import Workload, is_file
from mbnp.commands import common
from mbnp.commands.console import Console
from mbnp.errors import MbnpError, unknown
from mbnp.pages import network
from mbnp.storage import replacing
from mbnp.tables import hang

DEFAULT = "mobilenet-v1-small"
WORKS = ("training", "inference", "single", "mobilenet-v1")  # single: a batch of one image


def run(options: Namespace) -> int:
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise MbnpError("NUMBA_DISABLE_JIT is set, and kernels that are not compiled never end: unset it to measure")
    peers = _names(options.against)
    candidates.check_peers(peers)
    if options.rounds < 1:
        raise MbnpError(f"--rounds must be at least 1, got {options.rounds}")
    if options.scaling and options.load:
        raise MbnpError("--load is for comparisons, which --scaling is instead of: leave out one of them")
    if options.scaling and options.html:
        raise MbnpError("--html is for the layers, which --scaling is instead of: leave out one of them")
    if options.load < 0:
        raise MbnpError(f"--load must be at least 0 busy processes, got {options.load}")
    if options.html:
        common.check_output(options.html, ".html")
    for path in filter(None, (options.json, options.out)):  # before minutes of measuring, not after
        if not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(f"no folder for {path}: make it first")
    workload = _workload(options)
    compared = _compared(workload, options)
    with Console(stderr=True).status("") as status:  # what is going on, if stderr is a terminal
        bench = _Bench(options, workload, peers, status.update)
        if options.scaling:
            bench.scaling()
            good = True
        else:
            bench.layers()
            good = bench.comparisons(compared)
    if options.json:
        # A number that is not one, where BatchNorm cannot train, is null: JSON knows no NaN.
        known = json.loads(json.dumps(bench.found), parse_constant=lambda name: None)
        with replacing(Path(options.json)) as partial:
            partial.write_text(json.dumps(known, indent=2) + "\n")
    return 0 if good else 1


def _workload(options: Namespace) -> Workload:
    if is_file(options.model) and options.width_mult != 1:
        raise MbnpError(f"{options.model} has its own width: leave out --width-mult")
    if is_file(options.model):
        net = weights.load(options.model)
    else:
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


class _Bench:
    """The measurements of one command: each is printed, and added to `found`, which --json writes."""

    def __init__(self, options: Namespace, workload: Workload, peers: list[str], say: Callable) -> None:
        self.options, self.workload, self.peers, self.say = options, workload, peers, say
        self.engine = "readable" if options.readable else "fused"
        say("what this machine can do")
        with common.announced(print):
            self.peaks = machine.measure(workload.threads)
        described = machine.describe(options.isa)
        print(report.header(described, self.peaks))
        settings = _chosen(workload, "model", "width_mult", "batch_size", "resolution", "threads")
        settings |= {"rounds": options.rounds, "load": options.load, "engine": self.engine, "against": peers}
        self.found: dict[str, Any] = {"machine": described, "peaks": self.peaks._asdict()}
        self.found["settings"] = settings
        self.title = f"{machine.processor()}, {workload.threads} thread{'s' if workload.threads > 1 else ''}"
        if options.isa:
            self.title += f", {report.held_to(options.isa)}"

    def layers(self) -> None:
        net = common.engine(self.workload.network(), self.options.readable)
        self.found["layers"] = {}
        for work, engine in (("training", "the fast engine"), ("inference", "the fast engine, by step")):
            engine = "reference layers" if self.options.readable else engine
            self.say(f"the layers, {work}")
            workload = replace(self.workload, work=work)
            with common.announced(print):
                measured = profile.measure(net, workload, max(5, 2 * self.options.rounds))
            print(f"\n{hang(f'{workload}; {engine}')}\n{report.layers(measured)}")
            self.found["layers"][work] = _layers_json(measured)
            if work == "training" and self.options.out:
                plots.save(plots.roofline(measured, self.peaks, f"{workload}; {self.title}"), self.options.out)
            if work == "training" and self.options.html:
                title, subtitle = f"{workload.model}: where the time goes", f"{workload}; {self.title}"
                page = network.bench_page(net, title, subtitle, workload.resolution, measured, self.peaks)
                pages.write(self.options.html, page)

    def comparisons(self, compared: list[Workload]) -> bool:
        """Return whether mbnp itself was timed to the end everywhere."""
        options, everything, standings = self.options, [], []
        compiled = "torch" in self.peers and not options.no_compile
        if compiled and not shutil.which(os.environ.get("CXX", "g++")):
            compiled = False
            print("\ntorch.compile is left out: it needs a C++ compiler, and there is none.")
        if options.isa and "onnxruntime" in self.peers:
            print(f'\n{candidates.ONNX} cannot be held to {options.isa.upper()}: its times say "{isa.NOT_HELD}".')
        print(f"\n{report.agreement()}")
        self.found["comparisons"] = []
        for workload in compared:
            chosen = candidates.for_workload(workload, self.peers, options.readable, compiled, options.isa)
            results = comparison.compare(workload, chosen, options.rounds, self.say, options.load)
            everything += results
            print(f"\n{report.comparison(workload, results, options.rounds)}")
            if options.load:
                print(f"\n{report.load(results, options.load)}")
            self.found["comparisons"].append(_comparison_json(workload, results))
            standings += report.standings(workload, results)
        if self.workload in compared:
            chosen = candidates.for_memory(self.workload, self.peers, options.readable)
            results = comparison.memory(self.workload, chosen, self.say)
            everything += results
            print(f"\n{report.memory(self.workload, results)}")
            self.found["memory"] = _comparison_json(self.workload, results)
            standings += report.standings(self.workload, results, memory=True)
        if standings:
            print(f"\n{report.standing(standings)}")
        self.found["standings"] = standings
        return not any(result.refused for result in everything if result.candidate.group == candidates.MBNP)

    def scaling(self) -> None:
        with common.announced(print):
            sweeps = scaling.sweeps(self.workload, self.options.rounds, self.engine, self.say)
        print(f"\n{report.scaling(sweeps)}")
        self.found["scaling"] = [
            {"varied": name, "fixed": fixed, "points": [point._asdict() for point in points]}
            for name, fixed, points in sweeps
        ]
        if self.options.out:
            plots.save(plots.scaling(sweeps, self.title), self.options.out)


def _layers_json(measured: profile.Profile) -> dict[str, Any]:
    def rate(r: profile.Rate | None) -> dict[str, float] | None:
        return r and {**r._asdict(), "gflops": r.gflops, "gb_per_s": r.bandwidth}

    rows = []
    for row in measured.rows:
        rates = {"forward": rate(row.forward), "backward": rate(row.backward)}
        rows.append({**row._asdict(), **rates, "share": row.seconds / measured.total})
    return {**measured._asdict(), "rows": rows, "total": measured.total}


def _comparison_json(workload: Workload, results: list[comparison.Result]) -> dict[str, Any]:
    entries = []
    for r in results:
        entry = {**_chosen(r.candidate, "name", "allocator"), "refused": r.refused}
        if r.seconds and r.refused is None:
            entry |= {"median": r.median, "quartiles": list(r.quartiles), "steps": len(r.seconds)}
            if r.loaded:
                entry["slowdown"] = r.slowdown
        if r.bytes is not None:
            entry["bytes"] = r.bytes
        entries.append(entry)
    # "contenders" is what files written so far call the candidates.
    fields = _chosen(workload, "work", "model", "batch_size", "resolution")
    return {"what": str(workload), **fields, "contenders": entries}


def _chosen(owner: object, *names: str) -> dict[str, Any]:
    return {name: getattr(owner, name) for name in names}


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]
