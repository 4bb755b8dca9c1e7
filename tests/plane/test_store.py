"""Puts into a store and reads out of it, through a real plane and a real agent; the store is this process's memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from penstock.plane.contract import DataPlaneClient
from tests.host.store.site import StoreSite


@pytest.fixture
def site(tmp_path: Path) -> Iterator[StoreSite]:
    with StoreSite(tmp_path) as made:
        yield made


def values(client: DataPlaneClient, *keys: str) -> list[list[int]]:
    column = client.get_samples(list(keys), "p", ["x"])["x"]
    assert isinstance(column, torch.Tensor)
    found: list[list[int]] = column.tolist()
    return found


def test_what_is_put_into_a_store_is_read_out_of_it(site: StoreSite) -> None:
    """One block under one key; it is freed when its last row is trained."""
    writer, reader = site.client(), site.client(store="")
    writer.register_partition("p", ["x"], 8, ["train"])
    writer.put_samples(["a", "b"], "p", {"x": torch.arange(8).view(2, 4)})
    assert len(site.keys()) == 1
    assert values(reader, "b", "a") == [[4, 5, 6, 7], [0, 1, 2, 3]]
    claimed = reader.claim_meta("p", "train", ["x"], 2)
    reader.ack(claimed)
    site.until_empty()
