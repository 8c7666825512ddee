"""Random windows for the property tests: any size, kernel, stride and padding that fit together."""

from hypothesis import assume, settings
from hypothesis import strategies as st

# Derandomised: a failure today is one tomorrow. Bounded: the loops are slow. No deadline: kernels compile.
few = settings(max_examples=15, deadline=None, derandomize=True)


@st.composite
def windows(draw, pooling=False):
    """(N, H, W, C), (KH, KW), stride, padding; for pooling the padding is smaller than the window."""

    def pair(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    (N, C), (H, W), (KH, KW), stride = pair(1, 3), pair(1, 7), pair(1, 4), pair(1, 4)
    padding = tuple(pair(0, K - 1 if pooling else 3) for K in (KH, KW))
    assume(H + sum(padding[0]) >= KH and W + sum(padding[1]) >= KW)
    return (N, H, W, C), (KH, KW), stride, padding
