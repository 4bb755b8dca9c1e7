"""Ray: ``ray.put`` and ``ray.get`` of the columns as one object. A blob: no rows, no selection, no cursor."""

from __future__ import annotations

import numpy as np

from penstock.ops.bench.batch import Batch
from penstock.ops.bench.peer import Laps, Peer
from penstock.ops.machine import package_version

__all__ = ["RayStore", "start_ray", "stop_ray"]

_STORE_BYTES = 1 << 30


def start_ray(cpus: int) -> None:
    """Start a private Ray of this process, which ends with it."""
    import ray

    ray.init(
        num_cpus=cpus,
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )


def stop_ray() -> None:
    import ray

    ray.shutdown()


class RayStore(Peer):
    """One object a batch."""

    def open(self) -> None:
        start_ray(cpus=1)

    def turn(self, batch: Batch, number: int, laps: Laps) -> None:  # noqa: ARG002 - an object has no name
        import ray

        columns = {name: column.numpy() for name, column in batch.flat.items()}
        with laps.lap("put"):
            reference = ray.put(columns)
        with laps.lap("get"):
            found = ray.get(reference)
        if not all(np.array_equal(found[name], column) for name, column in columns.items()):
            raise ValueError("the object was not read as it was put")

    def close(self) -> None:
        stop_ray()

    def versions(self) -> dict[str, str]:
        return {"ray": package_version("ray") or "?"}
