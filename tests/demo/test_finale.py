"""The end of a run: the curve, the books and the verdict."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from penstock.demo.finale import print_end, write_curve
from penstock.demo.spec import DemoResult, RecoveryTimes
from penstock.requests import AuditReport, PartitionAudit
from penstock.testing.checker import Report


@pytest.mark.parametrize("rewards", [[0.5], [0.1, 0.4, 0.9]])
@pytest.mark.parametrize("faults", [[], [(0, "plane"), (1, "worker"), (1, "plane")]])
def test_the_curve_is_a_picture(tmp_path: Path, rewards: list[float], faults: list[tuple[int, str]]) -> None:
    """However few steps, with and without faults."""
    write_curve(tmp_path / "curve.png", rewards, faults)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def ended(why: str, recovery: RecoveryTimes | None, report: Report) -> str:
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
    for part in ("rollouts", "trained 448", "checker: PASS", "0.100 -> 0.900 in 7 steps", "p50 1.50 s, max 3.25 s"):
        assert part in shown
    assert "curve.png" in shown
    assert "not what was asked for" not in shown


def test_a_bad_end_says_why() -> None:
    """The reason stands last; without a recovery none is claimed."""
    shown = ended("stuck: [worker-0]", None, Report(lost=["a"]))
    assert "checker: FAIL: 1 lost: 'a'" in shown
    assert "not what was asked for: stuck: [worker-0]" in shown
    assert "recovery" not in shown
