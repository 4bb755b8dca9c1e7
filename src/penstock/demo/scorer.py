"""The logprob stage: gives each generated row the column ``prev_logprobs``, under the newest weights.

Invariants: it claims whole committed groups, so a tag on one row of a group speaks for all of them; it puts before it
acks, so a stage killed in between is followed by one that does the same rows again; rows that were removed meanwhile
cost themselves only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from penstock.demo.checkpoint import latest_step, load_policy
from penstock.demo.model import Policy, answer_logprobs
from penstock.demo.patience import patiently
from penstock.demo.rows import question_answer
from penstock.demo.spec import GENERATION_FIELDS, PARTITION, SCORE_TASK, RunFiles
from penstock.errors import DataPlaneError, DataPlaneReadError, DataPlaneTimeout, LeaseLost, RowRemoved, UnknownName
from penstock.plane.contract import DataPlaneClient
from penstock.points import reached
from penstock.records import KVBatchMeta

__all__ = ["Scorer"]

GROUPS_PER_CLAIM = 8
CLAIM_WAIT_S = 1.0
READ_FIELDS = ["prompt", "answer"]


class Scorer:
    """Scores what is ready, batch by batch."""

    def __init__(self, files: RunFiles, client: DataPlaneClient) -> None:
        self.spec = files.spec()
        self._checkpoints = files.checkpoints
        self._client = client
        self._policy = Policy(self.spec.model)
        self._version = -1

    def score_next(self, wait_s: float = CLAIM_WAIT_S) -> int:
        """Score the next groups, waiting up to ``wait_s`` for one. Returns how many rows were scored.

        Raises:
            DataPlaneUnavailable: the plane is away.
        """
        try:
            meta = self._claim(wait_s)
        except DataPlaneTimeout:
            return 0  # nothing was ready, or the plane was away: the next call will tell
        reached("scorer.claimed")
        found = self._read(meta)
        if found is None:
            return 0
        columns, meta = found
        self._refresh()
        with torch.no_grad():
            scores = answer_logprobs(self._policy, *question_answer(columns))
        return self._deliver(meta, scores)

    def _read(self, meta: KVBatchMeta) -> tuple[Mapping[str, Tensor], KVBatchMeta] | None:
        """Return what is still there, and which rows that are: where they lie is waited for, for they are leased."""
        rest: KVBatchMeta | None = meta
        while rest is not None:
            try:
                return patiently(partial(self._client.get_data, rest, READ_FIELDS), self.spec.plane_patience_s), rest
            except (DataPlaneReadError, UnknownName) as gone:
                rest = _without(rest, gone)
        return None

    def _claim(self, wait_s: float) -> KVBatchMeta:
        rows = GROUPS_PER_CLAIM * self.spec.group_size
        return self._client.claim_meta(
            PARTITION, SCORE_TASK, list(GENERATION_FIELDS), rows, timeout_s=wait_s, whole_groups=True
        )

    def _refresh(self) -> None:
        newest = latest_step(self._checkpoints)
        if newest is not None and newest != self._version:
            load_policy(self._checkpoints, newest, self._policy)
            self._version = newest

    def _deliver(self, meta: KVBatchMeta, scores: Tensor) -> int:
        rest: KVBatchMeta | None = meta
        while rest is not None:
            try:
                self._put_and_ack(rest, scores)
            except (RowRemoved, UnknownName, LeaseLost) as gone:  # evicted, or taken over by another life of ours
                before, rest = rest, _without(rest, gone)
                if rest is not None:
                    scores = scores[[key in set(rest.sample_ids) for key in before.sample_ids]]
            else:
                return rest.size
        return 0

    def _put_and_ack(self, meta: KVBatchMeta, scores: Tensor) -> None:
        patience, tags = self.spec.plane_patience_s, [{"prev_version": self._version}] * meta.size
        columns = {"prev_logprobs": scores}
        patiently(lambda: self._client.put_samples(meta.sample_ids, PARTITION, columns, tags), patience)
        reached("scorer.put")
        patiently(lambda: self._client.ack(meta), patience)
        reached("scorer.acked")


def _without(meta: KVBatchMeta, gone: DataPlaneError) -> KVBatchMeta | None:
    """Return the rows that ``gone`` does not name; None = it names all. One that names none of them goes up."""
    kept = [i for i, key in enumerate(meta.sample_ids) if key not in set(gone.keys)]
    if len(kept) == meta.size:
        raise gone
    return meta.subset(kept) if kept else None
