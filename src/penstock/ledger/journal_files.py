"""Where a journal's segments lie: the few file operations it needs, and the directory that provides them.

Invariants: a completed operation survives kill -9 of this process (the kernel has it); nothing here buffers; a write is
complete or raises ``OSError``. ``testing`` has a memory twin that crashes between any two operations.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

__all__ = ["DirectoryFiles", "SegmentFiles", "segment_name", "segment_number"]

_PREFIX, _SUFFIX = "segment-", ".journal"
_DIGITS = 10


def segment_name(number: int) -> str:
    """Return the file name of segment ``number``; names sort as numbers do."""
    return f"{_PREFIX}{number:0{_DIGITS}d}{_SUFFIX}"


def segment_number(name: str) -> int | None:
    """Return the number of the segment with this file name, None for any other file."""
    digits = name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    return int(digits) if digits.isascii() and digits.isdigit() and name == segment_name(int(digits)) else None


class SegmentFiles(Protocol):
    """Files of one journal, by name. Every method may raise ``OSError``."""

    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def create(self, name: str, data: bytes) -> None: ...
    def append(self, name: str, data: bytes | bytearray) -> None: ...
    def truncate(self, name: str, size: int) -> None: ...
    def rename(self, name: str, new_name: str) -> None: ...
    def unlink(self, name: str) -> None: ...
    def close(self) -> None: ...
    def where(self, name: str) -> str: ...


class DirectoryFiles:
    """A directory, made if need be (mode 0700). Keeps the file that is appended to open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = ""
        self._fd = -1
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self._path.iterdir())

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def create(self, name: str, data: bytes) -> None:
        """Make a new file that begins with ``data``. An existing file of that name is an error."""
        self._use(name, os.O_CREAT | os.O_EXCL)
        self._write(data)

    def append(self, name: str, data: bytes | bytearray) -> None:
        """Write all of ``data`` behind the file's end."""
        if name != self._name:
            self._use(name, 0)
        self._write(data)

    def truncate(self, name: str, size: int) -> None:
        os.truncate(self._path / name, size)

    def rename(self, name: str, new_name: str) -> None:
        self.close()
        (self._path / name).rename(self._path / new_name)

    def unlink(self, name: str) -> None:
        if name == self._name:  # else a later append would go to the file that has no name any more
            self.close()
        (self._path / name).unlink(missing_ok=True)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd, self._name = self._fd, -1, ""
            os.close(fd)

    def where(self, name: str) -> str:
        return str(self._path / name)

    def _use(self, name: str, flags: int) -> None:
        self.close()
        self._fd = os.open(self._path / name, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | flags, 0o600)
        self._name = name

    def _write(self, data: bytes | bytearray) -> None:
        written = os.write(self._fd, data)
        if written == len(data):
            return
        rest = memoryview(data)[written:]
        while rest:  # a signal, or a disk that is nearly full, makes a write short
            rest = rest[os.write(self._fd, rest) :]
