"""The fast engine: `fused.convert(net)` computes what `net` does, with its parameters, faster."""

from mbnp.fused.network import FusedNetwork, convert

__all__ = ["FusedNetwork", "convert"]
