"""The command `mbnp`, and `python -m mbnp`."""

import os
import signal
from typing import NoReturn


def main() -> int:
    """Run the command that sys.argv names; return its exit status."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # under nohup, for one, nothing interrupts
        from mbnp import cli

        return cli.main()
    # An import that is interrupted passes on an error of its own, or none. There is nothing to tidy up yet.
    signal.signal(signal.SIGINT, _stop)
    from mbnp import cli

    return cli.main(imported=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


def _stop(*_: object) -> NoReturn:
    try:
        os.write(2, b"mbnp: stopped\n")
    finally:
        os._exit(130)


if __name__ == "__main__":
    raise SystemExit(main())
