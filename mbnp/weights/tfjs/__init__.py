"""TensorFlow.js's weights: a `model.json`, or a manifest alone, with its shards of raw numbers beside it.

    manifest.py    the numbers: float32, float16, 8 and 16 bits with scale and minimum, int32, bool
    face.py        a manifest alone, whose names are those of face-api's face detector
    (keras/)       a `model.json` of the layers format: a Keras configuration, read as Keras's own files are
    graph.py       a `model.json` of the graph format: a GraphDef of TensorFlow's, as nodes of ONNX (onnx/)

`find` says which file of a folder is meant.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mbnp.errors import MbnpError, short
from mbnp.network import Network
from mbnp.weights import files
from mbnp.weights.keras import arrays as keras_arrays
from mbnp.weights.keras import build
from mbnp.weights.keras import graph as keras_graph
from mbnp.weights.keras.layer import flat
from mbnp.weights.keras.reader import Content
from mbnp.weights.tfjs import face, graph, manifest

MODEL, MANIFEST = "model.json", "*manifest.json"


def find(folder: Path) -> Path | None:
    """Return the file of TensorFlow.js's that a folder is meant for; None if it has none, MbnpError if it has many."""
    if (folder / MODEL).is_file():
        return folder / MODEL
    found = sorted(path for path in folder.glob(MANIFEST) if path.is_file())
    known = found if len(found) < 2 else [path for path in found if _is_face(path)]
    if len(known) == 1:
        return known[0]
    if found:
        listed = ", ".join(short(path.name)[1:-1] for path in found[:3]) + (", ..." if len(found) > 3 else "")
        raise MbnpError(f"{folder} has several manifests ({listed}), and mbnp knows {len(known)} of them: name one")
    return None


def _is_face(path: Path) -> bool:
    try:
        return face.MARK in manifest.names(path)
    except (MbnpError, OSError):
        return False


def load(path: Path, say: Callable[[str], object] = lambda text: None) -> Network:
    """Return the network of a `model.json` or of a manifest that mbnp knows; MbnpError for whatever else."""
    with files.reading(path, "file of TensorFlow.js's"):
        try:
            content = manifest.read(path)
            net = _network(content, say)
            files.check_values(net.state())
        except MbnpError as error:
            raise MbnpError(f"{path} cannot be used: {error}") from None
        return net


def _network(content: manifest.Content, say: Callable[[str], object]) -> Network:
    topology = content.topology
    if topology is None:
        if face.MARK in content.arrays:
            return face.network(content.arrays)
        names = ", ".join(map(short, list(content.arrays)[:3]))
        known = "the face detector of face-api (ssd_mobilenetv1_model)"
        raise MbnpError(f"it says nothing of its network, and its names ({names}, ...) are not those of {known}")
    if "node" in topology:
        return graph.network(topology, content.arrays, say)
    return _keras(topology.get("model_config", topology), content.arrays, say)


def _keras(config: Any, arrays: dict[str, np.ndarray], say: Callable[[str], object]) -> Network:
    """Return the network of a Keras configuration, whose arrays TensorFlow.js names `conv1/kernel`."""
    sequence = keras_graph.layers(config)
    layers = flat(sequence)
    owner = {layer.name: layer.owners[0] for layer in layers if len(layer.owners) > 1}
    top = {layer.owners[0] for layer in layers}
    # It names the layers of a model within this one as if they were its own.
    placed = {
        name if (first := name.split("/")[0]) in top or first not in owner else f"{owner[first]}/{name}": array
        for name, array in arrays.items()
    }
    keras_arrays.match(layers, Content(config, placed, {}, False, {}))
    return build.network(sequence, say)
