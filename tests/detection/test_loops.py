"""The loops stay inside Numba's subset: compiled as they are, they give what they give interpreted."""

import numba
import numpy as np
import pytest

from mbnp.detection import anchors, boxes, matching, multibox, precision, suppression
from tests.detection import cases

RNG = np.random.default_rng(0)
A, B = cases.boxes(RNG, 6), cases.boxes(RNG, 6)
OVERLAPS = boxes.overlap_numpy(A, B)
SCALES = np.array(cases.SCALES)
CLASSES = np.array([[0, 2, 0, 0, 1, 0]])
OUTPUTS, OFFSETS, ENTROPY = RNG.standard_normal((1, 6, 7)), RNG.standard_normal((1, 6, 4)), RNG.random((1, 6))


@pytest.mark.slow
@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (anchors.make_loops, (np.array([[0.2, 0.3], [0.4, 0.1]]), 2, 3)),
        (boxes.overlap_loops, (A, B)),
        (boxes.encode_loops, (A, B, SCALES)),
        (boxes.decode_loops, (A, B, SCALES)),
        (matching.match_loops, (OVERLAPS, 0.3)),
        (multibox.entropy_loops, (OUTPUTS, CLASSES)),
        (multibox.choose_loops, (ENTROPY, CLASSES)),
        (multibox.forward_loops, (OUTPUTS, CLASSES, OFFSETS, ENTROPY, ENTROPY > 0.5)),
        (multibox.backward_loops, (OUTPUTS, CLASSES, OFFSETS, ENTROPY > 0.5)),
        (suppression.suppress_loops, (A, np.arange(6), 0.3, 4)),
        (precision.verdicts_loops, (OVERLAPS, ENTROPY[0] > 0.5, ENTROPY[0] > 0.8, 0.3, True)),
    ],
    ids=lambda value: f"{value.__module__.split('.')[-1]}.{value.__name__}" if callable(value) else "",
)
def test_loops_compile(function, arguments):
    np.testing.assert_allclose(numba.njit(function)(*arguments), function(*arguments), rtol=1e-12)
