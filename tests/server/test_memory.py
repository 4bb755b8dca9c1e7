"""Memory follows the process: who holds a slot, when it is free, and what a full arena does."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from penstock.requests import Clear, Commit, Done, Evict, Goodbye, GrantAgain, Granted, Pop, Tokens
from tests.server.harness import ClientProcess, PlaneProcess, RawClient, arena_file, eventually, refused

MIB = 1024 * 1024


def test_a_dead_consumers_rows_come_back(tmp_path: Path) -> None:
    """A claim of a process that is killed goes to the claim that waits, at the kernel's word."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir) as client:
        client.open().register()
        client.put(["a", "b"])
        with ClientProcess(plane.data_dir, "say(client.open().claim(2).keys)\ntime.sleep(60)") as consumer:
            assert consumer.line() == "['a', 'b']"
            waiting = client.send_claim(2)
            consumer.kill()
            began = time.monotonic()
            claimed = client.receive_claimed(waiting)
            assert claimed.keys == ["a", "b"]
            assert time.monotonic() - began < 5.0  # of 10 s that a missing heartbeat would take


def test_a_writer_stopped_in_mid_copy_keeps_its_slot(tmp_path: Path) -> None:
    """A writer that is stopped loses its session, not its slot: nobody else is granted it; its death frees it."""
    script = (
        "client.open()\n"
        "granted = client.grant(['late'], row_bytes=4096)\n"
        "say(granted.grant, granted.place.offset)\n"
        "time.sleep(600)\n"
    )
    config: dict[str, Any] = {"heartbeat_s": 0.2, "dead_after_s": 1.0}
    with PlaneProcess(tmp_path / "d", **config) as plane, RawClient(plane.data_dir) as client:
        client.open().register()
        with ClientProcess(plane.data_dir, script) as writer:
            _, offset = map(int, writer.line().split())
            writer.process.send_signal(signal.SIGSTOP)

            def sessions() -> int:
                return len(client.status().sessions)

            eventually("its session ends", lambda: sessions() == 1)
            taken = [client.put([f"k{i}"], row_bytes=4096).place.offset for i in range(20)]
            client.expect(Done, Clear("p", [f"k{i}" for i in range(20)]))
            taken += [client.put([f"m{i}"], row_bytes=4096).place.offset for i in range(20)]
            assert offset not in taken
            assert client.status().counters["arena.slots_writing"] == 1
            writer.kill()
            eventually("its slot is free", lambda: client.status().counters["arena.slots_writing"] == 0)
            assert client.put(["last"], row_bytes=4096).place.offset == offset


def test_a_commit_after_the_sessions_end_is_safe(tmp_path: Path) -> None:
    """A writer whose session died while its process lived commits under a new one, or is asked to copy again."""
    config: dict[str, Any] = {"heartbeat_s": 0.2, "dead_after_s": 1.0}
    with PlaneProcess(tmp_path / "d", **config) as plane, RawClient(plane.data_dir, 1) as watcher:
        with RawClient(plane.data_dir, 2) as first:
            first.open().register()
            granted = first.grant(["a"])
            assert isinstance(granted, Granted)
            content = first.write(granted, 1)
            watcher.open()
            eventually("the session ends", lambda: len(watcher.status().sessions) == 1)
        with RawClient(plane.data_dir, 2) as second:
            reply = second.open().call(Commit(granted.grant, content))
            assert isinstance(reply, Done | GrantAgain)
            assert watcher.audit().partitions[0].put == isinstance(reply, Done)


def test_a_grant_that_a_heartbeat_does_not_list_is_free(tmp_path: Path) -> None:
    """A grant older than the newest received, and unlisted, is given back; a listed one is kept."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir) as client:
        client.open().register()
        first, second = client.grant(["a"]), client.grant(["b"])
        assert isinstance(first, Granted)
        assert isinstance(second, Granted)
        client.heartbeat([], [])  # the client has received none so far, as far as it says
        assert client.status().counters["arena.slots_writing"] == 2
        client.heartbeat([first.grant], [], grant_high=second.grant)
        assert client.status().counters["arena.slots_writing"] == 1
        client.expect(GrantAgain, Commit(second.grant, 1))
        client.expect(Done, Commit(first.grant, client.write(first, 1)))
        assert client.read(["a"]) == [7]


def test_a_grant_whose_reply_was_lost_is_free_after_resuming(tmp_path: Path) -> None:
    """A grant answered on a connection that broke, and not listed after resuming, does not keep its slot."""
    with PlaneProcess(tmp_path / "d") as plane:
        with RawClient(plane.data_dir) as client:
            client.open().register()
            assert isinstance(client.grant(["a"]), Granted)
        with RawClient(plane.data_dir) as back:
            back.resumed_as(client)
            back.heartbeat([], [])
            assert back.status().counters["arena.slots_writing"] == 0


def test_a_pinned_block_outlives_its_rows(tmp_path: Path) -> None:
    """A block that a reader has pinned keeps its bytes after its rows were popped, until the pin is taken back."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir) as client:
        client.open().register()
        client.put(["a"])
        located = client.locate(["a"])
        client.expect(Done, Pop("p", ["a"], Tokens([], [])))
        (place,) = located.blocks
        assert client.put(["b"]).place.offset != place.offset
        with arena_file(plane.data_dir, located.arenas[0], os.O_RDONLY) as fd:
            assert os.pread(fd, 8, place.offset) == b"PENSTOCK"
        assert client.status().counters["arena.slots_only_pinned"] == 1
        client.heartbeat([], [], pin_high=place.pin)
        assert client.status().counters["arena.slots_only_pinned"] == 0
        assert client.put(["c"]).place.offset == place.offset


def test_unpins_ride_on_any_call(tmp_path: Path) -> None:
    """Pins named in a call are taken back before it; a pin number that is not held changes nothing."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir) as client:
        client.open().register()
        client.put(["a"])
        pins = [client.locate(["a"]).blocks[0].pin for _ in range(3)]
        assert client.status().counters["arena.pins"] == 3
        client.receive(client.send(Evict("p", [], "x"), unpins=[*pins[:2], pins[0], 12345]))
        assert client.status().counters["arena.pins"] == 1
        client.expect(Done, Goodbye())
        with RawClient(plane.data_dir, 2) as other:
            assert other.open().status().counters["arena.pins"] == 0


def test_a_full_arena_makes_grants_wait_in_order(tmp_path: Path) -> None:
    """A put that finds no room waits, gets the room that a pop frees, and fails as full at its deadline."""
    config: dict[str, Any] = {"max_bytes": 16 * MIB, "reserve_fraction": 0.0, "warm_bytes": 0}
    with PlaneProcess(tmp_path / "d", **config) as plane, RawClient(plane.data_dir) as client:
        client.open().register()
        for number in range(7):  # popped but pinned: the ledger has room, the arena has none
            client.put([f"k{number}"], row_bytes=4 * MIB)
            client.locate([f"k{number}"])
            client.expect(Done, Pop("p", [f"k{number}"], Tokens([], [])))
        assert client.status().counters["arena.used_bytes"] > 25 * MIB
        began = time.monotonic()
        refused(client.grant(["late"], row_bytes=8 * MIB, deadline_s=0.5), "DataPlaneFull")
        assert time.monotonic() - began >= 0.5
        with RawClient(plane.data_dir, 2) as other:
            other.open()
            answers: list[object] = []
            waiter = threading.Thread(target=lambda: answers.append(other.grant(["b"], row_bytes=8 * MIB)))
            waiter.start()
            eventually("it waits", lambda: client.status().counters["grants.waiting_for_room"] == 1)
            client.heartbeat([], [], pin_high=2**62)
            waiter.join(30)
            assert isinstance(answers[0], Granted)


def test_memory_returns_after_a_clear(tmp_path: Path) -> None:
    """Clearing 99.9 % of the rows, spread over all blocks, frees their memory (trap 12)."""
    config: dict[str, Any] = {"warm_bytes": 1 * MIB, "max_bytes": 40 * MIB}
    with PlaneProcess(tmp_path / "d", **config) as plane, RawClient(plane.data_dir) as client:
        client.open().register()
        keys = [[f"{block}-{row}" for row in range(1000)] for block in range(8)]
        for block, names in enumerate(keys):
            client.put(names, row_bytes=4096, fill=block)
        full = plane.resident()
        assert full > 30 * MIB
        doomed = [name for names in keys for name in names[1:]]
        client.expect(Done, Clear("p", doomed))
        eventually("memory returns", lambda: plane.resident() < 4 * MIB)
        kept = [names[0] for names in keys]
        assert client.read(kept, row_bytes=4096) == list(range(8))
        plane.kill()
        with PlaneProcess(plane.data_dir, **config), RawClient(plane.data_dir) as back:
            back.resumed_as(client)
            assert back.read(kept, row_bytes=4096) == list(range(8))


def test_a_block_is_compacted_again_after_a_restart(tmp_path: Path) -> None:
    """Row positions hold through compaction, restart, move and a second compaction."""
    config: dict[str, Any] = {"warm_bytes": 0}
    data = tmp_path / "d"
    keys = [f"k{i}" for i in range(64)]
    with PlaneProcess(data, **config) as plane, RawClient(data) as client:
        client.open().register()
        for i in range(0, 64, 8):  # eight rows a put, so that positions and keys differ
            client.put(keys[i : i + 8], fill=i)
        client.expect(Done, Clear("p", [k for i, k in enumerate(keys) if i % 8 not in (2, 5, 7)]))

        def sizes(of: RawClient, names: list[str]) -> set[int]:
            return {place.nbytes for place in of.locate(names).blocks}

        before = sizes(client, ["k2"])
        eventually("compacted", lambda: sizes(client, ["k2"]) < before or max(sizes(client, ["k2"])) < max(before))
        plane.kill()
        with PlaneProcess(data, **config), RawClient(data) as back:
            back.resumed_as(client)
            once = max(sizes(back, ["k2"]))
            back.expect(Done, Clear("p", [k for i, k in enumerate(keys) if i % 8 in (2, 5)]))
            eventually("compacted again", lambda: max(sizes(back, ["k7"])) < once)
            last = [k for i, k in enumerate(keys) if i % 8 == 7]
            assert back.read(last) == list(range(0, 64, 8))
            assert back.audit().residue == 0
