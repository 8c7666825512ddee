"""What `mbnp bench` measures, and how: where the time goes, what the machine can do, and how peers compare.

jobs.py        what is timed: a training step or an inference, of which network, on how many pictures
machine.py     what this machine is, and its two limits: multiplications and memory traffic a second
parts.py       the time of every layer, by a stopwatch on the real step
products.py    the floor: the matrix products of a step, and nothing else
ours.py, peers.py  the contenders: mbnp, its floor; PyTorch, ONNX Runtime
worker.py      a contender in a process of its own
race.py        workers taking turns; outputs are compared before anything is timed
scaling.py     time per picture as batch, width, resolution and threads grow
report.py      all of it as plain text
"""
