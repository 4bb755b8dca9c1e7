"""A plane of hosts: it grants, commits and locates what it has no byte of, and passes orders on to agents."""

from __future__ import annotations

from pathlib import Path

import msgspec

from penstock.ledger.events import SessionGone
from penstock.requests import (
    WIRE_VERSION,
    BlockPlace,
    Commit,
    Damaged,
    Done,
    Enlist,
    Enlisted,
    Goodbye,
    Grant,
    Granted,
    Heartbeat,
    HostPlace,
    HostReport,
    Locate,
    Located,
    OpenSession,
    Orders,
    Pop,
    ReplyBody,
    Tokens,
)
from tests.server.harness import grant_of
from tests.server.inside import Inside, Wireless, inside

HOST = HostPlace(5, 1, "m5", "10.0.0.5", [7001, 7002])


class Agent(Wireless):
    """The connection of host 5's agent, enlisted."""

    def __init__(self, world: Inside) -> None:
        super().__init__(world.reception, world.journal)
        self._world = world
        self.get(OpenSession(WIRE_VERSION, 55, "agent", "host", "m5", 1))
        assert isinstance(self.get(Enlist(HOST)), Enlisted)

    def get(self, body: OpenSession | Enlist | HostReport) -> ReplyBody | None:
        call = self.ask(body)
        self._world.plane.settle()
        return self.reply(call)


def on_host(keys: list[str]) -> Grant:
    return msgspec.structs.replace(grant_of(keys), host=HOST.host_id)


def place_of(granted: Granted) -> BlockPlace:
    return BlockPlace(granted.grant, 3, 4096, granted.place.nbytes, 1, host=HOST.host_id)


def put(world: Inside, key: str) -> BlockPlace:
    granted = world.expect(Granted, on_host([key]))
    place = place_of(granted)
    world.expect(Done, Commit(granted.grant, granted.grant, [place]))
    return place


def test_a_put_on_a_host_uses_nothing_of_the_planes_arena(tmp_path: Path) -> None:
    """It is granted, committed and located without a slot, a pin or an arena to map."""

    async def scenario(world: Inside) -> None:
        Agent(world)
        place = put(world, "a")
        located = world.expect(Located, Locate("p", ["a"], ["x"]))
        assert located.blocks == [place]
        assert located.arenas == []
        assert located.hosts == [HOST]
        assert world.arena.statistics().used == 0
        assert world.arena.statistics().ignored == 0
        assert world.plane.custody._writers == {}
        world.expect(Done, Goodbye())

    inside(tmp_path, scenario)


def test_a_row_may_lie_here_and_another_there(tmp_path: Path) -> None:
    """One read pins the one and names the other's host."""

    async def scenario(world: Inside) -> None:
        Agent(world)
        there = put(world, "a")
        here = world.put(["b"])
        located = world.expect(Located, Locate("p", ["a", "b"], ["x"]))
        assert located.blocks[0] == there
        assert located.blocks[1].pin > 0
        assert [arena.arena_id for arena in located.arenas] == [here.place.arena_id]
        assert world.arena.statistics().pins == 1

    inside(tmp_path, scenario)


def test_a_grant_on_a_host_that_its_client_does_not_list_is_dropped(tmp_path: Path) -> None:
    """Its answer was lost: a heartbeat that knows a later one and not this one gives it back, and the host frees it."""

    async def scenario(world: Inside) -> None:
        agent = Agent(world)
        lost, kept = world.expect(Granted, on_host(["a"])), world.expect(Granted, on_host(["b"]))
        world.expect(Done, Heartbeat(kept.grant, 0, [kept.grant], []))
        orders = agent.get(HostReport(0))
        assert isinstance(orders, Orders)
        assert orders.free == [lost.grant]
        world.expect(Done, Commit(kept.grant, 1, [place_of(kept)]))
        assert world.arena.statistics().ignored == 0

    inside(tmp_path, scenario)


def test_a_grant_on_a_host_that_nobody_waits_for_is_dropped_at_once(tmp_path: Path) -> None:
    """Its connection broke while it was decided."""

    async def scenario(world: Inside) -> None:
        Agent(world)
        world.client.ask(on_host(["a"]))
        world.reception.disconnected(world.client)
        world.plane.settle()
        assert not world.plane.ledger.desk.state.grants  # type: ignore[attr-defined]
        assert world.plane.custody._writers == {}

    inside(tmp_path, scenario)


def test_orders_leave_after_what_they_follow_from_is_written(tmp_path: Path) -> None:
    """An agent that waits is told to free a block only once the journal holds the end of its last row."""

    async def scenario(world: Inside) -> None:
        agent = Agent(world)
        place = put(world, "a")
        first = agent.get(HostReport(0))
        assert isinstance(first, Orders)
        call = agent.ask(HostReport(first.number))
        world.plane.settle()
        world.client.ask(Pop("p", ["a"], Tokens([], [])))
        world.plane.settle()
        reply = agent.reply(call)
        assert isinstance(reply, Orders)
        assert reply.free == [place.block_id]
        (flushed,) = [flushed for sent, flushed, _ in agent.sent if sent.id == call]
        assert flushed == world.journal.appended

    inside(tmp_path, scenario)


def test_damage_on_a_host_is_for_its_agent_to_look_at(tmp_path: Path) -> None:
    """Not for the plane's own mover, which has no such block."""

    async def scenario(world: Inside) -> None:
        agent = Agent(world)
        place = put(world, "a")
        world.expect(Done, Damaged(place.block_id, HOST.host_id))
        orders = agent.get(HostReport(0))
        assert isinstance(orders, Orders)
        assert orders.verify == [place.block_id]
        world.expect(Located, Locate("p", ["a"], ["x"]))

    inside(tmp_path, scenario)


def test_the_end_of_an_agents_session_is_no_end_of_its_rows(tmp_path: Path) -> None:
    """They are located as before, for the listeners of a host may be reached when its agent is not heard of."""

    async def scenario(world: Inside) -> None:
        agent = Agent(world)
        put(world, "a")
        world.plane.tell(SessionGone(agent.session_id, "silent"))
        world.plane.settle()
        assert agent.ended == "discarded"
        assert world.expect(Located, Locate("p", ["a"], ["x"])).hosts == [HOST]

    inside(tmp_path, scenario)
