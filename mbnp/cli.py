"""The command line: commands and their options. What each command does is in `commands/`, one file for each.

Nothing heavy is imported here, so that `mbnp --help` answers at once: a command's module comes when it runs.
"""

import argparse
import importlib
import inspect
import math
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import mbnp
from mbnp import errors, tables
from mbnp.errors import MbnpError, printable

MODELS = (
    "mobilenet-v1-small, standard-small, mobilenet-v1-cifar, mobilenet-v1, mobilenet-v2, mobilenet-v2-cifar, "
    "mobilenet-v3-large, mobilenet-v3-small, mobilenet-v3-small-cifar, xception, xception-cifar, resnet20, "
    "ssd-mobilenet-v1-small, ssdlite320-mobilenet-v3-large"
)
READ = "safetensors, PyTorch's, Keras's, ONNX and TensorFlow.js's files"


def main(argv: Sequence[str] | None = None, imported: Callable[[], object] = lambda: None) -> int:
    """Run one command and return its exit status. Bad input is one line on stderr and 2.

    imported() is called before the command begins.
    """
    with _mended_streams():
        try:
            status = _run(sys.argv[1:] if argv is None else argv, imported)
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # the reader of our output has seen enough, as in `mbnp summary NAME | head`
            return 141
        except (MbnpError, OSError, Warning) as error:  # a warning is an error under python -W error
            print(f"mbnp: error: {printable(str(error))}", file=sys.stderr)
            return 2
        except MemoryError:
            print("mbnp: error: not enough memory for that", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("mbnp: stopped", file=sys.stderr)
            return 130


def _run(argv: Sequence[str], imported: Callable[[], object]) -> int:
    options = _parser().parse_args(argv)
    options.given = {word.split("=")[0] for word in argv if word.startswith("--")}
    _settle_checkpoint(options)
    errors.check_environment()
    if getattr(options, "isa", None) is not None:
        isa = importlib.import_module("mbnp.bench.isa")
        isa.check(options.isa)
        if not isa.held(options.isa):
            imported()
            return isa.run_again(options.isa, argv)
        isa.begin()
    command = importlib.import_module(f"mbnp.commands.{options.command}")
    if getattr(options, "threads", None) is not None:
        mbnp.set_num_threads(options.threads)
    imported()
    return command.run(options) or 0


def _settle_checkpoint(options: argparse.Namespace) -> None:
    """Let --weights name the checkpoint where nothing else does, and a run folder mean the weights in it."""
    if not hasattr(options, "checkpoint"):
        return
    if options.checkpoint is None:
        options.checkpoint, options.weights = options.weights, None
    if options.checkpoint is None:
        raise MbnpError(f"required: --checkpoint, the weights to use; see mbnp {options.command} --help")
    inside = os.path.join(options.checkpoint, "model.safetensors")
    options.checkpoint = inside if os.path.isfile(inside) else options.checkpoint


@contextmanager
def _mended_streams() -> Iterator[None]:
    """Let output be printable within the block, whatever it names, and drop what nobody takes."""
    before = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show
        setattr(sys, name, _Printable(stream, needed=name == "stdout"))
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # or Python would complain when it flushes at its exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = before


class _Printable:
    """A stream as it is, but that names from files, which may be anything, steer no terminal.

    needed: whether it is an error if nobody can read what is written.
    """

    def __init__(self, plain: Any, needed: bool) -> None:
        self.plain, self.needed = plain, needed

    def write(self, text: str) -> int:
        try:
            return self.plain.write(printable(text, "\n\t"))
        except OSError:
            if self.needed:
                raise
            return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """The formatter of argparse, but that it never breaks a line at a hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return tables.hang(text, indent=0)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **options)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # argparse's own knows neither -0.5,0.5 nor -1e-3

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"mbnp: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mbnp",
        description="MobileNet from scratch in NumPy and Numba: train it, use it, count it, check it.",
        epilog="start with:\n  mbnp train\n  mbnp summary mobilenet-v1 --resolution 224",
    )
    parser.add_argument("--version", action="version", version=f"mbnp {mbnp.__version__}")
    commands = (
        *(_train, _sweep, _compare, _evaluate, _predict, _detect, _watch, _explain, _summary),
        *(_check, _data, _bench, _warmup, _convert, _grade),
    )
    _add_commands(parser, "command", commands)
    return parser


def _add_commands(parser: argparse.ArgumentParser, dest: str, commands: Sequence[Callable]) -> None:
    """Add a subparser for each function. Its docstring is the help in one line, then the description, the examples."""
    subparsers = parser.add_subparsers(dest=dest, metavar=dest.upper(), required=True)
    for declare in commands:
        text = inspect.cleandoc(declare.__doc__ or "").split("\n\n")
        epilog = text.pop() if text[-1].startswith("example") else ""
        name, help, description = declare.__name__.strip("_"), text[0], " ".join(text[-1].split())
        help = help[:1].lower() + help[1:].rstrip(".")  # empty under python -OO
        declare(subparsers.add_parser(name, help=help, description=description, epilog=epilog))


def _add(p: argparse.ArgumentParser, option: str, help: str = "", **settings: Any) -> None:
    """Add an option, such as "--epochs N". Its placeholder gives its type (TYPES); a name alone is a flag."""
    name, _, metavar = option.partition(" ")
    if "default" in settings:
        help = f"{help} (default: %(default)s)" if help else "default: %(default)s"
    if metavar:
        settings |= {"metavar": metavar, "type": TYPES.get(metavar, str)}
    elif "choices" not in settings:
        settings["action"] = "store_true"
    p.add_argument(name, help=help, **settings)


def _share(p: argparse.ArgumentParser, *options: str) -> None:
    """Add options that several commands have."""
    for option in options:
        _add(p, option, SHARED[option])


def _train(p: argparse.ArgumentParser) -> None:
    """Train a network.

    Train a network, and write a run folder: config.json, metrics.csv, model.safetensors, curves.png, report.html. A run
    that was interrupted, however that happened, goes on with --resume, to the same numbers.

    examples:
      mbnp train
      mbnp train --data cifar-10-binary.tar.gz --epochs 20 --seed 1
      mbnp train --data photos --model mobilenet-v1 --resolution 128
      mbnp train --model standard-small --out runs/full-convolutions
      mbnp train --init mobilenet.h5 --freeze-until features.7 --lr 0.01
      mbnp train --resume runs/mobilenet-v1-small-1
    """
    _training(p)
    _add(p, "--out RUN", "a folder that does not exist (default: runs/NAME-N)")
    _add(p, "--every N", "keep the state after every N steps, too, not only after each epoch")
    _add(p, "--live", "show curves, and what each layer does, in the terminal; without one, a line an epoch as always")
    _add(p, "--resume RUN", "go on with a run folder; beside it only --threads, --every, --data, --epochs and --live")


def _training(p: argparse.ArgumentParser) -> None:
    """Add the options that say what is trained, and how."""
    _add(p, "--model NAME", f"{MODELS} (default: mobilenet-v1-small)")
    _share(p, "--width-mult X")
    kept = "go on from these weights, in any format that mbnp reads, with their architecture and normalisation"
    _add(p, "--init CHECKPOINT", f"{kept}; the last layer begins afresh where the data has other classes")
    _share(p, "--weights WHICH")
    _add(p, "--freeze-until LAYER", "with --init: this layer or block and all before it stay as they are")
    _share(p, "--data PATH")
    _add(p, "--resolution N", "with a folder of images: make them N x N (default: the model's own)")
    _share(p, "--channels N")
    _add(p, "--epochs N", "times through the data (default: what the data needs)")
    _add(p, "--batch-size N", "default: 64, of a detector 32, or a quarter of a few images")
    _add(p, "--lr X", "highest learning rate", default=0.1)
    _add(p, "--weight-decay X", default=5e-4)
    _add(p, "--schedule NAME", "one-cycle, cosine, step or constant", default="one-cycle")
    _add(p, "--label-smoothing X", default=0.0)
    shift = "move the training images by up to an eighth, or show a random part of them; and mirror them"
    _add(p, "--augment", f"{shift} (default: shift)", choices=("shift", "crop"))
    _add(p, "--no-augment", "neither move nor mirror the training images")
    _add(p, "--seed N", "of weights, order and augmentation", default=0)
    _share(p, "--threads N", "--readable")


def _sweep(p: argparse.ArgumentParser) -> None:
    """Train with every combination of several settings, and compare.

    Takes the options of mbnp train. Where one has several values, with commas between them, there is a run for each;
    where several have, for each combination. All runs are in one folder, which gets compare.html at the end. The same
    command with --out FOLDER goes on where it stopped. A run that diverges is noted, and the others go on.

    examples:
      mbnp sweep --width-mult 0.25,0.5,1 --seed 0,1,2
      mbnp sweep --model mobilenet-v1-small,standard-small --epochs 5
      mbnp sweep --lr 0.02,0.05,0.1 --out runs/rates
    """
    _training(p)
    for action in p._actions:
        if action.nargs != 0 and action.dest not in ("init", "weights", "data", "threads"):
            action.metavar = action.metavar or "NAME"
            action.type, action.choices = _several(action.type or str, action.choices), None
    _add(p, "--out RUN", "the folder of the runs (default: runs/sweep-N), or one of a sweep to go on with")
    _add(p, "--every N", "keep the states of a run after every N steps, too, not only after each epoch")


def _compare(p: argparse.ArgumentParser) -> None:
    """Put runs side by side.

    Print accuracy, parameters, MACs, seconds and memory of finished runs, the settings in which they differ, mean and
    spread where only the seed differs, and which of them no other beats in both accuracy and MACs.

    examples:
      mbnp compare runs/*
      mbnp compare runs/sweep-1 --html compare.html --out front.png
    """
    _add(p, "runs RUN", "a run folder, or the folder of a sweep", nargs="+")
    _add(p, "--html FILE", "write it as a page, with curves and the fronts of accuracy against cost")
    _add(p, "--out FILE.png", "draw accuracy against MACs")


def _evaluate(p: argparse.ArgumentParser) -> None:
    """Test a checkpoint: loss and accuracy, or of a detector mean average precision, over all and by class.

    example:
      mbnp evaluate runs/mobilenet-v1-small-1/model.safetensors
    """
    _add(p, "checkpoint CHECKPOINT", f"weights that mbnp train wrote, or others: {READ}")
    _share(p, "--weights WHICH", "--data PATH", "--threads N", "--readable")


def _predict(p: argparse.ArgumentParser) -> None:
    """Name the classes of image files.

    Print the most probable classes of each image. Its shorter side is resized to the network's resolution and its
    middle cropped. Exit status 1 if a file could not be read.

    examples:
      mbnp predict cat.jpg dog.png --checkpoint runs/resnet20-1/model.safetensors
      mbnp predict photos 'more/*.jpg' --checkpoint model.safetensors --json
    """
    _images(p)
    _add(p, "--top K", "number of classes", default=3)
    _add(p, "--json", "print a list of {image, classes: [{class, probability}]} or {image, error}")
    _share(p, "--threads N", "--readable")


def _detect(p: argparse.ArgumentParser) -> None:
    """Find the objects in image files, and draw boxes around them.

    Write NAME-detected.png beside each image NAME, with a box, a class and a score for each object, and print them:
    left, top, right and bottom in pixels of the image as it is displayed. With --json, print one JSON object a line and
    image, and draw only if --out says where. Exit status 1 if a file could not be read.

    examples:
      mbnp detect photo.jpg --checkpoint runs/ssd-mobilenet-v1-small-1
      mbnp detect photos 'more/*.jpg' --checkpoint package/model --out found
      mbnp detect photo.jpg --checkpoint package/model --json
    """
    _images(p)
    _add(p, "--score X", "the score from which an object is found", default=0.5)
    _add(p, "--overlap X", "of two boxes of one class that overlap by more, the better one is kept", default=0.5)
    _add(p, "--most K", "objects an image", default=100)
    _add(p, "--out FOLDER", "write the pictures there; it is made if it does not exist")
    _add(p, "--json", "print {file, width, height, objects: [{label, score, box}]} or {file, error}, each on its line")
    _share(p, "--threads N", "--readable")


def _watch(p: argparse.ArgumentParser) -> None:
    """See what is in a video, a folder of images, or before a camera.

    Print what is seen whenever that changes, then frames a second and latency. Classes are smoothed over the frames;
    boxes of a detector are followed, so that images which do not follow one another are for mbnp detect. Ctrl-C ends
    it, and what was seen so far is written. Videos and cameras need pip install "mbnp[video]".

    examples:
      mbnp watch clip.mp4 --checkpoint runs/ssd-mobilenet-v1-small-1 --out boxes.mp4
      mbnp watch 0 --checkpoint runs/mobilenet-v1-small-1 --live
    """
    cameras = "a camera: its number, or camera:NAME"
    _add(p, "source SOURCE", f"a video file, a folder of images, in the order of their names, or {cameras}")
    _checkpoint(p)
    _add(p, "--out FILE.mp4", "write the frames with what is seen in them, without sound")
    _add(p, "--live", "show them in the terminal; without one, lines as always")
    _add(p, "--json", "print an object a frame, as mbnp detect and predict do")
    past = "the share of the past in what is shown, from 0, every frame by itself, to below 1"
    _add(p, "--smooth X", f"{past} (default: 0.8 of classes, 0.5 of boxes)")
    _add(p, "--score X", "the score from which an object of a detector is found", default=0.5)
    _add(p, "--rate X", "frames a second of a folder (default: 25)")
    _share(p, "--threads N", "--readable")


def _explain(p: argparse.ArgumentParser) -> None:
    """Open a network up: a page that shows what it makes of your images.

    Write one HTML file that needs nothing else: the feature maps of every layer, how each number is computed, and where
    the network looks. The images are read as by mbnp predict. Exit status 1 if a file could not be read.

    example:
      mbnp explain cat.jpg dog.png --checkpoint runs/resnet20-1/model.safetensors
    """
    _images(p)
    _add(p, "--out PAGE", "the page", default=Path("explain.html"))
    _share(p, "--threads N")


def _images(p: argparse.ArgumentParser) -> None:
    """Add what is looked at, and by which network: IMAGE... --checkpoint FILE|DIR."""
    _add(p, "images IMAGE", "an image file of any kind that Pillow reads, a folder of them, or a pattern", nargs="+")
    _checkpoint(p)


def _checkpoint(p: argparse.ArgumentParser) -> None:
    """Add the options that name a network; `_settle_checkpoint` reads them."""
    _add(p, "--checkpoint FILE|DIR", f"weights from mbnp train, or its run folder, or others: {READ}")
    _add(p, "--weights FILE|WHICH", f"the same as --checkpoint; or beside it, {SHARED['--weights WHICH']}")


def _summary(p: argparse.ArgumentParser) -> None:
    """Count parameters and multiplications, layer by layer.

    Print output shape, parameters, MACs, FLOPs (2 x MACs) and share of each layer, as far as they fit into 80 columns,
    the totals, and the article's formulas.

    examples:
      mbnp summary mobilenet-v1 --resolution 224
      mbnp summary mobilenet-v1 --resolution 160 --width-mult 0.5
      mbnp summary runs/mobilenet-v1-small-1/model.safetensors
    """
    _add(p, "model MODEL", f"{MODELS}, or a file: {READ}")
    _share(p, "--weights WHICH", "--resolution N", "--width-mult X", "--channels N")
    _add(p, "--num-classes N", "default: the network's own")
    _add(p, "--html PAGE", "write the layers and what each costs as a page, too")


def _check(p: argparse.ArgumentParser) -> None:
    """Check every operation on this machine.

    Check that the NumPy and Numba implementations of every operation, forward and backward, agree with the loops that
    define it, with finite differences, and with PyTorch where it is installed. With --op, check one of your own: an
    object with forward(*inputs), backward(dy, *inputs), which returns a gradient for each input, and example_inputs(),
    away from kinks; and torch(*tensors) if you like, which computes the same in PyTorch. Its file is executed. Exit
    status 1 if they do not agree.

    examples:
      mbnp check
      mbnp check --op ops.py:HardSwish
    """
    _add(p, "--op FILE.py:NAME", "instead: an operation of your own, by finite differences and PyTorch")


def _data(p: argparse.ArgumentParser) -> None:
    """Look at the data, write samples of it, get CIFAR-10, make a subset."""
    _add_commands(p, "action", (_show, _samples, _download, _subset))


def _show(p: argparse.ArgumentParser) -> None:
    """Show which data a command would use.

    Print classes, counts, sizes, mean and standard deviation, and what could not be read; draw samples of each class.

    example:
      mbnp data show photos
    """
    _add(p, "path PATH", "as --data", nargs="?")
    _share(p, "--data PATH")
    _add(p, "--resolution N", "make the images of a folder, or draw scenes10, N x N (default: 32, scenes 96)")
    _add(p, "--out FILE.png", "the samples", default="samples.png")


def _samples(p: argparse.ArgumentParser) -> None:
    """Write a few test images as PNG, with their class in the name, for mbnp predict.

    example:
      mbnp data samples samples
    """
    _add(p, "out OUT", "a folder that does not exist")
    _share(p, "--data PATH")
    _add(p, "--count N", "number of images", default=10)
    _add(p, "--resolution N", "make the images of a folder, or draw scenes10, N x N (default: 32, scenes 96)")


def _download(p: argparse.ArgumentParser) -> None:
    """Fetch CIFAR-10's or CIFAR-100's binary archive (170 MB) and verify it; resume a transfer that broke off.

    example:
      mbnp data download --out data
    """
    _add(p, "name NAME", "cifar10 or cifar100", nargs="?", default="cifar10")
    _add(p, "--url URL", "a mirror (default: the official server)")
    _add(p, "--out FOLDER", "default: the user's cache")


def _subset(p: argparse.ArgumentParser) -> None:
    """Write a small, seeded subset of CIFAR-10, with equally many images of each class.

    example:
      mbnp data subset --out data/small --train 10000 --test 2000
    """
    _add(p, "--out FOLDER", "a folder that does not exist", required=True)
    _add(p, "--data PATH", "what to take from (default: cifar10, from where the most of it is)")
    _add(p, "--train N", "number of training images", default=10_000)
    _add(p, "--test N", "number of test images", default=2_000)
    _add(p, "--seed N", default=0)


def _bench(p: argparse.ArgumentParser) -> None:
    """Measure where the time goes, and compare with PyTorch and ONNX Runtime.

    Print the time, GFLOP/s and GB/s of every layer, forward and backward, and the whole step against its own matrix
    products alone. With --against, compare with peers, in alternating rounds, each in a process of its own, after their
    outputs were found to agree.

    examples:
      mbnp bench --out roofline.png
      mbnp bench --against torch,onnxruntime        about ten minutes
      mbnp bench --against torch --work training --batch-size 128
      mbnp bench --against torch --work training --load 2
      mbnp bench --scaling --out scaling.png
      mbnp bench --model package/model --batch-size 1 --against torch --work single
    """
    _add(p, "--model NAME", f"{MODELS}, or a file or folder of weights", default="mobilenet-v1-small")
    _add(p, "--width-mult X", "all channels times X", default=1.0)
    _add(p, "--batch-size N", default=64)
    _share(p, "--resolution N")
    _add(p, "--against PEERS", "one or more of torch,onnxruntime,readable (needs the extra `bench`)")
    work = "training,inference at the batch size, single (inference of one image), mobilenet-v1 (of one image of "
    work += "224 x 224) (default: the first two, or with --against all that suit)"
    _add(p, "--work LIST", f"what to compare: {work}")
    _add(p, "--isa NAME", "hold all but ONNX Runtime to the instruction set of an older processor: avx2")
    _add(p, "--load N", "time the comparisons beside N busy processes, too", default=0)
    _add(p, "--no-compile", "leave out torch.compile, whose set-up takes a minute")
    _add(p, "--scaling", "instead: time per image over batch size, width, resolution and threads")
    _add(p, "--rounds N", "rounds of each", default=15)
    _add(p, "--json FILE", "write all of it: seconds, bytes, ratios")
    _add(p, "--out FILE.png", "draw the roofline, or with --scaling its curves")
    _add(p, "--html PAGE", "write a page: every layer by its measured time, and on the roofline")
    _share(p, "--threads N", "--readable")


def _warmup(p: argparse.ArgumentParser) -> None:
    """Compile every kernel that train, evaluate and predict need, so that they start at once.

    example:
      mbnp warmup --model mobilenet-v1-small
    """
    _add(p, "--model NAME", f"only for one of {MODELS} (default: for all)")
    _add(p, "--readable", "for train --readable, not for the fast engine")


def _convert(p: argparse.ArgumentParser) -> None:
    """Take weights from one format into another.

    Read a network from one file and write it into another; the suffixes name the formats. What a file does not say of
    its images and classes can be added.

    examples:
      mbnp convert mobilenet.h5 mobilenet.safetensors
      mbnp convert runs/resnet20-1/model.safetensors model.onnx --layout NHWC
      mbnp convert timm.pt net.safetensors --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5
    """
    _add(p, "file IN", f"a network: {READ}")
    _add(p, "out OUT", "a file that does not exist: .safetensors, .pt or .onnx")
    _add(p, "--force", "replace OUT if it exists")
    _share(p, "--weights WHICH")
    _add(p, "--layout", "of an ONNX graph's input (default: NCHW)", choices=("NCHW", "NHWC"))
    _add(p, "--keep-batchnorm", "do not fold BatchNorm into an ONNX graph's convolutions")
    _add(p, "--names", "of a PyTorch file's arrays (default: the network's own)", choices=("mbnp", "timm"))
    _add(p, "--mean R,G,B", "mean of the images, on a scale of 0 to 1")
    _add(p, "--std R,G,B", "their standard deviation, likewise")
    _add(p, "--order", "of the channels, in --mean and --std too", choices=("rgb", "bgr"))
    _add(p, "--classes FILE", "a text file with the names of the classes, one a line")


def _grade(p: argparse.ArgumentParser) -> None:
    """Grade the exercises of a lesson.

    Run the functions of an exercise file of tutorials/ on small cases and compare them with mbnp's own and with
    PyTorch's stored results. Says which number is wrong and likely why. The file is executed, as it is your own
    program. Exit status 0 if all is solved, 1 if not. Without a file: what is solved of every lesson, and what comes
    next.

    examples:
      mbnp grade
      mbnp grade tutorials/exercises/01.py
      mbnp grade tutorials/exercises/01.py --watch
    """
    file = "a file with solutions, begun from tutorials/exercises, or a lesson's number"
    _add(p, "exercise EXERCISE.py", file, nargs="?")
    _add(p, "--watch", "grade whenever the file is saved (default: the next lesson's, beside the file graded last)")
    _add(p, "--hint", "show one hint more for what is not solved yet; the last one is the solution")
    _add(p, "--use", "train a small network with your gradients of lesson 3 in place of mbnp's")


def number(text: str) -> float:
    """Return a finite number; argparse shows the function's name, as in: invalid number value: 'nan'."""
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


def _numbers(text: str) -> list[float]:
    return list(map(number, text.split(",")))


_numbers.__name__ = "list of numbers"


def _several(kind: Any, choices: Any) -> Any:
    """Return a type for one or more values of a kind, with commas between them."""

    def values(text: str) -> list:
        found = [kind(part) for part in text.split(",")]
        if choices is not None and not set(found) <= set(choices):
            raise ValueError
        return found

    values.__name__ = f"list of {kind.__name__} values" if choices is None else f"list out of {', '.join(choices)}"
    return values


TYPES: dict[str, Any] = {"N": int, "K": int, "X": number, "RUN": Path, "PAGE": Path, "R,G,B": _numbers}
SHARED = {
    "--data PATH": "a folder of images with a folder for each class, or a folder or archive of the binary records of "
    "CIFAR-10 or CIFAR-100, or cifar10, cifar100, cifar100:coarse, shapes10, scenes10 (default: what MBNP_DATA "
    "names or what is in ./data or the user's cache, or else shapes10, images that mbnp draws itself)",
    "--width-mult X": "all channels times X (default: 1)",
    "--channels N": "of the images: 3, or 1 for grey (default: 3)",
    "--resolution N": "images of N x N (default: the network's own)",
    "--weights WHICH": "averaged or raw, where a PyTorch file has both, or the name of their place in it "
    "(default: averaged)",
    "--threads N": "default: as many as there are processors",
    "--readable": "run the layers of layers.py, not the fast engine",
}
