"""Who a host is, from one life of its agent to the next: a file in the agent's directory.

Invariants: the id is random, made once and kept; the life number grows with each start, also when the clock does not.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import msgspec

from penstock.errors import DataPlaneUnavailable
from penstock.wire import paths

__all__ = ["HostIdentity", "begin_life"]

_ID_BITS = 62


class HostIdentity(msgspec.Struct, frozen=True):
    """``host_id``: 62 random bits, never 0; ``life``: of the agent that wrote this."""

    host_id: int
    life: int


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
    mine = HostIdentity(before.host_id, max(before.life + 1, now))
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(mine))
    fresh.replace(path)
    return mine
