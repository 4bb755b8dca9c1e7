"""What every store promises, on each of them: in memory, on a fake Mooncake, on a real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from penstock.errors import BadArgument, BatchError, DataPlaneBadRequest, DataPlaneUnavailable, UnknownName
from penstock.payload.stores.contract import (
    EXISTS,
    MAX_KEY_BYTES,
    BlockStore,
    Corrupt,
    Failed,
    Full,
    Missing,
    Ok,
    Outcome,
    Value,
    raise_failures,
)
from penstock.payload.stores.memory import MemoryStore
from penstock.retry import Deadline, Reason
from penstock.testing.mooncake import MooncakeCluster
from tests.mooncake_fixture import StartMooncake
from tests.payload.stores.rigs import MIB
from tests.payload.stores.sites import FakeSite, MemorySite, RealSite, Site

LENGTHS = [0, 1, 7, 31, 32, 33, 4095, 4096, 65_537, MIB + 1, 5 * MIB + 3]


@pytest.fixture(scope="module", params=["memory", "fake", "real"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """One for all tests; nothing is done to it but calls."""
    with ExitStack() as stack:
        if request.param == "memory":
            yield MemorySite()
        elif request.param == "fake":
            yield FakeSite(stack)
        else:
            cluster: MooncakeCluster = request.getfixturevalue("mooncake")
            yield RealSite(stack, cluster)


@pytest.fixture(scope="module")
def store(site: Site) -> Iterator[BlockStore]:
    with site.open() as store:
        yield store


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """Keys of one test."""
    return str(request.node.name)


def value_of(length: int) -> bytes:
    return np.random.default_rng(length).bytes(length)


def views(outcomes: list[Outcome]) -> list[bytes]:
    """The values of a get that must have succeeded."""
    assert all(isinstance(outcome, Ok) for outcome in outcomes), outcomes
    return [outcome.view.tobytes() for outcome in outcomes if isinstance(outcome, Ok)]


# -- values -----------------------------------------------------------------------------------------------------------


def test_a_value_of_any_length_comes_back_as_it_was(store: BlockStore, site: Site, prefix: str) -> None:
    """Empty values and values of many sizes, in one call, byte for byte, with their lengths."""
    keys = [f"{prefix}/{length}" for length in LENGTHS]
    values = [value_of(length) for length in LENGTHS]
    assert store.put_many(keys, values, site.deadline()) == [Ok(nbytes=length) for length in LENGTHS]
    got = store.get_many(keys, LENGTHS, site.deadline())
    assert views(got) == values
    assert [outcome.nbytes for outcome in got if isinstance(outcome, Ok)] == LENGTHS
    assert store.exists_many(keys, site.deadline()) == [Ok(nbytes=length) for length in LENGTHS]


def test_a_value_may_be_of_pieces_and_any_buffer(store: BlockStore, site: Site, prefix: str) -> None:
    """Bytes, arrays, views with gaps and sequences of these are one value each."""
    words = np.arange(6, dtype=np.uint8)
    values: list[Value] = [
        bytearray(b"ab"),
        words,
        memoryview(b"abcdef")[::2],
        [b"ab", b"", words[::2], memoryview(b"z")],
        [],
    ]
    expected = [b"ab", words.tobytes(), b"ace", b"ab\0\2\4z", b""]
    keys = [f"{prefix}/{n}" for n in range(len(values))]
    assert store.put_many(keys, values, site.deadline()) == [Ok(nbytes=len(value)) for value in expected]
    assert views(store.get_many(keys, None, site.deadline())) == expected


def test_a_value_is_copied_in_and_out(store: BlockStore, site: Site, prefix: str) -> None:
    """What a caller does to its buffers after a call changes nothing that anybody else sees."""
    mine = bytearray(b"before")
    assert store.put_many([prefix], [mine], site.deadline()) == [Ok(nbytes=6)]
    mine[:] = b"after."
    first, second = (store.get_many([prefix], None, site.deadline())[0] for _ in range(2))
    assert isinstance(first, Ok)
    assert isinstance(second, Ok)
    first.view[:] = b"xxxxxx"
    assert second.view.tobytes() == b"before"
    assert views(store.get_many([prefix], None, site.deadline())) == [b"before"]


def test_one_client_sees_what_another_put(store: BlockStore, site: Site, prefix: str) -> None:
    """Stores that are open on the same place have the same values, and removals."""
    with site.open() as other:
        assert store.put_many([prefix], [b"v"], site.deadline()) == [Ok(nbytes=1)]
        assert views(other.get_many([prefix], None, site.deadline())) == [b"v"]
        assert other.remove_many([prefix], site.deadline()) == [Ok()]
        assert store.get_many([prefix], None, site.deadline()) == [Missing()]
        assert store.life(site.deadline()) == other.life(site.deadline())


# -- one outcome per key ----------------------------------------------------------------------------------------------


def test_outcomes_are_aligned_with_the_keys(store: BlockStore, site: Site, prefix: str) -> None:
    """In the order asked for, repeated keys included; missing, empty and wrong length are different answers."""
    a, b, empty, absent = (f"{prefix}/{name}" for name in ("a", "b", "empty", "absent"))
    store.put_many([a, b, empty], [b"aa", b"bbb", b""], site.deadline())
    got = store.get_many([b, absent, a, empty, b], [3, 1, 99, 0, 3], site.deadline())
    assert got == [Ok(got[0].view, 3), Missing(), Corrupt("length"), Ok(got[3].view, 0), Ok(got[4].view, 3)]  # type: ignore[union-attr]
    assert views([got[0], got[3], got[4]]) == [b"bbb", b"", b"bbb"]
    assert store.exists_many([absent, empty, a], site.deadline()) == [Missing(), Ok(nbytes=0), Ok(nbytes=2)]


def test_no_keys_are_no_outcomes(store: BlockStore, site: Site) -> None:
    """An empty call is answered with an empty list."""
    assert store.put_many([], [], site.deadline()) == []
    assert store.get_many([], None, site.deadline()) == []
    assert store.remove_many([], site.deadline()) == []
    assert store.exists_many([], site.deadline()) == []


def test_a_thousand_keys_in_one_call(store: BlockStore, site: Site, prefix: str) -> None:
    """Batches larger than any inner limit come back whole and in order."""
    keys = [f"{prefix}/{n}" for n in range(1000)]
    values = [f"value {n}".encode() * (n % 7) for n in range(1000)]
    assert all(isinstance(outcome, Ok) for outcome in store.put_many(keys, values, site.deadline()))
    assert views(store.get_many(keys[::-1], None, site.deadline())) == values[::-1]
    assert store.remove_many(keys, site.deadline()) == [Ok()] * 1000
    assert set(store.exists_many(keys, site.deadline())) == {Missing()}


def test_failures_as_an_exception_name_every_key(store: BlockStore, site: Site, prefix: str) -> None:
    """``raise_failures`` raises one ``BatchError`` with each failure under its key, or nothing."""
    there, absent = f"{prefix}/there", f"{prefix}/absent"
    raise_failures([there], store.put_many([there], [b"v"], site.deadline()), "put")
    with pytest.raises(BatchError, match="absent") as raised:
        raise_failures([there, absent], store.get_many([there, absent], None, site.deadline()), "get")
    assert list(raised.value.failures) == [absent]
    assert isinstance(raised.value.failures[absent], UnknownName)


# -- keys are written once --------------------------------------------------------------------------------------------


def test_a_key_is_written_once(store: BlockStore, site: Site, prefix: str) -> None:
    """The same bytes again are a retry and succeed; others, of whatever length, are refused and change nothing."""
    assert store.put_many([prefix], [b"first"], site.deadline()) == [Ok(nbytes=5)]
    assert store.put_many([prefix], [b"first"], site.deadline()) == [Ok(nbytes=5)]
    for other in (b"other", b"longer than that", b""):
        (refused,) = store.put_many([prefix], [other], site.deadline())
        assert isinstance(refused, Failed)
        assert refused.code == EXISTS
    assert views(store.get_many([prefix], None, site.deadline())) == [b"first"]


def test_a_removed_key_is_gone_and_removing_it_again_is_fine(store: BlockStore, site: Site, prefix: str) -> None:
    """Even right after a read; its name can be used again."""
    store.put_many([prefix], [b"v"], site.deadline())
    store.get_many([prefix], None, site.deadline())
    assert store.remove_many([prefix], site.deadline()) == [Ok()]
    assert store.remove_many([prefix, f"{prefix}/never"], site.deadline()) == [Ok(), Ok()]
    assert store.get_many([prefix], None, site.deadline()) == [Missing()]
    assert store.put_many([prefix], [b"again"], site.deadline()) == [Ok(nbytes=5)]
    assert views(store.get_many([prefix], None, site.deadline())) == [b"again"]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param([""], id="empty"),
        pytest.param(["k" * (MAX_KEY_BYTES + 1)], id="too-long"),
        pytest.param(["ü" * MAX_KEY_BYTES], id="too-long-encoded"),
        pytest.param(["\ud800"], id="no-utf8"),
        pytest.param(["a\0b"], id="nul"),
        pytest.param([b"bytes"], id="bytes"),
        pytest.param([None], id="none"),
        pytest.param("a", id="one-string"),
    ],
)
def test_what_cannot_be_a_key_is_refused(store: BlockStore, site: Site, keys: list[str]) -> None:
    """By every call, before anything is done."""
    with pytest.raises(BadArgument):
        store.put_many(keys, [b"v"], site.deadline())
    with pytest.raises(BadArgument):
        store.get_many(keys, None, site.deadline())
    with pytest.raises(BadArgument):
        store.remove_many(keys, site.deadline())
    with pytest.raises(BadArgument):
        store.exists_many(keys, site.deadline())


def test_the_longest_key_is_a_key(store: BlockStore, site: Site) -> None:
    """512 bytes of UTF-8."""
    key = "ü" * (MAX_KEY_BYTES // 2)
    assert store.put_many([key], [b"v"], site.deadline()) == [Ok(nbytes=1)]
    assert views(store.get_many([key], [1], site.deadline())) == [b"v"]
    assert store.remove_many([key], site.deadline()) == [Ok()]


def test_a_call_that_does_not_fit_together_is_refused(store: BlockStore, site: Site, prefix: str) -> None:
    """Too few values, too many sizes, a key twice in a put, a value that is no buffer: nothing is stored."""
    a, b = f"{prefix}/a", f"{prefix}/b"
    with pytest.raises(BadArgument):
        store.put_many([a, b], [b"v"], site.deadline())
    with pytest.raises(BadArgument):
        store.get_many([a], [1, 2], site.deadline())
    with pytest.raises(BadArgument, match="repeated"):
        store.put_many([a, b, a], [b"v"] * 3, site.deadline())
    for wrong in ("text", 3, None, [b"a", "b"]):
        with pytest.raises(DataPlaneBadRequest):
            store.put_many([a, b], [b"v", wrong], site.deadline())  # type: ignore[list-item]
    assert store.exists_many([a, b], site.deadline()) == [Missing(), Missing()]


def test_a_deadline_of_another_clock_is_refused(store: BlockStore, site: Site, prefix: str) -> None:
    """It would be compared with times that mean something else."""
    with pytest.raises(BadArgument, match="clock"):
        store.get_many([prefix], None, Deadline(1.0, lambda: 0.0))


# -- time -------------------------------------------------------------------------------------------------------------


def test_nothing_is_done_after_the_deadline(store: BlockStore, site: Site, prefix: str) -> None:
    """Every key of a call whose deadline has passed has failed by it, and nothing was stored or removed."""
    kept, new = f"{prefix}/kept", f"{prefix}/new"
    store.put_many([kept], [b"v"], site.deadline())
    late = site.deadline(0.0)
    for outcomes in (
        store.put_many([new], [b"v"], late),
        store.get_many([kept], None, late),
        store.remove_many([kept], late),
        store.exists_many([kept], late),
    ):
        (failed,) = outcomes
        assert isinstance(failed, Failed)
        assert (failed.reason, failed.attempts) == (Reason.DEADLINE.value, 0)
    assert store.exists_many([kept, new], site.deadline()) == [Ok(nbytes=1), Missing()]


# -- its end ----------------------------------------------------------------------------------------------------------


def test_a_closed_store_says_so_and_what_was_read_stays(site: Site, prefix: str) -> None:
    """Closing twice is fine; every later call is ``DataPlaneUnavailable``; views outlive the store."""
    store = site.open()
    store.put_many([prefix], [b"v" * MIB], site.deadline())
    (got,) = store.get_many([prefix], None, site.deadline())
    store.close()
    store.close()
    with pytest.raises(DataPlaneUnavailable, match="closed"):
        store.put_many([prefix], [b"v"], site.deadline())
    with pytest.raises(DataPlaneUnavailable, match="closed"):
        store.get_many([prefix], None, site.deadline())
    with pytest.raises(DataPlaneUnavailable, match="closed"):
        store.remove_many([prefix], site.deadline())
    with pytest.raises(DataPlaneUnavailable, match="closed"):
        store.exists_many([prefix], site.deadline())
    with pytest.raises(DataPlaneUnavailable, match="closed"):
        store.life(site.deadline())
    assert views([got]) == [b"v" * MIB]
    assert store.statistics().outcomes["get", "Ok"] == 1
    assert "closed" in repr(store)


def test_statistics_count_keys_and_bytes(site: Site, prefix: str) -> None:
    """By call and outcome; bytes are of payload, and of what succeeded."""
    with site.open() as store:
        store.put_many([f"{prefix}/a", f"{prefix}/b"], [b"12", b"345"], site.deadline())
        store.put_many([f"{prefix}/a"], [b"other"], site.deadline())
        store.get_many([f"{prefix}/a", f"{prefix}/none"], None, site.deadline())
        store.remove_many([f"{prefix}/b"], site.deadline())
        seen = store.statistics()
    assert seen.outcomes == {
        ("put", "Ok"): 2,
        ("put", "Failed"): 1,
        ("get", "Ok"): 1,
        ("get", "Missing"): 1,
        ("remove", "Ok"): 1,
    }
    assert (seen.bytes_written, seen.bytes_read, seen.restarts) == (5, 2, 0)


# -- several at once --------------------------------------------------------------------------------------------------


def test_threads_share_a_store(store: BlockStore, site: Site, prefix: str) -> None:
    """Four put, read and remove beside each other: each reads what it put.

    Callers that race for one key with different bytes break the rule that a key names one value; what is there then is
    whole and of one who was told so. Mooncake has no way to let only one of them in.
    """
    wrong: list[object] = []
    winners: list[int] = []

    def work(number: int) -> None:
        for turn in range(15):
            keys = [f"{prefix}/{number}/{turn}/{n}" for n in range(4)]
            values = [value_of(1000 * number + 100 * turn + n) for n in range(4)]
            wrong.extend(one for one in store.put_many(keys, values, site.deadline()) if not isinstance(one, Ok))
            if views(store.get_many(keys, None, site.deadline())) != values:
                wrong.append(keys)
            wrong.extend(one for one in store.remove_many(keys, site.deadline()) if one != Ok())
        (raced,) = store.put_many([f"{prefix}/one"], [bytes([number])], site.deadline())
        if isinstance(raced, Ok):
            winners.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    (there,) = views(store.get_many([f"{prefix}/one"], None, site.deadline()))
    assert there in [bytes([number]) for number in winners]
    assert len(winners) == 1 or not isinstance(store, MemoryStore)


# -- a store that forgets, or is full ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "fake", "real"])
def test_a_restart_is_said_once_and_then_the_store_is_empty(kind: str, mooncakes: StartMooncake) -> None:
    """The first call that finds out raises, ``on_restarted`` is called once, the life has another name; puts work."""
    told: list[str] = []
    with ExitStack() as stack:
        site: Site
        if kind == "memory":
            site = MemorySite()
        elif kind == "fake":
            site = FakeSite(stack)
        else:
            site = RealSite(stack, mooncakes(owners=2))
        store = stack.enter_context(site.open(on_restarted=told.append))
        life = store.life(site.deadline())
        store.put_many(["a", "b"], [b"a", b"b"], site.deadline())
        site.restart()
        with pytest.raises(DataPlaneUnavailable, match="restarted"):
            store.get_many(["a", "b"], None, site.deadline())
        assert store.get_many(["a", "b"], None, site.deadline()) == [Missing(), Missing()]
        assert store.life(site.deadline()) != life
        assert len(told) == store.statistics().restarts == 1
        assert store.put_many(["a"], [b"new"], site.deadline()) == [Ok(nbytes=3)]
        assert views(store.get_many(["a"], None, site.deadline())) == [b"new"]


@pytest.mark.parametrize("kind", ["memory", "fake", pytest.param("real", marks=pytest.mark.slow)])
def test_a_full_store_keeps_what_it_has(kind: str, mooncakes: StartMooncake) -> None:
    """What does not fit is ``Full``; nothing is dropped for it; room that is made can be used."""
    with ExitStack() as stack:
        site: Site
        if kind == "memory":
            site = MemorySite(32 * MIB)
        elif kind == "fake":
            site = FakeSite(stack, 16 * MIB)
        else:
            site = RealSite(stack, mooncakes(owners=2, segment_bytes=16 * MIB))
        store = stack.enter_context(site.open())
        keys, value = [f"k{n}" for n in range(40)], b"x" * MIB
        outcomes = store.put_many(keys, [value] * 40, site.deadline())
        stored = [key for key, outcome in zip(keys, outcomes, strict=True) if isinstance(outcome, Ok)]
        assert set(outcomes) == {Ok(nbytes=MIB), Full()}
        assert 25 <= len(stored) <= 32
        assert views(store.get_many(stored, None, site.deadline())) == [value] * len(stored)
        store.remove_many(stored[:4], site.deadline())
        assert store.put_many(["late"], [value], site.deadline()) == [Ok(nbytes=MIB)]
