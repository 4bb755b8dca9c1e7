"""Groups: whole or not at all, until their policy's deadline; what is left of them is never stuck in silence."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.ledger import books
from penstock.ledger.events import Heard, SessionGone
from penstock.records import DataPlaneGroupMeta, GroupPolicy
from penstock.requests import Depth, Groups, ListMetadata, Number, TagColumn
from tests.ledger.office import Office, group_tags

PARTIAL = GroupPolicy(min_ready=1, deadline_s=2.0, on_deadline="partial")
DROP = GroupPolicy(deadline_s=2.0, on_deadline="drop")


def made(policy: GroupPolicy | None = None, **config: object) -> Office:
    office = Office(**config)
    office.open(1)
    office.open(2)
    office.register(tasks=("logp", "train"), policy=policy)
    return office


def test_the_late_row_of_a_partial_group_is_handed_out_too() -> None:
    """Its siblings were consumed without it; now the group is complete, and must not wait for them."""
    office = made(PARTIAL)
    office.put_done(1, ["g0", "g1"], tags=group_tags("g", 3))
    office.later(2.5)
    first = office.claim(1, task="logp", whole_groups=True)
    assert [tag["partial"] for tag in first.tags] == [True, True]
    office.ack(1, first.keys, first.token, task="logp")
    office.put_done(1, ["g2"], tags=group_tags("g", 3))
    late = office.claim(1, task="logp", whole_groups=True)
    assert (late.keys, late.tags[0]["partial"]) == (["g2"], True)
    whole = office.claim(1, task="train", whole_groups=True)
    assert whole.keys == ["g0", "g1", "g2"]
    assert not any("partial" in tag for tag in whole.tags)


def test_rows_claimed_one_by_one_have_no_mask_tag() -> None:
    """``partial`` is about groups that were handed out as they are; a claim of rows asked for no group."""
    office = made(PARTIAL)
    office.put_done(1, ["g0"], tags=group_tags("g", 2))
    office.later(2.5)
    assert "partial" not in office.claim(1).tags[0]


def test_what_a_dead_producer_never_committed_of_a_partial_group_is_given_up() -> None:
    """Nobody can claim it: it would stay for ever. Its committed siblings stay claimable."""
    office = made(PARTIAL, abandon_grace_s=5.0)
    office.open(3)
    office.put_done(3, ["g0"], tags=group_tags("g", 3))
    office.put_done(3, ["g1"], tags=group_tags("g", 3, committed=False))
    office.later(2.5)
    office.event(SessionGone(3, "killed"))
    for session in (1, 2):
        office.event(SessionGone(session, "killed"))
    office.open(4)
    office.later(5.5)
    assert office.audit().evicted == {"abandoned": 1}
    assert office.claim(4, whole_groups=True).keys == ["g0"]


@pytest.mark.parametrize(("policy", "left"), [(DROP, 0), (PARTIAL, 1)])
def test_a_group_that_loses_a_row_after_its_deadline_meets_it_again(policy: GroupPolicy, left: int) -> None:
    """It was done when the deadline came; then somebody popped one row of it."""
    office = made(policy)
    office.put_done(1, ["g0", "g1"], tags=group_tags("g", 2))
    office.later(3.0)
    office.pop(1, ["g0"])
    assert office.claim(1, whole_groups=True).keys == []
    for _ in range(6):
        office.later(0.5)
        office.tag(1, [], n=1)
    assert len(office.claim(1, whole_groups=True).keys) == left
    assert office.audit().evicted == ({} if left else {"incomplete": 1})


def test_a_policy_given_later_bounds_the_groups_that_are_there() -> None:
    """Registering again replaces it, also for a group that began under the old one."""
    office = made()
    office.put_done(1, ["g0"], tags=group_tags("g", 2))
    office.register(tasks=("logp", "train"), policy=DROP)
    office.later(2.5)
    assert office.audit().evicted == {"incomplete": 1}


@pytest.mark.parametrize("checkpoint", [False, True])
def test_deadlines_and_leases_run_in_full_after_a_restart(checkpoint: bool) -> None:
    """Group deadlines, lease expiries and the grace of abandoned groups, from the journal or from a checkpoint."""
    office = made(DROP, abandon_grace_s=4.0)
    office.put_done(1, ["a"], tags=[TagColumn("n", [1])])
    office.put_done(1, ["g0"], tags=group_tags("g", 2))
    lease = office.claim(2, batch=1, lease_s=3.0)
    assert lease.keys == ["a"]
    office.later(1.5)
    office.crash(list(office.ledger.checkpoint()) if checkpoint else None)
    office.resume(1)
    office.resume(2)
    office.later(1.5)
    assert (office.audit().leased, office.audit().evicted) == (1, {})
    office.later(1.0)
    assert (office.audit().leased, office.audit().evicted) == (1, {"incomplete": 1})
    office.later(1.0)
    assert office.audit().leased == 0


def test_a_live_row_cannot_join_a_group_that_was_given_up() -> None:
    """Neither by a tag nor by a put that carries the group's name."""
    office = made()
    office.put_done(1, ["g0"], tags=group_tags("g", 2))
    office.evict(1, ["g0"])
    office.put_done(1, ["alone"])
    assert office.tag(1, ["alone"], group_id="g").code == "RowRemoved"  # type: ignore[union-attr]
    again = office.put(1, ["alone"], fields=["y"], tags=group_tags("g", 2))
    assert again.code == "RowRemoved"  # type: ignore[union-attr]
    assert office.tag(1, ["alone"], group_id="h") == office.tag(1, ["alone"], n=1)


def test_timers_of_what_is_gone_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that were acked or renewed, and groups that were completed, leave theirs behind for a while only."""
    monkeypatch.setattr(books, "MANY_TIMERS", 16)
    office = made(GroupPolicy(deadline_s=1e6, on_deadline="drop"))
    office.ledger.desk.books._many_timers = 16
    office.put_done(1, ["a"])
    lease = office.claim(1, lease_s=1e6)
    for number in range(60):
        office.renew(1, ["a"], lease.token, lease_s=1e6)
        office.put_done(2, [f"g{number}"], tags=group_tags(f"g{number}", 1))
    assert len(office.ledger.desk.books.timers) <= 2 * 16 + 1
    assert office.ledger.desk.books.timers


def test_what_why_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the keys it names, not only by its events: the newest stay."""
    monkeypatch.setattr(books, "HISTORY_KEYS", 100)
    office = made()
    for number in range(20):
        keys = [f"{number}_{i}" for i in range(30)]
        office.put_done(1, keys)
        office.evict(1, keys)
    history = office.ledger.desk.state.history
    assert sum(len(keys) for _, _, _, keys in history) <= 100
    assert history[-1][3][0] == "19_0"


def test_a_row_is_in_a_group_by_its_own_tags_alone() -> None:
    """Another row of the same put had group tags: that says nothing of this one, now or after a restart."""
    office = made()
    office.put_done(1, ["a", "b"], tags=[TagColumn("committed", [True], [0]), TagColumn("n", [1])])
    assert office.claim(1, whole_groups=True).keys == ["a"]
    office.tag(1, ["b"], n=2)
    assert office.ledger.desk.state.partitions["p"].rows["b"].group is None
    office.crash()
    office.crash(list(office.ledger.checkpoint()))


def listed(office: Office, **filters: Any) -> dict[str, DataPlaneGroupMeta]:
    reply = office.ask(1, ListMetadata("p", **filters))
    assert isinstance(reply, Groups)
    return {group.group_id: group for group in reply.groups}


def test_a_listing_says_what_a_policy_has_released_as_partial() -> None:
    """Which rows may go: the committed ones. Such a group passes the filter for committed ones; a whole one is none."""
    office = made(PARTIAL)
    office.put_done(1, ["g0", "g1"], tags=group_tags("g", 4))
    office.put_done(1, ["g2"], tags=group_tags("g", 4, committed=False))
    office.put_done(1, ["h0"], tags=group_tags("h", 1))
    before = listed(office)
    assert (before["g"].partial_keys, before["g"].usable_keys) == ([], [])
    assert (before["h"].partial_keys, before["h"].usable_keys) == ([], ["h0"])
    assert set(listed(office, committed=True)) == {"h"}
    office.later(2.5)
    after = listed(office)
    assert (after["g"].partial_keys, after["g"].usable_keys, after["g"].committed) == (
        ["g0", "g1"],
        ["g0", "g1"],
        False,
    )
    assert after["h"] == before["h"]
    assert set(listed(office, committed=True)) == {"g", "h"}
    assert listed(office, committed=False) == {}
    assert office.ask(1, Depth("p")) == Number(1)
    office.tag(1, ["g2"], committed=True)
    assert listed(office)["g"].partial_keys == ["g0", "g1", "g2"]
    office.put_done(1, ["g3"], tags=group_tags("g", 4))
    assert (listed(office)["g"].partial_keys, listed(office)["g"].usable_keys) == ([], ["g0", "g1", "g2", "g3"])
    office.crash()
    office.resume(1)
    office.evict(1, ["g3"])
    assert listed(office)["g"].partial_keys == ["g0", "g1", "g2"]


@pytest.mark.parametrize("whole", [True, False])
def test_rows_of_a_partial_group_chosen_by_key_have_the_mask_tag_if_groups_were_asked_for(whole: bool) -> None:
    """That is how a controller takes them; whoever names rows as rows asked for no group."""
    office = made(PARTIAL)
    office.put_done(1, ["g0", "g1"], tags=group_tags("g", 3))
    office.put_done(1, ["h0"], tags=group_tags("h", 1))
    office.later(2.5)
    got = office.claim(1, keys=["g0", "g1", "h0"], whole_groups=whole)
    assert [tag.get("partial") for tag in got.tags] == ([True, True, None] if whole else [None] * 3)


def test_a_controller_that_claims_groups_by_their_keys_takes_whole_groups() -> None:
    """What is left of a group that lost a row is given up for it, too; its keyed claims leave no row queue behind."""
    office = made(abandon_grace_s=3.0)
    office.put_done(1, ["h0"], tags=group_tags("h", 1))
    for task in ("logp", "train"):
        got = office.claim(1, keys=["h0"], task=task, whole_groups=True)
        office.ack(1, got.keys, got.token, task=task)
    office.put_done(1, ["g0", "g1"], tags=group_tags("g", 2))
    office.evict(2, ["g0"])
    office.crash()
    office.resume(1)
    office.resume(2)
    for _ in range(4):
        office.later(1.0)
        office.event(Heard(1))
    assert office.audit().evicted == {"stale": 1, "incomplete": 1}
