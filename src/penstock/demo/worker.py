"""A rollout worker: answers prompts with the current weights and puts each prompt's answers as a group.

Invariants: rows go in uncommitted, one tag-only put then commits them, so a worker killed in between leaves nothing
that anybody trains on; every put is written down before and after; what is generated depends on seed, prompt, attempt
and weights alone.
"""

from __future__ import annotations

import time
from contextlib import suppress

import torch
from torch import Tensor

from penstock.demo.checkpoint import load_policy
from penstock.demo.messages import Attempt, RolledOut, Rollout
from penstock.demo.model import Policy, generate
from penstock.demo.patience import patiently
from penstock.demo.rows import group_keys, group_tags, put_entries, row_hashes
from penstock.demo.spec import PARTITION, RunFiles, RunSpec
from penstock.demo.task import prompt_tokens, randomness, rewards
from penstock.errors import RowRemoved, UnknownName
from penstock.plane.contract import DataPlaneClient
from penstock.points import reached
from penstock.testing.checker import EventLog

__all__ = ["Worker"]


class Worker:
    """Carries out ``Rollout`` orders.

    Args:
        files: the run's directory: weights come from its checkpoints.
        client: of the plane.
        log: what the checker will read.
    """

    def __init__(self, files: RunFiles, client: DataPlaneClient, log: EventLog) -> None:
        self.spec: RunSpec = files.spec()
        self._checkpoints = files.checkpoints
        self._client = client
        self._log = log
        self._policy = Policy(self.spec.model)
        self._version = -1

    def roll_out(self, order: Rollout) -> RolledOut:
        """Generate, put and commit the groups of ``order``."""
        if order.version != self._version:
            load_policy(self._checkpoints, order.version, self._policy)
            self._version = order.version
        columns = self._generate(order.prompts)
        reached("worker.generated")
        with suppress(RowRemoved, UnknownName):  # the controller gave this attempt up: it will not count it
            self._deliver(order.prompts, columns)
        return RolledOut()

    def _generate(self, prompts: list[Attempt]) -> dict[str, Tensor]:
        task = self.spec.task
        questions = torch.stack([prompt_tokens(task, attempt.prompt) for attempt in prompts])
        questions = questions.repeat_interleave(self.spec.group_size, dim=0)
        source = randomness("answers", task.seed, *(attempt.group_id for attempt in prompts))
        answers, logprobs = generate(self._policy, questions, task.length, source)
        reward = rewards(task, questions, answers)
        return {"prompt": questions, "answer": answers, "generation_logprobs": logprobs, "reward": reward}

    def _deliver(self, prompts: list[Attempt], columns: dict[str, Tensor]) -> None:
        size, now = self.spec.group_size, time.time()
        keys = [key for attempt in prompts for key in group_keys(attempt.group_id, size)]
        tags = [tag for attempt in prompts for tag in group_tags(attempt.group_id, size, self._version, now)]
        hashes = row_hashes(columns)
        patience = self.spec.plane_patience_s
        self._log.write(put_entries("before", keys, hashes, self._version))
        patiently(lambda: self._client.put_samples(keys, PARTITION, columns, tags), patience)
        self._log.write(put_entries("after", keys, hashes, self._version))
        reached("worker.put")
        commit = [{"committed": True}] * len(keys)
        patiently(lambda: self._client.put_samples(keys, PARTITION, tags=commit), patience)
        reached("worker.committed")
