"""The reference client at its edges; what it does is in the conformance suite and in ``test_model``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from penstock.errors import BadArgument
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.records import KVBatchMeta

_ODD: Any = ["p"]  # no name, and not hashable either

_CALLS: list[Callable[[NoOpDataPlaneClient], object]] = [
    lambda plane: plane.register_partition("q", ["x"], 1, ["t"], enums=["a"]),  # type: ignore[arg-type]
    lambda plane: plane.register_partition("q", ["x"], 1, ["t"], group_policy="wait"),  # type: ignore[arg-type]
    lambda plane: plane.claim_meta(_ODD, "train", ["x"], 1),
    lambda plane: plane.put_samples(["a"], _ODD, {"x": torch.zeros(1)}),
    lambda plane: plane.get_samples(["a"], _ODD, ["x"]),
    lambda plane: plane.get_data(KVBatchMeta(_ODD, "train", ["a"], fields=["x"])),
    lambda plane: plane.ack(KVBatchMeta("p", _ODD, ["a"])),
    lambda plane: plane.check_consumption_status(_ODD, ["train"]),
    lambda plane: plane.list_metadata("p", min_weight_version="new"),  # type: ignore[arg-type]
    lambda plane: plane.list_metadata("p", max_weight_version=1.5),  # type: ignore[arg-type]
    lambda plane: plane.list_metadata("p", ready_for=_ODD),
    lambda plane: plane.list_metadata("p", after=3),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("call", _CALLS)
def test_arguments_of_a_wrong_type_are_refused_as_the_engine_does(
    call: Callable[[NoOpDataPlaneClient], object],
) -> None:
    """They are the caller's mistake by name, never a raw error of the model."""
    with NoOpDataPlaneClient() as plane:
        plane.register_partition("p", ["x"], 2, ["train"])
        plane.put_samples(["a"], "p", {"x": torch.zeros(1)}, [{"committed": True, "weight_version": 1}])
        with pytest.raises(BadArgument):
            call(plane)


def test_truth_is_lenient_and_columns_may_come_from_an_iterator() -> None:
    """A filter of 1 is a filter of True; the columns of a read are looked at once."""
    with NoOpDataPlaneClient() as plane:
        plane.register_partition("p", ["x"], 2, ["train"])
        plane.put_samples(["a"], "p", {"x": torch.zeros(1)}, [{"committed": True}])
        assert [g.keys for g in plane.list_metadata("p", committed=1)] == [["a"]]  # type: ignore[arg-type]
        _, meta = plane.get_samples(["a"], "p", iter(["x"]), on_failed="drop")  # type: ignore[arg-type]
        assert meta.fields == ["x"]
