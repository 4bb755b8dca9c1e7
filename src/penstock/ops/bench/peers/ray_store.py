"""Ray: ``ray.put`` and ``ray.get`` of the columns as one object. A blob: no rows, no selection, no cursor."""

from __future__ import annotations

import tempfile

import numpy as np

from penstock.ops.bench.batch import Batch
from penstock.ops.bench.peer import Laps, Peer
from penstock.ops.machine import package_version

__all__ = ["PrivateRay", "RayStore"]

_STORE_BYTES = 1 << 30


class PrivateRay:
    """A Ray of this process' own, whose files are in a folder of its own: its logs would stay otherwise."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def start(self, cpus: int) -> None:
        """Start it; it ends with this process at the latest."""
        import ray

        # Not under TMPDIR: Ray puts sockets there, whose paths may be no longer than 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="pray-", dir="/tmp", ignore_cleanup_errors=True)
        ray.init(
            num_cpus=cpus,
            object_store_memory=_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=self._folder.name,
        )

    def stop(self) -> None:
        """End it. Idempotent."""
        import ray

        ray.shutdown()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class RayStore(Peer):
    """One object a batch."""

    def __init__(self) -> None:
        self._ray = PrivateRay()

    def open(self) -> None:
        self._ray.start(cpus=1)

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
        self._ray.stop()

    def versions(self) -> dict[str, str]:
        return {"ray": package_version("ray") or "?"}
