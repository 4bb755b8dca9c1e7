"""A ledger, a store's agent and a store, driven at random: whatever dies in between, the store holds what rows need.

The ledger is the real one, recounted after each event and recovered from its journal; the agent is the real ``Duties``;
the store is a set of block numbers, which forgets all, or one, when it likes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from penstock.host.store.duties import LATE_PATROLS, Duties
from penstock.hosting import HostReport
from penstock.ledger.events import NotAllotted, SessionGone
from penstock.requests import (
    BlockPlace,
    Commit,
    Done,
    Enlist,
    Enlisted,
    Failed,
    Grant,
    GrantAgain,
    Granted,
    HostPlace,
    Orders,
    Pop,
    Tokens,
)
from tests.ledger.machines import host_grant
from tests.ledger.office import Office

STORE = 9
STEPS = 150


@dataclass
class Attempt:
    """A client's put under way."""

    key: str
    granted: Granted
    written: bool = False


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.office = Office(dead_after_s=1e6, resume_grace_s=1e6, host_grace_s=10.0)
        self.store: set[int] = set()
        self.life = 1
        self.known_life = 0  # by the agent, as it enlisted last
        self.duties = Duties()
        self.agent = 0  # its session; 0 = none
        self.call = 0
        self.said = HostReport(0)
        self.sessions = 100
        self.client = self.new_session()
        self.office.register(self.client)
        self.attempts: list[Attempt] = []
        self.rows: dict[str, int] = {}
        self.names = 0
        self.late: set[int] = set()  # written when the ledger had given the put up
        self.faults: set[str] = set()

    def new_session(self) -> int:
        self.sessions += 1
        return self.office.open(self.sessions)

    # -- the client -----------------------------------------------------------------------------------------------

    def grant(self) -> None:
        self.names += 1
        key = f"k{self.names}"
        asked: Grant = host_grant([key], host=STORE)
        reply = self.office.reply(self.office.post(self.client, asked))
        if isinstance(reply, Granted):
            self.attempts.append(Attempt(key, reply))
        else:
            assert isinstance(reply, Failed), reply

    def write(self) -> None:
        """Also where the ledger has given the put up, of which the client knows nothing."""
        for attempt in [a for a in self.attempts if not a.written][:1]:
            attempt.written = True
            self.store.add(attempt.granted.grant)
            if attempt.granted.grant not in self.office.ledger.desk.state.grants:
                self.late.add(attempt.granted.grant)

    def commit(self) -> None:
        written = [a for a in self.attempts if a.written]
        if not written:
            return
        attempt = self.rng.choice(written)
        self.attempts.remove(attempt)
        block = attempt.granted.grant
        place = BlockPlace(block, 0, 0, attempt.granted.place.nbytes, 0, host=STORE)
        reply = self.office.ask(self.client, Commit(block, block, [place]))
        if reply == Done():
            self.rows[attempt.key] = block
        else:
            assert isinstance(reply, GrantAgain), reply
            self.store.discard(block)
            self.faults.add("a grant that did not live")

    def leave(self) -> None:
        """A caller is gone, in the middle of a put."""
        if self.attempts:
            attempt = self.attempts.pop(self.rng.randrange(len(self.attempts)))
            self.office.event(NotAllotted(attempt.granted.grant))
            self.faults.add("a put that was left")

    def die(self) -> None:
        """The client's process is killed: nothing more is written."""
        self.office.event(SessionGone(self.client, "killed"))
        self.attempts.clear()
        self.client = self.new_session()

    def train(self) -> None:
        if self.rows:
            key = self.rng.choice(sorted(self.rows))
            reply = self.office.ask(self.client, Pop("p", [key], Tokens([], [])))
            assert isinstance(reply, Done | Failed), reply
            del self.rows[key]

    # -- the agent ------------------------------------------------------------------------------------------------

    def enlist(self) -> None:
        if self.agent:
            return
        self.agent = self.new_session()
        self.known_life = self.life
        place = HostPlace(STORE, self.life, "pool", "a", [], store="memory://pool")
        reply = self.office.ask(self.agent, Enlist(place))
        assert isinstance(reply, Enlisted), reply
        self.call = 0
        self.duties.enlisted([lying.block_id for lying in reply.live], reply.after)
        self.duties.check_invariants()

    def hear(self) -> None:
        """The answer to the report, if it has come."""
        reply = self.office.reply(self.call) if self.call else None
        if isinstance(reply, Orders):
            self.duties.ordered(reply, self.said)
            self.duties.check_invariants()
            self.call = 0

    def report(self) -> None:
        self.hear()
        if self.agent and not self.call:
            self.said = self.duties.report()
            self.call = self.office.post(self.agent, self.said, timeout_s=1e6)
            self.hear()

    def work(self, most: int = 3) -> None:
        """Look at the store's life first, as the agent does; then do some of what there is to do."""
        if not self.agent:
            return
        if self.known_life != self.life:
            self.cut()
            self.enlist()
        freed = self.duties.to_free(most)
        self.store.difference_update(freed)
        self.duties.freed(freed)
        looked = self.duties.to_survey(most) + self.duties.to_check(most)
        self.duties.lost([block for block in looked if block not in self.store], "gone")
        self.duties.checked(looked)
        self.duties.check_invariants()

    def patrol(self) -> None:
        self.duties.patrol()

    def cut(self) -> None:
        """Its session ends; the agent lives."""
        if self.agent:
            self.office.event(SessionGone(self.agent, "silent"))
            self.agent = self.call = 0

    def kill_agent(self) -> None:
        self.cut()
        self.duties = Duties()
        self.faults.add("an agent's death")

    # -- the store, and the plane ---------------------------------------------------------------------------------

    def restart_store(self) -> None:
        if self.rng.random() < 0.2:
            self.life += 1
            self.store.clear()
            self.faults.add("a store's restart")

    def lose(self) -> None:
        """An owner dies: some of it is gone."""
        if self.store and self.rng.random() < 0.3:
            self.store.discard(self.rng.choice(sorted(self.store)))
            self.faults.add("a lost block")

    def crash(self) -> None:
        """kill -9 of the plane, with and without a checkpoint just before."""
        if self.rng.random() < 0.3:
            self.office.crash(list(self.office.ledger.checkpoint(2)) if self.rng.random() < 0.5 else None)
            self.agent = self.call = 0
            self.client = self.new_session()  # puts under way go on, and find their grants gone
            self.faults.add("a plane's death")

    def pass_time(self) -> None:
        self.office.later(4.0)

    # -- the end --------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Everybody is there, nobody does anything new."""
        while self.attempts:
            self.leave()
        self.office.event(SessionGone(self.client, "goodbye"))
        self.client = self.new_session()
        for _ in range(2 * LATE_PATROLS):
            self.enlist()
            self.patrol()
            self.work(10_000)
            self.report()
            self.hear()
            self.office.later(1.0)

    def check(self) -> None:
        state = self.office.ledger.desk.state
        needed = {write.id for write in state.writes.values() if write.live}
        assert needed <= self.store, f"rows need what is not there: {needed - self.store}"
        stray = self.store - needed
        if "an agent's death" in self.faults:
            stray -= self.late  # it alone knew that it had to look again
        assert not stray, f"nobody needs {stray}"
        assert set(state.hosts[STORE].stored) == needed
        audit = self.office.audit()
        assert audit.residue == 0
        living = set(state.partitions["p"].rows)
        assert living <= self.rows.keys(), "a row that was never acknowledged, or that was trained"
        assert len(self.rows) - len(living) <= sum(audit.lost.values()), "a row went without being lost by name"
        if not {"a store's restart", "a lost block"} & self.faults:
            assert living == self.rows.keys(), "a row is lost though the store has lost nothing"


def walk(seed: int) -> set[str]:
    world = World(seed)
    world.enlist()
    moves = [
        *[world.grant, world.write, world.commit, world.report, world.work] * 4,
        *[world.train, world.hear, world.enlist, world.patrol] * 2,
        *[world.leave, world.die, world.cut, world.kill_agent, world.restart_store, world.lose, world.crash],
        world.pass_time,
    ]
    for _ in range(STEPS):
        world.rng.choice(moves)()
    world.rest()
    world.check()
    return world.faults


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_the_store_holds_what_rows_need_and_nothing_else(first: int) -> None:
    """In the end, whatever died in between; no row is lost but by the store's word; every fault fired."""
    faults: set[str] = set()
    for seed in range(first, first + 100):
        try:
            faults |= walk(seed)
        except AssertionError as broken:
            raise AssertionError(f"seed {seed}: {broken}") from broken
    assert len(faults) == 6, faults


@pytest.mark.slow
def test_the_store_holds_what_rows_need_in_many_more_worlds() -> None:
    """The same, for the nightly ring."""
    for seed in range(1000, 2500):
        walk(seed)
