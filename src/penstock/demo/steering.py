"""The controller's process: ``SingleController`` over the run's roles, known by their letters. Never imports torch.

Invariants: what it must know to go on is in its own small record, in the plane, and with the roles, whom it asks: so it
may be killed like any of them; each eviction is written down before and after, for the checker.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.config import ClientConfig
from penstock.controller.config import ControllerConfig
from penstock.controller.event_file import EventFile
from penstock.controller.policies import windowed
from penstock.controller.single import RunResult, SingleController
from penstock.demo.adapters import Checkpoints, PromptNumbers, TrainerProcess, WorkerPool
from penstock.demo.crew import Crew
from penstock.demo.messages import RUN, Ready
from penstock.demo.processes import kind_of
from penstock.demo.reaching import connect
from penstock.demo.spec import PARTITION, SCORE_TASK, TRAIN_FIELDS, TRAIN_TASK, RunFiles, RunSpec
from penstock.plane.client import PlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.plane.remote import RemoteDataPlaneClient
from penstock.testing.checker import EventLog, Evicted

if TYPE_CHECKING:
    from penstock.demo.role import Channel

__all__ = ["FarWitness", "NearWitness", "settings", "steer"]

READY_TAG = "prev_version"  # the scorer's
MAX_LETTER = 1 << 22  # bytes; a step's order is a few tens of thousands
CALL_S = 5.0
REPLICA_GRACE_S = 60.0  # a new life of a role imports torch first


def settings(spec: RunSpec) -> ControllerConfig:
    """Return how the run is steered."""
    return ControllerConfig(
        fields=TRAIN_FIELDS,
        group_size=spec.group_size,
        groups_per_step=spec.groups_per_step,
        policy=windowed(max_staleness_versions=spec.max_staleness),
        partition=PARTITION,
        task=TRAIN_TASK,
        tasks=(SCORE_TASK, TRAIN_TASK),
        run=RUN,
        max_steps=spec.max_steps,
        ready_tag=READY_TAG,
        needs=("rollout", "trainer"),
        list_every_s=0.05,
        call_timeout_s=CALL_S,
        retry_cap_s=1.0,
        recover_deadline_s=spec.plane_patience_s,
        replica_grace_s=REPLICA_GRACE_S,
    )


@contextmanager
def evicting(log: EventLog, keys: Sequence[str], reason: str) -> Iterator[None]:
    """Write down that ``keys`` are evicted, before and, if that is certain, after."""
    log.write([Evicted("before", key, reason) for key in keys])
    yield
    log.write([Evicted("after", key, reason) for key in keys])


class NearWitness(LocalDataPlaneClient):
    """A client that writes down, in ``log``, what it evicts."""

    def __init__(self, log: EventLog, data_dir: Path, config: ClientConfig) -> None:
        self._log = log
        super().__init__(data_dir, config=config)

    def evict(
        self, keys: Sequence[str], partition_id: str, reason: str = "stale", *, timeout_s: float | None = None
    ) -> None:
        with evicting(self._log, keys, reason):
            super().evict(keys, partition_id, reason, timeout_s=timeout_s)


class FarWitness(RemoteDataPlaneClient):
    """The same, of a plane of several hosts."""

    def __init__(self, log: EventLog, url: str, token: bytes, host_dir: Path, config: ClientConfig) -> None:
        self._log = log
        super().__init__(url, token, host_dir=host_dir, config=config)

    def evict(
        self, keys: Sequence[str], partition_id: str, reason: str = "stale", *, timeout_s: float | None = None
    ) -> None:
        with evicting(self._log, keys, reason):
            super().evict(keys, partition_id, reason, timeout_s=timeout_s)


def steer(files: RunFiles, channel: Channel) -> None:
    """Drive the run until it is over, or SIGTERM comes; say how it ended."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())

    def sleep(seconds: float) -> None:
        if told.wait(seconds):
            sys.exit(0)  # nothing was begun

    with EventLog(files.journals / f"{channel.me}.jsonl") as log, EventFile(files.events) as tell:
        client = connect(files, channel.me, sleep, partial(NearWitness, log), partial(FarWitness, log))
        steering = _Steering(files, channel, client, tell)
        signal.signal(signal.SIGTERM, lambda *_: steering.stop())
        if told.is_set():
            steering.stop()
        result = asyncio.run(steering.run())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending
    sys.stderr.write(f"the run is over: {result.reason}\n")


class _Steering:
    """The controller, its crew, and the letters between them."""

    def __init__(self, files: RunFiles, channel: Channel, client: PlaneClient, tell: EventFile) -> None:
        spec = files.spec()
        self._channel = channel
        self._crew = Crew(channel.me, channel.send, self._joined, self._left)
        self._controller = SingleController(
            client,
            settings(spec),
            prompts=PromptNumbers(),
            generator=WorkerPool(self._crew, spec.prompts_per_order),
            trainer=TrainerProcess(self._crew),
            weights=Checkpoints(files.checkpoints),
            folder=files.root,
            listeners=[tell],
        )

    def stop(self) -> None:
        """End the run in order; fit for a signal handler."""
        self._controller.stop("the launcher said so")

    async def run(self) -> RunResult:
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(lambda _: self._controller.stop("the launcher's letters have ended"))
        self._channel.note(Ready())
        try:
            result = await self._controller.run()
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        if not reading.cancelled():
            reading.result()  # a letter that cannot be read is no end in order
        return result

    def _joined(self, peer: str) -> None:
        self._controller.register(peer, "trainer" if kind_of(peer) == "trainer" else "rollout", beats=False)

    def _left(self, peer: str) -> None:
        self._controller.left(peer)

    async def _read(self) -> None:
        reader, pipe = asyncio.StreamReader(limit=MAX_LETTER), os.fdopen(0, "rb", closefd=False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                self._crew.receive(line)
        finally:
            transport.close()
