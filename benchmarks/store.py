"""Put and get of a Mooncake store: raw calls, ours, and TransferQueue's own client, interleaved in one run.

    python benchmarks/store.py [--laps 15] [--output FILE]        # needs penstock[mooncake], TransferQueue and torch

A master and two segment owners are processes of their own, no client lends memory: all bytes go over TCP. "raw" is
``batch_upsert_from`` and ``batch_get_into`` on memory that was registered before, nothing else: the limit, and no store
(no size is asked for, one buffer for ever). "ours, unhashed" is ours with a checksum that costs nothing: the difference
is what verification costs. Medians; each lap writes new keys, reads them, and removes them outside the measured time.
What was read is compared with what was put, outside as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from transfer_queue.storage.clients.mooncake_client import MooncakeStoreClient

from penstock.payload.block import Bytes
from penstock.payload.stores import envelope
from penstock.payload.stores.contract import Ok, raise_failures
from penstock.payload.stores.mooncake.library import installed
from penstock.payload.stores.opening import open_store
from penstock.retry import Deadline
from penstock.testing.mooncake import MooncakeCluster

MIB = 1 << 20
SHAPES = {
    "64 x 1 MiB": (64, MIB),
    "512 x 64 KiB": (512, 64 << 10),
    "8 x 8 MiB": (8, 8 * MIB),
    "1 x 64 MiB": (1, 64 * MIB),
}
TIMEOUT_S = 60.0
WARM_UP = 2


Laps: TypeAlias = dict[str, dict[str, list[tuple[float, float]]]]


class Contestant(Protocol):
    def put(self, keys: list[str], values: Sequence[Bytes]) -> None: ...

    def get(self, keys: list[str], nbytes: int) -> Sequence[Any]: ...

    def remove(self, keys: list[str]) -> None: ...


class Raw:
    """Two registered buffers, as large as a batch. Values are put in place before the clock runs."""

    def __init__(self, cluster: MooncakeCluster) -> None:
        library = installed()
        self._client, self._config = library.client(), library.write_config("")
        code = self._client.setup("127.0.0.1", cluster.metadata_url, 0, 16 * MIB, "tcp", "", cluster.master_address)
        self._out, self._in = np.zeros(64 * MIB, np.uint8), np.zeros(64 * MIB, np.uint8)
        codes = [self._client.register_buffer(memory.ctypes.data, memory.nbytes) for memory in (self._out, self._in)]
        if any([code, *codes]):
            raise SystemExit(f"raw client: {code}, {codes}")

    def prepare(self, values: Sequence[Bytes]) -> None:
        self._out[: sum(map(len, values))] = np.concatenate(values)

    def put(self, keys: list[str], values: Sequence[Bytes]) -> None:
        self._check(
            self._client.batch_upsert_from(keys, *self._places(self._out, keys, len(values[0])), self._config), 0
        )

    def get(self, keys: list[str], nbytes: int) -> Sequence[Any]:
        self._check(self._client.batch_get_into(keys, *self._places(self._in, keys, nbytes)), nbytes)
        return [self._in[at * nbytes : (at + 1) * nbytes] for at in range(len(keys))]

    def remove(self, keys: list[str]) -> None:
        self._client.batch_remove(keys, True)

    def close(self) -> None:
        self._client.close()

    @staticmethod
    def _places(memory: Bytes, keys: list[str], nbytes: int) -> tuple[list[int], list[int]]:
        return [memory.ctypes.data + at * nbytes for at in range(len(keys))], [nbytes] * len(keys)

    @staticmethod
    def _check(codes: Sequence[int], right: int) -> None:
        if any(code != right for code in codes):
            raise SystemExit(f"raw calls failed: {set(codes)}")


class Ours:
    """``hashed`` False: checksums cost nothing. ``sized``: lengths are said by who reads, as a plane does."""

    def __init__(self, cluster: MooncakeCluster, *, hashed: bool = True, sized: bool = True) -> None:
        self._store = open_store(cluster.url)
        self._hashed, self._sized = hashed, sized

    def put(self, keys: list[str], values: Sequence[Bytes]) -> None:
        with _hashing(self._hashed):
            raise_failures(keys, self._store.put_many(keys, values, Deadline(TIMEOUT_S)), "put")

    def get(self, keys: list[str], nbytes: int) -> Sequence[Any]:
        sizes = [nbytes] * len(keys) if self._sized else None
        with _hashing(self._hashed):
            outcomes = self._store.get_many(keys, sizes, Deadline(TIMEOUT_S))
        raise_failures(keys, outcomes, "get")
        return [outcome.view for outcome in outcomes if isinstance(outcome, Ok)]

    def remove(self, keys: list[str]) -> None:
        raise_failures(keys, self._store.remove_many(keys, Deadline(TIMEOUT_S)), "remove")

    def close(self) -> None:
        self._store.close()


class _NoHash:
    def update(self, _: object) -> None: ...

    def intdigest(self) -> int:
        return 0


@contextmanager
def _hashing(hashed: bool) -> Iterator[None]:
    real = envelope.xxhash.xxh3_64
    envelope.xxhash.xxh3_64 = real if hashed else _NoHash
    try:
        yield
    finally:
        envelope.xxhash.xxh3_64 = real


class TransferQueue:
    """Its client, as its manager calls it: ``tensors``, or ``bytes``, which it encodes and decodes."""

    def __init__(self, cluster: MooncakeCluster, *, tensors: bool) -> None:
        settings = {
            "local_hostname": "127.0.0.1",
            "metadata_server": cluster.metadata_url,
            "master_server_address": cluster.master_address,
            "global_segment_size": 0,
            "local_buffer_size": 256 * MIB,
        }
        self._client = MooncakeStoreClient(settings)
        self._tensors = tensors
        self._meta: list[Any] = []

    def put(self, keys: list[str], values: Sequence[Bytes]) -> None:
        given = [torch.from_numpy(value) if self._tensors else value.tobytes() for value in values]
        self._meta = self._client.put(keys, given)

    def get(self, keys: list[str], nbytes: int) -> Sequence[Any]:
        dtype = torch.uint8 if self._tensors else None
        found = self._client.get(keys, [(nbytes,)] * len(keys), [dtype] * len(keys), self._meta)
        return [value.numpy() if self._tensors else value for value in found]

    def remove(self, keys: list[str]) -> None:
        self._client.clear(keys)

    def close(self) -> None:
        self._client.close()


def contestants(cluster: MooncakeCluster, stack: ExitStack) -> dict[str, Contestant]:
    found: dict[str, Any] = {
        "raw calls": Raw(cluster),
        "ours": Ours(cluster),
        "ours, sizes unknown": Ours(cluster, sized=False),
        "ours, unhashed": Ours(cluster, hashed=False),
        "TransferQueue": TransferQueue(cluster, tensors=True),
        "TransferQueue, bytes": TransferQueue(cluster, tensors=False),
    }
    for one in found.values():
        stack.callback(one.close)
    return found


def measure(who: dict[str, Contestant], count: int, nbytes: int, laps: int) -> Laps:
    """Return (seconds, processor seconds) by contestant and call. Who comes first changes from lap to lap."""
    rng = np.random.default_rng(count)
    values = [rng.integers(0, 256, nbytes, np.uint8) for _ in range(count)]
    times: Laps = {name: {"put": [], "get": []} for name in who}
    names = list(who)
    for lap in range(-WARM_UP, laps):
        for name in names[lap % len(names) :] + names[: lap % len(names)]:
            keys = [f"{name}/{count}/{lap}/{number}" for number in range(count)]
            seconds = _turn(who[name], keys, values)
            for call, taken in seconds.items() if lap >= 0 else ():
                times[name][call].append(taken)
    return times


def _turn(one: Contestant, keys: list[str], values: Sequence[Bytes]) -> dict[str, tuple[float, float]]:
    if isinstance(one, Raw):
        one.prepare(values)
    _, put = _timed(lambda: one.put(keys, values))
    found, get = _timed(lambda: one.get(keys, len(values[0])))
    if not all(np.array_equal(np.frombuffer(a, np.uint8), b) for a, b in zip(found, values, strict=True)):
        raise SystemExit(f"{type(one).__name__} read other bytes than it put")
    one.remove(keys)
    return {"put": put, "get": get}


def _timed(call: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    began, worked = time.perf_counter(), time.process_time()
    result = call()
    return result, (time.perf_counter() - began, time.process_time() - worked)


def figures(times: Laps, nbytes: int) -> list[dict[str, Any]]:
    """Return a row a contestant: MB/s, the best of them, and milliseconds of this process's processors, by call."""
    rows = []
    for name, calls in times.items():
        row: dict[str, Any] = {"who": name}
        for call, laps in calls.items():
            seconds, worked = zip(*laps, strict=True)
            row[f"{call}_mb_s"] = round(nbytes / statistics.median(seconds) / 1e6, 1)
            row[f"{call}_best_mb_s"] = round(nbytes / min(seconds) / 1e6, 1)
            row[f"{call}_cpu_ms"] = round(1e3 * statistics.median(worked), 2)
        rows.append(row)
    return rows


def show(shape: str, rows: list[dict[str, Any]]) -> None:
    print(f"| {shape} | put MB/s | best | cpu ms | get MB/s | best | cpu ms |\n|---|---|---|---|---|---|---|")
    for row in rows:
        told = [f"{row[f'{call}_{what}']:.0f}" for call in ("put", "get") for what in ("mb_s", "best_mb_s", "cpu_ms")]
        print(f"| {row['who']} | {' | '.join(told)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laps", type=int, default=15)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", action="append", help="a shape, as '64 x 1 MiB'")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        cluster = stack.enter_context(MooncakeCluster(Path(folder), owners=2, segment_bytes=768 * MIB))
        who = contestants(cluster, stack)
        for shape, (count, nbytes) in SHAPES.items():
            if not args.only or shape in args.only:
                found[shape] = figures(measure(who, count, nbytes, args.laps), count * nbytes)
                show(shape, found[shape])
    if args.output:
        packages = ("penstock", "mooncake-transfer-engine-non-cuda", "TransferQueue", "torch", "numpy")
        machine = {"processor": platform.processor(), "cores": os.cpu_count(), "python": sys.version.split()[0]}
        told = {"machine": machine, "versions": {name: version(name) for name in packages}, "laps": args.laps}
        args.output.write_text(json.dumps(told | {"figures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
