"""What every test needs: quiet threads, and the real data where it is at hand."""

import os
import signal

import pytest
import torch

# PyTorch's threads spin beside Numba's on the same cores: with both, the suite takes several times as long.
torch.set_num_threads(1)


# A shell lets what it runs in the background ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["MBNP_LANG"] = "en"  # the tests read messages, wherever they run


@pytest.fixture(scope="session")
def cifar10():
    """CIFAR-10 (or a subset in its record format) from the folder or archive that MBNP_DATA names."""
    path = os.environ.get("MBNP_DATA")
    if not path:
        pytest.skip("needs CIFAR-10: set MBNP_DATA to its binary archive or a folder of its record files")
    from mbnp import datasets

    return datasets.load(path)
