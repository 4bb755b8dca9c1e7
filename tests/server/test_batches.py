"""Group commit: what is decided together is written once, and nothing happens before it is written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from penstock.errors import DataPlaneWriteError
from penstock.ledger.events import Tick
from penstock.requests import (
    WIRE_VERSION,
    Claim,
    Claimed,
    Clear,
    Damaged,
    Depth,
    Done,
    Evict,
    Granted,
    Locate,
    Located,
    OpenSession,
    Ping,
    Shutdown,
    Status,
    StatusReport,
    Welcome,
)
from penstock.server.plane import EX_IOERR, EX_SOFTWARE
from penstock.server.startup import unexpected
from penstock.wire import WireError
from tests.server.harness import grant_of
from tests.server.inside import Inside, Wireless, inside


def test_no_reply_leaves_before_everything_decided_is_written(tmp_path: Path) -> None:
    """Replies to mutations, and to reads decided after them in the same pass, leave after one write of all records."""

    async def scenario(world: Inside) -> None:
        commit = world.write(world.expect(Granted, grant_of(["a"])), 1)
        flushed = world.journal.flushed
        calls = [world.client.ask(body) for body in (commit, Locate("p", ["a"], ["x"]), Depth("p"))]
        assert [world.client.reply(call) for call in calls] == [None] * 3
        assert world.journal.flushed == flushed
        world.plane.settle()
        assert all(world.client.reply(call) for call in calls)

    inside(tmp_path, scenario)


def test_every_reply_finds_the_journal_flushed(tmp_path: Path) -> None:
    """Whatever is asked, at the moment a reply leaves no record that was appended is unflushed."""

    async def scenario(world: Inside) -> None:
        for number in range(5):
            world.put([f"k{number}"])
            world.expect(Claimed, Claim(partition="p", task="train", required=["x"], batch=1, blocking=False))
            world.expect(Done, Evict("p", [f"k{number}"], "stale"))
        assert len(world.client.sent) > 15
        assert all(flushed == appended > 0 for _, flushed, appended in world.client.sent)

    inside(tmp_path, scenario)


def test_a_failed_write_acknowledges_nothing(tmp_path: Path) -> None:
    """When the journal cannot be written no reply leaves, then or later, and the plane ends with the reason."""

    async def scenario(world: Inside) -> None:
        world.put(["a"])
        sent = len(world.client.sent)
        world.journal.fails = DataPlaneWriteError("the disk is full")
        world.client.ask(Clear("p", ["a"]))
        world.plane.settle()
        world.journal.fails = None
        world.client.ask(Depth("p"))
        world.plane.settle()
        assert len(world.client.sent) == sent
        assert world.plane.stopped.is_set()
        assert (world.plane.exit_code, world.plane.reason) == (EX_IOERR, "the disk is full")

    inside(tmp_path, scenario)


def test_a_freed_slot_is_reused_only_after_its_record_is_written(tmp_path: Path) -> None:
    """A grant decided in the same pass as the pop that frees a slot gets it after the flush, not before."""

    async def scenario(world: Inside) -> None:
        first = world.put(["a"])
        world.client.ask(Clear("p", ["a"]))
        call = world.client.ask(grant_of(["b"]))
        assert world.arena.statistics().ready_slots == 1
        world.plane.settle()
        granted = world.client.reply(call)
        assert isinstance(granted, Granted)
        assert granted.place.offset == first.place.offset
        assert granted.place.generation > first.place.generation
        assert world.journal.flushed == world.journal.appended

    inside(tmp_path, scenario)


def test_a_read_decided_before_a_move_names_rows_as_they_lay(tmp_path: Path) -> None:
    """A locate and a compaction in one pass: the reply's place and row numbers belong together."""

    async def scenario(world: Inside) -> None:
        granted = world.put([f"k{i}" for i in range(8)])
        world.expect(Done, Clear("p", [f"k{i}" for i in range(6)]))
        ((place, kept, positions),) = world.plane.ledger.sparse_blocks()
        assert (place, kept, positions) == (granted.place, [6, 7], [6, 7])
        storage = world.plane.storage
        smaller = storage.begin_move(place.block_id, 256)
        assert smaller is not None
        call = world.client.ask(Locate("p", ["k7"], ["x"]))
        world.mover._moved(place.block_id, smaller, kept)
        located = world.client.reply(call)
        assert isinstance(located, Located)
        assert (located.blocks[0].offset, located.sources[0].index) == (place.offset, [7])
        after = world.expect(Located, Locate("p", ["k7"], ["x"]))
        assert (after.blocks[0].offset, after.sources[0].index) == (smaller.offset, [1])
        assert world.journal.flushed == world.journal.appended

    inside(tmp_path, scenario)


def test_answers_to_a_lost_connection_go_nowhere(tmp_path: Path) -> None:
    """A claim that waits on a connection which breaks is not answered on the next one under a stranger's call id."""

    async def scenario(world: Inside) -> None:
        claim = Claim(partition="p", task="train", required=["x"], batch=1)
        waiting = world.client.ask(claim)
        world.plane.settle()
        old = world.client
        world.reception.disconnected(old)
        world.client = Wireless(world.reception, world.journal)
        world.client._ids = waiting - 1  # its first call has the id of the one that waits
        world.expect(Welcome, OpenSession(WIRE_VERSION, 8, "o", "r", "h", 1))
        world.put(["a"])
        assert old.reply(waiting) is None
        assert not any(isinstance(reply.body, Claimed) for reply, _, _ in world.client.sent)

    inside(tmp_path, scenario)


def test_a_bug_in_a_question_costs_the_connection_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that meets a bug of ours ends its connection; a mutation that does ends the plane, loudly."""

    async def scenario(world: Inside) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(world.plane.ledger, "handle", broken)
        with pytest.raises(WireError, match="ZeroDivisionError"):
            world.client.ask(Status())
        with pytest.raises(ZeroDivisionError):
            world.client.ask(Clear("p", None))

    inside(tmp_path, scenario)


def test_status_is_completed_by_the_process(tmp_path: Path) -> None:
    """What only the process knows is in the report: pid, uptime, arena, its own counters."""

    async def scenario(world: Inside) -> None:
        world.put(["a"])
        world.now += 5.0
        world.plane.tell(Tick(1.0))
        report = world.expect(StatusReport, Status())
        assert report.pid > 0
        assert report.uptime_s == 5.0
        assert report.arena_bytes > 0
        assert report.counters["arena.used_bytes"] > 0

    inside(tmp_path, scenario)


def test_a_ping_looks_at_the_arena(tmp_path: Path) -> None:
    """It fails when clients could no longer map it."""

    async def scenario(world: Inside) -> None:
        world.expect(Done, Ping())
        world.arena.path.unlink()
        call = world.client.ask(Ping())
        world.plane.settle()
        assert "is gone" in str(world.client.reply(call))

    inside(tmp_path, scenario)


def test_the_plane_believes_its_own_eyes(tmp_path: Path) -> None:
    """A block that a reader calls damaged and that is not stays; one that is becomes lost."""

    async def scenario(world: Inside) -> None:
        good, bad = world.put(["good"]), world.put(["bad"])
        world.arena._bytes[bad.place.offset + bad.place.nbytes - 1] ^= 1
        calls = [world.client.ask(Damaged(g.grant)) for g in (good, bad, bad)]
        await world.mover.stop()
        world.plane.settle()
        assert all(isinstance(world.client.reply(call), Done) for call in calls)
        located = world.expect(Located, Locate("p", ["good", "bad"], ["x"]))
        assert [issue.key for issue in located.issues] == ["bad"]

    inside(tmp_path, scenario)


def test_shutdown_is_answered_and_stops(tmp_path: Path) -> None:
    """The reply leaves before the end."""

    async def scenario(world: Inside) -> None:
        world.expect(Done, Shutdown("enough"))
        assert world.plane.stopped.is_set()
        assert "enough" in world.plane.reason
        world.plane.close()
        world.plane.close()
        assert world.client.ended == ""  # it was never admitted to the list of real connections

    inside(tmp_path, scenario)


def test_a_bug_of_ours_ends_the_plane_and_a_full_table_of_descriptors_does_not(tmp_path: Path) -> None:
    """What a callback raises unexpectedly is exit code 70 with its reason; EMFILE while accepting is only counted."""

    async def scenario(world: Inside) -> None:
        full = OSError(errno.EMFILE, "Too many open files")
        unexpected(world.plane, {"message": "accept", "exception": full, "socket": object()})
        assert world.plane.warnings.counters["accept_failed"] == 1
        assert not world.plane.stopped.is_set()
        unexpected(world.plane, {"message": "in a callback", "exception": ZeroDivisionError("x")})
        assert world.plane.stopped.is_set()
        assert world.plane.exit_code == EX_SOFTWARE
        assert "ZeroDivisionError" in world.plane.reason

    inside(tmp_path, scenario)


def test_a_batch_cut_short_by_want_of_descriptors_ends_the_plane(tmp_path: Path) -> None:
    """EMFILE outside of accepting leaves a batch half carried out: that is no state to go on from."""

    async def scenario(world: Inside) -> None:
        unexpected(world.plane, {"message": "in a callback", "exception": OSError(errno.EMFILE, "no more")})
        assert world.plane.exit_code == EX_SOFTWARE

    inside(tmp_path, scenario)
