"""What the builders share: scaled channel counts, and the record of how a network was built."""

from typing import Any

from mbnp.errors import MbnpError
from mbnp.network import Network


def scaled(channels: int, width_mult: float) -> int:
    """`int(channels * width_mult)`, the paper's section 3.3: a thinner network with every layer alike."""
    if not width_mult > 0 or int(channels * width_mult) < 1:
        raise MbnpError(f"width_mult {width_mult} leaves no channel of {channels}; take more, such as 0.25")
    return int(channels * width_mult)


def finish(net: Network, name: str, **options: Any) -> Network:
    """Note in `net` what builds it again; seed and dtype are left out, they are in its arrays."""
    if not options["num_classes"] >= 1:
        raise MbnpError(f"num_classes must be at least 1, got {options['num_classes']}")
    net.arch = {"name": name, **options}
    return net
