"""Drives a run from metadata alone: what is dispatched, what is trained, and how it recovers from any death.

Invariants: it never sees a tensor; rows are popped only after their step is durable; every prompt is trained, dropped
for a reason, or under way; no call of it blocks the event loop. ``machine`` decides and is pure, ``single`` is its
shell; ``events`` is what a run tells.
May import: plane, retry, the words.
"""

from penstock.controller.config import ControllerConfig, Role
from penstock.controller.event_file import EventFile, read_events
from penstock.controller.events import RunEvent
from penstock.controller.machine import ControllerMachine, ControllerStatistics
from penstock.controller.policies import StalenessPolicy, in_order, ready_first, weight_fifo, windowed
from penstock.controller.roles import Generator, PromptSource, StepRecord, Trainer, TrainResult, WeightSync
from penstock.controller.run_log import RunLog
from penstock.controller.single import RunResult, SingleController

__all__ = [
    "ControllerConfig",
    "ControllerMachine",
    "ControllerStatistics",
    "EventFile",
    "Generator",
    "PromptSource",
    "Role",
    "RunEvent",
    "RunLog",
    "RunResult",
    "SingleController",
    "StalenessPolicy",
    "StepRecord",
    "TrainResult",
    "Trainer",
    "WeightSync",
    "in_order",
    "read_events",
    "ready_first",
    "weight_fifo",
    "windowed",
]
