"""Blocks move under readers while the plane is killed again and again: every row read is the row that was asked for."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

from penstock.requests import Clear, Commit, Done, GrantAgain, Granted, Welcome
from tests.server.harness import DEADLINE_S, PlaneProcess, RawClient

CONFIG: dict[str, Any] = {"warm_bytes": 0, "segment_bytes": 50_000, "resume_grace_s": 60.0}
ROWS = 16
KEPT = 3  # of each block: less than half, so that it is compacted


class Stubborn:
    """Asks again, on new connections to the same session, until it is answered."""

    def __init__(self, data_dir: Path, client_id: int) -> None:
        self.client = RawClient(data_dir, client_id).open()

    def resume(self) -> None:
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            try:
                fresh = RawClient(self.client.data_dir, self.client.client_id)
                assert isinstance(fresh.resumed_as(self.client), Welcome)
            except OSError:
                time.sleep(0.02)
                continue
            self.client.close()
            self.client = fresh
            return
        raise AssertionError("the plane did not come back")

    def clear(self, keys: list[str]) -> None:
        self.client.seq += 1
        seq = self.client.seq
        while True:
            try:
                assert self.client.call(Clear("p", keys), seq=seq, done_below=seq - 1) == Done()
            except OSError:
                self.resume()
            else:
                return

    def put(self, keys: list[str], values: list[int]) -> None:
        """Grant, copy, commit; once more from the start if the plane has died between."""
        while True:
            try:
                granted = self.client.grant(keys)
                assert isinstance(granted, Granted), granted
                content = self.client.write(granted, len(keys), fill=values)
            except OSError:
                self.resume()
                continue
            self.client.seq += 1
            if self._commit(Commit(granted.grant, content), self.client.seq) == Done():
                return

    def _commit(self, commit: Commit, seq: int) -> object:
        while True:
            try:
                reply = self.client.call(commit, seq=seq)
            except OSError:
                self.resume()
            else:
                assert isinstance(reply, Done | GrantAgain), reply
                return reply

    def read(self, keys: list[str]) -> list[int]:
        while True:
            try:
                return self.client.read(keys)
            except OSError:
                self.resume()


def test_rows_are_themselves_wherever_they_lie(tmp_path: Path) -> None:
    """Puts, clears that make blocks sparse, compaction, checkpoints and kill -9: no read meets another row's bytes."""
    data = tmp_path / "d"
    kept: dict[str, int] = {}
    wrong: list[str] = []
    reads = 0
    over = threading.Event()

    def write() -> None:
        rng = random.Random(1)
        writer = Stubborn(data, 1)
        number = 0
        while not over.is_set():
            keys = [f"{number}-{i}" for i in range(ROWS)]
            values = [(number * ROWS + i) % 251 for i in range(ROWS)]  # equal rows would hide a wrong row number
            writer.put(keys, values)
            stay = set(rng.sample(range(ROWS), KEPT))
            writer.clear([key for i, key in enumerate(keys) if i not in stay])
            kept.update({keys[i]: values[i] for i in stay})
            number += 1

    def read(client_id: int) -> None:
        nonlocal reads
        rng = random.Random(client_id)
        reader = Stubborn(data, client_id)
        while not over.is_set():
            names = rng.sample(list(kept), min(8, len(kept))) or [""]
            if names == [""]:
                time.sleep(0.01)
                continue
            found = reader.read(names)
            wrong.extend(n for n, value in zip(names, found, strict=True) if value != kept[n])
            reads += 1

    plane = PlaneProcess(data, **CONFIG)
    with RawClient(data, 9) as first:
        first.open().register()
    threads = [threading.Thread(target=write), *(threading.Thread(target=read, args=(n,)) for n in (2, 3))]
    for thread in threads:
        thread.start()
    for _ in range(4):
        time.sleep(1.5)
        plane.kill()
        plane = PlaneProcess(data, **CONFIG)
        assert plane.word == "ready"
    over.set()
    for thread in threads:
        thread.join(2 * DEADLINE_S)
    with plane, RawClient(data, 10) as last:
        report = last.open().audit()
        assert report.residue == 0
        assert report.partitions[0].lost == {}
        names = list(kept)
        assert last.read(names) == list(kept.values())
    assert wrong == []
    assert reads > 100
