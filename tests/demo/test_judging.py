"""The witnesses of a run that is over."""

from __future__ import annotations

import pytest

from penstock.demo.judging import Testimony
from penstock.demo.prompt_books import PromptBooks
from penstock.requests import AuditReport, PartitionAudit
from penstock.testing.checker import Report


@pytest.mark.parametrize(
    ("audit", "report", "words"),
    [
        (PartitionAudit(partition="p", trained=4), Report(trained=4), []),
        (PartitionAudit(partition="p", trained=4, residue=1), Report(trained=4), ["do not balance: residue 1"]),
        (PartitionAudit(partition="p", trained=4), Report(trained=4, lost=["a"]), ["1 lost: 'a'"]),
        (PartitionAudit(partition="p", trained=5), Report(trained=4), ["counts 5 trained rows, the trainer's log 4"]),
    ],
)
def test_both_witnesses_are_heard_and_must_agree(audit: PartitionAudit, report: Report, words: list[str]) -> None:
    """The plane's books, the checker's logs, and a difference between the two."""
    found = Testimony(AuditReport(1, [audit]), report, PromptBooks()).findings()
    assert len(found) == len(words)
    assert all(word in finding for word, finding in zip(words, found, strict=True))
