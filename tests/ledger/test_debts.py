"""What ``why`` says is missing, and who owes it: stuck groups, starved tasks, silent sessions, full planes."""

from __future__ import annotations

from typing import TypeVar

import pytest

from penstock.debts import AnyDebt, FullPlane, SilentHost, SilentSession, StarvedTask, StuckGroup
from penstock.ledger import debts
from penstock.ledger.events import GOODBYE, BlocksLost, Heard, SessionGone
from penstock.records import GroupPolicy
from penstock.requests import Claim, RegisterPartition, Why, WhyReport
from tests.ledger.machines import Agents, put
from tests.ledger.office import Office, group_tags

D = TypeVar("D", bound=AnyDebt)


def made(**config: object) -> Office:
    office = Office(**config)
    office.open(1)
    office.open(2)
    office.register(tasks=("logp", "train"))
    return office


def owed(office: Office, kind: type[D], session: int = 2, **about: str) -> list[D]:
    reply = office.ask(session, Why("p", **about))
    assert isinstance(reply, WhyReport)
    assert all(debt.says for debt in reply.owed)
    return [debt for debt in reply.owed if isinstance(debt, kind)]


def test_a_missing_sibling_is_owed_by_who_put_the_others() -> None:
    """How many of how many, how old, and the heartbeat of the producer."""
    office = made()
    office.put_done(1, ["g_0", "g_1", "g_2"], tags=group_tags("g", 4))
    office.later(3.0)
    (debt,) = owed(office, StuckGroup, task="train")
    assert (debt.group, debt.rows, debt.expected, debt.gone, debt.committed) == ("g", 3, 4, 0, True)
    assert debt.age_s == pytest.approx(3.0)
    (producer,) = debt.owed_by
    assert (producer.session_id, producer.pid, producer.silent_s, producer.ended) == (1, 1, 3.0, "")
    assert debt.says == "group 'g' has 3 of 4 rows, 3.0 s old; put by owner1 (pid 1 on host), heard of 3.0 s ago"
    assert owed(office, StuckGroup, group="g") == owed(office, StuckGroup, key="g_0") == [debt]


def test_a_producer_that_has_ended_is_still_known_by_name() -> None:
    """Why it ended and when; also after a restart of the plane, as far as the journal goes."""
    office = made()
    office.put_done(1, ["g_0"], tags=group_tags("g", 2))
    office.event(SessionGone(1, "process 1 has ended"))
    office.later(2.0)
    (debt,) = owed(office, StuckGroup)
    (producer,) = debt.owed_by
    assert (producer.session_id, producer.silent_s, producer.ended) == (1, 2.0, "process 1 has ended")
    assert "owner1 (pid 1 on host), which ended 2.0 s ago: process 1 has ended" in debt.says
    office.crash()
    office.resume(2)
    assert owed(office, StuckGroup)[0].owed_by[0].ended == "process 1 has ended"
    office.crash([*office.ledger.checkpoint()])
    office.resume(2)
    assert owed(office, StuckGroup)[0].owed_by[0].session_id == 0


def test_a_group_says_what_it_lost_and_that_it_is_not_committed() -> None:
    """Rows that do not come back; and the commit is missing as well as a row can be."""
    office = made()
    office.put_done(1, ["g_0"], tags=group_tags("g", 2))
    office.put_done(1, ["g_1"], tags=group_tags("g", 2))
    office.event(BlocksLost([office.filled[0]], "damaged"))
    office.put_done(1, ["h_0"], tags=group_tags("h", 1, committed=False))
    lost, open_one = owed(office, StuckGroup)
    assert (lost.group, lost.rows, lost.gone) == ("g", 1, 1)
    assert "lost 1 for good" in lost.says
    assert (open_one.group, open_one.committed) == ("h", False)
    assert "is not committed" in open_one.says


def test_a_group_that_a_policy_has_released_is_not_stuck() -> None:
    """Nor is one whose rows the task has consumed."""
    office = made()
    office.register(tasks=("logp", "train"), policy=GroupPolicy(deadline_s=1.0, on_deadline="partial"))
    office.put_done(1, ["g_0"], tags=group_tags("g", 2))
    assert owed(office, StuckGroup)
    lease = office.claim(2, task="logp")
    office.ack(2, lease.keys, lease.token, task="logp")
    assert not owed(office, StuckGroup, task="logp")
    assert owed(office, StuckGroup, task="train")
    office.later(1.5)
    assert not owed(office, StuckGroup, task="train")


def trains(office: Office, session: int = 2, min_rows: int = 1, **how: object) -> None:
    """Let a trainer wait for rows with both columns."""
    office.post(session, Claim("p", "train", ["x", "logp"], 8, min_rows=min_rows, **how), timeout_s=60.0)  # type: ignore[arg-type]


def test_a_task_starves_by_a_stage_that_has_not_put_its_column() -> None:
    """Which column, which stage, who holds how many of the rows, and how many nobody has claimed."""
    office = made()
    office.put_done(1, ["a", "b", "c"])
    office.claim(1, batch=2, task="logp")
    trains(office)
    (debt,) = owed(office, StarvedTask, task="train")
    assert (debt.task, debt.ready, debt.wanted, debt.field, debt.rows) == ("train", 0, 1, "logp", 3)
    assert (debt.stage, debt.unclaimed, debt.example) == ("logp", 1, "a")
    assert [(p.session_id, p.rows) for p in debt.owed_by] == [(1, 2)]
    assert debt.says == (
        "0 of 1 rows are ready for task 'train': field 'logp' is not produced for 3 of 3 rows, e.g. 'a'; "
        "task 'logp' has not acknowledged them, held by owner1 (pid 1 on host) (2 rows), heard of 0.0 s ago; "
        "1 nobody has claimed for it"
    )


def test_a_stage_that_acknowledged_without_its_column_owes_nothing_more() -> None:
    """Then it is for those who put the rows."""
    office = made()
    office.put_done(1, ["a"])
    lease = office.claim(2, task="logp")
    office.ack(2, lease.keys, lease.token, task="logp")
    trains(office)
    (debt,) = owed(office, StarvedTask, task="train")
    assert (debt.field, debt.stage) == ("logp", "")
    assert [p.session_id for p in debt.owed_by] == [1]


def test_rows_that_others_hold_are_named_with_their_holders() -> None:
    """The task's own leases: a trainer that hangs on to everything."""
    office = made()
    office.put_done(1, ["a", "b"])
    office.claim(1, task="train")
    office.waiting_claim(2, timeout_s=60.0)
    (debt,) = owed(office, StarvedTask, task="train")
    assert (debt.field, debt.rows, debt.stage) == ("", 2, "train")
    assert [(p.session_id, p.rows) for p in debt.owed_by] == [(1, 2)]


def test_a_task_without_rows_says_so() -> None:
    """None were put; or it has consumed them all; or their groups are not whole."""
    office = made()
    (debt,) = owed(office, StarvedTask, task="logp")
    assert (debt.rows, debt.ready) == (0, 0)
    assert "no row is there" in debt.says
    office.put_done(1, ["g_0"], tags=group_tags("g", 2))
    lease = office.claim(2, task="logp")
    office.ack(2, lease.keys, lease.token, task="logp")
    assert "it has consumed all rows" in owed(office, StarvedTask, task="logp")[0].says
    office.claim(2, whole_groups=True)
    assert "1 rows are there, in groups that are not whole" in owed(office, StarvedTask, task="train")[0].says


def test_before_its_first_claim_a_task_is_taken_to_need_every_declared_field() -> None:
    """A controller that chooses from metadata may never have claimed anything."""
    office = made()
    office.done(1, RegisterPartition("p", ["x", "logp"], 8, ["logp", "train"]))
    office.put_done(1, ["a"])
    assert [debt.field for debt in owed(office, StarvedTask, task="train")] == ["logp"]
    office.put_done(1, ["a"], fields=["logp"])
    assert owed(office, StarvedTask, task="train") == []


def test_what_is_wanted_is_what_the_waiting_claim_waits_for() -> None:
    """Two ready rows are none too few for a claim of two, and too few for one of three."""
    office = made()
    office.put_done(1, ["a", "b", "c"])
    office.put_done(1, ["a", "b"], fields=["logp"])
    assert office.claim(2, batch=1, required=["x", "logp"], keys=["c"]).keys == []
    office.put_done(1, ["g_0"], tags=group_tags("g", 1))
    office.put_done(1, ["g_0"], fields=["logp"])
    assert owed(office, StarvedTask, task="train") == []
    trains(office, min_rows=4)
    (debt,) = owed(office, StarvedTask, task="train")
    assert (debt.ready, debt.wanted, debt.field, debt.rows) == (3, 4, "logp", 1)


def test_a_late_heartbeat_is_named_and_so_is_an_end_without_goodbye() -> None:
    """For how long, how many rows it holds, how many unfinished groups it put to; who said goodbye is not."""
    office = made()
    office.open(3)
    office.put_done(1, ["g_0"], tags=group_tags("g", 2))
    office.claim(1)
    assert owed(office, SilentSession) == []
    office.event(SessionGone(3, GOODBYE))
    for _ in range(6):
        office.later(1.0)
        office.event(Heard(2))
    (debt,) = owed(office, SilentSession)
    assert (debt.party.session_id, debt.party.silent_s, debt.party.rows) == (1, 6.0, 1)
    assert (debt.unfinished, debt.dead_after_s, debt.party.ended) == (1, 10.0, "")
    assert "the heartbeat of owner1 (pid 1 on host) is 6.0 s old (dead after 10 s)" in debt.says
    for _ in range(6):
        office.later(1.0)
        office.event(Heard(2))
    (debt,) = owed(office, SilentSession)
    assert (debt.party.ended, debt.party.silent_s, debt.unfinished) == ("silent for 10.0 s", 2.0, 1)
    assert "ended 2.0 s ago without a goodbye" in debt.says


def test_a_full_plane_names_who_waits_and_what_takes_the_room() -> None:
    """Capacity, the limit it is, leases, unfinished groups and promises; the others by partition."""
    office = made(max_rows=6, max_bytes=10_000)
    office.put_done(1, ["g_0", "g_1", "g_2"], tags=group_tags("g", 4))
    office.put_done(1, ["a"])
    office.claim(1, batch=1, keys=["a"])
    assert owed(office, FullPlane) == []
    office.grant(2, ["h_0"], tags=group_tags("h", 2), timeout_s=3.0)
    office.later(2.0)
    (debt,) = owed(office, FullPlane, task="train")
    assert (debt.limit, debt.used_rows, debt.max_rows, debt.used_bytes, debt.max_bytes) == ("", 5, 6, 500, 10_000)
    assert [(p.session_id, p.rows, p.waits_s) for p in debt.waiting] == [(2, 2, 2.0)]
    (room,) = debt.held
    assert (room.partition, room.rows, room.leased, room.unfinished) == ("p", 4, 1, 3)
    assert (room.promised_rows, room.granted_rows) == (1, 0)
    assert [(p.session_id, p.rows) for p in debt.held_by] == [(1, 1)]
    assert "5 of 6 rows of the plane are taken or promised" in debt.says
    assert "owner2 (pid 2 on host) (2 rows), heard of 0.0 s ago, has waited for room for 2.0 s" in debt.says
    office.later(2.0)
    (debt,) = owed(office, FullPlane)  # between two tries of the producer the plane is full all the same
    assert debt.waiting == []
    assert "the last put that found no room ended 1.0 s ago: 2 rows of owner2" in debt.says
    office.evict(2, ["g_0", "g_1", "g_2"])
    assert owed(office, FullPlane) == []


def test_a_partitions_own_limit_is_named() -> None:
    """With what that partition holds, and nobody else's."""
    office = made(partition_max_rows=1)
    office.register(name="q")
    office.put_done(1, ["a"], partition="q")
    office.put_done(1, ["b"])
    office.grant(2, ["c"], timeout_s=60.0)
    (debt,) = owed(office, FullPlane)
    assert (debt.limit, debt.used_rows, debt.max_rows) == ("p", 1, 1)
    assert [room.partition for room in debt.held] == ["p"]


def test_the_worst_comes_first_and_a_healthy_plane_owes_nothing() -> None:
    """Full, then groups, then tasks, then sessions; few of each."""
    office = made(max_rows=20)
    for number in range(12):
        office.put_done(1, [f"g{number}"], tags=group_tags(f"g{number}", 1, committed=False))
    office.grant(2, [f"h{i}" for i in range(9)], timeout_s=60.0)
    office.claim(1, required=["x", "logp"])
    office.later(6.0)
    reply = office.ask(2, Why("p"))
    assert isinstance(reply, WhyReport)
    kinds = [type(debt) for debt in reply.owed]
    assert list(dict.fromkeys(kinds)) == [FullPlane, StuckGroup, StarvedTask, SilentSession]
    assert kinds.count(StuckGroup) == debts.SHOWN
    healthy = made()
    healthy.put_done(1, ["g_0", "g_1"], tags=group_tags("g", 2))
    healthy.claim(2, batch=1, keys=["g_0"], task="logp")
    answer = healthy.ask(2, Why("p", task="train"))
    assert isinstance(answer, WhyReport)
    assert answer.owed == []


def test_a_silent_host_is_named_with_the_rows_that_wait_for_it() -> None:
    """Rows that lie elsewhere too do not wait; ``why`` of a row says where it lies, and how it was lost."""
    office = made(dead_after_s=1e6)
    agents = Agents(office)
    agents.up(1)
    agents.up(2)
    put(office, 1, ["alone"], host=1)
    put(office, 1, ["both"], host=1, replicas=2)
    assert owed(office, SilentHost) == []
    agents.down(1)
    office.later(3.0)
    (debt,) = owed(office, SilentHost)
    assert (debt.rows, debt.example, debt.blocks, debt.address) == (1, "alone", 2, "10.0.0.1")
    assert (debt.silent_s, debt.left_s) == (3.0, 57.0)
    assert debt.host in debt.says
    assert "1 rows wait for it" in debt.says
    report = office.ask(1, Why("p", key="alone"))
    assert isinstance(report, WhyReport)
    assert any("it lies on host m1" in line and "silent for 3.0 s" in line for line in report.waits)
    agents.down(2)
    assert sum(d.rows for d in owed(office, SilentHost)) == 3  # nobody is up: both wait, one of them for either host
    office.later(57.0)
    report = office.ask(1, Why("p", key="alone"))
    assert isinstance(report, WhyReport)
    assert "lost host m1 gone for 60 s" in report.waits[0]
