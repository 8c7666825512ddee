"""The command line: what `mbnp` understands. What each command does is in `commands/`, one file a command.

Nothing heavy is imported here, so that `mbnp --help` answers at once: a command's module comes when it runs.
"""

import argparse
import importlib
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import mbnp
from mbnp.errors import MbnpError

MODELS = "mobilenet-v1-small, standard-small, mobilenet-v1-cifar, mobilenet-v1, resnet20"
READ = ".safetensors, .pt, .pth, .h5, .keras and .onnx"
WRITTEN = ".safetensors, .pt and .onnx"
DATA = (
    "a folder or archive of CIFAR-10's binary records, or cifar10, or shapes10 (default: what MBNP_DATA "
    "names or what is in ./data or the user's cache, or else shapes10, pictures that mbnp draws itself)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. Bad input is one line on stderr and 2."""
    _mend_streams()
    options = _parser().parse_args(argv)
    try:
        command = importlib.import_module(f"mbnp.commands.{options.command}")
        status = command.run(options) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output has seen enough, as in `mbnp summary NAME | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would complain when it flushes at its exit
        return 141
    except (MbnpError, OSError) as error:
        line = str(error).replace("\n", "\\n")  # a name with a line break in it is still one line
        print(f"mbnp: error: {line}", file=sys.stderr)
        return 2
    except MemoryError:
        print("mbnp: error: not enough memory for that", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mbnp: stopped", file=sys.stderr)
        return 130


def _mend_streams() -> None:
    """Output that a terminal cannot show is escaped, and output that nobody takes is dropped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"mbnp: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mbnp",
        description="MobileNet from scratch in NumPy and Numba: train it, use it, count it, check it.",
        epilog="start with:\n  mbnp train\n  mbnp summary mobilenet-v1 --resolution 224",
    )
    parser.add_argument("--version", action="version", version=f"mbnp {mbnp.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_train, _evaluate, _predict, _summary, _check, _data, _bench, _warmup, _convert, _grade):
        add(commands)
    return parser


def _train(commands: Any) -> None:
    p = commands.add_parser(
        "train",
        help="train a network",
        description="Train a network, and write a run folder: config.json, metrics.csv, model.safetensors, "
        "curves.png.",
        epilog="examples:\n"
        "  mbnp train                                    the article's network on the data at hand\n"
        "  mbnp train --data cifar-10-binary.tar.gz --epochs 20 --seed 1\n"
        "  mbnp train --model standard-small --out runs/full-convolutions\n"
        "  mbnp train --init mobilenet.h5 --freeze-until features.7 --lr 0.01        fine-tuning",
    )
    p.add_argument("--model", help=f"{MODELS} (default: mobilenet-v1-small)")
    p.add_argument("--width-mult", type=_finite, metavar="X", help="all channels times X (default: 1)")
    p.add_argument(
        "--init",
        metavar="CHECKPOINT",
        help="go on from these weights, in any format that mbnp reads, with their architecture and normalisation; "
        "the last layer begins afresh where the data has other classes",
    )
    p.add_argument(
        "--freeze-until",
        metavar="LAYER",
        help="with --init: this layer or block and all before it stay as they are",
    )
    p.add_argument("--data", metavar="PATH", help=DATA)
    p.add_argument(
        "--epochs", type=int, metavar="N", help="times through the data (default: what the data needs)"
    )
    p.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: %(default)s")
    p.add_argument("--lr", type=_finite, default=0.1, help="highest learning rate (default: %(default)s)")
    p.add_argument("--weight-decay", type=_finite, default=5e-4, metavar="X", help="default: %(default)s")
    p.add_argument(
        "--schedule", default="one-cycle", help="one-cycle, cosine, step or constant (default: %(default)s)"
    )
    p.add_argument("--label-smoothing", type=_finite, default=0.0, metavar="X", help="default: %(default)s")
    p.add_argument("--no-augment", action="store_true", help="neither move nor mirror the training pictures")
    p.add_argument(
        "--seed", type=int, default=0, help="of weights, order and augmentation (default: %(default)s)"
    )
    p.add_argument("--out", metavar="RUN", help="a folder that does not exist (default: runs/NAME-N)")
    _engine_options(p)


def _evaluate(commands: Any) -> None:
    p = commands.add_parser(
        "evaluate",
        help="test a checkpoint",
        description="Loss and accuracy of a checkpoint on the test pictures, over all and by class.",
        epilog="example:\n  mbnp evaluate runs/mobilenet-v1-small-1/model.safetensors",
    )
    p.add_argument(
        "checkpoint", metavar="CHECKPOINT", help=f"weights that mbnp train wrote, or others: {READ}"
    )
    p.add_argument("--data", metavar="PATH", help=DATA)
    _engine_options(p)


def _predict(commands: Any) -> None:
    p = commands.add_parser(
        "predict",
        help="say what is on pictures",
        description="The most probable classes of each picture: its shorter side is resized to the network's "
        "resolution and its middle cropped.",
        epilog="example:\n  mbnp predict cat.jpg dog.png --checkpoint runs/resnet20-1/model.safetensors",
    )
    p.add_argument("images", metavar="IMAGE", nargs="+", help="a picture file of any kind that Pillow reads")
    p.add_argument(
        "--checkpoint", required=True, metavar="FILE", help=f"weights from mbnp train, or others: {READ}"
    )
    p.add_argument("--top", type=int, default=3, metavar="K", help="how many classes (default: %(default)s)")
    _engine_options(p)


def _summary(commands: Any) -> None:
    p = commands.add_parser(
        "summary",
        help="count parameters and multiplications, layer by layer",
        description="Output shape, parameters, MACs, FLOPs (2 x MACs) and share of each layer, the totals, "
        "and the article's formulas.",
        epilog="examples:\n"
        "  mbnp summary mobilenet-v1 --resolution 224\n"
        "  mbnp summary mobilenet-v1 --resolution 160 --width-mult 0.5\n"
        "  mbnp summary runs/mobilenet-v1-small-1/model.safetensors",
    )
    p.add_argument("model", metavar="MODEL", help=f"{MODELS}, or a file: {READ}")
    p.add_argument(
        "--resolution", type=int, metavar="N", help="pictures of N x N (default: the network's own)"
    )
    p.add_argument("--width-mult", type=_finite, metavar="X", help="all channels times X (default: 1)")
    p.add_argument("--num-classes", type=int, metavar="N", help="default: the network's own")


def _check(commands: Any) -> None:
    commands.add_parser(
        "check",
        help="check every operation on this machine",
        description="Every operation, forward and backward: do its spellings in NumPy and Numba agree with "
        "the loops that define it, with finite differences, and with PyTorch where it is installed? Exit "
        "status 1 if not.",
    )


def _data(commands: Any) -> None:
    p = commands.add_parser("data", help="get CIFAR-10, make a subset, look at what is there")
    actions = p.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser(
        "show", help="which data a command would use", description="Which data is used."
    )
    show.add_argument("--data", metavar="PATH", help=DATA)
    download = actions.add_parser(
        "download",
        help="fetch CIFAR-10's binary archive (170 MB)",
        description="Fetch CIFAR-10's binary archive and verify it; a transfer that broke off is resumed.",
        epilog="example:\n  mbnp data download --out data",
    )
    download.add_argument("--url", help="a mirror (default: the official server)")
    download.add_argument("--out", metavar="FOLDER", help="default: the user's cache")
    subset = actions.add_parser(
        "subset",
        help="write a small, class-balanced part of CIFAR-10",
        description="Write a seeded part of CIFAR-10, as many pictures of each class, in the same layout.",
        epilog="example:\n  mbnp data subset --out data/small --train 10000 --test 2000",
    )
    subset.add_argument("--out", required=True, metavar="FOLDER", help="a folder that does not exist")
    subset.add_argument(
        "--data", metavar="PATH", help="what to take from (default: cifar10, where it is found)"
    )
    subset.add_argument(
        "--train", type=int, default=10_000, metavar="N", help="default: %(default)s pictures"
    )
    subset.add_argument("--test", type=int, default=2_000, metavar="N", help="default: %(default)s pictures")
    subset.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def _bench(commands: Any) -> None:
    p = commands.add_parser(
        "bench",
        help="measure where the time goes, and compare with PyTorch and ONNX Runtime",
        description="The time, GFLOP/s and GB/s of every layer, forward and backward; the whole step against "
        "its own matrix products alone, and with --against against peers, in alternating turns, each in a "
        "process of its own, after their outputs were found to agree.",
        epilog="examples:\n"
        "  mbnp bench --out roofline.png\n"
        "  mbnp bench --against torch,onnxruntime        about ten minutes\n"
        "  mbnp bench --against torch --work training --batch-size 128\n"
        "  mbnp bench --scaling --out scaling.png",
    )
    p.add_argument("--model", default="mobilenet-v1-small", help=f"{MODELS} (default: %(default)s)")
    p.add_argument(
        "--width-mult", type=_finite, default=1.0, metavar="X", help="all channels times X (default: 1)"
    )
    p.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: %(default)s")
    p.add_argument(
        "--resolution", type=int, metavar="N", help="pictures of N x N (default: the network's own)"
    )
    p.add_argument(
        "--against",
        metavar="PEERS",
        help="one or more of torch,onnxruntime,readable (needs the extra `bench`)",
    )
    p.add_argument(
        "--work",
        metavar="LIST",
        help="what to compare: training,inference at the batch size, single (inference of one picture), "
        "mobilenet-v1 (of one picture of 224 x 224) (default: the first two, or with --against all that suit)",
    )
    p.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, whose set-up takes a minute"
    )
    p.add_argument(
        "--scaling",
        action="store_true",
        help="instead: time per picture over batch size, width, resolution and threads",
    )
    p.add_argument("--rounds", type=int, default=15, metavar="N", help="turns of each (default: %(default)s)")
    p.add_argument("--json", metavar="FILE", help="write all of it: seconds, bytes, ratios")
    p.add_argument("--out", metavar="FILE.png", help="draw the roofline, or with --scaling its curves")
    _engine_options(p)


def _warmup(commands: Any) -> None:
    p = commands.add_parser(
        "warmup",
        help="compile ahead what train, evaluate and predict need",
        description="Compile every kernel that train, evaluate and predict need, once: they then start at once.",
        epilog="example:\n  mbnp warmup --model mobilenet-v1-small",
    )
    p.add_argument("--model", help=f"only for one of {MODELS} (default: for all)")
    p.add_argument("--readable", action="store_true", help="for train --readable, not for the fast engine")


def _convert(commands: Any) -> None:
    p = commands.add_parser(
        "convert",
        help="take weights from one format into another",
        description="Read a network from one file and write it into another; the suffixes name the formats: "
        f"{READ} are read, {WRITTEN} written. What a file does not say of its pictures and classes can be added.",
        epilog="examples:\n"
        "  mbnp convert mobilenet.h5 mobilenet.safetensors\n"
        "  mbnp convert runs/mobilenet-v1-small-1/model.safetensors model.onnx --layout NHWC\n"
        "  mbnp convert timm.safetensors net.safetensors --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5",
    )
    p.add_argument("file", metavar="IN", help="a network in any format that mbnp reads")
    p.add_argument("out", metavar="OUT", help="a file that does not exist")
    p.add_argument("--force", action="store_true", help="replace OUT if it exists")
    p.add_argument("--layout", choices=("NCHW", "NHWC"), help="of an ONNX graph's input (default: NCHW)")
    p.add_argument(
        "--keep-batchnorm",
        action="store_true",
        help="do not fold BatchNorm into an ONNX graph's convolutions",
    )
    p.add_argument(
        "--names", choices=("mbnp", "timm"), help="of a PyTorch file's arrays (default: the network's own)"
    )
    p.add_argument("--mean", type=_numbers, metavar="R,G,B", help="of the pictures, on a scale of 0 to 1")
    p.add_argument("--std", type=_numbers, metavar="R,G,B", help="their spread, likewise")
    p.add_argument("--order", choices=("rgb", "bgr"), help="of the channels, in --mean and --std too")
    p.add_argument("--classes", metavar="FILE", help="a text file with the names of the classes, one a line")


def _grade(commands: Any) -> None:
    p = commands.add_parser(
        "grade",
        help="grade the exercises of a lesson",
        description="Run the functions of an exercise file of tutorials/ on small cases and compare them with mbnp's "
        "own and with PyTorch's stored results. Says which number is wrong and likely why. The file is executed, "
        "as it is your own program. Exit status 0 if all is solved, 1 if not.",
        epilog="example:\n  mbnp grade tutorials/exercises/01.py",
    )
    p.add_argument(
        "exercise", metavar="EXERCISE.py", help="a file with solutions, begun from tutorials/exercises"
    )


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _numbers(text: str) -> list[float]:
    return [_finite(part) for part in text.split(",")]


_numbers.__name__ = "list of numbers"
_finite.__name__ = "number"  # as in: invalid number value: 'nan'


def _engine_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--threads", type=int, metavar="N", help="default: as many as there are processors")
    p.add_argument("--readable", action="store_true", help="run layers.py as it stands, not the fast engine")
