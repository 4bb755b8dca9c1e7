"""What the retries of one client count, and the lock that guards what its threads share.

Invariant: every count changes under the lock; ``statistics()`` is one moment's picture, frozen.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.retry.health import Health
from penstock.retry.machine import VERDICTS, Attempt, Effect, Event, GiveUp, Outcome, Retry, Standing
from penstock.retry.policy import Kind, Policy

__all__ = ["Books", "RetryStatistics"]


@dataclass(frozen=True, slots=True)
class RetryStatistics:
    """Counts since the retrier was made.

    Attributes:
        runs: calls of ``run``.
        attempts: attempts made; ``retries``: those that were not a key's first.
        waited_s: seconds slept between rounds.
        outcomes: (path, code) -> keys answered so; the code is the endpoint's, else the kind.
        given_up: (path, reason) -> keys.
        tokens: endpoint -> tokens left; endpoints that are not named have all.
        quarantined: endpoints held now, oldest failure first.
    """

    runs: int
    attempts: int
    retries: int
    waited_s: float
    outcomes: Mapping[tuple[str, str], int]
    given_up: Mapping[tuple[str, str], int]
    tokens: Mapping[str, float]
    quarantined: tuple[str, ...]


class Books:
    """Shared by all runs of one retrier."""

    def __init__(self, policy: Policy) -> None:
        self.health = Health(policy)
        self._lock = threading.Lock()
        self._runs = self._attempts = self._retries = 0
        self._waited_s = 0.0
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._given_up: Counter[tuple[str, str]] = Counter()

    def decide(self, path: str, machine: Retry, events: Sequence[Event], now: float) -> list[Effect]:
        """Hand ``events`` to ``machine`` and count them and what it answers."""
        with self._lock:
            effects = [effect for event in events for effect in machine.handle(event, now)]
            for event in events:
                if isinstance(event, Outcome):
                    self._outcomes[path, event.code or event.kind.value] += 1
            for effect in effects:
                self._count(path, effect)
            return effects

    def eligible(self, endpoints: Sequence[str], now: float) -> list[str]:
        """Whom to use, best first; see ``Health.eligible``."""
        with self._lock:
            return self.health.eligible(endpoints, now)

    def count_lone(self, path: str, endpoint: str, kind: Kind, code: str, now: float) -> None:
        """Count an attempt that no machine was asked about: a first one that succeeded, or ended with the deadline."""
        standing = VERDICTS[kind][1]
        failed, answered = standing is Standing.FAILED, standing is Standing.ANSWERED
        with self._lock:
            self._runs += 1
            self._attempts += 1
            self._outcomes[path, code or kind.value] += 1
            self.health.record(endpoint, failed=failed, answered=answered, now=now)

    def count_run(self) -> None:
        with self._lock:
            self._runs += 1

    def count_wait(self, seconds: float) -> None:
        with self._lock:
            self._waited_s += seconds

    def statistics(self, now: float) -> RetryStatistics:
        with self._lock:
            return RetryStatistics(
                runs=self._runs,
                attempts=self._attempts,
                retries=self._retries,
                waited_s=self._waited_s,
                outcomes=dict(self._outcomes),
                given_up=dict(self._given_up),
                tokens=self.health.tokens(),
                quarantined=tuple(self.health.quarantine.held(now)),
            )

    def _count(self, path: str, effect: Effect) -> None:
        if isinstance(effect, Attempt):
            self._attempts += 1
            self._retries += effect.round > 1
        elif isinstance(effect, GiveUp):
            self._given_up[path, effect.reason.value] += 1

    def __repr__(self) -> str:
        return f"Books({self._runs} runs, {self._attempts} attempts, {self._retries} retries, {self.health!r})"
