"""Mistakes planted in the lessons' own solutions: none is accepted, and each message leads to its mistake."""

import copy
import inspect
import pickle

import numpy as np
import pytest

from mbnp import grading
from mbnp.grading import child, diagnose, faults, observe, rules
from mbnp.grading.changes import LEVELS
from mbnp.grading.compare import Trial, alike
from tests.grading.answers import EXERCISES, graded
from tests.tutorials.helpers import LESSONS, solutions


def said(name, right="", wrong="", code=""):
    """Grade the lesson's solution with `wrong` in place of `right`, or other code: return the outcome."""
    if not code:
        number, _ = EXERCISES[name]
        code = next(text for text in solutions(LESSONS[number - 1]) if f"def {name}(" in text)
        assert right in code, "the lesson's solution is written in another way now"
        code = code.replace(right, wrong)
    return graded(name, code)


# The exercise; what stands in the lesson's solution, and in its place; words of the message.
PLANTED = [
    # comparisons at the border
    ("conv_pixel", "0 <= p < H and 0 <= q < W", "0 < p < H and 0 < q < W", "0 < p and 0 < q leave out row 0"),
    ("conv_pixel", "0 <= p < H", "0 < p < H", "the border of a comparison"),
    ("taps", "u < kernel", "u <= kernel", "the border of a comparison"),
    ("taps", "u >= 0", "u > 0", "the border of a comparison"),
    ("conv_pixel", "range(KH)", "range(1, KH)", "a loop's first or last step"),
    # rows and columns
    (
        "conv_pixel",
        "range(KH):\n        for v in range(KW)",
        "range(1, KH):\n        for v in range(1, KW)",
        "`range(KW)` in place of `range(1, KW)`",
    ),
    ("conv_pixel", "0 <= p < H and 0 <= q < W", "0 <= p < H - 1 and 0 <= q < W - 1", "the border of a"),
    ("conv_pixel", "p, q = i * stride + u - padding, j", "p, q = j * stride + u - padding, i", "i and j are exchanged"),
    ("conv_pixel", "j * stride + v - padding", "j * stride + v", "a term is left out"),
    ("offset_last", "((n * H + i) * W + j) * C + c", "((n * H + i) * C + c) * W + j", "in the order n, i, c, j"),
    ("pointwise", "x @ w", "(x @ w).reshape(len(x), x.shape[2], x.shape[1], -1)", "H and W are exchanged"),
    # loops and returns
    ("conv_pixel", "    return total", "            return total", "early return"),
    ("first_difference", "    return -1", "        return -1", "early return"),
    ("map_sizes", "    return sizes", "        return sizes", "early return"),
    ("receptive_field", "in layers", "in layers[::-1]", "the layers are taken the wrong way round"),
    # a term or a factor
    ("batchnorm_forward", "gamma * (x", "(x", "gamma is left out"),
    ("batchnorm_forward", "+ beta", "+ gamma * beta", "beta is added before gamma multiplies"),
    ("batchnorm_dx", "xhat * (dy * xhat)", "x * (dy * x)", "x stands where xhat belongs"),
    ("batchnorm_dx", "(dy * xhat).mean", "dy.mean", "a factor is left out"),
    ("fold", "beta + (b - mean) * s", "(beta + b - mean) * s", "beta is scaled"),
    ("fold", "return w * s", "return w", "weights: they are returned as they are"),
    ("count", "2 * channels + ", "", "after the depthwise convolution is missing"),
    (
        "combine",
        "(m2s + n * (means - mean) ** 2)",
        "(n * (means - mean) ** 2)",
        "only the variance of the tiles' means",
    ),
    ("depthwise_intensity", "(itemsize * numbers)", "(itemsize * 2 * n * h * w * c + k * k * c)", "Weights take bytes"),
    # sentinels, numbers, units
    ("taps", "u, -1)", "u, 0)", "0 stands where an output does not use the row"),
    ("taps", "u, -1)", "u, kernel)", "u, -1)` in place of `np.where((u >= 0) & (u < kernel), u, kernel)`"),
    ("one_cycle", "np.pi * s", "2 * np.pi * s", "a whole cosine"),
    ("one_cycle", "peak / 25, peak / 25", "peak / 10, peak / 10", "begins at peak / 10"),
    ("attainable", "bandwidth * intensity", "8 * bandwidth * intensity", "bits"),
    # results and arguments exchanged
    ("running_statistics", "return mean, var", "return var, mean", "the two results are exchanged"),
    ("paired_difference", "second - first", "np.abs(second - first)", "absolute differences are averaged"),
    # what was accepted
    ("loss_gradient", "logits.max(axis=1, keepdims=True)", "logits.max()", "one maximum for the whole batch"),
    ("loss_gradient", "logits.max(axis=1, keepdims=True)", "logits.mean(axis=1, keepdims=True)", "the mean of the row"),
    ("normalise_relu", "np.maximum((z - mean) * scale + beta, 0)", "np.clip((z - mean) * scale + beta, 0, 6)", "ReLU6"),
    ("weight_from_torch", "w[:, 0].transpose", "w.squeeze().transpose", "squeeze"),
    ("first_difference", "tolerance * np.abs(b)", "tolerance * np.abs(a)", "relative to ours"),
    ("first_difference", "tolerance * np.abs(b)", "tolerance * b", "the scale is the maximum of theirs, without abs"),
    ("first_difference", "<= tolerance", "< tolerance", "the border of a comparison"),
    ("dead_channels", "(a <= 0).all(axis=(0, 1, 2))", "a.std(axis=(0, 1, 2)) == 0", "constant for dead"),
    # points of the front
    ("pareto_front", "no_worse & better", "no_worse", "every point is at least as good as itself"),
    ("pareto_front", "no_worse & better", "better", "cheaper *or* more accurate"),
    # widths
    ("scaled_macs", "int(STEM * width)", "STEM", "the first convolution's channels are not scaled"),
    ("scaled_macs", "channels * 10", "BLOCKS[-1][0] * 10", "the linear layer is counted with all channels"),
    (
        "separable_macs",
        "return OH * OW * K * K * c_in",
        "return H * W * K * K * c_in",
        "counted at its input's H and W",
    ),
    ("class_activation_map", "w[:, classes]", "w[:, 0 * classes]", "every image gets the map of class 0"),
    ("intersection_over_union", "found | truth", "found ^ truth", "exclusive or"),
    # what came after
    ("divisible", "near < 0.9 * channels", "near <= 0.9 * channels", "the border of a comparison"),
    ("inverted_residual_forward", "np.clip(filtered, 0, 6)", "np.maximum(filtered, 0)", "after the depthwise"),
    ("inverted_residual_backward", "((b > 0) & (b < 6))", "(b > 0)", "only where 0 < b < 6"),
    ("squeeze_excite_backward", "((z > -3) & (z < 3))", "(z > -3)", "above 3 it is flat"),
    # where is it
    ("overlaps", "- both)", ")", "counted twice"),
    ("overlaps", "np.maximum(last - first, 0)", "(last - first)", "boxes apart"),
    ("box_coding", "np.log(size / extent)", "size / extent", "the logarithm is missing"),
    ("box_coding", "np.exp(back[:, 2:]) / 2", "np.exp(back[:, 2:])", "half a width"),
    ("suppress", "if labels[k] == labels[n]", "", "one of another class"),
    ("suppress", "> limit", ">= limit", "exactly limit is allowed"),
    ("suppress", ', kind="stable"', "", "np.argsort is not stable"),
    ("suppress", 'np.argsort(-scores, kind="stable")', "np.argsort(scores)[::-1]", "has them in any order"),
    ("average_precision", "np.maximum.accumulate(precision[::-1])[::-1]", "precision", "interpolation is missing"),
    ("average_precision", "/ objects", "/ found[-1]", "not by those that were found"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "words"), PLANTED)
def test_planted_mistake_is_named(name, right, wrong, words):
    outcome = said(name, right, wrong)
    assert outcome.status == "wrong"
    assert words in outcome.likely, outcome


def test_mistakes_that_give_the_same_numbers_are_both_named():
    _, exercise = EXERCISES["output_size"]
    first, second = grading.Mistake("one", lambda **case: 7), grading.Mistake("two", lambda **case: 7)
    task = grading.Exercise("output_size", exercise.cases, exercise.reference, [first, second])
    assert grading.grade(task, lambda **case: 7).likely == "one; or: two"


def test_no_reason_is_named_that_does_not_explain_every_case():
    """A constant is right in some cases, and some mistake gives it in others; none does in all."""
    code = "def output_size(size, kernel, stride, padding):\n    {}\n    return 4"
    assert said("output_size", code=code.format("size, kernel, stride, padding")).likely == ""
    assert said("output_size", code=code.format("size, kernel, stride")).likely.startswith("`padding` is never used")


# --- another form of the right answer, or no answer ---

SIZE = "return (size + 2 * padding - kernel) // stride + 1"
FORMS = [
    ("output_size", SIZE, f"{SIZE.replace('return', 'return str(')})", "that is text"),
    ("output_size", SIZE, f"{SIZE.replace('return', 'return [')}]", "one value in a list"),
    ("output_size", SIZE, f"{SIZE.replace('return', 'return np.array([')}])", "an array of one number"),
    ("output_size", SIZE, f"{SIZE.replace('return', 'return float(')})", "// in place of /"),
    ("output_size", SIZE, "return {'size': 3}", "that is a dict"),
    ("output_size", SIZE, "return output_size", "are the brackets missing"),
    ("output_size", SIZE, "return size > 3", "Is a comparison returned?"),
    ("convolve", "+ b).reshape(N, OH, OW, D)", "+ b).reshape(N, OH, OW, D).tolist()", "a list has no dtype"),
    ("convolve", "+ b)", "+ b.astype(float))", "float64 promotion"),
    ("taps", "u, -1)", "u, -1.0)", "whole numbers as floats"),
    ("dead_channels", "(axis=(0, 1, 2))", "(axis=(0, 1, 2)).astype(int)", "true or false is asked for"),
    ("map_sizes", "return sizes", "return (size for size in sizes)", "no values until it is gone through"),
    ("map_sizes", "return sizes", "return [[1], [2, 3]]", "rows have different lengths"),
    ("running_statistics", "return mean, var", "return {'mean': mean, 'var': var}", "its values in a tuple"),
    ("batchnorm_forward", "return ", "return x[None] * 0 + ", "in place of `x[None] * 0"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "words"), FORMS)
def test_form_of_the_answer(name, right, wrong, words):
    outcome = said(name, right, wrong)
    assert outcome.status == "wrong"
    assert words in outcome.likely, outcome


class Hostile:
    """An object that fails however one looks at it."""

    def __eq__(self, other):
        raise RuntimeError("eq")

    def __array__(self, *arguments, **options):
        raise RuntimeError("array")

    def __repr__(self):
        raise RuntimeError("repr")

    __hash__ = None


NO_ANSWERS = [
    None,
    "text",
    b"bytes",
    {},
    {"a": 1},
    {1},
    [],
    [None],
    [[1], [1, 2]],
    (),
    ({}, None),
    (1, "a"),
    1j,
    object(),
]
NO_ANSWERS += [Hostile(), [Hostile()], print, int, np, np.array(["a"]), np.array([None]), np.array([1j]), range(3)]


@pytest.mark.parametrize("name", EXERCISES)
def test_no_answer_is_a_clear_message(name, monkeypatch):
    monkeypatch.setattr(diagnose, "SECONDS", 0.01)  # nothing is to be found
    number, exercise = EXERCISES[name]
    for answer in NO_ANSWERS:
        outcome = grading.grade(exercise, lambda answer=answer, **case: answer, grading.golden(number))
        assert outcome.status == "wrong"
        assert outcome.problem.splitlines() == [outcome.problem]


# --- rules ---

LOOP = """
def {name}:
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    KH, KW = w.shape[:2]
    OH, OW = (padded.shape[1] - KH) // stride + 1, (padded.shape[2] - KW) // stride + 1
    y = np.zeros((len(x), OH, OW, w.shape[-1]), x.dtype)
    {loop}
    return y{bias}
"""
PIXELS = """for i in range(OH):
        for j in range(OW):
            window = padded[:, i * stride : i * stride + KH, j * stride : j * stride + KW]
            y[:, i, j] = np.einsum("{formula}", window, w)"""
TAPS = """for u in range(KH):
        for v in range(KW):
            pixels = padded[:, u : u + stride * OH : stride, v : v + stride * OW : stride][:, :OH, :OW]
            y += {product}"""


def test_loops_over_pixels_are_found():
    for name, formula, product, bias in (
        ("convolve(x, w, b, stride, padding)", "nuvc,uvcd->nd", "pixels @ w[u, v]", " + b"),
        ("depthwise(x, w, stride, padding)", "nuvc,uvc->nc", "pixels * w[u, v]", ""),
    ):
        code = LOOP.format(name=name, loop=PIXELS.format(formula=formula), bias=bias)
        assert "it loops over pixels" in said(name.split("(")[0], code=code).problem
        code = LOOP.format(name=name, loop=TAPS.format(product=product), bias=bias)
        assert said(name.split("(")[0], code=code).status == "solved"
    line = (
        "y[:] = np.array([[np.einsum('nuvc,uvc->nc', padded[:, i * stride : i * stride + KH, j * stride : j * stride "
    )
    line += "+ KW], w) for j in range(OW)] for i in range(OH)]).transpose(2, 0, 1, 3)"
    code = LOOP.format(name="depthwise(x, w, stride, padding)", loop=line, bias="")
    assert "it loops over pixels" in said("depthwise", code=code).problem


OWN = [
    (
        "convolve",
        "from mbnp.ops import conv\ndef convolve(x, w, b, **where):\n    return conv.forward(x, w, b, **where)",
        "conv.forward",
    ),
    ("same_padding", "from mbnp.ops.window import same_padding", "window.same_padding"),
    (
        "pointwise",
        "def pointwise(x, w):\n    import mbnp.ops.pointwise as p\n    return p.forward(x, w)",
        "pointwise.forward",
    ),
]


@pytest.mark.parametrize(("name", "code", "called"), OWN)
def test_mbnps_own_functions_do_not_count(name, code, called):
    outcome = said(name, code=code)
    assert outcome.status == "wrong"
    assert f"it calls mbnp's own {called}" in outcome.problem


# --- functions that remember ---


def _by_shapes(case):
    return tuple(value.shape if isinstance(value, np.ndarray) else repr(value) for value in case.values())


def _stale(function):
    """Return what an earlier call with the same shapes returned: right for the numbers of that call."""
    known = {}
    return lambda **case: copy.deepcopy(known.setdefault(_by_shapes(case), function(**case)))


def _once(function):
    """Return nothing for a case that it has seen, as a default argument does that is used up."""
    seen = set()

    def call(**case):
        new = pickle.dumps(case) not in seen
        seen.add(pickle.dumps(case))
        return function(**case) if new else None

    return call


def _written_over(function):
    """Write each result into the same arrays, or into the same list."""
    kept = {}

    def into(key, result):
        if isinstance(result, tuple):
            return tuple(into((key, k), part) for k, part in enumerate(result))
        if not isinstance(result, np.ndarray | list):
            return result
        place = kept.setdefault((key, np.shape(result) if isinstance(result, np.ndarray) else 0), result)
        place[...] = result
        return place

    return lambda **case: into(0, function(**case))


def _known_results(function):
    """Return what an earlier call with the same numbers returned, which is right."""
    known = {}
    return lambda **case: copy.deepcopy(known.setdefault(pickle.dumps(case), function(**case)))


def of_a_kind(name, kind):
    number, exercise = EXERCISES[name]
    function = kind(exercise.solutions[0])
    inside = lambda check, *arguments, limit=0: check(function, *arguments)  # noqa: E731
    return grading.grade(exercise, function, grading.golden(number), inside)


@pytest.mark.parametrize("name", EXERCISES)
def test_a_function_that_remembers_is_found_in_every_exercise(name):
    _, exercise = EXERCISES[name]
    first, other, _ = exercise.again()
    assert rules.LATER in of_a_kind(name, _once).problem
    if _by_shapes(first.case) == _by_shapes(other.case) and not alike(first.expected, other.expected, 0):
        stale = of_a_kind(name, _stale)
        assert rules.LATER in stale.problem or stale.case  # where two cases have the same shapes
        if isinstance(first.expected, np.ndarray):
            assert of_a_kind(name, _written_over).problem == rules.KEPT
    assert "remembers" not in of_a_kind(name, _known_results).problem


@pytest.mark.parametrize(
    ("name", "code", "problem", "likely"),
    [
        (
            "convolve",
            """
def convolve(x, w, b, stride, padding, kept={}):
    p = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(p, w.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    shape = (*windows.shape[:3], w.shape[3])
    y = kept.setdefault(shape, np.zeros(shape, x.dtype))
    y += np.einsum("nijcuv,uvcd->nijd", windows, w) + b
    return y
""",
            rules.LATER,
            "",
        ),
        (
            "map_sizes",
            """
def map_sizes(size, strides, sizes=[]):
    for stride in strides:
        size = (size - 1) // stride + 1
        sizes.append(size)
    return sizes
""",
            "",
            rules.REMEMBERS,
        ),
        (
            "receptive_field",
            """
state = [1, 1]
def receptive_field(layers):
    for k, s in layers:
        state[0] += (k - 1) * state[1]
        state[1] *= s
    return state[0]
""",
            "",
            rules.REMEMBERS,
        ),
        ("blocked_matmul", "def blocked_matmul(a, b):\n    return a @ b", rules.TILES, ""),
        (
            "blocked_matmul",
            """
def blocked_matmul(a, b):
    y = np.zeros((len(a), b.shape[1]), a.dtype)
    for k in range(len(b)):
        y += np.outer(a[:, k], b[k])
    return y
""",
            rules.TILES,
            "",
        ),
        (
            "blocked_matmul",
            """
def blocked_matmul(a, b):
    y = np.empty((len(a), b.shape[1]), a.dtype)
    for m in range(0, len(a), 4):
        for n in range(0, b.shape[1], 4):
            y[m : m + 4, n : n + 4] = a[m : m + 4] @ b[:, n : n + 4]
    return y
""",
            "",
            "",
        ),
    ],
)
def test_what_is_kept_between_calls_and_what_numpy_does_alone(name, code, problem, likely):
    outcome = said(name, code=code)
    assert problem in outcome.problem
    assert likely in outcome.likely
    assert (outcome.status == "solved") == (not problem and not likely)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("output_size", lambda right: lambda size, kernel, stride, padding:
         len(range(kernel // 2 - padding, size + padding - kernel // 2, stride))),
        ("output_size", lambda right: lambda *case: max(2, right(*case))),
        ("output_size", lambda right: lambda size, kernel, stride, padding:
         right(size, kernel, stride, min(padding, kernel // 2))),
        ("map_sizes", lambda right: lambda size, strides:
         np.array([size := (size + 1) // s if s > 1 else size for s in strides])),
        ("convolve", lambda right: lambda *case: right(*case).astype(np.float32)),
        ("depthwise", lambda right: lambda *case: right(*case).astype(np.float32)),
        ("fold", lambda right: lambda *case: tuple(array.astype(np.float32) for array in right(*case))),
        ("batchnorm_forward", lambda right: lambda x, gamma, beta, eps: right(x, np.abs(gamma), beta, eps)),
        ("batchnorm_dx", lambda right: lambda dy, x, gamma, eps: right(dy, x, np.abs(gamma), eps)),
        ("average_precision", lambda right: lambda *case: min(0.99, right(*case))),
    ],
)  # fmt: skip
def test_an_answer_that_is_wrong_in_rare_cases_is_refused(name, wrong):
    number, exercise = EXERCISES[name]
    right = wrong(exercise.reference)
    names = list(exercise.make_cases()[0])
    outcome = grading.grade(exercise, lambda **case: right(*(case[n] for n in names)), grading.golden(number))
    assert outcome.status == "wrong"


# --- the faults themselves ---


@pytest.mark.parametrize("name", EXERCISES)
def test_solutions_are_right(name):
    number, exercise = EXERCISES[name]
    assert exercise.solutions
    for solution in exercise.solutions:
        outcome = grading.grade(exercise, solution, grading.golden(number))
        assert (outcome.status, outcome.problem) == ("solved", "")


@pytest.mark.parametrize("name", EXERCISES)
def test_faults_leave_the_solution_as_it_was(name):
    """Each is one change of the right text: a message in one line, and names that the solution has."""
    _, exercise = EXERCISES[name]
    solution, case = exercise.solutions[0], exercise.make_cases()[0]
    before = inspect.getsource(solution)
    messages = {fault.message for level in LEVELS for fault in faults.of_source(solution, case, level)}
    assert inspect.getsource(solution) == before
    assert messages
    assert all("\n" not in message for message in messages)


def test_search_ends_in_time(monkeypatch):
    monkeypatch.setattr(diagnose, "SECONDS", 0.0)
    seen = said("conv_pixel", "range(KH)", "range(1, KH)").likely  # without a search, what the results show
    assert seen.startswith("it is right in all cases in which `i` is less than `padding`, and in no other")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([0, 1, 1, 1, 1], "only the first entry along axis 0 is right: is it treated in another way than the rest?"),
        ([1, 1, 1, 1, 0], "only the last entry along axis 0 is right: is it treated in another way than the rest?"),
        ([1, 0, 0, 0, 1], "only the border along axis 0 is wrong: is it treated in another way than the rest?"),
        ([1, 0, 1, 0, 1], "every other entry along axis 0 is right: is it treated in another way than the rest?"),
        ([0, 0, 1, 1, 1], "the first entries along axis 0 are right, and in each after them something is wrong: look"),
        ([1, 1, 1, 0, 0], "the last entries along axis 0 are right, and in each before them something is wrong: look"),
        ([0, 1, 0, 0, 1], "only the last entry along axis 1 is right"),  # the other column
    ],
)
def test_places_that_are_wrong_are_told_apart(wrong, words):
    mask = np.array([wrong, np.zeros(5)], bool).T  # in the second column everything is right
    pair = observe.Pair(None, mask, mask, mask)
    assert observe._ends([pair, pair]).startswith(words)


def test_a_reason_holds_in_most_further_cases():
    trials = [Trial({"x": k}, k + (k > 3)) for k in range(5)]  # the last one differs
    assert diagnose._holds(lambda x: x, trials, 1e-5)
    assert not diagnose._holds(lambda x: x, [*trials[1:], *trials[4:]], 1e-5)
    _, exercise = EXERCISES["output_size"]
    further = diagnose._further(exercise, exercise.others(), lambda check, *some: check(exercise.reference, *some))
    assert further
    assert not any(trial.problem for trial in further)


def test_what_is_said_of_cases_holds_in_further_ones():
    _, exercise = EXERCISES["receptive_field"]
    layers = [[(3, 1)], [(5, 1)], [(3, 2), (3, 1)], [(3, 3), (5, 1)]]
    trials = [Trial({"layers": some}, exercise.reference(some) + (len(some) > 1)) for some in layers]
    for trial in trials[2:]:
        trial.problem = "it is wrong"
    assert "`layers` has one entry" in observe.observed(exercise, trials, trials[2])
    right = Trial({"layers": [(3, 1), (3, 1)]}, 5)
    assert "`layers` has one entry" not in observe.observed(exercise, trials, trials[2], [right])


def test_another_function_at_the_end_is_the_same_in_all_cases():
    x = np.linspace(0, 1, 9)
    pairs = [observe.Pair(None, power(x), x, np.ones(9, bool)) for power in (np.square, np.square)]
    assert observe._order(pairs).startswith("the numbers are larger where they should be larger")
    pairs[1] = pairs[1]._replace(got=np.sqrt(x))
    assert observe._order(pairs) == ""
    twice = np.repeat(x, 2)  # what is equal has to stay equal
    assert observe._order([observe.Pair(None, np.linspace(0, 1, 18), twice, np.ones(18, bool))]) == ""


def test_results_of_a_function_that_raises_or_writes():
    def function(x):
        if x[0] == 1:
            x += 1
        return 1 / (x[0] - 3) if x[0] != 3 else [][0]

    cases = [{"x": np.full(2, k)} for k in (0, 1, 3, 5)]
    assert rules.results(function, cases, 5.0) == [-1 / 3, None, None, 0.5]
    assert cases[1]["x"][0] == 1
    assert rules.results(function, cases, 0.0) == []


def test_what_is_written_into_has_no_definition():
    def solution(x):
        y = np.zeros_like(x)
        half = x / 2
        y[0] = half
        return y

    assert dict(faults._definitions(solution)) == {"half": "(x / 2)"}


def test_a_body_that_is_not_indented_ends_at_two_empty_lines_or_a_definition():
    lines = ["def f(x):", "y = x", "", "return y", "   ", "", "print(1)", "def g():"]
    assert child._end_of_body(lines, 2) == 5
    assert child._end_of_body([*lines[:4], "@cache", "def g():"], 2) == 4
    assert child._end_of_body(lines[:4], 2) == 4
