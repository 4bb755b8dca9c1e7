"""One call of a retrier, whichever shell runs it: its machine, how its keys have ended so far, and its log lines.

Invariants: a list of answers that does not fit the keys is not believed, none of it; a round is logged once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Generic, TypeVar

from penstock.errors import abbreviate
from penstock.retry.books import Books
from penstock.retry.machine import Attempt, Effect, Event, GiveUp, Outcome, Retry, State, Wait
from penstock.retry.policy import Kind
from penstock.retry.result import Answer, Settled

__all__ = ["MISALIGNED", "Run"]

T = TypeVar("T")

MISALIGNED = "misaligned"  # the code of answers that do not fit the keys


class Run(Generic[T]):
    """The books of one call. ``log`` is the shell's own; ``level`` is that of a round in which something failed."""

    def __init__(
        self, path: str, machine: Retry, books: Books, log: logging.Logger, *, level: int = logging.INFO
    ) -> None:
        self.path = path
        self.settled: dict[str, Settled[T]] = {}
        self._machine = machine
        self._books = books
        self._log = log
        self._level = level
        self._round: list[Outcome] = []  # outcomes of the round so far

    def decide(self, events: Sequence[Event], now: float) -> list[Effect]:
        """Hand ``events`` to the machine, note who is given up; return the attempts and waits that are to follow."""
        effects = self._books.decide(self.path, self._machine, events, now)
        for effect in effects:
            if isinstance(effect, GiveUp):
                self.settled[effect.key] = Settled(None, effect.reason, effect.code, effect.attempts)
        return [effect for effect in effects if isinstance(effect, Attempt | Wait)]

    @property
    def round_over(self) -> bool:
        """Whether no attempt is out."""
        return self._machine.state is not State.TRYING

    def take(self, attempt: Attempt, answers: Sequence[Answer[T]]) -> list[Outcome]:
        """Keep the values that came; return what the machine needs to know."""
        outcomes = []
        for key, answer in zip(attempt.keys, self._fitting(attempt, answers), strict=True):
            outcomes.append(Outcome(attempt.number, key, answer.kind, answer.code))
            if answer.kind is Kind.OK:
                self.settled[key] = Settled(answer.value, None, answer.code, attempt.round)
        self._round += outcomes
        return outcomes

    def log_round(self, number: int, following: Sequence[Effect]) -> None:
        """One line per round: at DEBUG when all went well, at ``level`` when some did not."""
        outcomes, self._round = self._round, []
        failed = [outcome for outcome in outcomes if outcome.kind is not Kind.OK]
        if not failed:
            self._log.debug("%s: round %d: %d keys done", self.path, number, len(outcomes))
            return
        codes = Counter(outcome.code or outcome.kind.value for outcome in failed).most_common()
        waits = [f"again within {effect.at_most_s:.3f} s" for effect in following if isinstance(effect, Wait)]
        self._log.log(
            self._level,
            "%s: round %d: %d of %d keys failed (%s): %s; %s",
            self.path,
            number,
            len(failed),
            len(outcomes),
            ", ".join(f"{count} x {code}" for code, count in codes),
            abbreviate([outcome.key for outcome in failed]),
            *(waits or ["no further round"]),
        )

    def _fitting(self, attempt: Attempt, answers: Sequence[Answer[T]]) -> Sequence[Answer[T]]:
        """Answers that do not fit their keys count as not having come."""
        if len(answers) == len(attempt.keys):
            return answers
        self._log.warning("%s: %d answers for %d keys, believed none", self.path, len(answers), len(attempt.keys))
        return [Answer(Kind.RETRYABLE, code=MISALIGNED)] * len(attempt.keys)
