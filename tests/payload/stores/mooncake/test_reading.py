"""Gets on a Mooncake that fails: only verified bytes, the other copy, and "missing" when every copy is."""

from __future__ import annotations

import pytest

from penstock.payload.stores.contract import Corrupt, Failed, Missing, NotReady, Ok
from penstock.payload.stores.mooncake.reading import copies_of, worst_of
from penstock.retry import Answer, Kind
from penstock.testing.fake_mooncake_faults import damage, drop_replies, fail, late
from tests.payload.stores.sites import FakeSite


def keys_read(site: FakeSite) -> list[tuple[str, ...]]:
    return [keys for call, keys in site.fake.calls if call == "get"]


def test_only_what_failed_is_read_again(site: FakeSite) -> None:
    """And what came is kept."""
    store = site.open()
    store.put_many(["a", "b", "c"], [b"1", b"2", b"3"], site.deadline())
    fault = site.fake.inject(fail(-800, call="get", key="b", times=2))
    site.fake.calls.clear()
    outcomes = store.get_many(["a", "b", "c"], [1, 1, 1], site.deadline())
    assert [bytes(outcome.view) for outcome in outcomes if isinstance(outcome, Ok)] == [b"1", b"2", b"3"]
    assert fault.fired == 2
    assert keys_read(site) == [("a", "b", "c"), ("b",), ("b",)]


def test_keys_that_repeat_are_read_once(site: FakeSite) -> None:
    """The library would answer the earlier one with somebody's old bytes."""
    store = site.open()
    store.put_many(["a", "b"], [b"1", b"2"], site.deadline())
    site.fake.calls.clear()
    outcomes = store.get_many(["a", "b", "a", "a"], None, site.deadline())
    assert [bytes(outcome.view) for outcome in outcomes if isinstance(outcome, Ok)] == [b"1", b"2", b"1", b"1"]
    assert keys_read(site) == [("a", "b")]


def test_a_length_that_is_known_spares_a_question(site: FakeSite) -> None:
    """The value is fetched at once."""
    store = site.open()
    store.put_many(["a"], [b"12345"], site.deadline())
    site.fake.calls.clear()
    assert store.get_many(["a"], [5], site.deadline()) == [Ok(memoryview(b"12345"), 5)]
    assert [call for call, _ in site.fake.calls] == ["get"]


@pytest.mark.parametrize("expected", [0, 4, 6, 1 << 20])
def test_a_length_that_is_wrong_is_not_believed(site: FakeSite, expected: int) -> None:
    """The value is whole, and it is not what the caller was told: nothing is served."""
    store = site.open()
    store.put_many(["a"], [b"12345"], site.deadline())
    assert store.get_many(["a"], [expected], site.deadline()) == [Corrupt("length")]


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_damaged_value_is_never_served(site: FakeSite, replicas: int) -> None:
    """Once damaged on its way, it is read again; lying damaged, the other copy is read, or it is Corrupt."""
    store = site.open(replicas=replicas)
    store.put_many(["a"], [b"value"], site.deadline())
    fault = site.fake.inject(damage(call="get", key="a"))
    assert store.get_many(["a"], None, site.deadline()) == [Ok(memoryview(b"value"), 5)]
    assert fault.fired == 1
    site.fake.damage_stored("a")
    lying = store.get_many(["a"], None, site.deadline())
    assert lying == ([Ok(memoryview(b"value"), 5)] if replicas == 2 else [Corrupt("checksum")])


def test_the_other_copy_is_read_within_the_attempt(site: FakeSite) -> None:
    """No retry, no wait; and next time the segment that failed is asked last."""
    store = site.open(replicas=2)
    keys = [f"k{n}" for n in range(10)]
    store.put_many(keys, [b"v"] * 10, site.deadline())
    site.fake.kill_owner("owner:1")
    began = site.clock.now
    assert store.get_many(keys, None, site.deadline()) == [Ok(memoryview(b"v"), 1)] * 10
    statistics = store.statistics()
    assert site.clock.now == began
    assert statistics.retries.retries == 0
    assert 0 < statistics.failovers < 10
    store.get_many(keys, None, site.deadline())
    assert store.statistics().failovers == statistics.failovers


def test_missing_is_said_when_every_copy_is(site: FakeSite) -> None:
    """One copy is enough; none, and the key is missing."""
    store = site.open(replicas=2)
    store.put_many(["a", "b"], [b"v", b"w"], site.deadline())
    first, second = copies_of("a", 2)
    site.fake.evict(first)
    assert store.get_many(["a"], None, site.deadline()) == [Ok(memoryview(b"v"), 1)]
    assert store.exists_many(["a"], site.deadline()) == [Ok(nbytes=1)]
    site.fake.evict(second)
    assert store.get_many(["a", "b"], None, site.deadline()) == [Missing(), Ok(memoryview(b"w"), 1)]
    assert store.exists_many(["a"], site.deadline()) == [Missing()]


def test_a_copy_that_cannot_be_asked_for_is_not_missing(site: FakeSite) -> None:
    """The other one is, and that does not answer for it."""
    store = site.open(replicas=2)
    store.put_many(["a"], [b"v"], site.deadline())
    first, second = copies_of("a", 2)
    site.fake.evict(first)
    site.fake.inject(fail(-900, key=second, times=1000))
    outcome = store.get_many(["a"], None, site.deadline(5.0))[0]
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.reason) == ("-900", "deadline")


def test_a_copy_that_was_given_up_is_not_missing(site: FakeSite) -> None:
    """A code that ends its tries is no word on whether it is there; the other copy's "missing" is not either."""
    store = site.open(replicas=2)
    store.put_many(["a"], [b"v"], site.deadline())
    first, second = copies_of("a", 2)
    site.fake.evict(first)
    fault = site.fake.inject(fail(-1012, call="get", key=second, times=1000))
    (outcome,) = store.get_many(["a"], None, site.deadline())
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.reason, fault.fired) == ("-1012", "fatal", 1)


def test_a_value_that_is_being_written_is_waited_for(site: FakeSite) -> None:
    """Until the deadline: then it is NotReady, which is neither missing nor failed."""
    store = site.open()
    site.fake.half_write("a", 100)
    began = site.clock.now
    assert store.get_many(["a"], None, site.deadline(5.0)) == [NotReady()]
    assert store.exists_many(["a"], site.deadline(5.0)) == [NotReady()]
    assert site.clock.now - began == pytest.approx(10.0, abs=0.1)


def test_a_late_transfer_lands_in_nobodys_value(site: FakeSite) -> None:
    """Memory of a transfer that failed is not used for other keys until its client is closed."""
    store = site.open()
    keys = [f"k{n}" for n in range(8)]
    values = [bytes([n]) * 1000 for n in range(8)]
    store.put_many(keys, values, site.deadline())
    fault = site.fake.inject(late(call="get", key="k3"))
    began = store.statistics().quarantined_bytes
    views = [outcome.view for outcome in store.get_many(keys, None, site.deadline()) if isinstance(outcome, Ok)]
    assert store.statistics().quarantined_bytes > began
    more = [outcome.view for outcome in store.get_many(keys, None, site.deadline()) if isinstance(outcome, Ok)]
    assert fault.land() == 1
    assert [bytes(view) for view in views] == [bytes(view) for view in more] == values
    assert store.get_many(keys, None, site.deadline()) == [Ok(memoryview(value), 1000) for value in values]


def test_a_reply_that_is_too_short_is_asked_for_again(site: FakeSite) -> None:
    """On a retry too."""
    store = site.open()
    store.put_many(["a", "b"], [b"1", b"2"], site.deadline())
    fault = site.fake.inject(drop_replies(call="get", times=3))
    outcomes = store.get_many(["a", "b"], None, site.deadline())
    assert [bytes(outcome.view) for outcome in outcomes if isinstance(outcome, Ok)] == [b"1", b"2"]
    assert fault.fired == 3


def test_of_several_answers_the_most_hopeful_speaks() -> None:
    """A copy that may still come is worth waiting for; one that is missing says nothing about the other."""
    kinds = [Kind.MISSING, Kind.FATAL, Kind.CORRUPT, Kind.BACKPRESSURE, Kind.RETRYABLE, Kind.OK]
    for number, kind in enumerate(kinds, 1):
        answers: list[Answer[int]] = [Answer(one) for one in kinds[:number]]
        assert worst_of(answers).kind is kind
