"""The measurements as plain text for a terminal of 80 columns."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from mbnp.bench import blas
from mbnp.bench.candidates import INSTALLED, MATMULS, MBNP, ONNX, READABLE, TORCH, TUNED
from mbnp.bench.comparison import ROUGHLY, TOLERANCE, Result
from mbnp.bench.machine import PACKAGES, SLOWING, Peaks
from mbnp.bench.profile import Profile, Rate
from mbnp.bench.scaling import Sweep, worst_above_minimum
from mbnp.bench.workload import Workload
from mbnp.tables import WIDTH, hang, table

BUSY = 0.5  # between the quartiles of one candidate's times: more than it would differ by itself

# What mbnp's standing is told against: what the report calls it, its group of candidates, and with which allocators.
RIVALS = (
    ("PyTorch, allocator tuned", TORCH, (TUNED,)),
    ("PyTorch as installed", TORCH, (INSTALLED,)),
    (ONNX, ONNX, (INSTALLED, TUNED)),
    (READABLE, READABLE, (INSTALLED,)),
    ("matrix products alone", MATMULS, (INSTALLED,)),
)

Standing = dict[str, Any]  # mbnp and the best configuration of a rival in one comparison: see `standings`


def header(machine: dict[str, Any], peaks: Peaks) -> str:
    """Return the machine, what runs on it, and its two limits."""
    of = machine["versions"]
    found = machine["blas"]
    named = None if found is None else ", ".join(f"{b['library']} {b['version']} ({b['kernel']})" for b in found)
    held = f", {held_to(machine['held_to'])}" if machine["held_to"] else ""
    processors = f"{machine['threads']} of {machine['processors']} processors"
    lines = [
        f"mbnp {of['mbnp']} on {machine['processor']}, {processors}{held}",
        f"{machine['system']}, Python {machine['python']}, threads by {machine['threading_layer']}",
        ", ".join(f"{name} {of[key]}" for key, name in PACKAGES.items() if key in of),
        f"NumPy's BLAS: {blas.WITHOUT if named is None else named or 'none that is known'}",
        f"matrix product: {peaks.gflops_kernel:.0f} GFLOP/s by our kernel, {peaks.gflops_numpy:.0f} by NumPy's BLAS",
        f"memory: {peaks.memory:.0f} GB/s, and {peaks.cache:.0f} GB/s within half of the last cache "
        f"({peaks.cache_bytes >> 20} MB)",
    ]
    if machine["slowing"]:
        values = " and ".join(f"{name}={value}" for name, value in machine["slowing"].items())
        effect = "can halve the speed of NumPy's matrix products: another kernel than this processor's own"
        lines += [f"WARNING: {values} {effect}. Without:", f"env -u {' -u '.join(SLOWING)} mbnp bench ..."]
    return hang("\n".join(lines))


def held_to(isa: str) -> str:
    """Return how a title says that everything is held to an instruction set."""
    return f"held to {isa.upper()}"


def layers(profile: Profile) -> str:
    """Return a line for each row of a profile, times in ms; what is in none of them; and each kind's shares."""
    both = any(row.backward for row in profile.rows)
    head = ["layer", "kind", "output", "fwd ms", "GFLOP/s", "GB/s"]
    head += ["bwd ms", "GFLOP/s", "GB/s"] if both else ["share"]
    lines = []
    for row in profile.rows:
        last = _rate(row.backward) if both else [_percent(row.seconds / profile.total)]
        lines.append([row.name, row.kind, "x".join(map(str, row.output)), *_rate(row.forward), *last])
    others = sum(max(map(len, column)) + 2 for column in list(zip(head, *lines, strict=True))[1:])
    lines = [[_shorten(name, WIDTH - others), *cells] for name, *cells in lines]
    around = {"the optimiser": profile.optimiser, "everything else": profile.rest}
    told = [f"{name} {_ms(s)} ms ({_percent(s / profile.total)})" for name, s in around.items() if s]
    text = hang(f"{', '.join(told)}; all together {_ms(profile.total)} ms")
    kinds = []
    for kind, (flops, seconds, rate) in profile.shares().items():
        kinds.append([kind, _percent(flops), _percent(seconds), *_rate(rate)[1:], _known(rate.intensity, ".1f")])
    kinds_head = ["kind", "share of FLOPs", "of the time", "GFLOP/s", "GB/s", "FLOPs a byte"]
    return f"{table(head, lines, left=3)}\n{text}\n\n{table(kinds_head, kinds)}"


def agreement() -> str:
    """Return what is compared before anything is timed."""
    return hang(
        "Before anything is timed, every candidate computes with the same weights, and is refused if it is too far "
        f"from the reference network in float64: logits and loss by {TOLERANCE:.0e} of the largest entry; gradients "
        f"in float64 likewise, in float32 by {100 * ROUGHLY:.0f} % of their length, since one ReLU whose input is "
        "within rounding of zero moves them further than rounding. torch.compile: in float32 only.",
        indent=0,
    )


def comparison(workload: Workload, results: Sequence[Result], rounds: int) -> str:
    """Return the median times of all candidates of one comparison, and why one is not in it."""
    timed = [r for r in results if r.refused is None]
    ours = next((r.median for r in timed if r.candidate.group == MBNP), math.nan)
    lines = []
    for r in timed:
        times = [_ms(r.median), " to ".join(map(_ms, r.quartiles)), _known(r.median / ours, ".2f")]
        allocator = r.candidate.allocator.removeprefix("as ")
        lines.append([r.candidate.name, allocator, *times, f"{workload.batch_size / r.median:,.0f}"])
    text = [f"{workload}; {rounds} rounds, medians"]
    text += [table(["", "allocator", "ms", "quartiles", "x mbnp", "images/s"], lines, left=2)]
    if any(r.quartiles[1] > (1 + BUSY) * r.quartiles[0] for r in timed):
        text.append("Quartiles are far apart: other work used the processors, take care with ratios.")
    return "\n".join([*text, *_refused(results)])


def load(results: Sequence[Result], count: int) -> str:
    """Return how many times as long each candidate takes beside `count` busy processes."""
    lines = []
    for r in results:
        if r.refused is None:
            times = _ms(r.median), _ms(statistics.median(r.loaded)), f"{r.slowdown:.2f}"
            lines.append([r.candidate.name, r.candidate.allocator.removeprefix("as "), *times])
    beside = f"beside {count} busy process{'es' if count > 1 else ''}"
    return f"The same {beside}\n{table(['', 'allocator', 'ms alone', 'ms beside', 'times'], lines, left=2)}"


def memory(workload: Workload, results: Sequence[Result]) -> str:
    """Return the peak memory of each candidate."""
    measured = [r for r in results if r.refused is None]
    lines = [[r.candidate.name, _mb(r.bytes) if r.bytes else "not told by this system"] for r in measured]
    intro = f"Peak memory of a {workload}:\nresident set above what imports took, allocator as installed"
    return "\n".join([intro, table(["", "peak"], lines), *_refused(results)])


def _refused(results: Sequence[Result]) -> list[str]:
    return [hang(f"{r.candidate.name} ({r.candidate.allocator}): {r.refused}") for r in results if r.refused]


def standings(workload: Workload, results: Sequence[Result], memory: bool = False) -> list[Standing]:
    """Return mbnp's time beside the least of each rival's; with `memory`, its peak beside theirs.

    what, peer: the comparison and the rival; ours, theirs: seconds, or bytes of memory; ratio: theirs to ours;
    name: their best configuration
    """
    what = f"peak memory, {workload}" if memory else str(workload)
    values = [(r.bytes if memory else r.median, r.candidate) for r in results if r.refused is None]
    known = [(value, candidate) for value, candidate in values if value]
    ours = next((value for value, candidate in known if candidate.group == MBNP), None)
    found = []
    for peer, group, allocators in RIVALS:
        rivals = [(v, c.configuration) for v, c in known if c.group == group and c.allocator in allocators]
        if ours and rivals:
            theirs, name = min(rivals)
            standing = {"what": what, "peer": group if memory else peer, "ours": ours, "theirs": theirs}
            more = {"name": name, "memory": memory, "ratio": theirs / ours}
            found.append({**standing, **more})
    return found


def standing(found: Sequence[Standing]) -> str:
    """Return the ratios, under a heading for each comparison."""
    lines = []
    for s in found:
        values = [_mb(v) if s["memory"] else f"{_ms(v)} ms" for v in (s["ours"], s["theirs"])]
        lines.append([f"  {s['peer']}", *values, f"{s['ratio']:.2f}", s["name"]])
    head = table(["", "mbnp", "theirs", "theirs/mbnp", "their best"], lines, left_last=True).split("\n")
    text = head[:2]
    for i, (s, line) in enumerate(zip(found, head[2:], strict=True)):
        text += [line] if i and found[i - 1]["what"] == s["what"] else [s["what"], line]
    return "\n".join(text)


def scaling(found: Sequence[Sweep]) -> str:
    """Return a table for each sweep, microseconds for one image."""
    texts = []
    for sweep in found:
        _, *first = sweep.points[0]
        lines = []
        for value, *times in sweep.points:
            growth = [_known(t / t1, ".2f") for t, t1 in zip(times, first, strict=True)]
            lines.append([f"{value:g}", *(_known(1e6 * t, ",.1f") for t in times), *growth])
        head = [sweep.name, "training, us", "inference, us", "training, x", "inference, x"]
        text = f"{sweep.name} ({sweep.fixed}): time for one image, and x times the first line's"
        text += f"\n{table(head, lines)}"
        if sweep.name == "batch size":
            training, inference = (f"{100 * worst:.0f} %" for worst in worst_above_minimum(sweep, 16, 256))
            text += f"\nfrom batch 16 to 256 at most {training} (training) and {inference} (inference) above the least"
        texts.append(text)
    return "\n\n".join("\n".join(map(hang, text.split("\n"))) for text in texts)


def _shorten(name: str, width: int) -> str:
    """Return a name that fits: of several layers the first and the last one, or the end of a name."""
    if len(name) > width and " + " in name:
        name = f"{name.partition(' + ')[0]} ... {name.rpartition(' + ')[2]}"
    return name if len(name) <= width else f"...{name[3 - width :]}"


def _rate(rate: Rate | None) -> list[str]:
    if rate is None:
        return ["", "", ""]
    gflops, gbytes = (_known(x, ".1f" if x < 10 else ".0f") for x in (rate.gflops, rate.bandwidth))
    return [_ms(rate.seconds), gflops if rate.flops else "", gbytes]


def _ms(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:.3f}" if ms < 10 else f"{ms:.1f}" if ms < 1000 else f"{ms:.0f}"


def _known(number: float, spec: str) -> str:
    return "" if math.isnan(number) else format(number, spec)


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
