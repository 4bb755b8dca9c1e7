"""Why nothing moves, asked of a real plane by a real client: a stopped producer, a starved trainer, a full plane."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from penstock.config import ClientConfig
from penstock.debts import AnyDebt, FullPlane, SilentSession, StarvedTask, StuckGroup
from penstock.errors import DataPlaneFull
from penstock.plane.local import LocalDataPlaneClient
from tests.server.harness import ClientProcess, PlaneProcess, eventually

D = TypeVar("D", bound=AnyDebt)
DEAD_AFTER_S = 3.0

PRODUCER = """
import torch
from penstock.config import ClientConfig
from penstock.plane.local import LocalDataPlaneClient
plane = LocalDataPlaneClient(client.data_dir, config=ClientConfig(owner="rollout-1"), start=False)
tags = [{"group_id": "g", "expected_num_keys": 4, "committed": True}] * 3
plane.put_samples(["g_0", "g_1", "g_2"], "train", {"x": torch.ones(3, 4)}, tags)
plane.claim_meta("train", "logp", ["x"], 2)
say("ready")
time.sleep(600)
"""


@pytest.fixture
def asker(tmp_path: Path) -> Iterator[LocalDataPlaneClient]:
    """A client of a plane of six rows, and beside it the plane; the partition has a stage before the trainer."""
    plane = PlaneProcess(tmp_path / "plane", heartbeat_s=0.2, dead_after_s=DEAD_AFTER_S, max_rows=6)
    with plane, client_of(tmp_path, "controller") as client:
        client.register_partition("train", ["x", "logp"], 8, ["logp", "train"])
        yield client


def client_of(folder: Path, owner: str) -> LocalDataPlaneClient:
    return LocalDataPlaneClient(folder / "plane", config=ClientConfig(owner=owner), start=False)


def owed(client: LocalDataPlaneClient, kind: type[D]) -> list[D]:
    return [debt for debt in client.why("train", task="train").owed if isinstance(debt, kind)]


def test_a_stopped_producer_is_named_with_all_that_it_owes(asker: LocalDataPlaneClient, tmp_path: Path) -> None:
    """Its group's sibling, its stage's column and its heartbeat; and still by name when the plane has ended it."""
    with ClientProcess(tmp_path / "plane", PRODUCER) as producer:
        assert producer.line() == "ready"
        pid = producer.process.pid
        (group,) = owed(asker, StuckGroup)
        assert (group.group, group.rows, group.expected) == ("g", 3, 4)
        assert [(p.pid, p.ended) for p in group.owed_by] == [(pid, "")]
        (task,) = owed(asker, StarvedTask)
        assert (task.field, task.rows, task.stage, task.unclaimed) == ("logp", 3, "logp", 1)
        assert [(p.pid, p.rows) for p in task.owed_by] == [(pid, 2)]
        assert owed(asker, SilentSession) == []

        producer.process.send_signal(signal.SIGSTOP)
        eventually("it is stopped", lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        eventually("its silence is named", lambda: owed(asker, SilentSession))
        (silent,) = owed(asker, SilentSession)
        assert (silent.party.pid, silent.party.ended, silent.unfinished) == (pid, "", 1)
        assert 0.4 < silent.party.silent_s < DEAD_AFTER_S + 1.0
        assert f"the heartbeat of rollout-1 (pid {pid} on " in silent.says

        eventually("it is ended", lambda: owed(asker, StuckGroup)[0].owed_by[0].ended)
        (group,) = owed(asker, StuckGroup)
        assert group.owed_by[0].ended.startswith("silent for")
        assert f"rollout-1 (pid {pid} on " in group.says
        (task,) = owed(asker, StarvedTask)
        assert (task.unclaimed, task.owed_by) == (3, [])  # its leases went back


def test_a_killed_producer_is_named_at_once(asker: LocalDataPlaneClient, tmp_path: Path) -> None:
    """The kernel tells the plane of its death; the group that it owes is named with it."""
    with ClientProcess(tmp_path / "plane", PRODUCER) as producer:
        assert producer.line() == "ready"
        producer.kill()
        eventually("its end is named", lambda: owed(asker, SilentSession))
    (silent,) = owed(asker, SilentSession)
    assert silent.party.ended == f"process {producer.process.pid} has ended"
    (group,) = owed(asker, StuckGroup)
    assert [p.pid for p in group.owed_by] == [producer.process.pid]


def test_a_full_plane_names_who_waits_and_who_holds_the_room(asker: LocalDataPlaneClient, tmp_path: Path) -> None:
    """While the put waits, and after it gave up."""
    torch = pytest.importorskip("torch")
    refused: list[DataPlaneFull] = []

    def put() -> None:
        tags = [{"group_id": "h", "expected_num_keys": 4, "committed": True}]
        with pytest.raises(DataPlaneFull) as error:
            other.put_samples(["h_0"], "train", {"x": torch.ones(1, 4)}, tags, timeout_s=2.0)
        refused.append(error.value)

    with ClientProcess(tmp_path / "plane", PRODUCER) as producer, client_of(tmp_path, "rollout-2") as other:
        assert producer.line() == "ready"
        thread = threading.Thread(target=put)
        thread.start()
        eventually("the put waits", lambda: owed(asker, FullPlane))
        (full,) = owed(asker, FullPlane)
        thread.join(30.0)
        assert (full.limit, full.used_rows, full.max_rows) == ("", 4, 6)
        assert [p.rows for p in full.waiting] == [4]
        assert "rollout-2" in full.waiting[0].who
        assert full.waiting[0].waits_s < 30.0
        assert [(r.rows, r.unfinished, r.promised_rows) for r in full.held] == [(3, 3, 1)]
        assert [(p.pid, p.rows) for p in full.held_by] == [(producer.process.pid, 2)]
        assert len(refused) == 1
        (later,) = owed(asker, FullPlane)
        assert (later.waiting, later.used_rows) == ([], 4)
        assert "the last put that found no room" in later.says
        asker.evict(["g_0", "g_1", "g_2"], "train", "stale")
        assert owed(asker, FullPlane) == []
