"""Redis: one hash a row, one hash field a column, everything pipelined, over a Unix socket; no persistence."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.errors import DataPlaneUnavailable
from penstock.ops.bench.batch import ROWS, Batch
from penstock.ops.bench.peer import Laps, Peer
from penstock.ops.machine import package_version, redis_version

__all__ = ["RedisHashes"]

_START_S = 10.0


class RedisHashes(Peer):
    """Starts a server of its own, in this process' group, and ends it."""

    _server: subprocess.Popen[bytes] | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def open(self) -> None:
        import redis

        program = shutil.which("redis-server")
        if program is None:
            raise DataPlaneUnavailable("there is no redis-server: apt install redis-server")
        self._folder = tempfile.TemporaryDirectory(prefix="penstock-bench-")
        socket = Path(self._folder.name) / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--daemonize", "no"]
        self._server = subprocess.Popen(
            [program, *options, "--dir", self._folder.name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._redis: Any = redis.Redis(unix_socket_path=str(socket))
        _await_answer(self._redis, redis.ConnectionError)

    def turn(self, batch: Batch, number: int, laps: Laps) -> None:
        keys = batch.keys(number)
        with laps.lap("put"):
            self._put(batch, keys)
        with laps.lap("get"):
            whole = self._get(batch, keys)
        with laps.lap("get half"):
            some = self._get(batch, [keys[i] for i in batch.half.rows])
        self._redis.delete(*keys)
        batch.verify(list(range(ROWS)), whole)
        batch.verify(batch.half.rows, some)

    def _put(self, batch: Batch, keys: list[str]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for i, key in enumerate(keys):
            pipeline.hset(key, mapping={name: column[i].numpy().tobytes() for name, column in batch.columns.items()})
        pipeline.execute()

    def _get(self, batch: Batch, keys: list[str]) -> dict[str, list[torch.Tensor]]:
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.hmget(key, batch.fields)
        rows = pipeline.execute()
        return {
            name: [_tensor(row[place], column[0].dtype) for row in rows]
            for place, (name, column) in enumerate(batch.columns.items())
        }

    def close(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
            self._server = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def versions(self) -> dict[str, str]:
        return {"redis-server": redis_version() or "?", "redis": package_version("redis") or "?"}


def _tensor(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    as_numpy = {torch.int64: np.int64, torch.float32: np.float32, torch.bool: np.bool_}[dtype]
    return torch.from_numpy(np.frombuffer(bytearray(data), dtype=as_numpy))


def _await_answer(client: Any, refused: type[Exception]) -> None:
    end = time.monotonic() + _START_S
    while True:
        try:
            client.ping()
        except refused:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)  # a server of another maker: its socket is all it tells us by
        else:
            return
