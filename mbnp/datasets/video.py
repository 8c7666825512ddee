"""Frames from a video file, a folder of images or a camera; frames into a video file.

with video.source("clip.mp4") as frames:
    for frame in video.ahead(frames):                   # a thread decodes the next ones meanwhile
        frame.image, frame.time                         # (H, W, 3) uint8 as displayed, seconds from the first
print(frames.skipped)                                   # damaged frames, which are left out

PyAV (FFmpeg's libraries) decodes and encodes; a folder needs Pillow only. At most `WAITING` frames wait in memory.
"""

import importlib.util
import os
import queue
import re
import stat
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from mbnp import storage
from mbnp.datasets import drawing
from mbnp.datasets.images import files_in, read_whole
from mbnp.errors import MbnpError

RATE = 25.0  # frames a second, where nothing says it
WAITING = 4
TOGETHER = 2  # frames that a thread hands over at a time: each time both threads wait for Python's lock
LONGEST = 5.0  # seconds that a camera may take to the next frame, when nobody wants it any more
TICKS = 10_000  # of a second, in the files that are written
SMALL = 640 * 480  # pixels of a frame that one thread decodes
MOST_PIXELS = 1 << 26  # of a frame


class Frame(NamedTuple):
    image: np.ndarray  # (H, W, 3) uint8, upright
    time: float  # seconds from the first frame
    name: str  # of its file; "" where all frames are in one
    came: float  # time.perf_counter() when it was decoded


class Source:
    """Frames in order; iterating it reads them, once. A context, which closes it."""

    live = False  # whether frames come at their own time, as a camera's do

    def __init__(self, name: str, rate: float = RATE) -> None:
        self.name, self.rate = name, rate  # frames a second
        self.skipped = 0  # frames that are damaged
        self.fault = ""  # what was wrong with the first of them
        self.dropped = 0  # frames of a live source that came while others were computed
        self.hangs = False  # whether a thread reads it that does not come back: closing it might crash

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def skip(self, error: Exception | str) -> None:
        self.skipped += 1
        self.fault = self.fault or str(error).split("\n")[0]


class Folder(Source):
    """The images in a folder and in those inside it, in the order of their names: 9.png before 10.png."""

    def __init__(self, path: str | Path, rate: float = RATE) -> None:
        super().__init__(str(path), rate)
        self.files = sorted((file for file in files_in(path) if not drawing.is_drawn(file)), key=_by_number)
        if not self.files:
            raise MbnpError(f"the folder {path} has no images")

    def __iter__(self) -> Iterator[Frame]:
        first = None
        for index, file in enumerate(self.files):
            try:
                image = read_whole(file)
            except (MbnpError, OSError) as error:
                self.skip(error)
                continue
            first = index if first is None else first
            yield Frame(image, (index - first) / self.rate, file, time.perf_counter())


class Stream(Source):
    """A video file, or with live=True a camera, by PyAV. form: FFmpeg's name of the format, None to look."""

    def __init__(self, name: str, file: str, form: str | None = None, live: bool = False) -> None:
        super().__init__(name)
        self.live = live
        self.av = _av()
        kind = "camera" if live else "video"
        try:
            self.container = self.av.open(
                file, format=form
            )  # of files that name others, FFmpeg follows local ones only
        except (self.av.error.FFmpegError, OSError) as error:
            raise MbnpError(f"{name} is no {kind} that can be read: {_reason(error)}") from None
        moving = [s for s in self.container.streams.video if not s.disposition & s.disposition.attached_pic]
        if not moving or self.container.format.name == "tty":  # FFmpeg plays a text file as a terminal would
            self.container.close()
            raise MbnpError(f"{name} is no {kind} that can be read: there are no moving images in it")
        self.stream = moving[0]
        small = self.stream.width * self.stream.height <= SMALL
        self.stream.thread_type = "SLICE" if live or small else "AUTO"  # threads by frame would deliver them later
        if small:
            self.stream.codec_context.thread_count = 1  # fast enough, and more would take turns with the network's
        self.rate = float(self.stream.average_rate or self.stream.guessed_rate or RATE)

    def __iter__(self) -> Iterator[Frame]:
        first, index = None, 0
        convert = self.av.video.reformatter.VideoReformatter()  # each frame's own would begin with tables of its own
        for decoded in self._decoded():
            if decoded.is_corrupt:
                self.skip("damaged frames")
                continue
            if decoded.width * decoded.height > MOST_PIXELS:
                raise MbnpError(f"{self.name} has frames of {decoded.width}x{decoded.height}: make them smaller first")
            now = index / self.rate if decoded.time is None else float(decoded.time)
            first, index = now if first is None else first, index + 1
            image = convert.reformat(decoded, format="rgb24").to_ndarray()
            if quarters := round((decoded.rotation or 0) / 90) % 4:
                image = np.ascontiguousarray(np.rot90(image, quarters))
            yield Frame(image, now - first, "", time.perf_counter())

    def _decoded(self) -> Iterator[Any]:
        """Yield PyAV's frames; what its decoder reports is counted, and left out."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except BlockingIOError:  # a camera that has nothing yet, on macOS
                time.sleep(0.005)
                packets = self.container.demux(self.stream)
                continue
            except (self.av.error.FFmpegError, OSError) as error:  # a file cut short, a camera unplugged
                self.skip(f"it ends early: {_reason(error)}")
                return
            if packet is None:
                return
            try:
                yield from packet.decode()
            except self.av.error.FFmpegError as error:
                self.skip(_reason(error))

    def __exit__(self, *error: Any) -> None:
        if not self.hangs:
            self.container.close()


def source(name: str, rate: float | None = None) -> Source:
    """Return what `name` means: a video file, a folder of images, or a camera.

    A camera is its number, or camera:NAME as the system calls it, or on Linux its device. rate: frames a second of a
    folder. Raise FileNotFoundError or MbnpError, in one line, for what is none of these.
    """
    if os.path.isdir(name):
        return Folder(name, RATE if rate is None else rate)
    device = name.isdecimal() or name.startswith("camera:")
    if rate is not None and (device or os.path.exists(name)):
        raise MbnpError(f"a rate is for a folder of images: {name} has its own")
    if os.path.exists(name):
        mode = os.stat(name).st_mode
        if stat.S_ISCHR(mode) and Path(name).name.startswith("video"):
            return camera(name)
        if not stat.S_ISREG(mode):
            raise MbnpError(f"{name} is no file, folder or camera: a pipe or a device cannot be watched")
        return Stream(name, name)
    if device:
        return camera(name.removeprefix("camera:"))
    raise FileNotFoundError(f"no video, folder or camera at {name}")


def camera(name: str) -> Source:
    """Return a camera by its number, or by the name or device that the system has for it."""
    return Stream(f"camera {name}", *_device(name, sys.platform), live=True)


def _device(name: str, platform: str) -> tuple[str, str]:
    """Return how FFmpeg names a camera, and by what it reads it, on Linux, macOS or Windows."""
    if platform == "darwin":
        return name, "avfoundation"
    if platform == "win32":
        if name.isdecimal():
            raise MbnpError(f"on Windows a camera has a name: camera:NAME instead of {name}")
        return f"video={name}", "dshow"
    return (f"/dev/video{name}" if name.isdecimal() else name), "v4l2"


def ahead(frames: Source, waiting: int = WAITING, stop: threading.Event | None = None) -> Generator[Frame, None, None]:
    """Yield the frames of a source while a thread reads the next ones, of which at most `waiting` wait.

    Of a live source only the newest waits: those that it replaces are counted as dropped. Once `stop` is set, it ends.
    """
    stop = stop or threading.Event()
    together = 1 if frames.live or waiting <= TOGETHER else TOGETHER
    # All but one of the frames that were handed over last still wait, too.
    ready: queue.Queue[Any] = queue.Queue(1 if frames.live else (waiting - together + 1) // together)

    def put(item: Any, replace: bool) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0 if replace else 0.1)
            except queue.Full:
                if replace:
                    with suppress(queue.Empty):
                        ready.get_nowait()
                        frames.dropped += 1
        return None

    def read() -> None:
        part: list[Frame] = []
        try:
            for frame in frames:
                part.append(frame)
                if len(part) == together:
                    put(part, replace=frames.live)
                    part = []
                if stop.is_set():
                    return
            put([*part, None], replace=False)
        except BaseException as error:
            put([*part, error], replace=False)

    reader = threading.Thread(target=read, name="frames", daemon=True)
    reader.start()
    try:
        while not stop.is_set():
            try:
                part = ready.get(timeout=0.1)
            except queue.Empty:
                continue
            for item in part:
                if item is None or stop.is_set():
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
    finally:
        stop.set()
        reader.join(LONGEST)
        frames.hangs = reader.is_alive()


@contextmanager
def writing(path: str | Path, rate: float = RATE) -> Iterator[Callable[[np.ndarray, float], None]]:
    """Yield add(image, time), which adds a frame (H, W, 3) uint8 to a video file, its time in seconds.

    The file is there once the block ends without an error, whole. Later frames are fitted into the size of the first.
    It is H.264, or MPEG-4 where PyAV comes without x264, and has no sound.
    """
    av, path = _av(), Path(path)
    try:
        with storage.replacing(path) as partial, av.open(str(partial), "w", format="mp4") as container:
            film = _Film(av, container, rate)
            yield film.add
            if film.stream is None:
                raise MbnpError(f"there is no frame for {path}")
            container.mux(film.stream.encode(None))
    except av.error.FFmpegError as error:
        raise MbnpError(f"{path} cannot be written: {_reason(error)}") from None


class _Film:
    """What `writing` writes into."""

    def __init__(self, av: Any, container: Any, rate: float) -> None:
        self.av, self.container, self.rate = av, container, rate
        self.stream: Any = None
        self.last = -1  # in ticks

    def add(self, image: np.ndarray, at: float) -> None:
        if self.stream is None:
            self.begin(*image.shape[:2])
        height, width = self.size
        if image.shape[:2] != self.size:
            image = np.asarray(ImageOps.pad(Image.fromarray(image), (width, height), Image.Resampling.BILINEAR))
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self.av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        self.last = max(self.last + 1, round(TICKS * at))
        frame.pts, frame.time_base = self.last, Fraction(1, TICKS)
        self.container.mux(self.stream.encode(frame))

    def begin(self, height: int, width: int) -> None:
        self.size = height, width
        fast = "libx264" in self.av.codecs_available
        rate = Fraction(self.rate).limit_denominator(1000)
        self.stream = self.container.add_stream("libx264" if fast else "mpeg4", rate=rate)
        self.stream.width, self.stream.height = width + width % 2, height + height % 2  # a colour is for 2 x 2 pixels
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = Fraction(1, TICKS)
        self.stream.options = {"preset": "veryfast"} if fast else {"qscale": "4"}


def _av() -> Any:
    """Return PyAV."""
    if importlib.util.find_spec("av") is None:
        raise MbnpError('PyAV reads videos and cameras; install it with: pip install "mbnp[video]"')
    import av

    av.logging.set_level(av.logging.PANIC)  # what is wrong with a frame is counted, not printed
    return av


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _by_number(path: str) -> list[Any]:
    """Return a key that sorts names with numbers in them by these."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)]
