"""The end of a run: the curve, the books and the verdict."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from penstock.demo.finale import print_end, write_curve
from penstock.demo.prompt_books import PromptBooks
from penstock.demo.spec import DemoResult, RecoveryTimes
from penstock.requests import AuditReport, PartitionAudit
from penstock.testing.checker import Report


@pytest.mark.parametrize("rewards", [[0.5], [0.1, 0.4, 0.9]])
@pytest.mark.parametrize("faults", [[], [(0, "plane"), (1, "worker"), (1, "plane"), (1, "controller"), (2, "scorer")]])
def test_the_curve_is_a_picture(tmp_path: Path, rewards: list[float], faults: list[tuple[int, str]]) -> None:
    """However few steps, with and without faults."""
    write_curve(tmp_path / "curve.png", rewards, faults)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


GOOD = PromptBooks(dispatched=60, trained=56, dropped=1, open=3)


def ended(why: str, recovery: RecoveryTimes | None, report: Report, books: PromptBooks = GOOD) -> str:
    result = DemoResult(
        audit_residue=0,
        lost=len(report.lost),
        duplicated=0,
        corrupted=0,
        faults_fired=2,
        faults={"plane": 2},
        first_reward=0.1,
        final_reward=0.9,
        steps=7,
        seconds=12.5,
        rows_trained=448,
        recovery_s=recovery,
        recovery_by_kind_s={} if recovery is None else {"plane": recovery},
        resume_s=recovery and RecoveryTimes(0.25, 0.5),
        prompts=books,
        ok=not why,
        why=why,
    )
    console = Console(file=io.StringIO(), width=160)
    audit = AuditReport(1, [PartitionAudit(partition="rollouts", put=448, trained=448)])
    print_end(console, result, audit, report, Path("curve.png"))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_good_end_shows_books_verdict_and_figures() -> None:
    """The equation, the checker's sentence, the rewards, the recoveries, the curve's place."""
    shown = ended("", RecoveryTimes(1.5, 3.25), Report(trained=448, faults={"plane": 2}))
    for part in ("rollouts", "trained 448", "checker: PASS", "0.100 -> 0.900 in 7 steps"):
        assert part in shown
    assert "dispatched 60 = trained 56 + dropped 1 + open 3; none trained twice, none skipped" in shown
    assert "recovery (p50, max): 1.50 s, 3.25 s; by role: plane 1.50 s, 3.25 s" in shown
    assert "plane back to next step (p50, max): 0.25 s, 0.50 s" in shown
    assert "curve.png" in shown
    assert "not what was asked for" not in shown


def test_a_bad_end_says_why() -> None:
    """The reason stands last; without a recovery none is claimed."""
    books = PromptBooks(dispatched=4, trained=3, wrong=["1 prompts skipped: '2'"])
    shown = ended("stuck: [worker-0]", None, Report(lost=["a"]), books)
    assert "open 0; 1 prompts skipped: '2'" in shown
    assert "checker: FAIL: 1 lost: 'a'" in shown
    assert "not what was asked for: stuck: [worker-0]" in shown
    assert "recovery" not in shown
