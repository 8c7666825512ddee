"""The face detector of @vladmandic/face-api 1.7.15 on its photographs, against the package's own code.

tests/fixtures/faces.json holds what that finds, and faces.js how it was asked. MBNP_FACES names a folder with the
package's model/ssd_mobilenetv1_model* and demo/sample1.jpg to sample6.jpg, or the unpacked package itself.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mbnp import fused, weights
from mbnp.datasets.images import read_whole
from mbnp.detection import boxes, whole

EXPECTED = json.loads((Path(__file__).parents[1] / "fixtures" / "faces.json").read_text())["faces"]


@pytest.fixture(scope="module")
def folders():
    """Return the folder of the weights and that of the photographs."""
    named = os.environ.get("MBNP_FACES")
    if not named:
        pytest.skip("needs the face detector: set MBNP_FACES to a folder with @vladmandic/face-api's model and samples")
    inside = Path(named) / "model", Path(named) / "demo"
    return inside if inside[0].is_dir() else (Path(named), Path(named))


@pytest.fixture(scope="module")
def net(folders):
    return weights.load(folders[0])


@pytest.mark.parametrize("engine", ["readable", "fused"])
@pytest.mark.parametrize("name", EXPECTED)
def test_the_faces_are_those_that_the_package_finds(folders, net, engine, name):
    run = fused.convert(net) if engine == "fused" else net
    image = read_whole(folders[1] / f"{name}.jpg")
    (found,) = whole.find(run, [image])
    expected = EXPECTED[name]
    assert len(found.scores) == len(expected)
    np.testing.assert_allclose(found.scores, [face["score"] for face in expected], rtol=0, atol=1e-3)
    overlaps = boxes.overlap(found.boxes.astype(np.float64), np.array([face["box"] for face in expected], np.float64))
    assert np.diagonal(overlaps).min() > 0.99
    assert set(found.labels) == {0}


def test_what_it_is_made_of(net):
    assert sum(p.value.size for p in net.parameters().values()) == 5_510_502
    assert net.output_shape((512, 512, 3)) == (5118, 6)
