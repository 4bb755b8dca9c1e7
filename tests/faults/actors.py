"""A producer and a consumer that know the plane by its public contract only, and log what they do for the checker.

What a row holds follows from its key alone, so that any life of a producer can finish what an earlier one began, and a
consumer's hash can be compared with what was meant rather than with what was stored.
"""

from __future__ import annotations

import itertools
import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import msgspec
import torch
import xxhash

from penstock.config import ClientConfig, PlaneConfig
from penstock.errors import DataPlaneTimeout, DataPlaneUnavailable, LeaseLost
from penstock.plane.client import PlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.records import KVBatchMeta
from penstock.testing.checker import EventLog, Moment, Put, Trained, read_log
from penstock.testing.faults import reached

if TYPE_CHECKING:
    from tensordict import TensorDict

PARTITION, TASK = "train", "train"
FIELDS = ["input_ids", "logprobs"]
GROUP = 4
FIRED = "every-fault-has-fired"
PATIENCE_S = 30.0
_PAUSE_S = 0.05  # between groups that are put only to keep things going until the last fault has fired
PLANE = PlaneConfig(heartbeat_s=0.25, dead_after_s=1.0, resume_grace_s=1.0, linger_s=0.2)

T = TypeVar("T")
Join: TypeAlias = Callable[[Path], PlaneClient]  # how a process comes to the plane of a run
torch.nested.nested_tensor([torch.zeros(1)], layout=torch.jagged)  # the first one imports for seconds: once is enough


def client_of(folder: Path) -> PlaneClient:
    """Join the plane of a run, starting it where none runs."""
    return registered(LocalDataPlaneClient(folder / "plane", config=ClientConfig(timeout_s=5.0), plane=PLANE))


def registered(client: PlaneClient) -> PlaneClient:
    """Register what the actors use, and return the client."""
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


def produce(life: int, folder: str, name: str, groups: int, join: Join = client_of) -> None:
    """Put ``groups`` groups, more until every fault has fired, and what earlier lives got no answer for."""
    root = Path(folder)
    earlier = [e for path in root.glob(f"log-{name}-*") for e in read_log(path) if isinstance(e, Put)]
    begun = {entry.key for entry in earlier}
    answered = {entry.key for entry in earlier if entry.moment == "after"}
    with EventLog(root / f"log-{name}-{life}") as log, patiently(lambda: join(root)) as client:
        for group in itertools.count():
            keys = keys_of(name, group)
            if group >= groups and not begun.intersection(keys):
                if (root / FIRED).exists():
                    break
                time.sleep(_PAUSE_S)
            if not answered.issuperset(keys):
                _put(client, log, keys, f"{name}{group}")
    (root / f"done-{name}").touch()


def _put(client: PlaneClient, log: EventLog, keys: list[str], group_id: str) -> None:
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


class Step(msgspec.Struct):
    """A commit under way, written down before it is made, so that the next life can find out how it ended."""

    commit: int
    rows: dict[str, str]  # key -> hash of what was read
    lease: list[str]

    def entries(self, moment: Moment) -> list[Trained]:
        return [Trained(moment, key, xxh3, 0, self.commit, 0) for key, xxh3 in self.rows.items()]


def consume(life: int, folder: str, name: str, producers: list[str], join: Join = client_of) -> None:
    """Train groups until all producers are done and the plane's books say that every row is trained."""
    root = Path(folder)
    intent = root / f"intent-{name}"
    with EventLog(root / f"log-{name}-{life}") as log, patiently(lambda: join(root)) as client:
        if intent.exists():
            _commit(client, log, msgspec.json.decode(intent.read_bytes(), type=Step))
        commit = life << 32
        while not all((root / f"done-{who}").exists() for who in producers) or not _all_trained(client):
            commit += 1
            _train(client, log, intent, commit)


def _all_trained(client: PlaneClient) -> bool:
    (books,) = patiently(lambda: client.audit(PARTITION)).partitions
    return books.trained >= books.put


def _train(client: PlaneClient, log: EventLog, intent: Path, commit: int) -> None:
    try:
        meta = client.claim_meta(PARTITION, TASK, FIELDS, 2 * GROUP, timeout_s=0.5, whole_groups=True)
    except (DataPlaneTimeout, DataPlaneUnavailable):
        return
    reached("after_claim")
    step = Step(commit, patiently(lambda: _read(client, meta)), list(meta.lease or ()))
    draft = intent.with_suffix(".draft")
    draft.write_bytes(msgspec.json.encode(step))
    draft.replace(intent)
    _commit(client, log, step)


def _read(client: PlaneClient, meta: KVBatchMeta) -> dict[str, str]:
    columns: TensorDict = client.get_data(meta)
    rows = zip(*(columns[name].unbind() for name in FIELDS), strict=True)
    return {key: digest(*row) for key, row in zip(meta.sample_ids, rows, strict=True)}


def _commit(client: PlaneClient, log: EventLog, step: Step) -> None:
    """Make a step count, or find out that it did, or that its rows were given to somebody else."""
    log.write(step.entries("before"))
    reached("before_pop")
    try:
        patiently(lambda: client.pop(list(step.rows), PARTITION, lease=step.lease))
    except LeaseLost:
        return  # we were taken for dead before we could commit
    reached("after_pop")
    log.write(step.entries("after"))
