"""One get, attempt by attempt: where copies lie, which is read first, and whether what came is what was put.

An attempt asks each copy of a key at most once: a copy that fails, or came damaged, is followed by the other. A copy in
a segment that failed lately is asked last.

Invariants: only verified bytes are an answer; "missing" is said when the store said so of every copy; a length that the
caller expects spares the question where a value lies, but is not believed against the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.payload.stores.envelope import HEADER_BYTES, copy_out
from penstock.payload.stores.mooncake.codes import (
    LATE,
    MISALIGNED,
    NOT_READY,
    RAISED,
    TOO_SMALL,
    meaning_of,
    told,
)
from penstock.payload.stores.mooncake.link import Link
from penstock.payload.stores.mooncake.pool import Lease
from penstock.payload.stores.mooncake.segments import Segments
from penstock.payload.stores.mooncake.transfers import Part, new_run, transfer
from penstock.retry import Answer, Deadline, Kind

__all__ = ["Found", "Reading", "Suspicion", "copies_of", "fetch", "find", "worst_of"]

_COPY = "\x1f"  # no key has it: see ``contract.check_keys``
_RANK = [Kind.OK, Kind.RETRYABLE, Kind.BACKPRESSURE, Kind.CORRUPT, Kind.FATAL, Kind.MISSING]
"""The most hopeful first; missing comes last, for it is the answer on which a block is given up: all copies say it."""


def copies_of(key: str, replicas: int) -> list[str]:
    """Return what the copies of ``key`` are called in the store; the first is the key itself."""
    return [key, *(f"{key}{_COPY}{number}" for number in range(1, replicas))]


class Suspicion:
    """Codes that nobody has written down are tried once more, per key, and then believed."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()

    def answer(self, key: str, code: int) -> Answer[Any]:
        """Return what a code that is no success means for ``key``."""
        meaning = meaning_of(code)
        kind = meaning.kind
        if not meaning.known:
            kind = Kind.FATAL if (key, code) in self._seen else Kind.RETRYABLE
            self._seen.add((key, code))
        return Answer(kind, code=told(code))


def worst_of(answers: Iterable[Answer[Any]]) -> Answer[Any]:
    """Return the answer that speaks for all copies of a key: the one that leaves most hope."""
    return min(answers, key=lambda answer: _RANK.index(answer.kind))


@dataclass(slots=True)
class Found:
    """Where the copies of some keys lie: ``parts`` by key, and the code of each copy that cannot be read."""

    parts: dict[str, list[Part]] = field(default_factory=dict)
    codes: dict[str, list[int]] = field(default_factory=dict)


def find(link: Link, keys: Sequence[str], replicas: int, segments: Segments, deadline: Deadline) -> Found:
    """Ask where the copies of ``keys`` lie and how long they are."""
    names = [name for key in keys for name in copies_of(key, replicas)]
    limit = deadline.within(link.config.call_timeout_s)
    job = link.calls.submit(link.client.batch_get_replica_desc, names)
    if not job.wait(limit):
        link.left_waiting()
        return Found(codes={key: [LATE] * replicas for key in keys})
    if job.error is not None or not isinstance(job.value, dict):
        code = MISALIGNED if job.error is None else RAISED
        return Found(codes={key: [code] * replicas for key in keys})
    located = {name: place for name in names if (place := _place(job.value.get(name, ()))) is not None}
    for segment, _ in located.values():
        segments.learn(segment)
    absent = [name for name in names if name not in located]
    codes = dict(zip(absent, probe(link, absent, limit), strict=True)) if absent else {}
    found = Found()
    for key in keys:
        copies = copies_of(key, replicas)
        found.parts[key] = [Part(key, name, *located[name]) for name in copies if name in located]
        found.codes[key] = [codes[name] for name in copies if name in codes]
    return found


def probe(link: Link, names: Sequence[str], deadline: Deadline) -> list[int]:
    """Return why names were not located. Nothing is read: the buffer is smaller than any stored value."""
    count = len(names)
    job = link.calls.submit(link.client.batch_get_into, list(names), [link.probe_address] * count, [1] * count)
    codes = link.calls.codes(job, count, deadline)
    if count and codes[0] == LATE:
        link.left_waiting()
    return [NOT_READY if code == TOO_SMALL or code >= 0 else code for code in codes]  # it is there by now


def _place(replicas: Sequence[Any]) -> tuple[str, int] | None:
    """Return segment and length of the first replica that can be read from memory."""
    for replica in replicas:
        if replica.is_memory_replica() and replica.status.name == "COMPLETE":
            descriptor = replica.get_memory_descriptor().buffer_descriptor
            return str(descriptor.transport_endpoint), int(descriptor.size)
    return None


def fetch(
    link: Link, parts: Sequence[Part], run: int, segments: Segments, suspicion: Suspicion, deadline: Deadline
) -> dict[str, Answer[memoryview]]:
    """Read ``parts`` and verify them; return an answer by stored name."""
    answers: dict[str, Answer[memoryview]] = {}

    def settle(part: Part, code: int, lease: Lease | None) -> None:
        if code == part.nbytes and lease is not None:
            segments.lived(part.segment)
            payload = copy_out(lease.memory, part.key)
            answers[part.name] = _verified(payload)
        elif code >= 0:
            answers[part.name] = Answer(Kind.CORRUPT, code="length")
        else:
            if not meaning_of(code).settled:
                segments.failed(part.segment)
            answers[part.name] = suspicion.answer(part.key, code)

    transfer(
        link,
        parts,
        run,
        deadline,
        lambda _, names, addresses, sizes: link.calls.submit(link.client.batch_get_into, names, addresses, sizes),
        settle,
    )
    return answers


def _verified(payload: memoryview | str) -> Answer[memoryview]:
    return Answer(Kind.CORRUPT, code=payload) if isinstance(payload, str) else Answer(Kind.OK, payload)


class Reading:
    """The attempts of one get."""

    def __init__(self, segments: Segments, replicas: int, sizes: Mapping[str, int] | None) -> None:
        self._segments = segments
        self._replicas = replicas
        self._sizes = sizes if replicas == 1 else None
        self._suspicion = Suspicion()
        self._run = new_run()
        self.failovers = 0

    def attempt(self, link: Link, keys: Sequence[str], deadline: Deadline) -> list[Answer[memoryview]]:
        """Try ``keys`` once."""
        if self._sizes is not None:
            sizes, self._sizes = self._sizes, None  # what does not come so is asked for next time
            parts = [Part(key, key, "", sizes[key] + HEADER_BYTES) for key in keys]
            answers = fetch(link, parts, self._run, self._segments, self._suspicion, deadline)
            return [self._hinted(answers[key]) for key in keys]
        found = find(link, keys, self._replicas, self._segments, deadline)
        heard = {key: [self._suspicion.answer(key, code) for code in found.codes[key]] for key in keys}
        self._read_copies(link, found.parts, heard, deadline)
        return [worst_of(heard[key]) for key in keys]

    def _hinted(self, answer: Answer[memoryview]) -> Answer[memoryview]:
        """An expected length was wrong if the library says so: the value is looked for before it is judged."""
        wrong = answer.kind is Kind.FATAL and answer.code == told(TOO_SMALL)
        return Answer(Kind.RETRYABLE, code=answer.code) if wrong else answer

    def _read_copies(
        self,
        link: Link,
        parts: dict[str, list[Part]],
        heard: dict[str, list[Answer[memoryview]]],
        deadline: Deadline,
    ) -> None:
        """Read the first copy of every key, then the second of those that failed."""
        parts = {key: self._best_first(copies) for key, copies in parts.items()}
        for turn in range(self._replicas):
            wanted = [copies[turn] for copies in parts.values() if turn < len(copies)]
            if not wanted or (turn and deadline.expired()):
                return
            self.failovers += len(wanted) if turn else 0
            answers = fetch(link, wanted, self._run, self._segments, self._suspicion, deadline)
            for part in wanted:
                heard[part.key].append(answers[part.name])
                if answers[part.name].kind is Kind.OK:
                    del parts[part.key]

    def _best_first(self, copies: list[Part]) -> list[Part]:
        if len(copies) < 2:
            return copies
        order = self._segments.order([part.segment for part in copies])
        return sorted(copies, key=lambda part: order.index(part.segment))
