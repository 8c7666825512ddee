"""Candidates that go wrong, for the tests of `mbnp bench`; `mbnp.bench.candidates.Runner` says what a runner is."""

import dataclasses
import sys
import time

import numpy as np

from mbnp.bench.candidates import Mbnp, OnnxRuntime, Reference, Runner


class WrongWeights(Mbnp):
    """The right network with the wrong weights."""

    def __init__(self, workload, option):
        super().__init__(dataclasses.replace(workload, weights_seed=1), "readable")

    def outputs(self):
        reference = Reference(self.workload)
        reference.build()
        return reference.outputs()


class OnnxWithoutTorch(OnnxRuntime):
    """ONNX Runtime, which fails if PyTorch is in the process that it is timed in."""

    def run(self):
        assert "torch" not in sys.modules
        super().run()

    def outputs(self):
        self.run()
        return super().outputs()


class Idle(Runner):
    """Nothing to compare, and steps of about a millisecond; options say what goes wrong."""

    def __init__(self, workload, option):
        super().__init__(workload, option)
        if option.get("noise"):
            print("hello from a library")  # must not end up among the answers, nor on the terminal
        if option.get("dies") == "at once":
            raise RuntimeError("out of luck")
        np.ones(option.get("imports", 0) * 125_000)  # freed at once, and no memory of the network
        self.steps, self.kept = 0, []

    def outputs(self):
        return {}

    def run(self):
        time.sleep(0.001)
        self.steps += 1
        if self.option.get("dies") == "later" and self.steps > 20:
            sys.exit("boom, in the\nmiddle")
        if self.option.get("hangs"):
            time.sleep(60)
        if "megabytes" in self.option and not self.kept:
            self.kept.append(np.ones(self.option["megabytes"] * 125_000))
            self.kept[0] = self.kept[0][:1].copy()  # freed again: the peak counts
