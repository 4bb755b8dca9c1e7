"""What a run is: its options, its fixed description that every process reads, its files, and its result.

Invariants: importing this never imports torch; unknown keys are errors; a run directory holds everything a killed
process needs to go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from penstock.demo.prompt_books import PromptBooks
from penstock.errors import BadArgument

__all__ = [
    "GENERATION_FIELDS",
    "PARTITION",
    "SCORE_TASK",
    "TRAIN_FIELDS",
    "TRAIN_TASK",
    "DemoOptions",
    "DemoResult",
    "Engine",
    "ModelSpec",
    "RunFiles",
    "RunSpec",
    "TaskSpec",
]

Engine = Literal["processes", "ray"]
PARTITION = "rollouts"
SCORE_TASK = "prev_lp"
TRAIN_TASK = "train"
GENERATION_FIELDS = ("prompt", "answer", "generation_logprobs", "reward")
TRAIN_FIELDS = (*GENERATION_FIELDS, "prev_logprobs")


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked: ``length`` digits out of ``digits``; one more token, the last, says "now answer"."""

    length: int = 8
    digits: int = 10
    seed: int = 0

    @property
    def separator(self) -> int:
        """The token between question and answer; the only one that is not a digit."""
        return self.digits


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of the policy."""

    vocab: int
    context: int
    width: int = 64
    layers: int = 2
    heads: int = 4


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run's fixed description, written once into its directory.

    Attributes:
        group_size: generations of one prompt, rows of one group.
        groups_per_step: groups of one training step.
        prompts_per_order: prompts a worker answers at once.
        max_staleness: how many versions behind the policy a group may be when it is trained.
        learning_rate: Adam's.
        plane_patience_s: how long a role waits for its plane to come back before it gives up.
        max_steps: no step beyond this one is made; None = no limit.
        plane: options of its plane, "name=value".
        port: where the plane listens on the first host.
        hosts: the hosts' addresses; none = all on one machine, by the plane's Unix socket.
        engine: who starts plane, agents and roles; "ray" tells the roles where the plane is, ``RunFiles.access``.
        store: where rows lie, as ``ClientConfig.store``; "" = in shared memory.
    """

    task: TaskSpec
    group_size: int = 8
    groups_per_step: int = 8
    prompts_per_order: int = 4
    max_staleness: int = 3
    learning_rate: float = 1e-3
    plane_patience_s: float = 60.0
    max_steps: int | None = None
    plane: tuple[str, ...] = ()
    port: int = 0
    hosts: tuple[str, ...] = ()
    engine: Engine = "processes"
    store: str = ""

    @property
    def url(self) -> str:
        """Where the plane of a run on several hosts is."""
        return f"penstock://{self.hosts[0]}:{self.port}"

    @property
    def model(self) -> ModelSpec:
        """The policy that fits the task: question, separator, answer."""
        return ModelSpec(vocab=self.task.digits + 1, context=2 * self.task.length + 1)

    @property
    def prompts_open(self) -> int:
        """How many prompts may be open at once: each is trained within the bound even if all are of one version."""
        return (self.max_staleness + 1) * self.groups_per_step


class RunFiles(msgspec.Struct, frozen=True):
    """Where a run's files lie, below ``root``."""

    root: Path

    @property
    def plane(self) -> Path:
        return self.root / "plane"

    @property
    def token(self) -> Path:
        """What everybody must know who comes over the network."""
        return self.plane / "token"

    def host(self, number: int) -> Path:
        """The directory of a host's agent."""
        return self.root / f"host-{number}"

    def access(self, host: int) -> Path:
        """How a host's roles reach a plane on Ray, as its launcher says."""
        return self.root / f"access-{host}.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def journals(self) -> Path:
        """What producers, consumers, controller and chaos wrote down for the checker."""
        return self.root / "journals"

    @property
    def events(self) -> Path:
        """The run's event stream, which the controller writes, life after life."""
        return self.root / "events.jsonl"

    @property
    def logs(self) -> Path:
        """What the processes said on stderr."""
        return self.root / "logs"

    def create(self, spec: RunSpec) -> None:
        """Make the folders and write ``spec``."""
        for folder in (self.plane, self.checkpoints, self.journals, self.logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.root / "spec.json").write_bytes(msgspec.json.encode(spec))

    def spec(self) -> RunSpec:
        """Read the run's description."""
        return msgspec.json.decode((self.root / "spec.json").read_bytes(), type=RunSpec)


class DemoOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user asks for.

    Attributes:
        steps: train exactly this many steps; None = until the reward exceeds ``goal``. With ``chaos``: at least this
            many, until ``goal`` is exceeded and ``min_faults`` have fired.
        rollout_workers: processes that generate.
        hosts: 1: all on one machine. 2: workers on one host, trainer and scorer on another, each with its agent and in
            a network namespace of its own where that is allowed; rows lie on both.
        engine: "ray" starts a Ray cluster on this machine, of as many nodes as hosts, with the plane, the agents and
            the roles as its actors; with ``chaos`` they are killed by ``ray.kill``.
        store: "mooncake" keeps rows in a Mooncake Store of this machine, which is started for it.
        chaos: kill -9 a worker, the trainer, the scorer, the controller or the plane, or two of them at once, every
            ``chaos_period_s`` or so.
        min_faults: with ``chaos``, how many faults must have fired before the run may end.
        goal: mean reward over the last ``REWARD_WINDOW`` steps.
        seed: of the task, the weights and the chaos.
        time_limit_s: the run fails, and says where it stood, when it is not done by then.
        json: one object on stdout, nothing else.
        out: keep the run's logs, checkpoints, curve and result here; None = a temporary folder that is removed.
        curve: where the reward curve goes; None = ``out``/reward.png, or ./penstock-demo.png.
    """

    steps: int | None = None
    rollout_workers: int = 2
    hosts: int = 1
    engine: Engine = "processes"
    store: Literal["", "mooncake"] = ""
    chaos: bool = False
    chaos_period_s: float = 5.0
    min_faults: int = 10
    goal: float = 0.85
    seed: int = 0
    time_limit_s: float = 165.0
    json: bool = False
    out: Path | None = None
    curve: Path | None = None

    def __post_init__(self) -> None:
        for name in ("rollout_workers", "chaos_period_s", "time_limit_s", "min_faults"):
            if getattr(self, name) <= 0:
                raise BadArgument(f"{name} must be positive, got {getattr(self, name)!r}")
        if self.steps is not None and self.steps < 1:
            raise BadArgument(f"steps must be at least 1, got {self.steps!r}")
        if self.hosts not in (1, 2):
            raise BadArgument(f"hosts must be 1 or 2, got {self.hosts!r}")
        for name, known in (("engine", ("processes", "ray")), ("store", ("", "mooncake"))):
            if getattr(self, name) not in known:
                raise BadArgument(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.store and self.hosts > 1 and self.engine == "processes":
            raise BadArgument("hosts that are network namespaces do not reach one store: take engine ray, or 1 host")
        if not 0 < self.goal < 1:
            raise BadArgument(f"goal must lie between 0 and 1, got {self.goal!r}")


REWARD_WINDOW = 10  # steps that first_reward and final_reward are means of


def window_mean(rewards: Sequence[float]) -> float:
    """Mean of some steps' rewards, 0 for none."""
    return sum(rewards) / len(rewards) if rewards else 0.0


class RecoveryTimes(msgspec.Struct, frozen=True):
    """Seconds that it took to get on: median and longest."""

    p50: float
    max: float

    @classmethod
    def of(cls, times: Sequence[float]) -> RecoveryTimes:
        """Sum up some times, at least one."""
        return cls(round(median(times), 3), round(max(times), 3))


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """How the run ended; ``--json`` prints exactly this.

    Attributes:
        audit_residue: of the plane's books, summed over partitions; 0 or a bug of ours.
        lost, duplicated, corrupted: rows, by the checker.
        faults_fired, faults: processes seen to have died by our SIGKILL, and cables cut; how many of each kind.
        first_reward, final_reward: mean reward over the first and the last ten steps.
        rows_trained: rows in committed steps.
        recovery_s: from a kill to the next progress of the slot that was killed; None when no fault fired.
        recovery_by_kind_s: the same, for each kind that was killed.
        resume_s: from the first answer of a plane that came back to the next step; None when it was not away.
        prompts: what became of the prompts, by the controller's record and the trainer's own logs.
        ok: the books balance, the checker passes and what was asked for was reached.
        why: if not ``ok``, the reason in words.
    """

    audit_residue: int
    lost: int
    duplicated: int
    corrupted: int
    faults_fired: int
    faults: dict[str, int]
    first_reward: float
    final_reward: float
    steps: int
    seconds: float
    rows_trained: int
    recovery_s: RecoveryTimes | None
    recovery_by_kind_s: dict[str, RecoveryTimes] = {}
    resume_s: RecoveryTimes | None = None
    prompts: PromptBooks = PromptBooks()
    ok: bool
    why: str = ""
