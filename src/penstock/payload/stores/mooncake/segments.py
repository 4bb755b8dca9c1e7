"""The segments of a store: which there are, which failed lately, and where copies of a key go.

A segment is the memory of one owner. Mooncake places a value in any of them, a dead owner's included until it is
believed dead; so a client that saw a segment fail writes elsewhere, and reads the other copy first.

Invariants: two copies of a key are sent to different segments wherever two are known; a failed segment is avoided for
30 s and never starved; the master is asked at most once in 5 s and once after each failure, within the deadline.
"""

from __future__ import annotations

import http.client
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

import xxhash

from penstock.payload.stores.mooncake.config import address_of
from penstock.retry import Clock, Deadline
from penstock.retry.quarantine import Quarantine

__all__ = ["Ask", "Segments", "asking"]

log = logging.getLogger(__name__)

Ask: TypeAlias = Callable[[float], Sequence[str] | None]
"""``ask(timeout_s)`` returns the segments by name, None if there was no answer."""

_AVOIDED_S = 30.0
_FRESH_S = 5.0
_ASKING_S = 2.0
_MAX_ANSWER = 1 << 20


def asking(metrics: str) -> Ask:
    """Return what asks the master at its metrics address."""
    host, port = address_of(metrics, "metrics")

    def ask(timeout_s: float) -> Sequence[str] | None:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        try:
            connection.request("GET", "/get_all_segments")
            answer = connection.getresponse()
            text = answer.read(_MAX_ANSWER).decode(errors="replace")
            return text.split() if answer.status == http.HTTPStatus.OK else None
        except (OSError, http.client.HTTPException) as error:
            log.debug("the master's metrics address %s does not answer: %s", metrics, error)
            return None
        finally:
            connection.close()

    return ask


class Segments:
    """Fit for use from several threads."""

    def __init__(self, names: Iterable[str], ask: Ask | None, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._names = sorted(set(names))
        self._quarantine = Quarantine(_AVOIDED_S)
        self._asked_at: float | None = None

    @property
    def names(self) -> list[str]:
        """Those that are known, sorted."""
        return self._names

    def refresh(self, deadline: Deadline) -> None:
        """Ask the master, if the last answer is older than 5 s; no answer changes nothing."""
        if self._ask is None or deadline.expired():
            return
        with self._lock:
            now = self._clock()
            if self._asked_at is not None and now < self._asked_at + _FRESH_S:
                return
            self._asked_at = now
        names = self._ask(min(_ASKING_S, deadline.remaining()))
        if names is not None:
            self._names = sorted(set(names))

    def learn(self, name: str) -> None:
        """Note a segment that was seen, where nobody can be asked."""
        if self._ask is None and name and name not in self._names:
            with self._lock:
                self._names = sorted({*self._names, name})

    def failed(self, name: str) -> None:
        """A transfer to or from it failed: avoid it for a while, and ask again which there are."""
        if name:
            with self._lock:
                self._quarantine.failed(name, self._clock())
                self._asked_at = None

    def lived(self, name: str) -> None:
        """A transfer succeeded."""
        if name:
            with self._lock:
                self._quarantine.lift(name)

    def order(self, names: Sequence[str]) -> list[str]:
        """Return ``names``, those that failed lately last."""
        with self._lock:
            first = self._quarantine.eligible(names, self._clock())
        return [*first, *(name for name in names if name not in first)]

    def spread(self, key: str, copies: int, shift: int, avoid: Collection[str] = ()) -> list[str]:
        """Return a segment for each of ``copies`` of ``key``, all different where there are so many; "" = any.

        ``shift``: attempts made so far, each of which looks elsewhere. ``avoid``: segments that have a copy already;
        one that failed lately is better than these, for two copies in one segment die together.
        """
        names = [name for name in self._names if name not in avoid] or self._names
        if not names:
            return [""] * copies
        with self._lock:
            free = sorted(self._quarantine.eligible(names, self._clock()))
        others = [name for name in names if name not in free]
        ring = [*free, *others] if len(free) < copies else free
        start = xxhash.xxh3_64_intdigest(key.encode()) + shift if len(free) >= copies else 0
        return [ring[(start + copy) % len(ring)] for copy in range(copies)]

    def __repr__(self) -> str:
        return f"Segments({len(self._names)} known, {self._quarantine!r})"
