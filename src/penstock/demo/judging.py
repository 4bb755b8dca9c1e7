"""What a run that is over came to: three witnesses, heard apart and against each other, and the result.

The plane's books, the checker over everybody's logs, and the controller's record of prompts know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.controller.record import RecordFile
from penstock.demo.chaos import ANY, FaultLedger
from penstock.demo.messages import RUN
from penstock.demo.progress import Progress
from penstock.demo.prompt_books import PromptBooks, prompt_books
from penstock.demo.spec import REWARD_WINDOW, DemoResult, RecoveryTimes, RunFiles, RunSpec, window_mean
from penstock.requests import AuditReport
from penstock.testing.checker import Entry, Report, check, read_log

__all__ = ["Testimony", "entries_of", "hear_witnesses", "result_of"]


@dataclass(frozen=True)
class Testimony:
    """What the plane, the checker and the controller's record say."""

    audit: AuditReport
    report: Report
    books: PromptBooks

    def findings(self) -> list[str]:
        """What they hold against the run: each by itself, and where they disagree."""
        found = [] if self.report.ok else [self.report.verdict()]
        if self.audit.residue:
            found.append(f"the plane's books do not balance: residue {self.audit.residue}")
        trained = sum(partition.trained for partition in self.audit.partitions)
        if trained != self.report.trained:
            found.append(f"the plane counts {trained} trained rows, the trainer's log {self.report.trained}")
        return [*found, *self.books.wrong]


def entries_of(files: RunFiles) -> list[Entry]:
    """Return what everybody wrote down for the checker, so far."""
    return [entry for path in sorted(files.journals.iterdir()) for entry in read_log(path)]


def hear_witnesses(files: RunFiles, spec: RunSpec, audit: AuditReport) -> Testimony:
    """Hear the witnesses of a run that has come to rest. ``audit``: the plane's last."""
    entries = entries_of(files)
    books = prompt_books(RecordFile(files.root).load(RUN), entries, spec.group_size)
    return Testimony(audit, check(entries, max_staleness=spec.max_staleness), books)


def result_of(
    reasons: Sequence[str], seconds: float, said: Testimony, progress: Progress, faults: FaultLedger
) -> DemoResult:
    """Return the result. ``reasons``: what stands against its success; empty words do not."""
    why, recovery, rewards = "; ".join(filter(None, reasons)), faults.recovery(), progress.curve()
    return DemoResult(
        audit_residue=said.audit.residue,
        lost=len(said.report.lost),
        duplicated=len(said.report.duplicated),
        corrupted=len(said.report.corrupted),
        faults_fired=faults.fired(),
        faults=faults.counts(),
        first_reward=round(window_mean(rewards[:REWARD_WINDOW]), 4),
        final_reward=round(window_mean(rewards[-REWARD_WINDOW:]), 4),
        steps=progress.steps,
        seconds=round(seconds, 2),
        rows_trained=said.report.trained,
        recovery_s=recovery.pop(ANY, None),
        recovery_by_kind_s=recovery,
        resume_s=RecoveryTimes.of(progress.resumed_s) if progress.resumed_s else None,
        prompts=said.books,
        ok=not why,
        why=why,
    )
