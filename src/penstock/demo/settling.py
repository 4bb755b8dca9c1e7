"""The run has come to rest and no role lives: what is left in the plane is settled, row by row.

Invariants: rows of the last durable step are popped under the tokens of its record, all others are evicted, each with
a reason; an eviction that a controller died in is completed in the log only for rows that are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock.demo.messages import StepRecord
from penstock.demo.spec import PARTITION
from penstock.plane.contract import DataPlaneClient
from penstock.testing.checker import Entry, EventLog, Evicted, Trained

__all__ = ["evict", "settle"]


def settle(client: DataPlaneClient, log: EventLog, record: StepRecord | None, entries: Iterable[Entry]) -> None:
    """Bring plane and logs to rest. ``record``: of the last durable step; ``entries``: of all logs so far."""
    there = _rows(client)
    if record is not None and there & set(record.keys):
        client.pop(record.keys, PARTITION, lease=record.lease)
        there -= set(record.keys)
    evict(client, log, sorted(there), "run over")
    for key, reason in sorted(_unanswered(entries).items()):
        if key not in there:
            log.write([Evicted("after", key, reason)])


def evict(client: DataPlaneClient, log: EventLog, keys: Sequence[str], reason: str) -> None:
    """Evict ``keys``, written down before and after."""
    log.write([Evicted("before", key, reason) for key in keys])
    client.evict(keys, PARTITION, reason)
    log.write([Evicted("after", key, reason) for key in keys])


def _rows(client: DataPlaneClient) -> set[str]:
    return {key for group in client.list_metadata(PARTITION) for key in group.keys}


def _unanswered(entries: Iterable[Entry]) -> dict[str, str]:
    """Return the rows whose eviction was begun, of which nobody wrote down an end of any kind; key -> reason."""
    begun: dict[str, str] = {}
    over: set[str] = set()
    for entry in entries:
        if isinstance(entry, Evicted) and entry.moment == "before":
            begun[entry.key] = entry.reason
        elif isinstance(entry, Evicted | Trained) and entry.moment == "after":
            over.add(entry.key)
    return {key: reason for key, reason in begun.items() if key not in over}
