"""A real plane and a real agent: puts and reads on a host, and what becomes of memory when writers or rows end."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from penstock.requests import Claim, Claimed, Damaged, Done, Failed, GrantAgain, Granted, Pop, Seal, Tokens
from tests.host.harness import AgentProcess, HostClient, TcpPlane, Writer, blocks_of, eventually, site, used_bytes
from tests.host.inside import hosts
from tests.server.harness import RawClient, arena_file

PUT_UNTIL = {
    "reserved": "r = c.reserve(c.grant(['a']))\n",
    "sealed": "g = c.grant(['a']); r = c.reserve(g); c.seal(g.grant, c.write(r, 1))\n",
    "committed": "c.put(['a'])\n",
}
THEN_WAIT = "say('done')\ntime.sleep(600)\n"


def watching(agent: AgentProcess) -> RawClient:
    return RawClient(agent.data_dir, 5).open()


def test_rows_that_are_put_on_a_host_are_adopted_and_read_there(tmp_path: Path) -> None:
    """No payload byte lies with the plane; the agent is told that the block is needed."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a", "b"], 9)
        assert c.read(["a", "b"]) == [9, 9]
        eventually("it is adopted", lambda: blocks_of(c.agent) == {"adopted": 1})
        assert c.plane.status().counters["arena.used_bytes"] == 0
        assert c.hosts()[agent.host_id].blocks == 1


def test_the_slot_goes_with_the_last_row(tmp_path: Path) -> None:
    """The plane orders it, and the bytes are free for the next put."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a", "b"])
        c.plane.expect(Done, Pop("p", ["a"], Tokens([], [])))
        assert c.read(["b"]) == [7]
        c.plane.expect(Done, Pop("p", ["b"], Tokens([], [])))
        eventually("its slot is free", lambda: used_bytes(c.agent) == 0)


@pytest.mark.parametrize("step", ["reserved", "sealed"])
@pytest.mark.parametrize("end", ["killed", "lets go", "says goodbye"])
def test_no_memory_is_left_of_a_writer_that_did_not_commit(tmp_path: Path, step: str, end: str) -> None:
    """By the kernel's word or its own, an unsealed block goes at once, a sealed one after the plane was asked."""
    last = {
        "killed": THEN_WAIT,
        "lets go": "c.let_go(r.grant)\n" + THEN_WAIT,
        "says goodbye": "c.goodbye()\n" + THEN_WAIT,
    }
    script = PUT_UNTIL[step] + "say('put')\nsys.stdin.readline()\n" + last[end]
    with site(tmp_path) as (plane, agent), Writer(plane, agent, script) as writer, watching(agent) as watcher:
        assert writer.line() == "put"
        assert used_bytes(watcher) > 0
        if end == "killed":
            writer.kill()
        else:
            writer.go_on()
            assert writer.line() == "done"
        eventually("its slot is free", lambda: used_bytes(watcher) == 0)
        eventually("nothing is in question", lambda: blocks_of(watcher) == {})
        assert watcher.status().counters["arena.slot_events_ignored"] == 0


def test_a_committed_put_outlives_its_writer(tmp_path: Path) -> None:
    """The agent asks about the block, and is told to keep it, unless it was told before."""
    with site(tmp_path) as (plane, agent), Writer(plane, agent, PUT_UNTIL["committed"] + THEN_WAIT) as writer:
        assert writer.line() == "done"
        writer.kill()
        with HostClient.of(plane, agent) as c:
            eventually("it is adopted", lambda: blocks_of(c.agent) == {"adopted": 1})
            assert c.read(["a"]) == [7]


def test_a_silent_writer_is_not_a_dead_one(tmp_path: Path) -> None:
    """A stopped process keeps its slot, however long its heartbeats are late; a dead one does not."""
    script = PUT_UNTIL["reserved"] + THEN_WAIT
    with site(tmp_path, heartbeat_s=0.1, dead_after_s=0.3) as (plane, agent), Writer(plane, agent, script) as writer:
        assert writer.line() == "done"
        os.kill(writer.process.pid, signal.SIGSTOP)
        with HostClient.of(plane, agent) as c:
            eventually("the plane has given it up", lambda: len(c.plane.status().sessions) == 2)
            assert blocks_of(c.agent) == {"granted": 1}
            writer.kill()
            eventually("its slot is free", lambda: used_bytes(c.agent) == 0)


def test_the_kernels_word_of_a_clients_end_reaches_the_plane(tmp_path: Path) -> None:
    """A client of another machine that dies gives its leases back at once, not when its heartbeat is late."""
    claim = "c.plane.expect(Claimed, Claim('p', 'train', ['x'], 1))\n"
    with site(tmp_path, dead_after_s=600.0) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a"])
        with Writer(plane, agent, claim + THEN_WAIT) as consumer:
            assert consumer.line() == "done"
            consumer.kill()
            claimed = c.plane.expect(Claimed, Claim("p", "train", ["x"], 1), deadline_s=20.0)
            assert claimed.keys == ["a"]


def test_pinned_bytes_stay_when_their_rows_go(tmp_path: Path) -> None:
    """A reader's pin outlives the block; its end frees the slot."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        granted = c.put(["a"])
        (held,) = c.hold([granted.grant]).blocks
        c.plane.expect(Done, Pop("p", ["a"], Tokens([], [])))
        eventually("the block is gone", lambda: blocks_of(c.agent) == {})
        assert used_bytes(c.agent) > 0
        c.agent.heartbeat([], [], pin_high=held.pin)
        eventually("its slot is free", lambda: used_bytes(c.agent) == 0)


def test_a_damaged_block_is_lost_by_name(tmp_path: Path) -> None:
    """The agent believes its own eyes only; the reason names the host."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        granted = c.put(["a"])
        c.put(["b"])
        held = c.hold([granted.grant])
        place = held.blocks[0]
        with arena_file(agent.data_dir, held.arenas[0], os.O_RDWR) as fd:
            os.pwrite(fd, b"\xff" * 8, place.offset + place.nbytes - 16)
        c.plane.expect(Done, Damaged(granted.grant, agent.host_id))
        eventually("it is lost", lambda: c.locate(["a"]).issues)
        assert "alpha" in c.locate(["a"]).issues[0].why
        assert c.read(["b"]) == [7]


def test_an_agent_knows_no_rows(tmp_path: Path) -> None:
    """Whoever asks it for some is told which plane to ask."""
    with site(tmp_path) as (plane, agent), RawClient(agent.data_dir).open() as client:
        refused = client.call(Claim("p", "train", ["x"], 1))
        assert isinstance(refused, Failed)
        assert plane.url in refused.message


def test_a_reservation_whose_answer_was_lost_is_answered_again(tmp_path: Path) -> None:
    """On the next connection: the same slot, and a heartbeat that was sent before it came does not give it back."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        granted = c.grant(["a"])
        first = c.reserve(granted)
        with RawClient(agent.data_dir, c.agent.client_id) as again:
            again.resumed_as(c.agent)
            call = again.send(c.reserving(granted))
            again.heartbeat([], [], grant_high=0)
            reply = again.receive(call)
            assert isinstance(reply, Granted)
            assert reply.place == first.place
            assert blocks_of(again) == {"granted": 1}
            again.heartbeat([], [], grant_high=granted.grant)
            assert blocks_of(again) == {}


def test_a_full_host_is_backpressure(tmp_path: Path) -> None:
    """A reservation waits for room until its deadline, and has it when some comes."""
    big = 6 * 1024 * 1024
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a"], row_bytes=big)
        c.put(["b"], row_bytes=big)
        granted = c.grant(["c"], row_bytes=big)
        full = c.agent.call(c.reserving(granted), deadline_s=0.3)
        assert isinstance(full, Failed)
        assert full.code == "DataPlaneFull"
        waiting = c.agent.send(c.reserving(granted), deadline_s=20.0)
        c.plane.expect(Done, Pop("p", ["a"], Tokens([], [])))
        assert c.agent.receive(waiting).place.host == agent.host_id  # type: ignore[union-attr]


def test_a_stranger_without_the_token_is_told_so_and_ends(tmp_path: Path) -> None:
    """An agent whose token is not the plane's does not wait for ever."""
    with TcpPlane(tmp_path / "plane") as plane:
        other = tmp_path / "token"
        other.write_text("f" * 64)
        other.chmod(0o600)
        plane.token_file = other
        with AgentProcess(tmp_path / "alpha", plane, wait=False) as agent:
            assert agent.process.wait(30) != 0
            assert "token" in agent.stderr()


@pytest.mark.slow
def test_an_agent_waits_for_its_plane_and_can_be_ended_meanwhile(tmp_path: Path) -> None:
    """Nobody is there: it says so, leaves on SIGTERM, and leaves nothing behind."""
    with TcpPlane(tmp_path / "plane") as plane:
        plane.kill()
        with AgentProcess(tmp_path / "alpha", plane, wait=False) as agent:
            eventually("it says that it waits", lambda: "waiting for the plane" in agent.log_so_far())
            assert agent.end() == 0
            assert agent.segments() == []


def test_one_directory_has_one_agent(tmp_path: Path) -> None:
    """The second is told who serves it, and what to do."""
    with site(tmp_path) as (plane, agent), AgentProcess(agent.data_dir, plane, wait=False) as second:
        assert second.process.wait(30) != 0
        said = second.stderr()
        assert f"process {agent.pid}" in said
        assert "--dir" in said


def test_a_grant_of_an_agents_earlier_life_begins_anew(tmp_path: Path) -> None:
    """What was reserved when the agent died is sealed by nobody."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        granted = c.grant(["a"])
        c.reserve(granted)
        agent.kill()
        with AgentProcess(agent.data_dir, plane), HostClient.of(plane, agent) as again:
            assert isinstance(again.agent.call(Seal(granted.grant, 1)), GrantAgain)
            again.put(["a"])
            assert again.read(["a"]) == [7]


def test_an_agent_that_ends_waits_for_the_block_that_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread copies it: the mappings are not let go of under its hands."""
    copied: list[str] = []

    async def play() -> None:
        async with hosts(tmp_path, 1) as (a,):
            begun = asyncio.Event()

            async def move() -> None:
                begun.set()
                await asyncio.sleep(0.05)
                copied.append("whole")

            monkeypatch.setattr(a.agent.mover, "run", move)
            a.agent.start_moving()
            await begun.wait()
            await a.agent.stop()
            assert copied == ["whole"]

    asyncio.run(asyncio.wait_for(play(), 60.0))
