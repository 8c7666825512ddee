"""Keras's weights: whole-model `.h5`, `.weights.h5` and `.keras` files, read with h5py and nothing of Keras.

`load` returns the network that the file describes. Its layers must form one sequence, with two branches where an Add
joins them (MobileNetV2, Xception) or a Multiply does (squeeze-and-excite, hard-swish: MobileNetV3). A Lambda, or any
layer that mbnp has no counterpart of, is refused by name. The steps, one file each:

    reader.py    the bytes: the configuration (JSON) and the arrays by path, nothing else, nothing executed
    files.py     runs the reader in a process of its own, because a damaged file can break the HDF5 library
    graph.py     the configuration, as Keras 2 or Keras 3 writes it, as one sequence of layers and branches
    arrays.py    which array belongs to which layer: by name, or by class and order; never by luck
    defaults.py  the layers of a file without configuration: keras.applications.MobileNet, if the arrays fit it
    build.py     the sequence as a Network of mbnp's layers, with layer.py for the values of a configuration
                 and pixels.py for layers that scale pixels

Keras's conventions come with the weights: BatchNorm's eps is 1e-3 and its momentum 0.99, which is 0.01 as PyTorch
and mbnp count; ReLU6; the first convolution pads "same", the strided depthwise ones always one row below and one
column on the right; pixels go in as x / 127.5 - 1. A configuration that says otherwise wins.

Sources: keras.applications.MobileNet, and Keras's `saving/saving_lib.py` and `legacy/saving/legacy_h5_format.py`
for the layouts.
"""

import os
from collections.abc import Callable
from pathlib import Path

from mbnp.errors import MbnpError
from mbnp.network import Network
from mbnp.weights.keras import arrays, defaults, files, graph
from mbnp.weights.keras.build import network
from mbnp.weights.keras.layer import flat

__all__ = ["load"]


def load(path: str | os.PathLike, say: Callable[[str], object] = lambda text: None) -> Network:
    """Return the network that a Keras file describes, with its weights; x is (N, H, W, C), logits (N, classes).

    A closing softmax or sigmoid is left out. A network without a classifier (include_top=False) ends with its
    last feature map averaged over the pixels, (N, C). Layers at the beginning that scale pixels (Rescaling,
    Normalization, preprocess_input) become `net.preprocessing`; without any it is Keras's x / 127.5 - 1. A MobileNet
    has the names of `models.mobilenet_v1` (`features.N`, `pool`, `classifier`); other networks keep Keras's.

    Raises FileNotFoundError, and MbnpError for what is damaged, does not fit or has no counterpart in mbnp.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        saved = files.read(path)
        if saved.config is None:
            return network(defaults.layers(saved), say)
        sequence = graph.layers(saved.config)
        arrays.match(flat(sequence), saved)
        return network(sequence, say)
    except MbnpError as error:
        problem = str(error)
    except RecursionError:
        problem = "its configuration is nested too deeply"
    # Names in the message come from the file: one line of printable characters, and not a long one.
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in problem)
    raise MbnpError(f"{path}: {line if len(line) <= 300 else line[:300] + ' ...'}")
