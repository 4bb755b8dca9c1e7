"""A producer and a consumer that know the plane by its public contract only, and log what they do for the checker.

What a row holds follows from its key alone, so that any life of a producer can finish what an earlier one began, and a
consumer's hash can be compared with what was meant rather than with what was stored.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import xxhash
from penstock.plane.local import LocalDataPlaneClient

from penstock.config import ClientConfig, PlaneConfig
from penstock.errors import DataPlaneNotReady, DataPlaneTimeout, DataPlaneUnavailable, LeaseLost
from penstock.testing.checker import EventLog, Put, Trained, read_log
from penstock.testing.faults import reached

PARTITION, TASK = "train", "train"
FIELDS = ["input_ids", "logprobs"]
GROUP = 4
PATIENCE_S = 30.0
PLANE = PlaneConfig(heartbeat_s=0.25, dead_after_s=1.5, resume_grace_s=1.5, linger_s=0.5)

T = TypeVar("T")


def client_of(folder: Path) -> LocalDataPlaneClient:
    """Join the plane of a run, starting it where none runs."""
    client = LocalDataPlaneClient(folder / "plane", config=ClientConfig(timeout_s=5.0), plane=PLANE)
    client.register_partition(PARTITION, FIELDS, 1000, [TASK], grpo_group_size=GROUP)
    return client


def patiently(call: Callable[[], T]) -> T:
    """Repeat a call that is safe to repeat until it succeeds; what the plane promises is that this is enough."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except (DataPlaneUnavailable, DataPlaneTimeout):
            if time.monotonic() > end:
                raise


def row_of(key: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns of a row."""
    made = random.Random(zlib.crc32(key.encode()))
    length = made.randint(1, 200)
    ids = torch.tensor([made.randrange(1 << 40) for _ in range(length)])
    return ids, torch.tensor([made.random() for _ in range(length)])


def digest(ids: torch.Tensor, logprobs: torch.Tensor) -> str:
    return xxhash.xxh3_64_hexdigest(ids.numpy().tobytes() + b"|" + logprobs.numpy().tobytes())


def keys_of(name: str, group: int) -> list[str]:
    return [f"{name}{group}_g{i}" for i in range(GROUP)]


# -- the producer -----------------------------------------------------------------------------------------------------


def produce(life: int, folder: str, name: str, groups: int) -> None:
    """Put ``groups`` groups, those that earlier lives got no answer for included."""
    root = Path(folder)
    answered = {
        entry.key
        for path in root.glob(f"log-{name}-*")
        for entry in read_log(path)
        if isinstance(entry, Put) and entry.moment == "after"
    }
    with EventLog(root / f"log-{name}-{life}") as log, patiently(lambda: client_of(root)) as client:
        for group in range(groups):
            keys = keys_of(name, group)
            if not answered.issuperset(keys):
                _put(client, log, keys, f"{name}{group}")


def _put(client: LocalDataPlaneClient, log: EventLog, keys: list[str], group_id: str) -> None:
    rows = [row_of(key) for key in keys]
    columns = {"input_ids": [ids for ids, _ in rows], "logprobs": [logprobs for _, logprobs in rows]}
    tags = [{"group_id": group_id, "committed": True, "weight_version": 0} for _ in keys]
    meant = [digest(*row) for row in rows]
    log.write(Put("before", key, xxh3, 0) for key, xxh3 in zip(keys, meant, strict=True))
    reached("before_put")
    patiently(lambda: client.put_samples(keys, PARTITION, columns, tags))
    reached("after_put")
    log.write(Put("after", key, xxh3, 0) for key, xxh3 in zip(keys, meant, strict=True))


# -- the consumer -----------------------------------------------------------------------------------------------------


def consume(life: int, folder: str, name: str, expected: int) -> None:
    """Train groups until the plane's books say that ``expected`` rows are trained."""
    root = Path(folder)
    with EventLog(root / f"log-{name}-{life}") as log, patiently(lambda: client_of(root)) as client:
        commit = 0
        while not _all_trained(client, expected):
            commit += 1
            _train(client, log, (life << 32) + commit)


def _all_trained(client: LocalDataPlaneClient, expected: int) -> bool:
    (books,) = patiently(lambda: client.audit(PARTITION)).partitions
    return books.trained >= expected


def _train(client: LocalDataPlaneClient, log: EventLog, commit: int) -> None:
    try:
        meta = client.claim_meta(PARTITION, TASK, FIELDS, 4 * GROUP, timeout_s=0.5, whole_groups=True)
    except (DataPlaneTimeout, DataPlaneUnavailable, DataPlaneNotReady):
        return
    if not meta.size:
        return
    reached("after_claim")
    columns = patiently(lambda: client.get_data(meta))
    read = [digest(*row) for row in zip(*(columns[name].unbind() for name in FIELDS), strict=True)]
    entries = [Trained("before", key, xxh3, 0, commit, 0) for key, xxh3 in zip(meta.sample_ids, read, strict=True)]
    log.write(entries)
    reached("before_pop")
    try:
        patiently(lambda: client.pop(meta.sample_ids, PARTITION))
    except LeaseLost:
        return  # we were taken for dead: somebody else trains these rows
    reached("after_pop")
    log.write(Trained("after", e.key, e.xxh3, 0, e.commit, 0) for e in entries)
