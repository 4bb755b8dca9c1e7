"""The same script on the real TransferQueue and on a Penstock plane: equal results, but for the differences told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import penstock.compat.transfer_queue as ours
from tests.compat.kv import script
from tests.ray_cluster import RayCluster

TOLD = {name: difference.call for name, difference in script.OTHER.items()}


@pytest.fixture(scope="module")
def theirs(ray_cluster: RayCluster) -> Iterator[dict[str, Any]]:
    """What the real package gives."""
    import transfer_queue

    transfer_queue.init({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}})
    try:
        yield script.run(transfer_queue, {**script.SAME, **TOLD})
    finally:
        transfer_queue.close()


@pytest.fixture(scope="module")
def here() -> Iterator[dict[str, Any]]:
    """What a plane gives, in this process's own."""
    ours.init({"penstock": {"plane": "local"}})
    try:
        yield script.run(ours, {**script.SAME, **TOLD})
    finally:
        ours.close()


def is_one(given: Any, wanted: Any) -> bool:
    """Whether an outcome is the wanted one; an error is if the wanted one is among its bases."""
    if isinstance(given, dict) and "raises" in given:
        return isinstance(wanted, dict) and wanted.get("raises") in given["bases"]
    return bool(given == wanted)


def test_equal_calls_give_equal_results(theirs: dict[str, Any], here: dict[str, Any]) -> None:
    """Metas, tables with their layouts, lists, and errors whose class is one that TransferQueue's callers catch."""
    other = {name: (here[name], theirs[name]) for name in script.SAME if not is_one(here[name], theirs[name])}
    assert other == {}
    assert any("raises" in theirs[name] for name in script.SAME if isinstance(theirs[name], dict))


@pytest.mark.parametrize("name", script.OTHER)
def test_what_differs_is_as_told(name: str, theirs: dict[str, Any], here: dict[str, Any]) -> None:
    """Each difference is there on both sides: when TransferQueue changes, this fails, and the docs are looked at."""
    assert is_one(theirs[name], script.OTHER[name].theirs), theirs[name]
    assert is_one(here[name], script.OTHER[name].ours), here[name]
