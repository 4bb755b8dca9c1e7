"""Claims: oldest first, never a mixture, never past the deadline, and nobody waits for somebody else's batch."""

from __future__ import annotations

import pytest

from penstock.ledger import events as ev
from penstock.ledger.facts import QueueOpened
from penstock.records import GroupPolicy
from penstock.requests import Claim, Clear
from tests.ledger.office import Office, group_tags


@pytest.fixture
def office() -> Office:
    made = Office()
    made.open(1)
    made.open(2)
    made.register(tasks=("prev_lp", "train"))
    return made


def test_rows_come_oldest_first_and_once_per_task(office: Office) -> None:
    """Two claims of one task are disjoint; another task has its own cursor."""
    office.put_done(1, ["b"])
    office.put_done(1, ["a", "c"])
    assert office.claim(1, batch=2).keys == ["b", "a"]
    assert office.claim(2, batch=2).keys == ["c"]
    assert office.claim(2, batch=8, task="prev_lp").keys == ["b", "a", "c"]


def test_rows_that_came_back_are_the_oldest_again(office: Office) -> None:
    """A released row goes before younger ones, and is handed out once."""
    office.put_done(1, ["a", "b", "c"])
    lease = office.claim(1, batch=1)
    office.release(1, ["a"], lease.token)
    assert office.claim(1, batch=8).keys == ["a", "b", "c"]
    assert office.claim(1, batch=8).keys == []


def test_a_blocking_claim_is_served_when_its_rows_are_ready(office: Office) -> None:
    """It waits for ``min_rows`` and then gets what there is."""
    call = office.waiting_claim(1, batch=8, min_rows=2)
    office.put_done(2, ["a"])
    assert office.claimed(call) is None
    office.put_done(2, ["b", "c"])
    served = office.claimed(call)
    assert served is not None
    assert served.keys == ["a", "b", "c"]


def test_a_blocking_claim_ends_at_its_deadline_and_says_what_was_missing(office: Office) -> None:
    """The refusal names how many rows are ready, the lagging field, and whose heartbeat is old."""
    office.put_done(2, ["a"], fields=["y"])
    call = office.waiting_claim(1, batch=8, timeout_s=6.0)
    office.later(5.5)
    assert office.reply(call) is None
    office.later(1.0)
    reply = office.reply(call)
    assert reply.code == "DataPlaneTimeout"  # type: ignore[union-attr]
    text = reply.message  # type: ignore[union-attr]
    assert "0 of 1 rows are ready" in text
    assert "field 'x' is not produced for 1 of 1 rows" in text
    assert "heartbeat of owner2" in text


def test_a_claim_is_never_granted_past_its_deadline(office: Office) -> None:
    """Rows that become ready after the deadline, but before the tick that ends the claim, go to somebody else."""
    call = office.waiting_claim(1, timeout_s=1.0)
    office.now += 1.5
    office.put_done(2, ["a"])
    assert office.reply(call) is None
    assert office.claim(2).keys == ["a"]
    office.later(0.5)
    assert office.reply(call).code == "DataPlaneTimeout"  # type: ignore[union-attr]


def test_an_under_filled_claim_does_not_hold_up_a_smaller_one(office: Office) -> None:
    """A claim that waits for many rows costs nobody else anything."""
    big = office.waiting_claim(1, batch=100, min_rows=100)
    small = office.waiting_claim(2, batch=1)
    office.put_done(1, ["a"])
    assert office.claimed(big) is None
    assert office.claimed(small) is not None


def test_a_claim_by_keys_takes_exactly_these_rows_or_none(office: Office) -> None:
    """Leased or unready rows make it wait; then it gets all."""
    office.put_done(1, ["a", "b"])
    mine = office.claim(1, batch=1)
    assert office.claim(2, batch=0, keys=["a", "b"]).keys == []
    call = office.waiting_claim(2, batch=0, keys=["b", "a"])
    assert office.claimed(call) is None
    office.release(1, ["a"], mine.token)
    served = office.claimed(call)
    assert served is not None
    assert served.keys == ["b", "a"]


def test_a_claim_by_keys_of_unknown_or_removed_rows_fails_at_once(office: Office) -> None:
    """Also while it waits: a row that is removed meanwhile ends it."""
    office.put_done(1, ["a", "b"])
    office.fails(1, Claim("p", "train", ["x"], 0, keys=["a", "nobody"]), "UnknownName")
    held = office.claim(1, batch=1)
    waiting = office.waiting_claim(2, batch=0, keys=["a", "b"])
    office.pop(1, ["a"], held.token)
    assert office.reply(waiting).code == "RowRemoved"  # type: ignore[union-attr]


def test_no_keys_at_all_are_claimed_at_once(office: Office) -> None:
    """The empty list is an empty meta."""
    call = office.waiting_claim(1, batch=0, keys=[])
    served = office.claimed(call)
    assert served is not None
    assert served.keys == []


def test_groups_are_handed_out_whole_committed_and_complete_or_not_at_all(office: Office) -> None:
    """A group that is short of a row, or not committed, does not go out; groups never mix."""
    office.put_done(1, ["g_0"], tags=group_tags("g", 2))
    office.put_done(1, ["h_0", "h_1"], tags=group_tags("h", 2, committed=False))
    assert office.claim(1, whole_groups=True).keys == []
    office.put_done(1, ["g_1"], tags=group_tags("g", 2))
    assert office.claim(1, whole_groups=True).keys == ["g_0", "g_1"]
    office.tag(1, ["h_0", "h_1"], committed=True)
    assert office.claim(1, whole_groups=True).keys == ["h_0", "h_1"]


def test_whole_groups_do_not_split_to_fill_a_batch(office: Office) -> None:
    """Three rows of room and two groups of two: one group."""
    for gid in ("g", "h"):
        office.put_done(1, [f"{gid}_0", f"{gid}_1"], tags=group_tags(gid, 2))
    assert office.claim(1, batch=3, whole_groups=True).keys == ["g_0", "g_1"]
    assert office.claim(1, batch=3, whole_groups=True).keys == ["h_0", "h_1"]


def test_a_group_larger_than_the_batch_is_a_bad_request(office: Office) -> None:
    """It names the group; nothing is leased."""
    office.put_done(1, ["g_0", "g_1"], tags=group_tags("g", 2))
    reply = office.fails(1, Claim("p", "train", ["x"], 1, whole_groups=True), "BadArgument")
    assert "'g'" in reply.message
    assert office.audit().leased == 0


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (Claim("p", "train", ["x"], 0, keys=["nobody"], whole_groups=True), "UnknownName"),
        (Claim("p", "train", ["x"], 1, whole_groups=True), "BadArgument"),
    ],
)
def test_how_a_refused_claim_takes_groups_is_remembered_by_the_next_life(
    office: Office, body: Claim, code: str
) -> None:
    """The first claim of a task is refused; the journal still says that it takes whole groups, once."""
    office.put_done(1, ["g_0", "g_1"], tags=group_tags("g", 2))
    office.fails(1, body, code)
    office.fails(1, body, code)
    assert sum(isinstance(fact, QueueOpened) for entry in office.journal for fact in entry.facts) == 1
    office.crash()
    (queue,) = office.ledger.desk.state.partitions["p"].queues
    assert (queue.task.name, queue.whole, queue.count) == ("train", True, 2)


def test_a_group_with_a_leased_row_waits_for_it(office: Office) -> None:
    """All rows of a group are handed out together."""
    office.put_done(1, ["g_0", "g_1"], tags=group_tags("g", 2))
    one = office.claim(1, batch=1)
    assert office.claim(2, whole_groups=True).keys == []
    office.release(1, one.keys, one.token)
    assert office.claim(2, whole_groups=True).keys == ["g_0", "g_1"]


def test_a_late_group_goes_out_partial_with_its_committed_rows(office: Office) -> None:
    """Under the policy ``partial`` its rows carry the tag ``partial``."""
    office.register(name="q", policy=GroupPolicy(min_ready=1, deadline_s=2.0, on_deadline="partial"))
    office.put_done(1, ["g_0"], tags=group_tags("g", 2), partition="q")
    claim = Claim("q", "train", ["x"], 8, whole_groups=True, blocking=False)
    assert office.ask(1, claim).keys == []  # type: ignore[union-attr]
    office.later(2.5)
    got = office.ask(1, claim)
    assert got.keys == ["g_0"]  # type: ignore[union-attr]
    assert got.tags[0]["partial"] is True  # type: ignore[union-attr]


def test_a_late_group_is_dropped_with_a_reason(office: Office) -> None:
    """Under the policy ``drop``; a late sibling is refused."""
    office.register(name="q", policy=GroupPolicy(deadline_s=2.0, on_deadline="drop"))
    office.put_done(1, ["g_0"], tags=group_tags("g", 2), partition="q")
    office.later(2.5)
    assert office.audit("q").evicted == {"incomplete": 1}
    late = office.put(1, ["g_1"], tags=group_tags("g", 2), partition="q")
    assert late.code == "RowRemoved"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (Claim("nowhere", "train", ["x"], 1), "UnknownName"),
        (Claim("p", "nobody", ["x"], 1), "UnknownName"),
        (Claim("p", "train", ["x"], 0), "BadArgument"),
        (Claim("p", "train", ["x"], 2, min_rows=3), "BadArgument"),
        (Claim("p", "train", ["x"], 2, lease_s=0.0), "BadArgument"),
        (Claim("p", "train", ["x"], 0, keys=["a", "a"]), "BadArgument"),
    ],
)
def test_bad_claims_are_refused(office: Office, body: Claim, code: str) -> None:
    """Each names what is wrong."""
    office.fails(1, body, code)


def test_a_claim_that_waits_ends_when_its_partition_is_cleared(office: Office) -> None:
    """It does not wait for rows that cannot come."""
    call = office.waiting_claim(1)
    office.done(2, Clear("p", None))
    assert office.reply(call).code == "UnknownName"  # type: ignore[union-attr]


def test_a_repeated_claim_gets_the_same_lease(office: Office) -> None:
    """A reply that was lost on the way is asked for again under the same sequence."""
    office.put_done(1, ["a", "b"])
    body = Claim("p", "train", ["x"], 1, blocking=False)
    first = office.ask(1, body, seq=90)
    assert office.ask(1, body, seq=90) == first
    assert office.audit().leased == 1


def test_an_abandoned_claim_is_released(office: Office) -> None:
    """The caller timed out before the reply came: its next message says so, and the rows are ready again."""
    office.put_done(1, ["a"])
    office.ask(1, Claim("p", "train", ["x"], 1, blocking=False), seq=90)
    assert office.claim(2).keys == []
    office.post(1, Claim("p", "prev_lp", ["x"], 1, blocking=False), seq=91, abandoned=[90])
    assert office.claim(2).keys == ["a"]


def test_a_call_abandoned_before_it_arrived_takes_no_effect(office: Office) -> None:
    """Messages may cross: the abandonment wins."""
    office.put_done(1, ["a"])
    office.post(1, Claim("p", "prev_lp", ["x"], 1, blocking=False), seq=91, abandoned=[90])
    office.fails(1, Claim("p", "train", ["x"], 1, blocking=False), "DataPlaneTimeout", seq=90)
    assert office.claim(2).keys == ["a"]


def test_cursors_of_evicted_rows_do_not_pile_up(office: Office) -> None:
    """A queue that is never claimed from stays as small as its ready rows."""
    office.put_done(1, ["seed"])
    lease = office.claim(1, batch=1)
    office.pop(1, ["seed"], lease.token)
    for step in range(40):
        keys = [f"{step}_{i}" for i in range(64)]
        office.put_done(1, keys)
        office.evict(1, keys)
    (queue,) = office.ledger.desk.state.partitions["p"].queues
    assert len(queue.heap) <= 1024 + 128


def test_a_claim_by_key_that_timed_out_names_what_was_removed_meanwhile(office: Office) -> None:
    """It waited for one row; another was evicted."""
    office.put_done(1, ["a", "b"])
    office.claim(2, batch=1)
    call = office.waiting_claim(1, timeout_s=1.0, keys=["a", "b"], batch=0)
    office.evict(2, ["b"])
    office.later(1.5)
    assert "'b': removed" in office.reply(call).message  # type: ignore[union-attr]
    assert office.ledger.desk.claims == {}


def test_a_whole_group_claim_that_no_groups_fill_says_so(office: Office) -> None:
    """Rows enough are ready, but not two groups fit into the batch, and one is too small."""
    for gid in ("g", "h"):
        office.put_done(1, [f"{gid}_{i}" for i in range(5)], tags=group_tags(gid, 5))
    call = office.waiting_claim(1, batch=8, min_rows=6, whole_groups=True, timeout_s=1.0)
    office.later(1.5)
    assert "fit into batch_size 8 hold fewer" in office.reply(call).message  # type: ignore[union-attr]


def test_a_waiting_claim_that_was_abandoned_does_not_come_back(office: Office) -> None:
    """A second copy of it that arrives late leases nothing: nobody would take the rows."""
    body = Claim("p", "train", ["x"], 1)
    office.post(1, body, seq=90)
    office.post(1, Claim("p", "prev_lp", ["x"], 1, blocking=False), seq=91, abandoned=[90])
    office.fails(1, body, "DataPlaneTimeout", seq=90)
    office.put_done(2, ["a"])
    assert office.claim(2).keys == ["a"]


def test_a_waiting_claim_that_was_abandoned_is_answered(office: Office) -> None:
    """Nobody reads it, but its call is over: a connection may have so many open ones, and is then read no more."""
    call = office.post(1, Claim("p", "train", ["x"], 1), seq=90)
    office.event(ev.Heard(1, abandoned=[90]))
    assert office.reply(call).code == "DataPlaneTimeout"  # type: ignore[union-attr]
    office.event(ev.Heard(1, abandoned=[90]))
    assert len(office.answers[call]) == 1


def test_a_claim_that_nobody_waits_for_is_not_counted_as_waiting(office: Office) -> None:
    """Abandoned, or of a session that ended, it leaves the list at once; the others stay, in order."""
    calls = [office.post(who, Claim("p", "train", ["x"], 1), seq=seq) for who, seq in ((1, 90), (2, 90), (1, 91))]
    waiting = office.ledger.desk.claims["p"]
    assert [waiter.call_id for waiter in waiting] == calls
    office.event(ev.Heard(1, 0, [90]))
    assert [waiter.call_id for waiter in office.ledger.desk.claims["p"]] == calls[1:]
    office.event(ev.SessionGone(2, "goodbye"))
    assert [waiter.call_id for waiter in office.ledger.desk.claims["p"]] == calls[2:]
    office.event(ev.Heard(1, 0, [91]))
    assert office.ledger.desk.claims == {}
