"""Chaos: a seeded schedule, faults that count only once they were seen to fire, and recoveries."""

from __future__ import annotations

import itertools

import pytest

from penstock.demo.chaos import JITTER, KINDS, Chaos, FaultLedger
from penstock.demo.processes import Ended
from penstock.testing.checker import Fault

SLOTS = ["plane-0", "scorer-0", "trainer-0", "worker-0", "worker-1"]


def kills(seed: int, until: float, slots: list[str]) -> list[tuple[float, str]]:
    chaos, found = Chaos(seed, 5.0, 0.0), []
    for tick in range(int(until * 10)):
        victim = chaos.due(tick / 10, slots)
        if victim is not None:
            found.append((tick / 10, victim))
    return found


def test_a_seed_names_a_schedule() -> None:
    """The same seed kills the same slots at the same times."""
    assert kills(1, 100, SLOTS) == kills(1, 100, SLOTS)
    assert kills(1, 100, SLOTS) != kills(2, 100, SLOTS)


def test_kills_come_every_period_or_so_and_meet_every_kind() -> None:
    """Never sooner or later than the jitter allows; the scorer is left alone."""
    found = kills(0, 300, SLOTS)
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(found)]
    assert all(5 * (1 - JITTER) - 0.11 <= gap <= 5 * (1 + JITTER) + 0.11 for gap in gaps)
    assert {slot.split("-")[0] for _, slot in found} == set(KINDS)
    assert {"worker-0", "worker-1"} <= {slot for _, slot in found}


def test_nobody_to_kill_is_waited_out() -> None:
    """A kill that finds nobody is not lost: it comes as soon as there is somebody."""
    chaos = Chaos(0, 5.0, 0.0)
    assert chaos.due(100.0, ["scorer-0"]) is None
    assert chaos.due(100.1, ["trainer-0"]) == "trainer-0"


def test_a_fault_counts_when_it_was_seen_to_fire() -> None:
    """Sent is not fired: the victim's status must say SIGKILL, and it must be our victim."""
    ledger = FaultLedger()
    ledger.killed("worker-0", 11, 1.0)
    assert ledger.fired() == 0
    assert ledger.ended(Ended("worker-0.1", 12, -9)) is None
    assert ledger.ended(Ended("worker-0.1", 11, 1)) is None
    assert ledger.ended(Ended("worker-0.1", 11, -9)) == Fault("worker", 11)
    assert ledger.ended(Ended("worker-0.1", 11, -9)) is None
    assert ledger.counts() == {"worker": 1, "trainer": 0, "plane": 0}


@pytest.mark.parametrize(
    ("slot", "born_at", "recovers"),
    [("worker-0", 2.0, True), ("worker-1", 2.0, False), ("worker-0", 0.5, False), ("trainer-0", 2.0, False)],
)
def test_recovery_is_progress_of_that_slot_by_a_later_life(slot: str, born_at: float, recovers: bool) -> None:
    """Neither another worker's progress, nor what the victim had under way, is a recovery."""
    ledger = FaultLedger()
    ledger.killed("worker-0", 11, 1.0)
    ledger.ended(Ended("worker-0.1", 11, -9))
    ledger.progress(slot, born_at, 4.0)
    assert ledger.unrecovered() == ([] if recovers else ["worker-0"])


def test_recovery_times_are_summed_up() -> None:
    """From the kill to the first progress; a later one changes nothing; without faults there is nothing to say."""
    ledger = FaultLedger()
    assert ledger.recovery() is None
    for pid, at in ((1, 10.0), (2, 20.0), (3, 30.0)):
        ledger.killed("trainer-0", pid, at)
        ledger.ended(Ended("trainer-0.1", pid, -9))
        ledger.progress("trainer-0", at + 0.5, at + pid)
        ledger.progress("trainer-0", at + 0.5, at + 9)
    recovery = ledger.recovery()
    assert recovery is not None
    assert (recovery.p50, recovery.max) == (2.0, 3.0)
