"""Leases end by their token alone: ack, release, renew, pop, evict, clear."""

from __future__ import annotations

import pytest

from penstock.ledger.events import SessionGone
from penstock.requests import ANY_TOKEN, NO_TOKEN, CheckConsumption, Claim, Clear, Done, Evict, Flag, Pop, Tokens
from tests.ledger.office import Office, group_tags


@pytest.fixture
def office() -> Office:
    made = Office()
    made.open(1)
    made.open(2)
    made.register(tasks=("prev_lp", "train"))
    made.put_done(1, ["a", "b"])
    return made


def code(reply: object) -> str:
    return getattr(reply, "code", "ok")


def test_the_ack_of_the_final_task_removes_the_row_as_trained(office: Office) -> None:
    """The ack of another task consumes it for that task only."""
    prev = office.claim(1, task="prev_lp")
    assert office.ack(1, ["a", "b"], prev.token, task="prev_lp") == Done()
    assert office.audit().trained == 0
    train = office.claim(1)
    assert office.ack(1, ["a", "b"], train.token) == Done()
    assert office.audit().trained == 2


def test_a_repeated_ack_is_the_same_success_and_changes_nothing(office: Office) -> None:
    """For the final task and for others."""
    prev = office.claim(1, task="prev_lp")
    train = office.claim(1)
    for _ in range(2):
        assert office.ack(2, ["a", "b"], prev.token, task="prev_lp") == Done()
    for _ in range(2):
        assert office.ack(2, ["a", "b"], train.token) == Done()
    assert office.audit().trained == 2


@pytest.mark.parametrize("verb", ["ack", "release", "renew", "pop"])
def test_an_unknown_or_superseded_token_changes_nothing(office: Office, verb: str) -> None:
    """A late consumer is fenced: the row belongs to whoever claimed it since."""
    old = office.claim(1, batch=1, lease_s=1.0)
    office.later(1.5)
    new = office.claim(2, batch=1)
    assert new.keys == ["a"]
    act = getattr(office, verb)
    assert code(act(1, ["a"], old.token)) == "LeaseLost"
    assert code(act(1, ["a"], "1-999")) == "LeaseLost"
    assert office.audit().leased == 1
    assert office.ack(2, ["a"], new.token) == Done()


def test_a_token_outlives_expiry_until_another_claim_supersedes_it(office: Office) -> None:
    """A slow consumer whose row nobody took since may still finish."""
    lease = office.claim(1, batch=1, lease_s=1.0)
    office.later(1.5)
    assert office.audit().leased == 0
    assert office.ack(1, ["a"], lease.token) == Done()
    assert office.audit().trained == 1


def test_each_request_is_all_or_none(office: Office) -> None:
    """One bad row refuses the batch and names itself."""
    lease = office.claim(1, batch=1)
    reply = office.ack(1, ["a", "b"], lease.token)
    assert (code(reply), reply.keys) == ("LeaseLost", ["b"])  # type: ignore[union-attr]
    assert office.audit().trained == 0


def test_release_gives_rows_back_without_counting_a_delivery(office: Office) -> None:
    """And its repeat is a success; an ack after it is not."""
    for _ in range(20):
        lease = office.claim(1, batch=1)
        assert lease.keys == ["a"]
        assert office.release(1, ["a"], lease.token) == Done()
    assert office.release(1, ["a"], lease.token) == Done()
    assert code(office.ack(1, ["a"], lease.token)) == "LeaseLost"


def test_renew_bounds_a_lease_anew_and_takes_a_lapsed_one_back(office: Office) -> None:
    """Renewed before its end it lives on; renewed after it, it is held again if nobody took it."""
    lease = office.claim(1, batch=1, lease_s=2.0)
    office.later(1.5)
    assert office.renew(1, ["a"], lease.token, lease_s=2.0) == Done()
    office.later(1.5)
    assert office.audit().leased == 1
    office.later(1.0)
    assert office.audit().leased == 0
    assert office.renew(1, ["a"], lease.token) == Done()
    office.later(5.0)
    assert office.audit().leased == 1
    assert office.claim(2, batch=8).keys == ["b"]


def test_a_lease_renewed_from_another_session_belongs_to_it(office: Office) -> None:
    """The end of the old session does not take it away."""
    lease = office.claim(1, batch=1)
    assert office.renew(2, ["a"], lease.token) == Done()
    office.open(3)
    office.event(SessionGone(1, "killed"))
    assert office.audit().leased == 1
    office.event(SessionGone(2, "killed"))
    assert office.audit().leased == 0


def test_pop_of_rows_nobody_leased_needs_no_token(office: Office) -> None:
    """Direct-by-key users; a repeat is a success, as is a row that never was."""
    assert office.pop(1, ["a"]) == Done()
    assert office.pop(1, ["a", "never"]) == Done()
    assert office.audit().trained == 1


def test_pop_without_the_token_of_a_leased_row_is_refused(office: Office) -> None:
    """Only the lease's own token removes it; any session may bring it."""
    lease = office.claim(1, batch=1)
    assert code(office.pop(2, ["a"])) == "LeaseLost"
    assert office.pop(2, ["a"], lease.token) == Done()
    assert office.pop(2, ["a"], lease.token) == Done()


def test_pop_looks_at_the_final_task_only(office: Office) -> None:
    """A row leased for an earlier stage may be popped; that stage then has nothing left to do for it."""
    prev = office.claim(1, task="prev_lp")
    assert office.pop(2, ["a"]) == Done()
    assert office.ack(1, ["a", "b"], prev.token, task="prev_lp") == Done()
    assert office.release(1, ["a"], prev.token, task="prev_lp") == Done()
    assert code(office.ack(1, ["never"], prev.token, task="prev_lp")) == "LeaseLost"
    assert office.claim(1, task="prev_lp").keys == []


def test_a_token_does_not_pop_a_new_row_of_the_same_name(office: Office) -> None:
    """After a clear the name may be put anew; the old consumer's pop does not reach it."""
    lease = office.claim(1, batch=1)
    office.clear(2, ["a"])
    office.put_done(2, ["a"], content=5)
    assert code(office.pop(1, ["a"], lease.token)) == "LeaseLost"
    assert office.audit().in_flight == 2


def test_tokens_are_read_per_key(office: Office) -> None:
    """An index, none, or any of the lease."""
    one, two = office.claim(1, batch=1), office.claim(1, batch=1)
    wrong = Tokens([one.token, two.token], [1, 0])
    assert office.fails(1, Pop("p", ["a", "b"], wrong), "LeaseLost").keys == ["a", "b"]
    assert office.fails(1, Pop("p", ["a", "b"], Tokens([one.token], [0, NO_TOKEN])), "LeaseLost").keys == ["b"]
    office.done(1, Pop("p", ["a", "b"], Tokens([one.token, two.token], [0, ANY_TOKEN])))


def test_evict_and_clear_end_other_peoples_leases(office: Office) -> None:
    """Each is counted under its own reason."""
    lease = office.claim(1, batch=2)
    assert office.evict(2, ["a"], "stale") == Done()
    assert office.clear(2, ["b"]) == Done()
    audit = office.audit()
    assert (audit.evicted, audit.cleared, audit.leased) == ({"stale": 1}, 1, 0)
    refused = office.ack(1, ["a", "b"], lease.token)
    assert code(refused) == "LeaseLost"
    assert "cleared or evicted meanwhile" in refused.message  # type: ignore[union-attr]
    assert code(office.pop(1, ["a", "b"], lease.token)) == "LeaseLost"
    assert office.release(1, ["a", "b"], lease.token) == Done()
    assert office.audit().trained == 0


def test_an_eviction_needs_a_reason(office: Office) -> None:
    """An empty one is refused."""
    office.fails(1, Evict("p", ["a"], ""), "BadArgument")


def test_clearing_what_is_not_there_is_a_success_and_popping_nowhere_is_not(office: Office) -> None:
    """Clear is idempotent also for partitions; a mistyped partition of a pop is named."""
    assert office.clear(1, None) == Done()
    assert office.clear(1, None) == Done()
    office.fails(1, Pop("nowhere", ["a"], Tokens([], [])), "UnknownName")
    assert office.audit().cleared == 2


def test_consumption_is_complete_when_every_row_is_claimed_or_consumed(office: Office) -> None:
    """By every named task; an empty partition is consumed."""
    ask = CheckConsumption("p", ["prev_lp", "train"])
    assert office.ask(1, ask) == Flag(False)
    office.claim(1)
    prev = office.claim(1, task="prev_lp")
    assert office.ask(1, ask) == Flag(True)
    office.ack(1, prev.keys, prev.token, task="prev_lp")
    assert office.ask(1, ask) == Flag(True)
    office.put_done(1, ["c"])
    assert office.ask(1, ask) == Flag(False)
    office.fails(1, CheckConsumption("p", ["nobody"]), "UnknownName")


def test_a_re_put_does_not_reset_consumption(office: Office) -> None:
    """A later stage refines a column; who has consumed the row has consumed it."""
    lease = office.claim(1, task="prev_lp")
    office.ack(1, lease.keys, lease.token, task="prev_lp")
    office.put_done(1, ["a"], content=123)
    assert office.claim(1, task="prev_lp").keys == []


def test_a_popped_part_of_a_group_leaves_the_rest_unclaimable_as_a_group(office: Office) -> None:
    """The group is not complete any more; its rows are still there by key."""
    office.put_done(1, ["g_0", "g_1"], tags=group_tags("g", 2))
    office.pop(1, ["g_0"])
    assert office.claim(1, whole_groups=True).keys == []
    assert office.ask(1, Claim("p", "train", ["x"], 0, keys=["g_1"], blocking=False)).keys == ["g_1"]  # type: ignore[union-attr]


def test_a_released_row_may_be_popped_by_who_released_it(office: Office) -> None:
    """Nobody leases it; once somebody else has claimed it, no more."""
    lease = office.claim(1, batch=1)
    office.release(1, ["a"], lease.token)
    taken = office.claim(2, batch=1)
    assert code(office.pop(1, ["a"], lease.token)) == "LeaseLost"
    office.release(2, ["a"], taken.token)
    assert office.pop(2, ["a"], taken.token) == Done()


def test_a_whole_clear_ends_everything_of_its_partition_and_of_no_other(office: Office) -> None:
    """Leases, unfinished groups, blocks; what was cleared is remembered as cleared."""
    office.register(name="other")
    office.put_done(1, ["a"], partition="other")
    office.put_done(1, ["g_0"], tags=group_tags("g", 2))
    office.tag(2, ["a"], n=1)
    lease = office.claim(1)
    freed = len(office.freed)
    office.done(2, Clear("p", None))
    state = office.ledger.desk.state
    assert len(office.freed) - freed == 2
    assert (state.leases, state.sessions[1].leases, state.sessions[1].unfinished) == ({}, {}, set())
    assert office.audit().cleared == 3
    assert office.audit("other").in_flight == 1
    office.register(tasks=("prev_lp", "train"))
    assert office.release(1, ["a"], lease.token) == Done()
    assert code(office.ack(1, ["a"], lease.token)) == "LeaseLost"
    office.crash()
    office.crash(list(office.ledger.checkpoint()))


def test_the_token_of_an_empty_claim_holds_nothing(office: Office) -> None:
    """It is the empty string: no lease has it, and no row that was never leased may be acked under it."""
    assert code(office.ack(1, ["a"], "")) == "LeaseLost"
    assert office.audit().trained == 0


FENCING = {  # the token's standing -> (ack, release, renew, pop); the table of docs/ledger.md
    "holds the row": ("ok", "ok", "ok", "ok"),
    "expired": ("ok", "ok", "ok", "ok"),
    "its session ended": ("ok", "ok", "ok", "ok"),
    "released": ("LeaseLost", "ok", "LeaseLost", "ok"),
    "superseded": ("LeaseLost", "LeaseLost", "LeaseLost", "LeaseLost"),
    "ended the row": ("ok", "ok", "LeaseLost", "ok"),
    "evicted": ("LeaseLost", "ok", "LeaseLost", "LeaseLost"),
    "cleared": ("LeaseLost", "ok", "LeaseLost", "LeaseLost"),
    "none": ("LeaseLost", "LeaseLost", "LeaseLost", "LeaseLost"),
}


@pytest.mark.parametrize("standing", FENCING)
@pytest.mark.parametrize("restart", [False, True])
def test_what_a_token_may_do(standing: str, restart: bool) -> None:
    """Each cell of the documented table, also after a restart from a checkpoint."""
    for verb, expected in zip(("ack", "release", "renew", "pop"), FENCING[standing], strict=True):
        office = Office()
        office.open(1)
        office.open(2)
        office.register()
        office.put_done(1, ["a"])
        token = office.claim(1, lease_s=1.0 if standing == "expired" else None).token
        if standing in ("expired", "superseded"):
            office.later(1.5)
        if standing in ("superseded", "its session ended"):
            office.event(SessionGone(1, "killed"))
        if standing == "superseded":
            assert office.claim(2).keys == ["a"]
        events = {
            "released": lambda o, t: o.release(1, ["a"], t),
            "ended the row": lambda o, t: o.ack(1, ["a"], t),
            "evicted": lambda o, t: o.evict(2, ["a"]),
            "cleared": lambda o, t: o.clear(2, ["a"]),
        }
        if standing in events:
            assert events[standing](office, token) == Done()
        if restart:
            office.crash(list(office.ledger.checkpoint()))
            office.resume(2)
        reply = getattr(office, verb)(2, ["a"], *([] if standing == "none" else [token]))
        assert (verb, code(reply)) == (verb, expected)
        if expected == "LeaseLost":
            assert office.audit().trained == (standing == "ended the row")
