"""One peer in a process of its own: takes turns when told, over a pair of pipes, one JSON object a line.

Invariants: the end of the orders is an order to end; a failure is an answer; what libraries print goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from typing import Any

from penstock.ops.bench.batch import Batch, make_batch
from penstock.ops.bench.peer import Laps, Peer
from penstock.ops.bench.peers import make_peer
from penstock.ops.machine import package_version


class _Worker:
    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._batches: dict[str, Batch] = {}

    def carry_out(self, order: dict[str, Any]) -> dict[str, Any]:
        if order["do"] == "open":
            self._peer.open()
            torch = {"torch": package_version("torch") or "?"}
            return {"versions": {**self._peer.versions(), **torch}}
        batch = self._batches.setdefault(order["batch"], make_batch(order["batch"]))
        laps = Laps()
        self._peer.turn(batch, order["turn"], laps)
        return {"seconds": laps.seconds, "nbytes": batch.nbytes, "half_nbytes": batch.half.nbytes}


def main() -> None:
    """Answer orders until they end."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("peer")
    arguments.add_argument("answers", type=int, help="descriptor")
    chosen = arguments.parse_args()
    peer = make_peer(chosen.peer)
    worker = _Worker(peer)
    try:
        with os.fdopen(chosen.answers, "w") as answers:
            for line in sys.stdin:
                print(json.dumps(_answer(worker, line)), file=answers, flush=True)
    finally:
        peer.close()


def _answer(worker: _Worker, line: str) -> dict[str, Any]:
    try:
        return worker.carry_out(json.loads(line))
    except Exception as error:  # noqa: BLE001  # top frame of a foreign library's process: its failure is the answer
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
