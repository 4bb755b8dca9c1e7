"""What a plane that was killed has promised, its next life keeps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.requests import (
    Claim,
    Claimed,
    Commit,
    Done,
    GrantAgain,
    Granted,
    Pop,
    RegisterPartition,
    Tokens,
    Welcome,
)
from penstock.wire import paths
from tests.server.harness import ClientProcess, PlaneProcess, RawClient, eventually, refused


def test_kill_9_keeps_acknowledged_rows_and_leases(tmp_path: Path) -> None:
    """After kill -9 and a restart every acknowledged row is there, and the lease is still held and good for a pop."""
    data = tmp_path / "d"
    with PlaneProcess(data) as plane, RawClient(data) as client:
        client.open().register()
        client.put([f"k{i}" for i in range(8)], fill=5)
        claimed = client.claim(3)
        plane.kill()
        with PlaneProcess(data) as again, RawClient(data) as back:
            assert again.word == "ready"
            welcome = back.resumed_as(client)
            assert isinstance(welcome, Welcome)
            assert welcome.resumed
            assert back.read([f"k{i}" for i in range(8)]) == [5] * 8
            assert back.claim(8).keys == [f"k{i}" for i in range(3, 8)]
            back.expect(Done, Pop("p", claimed.keys, Tokens([claimed.token], [])))
            assert back.incarnation > client.incarnation
            assert back.audit().residue == 0


def test_a_repeated_sequence_gets_the_old_reply(tmp_path: Path) -> None:
    """A claim repeated under its sequence, before and after kill -9, gets the same lease, not another one."""
    data = tmp_path / "d"
    claim = Claim(partition="p", task="train", required=["x"], batch=2, blocking=False)
    with PlaneProcess(data) as plane, RawClient(data) as client:
        client.open().register()
        client.put(["a", "b", "c"])
        first = client.expect(Claimed, claim, seq=50)
        assert client.call(claim, seq=50) == first
        plane.kill()
        with PlaneProcess(data), RawClient(data) as back:
            back.resumed_as(client)
            assert back.call(claim, seq=50) == first
            assert back.expect(Claimed, claim, seq=51).keys == ["c"]


def test_a_session_with_the_wrong_secret_is_refused(tmp_path: Path) -> None:
    """A resume with another secret is refused, hurts nobody, and the connection may open a new session."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir) as client:
        client.open().register()
        with RawClient(plane.data_dir, client_id=2) as thief:
            right, client.secret = client.secret, "0" * 32
            refused(thief.resumed_as(client), "DataPlaneUnavailable")
            client.secret = right
            thief.open()
            thief.put(["a"])
        assert client.read(["a"]) == [7]


def test_sessions_that_do_not_come_back_lose_their_leases(tmp_path: Path) -> None:
    """After a restart, leases of a session that is not resumed within the grace return to others."""
    data = tmp_path / "d"
    with PlaneProcess(data) as plane, RawClient(data) as client:
        client.open().register()
        client.put(["a"])
        assert client.claim(1).keys == ["a"]
        plane.kill()
        with PlaneProcess(data, resume_grace_s=0.3), RawClient(data, client_id=2) as other:
            assert other.open().claim(1, blocking=True).keys == ["a"]


def test_who_died_while_the_plane_was_away_is_not_waited_for(tmp_path: Path) -> None:
    """Plane and consumer are killed together: the next life gives the rows back at once, whatever its grace."""
    data = tmp_path / "d"
    script = "client.open().register()\nclient.put(['a'])\nclient.claim(1)\nsay('leased')\ntime.sleep(60)"
    with PlaneProcess(data) as plane, ClientProcess(data, script) as dead, RawClient(data, client_id=2) as lives:
        assert dead.line() == "leased"
        lives.open().put(["b"])
        assert lives.claim(1).keys == ["b"]
        plane.kill()
        dead.kill()
        with PlaneProcess(data, resume_grace_s=60.0) as again, RawClient(data, client_id=3) as other:
            assert other.open().claim(2, blocking=True).keys == ["a"]
            assert f"process {dead.process.pid} had ended before this life began" in again.log()
            with RawClient(data, client_id=2) as back:
                assert isinstance(back.resumed_as(lives), Welcome)  # who lives is waited for


def test_a_grant_of_an_earlier_life_is_asked_for_again(tmp_path: Path) -> None:
    """A commit on a grant the plane does not know is answered "grant again", and nothing happens."""
    data = tmp_path / "d"
    with PlaneProcess(data) as plane, RawClient(data) as client:
        client.open().register()
        granted = client.grant(["a"])
        assert isinstance(granted, Granted)
        content = client.write(granted, 1)
        plane.kill()
        with PlaneProcess(data), RawClient(data) as back:
            back.resumed_as(client)
            back.expect(GrantAgain, Commit(granted.grant, content))
            assert back.audit().partitions[0].put == 0
            again = back.put(["a"], fill=3)
            assert again.arena.arena_id != granted.arena.arena_id
            assert back.read(["a"]) == [3]


def test_an_old_arena_is_emptied_unlinked_and_never_granted_in(tmp_path: Path) -> None:
    """Blocks of an earlier life move into this life's arena, whose file is new; the old file goes."""
    data = tmp_path / "d"
    with PlaneProcess(data) as plane, RawClient(data) as client:
        client.open().register()
        old = client.put(["a", "b"], fill=1).arena
        client.put(["c"], fill=2)
        plane.kill()
        with PlaneProcess(data) as again, RawClient(data) as back:
            back.resumed_as(client)
            granted = [back.put([f"n{i}"], fill=3) for i in range(20)]
            assert old.arena_id not in {g.arena.arena_id for g in granted}
            eventually("the old file is unlinked", lambda: not paths.arena_path(data, old).exists())
            assert back.read(["a", "b", "c"]) == [1, 1, 2]
            assert len(again.segments()) == 1
            again.kill()
            with PlaneProcess(data), RawClient(data) as third:
                third.resumed_as(client)
                assert third.read(["a", "b", "c", "n19"]) == [1, 1, 2, 3]


def test_a_missing_arena_makes_its_rows_lost_by_name(tmp_path: Path) -> None:
    """Rows whose blocks are gone are lost in the audit, are never served, and the books balance."""
    data = tmp_path / "d"
    with PlaneProcess(data) as plane, RawClient(data) as client:
        client.open().register()
        arena = client.put(["a", "b"]).arena
        plane.kill()
        paths.arena_path(data, arena).unlink()
        with PlaneProcess(data), RawClient(data) as back:
            back.resumed_as(client)
            located = back.locate(["a", "b"])
            assert [issue.key for issue in located.issues] == ["a", "b"]
            (audit,) = back.audit().partitions
            assert sum(audit.lost.values()) == 2
            assert audit.residue == 0


@pytest.mark.parametrize("where", [70, -1], ids=["header", "payload"])
def test_a_damaged_block_is_found_and_lost_by_name(tmp_path: Path, where: int) -> None:
    """A flipped byte in a block, in its header or in its last row, makes its rows lost; other blocks live on."""
    data = tmp_path / "d"
    with PlaneProcess(data) as plane, RawClient(data) as client:
        client.open().register()
        granted = client.put(["a", "b"])
        client.put(["good"], fill=6)
        plane.kill()
        offset = granted.place.offset + where % granted.place.nbytes
        fd = os.open(paths.arena_path(data, granted.arena), os.O_RDWR)
        os.pwrite(fd, bytes([os.pread(fd, 1, offset)[0] ^ 1]), offset)
        os.close(fd)
        with PlaneProcess(data) as again, RawClient(data) as back:
            back.resumed_as(client)
            eventually("found", lambda: sum(back.audit().partitions[0].lost.values()) == 2)
            assert [issue.key for issue in back.locate(["a", "good"]).issues] == ["a"]
            assert back.read(["good"]) == [6]
            assert back.audit().residue == 0
            assert "damaged" in again.log() or "lost" in again.log()


def test_segments_of_dead_lives_are_removed(tmp_path: Path) -> None:
    """After kill -9 and a restart no segment is left that the new plane does not own."""
    data = tmp_path / "d"
    for _ in range(3):
        with PlaneProcess(data) as plane:
            assert len(plane.segments()) == 1
            plane.kill()
            survivors = plane.segments()
            with PlaneProcess(data) as again:
                assert len(again.segments()) == 1
                assert again.segments() != survivors


def test_a_corrupt_journal_is_not_started_on(tmp_path: Path) -> None:
    """Damage before the journal's tail refuses the start, names the remedy, and ``--repair`` starts."""
    data = tmp_path / "d"
    with PlaneProcess(data) as plane, RawClient(data) as client:
        client.open().register()
        for i in range(20):
            client.expect(Done, RegisterPartition(f"q{i}", ["x"], 8, ["train"]))
        plane.kill()
    (segment,) = sorted(paths.journal_dir(data).iterdir())
    raw = bytearray(segment.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    segment.write_bytes(raw)
    with PlaneProcess(data) as broken:
        assert broken.word.startswith("error:")
        assert "--repair" in broken.word
        assert broken.wait() == 65
    with PlaneProcess(data, "--repair") as repaired:
        assert repaired.word == "ready"


def test_durability_memory_keeps_nothing(tmp_path: Path) -> None:
    """A plane of durability memory starts empty, with a greater incarnation, and leaves no file behind but its log."""
    data = tmp_path / "d"
    with PlaneProcess(data, durability="memory") as plane, RawClient(data) as client:
        client.open().register()
        client.put(["a"])
        plane.kill()
        with PlaneProcess(data, durability="memory") as again, RawClient(data) as back:
            refused(back.resumed_as(client), "DataPlaneUnavailable")
            assert back.open().status().rows == 0
            assert back.incarnation > client.incarnation
            assert again.end() == 0
            assert again.segments() == []
