"""A client's way to the registrar: one Ray actor per TransferQueue controller, and a session on it.

The actor is detached, for it outlives its first client; it watches over its controller, and ends when that has.
Invariants: a call ends by its deadline; an answer is the registrar's own or an error of the tree; a session that the
registrar does not know (it was away for too long) is opened anew and the call repeated, for nothing of it happened; a
claim whose answer is not taken is taken back.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneBadRequest, DataPlaneTimeout, DataPlaneUnavailable, error_of
from penstock.plane.transfer_queue.library import NAMESPACE, TransferQueue, bounded, imported, resolve, sent
from penstock.plane.transfer_queue.registrar import Answer, Opened
from penstock.plane.transfer_queue.registrar_actor import RegistrarActor, actor_id
from penstock.retry import Deadline

__all__ = ["Desk"]

WAITING_CLAIMS = 128  # of all clients together; more of them wait for their turn to wait
CALLS_AT_ONCE = 8
LEAST_S = 0.5  # a call with no time at all still gives an actor that can answer at once this long to do so
NAME = "penstock-registrar"
WHO = "the plane's registrar"

log = logging.getLogger(__name__)


class Desk:
    """One session. Args: where, how the plane is to behave if this client is its first, and until when to try."""

    def __init__(self, queue: TransferQueue, config: PlaneConfig, deadline: Deadline) -> None:
        self._actor = bounded(lambda: _hired(queue, config), deadline, "Ray does not start the plane's registrar")
        self._lock = threading.Lock()
        self._opened: Opened = self._open(deadline)
        self._closed = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="penstock-transfer-queue-beat", daemon=True)
        self._pid = os.getpid()
        self._beating.start()

    @property
    def incarnation(self) -> int:
        return self._opened.incarnation

    @property
    def session(self) -> int:
        return self._opened.session

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def require_open(self) -> None:
        if self._closed.is_set():
            raise DataPlaneUnavailable(f"this client is closed (session {self.session})")
        if os.getpid() != self._pid:
            raise DataPlaneUnavailable("a client does not survive a fork: make a new one in the child process")

    def ask(self, call: str, deadline: Deadline, **arguments: Any) -> Answer:
        """Return the registrar's answer to one call.

        Raises:
            DataPlaneTimeout: none by the deadline; whether it was carried out is unknown.
            DataPlaneUnavailable: the registrar is dead, or this client is closed.
            DataPlaneError: what the registrar answered.
        """
        return self._asked(call, deadline, arguments)

    def claim(self, deadline: Deadline, arguments: Mapping[str, Any]) -> Any:
        """Claim rows, waiting at the registrar."""
        ticket = uuid.uuid4().hex
        body = {"ticket": ticket, "arguments": {**arguments, "timeout_s": deadline.remaining()}}
        try:
            return self._asked("claim", deadline, body, deadline.remaining()).value
        except DataPlaneBadRequest:
            raise
        except BaseException as gone:
            if not (isinstance(gone, DataPlaneTimeout) and gone.missing):  # those are its own answer: nothing was ready
                self.tell("withdraw", ticket=ticket)
            raise

    def tell(self, call: str, **arguments: Any) -> None:
        """As ``ask``; nobody waits for an answer, nor hears that there is none."""
        with suppress(DataPlaneUnavailable):
            self.require_open()
            sent(lambda: self._actor.ask.remote(self.session, call, arguments))

    def freed(self, blocks: Sequence[int]) -> None:
        """Tell the registrar that blocks are gone; nobody waits for it."""
        with suppress(DataPlaneUnavailable):
            sent(lambda: self._actor.freed.remote(list(blocks)))

    def end(self, timeout_s: float) -> None:
        """End the session. Idempotent."""
        if self._closed.is_set() or os.getpid() != self._pid:
            return
        self._closed.set()
        deadline = Deadline(timeout_s)
        self._beating.join(timeout_s)
        try:
            resolve(lambda: self._actor.end.remote(self.session), deadline, WHO)
        except (DataPlaneTimeout, DataPlaneUnavailable) as failed:
            log.warning("session %d could not be ended; it ends by its silence: %s", self.session, failed)

    def _asked(
        self, call: str, deadline: Deadline, arguments: Mapping[str, Any], waits_s: float | None = None
    ) -> Answer:
        """``waits_s``: for how long the registrar itself will wait; its own word comes after that."""
        self.require_open()
        session = self.session
        answer = self._sent(session, call, deadline, arguments, waits_s)
        if answer.again:
            self._reopen(session, deadline)
            answer = self._sent(self.session, call, deadline, arguments, waits_s)
        if answer.code:
            raise error_of(answer.code)(answer.message, **answer.fields)
        return answer

    def _sent(
        self, session: int, call: str, deadline: Deadline, arguments: Mapping[str, Any], waits_s: float | None
    ) -> Answer:
        ask = self._actor.ask if waits_s is None else self._actor.ask.options(concurrency_group="claims")
        least_s = LEAST_S if waits_s is None else waits_s + LEAST_S
        answer: Answer = resolve(lambda: ask.remote(session, call, dict(arguments)), deadline, WHO, least_s)
        return answer

    def _open(self, deadline: Deadline) -> Opened:
        opened: Opened = resolve(self._actor.open.remote, deadline, WHO, LEAST_S)
        return opened

    def _reopen(self, session: int, deadline: Deadline) -> None:
        with self._lock:
            self.require_open()
            if self._opened.session == session:  # no other thread has done it meanwhile
                self._opened = self._open(deadline)
                log.warning("session %d was unknown to the registrar; it goes on as %d", session, self.session)

    def _beat(self) -> None:
        beat = self._actor.beat.options(concurrency_group="beats")
        while not self._closed.wait(self._opened.heartbeat_s):
            try:
                sent(lambda: beat.remote(self.session))
            except DataPlaneUnavailable as gone:
                log.warning("session %d has no heartbeat any more: %s", self.session, gone)
                return

    def __repr__(self) -> str:
        return f"Desk({'closed' if self.closed else 'open'}, session={self.session})"


def _hired(queue: TransferQueue, config: PlaneConfig) -> Any:
    """Return the registrar of this controller's life; the first client has it started."""
    ray = imported("ray")
    groups = {"claims": WAITING_CLAIMS, "beats": 1}
    actor = ray.remote(num_cpus=0, max_concurrency=CALLS_AT_ONCE, concurrency_groups=groups)(RegistrarActor)
    named = actor.options(
        name=f"{NAME}-{queue.name}", namespace=NAMESPACE, lifetime="detached", get_if_exists=True, max_restarts=0
    )
    return named.remote(config, actor_id(queue.controller))
