"""The keeper of a host's memory: what it answers, what it frees, and what it asks the plane about."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from penstock.config import PlaneConfig
from penstock.errors import IllegalTransition
from penstock.host import events as ev
from penstock.host.blocks import State
from penstock.host.keeper import LONGEST_S, ORDERED_S, REASK_S, Keeper, Who
from penstock.hosting import Orders
from penstock.ledger.events import (
    GOODBYE,
    Allot,
    Allotted,
    Answer,
    Asked,
    BlockMoved,
    BlocksLost,
    Disconnected,
    DropGrant,
    EndSession,
    Fill,
    FreeBlock,
    Heard,
    NotAllotted,
    Resolve,
    SessionGone,
    SessionOpens,
    SessionResumes,
    Tick,
    Withdrawn,
)
from penstock.parts import BlockPlace, HostPlace
from penstock.requests import (
    WIRE_VERSION,
    Claim,
    Damaged,
    Done,
    Failed,
    GrantAgain,
    Hold,
    OpenSession,
    Reserve,
    Seal,
    Sealed,
    Status,
    StatusReport,
    Welcome,
)

E = TypeVar("E")
ME, OTHER = 77, 88
NBYTES = 4096
THERE = HostPlace(OTHER, 3, "beta", "10.0.0.2", [7001], peer_port=7100)


def place(block_id: int, arena: int = 1, host: int = ME) -> BlockPlace:
    return BlockPlace(block_id, arena, block_id * NBYTES, NBYTES, block_id + 1, 0, host)


class Desk:
    """A keeper and the clock; sessions 1 and 2 are two clients'."""

    def __init__(self) -> None:
        who = Who(ME, "alpha", "penstock://plane:1", 1 << 20)
        self.keeper = Keeper(who, PlaneConfig(), 5)
        self.now = 100.0
        self.calls = 0
        for session in (1, 2):
            self.open_session(session)

    def open_session(self, session: int) -> None:
        request = OpenSession(WIRE_VERSION, session, "me", "client", "here", 1000 + session)
        self.tell(SessionOpens(session, "s", self.call(), request, 0.0))

    def call(self) -> int:
        self.calls += 1
        return self.calls

    def tell(self, event: Any) -> list[Any]:
        effects = self.keeper.handle(event, self.now)
        self.keeper.check_invariants()
        return effects

    def ask(self, body: Any, session: int = 1, patience_s: float = 10.0) -> list[Any]:
        return self.tell(Asked(session, self.call(), 0, 0, [], self.now + patience_s, body, 0.0))

    def granted(self, block_id: int, session: int = 1) -> None:
        self.ask(Reserve(block_id, NBYTES), session)
        self.tell(Allotted(block_id, place(block_id)))

    def sealed(self, block_id: int, session: int = 1) -> None:
        self.granted(block_id, session)
        self.ask(Seal(block_id, 9), session)

    def asked(self, block_id: int) -> None:
        self.sealed(block_id)
        self.tell(NotAllotted(block_id))

    def adopted(self, block_id: int) -> None:
        self.sealed(block_id)
        self.order(adopt=[block_id])

    def order(self, number: int = 1, **lists: list[int]) -> list[Any]:
        return self.tell(ev.Ordered(Orders(number, **lists), self.keeper.report()))

    def moves_known(self) -> bool:
        return self.keeper.moves_known

    def state(self, block_id: int) -> State:
        return self.keeper.state_of(block_id)


def one(kind: type[E], effects: list[Any]) -> E:
    (found,) = [e for e in effects if isinstance(e, kind)]
    return found


def reply(effects: list[Any]) -> Any:
    return one(Answer, effects).body


# -- puts -------------------------------------------------------------------------------------------------------------


def test_a_put_goes_from_reserved_to_adopted_to_freed() -> None:
    """Each step has its effect, and the slot goes by the plane's word alone."""
    d = Desk()
    assert one(Allot, d.ask(Reserve(7, NBYTES))).grant == 7
    d.tell(Allotted(7, place(7)))
    effects = d.ask(Seal(7, 9))
    assert one(ev.Keep, effects).grant == 7
    assert reply(effects) == Sealed([place(7)])
    assert d.state(7) is State.SEALED
    assert d.order(adopt=[7]) == []
    assert d.tell(NotAllotted(7)) == []
    assert d.state(7) is State.ADOPTED
    assert not d.keeper.has_news
    assert d.order(2, free=[7]) == [FreeBlock(7)]
    assert d.state(7) is State.GONE


def test_a_reservation_that_was_made_again_is_told_again_to_the_same_client() -> None:
    """Its answer may have been lost with its connection; the slot is the same one."""
    d = Desk()
    d.granted(7)
    assert one(Allot, d.ask(Reserve(7, NBYTES))).grant == 7
    d.tell(Allotted(7, place(7)))
    assert d.state(7) is State.GRANTED


def test_a_grant_for_another_life_of_this_host_is_refused() -> None:
    """A copied directory makes two agents of one identity: what the one that is superseded holds would be nobody's."""
    d = Desk()
    refused = reply(d.ask(Reserve(7, NBYTES, d.keeper.incarnation + 1)))
    assert isinstance(refused, Failed)
    assert (refused.code, "is a copy of another's" in refused.message) == ("DataPlaneUnavailable", True)
    assert one(Allot, d.ask(Reserve(7, NBYTES, d.keeper.incarnation))).grant == 7


def test_a_reservation_that_still_waits_takes_the_place_of_the_first_call() -> None:
    """The first call is withdrawn before the second is made."""
    d = Desk()
    d.ask(Reserve(7, NBYTES))
    assert [type(e) for e in d.ask(Reserve(7, NBYTES))] == [DropGrant, Allot]


@pytest.mark.parametrize("body", [Reserve(7, NBYTES), Reserve(7, 2 * NBYTES)])
def test_nobody_reserves_what_is_another_clients(body: Reserve) -> None:
    """A grant belongs to the client that reserved it first; of another size it is nobody's."""
    d = Desk()
    d.granted(7)
    assert reply(d.ask(body, session=2)).code == "BadArgument"
    assert reply(d.ask(Reserve(7, 2 * NBYTES))).code == "BadArgument"
    assert d.state(7) is State.GRANTED


@pytest.mark.parametrize("nbytes", [0, -1, (1 << 20) + 1])
def test_a_block_that_can_never_lie_here_is_refused_at_once(nbytes: int) -> None:
    """Waiting for room would not help; the answer names the limit."""
    d = Desk()
    refused = reply(d.ask(Reserve(7, nbytes)))
    assert refused.code == "BadArgument"
    assert "max_bytes" in refused.message
    assert d.state(7) is State.GONE


def test_a_seal_of_what_is_not_here_means_grant_again() -> None:
    """An earlier life's grant, another client's, or one that was given back."""
    d = Desk()
    d.granted(8)
    assert isinstance(reply(d.ask(Seal(7, 9))), GrantAgain)
    assert isinstance(reply(d.ask(Seal(8, 9), session=2)), GrantAgain)
    assert d.state(8) is State.GRANTED


def test_a_repeated_seal_is_answered_again_and_other_content_is_refused() -> None:
    """The answer may have been lost; two puts of different bytes are not one."""
    d = Desk()
    d.sealed(7)
    effects = d.ask(Seal(7, 9))
    assert reply(effects) == Sealed([place(7)])
    assert not [e for e in effects if isinstance(e, ev.Keep)]
    assert reply(d.ask(Seal(7, 10))).code == "BadArgument"


def test_a_seal_before_there_is_a_slot_is_refused() -> None:
    """Only a liar can send it."""
    d = Desk()
    d.ask(Reserve(7, NBYTES))
    assert reply(d.ask(Seal(7, 9))).code == "BadArgument"
    assert d.state(7) is State.WAITING


# -- the writer lets go -----------------------------------------------------------------------------------------------


def test_an_unsealed_block_goes_with_its_writer() -> None:
    """The plane is not asked about what was never written."""
    d = Desk()
    d.granted(7)
    d.ask(Reserve(8, NBYTES))
    d.tell(NotAllotted(7))
    d.tell(NotAllotted(8))
    assert (d.state(7), d.state(8)) == (State.GONE, State.GONE)
    assert not d.keeper.has_news


def test_a_sealed_block_whose_writer_lets_go_is_asked_about_until_the_plane_has_said() -> None:
    """Freed by order only; asked again after a while if the answer said nothing of it."""
    d = Desk()
    d.asked(7)
    assert d.keeper.report().done_with == [7]
    d.order()
    assert not d.keeper.has_news
    d.now += REASK_S
    d.tell(Tick(0.0))
    assert d.keeper.report().done_with == [7]
    assert d.order(2, free=[7]) == [FreeBlock(7)]
    assert not d.keeper.has_news


def test_a_sealed_block_whose_writer_let_go_may_turn_out_to_be_needed() -> None:
    """The commit came before the writer's end."""
    d = Desk()
    d.asked(7)
    d.order(adopt=[7])
    assert d.state(7) is State.ADOPTED
    assert not d.keeper.has_news


def test_a_report_that_was_not_answered_is_made_again() -> None:
    """Only an answer makes it heard."""
    d = Desk()
    d.asked(7)
    d.keeper.report()
    assert d.keeper.report().done_with == [7]


# -- orders -----------------------------------------------------------------------------------------------------------


def test_orders_for_what_is_being_written_free_nothing() -> None:
    """The writer may be in mid-copy; if it seals after all, the plane is asked about it when it lets go."""
    d = Desk()
    d.granted(7)
    assert d.order(free=[7]) == []
    assert d.state(7) is State.GRANTED
    d.ask(Seal(7, 9))
    d.tell(NotAllotted(7))
    assert d.keeper.report().done_with == [7]


def test_orders_may_come_twice_and_for_unknown_blocks() -> None:
    """Freed is freed; nothing is freed twice, nothing breaks."""
    d = Desk()
    d.adopted(7)
    assert d.order(2, adopt=[7], free=[7]) == [FreeBlock(7)]
    assert d.order(2, free=[7, 8]) == []
    assert d.keeper.report().after == 2


def test_what_rows_need_and_is_not_here_is_reported_lost() -> None:
    """Adopted, or to be verified, and unknown: its readers would wait for ever."""
    d = Desk()
    d.order(adopt=[5], verify=[6])
    said = d.keeper.report()
    assert sorted(said.lost) == [5, 6]
    assert "host alpha does not have it" in said.why


def test_an_adopted_block_that_was_never_sealed_is_reported_lost_and_left_to_its_writer() -> None:
    """A client that committed without sealing has lied; its slot is still its own."""
    d = Desk()
    d.granted(7)
    d.order(adopt=[7])
    assert d.keeper.report().lost == [7]
    assert d.state(7) is State.GRANTED


def test_a_suspected_block_is_verified_and_reported_if_it_is_damaged() -> None:
    """By the plane's order or a client's word; the slot goes, the plane is told why."""
    d = Desk()
    d.adopted(7)
    assert d.order(2, verify=[7]) == [ev.Verify(7)]
    effects = d.ask(Damaged(7, ME))
    assert one(ev.Verify, effects).block_id == 7
    assert isinstance(reply(effects), Done)
    assert d.tell(BlocksLost([7], "field 'x' does not match")) == [FreeBlock(7)]
    said = d.keeper.report()
    assert (said.lost, said.why) == ([7], "field 'x' does not match")


def test_the_answer_to_a_report_is_what_it_is_counted_from() -> None:
    """``after`` grows, also when answers come out of order."""
    d = Desk()
    d.order(9)
    d.order(4)
    assert d.keeper.report().after == 9


# -- enlisting --------------------------------------------------------------------------------------------------------


def test_enlisting_adopts_frees_and_reports_what_is_missing_or_elsewhere() -> None:
    """What the plane names is needed, what it does not name is not, and a wrong place is corrected."""
    d = Desk()
    for block_id in (1, 2, 3):
        d.adopted(block_id)
    d.sealed(4)
    d.granted(5)
    elsewhere = BlockPlace(2, 99, 0, NBYTES, 1, 0, ME)
    effects = d.tell(ev.Enlisting([place(1), elsewhere, place(4), place(6)], 50))
    assert effects == [FreeBlock(3)]
    assert [d.state(n) for n in (1, 2, 4, 5)] == [State.ADOPTED] * 3 + [State.GRANTED]
    said = d.keeper.report()
    assert (said.after, said.lost, said.moved) == (50, [6], [place(2)])


def test_enlisting_asks_again_at_once() -> None:
    """What an earlier life of the plane was asked, this one does not know."""
    d = Desk()
    d.asked(7)
    d.order()
    assert not d.keeper.has_news
    d.tell(ev.Enlisting([], 50))
    assert d.keeper.report().done_with == [7]
    assert d.state(7) is State.ASKED


def test_what_earlier_lives_left_is_adopted_and_served() -> None:
    """Found blocks are readable; those of them that do not hold are lost by name."""
    d = Desk()
    d.tell(ev.Found([place(1, arena=0), place(2, arena=0)]))
    d.tell(BlocksLost([2], "its header"))
    d.tell(ev.Enlisting([place(1, arena=0), place(2, arena=0)], 3))
    assert [p.block_id for p in d.keeper.live_blocks()] == [1]
    said = d.keeper.report()
    assert (said.lost, said.why, said.moved) == ([2], "its header", [])


def test_a_block_that_moves_is_told_until_the_plane_knows() -> None:
    """Old files may go only then."""
    d = Desk()
    d.tell(ev.Found([place(1, arena=0)]))
    d.tell(BlockMoved(place(1)))
    assert d.keeper.report().moved == [place(1)]
    assert not d.moves_known()
    d.order()
    assert d.moves_known()
    assert one(Resolve, d.ask(Hold([1]))).blocks == [place(1)]


# -- replicas ---------------------------------------------------------------------------------------------------------


def test_a_seal_with_a_replica_is_answered_when_both_have_the_block() -> None:
    """The slot is open to the second host first."""
    d = Desk()
    d.granted(7)
    effects = d.ask(Seal(7, 9, THERE))
    assert [type(e) for e in effects] == [ev.Keep, ev.Replicate]
    assert one(ev.Replicate, effects).place == place(7)
    second = place(7, arena=4, host=OTHER)
    assert reply(d.tell(ev.Copied(7, second))) == Sealed([place(7), second])


def test_a_replica_that_fails_is_told_with_its_reason_and_may_be_tried_again() -> None:
    """The client decides whether one place is enough; asked again, the agent tries again."""
    d = Desk()
    d.granted(7)
    d.ask(Seal(7, 9, THERE))
    assert reply(d.tell(ev.NotCopied(7, "beta is full"))) == Sealed([place(7)], "beta is full")
    again = d.ask(Seal(7, 9, THERE))
    assert one(ev.Replicate, again).grant == 7
    second = place(7, arena=4, host=OTHER)
    d.tell(ev.Copied(7, second))
    assert reply(d.ask(Seal(7, 9, THERE))) == Sealed([place(7), second])


def test_a_repeated_seal_takes_the_place_of_the_one_that_waits_for_its_replica() -> None:
    """One copy is made, and the newer call is answered."""
    d = Desk()
    d.granted(7)
    d.ask(Seal(7, 9, THERE))
    effects = d.ask(Seal(7, 9, THERE))
    newest = d.calls
    assert not [e for e in effects if isinstance(e, ev.Replicate)]
    assert one(Answer, d.tell(ev.Copied(7, place(7, host=OTHER)))).call_id == newest


def test_nobody_keeps_both_copies_here() -> None:
    """A replica on the same host is no replica."""
    d = Desk()
    d.granted(7)
    here = HostPlace(ME, 5, "alpha", "10.0.0.1", [])
    assert reply(d.ask(Seal(7, 9, here))).code == "BadArgument"
    assert d.state(7) is State.GRANTED


def test_a_block_that_goes_while_it_is_copied_ends_the_call() -> None:
    """Its writer is told to begin anew; a copy that comes later is the other host's to ask about."""
    d = Desk()
    d.granted(7)
    d.ask(Seal(7, 9, THERE))
    effects = d.order(free=[7])
    assert isinstance(reply(effects), GrantAgain)
    assert d.tell(ev.Copied(7, place(7, host=OTHER))) == []


def test_a_block_pulled_for_another_host_is_asked_about_if_nobody_adopts_it() -> None:
    """The agent's own block: READY at once, asked about when its orderer must have had its answer."""
    d = Desk()
    d.ask(Reserve(7, NBYTES), session=0)
    d.tell(Allotted(7, place(7)))
    effects = d.ask(Seal(7, 9), session=0, patience_s=20.0)
    assert one(Fill, effects).block_id == 7
    due = d.keeper.next_timer()
    assert due == d.now + 20.0 + ORDERED_S
    d.now = due - 0.001
    d.tell(Tick(0.0))
    assert not d.keeper.has_news
    d.now = due
    d.tell(Tick(0.0))
    assert d.keeper.report().done_with == [7]
    assert d.keeper.next_timer() is None


def test_a_pulled_block_is_asked_about_however_long_its_orderer_would_wait() -> None:
    """A deadline of years, from another host, must not keep a slot for years."""
    d = Desk()
    d.ask(Reserve(7, NBYTES), session=0)
    d.tell(Allotted(7, place(7)))
    d.ask(Seal(7, 9), session=0, patience_s=1e9)
    assert d.keeper.next_timer() == d.now + LONGEST_S + ORDERED_S


def test_an_adopted_replica_is_not_asked_about() -> None:
    """The commit came: nothing is left to find out."""
    d = Desk()
    d.ask(Reserve(7, NBYTES), session=0)
    d.tell(Allotted(7, place(7)))
    d.ask(Seal(7, 9), session=0)
    d.order(adopt=[7])
    assert d.keeper.next_timer() is None
    assert not d.keeper.has_news


# -- reads, sessions, the rest ----------------------------------------------------------------------------------------


def test_a_hold_pins_what_is_written_and_names_the_rest() -> None:
    """Sealed and adopted blocks can be read, what is being written or unknown cannot."""
    d = Desk()
    d.sealed(1)
    d.granted(2)
    d.adopted(3)
    found = one(Resolve, d.ask(Hold([1, 2, 3, 4, 1])))
    assert [p.block_id for p in found.blocks] == [1, 3]
    assert [(issue.key, issue.code) for issue in found.issues] == [("2", "StaleSlotError"), ("4", "StaleSlotError")]


def test_what_is_about_rows_is_refused_and_says_who_knows() -> None:
    """An agent knows memory; the plane's address is in the answer."""
    d = Desk()
    refused = reply(d.ask(Claim("p", "train", ["x"], 1)))
    assert refused.code == "DataPlaneBadRequest"
    assert "penstock://plane:1 for Claim" in refused.message


def test_a_client_whose_process_ends_is_reported_and_one_that_says_goodbye_is_not() -> None:
    """The plane returns leases at once on the kernel's word; a goodbye it hears itself."""
    d = Desk()
    assert one(EndSession, d.tell(SessionGone(1, GOODBYE))).session_id == 1
    assert not d.keeper.has_news
    d.tell(SessionGone(2, "process 1002 has ended"))
    assert d.keeper.report().ended == [2]


def test_calls_of_ended_sessions_are_refused() -> None:
    """What was sent before the end and read after it changes nothing."""
    d = Desk()
    d.tell(SessionGone(1, GOODBYE))
    assert reply(d.ask(Reserve(7, NBYTES))).code == "DataPlaneUnavailable"
    assert d.state(7) is State.GONE


def test_a_client_resumes_its_session() -> None:
    """After a lost connection, with its secret; a wrong one is refused."""
    d = Desk()
    d.tell(Disconnected(1))
    assert isinstance(reply(d.tell(SessionResumes(1, "s", d.call()))), Welcome)
    assert isinstance(reply(d.tell(SessionResumes(1, "t", d.call()))), Failed)


def test_status_tells_blocks_by_state() -> None:
    """Whoever asks an agent sees memory and sessions, and no rows."""
    d = Desk()
    d.sealed(1)
    d.adopted(2)
    d.tell(Heard(1))
    d.tell(Withdrawn(frozenset({4})))
    report = reply(d.ask(Status()))
    assert isinstance(report, StatusReport)
    assert (report.counters["blocks.now_sealed"], report.counters["blocks.now_adopted"]) == (1, 1)
    assert (report.live_bytes, len(report.sessions), report.rows) == (2 * NBYTES, 2, 0)


def test_a_slot_that_comes_for_nobody_is_not_remembered() -> None:
    """Its caller withdrew in this moment; the client's heartbeat gives the slot back, and a seal is refused."""
    d = Desk()
    d.tell(Allotted(7, place(7)))
    d.tell(NotAllotted(7))
    assert d.state(7) is State.GONE


def test_what_only_a_bug_can_do_is_an_error() -> None:
    """A sealed block is not placed again."""
    d = Desk()
    d.sealed(7)
    with pytest.raises(IllegalTransition):
        d.tell(Allotted(7, place(7)))
