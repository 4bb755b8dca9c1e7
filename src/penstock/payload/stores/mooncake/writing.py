"""One put, attempt by attempt: keys that are there are compared, copies are written, and doubtful ones read back.

The library's word for a put is not always good: a key that another call is still writing answers "done" and nothing is
written. So a put that was not plain, because an attempt before it failed, is believed when its bytes were read back.
The attempt before may have been that of another put, which was not acknowledged.

Invariants: a key that names other bytes is never written over; a key is done when every copy of it is; a copy that was
done is not written again; every attempt writes the same bytes, hard-pinned, one replica each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from penstock.payload.block import Bytes
from penstock.payload.stores.contract import EXISTS
from penstock.payload.stores.envelope import HEADER_BYTES, Header, as_pieces, pack_into, seal
from penstock.payload.stores.mooncake.calls import Job
from penstock.payload.stores.mooncake.codes import LATE, meaning_of
from penstock.payload.stores.mooncake.link import Link
from penstock.payload.stores.mooncake.pool import Lease
from penstock.payload.stores.mooncake.reading import Suspicion, copies_of, fetch, find, worst_of
from penstock.payload.stores.mooncake.segments import Segments
from penstock.payload.stores.mooncake.transfers import Part, new_run, transfer
from penstock.retry import Answer, Deadline, Kind

__all__ = ["Writing"]

TOGETHER = "together"  # the code of a put whose copies would die together
VANISHED = "vanished"  # the code of a put that was said to be done and cannot be read


def _remove_one(link: Link, name: str) -> int:
    return link.client.batch_remove([name], True)[0]


class Writing:
    """The attempts of one put.

    Args:
        pieces: by key, what is to be stored.
        doubted: keys of which an earlier put was not acknowledged: it may be at work still.
        paranoid: read back every value, not only the doubtful ones.
    """

    def __init__(
        self,
        segments: Segments,
        replicas: int,
        pieces: Mapping[str, Sequence[Bytes]],
        *,
        doubted: Collection[str] = (),
        paranoid: bool = False,
    ) -> None:
        self._segments = segments
        self._replicas = replicas
        self._pieces = pieces
        self._nbytes = {key: sum(len(piece) for piece in value) for key, value in pieces.items()}
        self._doubted = pieces.keys() if paranoid else doubted
        self._suspicion = Suspicion()
        self._run, self._reading_run = new_run(), new_run()
        self._attempts = 0
        self._asked: set[str] = set()  # keys whose names were seen to be free, or to be ours
        self._done: dict[str, set[str]] = {key: set() for key in pieces}
        self._segment_of: dict[str, str] = {}  # of stored names: where they were sent, or seen
        self._doubtful: set[str] = set()  # stored names that are read back
        self._headers: dict[str, Header] = {}
        self._moved: set[str] = set()  # keys of which a copy was taken away from the other, once

    def attempt(self, link: Link, keys: Sequence[str], deadline: Deadline) -> list[Answer[int]]:
        """Try ``keys`` once; the answers' values are the payloads' lengths."""
        self._attempts += 1
        heard: dict[str, list[Answer[Any]]] = {key: [] for key in keys}
        self._ask_first([key for key in keys if key not in self._asked], link, heard, deadline)
        self._write([key for key in keys if not heard[key]], link, heard, deadline)
        if self._replicas > 1:
            self._keep_apart([key for key in keys if not heard[key]], link, heard, deadline)
        self._read_back([key for key in keys if key in self._asked], link, heard, deadline)
        return [self._answer_of(key, heard[key]) for key in keys]

    def _answer_of(self, key: str, heard: Sequence[Answer[Any]]) -> Answer[int]:
        bad = [answer for answer in heard if answer.kind is not Kind.OK]
        return Answer(bad[0].kind, code=bad[0].code) if bad else Answer(Kind.OK, self._nbytes[key])

    # -- names that are taken -----------------------------------------------------------------------------------------

    def _ask_first(
        self, keys: Sequence[str], link: Link, heard: dict[str, list[Answer[Any]]], deadline: Deadline
    ) -> None:
        """See whether the names are free; those that are not must name the same bytes."""
        names = [name for key in keys for name in copies_of(key, self._replicas)]
        if not names:
            return
        job = link.calls.submit(link.client.batch_is_exist, names)
        codes = link.calls.codes(job, len(names), deadline.within(link.config.call_timeout_s))
        if codes[0] == LATE:
            link.left_waiting()
        of = dict(zip(names, codes, strict=True))
        for key in keys:
            mine = copies_of(key, self._replicas)
            heard[key] += [self._suspicion.answer(key, of[name]) for name in mine if of[name] not in (0, 1)]
            if not heard[key]:
                self._asked.add(key)
        taken = [name for key in keys if key in self._asked for name in copies_of(key, self._replicas) if of[name]]
        if taken:
            self._compare(taken, link, heard, deadline)

    def _compare(
        self, taken: Sequence[str], link: Link, heard: dict[str, list[Answer[Any]]], deadline: Deadline
    ) -> None:
        """Names that are there count as written if they hold these very bytes."""
        for name, (key, answer) in self._read(taken, link, deadline).items():
            if answer.kind is Kind.OK:
                self._done[key].add(name)
            elif answer.kind is not Kind.MISSING:  # removed since: then it is free
                other = answer.code == EXISTS  # whole, and not these bytes; what came damaged is read once more
                heard[key].append(Answer(Kind.FATAL, code=EXISTS) if other else answer)
                self._asked.discard(key)

    # -- writing ------------------------------------------------------------------------------------------------------

    def _write(self, keys: Sequence[str], link: Link, heard: dict[str, list[Answer[Any]]], deadline: Deadline) -> None:
        self._segments.refresh(deadline)
        parts = [part for key in keys for part in self._parts_of(key)]
        clock = deadline.clock
        begun: dict[str, float] = {}

        def submit(segment: str, names: list[str], addresses: list[int], sizes: list[int]) -> Job[list[int]]:
            begun.update(dict.fromkeys(names, clock()))
            return link.calls.submit(link.client.batch_upsert_from, names, addresses, sizes, link.write_config(segment))

        def fill(part: Part, lease: Lease) -> None:
            self._headers[part.key] = pack_into(lease.memory, part.key, self._pieces[part.key])

        def settle(part: Part, code: int, _lease: Lease | None) -> None:
            if code == 0:
                self._segments.lived(part.segment)
                self._done[part.key].add(part.name)
                self._segment_of[part.name] = part.segment
                if self._attempts > 1 or part.key in self._doubted:
                    self._doubtful.add(part.name)
                return
            answer = self._suspicion.answer(part.key, code)
            if answer.kind is Kind.MISSING:  # the master has forgotten the key since the write began: it was restarted
                answer = Answer(Kind.RETRYABLE, code=VANISHED)
            heard[part.key].append(answer)
            if code > 0 or not meaning_of(code).settled:
                self._segments.failed(part.segment)
                if clock() - begun[part.name] >= link.config.slow_put_s:
                    link.taint(f"a put failed after {clock() - begun[part.name]:.1f} s and may still be at work")

        transfer(link, parts, self._run, deadline, submit, settle, fill)

    def _parts_of(self, key: str) -> list[Part]:
        """The copies of ``key`` that are to be written, each to its segment; no two to one where that can be."""
        names = [name for name in copies_of(key, self._replicas) if name not in self._done[key]]
        taken = {self._segment_of[name] for name in self._done[key] if name in self._segment_of}
        places = self._segments.spread(key, len(names), self._attempts - 1, taken)
        nbytes = self._nbytes[key] + HEADER_BYTES
        return [Part(key, name, place, nbytes) for name, place in zip(names, places, strict=True)]

    def _keep_apart(
        self, keys: Sequence[str], link: Link, heard: dict[str, list[Answer[Any]]], deadline: Deadline
    ) -> None:
        """See where copies lie: the library places them elsewhere in silence, as where the segment named is full.

        Of two copies in one segment the last is removed and written again, once, if there is another segment.
        """
        if not keys:
            return
        found = find(link, [name for key in keys for name in self._done[key]], 1, self._segments, deadline)
        at = {part.name: part.segment for parts in found.parts.values() for part in parts}
        self._segment_of.update(at)
        for key in keys:
            names = [name for name in copies_of(key, self._replicas) if name in at]
            together = len(names) > 1 and len({at[name] for name in names}) == 1
            if not together or key in self._moved or not set(self._segments.names) - {at[names[0]]}:
                continue
            self._moved.add(key)
            link.calls.one(_remove_one, link, names[-1], deadline=deadline.within(link.config.call_timeout_s))
            self._done[key].discard(names[-1])
            heard[key].append(Answer(Kind.RETRYABLE, code=TOGETHER))

    # -- reading back -------------------------------------------------------------------------------------------------

    def _read_back(
        self, keys: Sequence[str], link: Link, heard: dict[str, list[Answer[Any]]], deadline: Deadline
    ) -> None:
        """Believe doubtful copies when their bytes come back."""
        doubtful = [name for key in keys for name in sorted(self._done[key] & self._doubtful)]
        if not doubtful:
            return
        for name, (key, answer) in self._read(doubtful, link, deadline).items():
            if answer.kind is Kind.OK:
                self._doubtful.discard(name)
                continue
            if answer.kind in (Kind.MISSING, Kind.CORRUPT):
                self._done[key].discard(name)
                answer = answer if answer.kind is Kind.CORRUPT else Answer(Kind.RETRYABLE, code=VANISHED)
            heard[key].append(answer)

    def _read(self, names: Sequence[str], link: Link, deadline: Deadline) -> dict[str, tuple[str, Answer[Any]]]:
        """Read stored names; by name, its key and an answer: OK when the bytes are those of this put."""
        of = {name: key for key in self._pieces for name in copies_of(key, self._replicas)}
        found = find(link, names, 1, self._segments, deadline)
        parts = [
            Part(of[name], name, part.segment, part.nbytes) for name in names for part in found.parts.get(name, ())
        ]
        self._segment_of.update((part.name, part.segment) for part in parts)
        read = fetch(link, parts, self._reading_run, self._segments, self._suspicion, deadline)
        answers: dict[str, tuple[str, Answer[Any]]] = {}
        for name in names:
            key = of[name]
            answer = read.get(name) or worst_of(self._suspicion.answer(key, code) for code in found.codes[name])
            if answer.value is not None and not self._is_ours(key, answer.value):
                answer = Answer(Kind.CORRUPT, code=EXISTS)
            answers[name] = key, answer
        return answers

    def _is_ours(self, key: str, payload: memoryview) -> bool:
        if key not in self._headers:
            self._headers[key] = seal(key, self._pieces[key])
        header = self._headers[key]
        return len(payload) == header.nbytes and seal(key, as_pieces(payload)) == header
