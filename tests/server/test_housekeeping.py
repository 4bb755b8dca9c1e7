"""What happens by the clock: ticks, the end of an auto-started plane, checkpoints, the collector."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.ledger.facts import Entry
from penstock.requests import Claim, Depth, Done, Failed, Goodbye
from penstock.server import housekeeping
from penstock.server.housekeeping import Housekeeping
from tests.server.inside import Inside, inside


@pytest.fixture(autouse=True)
def unfreeze() -> Iterator[None]:
    """What a test freezes is thawed after it."""
    yield
    gc.unfreeze()


def _house(world: Inside, linger_s: float | None = None, resumable_s: float = 0.0) -> Housekeeping:
    return Housekeeping(world.plane, world.reception, linger_s=linger_s, resumable_s=resumable_s)


def test_a_waiting_call_is_answered_at_its_deadline(tmp_path: Path) -> None:
    """The clock is set for the nearest deadline, not for the next second."""

    async def scenario(world: Inside) -> None:
        house = _house(world)
        call = world.client.ask(Claim(partition="p", task="train", required=["x"], batch=1))
        world.plane.settle()
        world.now += 31.0
        house._tick(world.now)
        world.plane.settle()
        assert isinstance(world.client.reply(call), Failed)
        house.stop()

    inside(tmp_path, scenario)


def test_a_late_tick_reads_the_sockets_first(tmp_path: Path) -> None:
    """After a pause of the plane what clients sent meanwhile is read before a tick judges them."""

    async def scenario(world: Inside) -> None:
        house = _house(world)
        world.now += 60.0
        house._wake()
        asyncio.get_running_loop().call_soon(lambda: world.client.ask(Depth("p")))  # as if it had lain in the socket
        for _ in range(12):
            await asyncio.sleep(0)
        assert house.longest_late_s > 50
        assert house._last_tick == world.now
        assert len(world.plane.sessions) == 1
        house.stop()

    inside(tmp_path, scenario, heartbeat_s=0.5, dead_after_s=5.0)


@pytest.mark.parametrize(("used_s", "said"), [(0.1, "was stopped"), (2.9, "was busy")])
def test_a_busy_plane_is_not_called_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, used_s: float, said: str
) -> None:
    """What made a tick late is told by the processor time used, and the longest call is named if it was our own."""

    async def scenario(world: Inside) -> None:
        used = [0.0]
        house = Housekeeping(world.plane, world.reception, linger_s=None, resumable_s=0.0, processor=lambda: used[0])
        house.start()
        world.reception.longest.note("Commit", 2.5)
        world.now += 3.0
        used[0] += used_s
        house._wake()
        assert said in caplog.text
        assert ("longest call: Commit, 2.50 s" in caplog.text) == (said == "was busy")
        house.stop()

    inside(tmp_path, scenario)


def test_an_auto_started_plane_ends_after_its_last_client(tmp_path: Path) -> None:
    """Not while a session lives, and linger_s after the last one has ended."""

    async def scenario(world: Inside) -> None:
        house = _house(world, linger_s=3.0)
        for _ in range(8):
            world.now += 1.0
            house._tick(world.now)
        assert not world.plane.stopped.is_set()
        world.expect(Done, Goodbye())
        world.now += 1.0
        house._tick(world.now)
        world.now += 1.5
        house._tick(world.now)
        assert not world.plane.stopped.is_set()
        world.now += 2.0
        house._tick(world.now)
        assert world.plane.stopped.is_set()
        house.stop()

    inside(tmp_path, scenario)


def test_a_plane_started_by_hand_stays(tmp_path: Path) -> None:
    """Without linger_s it does not end for want of clients."""

    async def scenario(world: Inside) -> None:
        house = _house(world)
        world.expect(Done, Goodbye())
        for _ in range(100):
            world.now += 1.0
            house._tick(world.now)
        assert not world.plane.stopped.is_set()
        house.stop()

    inside(tmp_path, scenario)


def test_it_waits_for_sessions_that_may_come_back(tmp_path: Path) -> None:
    """After a restart an auto-started plane gives earlier sessions their grace before it ends."""

    async def scenario(world: Inside) -> None:
        house = _house(world, linger_s=0.1, resumable_s=20.0)
        world.plane.sessions.end(world.client.session_id)  # the ledger knows it, and nobody speaks for it
        for _ in range(19):
            world.now += 1.0
            house._tick(world.now)
        assert not world.plane.stopped.is_set()
        world.now += 2.0
        house._tick(world.now)
        assert world.plane.stopped.is_set()
        house.stop()

    inside(tmp_path, scenario, dead_after_s=20.5)


def test_it_waits_for_no_session_that_has_said_goodbye(tmp_path: Path) -> None:
    """After a restart too an auto-started plane ends soon when every earlier session has come back and left."""

    async def scenario(world: Inside) -> None:
        house = _house(world, linger_s=0.1, resumable_s=20.0)
        world.expect(Done, Goodbye())
        for _ in range(2):
            world.now += 1.0
            house._tick(world.now)
        assert world.plane.stopped.is_set()
        house.stop()

    inside(tmp_path, scenario)


def test_a_checkpoint_leaves_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written a slice at a time: calls are decided between slices, and end_checkpoint comes once, at its end."""

    async def scenario(world: Inside) -> None:
        house = _house(world)
        world.put([f"k{i}" for i in range(64)])
        monkeypatch.setattr(housekeeping, "_CHECKPOINT_ROWS", 4)
        order: list[str] = []
        append = world.journal.append

        def note(entry: Entry) -> None:
            order.append("slice" if entry.checkpoint else "other")
            append(entry)

        monkeypatch.setattr(world.journal, "append", note)
        monkeypatch.setattr(world.journal, "end_checkpoint", lambda: order.append("end"))
        house.begin_checkpoint()
        for _ in range(3):
            await asyncio.sleep(0)
        world.put(["between"])
        for _ in range(200):
            await asyncio.sleep(0)
        assert house.checkpoints == 1
        assert order.count("slice") > 10
        assert "slice" in order[: order.index("other")]
        assert "slice" in order[order.index("other") :]
        assert order[-1] == "end"
        assert order.count("end") == 1
        house.stop()

    inside(tmp_path, scenario)


def test_the_collector_looks_at_what_is_new_only(tmp_path: Path) -> None:
    """After many objects it collects the young ones and freezes what survived."""

    async def scenario(world: Inside) -> None:
        house = _house(world)
        gc.disable()
        try:
            kept = [[number] for number in range(30_000)]
            before = gc.get_freeze_count()
            world.plane.settle()
            assert gc.get_freeze_count() - before > 25_000
            assert len(kept) == 30_000
        finally:
            gc.enable()
            house.stop()

    inside(tmp_path, scenario)
