"""The client's points: reached in order, and what each says of the plane is so at that moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneUnavailable
from penstock.plane.local import LocalDataPlaneClient
from penstock.points import install

KEYS = ["a", "b"]
QUICK = PlaneConfig(linger_s=0.2)


class World:
    """A client, and another that looks at the plane whenever the first is at a point."""

    def __init__(self, client: LocalDataPlaneClient, witness: LocalDataPlaneClient) -> None:
        self.client, self.witness = client, witness

    @contextmanager
    def watched(self, look: Callable[[], object]) -> Iterator[list[tuple[str, object]]]:
        """Within, note each point and what is seen there; what the witness itself reaches is not looked at."""
        seen: list[tuple[str, object]] = []
        looking = False

        def hook(point: str) -> None:
            nonlocal looking
            if not looking:
                looking = True
                seen.append((point, look()))
                looking = False

        restore = install(hook)
        try:
            yield seen
        finally:
            restore()

    def rows(self) -> int:
        return sum(len(group.keys) for group in self.witness.list_metadata("p"))

    def committed(self) -> bool:
        return all(group.committed for group in self.witness.list_metadata("p"))

    def books(self) -> tuple[int, int, int]:
        """Rows in flight, leased, trained."""
        (found,) = self.witness.audit("p").partitions
        return found.in_flight, found.leased, found.trained

    def pins(self) -> int:
        return self.witness.status().counters["arena.pins"]

    def put(self) -> None:
        tags = [{"group_id": "g", "committed": False}] * len(KEYS)
        self.client.put_samples(KEYS, "p", {"x": torch.arange(2)}, tags)

    def commit(self) -> None:
        self.client.put_samples(KEYS, "p", tags=[{"committed": True}] * len(KEYS))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with LocalDataPlaneClient(tmp_path, plane=QUICK) as client, LocalDataPlaneClient(tmp_path, plane=QUICK) as witness:
        client.register_partition("p", ["x"], 2, ["score", "train"], grpo_group_size=2)
        yield World(client, witness)


def test_a_put_is_visible_from_its_commit_on(world: World) -> None:
    """Asked for room, granted, copied: nobody sees a row; committed: everybody sees all."""
    with world.watched(world.rows) as seen:
        world.put()
    assert seen == [("client.putting", 0), ("client.granted", 0), ("client.copied", 0), ("client.put", 2)]


def test_tags_are_there_once_they_are_answered(world: World) -> None:
    """A put of tags alone changes the group between its two points."""
    world.put()
    with world.watched(world.committed) as seen:
        world.commit()
    assert seen == [("client.tagging", False), ("client.tagged", True)]


def test_a_claim_leases_before_its_caller_knows(world: World) -> None:
    """At the point the rows are leased; a caller that dies there gives them back."""
    world.put()
    world.commit()
    with world.watched(world.books) as seen:
        world.client.claim_meta("p", "train", ["x"], 2)
    assert seen == [("client.claimed", (0, 2, 0))]


def test_a_failure_at_the_claims_point_gives_the_rows_back(world: World) -> None:
    """Who does not get past the point was never handed anything."""
    world.put()
    world.commit()

    def fail(point: str) -> None:
        if point == "client.claimed":
            raise DataPlaneUnavailable(point)

    restore = install(fail)
    with pytest.raises(DataPlaneUnavailable, match=r"client.claimed"):
        world.client.claim_meta("p", "train", ["x"], 2)
    restore()
    assert world.witness.claim_meta("p", "train", ["x"], 2, timeout_s=10.0).size == 2


def test_a_read_pins_before_it_looks(world: World) -> None:
    """Nothing is pinned when it is about to be sent; the block is from its answer on."""
    world.put()
    with world.watched(world.pins) as seen:
        world.client.get_samples(KEYS, "p", ["x"])
    assert seen[:2] == [("client.reading", 0), ("client.pinned", 1)]
    assert [point for point, _ in seen[2:]] == ["client.read"]  # small columns are copied: they need no pin any more


def test_an_ack_or_pop_is_done_between_its_points(world: World) -> None:
    """Before, the rows are leased; after, they are trained; of the first task an ack removes nothing."""
    world.put()
    world.commit()
    with world.watched(world.books) as seen:
        world.client.ack(world.client.claim_meta("p", "score", ["x"], 2))
        meta = world.client.claim_meta("p", "train", ["x"], 2)
        world.client.pop(meta.sample_ids, "p", lease=meta.lease)
    assert seen == [
        ("client.claimed", (2, 0, 0)),
        ("client.acking", (2, 0, 0)),
        ("client.acked", (2, 0, 0)),
        ("client.claimed", (0, 2, 0)),
        ("client.popping", (0, 2, 0)),
        ("client.popped", (0, 0, 2)),
    ]
