"""The commands of `mbnp`: `commands/NAME.py` has `run(options)` for `mbnp NAME`.

The options are declared in `cli.py`. `run` returns an exit status, or None for success.
"""
