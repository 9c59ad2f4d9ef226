"""Where data files lie, and downloading a single file."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from lipschitz.errors import InputError
from utils import atomic_write_bytes

# Longest silence of a server during a download. A choice.
_TIMEOUT_SECONDS = 30


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Folder of the data files: `root`, else $LIPSCHITZ_DATA, else a folder of this tool.

    That is `data/cache` in a checkout; `lipschitz` in the user's cache folder where the tool is
    installed, among whose files downloads have no place.
    """
    chosen = root or os.environ.get("LIPSCHITZ_DATA")
    if chosen:
        return Path(chosen)
    home = Path(__file__).resolve().parent
    if home.parent.name != "_commands":
        return home / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lipschitz"


def may_download() -> bool:
    """False if $LIPSCHITZ_OFFLINE is set (to anything but 0): then nothing is downloaded."""
    return os.environ.get("LIPSCHITZ_OFFLINE", "0") in ("", "0")


def announce_download(what: str, folder: Path) -> None:
    """Tells on stderr that a download begins."""
    print(f"downloading {what} to {folder}", file=sys.stderr)


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Lets connections that stay silent fail after half a minute; by default they never do."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def missing(what: str, files: str, folder: Path, reason: str = "") -> InputError:
    """The error for data that is neither there nor downloadable, with what to put where."""
    because = f" ({reason})" if reason else ""
    return InputError(f"{what} not found or damaged{because}; download {files} into {folder}")


def fetch_file(url: str, path: Path, what: str) -> None:
    """Downloads `url` to `path` unless the file is there already.

    Raises:
        InputError: The file is missing and cannot be downloaded.
    """
    if path.is_file():
        return
    if not may_download():
        raise missing(what, url, path.parent, "LIPSCHITZ_OFFLINE is set")
    announce_download(what, path.parent)
    try:
        with time_limit(), urllib.request.urlopen(url) as response:
            content = response.read()
    except OSError as error:  # URLError and time-outs are OSErrors
        raise missing(what, url, path.parent, f"download failed: {error}") from error
    atomic_write_bytes(path, content)
