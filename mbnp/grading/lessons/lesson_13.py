"""The exercises of lesson 13: divisible channels, an inverted residual forward and backward, squeeze-and-excite."""

import math

import numpy as np

from mbnp.grading.exercise import Case, Exercise, Mistake, variants
from mbnp.models import build
from mbnp.ops import depthwise, gate, hard_sigmoid, pointwise, relu

# --- divisible ---


def _divisible(channels, divisor):
    return build.divisible(channels, divisor)


DIVISIBLE_CASES: list[Case] = [
    {"channels": channels, "divisor": divisor}
    for channels, divisor in (
        (24, 8),
        (11.2, 8),
        (44.8, 16),
        (52, 8),
        (3, 8),
        (8.96, 8),
        (32.5, 5),
        (17, 8),
        (13, 8),
        (53, 8),
        (40, 32),
        (40, 12),
        (70.4, 32),
        (90, 16),
    )
]


def _nearest(channels, divisor):
    near = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * channels else near


def _rounded_only(channels, divisor):
    return max(divisor, int(channels + divisor / 2) // divisor * divisor)


def _rounded(near):
    """Make `divisible` with another multiple, near(channels, divisor), before it is compared with 90 %."""

    def wrong(channels, divisor):
        found = max(divisor, near(channels, divisor))
        return found + divisor if found < 0.9 * channels else found

    return wrong


def _below_110(channels, divisor):
    near = _rounded_only(channels, divisor)
    return near - divisor if near > 1.1 * channels else near


DIVISIBLE_MISTAKES = [
    Mistake(
        "90 %: the rule is missing. Where the nearest multiple is below 0.9 * channels, the next one up is right",
        _rounded_only,
    ),
    Mistake(
        "90 %, and no channels: the rule is missing, and few channels become 0. Below 0.9 * channels, take the next "
        "multiple up",
        lambda channels, divisor: int(channels + divisor / 2) // divisor * divisor,
    ),
    Mistake(
        "90 %: the rule is upside down. It keeps a network from losing channels: where the multiple is below 0.9 * "
        "channels, add divisor",
        _below_110,
    ),
    *(
        Mistake(
            "90 %: that is the limit, and not the result, which is a multiple in any case: add divisor",
            lambda channels, divisor, whole=whole: max(_rounded_only(channels, divisor), whole(0.9 * channels)),
        )
        for whole in (float, int, math.ceil, round)
    ),
    *(
        Mistake("rounding: down, where the next multiple is nearer. Add half a divisor before the division", wrong)
        for wrong in (
            _rounded(lambda channels, divisor: int(channels) // divisor * divisor),
            lambda channels, divisor: int(channels) // divisor * divisor,
            lambda channels, divisor: max(divisor, int(channels) // divisor * divisor),
        )
    ),
    Mistake(
        "rounding: always up. The nearest multiple is meant, which may lie below, down to 90 %",
        _rounded(lambda channels, divisor: math.ceil(channels / divisor) * divisor),
    ),
    Mistake(
        "rounding: a half goes up, 6.5 to 7: int(x + 0.5). Python's round takes it to the even neighbour, 6",
        _rounded(lambda channels, divisor: round(channels / divisor) * divisor),
    ),
    Mistake(
        "rounding: divisor // 2 is not half of an odd divisor: divisor / 2",
        _rounded(lambda channels, divisor: int(channels + divisor // 2) // divisor * divisor),
    ),
    Mistake(
        "fractions: channels are cut to a whole number first. 90 % is of channels as they are",
        lambda channels, divisor: build.divisible(int(channels), divisor),
    ),
    Mistake(
        "the divisor is not used: it need not be 8",
        lambda channels, divisor: build.divisible(channels, 8),
    ),
    Mistake(
        "a float: // of a float is a float. Channels are counted: int(...) before //",
        lambda channels, divisor: float(build.divisible(channels, divisor)),
    ),
]

# --- an inverted residual ---


def _relu6(x):
    return relu.forward(x, 6.0)


def _linear(x):
    return x


def _block_case(rng: np.random.Generator, shape: tuple, wide: int, c_out: int) -> Case:
    """Make one whose two feature maps within go below 0 and above 6."""
    c_in = shape[-1]
    case = {
        "x": 2 * rng.standard_normal(shape),
        "w1": rng.standard_normal((c_in, wide)) * 3 / math.sqrt(c_in),
        "w2": rng.standard_normal((3, 3, wide)) * 0.7,
        "w3": rng.standard_normal((wide, c_out)) / math.sqrt(wide),
    }
    return {name: array.astype(np.float32) for name, array in case.items()}


def _forward_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    shapes = ((2, 4, 3, 3), 12, 3), ((1, 3, 5, 4), 6, 2), ((3, 5, 4, 2), 7, 2), ((2, 3, 3, 3), 4, 1)
    return [_block_case(rng, *shape) for shape in shapes]


def _forward(x, w1, w2, w3, first=_relu6, second=_relu6, projected=_linear, kept=_linear, summed=_linear):
    """Return the right answer, or one with other functions: of each feature map, of the shortcut, of the sum."""
    filtered = second(depthwise.forward(first(pointwise.forward(x, w1)), w2, padding=1))
    y = projected(pointwise.forward(filtered, w3))
    return summed(kept(x) + y if x.shape == y.shape else y)


def _bordered(mode):
    """Make the block with another border of the depthwise convolution than zeros, a mode of np.pad."""

    def wrong(x, w1, w2, w3):
        wide = np.pad(_relu6(pointwise.forward(x, w1)), ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
        y = pointwise.forward(_relu6(depthwise.forward(wide, w2)), w3)
        return x + y if x.shape == y.shape else y

    return wrong


def _around_the_wide(x, w1, w2, w3):
    wide = _relu6(pointwise.forward(x, w1))
    return pointwise.forward(wide + _relu6(depthwise.forward(wide, w2, padding=1)), w3)


def _narrow_wide_narrow(x, w1, w2, w3):
    H, W = x.shape[1:3]
    wide = np.clip(x @ w1, 0, 6)
    padded = np.pad(wide, ((0, 0), (1, 1), (1, 1), (0, 0)))
    filtered = np.zeros_like(wide)
    for u in range(3):
        for v in range(3):
            filtered += padded[:, u : u + H, v : v + W] * w2[u, v]
    y = np.clip(filtered, 0, 6) @ w3
    return x + y if x.shape == y.shape else y


FORWARD_MISTAKES = [
    Mistake(
        "the border: pixels of the opposite side come in, as np.roll brings them. Outside of the image there are zeros",
        _bordered("wrap"),
    ),
    *(
        Mistake("the border: it repeats pixels of the image. Outside of it there are zeros", _bordered(mode))
        for mode in ("edge", "reflect")
    ),
    *variants(
        _forward,
        {
            "the shortcut is missing: where the block has as many channels out as in, x is added": {
                "kept": np.zeros_like
            },
            "linear bottleneck: nothing comes after the last convolution. A ReLU6 on few channels loses what it cuts "
            "off": {"projected": _relu6},
            "the sum: a ReLU6 comes after it, as a ReLU does in ResNet. Here "
            "the narrow ends have no activation at all": {"summed": _relu6},
            "ReLU for ReLU6: what is above 6 becomes 6, after both of the first two convolutions": {
                "first": relu.forward,
                "second": relu.forward,
            },
            "ReLU for ReLU6 after the convolution that widens: what is above 6 becomes 6": {"first": relu.forward},
            "ReLU for ReLU6 after the depthwise convolution: what is above 6 becomes 6": {"second": relu.forward},
            "the first ReLU6 is missing: it comes after the 1x1 convolution "
            "that widens, and before the depthwise one": {"first": _linear},
            "the second ReLU6 is missing: it comes after the depthwise convolution, and before the one that projects": {
                "second": _linear
            },
        },
    ),
    Mistake(
        "the shortcut: x is added whatever its shape. Where the channels change, there is no shortcut",
        lambda x, w1, w2, w3: x + _forward(x, w1, w2, w3, kept=np.zeros_like),
    ),
    Mistake(
        "the shortcut joins the wide ends. It goes from x to the projected feature map, past all three convolutions",
        _around_the_wide,
    ),
    Mistake(
        "flipped kernel: w2 is turned by 180 degrees. Tap (u, v) multiplies the pixel u - 1 below and v - 1 to the "
        "right",
        lambda x, w1, w2, w3: _forward(x, w1, w2[::-1, ::-1].copy(), w3),
    ),
    Mistake(
        "transposed kernel: w2[v, u] stands where w2[u, v] belongs; u goes with the height, v with the width",
        lambda x, w1, w2, w3: _forward(x, w1, w2.swapaxes(0, 1).copy(), w3),
    ),
]


def _backward_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for shape, wide, c_out in (((2, 4, 3, 3), 8, 3), ((1, 3, 5, 4), 6, 2), ((3, 3, 4, 2), 5, 2)):
        block = _block_case(rng, shape, wide, c_out)
        a = pointwise.forward(block["x"], block["w1"])
        b = depthwise.forward(_relu6(a), block["w2"], padding=1)
        dy = rng.standard_normal((*shape[:3], c_out)).astype(np.float32)
        cases.append({"dy": dy, "x": block["x"], "a": a, "b": b, "w1": block["w1"], "w2": block["w2"]})
        cases[-1]["w3"] = block["w3"]
    return cases


def _slope6(d, x):
    return relu.backward(d, x, 6.0)


def _passed(d, x):
    return d


def _backward(dy, x, a, b, w1, w2, w3, *, first=_slope6, second=_slope6, wide=_relu6, filtered=_relu6, unfiltered=None):
    """Return the right answer, or one with other slopes, other inputs of the convolutions, or another dx of one."""
    db, dw3, _ = pointwise.backward(dy, filtered(b), w3)
    db = second(db, b)
    da, dw2, _ = depthwise.backward(db, wide(a), w2, padding=1)
    da = first(da if unfiltered is None else unfiltered(db, w2), a)
    dx, dw1, _ = pointwise.backward(da, x, w1)
    return (dx + dy if x.shape == dy.shape else dx), dw1, dw2, dw3


def _without_shortcut(dy, x, a, b, w1, w2, w3):
    dx, *others = _backward(dy, x, a, b, w1, w2, w3)
    return (dx - dy if x.shape == dy.shape else dx), *others


def _along_shortcut(dy, x, a, b, w1, w2, w3, added):
    dx, *others = _without_shortcut(dy, x, a, b, w1, w2, w3)
    return (dx + added if x.shape == dy.shape else dx), *others


def _back_through_all(dy, x, a, b, w1, w2, w3):
    H, W = x.shape[1:3]
    wide, filtered = np.clip(a, 0, 6), np.clip(b, 0, 6)
    dw3 = np.einsum("nijt,nijd->td", filtered, dy)
    db = (dy @ w3.T) * ((b > 0) & (b < 6))
    padded = np.pad(wide, ((0, 0), (1, 1), (1, 1), (0, 0)))
    dpadded, dw2 = np.zeros_like(padded), np.zeros_like(w2)
    for u in range(3):
        for v in range(3):
            dw2[u, v] = (padded[:, u : u + H, v : v + W] * db).sum(axis=(0, 1, 2))
            dpadded[:, u : u + H, v : v + W] += db * w2[u, v]
    da = dpadded[:, 1:-1, 1:-1] * ((a > 0) & (a < 6))
    dw1 = np.einsum("nijc,nijt->ct", x, da)
    dx = da @ w1.T
    return (dx + dy if x.shape == dy.shape else dx), dw1, dw2, dw3


BACKWARD_MISTAKES = [
    *variants(
        _backward,
        {
            "ReLU for ReLU6: above 6 the slope is 0, too. The gradient goes on only where 0 < a < 6, and 0 < b < 6": {
                "first": relu.backward,
                "second": relu.backward,
            },
            "ReLU for ReLU6 after the convolution that widens: the gradient goes on only where 0 < a < 6": {
                "first": relu.backward
            },
            "ReLU for ReLU6 after the depthwise convolution: the gradient goes on only where 0 < b < 6": {
                "second": relu.backward
            },
            "the first ReLU6 is passed over: its gradient is 0 where a is not between 0 and 6": {"first": _passed},
            "the second ReLU6 is passed over: its gradient is 0 where b is not between 0 and 6": {"second": _passed},
            "both ReLU6 are passed over: their gradients are 0 where a, and where b, is not between 0 and 6": {
                "first": _passed,
                "second": _passed,
            },
            "the gradient itself is clipped to 0..6. ReLU6's slope is 1 or 0, and a and b tell where": {
                "first": lambda d, x: _relu6(d),
                "second": lambda d, x: _relu6(d),
            },
            "dw3 is made with b. The last convolution saw b after ReLU6: np.clip(b, 0, 6)": {"filtered": _linear},
            "dw2 is made with a. The depthwise convolution saw a after ReLU6: np.clip(a, 0, 6)": {"wide": _linear},
            "the depthwise gradient slides w2 over db as the forward does. Output i used pixel i + u - 1, so the "
            "gradient goes back there: scatter, "
            "or turn w2 by 180 degrees": {"unfiltered": lambda db, w2: depthwise.forward(db, w2, padding=1)},
        },
    ),
    Mistake(
        "the shortcut's gradient is missing: y = x + ..., so that dy itself is added to dx where x was added",
        _without_shortcut,
    ),
    Mistake(
        "the shortcut: x is added to dx. y = x + ..., so that dy is what comes back along it",
        lambda dy, x, a, b, w1, w2, w3: _along_shortcut(dy, x, a, b, w1, w2, w3, x),
    ),
    Mistake(
        "the first ReLU6: the mask is b's. This one was applied to a: the gradient goes on where 0 < a < 6",
        lambda dy, x, a, b, w1, w2, w3: _backward(dy, x, a, b, w1, w2, w3, first=lambda d, _: _slope6(d, b)),
    ),
    Mistake(
        "the second ReLU6: the mask is a's. This one was applied to b: the gradient goes on where 0 < b < 6",
        lambda dy, x, a, b, w1, w2, w3: _backward(dy, x, a, b, w1, w2, w3, second=lambda d, _: _slope6(d, a)),
    ),
    *variants(
        _backward,
        {
            f"{which}: its output is multiplied, not its slope. That is 1 between 0 and 6, and 0 elsewhere": {
                name: lambda d, x: d * _relu6(x) for name in names
            }
            for which, names in (
                ("the first ReLU6", ("first",)),
                ("the second ReLU6", ("second",)),
                ("ReLU6", ("first", "second")),
            )
        },
    ),
    Mistake(
        "order: the weights' gradients come as they are found, from the last. It is dx, dw1, dw2, dw3",
        lambda *case, **named: tuple(_backward(*case, **named)[k] for k in (0, 3, 2, 1)),
    ),
]

# --- squeeze_excite_backward ---


def _excite_cases(seed: int) -> list[Case]:
    """Return cases in which some of the excitations lie on each of hard-sigmoid's three lines."""
    rng = np.random.default_rng(seed)
    cases = []
    for shape, few in (((2, 2, 4, 7), 4), ((3, 2, 2, 5), 4), ((1, 5, 4, 8), 5), ((4, 1, 1, 4), 2)):
        c = shape[-1]
        case = {
            "dy": rng.standard_normal(shape),
            "x": rng.standard_normal(shape) + 1.5 * rng.standard_normal((shape[0], 1, 1, c)),
            "w1": rng.standard_normal((c, few)) / math.sqrt(c),
            "w2": rng.standard_normal((few, c)) * 3.5,
        }
        cases.append({name: array.astype(np.float32) for name, array in case.items()})
    return cases


def _pixel_sum(dy, x):
    return np.einsum("nijc,nijc->nc", dy, x)


def _excite(
    dy, x, w1, w2, *, ds=_pixel_sum, dsigmoid=hard_sigmoid.backward, drelu=relu.backward, ways=(1, 1), spread=None
):
    """Return the right answer, or one with other derivatives, without one of x's two ways, or another average's."""
    m = x.mean(axis=(1, 2))
    a = m @ w1
    h = relu.forward(a)
    z = h @ w2
    dz = dsigmoid(ds(dy, x), z)
    da = drelu(dz @ w2.T, a)
    pixels = x.shape[1] * x.shape[2] if spread is None else spread(x)
    direct, _ = gate.backward(dy, x, hard_sigmoid.forward(z))
    through = (da @ w1.T)[:, None, None, :] / x.dtype.type(pixels)
    return direct * x.dtype.type(ways[0]) + through * x.dtype.type(ways[1]), m.T @ da, h.T @ dz


def _sigmoid_slope(ds, z):
    s = 1 / (1 + np.exp(-z))
    return ds * s * (1 - s)


def _both_ways(dy, x, w1, w2):
    H, W = x.shape[1:3]
    m = x.mean(axis=(1, 2))
    h = np.maximum(m @ w1, 0)
    z = h @ w2
    s = np.clip(z + 3, 0, 6) / 6
    ds = (dy * x).sum(axis=(1, 2))
    dz = ds / 6 * ((z > -3) & (z < 3))
    dh = dz @ w2.T * (h > 0)
    dm = dh @ w1.T
    dx = dy * s[:, None, None] + dm[:, None, None] / (H * W)
    return dx, m.T @ dh, h.T @ dz


EXCITE_MISTAKES = [
    *variants(
        _excite,
        {
            "one way is missing: x is also what s was made of. Add what comes "
            "back through s and the averages to dy * s": {"ways": (1, 0)},
            "one way is missing: y = x * s has x in it, too. Add dy * s to what comes back through the averages": {
                "ways": (0, 1)
            },
            "the average: each pixel has 1 / (H * W) of it, so its gradient is dm / (H * W)": {"spread": lambda x: 1},
            "the average is over the pixels of one image: dm is divided by H * W, not by N * H * W": {
                "spread": lambda x: x.size // x.shape[-1]
            },
            "ds: x is missing. y = x * s, so the derivative with respect to s is x: sum dy * x over the pixels": {
                "ds": lambda dy, x: dy.sum(axis=(1, 2))
            },
            "ds: this is the mean over the pixels. s multiplies every pixel of its map: sum over them": {
                "ds": lambda dy, x: (dy * x).mean(axis=(1, 2))
            },
            "hard-sigmoid: its slope is 1/6 between -3 and 3, and the division by 6 is missing": {
                "dsigmoid": lambda ds, z: ds * ((z > -3) & (z < 3))
            },
            "hard-sigmoid: its slope is 1/6 only between -3 and 3. Outside it is flat: 0": {
                "dsigmoid": lambda ds, z: ds / 6
            },
            "hard-sigmoid: above 3 it is flat, too. Its slope is 1/6 only between -3 and 3": {
                "dsigmoid": lambda ds, z: ds / 6 * (z > -3)
            },
            "hard-sigmoid: s * (1 - s) is the slope of the sigmoid. Here there are three lines: 1/6 between -3 and 3, "
            "else 0": {"dsigmoid": _sigmoid_slope},
            "hard-sigmoid: s * (1 - s) is the slope of the sigmoid, and s is none. Its slope is 1/6 between -3 and 3, "
            "else 0": {"dsigmoid": lambda ds, z: ds * hard_sigmoid.forward(z) * (1 - hard_sigmoid.forward(z))},
            "ReLU: its output is multiplied, not its slope. That is 1 where h > 0, and 0 elsewhere": {
                "drelu": lambda d, a: d * np.maximum(a, 0)
            },
            "ReLU is passed over: where the first product is negative, no gradient goes back": {"drelu": _passed},
        },
    ),
]

GRADIENTS = ("dx", "dw1", "dw2", "dw3")
EXERCISES = [
    Exercise("divisible", DIVISIBLE_CASES, _divisible, DIVISIBLE_MISTAKES, solutions=(_nearest,)),
    Exercise("inverted_residual_forward", _forward_cases, _forward, FORWARD_MISTAKES, solutions=(_narrow_wide_narrow,)),
    Exercise(
        "inverted_residual_backward",
        _backward_cases,
        _backward,
        BACKWARD_MISTAKES,
        outputs=GRADIENTS,
        solutions=(_back_through_all,),
    ),
    Exercise(
        "squeeze_excite_backward",
        _excite_cases,
        _excite,
        EXCITE_MISTAKES,
        outputs=GRADIENTS[:3],
        solutions=(_both_ways,),
    ),
]
