"""The exercises of lesson 5: sizes of feature maps, receptive fields, parameters and MACs of a network."""

import numpy as np

from mbnp import cost
from mbnp.grading.exercise import Case, Exercise, Mistake
from mbnp.layers import BatchNorm, Conv, Depthwise, GlobalAveragePool, Layer, Linear, Pointwise
from mbnp.models.article import BLOCKS
from mbnp.network import Network
from mbnp.ops.window import output_size

# --- map_sizes ---


def _size(size, stride):
    return output_size((size, size), (3, 3), (stride, stride), ((1, 1), (1, 1)))[0]


def _sizes_with(step, first=False):
    """Make `map_sizes` with another `step(size, stride)`; `first`: always from the image's size."""

    def wrong(size, strides):
        sizes = [size]
        for stride in strides:
            sizes.append(step(sizes[0] if first else sizes[-1], stride))
        return np.array(sizes[1:])

    return wrong


SIZES: list[Case] = [
    {"size": size, "strides": strides}
    for size, strides in (
        (32, [1, 2, 1, 2]),
        (33, [2, 2, 2, 2]),
        (224, [2, 1, 2, 1, 2, 2]),
        (20, [3, 1, 2]),
        (50, [1, 3, 2, 3]),
        (7, [2, 1]),
        (10, [3, 1]),
    )
]


def _chain(size, strides):
    sizes = []
    for stride in strides:
        size = (size + 2 * 1 - 3) // stride + 1
        sizes.append(size)
    return np.array(sizes)


SIZE_MISTAKES = [
    Mistake(
        "integer division: / gives fractions of a row. Only whole windows count: use //",
        _sizes_with(lambda size, stride: (size - 1) / stride + 1),
    ),
    Mistake(
        "integer division: size // stride is right for even sizes only. With padding 1 an odd size has room for one "
        "more window: (size + 2 - 3) // stride + 1",
        _sizes_with(lambda size, stride: size // stride),
    ),
    Mistake(
        "rounding: the last window must end inside the padded image, so round down, not up",
        _sizes_with(lambda size, stride: -(-(size - 1) // stride) + 1),
    ),
    Mistake(
        "the 1 is missing: after the first window come (size + 2 - 3) // stride more",
        _sizes_with(lambda size, stride: (size - 1) // stride),
    ),
    Mistake(
        "padding: it is left out. There is a row of zeros on either side: size + 2",
        _sizes_with(lambda size, stride: (size - 3) // stride + 1),
    ),
    Mistake(
        "padding: it is on both sides, so it counts twice: size + 2",
        _sizes_with(lambda size, stride: (size + 1 - 3) // stride + 1),
    ),
    Mistake("each layer's input is the feature map that the previous layer made", _sizes_with(_size, first=True)),
    Mistake(
        "stride: it is left out; the feature maps never shrink",
        _sizes_with(lambda size, stride: _size(size, 1)),
    ),
    Mistake(
        "the size of the image itself is in the list: leave it out",
        lambda size, strides: np.array([size, *_sizes_with(_size)(size, strides)]),
    ),
]

# --- receptive_field ---


def _field(layers):
    """Go from the last layer to the first: one output, then the inputs that it needs, then theirs."""
    needed = 1
    for kernel, stride in reversed(layers):
        needed = (needed - 1) * stride + kernel
    return needed


def _field_with(grow, step=lambda jump, stride: jump * stride, stride_first=False):
    """Make a loop from the first layer to the last, with `grow(field, kernel, jump)` and `step(jump, stride)`."""

    def wrong(layers):
        field = jump = 1
        for kernel, stride in layers:
            if stride_first:
                jump = step(jump, stride)
            field = grow(field, kernel, jump)
            if not stride_first:
                jump = step(jump, stride)
        return field

    return wrong


def _grow(field, kernel, jump):
    return field + (kernel - 1) * jump


FIELDS: list[Case] = [
    {"layers": layers}
    for layers in (
        [(3, 1), (3, 1)],
        [(3, 2), (3, 1), (5, 1)],
        [(3, 1), *((3, stride) for _, stride in BLOCKS), (2, 2)],
        [(7, 2), (3, 2), (1, 1), (3, 3), (3, 1)],
        [(3, 1)],
        [(2, 2), (5, 1), (2, 3)],
        [(3, 2), (3, 1), (4, 2), (3, 1)],
    )
]


def _from_the_first(layers):
    field = jump = 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump *= stride
    return field


def _one_too_few(layers):
    needed = 1
    for kernel, stride in reversed(layers):
        needed = needed * stride + kernel - 1
    return needed


FIELD_MISTAKES = [
    Mistake(
        "brackets: going back, a field of so many pixels has one less step between them: (field - 1) * stride + kernel",
        _one_too_few,
    ),
    Mistake(
        "stride: a layer's kernel counts by its own stride alone. Its taps are as many pixels apart as the strides of "
        "all layers before it, multiplied",
        lambda layers: 1 + sum((kernel - 1) * stride for kernel, stride in layers),
    ),
    Mistake(
        "order: the layers are taken the wrong way round. field += (kernel - 1) * jump goes from the first layer on, "
        "(field - 1) * stride + kernel from the last one back",
        lambda layers: _field(layers[::-1]),
    ),
    Mistake(
        "stride: a layer's own stride widens the windows of later layers, not its own. First the field, then the jump",
        _field_with(_grow, stride_first=True),
    ),
    Mistake(
        "stride: the jump is left out. After a stride, neighbouring outputs are further apart in the image",
        _field_with(_grow, step=lambda jump, stride: 1),
    ),
    Mistake(
        "stride: the jump is the product of all strides so far, not the last one: jump *= stride",
        _field_with(_grow, step=lambda jump, stride: stride),
    ),
    Mistake(
        "stride: the jump is the product of all strides so far, not their sum: jump *= stride",
        _field_with(_grow, step=lambda jump, stride: jump + stride),
    ),
    Mistake(
        "K - 1: K // 2 is what a kernel reaches to one side. To both sides together it is K - 1",
        _field_with(lambda field, kernel, jump: field + kernel // 2 * jump),
    ),
    Mistake(
        "even kernels: K // 2 on either side is one too many. K taps have K - 1 steps between them",
        _field_with(lambda field, kernel, jump: field + kernel // 2 * 2 * jump),
    ),
    *(
        Mistake(
            "the kernel: 2 is K - 1 of a 3x3 kernel alone, and there are others among the layers",
            _field_with(lambda field, kernel, jump, least=least: field + (2 * jump if kernel > least else 0)),
        )
        for least in (0, 1)
    ),
    Mistake(
        "K - 1: a layer of K taps has K - 1 steps between them; a 1x1 kernel adds nothing",
        _field_with(lambda field, kernel, jump: field + kernel * jump),
    ),
    Mistake(
        "the field starts at 1: an output of no layer at all is the pixel itself",
        lambda layers: _field(layers) - 1,
    ),
    Mistake(
        "windows overlap, so fields are not multiplied: each layer adds (K - 1) * jump",
        _field_with(lambda field, kernel, jump: field * kernel),
    ),
    Mistake(
        "windows overlap, so fields are not multiplied: each layer adds (K - 1) * jump",
        _field_with(lambda field, kernel, jump: field * kernel * jump),
    ),
]

# --- count: parameters and MACs ---


def _count(size, stem, blocks, classes):
    layers: list[Layer] = [Conv(3, stem, 3, padding=1), BatchNorm(stem)]
    channels = stem
    for c_out, stride in blocks:
        layers += [Depthwise(channels, 3, stride, padding=1, bias=False), BatchNorm(channels)]
        layers += [Pointwise(channels, c_out, bias=False), BatchNorm(c_out)]
        channels = c_out
    layers += [GlobalAveragePool(), Linear(channels, classes)]
    net = Network({str(i): layer for i, layer in enumerate(layers)}, resolution=size)
    counted = cost.of(net)
    return counted.params, counted.macs


def _count_with(
    norm=2,
    stem_bias=1,
    biases=0,
    classifier_bias=1,
    kernel=1,
    shrink=_size,
    written=True,
    flops=1,
    widen=True,
):
    """Make `count` by hand, with one thing changed.

    norm: BatchNorm's numbers per channel; biases: of the blocks' convolutions; kernel: of the pointwise step;
    shrink(size, stride): the next size; written: count the pixels of the output, else of the block's input;
    flops: operations in a MAC; widen: a block's channels are the next one's input.
    """

    def wrong(size, stem, blocks, classes):
        parameters = (27 + stem_bias + norm) * stem
        macs = size * size * 27 * stem
        channels = stem
        for c_out, stride in blocks:
            before, size = size, shrink(size, stride)
            weights = 9 * channels + kernel**2 * channels * c_out
            parameters += weights + (norm + biases) * (channels + c_out)
            macs += (size if written else before) ** 2 * weights
            channels = c_out if widen else channels
        return parameters + (channels + classifier_bias) * classes, flops * (macs + channels * classes)

    return wrong


def _by_input(weights):
    """Make `count` with one step's MACs at the pixels that the block reads; weights(channels, c_out): the step's."""

    def wrong(size, stem, blocks, classes):
        parameters, macs = _count(size, stem, blocks, classes)
        channels = stem
        for c_out, stride in blocks:
            macs += weights(channels, c_out) * (size**2 - _size(size, stride) ** 2)
            size, channels = _size(size, stride), c_out
        return parameters, macs

    return wrong


def _at_every_pixel(size, stem, blocks, classes):
    parameters, macs = _count(size, stem, blocks, classes)
    for _, stride in blocks:
        size = _size(size, stride)
    return parameters, macs + (size**2 - 1) * blocks[-1][0] * classes


def _without_classifier(size, stem, blocks, classes):
    parameters, macs = _count(size, stem, blocks, classes)
    return parameters, macs - blocks[-1][0] * classes


COUNTS: list[Case] = [
    {"size": size, "stem": stem, "blocks": blocks, "classes": classes}
    for size, stem, blocks, classes in (
        (10, 4, [(10, 1)], 3),
        (32, 32, list(BLOCKS), 10),
        (33, 8, [(16, 2), (24, 2), (24, 1)], 5),
        (14, 6, [(10, 3), (12, 1)], 4),
    )
]


def _by_hand(size, stem, blocks, classes):
    parameters = 9 * 3 * stem + stem + 2 * stem
    macs = size * size * 9 * 3 * stem
    channels = stem
    for c_out, stride in blocks:
        read = size * size  # noqa: F841 (it is there to be taken by mistake)
        size = (size + 2 * 1 - 3) // stride + 1
        pixels = size * size
        depthwise = 9 * channels
        pointwise = channels * c_out
        parameters += depthwise + 2 * channels + pointwise + 2 * c_out
        macs += pixels * depthwise + pixels * pointwise
        channels = c_out
    parameters += channels * classes + classes
    macs += channels * classes
    return parameters, macs


def _count_block(norm_depthwise=2, norm_pointwise=2, full=False):
    """Make `count` with other numbers of BatchNorm, or a full convolution in place of the depthwise one."""

    def wrong(size, stem, blocks, classes):
        parameters, macs = _count(size, stem, blocks, classes)
        channels = stem
        for c_out, stride in blocks:
            size = _size(size, stride)
            more = 9 * channels * (channels - 1) if full else 0
            parameters += more + (norm_depthwise - 2) * channels + (norm_pointwise - 2) * c_out
            macs += size * size * more
            channels = c_out
        return parameters, macs

    return wrong


COUNT_MISTAKES = [
    Mistake(
        "BatchNorm: the one after the depthwise convolution is missing, 2 numbers for each of its channels",
        _count_block(norm_depthwise=0),
    ),
    Mistake(
        "BatchNorm: the one after the pointwise convolution is missing, 2 numbers for each of c_out channels",
        _count_block(norm_pointwise=0),
    ),
    Mistake(
        "depthwise: it is counted as a standard convolution, 9 * channels * channels. It has one kernel for each "
        "channel: 9 * channels",
        _count_block(full=True),
    ),
    Mistake(
        "the two results are exchanged: parameters come first, then MACs",
        lambda size, stem, blocks, classes: _count(size, stem, blocks, classes)[::-1],
    ),
    Mistake(
        "BatchNorm: running mean and variance are counted, too. They are not learned: 2 numbers for each "
        "channel, not 4",
        _count_with(norm=4),
    ),
    Mistake(
        "BatchNorm: its scale and shift are missing, 2 numbers for each channel after every convolution",
        _count_with(norm=0),
    ),
    Mistake("bias: the first convolution has one, `stem` numbers", _count_with(stem_bias=0)),
    Mistake("bias: the last layer has one, `classes` numbers", _count_with(classifier_bias=0)),
    Mistake("bias: the convolutions of the blocks have none", _count_with(biases=1)),
    Mistake("bias: neither of the two is counted", _count_with(stem_bias=0, classifier_bias=0)),
    Mistake(
        "pointwise: its kernel is 1x1. channels * c_out weights, without the 9",
        _count_with(kernel=3),
    ),
    Mistake(
        "channels: each block takes the output channels of the previous one: channels = c_out",
        _count_with(widen=False),
    ),
    Mistake(
        "stride: MACs of the depthwise step count the pixels that it writes, not those that it reads",
        _by_input(lambda channels, c_out: 9 * channels),
    ),
    Mistake(
        "stride: MACs of the pointwise step count the pixels that the depthwise step wrote, not those that it read",
        _by_input(lambda channels, c_out: channels * c_out),
    ),
    Mistake(
        "stride: MACs count the pixels after the stride. Shrink the feature map before you count the block",
        _count_with(written=False),
    ),
    Mistake("stride: the feature map never shrinks", _count_with(shrink=lambda size, stride: size)),
    Mistake(
        "integer division: size // stride is right for even sizes only: (size + 2 - 3) // stride + 1",
        _count_with(shrink=lambda size, stride: size // stride),
    ),
    Mistake(
        "integer division: / gives fractions of a row, and a float in the end: use //",
        _count_with(shrink=lambda size, stride: (size - 1) / stride + 1),
    ),
    Mistake(
        "these are FLOPs. A MAC is a multiplication and the addition that goes with it, counted once",
        _count_with(flops=2),
    ),
    Mistake("MACs: those of the last layer are missing, channels * classes", _without_classifier),
    Mistake(
        "the last layer: it is counted at every pixel of the last feature map. The mean before it leaves one pixel: "
        "channels * classes",
        _at_every_pixel,
    ),
]

EXERCISES = [
    Exercise(
        "map_sizes",
        SIZES,
        lambda size, strides: _sizes_with(_size)(size, strides),
        SIZE_MISTAKES,
        solutions=(_chain,),
    ),
    Exercise("receptive_field", FIELDS, _field, FIELD_MISTAKES, solutions=(_from_the_first, _field)),
    Exercise("count", COUNTS, _count, COUNT_MISTAKES, outputs=("parameters", "macs"), solutions=(_by_hand,)),
]
