"""What is the memory twin's own; what it shares with every store is in ``test_suite``."""

from __future__ import annotations

import gc

import pytest

from penstock.errors import BadArgument
from penstock.payload.stores.contract import Full, Missing, Ok
from penstock.payload.stores.memory import MemoryStore, Shelf
from penstock.payload.stores.opening import open_store
from penstock.retry import Deadline
from tests.payload.stores.rigs import Clock


def test_a_name_is_one_shelf_for_as_long_as_somebody_has_it_open() -> None:
    """``memory://NAME`` twice is the same values; once all have closed, the next one starts empty, in another life."""
    with open_store("memory://twice") as one, open_store("memory://twice") as two, open_store("memory://else") as other:
        one.put_many(["k"], [b"v"], Deadline(1.0))
        assert two.exists_many(["k"], Deadline(1.0)) == [Ok(nbytes=1)]
        assert other.exists_many(["k"], Deadline(1.0)) == [Missing()]
        life = two.life(Deadline(1.0))
        assert life == one.life(Deadline(1.0)) != other.life(Deadline(1.0))
    gc.collect()
    with open_store("memory://twice") as again:
        assert again.exists_many(["k"], Deadline(1.0)) == [Missing()]
        assert again.life(Deadline(1.0)) != life


def test_room_is_counted_in_bytes_and_given_back() -> None:
    """What does not fit is ``Full`` and smaller values still fit; removing makes room; an empty one always fits."""
    clock = Clock()
    shelf = Shelf(capacity_bytes=10)
    store = MemoryStore(shelf, clock=clock)
    deadline = Deadline(1.0, clock)
    assert store.put_many(["a", "b", "c", "d"], [b"1" * 8, b"1" * 3, b"11", b""], deadline) == [
        Ok(nbytes=8),
        Full(),
        Ok(nbytes=2),
        Ok(nbytes=0),
    ]
    assert (shelf.used_bytes, len(shelf)) == (10, 3)
    assert store.remove_many(["a", "a", "b"], deadline) == [Ok()] * 3
    assert shelf.used_bytes == 2
    assert store.put_many(["b"], [b"1" * 8], deadline) == [Ok(nbytes=8)]
    assert store.statistics().memory_bytes == 10


def test_a_shelf_of_less_than_nothing_is_refused() -> None:
    """A negative capacity is a ``BadArgument``."""
    with pytest.raises(BadArgument, match="-1"):
        Shelf(-1)


def test_every_open_store_is_told_of_a_restart_once() -> None:
    """Two stores of one shelf: each says so at its own next call, and only then."""
    shelf, told = Shelf(name="x"), list[str]()
    first, second = (MemoryStore(shelf, on_restarted=told.append) for _ in range(2))
    shelf.restart()
    for count, store in enumerate((first, second), 1):
        with pytest.raises(Exception, match="restarted"):
            store.exists_many(["k"], Deadline(1.0))
        assert len(told) == count
        assert store.exists_many(["k"], Deadline(1.0)) == [Missing()]
    assert "0 values" in repr(first)


def test_a_clock_may_be_a_method() -> None:
    """Each look at a bound method is another object, of the same clock."""
    clock = Clock()
    with MemoryStore(clock=clock.__call__) as store:
        assert store.exists_many(["k"], Deadline(1.0, clock.__call__)) == [Missing()]
