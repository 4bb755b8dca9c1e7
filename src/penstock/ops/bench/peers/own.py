"""Penstock: a private plane, what ``penstock.connect()`` gives."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.config import ClientConfig
from penstock.ops.bench.batch import ROWS, Batch
from penstock.ops.bench.peer import Laps, Peer
from penstock.ops.connecting import await_end

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDict

    from penstock.plane.contract import DataPlaneClient

__all__ = ["Own"]

_EARLIER, _FINAL = "prev_lp", "train"


class Own(Peer):
    """Put, whole get by a client that verifies and by one that reads headers only, half, claim, ack, pop."""

    _client: DataPlaneClient | None = None
    _trusting: DataPlaneClient | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def open(self) -> None:
        from penstock.plane.local import LocalDataPlaneClient

        self._folder = tempfile.TemporaryDirectory(prefix="penstock-bench-")
        self._client = LocalDataPlaneClient(Path(self._folder.name))
        self._trusting = LocalDataPlaneClient(Path(self._folder.name), config=ClientConfig(integrity="header"))

    def turn(self, batch: Batch, number: int, laps: Laps) -> None:
        client, trusting = self._client, self._trusting
        assert client is not None
        assert trusting is not None
        name, keys = batch.name, batch.keys(number)
        client.register_partition(name, batch.fields, ROWS, [_EARLIER, _FINAL])
        with laps.lap("put"):
            client.put_samples(keys, name, batch.stacked)
        _read(client, trusting, batch, keys, laps)
        with laps.lap("claim"):
            meta = client.claim_meta(name, _EARLIER, batch.fields, ROWS, blocking=False)
        with laps.lap("ack"):
            client.ack(meta)
        taken = client.claim_meta(name, _FINAL, batch.fields, ROWS, blocking=False)
        with laps.lap("pop"):
            client.pop(taken.sample_ids, name)
        if meta.sample_ids != keys or taken.sample_ids != keys:
            raise ValueError(f"claimed {meta.size} and {taken.size} rows of {ROWS}")
        self._put_as_lists(client, batch, number, laps)

    def _put_as_lists(self, client: DataPlaneClient, batch: Batch, number: int, laps: Laps) -> None:
        keys = [f"list-{key}" for key in batch.keys(number)]
        with laps.lap("put list"):
            client.put_samples(keys, batch.name, batch.columns)
        client.clear_samples(keys, batch.name)

    def close(self) -> None:
        for client in (self._trusting, self._client):
            if client is not None:
                client.close()
        self._client = self._trusting = None
        if self._folder is not None:
            await_end(Path(self._folder.name))
            self._folder.cleanup()
            self._folder = None


def _read(client: DataPlaneClient, trusting: DataPlaneClient, batch: Batch, keys: list[str], laps: Laps) -> None:
    half = [keys[i] for i in batch.half.rows]
    with laps.lap("get"):
        whole = client.get_samples(keys, batch.name, batch.fields)
    with laps.lap("get half"):
        some = client.get_samples(half, batch.name, batch.fields)
    with laps.lap("get header"):
        trusted = trusting.get_samples(keys, batch.name, batch.fields)
    batch.verify(list(range(ROWS)), _rows(whole, batch))
    batch.verify(list(range(ROWS)), _rows(trusted, batch))
    batch.verify(batch.half.rows, _rows(some, batch))


def _rows(columns: TensorDict, batch: Batch) -> dict[str, list[torch.Tensor]]:
    return {name: list(columns[name].unbind()) for name in batch.fields}
