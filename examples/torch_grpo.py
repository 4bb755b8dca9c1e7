"""GRPO in one process, round Penstock's controller: kill it at any moment, run it again, and it goes on.

    python examples/torch_grpo.py --folder /tmp/grpo --steps 80

A policy over ten words learns ``answer = (7 * question + 3) % 10``. The three classes are what you bring to a run;
what you get is its recovery: no prompt is lost, and no row trained twice, whatever dies and whenever.
"""

import argparse
import asyncio
import math
import os
from pathlib import Path

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import penstock
from penstock.controller import ControllerConfig, RunEvent, SingleController, StepRecord, TrainResult, windowed
from penstock.controller.events import Trained
from penstock.records import KVBatchMeta

WORDS, GROUP, GROUPS = 10, 8, 16  # vocabulary, answers to a prompt, prompts of a step
FIELDS = ("question", "answer", "reward")


class Questions:
    """Prompts by number; the same number is the same question in every life of the run."""

    def prompt(self, index: int) -> int:
        return (index * 13 + 5) % WORDS


class Policy(nn.Module):
    """Logits of answers, by question; knows where it is saved, together with the record of the step that made it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(WORDS, WORDS))
        self.path = folder / "policy.safetensors"

    def save(self, record: StepRecord) -> None:
        aside = self.path.with_suffix(".tmp")
        save_file(self.state_dict(), aside, metadata={"record": msgspec.json.encode(record).decode()})
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(self.path)  # weights and record appear together, or not at all

    def load(self) -> StepRecord | None:
        if not self.path.exists():
            return None
        with safe_open(self.path, framework="pt") as file:
            self.load_state_dict({"logits": file.get_tensor("logits")})
            return msgspec.json.decode(file.metadata()["record"], type=StepRecord)


class Grpo:
    """Generator, trainer and weight sync in one. In a real run these are processes, on other machines."""

    def __init__(self, plane: penstock.AsyncDataPlaneClient, folder: Path) -> None:
        self.plane, self.policy = plane, Policy(folder)
        self.last = TrainResult(record=self.policy.load() or StepRecord(step=0))
        self.served = self.policy.logits.detach().clone()  # the weights that answer
        self.adam = torch.optim.Adam(self.policy.parameters(), lr=0.1)

    async def generate(self, prompt: int, weight_version: int, group_id: str) -> None:
        answers = torch.distributions.Categorical(logits=self.served[prompt]).sample((GROUP,))
        question = torch.full((GROUP,), prompt)
        columns = {"question": question, "answer": answers, "reward": (answers == (7 * prompt + 3) % WORDS).float()}
        keys = [f"{group_id}_g{i}" for i in range(GROUP)]
        tag = {"group_id": group_id, "expected_num_keys": GROUP, "weight_version": weight_version, "committed": False}
        await self.plane.put_samples(keys, "train", columns, [tag] * GROUP)
        await self.plane.put_samples(keys, "train", tags=[{"committed": True}] * GROUP)  # now it may be trained

    async def last_step(self) -> StepRecord | None:
        return self.last.record

    async def train(self, meta: KVBatchMeta, step: int) -> TrainResult:
        if step > self.last.record.step + 1:
            raise RuntimeError(f"ordered to make step {step}, and the checkpoint is of step {self.last.record.step}")
        if step > self.last.record.step:  # else it is made already
            rows = await self.plane.get_data(meta)
            record = StepRecord.of(step, meta)
            await asyncio.to_thread(self._learn, rows["question"], rows["answer"], rows["reward"], record)
            self.last = TrainResult(record=record, metrics={"reward": rows["reward"].mean().item()})
        return self.last

    def _learn(self, question: Tensor, answer: Tensor, reward: Tensor, record: StepRecord) -> None:
        groups = reward.view(-1, GROUP)
        advantage = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
        logprob = self.policy.logits[question].log_softmax(-1).gather(1, answer[:, None])[:, 0]
        self.adam.zero_grad()
        (-(advantage * logprob).mean()).backward()
        self.adam.step()
        self.policy.save(record)

    async def publish(self, version: int) -> None:
        self.served = self.policy.logits.detach().clone()


def show(event: RunEvent) -> None:
    """Every part of a run tells what it does; this listens to the trainer alone."""
    if isinstance(event, Trained):  # a step that a new life finds made already tells no metrics
        print(f"step {event.step:4}  reward {event.metrics.get('reward', math.nan):.2f}", flush=True)


async def main(folder: Path, steps: int) -> None:
    size = {"group_size": GROUP, "groups_per_step": GROUPS, "max_steps": steps}
    config = ControllerConfig(fields=FIELDS, policy=windowed(max_staleness_versions=1), **size)
    folder.mkdir(parents=True, exist_ok=True)
    async with penstock.aconnect("local", data_dir=folder / "plane") as plane:
        mine = penstock.connect("local", data_dir=folder / "plane")  # the controller's own; it closes it
        grpo = Grpo(plane, folder)
        roles = {"prompts": Questions(), "generator": grpo, "trainer": grpo, "weights": grpo}
        print(await SingleController(mine, config, **roles, folder=folder, listeners=[show]).run())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("grpo-run"), help="keeps the run; the same folder goes on")
    parser.add_argument("--steps", type=int, default=80)
    asyncio.run(main(**vars(parser.parse_args())))
