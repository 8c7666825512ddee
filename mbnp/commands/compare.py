"""`mbnp compare`: put runs side by side."""

import sys
from argparse import Namespace
from pathlib import Path

from mbnp import plots
from mbnp.commands import common
from mbnp.errors import MbnpError
from mbnp.pages import compare


def run(options: Namespace) -> int:
    for path, suffix in ((options.html, ".html"), (options.out, ".png")):
        if path is not None:
            common.check_output(path, suffix, (file for folder in options.runs for file in folder.glob("*")))
    found, notes = compare.read(options.runs)
    for note in notes:
        print(f"mbnp: {note}", file=sys.stderr)
    if not found:
        raise MbnpError("none of these is a finished run: there is nothing to compare")
    print(compare.text(found))
    if options.html:
        compare.write(Path(options.html), found, f"{len(found)} runs compared", notes)
    if options.out:
        numbers = [run.macs for run in found], [run.accuracy for run in found]
        measure = compare.measure(found)
        plots.save(
            plots.front([run.name for run in found], *numbers, compare.COSTS["macs"], measure=measure), options.out
        )
    return 1 if notes else 0
