"""TensorFlow.js files for tests: manifests written by hand, and a narrow detector with face-api's names."""

import json
import math
from pathlib import Path

import numpy as np

BLOCKS = [(4, 1), (4, 2), (4, 1), (8, 2), (8, 1), (8, 2), *[(8, 1)] * 5, (12, 2), (12, 1)]  # channels out, stride
EXTRAS = [(6, 8), (4, 8), (4, 4), (4, 4)]  # of each pair of convolutions after the body
PER_CELL = [3, 6, 6, 6, 6, 6]
GRIDS = [32, 16, 8, 4, 2, 1]
QUANTISED = {"uint8": np.uint8, "uint16": np.uint16}


def entry(name, array, quantised=None):
    """Return the entry of a manifest and the bytes of an array; quantised: "uint8", "uint16", "float16" or None."""
    described = {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
    if quantised == "float16":
        return described | {"quantization": {"dtype": "float16"}}, array.astype("<f2").tobytes()
    if quantised:
        low = float(array.min())
        scale = (float(array.max()) - low) / np.iinfo(QUANTISED[quantised]).max or 1.0
        stored = np.round((array - low) / scale).astype(QUANTISED[quantised])
        how = {"dtype": quantised, "scale": scale, "min": low}
        return described | {"quantization": how}, stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    return described, array.astype(array.dtype.newbyteorder("<")).tobytes()


def write(path, arrays, quantised=None, shards=1, topology=None):
    """Write a manifest, or with a topology a model.json, and its shards; return the path."""
    path = Path(path)
    made = [entry(name, array, quantised) for name, array in arrays.items()]
    data = b"".join(numbers for _, numbers in made)
    step, names = math.ceil(len(data) / shards), []
    for i in range(shards):
        names.append(f"{path.stem}-{i + 1}of{shards}.bin")
        path.with_name(names[-1]).write_bytes(data[i * step : (i + 1) * step])
    groups = [{"paths": names, "weights": [described for described, _ in made]}]
    content = groups if topology is None else {"modelTopology": topology, "weightsManifest": groups}
    path.write_text(json.dumps(content))
    return path


def detector(seed=0):
    """Return the arrays of a detector like face-api's, with few channels."""
    rng = np.random.default_rng(seed)
    arrays = {}

    def random(*shape):
        fan_in = math.prod(shape[:-1]) if shape[-1] != 1 else math.prod(shape[:2])
        return (rng.standard_normal(shape) * (2 / fan_in) ** 0.5).astype(np.float32)

    def conv(name, kernel, c_in, c_out):
        arrays[f"{name}/weights"] = random(kernel, kernel, c_in, c_out)
        arrays[f"{name}/convolution_bn_offset"] = rng.uniform(0, 0.5, c_out).astype(np.float32)

    conv("MobilenetV1/Conv2d_0_pointwise", 3, 3, 4)
    c, seen = 4, []
    for i, (c_out, _) in enumerate(BLOCKS, start=1):
        name = f"MobilenetV1/Conv2d_{i}_depthwise"
        arrays[f"{name}/depthwise_weights"] = random(3, 3, c, 1)
        for kind in ("gamma", "beta", "moving_mean", "moving_variance"):
            arrays[f"{name}/BatchNorm/{kind}"] = rng.uniform(0.5, 1.5, c).astype(np.float32)
        conv(f"MobilenetV1/Conv2d_{i}_pointwise", 1, c, c_out)
        c = c_out
        seen += [c] if i in (11, 13) else []
    for i, (middle, c_out) in enumerate(EXTRAS):
        conv(f"Prediction/Conv2d_{2 * i}_pointwise", 1, c, middle)
        conv(f"Prediction/Conv2d_{2 * i + 1}_pointwise", 3, middle, c_out)
        c = c_out
        seen.append(c)
    for i, (c, each) in enumerate(zip(seen, PER_CELL, strict=True)):
        for kind, columns in (("BoxEncoding", 4), ("Class", 3)):
            name = f"Prediction/BoxPredictor_{i}/{kind}Predictor"
            arrays[f"{name}/weights"] = random(1, 1, c, each * columns)
            arrays[f"{name}/biases"] = rng.standard_normal(each * columns).astype(np.float32)
    arrays["Output/extra_dim"] = anchors()
    return arrays


def sizes():
    """Return (height, width) of the anchors of each head, as the detector's own."""
    return [np.linspace(0.1 + 0.1 * i, 0.6 + 0.1 * i, 2 * each).reshape(each, 2) for i, each in enumerate(PER_CELL)]


def anchors():
    """Return (1, A, 4): top, left, bottom, right of the anchors, in shares."""
    rows = []
    for n, of_head in zip(GRIDS, sizes(), strict=True):
        for i in range(n):
            for j in range(n):
                centre = np.array([(i + 0.5) / n, (j + 0.5) / n])
                rows += [[*(centre - size / 2), *(centre + size / 2)] for size in of_head]
    return np.array([rows], np.float32)
