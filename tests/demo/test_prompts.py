"""The book of prompts: one live attempt each, none skipped, none forgotten."""

from __future__ import annotations

import pytest

from penstock.demo.messages import PromptRef, group_of
from penstock.demo.prompts import Prompts
from penstock.records import DataPlaneGroupMeta


def group(ref: PromptRef, *, committed: bool = True, keys: int = 2, version: int = 5) -> DataPlaneGroupMeta:
    name = group_of(ref)
    rows = [f"{name}_g{i}" for i in range(keys)]
    return DataPlaneGroupMeta("p", name, rows, weight_version=version, committed=committed, expected_num_keys=2)


def test_prompts_are_opened_in_order_up_to_the_limit() -> None:
    """Each is given out once; beyond the limit nobody gets anything."""
    book = Prompts(3)
    assert book.take("w", 2) == [PromptRef(0, 0), PromptRef(1, 0)]
    assert book.take("v", 2) == [PromptRef(2, 0)]
    assert book.take("w", 2) == []
    assert len(book) == 3


def test_an_attempt_that_is_nowhere_goes_again_before_new_prompts() -> None:
    """Its worker is gone and the plane does not know its group: it goes again, as the next attempt."""
    book = Prompts(2)
    (first,) = book.take("w", 1)
    assert book.go_again(set()) == 0
    book.put_down("w")
    assert book.go_again(set()) == 1
    assert book.take("v", 2) == [PromptRef(first.index, 1), PromptRef(1, 0)]


def test_an_attempt_whose_group_is_in_the_plane_stays() -> None:
    """A worker that died after its commit has done its work."""
    book = Prompts(1)
    (ref,) = book.take("w", 1)
    book.put_down("w")
    assert book.go_again({group_of(ref)}) == 0
    assert book.reason_to_evict(group(ref), 0) is None


@pytest.mark.parametrize("half", [{"committed": False}, {"keys": 1}])
def test_an_unfinished_group_is_abandoned_once_its_worker_is_gone(half: dict[str, int]) -> None:
    """While the worker is at it, it is only unfinished."""
    book = Prompts(1)
    (ref,) = book.take("w", 1)
    assert book.reason_to_evict(group(ref, **half), 0) is None  # type: ignore[arg-type]
    book.put_down("w")
    assert book.reason_to_evict(group(ref, **half), 0) == "abandoned"  # type: ignore[arg-type]


def test_other_attempts_and_closed_prompts_are_superseded() -> None:
    """Only the live attempt of an open prompt counts; one that waits for a worker has no rows yet."""
    book = Prompts(1)
    (ref,) = book.take("w", 1)
    book.put_down("w")
    book.go_again(set())
    assert book.reason_to_evict(group(ref), 0) == "superseded"
    assert book.reason_to_evict(group(PromptRef(0, 1)), 0) == "superseded"
    assert book.reason_to_evict(group(PromptRef(9, 0)), 0) == "superseded"


def test_a_group_older_than_the_bound_is_stale_unless_it_is_in_training() -> None:
    """What is leased for a step is judged no more."""
    book = Prompts(1)
    (ref,) = book.take("w", 1)
    book.put_down("w")
    assert book.reason_to_evict(group(ref, version=5), 5) is None
    assert book.reason_to_evict(group(ref, version=5), 6) == "stale"
    book.begin_training([group(ref)])
    assert book.reason_to_evict(group(ref, version=5), 6) is None
    assert book.is_training(group(ref))


@pytest.mark.parametrize(("trained", "left"), [(True, 0), (False, 1)])
def test_a_settled_step_closes_its_prompts_only_if_it_was_made(trained: bool, left: int) -> None:
    """Rows of a step that failed are given back, and their prompts stay open."""
    book = Prompts(1)
    (ref,) = book.take("w", 1)
    book.put_down("w")
    book.begin_training([group(ref)])
    assert book.go_again(set()) == 0  # leased rows may be missing from a filtered listing
    book.end_training(trained=trained)
    assert len(book) == left
    assert not book.is_training(group(ref))
