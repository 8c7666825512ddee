"""`mbnp watch`: a video, a folder of images or a camera through a classifier or a detector."""

import collections
import json
import signal
import sys
import threading
import time
import timeit
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from mbnp import backend, tables, train, weights
from mbnp.commands import common
from mbnp.commands.screen import Screen
from mbnp.datasets import drawing, video
from mbnp.detection import tracking, whole
from mbnp.errors import MbnpError
from mbnp.network import Network

SMOOTH_CLASSES, SMOOTH_BOXES = 0.8, 0.5  # the share of the past, where --smooth does not say it
WEAK = 0.6  # of the score that begins a track: it goes on with less
LATENCIES = 1 << 17  # at most so many frames, the last ones, have a part in the percentiles
RATES = 0.01, 1000  # frames a second
TOP = 3  # classes that are shown


class Answer(NamedTuple):
    """What is seen in one frame; of a classifier the most probable classes, without boxes."""

    labels: np.ndarray  # (n,) int64
    scores: np.ndarray  # (n,), falling
    boxes: np.ndarray | None  # (n, 4) pixels of the frame


class Classifier:
    """A classifier; its probabilities are an exponential average over the frames."""

    def __init__(self, net: Network, smooth: float | None) -> None:
        self.net, self.smooth = net, SMOOTH_CLASSES if smooth is None else smooth
        self.average: np.ndarray | None = None

    def see(self, image: np.ndarray) -> Answer:
        square = ImageOps.fit(Image.fromarray(image), (self.net.resolution,) * 2, Image.Resampling.BILINEAR)
        seen = _in_channels(np.asarray(square), self.net.channels)
        self.average = average(self.average, train.probabilities(self.net, seen[None])[0], self.smooth)
        best = np.argsort(-self.average, kind="stable")[:TOP]
        return Answer(best, self.average[best], None)

    def forget(self) -> None:
        self.average = None

    def words(self, answer: Answer) -> str:
        """Return what tells one answer from another: the class."""
        return common.class_name(self.net, int(answer.labels[0]))


class Detector:
    """A detector; its boxes are followed from frame to frame, and smoothed."""

    def __init__(self, net: Network, smooth: float | None, score: float) -> None:
        self.net, self.smooth, self.score = net, SMOOTH_BOXES if smooth is None else smooth, score
        self.tracks = tracking.NONE

    def see(self, image: np.ndarray) -> Answer:
        seen = _in_channels(image, self.net.channels)
        (found,) = whole.find(self.net, [seen], self.score * (WEAK if self.smooth else 1))
        if not self.smooth:
            return Answer(found.labels, found.scores, found.boxes)
        self.tracks = tracking.follow(self.tracks, found, self.smooth, self.score)
        return Answer(self.tracks.labels, self.tracks.scores, self.tracks.boxes)

    def forget(self) -> None:
        self.tracks = tracking.NONE

    def words(self, answer: Answer) -> str:
        """Return how many objects there are of each class: 2 star, 1 ring."""
        counts = collections.Counter(sorted(answer.labels.tolist()))
        return ", ".join(f"{count} {common.class_name(self.net, k)}" for k, count in counts.items()) or "nothing"


def average(before: np.ndarray | None, now: np.ndarray, smooth: float) -> np.ndarray:
    """Return the exponential average after one more frame: smooth * before + (1 - smooth) * now; of the first, now."""
    return now if before is None else smooth * before + (1 - smooth) * now


def leave_room(see: Callable[[], object]) -> None:
    """Leave one processor to what decodes, unless all of them make `see` faster by a quarter or more.

    They hardly do for a small network, whose threads then wait for each other where a third one takes a turn.
    """
    most, seconds = backend.max_threads(), []
    for count in (most, max(1, most - 1)):
        backend.set_num_threads(count)
        seconds.append(min(timeit.repeat(see, number=1, repeat=5)))
    backend.set_num_threads(most if 1.25 * seconds[0] <= seconds[1] else max(1, most - 1))


def run(options: Namespace) -> int:
    _check(options)
    net = weights.load(options.checkpoint, options.weights, tables.note)
    common.require_preprocessing(net, options.checkpoint)
    with ExitStack() as stack:
        source = stack.enter_context(video.source(options.source, options.rate))
        viewer = _viewer(net, options)
        blank = np.zeros((net.resolution, net.resolution, 3), np.uint8)
        with common.announced(_say):
            viewer.see(blank)  # kernels compile before time counts
        if options.threads is None:
            leave_room(lambda: viewer.see(blank))
        viewer.forget()
        came, stop = stack.enter_context(_stopping())
        session = _Session(viewer, source, options)
        if options.out is not None:
            session.add = stack.enter_context(video.writing(options.out, source.rate))
        with session.screen or nullcontext(), closing(video.ahead(source, stop=stop)) as coming:
            for frame in coming:
                session.take(frame)
        if not session.frames:
            if came:
                raise KeyboardInterrupt
            raise MbnpError(f"no frame of {source.name} could be read{source.fault and ': '}{source.fault}")
    session.sum_up()
    if came:
        _say("mbnp: stopped")
        return 128 + came[0]
    return 0


def _check(options: Namespace) -> None:
    if options.json and options.live:
        raise MbnpError("--json and --live both write to the terminal: leave one out")
    if options.smooth is not None and not 0 <= options.smooth < 1:
        raise MbnpError(f"--smooth must be at least 0 and less than 1, got {options.smooth:g}")
    if not 0 < options.score <= 1:
        raise MbnpError(f"--score must be more than 0 and at most 1, got {options.score:g}")
    if options.rate is not None and not RATES[0] <= options.rate <= RATES[1]:
        raise MbnpError(f"--rate must be {RATES[0]:g} to {RATES[1]:g} frames a second, got {options.rate:g}")
    if options.out is not None:
        common.check_output(options.out, ".mp4", [options.source, options.checkpoint])


def _viewer(net: Network, options: Namespace) -> Classifier | Detector:
    running = common.engine(net, options.readable)
    if net.detects():
        common.require_detector(net, options.checkpoint)
        return Detector(running, options.smooth, options.score)
    common.require_scores(net, options.checkpoint)
    return Classifier(running, options.smooth)


def _in_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return an image (H, W, 3) as it is, or grey as (H, W, 1)."""
    return image if channels == 3 else np.asarray(Image.fromarray(image).convert("L"))[:, :, None]


@contextmanager
def _stopping() -> Iterator[tuple[list[int], threading.Event]]:
    """Yield the signals that came within the block, Ctrl-C or SIGTERM, and an event that the first of them sets.

    After that, Ctrl-C ends everything at once.
    """
    came: list[int] = []
    stop = threading.Event()

    def on_signal(number: int, _: Any) -> None:
        came.append(number)
        stop.set()
        if len(came) > 1:
            raise KeyboardInterrupt

    with common.on_signals(on_signal, signal.SIGINT, signal.SIGTERM):
        yield came, stop


class _Session:
    """What was watched so far, and where it is shown."""

    def __init__(self, viewer: Classifier | Detector, source: video.Source, options: Namespace) -> None:
        self.viewer, self.source, self.options = viewer, source, options
        self.add: Any = None  # writes a frame, where there is something to write to
        self.screen = Screen.in_terminal() if options.live else None
        self.began = self.ended = time.perf_counter()
        self.frames = 0
        self.size: tuple[int, ...] | None = None
        self.latencies: collections.deque[float] = collections.deque(maxlen=LATENCIES)
        self.seen: dict[str, list[float]] = {}  # class: frames, time of the first and of the last
        self.said = ""

    def take(self, frame: video.Frame) -> None:
        """See one frame, and show what was seen."""
        began = frame.came if self.source.live else time.perf_counter()
        self.began = self.began if self.frames else began  # what opening takes is not for each frame
        if self.size not in (None, frame.image.shape):  # another image, not the next one
            self.viewer.forget()
        self.size = frame.image.shape
        answer = self.viewer.see(frame.image)
        self.latencies.append(time.perf_counter() - began)
        names = [common.class_name(self.viewer.net, k) for k in answer.labels.tolist()]
        if self.add is not None:
            self.add(drawing.draw(frame.image, answer, names), frame.time)
        if self.screen is not None:
            self.screen.show(frame.image, answer, names, self.state(frame))
        elif self.options.json:
            print(json.dumps(self.record(frame, answer, names)), flush=True)
        elif (words := self.viewer.words(answer)) != self.said:
            self.said = words
            print(f"{_clock(frame.time)}  {words}", flush=True)
        for name in set(names if answer.boxes is not None else names[:1]):
            row = self.seen.setdefault(name, [0, frame.time, 0])
            row[0], row[2] = row[0] + 1, frame.time
        self.frames += 1
        self.ended = time.perf_counter()

    def state(self, frame: video.Frame) -> str:
        rate = self.frames / (self.ended - self.began) if self.frames else 0
        lost = self.source.skipped + self.source.dropped
        return f"{_clock(frame.time)}  {rate:.0f} frames/s  {1000 * self.latencies[-1]:.1f} ms  {lost} left out"

    def record(self, frame: video.Frame, answer: Answer, names: Sequence[str]) -> dict[str, Any]:
        height, width = frame.image.shape[:2]
        about: dict[str, Any] = {"frame": self.frames, "time": round(frame.time, 4)}
        about |= {"file": frame.name} if frame.name else {}
        about |= {"width": width, "height": height}
        if answer.boxes is None:
            scores = [round(float(score), 6) for score in answer.scores]
            return about | {"classes": [{"class": n, "probability": p} for n, p in zip(names, scores, strict=True)]}
        return about | {"objects": common.objects(names, answer.scores, answer.boxes)}

    def sum_up(self) -> None:
        """Say how fast it was, what was left out, and what was seen."""
        say = _say if self.options.json else print
        seconds = self.ended - self.began
        say(f"{self.frames:,} frames in {seconds:.1f} s: {self.frames / seconds:.1f} frames a second")
        p50, p95, p99 = 1000 * np.percentile(self.latencies, (50, 95, 99))
        say(f"latency of a frame: p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms")
        if self.source.skipped:
            say(tables.hang(f"skipped, as damaged: {self.source.skipped:,} ({self.source.fault})"))
        if self.source.dropped:
            say(f"dropped, as they came while others were computed: {self.source.dropped:,}")
        if not self.options.json:
            rows = [
                (name, f"{count:,}", _clock(first), _clock(last))
                for name, (count, first, last) in sorted(self.seen.items(), key=lambda item: -item[1][0])
            ]
            if rows:
                say(tables.table(("seen", "frames", "first", "last"), rows))
        if self.options.out is not None:
            say(f"{self.options.out}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds, 2), 60)
    return f"{int(minutes)}:{seconds:05.2f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
