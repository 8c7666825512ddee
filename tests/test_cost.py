"""The published counts, the article's formulas, and that both are about the output's height and width."""

import dataclasses

import numpy as np
import pytest

from mbnp import cost, models
from mbnp.errors import MbnpError
from mbnp.models.mobilenet_v1 import BLOCKS, STEM

# Howard et al., tables 6 and 7, to one more digit; rows are widths, columns are resolutions.
MILLIONS = {
    1.0: {224: 568.7, 192: 418.1, 160: 290.7, 128: 186.4},
    0.75: {224: 325.4, 192: 239.3, 160: 166.4, 128: 106.8},
    0.5: {224: 149.5, 192: 110.0, 160: 76.5, 128: 49.2},
    0.25: {224: 41.0, 192: 30.2, 160: 21.1, 128: 13.6},
}


@pytest.fixture(scope="module")
def v1():
    return models.create("mobilenet-v1")


def test_mobilenet_v1_to_the_last_mac(v1):
    counted = cost.of(v1)
    assert counted.macs == 568_740_352
    assert counted.flops == 2 * 568_740_352
    assert counted.params == 4_231_976
    weights_alone = sum(p.value.size for p in v1.parameters().values() if p.value.ndim > 1)
    assert weights_alone == 4_209_088
    assert {kind: round(100 * share, 2) for kind, share in counted.shares().items()} == {
        "Pointwise": 94.86,
        "Depthwise": 3.06,
        "Conv": 1.91,
        "Linear": 0.18,
    }
    assert list(counted.shares()) == ["Pointwise", "Depthwise", "Conv", "Linear"]


@pytest.mark.parametrize("width", MILLIONS)
def test_every_width_and_resolution_of_the_paper(width):
    net = models.create("mobilenet-v1", width_mult=width)
    rounded = {size: round(cost.of(net, (size, size, 3)).macs / 1e6, 1) for size in MILLIONS[width]}
    assert rounded == MILLIONS[width]


def test_the_body_with_full_convolutions(v1):
    assert cost.of(v1).as_standard() / 1e6 == pytest.approx(4867.3, abs=0.05)
    params, c_in = 3 * 3 * 3 * STEM + 2 * STEM, STEM
    for c_out, _ in BLOCKS:
        params += 3 * 3 * c_in * c_out + 2 * c_out
        c_in = c_out
    params += c_in * 1000 + 1000
    assert params / 1e6 == pytest.approx(29.3, abs=0.05)


def test_the_articles_layer():
    assert cost.standard_conv(10, 10, 3, 3, 10) == 27_000
    assert cost.depthwise(10, 10, 3, 3) == 2_700
    assert cost.pointwise(10, 10, 3, 10) == 3_000
    assert cost.separable(10, 10, 3, 3, 10) == 5_700
    assert cost.separable_ratio(3, 10) == pytest.approx(5_700 / 27_000)


def test_the_articles_network_and_its_twin_with_full_convolutions():
    small = cost.of(models.create("mobilenet-v1-small"))
    assert (small.macs, small.params) == (7_872_512, 280_650)
    standard = cost.of(models.create("standard-small"))
    assert small.as_standard() == standard.macs == standard.as_standard()


def test_a_row_is_counted_by_the_formula_of_its_name():
    rows = {row.name: row for row in cost.of(models.create("mobilenet-v1-small")).rows}
    assert rows["conv1.0"].macs == cost.standard_conv(32, 32, 3, 3, 32)
    strided = rows["conv2_2.0"]
    assert (strided.input_shape, strided.output_shape) == ((32, 32, 32), (16, 16, 32))
    assert strided.macs == cost.depthwise(16, 16, 3, 32)  # of the output: with the input's 32x32 four times as much
    assert rows["conv2_2.3"].macs == cost.pointwise(16, 16, 32, 64)
    assert rows["fc"].macs == 5_120
    assert rows["conv2_2.1"].macs == 0
    assert rows["conv1.0"].params == 3 * 3 * 3 * 32 + 32
    assert sum(row.share for row in rows.values()) == pytest.approx(1)


def test_bytes():
    net = models.create("mobilenet-v1-small")
    single, double = cost.of(net), cost.of(models.create("mobilenet-v1-small", dtype=np.float64))
    assert single.weight_bytes == sum(a.nbytes for a in net.state().values()) == double.weight_bytes / 2
    x = np.zeros((1, 32, 32, 3), np.float32)
    leaves = {row.name for row in single.rows}
    outputs = sum(y.nbytes for name, y in net.activations(x).items() if name in leaves)
    assert single.activation_bytes == outputs == double.activation_bytes / 2


def test_the_table_with_totals():
    table = cost.of(models.create("mobilenet-v1-small")).table()
    lines = table.splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "MACs", "FLOPs", "share"]
    assert lines[-1].split() == ["total", "280,650", "7,872,512", "15,745,024", "100.00", "%"]
    assert " ".join(lines[2].split()) == "conv1.0 Conv 32x32x32 896 884,736 1,769,472 11.24 %"
    assert all(line == line.rstrip() and len(line) <= 80 for line in lines)


@pytest.mark.parametrize(
    ("name", "size", "columns"),
    [
        ("mobilenet-v1", 224, "kind output parameters MACs share"),
        ("resnet20", 32, "kind output parameters MACs share"),
        ("mobilenet-v1", 1024, "kind output parameters MACs"),
        ("resnet20", 16384, "output parameters MACs"),
    ],
)
def test_a_wide_table_leaves_columns_out(name, size, columns):
    counted = cost.of(models.create(name), (size, size, 3))
    lines = counted.table().splitlines()
    assert lines[0].split() == ["layer", *columns.split()]
    assert lines[-1].split()[:3] == ["total", f"{counted.params:,}", f"{counted.macs:,}"]
    assert max(map(len, lines)) <= 80


def test_nothing_is_counted_twice_or_can_be_changed():
    counted = cost.of(models.create("resnet20"))
    assert counted.params == 269_722
    with pytest.raises(dataclasses.FrozenInstanceError):
        counted.rows = ()


@pytest.mark.parametrize("shape", [(32, 32), (0, 32, 3), (1, 32, 32, 3)])
def test_a_bad_shape(shape):
    with pytest.raises(MbnpError, match=r"\(height, width, channels\)"):
        cost.of(models.create("mobilenet-v1-small"), shape)


def test_a_size_the_network_refuses():
    with pytest.raises(MbnpError, match="17 to 48 pixels"):
        cost.of(models.create("mobilenet-v1-small"), (64, 64, 3))
