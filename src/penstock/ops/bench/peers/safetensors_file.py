"""safetensors: the columns as one file in shared memory. A blob: no rows, no selection, no cursor."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from penstock.ops.bench.batch import Batch
from penstock.ops.bench.peer import Laps, Peer
from penstock.ops.machine import package_version

__all__ = ["SafetensorsFile"]


class SafetensorsFile(Peer):
    """One file a batch, written and loaded whole."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def open(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="penstock-bench-", dir="/dev/shm")

    def turn(self, batch: Batch, number: int, laps: Laps) -> None:
        from safetensors.torch import load_file, save_file

        assert self._folder is not None
        path = Path(self._folder.name) / f"{batch.name}-{number}"
        columns = batch.flat
        with laps.lap("put"):
            save_file(columns, path)
        with laps.lap("get"):
            found = load_file(path)
        path.unlink()
        if not all(torch.equal(found[name], column) for name, column in columns.items()):
            raise ValueError("the file was not read as it was written")

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def versions(self) -> dict[str, str]:
        return {"safetensors": package_version("safetensors") or "?"}
