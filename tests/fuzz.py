"""Mutated files of every format that mbnp reads. Each must load, or be refused in one printable line; and no more.

    python tests/fuzz.py onnx --seconds 600 --seed 1      ten minutes of one format
    python tests/fuzz.py onnx --seed 1 --only 1234        one file again, with its traceback

A file is the seed's and the number's alone. Files are read in a child process with limits of memory and time, under an
audit hook that sees what is opened for writing, started or connected to. What loads must be counted, saved and read
again. Exit status 1 if anything was wrong; the last line has the counts.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).parent
FORMATS = ("safetensors", "pt", "onnx", "h5", "keras", "tfjs", "records", "run")
MEMORY, LARGEST_FILE = 1 << 30, 64 << 20  # bytes beyond what the libraries take; of a file that is written
SECONDS = 12  # for one file, on a busy machine; a reader of HDF5 has a limit of its own
GROWTH = 400 << 20  # of a child's memory over all its files
LONGEST_LINE = 1200
LONGEST_TEXT = 300_000  # of JSON that is changed further
NUMBERS = [0, -1, 1, 2, 3, 70, 255, 4097, 10_000, 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1, 10**400, -(10**30)]
FLOATS = [0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf")]
TEXTS = ["", "a.b", "../../x", "/etc/passwd", "\x1b[2J\x1b]0;x\x07", "\u202eabc", "a\nb", "\x00", "\ud800", "x" * 5000]
LISTS = [[], {}, [[]], [1] * 70, [1 << 40] * 70, [0, 1 << 62], [1, [2, [3, [4]]]], {"": 0}, ["a"] * 4]
HOSTILE: list[Any] = [*NUMBERS, *FLOATS, *TEXTS, *LISTS, True, False, None]


# --- mutations ---


def flipped(rng: np.random.Generator, content: bytes, times: int | None = None) -> bytes:
    """Return bytes with a few changes: bits, bytes, whole numbers, parts left out, repeated, moved or cut off."""
    data = bytearray(content)
    for _ in range(times or 1 << rng.integers(0, 4)):
        if not data:
            break
        # Most formats keep their structure at the beginning or the end.
        at = (
            int(len(data) * rng.random() ** rng.choice([1, 4]))
            if rng.random() < 0.7
            else -1 - int(len(data) * rng.random() ** 4)
        )
        at %= len(data)
        size = int(min(1 << rng.integers(0, 9), len(data)))
        match rng.integers(0, 8):
            case 0 | 1:
                data[at] ^= 1 << int(rng.integers(0, 8))
            case 2:
                data[at] = int(rng.integers(0, 256))
            case 3:
                data[at : at + size] = rng.bytes(size)
            case 4:
                width = int(rng.choice([1, 2, 4, 8]))
                number = int(rng.choice([0, 1, -1, 127, 128, 255, 1 << 14, 1 << 30])) % (1 << 8 * width)
                data[at : at + width] = number.to_bytes(width, str(rng.choice(["little", "big"])))  # type: ignore[arg-type]
            case 5:
                del data[at : at + size]
            case 6:
                other = int(rng.integers(0, len(data)))
                data[at:at] = data[other : other + size]
            case _:
                if rng.random() < 0.3:
                    del data[at:]
    return bytes(data)


def changed(rng: np.random.Generator, value: Any) -> Any:
    """Return JSON with one value, key or entry, at any depth, changed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = list(value)[rng.integers(0, len(value))]
        match rng.integers(0, 9):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {(str(_any(rng)) if k == key else k): v for k, v in value.items()}
            case _:
                return {k: changed(rng, v) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = int(rng.integers(0, len(value)))
        match rng.integers(0, 8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[: at + 1] * int(rng.choice([2, 2, 70])) + value[at:]
            case _:
                return [*value[:at], changed(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, str) and value[:1] in "[{" and rng.random() < 0.9:  # JSON in JSON
        try:
            return json.dumps(changed(rng, json.loads(value)))
        except ValueError:
            pass
    if isinstance(value, int | float) and rng.random() < 0.3:
        return value + int(rng.choice([1, -1]))
    return _any(rng)


def _any(rng: np.random.Generator) -> Any:
    return HOSTILE[rng.integers(0, len(HOSTILE))]


def text_of(rng: np.random.Generator, content: bytes) -> bytes:
    """Return the text of a JSON file with changes of its values, or now and then of its bytes."""
    if rng.random() < 0.1:
        return flipped(rng, content)
    value, text = json.loads(content), ""
    for _ in range(1 << rng.integers(0, 3)):
        if len(text) < LONGEST_TEXT:  # lists in lists, each repeated 70 times, would fill the memory
            value = changed(rng, value)
            text = json.dumps(value)
    return text.encode(errors="backslashreplace")


def safetensors_of(rng: np.random.Generator, content: bytes) -> bytes:
    if rng.random() < 0.3:
        return flipped(rng, content)
    size = int.from_bytes(content[:8], "little")
    header, arrays = json.loads(content[8 : 8 + size]), content[8 + size :]
    if rng.random() < 0.8:
        header.get("__metadata__", {}).pop("sha256", None)  # as a forger would
    if "__metadata__" in header and rng.random() < 0.6:
        header["__metadata__"] = changed(rng, header["__metadata__"])
    else:
        header = changed(rng, header)
    text = json.dumps(header).encode(errors="backslashreplace")
    if rng.random() < 0.2:
        arrays = flipped(rng, arrays)
    return len(text).to_bytes(8, "little") + text + arrays


def archive_of(rng: np.random.Generator, content: bytes) -> bytes:
    """Return a zip archive with one entry changed, and right checksums; or with changed bytes."""
    if rng.random() < 0.3:
        return flipped(rng, content)
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w") as new:
        names = old.namelist()
        chosen = [name for name in names if name.endswith((".pkl", ".json", ".h5"))] if rng.random() < 0.9 else names
        which = chosen[rng.integers(0, len(chosen))]
        for name in names:
            data = old.read(name)
            if name == which:
                data = text_of(rng, data) if name.endswith(".json") else flipped(rng, data)
            new.writestr(name, data)
    return target.getvalue()


def onnx_of(rng: np.random.Generator, content: bytes) -> bytes:
    """Return a graph with one field of one message changed; or with changed bytes."""
    import onnx

    if rng.random() < 0.3:
        return flipped(rng, content)
    model = onnx.ModelProto.FromString(content)
    for _ in range(1 << rng.integers(0, 2)):
        _change_message(rng, model)
    return model.SerializeToString()


def _change_message(rng: np.random.Generator, message: Any) -> None:
    fields = [field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
    field = fields[rng.integers(0, len(fields))] if rng.random() < 0.9 else None
    field = field or list(message.DESCRIPTOR.fields)[rng.integers(0, len(message.DESCRIPTOR.fields))]
    value = getattr(message, field.name)
    repeated = hasattr(value, "__len__") and not isinstance(value, str | bytes)
    try:
        if repeated and len(value) and rng.random() < 0.7:
            at = int(rng.integers(0, len(value)))
            if field.type == field.TYPE_MESSAGE:
                _change_message(rng, value[at])
            elif isinstance(value[at], bytes):
                value[at] = flipped(rng, value[at])
            else:
                value[at] = _any(rng)
        elif repeated and len(value):
            del value[int(rng.integers(0, len(value)))]
        elif field.type == field.TYPE_MESSAGE and not repeated:
            _change_message(rng, value)
        elif isinstance(value, bytes):
            setattr(message, field.name, flipped(rng, value))
        else:
            setattr(message, field.name, _any(rng))
    except (TypeError, ValueError, AttributeError, UnicodeError):  # the library refuses to hold that value
        message.ClearField(field.name)


def tar_of(rng: np.random.Generator, content: bytes) -> bytes:
    """Return records or an archive of them with changed bytes, inside of the compression as often as outside."""
    import gzip

    if content[:2] == b"\x1f\x8b" and rng.random() < 0.7:
        return gzip.compress(flipped(rng, gzip.decompress(content)), 1)
    return flipped(rng, content)


MUTATIONS: dict[str, Callable[[np.random.Generator, bytes], bytes]] = {
    ".safetensors": safetensors_of,
    ".onnx": onnx_of,
    ".pt": lambda rng, content: archive_of(rng, content) if content[:2] == b"PK" else flipped(rng, content),
    ".keras": archive_of,
    ".json": text_of,
    ".gz": tar_of,
}


# --- files to begin with ---


def corpus(kind: str, folder: Path) -> list[Path]:
    """Write good files of a format; return their paths."""
    fixtures = HERE / "fixtures"
    if kind == "onnx":
        return [fixtures / "small.onnx", fixtures / "small-nhwc.onnx"]
    if kind in ("h5", "keras"):
        return [fixtures / f"small.{kind}"]
    if kind == "tfjs":
        return _tfjs(folder)
    if kind == "records":
        return _records(folder)
    if kind == "run":
        return _run(folder)
    import torch

    from mbnp import models, weights

    net = models.mobilenet_v1_small(num_classes=4, width_mult=0.04)
    net.classes, net.preprocessing = list("abcd"), {"mean": [0.5] * 3, "std": [0.5] * 3}
    if kind == "safetensors":
        weights.save(net, folder / "own.safetensors")
        import safetensors.torch

        safetensors.torch.save_file(weights.to_torch(net), folder / "torch.safetensors")
        found = [fixtures / f"{name}.safetensors" for name in ("every-kind", "resnet20")]
        return [*folder.glob("*.safetensors"), *found]
    weights.save(net, folder / "own.pt")
    torch.save(weights.to_torch(net), folder / "old.pt", _use_new_zipfile_serialization=False)
    return [folder / "own.pt", folder / "old.pt"]


def _tfjs(folder: Path) -> list[Path]:
    """Return files whose shards are in the folder, where their mutants will be."""
    sys.path.insert(0, str(HERE.parent))
    from tests.weights import tfjs_files

    for path in (HERE / "fixtures" / "tfjs").glob("*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    detector = tfjs_files.write(folder / "face-manifest.json", tfjs_files.detector())
    return [folder / "layers.json", folder / "graph.json", detector]


def _records(folder: Path) -> list[Path]:
    source = _written(folder / "records")
    with tarfile.open(folder / "records.tar.gz", "w:gz") as archive:
        archive.add(source, "cifar-10-batches-bin")
    return [folder / "records.tar.gz"]


def _written(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("data_batch_1.bin", 20), ("test_batch.bin", 10)):
        records = rng.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] = np.arange(count) % 10
        (folder / name).write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    return folder


def _run(folder: Path) -> list[Path]:
    from mbnp import cli

    records = _written(folder / "records")
    options = "--epochs 1 --batch-size 10 --width-mult 0.04 --threads 1 --readable"
    os.environ["MBNP_BACKEND"] = "numpy"
    assert cli.main(["train", "--data", str(records), "--out", str(folder / "run"), *options.split()]) == 0
    return [folder / "run" / "config.json", *sorted((folder / "run" / "state").glob("*.safetensors"))[-1:]]


# --- what may happen to a file ---


def attempt(kind: str, path: Path, scratch: Path) -> str:
    """Read a file; return what happened, "loaded" or a line. Any other exception than mbnp's own is a fault."""
    from mbnp import MbnpError, cost, datasets, weights

    try:
        if kind == "records":
            str(datasets.load(path))
            return "loaded"
        if kind == "run":
            return _resume(path)
        net = weights.load(path)
    except MbnpError as error:
        return str(error)
    except OSError as error:
        if kind != "run":  # whose configuration names folders
            raise
        return repr(str(error))
    cost.of(net).table()
    again = scratch / "again.safetensors"
    try:
        weights.save(net, again)
    except MbnpError as error:  # a file of such pixels loads, so that they can be put right
        if "are on a scale of 0 to 255" not in str(error):
            raise
        return str(error)
    before = again.read_bytes()
    weights.save(weights.load(again), again)
    assert before == again.read_bytes(), "saved and read again it is another network"
    return "loaded"


def _resume(path: Path) -> str:
    """Go on with the run of a changed file, up to its first step."""
    from mbnp.commands import train

    class Session:
        run = staticmethod(lambda notes: 0)
        __init__ = lambda self, *arguments: None  # noqa: E731

    train._Session = Session  # type: ignore[assignment, misc]
    folder = path.parent.parent if path.suffix == ".safetensors" else path.parent
    options = SimpleNamespace(resume=folder, given={"--resume"}, data=None, epochs=None, every=None, threads=None)
    train._go_on(options)  # type: ignore[arg-type]
    return "loaded"


def audit(allowed: Path) -> None:
    """End the process at an attempt to write outside the folder, to start a program or to connect to anything."""
    from mbnp.weights.keras import files

    program = files.command(Path())[:4]

    def hook(event: str, arguments: tuple) -> None:
        bad = event.split(".")[0] in ("socket", "ctypes", "webbrowser", "ftplib", "urllib", "pty", "winreg")
        bad = bad or event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "pickle.find_class")
        if event == "subprocess.Popen":
            bad = list(arguments[1])[:4] != program
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            bad = isinstance(arguments[0], str) and arguments[0] != os.devnull
            bad = bad and not Path(arguments[0]).is_relative_to(allowed)
        if event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "shutil.rmtree"):
            bad = not Path(os.fsdecode(arguments[0])).is_relative_to(allowed)
        if bad:
            print(f"\nAUDIT {event} {arguments!r:.300}", flush=True)
            os._exit(66)

    sys.addaudithook(hook)


def child(kind: str, seed: int, first: int, seconds: float, only: bool, folder: Path) -> None:
    """Read one file after another; print a line for each before and after."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    if kind in ("h5", "keras"):
        import h5py  # noqa: F401
    with suppress(ImportError):  # a mutant of any kind may begin as a pickle does, and PyTorch's libraries load then
        import torch  # noqa: F401
    files = corpus(kind, folder)
    for path in files:
        assert kind == "run" or attempt(kind, path, folder) == "loaded", path
    contents = [path.read_bytes() for path in files]
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    audit(folder)
    if kind in ("h5", "keras"):
        from mbnp.weights.keras import files as keras_files

        as_it_is = subprocess.run
    ends, number = time.monotonic() + seconds, first
    while time.monotonic() < ends:
        rng = np.random.default_rng([seed, number])
        which = int(rng.integers(0, len(files)))
        source = files[which]
        mutate = MUTATIONS.get(source.suffix, flipped)
        path = source if kind == "run" else folder / f"mutant{''.join(source.suffixes)}"
        path.write_bytes(mutate(rng, contents[which]))
        if kind in ("h5", "keras"):  # some in a process of its own, as it is
            run = as_it_is if number % 50 == 0 else read_in_a_fork
            keras_files.subprocess = SimpleNamespace(  # type: ignore[assignment]
                run=run, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
            )
        print(json.dumps([number, "begun"]), flush=True)
        began = time.monotonic()
        try:
            said = attempt(kind, path, folder)
        except BaseException:
            said = "WRONG " + traceback.format_exc()
        took = time.monotonic() - began
        if "\n" in said or not all(c.isprintable() for c in said) or len(said) > LONGEST_LINE:
            said = said if said.startswith("WRONG") else f"WRONG no line to show: {said!r}"
        if took > SECONDS:
            said = f"WRONG {took:.0f} seconds: {said}"
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 > before + GROWTH:
            said = f"WRONG memory: {said}"
            before += GROWTH
        print(json.dumps([number, said, round(took, 2)]), flush=True)
        if kind == "run":
            path.write_bytes(contents[which])
        if only:
            print(said)
            return
        number += 1


def read_in_a_fork(command: list[str], **options: Any) -> SimpleNamespace:
    """Run the reader of Keras files in a fork of this process, which has imported h5py: twenty times as fast."""
    from mbnp.weights.keras import reader

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (pid := os.fork()):
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            try:
                sys.stdout, sys.stderr = (os.fdopen(handle, "w") for handle in (1, 2))
                reader.main(Path(command[-2]))
                sys.stdout.flush()
                os._exit(0)
            except SystemExit as error:
                sys.stderr.flush()
                os._exit(error.code)  # type: ignore[arg-type]
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = []
        for file in (out, err):
            file.seek(0)
            found.append(file.read())
    return SimpleNamespace(returncode=status, stdout=found[0], stderr=found[1])


# --- the parent ---


def run(kind: str, seconds: float, seed: int = 1, first: int = 0, most: int | None = None) -> tuple[Counter, list[str]]:
    """Read mutated files for so long; return the counts of what happened, and what was wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    ends = time.monotonic() + seconds
    number = first
    while time.monotonic() < ends and len(wrong) < 20:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-X", "faulthandler", __file__, kind, "--child", folder, "--seed", str(seed)]
            command += ["--first", str(number), "--seconds", str(ends - time.monotonic())]
            path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
            environment = os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = subprocess.Popen(command, **pipes, text=True, env=environment)
            try:
                output, errors = process.communicate(timeout=max(ends - time.monotonic(), 0) + 120)
            except subprocess.TimeoutExpired:
                process.kill()
                output, errors = process.communicate()
                output += "\nkilled: it did not end"
        begun = None
        for line in output.splitlines():
            if not line.startswith("["):
                continue
            at, said, *_ = json.loads(line)
            begun = at if said == "begun" else None
            if said != "begun":
                number = at + 1
                counts["loaded" if said == "loaded" else "wrong" if said.startswith("WRONG") else "refused"] += 1
                if said.startswith("WRONG"):
                    wrong.append(f"{kind} --seed {seed} --only {at}: {said}")
        if process.returncode:
            if begun is None:
                raise SystemExit(f"{kind}: {errors[-2000:]}")
            counts["wrong"] += 1
            ended = f"ended with {process.returncode}: {output[-300:]} {errors[-1500:]}"
            wrong.append(f"{kind} --seed {seed} --only {begun}: {ended}")
            number = begun + 1
    return counts, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=FORMATS)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            child(options.kind, options.seed, options.only, 1e9, True, Path(folder))
        return 0
    if options.child:
        child(options.kind, options.seed, options.first, options.seconds, False, options.child)
        return 0
    counts, wrong = run(options.kind, options.seconds, options.seed, options.first)
    print("\n\n".join(wrong))
    print(f"{options.kind}: {counts.total():,} files: " + ", ".join(f"{n:,} {what}" for what, n in counts.items()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
