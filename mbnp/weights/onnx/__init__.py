"""ONNX files: any network of mbnp's layers out, and in what is made of the operations that mbnp has.

onnx.save(net, "net.onnx"); net = onnx.load("net.onnx")

`write.py` puts a network into a graph, `read.py` looks at a file before it is believed, `nodes.py` says what each
operation of ONNX is in mbnp, and `build.py` joins the layers that they make into a network. Needs the package onnx:
pip install "mbnp[onnx]".
"""

from mbnp.weights.onnx.build import load
from mbnp.weights.onnx.write import save

__all__ = ["load", "save"]
