"""A toy run in processes that may be killed: the plane, the controller, and, where a test wants, trainer and worker.

What survives is on disk: the trainer's checkpoint with the keys of all its steps, and the controller's record. Nothing
here needs torch: steps are made of metadata.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from penstock.config import ClientConfig, PlaneConfig
from penstock.controller.event_file import EVENTS_NAME, EventFile
from penstock.controller.events import RunEvent
from penstock.controller.roles import StepRecord, TrainResult
from penstock.controller.single import RunResult, SingleController
from penstock.errors import DataPlaneTimeout, DataPlaneUnavailable
from penstock.payload.columns import Batch
from penstock.plane.local import LocalDataPlaneClient
from penstock.points import reached
from penstock.records import KVBatchMeta
from penstock.server.lifecycle import Options, serve
from tests.controller.toys import GROUP, Numbers, config
from tests.server.harness import batch_of

PLANE = PlaneConfig(heartbeat_s=0.2, dead_after_s=0.8, resume_grace_s=0.8, linger_s=0.2, max_bytes=16 << 20)
CALL_S = 5.0
ROW_BYTES = 64
SPOILT = 2  # the first attempt at this prompt is put and never committed
LOOK_S = 0.01


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer's durable state: its last step, and the keys of every step before and up to it."""

    record: StepRecord | None = None
    steps: list[list[str]] = []


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How the run ended, and what the plane's books said then."""

    result: RunResult
    residue: int
    trained: int
    lost: dict[str, int]
    rows: int  # that are still in the plane


class LightClient(LocalDataPlaneClient):
    """Lays its columns out by hand: what lays out tensors would import torch, which takes longer than a run."""

    def _encoded(self, fields: Any, n_rows: int) -> Batch:
        return batch_of(n_rows, ROW_BYTES, fields["x"]) if fields else Batch(n_rows, [])


class Files:
    """A run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plane = root / "plane"
        self.checkpoint = root / "checkpoint.json"
        self.outcome = root / "outcome.json"
        self.over = root / "over"

    def client(self) -> LightClient:
        """Join the run's plane, which may just be starting."""
        end = time.monotonic() + 20.0
        while True:
            try:
                return LightClient(self.plane, config=ClientConfig(timeout_s=CALL_S), plane=PLANE)
            except (DataPlaneUnavailable, DataPlaneTimeout):
                if self.over.exists():  # who was killed at the very end starts when everybody has gone
                    raise SystemExit(0) from None
                if time.monotonic() > end:
                    raise

    def load(self) -> Checkpoint:
        try:
            return msgspec.json.decode(self.checkpoint.read_bytes(), type=Checkpoint)
        except FileNotFoundError:
            return Checkpoint()

    def save(self, checkpoint: Checkpoint) -> None:
        replace(self.checkpoint, msgspec.json.encode(checkpoint))


def replace(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    aside = path.with_suffix(".aside")
    aside.write_bytes(content)
    aside.replace(path)


# -- the plane --------------------------------------------------------------------------------------------------------


def serve_plane(life: int, folder: str, segment_bytes: int) -> None:
    """Be the run's plane until the run is over."""
    files = Files(Path(folder))
    threading.Thread(target=_end_when_over, args=(files,), daemon=True).start()
    config = msgspec.structs.replace(PLANE, segment_bytes=segment_bytes)
    if code := serve(Options(data_dir=files.plane, config=config)):
        raise SystemExit(code)


def _until_over(files: Files) -> None:
    while not files.over.exists():
        time.sleep(LOOK_S)


def _end_when_over(files: Files) -> None:
    _until_over(files)
    os.kill(os.getpid(), signal.SIGTERM)


# -- those who work ---------------------------------------------------------------------------------------------------


class DiskTrainer:
    """A step is its keys, and the file that tells of it."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def last_step(self) -> StepRecord | None:
        return self._files.load().record

    async def train(self, meta: KVBatchMeta, step: int) -> TrainResult:
        before = self._files.load()
        if before.record is not None and before.record.step == step:
            return TrainResult(record=before.record)
        assert step == len(before.steps) + 1, f"step {step} after {len(before.steps)}"
        reached("before_save")
        record = StepRecord.of(step, meta)
        self._files.save(Checkpoint(record=record, steps=[*before.steps, record.keys]))
        reached("after_save")
        return TrainResult(record=record)


class Writer:
    """Puts groups; one of them it spoils at first."""

    def __init__(self, client: LightClient) -> None:
        self._client = client

    async def generate(self, prompt: Any, weight_version: int, group_id: str) -> None:
        await asyncio.to_thread(self.write, prompt, weight_version, group_id)

    def write(self, prompt: int, version: int, group_id: str) -> None:
        keys = [f"{group_id}_g{i}" for i in range(GROUP)]
        tag = {"group_id": group_id, "expected_num_keys": GROUP, "weight_version": version, "committed": False}
        columns: Any = {"x": prompt % 251}
        self._client.put_samples(keys, "train", columns, [tag] * GROUP)
        reached("between")
        if group_id.endswith(f".{SPOILT}.0"):
            raise RuntimeError("spoilt")
        self._client.put_samples(keys, "train", tags=[{"committed": True}] * GROUP)


class NoWeights:
    """``pause_s``: how long a publication takes."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s

    async def publish(self, version: int) -> None:
        await asyncio.sleep(self._pause_s)


# -- the same in processes of their own -------------------------------------------------------------------------------


class Ask(msgspec.Struct):
    """What is asked of a worker or a trainer: a line of JSON each way."""

    prompt: int = 0
    version: int = 0
    group_id: str = ""
    step: int = 0
    meta: KVBatchMeta | None = None


def work(life: int, folder: str, role: str) -> None:
    """Be the trainer, or a worker, until the run is over."""
    files = Files(Path(folder))
    asyncio.run(_answer(files, role))


async def _answer(files: Files, role: str) -> None:
    trainer, writer = DiskTrainer(files), None if role == "trainer" else Writer(files.client())
    turn = asyncio.Lock()

    async def heard(reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        ask = msgspec.json.decode(await reader.readline(), type=Ask)
        async with turn:
            if writer is not None:
                await writer.generate(ask.prompt, ask.version, ask.group_id)
            elif ask.meta is not None:
                await trainer.train(ask.meta, ask.step)
            out.write(msgspec.json.encode(await trainer.last_step()) + b"\n")
            await out.drain()
        out.close()

    path = files.root / f"{role}.sock"
    path.unlink(missing_ok=True)
    async with await asyncio.start_unix_server(heard, path):
        await asyncio.to_thread(_until_over, files)
    if writer is not None:
        writer._client.close(timeout_s=CALL_S)


class Remote:
    """Asks them; that nobody is there is the machinery's failure, and goes again."""

    def __init__(self, files: Files, role: str) -> None:
        self._path = files.root / f"{role}.sock"

    async def _ask(self, ask: Ask) -> StepRecord | None:
        reader, out = await asyncio.open_unix_connection(self._path)
        try:
            out.write(msgspec.json.encode(ask) + b"\n")
            line = await reader.readline()
        finally:
            out.close()
        if not line:
            raise ConnectionResetError(f"{self._path.stem} has hung up")
        return msgspec.json.decode(line, type=StepRecord | None)

    async def generate(self, prompt: Any, weight_version: int, group_id: str) -> None:
        await self._ask(Ask(prompt=prompt, version=weight_version, group_id=group_id))

    async def last_step(self) -> StepRecord | None:
        return await self._ask(Ask())

    async def train(self, meta: KVBatchMeta, step: int) -> TrainResult:
        record = await self._ask(Ask(step=step, meta=meta))
        assert record is not None
        return TrainResult(record=record)


# -- the controller ---------------------------------------------------------------------------------------------------


def steer(life: int, folder: str, remote: bool, options: dict[str, Any]) -> None:
    """Be the run's controller to its end; the last life says how it ended, and that it is over."""
    files = Files(Path(folder))
    with EventFile(files.root / EVENTS_NAME) as told:
        result = asyncio.run(_steer(files, remote, options, told))
    with files.client() as client:
        books = client.audit()
        (train,) = books.partitions
        outcome = Outcome(
            result=result,
            residue=books.residue,
            trained=train.trained,
            lost=dict(train.lost),
            rows=train.in_flight + train.leased,
        )
    replace(files.outcome, msgspec.json.encode(outcome))
    files.over.touch()


async def _steer(files: Files, remote: bool, options: dict[str, Any], hear: Callable[[RunEvent], None]) -> RunResult:
    writer = None if remote else Writer(files.client())
    weights = NoWeights(options.pop("pause_s", 0.0))
    controller = SingleController(
        files.client(),
        config(**options),
        prompts=Numbers(),
        generator=Remote(files, "worker") if writer is None else writer,
        trainer=Remote(files, "trainer") if remote else DiskTrainer(files),
        weights=weights,
        folder=files.root,
        listeners=[hear],
    )
    try:
        return await controller.run()
    finally:
        if writer is not None:
            with suppress(DataPlaneUnavailable):
                writer._client.close(timeout_s=CALL_S)
