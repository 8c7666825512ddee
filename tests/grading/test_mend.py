"""Mistakes in functions of any form are found in the function itself, or else by how the results differ."""

import ast
import time

import numpy as np
import pytest

from mbnp.grading import changes, faults, mend
from mbnp.grading.noticed import idle, noticed
from tests.grading.answers import EXERCISES, function_of, graded

CONVOLVE = """
def convolve(x, w, b, stride, padding):
    n, h, wide, c = x.shape
    kh, kw, _, out = w.shape
    xp = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    oh, ow = (h + 2 * padding - kh) // stride + 1, (wide + 2 * padding - kw) // stride + 1
    y = np.zeros((n, oh, ow, out), dtype=x.dtype)
    for u in range(kh):
        for v in range(kw):
            part = xp[:, u : u + (oh - 1) * stride + 1 : stride, v : v + (ow - 1) * stride + 1 : stride]
            y += part @ w[u, v]
    return y + b
"""
FIELD = """
def receptive_field(layers):
    r, j = 1, 1
    for k, s in layers:
        r += (k - 1) * j
        j *= s
    return r
"""
FRONT = """
def pareto_front(macs, accuracy):
    res = []
    for m, a in zip(macs, accuracy):
        d = (macs <= m) & (accuracy >= a) & ((macs < m) | (accuracy > a))
        res.append(not d.any())
    return np.array(res)
"""
FORWARD = """
def batchnorm_forward(x, gamma, beta, eps):
    m, v = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return gamma * (x - m) / np.sqrt(v + eps) + beta
"""
SIZE = """
def output_size(size, kernel, stride, padding):
    n, start = 0, 0
    while start + kernel <= size + 2 * padding:
        n += 1
        start += stride
    return n
"""
PIXEL = """
def conv_pixel(x, w, i, j, d, stride, padding):
    H, W, C = x.shape
    total = 0.0
    for a in range(w.shape[0]):
        for b in range(w.shape[1]):
            r, s = i * stride + a - padding, j * stride + b - padding
            if 0 <= r < H and 0 <= s < W:
                for c in range(C):
                    total += x[r, s, c] * w[a, b, c, d]
    return total
"""
WINDOWS = """
def depthwise(x, w, stride, padding):
    kh, kw, _ = w.shape
    xp = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    win = np.lib.stride_tricks.sliding_window_view(xp, (kh, kw), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcuv,uvc->nhwc", win, w)
"""
RUNNING = """
def running_statistics(running_mean, running_var, x, momentum):
    m, v = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1)
    return (1 - momentum) * running_mean + momentum * m, (1 - momentum) * running_var + momentum * v
"""
DX = """
def conv_dx(dy, w, shape, stride, padding):
    n, h, wide, c = shape
    kh, kw = w.shape[:2]
    oh, ow = dy.shape[1:3]
    dxp = np.zeros((n, h + 2 * padding, wide + 2 * padding, c), dy.dtype)
    for u in range(kh):
        for v in range(kw):
            dxp[:, u : u + oh * stride : stride, v : v + ow * stride : stride] += dy @ w[u, v].T
    return dxp[:, padding : padding + h, padding : padding + wide]
"""
RIGHT = {
    "conv_pixel": PIXEL,
    "depthwise": WINDOWS,
    "running_statistics": RUNNING,
    "conv_dx": DX,
    "convolve": CONVOLVE,
    "receptive_field": FIELD,
    "pareto_front": FRONT,
    "batchnorm_forward": FORWARD,
    "output_size": SIZE,
}


def code_of(name, *changes):
    code = RIGHT[name]
    for right, wrong in changes:
        assert right in code
        code = code.replace(right, wrong)
    return code


def likely(name, *changes):
    outcome = graded(name, code_of(name, *changes))
    assert outcome.status == "wrong"
    return outcome.likely


# Whole wrong answers, for what is wrong in more places than one; words of the message.
CYCLE = """
def one_cycle(peak, total, warm):
    start, end = peak / 25, peak / 25 / 10_000
    top = warm * total - 1
    t = np.arange(total)
    up = start + (peak - start) * (1 - np.cos(np.pi * t / top)) / 2
    down = peak + (end - peak) * (1 - np.cos(np.pi * (t - top) / (total - 1 - top))) / 2
    return np.where(t <= top, up, down)
"""
CROP = """
def mirror_and_crop(images, top, left, mirrored, pad):
    N, H, W, C = images.shape
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    out = np.empty_like(images)
    for n in range(N):
        crop = padded[n, top[n] : top[n] + H, left[n] : left[n] + W]
        if mirrored[n]:
            crop = crop[:, ::-1]
        out[n] = crop
    return out
"""
MACS = """
def separable_macs(H, W, K, c_in, c_out, stride):
    P = K // 2
    OH, OW = (H + 2 * P - K) // stride + 1, (W + 2 * P - K) // stride + 1
    return OH * OW * (K * K * c_in + c_in * c_out)
"""
MATMUL = """
def pointwise(x, w):
    N, H, W, C = x.shape
    y = np.zeros((N, H, W, w.shape[1]), x.dtype)
    for c in range(C):
        y += x[..., c : c + 1] * w[c]
    return y
"""
LOSS = """
def loss_gradient(logits, labels):
    z = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = z / z.sum(axis=1, keepdims=True)
    p[np.arange(len(labels)), labels] -= 1
    return p / len(labels)
"""
BATCH_DX = """
def batchnorm_dx(dy, x, gamma, eps):
    a = (0, 1, 2)
    M = x.size // x.shape[3]
    s = np.sqrt(x.var(axis=a, keepdims=True) + eps)
    xhat = (x - x.mean(axis=a, keepdims=True)) / s
    dgamma, dbeta = (dy * xhat).sum(axis=a, keepdims=True), dy.sum(axis=a, keepdims=True)
    return gamma / s * (dy - dbeta / M - xhat * dgamma / M)
"""
RIGHT |= {
    "one_cycle": CYCLE,
    "mirror_and_crop": CROP,
    "separable_macs": MACS,
    "pointwise": MATMUL,
    "loss_gradient": LOSS,
    "batchnorm_dx": BATCH_DX,
}


@pytest.fixture
def patient(monkeypatch):
    """Give the search the time that it has on a machine that does nothing else."""
    monkeypatch.setattr("mbnp.grading.diagnose.SECONDS", 5)


MENDED = [
    ("convolve", "y += part", "y = part", "it is assigned, and should be added"),
    ("convolve", "(padding, padding), (0, 0)))", "(padding, padding), (0, 0)), mode='edge')", "the edge of the image"),
    (
        "convolve",
        "(padding, padding), (0, 0)))",
        "(padding, padding), (0, 0)), constant_values=1)",
        "an option too many",
    ),
    ("convolve", "+ b", "+ b.sum()", "a step too many"),
    ("convolve", "return y + b", "return np.maximum(y + b, 0)", "what is below 0 becomes 0"),
    ("output_size", "<=", "<", "the border of a comparison: all cases come out right with `start + kernel <= size"),
    ("output_size", "n, start = 0, 0", "n, start = 1, 0", "a number: all"),
    ("pareto_front", "not d.any()", "d.any()", "reversed"),
    ("pareto_front", "    return", "        return", "early return"),
    ("batchnorm_forward", "x.mean(", "np.median(x, ", "another function: all cases come out right with `(np.mean"),
    ("batchnorm_forward", "np.sqrt(v + eps)", "np.sqrt(v)", "eps is left out"),
    ("receptive_field", "j *= s", "j += s", "the product of all strides so far, not their sum"),
]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("name", "right", "wrong", "words"), MENDED)
def test_the_place_is_found_whatever_the_names_and_the_way(name, right, wrong, words):
    assert words in likely(name, (right, wrong))


ONE_IMAGE = "for i in range(1):\n                y[i] += part[i] @ w[u, v]"
MISSING = [
    # a wrong name before a wrong border
    ("conv_pixel", [("0 <= s < W", "0 <= s < H")], "`0 <= s < W` in place of `0 <= s < H`"),
    ("conv_pixel", [("0 <= r < H", "0 <= r < W")], "`0 <= r < H` in place of `0 <= r < W`"),
    (
        "convolve",
        [("(wide + 2", "(h + 2")],
        "(wide + 2 * padding - kw) // stride",
    ),
    # a number where a size belongs
    (
        "conv_pixel",
        [("range(C)", "range(3)")],
        "a number where a size belongs: all cases come out right with `range(C)` in",
    ),
    (
        "conv_pixel",
        [("range(w.shape[0])", "range(3)"), ("range(w.shape[1])", "range(3)")],
        "`range(w.shape[0])` in place of `range(3)`, and `range(w.shape[1])` in place of `range(3)`",
    ),
    (
        "convolve",
        [("y += part @ w[u, v]", ONE_IMAGE)],
        "a number where a size belongs: all cases come out right with `range(n)` in place of `range(1)`",
    ),
    ("depthwise", [("kh, kw, _ = w.shape", "kh = kw = 3")], "with `w.shape[0]` in place of `3`"),
    # conditions, padding, what is never used
    (
        "conv_pixel",
        [("            if 0 <= r < H and 0 <= s < W:\n", "            if True:\n")],
        "with `if 0 <= r < x.shape[0] and 0 <= s < x.shape[1]:` before `",
    ),
    (
        "convolve",
        [("part = xp", "part = x")],
        "`x` is not padded: all cases come out right with `x = np.pad(x, ((0, 0)",
    ),
    ("conv_pixel", [(", d]", ", 0]")], "`w[a, b, c, d]` in place of `w[a, b, c, 0]`"),
    (
        "conv_dx",
        [("padding : padding + h, padding : padding + wide", "padding:-padding, padding:-padding")],
        "is empty where `padding` is 0",
    ),
    # slips of NumPy
    (
        "depthwise",
        [('"nhwcuv,uvc', '"nhwuvc,uvc')],
        "'nhwcuv,uvc->nhwc', win, w)` in place of `np.einsum('nhwuvc,uvc->nhwc'",
    ),
    ("depthwise", [("->nhwc", "->nhw")], "c must stay in the result"),
    (
        "convolve",
        [
            ("u : u + (oh - 1) * stride + 1 : stride", "u::stride"),
            ("v : v + (ow - 1) * stride + 1 : stride", "v::stride"),
        ],
        "the slices are longer than what they belong to",
    ),
    (
        "conv_dx",
        [(" + oh * stride : stride", " + oh"), (" + ow * stride : stride", " + ow")],
        "stride: the window of output i",
    ),
    (
        "running_statistics",
        [("(1 - momentum) * running_mean", "running_mean"), ("(1 - momentum) * running_var", "running_var")],
        "`(1 - momentum) * running_mean + momentum * m` in place of `running_mean + momentum * m`, and `(1 - momentum)",
    ),
    (
        "convolve",
        [("(h + 2 * padding - kh)", "(h - kh)"), ("(wide + 2 * padding - kw)", "(wide - kw)")],
        "`(h - kh + 2 * padding) // stride` in place of",
    ),
]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("name", "changes", "words"), MISSING)
def test_what_is_missing_is_named(name, changes, words):
    assert words in likely(name, *changes)


def test_what_the_text_shows():
    _, exercise = EXERCISES["depthwise"]
    cases = exercise.make_cases()
    right = [case["w"].shape[:2] == (3, 3) for case in cases]
    code = WINDOWS.replace("kh, kw, _ = w.shape", "kh = 3\n    kw = 3")
    written = "3 is written as a number, and it is right only where that is `w.shape[0]` and `w.shape[1]`"
    assert written in noticed(function_of("depthwise", code), cases, right, ["x", "w"])
    idle = WINDOWS.replace("kh, kw, _", "left_over = 5\n    kh, kw, _")  # is no mistake
    assert noticed(function_of("depthwise", idle), cases, right, ["x", "w"]) == ""
    assert noticed(function_of("depthwise", WINDOWS), cases, right, ["x", "w"]) == ""
    assert "`y` is never used in it" in noticed(function_of("depthwise", WINDOWS), cases, right, ["x", "y"])


def test_of_a_long_text_the_difference_is_shown():
    before = f"{'a + ' * 40}x + {'b + ' * 40}c"
    for after in (before.replace("x", "y"), before.replace("x", "xx"), before + " + d", "d + " + before):
        text = changes.message("sign", [(before, after)], "all is right")
        theirs, ours = text.split("`")[3], text.split("`")[1]
        assert theirs.strip(". ") in before
        assert ours.strip(". ") in after
        assert theirs.strip(". ") != ours.strip(". ")
        assert max(len(theirs), len(ours)) < 90
    long = "f(" + ", ".join(map(str, range(60))) + ")"
    assert long[2:-1] in changes.message("sign", [("x" * 80, long)], "all is right")  # all of it differs


def test_a_fault_speaks_in_the_readers_names():
    """What has no name in theirs is written out; where that cannot be, only arguments are named."""
    _, exercise = EXERCISES["batchnorm_forward"]
    case = exercise.make_cases()[0]
    solution = function_of("batchnorm_forward", FORWARD)
    theirs = function_of(
        "batchnorm_forward", FORWARD.replace("m, v", "mu, v").replace("(x - m)", "(x - mu)").replace("v + eps", "v")
    )
    names = faults.names_of(faults.values(solution, case), faults.values(theirs, case), case)
    assert (names["m"], names["v"]) == ("mu", "v")
    fault = faults.Fault("sign: so with `x + m` where `x - m` belongs", solution, [("x - m", "x + m")], solution)
    assert fault.said(names) == "sign: so with `x + mu` where `x - mu` belongs"
    assert fault.said({}) == "sign: look at where `x` is used"
    fault = faults.Fault("a factor: `m` where `x * 2 * m` belongs", solution, [("x * 2 * m", "m")], solution)
    assert fault.said({"v": "v"}) == "a factor: `x` and `2` are missing"
    fault = faults.Fault("`m` is left out: `x` where `x - m` belongs", solution, [("x - m", "x")], solution)
    assert fault.said({"v": "v"}) == ""  # it speaks of a name that is not theirs


# As a newcomer wrote them; each is found in the time that there is.
WRITTEN = [
    (
        "one_cycle",
        [("np.cos", "np.sin")],
        "another function: all cases come out right with `1 - np.cos(np.pi * t / top)`",
    ),
    ("one_cycle", [("np.pi", "180")], "degrees: np.cos and np.sin take radians"),
    ("one_cycle", [("np.pi", "np.pi / 2"), (") / 2\n", ")\n")], "a quarter of a cosine or sine"),
    ("one_cycle", [("(total - 1 - top)", "(total - 1)")], "its fraction is divided by all steps"),
    ("one_cycle", [("(t - top) / (total - 1 - top)", "t / (total - 1)")], "its fraction is counted from step 0"),
    ("one_cycle", [("np.where(t <= top, up, down)", "up")], "the way up goes on"),
    ("one_cycle", [(") / 2\n", ")\n")], "it is not halved: all cases come out right with `(peak - start) / 2 *"),
    (
        "one_cycle",
        [
            ("np.where(t <= top, up, down)", "np.concatenate([up, down])"),
            (
                "start + (peak - start) * (1 - np.cos(np.pi * t / top)) / 2",
                "np.linspace(start, peak, int(warm * total))",
            ),
            (
                "peak + (end - peak) * (1 - np.cos(np.pi * (t - top) / (total - 1 - top))) / 2",
                "np.linspace(peak, end, total - len(up))",
            ),
        ],
        "the two halves are straight lines, and both have the peak",
    ),
    (
        "mirror_and_crop",
        [("crop[:, ::-1]", "np.flip(crop)")],
        "with `np.flip(crop, axis=1)` in place of `np.flip(crop)`",
    ),
    ("mirror_and_crop", [("mirrored[n]", "mirrored.any()")], "one of them was meant, and not any or all of them"),
    ("mirror_and_crop", [("mirrored[n]", "np.any(mirrored)")], "one of them was meant, and not any or all of them"),
    ("mirror_and_crop", [("    return out", "        return out")], "early return"),
    (
        "mirror_and_crop",
        [("            crop = crop[:, ::-1]", "            continue")],
        "np.empty has what was in memory before",
    ),
    (
        "mirror_and_crop",
        [
            ("            crop = crop[:, ::-1]", "            pass"),
            ("return out", "out[mirrored] = out[mirrored][:, ::-1]\n    return out"),
        ],
        "[:, :, ::-1] of a batch (N, H, W, C)",
    ),
    ("separable_macs", [("P = K // 2", "P = 0")], "padding: there is none"),
    ("separable_macs", [("P = K // 2", "P = 1")], "padding: it is 1, which is right for K = 3 only"),
    (
        "separable_macs",
        [
            ("(H + 2 * P - K) // stride + 1", "round(H / stride)"),
            ("(W + 2 * P - K) // stride + 1", "round(W / stride)"),
        ],
        "it is rounded to the nearest whole number, and should be rounded up",
    ),
    ("pointwise", [("y +=", "y ="), (", x.dtype)", ")")], "`y += x[..., c:c + 1] * w[c]` in place of `y = x[..., c:c"),
    (
        "pointwise",
        [
            (
                "    y = np.zeros((N, H, W, w.shape[1]), x.dtype)\n    for c in range(C):\n",
                "    for c in range(C):\n        y = np.zeros((N, H, W, w.shape[1]), x.dtype)\n",
            )
        ],
        "this starts anew at every step of the loop: `y = np.zeros((N, H, W, w.shape[1]), x.dtype)`",
    ),
    (
        "receptive_field",
        [("for k, s", "for s, k")],
        "order: two are exchanged: all cases come out right with `(k, s)` in",
    ),
    ("loss_gradient", [("p[np.arange(len(labels)), labels] -= 1", "p -= 1")], "1 is subtracted for every class"),
    (
        "loss_gradient",
        [("logits - logits.max(axis=1, keepdims=True)", "np.clip(logits, -50, 50)")],
        "the logits are clipped",
    ),
    (
        "batchnorm_dx",
        [("a = (0, 1, 2)", "a = -1"), ("x.size // ", "")],
        "mean and variance over the channels of each pixel",
    ),
    ("batchnorm_dx", [("* dgamma / M)", "* dgamma / M), dgamma, dbeta")], "the first one is right: return it alone"),
    ("running_statistics", [("momentum * v", "momentum * v, m")], "the first 2 are right: return only these"),
    ("batchnorm_forward", [("return ", "return x, ")], "return it alone"),
    (
        "conv_pixel",
        [("return total", "return round(total, 3)")],
        "it is rounded: all cases come out right with `total`",
    ),
    (
        "conv_pixel",
        [("0 <= r < H", "0 <= r < x.shape[1]"), ("0 <= s < W", "0 <= s < x.shape[0]")],
        "another index: all cases come out right with `0 <= r < x.shape[0]`",
    ),
]


@pytest.mark.parametrize(("name", "changes", "words"), WRITTEN)
def test_what_was_written_is_named(name, changes, words):
    assert words in likely(name, *changes)


RAISED = [
    ("batchnorm_forward", [("(0, 1, 2)", "-1")], "lengths from the last axis on"),
    ("convolve", [("part @ w[u, v]", "part @ w[u, v, :2]")], "a matrix product sums over"),
    ("conv_pixel", [("H, W, C = x.shape", "H, W = x.shape")], "one name for each value"),
    (
        "depthwise",
        [("xp = np.pad(x, ((0, 0), (padding", "xp = np.pad(x, ((padding")],
        "np.pad takes a pair for each axis",
    ),
    (
        "depthwise",
        [("np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))", "np.pad(x, padding)")],
        "axes of different lengths",
    ),
    ("depthwise", [(", axis=(1, 2))", ")")], "the axes of the window"),
    (
        "mirror_and_crop",
        [("for n in range(N):", "for n in [0]:"), ("top[n] : top[n]", "top : top")],
        "one whole number belongs",
    ),
    ("one_cycle", [("np.where(t <= top, up, down)", "up if t <= top else down")], "np.where chooses for each entry"),
    ("pareto_front", [("res.append(not", "res = res.append(not")], "return None"),
]


@pytest.mark.parametrize(("name", "changes", "words"), RAISED)
def test_an_error_of_numpy_has_advice(name, changes, words, monkeypatch):
    monkeypatch.setattr("mbnp.grading.diagnose.SECONDS", 0.01)  # nothing else is to be found
    assert words in likely(name, *changes)


OBSERVED = [
    (
        "convolve",
        [("(h + 2 * padding - kh)", "(h - kh)"), ("(wide + 2 * padding - kw)", "(wide - kw)")],
        "right in all cases in which `padding` is 0, and in no other: is the image padded with zeros",
    ),
    (
        "convolve",
        [("(oh - 1) * stride + 1 : stride", "oh"), ("(ow - 1) * stride + 1 : stride", "ow")],
        "`stride` is 1",
    ),
    (
        "batchnorm_forward",
        [("np.sqrt(v + eps)", "(x.max((0, 1, 2)) - x.min((0, 1, 2)) + eps)")],
        "along axis 3 has the right mean and another spread",
    ),
    (
        "batchnorm_forward",
        [("x.mean((0, 1, 2))", "x[0, 0, 0]")],
        "along axis 3 has something of its own",
    ),
    ("convolve", [("return y + b", "return (y + b).reshape(n, -1, out)")], "axes merged: a reshape is missing"),
    ("convolve", [("return y + b", "return (y + b)[0]")], "axis 0 of the result is gone"),
]


@pytest.mark.parametrize(("name", "changes", "words"), OBSERVED)
def test_what_wrong_results_have_in_common(name, changes, words, monkeypatch):
    monkeypatch.setattr("mbnp.grading.diagnose.SECONDS", 0.01)  # nothing else is to be found
    assert words in likely(name, *changes)


def found(name, *changes, seconds=5):
    _, exercise = EXERCISES[name]
    probes = exercise.probes(exercise.make_cases())
    text, spent = mend.mended(function_of(name, code_of(name, *changes)), probes, [], exercise.rtol, seconds)
    assert spent < seconds + 1
    return text


def test_two_mistakes():
    text = found("receptive_field", ("(k - 1)", "(k + 1)"), ("j *= s", "j += s"))
    assert text.startswith("there are two mistakes")
    assert "`j *= s` in place of `j += s`" in text


CHAIN = """
def batchnorm_dx(dy, x, gamma, eps):
    count = x.size // x.shape[-1]
    centred = x - x.mean((0, 1, 2))
    var = (centred**2).mean((0, 1, 2))
    dxhat = dy * gamma
    dvar = (dxhat * centred * -0.5 * (var + eps) ** -0.5).sum((0, 1, 2))
    dmean = -(dxhat / np.sqrt(var + eps)).sum((0, 1, 2))
    return dxhat / np.sqrt(var + eps) + dvar * 2 * centred / count + dmean / count
"""
DOMINATED = """
def pareto_front(macs, accuracy):
    m, a = np.asarray(macs), np.asarray(accuracy)
    better = (m[:, None] <= m) & (a[:, None] >= a)
    strict = (m[:, None] < m) | (a[:, None] > a)
    return ~(better & strict).any(axis=1)
"""
COUNTED = """
def count(size, stem, blocks, classes):
    params = 9 * 3 * stem + stem + 2 * stem
    macs = size * size * 9 * 3 * stem
    c_in = stem
    for c_out, stride in blocks:
        size = (size - 1) // stride + 1
        params += 9 * c_in + 2 * c_out
        macs += size * size * 9 * c_in
        params += c_in * c_out + 2 * c_out
        macs += size * size * c_in * c_out
        c_in = c_out
    return params + c_in * classes + classes, macs + c_in * classes
"""
TWICE = COUNTED.replace("9 * c_in + 2 * c_out\n", "9 * c_in\n        params += 2 * c_in\n").replace(
    "c_in * c_out + 2 * c_out\n", "c_in * c_out\n        params += 2 * c_in\n"
)
DEAD = """
def dead_channels(a):
    return (a > 0).all(axis=(0, 1, 2))
"""
HELPER = """
def overlap(p, q):
    w = max(min(p[3], q[2]) - max(p[0], q[0]), 0)
    h = max(min(p[3], q[3]) - max(p[1], q[1]), 0)
    return w * h / ((p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1]) - w * h)


def suppress(boxes, scores, labels, limit):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if not any(labels[k] == labels[i] and overlap(boxes[k], boxes[i]) > limit for k in kept):
            kept.append(i)
    return np.array(kept, np.int64)
"""
INTENSITY = """
def depthwise_intensity(n, h, w, c, k, itemsize):
    V = n * h * w * c
    return 2 * V * k**2 / (itemsize * (V + k**2{} + V))
"""
ROWS_OF_ONE_LIST = """
def blocked_matmul(a, b):
    out = np.zeros((len(a), b.shape[1]), a.dtype)
    for i in range(0, len(a), 4):
        for j in range(0, b.shape[1], 4):
            sums = [[0.0] * 4] * 4
            for u in range(min(4, len(a) - i)):
                for v in range(min(4, b.shape[1] - j)):
                    for k in range(len(b)):
                        sums[u][v] += float(a[i + u, k]) * float(b[k, j + v])
                    out[i + u, j + v] = sums[u][v]
    return out
"""
OR_NONE = """
def taps(p, size, kernel, stride, padding):
    count = (size + 2 * padding - kernel) // stride + 1
    found = []
    for o in range(count):
        tap = p + padding - o * stride
        found.append((tap if 0 <= tap < kernel else None) or -1)
    return np.array(found)
"""
PAIRS = """
def paired_difference(first, second):
    d = np.asarray(second, float) - np.asarray(first, float)
    S = d.size
    return float(d.mean()), float(np.sqrt(((d - d.mean()) ** 2).sum() / (S - 1) / (S - 1)))
"""
COLUMNS = CONVOLVE.replace("v : v + (ow - 1) * stride + 1 : stride", "v : v + ow").replace("xp[:, u", "xp[:, u")
SINGLE = """
def overlaps(a, b):
    out = np.zeros((len(a), len(b)))
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            w, h = min(p[2], q[2]) - max(p[0], q[0]), min(p[3], q[3]) - max(p[1], q[1])
            both = max(w, 0) * h
            out[i, j] = both / ((p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1]) - both)
    return out
"""
SLICES = """
def depthwise(x, w, stride, padding):
    kh, kw, _ = w.shape
    xp = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    oh, ow = (xp.shape[1] - kh) // stride + 1, (xp.shape[2] - kw) // stride + 1
    y = 0
    for u in range(kh):
        for v in range(kw):
            rows = slice(u, u + oh * stride, stride)
            cols = slice(u, u + ow * stride, stride)
            y = y + xp[:, rows, cols][:, :oh, :ow] * w[u, v]
    return y
"""


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        # of a mistake that is known, its place: it may come out of another slip
        ("batchnorm_dx", CHAIN, ["xhat is x - mean here", "look at `(var + eps) ** (-0.5)`"]),
        ("convolve", CONVOLVE.replace(" + b\n", "\n"), ["bias: b is not added"]),
        # of two changes that mend it, the smaller one, and both if they are alike
        (
            "pareto_front",
            DOMINATED,
            ["axes: all cases come out right with `~(better & strict).any(axis=0)` in place of"],
        ),
        ("count", COUNTED, ["right with `params += 9 * c_in + 2 * c_in` in place of", "; or: another name"]),
        ("count", TWICE, ["`params += 2 * c_out` in place of `params += 2 * c_in`; it is place 2 of 2"]),
        # two changes of one statement are one
        ("dead_channels", DEAD, ["`return (a <= 0).all(axis=(0, 1, 2))` in place of `return (a > 0).all"]),
        # a helper is looked into, too
        ("suppress", HELPER, ["another index: all cases come out right with `min(p[2], q[2])` in place of"]),
        # what cancels may be too many here, or be missing there; with a known reason no place is named then
        ("depthwise_intensity", INTENSITY.format(""), ["a factor too many", "; or: a factor is left out"]),
        # slips of Python
        ("blocked_matmul", ROWS_OF_ONE_LIST, ["one and the same list", "`[[0.0] * 4 for _ in range(4)]` in place of"]),
        ("taps", OR_NONE, ["0 counts as false: `or` takes what stands behind it"]),
        # a product with 1 is none
        ("paired_difference", PAIRS, ["a term too many", "/ S"]),
        # a factor may be missing elsewhere
        (
            "batchnorm_dx",
            CHAIN.replace("** -0.5", "** -1.5").replace("dvar * 2", "dvar"),
            ["or in what it is multiplied"],
        ),
        # wrong numbers before a wrong type
        ("overlaps", SINGLE, ["what is below 0 is kept", "`max(min(p[3], q[3]) - max(p[1], q[1]), 0)` in place of"]),
        # without a step that the other slice has
        ("convolve", COLUMNS, ["the step of a slice is left out"]),
        # a line that was copied
        ("depthwise", SLICES, ["`u` stands where `v` belongs: `cols = slice(u, u + ow * stride, stride)`"]),
    ],
)
def test_the_place_is_named(name, code, words):
    said = graded(name, code).likely
    assert [word for word in words if word not in said] == [], said


def test_no_place_is_named_where_there_may_be_another():
    said = graded("depthwise_intensity", INTENSITY.format(" * c * c")).likely
    assert said == "bytes: the weights of a standard convolution, k·k·c·c. A depthwise one has k·k·c"


def test_names_that_are_alike():
    code = """
def f(boxes, scores):
    area = boxes[0]
    row = scores + 1
    column = area + 2
    other_area = boxes.sum()
    return row * column * other_area
"""
    function = ast.parse(code).body[0]
    pairs = changes._partners(function, {"boxes": np.zeros((2, 4)), "scores": np.zeros(2)})
    assert {("area", "other_area"), ("row", "column"), ("column", "row")} <= pairs
    assert ("boxes", "scores") not in pairs  # of different kinds
    assert ("area", "row") not in pairs


def test_what_is_computed_and_never_used():
    assert idle(function_of("pareto_front", FRONT)) == ""
    left = FRONT.replace("    res = []\n", "    N = len(macs)\n    H = macs.shape\n    res = []\n")
    assert idle(function_of("pareto_front", left)) == "`N` is computed and never used"


def test_the_function_stays_as_it_is_and_its_arguments_too():
    _, exercise = EXERCISES["convolve"]
    function, before = function_of("convolve", code_of("convolve", ("+ b", "- b"))), exercise.make_cases()
    cases = exercise.make_cases()
    text, _ = mend.mended(function, exercise.probes(cases), [], 1e-5, 5)
    assert "sign" in text
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(before, cases, strict=True) for name in a)
    assert (function(**cases[0]) != exercise.reference(**cases[0])).any()


def test_nothing_is_run_again_that_may_do_harm(tmp_path):
    """A function that opens files is not called with changes of its text."""
    harm = f"    open({str(tmp_path / 'count')!r}, 'a').write('x')\n    return r"
    assert found("receptive_field", ("    return r", harm), ("j *= s", "j += s")) == ""
    assert found("receptive_field", ("    return r", "    import os\n    return r"), ("j *= s", "j += s")) == ""
    assert not (tmp_path / "count").exists()


def test_a_change_that_makes_an_endless_loop_is_left():
    begin = time.perf_counter()
    found("output_size", ("start += stride", "start += stride + padding"), seconds=0.5)
    assert time.perf_counter() - begin < 10  # on a busy machine, too


def test_a_search_ends_at_the_same_place_whatever_the_clock_says(monkeypatch):
    """What it may do is counted: a machine that stands still while it runs, and a busy one, find the same."""
    changes = ("(k - 1)", "(k + 1)"), ("j *= s", "j += s + k")
    _, exercise = EXERCISES["receptive_field"]
    function = function_of("receptive_field", code_of("receptive_field", *changes))
    probes = exercise.probes(exercise.make_cases())
    monkeypatch.setattr(mend, "SLOW", 1000)
    monkeypatch.setattr(mend, "LEAST", 5.0)
    found = [mend.mended(function, probes, [], exercise.rtol, 0.1) for _ in range(2)]
    monkeypatch.setattr(mend.time, "process_time", lambda: 0.0)
    found.append(mend.mended(function, probes, [], exercise.rtol, 0.1))
    assert found[0] == found[1] == found[2]
    assert 0.1 <= found[0][1] < 0.2  # all of it was spent


def test_a_repair_by_chance_is_none():
    """What comes out right for these numbers, and not for others, or in another type, is not named."""
    code = """
def batchnorm_dx(dy, x, gamma, eps):
    a = (0, 1, 2)
    M = x.size // x.shape[-1]
    s = np.sqrt(x.var(a) + eps)
    xh = (x - x.mean(a)) / s
    return gamma / s * (dy - dy.mean(a) / M - xh * (dy * xh).mean(a) / M)
"""
    assert "np.log" not in graded("batchnorm_dx", code).likely
    code = """
def class_activation_map(features, w, classes):
    out = np.empty(features.shape[:3], features.dtype)
    last = np.zeros(features.shape[1:3], features.dtype)
    for n in range(len(features)):
        m = np.maximum(features[n] @ w[:, classes[n]], 0)
        if m.max() > 0:
            last = m / m.max()
        out[n] = last
    return out
"""
    assert "this is set once, before the loop" in graded("class_activation_map", code).likely


# Whole wrong answers that some change makes right for the cases alone, by chance; and words of that change.
BY_CHANCE = [
    (
        """
def same_padding(size, kernel, stride):
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return min(total // 2, 1), total - total // 2
""",
        "3)",
        "in place of `(min(total // 2, 1), total - total // 2)`",
    ),
    (
        """
def intersection_over_union(found, truth):
    both, either = (found == truth).sum(axis=(1, 2)), (found | truth).sum(axis=(1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
""",
        "found / truth",
        "",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("code", "chance", "words"), BY_CHANCE)
def test_what_is_right_by_chance_is_not_proposed(code, chance, words):
    outcome = graded(code.split("(")[0].split()[-1], "import numpy as np\n" + code)
    assert outcome.status == "wrong"
    assert chance not in outcome.likely
    assert words in outcome.likely


def test_cases_of_other_sizes_are_of_other_sizes():
    for name in ("depthwise", "blocked_matmul", "combine", "box_coding"):
        _, exercise = EXERCISES[name]
        shapes = [[np.shape(v) for v in case.values()] for case in exercise.make_cases()]
        more = exercise.of_other_sizes()
        assert len(more) >= 4
        assert sum([np.shape(v) for v in probe.case.values()] in shapes for probe in more) <= len(more) // 2
        for probe in more:  # what is as long as another axis, or has one length alone, stays so
            assert name != "depthwise" or probe.case["x"].shape[3] == probe.case["w"].shape[2]
            assert name != "box_coding" or probe.case["boxes"].shape[1] == 4
