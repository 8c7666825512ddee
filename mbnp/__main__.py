"""`python -m mbnp` is the `mbnp` command."""

from mbnp.cli import main

raise SystemExit(main())
