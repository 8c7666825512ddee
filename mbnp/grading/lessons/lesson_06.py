"""The exercises of lesson 6: the loss's gradient, a learning-rate schedule, augmentation."""

import math

import numpy as np

from mbnp import optim
from mbnp.datasets import augment
from mbnp.grading.exercise import Case, Exercise, Mistake
from mbnp.ops import softmax_cross_entropy

# --- loss_gradient ---


def _gradient_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    sizes = ((2, 3, 1.0), (5, 4, 2.0), (4, 4, 1.0), (3, 10, 200.0))  # the last: exp(z) overflows in float32
    cases = [
        {
            "logits": scale * rng.standard_normal((n, d), dtype=np.float32),
            "labels": rng.integers(0, d, n),
        }
        for n, d, scale in sizes
    ]
    # Rows far apart: what is subtracted from a row must come from that row.
    far = rng.standard_normal((4, 5), dtype=np.float32) + np.array([[60], [-200], [0], [-90]], np.float32)
    return [*cases[:3], {"logits": far, "labels": rng.integers(0, 5, 4)}, cases[3]]


def _one_hot(logits, labels):
    target = np.zeros_like(logits)
    target[np.arange(len(labels)), labels] = 1
    return target


def _softmax(logits, axis=1):
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


@np.errstate(over="ignore", invalid="ignore")
def _overflowing(logits, labels):
    powers = np.exp(logits)
    return (powers / powers.sum(axis=1, keepdims=True) - _one_hot(logits, labels)) / len(labels)


def _whole_columns(logits, labels):
    dlogits = _softmax(logits)
    dlogits[:, labels] -= 1
    return dlogits / len(labels)


def _minus_target(logits, labels):
    N = len(labels)
    largest = logits.max(axis=1, keepdims=True)
    powers = np.exp(logits - largest)
    dlogits = powers / powers.sum(axis=1, keepdims=True)
    dlogits[np.arange(N), labels] -= 1
    return dlogits / N


def _shifted_by(shift):
    """Make a gradient whose softmax subtracts `shift(logits)` before exp."""

    def wrong(logits, labels):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return _overflowing(logits - shift(logits), labels)

    return wrong


def _one_over_p(logits, labels, least=0.0):
    """Take the derivative of -log p with respect to p, and stop there."""
    p = _softmax(logits)
    with np.errstate(divide="ignore"):
        at_label = -_one_hot(logits, labels) / np.maximum(p, np.float32(least))
    return np.where(_one_hot(logits, labels) > 0, at_label, 0) / len(labels)


GRADIENT_MISTAKES = [
    Mistake(
        "the batch: only the 1 at the label is divided by N. The loss is a mean over images, so all of probability "
        "minus target is",
        lambda logits, labels: _softmax(logits) - _one_hot(logits, labels) / np.float32(len(labels)),
    ),
    Mistake(
        "the batch: only the probabilities are divided by N. The loss is a mean over images, so all of probability "
        "minus target is",
        lambda logits, labels: _softmax(logits) / np.float32(len(labels)) - _one_hot(logits, labels),
    ),
    Mistake(
        "softmax: this is the sigmoid of each logit by itself. Its numbers do not sum to 1 over the classes: divide "
        "the powers of a row by their sum",
        lambda logits, labels: (
            (1 / (1 + np.exp(-logits.astype(np.float64))) - _one_hot(logits, labels)).astype(np.float32)
            / np.float32(len(labels))
        ),
    ),
    Mistake(
        "softmax: one maximum for the whole batch is subtracted. A row far below it becomes exp of large negative "
        "numbers, 0, and 0/0 is NaN. Each row has its own maximum: axis=1, keepdims=True",
        _shifted_by(lambda logits: logits.max()),
    ),
    Mistake(
        "overflow: the logits are clipped, which changes the probabilities. Subtract each row's maximum instead: it "
        "changes none, and no power is above 1",
        lambda logits, labels: (_softmax(np.clip(logits, -50, 50)) - _one_hot(logits, labels)) / len(labels),
    ),
    Mistake(
        "softmax: the mean of the row is subtracted, and exp can still overflow. Subtract the maximum: then no power "
        "is above 1",
        _shifted_by(lambda logits: logits.mean(axis=1, keepdims=True)),
    ),
    *(
        Mistake(
            "chain rule: -1/p at the label is the derivative with respect to the probability. Through softmax it "
            "becomes probability minus target, for every logit",
            lambda logits, labels, least=least: _one_over_p(logits, labels, least),
        )
        for least in (0.0, 1e-7, 1e-12, 1e-8, 1e-10)
    ),
    Mistake(
        "chain rule: probability minus target is already the derivative of all, softmax included. p * (1 - p) is not "
        "multiplied once more",
        lambda logits, labels: (
            (_softmax(logits) - _one_hot(logits, labels)) * _softmax(logits) * (1 - _softmax(logits)) / len(labels)
        ),
    ),
    Mistake(
        "the other classes: only the label's own logit has a gradient here. Every logit is in the sum below the "
        "fraction: where the target is 0 its gradient is the probability",
        lambda logits, labels: _one_hot(logits, labels) * (_softmax(logits) - 1) / np.float32(len(labels)),
    ),
    Mistake(
        "batch: the division by N is missing. The loss is the mean over the N images, so its gradient is, too",
        lambda logits, labels: _softmax(logits) - _one_hot(logits, labels),
    ),
    Mistake(
        "batch: the division is by the number of classes; the mean is over the N images, len(labels)",
        lambda logits, labels: (_softmax(logits) - _one_hot(logits, labels)) / logits.shape[1],
    ),
    Mistake(
        "batch: the division is by all N*D numbers; only the N images are averaged over",
        lambda logits, labels: (_softmax(logits) - _one_hot(logits, labels)) / logits.size,
    ),
    Mistake(
        "softmax: the logits themselves are used; turn each row into probabilities first",
        lambda logits, labels: (logits - _one_hot(logits, labels)) / len(labels),
    ),
    Mistake(
        "softmax: it runs over the images instead of the classes: axis=1, with keepdims=True",
        lambda logits, labels: (_softmax(logits, axis=0) - _one_hot(logits, labels)) / len(labels),
    ),
    Mistake(
        "overflow: exp of a large logit is infinite in float32, and infinite / infinite is NaN. Subtract each row's "
        "maximum first: it changes no probability",
        _overflowing,
    ),
    Mistake(
        "indexing: dlogits[:, labels] takes whole columns. It should be one number in each row: "
        "dlogits[np.arange(N), labels]",
        _whole_columns,
    ),
    Mistake(
        "sign: it is target minus probability, the direction in which the loss falls. The gradient is "
        "the direction in which it rises: probability minus target",
        lambda logits, labels: (_one_hot(logits, labels) - _softmax(logits)) / len(labels),
    ),
    Mistake(
        "target: 1 is subtracted for every class. Subtract it at the label alone: dlogits[np.arange(N), labels] -= 1",
        lambda logits, labels: (_softmax(logits) - 1) / len(labels),
    ),
    Mistake(
        "target: the 1 of the right class is not subtracted",
        lambda logits, labels: _softmax(logits) / len(labels),
    ),
]

# --- one_cycle ---

START, END = 1 / 25, 1 / 25 / 1e4  # of the peak


def _one_cycle(peak, total, warm):
    at = optim.one_cycle(peak, total, warm, momentum=None)
    return np.array([at(step)["lr"] for step in range(total)])


def _both_halves(peak, total, warm):
    step, top, last = np.arange(total), warm * total - 1, total - 1
    start, end = peak / 25, peak / 25 / 10_000
    up = start + (peak - start) * (1 - np.cos(np.pi * step / top)) / 2
    down = end + (peak - end) * (1 + np.cos(np.pi * (step - top) / (last - top))) / 2
    return np.where(step <= top, up, down)


def _cosine(start, end, fraction):
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def _cycle(peak, total, warm, top=None, last=None, start=START, end=END, between=_cosine):
    """Compute the schedule with one thing changed."""
    top, last = (warm * total - 1 if top is None else top), (total - 1 if last is None else last)
    lrs = np.empty(total)
    for step in range(total):
        if step <= top:
            lrs[step] = between(start * peak, peak, step / top)
        else:
            lrs[step] = between(peak, end * peak, (step - top) / (last - top))
    return lrs


def _two_halves(peak, total, warm):
    """Compute each half from its own first step to its own last one: two steps have the peak."""
    up = int(warm * total)
    rise = [_cosine(START * peak, peak, step / (up - 1)) for step in range(up)]
    fall = [_cosine(peak, END * peak, step / (total - up - 1)) for step in range(total - up)]
    return np.array(rise + fall)


def _by_steps(peak, total, warm):
    start = peak / 25
    end = start / 10_000
    top = warm * total - 1
    last = total - 1
    rates = np.empty(total)
    for step in range(total):
        if step <= top:
            a, b, s = start, peak, step / top
        else:
            a, b, s = peak, end, (step - top) / (last - top)
        rates[step] = b + (a - b) / 2 * (1 + np.cos(np.pi * s))
    return rates


def _way_down(fraction):
    """Make a schedule whose second half is at another fraction of it, `fraction(step, top, last)`."""

    def wrong(peak, total, warm):
        top, last = warm * total - 1, total - 1
        down = [_cosine(peak, END * peak, fraction(step, top, last)) for step in range(total)]
        return np.where(np.arange(total) <= top, _cycle(peak, total, warm), down)

    return wrong


def _line(start, end, fraction):
    return start + (end - start) * fraction


def _lines(peak, total, warm):
    up = int(warm * total)
    return np.concatenate([np.linspace(START * peak, peak, up), np.linspace(peak, END * peak, total - up)])


def _with_angle(times):
    return lambda start, end, fraction: end + (start - end) / 2 * (1 + math.cos(times * math.pi * fraction))


CYCLE_MISTAKES = [
    Mistake(
        "shape: a whole cosine (2 pi) comes back to where it began. Half of it goes from one end to the other: "
        "cos(pi * fraction)",
        lambda peak, total, warm: _cycle(peak, total, warm, between=_with_angle(2)),
    ),
    Mistake(
        "shape: a quarter of a cosine (pi / 2) stops half-way. Half of it goes from one end to the other: "
        "cos(pi * fraction)",
        lambda peak, total, warm: _cycle(peak, total, warm, between=_with_angle(0.5)),
    ),
    *(
        Mistake(
            "shape: a quarter of a cosine or sine (pi / 2) is flat at one of its ends only. Half a cosine is flat at "
            "both: (1 - cos(pi * fraction)) / 2 goes from 0 to 1",
            lambda peak, total, warm, part=part: _cycle(
                peak, total, warm, between=lambda a, b, f: _line(a, b, part(math.pi / 2 * f))
            ),
        )
        for part in (math.sin, lambda angle: 1 - math.cos(angle))
    ),
    Mistake(
        "shape: the way down is a straight line; it is half a cosine, too, flat at both of its ends",
        lambda peak, total, warm: _cycle(
            peak, total, warm, between=lambda a, b, f: _cosine(a, b, f) if a < b else _line(a, b, f)
        ),
    ),
    *(
        Mistake(
            "shape: a quarter of a sine up and of a cosine down (pi / 2) are flat at one end only. Half a cosine is "
            "flat at both: (1 - cos(pi * fraction)) / 2 goes from 0 to 1",
            lambda peak, total, warm, up=up: _cycle(
                peak,
                total,
                warm,
                between=lambda a, b, f: _line(
                    a, b, math.sin(math.pi / 2 * f) if (a < b) == up else 1 - math.cos(math.pi / 2 * f)
                ),
            ),
        )
        for up in (True, False)
    ),
    Mistake(
        "way down: there is none, the way up goes on. After the peak another half of a cosine goes from the peak to "
        "peak / 25 / 10,000",
        lambda peak, total, warm: np.array(
            [_cosine(START * peak, peak, step / (warm * total - 1)) for step in range(total)]
        ),
    ),
    Mistake(
        "way down: its fraction is counted from step 0. It is 0 at the peak, (step - top) / (last - top)",
        _way_down(lambda step, top, last: step / last),
    ),
    Mistake(
        "way down: its fraction is divided by all steps, and does not reach 1. Only those after the peak count, "
        "(step - top) / (last - top)",
        _way_down(lambda step, top, last: (step - top) / last),
    ),
    Mistake(
        "shape: the two halves are straight lines, and both have the peak: two steps in a row. Each is half a cosine, "
        "flat at both of its ends, and the second one starts from the peak's own step",
        _lines,
    ),
    Mistake(
        "start: it begins at peak / 10, and the end follows from it. It begins at peak / 25",
        lambda peak, total, warm: _cycle(peak, total, warm, start=1 / 10, end=1 / 10 / 1e4),
    ),
    Mistake(
        "start: it begins at peak / 10. It begins at peak / 25",
        lambda peak, total, warm: _cycle(peak, total, warm, start=1 / 10),
    ),
    Mistake(
        "off by one: two steps in a row have the peak. The second half starts from the peak's own step, "
        "(step - top) / (last - top), so the step after it is already lower",
        _two_halves,
    ),
    Mistake(
        "off by one: the steps are counted from 0, so the peak is at step warm*total - 1 and the end at step total - 1",
        lambda peak, total, warm: _cycle(peak, total, warm, top=warm * total, last=total),
    ),
    Mistake(
        "off by one: the end is reached at step total - 1, the last one there is, and not at step total",
        lambda peak, total, warm: _cycle(peak, total, warm, last=total),
    ),
    Mistake(
        "off by one: the peak is reached at step warm*total - 1, because the first step is step 0",
        lambda peak, total, warm: _cycle(peak, total, warm, top=warm * total),
    ),
    Mistake(
        "integer division: the peak is at warm*total - 1, a fraction included; it is not rounded to a whole step",
        lambda peak, total, warm: _cycle(peak, total, warm, top=int(warm * total) - 1),
    ),
    Mistake(
        "shape: the way up is a straight line; it is half a cosine, too, flat at both of its ends",
        lambda peak, total, warm: np.where(
            (step := np.arange(total)) <= (top := warm * total - 1),
            peak / 25 + (peak - peak / 25) * step / top,
            _cycle(peak, total, warm),
        ),
    ),
    Mistake(
        "shape: the two halves are straight lines; each is half a cosine, flat at both of its ends",
        lambda peak, total, warm: _cycle(peak, total, warm, between=_line),
    ),
    Mistake(
        "shape: the cosine begins at its wrong end. cos(pi * fraction) is 1 at the start and -1 at the end",
        lambda peak, total, warm: _cycle(
            peak, total, warm, between=lambda start, end, fraction: _cosine(end, start, fraction)
        ),
    ),
    Mistake(
        "start: it begins at 0, and the first step then does nothing. It begins at peak / 25",
        lambda peak, total, warm: _cycle(peak, total, warm, start=0.0),
    ),
    Mistake(
        "end: it ends at 0; it ends at peak / 25 / 10,000",
        lambda peak, total, warm: _cycle(peak, total, warm, end=0.0),
    ),
    Mistake(
        "end: it ends where it began, at peak / 25. From the peak it goes much further down, to peak / 25 / 10,000",
        lambda peak, total, warm: _cycle(peak, total, warm, end=START),
    ),
    Mistake(
        "end: the division by 10,000 is taken from the peak; it is taken from the start, peak / 25",
        lambda peak, total, warm: _cycle(peak, total, warm, end=1e-4),
    ),
    Mistake(
        "warm-up: there is none. The first fraction `warm` of the steps goes up, from peak / 25 to the peak",
        lambda peak, total, warm: np.array([_cosine(peak, END * peak, step / (total - 1)) for step in range(total)]),
    ),
]

# --- mirror_and_crop ---


class _Chosen:
    """A generator of given numbers, so that `augment` makes given shifts."""

    def __init__(self, top, left, mirrored):
        self.moves, self.mirrored = np.stack([top, left]), mirrored

    def integers(self, low, high, size):
        return self.moves

    def random(self, n):
        return np.where(self.mirrored, 0.25, 0.75)


def _mirror_and_crop(images, top, left, mirrored, pad):
    return augment(images, _Chosen(top, left, mirrored), pad)  # type: ignore[arg-type]


def _crop_cases(seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for n, h, w, pad, mirrored in (
        (1, 4, 5, 1, [False]),
        (1, 3, 5, 1, [True]),
        (4, 6, 5, 2, [False, True, True, False]),
        (3, 7, 7, 3, [True, False, True]),
    ):
        top, left = rng.integers(0, 2 * pad + 1, (2, n))
        cases.append(
            {
                "images": rng.integers(0, 256, (n, h, w, 3), dtype=np.uint8),
                "top": top,
                "left": left,
                "mirrored": np.array(mirrored),
                "pad": pad,
            }
        )
    return cases


def _crop(images, top, left, mirrored, pad, mode="reflect", flip=np.s_[:, ::-1], first=False):
    """Augment image by image, with one thing changed."""
    n, h, w, _ = images.shape
    crops = np.empty_like(images)
    for i in range(n):
        image = images[i][flip] if first and mirrored[i] else images[i]
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=mode)
        crop = padded[top[i] : top[i] + h, left[i] : left[i] + w]
        crops[i] = crop[flip] if mirrored[i] and not first else crop
    return crops


def _rolled(images, top, left, mirrored, pad):
    crops = np.empty_like(images)
    for i in range(len(images)):
        crop = np.roll(images[i], (pad - top[i], pad - left[i]), axis=(0, 1))
        crops[i] = crop[:, ::-1] if mirrored[i] else crop
    return crops


def _padded_channels(images, top, left, mirrored, pad):
    wider = np.pad(images, ((0, 0), (0, 0), (0, 0), (pad, pad)), mode="reflect")
    return _crop(wider, top, left, mirrored, pad)


def _first_image_decides(images, top, left, mirrored, pad):
    n = len(images)
    return _crop(images, np.repeat(top[:1], n), np.repeat(left[:1], n), mirrored, pad)


def _one_by_one(images, top, left, mirrored, pad):
    N, H, W, _ = images.shape
    result = np.empty_like(images)
    sides = (pad, pad)
    for n in range(N):
        padded = np.pad(images[n], (sides, sides, (0, 0)), mode="reflect")
        first, second = top[n], left[n]
        cut = padded[first : first + H, second : second + W]
        result[n] = cut[:, ::-1] if mirrored[n] else cut
    return result


CROP_MISTAKES = [
    Mistake(
        "mirror: the image is upside down: its rows are reversed, and its columns should be. That is [:, ::-1] of one "
        "image (H, W, C), and [:, :, ::-1] of a batch (N, H, W, C)",
        lambda images, top, left, mirrored, pad: _crop(images, top, left, mirrored, pad, flip=np.s_[::-1]),
    ),
    Mistake(
        "mirror: red and blue are swapped: [..., ::-1] reverses the last axis, which is the channels",
        lambda images, top, left, mirrored, pad: _crop(images, top, left, mirrored, pad, flip=np.s_[..., ::-1]),
    ),
    Mistake(
        "mirror: no image is mirrored",
        lambda images, top, left, mirrored, pad: _crop(images, top, left, np.zeros_like(mirrored), pad),
    ),
    Mistake(
        "mirror: every image is mirrored; only those where `mirrored` is true should be",
        lambda images, top, left, mirrored, pad: _crop(images, top, left, np.ones_like(mirrored), pad),
    ),
    Mistake(
        "mirror: the images are mirrored that should not be, and the others are not",
        lambda images, top, left, mirrored, pad: _crop(images, top, left, ~mirrored, pad),
    ),
    Mistake(
        "order: it is mirrored before it is cropped, which moves it the other way. Crop first, as `left` is meant",
        lambda images, top, left, mirrored, pad: _crop(images, top, left, mirrored, pad, first=True),
    ),
    Mistake(
        "crop: top and left are swapped: top counts rows (axis 0 of an image), left counts columns (axis 1)",
        lambda images, top, left, mirrored, pad: _crop(images, left, top, mirrored, pad),
    ),
    Mistake(
        "padding: the pixels that are shifted in are black. They should be the image's own reflection: "
        "np.pad(..., mode='reflect')",
        lambda images, top, left, mirrored, pad: _crop(images, top, left, mirrored, pad, mode="constant"),
    ),
    Mistake(
        "padding: the channels are padded, too. np.pad takes a pair for each axis: (0, 0) for the channels",
        _padded_channels,
    ),
    Mistake(
        "padding: the edge pixel is repeated (mode='edge'); it should be a reflection: mode='reflect'",
        lambda images, top, left, mirrored, pad: _crop(images, top, left, mirrored, pad, mode="edge"),
    ),
    Mistake(
        "padding: the edge pixel appears twice (mode='symmetric'); with mode='reflect' it is the axis of the "
        "reflection",
        lambda images, top, left, mirrored, pad: _crop(images, top, left, mirrored, pad, mode="symmetric"),
    ),
    Mistake(
        "padding: what leaves the image on one side comes in on the other (np.roll). Pad by reflection, then crop",
        _rolled,
    ),
    Mistake(
        "batch: all images are shifted like the first; image i has its own top[i] and left[i]",
        _first_image_decides,
    ),
]

CYCLES = [
    {"peak": peak, "total": total, "warm": warm}
    for peak, total, warm in ((1.0, 10, 0.5), (0.1, 30, 0.2), (0.3, 23, 0.3))
]

EXERCISES = [
    Exercise(
        "loss_gradient",
        _gradient_cases,
        lambda logits, labels: softmax_cross_entropy.backward(logits, labels),
        GRADIENT_MISTAKES,
        solutions=(_minus_target,),
    ),
    Exercise("one_cycle", CYCLES, _one_cycle, CYCLE_MISTAKES, rtol=1e-9, solutions=(_by_steps, _both_halves)),
    Exercise("mirror_and_crop", _crop_cases, _mirror_and_crop, CROP_MISTAKES, solutions=(_one_by_one,)),
]
