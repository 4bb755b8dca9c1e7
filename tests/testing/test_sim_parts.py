from __future__ import annotations

import random
from pathlib import Path

import pytest

from penstock.config import PlaneConfig
from penstock.ledger.journal_files import DirectoryFiles, SegmentFiles
from penstock.requests import Call, Done, Ping, Reply
from penstock.testing.sim.arena import Arena, value_of
from penstock.testing.sim.client import SimClient
from penstock.testing.sim.disk import Crashed, MemoryFiles
from penstock.testing.sim.network import Connection
from penstock.testing.sim.plane import SimPlane
from penstock.testing.sim.world import Process, World

# -- time -----------------------------------------------------------------------------------------------------------


def test_time_passes_in_order_and_stops_when_done() -> None:
    """Earlier things happen first, equal times in the order asked for; the world stops at ``until`` or when done."""
    world, seen = World(1), list[str]()
    world.at(2.0, seen.append, "late")
    world.at(1.0, seen.append, "first")
    world.at(1.0, seen.append, "second")
    world.at(9.0, seen.append, "never")
    assert not world.run(5.0, lambda: False)
    assert (seen, world.now) == (["first", "second", "late"], 5.0)
    world.after(1.0, seen.append, "next")
    assert world.run(100.0, lambda: seen[-1] == "next")
    assert world.now == 6.0


def test_a_stopped_process_does_everything_later_in_order() -> None:
    """What comes to a stopped process waits for its continuation."""
    world, seen = World(1), list[tuple[str, float]]()
    process = Process(world)
    process.stop(3.0)
    for when, name in ((1.0, "a"), (2.0, "b"), (4.0, "c")):
        world.at(when, process.awake, lambda name=name: seen.append((name, world.now)))
    world.run(10.0, lambda: False)
    assert seen == [("a", 3.0), ("b", 3.0), ("c", 4.0)]


def test_a_process_that_is_stopped_again_keeps_the_order() -> None:
    """What waited since the first stop comes before what came during the second."""
    world, seen = World(1), list[str]()
    process = Process(world)
    process.stop(3.0)
    world.at(1.0, process.awake, seen.append, "a")
    world.at(2.0, process.stop, 5.0)
    world.at(2.5, process.awake, seen.append, "b")
    world.at(3.5, process.awake, seen.append, "c")
    world.run(6.0, lambda: False)
    assert seen == []
    world.run(10.0, lambda: False)
    assert seen == ["a", "b", "c"]


# -- the network ----------------------------------------------------------------------------------------------------


class Ends:
    """Both ends of a connection, remembering."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.replies: list[int] = []
        self.kept: frozenset[int] | None = None
        self.gone = False

    def received(self, connection: Connection, message: Call | Reply) -> None:
        (self.calls if isinstance(message, Call) else self.replies).append(message.id)

    def lost(self, connection: Connection, kept: frozenset[int], why: str) -> None:
        self.kept = kept

    def disconnected(self, connection: Connection) -> None:
        self.gone = True


def call(number: int, seq: int = 0) -> Call:
    return Call(number, seq, 0, 1.0, [], [], Ping())


def test_messages_arrive_in_order_until_a_cut() -> None:
    """Each direction is a stream; after a cut both ends notice and nothing new arrives; what was kept never does."""
    for seed in range(30):
        world, ends = World(seed), Ends()
        connection = Connection(world, ends, ends)
        for number in range(1, 6):
            connection.call(call(number), number)
            connection.reply(Reply(number, 1, Done()))
        world.run(0.001, lambda: False)
        connection.cut("reset", 0.002, 0.001)
        connection.call(call(6), 6)
        connection.reply(Reply(6, 1, Done()))
        world.run(1.0, lambda: False)
        assert ends.calls == list(range(1, len(ends.calls) + 1))
        assert ends.replies == list(range(1, len(ends.replies) + 1))
        assert 6 not in ends.calls + ends.replies
        assert ends.gone
        assert ends.kept is not None
        assert ends.kept <= {6}


def test_a_stall_delays_and_loses_nothing() -> None:
    """After a stall everything arrives, in order."""
    world, ends = World(3), Ends()
    connection = Connection(world, ends, ends)
    connection.stall(2.0)
    for number in range(1, 4):
        connection.call(call(number), number)
        connection.reply(Reply(number, 1, Done()))
    world.run(1.0, lambda: False)
    assert min(len(ends.calls), len(ends.replies)) == 0
    world.run(3.0, lambda: False)
    assert ends.calls == ends.replies == [1, 2, 3]


def test_a_replayed_call_is_a_mutation_that_came_before() -> None:
    """Duplication brings back a mutation, behind later calls; questions are not repeated."""
    world, ends = World(3), Ends()
    connection = Connection(world, ends, ends)
    connection.call(call(1), 1)
    assert not connection.replay()
    connection.call(call(2, seq=1), 2)
    connection.call(call(3), 3)
    assert connection.replay()
    world.run(1.0, lambda: False)
    assert ends.calls == [1, 2, 3, 2]


# -- the disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_the_memory_disk_is_a_directory(tmp_path: Path, seed: int) -> None:
    """Random operations have the same results, errors included, on the memory twin and on a real directory."""
    rng = random.Random(seed)
    real, twin = DirectoryFiles(tmp_path), MemoryFiles()
    for _ in range(120):
        name, data, size = rng.choice("abc"), rng.randbytes(rng.randint(0, 20)), rng.randint(0, 5)
        what = rng.choice(("create", "append", "append", "truncate", "rename", "unlink", "read"))
        if what in ("truncate", "rename") and name not in twin.contents:
            continue
        if what == "truncate":
            size = min(size, len(twin.contents[name]))
        assert outcome(real, what, name, data, size) == outcome(twin, what, name, data, size)
        assert real.names() == twin.names()
    real.close()


def outcome(files: SegmentFiles, what: str, name: str, data: bytes, size: int) -> object:
    arguments = {"create": (name, data), "append": (name, data), "truncate": (name, size), "rename": (name, "d")}
    try:
        return getattr(files, what)(*arguments.get(what, (name,)))
    except OSError as error:
        return error.errno


def test_the_memory_disk_dies_where_it_is_told_to() -> None:
    """In the step named: none, some or all of the write is there; then nothing works before the restart."""
    for torn, left in ((0, b"one"), (2, b"onetw"), (-1, b"onetwo")):
        files = MemoryFiles(crash_at=2, torn=torn)
        files.create("a", b"one")
        with pytest.raises(Crashed):
            files.append("a", b"two")
        with pytest.raises(Crashed):
            files.read("a")
        files.restart()
        assert files.read("a") == left


def test_the_memory_disk_runs_full_in_the_middle_of_a_write() -> None:
    """What fits is there, as on a real disk, and the error says so."""
    files = MemoryFiles(max_bytes=5)
    files.create("a", b"one")
    with pytest.raises(OSError, match="no space"):
        files.append("a", b"two")
    assert files.read("a") == b"onetw"


# -- the arena ------------------------------------------------------------------------------------------------------


def test_a_slot_is_readable_while_it_is_pinned() -> None:
    """Filled and pinned it reads; freed it stays for its reader; a stale place reads nothing."""
    arena = Arena()
    place = arena.allot(7, 100)
    arena.write(place, ["a", "b"], ["ids"])
    arena.fill(7)
    pinned = type(place)(place.block_id, 0, place.offset, place.nbytes, place.generation, pin=1)
    assert arena.read(pinned, "ids", 1) is None
    arena.pin(place, 1)
    assert arena.read(pinned, "ids", 1) == ("b", value_of("b", "ids"))
    moved = arena.compact(place, [1])
    arena.free_slot((7, place.generation))
    assert arena.read(pinned, "ids", 1) == ("b", value_of("b", "ids"))
    arena.unpin((7, place.generation), 1)
    assert arena.read(pinned, "ids", 1) is None
    assert arena.slots.keys() == {(7, moved.generation)}
    assert arena.reconcile([moved]) == []
    assert arena.reconcile([place]) == [7]


def test_a_block_is_not_visible_before_it_was_written() -> None:
    """Filling an unwritten slot is the bug "metadata before data", and is caught."""
    arena = Arena()
    arena.allot(1, 10)
    with pytest.raises(AssertionError, match="before it was written"):
        arena.fill(1)


# -- the plane --------------------------------------------------------------------------------------------------------


def test_what_a_client_sent_before_its_end_is_read_before_its_burial() -> None:
    """A stopped plane goes on: it opens the sessions that the dead had asked for, and ends them at once."""
    world = World(1)
    plane = SimPlane(world, PlaneConfig())
    plane.start()
    plane.stop(5.0)
    clients = [SimClient(world, plane, f"client{i}", i) for i in range(1, 21)]  # more than one turn of its loop reads
    world.run(1.0, lambda: False)
    for client in clients:
        client.close()
    world.run(6.0, lambda: False)
    assert plane.ledger.statistics()["sessions.opened"] == len(clients)
    assert plane.ledger.sessions == 0
