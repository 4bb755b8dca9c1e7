"""Who a host is, from one life of its agent to the next: a file in the agent's directory.

Invariants: the id is random, made once and kept; the life number grows with each start, also when the clock does not;
of which plane the blocks are that lie in the directory is written down before the first of them lies there.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import msgspec

from penstock.errors import DataPlaneUnavailable
from penstock.wire import paths

__all__ = ["Home", "HostIdentity", "begin_life"]

_ID_BITS = 62


class HostIdentity(msgspec.Struct, frozen=True):
    """``host_id``: 62 random bits, never 0; ``life``: of the agent that wrote this; ``plane``: see ``Enlisted``."""

    host_id: int
    life: int
    plane: int = 0


def begin_life(data_dir: Path, plane: str, clock_ns: int | None = None) -> HostIdentity:
    """Return who the host of this directory is in the life that begins, and write it down. ``plane`` is for messages.

    Raises:
        DataPlaneUnavailable: the file is damaged: a new id would make the rows that lie here nobody's.
        OSError: it cannot be read or written.
    """
    path = paths.host_file(data_dir)
    now = time.time_ns() if clock_ns is None else clock_ns
    try:
        before = msgspec.json.decode(path.read_bytes(), type=HostIdentity)
    except FileNotFoundError:
        before = HostIdentity(secrets.randbits(_ID_BITS) | 1, 0)
    except msgspec.MsgspecError as damaged:
        raise DataPlaneUnavailable(
            f"{path} is damaged ({damaged}): without it nobody knows which host of {plane} this was; "
            f"remove it to begin as a new one, and lose the rows that lie here alone"
        ) from damaged
    mine = msgspec.structs.replace(before, life=max(before.life + 1, now))
    _write(path, mine)
    return mine


class Home:
    """Of which plane the blocks are that lie in an agent's directory. Args: identity: of the life that has begun."""

    def __init__(self, data_dir: Path, identity: HostIdentity) -> None:
        self._path = paths.host_file(data_dir)
        self.identity = identity

    @property
    def plane(self) -> int:
        """That plane, as ``Enlisted.plane`` names it; 0 = none that would remember them."""
        return self.identity.plane

    def is_of(self, plane: int) -> None:
        """From now on they are this plane's: write it down. Raises ``OSError``."""
        if plane != self.identity.plane:
            mine = msgspec.structs.replace(self.identity, plane=plane)
            _write(self._path, mine)
            self.identity = mine


def _write(path: Path, identity: HostIdentity) -> None:
    """Replace the file whole, also if the machine loses its power meanwhile: an empty one would be nobody's."""
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(msgspec.json.encode(identity))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
