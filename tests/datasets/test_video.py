"""Frames in and out: what is read is what was written, damage costs the damaged frames, and memory is bounded."""

import contextlib
import http.server
import os
import socket
import threading
import time
import wave
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from mbnp.datasets import video
from mbnp.errors import MbnpError

av = pytest.importorskip("av", reason="needs the package av")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def moving(count, height=48, width=64):
    """Frames of large blocks of colour that move by two pixels a frame, which survive an encoder."""
    blocks = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3)).astype(np.uint8)
    image = blocks.repeat(16, axis=0).repeat(16, axis=1)
    return [np.roll(image, 2 * i, axis=1) for i in range(count)]


def write(path, frames, rate=25.0):
    with video.writing(path, rate) as add:
        for i, frame in enumerate(frames):
            add(frame, i / rate)
    return path


def read(name, **options):
    with video.source(str(name), **options) as source:
        return list(source), source


# -- files -------------------------------------------------------------------------------------------------


def test_what_is_written_is_read():
    frames = moving(30)
    found, source = read(write("a.mp4", frames, rate=12.5))
    assert len(found) == 30
    assert (source.skipped, source.dropped, source.live) == (0, 0, False)
    assert source.rate == pytest.approx(12.5, rel=1e-3)
    np.testing.assert_allclose([frame.time for frame in found], np.arange(30) / 12.5, atol=1e-3)
    for frame, image in zip(found, frames, strict=True):
        assert (frame.image.shape, frame.image.dtype, frame.name) == (image.shape, np.uint8, "")
        assert abs(frame.image.astype(int) - image).mean() < 12


def test_times_are_kept_and_rise():
    times = [0, 0.5, 0.5, 0.53, 2]
    with video.writing("a.mp4", 25) as add:
        for at, image in zip(times, moving(5), strict=True):
            add(image, at)
    np.testing.assert_allclose([frame.time for frame in read("a.mp4")[0]], times, atol=2e-4)


def test_odd_sizes_get_an_edge_and_others_are_fitted_in():
    red, wide = np.full((31, 45, 3), (200, 30, 30), np.uint8), np.full((20, 80, 3), (30, 30, 200), np.uint8)
    first, second = (frame.image for frame in read(write("a.mp4", [red, wide]))[0])
    assert first.shape == second.shape == (32, 46, 3)
    assert abs(first.astype(int) - red[0, 0]).max() < 20
    assert abs(second[14:17, 10:30].astype(int) - wide[0, 0]).max() < 20
    assert second[:6].max() < 40  # black, above what is wide


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_frames_are_turned_as_the_file_says(turn):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16, 0] = 255
    with av.open("a.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV writes no rotation")
        stream.set_display_rotation(turn)
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    found, _ = read("a.mp4")
    expected = np.rot90(image, turn // 90)  # counterclockwise
    assert found[0].image.shape == expected.shape
    assert abs(found[0].image[..., 0].astype(int) - expected[..., 0]).mean() < 12


def damage(path):
    """Change bytes in the middle of a file's frames."""
    content = bytearray(path.read_bytes())
    rng, first = np.random.default_rng(1), content.find(b"mdat")
    for at in rng.integers(first + len(content) // 4, first + len(content) // 2, 40):
        content[at] ^= int(rng.integers(1, 256))
    path.write_bytes(content)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_damaged_frames_are_left_out_and_counted(codec):
    path = Path("a.mp4")
    noise = np.random.default_rng(0).integers(0, 60, (120, 48, 64, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image, grain in zip(moving(120), noise, strict=True):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image // 2 + grain, format="rgb24")))
        container.mux(stream.encode(None))
    damage(path)
    found, source = read(path)
    assert source.skipped > 0
    assert source.fault
    assert 120 - 2 * source.skipped <= len(found) <= 120  # a decoder may hide some of it
    assert found[-1].time > 4.5  # it went on after the damage


def test_a_file_that_is_cut_short_is_read_up_to_there():
    frames = moving(100)
    with av.open("a.mkv", "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    content = Path("a.mkv").read_bytes()
    Path("a.mkv").write_bytes(content[: 2 * len(content) // 3])
    found, _ = read("a.mkv")
    assert 20 < len(found) < 100


def test_what_is_no_source_is_one_line(monkeypatch):
    write("a.mp4", moving(30))
    content = Path("a.mp4").read_bytes()
    Path("cut.mp4").write_bytes(content[: len(content) // 2])
    Path("text.mp4").write_text("no video\n" * 100)
    Path("text.txt").write_text("no video\n" * 100)  # which FFmpeg would show
    Path("empty.mp4").touch()
    Path("folder").mkdir()
    with wave.open("sound.wav", "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    cases = {
        "cut.mp4": "no video that can be read", "text.mp4": "no video that can be read", "text.txt": "no video that",
        "empty.mp4": "no video that can be read", "sound.wav": "no moving images", "folder": "has no images",
        "none.mp4": "no video, folder or camera at none.mp4", "http://127.0.0.1/a.mp4": "no video, folder or camera",
        "camera:none": "camera none is no camera that can be read",
    }  # fmt: skip
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe.mp4")
        cases |= {"pipe.mp4": "a pipe or a device cannot be watched", os.devnull: "a pipe or a device cannot be"}
    for name, message in cases.items():
        with pytest.raises((MbnpError, FileNotFoundError), match=message) as caught:
            video.source(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(MbnpError, match="a rate is for a folder"):
        video.source("a.mp4", rate=5)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MbnpError, match=r"pip install \"mbnp\[video\]\""):
        video.source("a.mp4")


def test_frames_that_are_too_large_are_refused(monkeypatch):
    write("a.mp4", moving(3))
    monkeypatch.setattr(video, "MOST_PIXELS", 48 * 64 - 1)
    with video.source("a.mp4") as source, pytest.raises(MbnpError, match="frames of 64x48: make them smaller"):
        list(video.ahead(source))


def test_a_playlist_asks_nothing_of_the_network():
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        where = f"http://127.0.0.1:{server.server_port}/a.ts"
        Path("a.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{where}\n#EXT-X-ENDLIST\n")
        Path("a.mp4").write_bytes(Path("a.m3u8").read_bytes())
        try:
            for name in ("a.m3u8", "a.mp4"):
                with contextlib.suppress(MbnpError):
                    assert read(name)[0] == []
            with socket.create_connection(("127.0.0.1", server.server_port)) as own:  # it does listen
                own.sendall(b"GET /own HTTP/1.0\r\n\r\n")
                own.recv(100)
        finally:
            server.shutdown()
            thread.join()
    assert asked == ["/own"]


# -- folders -----------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_the_order_of_its_numbers():
    frames = moving(12)
    Path("some").mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(f"some/frame{i}.png")
    Path("some/frame5.png").write_bytes(Path("some/frame5.png").read_bytes()[:80])
    Path("some/about.txt").write_text("no image")
    turned = Image.fromarray(frames[0])
    exif = turned.getexif()
    exif[0x0112] = 6  # turn it right
    turned.save("some/turned.png", exif=exif)
    found, source = read("some", rate=10)
    order = [*range(5), *range(6, 12)]
    assert [Path(frame.name).name for frame in found] == [*(f"frame{i}.png" for i in order), "turned.png"]
    for frame, i in zip(found, order, strict=False):
        np.testing.assert_array_equal(frame.image, frames[i])
        assert frame.time == pytest.approx(i / 10)
    np.testing.assert_array_equal(found[-1].image, np.rot90(frames[0], -1))
    assert source.skipped == 2
    assert "about.txt" in source.fault


# -- cameras -----------------------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch):
    """A camera of FFmpeg's own, which delivers 40 frames as fast as it can."""
    if "lavfi" not in av.formats_available:
        pytest.skip("this PyAV has no test source")
    monkeypatch.setattr(video, "_device", lambda name, platform: ("testsrc=size=64x48:rate=20:duration=2", "lavfi"))


@pytest.mark.parametrize("name", ["0", "camera:front"])
def test_a_camera(fake, name):
    with video.source(name) as source:
        assert source.live
        assert source.rate == 20
        frames = list(source)
    assert len(frames) == 40
    assert frames[0].image.shape == (48, 64, 3)
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(40) / 20, atol=1e-6)


def test_a_slow_reader_of_a_camera_gets_the_newest_frame(fake):
    with video.source("0") as source:
        seen = []
        for frame in video.ahead(source):
            seen.append(frame.time)
            time.sleep(0.2)
    assert seen[-1] == pytest.approx(39 / 20)
    assert seen == sorted(seen)
    assert len(seen) + source.dropped == 40
    assert source.dropped > 20


def test_a_camera_that_has_nothing_yet_is_asked_again(fake, monkeypatch):
    with video.source("0") as source:
        plain, failed = source.container, []

        class Busy:
            def demux(self, stream):
                if len(failed) < 3:
                    failed.append(1)
                    raise BlockingIOError
                yield from plain.demux(stream)

        source.container = Busy()
        assert len(list(source)) == 40
        source.container = plain
    assert len(failed) == 3


@pytest.mark.parametrize("hangs", [True, False])
def test_a_camera_that_hangs_is_not_closed(fake, monkeypatch, hangs):
    monkeypatch.setattr(video, "LONGEST", 0.05 if hangs else 20)
    go_on, closed = threading.Event(), []

    class Hanging:
        def demux(self, stream):
            yield next(plain.demux(stream))
            go_on.wait(10)

        def close(self):
            closed.append(1)

    with video.source("0") as source:
        plain, source.container = source.container, Hanging()
        frames = video.ahead(source)
        next(frames)
        if not hangs:
            go_on.set()
        frames.close()
        assert source.hangs == hangs
    assert closed == [1] * (not hangs)
    go_on.set()
    while readers():
        time.sleep(0.01)
    plain.close()


def test_cameras_of_each_system():
    assert video._device("1", "linux") == ("/dev/video1", "v4l2")
    assert video._device("/dev/video2", "linux") == ("/dev/video2", "v4l2")
    assert video._device("1", "darwin") == ("1", "avfoundation")
    assert video._device("USB cam", "win32") == ("video=USB cam", "dshow")
    with pytest.raises(MbnpError, match="camera:NAME"):
        video._device("0", "win32")


# -- reading ahead -----------------------------------------------------------------------------------------


class Counted(video.Source):
    """A source that counts how many frames were read of it, and fails where it is told to."""

    def __init__(self, count, fails_at=None):
        super().__init__("counted")
        self.count, self.fails_at, self.read = count, fails_at, 0

    def __iter__(self):
        for i in range(self.count):
            if i == self.fails_at:
                raise OSError("unplugged")
            self.read += 1
            yield video.Frame(np.full((2, 2, 3), i, np.uint8), i, "", time.perf_counter())


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "frames"]


@pytest.mark.parametrize("waiting", range(1, 6))
def test_frames_come_in_order_and_only_so_many_wait(waiting):
    source, in_hand = Counted(51), 1 if waiting < 3 else 2
    for i, frame in enumerate(video.ahead(source, waiting=waiting)):
        assert frame.time == i
        time.sleep(0.002)
        assert source.read <= i + 1 + waiting + in_hand  # those that were taken, that wait, and that wait to wait
    assert i == 50
    assert not readers()


def test_who_stops_early_leaves_no_thread():
    source = Counted(50)
    frames = video.ahead(source)
    next(frames)
    frames.close()
    assert not readers()
    assert source.read < 10
    for last in (4, 5):  # the first and the second of those that come together
        stop = threading.Event()
        for frame in video.ahead(Counted(50), stop=stop):
            if frame.time == last:
                stop.set()
        assert frame.time == last
        assert not readers()


@pytest.mark.parametrize("good", [0, 6, 7])
def test_what_fails_in_the_thread_fails_for_the_reader(good):
    seen = []
    with pytest.raises(OSError, match="unplugged"):
        seen.extend(frame.time for frame in video.ahead(Counted(50, fails_at=good)))
    assert seen == list(range(good))
    assert not readers()


# -- writing -----------------------------------------------------------------------------------------------


def test_a_file_is_there_whole_or_not_at_all():
    before = Path(write("a.mp4", moving(3))).read_bytes()

    def fails(error):
        with video.writing("a.mp4") as add:
            for image in moving(40):
                add(image, 0)
            raise error

    for error in (KeyboardInterrupt, MbnpError("x"), OSError("y")):
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            fails(error)
        assert os.listdir() == ["a.mp4"]
        assert Path("a.mp4").read_bytes() == before
    with pytest.raises(MbnpError, match="no frame"), video.writing("b.mp4"):
        pass
    assert os.listdir() == ["a.mp4"]


def test_memory_is_flat_over_2000_frames():
    write("a.mp4", (frame for _ in range(50) for frame in moving(40)))
    process, held = psutil.Process(), []
    with video.source("a.mp4") as source, video.writing("b.mp4") as add:
        for i, frame in enumerate(video.ahead(source)):
            add(frame.image, frame.time)
            if i in (500, 1999):
                held.append(process.memory_info().rss)
    assert i == 1999
    assert held[1] - held[0] < 6e6  # 2000 frames are 18 MB
