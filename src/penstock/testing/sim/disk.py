"""A memory twin of the journal's directory: loses power where it is told to, runs full, tears writes.

Invariants: between faults it behaves as ``DirectoryFiles``; after ``Crashed`` every operation is refused until
``restart()``; each operation is one step, and ``steps`` counts them, so that crash points can be enumerated.
"""

from __future__ import annotations

import errno

__all__ = ["Crashed", "MemoryFiles"]


class Crashed(BaseException):  # not an Exception: nothing may swallow the end of a process
    """The process that used these files died in the middle of an operation."""


class MemoryFiles:
    """Files by name.

    Args:
        crash_at: die in the step of this number (counted from 1); None = never.
        torn: how many bytes of the data of that step still reach the file; -1 = all of them.
        max_bytes: the disk is full beyond this sum; a write is cut short there, as a real one is.
    """

    def __init__(self, *, crash_at: int | None = None, torn: int = 0, max_bytes: int | None = None) -> None:
        self.contents: dict[str, bytearray] = {}
        self.crash_at = crash_at
        self.torn = torn
        self.max_bytes = max_bytes
        self.steps = 0
        self.crashes = 0
        self._dead = False

    def restart(self) -> None:
        """A new process finds what the old one left."""
        self._dead = False
        self.crash_at = None

    def copy(self) -> MemoryFiles:
        """Return an undisturbed copy of the contents."""
        twin = MemoryFiles()
        twin.contents = {name: bytearray(data) for name, data in self.contents.items()}
        return twin

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.contents.values()))

    def names(self) -> list[str]:
        self._alive()
        return sorted(self.contents)

    def read(self, name: str) -> bytes:
        self._alive()
        return bytes(self._file(name))

    def create(self, name: str, data: bytes) -> None:
        if name in self.contents:
            raise FileExistsError(errno.EEXIST, "file exists", name)
        crashes = self._step()
        self.contents[name] = bytearray()
        self._write(name, data, crashes)

    def append(self, name: str, data: bytes | bytearray) -> None:
        self._file(name)
        self._write(name, data, self._step())

    def truncate(self, name: str, size: int) -> None:
        crashes = self._step()
        if not crashes or self.torn:
            del self._file(name)[size:]
        self._die_if(crashes)

    def rename(self, name: str, new_name: str) -> None:
        crashes = self._step()
        if not crashes or self.torn:
            self.contents[new_name] = self.contents.pop(name)
        self._die_if(crashes)

    def unlink(self, name: str) -> None:
        crashes = self._step()
        if not crashes or self.torn:
            self.contents.pop(name, None)
        self._die_if(crashes)

    def close(self) -> None: ...

    def where(self, name: str) -> str:
        return f"memory/{name}"

    def _file(self, name: str) -> bytearray:
        if name not in self.contents:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return self.contents[name]

    def _write(self, name: str, data: bytes | bytearray, crashes: bool) -> None:
        if crashes:
            self.contents[name] += data if self.torn < 0 else data[: self.torn]
            self._die_if(crashes)
        free = len(data) if self.max_bytes is None else self.max_bytes - self.size_bytes
        self.contents[name] += data[: max(0, free)]
        if free < len(data):
            raise OSError(errno.ENOSPC, "no space left on device", name)

    def _alive(self) -> None:
        if self._dead:
            raise Crashed("this process is dead")

    def _step(self) -> bool:
        self._alive()
        self.steps += 1
        return self.steps == self.crash_at

    def _die_if(self, crashes: bool) -> None:
        if crashes:
            self._dead = True
            self.crashes += 1
            raise Crashed(f"crashed in step {self.steps}")
