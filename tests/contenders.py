"""Contenders that go wrong, for the tests of `mbnp bench`; `mbnp.bench.ours` says what a contender is."""

import dataclasses
import sys
import time

import numpy as np

from mbnp.bench.ours import Mbnp, Reference


class WrongWeights(Mbnp):
    """The right network with the wrong weights."""

    def __init__(self, job, options, before_network):
        super().__init__(dataclasses.replace(job, weights_seed=1), {"engine": "readable"}, before_network)

    def outputs(self):
        return Reference(self.job, {}, lambda: None).outputs()


class Idle:
    """Nothing to compare, and steps of about a millisecond; options say what goes wrong."""

    def __init__(self, job, options, before_network):
        if options.get("noise"):
            print("hello from a library")  # must not end up in the protocol
        if options.get("dies") == "at once":
            raise RuntimeError("out of luck")
        np.ones(options.get("imports", 0) * 125_000)  # freed at once, and no memory of the network
        before_network()
        self.options, self.steps, self.kept = options, 0, []

    def outputs(self):
        return {}

    def run(self):
        time.sleep(0.001)
        self.steps += 1
        if self.options.get("dies") == "later" and self.steps > 20:
            sys.exit("boom, in the\nmiddle")
        if self.options.get("hangs"):
            time.sleep(60)
        if "megabytes" in self.options and not self.kept:
            self.kept.append(np.ones(self.options["megabytes"] * 125_000))
            self.kept[0] = self.kept[0][:1].copy()  # freed again: the peak counts
