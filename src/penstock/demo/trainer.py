"""The trainer: one GRPO step per order, saved together with the record of the rows that made it.

Invariants: a step whose record is saved is never made again; a step that is not saved left no trace in the weights; the
rows' hashes are computed from what was read, before the step; after a kill the log is completed from the record.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from penstock.demo.checkpoint import latest_step, load_training, save_training
from penstock.demo.grpo import advantages, grpo_loss
from penstock.demo.messages import StepRecord, Train, Trained, Unreadable
from penstock.demo.model import Policy, answer_logprobs
from penstock.demo.patience import patiently
from penstock.demo.rows import question_answer, row_hashes, trained_entries
from penstock.demo.spec import TRAIN_FIELDS, RunFiles
from penstock.errors import BadArgument, DataPlaneReadError, FieldNotProduced, UnknownName
from penstock.plane.contract import DataPlaneClient
from penstock.points import reached
from penstock.records import KVBatchMeta
from penstock.testing.checker import EventLog, Moment

__all__ = ["Trainer"]

MAX_GRADIENT_NORM = 1.0


class Trainer:
    """Carries out ``Train`` orders; made anew, it stands where its last checkpoint says.

    Attributes:
        record: the last step that is saved.
    """

    def __init__(self, files: RunFiles, client: DataPlaneClient, log: EventLog) -> None:
        self.spec = files.spec()
        self._checkpoints = files.checkpoints
        self._client = client
        self._log = log
        torch.manual_seed(self.spec.task.seed)
        self._policy = Policy(self.spec.model)
        self._adam = torch.optim.Adam(self._policy.parameters(), lr=self.spec.learning_rate, betas=(0.9, 0.95))
        self.record = self._resume()

    def train(self, order: Train) -> Trained | Unreadable:
        """Make the step of ``order``, unless it is saved already."""
        if order.step == self.record.step:
            return Trained(self.record)
        if order.step != self.record.step + 1:
            raise BadArgument(f"ordered to make step {order.step} after step {self.record.step}")
        try:
            columns = patiently(
                lambda: self._client.get_data(order.meta, list(TRAIN_FIELDS)), self.spec.plane_patience_s
            )
        except (DataPlaneReadError, UnknownName, FieldNotProduced) as unreadable:
            return Unreadable(order.step, list(unreadable.keys), str(unreadable))
        reached("trainer.read")
        record = _record_of(order, columns)
        self._write("before", record)
        self._learn(columns)
        reached("trainer.stepped")
        save_training(self._checkpoints, self._policy, self._adam, record)
        reached("trainer.saved")
        self._write("after", record)
        self.record = record
        return Trained(record)

    def _resume(self) -> StepRecord:
        newest = latest_step(self._checkpoints)
        if newest is None:
            record = StepRecord(step=0)
            save_training(self._checkpoints, self._policy, self._adam, record)
            return record
        record = load_training(self._checkpoints, newest, self._policy, self._adam)
        self._write("after", record)  # the life before may have died between saving and writing it down
        return record

    def _write(self, moment: Moment, record: StepRecord) -> None:
        self._log.write(trained_entries(moment, record.step, record.keys, record.xxh3, record.weight_versions))

    def _learn(self, columns: Mapping[str, Tensor]) -> None:
        gain = advantages(columns["reward"], self.spec.group_size)
        logprobs = answer_logprobs(self._policy, *question_answer(columns))
        loss = grpo_loss(logprobs, columns["prev_logprobs"], columns["generation_logprobs"], gain)
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._policy.parameters(), MAX_GRADIENT_NORM)
        self._adam.step()


def _record_of(order: Train, columns: Mapping[str, Tensor]) -> StepRecord:
    return StepRecord(
        step=order.step,
        keys=list(order.meta.sample_ids),
        xxh3=row_hashes(columns),
        weight_versions=_versions(order.meta),
        lease=list(order.meta.lease or ()),
        reward=columns["reward"].mean().item(),
    )


def _versions(meta: KVBatchMeta) -> list[int]:
    return [int(tags["weight_version"]) for tags in meta.tags or []]
