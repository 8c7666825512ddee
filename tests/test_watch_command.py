"""`mbnp watch` as a user meets it, with networks made by hand, and its bars with a trained detector (MBNP_NIGHTLY)."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from rich.console import Console

from mbnp import backend, cli, fused, layers, models, train, weights
from mbnp.commands import screen, watch
from mbnp.datasets import drawing, video
from mbnp.detection.boxes import overlap
from mbnp.detection.detect import Found
from mbnp.network import Network
from tests import moving
from tests.tally import tally
from tests.test_cli import _elsewhere, _threads, fails, in_a_terminal  # noqa: F401

av = pytest.importorskip("av", reason="needs the package av")
NIGHTLY = pytest.mark.skipif(not os.environ.get("MBNP_NIGHTLY"), reason="trains a detector; set MBNP_NIGHTLY")


def colours(channels=3, path="colours.safetensors"):
    """A classifier made by hand: red, green or blue is the class of the largest mean."""
    parts = {"pool": layers.GlobalAveragePool(), "fc": layers.Linear(channels, 3)}
    net = Network(parts, resolution=8, channels=channels)
    net.layers["fc"].weight.value[:] = 4 * np.eye(3, dtype=np.float32)[:channels]
    net.layers["fc"].bias.value[:] = 0
    net.classes, net.preprocessing = ["red", "green", "blue"], {"mean": [0.5] * channels, "std": [0.25] * channels}
    weights.save(net, path)
    return net


def coloured(pattern, height=48, width=64):
    """A frame for each letter: r, g or b."""
    frames = np.full((len(pattern), height, width, 3), 60, np.uint8)
    for frame, letter in zip(frames, pattern, strict=True):
        frame[..., "rgb".index(letter)] = 200
    return frames


def write(path, frames, rate=25):
    with video.writing(path, rate) as add:
        for i, frame in enumerate(frames):
            add(frame, i / rate)
    return str(path)


def detector(path="detector.safetensors", how="stretch"):
    """A detector that was never trained; `script` says what it finds."""
    net = models.create("ssd-mobilenet-v1-small", num_classes=3, width_mult=0.25, resolution=48)
    net.detection |= {"resize": how}
    net.classes, net.preprocessing = ["arrow", "circle", "star"], {"mean": [0.5] * 3, "std": [0.25] * 3}
    weights.save(net, path)
    return path


leave_room = watch.leave_room


@pytest.fixture(autouse=True)
def only_frames_are_seen(monkeypatch):
    """Let nothing be seen for the sake of measuring: what is seen is counted here."""
    monkeypatch.setattr(watch, "leave_room", lambda see: None)


def script(monkeypatch, answers):
    """Let the detector find what the function answers(k) says of frame k, in shares of what the network sees."""
    asked = []

    def detect(net, images, least, overlap, most):
        asked.append((images.shape, least))
        # The first image is there to compile kernels.
        objects = answers(len(asked) - 2) if len(asked) > 1 else []
        boxes, labels, scores = zip(*objects, strict=True) if objects else ((), (), ())
        found = np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(scores, np.float32)
        return [Found(*found)]

    monkeypatch.setattr("mbnp.detection.detect.detect", detect)
    return asked


def watched(capsys, *arguments, status=0):
    """The lines that the command prints, and its errors."""
    assert cli.main(["watch", *arguments]) == status
    return capsys.readouterr()


def records(capsys, *arguments):
    output, _ = watched(capsys, *arguments, "--json")
    return [json.loads(line) for line in output.splitlines()]


# -- classifiers -------------------------------------------------------------------------------------------


def test_probabilities_are_an_average_in_which_the_past_fades(capsys):
    net, pattern = colours(), "rrrrgrrrrgggggbbbb"
    frames = coloured(pattern)
    for i, frame in enumerate(frames):
        Path("frames").mkdir(exist_ok=True)
        Image.fromarray(frame).save(f"frames/{i}.png")
    alone = train.probabilities(net, frames[:, :8, :8])
    for options, smooth in (([], 0.8), (["--smooth", "0.5"], 0.5), (["--smooth", "0"], 0)):
        found = records(capsys, "frames", "--checkpoint", "colours.safetensors", "--rate", "10", *options)
        assert len(found) == len(pattern)
        expected = alone[0]
        for i, record in enumerate(found):
            expected = smooth * expected + (1 - smooth) * alone[i]
            assert (record["frame"], record["time"], record["width"], record["height"]) == (i, i / 10, 64, 48)
            assert record["file"] == os.path.join("frames", f"{i}.png")
            named = {guess["class"]: guess["probability"] for guess in record["classes"]}
            assert list(named.values()) == sorted(named.values(), reverse=True)
            assert named == pytest.approx(dict(zip(net.classes, expected, strict=True)), abs=1e-5)


def test_lines_when_what_is_seen_changes_and_a_sum_at_the_end(capsys):
    colours()
    write("a.mp4", coloured("r" * 50 + "g" + "r" * 9 + "b" * 40))
    output, _ = watched(capsys, "a.mp4", "--checkpoint", "colours.safetensors")
    lines = output.splitlines()
    assert lines[0] == "0:00.00  red"
    assert re.fullmatch(r"0:02\.5\d  blue", lines[1])  # soon after the change; the green frame changed nothing
    assert re.fullmatch(r"100 frames in \d+\.\d s: [\d.]+ frames a second", lines[2])
    assert re.fullmatch(r"latency of a frame: p50 [\d.]+ ms, p95 [\d.]+ ms, p99 [\d.]+ ms", lines[3])
    p50, p95, p99 = map(float, re.findall(r"([\d.]+) ms", lines[3]))
    assert p50 <= p95 <= p99
    assert lines[4].split() == ["seen", "frames", "first", "last"]
    rows = [line.split() for line in lines[6:]]
    assert [row[0] for row in rows] == ["red", "blue"]
    assert sum(int(row[1]) for row in rows) == 100
    assert rows[1][3] == "0:03.96"


def test_a_grey_network_and_the_reference_layers(capsys):
    colours(1, "grey.safetensors")
    write("a.mp4", coloured("rrgb"))
    first, second = (
        records(capsys, "a.mp4", "--checkpoint", "grey.safetensors", *more) for more in ([], ["--readable"])
    )
    assert len(first) == 4
    for a, b in zip(first, second, strict=True):
        values = [[guess["probability"] for guess in record["classes"]] for record in (a, b)]
        np.testing.assert_allclose(*values, atol=1e-5)


def test_a_run_folder_is_a_checkpoint(capsys):
    Path("run").mkdir()
    colours(path="run/model.safetensors")
    write("a.mp4", coloured("b"))
    for name in ("--checkpoint", "--weights"):
        assert records(capsys, "a.mp4", name, "run")[0]["classes"][0]["class"] == "blue"


# -- detectors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "sides"), [("stretch", (64, 48)), ("pad", (64, 64))])
def test_boxes_are_in_pixels_and_smoothed(capsys, monkeypatch, how, sides):
    box = np.array([0.25, 0.125, 0.5, 0.5])
    asked = script(
        monkeypatch, lambda k: [(box + 0.01 * k, 2, 0.9), (box + 0.2, 0, 0.6 if k < 3 else 0.35)][: 2 - k // 8]
    )
    write("a.mp4", coloured("r" * 12))
    path = detector(how=how)
    found = records(capsys, "a.mp4", "--checkpoint", path, "--smooth", "0.6")
    assert asked[1:] == [((1, 48, 48, 3), pytest.approx(0.3))] * 12
    expected = box
    for k, record in enumerate(found):
        expected = 0.6 * expected + 0.4 * (box + 0.01 * k)
        star, *arrow = record["objects"]
        assert (star["label"], star["score"]) == ("star", pytest.approx(0.9, abs=1e-5))
        np.testing.assert_allclose(star["box"], expected * np.tile(sides, 2), atol=0.011)
        assert [one["label"] for one in arrow] == ["arrow"] * (k < 10)  # found up to frame 7, and missed twice
    asked.clear()
    found = records(capsys, "a.mp4", "--checkpoint", path, "--smooth", "0", "--score", "0.4")
    assert {least for _, least in asked} == {0.4}
    np.testing.assert_allclose(found[5]["objects"][0]["box"], (box + 0.05) * np.tile(sides, 2), atol=0.011)


def test_lines_count_objects_of_each_class(capsys, monkeypatch):
    box = np.array([0.1, 0.1, 0.3, 0.3])
    scene = [(box, 2, 0.9), (box + 0.5, 2, 0.8), (box + (0.5, 0, 0.5, 0), 0, 0.7)]
    script(monkeypatch, lambda k: scene[: 3 if k < 10 else 1] if k < 20 else [])
    write("a.mp4", coloured("r" * 30))
    lines = watched(capsys, "a.mp4", "--checkpoint", detector(), "--out", "b.mp4").out.splitlines()
    assert lines[:3] == ["0:00.00  1 arrow, 2 star", "0:00.48  1 star", "0:00.88  nothing"]
    assert [line.split()[:2] for line in lines[7:9]] == [["star", "22"], ["arrow", "12"]]
    assert lines[-1] == "b.mp4"


def test_what_is_found_is_drawn_into_a_film(capsys, monkeypatch):
    box = np.array([0.25, 0.25, 0.75, 0.75])
    script(monkeypatch, lambda k: [(box, 1, 0.9)])
    write("a.mp4", coloured("r" * 20, 96, 128))
    watched(capsys, "a.mp4", "--checkpoint", detector(), "--out", "b.mp4")
    with video.source("a.mp4") as before, video.source("b.mp4") as after:
        for plain, drawn in zip(before, after, strict=True):
            answer = watch.Answer(np.array([1]), np.array([0.9]), box[None] * (128, 96, 128, 96))
            expected = drawing.draw(plain.image, answer, ["circle"])
            assert drawn.time == pytest.approx(plain.time, abs=1e-3)
            off, far = (abs(drawn.image.astype(int) - other).mean() for other in (expected, plain.image))
            assert off < 7 < 14 < far


def test_a_film_of_a_classifier_bears_the_class(capsys):
    colours()
    write("a.mp4", coloured("rr", 96, 128))
    watched(capsys, "a.mp4", "--checkpoint", "colours.safetensors", "--out", "b.mp4")
    with video.source("a.mp4") as before, video.source("b.mp4") as after:
        changed = abs(next(iter(before)).image.astype(int) - next(iter(after)).image).max(axis=2) > 60
    assert changed[:30].any()
    assert not changed[50:].any()


# -- how it ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_it_and_what_was_seen_is_there(capsys, monkeypatch, number, status):
    box = np.array([0.25, 0.25, 0.75, 0.75])

    def answers(k):
        if k == 10:
            signal.raise_signal(number)
        return [(box, 1, 0.9)]

    script(monkeypatch, answers)
    write("a.mp4", coloured("r" * 100))
    output, error = watched(capsys, "a.mp4", "--checkpoint", detector(), "--out", "b.mp4", status=status)
    assert re.search(r"\n11 frames in ", output)
    assert re.search(r"\ncircle +11 ", output)
    assert error.splitlines()[-1] == "mbnp: stopped"
    with video.source("b.mp4") as source:
        assert len(list(source)) == 11
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_ctrl_c_before_the_first_frame(capsys, monkeypatch):
    colours()

    def ahead(source, stop):
        signal.raise_signal(signal.SIGINT)
        yield from ()

    monkeypatch.setattr(video, "source", lambda name, rate: video.Source(name))
    monkeypatch.setattr(video, "ahead", ahead)
    given = ["--checkpoint", "colours.safetensors", "--out", "b.mp4"]
    assert watched(capsys, "0", *given, status=130).err == "mbnp: stopped\n"
    assert os.listdir() == ["colours.safetensors"]


def test_ctrl_c_twice_ends_it_at_once(capsys, monkeypatch):
    def answers(k):
        if k == 10:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return []

    script(monkeypatch, answers)
    write("a.mp4", coloured("r" * 100))
    before = sorted(os.listdir())
    assert watched(capsys, "a.mp4", "--checkpoint", detector(), "--out", "b.mp4", status=130).err == "mbnp: stopped\n"
    assert sorted(os.listdir()) == sorted([*before, "detector.safetensors"])


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_from_a_terminal_while_a_camera_is_watched():
    """In a process of its own, whose camera never ends, and has nothing to show for most of the time."""
    colours()
    program = (
        "import sys\n"
        "from mbnp import cli\n"
        "from mbnp.datasets import video\n"
        "video._device = lambda name, platform: ('testsrc=size=64x48:rate=20,realtime', 'lavfi')\n"
        "sys.exit(cli.main(['watch', '0', '--checkpoint', 'colours.safetensors', '--out', 'b.mp4', '--json']))\n"
    )
    root = str(Path(cli.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, env=environment, **pipes) as process:
        for _ in range(5):
            assert json.loads(process.stdout.readline())["width"] == 64
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "frames a second" in error
    with video.source("b.mp4") as source:
        assert len(list(source)) == 5 + len(output.splitlines())


def test_damaged_frames_are_counted(capsys):
    colours()
    Path("frames").mkdir()
    for i, frame in enumerate(coloured("rrrrrr")):
        Image.fromarray(frame).save(f"frames/{i}.png")
    Path("frames/3.png").write_text("no image")
    output, _ = watched(capsys, "frames", "--checkpoint", "colours.safetensors")
    assert "\n5 frames in " in output
    assert re.search(r"\nskipped, as damaged: 1 \(frames/3\.png is no image", output)


def test_a_slow_network_leaves_out_frames_of_a_camera(capsys, monkeypatch):
    def answers(k):
        time.sleep(0.1)
        return []

    script(monkeypatch, answers)
    monkeypatch.setattr(video, "_device", lambda name, platform: ("testsrc=size=64x48:rate=20:duration=2", "lavfi"))
    output, _ = watched(capsys, "0", "--checkpoint", detector())
    frames, dropped = (int(re.search(pattern, output)[1]) for pattern in (r"(\d+) frames in", r"dropped, .*: (\d+)"))
    assert frames + dropped == 40
    assert dropped > 20


def test_what_cannot_be_watched_is_one_line(capsys):
    colours()
    write("a.mp4", coloured("rgb"))
    Path("broken").mkdir()
    Path("broken/1.png").write_text("no image")
    Path("text.mp4").write_text("no video")
    given = ["--checkpoint", "colours.safetensors"]
    for arguments, message in (
        (["none.mp4", "--rate", "5"], "no video, folder or camera at none.mp4"),
        (["text.mp4"], "text.mp4 is no video that can be read"),
        (["broken"], "no frame of broken could be read: broken/1.png is no image"),
        (["broken", "--out", "b.mp4"], "no frame of broken could be read: broken/1.png is no image"),
        (["a.mp4", "--rate", "5"], "a rate is for a folder of images"),
        (["broken", "--rate", "0"], "--rate must be 0.01 to 1000"),
        (["a.mp4", "--json", "--live"], "--json and --live both write to the terminal"),
        (["a.mp4", "--smooth", "1"], "--smooth must be at least 0 and less than 1, got 1"),
        (["a.mp4", "--score", "0"], "--score must be more than 0 and at most 1, got 0"),
        (["a.mp4", "--out", "a.mp4"], "a.mp4 is read, too"),
        (["a.mp4", "--out", "b.avi"], "b.avi does not end in .mp4"),
        (["a.mp4", "--out", "none/b.mp4"], "no folder for none/b.mp4"),
    ):
        assert message in fails(capsys, "watch", *arguments, *given)
    assert "required: --checkpoint" in fails(capsys, "watch", "a.mp4")
    net = weights.load("colours.safetensors")
    net.preprocessing = None
    weights.save(net, "bare.safetensors")
    assert "does not say how its images were" in fails(capsys, "watch", "a.mp4", "--checkpoint", "bare.safetensors")
    assert not [name for name in os.listdir() if name.startswith((".", "b.mp4"))]


# -- in the terminal ---------------------------------------------------------------------------------------


def test_live_fits_the_terminal():
    image = next(moving.film(0, 1)).image
    answer = watch.Answer(np.arange(5), np.linspace(0.9, 0.5, 5), np.tile([10.0, 10, 50, 60], (5, 1)))
    names = ["a very long name of a class " * 5, *"bcde"]
    for width, height in ((80, 24), (40, 12), (200, 60), (20, 6), (30, 60)):
        console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, legacy_windows=False)
        with console.capture() as captured:
            console.print(screen.Screen(console).render(image, answer, names, "state " * 40))
        lines = re.sub(r"\x1b\[[\d;]*m", "", captured.get()).splitlines()
        assert len(lines) < height
        assert max(map(len, lines)) <= width
        assert ("▀" in captured.get()) == (height > 7)
        assert "90.0 %" in captured.get()


def test_blocks_show_the_image():
    pixels = np.zeros((4, 3, 3), np.uint8)
    pixels[1, 2] = (248, 0, 0)
    console = Console(width=10, file=io.StringIO(), force_terminal=True, color_system="truecolor", legacy_windows=False)
    with console.capture() as captured:
        console.print(screen.Blocks(pixels))
    cells = re.findall(r"\x1b\[38;2;(\d+;\d+;\d+);48;2;(\d+;\d+;\d+)m(▀+)", captured.get())
    assert [(above, below) for above, below, blocks in cells for _ in blocks] == [
        ("0;0;0", "248;0;0" if i == 2 else "0;0;0") for i in range(6)
    ]


def test_live_shows_frames_and_plain_last_lines(capsys, monkeypatch):
    in_a_terminal(monkeypatch, screen)
    colours()
    write("a.mp4", coloured("r" * 30))
    output, _ = watched(capsys, "a.mp4", "--checkpoint", "colours.safetensors", "--live")
    output = re.sub(r"\x1b\[[\d;?]*\w", "", output)
    assert "▀▀▀" in output
    assert "red" in output
    assert re.search(r"30 frames in .*\s+latency of a frame", output.replace("\r", ""))


def test_live_without_a_terminal_is_lines(capsys):
    colours()
    write("a.mp4", coloured("r" * 30))
    output, _ = watched(capsys, "a.mp4", "--checkpoint", "colours.safetensors", "--live")
    assert "\x1b" not in output
    assert output.startswith("0:00.00  red\n30 frames in ")


# -- how good, how fast, how large -------------------------------------------------------------------------


def test_memory_is_flat_over_2000_frames(capsys, monkeypatch):
    colours()
    write("a.mp4", (frame for _ in range(20) for frame in coloured("r" * 50 + "g" * 50)))
    process, held = psutil.Process(), []
    take = watch._Session.take

    def measured(session, frame):
        take(session, frame)
        if session.frames in (500, 2000):
            held.append(process.memory_info().rss)

    monkeypatch.setattr(watch._Session, "take", measured)
    watched(capsys, "a.mp4", "--checkpoint", "colours.safetensors", "--out", "b.mp4")
    assert len(held) == 2
    assert held[1] - held[0] < 6e6  # 1500 frames are 14 MB


def right(shown, record, names):
    """Whether every object of a frame is among those of its record: its class, at an overlap of a half or more."""
    found = np.array([one["box"] for one in record["objects"]], float).reshape(-1, 4)
    classes = np.array([names.index(one["label"]) for one in record["objects"]], int)
    shared = overlap(shown.boxes.astype(np.float64), found)
    return all((row[classes == label] >= 0.5).any() for row, label in zip(shared, shown.labels, strict=True))


def test_what_counts_as_right():
    names = ["arrow", "circle", "star"]
    shown = moving.Shown(np.zeros(0), np.array([2, 0]), np.array([(0, 0, 10, 10), (50, 50, 60, 70)]))
    star, arrow = ({"label": "star", "box": [0, 0, 10, 19]}, {"label": "arrow", "box": [50, 50, 60, 70]})
    assert right(shown, {"objects": [star, arrow]}, names)
    assert not right(shown, {"objects": [star]}, names)
    assert not right(shown, {"objects": [star, arrow | {"label": "circle"}]}, names)
    assert not right(shown, {"objects": [star | {"box": [0, 0, 10, 21]}, arrow]}, names)
    assert not right(shown, {"objects": []}, names)


def test_what_was_followed_is_forgotten_where_the_size_of_frames_changes(monkeypatch, capsys):
    detector()
    script(monkeypatch, lambda k: [((0.5, 0.5, 0.9, 0.9), 2, 0.9)] if k < 2 else [])
    Path("frames").mkdir()
    for i, (width, height) in enumerate(((90, 60), (90, 60), (40, 40), (40, 40))):
        Image.new("RGB", (width, height)).save(f"frames/{i}.png")
    found = records(capsys, "frames", "--checkpoint", "detector.safetensors", "--out", "a.mp4")
    assert [len(record["objects"]) for record in found] == [1, 1, 0, 0]


@pytest.mark.parametrize("rate", ["0", "-1", "1e-300", "1e300", "1e-5"])
def test_rates_that_no_video_has(rate, capsys):
    detector()
    Path("frames").mkdir()
    _, errors = watched(capsys, "frames", "--checkpoint", "detector.safetensors", "--rate", rate, status=2)
    assert "--rate must be 0.01 to 1000 frames a second, got" in errors


@NIGHTLY
def test_moving_shapes_are_found(capsys):
    """In 9 of 10 frames of 320x240 all objects, each with its class, at an overlap of at least a half."""
    path, net = trained_detector(), None
    counts = []
    for seed in range(20):
        shown = list(moving.film(seed, 100, 1 + seed % 3))
        write("a.mp4", [frame.image for frame in shown])
        found = records(capsys, "a.mp4", "--checkpoint", path)
        net = net or weights.load(path)
        counts.append(sum(right(*pair, net.classes) for pair in zip(shown, found, strict=True)))
    tally("frames of moving shapes", tried=2000, right=sum(counts))
    assert sum(counts) >= 0.9 * 2000, counts


@pytest.mark.parametrize(("slower", "threads"), [(1.1, 1), (1.6, 2)])
def test_one_processor_is_left_to_what_decodes_where_it_costs_little(slower, threads, monkeypatch):
    now = {"threads": 0}
    monkeypatch.setattr(watch.backend, "max_threads", lambda: 2)
    monkeypatch.setattr(watch.backend, "set_num_threads", lambda n: now.update(threads=n))
    monkeypatch.setattr(
        watch.timeit, "repeat", lambda see, **_: [see() or (1.0 if now["threads"] == 2 else slower), 9.0]
    )
    leave_room(lambda: None)
    assert now["threads"] == threads


@NIGHTLY
def test_speed(capsys, monkeypatch):
    """At 320x240: at least 60 frames a second, and 0.8 of the slower of decoding and seeing alone."""
    monkeypatch.setattr(watch, "leave_room", leave_room)
    frames = [shown.image for shown in moving.film(0, 250, 3)]
    write("a.mp4", frames * 2)
    path = trained_detector()
    net = fused.convert(weights.load(path))
    rounds = []
    for _ in range(7):  # in turns: other programs come and go
        with video.source("a.mp4") as source:
            began = time.perf_counter()
            decoding = sum(1 for _ in source) / (time.perf_counter() - began)
        viewer = watch.Detector(net, None, 0.5)
        viewer.see(frames[0])
        backend.set_num_threads(backend.max_threads())
        began = time.perf_counter()
        for frame in frames * 2:
            viewer.see(frame)
        seeing = 500 / (time.perf_counter() - began)
        output, _ = watched(capsys, "a.mp4", "--checkpoint", path)
        rounds.append((decoding, seeing, float(re.search(r"([\d.]+) frames a second", output)[1])))
    decoding, seeing, watching = map(round, np.median(rounds, axis=0).tolist())
    tally("frames a second", decoding=decoding, seeing=seeing, watching=watching)
    assert np.median([watching for *_, watching in rounds]) >= 60, rounds
    assert np.median([watching / min(decoding, seeing) for decoding, seeing, watching in rounds]) >= 0.8, rounds


@cache
def trained_detector():
    """A detector that MBNP_DETECTOR names, or else one that `mbnp train` makes, in a few minutes."""
    if path := os.environ.get("MBNP_DETECTOR"):
        return path
    folder = Path(tempfile.mkdtemp()) / "run"
    assert cli.main(["train", "--model", "ssd-mobilenet-v1-small", "--out", str(folder)]) == 0
    return str(folder / "model.safetensors")
