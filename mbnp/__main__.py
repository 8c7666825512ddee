"""The command `mbnp`, and `python -m mbnp`."""

import os
import signal
from typing import NoReturn


def _stop(*_: object) -> NoReturn:
    try:
        os.write(2, b"mbnp: stopped\n")
    finally:
        os._exit(130)


# An import that is interrupted passes on an error of its own, or none, and there is nothing to tidy up before the
# command begins. Where interrupts are ignored, as under nohup, they stay so.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
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
