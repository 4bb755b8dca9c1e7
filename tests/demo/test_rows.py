"""Rows: keys, tags, and the hash that tells one byte's difference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from penstock.demo.rows import group_keys, group_tags, row_hashes, trained_entries
from penstock.demo.spec import GENERATION_FIELDS


def columns() -> dict[str, Tensor]:
    return {
        "prompt": torch.arange(8).view(2, 4),
        "answer": torch.arange(6).view(2, 3),
        "generation_logprobs": torch.linspace(-1, 0, 6).view(2, 3),
        "reward": torch.tensor([0.5, 1.0]),
    }


@pytest.mark.parametrize("field", GENERATION_FIELDS)
def test_any_changed_value_changes_its_rows_hash_alone(field: str) -> None:
    """Each generation column counts; the other row's hash stays."""
    before, changed = row_hashes(columns()), columns()
    changed[field].view(2, -1)[1, 0] += 1
    after = row_hashes(changed)
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_the_hash_is_of_the_values_not_of_their_place_in_memory() -> None:
    """A column that is a view into something larger has the hash of its copy; further columns do not count."""
    strided = {**columns(), "prompt": torch.arange(16).view(2, 8)[:, :4], "prev_logprobs": torch.zeros(2, 3)}
    copied = {name: column.contiguous().clone() for name, column in strided.items()}
    assert row_hashes(strided) == row_hashes(copied)


def test_every_attempt_has_its_own_keys() -> None:
    """Keys of another attempt or prompt never meet."""
    keys = [key for group in ("run.1.0", "run.1.1", "run.2.0", "run.11.0") for key in group_keys(group, 3)]
    assert len(set(keys)) == 12


def test_rows_begin_uncommitted_and_say_what_they_belong_to() -> None:
    """The tags declare the group, its size, the version and the time."""
    tags = group_tags("run.1.2", 3, version=7, now=12.5)
    assert (
        tags
        == [
            {
                "group_id": "run.1.2",
                "expected_num_keys": 3,
                "weight_version": 7,
                "created_at": 12.5,
                "committed": False,
            }
        ]
        * 3
    )


def test_a_step_trains_the_version_before_it() -> None:
    """Staleness is counted from the weights that the step began with."""
    (entry,) = trained_entries("after", 5, ["a"], ["ff"], [3])
    assert (entry.commit, entry.policy_version, entry.weight_version) == (5, 4, 3)
