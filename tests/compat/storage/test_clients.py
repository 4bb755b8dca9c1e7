"""The clients and where their values lie: on a store, and on a plane."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from penstock.compat.transfer_queue_storage.blocks import Blocks, PlaneBlocks, StoreBlocks
from penstock.compat.transfer_queue_storage.clients import PenstockPlaneClient, ValueClient
from penstock.errors import BadArgument, BatchError, DataPlaneUnavailable, RefusedType, UnknownName
from penstock.payload.stores.memory import MemoryStore, Shelf
from penstock.plane.noop import NoOpDataPlaneClient

KEYS = ["4@a", "5@a", "4@b", "5@b"]
VALUES: list[Any] = [torch.arange(3.0), torch.zeros(0), None, {"n": (1, "x")}]


def _plane() -> Blocks:
    return PlaneBlocks(NoOpDataPlaneClient(), "tq-test", 5.0)


@pytest.fixture(params=[lambda: StoreBlocks(MemoryStore()), _plane], ids=["store", "plane"])
def client(request: pytest.FixtureRequest) -> Iterator[ValueClient]:
    client = ValueClient({}, request.param(), "tq-test", 5.0)
    yield client
    client.close()


def test_values_come_back(client: ValueClient) -> None:
    """What was put is read by its places, in any order and repeatedly: empty, None and objects too."""
    places = client.put(KEYS, VALUES)
    order = [3, 0, 2, 1, 0]
    read = client.get([KEYS[i] for i in order], None, None, [places[i] for i in order])
    assert read[0] == VALUES[3]
    assert read[1].tolist() == [0, 1, 2]
    assert read[2] is None
    assert read[3].shape == (0,)
    assert read[4].tolist() == [0, 1, 2]


def test_what_was_read_is_the_callers_own(client: ValueClient) -> None:
    """Writing to a tensor that was read changes nothing of what others read."""
    places = client.put(KEYS[:1], VALUES[:1])
    client.get(KEYS[:1], custom_backend_meta=places)[0][:] = 9.0
    assert client.get(KEYS[:1], custom_backend_meta=places)[0].tolist() == [0, 1, 2]


def test_each_put_has_a_place_of_its_own(client: ValueClient) -> None:
    """Putting a key again leaves the earlier value readable by its place until that is cleared."""
    first = client.put(["0@a"], [1])
    second = client.put(["0@a"], [2])
    assert client.get(["0@a", "0@a"], custom_backend_meta=[*first, *second]) == [1, 2]
    client.clear(["0@a"], first)
    assert client.get(["0@a"], custom_backend_meta=second) == [2]


def test_missing_values_are_named(client: ValueClient) -> None:
    """A get of cleared values and of present ones is an error that names the cleared ones by the caller's keys."""
    places = client.put(KEYS, VALUES)
    client.clear(KEYS[1:3], places[1:3])
    with pytest.raises(BatchError) as caught:
        client.get(KEYS, custom_backend_meta=places)
    assert set(caught.value.failures) == set(KEYS[1:3])
    assert all(isinstance(error, UnknownName) for error in caught.value.failures.values())


def test_keys_without_a_place_are_named(client: ValueClient) -> None:
    """A get of keys that nobody has put is an error, not fewer values; a clear of them is none."""
    places = client.put(KEYS[:1], VALUES[:1])
    with pytest.raises(BatchError, match="9@a"):
        client.get([KEYS[0], "9@a"], custom_backend_meta=[*places, None])
    with pytest.raises(BatchError):
        client.get(KEYS[:1])
    for foreign in ({"packed_size": 5}, {"version": 3, "nbytes": 5}, "x"):
        with pytest.raises(BatchError, match="not been put"):
            client.get(["9@a"], custom_backend_meta=[foreign])  # type: ignore[list-item]  # what another backend wrote
        client.clear(["9@a"], [foreign])  # type: ignore[list-item]
    client.clear(["9@a"], [None])
    client.clear(["9@a"])


def test_a_clear_can_be_repeated(client: ValueClient) -> None:
    """Clearing what is gone already succeeds."""
    places = client.put(KEYS, VALUES)
    client.clear(KEYS, places)
    client.clear(KEYS, places)


def test_a_refused_value_is_named_and_stores_nothing(client: ValueClient) -> None:
    """One value that is not carried refuses the put before anything is stored."""
    with pytest.raises(RefusedType, match="5@a"):
        client.put(KEYS[:2], [1, object()])


@pytest.mark.parametrize("bad", [("0@a", ["x"]), (["0@a"], ["x", "y"])])
def test_keys_and_values_are_lists_of_one_length(client: ValueClient, bad: Any) -> None:
    """Anything else is a ValueError, as on the package's own clients."""
    with pytest.raises(ValueError, match="list"):
        client.put(*bad)
    with pytest.raises(BadArgument):
        client.get(bad[0], custom_backend_meta=bad[1])


def test_a_closed_client_says_so(client: ValueClient) -> None:
    """After ``close``, which may be repeated, every call is ``DataPlaneUnavailable``."""
    places = client.put(["0@a"], [1])
    client.close()
    client.close()
    with pytest.raises(DataPlaneUnavailable):
        client.get(["0@a"], custom_backend_meta=places)


def test_a_put_that_fails_leaves_nothing() -> None:
    """When a store takes a part of a put only, that part is removed again and the failures are the caller's keys."""
    shelf = Shelf(capacity_bytes=120)
    client = ValueClient({}, StoreBlocks(MemoryStore(shelf)), "tq-test", 5.0)
    with pytest.raises(BatchError) as caught:
        client.put(["0@a", "1@a", "2@a"], ["fits", "does not", "neither"])
    assert set(caught.value.failures) == {"1@a", "2@a"}
    assert len(shelf) == 0


def test_a_plane_on_this_machine(tmp_path: Any) -> None:
    """``PenstockPlaneClient`` reaches a plane by its directory; two clients of one namespace share values."""
    section = {"data_dir": str(tmp_path / "plane"), "namespace": "n", "plane": {"durability": "memory"}}
    one, two = PenstockPlaneClient(section), PenstockPlaneClient(section)
    try:
        tensors = [torch.arange(5, dtype=torch.int16), torch.ones(3, 2), torch.tensor(True)]
        places = one.put(["0@a", "1@a", "2@a"], tensors)
        read = two.get(["0@a", "1@a", "2@a"], custom_backend_meta=places)
        assert all(torch.equal(a, b) for a, b in zip(tensors, read, strict=True))
        read[1][:] = 9.0
        assert torch.equal(two.get(["1@a"], custom_backend_meta=places[1:2])[0], tensors[1])
        two.clear(["0@a"], places[:1])
        with pytest.raises(BatchError, match="0@a"):
            one.get(["0@a"], custom_backend_meta=places[:1])
    finally:
        one.close()
        two.close()
