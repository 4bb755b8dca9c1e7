"""The end of an agent whose plane takes its rows with it; its way there is in ``test_walk`` and ``tests/plane``."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.host.store.lifecycle import StoreOptions, _Life
from penstock.payload.stores.contract import Missing, Ok
from penstock.payload.stores.memory import MemoryStore, Shelf
from penstock.plane.stores import block_key
from penstock.retry import Deadline
from penstock.server.startup import Starter
from tests.host.store.site import Faults, FaultyStore


@pytest.mark.parametrize("down", [False, True])
def test_what_cannot_be_freed_at_the_end_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, down: bool) -> None:
    """Nobody will ever come for it; a store refuses by outcomes, not by raising."""
    shelf, faults = Shelf(), Faults()
    with MemoryStore(shelf) as other, FaultyStore(shelf, faults) as store:
        life = _Life(StoreOptions(store="memory://pool", data_dir=tmp_path), Starter(None), lambda _: store)
        key = block_key(life._host_id, 7)
        other.put_many([key], [b"v"], Deadline(5.0))
        life._duties.enlisted([7], 0)
        faults.down = down
        life._free_all(store)
        (there,) = other.exists_many([key], Deadline(5.0))
        assert isinstance(there, Ok if down else Missing)
    assert ("1 blocks" in caplog.text) is down
