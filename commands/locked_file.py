"""A file of lines that one process at a time appends to, and that stays whole whatever happens.

A process that is killed, a full disk, two runs on one file: none of them costs a line that was
there, and what was cut off is moved aside, so that other programs can read the file.
"""

from __future__ import annotations

import contextlib
import os
import platform
import stat
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from lipschitz.errors import InputError
from utils import atomic_write_bytes

try:
    import fcntl
except ImportError:  # not a Unix: two runs on one file are then the user's care
    fcntl = None

# Attempts to read the holder's name, 10 ms apart: it is written just after the lock is taken. A
# choice: after the last one the message goes without the name.
_TRIES = 20


class Tidied(NamedTuple):
    """A file's content as it should be.

    Attributes:
        content: Whole lines only, each answer once.
        broken: Lines that a crash has cut off, or that are damaged.
    """

    content: bytes
    broken: list[bytes]


class LockedFile:
    """The file of lines of one run, used as a context manager.

    On entry it is locked against other runs and tidied, on exit tidied again if a line has
    replaced an earlier one. A pipe or a device is only written to.

    Args:
        option: The option that names the file, for messages.
        path: The file; it and its folders are made if missing.
    """

    def __init__(self, option: str, path: str | os.PathLike[str]) -> None:
        self.option, self.path = option, Path(path)
        self._file: int | None = None
        self._lock: int | None = None
        self._is_stream = False
        self._is_untidy = False

    def tidy(self, content: bytes) -> Tidied:
        """What the content should be; a subclass knows its lines.

        Raises:
            InputError: The file holds something else and must be left alone.
        """
        raise NotImplementedError

    def __enter__(self):
        """Lock, tidy and open.

        Raises:
            InputError: Another run has the file, it is a folder or holds something else.
            OSError: It cannot be read or written.
        """
        path = self.path
        if path.is_dir():
            raise InputError(f"{self.option} {path} is a folder: name a file in it")
        self._is_stream = path.exists() and not path.is_file()
        if self._is_stream:
            self._file = _open_stream(path)
            return self
        self.path = path = path.resolve()  # so that two links to one file are one lock
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path, f"{self.option} {path}")
        try:
            self._make_tidy()
            self._file = _open_to_append(path)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tidy if a line has replaced another, unlock."""
        try:
            if self._is_untidy and not self._is_stream:
                self._make_tidy()
        except OSError as failure:  # for lack of space: readers prefer the later line
            print(f"warning: {self.path}: {failure.strerror}; replaced lines stay", file=sys.stderr)
        finally:
            self.close()

    def content(self) -> bytes:
        """What is in the file; nothing in a stream or where there is no file."""
        return b"" if self._is_stream or not self.path.exists() else self.path.read_bytes()

    def write_line(self, line: bytes, *, replaces: bool = False) -> None:
        """Append a whole line and force it to disk.

        Args:
            line: With its end.
            replaces: An earlier line is now out of date.

        Raises:
            OSError: It cannot be written; the file is as before.
        """
        if self._file is None:
            raise ValueError("the file is not open: use it in a with statement")
        if not self._is_stream and not _is_still_there(self._file, self.path):
            os.close(self._file)  # somebody has deleted or replaced the file meanwhile
            self._file = _open_to_append(self.path)
        try:
            append_whole(self._file, line, self.path)
        except OSError as error:
            goes_on = (
                "" if self._is_stream else "; what was there is kept, the same command goes on"
            )
            raise OSError(error.errno, f"{error.strerror}{goes_on}", str(self.path)) from None
        self._is_untidy |= replaces

    def _make_tidy(self) -> None:
        content = self.content()
        tidied = self.tidy(content)
        if tidied.broken:
            aside = self.path.with_name(f"{self.path.name}.broken")
            append_line(aside, b"\n".join(tidied.broken) + b"\n")
            count = len(tidied.broken)
            print(
                f"{self.path}: {count} broken line{'s' * (count > 1)} moved to {aside}",
                file=sys.stderr,
            )
        if tidied.content != content:
            mode = stat.S_IMODE(self.path.stat().st_mode)
            atomic_write_bytes(self.path, tidied.content)
            self.path.chmod(mode)
        self._is_untidy = False

    def close(self) -> None:
        """Close and unlock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            if not self._is_stream and self.path.exists() and self.path.stat().st_size == 0:
                self.path.unlink()  # nothing came: leave no empty file behind
        if self._lock is not None:
            _lock_path(self.path).unlink(missing_ok=True)  # while it is held, see _lock
            os.close(self._lock)
            self._lock = None


def append_whole(file: int, line: bytes, path: Path) -> None:
    """Write a line and force it to disk, all of it or nothing.

    Args:
        file: Descriptor, open for appending.
        line: With its end.
        path: The file's name, for messages.

    Raises:
        OSError: It cannot be written; a regular file is as before.
    """
    before = os.fstat(file)
    is_regular = stat.S_ISREG(before.st_mode)
    left = memoryview(line)
    try:
        while left:
            left = left[os.write(file, left) :]
        if is_regular:
            os.fsync(file)
    except OSError as error:
        if is_regular:
            os.ftruncate(file, before.st_size)
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:  # Ctrl-C between two parts
        if left and is_regular:
            os.ftruncate(file, before.st_size)
        raise


def append_line(path: str | os.PathLike[str], line: bytes) -> None:
    """Open, append a whole line, close; for files that need no lock.

    A last line that a crash has cut off is closed first, so that it spoils only itself.

    Args:
        path: The file; it and its folders are made if missing.
        line: With its end.

    Raises:
        OSError: It cannot be written; the file is as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _open_to_append(path)
    try:
        facts = os.fstat(file)
        has_lines = stat.S_ISREG(facts.st_mode) and facts.st_size > 0
        if has_lines and os.pread(file, 1, facts.st_size - 1) != b"\n":
            line = b"\n" + line
        append_whole(file, line, path)
    finally:
        os.close(file)


def _open_to_append(path: Path) -> int:
    is_stream = path.exists() and not path.is_file()
    if is_stream:
        return _open_stream(path)
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)


def _open_stream(path: Path) -> int:
    """A pipe or a device, for writing; a pipe that nobody reads is refused, not waited for."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0))
    os.set_blocking(file, True)
    return file


def _is_still_there(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _lock(path: Path, named: str) -> int | None:
    """Take the lock of a file, a file beside it that names the holder.

    The system frees it when the process ends, in whatever way. The holder deletes the file before
    it lets go; whoever then locks the deleted one sees that it is no longer in its place.

    Args:
        path: The file to lock.
        named: What messages call it.

    Returns:
        The lock's descriptor; None where there are no locks, which is said.

    Raises:
        InputError: Another process holds it.
    """
    if fcntl is None:
        return None
    beside = _lock_path(path)
    while True:
        lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(lock)
            os.close(lock)
            raise InputError(
                f"{named}: {holder} writes there; wait for it, or name another file"
            ) from None
        except OSError as error:
            os.close(lock)
            print(f"warning: {path}: no lock, {error.strerror}", file=sys.stderr)
            return None
        if _is_still_there(lock, beside):
            break
        os.close(lock)
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(lock, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(lock, f"process {os.getpid()} on {platform.node()} (since {since})".encode(), 0)
    return lock


def _holder(lock: int) -> str:
    for _ in range(_TRIES):
        said = os.pread(lock, 200, 0).decode(errors="replace").strip()
        if said:
            return said
        time.sleep(0.01)
    return "another process"
