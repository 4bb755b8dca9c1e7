"""Random lives of a host's memory: whatever happens in whatever order, nothing is freed that is needed, or forgotten.

The test plays the custody (who holds which grant) and the plane (which blocks it has said are needed, or not).
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.host import events as ev
from penstock.host.blocks import State
from penstock.host.keeper import REASK_S
from penstock.ledger.events import (
    Allot,
    Allotted,
    BlockMoved,
    BlocksLost,
    DropGrant,
    Fill,
    FreeBlock,
    NotAllotted,
    SessionGone,
    Tick,
)
from penstock.requests import Reserve, Seal
from tests.host.test_keeper import NBYTES, OTHER, THERE, Desk, place

BLOCKS = st.integers(1, 6)
CLIENTS = st.sampled_from([0, 1, 2])  # 0 is the agent itself


class Walk(RuleBasedStateMachine):
    """Blocks with small numbers, two clients, one plane."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.waiting: dict[int, int] = {}  # grants that wait for a slot, and whose they are
        self.held: dict[int, int] = {}  # grants with a slot, and who may touch it or says that it does
        self.ready: set[int] = set()  # slots that hold a block
        self.needed: set[int] = set()  # by the plane's last word
        self.copying: set[int] = set()
        self.may_free: set[int] = set()  # in this step

    def carry_out(self, effects: list[object]) -> None:
        """As custody and storage do."""
        for effect in effects:
            match effect:
                case Allot():
                    if effect.grant in self.held:
                        self.carry_out(self.desk.tell(Allotted(effect.grant, place(effect.grant))))
                    else:
                        self.waiting[effect.grant] = effect.session_id
                case DropGrant():
                    self.waiting.pop(effect.grant, None)
                case ev.Keep():
                    assert effect.grant in self.held, "kept for nobody"
                    self.ready.add(effect.grant)
                case Fill():
                    self.held.pop(effect.block_id)
                    self.ready.add(effect.block_id)
                case ev.Replicate():
                    self.copying.add(effect.grant)
                case FreeBlock():
                    assert effect.block_id in self.ready, "a slot that holds no block is freed"
                    assert effect.block_id in self.may_free, "freed, and nobody has said that it is not needed"
                    self.ready.remove(effect.block_id)
                    self.held.pop(effect.block_id, None)
        self.may_free = set()

    @rule(client=CLIENTS, block=BLOCKS)
    def reserve(self, client: int, block: int) -> None:
        self.carry_out(self.desk.ask(Reserve(block, NBYTES), client))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def find_a_slot(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(sorted(self.waiting)))
        self.held[grant] = self.waiting.pop(grant)
        self.carry_out(self.desk.tell(Allotted(grant, place(grant))))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def find_no_slot(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[grant]
        self.carry_out(self.desk.tell(NotAllotted(grant)))

    @rule(client=CLIENTS, block=BLOCKS, replica=st.booleans())
    def seal(self, client: int, block: int, replica: bool) -> None:
        self.carry_out(self.desk.ask(Seal(block, block, THERE if replica else None), client))

    @precondition(lambda self: self.copying)
    @rule(data=st.data(), worked=st.booleans())
    def copy(self, data: st.DataObject, worked: bool) -> None:
        grant = data.draw(st.sampled_from(sorted(self.copying)))
        self.copying.remove(grant)
        said = ev.Copied(grant, place(grant, host=OTHER)) if worked else ev.NotCopied(grant, "full")
        self.carry_out(self.desk.tell(said))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[grant]
        self.carry_out(self.desk.tell(NotAllotted(grant)))

    @rule(client=st.sampled_from([1, 2]))
    def die(self, client: int) -> None:
        """The kernel's word: its session ends, then all it held is let go of. Its place is taken by the like."""
        self.carry_out(self.desk.tell(SessionGone(client, "process 1 has ended")))
        for grant in [g for g, c in {**self.waiting, **self.held}.items() if c == client]:
            self.waiting.pop(grant, None)
            self.held.pop(grant, None)
            self.carry_out(self.desk.tell(NotAllotted(grant)))
        self.desk.open_session(client)

    @rule(adopt=st.sets(BLOCKS), free=st.sets(BLOCKS), verify=st.sets(BLOCKS))
    def order(self, adopt: set[int], free: set[int], verify: set[int]) -> None:
        self.may_free = free
        self.needed = (self.needed | (adopt & self.ready)) - free
        self.carry_out(self.desk.order(adopt=sorted(adopt), free=sorted(free), verify=sorted(verify)))

    @rule(live=st.sets(BLOCKS))
    def enlist(self, live: set[int]) -> None:
        self.may_free = set(range(1, 7)) - live
        self.needed = live & self.ready
        self.carry_out(self.desk.tell(ev.Enlisting([place(n) for n in live], 7)))

    @rule(block=BLOCKS)
    def lose(self, block: int) -> None:
        self.may_free = {block}
        self.needed.discard(block)
        self.carry_out(self.desk.tell(BlocksLost([block], "damaged")))

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.ready)))
        self.carry_out(self.desk.tell(BlockMoved(place(block))))

    @rule(seconds=st.sampled_from([0.1, REASK_S, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.desk.now += seconds
        self.carry_out(self.desk.tell(Tick(0.0)))

    @invariant()
    def what_is_needed_is_there(self) -> None:
        """A block that the plane needs is READY, and the keeper serves it."""
        for block in self.needed:
            assert self.desk.state(block) is State.ADOPTED, f"block {block} is needed and {self.desk.state(block)}"
        readable = {place.block_id for place in self.desk.keeper.live_blocks()}
        assert readable == self.ready, "the keeper serves other blocks than those that lie there"

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """A written block is needed, held by somebody, or the plane is asked about it: soon, and again."""
        for block in self.ready:
            state = self.desk.state(block)
            unheld = state is State.SEALED and block not in self.held
            assert state is not State.GONE
            assert not unheld or self.desk.keeper.next_timer() is not None, f"nobody will ever ask about block {block}"

    def teardown(self) -> None:
        """In the end, when all clients are gone and time passes, every question is asked and can be settled."""
        for grant in list(self.held):
            self.let_go_of(grant)
        self.desk.now += 1000.0
        self.carry_out(self.desk.tell(Tick(0.0)))
        in_question = {b for b in self.ready if self.desk.state(b) is not State.ADOPTED}
        assert set(self.desk.keeper.report().done_with) == in_question
        self.may_free = in_question
        self.carry_out(self.desk.order(99, free=sorted(in_question)))
        assert self.ready <= self.needed

    def let_go_of(self, grant: int) -> None:
        del self.held[grant]
        self.carry_out(self.desk.tell(NotAllotted(grant)))


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
