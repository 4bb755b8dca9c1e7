"""What a batch of values lives through on a real Mooncake, and how long it takes: ours, the field's retries, none.

    python benchmarks/store_faults.py [--only reset-3s-get] [--output FILE]   # needs penstock[mooncake], TransferQueue

Every cell is a cluster of its own (a master, segment owners, a proxy before each), one fault of
``penstock.testing.store_faults`` and one call under a deadline of 30 s. "ours", "field" and "none" are the same
``MooncakeStore``: its own policy, the ``field`` preset (one try and three more, a second apart), one try.
"TransferQueue" is its own client, which retries as ``field`` does, has no deadline, no copies, and one exception for a
whole batch; it is given the bytes that ours stores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transfer_queue.storage.clients.mooncake_client import MooncakeStoreClient

from penstock.errors import DataPlaneReadError, DataPlaneWriteError
from penstock.payload.block import Bytes
from penstock.payload.stores.contract import Ok, Outcome
from penstock.payload.stores.envelope import HEADER_BYTES, as_pieces, copy_out, pack_into
from penstock.retry import FIELD, NONE, Deadline
from penstock.testing.store_faults import FAULTS, Bed, StoreFault, Verdict

MIB = 1 << 20


class TransferQueue:
    """Its client, as far as a trial needs a store."""

    def __init__(self, bed: Bed, fault: StoreFault) -> None:
        settings = {
            "local_hostname": "127.0.0.1",
            "metadata_server": bed.cluster.metadata_url,
            "master_server_address": bed.cluster.master_address,
            "global_segment_size": 0,
            "local_buffer_size": 64 * MIB,
        }
        self._client = MooncakeStoreClient(settings)
        self._nbytes = fault.nbytes

    def put_many(self, keys: Sequence[str], values: Sequence[bytes], deadline: Deadline) -> list[Outcome]:
        try:
            self._client.put(list(keys), [_sealed(key, value) for key, value in zip(keys, values, strict=True)])
        except RuntimeError as error:
            raise DataPlaneWriteError(f"RuntimeError: {str(error)[-120:]}") from error
        return [Ok(nbytes=len(value)) for value in values]

    def get_many(self, keys: Sequence[str], sizes: Sequence[int] | None, deadline: Deadline) -> list[Outcome]:
        count, shape = len(keys), (self._nbytes + HEADER_BYTES,)
        try:
            found = self._client.get(list(keys), [shape] * count, [torch.uint8] * count, [None] * count)
        except RuntimeError as error:
            raise DataPlaneReadError(f"RuntimeError: {str(error)[-120:]}") from error
        views = [copy_out(value.numpy(), key) for key, value in zip(keys, found, strict=True)]
        return [Ok(memoryview(b"damaged") if isinstance(view, str) else view, self._nbytes) for view in views]

    def close(self) -> None:
        self._client.close()


def _sealed(key: str, value: bytes) -> torch.Tensor:
    """What we would store: others read it."""
    memory: Bytes = np.empty(len(value) + HEADER_BYTES, np.uint8)
    pack_into(memory, key, as_pieces(value))
    return torch.from_numpy(memory)


OPEN: dict[str, Callable[[Bed, StoreFault], Any]] = {
    "ours": lambda bed, fault: bed.open(replicas=fault.replicas),
    "field": lambda bed, fault: bed.open(FIELD, replicas=fault.replicas),
    "none": lambda bed, fault: bed.open(NONE, replicas=fault.replicas),
    "TransferQueue": TransferQueue,
}


def run(fault: StoreFault, who: str) -> Verdict:
    """Have one cell of the table."""
    with tempfile.TemporaryDirectory(prefix="penstock-faults-") as folder, Bed.of(fault, Path(folder)) as bed:
        store = OPEN[who](bed, fault)
        try:
            return bed.trial(store, fault)
        finally:
            store.close()


def cell(verdict: Verdict) -> str:
    mark = "**all**" if verdict.survived else f"{verdict.good} of {verdict.keys}"
    told = "" if verdict.survived else " " + (verdict.raised.split(":")[0] or ", ".join(verdict.words))
    wrong = f" **{verdict.wrong} WRONG**" if verdict.wrong else ""
    return f"{mark}, {verdict.elapsed_s:.1f} s{told}{wrong}"


def show(rows: dict[str, dict[str, Verdict]]) -> None:
    names = list(OPEN)
    print(f"| fault | call | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for fault in FAULTS:
        if row := rows.get(fault.name):
            cells = [cell(row[name]) if name in row else "" for name in names]
            print(f"| {fault.sentence} | {fault.call} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a fault's name")
    parser.add_argument("--who", action="append", choices=list(OPEN))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows: dict[str, dict[str, Verdict]] = {}
    for fault in FAULTS:
        if args.only and fault.name not in args.only:
            continue
        for who in args.who or OPEN:
            began = time.monotonic()
            verdict = rows.setdefault(fault.name, {})[who] = run(fault, who)
            took = time.monotonic() - began
            print(f"{fault.name:20} {who:14} {verdict} [{verdict.struck}; {took:.0f} s]", file=sys.stderr, flush=True)
    show(rows)
    if args.output:
        packages = ("penstock", "mooncake-transfer-engine-non-cuda", "TransferQueue")
        machine = {"processor": platform.processor(), "cores": os.cpu_count(), "python": sys.version.split()[0]}
        told = {name: {who: dataclasses.asdict(one) for who, one in row.items()} for name, row in rows.items()}
        whole = {"machine": machine, "versions": {name: version(name) for name in packages}, "faults": told}
        args.output.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
