"""When a slot is its writer's, its readers' and nobody's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.ledger.events import Allot
from penstock.requests import (
    WIRE_VERSION,
    Claim,
    Clear,
    Commit,
    Done,
    Failed,
    Goodbye,
    Granted,
    Heartbeat,
    Locate,
    Located,
    OpenSession,
    Welcome,
)
from tests.server.harness import grant_of
from tests.server.inside import CAPACITY, Inside, Wireless, inside


def test_a_dropped_grant_stays_its_writers_until_he_lets_go(tmp_path: Path) -> None:
    """The ledger gives a grant up while its writer may still be copying: the slot is free when he says so."""

    async def scenario(world: Inside) -> None:
        granted = world.expect(Granted, grant_of(["a"]))
        world.plane.custody.drop(granted.grant)
        assert world.arena.statistics().writing_slots == 1
        world.expect(Done, Heartbeat(granted.grant, 0, [], []))
        assert world.arena.statistics().writing_slots == 0

    inside(tmp_path, scenario)


def test_a_refused_commit_frees_its_slot_at_once(tmp_path: Path) -> None:
    """A writer that has asked to commit does not touch the slot any more."""

    async def scenario(world: Inside) -> None:
        granted = world.expect(Granted, grant_of(["a"]))
        world.expect(Done, Clear("p", None))
        world.expect(Failed, world.write(granted, 1))
        assert world.arena.statistics().used == 0

    inside(tmp_path, scenario)


def test_a_grant_nobody_waits_for_is_not_placed(tmp_path: Path) -> None:
    """Its connection broke while it was decided: no slot is held for it."""

    async def scenario(world: Inside) -> None:
        world.client.ask(grant_of(["a"]))
        world.reception.disconnected(world.client)
        world.plane.settle()
        assert world.arena.statistics().used == 0

    inside(tmp_path, scenario)


def test_a_waiting_grant_goes_with_its_connection(tmp_path: Path) -> None:
    """It holds up nobody behind it, and the ledger's room is free again."""

    async def scenario(world: Inside) -> None:
        world.client.ask(grant_of(["a"], row_bytes=2 * CAPACITY))
        world.plane.settle()
        assert len(world.plane.custody.allotment) == 1
        world.reception.disconnected(world.client)
        world.plane.settle()
        assert len(world.plane.custody.allotment) == 0
        assert world.plane.custody._writers == {}

    inside(tmp_path, scenario)


def test_a_grant_that_waits_for_a_slot_is_withdrawn_by_its_client(tmp_path: Path) -> None:
    """Its caller has left: the call is over, nobody behind it waits for it, and nothing is held for it."""

    async def scenario(world: Inside) -> None:
        call = world.client.ask(grant_of(["a"], row_bytes=2 * CAPACITY))
        world.plane.settle()
        assert len(world.plane.custody.allotment) == 1
        world.expect(Done, Heartbeat(0, 0, [], [], [call, 999]))
        assert isinstance(world.client.reply(call), Failed)
        assert len(world.plane.custody.allotment) == 0
        assert world.plane.custody._writers == {}
        assert not world.client.open_calls
        assert not world.plane.ledger.desk.state.grants  # type: ignore[attr-defined]

    inside(tmp_path, scenario)


def test_a_grant_that_waits_for_capacity_is_withdrawn_by_its_client(tmp_path: Path) -> None:
    """Room that the same heartbeat gives back goes to the one behind it."""

    async def scenario(world: Inside) -> None:
        first = world.expect(Granted, grant_of(["a"]))
        left, waits = world.client.ask(grant_of(["b"])), world.client.ask(grant_of(["c"]))
        world.plane.settle()
        world.expect(Done, Heartbeat(first.grant, 0, [], [], [left]))
        assert isinstance(world.client.reply(left), Failed)
        assert isinstance(world.client.reply(waits), Granted)
        assert not world.client.open_calls

    inside(tmp_path, scenario, max_rows=1, reserve_fraction=0.0)


def test_a_client_withdraws_its_own_calls_only(tmp_path: Path) -> None:
    """Call numbers are each connection's own; what was answered, or is no put, is left alone."""

    async def scenario(world: Inside) -> None:
        other = Wireless(world.reception, world.journal)
        other.ask(OpenSession(WIRE_VERSION, 8, "o", "r", "h", 1))
        granted = world.expect(Granted, grant_of(["a"]))
        claim = world.client.ask(Claim("p", "train", ["x"], 1))
        put = world.client.ask(grant_of(["b"]))
        other.ask(Heartbeat(0, 0, [], [], list(range(100))))
        world.expect(Done, Heartbeat(granted.grant, 0, [granted.grant], [], [claim]))
        assert world.client.reply(put) is None
        assert world.client.reply(claim) is None
        world.expect(Done, world.write(granted, 1))
        assert world.client.reply(claim) is not None

    inside(tmp_path, scenario, max_rows=1, reserve_fraction=0.0)


def test_a_put_that_waits_for_capacity_goes_with_its_connection(tmp_path: Path) -> None:
    """It is asked anew on the next connection; what it held up has its turn now."""

    async def scenario(world: Inside) -> None:
        other = Wireless(world.reception, world.journal)
        other.ask(OpenSession(WIRE_VERSION, 8, "o", "r", "h", 1))
        world.put(["a"])
        other.ask(grant_of(["b", "c"]))
        behind = world.client.ask(grant_of(["d"]))
        world.plane.settle()
        assert world.client.reply(behind) is None
        world.reception.disconnected(other)
        world.plane.settle()
        assert isinstance(world.client.reply(behind), Granted)

    inside(tmp_path, scenario, max_rows=2, reserve_fraction=0.0)


def test_a_grant_of_an_ended_session_is_not_placed(tmp_path: Path) -> None:
    """There is nobody to hold it."""

    async def scenario(world: Inside) -> None:
        world.plane.take([Allot(session_id=99, call_id=1, grant=5, nbytes=64, deadline=1e9)])
        world.plane.settle()
        assert world.arena.statistics().used == 0

    inside(tmp_path, scenario)


def test_a_grant_that_finds_no_room_fails_at_its_deadline(tmp_path: Path) -> None:
    """It says how much there is and who holds it; the ledger's room is free again."""

    async def scenario(world: Inside) -> None:
        call = world.client.ask(grant_of(["a"], row_bytes=2 * CAPACITY))
        world.plane.settle()
        assert world.client.reply(call) is None
        world.now += 31.0
        world.plane.custody.expire(world.now)
        world.plane.settle()
        failed = world.client.reply(call)
        assert isinstance(failed, Failed)
        assert failed.code == "DataPlaneFull"
        assert "bytes are in slots" in failed.message
        assert len(world.plane.custody.allotment) == 0
        world.put(["b"])

    inside(tmp_path, scenario)


def test_a_read_nobody_waits_for_pins_nothing(tmp_path: Path) -> None:
    """A locate whose connection broke holds no block."""

    async def scenario(world: Inside) -> None:
        world.put(["a"])
        world.client.ask(Locate("p", ["a"], ["x"]))
        world.reception.disconnected(world.client)
        world.plane.settle()
        assert world.arena.statistics().pins == 0

    inside(tmp_path, scenario)


def test_the_kernels_word_frees_everything(tmp_path: Path) -> None:
    """Grants, pins and waiting grants of a process that is gone are nobody's; its sessions are over."""

    async def scenario(world: Inside) -> None:
        world.put(["a"])
        world.expect(Located, Locate("p", ["a"], ["x"]))
        world.expect(Granted, grant_of(["b"]))
        world.client.ask(grant_of(["c"], row_bytes=2 * CAPACITY))
        world.plane.settle()
        process = world.client.process
        assert process is not None
        world.reception._bury(process)
        world.plane.settle()
        statistics = world.arena.statistics()
        assert (statistics.pins, statistics.writing_slots, len(world.plane.custody.allotment)) == (0, 0, 0)
        assert len(world.plane.sessions) == 0
        assert len(world.plane.custody.holdings) == 0
        assert world.client.ended == "discarded"

    inside(tmp_path, scenario)


@pytest.mark.parametrize("last_word", ["goodbye", "heartbeat", "death"])
def test_a_committed_block_outlives_its_writer(tmp_path: Path, last_word: str) -> None:
    """A commit and its writer's goodbye, heartbeat or death met in one pass: the block stays, and no slot leaks."""

    async def scenario(world: Inside) -> None:
        commit = world.write(world.expect(Granted, grant_of(["a"])), 1)
        spare = world.expect(Granted, grant_of(["b"]))
        world.client.ask(commit)
        if last_word == "goodbye":
            world.client.ask(Goodbye())
        elif last_word == "heartbeat":
            world.client.ask(Heartbeat(spare.grant, 0, [], []))
        else:
            assert world.client.process is not None
            world.reception._bury(world.client.process)
        world.plane.settle()
        world.client = Wireless(world.reception, world.journal)
        world.expect(Welcome, OpenSession(WIRE_VERSION, 8, "o", "r", "h", 1))
        located = world.expect(Located, Locate("p", ["a"], ["x"]))
        assert [place.block_id for place in located.blocks] == [commit.grant]
        statistics = world.arena.statistics()
        assert (statistics.ready_slots, statistics.writing_slots, statistics.ignored) == (1, 0, 0)

    inside(tmp_path, scenario)


def test_room_that_an_unpin_frees_is_given_at_once(tmp_path: Path) -> None:
    """A grant waits for room; the last pin of a removed block rides on a call that is not answered: it need not be."""

    async def scenario(world: Inside) -> None:
        first = world.expect(Granted, grant_of(["a"], row_bytes=CAPACITY - 8192))
        world.expect(Done, Commit(first.grant, 1))
        pin = world.expect(Located, Locate("p", ["a"], ["x"])).blocks[0].pin
        world.expect(Done, Clear("p", ["a"]))
        waiting = world.client.ask(grant_of(["c"], row_bytes=CAPACITY - 8192))
        world.plane.settle()
        assert world.client.reply(waiting) is None
        claim = Claim(partition="p", task="train", required=["x"], batch=1)
        world.client.ask(claim, unpins=[pin])
        world.plane.settle()
        assert isinstance(world.client.reply(waiting), Granted)

    inside(tmp_path, scenario)


def test_a_replaced_connection_is_granted_nothing(tmp_path: Path) -> None:
    """Its calls are answered by nobody from the moment it was discarded: no slot, no pin is held for them."""

    async def scenario(world: Inside) -> None:
        world.put(["a"])
        world.client.ask(grant_of(["b"]))
        world.client.ask(Locate("p", ["a"], ["x"]))
        world.client.closed = True
        world.plane.settle()
        statistics = world.arena.statistics()
        assert (statistics.pins, statistics.writing_slots) == (0, 0)

    inside(tmp_path, scenario)


def test_a_large_grant_lets_others_have_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its room is allocated a slice at a time; a call that comes meanwhile is answered before it."""
    monkeypatch.setattr("penstock.payload.arena.SLICE_BYTES", 64 * 1024)

    async def scenario(world: Inside) -> None:
        large = world.client.ask(grant_of(["a"], row_bytes=CAPACITY // 2))
        world.plane.settle()
        assert world.client.reply(large) is None
        world.put(["b"])
        assert world.client.reply(large) is None
        for _ in range(20):
            await asyncio.sleep(0)
        assert isinstance(world.client.reply(large), Granted)

    inside(tmp_path, scenario)


@pytest.mark.parametrize("end", ["disconnected", "expired", "death"])
def test_a_large_grant_that_is_given_up_half_way_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Its connection breaks, its deadline comes or its process ends while its room is being allocated."""
    monkeypatch.setattr("penstock.payload.arena.SLICE_BYTES", 64 * 1024)

    async def scenario(world: Inside) -> None:
        world.client.ask(grant_of(["a"], row_bytes=CAPACITY // 2))
        world.plane.settle()
        assert world.arena.begun()
        if end == "disconnected":
            world.reception.disconnected(world.client)
        elif end == "expired":
            world.now += 31.0
            world.plane.custody.back(world.now)
            assert not any(isinstance(reply.body, Granted) for reply, _, _ in world.client.sent)
            world.plane.custody.expire(world.now)
        else:
            assert world.client.process is not None
            world.reception._bury(world.client.process)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.arena.begun() == []
        assert world.arena.statistics().used == 0
        assert world.plane.custody._writers == {}

    inside(tmp_path, scenario)
