"""What becomes of a group whose producer died, as clients of a real plane see it: waited for, partial, or dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.config import ClientConfig
from penstock.errors import RowRemoved
from penstock.plane.local import LocalDataPlaneClient
from penstock.records import DataPlaneGroupMeta, GroupPolicy
from tests.server.harness import ClientProcess, PlaneProcess, eventually

torch = pytest.importorskip("torch")

DEADLINE_S = 1.0  # of the policies
GRACE_S = 4.0  # far longer than a look at what there is before it takes

PRODUCER = """
import torch
from penstock.config import ClientConfig
from penstock.plane.local import LocalDataPlaneClient
plane = LocalDataPlaneClient(client.data_dir, config=ClientConfig(owner="rollout-1"), start=False)
tags = {"group_id": "g", "expected_num_keys": 4, "committed": True}
plane.put_samples(["g_0", "g_1"], "train", {"x": torch.ones(2, 4)}, [tags] * 2)
plane.put_samples(["g_2"], "train", {"x": torch.ones(1, 4)}, [tags | {"committed": False}])
say("ready")
time.sleep(600)
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[LocalDataPlaneClient]:
    plane = PlaneProcess(tmp_path / "plane", abandon_grace_s=GRACE_S)
    with plane, LocalDataPlaneClient(tmp_path / "plane", config=ClientConfig(owner="trainer"), start=False) as made:
        yield made


def lose_the_producer(client: LocalDataPlaneClient, policy: GroupPolicy | None) -> None:
    """Three of four rows are put, one of them not committed; then their producer is killed, and the plane knows."""
    client.register_partition("train", ["x"], 8, ["train"], group_policy=policy)
    with ClientProcess(client.data_dir, PRODUCER) as producer:
        assert producer.line() == "ready"
        producer.kill()
    eventually("its session ends", lambda: all(s.owner != "rollout-1" for s in client.status().sessions))


def group(client: LocalDataPlaneClient) -> DataPlaneGroupMeta:
    (found,) = client.list_metadata("train")
    return found


def is_gone(client: LocalDataPlaneClient) -> bool:
    return client.list_metadata("train") == []


def evicted(client: LocalDataPlaneClient) -> dict[str, int]:
    report = client.audit("train")
    assert report.residue == 0
    return report.partitions[0].evicted


def claim(client: LocalDataPlaneClient) -> list[str]:
    meta = client.claim_meta("train", "train", ["x"], 8, blocking=False, whole_groups=True)
    return meta.sample_ids


def put_late(client: LocalDataPlaneClient) -> None:
    tags = [{"group_id": "g", "expected_num_keys": 4, "committed": True}]
    client.put_samples(["g_3"], "train", {"x": torch.ones(1, 4)}, tags)


def test_wait_hands_out_nothing_and_gives_the_group_up_with_its_producer(client: LocalDataPlaneClient) -> None:
    """Listed, not whole, not counted; after the grace evicted as abandoned, and its late sibling is refused."""
    lose_the_producer(client, None)
    found = group(client)
    assert (found.keys, found.is_complete, found.usable_keys) == (["g_0", "g_1", "g_2"], False, [])
    assert client.depth("train") == 0
    assert claim(client) == []
    eventually("it is given up", lambda: is_gone(client))
    assert evicted(client) == {"abandoned": 3}
    with pytest.raises(RowRemoved) as late:
        put_late(client)
    assert late.value.keys == ["g_3"]


def test_drop_evicts_the_group_at_its_deadline(client: LocalDataPlaneClient) -> None:
    """With a reason that the audit shows; nothing was ever handed out of it, and its late sibling is refused."""
    lose_the_producer(client, GroupPolicy(deadline_s=DEADLINE_S, on_deadline="drop"))
    assert claim(client) == []
    eventually("it is dropped", lambda: is_gone(client))
    assert evicted(client) == {"incomplete": 3}
    assert client.depth("train") == 0
    assert claim(client) == []
    with pytest.raises(RowRemoved) as late:
        put_late(client)
    assert late.value.keys == ["g_3"]


def test_partial_hands_out_the_committed_rows_with_a_mask_tag(client: LocalDataPlaneClient) -> None:
    """A whole-group claim gets them tagged; what was never committed is given up with its producer."""
    lose_the_producer(client, GroupPolicy(deadline_s=DEADLINE_S, on_deadline="partial", min_ready=2))
    eventually("it is released", lambda: group(client).partial_keys)
    assert client.depth("train") == 0
    meta = client.claim_meta("train", "train", ["x"], 8, blocking=False, whole_groups=True)
    assert meta.sample_ids == ["g_0", "g_1"]
    assert [tag["partial"] for tag in meta.tags or []] == [True, True]
    columns: Any = client.get_data(meta)
    assert columns["x"].sum() == 8.0
    client.ack(meta)
    eventually("the rest is given up", lambda: is_gone(client))
    assert (evicted(client), client.audit("train").partitions[0].trained) == ({"abandoned": 1}, 2)


def test_a_controller_sees_and_takes_a_partial_group_by_its_keys(client: LocalDataPlaneClient) -> None:
    """Metadata alone tells it what the policy has released; a late sibling goes the same way, marked as well."""
    lose_the_producer(client, GroupPolicy(deadline_s=DEADLINE_S, on_deadline="partial", min_ready=2))
    eventually("it is released", lambda: group(client).usable_keys)
    (found,) = client.list_metadata("train", committed=True, ready_for="train")
    assert (found.is_complete, found.partial_keys, found.usable_keys) == (False, ["g_0", "g_1"], ["g_0", "g_1"])
    meta = client.claim_meta("train", "train", ["x"], 1, keys=found.usable_keys, whole_groups=True)
    assert [tag["partial"] for tag in meta.tags or []] == [True, True]
    put_late(client)
    client.pop(meta.sample_ids, "train", lease=meta.lease)
    late = client.claim_meta("train", "train", ["x"], 1, keys=group(client).usable_keys, whole_groups=True)
    assert (late.sample_ids, [tag["partial"] for tag in late.tags or []]) == (["g_3"], [True])


def test_partial_drops_a_group_with_too_few_rows(client: LocalDataPlaneClient) -> None:
    """Fewer committed rows than ``min_ready`` at the deadline."""
    lose_the_producer(client, GroupPolicy(deadline_s=DEADLINE_S, on_deadline="partial", min_ready=3))
    eventually("it is dropped", lambda: is_gone(client))
    assert evicted(client) == {"incomplete": 3}
    with pytest.raises(RowRemoved):
        put_late(client)
