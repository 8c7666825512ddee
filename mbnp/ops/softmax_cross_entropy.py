"""Softmax and cross-entropy: scores to probabilities, and how surprised they are by the labels.

    prob[n, d] = exp(z[n, d]) / sum_k exp(z[n, k])
    loss       = 1/N sum_n -sum_d t[n, d] log prob[n, d]

z (N, D) are the logits, labels (N,) the index of the right class, t the target: 1 at the label and 0
elsewhere, or, smoothed by eps, 1 - eps + eps/D at the label and eps/D elsewhere, so that no score need go
to infinity.

exp overflows for large z. Subtracting a row's maximum changes no probability, and log prob is computed
without prob:

    log prob[n, d] = z[n, d] - max - log sum_k exp(z[n, k] - max)

Backward. With d log prob[d] / dz[k] = [d = k] - prob[k], and t adding up to 1 along a row:

    dz[n, d] = (prob[n, d] - t[n, d]) / N

The kernel is the loops, compiled: N*D numbers are too few for more to pay, and two dozen calls of NumPy take several
times longer than their arithmetic.

Source: Bishop, "Pattern Recognition and Machine Learning", equation 4.109; label smoothing: Szegedy et al.,
"Rethinking the Inception Architecture", arXiv:1512.00567, section 7.
"""

import numpy as np

from mbnp import backend
from mbnp.errors import MbnpError, refuse_mask
from mbnp.ops import checks

# --- loops: the definition ---


def forward_loops(logits, labels, label_smoothing):
    N, D = logits.shape
    loss = np.float64(0)
    for n in range(N):
        highest = logits[n, 0]
        for d in range(D):
            if logits[n, d] > highest:
                highest = logits[n, d]
        total = np.float64(0)
        for d in range(D):
            total += np.exp(logits[n, d] - highest)
        log_total = np.log(total)
        loss -= (1 - label_smoothing) * (logits[n, labels[n]] - highest - log_total)
        if label_smoothing > 0:
            for d in range(D):
                loss -= label_smoothing / D * (logits[n, d] - highest - log_total)
    return loss / N


def backward_loops(logits, labels, label_smoothing):
    N, D = logits.shape
    dlogits = np.empty_like(logits)
    for n in range(N):
        highest = logits[n, 0]
        for d in range(D):
            if logits[n, d] > highest:
                highest = logits[n, d]
        total = np.float64(0)
        for d in range(D):
            total += np.exp(logits[n, d] - highest)
        for d in range(D):
            target = label_smoothing / D
            if d == labels[n]:
                target += 1 - label_smoothing
            dlogits[n, d] = (np.exp(logits[n, d] - highest) / total - target) / N
    return dlogits


# --- NumPy: all rows at once ---


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithms of the probabilities (N, D) of logits (N, D)."""
    z = logits - logits.max(axis=1, keepdims=True)  # nd, n -> nd
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def forward_numpy(logits, labels, label_smoothing):
    log_prob = log_softmax(logits)
    loss = -(1 - label_smoothing) * log_prob[np.arange(len(labels)), labels].mean(dtype=np.float64)
    if label_smoothing > 0:  # or 0 * -inf would make a NaN of an impossible class
        loss -= label_smoothing * log_prob.mean(dtype=np.float64)
    return loss


def backward_numpy(logits, labels, label_smoothing):
    N, D = logits.shape
    dlogits = softmax(logits) - logits.dtype.type(label_smoothing / D)
    dlogits[np.arange(N), labels] -= 1 - label_smoothing
    return dlogits / N


# --- Numba: the loops ---

# In the order as written: regrouped, z - max - log sum would first subtract a small number from a large one.
forward_numba = backend.jit(forward_loops, literal=True)
backward_numba = backend.jit(backward_loops)

# --- the public functions ---

_forward = backend.pick(loops=forward_loops, numpy=forward_numpy, numba=forward_numba)
_backward = backend.pick(loops=backward_loops, numpy=backward_numpy, numba=backward_numba)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (N, D) from logits (N, D); every row adds up to 1."""
    logits = checks.array("logits", logits, "(N, D)")
    return np.exp(log_softmax(logits))


def forward(logits: np.ndarray, labels: np.ndarray, label_smoothing: float = 0.0) -> np.floating:
    """Return the mean loss over the batch, in nats, as a scalar of the dtype of logits.

    logits (N, D); labels (N,), whole numbers from 0 to D - 1 (MbnpError otherwise); label_smoothing from
    0 to 1.
    """
    logits, labels, label_smoothing = _valid(logits, labels, label_smoothing)
    return logits.dtype.type(_forward(logits, labels, label_smoothing))


def backward(logits: np.ndarray, labels: np.ndarray, label_smoothing: float = 0.0) -> np.ndarray:
    """Return dlogits (N, D), the gradient of the mean loss, from what went into `forward`."""
    return _backward(*_valid(logits, labels, label_smoothing))


def check(shape: tuple[int, ...], labels: np.ndarray, label_smoothing: float = 0.0) -> np.ndarray:
    """Return labels as (N,) int64; MbnpError if these are none for logits of a shape (N, D)."""
    if len(shape) != 2:
        raise MbnpError(f"logits must have the axes (N, D), got the shape {shape}")
    N, D = shape
    refuse_mask("labels", labels)
    try:
        labels = np.asarray(labels)
    except ValueError:
        raise MbnpError("labels must be one array of whole numbers, and these are of different lengths") from None
    if labels.shape != (N,):
        raise MbnpError(f"labels must have the shape {(N,)}, got {labels.shape}{_advice(labels.shape, N, D)}")
    if labels.dtype.kind not in "iu":
        hint = ": use labels.astype(np.int64)" if labels.dtype.kind in "fb" else ""
        raise MbnpError(f"labels must be whole numbers, got {labels.dtype}{hint}")
    if labels.min() < 0 or labels.max() >= D:
        wrong = np.flatnonzero((labels < 0) | (labels >= D))[0]
        raise MbnpError(f"labels must be 0 to {D - 1} for {D} classes, got {labels[wrong]} at position {wrong}")
    if not 0 <= label_smoothing <= 1:
        raise MbnpError(f"label_smoothing must be from 0 to 1, got {label_smoothing!r}")
    return backend.of_one_type(np.ascontiguousarray(labels, np.int64))


def _advice(shape: tuple[int, ...], N: int, D: int) -> str:
    if shape == (N, 1):
        return ": use labels[:, 0]"
    return ": use labels.argmax(axis=1)" if shape == (N, D) else ""


def _valid(logits: np.ndarray, labels: np.ndarray, label_smoothing: float) -> tuple[np.ndarray, np.ndarray, float]:
    logits = checks.array("logits", logits, "(N, D)")
    return logits, check(logits.shape, labels, label_smoothing), float(label_smoothing)
