"""Mooncake Store as a block store: puts, gets, removals and questions, retried until their deadline.

Invariants: all retrying is ``penstock.retry``'s, and only what failed goes again; a failure is an outcome, never a
value; a store that was restarted is one ``DataPlaneUnavailable`` and one call of ``on_restarted``, not a thousand
misses; after ``close`` nothing is called any more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from penstock.errors import BadArgument, DataPlaneUnavailable, RefusedType
from penstock.payload.stores.contract import (
    Corrupt,
    Failed,
    Full,
    Missing,
    NotReady,
    Ok,
    Outcome,
    StoreStatistics,
    Value,
    check_keys,
)
from penstock.payload.stores.envelope import HEADER_BYTES, as_pieces
from penstock.payload.stores.mooncake.canary import Canary, Verdict
from penstock.payload.stores.mooncake.codes import LATE, MISSING, NO_LINK, NOT_READY, meaning_of, told
from penstock.payload.stores.mooncake.config import STORE, MooncakeConfig
from penstock.payload.stores.mooncake.library import Library, installed
from penstock.payload.stores.mooncake.link import Link, Links
from penstock.payload.stores.mooncake.reach import Always, Reach, Reaching
from penstock.payload.stores.mooncake.reading import Reading, Suspicion, copies_of, find, worst_of
from penstock.payload.stores.mooncake.segments import Ask, Segments, asking
from penstock.payload.stores.mooncake.writing import Writing
from penstock.retry import Answer, Clock, Deadline, Kind, Policy, Reason, Retrier, RetryResult, Settled

__all__ = ["MooncakeStore"]

log = logging.getLogger(__name__)

T = TypeVar("T")

Attempt: TypeAlias = Callable[[Link, Sequence[str], Deadline], Sequence[Answer[T]]]

_MAX_DOUBTED = 10_000  # keys; who retries a put does so soon

_FULL = {told(code) for code in range(-2000, 0) if meaning_of(code).kind is Kind.BACKPRESSURE}


class MooncakeStore:
    """A ``BlockStore`` on a Mooncake cluster. Opened when made.

    Args:
        library: the installed one, unless a twin is given.
        on_restarted: called with a sentence, in the thread of whoever noticed, once for each life that ended.
        ask: how segments are asked for, unless at ``config.metrics``.

    Raises:
        MissingExtra: the library is not installed.
        DataPlaneUnavailable: the store did not answer within ``config.open_timeout_s``.
    """

    def __init__(
        self,
        config: MooncakeConfig,
        *,
        library: Library | None = None,
        policy: Policy = STORE,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        on_restarted: Callable[[str], None] | None = None,
        ask: Ask | None = None,
    ) -> None:
        self.config = config
        self._clock = clock
        self._closing = threading.Event()
        self._retrier = Retrier(policy, clock=clock, sleep=self._sleeping(sleep))
        self._segments = Segments(config.segments, ask or (asking(config.metrics) if config.metrics else None), clock)
        self._canary = Canary(self._segments)
        self._on_restarted = on_restarted
        self._lock = threading.Lock()
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._bytes_written = self._bytes_read = self._failovers = 0
        self._doubted: dict[str, None] = {}  # keys whose last put was not acknowledged, the oldest first
        real = library or installed()
        reach: Reaching = Reach(config) if library is None else Always()
        self._links = Links(
            lambda: Link(real, config, clock, reach),
            config.open_timeout_s,
        )
        self._open()

    # -- the four calls -----------------------------------------------------------------------------------------------

    def put_many(self, keys: Sequence[str], values: Sequence[Value], deadline: Deadline) -> list[Outcome]:
        """See ``BlockStore``. Mooncake cannot compare and set.

        Two callers that put different bytes under one key at the same moment may both get ``Ok``: what is there is one
        of theirs, whole. A key that was removed must not be used again: a write that was given up may still land on it.
        """
        check_keys(keys, unique=True)
        if len(keys) != len(values):
            raise BadArgument(f"{len(keys)} keys and {len(values)} values")
        pieces = {key: _pieces(key, value) for key, value in zip(keys, values, strict=True)}
        paranoid = self.config.verify == "paranoid"
        with self._lock:
            doubted = self._doubted.keys() & pieces.keys()
        writing = Writing(self._segments, self.config.replicas, pieces, doubted=doubted, paranoid=paranoid)
        result = self._run("put", keys, writing.attempt, deadline)
        outcomes = [self._outcome(result, key, lambda nbytes: Ok(nbytes=nbytes)) for key in keys]
        self._doubt(keys, outcomes)
        self._count("put", outcomes)
        return outcomes

    def get_many(self, keys: Sequence[str], sizes: Sequence[int] | None, deadline: Deadline) -> list[Outcome]:
        """See ``BlockStore``."""
        check_keys(keys)
        if sizes is not None and len(sizes) != len(keys):
            raise BadArgument(f"{len(keys)} keys and {len(sizes)} sizes")
        expected = None if sizes is None else dict(zip(keys, sizes, strict=True))
        reading = Reading(self._segments, self.config.replicas, expected)
        result = self._run("get", keys, reading.attempt, deadline)
        outcomes = [self._outcome(result, key, lambda view: Ok(view, len(view))) for key in keys]
        if sizes is not None:
            outcomes = [_of_length(outcome, size) for outcome, size in zip(outcomes, sizes, strict=True)]
        with self._lock:
            self._failovers += reading.failovers
        self._count("get", outcomes)
        return outcomes

    def remove_many(self, keys: Sequence[str], deadline: Deadline) -> list[Outcome]:
        """See ``BlockStore``."""
        check_keys(keys)
        suspicion = Suspicion()

        def attempt(link: Link, wanted: Sequence[str], limit: Deadline) -> list[Answer[int]]:
            return self._remove(link, wanted, suspicion, limit)

        result = self._run("remove", keys, attempt, deadline)
        outcomes = [self._outcome(result, key, lambda _: Ok()) for key in keys]
        self._count("remove", outcomes)
        return outcomes

    def exists_many(self, keys: Sequence[str], deadline: Deadline) -> list[Outcome]:
        """See ``BlockStore``."""
        check_keys(keys)
        suspicion = Suspicion()

        def attempt(link: Link, wanted: Sequence[str], limit: Deadline) -> list[Answer[int]]:
            return self._lengths(link, wanted, suspicion, limit)

        result = self._run("exists", keys, attempt, deadline)
        outcomes = [self._outcome(result, key, lambda nbytes: Ok(nbytes=nbytes)) for key in keys]
        self._count("exists", outcomes)
        return outcomes

    # -- the store's life ---------------------------------------------------------------------------------------------

    def life(self, deadline: Deadline) -> str:
        """See ``BlockStore``."""
        if self._look(deadline) is Verdict.LOST:
            raise self._restarted()
        if not self._canary.life:
            raise DataPlaneUnavailable(f"the store at {self.config.master} does not answer: {self._links.trouble}")
        return self._canary.life

    def statistics(self) -> StoreStatistics:
        """See ``BlockStore``."""
        links = self._links.links()
        with self._lock:
            return StoreStatistics(
                outcomes=dict(self._outcomes),
                bytes_written=self._bytes_written,
                bytes_read=self._bytes_read,
                memory_bytes=sum(link.pool.memory_bytes for link in links),
                quarantined_bytes=sum(
                    link.pool.memory_bytes if link.tainted else link.pool.held_bytes for link in links
                ),
                clients_replaced=self._links.replaced,
                restarts=self._canary.ended,
                failovers=self._failovers,
                retries=self._retrier.statistics(),
            )

    def close(self, timeout_s: float = 5.0) -> None:
        """See ``BlockStore``."""
        self._closing.set()
        if not self._links.close(timeout_s):
            log.warning("the store at %s was closed while calls on it are stuck in the library", self.config.master)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MooncakeStore({self.config.master}, {self._links!r}, {self._canary!r}, {self._segments!r})"

    # -- how ----------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        deadline = Deadline(self.config.open_timeout_s, self._clock)
        try:
            result = self._retrier.run("open", [self.config.master], self._open_once, deadline=deadline)
        except BaseException:
            self.close()
            raise
        if result.failures:
            self.close()
            raise DataPlaneUnavailable(
                f"the store at {self.config.master} could not be opened within {self.config.open_timeout_s:g} s: "
                f"{self._links.trouble}",
                attempts=result.settled[self.config.master].attempts,
                elapsed_s=result.elapsed_s,
            )
        self._look(deadline)

    def _open_once(self, keys: Sequence[str], _endpoint: str, deadline: Deadline) -> list[Answer[None]]:
        with self._links.use(deadline) as link:
            return [Answer(Kind.RETRYABLE if link is None else Kind.OK, code="" if link else told(NO_LINK))] * len(keys)

    def _run(self, path: str, keys: Sequence[str], attempt: Attempt[T], deadline: Deadline) -> RetryResult[T]:
        """Try until done; raise if what is missing is missing because the store lost everything."""
        life = self._canary.life

        def once(wanted: Sequence[str], _endpoint: str, limit: Deadline) -> Sequence[Answer[T]]:
            with self._links.use(limit) as link:
                if link is None:
                    return [Answer(Kind.RETRYABLE, code=told(NO_LINK))] * len(wanted)
                return attempt(link, wanted, limit)

        if self._links.closed:
            raise DataPlaneUnavailable("the store was closed")
        result = self._retrier.run(path, list(dict.fromkeys(keys)), once, deadline=deadline)
        if life and any(end.reason is Reason.MISSING for end in result.settled.values()):
            self._look(deadline)
            if self._canary.life != life:
                raise self._restarted()
        if not self._canary.life and any(end.reason is None for end in result.settled.values()):
            self._look(deadline)  # it answers again after a restart: its new life gets its name
        return result

    def _look(self, deadline: Deadline) -> Verdict:
        """Look after the canaries; tell of a life that has ended."""
        before = self._canary.ended
        with self._links.use(deadline) as link:
            verdict = Verdict.UNKNOWN if link is None else self._canary.look(link, deadline)
        if self._canary.ended > before and verdict is Verdict.LOST:
            log.warning("%s", self._restarted().message)
            if self._on_restarted is not None:
                self._on_restarted(self._restarted().message)
        return verdict

    def _restarted(self) -> DataPlaneUnavailable:
        return DataPlaneUnavailable(
            f"the store at {self.config.master} was restarted, or lost all its memory: everything in it is gone"
        )

    def _remove(self, link: Link, keys: Sequence[str], suspicion: Suspicion, deadline: Deadline) -> list[Answer[int]]:
        names = [name for key in keys for name in copies_of(key, self.config.replicas)]
        job = link.calls.submit(link.client.batch_remove, names, True)
        codes = link.calls.codes(job, len(names), deadline.within(self.config.call_timeout_s))
        if codes[0] == LATE:
            link.left_waiting()
        answers: dict[str, list[Answer[Any]]] = {key: [] for key in keys}
        for key, code in zip((key for key in keys for _ in range(self.config.replicas)), codes, strict=True):
            gone = code in (0, MISSING)
            answers[key].append(Answer(Kind.OK, 0) if gone else suspicion.answer(key, code))
        return [_first_bad(heard) for heard in answers.values()]

    def _lengths(self, link: Link, keys: Sequence[str], suspicion: Suspicion, deadline: Deadline) -> list[Answer[int]]:
        found = find(link, keys, self.config.replicas, self._segments, deadline)
        return [
            Answer(Kind.OK, parts[0].nbytes - HEADER_BYTES)
            if (parts := found.parts.get(key))
            else worst_of(suspicion.answer(key, code) for code in found.codes[key])
            for key in keys
        ]

    def _outcome(self, result: RetryResult[T], key: str, done: Callable[[T], Ok]) -> Outcome:
        end = result.settled[key]
        if end.reason is None and end.value is not None:
            return done(end.value)
        return _given_up(end, result.elapsed_s)

    def _doubt(self, keys: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        """Note the puts that may be at work still: whoever puts such a key again is told Ok by the bytes alone."""
        with self._lock:
            for key, outcome in zip(keys, outcomes, strict=True):
                self._doubted.pop(key, None)
                if not isinstance(outcome, Ok):
                    self._doubted[key] = None
            while len(self._doubted) > _MAX_DOUBTED:
                del self._doubted[next(iter(self._doubted))]

    def _count(self, call: str, outcomes: Sequence[Outcome]) -> None:
        nbytes = sum(outcome.nbytes for outcome in outcomes if isinstance(outcome, Ok))
        with self._lock:
            self._outcomes.update((call, type(outcome).__name__) for outcome in outcomes)
            self._bytes_written += nbytes if call == "put" else 0
            self._bytes_read += nbytes if call == "get" else 0

    def _sleeping(self, sleep: Callable[[float], object] | None) -> Callable[[float], None]:
        """How retries wait: not beyond ``close``."""

        def wait(seconds: float) -> None:
            (sleep or self._closing.wait)(seconds)

        return wait


def _first_bad(heard: Sequence[Answer[Any]]) -> Answer[Any]:
    return next((answer for answer in heard if answer.kind is not Kind.OK), heard[0])


def _given_up(end: Settled[Any], elapsed_s: float) -> Outcome:
    match end.reason:
        case Reason.MISSING:
            return Missing()
        case Reason.CORRUPT:
            return Corrupt(end.code)
    if end.code == told(NOT_READY):
        return NotReady()
    if end.code in _FULL:
        return Full()
    reason = (end.reason or Reason.FATAL).value
    return Failed(end.code or Reason.DEADLINE.value, end.attempts, elapsed_s, reason)


def _of_length(outcome: Outcome, size: int) -> Outcome:
    return Corrupt("length") if isinstance(outcome, Ok) and outcome.nbytes != size else outcome


def _pieces(key: str, value: Value) -> list[Any]:
    try:
        return as_pieces(value)
    except (TypeError, ValueError, BufferError) as error:
        raise RefusedType(f"the value of {key!r} is no buffer of bytes: {error}", keys=[key]) from error
