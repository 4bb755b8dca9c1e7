"""TransferQueue: its key-value interface over SimpleStorage, with its own defaults, on a private Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.ops.bench.batch import ROWS, Batch
from penstock.ops.bench.peer import Laps, Peer
from penstock.ops.bench.peers.ray_store import PrivateRay
from penstock.ops.machine import package_version

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDict

__all__ = ["TransferQueueKV"]

_CPUS = 4  # its controller and two storage units take one each


class TransferQueueKV(Peer):
    """``kv_batch_put`` of a TensorDict, ``kv_batch_get`` of all and of half the keys."""

    def __init__(self) -> None:
        self._ray = PrivateRay()

    def open(self) -> None:
        import transfer_queue

        self._ray.start(_CPUS)
        transfer_queue.init()

    def turn(self, batch: Batch, number: int, laps: Laps) -> None:
        import transfer_queue
        from tensordict import TensorDict

        columns = TensorDict(dict(batch.stacked), batch_size=[ROWS])
        keys, name = batch.keys(number), batch.name
        half = [keys[i] for i in batch.half.rows]
        with laps.lap("put"):
            transfer_queue.kv_batch_put(keys=keys, partition_id=name, fields=columns)
        with laps.lap("get"):
            whole = transfer_queue.kv_batch_get(keys=keys, partition_id=name, select_fields=batch.fields)
        with laps.lap("get half"):
            some = transfer_queue.kv_batch_get(keys=half, partition_id=name, select_fields=batch.fields)
        transfer_queue.kv_clear(keys=keys, partition_id=name)
        batch.verify(list(range(ROWS)), _rows(whole, batch))
        batch.verify(batch.half.rows, _rows(some, batch))

    def close(self) -> None:
        import transfer_queue

        transfer_queue.close()
        self._ray.stop()

    def versions(self) -> dict[str, str]:
        return {name: package_version(name) or "?" for name in ("TransferQueue", "ray")}


def _rows(columns: TensorDict, batch: Batch) -> dict[str, list[torch.Tensor]]:
    return {name: list(columns[name].unbind()) for name in batch.fields}
