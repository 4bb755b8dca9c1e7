"""The controller's small durable record: what a new life must know before it does anything.

Invariants: it is saved before whatever it tells of is done, so a life that dies has done nothing that its successor
does not know of; a file appears whole or not at all (written aside, fsync'd, renamed, folder fsync'd), sealed by its
own checksum.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import xxhash

from penstock.errors import BadArgument, ControllerError

__all__ = ["ControllerRecord", "OpenPrompt", "RecordFile"]

FORMAT = 1
_SEAL = re.compile(rb',"xxh3":"([0-9a-f]{16})"\}\s*\Z')


class OpenPrompt(msgspec.Struct, frozen=True, array_like=True):
    """A prompt that is under way: its number, its latest attempt, and how often it has failed."""

    index: int
    attempt: int
    failures: int = 0


class ControllerRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a run stands.

    Invariant: ``cursor`` = ``trained`` + the sum of ``dropped`` + the number of ``open`` prompts.

    Attributes:
        run: its name.
        life: how often a controller of this run has started.
        step: the last step that is settled: recorded by the trainer, its rows popped.
        cursor: the number of the next new prompt.
        trained, rows: prompts and rows that were trained.
        dropped: prompts given up, by reason.
        open: all others, by number.
    """

    run: str
    life: int = 0
    step: int = 0
    cursor: int = 0
    trained: int = 0
    rows: int = 0
    dropped: dict[str, int] = {}
    open: tuple[OpenPrompt, ...] = ()
    format: int = FORMAT


class _Format(msgspec.Struct):
    """What is read first: a later format may have fields that this release does not know."""

    format: int


class RecordFile:
    """``controller.json`` in the run's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "controller.json"

    def load(self, run: str) -> ControllerRecord | None:
        """Return the record of the life before; None = this is the first.

        Raises:
            ControllerError: the file cannot be read or is damaged.
            BadArgument: it is the record of another run.
        """
        try:
            text = self.path.read_bytes()
            written = msgspec.json.decode(text, type=_Format).format
            if written != FORMAT:
                raise ControllerError(f"{self.path} is of format {written}; this release reads {FORMAT}")
            found = msgspec.json.decode(self._unsealed(text), type=ControllerRecord)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as bad:
            raise ControllerError(f"cannot read the run's record {self.path}: {bad}") from bad
        if trouble := _contradiction(found):
            raise ControllerError(f"the run's record {self.path} is damaged: {trouble}")
        if found.run != run:
            raise BadArgument(f"{self.path} belongs to the run {found.run!r}, not {run!r}: name another folder")
        return found

    def _unsealed(self, text: bytes) -> bytes:
        """Return ``text`` without its seal, which must be that of the rest: one digit more, and prompts go twice."""
        seal = _SEAL.search(text)
        if seal is not None:
            body = text[: seal.start()] + b"}"
            if xxhash.xxh3_64_hexdigest(body).encode() == seal[1]:
                return body
        raise ControllerError(
            f"the run's record {self.path} is damaged: what it says does not match its checksum; put the latest good "
            "copy back, or start a new run with another name (run=...) and folder"
        )

    def save(self, record: ControllerRecord) -> None:
        """Make ``record`` the one that is found; on return it is durable.

        Raises:
            ControllerError: it could not be written.
        """
        aside = self.path.with_suffix(".tmp")
        try:
            with aside.open("wb") as file:
                file.write(_sealed(msgspec.json.encode(record)))
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self.path)
            _sync_folder(self.path.parent)
        except OSError as bad:
            raise ControllerError(f"cannot save the run's record {self.path}: {bad}; nothing was done since") from bad


def _sealed(body: bytes) -> bytes:
    """Return a JSON object with its own checksum as the last member."""
    return b'%s,"xxh3":"%s"}' % (body[:-1], xxhash.xxh3_64_hexdigest(body).encode())


def _contradiction(record: ControllerRecord) -> str:
    """Return what in ``record`` cannot be; nothing if it may be what was saved."""
    numbers = [one.index for one in record.open]
    closed = record.trained + sum(record.dropped.values())
    if record.cursor != closed + len(numbers):
        return f"{record.cursor} prompts were begun, {closed} are over and {len(numbers)} under way"
    if len(set(numbers)) < len(numbers) or not all(0 <= number < record.cursor for number in numbers):
        return f"of {record.cursor} prompts, the numbers {numbers} are under way"
    if record.step < 0:
        return f"it stands at step {record.step}"
    return ""


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
