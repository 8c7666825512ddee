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


def pytest_collection_modifyitems(items):
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


def pytest_terminal_summary(terminalreporter):
    """Say how many tests drove a browser, since a machine without one skips them."""
    ran, left_out = (
        sum(
            "browser" in getattr(report, "keywords", ())
            for key in keys
            for report in terminalreporter.stats.get(key, ())
        )
        for keys in (("passed", "failed"), ("skipped",))
    )
    if ran or left_out:
        terminalreporter.write_line(f"tests in a browser: {ran} ran, {left_out} were skipped")
