"""How a Ray-based framework plugs in: generators and trainer are restartable actors, Penstock's controller steers them.

    pip install 'penstock[ray,demo]'
    python examples/ray_grpo.py --folder /tmp/ray-grpo --steps 60 --kills 6

Ray places and restarts the actors; the plane keeps what they made while they are dead, and the controller sends out
again what they owed. The task is that of ``torch_grpo.py``. With ``--kills``, actors are killed at random while the
run goes on. Kill the driver too, and run it again: it goes on.
"""

import argparse
import asyncio
import itertools
import random
from pathlib import Path

import ray
import torch
from torch_grpo import FIELDS, GROUP, GROUPS, Grpo, Questions, show

import penstock
from penstock.controller import ControllerConfig, SingleController, StepRecord, TrainResult, windowed
from penstock.records import KVBatchMeta


@ray.remote(max_restarts=-1, num_cpus=0)
class Role:
    """One process of the run: it generates, or it trains. What it knows after a restart is what lies on disk."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        plane = penstock.AsyncDataPlaneClient(penstock.connect("local", data_dir=folder / "plane"))
        self.grpo = Grpo(plane, folder)

    async def generate(self, prompt: int, weight_version: int, group_id: str) -> None:
        await self.grpo.generate(prompt, weight_version, group_id)

    async def last_step(self) -> StepRecord | None:
        return await self.grpo.last_step()

    async def train(self, meta: KVBatchMeta, step: int) -> TrainResult:
        return await self.grpo.train(meta, step)

    async def load(self) -> None:
        self.grpo.policy.load()
        await self.grpo.publish(0)


class Actors:
    """What the controller sees: calls of actors are awaited; a dead one's raises, and the controller tries again."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.workers = [Role.remote(folder) for _ in range(workers)]
        self.learner = Role.remote(folder)
        self.turn = itertools.cycle(self.workers)

    async def generate(self, prompt: int, weight_version: int, group_id: str) -> None:
        await next(self.turn).generate.remote(prompt, weight_version, group_id)

    async def last_step(self) -> StepRecord | None:
        return await self.learner.last_step.remote()

    async def train(self, meta: KVBatchMeta, step: int) -> TrainResult:
        return await self.learner.train.remote(meta, step)

    async def publish(self, version: int) -> None:
        await asyncio.gather(*(worker.load.remote() for worker in self.workers))

    async def kill_at_random(self, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(random.uniform(0.5, 1.5))
            victim = random.choice([*self.workers, self.learner])
            ray.kill(victim, no_restart=False)
            print("killed", "the trainer" if victim is self.learner else "a worker", flush=True)


async def main(folder: Path, steps: int, workers: int, kills: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    plane = penstock.connect("local", data_dir=folder / "plane")  # first: it starts the plane that the actors join
    actors = Actors(folder, workers)
    size = {"group_size": GROUP, "groups_per_step": GROUPS, "max_steps": steps}
    config = ControllerConfig(fields=FIELDS, policy=windowed(max_staleness_versions=2), **size)
    roles = {"prompts": Questions(), "generator": actors, "trainer": actors, "weights": actors}
    chaos = asyncio.create_task(actors.kill_at_random(kills))
    print(await SingleController(plane, config, **roles, folder=folder, listeners=[show]).run())
    chaos.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("ray-grpo-run"), help="keeps the run; the same one goes on")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0, help="so many actors are killed at random")
    arguments = parser.parse_args()
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        asyncio.run(main(**vars(arguments)))
    finally:
        ray.shutdown()
