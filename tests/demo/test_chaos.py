"""Chaos: a seeded schedule, faults that count only once they were seen to fire, and recoveries."""

from __future__ import annotations

import itertools
import math

import pytest

from penstock.demo.chaos import ANY, GRACE, JITTER, KINDS, Chaos, FaultLedger
from penstock.demo.processes import Ended
from penstock.demo.spec import RecoveryTimes
from penstock.testing.checker import Fault

SLOTS = ["controller-0", "plane-0", "scorer-0", "trainer-0", "worker-0", "worker-1"]


def strikes(seed: int, until: float, slots: list[str]) -> list[tuple[float, list[str]]]:
    chaos, found = Chaos(seed, 5.0, 0.0), []
    for tick in range(int(until * 10)):
        victims = chaos.due(tick / 10, slots)
        if victims:
            found.append((tick / 10, victims))
    return found


def test_a_seed_names_a_schedule() -> None:
    """The same seed kills the same slots at the same times."""
    assert strikes(1, 100, SLOTS) == strikes(1, 100, SLOTS)
    assert strikes(1, 100, SLOTS) != strikes(2, 100, SLOTS)


def test_strikes_come_every_period_or_so() -> None:
    """Never sooner or later than the jitter allows."""
    found = strikes(0, 300, SLOTS)
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(found)]
    assert all(5 * (1 - JITTER) - 0.11 <= gap <= 5 * (1 + JITTER) + 0.11 for gap in gaps)


@pytest.mark.parametrize("seed", range(5))
def test_five_strikes_meet_every_kind(seed: int) -> None:
    """However short a run is: nobody is struck first twice before everybody was struck once."""
    first = [victims[0].split("-")[0] for _, victims in strikes(seed, 300, SLOTS)]
    assert all(set(round_) == set(KINDS) for round_ in [first[i : i + 5] for i in range(0, len(first) - 4, 5)])


def test_now_and_then_the_controller_is_struck_together_with_another() -> None:
    """With every other kind, in time; nobody is struck twice at once; both workers have their turn."""
    found = [victims for _, victims in strikes(0, 1000, SLOTS)]
    pairs = {tuple(slot.split("-")[0] for slot in victims) for victims in found if len(victims) > 1}
    assert pairs == {(kind, "controller") for kind in KINDS if kind != "controller"}
    assert 0.1 < sum(len(victims) > 1 for victims in found) / len(found) < 0.4
    assert {slot for victims in found for slot in victims} == set(SLOTS)


def test_nobody_to_kill_is_waited_out() -> None:
    """A strike that finds nobody is not lost: it comes as soon as there is somebody."""
    chaos = Chaos(0, 5.0, 0.0)
    assert chaos.due(100.0, []) == []
    assert chaos.due(100.1, ["trainer-0"]) == ["trainer-0"]


def test_a_run_that_is_recovering_is_given_time_but_not_for_ever() -> None:
    """The strike comes when it has got on, or when its grace is over."""
    for gets_on_at, struck_at in ((6.3, 6.3), (100.0, 5.0 * (1 + GRACE + JITTER))):
        chaos = Chaos(0, 5.0, 0.0)
        times = [tick / 10 for tick in range(300)]
        first = next(now for now in times if chaos.due(now, SLOTS, is_recovering=now < gets_on_at))
        assert 6.2 < first <= struck_at


def test_a_fault_counts_when_it_was_seen_to_fire() -> None:
    """Sent is not fired: the victim's status must say SIGKILL, and it must be our victim."""
    ledger = FaultLedger()
    ledger.killed("worker-0", 11, 1.0)
    assert ledger.fired() == 0
    assert ledger.ended(Ended("worker-0.1", 12, -9)) is None
    assert ledger.ended(Ended("worker-0.1", 11, 1)) is None
    assert ledger.ended(Ended("worker-0.1", 11, -9)) == Fault("worker", 11)
    assert ledger.ended(Ended("worker-0.1", 11, -9)) is None
    assert ledger.counts() == {**dict.fromkeys(KINDS, 0), "worker": 1}


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


def test_recovery_times_are_summed_up_by_kind_and_together() -> None:
    """From the kill to the first progress; a later one changes nothing; without faults there is nothing to say."""
    ledger = FaultLedger()
    assert ledger.recovery() == {}
    for pid, slot in enumerate(("trainer-0", "trainer-0", "plane-0"), start=1):
        ledger.killed(slot, pid, 10.0 * pid)
        ledger.ended(Ended(f"{slot}.1", pid, -9))
        ledger.progress(slot, 10.0 * pid + 0.5, 11.0 * pid)
        ledger.progress(slot, 10.0 * pid + 0.5, 10.0 * pid + 9)
    ledger.killed("worker-0", 9, 50.0)  # did not fire
    assert ledger.recovery() == {
        "trainer": RecoveryTimes(1.5, 2.0),
        "plane": RecoveryTimes(3.0, 3.0),
        ANY: RecoveryTimes(2.0, 3.0),
    }


def test_a_fault_that_a_director_saw_has_fired_already() -> None:
    """Whatever the victim's exit status is; two that ended one process are both over with its next life's progress."""
    ledger = FaultLedger()
    ledger.struck("controller-0", 11, 1.0)
    ledger.struck("controller-0", 11, 1.5)
    assert (ledger.fired(), ledger.unrecovered()) == (2, ["controller-0", "controller-0"])
    assert ledger.ended(Ended("controller-0.1", 11, 0)) == Fault("controller", 11)
    assert ledger.ended(Ended("controller-0.1", 11, 0)) is None
    ledger.progress("controller-0", 2.0, 3.0)
    assert (ledger.unrecovered(), ledger.seconds()) == ([], {"controller": [2.0, 1.5]})
    ledger.struck("plane-0", 12, 4.0)
    assert ledger.outages() == [("controller-0", 1.0, 3.0), ("controller-0", 1.5, 3.0), ("plane-0", 4.0, math.inf)]


def test_a_stop_is_over_with_the_first_progress_after_it() -> None:
    """By the same life; its end is no death of ours, and its time counts from where it could go on."""
    ledger = FaultLedger()
    ledger.struck("worker-0", 11, 10.0, until=12.0)
    ledger.progress("worker-0", 0.0, 11.9)
    assert ledger.unrecovered() == ["worker-0"]
    ledger.progress("worker-0", 0.0, 12.5)
    assert (ledger.seconds(), ledger.seconds(of_stops=True)) == ({}, {"worker": [0.5]})
    assert ledger.recovery() == {}
    assert ledger.ended(Ended("worker-0.1", 11, 1)) is None
