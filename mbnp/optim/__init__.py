"""Optimisers, and schedules that move their hyperparameters.

    opt = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = optim.one_cycle(0.1, total=1000)
    for i in range(1000):
        opt.set(**schedule(i))         # {"lr": ..., "momentum": ...}
        train.step(net, opt, x, y)     # zero_grad, forward, backward, opt.step

`optimisers.py` has the rules in NumPy, `update.py` the same rules as one kernel for all parameters, `schedules.py` the
learning rates.
"""

from mbnp.optim.optimisers import SGD, AdamW, Optimiser, check_range
from mbnp.optim.schedules import SCHEDULES, Schedule, constant, cosine, one_cycle, step

__all__ = [
    "SCHEDULES",
    "SGD",
    "AdamW",
    "Optimiser",
    "Schedule",
    "check_range",
    "constant",
    "cosine",
    "one_cycle",
    "step",
]
