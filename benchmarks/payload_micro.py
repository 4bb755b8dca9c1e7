"""What the payload room costs beside memcpy, in the same run: prints one line per figure, with its target.

    python benchmarks/payload_micro.py [repeats]

Everything is in one process: what is measured is copying, checksums, mapping and gathering, not the plane's requests.
Each figure is the median of the repeats; a memcpy of the same bytes is timed before each one, so that a busy machine
slows both.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.config import Integrity
from penstock.payload import codec, decode
from penstock.payload.arena import Arena
from penstock.payload.files import SHM
from penstock.payload.mapping import ArenaMap, BlockReader
from penstock.requests import BlockPlace, Source

MIB = 1 << 20
DENSE_ROWS, DENSE_WIDTH = 8192, 1024  # int64: 64 MiB
RAGGED_ROWS = 512


class Bench:
    """An arena, its client's map, and a stopwatch."""

    def __init__(self, arena: Arena, arena_map: ArenaMap, repeats: int) -> None:
        self.arena = arena
        self.map = arena_map
        self.repeats = repeats
        self._next = 1

    def put(self, fields: dict[str, Any], rows: int) -> BlockPlace:
        """Encode and write a block; what a client does but for its two requests."""
        batch = codec.encode(fields, rows)
        place = self.arena.grant(self._next, batch.nbytes, 1)
        if place is None:
            raise MemoryError("the arena is full")
        self._next += 1
        batch.write_into(self.map.writer(place), place.block_id)
        self.arena.fill(place.block_id)
        return place

    def reader(self, place: BlockPlace, integrity: Integrity) -> BlockReader:
        self.arena.pin(place.block_id, 1)
        return self.map.reader(place, integrity, lambda _: self._unpin(place.block_id))

    def _unpin(self, block_id: int) -> None:
        self.arena.unpin(block_id, 1)

    def free(self, place: BlockPlace) -> None:
        self.arena.release(place.block_id)

    def seconds(self, action: Callable[[], Any], after: Callable[[Any], None] = lambda _: None) -> float:
        """Return the median time of ``action``; ``after`` clears up and is not counted."""
        times = []
        for _ in range(self.repeats):
            start = time.perf_counter()
            result = action()
            times.append(time.perf_counter() - start)
            after(result)
        return statistics.median(times[self.repeats // 4 :])


def show(name: str, nbytes: int, seconds: float, memcpy: float, target: str) -> None:
    ratio = memcpy / seconds
    rate = nbytes / seconds / 1e9
    sys.stdout.write(f"{name:34} {seconds * 1e3:9.3f} ms {rate:9.2f} GB/s {ratio:8.2f} x memcpy   target {target}\n")


def memcpy_time(bench: Bench, nbytes: int) -> float:
    """Time a copy of ``nbytes`` private bytes into warm shared memory."""
    place = bench.arena.grant(10**9, nbytes, 1)
    if place is None:
        raise MemoryError("the arena is full")
    target = bench.map.writer(place)
    source = np.ones(nbytes, np.uint8)
    np.copyto(target, source)
    taken = bench.seconds(lambda: np.copyto(target, source))
    bench.arena.abandon(place.block_id)
    return taken


def dense(bench: Bench) -> None:
    fields = {"x": torch.randint(0, 1 << 40, (DENSE_ROWS, DENSE_WIDTH))}
    nbytes = DENSE_ROWS * DENSE_WIDTH * 8
    bench.free(bench.put(fields, DENSE_ROWS))
    memcpy = memcpy_time(bench, nbytes)
    show("dense put", nbytes, bench.seconds(lambda: bench.put(fields, DENSE_ROWS), bench.free), memcpy, ">= 0.5 x")
    place = bench.put(fields, DENSE_ROWS)
    everything = [Source(["x"], [0] * DENSE_ROWS, list(range(DENSE_ROWS)))]

    def read(integrity: Integrity, sources: list[Source], rows: int, *, forget: bool) -> Any:
        if forget:
            bench.map.forget_verified()
        with bench.reader(place, integrity) as reader:
            return decode.gather([reader], sources, rows)

    show(
        "dense whole read, header",
        nbytes,
        bench.seconds(lambda: read("header", everything, DENSE_ROWS, forget=False)),
        memcpy,
        ">= 20 x",
    )
    show(
        "dense whole read, full",
        nbytes,
        bench.seconds(lambda: read("full", everything, DENSE_ROWS, forget=True)),
        memcpy,
        ">= 1.5 x",
    )
    half = np.random.default_rng(0).permutation(DENSE_ROWS)[: DENSE_ROWS // 2].tolist()
    some = [Source(["x"], [0] * len(half), half)]
    half_memcpy = memcpy_time(bench, nbytes // 2)
    show(
        "dense gather of a random half",
        nbytes // 2,
        bench.seconds(lambda: read("full", some, len(half), forget=False)),
        half_memcpy,
        ">= 0.3 x",
    )
    bench.free(place)


def ragged(bench: Bench) -> None:
    lengths = np.random.default_rng(0).integers(64, 1025, RAGGED_ROWS).tolist()
    dtypes = {"input_ids": torch.int64, "logprobs": torch.float32, "advantages": torch.float32, "mask": torch.bool}
    fields = {name: [torch.ones(n, dtype=dtype) for n in lengths] for name, dtype in dtypes.items()}
    jagged = {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in fields.items()}
    nbytes = sum(row.nbytes for rows in fields.values() for row in rows)
    memcpy = memcpy_time(bench, nbytes)
    for kind, given in (("lists", fields), ("jagged", jagged)):
        seconds = bench.seconds(lambda given=given: bench.put(given, RAGGED_ROWS), bench.free)  # type: ignore[misc]
        show(f"ragged put, {kind}", nbytes, seconds, memcpy, ">= 2 GB/s")
    place = bench.put(jagged, RAGGED_ROWS)

    def read(index: list[int], *, forget: bool) -> Any:
        if forget:
            bench.map.forget_verified()
        with bench.reader(place, "full") as reader:
            return decode.gather([reader], [Source(list(fields), [0] * len(index), index)], len(index))

    order = list(range(RAGGED_ROWS))
    show("ragged whole read, full", nbytes, bench.seconds(lambda: read(order, forget=True)), memcpy, ">= 2 GB/s")
    shuffled = np.random.default_rng(1).permutation(RAGGED_ROWS).tolist()
    show("ragged gather, shuffled", nbytes, bench.seconds(lambda: read(shuffled, forget=False)), memcpy, ">= 1 GB/s")
    half = shuffled[: RAGGED_ROWS // 2]
    half_bytes = sum(rows[i].nbytes for rows in fields.values() for i in half)
    show("ragged gather, half", half_bytes, bench.seconds(lambda: read(half, forget=False)), memcpy / 2, ">= 1 GB/s")
    bench.free(place)


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    directory = SHM if SHM.is_dir() else Path(tempfile.gettempdir())
    path = directory / f"penstock-bench{os.getpid()}-1"
    with Arena.create(path, 1, 512 * MIB, 256 * MIB) as arena:
        bench = Bench(arena, ArenaMap.open(path, arena.capacity), repeats)
        dense(bench)
        ragged(bench)


if __name__ == "__main__":
    main()
