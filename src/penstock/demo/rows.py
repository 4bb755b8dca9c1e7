"""The rows of the demo: their columns, their tags, and the hash by which the checker knows them.

Invariant: a row's hash is xxh3-64 over the bytes of its generation columns, in ``GENERATION_FIELDS`` order, computed by
the producer from what it generated and by the consumer from what it read: the plane takes no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor

from penstock.demo.spec import GENERATION_FIELDS
from penstock.testing.checker import Moment, Put, Trained

__all__ = ["group_keys", "group_tags", "put_entries", "row_hashes", "trained_entries"]


def group_keys(group_id: str, group_size: int) -> list[str]:
    """Return the keys of an attempt's rows, minted here once."""
    return [f"{group_id}_g{i}" for i in range(group_size)]


def group_tags(group_id: str, group_size: int, version: int, now: float) -> list[dict[str, Any]]:
    """Return the tags of an attempt's rows: not yet committed, ``now`` in seconds since the epoch."""
    tags = {
        "group_id": group_id,
        "expected_num_keys": group_size,
        "weight_version": version,
        "created_at": now,
        "committed": False,
    }
    return [dict(tags) for _ in range(group_size)]


def row_hashes(columns: Mapping[str, Tensor]) -> list[str]:
    """Return each row's hash, in hex. ``columns`` holds at least the generation columns, rows first."""
    arrays = [columns[name].detach().contiguous().numpy() for name in GENERATION_FIELDS]
    return [xxhash.xxh3_64_hexdigest(b"".join(row.tobytes() for row in rows)) for rows in zip(*arrays, strict=True)]


def put_entries(moment: Moment, keys: Sequence[str], hashes: Sequence[str], version: int) -> list[Put]:
    """Return what a worker writes down about its put."""
    return [Put(moment, key, xxh3, version) for key, xxh3 in zip(keys, hashes, strict=True)]


def trained_entries(
    moment: Moment, step: int, keys: Sequence[str], hashes: Sequence[str], versions: Sequence[int]
) -> list[Trained]:
    """Return what the trainer writes down about step ``step``, which trains the weights of version ``step - 1``."""
    return [
        Trained(moment, key, xxh3, version, step, step - 1)
        for key, xxh3, version in zip(keys, hashes, versions, strict=True)
    ]


def question_answer(columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the token columns of rows that were read."""
    return columns["prompt"].to(torch.int64), columns["answer"].to(torch.int64)
