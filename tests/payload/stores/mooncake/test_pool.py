"""Registered memory: lent once, held where a late write may land, never beyond its limit."""

from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.payload.stores.mooncake.codes import LATE
from penstock.payload.stores.mooncake.pool import Lease, Pool
from penstock.retry import Deadline
from tests.payload.stores.rigs import Clock

MIB = 1 << 20


class Registry:
    """Stands for the client: what is registered, and a code to refuse with."""

    def __init__(self) -> None:
        self.memory: dict[int, int] = {}
        self.code = 0
        self.limits: list[Deadline] = []

    def register(self, address: int, nbytes: int, deadline: Deadline) -> int:
        self.limits.append(deadline)
        if self.code == 0:
            self.memory[address] = nbytes
        return self.code

    def unregister(self, address: int, deadline: Deadline) -> int:
        del deadline
        del self.memory[address]
        return 0

    def has(self, lease: Lease) -> bool:
        return any(
            start <= lease.address and lease.address + lease.nbytes <= start + nbytes
            for start, nbytes in self.memory.items()
        )


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def pool(registry: Registry) -> Pool:
    return Pool(registry.register, registry.unregister, 4 * MIB)


def lend(pool: Pool, *sizes: int) -> list[Lease]:
    leases = pool.take(sizes, Deadline(20.0), wait=False)
    assert leases is not None
    return leases


STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "take", "give", "hold", "again"]), st.integers(0, 2 * MIB)), max_size=60
)


@given(steps=STEPS)
def test_memory_is_never_lent_twice(steps: list[tuple[str, int]]) -> None:
    """Nor lent while it is held, nor outside of what is registered, nor lost."""
    registry = Registry()
    pool = Pool(registry.register, registry.unregister, 4 * MIB)
    lent: list[Lease] = []
    held: dict[str, Lease] = {}
    for number, (what, size) in enumerate(steps):
        if what == "take":
            lent += pool.take([size, 1], Deadline(20.0), wait=False) or []
        elif what == "give" and lent:
            pool.give([lent.pop(size % len(lent))])
        elif what == "hold" and lent:
            held[f"k{number}"] = lent.pop()
            pool.hold(f"k{number}", held[f"k{number}"])
        elif what == "again" and held:
            name = sorted(held)[size % len(held)]
            again = pool.take_held(name, held[name].nbytes)
            assert again is held.pop(name)
            lent.append(again)
        places = sorted((lease.address, lease.address + lease.range.nbytes) for lease in [*lent, *held.values()])
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
        assert all(registry.has(lease) for lease in [*lent, *held.values()])
    for name, lease in held.items():
        assert pool.take_held(name, lease.nbytes) is lease
    pool.give([*lent, *held.values()])
    assert pool.held_bytes == 0
    assert len(lend(pool, pool.limit // 2)) == 1


def test_what_is_lent_stays_within_the_limit(pool: Pool) -> None:
    """What does not fit is not lent, all of it or nothing."""
    first = lend(pool, 3 * MIB)
    assert pool.take([MIB // 2, MIB], Deadline(20.0), wait=False) is None
    lend(pool, MIB)
    assert pool.memory_bytes <= pool.limit
    pool.give(first)
    lend(pool, 3 * MIB)


def test_a_value_beyond_the_limit_is_lent_memory_alone(pool: Pool, registry: Registry) -> None:
    """When nothing else is lent; and what was made for smaller ones is let go."""
    small = lend(pool, 1)
    assert pool.take([9 * MIB], Deadline(20.0), wait=False) is None
    pool.give(small)
    (large,) = lend(pool, 9 * MIB)
    assert registry.has(large)
    assert pool.memory_bytes < 10 * MIB
    assert len(registry.memory) == 1


def test_held_memory_is_for_its_name_and_size_alone(pool: Pool) -> None:
    """Nobody else gets it, and it does not narrow what the others may have."""
    (lease,) = lend(pool, 3 * MIB)
    pool.hold("mine", lease)
    assert pool.held_bytes >= 3 * MIB
    assert pool.take_held("yours", 3 * MIB) is None
    assert pool.take_held("mine", 5) is None
    lend(pool, 4 * MIB)
    assert pool.take_held("mine", 3 * MIB) is lease


def test_two_leases_held_under_one_name_are_both_kept(pool: Pool) -> None:
    """One of them is lent again; the other only at the end of its client."""
    one, two = lend(pool, 100, 200)
    pool.hold("k", one)
    pool.hold("k", two)
    assert pool.held_bytes == one.range.nbytes + two.range.nbytes
    assert pool.take_held("k", 100) is one
    assert pool.take_held("k", 200) is None


def test_who_waits_for_memory_gets_it_when_it_is_given_back(pool: Pool) -> None:
    """Before the deadline."""
    leases = lend(pool, 4 * MIB)
    got: list[list[Lease] | None] = []
    waiting = threading.Thread(target=lambda: got.append(pool.take([MIB], Deadline(20.0))))
    waiting.start()
    pool.give(leases)
    waiting.join(20.0)
    assert got[0] is not None


def test_nobody_waits_past_the_deadline(pool: Pool) -> None:
    """None says that there was no memory."""
    lend(pool, 4 * MIB)
    clock = Clock()
    deadline = Deadline(0.0, clock)
    assert pool.take([MIB], deadline) is None


def test_a_client_that_registers_nothing_more_is_not_waited_for(pool: Pool, registry: Registry) -> None:
    """Waiting would not change it; the next call asks again."""
    registry.code = -600
    assert not pool.prepare(Deadline(20.0))
    assert pool.take([1], Deadline(60.0)) is None
    registry.code = 0
    assert pool.prepare(Deadline(20.0))
    assert pool.take([1], Deadline(60.0)) is not None


def test_memory_whose_registering_did_not_come_back_is_kept(pool: Pool, registry: Registry) -> None:
    """The library may register it yet: given back, it would be somebody else's by then."""
    registry.code = LATE
    deadline = Deadline(20.0)
    assert pool.take([MIB], deadline) is None
    assert registry.limits == [deadline]
    assert len(pool._late) == 1
    registry.code = -600
    assert pool.take([MIB], deadline) is None
    assert len(pool._late) == 1


def test_who_is_kept_out_by_anothers_registering_leaves_at_the_deadline() -> None:
    """One caller's patience is not the other's."""
    entered, let_go = threading.Event(), threading.Event()

    def register(_address: int, _nbytes: int, _deadline: Deadline) -> int:
        entered.set()
        let_go.wait(20.0)
        return 0

    pool = Pool(register, lambda _address, _deadline: 0, 4 * MIB)
    first = threading.Thread(target=lambda: pool.take([MIB], Deadline(20.0)))
    first.start()
    try:
        assert entered.wait(20.0)
        assert pool.take([MIB], Deadline(0.05)) is None
        assert not let_go.is_set()
    finally:
        let_go.set()
        first.join(20.0)
