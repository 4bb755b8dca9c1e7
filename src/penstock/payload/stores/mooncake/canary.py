"""Whether the store has forgotten everything: a few values that are there for as long as anything is.

A master that is restarted forgets every key, and says "not found" to each one as if it had never been. So clients share
canaries: values that all hold the name of the store's **life**. As long as one of them is there, a missing key is a
missing key; when all are gone, or name another life, everything is.

Invariants: there are ``CANARIES`` of them, spread over the segments, so that an owner's death is not taken for the
store's; whoever comes first names the life (a put never writes over a value that is there); no answer is no verdict; a
life's end is told once to each client.
"""

from __future__ import annotations

import enum
import secrets
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from penstock.payload.stores.envelope import HEADER_BYTES, copy_out, pack_into
from penstock.payload.stores.mooncake.codes import LATE, MISSING
from penstock.payload.stores.mooncake.link import Link
from penstock.payload.stores.mooncake.pool import Lease
from penstock.payload.stores.mooncake.segments import Segments
from penstock.retry import Deadline

__all__ = ["CANARIES", "Canary", "Verdict"]

CANARIES = 8
_NAME_BYTES = 16
_NBYTES = HEADER_BYTES + _NAME_BYTES


class Verdict(enum.Enum):
    ALIVE = "alive"  # the life that was known goes on, or none was known before
    LOST = "lost"  # it has ended
    UNKNOWN = "unknown"  # the store does not say


class Canary:
    """One client's view. Fit for use from several threads."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._lock = threading.Lock()
        self._names = [f"penstock\x1fcanary\x1f{number}" for number in range(CANARIES)]
        self.life = ""  # that goes on, as far as is known; "" = none has been seen yet, or since the last one ended
        self.ended = 0  # lives that were seen to end

    def look(self, link: Link, deadline: Deadline) -> Verdict:
        """Ask the store; plant what is missing."""
        if not self._lock.acquire(timeout=deadline.remaining()):
            return Verdict.UNKNOWN
        try:
            return self._look(link, deadline)
        finally:
            self._lock.release()

    def _look(self, link: Link, deadline: Deadline) -> Verdict:
        seen, sure = self._read(link, self._names, deadline)
        lives = {life for life in seen if life}
        if self.life in lives:
            self._plant_missing(link, seen, self.life, deadline)
            return Verdict.ALIVE
        if not lives and not sure:
            return Verdict.UNKNOWN
        known, self.life = self.life, ""  # it has ended, even while there is no room yet for what names the next one
        self.ended += bool(known)
        life = min(lives) if lives else self._plant_first(link, deadline)
        if life:
            self._plant_missing(link, seen, life, deadline)
            self.life = life
        if known:
            return Verdict.LOST
        return Verdict.ALIVE if life else Verdict.UNKNOWN

    def _plant_first(self, link: Link, deadline: Deadline) -> str:
        """Name a new life, unless somebody else was first; return its name, "" if it could not be planted."""
        self._segments.refresh(deadline)
        self._put(link, [0], secrets.token_hex(_NAME_BYTES // 2), deadline)
        return self._read(link, self._names[:1], deadline)[0][0]

    def _plant_missing(self, link: Link, seen: Sequence[str], life: str, deadline: Deadline) -> None:
        missing = [number for number, found in enumerate(seen) if not found]
        if missing:
            self._put(link, missing, life, deadline)

    def _put(self, link: Link, numbers: Sequence[int], life: str, deadline: Deadline) -> None:
        """Write canaries where there are none; one that cannot be written is written next time."""
        places = self._segments.order(self._segments.names) or [""]
        by_segment: dict[str, list[str]] = {}
        for number in numbers:
            by_segment.setdefault(places[number % len(places)], []).append(self._names[number])
        for segment, names in by_segment.items():
            leases = self._take(link, names, deadline)
            if leases is None:
                return
            for name, lease in zip(names, leases, strict=True):
                pack_into(lease.memory, name, [np.frombuffer(life.encode(), np.uint8)])
            config = link.write_config(segment)
            self._move(link, link.client.batch_put_from, names, leases, deadline, config)

    def _read(self, link: Link, names: Sequence[str], deadline: Deadline) -> tuple[list[str], bool]:
        """Return the lives that canaries name, "" for none; and whether the store said so of each one."""
        leases = self._take(link, names, deadline)
        if leases is None:
            return [""] * len(names), False
        lives: list[str] = []
        codes = self._move(link, link.client.batch_get_into, names, leases, deadline, lives=lives)
        return lives, all(code == MISSING for code, life in zip(codes, lives, strict=True) if not life)

    def _take(self, link: Link, names: Sequence[str], deadline: Deadline) -> list[Lease] | None:
        return link.pool.take([_NBYTES] * len(names), deadline)

    def _move(
        self,
        link: Link,
        function: Any,
        names: Sequence[str],
        leases: Sequence[Lease],
        deadline: Deadline,
        *config: Any,
        lives: list[str] | None = None,
    ) -> list[int]:
        addresses = [lease.address for lease in leases]
        job = link.calls.submit(function, list(names), addresses, [_NBYTES] * len(names), *config)
        codes = link.calls.codes(job, len(names), deadline.within(link.config.call_timeout_s))
        if codes[0] == LATE:
            link.taint("a canary did not come back in time")
        for name, code, lease in zip(names, codes, leases, strict=True):
            payload = copy_out(lease.memory, name) if code == _NBYTES else ""
            if lives is not None:
                lives.append("" if isinstance(payload, str) else bytes(payload).decode(errors="replace"))
            if code != LATE:  # few bytes, and what they hold is no secret of another key: held all the same
                link.pool.give([lease]) if code in (0, MISSING, _NBYTES) else link.pool.hold(name, lease)
        return codes

    def __repr__(self) -> str:
        return f"Canary(life {self.life or 'not known'}, {self.ended} ended)"
