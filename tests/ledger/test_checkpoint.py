"""A checkpoint restates what is alive: replaying it, and what came between its slices, gives the live state."""

from __future__ import annotations

import random

from penstock.ledger.events import SessionGone
from penstock.ledger.facts import Entry
from penstock.ledger.machine import Ledger
from penstock.requests import Claim, Claimed, Done, Evict, TagColumn
from penstock.testing.sim.recovery import differences
from tests.ledger.office import Office, group_tags


def busy_office() -> Office:
    office = Office(max_deliveries=3)
    office.open(1)
    office.open(2)
    office.register(tasks=("prev_lp", "train"))
    office.register(name="gone")
    office.put_done(1, ["z"], partition="gone")
    for number in range(6):
        keys = [f"g{number}_{i}" for i in range(3)]
        office.put_done(1, keys, tags=group_tags(f"g{number}", 3))
        office.put_done(2, keys[:2], fields=["logprobs"])
    office.put_done(1, ["plain0", "plain1"], tags=[TagColumn("n", [1, 2])])
    prev = office.claim(1, task="prev_lp", batch=5)
    office.ack(1, prev.keys[:3], prev.token, task="prev_lp")
    train = office.claim(2, batch=6, lease_s=50.0)
    office.pop(2, train.keys[:2], train.token)
    office.evict(1, ["plain0"])
    return office


def replayed(office: Office, entries: list[Entry]) -> Ledger:
    ledger = Ledger(office.config)
    for entry in entries:
        ledger.replay(entry, office.now)
    return ledger


def test_a_checkpoint_alone_gives_the_live_state() -> None:
    """Rows, groups, writes, leases, tombstones, sessions, replies, counters."""
    office = busy_office()
    again = replayed(office, list(office.ledger.checkpoint(rows_per_slice=4)))
    assert not differences(office.ledger, again)


def test_a_replayed_checkpoint_goes_on_living() -> None:
    """New ids do not collide, leases are held by their tokens, tombstones bar late puts."""
    office = busy_office()
    held = office.ledger.desk.state.leases
    keys, token = next((sorted(r.key for r in x.rows.values()), x.token) for x in held.values() if x.task == "train")
    office.crash(list(office.ledger.checkpoint(rows_per_slice=4)))
    office.resume(1)
    office.resume(2)
    office.put_done(1, ["new"], content=5)
    assert office.put(1, ["plain0"], content=9).code == "RowRemoved"  # type: ignore[union-attr]
    office.pop(2, keys, token)
    assert office.audit().residue == 0


def test_facts_between_the_slices_are_neither_lost_nor_applied_twice() -> None:
    """At every slice boundary something happens: puts, claims, acks, releases, renewals, removals, session ends."""
    for seed in range(60):
        rng = random.Random(seed)
        office = busy_office()
        slices = office.ledger.checkpoint(rows_per_slice=2)
        start = len(office.journal)
        journal: list[Entry] = []
        for entry in slices:
            journal += office.journal[start:]
            journal.append(entry)
            start = len(office.journal)
            _something(office, rng)
        journal += office.journal[start:]
        found = differences(office.ledger, replayed(office, journal))
        assert not found, (seed, found)


def _something(office: Office, rng: random.Random) -> None:
    """One random change."""
    sessions = [s for s in (1, 2) if s in office.ledger.desk.state.sessions]
    session = rng.choice(sessions)
    partition = office.ledger.desk.state.partitions["p"]
    rows = sorted(partition.rows)
    some = rng.sample(rows, min(len(rows), 2))
    choice = rng.randrange(10)
    if choice == 0:
        office.put(session, [f"new{rng.random()}"])
    elif choice == 1 and some:
        office.put(session, some, fields=[rng.choice(["x", "logprobs", "late"])], content=rng.randrange(1000))
    elif choice == 2 and some:
        office.tag(session, some, n=rng.randrange(100))
    elif choice in (3, 4):
        office.claim(session, batch=3, task=rng.choice(["train", "prev_lp"]))
    elif choice in (5, 6):
        lease = next(iter(office.ledger.desk.state.leases.values()), None)
        if lease is not None:
            keys = sorted(row.key for row in lease.rows.values())[:2]
            rng.choice([office.ack, office.release])(session, keys, lease.token, task=lease.task)
    elif choice == 7 and some:
        office.evict(session, some)
    elif choice == 8:
        office.clear(session, None)
        office.register(session, tasks=("prev_lp", "train"))
    elif choice == 9 and len(sessions) == 2:
        office.event(SessionGone(session, "killed"))


def test_a_checkpoint_inside_which_the_plane_died_is_harmless() -> None:
    """Its entries follow the older ones: they restate what replay knows already."""
    office = busy_office()
    slices = office.ledger.checkpoint(rows_per_slice=4)
    for cut in range(5):
        office.journal.append(next(slices))
        assert not differences(office.ledger, replayed(office, office.journal)), cut


def test_replay_of_the_whole_journal_gives_the_live_state() -> None:
    """The strong property, without any checkpoint."""
    office = busy_office()
    office.event(SessionGone(2, "killed"))
    assert not differences(office.ledger, replayed(office, office.journal))


def test_a_checkpoint_keeps_the_types_of_fields_whose_blocks_are_gone() -> None:
    """All rows were trained; a put of another type is refused after the restart as it was before."""
    office = busy_office()
    office.put_done(1, ["once"], fields=["undeclared"], dtype="float32")
    office.pop(1, ["once"])
    office.crash(list(office.ledger.checkpoint()))
    office.resume(1)
    refused = office.put(1, ["other"], fields=["undeclared"], dtype="int64")
    assert "holds float32" in refused.message  # type: ignore[union-attr]


def test_a_row_removed_while_a_checkpoint_was_written_stays_removed() -> None:
    """Its tombstone counts as later than the partition's last whole clear, which replay learns of only at the end."""
    office = busy_office()
    for _ in range(5):
        office.clear(1, None)
        office.register(tasks=("prev_lp", "train"))
    slices = office.ledger.checkpoint()
    start = len(office.journal)
    opening = next(slices)
    office.put_done(1, ["trained"], content=1)
    office.pop(1, ["trained"])
    office.crash([opening, *office.journal[start:], *slices])
    office.resume(1)
    assert office.put(1, ["trained"], content=2).code == "RowRemoved"  # type: ignore[union-attr]


def test_a_lease_renewed_by_another_session_stays_the_reply_of_its_claim() -> None:
    """And is not taken for a reply to whatever the other session asked under the same sequence."""
    office = busy_office()
    office.put_done(1, ["a"])
    claim = Claim("p", "train", ["x"], 0, keys=["a"], blocking=False)
    got = office.ask(1, claim, seq=90)
    assert isinstance(got, Claimed)
    office.done(2, Evict("p", ["nothing"], "why"), seq=90)
    assert office.renew(2, ["a"], got.token) == Done()
    office.crash(list(office.ledger.checkpoint()))
    office.resume(1)
    office.resume(2)
    assert office.ask(1, claim, seq=90) == got
    assert office.ask(2, Evict("p", ["nothing"], "why"), seq=90) == Done()
    office.event(SessionGone(1, "killed"))
    assert office.audit().leased >= 1
