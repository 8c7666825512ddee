"""`mbnp summary`: count what a network costs, layer by layer."""

from argparse import Namespace
from pathlib import Path

from mbnp import cost, models, pages, tables, weights
from mbnp.commands import common
from mbnp.errors import MbnpError
from mbnp.network import Network
from mbnp.pages import network

SHOWN = 10  # names of classes

FORMULAS = """\
Formulas, with the output's H and W (the article's count too many at stride 2):
  standard convolution   H·W·K·K·Cin·Cout MACs
  depthwise convolution  H·W·K·K·Cin
  pointwise convolution  H·W·Cin·Cout
  depthwise separable    the last two added: 1/Cout + 1/K² of the standard one
A MAC is a multiplication and an addition, 2 FLOPs; the article calls it a FLOP.
Its example, H = W = 10, K = 3, 3 -> 10 channels:
  {standard:,} standard; {depthwise:,} + {pointwise:,} = {separable:,} separable"""


def run(options: Namespace) -> None:
    if options.html is not None:
        common.check_output(options.html, ".html", [options.model])
    net = _network(options)
    size = net.resolution if options.resolution is None else options.resolution
    counted = cost.of(net, (size, size, net.channels))
    name = net.arch.get("name")
    name = name if name in models.names() else options.model
    if options.html is not None:
        pages.write(options.html, network.page(net, name, size))
    print(f"{name}, images of {size} x {size}\n")
    print(tables.hang(counted.table()) + "\n")
    for label, text in _totals(net, counted).items():
        print(tables.hang(f"{label:12}{text}", indent=12))
    example = {
        "standard": cost.standard_conv(10, 10, 3, 3, 10),
        "depthwise": cost.depthwise(10, 10, 3, 3),
        "pointwise": cost.pointwise(10, 10, 3, 10),
        "separable": cost.separable(10, 10, 3, 3, 10),
    }
    print("\n" + FORMULAS.format(**example))
    if options.html is not None:
        print(f"\n{options.html}: open it in a browser")


def _totals(net: Network, counted: cost.Cost) -> dict[str, str]:
    shares = ", ".join(f"{kind} {100 * share:.2f} %" for kind, share in counted.shares().items())
    totals = {
        "MACs": f"{counted.macs:,}",
        "of these": shares,
        "FLOPs": f"{counted.flops:,}",
        "parameters": f"{counted.params:,} learnable; {counted.weight_bytes / 1e6:.2f} MB of weights and statistics",
        "activations": f"{counted.activation_bytes / 1e6:.2f} MB for one image, every layer's output together",
    }
    if (full := counted.as_standard()) > counted.macs:
        totals["standard"] = f"{full:,} MACs with full convolutions for separable ones, {full / counted.macs:.1f} x"
    if net.preprocessing is not None:
        totals["images"] = _scaling(**net.preprocessing)
    if net.classes is not None:
        totals["classes"] = ", ".join(net.classes[:SHOWN]) + (", ..." if len(net.classes) > SHOWN else "")
    return totals


def _network(options: Namespace) -> Network:
    named = ("width_mult", "num_classes", "channels")
    chosen = {name: value for name in named if (value := getattr(options, name)) is not None}
    if options.model in models.names() or not (set("./") & set(options.model) or Path(options.model).is_file()):
        return models.create(options.model, **chosen)
    if chosen:
        raise MbnpError(f"a checkpoint has its own {' and '.join(chosen)}: leave the option out")
    return weights.load(options.model, options.weights, tables.note)


def _scaling(mean: list[float], std: list[float], order: str = "rgb") -> str:
    numbers = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
    return "scaled to 0..1, less ({}), divided by ({}), {}".format(*numbers, order.upper())
