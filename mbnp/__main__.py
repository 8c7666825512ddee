"""The command `mbnp`, and `python -m mbnp`."""

import os
import signal
import sys
import threading
from typing import NoReturn


def _stop(*_: object) -> NoReturn:
    try:
        os.write(2, b"mbnp: stopped\n")
    finally:
        os._exit(130)


# An import that is interrupted passes on an error of its own, or none, and there is nothing to tidy up before the
# command begins. Where interrupts are ignored, as under nohup, they stay so; and processes that the command starts,
# which import this file, too, leave it to the command to say that it was stopped.
_started = sys.modules.get("multiprocessing.process")
if (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
    and threading.current_thread() is threading.main_thread()
    and not (_started and _started.parent_process())
):
    signal.signal(signal.SIGINT, _stop)


def main() -> int:
    """Run the command that sys.argv names; return its exit status."""
    from mbnp import cli

    return cli.main(imported=_begin)


def _begin() -> None:
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    raise SystemExit(main())
