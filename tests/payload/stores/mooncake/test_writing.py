"""Puts on a Mooncake that fails: whole or not at all, once, and two copies that do not die together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from penstock.payload.stores.contract import Corrupt, Failed, Full, Missing, Ok
from penstock.payload.stores.mooncake.reading import copies_of
from penstock.testing.fake_mooncake_faults import damage, drop_replies, fail, late, throw
from tests.payload.stores.sites import FakeSite

MIB = 1 << 20


def written(site: FakeSite) -> list[tuple[str, ...]]:
    return [keys for call, keys in site.fake.calls if call == "put"]


def segments_of(site: FakeSite, key: str) -> list[str]:
    return [site.fake.master.keys[name].segment.name for name in copies_of(key, 2)]


def test_only_what_failed_is_written_again(site: FakeSite) -> None:
    """The rest of the batch was done."""
    store = site.open()
    site.fake.calls.clear()
    fault = site.fake.inject(fail(-800, call="put", key="b", times=2))
    assert store.put_many(["a", "b"], [b"1", b"2"], site.deadline()) == [Ok(nbytes=1), Ok(nbytes=1)]
    assert fault.fired == 2
    assert sorted(key for keys in written(site) for key in keys) == ["a", "b", "b", "b"]


def test_one_bad_value_does_not_fail_its_batch(site: FakeSite) -> None:
    """One outcome per key, aligned."""
    store = site.open()
    site.fake.inject(fail(-1012, call="put", key="b"))
    first, second, third = store.put_many(["a", "b", "c"], [b"1", b"2", b"3"], site.deadline())
    assert (first, third) == (Ok(nbytes=1), Ok(nbytes=1))
    assert isinstance(second, Failed)
    assert (second.code, second.attempts, second.reason) == ("-1012", 1, "fatal")


def test_a_key_that_names_other_bytes_is_left_alone(site: FakeSite) -> None:
    """The same bytes again are a retry of the caller's, and fine."""
    store = site.open()
    store.put_many(["a"], [b"first"], site.deadline())
    (other,) = store.put_many(["a"], [b"other"], site.deadline())
    assert isinstance(other, Failed)
    assert other.code == "exists"
    site.fake.calls.clear()
    assert store.put_many(["a"], [b"first"], site.deadline()) == [Ok(nbytes=5)]
    assert written(site) == []
    assert store.get_many(["a"], None, site.deadline()) == [Ok(memoryview(b"first"), 5)]


def test_a_name_that_is_taken_is_not_judged_by_bytes_that_came_damaged(site: FakeSite) -> None:
    """They are read once more: these very bytes are there."""
    store = site.open()
    store.put_many(["a"], [b"v"], site.deadline())
    fault = site.fake.inject(damage(call="get", key="a"))
    assert store.put_many(["a"], [b"v"], site.deadline()) == [Ok(nbytes=1)]
    assert fault.fired == 1
    site.fake.damage_stored("a")
    assert store.put_many(["a"], [b"v"], site.deadline()) == [Corrupt("checksum")]


@pytest.mark.parametrize("call", ["exists", "get", "describe", "put"])
def test_a_retry_survives_whatever_call_fails(site: FakeSite, call: str) -> None:
    """Of those that a put is made of."""
    store = site.open(replicas=2)
    store.put_many(["taken"], [b"same"], site.deadline())
    faults = [site.fake.inject(fail(-900, call=call, times=2)), site.fake.inject(drop_replies(call=call))]  # type: ignore[arg-type]
    outcomes = store.put_many(["taken", "free"], [b"same", b"v"], site.deadline())
    assert outcomes == [Ok(nbytes=4), Ok(nbytes=1)]
    assert any(fault.fired for fault in faults)


def test_a_put_that_was_said_to_be_done_and_is_not_there_is_made_again(site: FakeSite) -> None:
    """After a failure the library's word is checked: the bytes are read back."""
    store = site.open()
    site.fake.inject(fail(-900, call="put", key="a"))
    lost: list[str] = []

    def lose(call: str, keys: Sequence[str]) -> None:
        """Before the first reading back: the value is gone, as an earlier attempt's failure may take it along."""
        if call == "describe" and "a" in keys and not lost:
            lost.append("a")
            site.fake.evict("a")

    site.fake.on_call = lose
    assert store.put_many(["a"], [b"v"], site.deadline()) == [Ok(nbytes=1)]
    site.fake.on_call = None
    assert lost == ["a"]
    assert store.get_many(["a"], None, site.deadline()) == [Ok(memoryview(b"v"), 1)]


def test_a_put_after_one_that_failed_is_believed_by_its_bytes(site: FakeSite) -> None:
    """The call before it may be at work still, take its key along at its end, and has been given up."""
    store = site.open()
    fault = site.fake.inject(fail(-800, call="put", key="a", times=1000))
    assert isinstance(store.put_many(["a"], [b"v"], site.deadline(2.0))[0], Failed)
    fault.times = fault.fired
    lost: list[str] = []

    def lose(call: str, keys: Sequence[str]) -> None:
        """Before anybody looks where the value lies."""
        if call == "describe" and "a" in keys and not lost:
            lost.append("a")
            site.fake.evict("a")

    site.fake.on_call = lose
    assert store.put_many(["a"], [b"v"], site.deadline()) == [Ok(nbytes=1)]
    assert lost == ["a"]
    assert store.get_many(["a"], None, site.deadline()) == [Ok(memoryview(b"v"), 1)]
    site.fake.calls.clear()
    assert store.put_many(["b"], [b"v"], site.deadline()) == [Ok(nbytes=1)]
    assert [call for call, _ in site.fake.calls] == ["exists", "put"]


def test_a_put_whose_key_the_master_forgot_on_the_way_is_made_again(site: FakeSite) -> None:
    """It was restarted in the middle: "missing" is no answer to a put."""
    store = site.open()
    fault = site.fake.inject(fail(-704, call="put", key="a", times=2))
    assert store.put_many(["a"], [b"v"], site.deadline()) == [Ok(nbytes=1)]
    assert fault.fired == 2


def test_keys_whose_puts_failed_are_not_remembered_for_ever(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest are; and none that was acknowledged since."""
    monkeypatch.setattr("penstock.payload.stores.mooncake.store._MAX_DOUBTED", 2)
    store = site.open()
    fault = site.fake.inject(fail(-1012, call="put", times=3))
    for key in "abc":
        store.put_many([key], [b"v"], site.deadline())
    assert (fault.fired, list(store._doubted)) == (3, ["b", "c"])
    store.put_many(["b"], [b"v"], site.deadline())
    assert list(store._doubted) == ["c"]


def test_paranoid_reads_everything_back(site: FakeSite) -> None:
    """What arrived damaged is not acknowledged; without, it is found by its reader."""
    plain, paranoid = site.open(), site.open(verify="paranoid")
    fault = site.fake.inject(damage(call="put"))
    assert plain.put_many(["a"], [b"v"], site.deadline()) == [Ok(nbytes=1)]
    assert plain.get_many(["a"], None, site.deadline()) == [Corrupt("checksum")]
    assert fault.fired == 1
    fault = site.fake.inject(damage(call="put"))
    assert paranoid.put_many(["b"], [b"v"], site.deadline()) == [Ok(nbytes=1)]
    assert fault.fired == 1
    assert paranoid.get_many(["b"], None, site.deadline()) == [Ok(memoryview(b"v"), 1)]


def test_a_full_store_is_waited_for_and_then_said_to_be_full(site: FakeSite) -> None:
    """Some seconds, not until the deadline; room that comes meanwhile is used."""
    store = site.open()
    fault = site.fake.inject(fail(-200, call="put", key="a", times=1000))
    began = site.clock.now
    assert store.put_many(["a"], [b"v"], site.deadline(60.0)) == [Full()]
    assert 2.0 < site.clock.now - began < 12.0
    fault.times = fault.fired + 2
    assert store.put_many(["a"], [b"v"], site.deadline(60.0)) == [Ok(nbytes=1)]


def test_both_copies_are_written_apart(site: FakeSite) -> None:
    """In different segments."""
    store = site.open(replicas=2)
    keys = [f"k{n}" for n in range(12)]
    store.put_many(keys, [b"v"] * 12, site.deadline())
    assert all(len(set(segments_of(site, key))) == 2 for key in keys)


@pytest.mark.parametrize("copy", [0, 1])
def test_a_copy_that_failed_does_not_go_where_the_other_lies(site: FakeSite, copy: int) -> None:
    """Although that is the segment that did not fail."""
    store = site.open(replicas=2)
    for number in range(12):
        site.fake.inject(fail(-800, call="put", key=copies_of(f"k{number}", 2)[copy]))
        assert store.put_many([f"k{number}"], [b"v"], site.deadline()) == [Ok(nbytes=1)]
        assert len(set(segments_of(site, f"k{number}"))) == 2


def test_copies_that_were_put_together_are_taken_apart(site: FakeSite) -> None:
    """The library places a value elsewhere in silence, where the segment that was named is full."""
    store = site.open(replicas=2)
    filler = site.fake.master.segments["owner:1"]
    filler.used = filler.capacity

    def make_room(call: str, _keys: Sequence[str]) -> None:
        if call == "remove":
            filler.used = 0

    site.fake.on_call = make_room
    assert store.put_many(["a"], [b"v"], site.deadline()) == [Ok(nbytes=1)]
    assert len(set(segments_of(site, "a"))) == 2


def test_copies_stay_together_where_nothing_else_has_room(site: FakeSite) -> None:
    """Two copies in one segment are better than none: once tried, it is accepted."""
    store = site.open(replicas=2)
    filler = site.fake.master.segments["owner:1"]
    filler.used = filler.capacity
    assert store.put_many(["a"], [b"v"], site.deadline()) == [Ok(nbytes=1)]
    assert segments_of(site, "a") == ["owner:2", "owner:2"]


def test_an_owner_that_died_is_written_around(site: FakeSite) -> None:
    """At the second try, long before the master stops believing in it."""
    store = site.open()
    site.fake.kill_owner("owner:1")
    began = site.clock.now
    keys = [f"k{n}" for n in range(10)]
    assert store.put_many(keys, [b"v"] * 10, site.deadline()) == [Ok(nbytes=1)] * 10
    assert site.clock.now - began < 1.0


def test_a_slow_failure_of_a_put_costs_its_client(site: FakeSite) -> None:
    """It may still be at work in the library; under another client it cannot write over what comes next."""
    store = site.open()
    site.fake.inject(fail(-800, call="put", key="a"))

    def dawdle(call: str, _keys: Sequence[str]) -> None:
        if call == "put":
            site.fake.on_call = None
            site.clock.now += 10.0

    site.fake.on_call = dawdle
    assert store.put_many(["a"], [b"v"], site.deadline()) == [Ok(nbytes=1)]
    assert store.statistics().clients_replaced == 1


def test_a_late_put_lands_with_bytes_of_its_own(site: FakeSite) -> None:
    """The memory that it reads from serves no other value, so that it harms nobody."""
    store = site.open()
    fault = site.fake.inject(late(call="put", key="a"))
    assert store.put_many(["a"], [b"a" * 500], site.deadline()) == [Ok(nbytes=500)]
    assert store.put_many(["b", "c"], [b"b" * 500, b"c" * 500], site.deadline()) == [Ok(nbytes=500)] * 2
    assert fault.land() == 1
    outcomes = store.get_many(["a", "b", "c"], None, site.deadline())
    assert outcomes == [Ok(memoryview(letter * 500), 500) for letter in (b"a", b"b", b"c")]


def test_a_late_put_over_another_key_is_noticed(site: FakeSite) -> None:
    """Its place in a segment was given to somebody else: the reader sees the wrong key, and nothing is served."""
    store = site.open()
    store.put_many(["victim"], [b"v" * 500], site.deadline())
    fault = site.fake.inject(late(call="put", key="a", onto="victim"))
    store.put_many(["a"], [b"a" * 500], site.deadline())
    assert fault.land() == 1
    assert store.get_many(["victim"], None, site.deadline()) == [Corrupt("key")]


def test_what_the_library_raises_is_tried_once_more(site: FakeSite) -> None:
    """Then given up: it is not known what it means."""
    store = site.open()
    fault = site.fake.inject(throw(RuntimeError("?"), call="put"))
    assert store.put_many(["a"], [b"v"], site.deadline()) == [Ok(nbytes=1)]
    assert fault.fired == 1
    fault = site.fake.inject(throw(RuntimeError("?"), call="put", times=1000))
    (outcome,) = store.put_many(["b"], [b"v"], site.deadline())
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.attempts, fault.fired) == ("raised", 2, 2)
    fault.times = fault.fired
    assert store.get_many(["b"], None, site.deadline()) == [Missing()]


def test_an_unknown_code_is_tried_once_more(site: FakeSite) -> None:
    """Then believed."""
    store = site.open()
    site.fake.inject(fail(-9999, call="put", key="a", times=1000))
    (outcome,) = store.put_many(["a"], [b"v"], site.deadline())
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.attempts, outcome.reason) == ("-9999", 2, "fatal")


def test_a_value_larger_than_all_memory_is_stored(site: FakeSite) -> None:
    """In a call of its own."""
    store = site.open(local_buffer=4 * MIB, chunk_bytes=MIB)
    values = [b"x" * 9 * MIB, b"small", b"y" * 3 * MIB]
    assert store.put_many(["a", "b", "c"], values, site.deadline()) == [Ok(nbytes=len(value)) for value in values]
    outcomes = store.get_many(["a", "b", "c"], None, site.deadline())
    assert [bytes(outcome.view) for outcome in outcomes if isinstance(outcome, Ok)] == values
    assert store.statistics().memory_bytes < 16 * MIB
