"""Faults of a real Mooncake, in short forms: what ours lives through, and what ends those who do not retry."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.payload.stores.contract import BlockStore, Failed, Missing, Ok
from penstock.retry import FIELD, NONE, Deadline
from penstock.testing.store_faults import FAULTS, MIB, Bed, StoreFault, Verdict, fault_named, value_of
from tests.leaks import wait_for
from tests.payload.stores.faults.conftest import BedFor

SHORT_S = 1.0
MARGIN_S = 15.0  # of a busy machine


def trial(bed: Bed, fault: StoreFault, store: BlockStore, prefix: str = "") -> Verdict:
    verdict = bed.trial(store, fault, prefix)
    assert not verdict.wrong, verdict
    return verdict


@pytest.mark.parametrize("name", [pytest.param("reset-1s-get", marks=pytest.mark.slow), "reset-1s-put"])
def test_a_second_of_resets_is_lived_through(lines: Bed, ours: BlockStore, name: str) -> None:
    """While every connection is reset, keys go again until the lines are back, and then all of them are right."""
    verdict = trial(lines, fault_named(name), ours)
    assert verdict.survived, verdict
    assert SHORT_S * 0.9 < verdict.elapsed_s < SHORT_S + MARGIN_S


def test_the_same_second_ends_who_does_not_retry(lines: Bed, none: BlockStore) -> None:
    """Without retries each key fails with the library's code, and none of them is taken for a value."""
    verdict = trial(lines, fault_named("reset-1s-get"), none, "none/")
    assert not verdict.survived
    assert set(verdict.words) == {"Failed -800"}


@pytest.mark.parametrize("call", ["get", pytest.param("put", marks=pytest.mark.slow)])
def test_a_reset_in_the_middle_costs_the_keys_that_it_hit(
    lines: Bed, ours: BlockStore, none: BlockStore, call: str
) -> None:
    """Some of 512 keys fail and only those go again, until all are right."""
    fault = fault_named(f"reset-midway-{call}")
    once = trial(lines, fault, none, "none/")
    assert 0 < once.good < once.keys
    before = ours.statistics().retries.outcomes
    assert trial(lines, fault, ours).survived
    after = ours.statistics().retries.outcomes
    again = sum(count - before.get(of, 0) for of, count in after.items() if of[0] == call and of[1] != "ok")
    assert 0 < again < fault.keys


def test_lost_packets_are_waited_for(lines: Bed, ours: BlockStore) -> None:
    """When nothing passes for a second, and then all of it, no attempt more than the first is needed."""
    before = ours.statistics().retries.retries
    verdict = trial(lines, replace(fault_named("drop-3s-get"), for_s=SHORT_S), ours)
    assert verdict.survived
    assert verdict.elapsed_s > SHORT_S * 0.9
    assert ours.statistics().retries.retries == before


def test_an_owner_that_dies_takes_no_value_that_has_two_copies(bed_for: BedFor) -> None:
    """Gets read the other copy at once; puts go to the segments that are left, in two copies."""
    get, put = fault_named("owner-2-copies-get"), fault_named("owner-2-copies-put")
    bed = bed_for(put)  # three owners
    with bed.open(replicas=2) as store:
        read = trial(bed, get, store)
        assert read.survived, read
        assert read.elapsed_s < MARGIN_S
        written = trial(bed, put, store)
        assert written.survived, written
        assert store.statistics().failovers > 0


def test_a_restarted_master_is_one_event_and_the_store_goes_on(bed_for: BedFor) -> None:
    """A get that meets it raises once and says what happened; then puts and gets work, in another life."""
    fault = replace(fault_named("master-get"), for_s=0.5)
    bed, told = bed_for(fault), list[str]()
    with bed.open(on_restarted=told.append) as store:
        life = store.life(Deadline(MARGIN_S))
        verdict = bed.trial(store, fault)
        assert verdict.raised.startswith(DataPlaneUnavailable.__name__), verdict
        assert len(told) == 1
        assert "restarted" in verdict.raised
        keys = [f"after/{number}" for number in range(4)]
        assert all(isinstance(one, Ok) for one in store.put_many(keys, [b"x"] * 4, Deadline(MARGIN_S)))
        assert [type(one) for one in store.get_many([*keys, "lost"], None, Deadline(MARGIN_S))] == [Ok] * 4 + [Missing]
        assert store.life(Deadline(MARGIN_S)) not in ("", life)
        assert store.statistics().restarts == 1
    assert len(told) == 1


@pytest.mark.slow
def test_a_full_store_is_waited_for(bed_for: BedFor) -> None:
    """A put waits until somebody removes something; who does not wait is told that the store is full."""
    fault = replace(fault_named("full-2s-put"), for_s=SHORT_S)
    bed = bed_for(fault)
    with bed.open() as ours, bed.open(NONE) as none:
        verdict = trial(bed, fault, ours)
        assert verdict.survived, verdict
        once = trial(bed, fault, none, "none/")
        assert set(once.words) == {"Full"}


def test_a_transfer_that_outlives_its_call_harms_nobody(lines: Bed) -> None:
    """A get ends by its deadline, the library goes on; its memory is set aside, and what arrives late is nobody's."""
    keys = [f"late/{number}" for number in range(4)]
    values = [value_of(key, MIB) for key in keys]
    with ExitStack() as stack:
        store = stack.enter_context(lines.open())
        assert all(isinstance(one, Ok) for one in store.put_many(keys, values, Deadline(MARGIN_S)))
        lines.freeze()
        stack.callback(lines.thaw)
        deadline = Deadline(SHORT_S)
        late = store.get_many(keys, None, deadline)
        overrun_s = -deadline.at + time.monotonic()
        assert {one.code for one in late if isinstance(one, Failed)} == {"late"}, late
        assert overrun_s < SHORT_S
        assert store.statistics().quarantined_bytes >= len(keys) * MIB
        arrived = _arrived(lines)
        lines.thaw()
        wait_for(lambda: _arrived(lines) > arrived)  # nobody asks for anything
        outcomes = [one for _ in range(10) for one in store.get_many(keys, None, Deadline(MARGIN_S))]
        assert [one.view for one in outcomes if isinstance(one, Ok)] == values * 10


def _arrived(bed: Bed) -> int:
    return sum(proxy.passed("client") for proxy in bed.proxies)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_ours_lives_through_all_of_it(bed_for: BedFor, fault: StoreFault) -> None:
    """Every fault of the table, in full: all values are right, or what is lost is said to be, within the deadline."""
    bed = bed_for(fault)
    with bed.open(replicas=fault.replicas) as store:
        verdict = trial(bed, fault, store)
    assert verdict.elapsed_s < fault.timeout_s + 1.0
    if fault.loses:
        assert "restarted" in verdict.raised or set(verdict.words) == {"Missing"}, verdict
    elif fault.name != "late-get":
        assert verdict.survived, verdict


@pytest.mark.slow
def test_what_the_field_does_ends_before_a_long_outage_does(bed_for: BedFor) -> None:
    """One try and three more, a second apart, are over after eight seconds of resets, on the same store."""
    fault = fault_named("reset-8s-get")
    bed = bed_for(fault)
    with bed.open(FIELD) as field:
        assert trial(bed, fault, field).good == 0
