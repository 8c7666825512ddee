"""What was measured, as plain text of at most 100 columns."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from mbnp.bench.jobs import Job
from mbnp.bench.lineup import MBNP, ONNX, PRODUCTS, READABLE, TORCH
from mbnp.bench.machine import PACKAGES, SLOWING, Peaks
from mbnp.bench.parts import Measured, Rate
from mbnp.bench.race import INSTALLED, ROUGHLY, TOLERANCE, TUNED, Result
from mbnp.bench.scaling import Sweep, worst_above_minimum

BUSY = 0.5  # between the quartiles of one contender's times: more than it would differ by itself


class Standing(NamedTuple):
    """mbnp and the fastest configuration of a peer in one comparison. Seconds, or bytes of memory."""

    what: str
    peer: str
    ours: float
    theirs: float
    name: str  # of the configuration

    memory: bool = False

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours

    def show(self, value: float) -> str:
        return _mb(value) if self.memory else f"{_ms(value)} ms"


def header(machine: dict[str, Any], peaks: Peaks) -> str:
    """The machine, what runs on it, and its two limits."""
    of = machine["versions"]
    packages = ", ".join(f"{name} {of[key]}" for key, name in PACKAGES.items() if key in of)
    blas = ", ".join(f"{b['of']} {b['library']} {b['version']} ({b['kernel']})" for b in machine["blas"])
    lines = [
        f"mbnp {of['mbnp']} on {machine['processor']}, {machine['threads']} of {machine['processors']} processors",
        f"{machine['system']}, Python {machine['python']}, threads by {machine['threading_layer']}",
        packages,
        f"BLAS: {blas}",
        f"matrix product: {peaks.gflops_kernel:.0f} GFLOP/s one-threaded in each of our threads, "
        f"{peaks.gflops_numpy:.0f} by NumPy's",
        f"memory: {peaks.memory:.0f} GB/s, and {peaks.cache:.0f} GB/s within half of the last cache "
        f"({peaks.cache_bytes >> 20} MB)",
    ]
    if machine["slowing"]:
        values = " and ".join(f"{name}={value}" for name, value in machine["slowing"].items())
        unset = " ".join(f"-u {name}" for name in SLOWING)
        lines += [
            f"WARNING: {values} in the environment",
            "choose another BLAS kernel than this processor's own, which can halve the speed of matrix products.",
            f"Without: env {unset} mbnp bench ...",
        ]
    return "\n".join(lines)


def layers(measured: Measured) -> str:
    """A line for each part, times in ms; what is in none of them; and the shares of each kind."""
    both = any(row.backward for row in measured.rows)
    head = ["layer", "kind", "output", "forward", "GFLOP/s", "GB/s"]
    head += ["backward", "GFLOP/s", "GB/s", "share"] if both else ["share"]
    lines = []
    for row in measured.rows:
        rates = [*_rate(row.forward), *(_rate(row.backward) if both else [])]
        size = " x ".join(map(str, row.output))
        lines.append([row.name, row.kind, size, *rates, _percent(row.seconds / measured.total)])
    around = [("the optimiser", measured.optimiser)] if both else []
    around += [("everything else", measured.rest)]
    text = ", ".join(f"{name} {_ms(s)} ms ({_percent(s / measured.total)})" for name, s in around)
    text = f"{text}; all together {_ms(measured.total)} ms"
    return f"{table(head, lines, left=3)}\n{text}\n\n{kinds(measured)}"


def kinds(measured: Measured) -> str:
    """Fewer FLOPs, so why not faster? Each kind's share of the FLOPs and of the time."""
    lines = []
    for kind, (flops, seconds, _) in shares(measured).items():
        rates = [r for row in measured.rows if row.kind == kind for r in (row.forward, row.backward) if r]
        intensity = sum(r.flops for r in rates) / sum(r.bytes for r in rates)
        lines.append([kind, _percent(flops), _percent(seconds), *_rate(_sum(rates))[1:], f"{intensity:.1f}"])
    head = ["kind", "share of FLOPs", "of the time", "GFLOP/s", "GB/s", "FLOPs a byte"]
    return table(head, lines, left=1)


def shares(measured: Measured) -> dict[str, tuple[float, float, int]]:
    """Of each kind of layer: its share of all FLOPs, its share of the step's time, and its FLOPs; most FLOPs first."""
    sums: dict[str, list[float]] = {}
    for row in measured.rows:
        mine = sums.setdefault(row.kind, [0, 0])
        mine[0] += row.forward.flops + (row.backward.flops if row.backward else 0)
        mine[1] += row.seconds
    total = sum(flops for flops, _ in sums.values()) or 1
    ordered = sorted(sums.items(), key=lambda item: -item[1][0])
    return {kind: (flops / total, seconds / measured.total, int(flops)) for kind, (flops, seconds) in ordered}


def race(job: Job, results: Sequence[Result], rounds: int) -> str:
    """Everybody's median of one comparison, and why somebody is not in it."""
    timed = [r for r in results if r.refused is None]
    ours = next((r.median for r in timed if r.contender.group == MBNP), math.nan)
    lines = []
    for r in timed:
        low, high = r.quartiles
        lines.append(
            [
                r.contender.name,
                r.contender.allocator,
                _ms(r.median),
                f"{_ms(low)} to {_ms(high)}",
                _times(ours, r.median),
                f"{job.batch_size / r.median:,.0f}",
            ]
        )
    head = ["", "allocator", "median ms", "quartiles", "times mbnp's", "pictures/s"]
    text = f"{job}; {rounds} rounds\n" + table(head, lines, left=2)
    if any(r.quartiles[1] > (1 + BUSY) * r.quartiles[0] for r in timed):
        text += "\nQuartiles are far apart: something else used the processors, so take care with the ratios."
    for r in results:
        if r.refused is not None:
            text += f"\n{r.contender.name} ({r.contender.allocator}): {r.refused}"
    return text


def agreement() -> str:
    """What was compared before anything was timed."""
    return (
        "Before anything is timed, everybody computes with the same weights, and is refused if it is too far\n"
        f"from the readable network in float64: logits and loss by {TOLERANCE:.0e} of the largest entry; gradients\n"
        f"in float64 likewise, in float32 by {100 * ROUGHLY:.0f} % of their length, since one ReLU whose input is\n"
        "within rounding of zero moves them further than rounding. torch.compile: in float32 only."
    )


def standings(comparisons: Sequence[tuple[Job, Sequence[Result]]]) -> list[Standing]:
    """mbnp against the fastest configuration of each peer, in each comparison."""
    found = []
    for job, results in comparisons:
        timed = [r for r in results if r.refused is None]
        ours = next((r.median for r in timed if r.contender.group == MBNP), None)
        for group, allocator, peer in (
            (TORCH, TUNED, "PyTorch, allocator tuned"),
            (TORCH, INSTALLED, "PyTorch as installed"),
            (ONNX, None, ONNX),
            (READABLE, None, READABLE),
            (PRODUCTS, None, "matrix products alone"),
        ):
            theirs = [
                r for r in timed if r.contender.group == group and allocator in (None, r.contender.allocator)
            ]
            if ours and theirs:
                best = min(theirs, key=lambda r: r.median)
                found.append(Standing(str(job), peer, ours, best.median, _configuration(best)))
    return found


def memory_standings(job: Job, results: Sequence[Result]) -> list[Standing]:
    """mbnp's peak memory against the least of each peer's."""
    measured = [r for r in results if r.bytes]
    ours = next((r.bytes for r in measured if r.contender.group == MBNP), None)
    found = []
    for group in (TORCH, READABLE):
        theirs = [r for r in measured if r.contender.group == group]
        if ours and theirs:
            best = min(theirs, key=lambda r: r.bytes or 0)
            found.append(
                Standing(f"peak memory, {job}", group, ours, best.bytes or 0, _configuration(best), True)
            )
    return found


def standing(found: Sequence[Standing]) -> str:
    """The ratios, both ways round, under a heading for each comparison."""
    head = ["", "mbnp", "theirs", "theirs/mbnp", "mbnp/theirs", "their best configuration"]
    lines = []
    for s in found:
        values = [s.show(s.ours), s.show(s.theirs), f"{s.ratio:.2f}", f"{1 / s.ratio:.2f}"]
        lines.append([f"  {s.peer}", *values, s.name])
    first, rule, *body = table(head, lines, left=1, left_last=True).split("\n")
    text, what = [first, rule], ""
    for s, line in zip(found, body, strict=True):
        text += [s.what] if s.what != what else []
        text.append(line)
        what = s.what
    return "\n".join(text)


def memory(job: Job, results: Sequence[Result]) -> str:
    """Everybody's peak."""
    lines = []
    for r in results:
        told = "not told by this system" if r.refused is None else r.refused
        lines.append([r.contender.name, _mb(r.bytes) if r.bytes else told])
    intro = f"Peak memory of a {job}:\nresident set above what imports took, allocator as installed\n"
    return intro + table(["", "peak"], lines, left=1)


def scaling(found: Sequence[Sweep]) -> str:
    """A table for each sweep, microseconds for one picture."""
    texts = []
    for sweep in found:
        first = sweep.points[0]
        lines = []
        for p in sweep.points:
            growth = _times(first.training, p.training), _times(first.inference, p.inference)
            lines.append([f"{p.value:g}", _us(p.training), _us(p.inference), *growth])
        head = [sweep.name, "training, us", "inference, us", "training, x", "inference, x"]
        text = f"{sweep.name} ({sweep.fixed}): time for one picture, and x times the first line's\n"
        text += table(head, lines, left=1)
        if sweep.name == "batch size":
            training, inference = worst_above_minimum(sweep, 16, 256)
            text += f"\nfrom batch 16 to 256 at most {100 * training:.0f} % (training) and {100 * inference:.0f} % "
            text += "(inference) above the least"
        texts.append(text)
    return "\n\n".join(texts)


def table(
    head: Sequence[str],
    lines: Sequence[Sequence[str]],
    left: int,
    left_last: bool = False,
) -> str:
    """Columns, the first `left` of them (and the last, if so) flush left, the others flush right."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    flush_left = {*range(left), *([len(head) - 1] if left_last else [])}

    def text(line: Sequence[str]) -> str:
        cells = (
            c.ljust(w) if i in flush_left else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    body = [text(line) for line in lines]
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    return "\n".join([text(head), rule, *body])


def _configuration(result: Result) -> str:
    return result.contender.name.partition(", ")[2]  # as in "PyTorch, channels_last"


def _rate(rate: Rate | None) -> list[str]:
    if rate is None:
        return ["", "", ""]
    return [_ms(rate.seconds), _short(rate.gflops) if rate.flops else "", _short(rate.bandwidth)]


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"


def _sum(rates: Sequence[Rate]) -> Rate:
    return Rate(sum(r.seconds for r in rates), sum(r.flops for r in rates), sum(r.bytes for r in rates))


def _ms(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:.3f}" if ms < 10 else f"{ms:.1f}"


def _us(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{1e6 * seconds:,.1f}"


def _times(first: float, value: float) -> str:
    return "" if math.isnan(first) or math.isnan(value) else f"{value / first:.2f}"


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
