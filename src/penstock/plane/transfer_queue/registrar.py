"""The books of a plane on a TransferQueue: sessions, grants, rows and leases; one actor holds them, in memory.

The rules are the reference model's. What is added: sessions end when they fall silent, a put is granted before its
blocks are written, a claim whose answer nobody took is taken back, and blocks that are free are named until somebody
has freed them.

Invariants: a call that is refused has changed nothing; a session that is unknown gets ``again`` and may be opened anew;
a registrar that was itself stopped buries nobody when it wakes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneError, DataPlaneUnavailable, LeaseLost, code_of
from penstock.plane.noop import NoOpDataPlaneClient, Shared
from penstock.plane.transfer_queue.stored import BlockPlane, Chunk, PutColumn, Stored, Where, columns_of, where
from penstock.records import KVBatchMeta, Tag
from penstock.requests import FieldSpec, RegisterPartition

__all__ = ["Answer", "Opened", "Registrar"]

MAX_DEAD = 4096  # blocks that one answer names as free
_REMEMBERED_CLAIMS = 1024  # whose answers may still be taken back

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A session's beginning."""

    session: int
    incarnation: int
    heartbeat_s: float


@dataclass(frozen=True)
class Answer:
    """What became of a call: ``value``, or the error's wire code, message and fields.

    ``again``: nothing happened, the session is not known (any more). ``dead``: blocks that are to be freed.
    """

    value: Any = None
    code: str = ""
    message: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    again: bool = False
    dead: tuple[int, ...] = ()


class Books(NoOpDataPlaneClient):
    """One session on the books: the contract's calls on the model, and those that know of blocks."""

    def __init__(self, shared: Shared, registrar: Registrar) -> None:
        self._registrar = registrar
        self._start(shared, strict_tensors=False, timeout_s=30.0)
        self._claims: dict[str, KVBatchMeta | None] = {}  # by ticket, the latest; None = take it back when it comes

    @property
    def session(self) -> int:
        return self._session

    def register(self, wanted: RegisterPartition) -> None:
        with self._turn(None):
            self._plane.register(wanted)

    # -- puts ---------------------------------------------------------------------------------------------------------

    def grant(self, partition: str, specs: Sequence[FieldSpec], blocks: int) -> list[int]:
        """Return numbers for the blocks of a put whose fields are ``specs``; refuse what could not be committed."""
        with self._turn(None):
            self._plane.check_types(partition, specs)
            return self._registrar.grant(self._session, blocks)

    def commit(
        self,
        partition: str,
        keys: list[str],
        columns: list[PutColumn],
        chunks: list[Chunk],
        tags: list[dict[str, Tag]],
        content: int,
    ) -> None:
        """Make a put visible whose blocks have been written. What it does not use is free."""
        self._registrar.require_granted(self._session, chunks)
        with self._turn(None) as now:
            rows = columns_of(columns, chunks, content)
            self._plane.put(self._session, partition, keys, rows, tags, now, self._shared.wall())
            self._registrar.committed(chunks)

    def tag(self, partition: str, keys: list[str], tags: list[dict[str, Tag]]) -> None:
        with self._turn(None) as now:
            self._plane.put(self._session, partition, keys, [], tags, now, self._shared.wall())

    def freed(self, blocks: Sequence[int]) -> None:
        """As ``Registrar.freed``; the answer names those that are still to be freed."""
        self._registrar.freed(blocks)

    def abandon(self, blocks: list[int]) -> None:
        """Give the numbers of a put back that will not be committed."""
        with self._turn(None):
            self._registrar.abandon(self._session, blocks)

    # -- reads --------------------------------------------------------------------------------------------------------

    def locate(self, partition: str, keys: list[str], fields: list[str], drop: bool) -> Where:
        found = self._select(partition, keys, fields, "drop" if drop else "raise", None)
        values: dict[str, list[Stored]] = found.values
        specs = {name: spec for name, spec in found.specs.items() if spec is not None}
        return where(values, self._registrar.sizes, specs, found.kept)

    # -- claims -------------------------------------------------------------------------------------------------------

    def claim(self, ticket: str, arguments: Mapping[str, Any]) -> KVBatchMeta:
        """Claim, under a ticket by which it can be withdrawn."""
        meta = self.claim_meta(**arguments)
        held = KVBatchMeta(meta.partition_id, meta.task_name, meta.sample_ids, lease=meta.lease)  # enough to release it
        with self._shared.changed:
            unwanted = ticket in self._claims
            self._claims[ticket] = held
            while len(self._claims) > _REMEMBERED_CLAIMS:
                del self._claims[next(iter(self._claims))]
        if unwanted:
            self._take_back(meta)
        return meta

    def withdraw(self, ticket: str) -> None:
        """Take a claim back whose answer has not been taken, now or when it comes."""
        with self._shared.changed:
            meta = self._claims.get(ticket)
            self._claims[ticket] = meta
        if meta is not None:
            self._take_back(meta)

    def _take_back(self, meta: KVBatchMeta) -> None:
        if meta.size:
            with suppress(LeaseLost):  # somebody has them since, or they are gone
                self.release(meta)

    @property
    def _plane(self) -> BlockPlane:
        assert isinstance(self._shared.plane, BlockPlane)
        return self._shared.plane


# What a client may ask for, by name.
CALLS: dict[str, Callable[..., Any]] = {
    "register": Books.register,
    "claim": Books.claim,
    "withdraw": Books.withdraw,
    "ack": Books.ack,
    "release": Books.release,
    "renew": Books.renew,
    "check_consumption_status": Books.check_consumption_status,
    "grant": Books.grant,
    "commit": Books.commit,
    "abandon": Books.abandon,
    "freed": Books.freed,
    "tag": Books.tag,
    "locate": Books.locate,
    "clear_samples": Books.clear_samples,
    "ping": Books.ping,
    "list_metadata": Books.list_metadata,
    "pop": Books.pop,
    "evict": Books.evict,
    "audit": Books.audit,
}


class Registrar:
    """All sessions, and the blocks. Methods are called from several threads of one actor."""

    def __init__(
        self,
        config: PlaneConfig | None = None,
        *,
        incarnation: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.config = config or PlaneConfig(durability="memory")
        self.incarnation = incarnation or int(wall() * 1e9)
        self.plane = BlockPlane(self.incarnation, self.config)
        self.sizes: dict[int, int] = {}  # bytes of each block that is in use or was a moment ago
        self._shared = Shared(self.plane, threading.Condition(), clock, wall)
        self._clock = clock
        self._books: dict[int, Books] = {}
        self._heard: dict[int, float] = {}
        self._last_heard = clock()
        self._granted: dict[int, int] = {}  # block -> session
        self._dead: dict[int, None] = {}  # to be freed
        self._blocks = 0

    # -- sessions -----------------------------------------------------------------------------------------------------

    def open(self) -> Opened:
        books = Books(self._shared, self)
        with self._shared.changed:
            self._books[books.session] = books
            self._hear(books.session)
        return Opened(books.session, self.incarnation, self.config.heartbeat_s)

    def end(self, session: int) -> None:
        """End a session, if it is open: its leases go back, its grants are void."""
        with self._shared.changed:
            books = self._books.pop(session, None)
            self._heard.pop(session, None)
            if books is not None:
                books.close()
                self._bury([block for block, owner in self._granted.items() if owner == session])

    def beat(self, session: int) -> bool:
        """Note that a session lives; end those that have been silent for long. Returns whether it is known."""
        with self._shared.changed:
            self._end_silent(self._hear(session))
            return session in self._books

    def is_deserted(self) -> bool:
        """Whether nobody has a session any more; ends those that have been silent for long."""
        with self._shared.changed:
            self._end_silent(self._hear(None))
            return not self._books

    def _end_silent(self, now: float) -> None:
        for session in [one for one, at in self._heard.items() if now - at > self.config.dead_after_s]:
            log.warning("session %d has been silent for %.1f s and has ended", session, now - self._heard[session])
            self.end(session)

    def _hear(self, session: int | None) -> float:
        """Note a sign of life, of a session or of this process alone.

        Who comes first after a standstill of this process comes for all.
        """
        now = self._clock()
        if now - self._last_heard > self.config.dead_after_s / 2:
            self._heard = dict.fromkeys(self._heard, now)
        self._last_heard = now
        if session is not None and session in self._books:
            self._heard[session] = now
        return now

    # -- calls --------------------------------------------------------------------------------------------------------

    def ask(self, session: int, call: str, arguments: Mapping[str, Any]) -> Answer:
        """Carry out one call of one session."""
        with self._shared.changed:
            books = self._books.get(session)
            self._hear(session)
        if books is None:
            return Answer(code="DataPlaneUnavailable", message=f"session {session} has ended", again=True)
        try:
            value = CALLS[call](books, **arguments)
        except DataPlaneError as refused:
            return Answer(code=code_of(refused), message=str(refused), fields=_fields(refused), dead=self._to_free())
        except Exception as bug:  # top frame of a call: its client is told, the books live on
            log.exception("call %s of session %d failed", call, session)
            return Answer(code="DataPlaneError", message=f"the registrar failed: {type(bug).__name__}: {bug}")
        return Answer(value, dead=self._to_free())

    def freed(self, blocks: Sequence[int]) -> None:
        """Forget blocks whose bytes are gone."""
        with self._shared.changed:
            for block in (block for block in blocks if block in self._dead):
                del self._dead[block]
                self.sizes.pop(block, None)

    def _to_free(self) -> tuple[int, ...]:
        with self._shared.changed:
            self._bury(())
            return tuple(list(self._dead)[:MAX_DEAD])

    # -- blocks -------------------------------------------------------------------------------------------------------

    def grant(self, session: int, blocks: int) -> list[int]:
        numbers = list(range(self._blocks + 1, self._blocks + blocks + 1))
        self._blocks += blocks
        self._granted.update(dict.fromkeys(numbers, session))
        return numbers

    def require_granted(self, session: int, chunks: Sequence[Chunk]) -> None:
        with self._shared.changed:
            alien = [chunk.block for chunk in chunks if self._granted.get(chunk.block) != session]
            if alien:
                raise DataPlaneUnavailable(f"blocks {alien[:8]} are not granted to session {session}: put again")
            self.sizes.update((chunk.block, chunk.nbytes) for chunk in chunks)

    def committed(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self._granted.pop(chunk.block, None)
        self._bury([chunk.block for chunk in chunks if not self.plane.in_use(chunk.block)])

    def abandon(self, session: int, blocks: Sequence[int]) -> None:
        self._bury([block for block in blocks if self._granted.get(block) == session])

    def _bury(self, blocks: Sequence[int]) -> None:
        """Note blocks that nobody uses: these, and those that the model has let go of."""
        for block in (*blocks, *self.plane.dead):
            self._granted.pop(block, None)
            self._dead[block] = None
        self.plane.dead.clear()


def _fields(error: DataPlaneError) -> dict[str, Any]:
    return {
        "partition": error.partition,
        "keys": error.keys,
        "missing": error.missing,
        "attempts": error.attempts,
        "elapsed_s": error.elapsed_s,
        "incarnation": error.incarnation,
    }
