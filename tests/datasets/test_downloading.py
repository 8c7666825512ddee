"""Downloads against a server on this machine: whole, resumed, broken off, and wrong."""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from mbnp.datasets import cifar10, download, downloading
from mbnp.errors import MbnpError

CONTENT = np.random.default_rng(0).bytes(500_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`, with ranges or without, whole or broken off after `breaks_after` bytes."""

    def do_GET(self):
        self.server.requests.append(self.headers.get("Range"))
        if self.server.status != 200:
            return self.send_error(self.server.status)
        content, start = self.server.content, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            start = int(wanted[1])
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.says_length:
            self.send_header("Content-Length", str(len(content) - start))
        if self.server.encoding:
            self.send_header("Content-Encoding", self.server.encoding)
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest[: self.server.breaks_after])
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.status, server.ranges = CONTENT, 200, True
        server.breaks_after, server.says_length, server.encoding = None, True, None
        server.requests = []
        server.url = f"http://127.0.0.1:{server.server_port}/some/mirror.tar.gz"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "data" / cifar10.ARCHIVE


@pytest.fixture
def part(archive):
    """The unfinished download; its folder is there."""
    archive.parent.mkdir()
    return archive.with_name(f"{cifar10.ARCHIVE}.part")


def fetch(server, archive, md5=MD5, **options):
    return download(server.url, archive.parent, md5=md5, **options)


def test_a_whole_download(server, archive):
    heard = []
    assert fetch(server, archive, progress=lambda done, total: heard.append((done, total))) == archive
    assert archive.read_bytes() == CONTENT
    assert list(archive.parent.iterdir()) == [archive]
    assert heard[0] == (0, len(CONTENT))
    assert heard[-1] == (len(CONTENT), len(CONTENT))
    assert heard == sorted(heard)
    assert len(heard) > 5


def test_what_is_there_is_not_fetched_again(server, archive):
    fetch(server, archive)
    fetch(server, archive)
    assert len(server.requests) == 1


def test_a_wrong_file_in_its_place_is_replaced(server, archive):
    archive.parent.mkdir()
    archive.write_bytes(b"an older try")
    fetch(server, archive)
    assert archive.read_bytes() == CONTENT


def test_an_interrupted_download_goes_on(server, archive):
    server.breaks_after = 200_000
    with pytest.raises(ConnectionError, match=r"broke off; 200,000 bytes are kept in .*\.part"):
        fetch(server, archive)
    assert not archive.exists()
    server.breaks_after = None
    heard = []
    fetch(server, archive, progress=lambda done, total: heard.append((done, total)))
    assert archive.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=200000-"]
    assert heard[0] == (200_000, len(CONTENT))
    assert heard[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("says_length", [True, False])
def test_a_server_without_ranges_starts_again(server, archive, part, says_length):
    part.write_bytes(CONTENT[:100_000])
    server.ranges, server.says_length = False, says_length
    heard = []
    fetch(server, archive, progress=lambda done, total: heard.append((done, total)))
    assert archive.read_bytes() == CONTENT
    assert heard[0] == (0, len(CONTENT) if says_length else None)
    assert heard[-1][0] == len(CONTENT)


def test_a_part_that_is_whole_needs_no_server(server, archive, part):
    part.write_bytes(CONTENT)
    fetch(server, archive)
    assert archive.read_bytes() == CONTENT
    assert not part.exists()
    assert server.requests == []


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("stale", [CONTENT + b"more", bytes(len(CONTENT))])
def test_a_part_that_is_too_long_is_dropped(server, archive, part, ranges, stale):
    server.ranges = ranges
    part.write_bytes(stale)
    fetch(server, archive)
    assert archive.read_bytes() == CONTENT


def test_a_server_that_sends_more_than_the_rest(server, archive, part, monkeypatch):
    """Its answer to a range begins where it says, not where it was asked to."""
    part.write_bytes(CONTENT[:100_000])
    real = downloading._request
    monkeypatch.setattr(downloading, "_request", lambda url, start: real(url, start - 40_000))
    fetch(server, archive)
    assert archive.read_bytes() == CONTENT
    part.write_bytes(CONTENT[:100_000])
    archive.unlink()
    monkeypatch.setattr(downloading, "_request", lambda url, start: real(url, start + 40_000))
    with pytest.raises(ConnectionError, match="other bytes than it was asked for; 100,000 bytes are kept"):
        fetch(server, archive)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_wrong_checksum_leaves_nothing(server, archive, part, resumed):
    if resumed:
        part.write_bytes(b"from elsewhere")
    else:
        server.content = b"<html>Please log in</html>"
    with pytest.raises(MbnpError, match=r"mirror.tar.gz sent something else .*: nothing is kept"):
        fetch(server, archive)
    assert not any(archive.parent.iterdir())


def test_a_wrong_checksum_keeps_nothing_but_the_old_file(server, archive):
    fetch(server, archive)
    with pytest.raises(MbnpError, match="wrong md5"):
        fetch(server, archive, md5="0" * 32)
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
def test_a_server_that_calls_the_archive_an_encoding(server, archive, encoding):
    server.encoding = encoding
    fetch(server, archive)
    assert archive.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 416, 503])
def test_a_server_that_says_no(server, archive, part, status):
    server.status = status
    with pytest.raises(ConnectionError, match=rf"{re.escape(server.url)}: the server answers {status} [\w ]+$"):
        fetch(server, archive)
    part.write_bytes(b"begun")
    with pytest.raises(ConnectionError, match=r"; 5 bytes are kept in .*\.part"):
        fetch(server, archive)
    assert part.read_bytes() == b"begun"


def test_no_server(server, archive):
    url = server.url.replace(str(server.server_port), "9")
    with pytest.raises(ConnectionError, match="no connection to the server") as raised:
        download(url, archive.parent)
    assert "\n" not in str(raised.value)


def test_a_server_that_falls_silent(archive, monkeypatch):
    import socket

    monkeypatch.setattr(downloading, "_PATIENCE", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(ConnectionError, match="the server does not answer"):
            download(url, archive.parent)


@pytest.mark.parametrize("url", ["mirror.tar.gz", "file:///etc/hosts", "http://"])
def test_what_is_no_address(url, archive):
    with pytest.raises(MbnpError, match="is not an http or https address"):
        download(url, archive.parent)


def test_the_defaults_are_the_official_archive_and_the_cache(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / project)
    monkeypatch.setattr(downloading, "_fetch", lambda url, part, progress: asked.append((url, part)))
    monkeypatch.setattr(downloading, "_has_md5", lambda path, md5: bool(asked) and md5 == MD5_OFFICIAL)
    monkeypatch.setattr("pathlib.Path.replace", lambda part, archive: None)
    assert download() == tmp_path / "mbnp" / "cifar-10-binary.tar.gz"
    assert asked == [
        (
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            tmp_path / "mbnp" / "cifar-10-binary.tar.gz.part",
        )
    ]


MD5_OFFICIAL = "c32a1d4ab5d03f1284b67883e8d87530"
