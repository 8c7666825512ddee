"""The multibox loss: are the boxes where the objects are, and are the scores those of what is there?

For one image, o[a] = (d, z) are the outputs of anchor a: d the four offsets, z the logits, the first of them of
background. t[a] is its class (0 for background) and g[a] the offsets of its object, both from `matching.targets`.

    where   = sum over matched a, k of smooth(d[a, k] - g[a, k])     smooth(e) = e^2 / 2 where |e| < 1, else |e| - 1/2
    what    = sum over chosen a of entropy[a]                        entropy[a] = -log softmax(z[a])[t[a]]
    loss    = (where + what) / M, summed over the images of the batch

M is the number of matched anchors in the batch, at least 1. Chosen are the matched anchors (t > 0), and of the others,
which are some hundred times as many, only the hardest: the three times as many as there are matched in this image that
have the largest entropy (of equal ones the first). An image without objects therefore adds nothing. A row of NaN is
always chosen, so that it shows.

The choice is a constant to the gradient, and at |e| = 1 the two parts of smooth have the same slope:

    dd[a, k] = min(max(d[a, k] - g[a, k], -1), 1) / M                where a is matched, else 0
    dz[a, c] = (softmax(z[a])[c] - [c = t[a]]) / M                   where a is chosen, else 0

As a module this is a loss for `train.step`: `train.step(net, opt, x, targets, loss=multibox)`.

Source: Liu et al., "SSD", 2016, arXiv:1512.02325, equations 1 to 3 and "Hard negative mining"; smooth L1 is equation 3
of Girshick, "Fast R-CNN", 2015, arXiv:1504.08083.
"""

import numpy as np

from mbnp import backend
from mbnp.detection.matching import Targets
from mbnp.errors import MbnpError, refuse_mask
from mbnp.ops import checks, softmax_cross_entropy

NEGATIVES = 3  # for each matched anchor

# --- loops: the definition. entropy and chosen are (N, A) ---


def entropy_loops(outputs, classes):
    N, A, D = outputs.shape
    entropy = np.empty((N, A))
    for n in range(N):
        for a in range(A):
            highest = outputs[n, a, 4]
            for d in range(5, D):
                highest = np.maximum(highest, outputs[n, a, d])
            total = np.float64(0)
            for d in range(4, D):
                total += np.exp(outputs[n, a, d] - highest)
            entropy[n, a] = np.log(total) - (outputs[n, a, 4 + classes[n, a]] - highest)
    return entropy


def choose_loops(entropy, classes):
    N, A = entropy.shape
    chosen = np.empty((N, A), np.bool_)
    for n in range(N):
        hardness = np.empty(A)
        matched = 0
        for a in range(A):
            chosen[n, a] = classes[n, a] > 0 or np.isnan(entropy[n, a])
            matched += classes[n, a] > 0
            hardness[a] = -np.inf if chosen[n, a] else entropy[n, a]
        negatives = 0
        for a in np.argsort(-hardness, kind="mergesort"):
            if negatives < NEGATIVES * matched and not chosen[n, a]:
                chosen[n, a] = True
                negatives += 1
    return chosen


def forward_loops(outputs, classes, offsets, entropy, chosen):
    N, A, _ = outputs.shape
    where, what, matched = 0.0, 0.0, 0
    for n in range(N):
        for a in range(A):
            if classes[n, a] > 0:
                matched += 1
                for k in range(4):
                    distance = np.float64(abs(outputs[n, a, k] - offsets[n, a, k]))
                    where += distance**2 / 2 if distance < 1 else distance - 0.5
            if chosen[n, a]:
                what += entropy[n, a]
    return (where + what) / max(matched, 1)


def backward_loops(outputs, classes, offsets, chosen):
    N, A, D = outputs.shape
    doutputs = np.zeros_like(outputs)
    matched = 0
    for n in range(N):
        for a in range(A):
            matched += classes[n, a] > 0
    for n in range(N):
        for a in range(A):
            if classes[n, a] > 0:
                for k in range(4):
                    distance = outputs[n, a, k] - offsets[n, a, k]
                    doutputs[n, a, k] = np.minimum(np.maximum(distance, -1), 1) / max(matched, 1)
            if chosen[n, a]:
                highest = outputs[n, a, 4]
                for d in range(5, D):
                    highest = np.maximum(highest, outputs[n, a, d])
                total = np.float64(0)
                for d in range(4, D):
                    total += np.exp(outputs[n, a, d] - highest)
                for d in range(4, D):
                    right = 1 if d == 4 + classes[n, a] else 0
                    doutputs[n, a, d] = (np.exp(outputs[n, a, d] - highest) / total - right) / max(matched, 1)
    return doutputs


# --- NumPy: all anchors at once ---


def entropy_numpy(outputs, classes):
    log_prob = softmax_cross_entropy.log_softmax(outputs[:, :, 4:].reshape(classes.size, -1))
    return -log_prob[np.arange(classes.size), classes.reshape(-1)].reshape(classes.shape).astype(np.float64)


def choose_numpy(entropy, classes):
    chosen = (classes > 0) | np.isnan(entropy)
    hardness = np.where(chosen, -np.inf, entropy)
    rank = np.argsort(np.argsort(-hardness, axis=1, kind="stable"), axis=1)
    return chosen | (rank < NEGATIVES * (classes > 0).sum(axis=1, keepdims=True))


def forward_numpy(outputs, classes, offsets, entropy, chosen):
    matched = classes > 0
    distance = np.abs(outputs[matched, :4] - offsets[matched])
    near = np.minimum(distance, 1)
    where = (near * (distance - near / 2)).sum(dtype=np.float64)  # e^2 / 2 below 1, e - 1/2 above
    return (where + entropy[chosen].sum()) / max(np.count_nonzero(matched), 1)


def backward_numpy(outputs, classes, offsets, chosen):
    matched = classes > 0
    doutputs = np.zeros_like(outputs)
    doutputs[matched, :4] = np.clip(outputs[matched, :4] - offsets[matched], -1, 1)
    if chosen.any():
        rows = outputs[chosen, 4:]
        doutputs[chosen, 4:] = softmax_cross_entropy.backward(rows, classes[chosen]) * len(rows)
    doutputs /= max(np.count_nonzero(matched), 1)
    return doutputs


# --- Numba: the loops, where they are over all anchors; what is chosen is a twentieth of them ---

# In the order as written, as in the cross-entropy: z - max - log sum must not begin with max - log sum.
entropy_numba = backend.jit(entropy_loops, literal=True)

# --- the public pair ---

_entropy = backend.pick(loops=entropy_loops, numpy=entropy_numpy, numba=entropy_numba)
_choose = backend.pick(loops=choose_loops, numpy=choose_numpy)
_forward = backend.pick(loops=forward_loops, numpy=forward_numpy)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy)


def forward(outputs: np.ndarray, targets: Targets) -> np.floating:
    """Return the loss of a batch, in the dtype of outputs (N, A, 4 + 1 + K), from what `matching.targets` returned."""
    outputs, classes, offsets = _valid(outputs, targets)
    with np.errstate(over="ignore", invalid="ignore"):
        entropy = _entropy(outputs, classes)
        chosen = _choose(entropy, classes)
        return outputs.dtype.type(_forward(outputs, classes, offsets, entropy, chosen))


def backward(outputs: np.ndarray, targets: Targets) -> np.ndarray:
    """Return doutputs (N, A, 4 + 1 + K), the gradient of the loss, from what went into `forward`."""
    outputs, classes, offsets = _valid(outputs, targets)
    with np.errstate(over="ignore", invalid="ignore"):
        chosen = _choose(_entropy(outputs, classes), classes)
        return _backward(outputs, classes, offsets, chosen)


def chosen(outputs: np.ndarray, targets: Targets) -> np.ndarray:
    """Return which anchors (N, A) the scores are learnt from: the matched ones and the hardest of the others."""
    outputs, classes, _ = _valid(outputs, targets)
    with np.errstate(over="ignore", invalid="ignore"):
        return _choose(_entropy(outputs, classes), classes)


def _valid(outputs: np.ndarray, targets: Targets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    outputs = checks.array("outputs", outputs, "(N, A, 4 + 1 + K)")
    refuse_mask("the targets' classes", targets.classes)
    classes, offsets = np.asarray(targets.classes), targets.offsets
    *anchors, D = outputs.shape
    if D < 6:
        raise MbnpError(f"outputs {outputs.shape} must hold 4 offsets and the logits of background and of a class")
    checks.shape("the targets' classes", classes, tuple(anchors))
    if classes.dtype.kind not in "iu" or classes.min() < 0 or classes.max() > D - 5:
        raise MbnpError(
            f"the targets' classes must be whole numbers from 0 to {D - 5}, as many as outputs have logits, got "
            f"{classes.dtype} from {classes.min()} to {classes.max()}"
        )
    offsets = checks.array("the targets' offsets", offsets, like=outputs)
    checks.shape("the targets' offsets", offsets, (*anchors, 4))
    return outputs, backend.of_one_type(np.ascontiguousarray(classes, np.int64)), offsets
