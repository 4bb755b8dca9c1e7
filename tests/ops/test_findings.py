"""Exit code 1: what a command looked at is not as it should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from penstock.ops import cli, doctor
from penstock.ops.report import ExitCode
from penstock.requests import AuditReport, PartitionAudit

runner = CliRunner()


class Books:
    """A plane that has only books."""

    def __init__(self, partition: PartitionAudit) -> None:
        self._partition = partition

    def audit(self, partition: str | None) -> AuditReport:
        return AuditReport(1, [self._partition])


@pytest.mark.parametrize(
    ("partition", "code"),
    [
        (PartitionAudit(partition="p", put=2, trained=2), ExitCode.OK),
        (PartitionAudit(partition="p", put=2, trained=1, evicted={"stale": 1}), ExitCode.OK),
        (PartitionAudit(partition="p", put=2, trained=1, residue=1), ExitCode.FINDING),
        (PartitionAudit(partition="p", put=2, trained=3, residue=-1), ExitCode.FINDING),
        (PartitionAudit(partition="p", put=2, trained=2, broken=["k"]), ExitCode.FINDING),
        (PartitionAudit(partition="p", put=2, trained=1, lost={"damaged": 1}), ExitCode.FINDING),
    ],
)
def test_audit_finds_what_does_not_balance(
    partition: PartitionAudit, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A residue, a broken row or a lost row is a finding; an eviction with a reason is not."""

    @contextmanager
    def plane_at(_data_dir: object, _timeout: object) -> Iterator[Books]:
        yield Books(partition)

    monkeypatch.setattr(cli, "plane_at", plane_at)
    result = runner.invoke(cli.app, ["audit", "--json"])
    assert result.exit_code == code
    found = json.loads(result.stdout)
    assert (found["residue"] != 0 or found["lost"] != 0) == (code == ExitCode.FINDING)


def test_doctor_fails_on_a_problem_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning is not a failure; a problem is."""
    for severity, code in (("warning", ExitCode.OK), ("problem", ExitCode.FINDING)):
        finding = doctor.Finding("system", severity, "x")  # type: ignore[arg-type]
        monkeypatch.setattr(doctor, "interpreter", lambda finding=finding: [finding])
        assert runner.invoke(cli.app, ["doctor"]).exit_code == code
