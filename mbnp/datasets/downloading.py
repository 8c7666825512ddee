"""Download CIFAR's official binary archives: resumable, verified, and in their place only when they are complete."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mbnp.datasets.cifar10 import CIFAR10, CIFAR100, Layout
from mbnp.errors import MbnpError

# pooch and requests are imported where they are used: they take longer than the rest of mbnp.datasets.

URL = "https://www.cs.toronto.edu/~kriz/"
MD5 = {CIFAR10: "c32a1d4ab5d03f1284b67883e8d87530", CIFAR100: "03b5dce01913d631647c71ecec9e9cb8"}

_CHUNK = 1 << 16
_PATIENCE = (10, 60)  # seconds: for a connection, and for the next bytes

Progress = Callable[[int, int | None], Any]


def cache_folder() -> Path:
    """Return the folder of mbnp in the user's cache, such as ~/.cache/mbnp."""
    import pooch

    return Path(pooch.os_cache("mbnp"))


def download(
    url: str | None = None,
    folder: str | Path | None = None,
    progress: Progress = lambda done, total: None,
    md5: str | None = None,
    layout: Layout = CIFAR10,
) -> Path:
    """Fetch a data set's archive from `url` (the official address) into `folder` (the user's cache); return its path.

    Bytes arrive in a .part file, and a download that was interrupted goes on from there. The archive gets its
    name only when its md5 is right; for a wrong one the .part is removed and MbnpError raised. Raise
    ConnectionError, which says what is kept, if the download breaks off. `progress(done, total)` is called after
    each chunk, in bytes; total is None where the server does not say. An archive that is there already is not
    fetched again.
    """
    url, md5 = url or URL + layout.archive, md5 or MD5[layout]
    archive = Path(folder or cache_folder()) / layout.archive
    part = archive.with_name(f"{layout.archive}.part")
    if _has_md5(archive, md5):
        return archive
    if not _has_md5(part, md5):
        archive.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, progress)
    if not _has_md5(part, md5):
        part.unlink()
        raise MbnpError(f"{url} sent something else than {layout.archive} (wrong md5): nothing is kept")
    part.replace(archive)
    return archive


def _has_md5(path: Path, md5: str) -> bool:
    import pooch

    return path.is_file() and pooch.file_hash(str(path), alg="md5") == md5


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(url: str, part: Path, progress: Progress) -> None:
    """Append the missing bytes of the file at `url` to `part`."""
    import requests
    import urllib3

    try:
        response = _request(url, start=_size(part))
        if response.status_code == 416 and _size(part):
            # Nothing comes after what we have, which is not the file (its md5 was looked at): begin again.
            response.close()
            response = _request(url, start=0)
        with response:
            response.raise_for_status()
            _save(response, part, progress)
    except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
        if isinstance(error, ValueError):  # requests' family of errors about the address itself
            raise MbnpError(f"{url!r} is not an http or https address") from None
        if isinstance(error, requests.HTTPError) and error.response is not None:
            reason = f"the server answers {error.response.status_code} {error.response.reason}"
        elif isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            reason = "the server does not answer"
        elif isinstance(error, urllib3.exceptions.ProtocolError):
            reason = "the connection broke off"
        elif isinstance(error, ConnectionError):
            reason = str(error)
        else:
            reason = f"no connection to the server ({type(error).__name__})"
        size = _size(part)
        kept = f"; {size:,} bytes are kept in {part}, try again to go on from there" if size else ""
        raise ConnectionError(f"cannot download {url}: {reason}{kept}") from None


def _request(url: str, start: int) -> Any:
    """Ask for the file from byte `start` on; return the response, whose body is not read yet."""
    import requests

    # No compression on the way: ranges are to count the bytes of the archive itself.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    return requests.get(url, headers=headers, stream=True, timeout=_PATIENCE)


def _save(response: Any, part: Path, progress: Progress) -> None:
    done = 0  # a server that knows no ranges sends everything from the start, with status 200
    if response.status_code == 206:
        start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if start is None or int(start[1]) > _size(part):
            raise ConnectionError("the server sent other bytes than it was asked for")
        done = int(start[1])
    remaining = response.raw.length_remaining
    total = None if remaining is None else done + remaining
    with part.open("ab") as file:
        file.truncate(done)
        progress(done, total)
        # Below requests' own decoding, which would unpack the archive where a server calls gzip an encoding.
        while chunk := response.raw.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress(done, total)
    if total is not None and done < total:
        raise ConnectionError("the connection broke off")
