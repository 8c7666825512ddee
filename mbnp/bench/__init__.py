"""The measurements of `mbnp bench`: where the time goes, what the machine can do, and how other libraries compare.

workload.py    a workload: a training step or an inference, of which network, on how many images
machine.py     what this machine is, and its two limits: operations and memory traffic a second
profile.py     the time of every layer, measured on the real step
floor.py       the matrix products of a step, and nothing else
candidates.py  what is compared: mbnp, its matrix products alone, PyTorch, ONNX Runtime; torch_network.py for PyTorch
comparison.py  candidates in alternation, each in a process of its own, after their outputs were found to agree
scaling.py     time for one image as batch, width, resolution and threads grow
report.py      all of it as plain text
"""
