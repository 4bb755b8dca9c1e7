"""How commands answer."""

from __future__ import annotations

import json

import pytest
import typer

from penstock.debts import Party, SilentSession
from penstock.errors import BadArgument, DataPlaneTimeout, DataPlaneUnavailable, JournalCorrupt
from penstock.ops.report import ExitCode, plain, reporting
from penstock.requests import AuditReport, PartitionAudit


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataPlaneUnavailable("gone"), ExitCode.UNAVAILABLE),
        (DataPlaneTimeout("slow"), ExitCode.UNAVAILABLE),
        (JournalCorrupt("torn"), ExitCode.UNAVAILABLE),
        (BadArgument("no"), ExitCode.USAGE),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
    ],
)
def test_each_failure_has_its_exit_code(error: BaseException, code: int) -> None:
    """A typed failure ends in an exit code, never in a traceback."""
    with pytest.raises(typer.Exit) as exit_, reporting(as_json=False):
        raise error
    assert exit_.value.exit_code == code


def test_failure_is_one_json_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    """With ``--json`` a failure is the one object on stdout, and is told on stderr."""
    with pytest.raises(typer.Exit), reporting(as_json=True):
        raise DataPlaneUnavailable("no plane", keys=["a"])
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": {"type": "DataPlaneUnavailable", "message": "no plane", "keys": ["a"]}}
    assert "no plane" in said.err


def test_bug_is_not_hidden() -> None:
    """What is not one of our errors passes: a bug keeps its traceback."""
    with pytest.raises(ZeroDivisionError), reporting(as_json=False):
        _ = 1 / 0


def test_records_become_objects_by_field_name() -> None:
    """Records that travel as arrays are objects in JSON."""
    found = plain(AuditReport(7, [PartitionAudit(partition="p", put=1, in_flight=1)]))
    assert found["incarnation"] == 7
    assert found["partitions"][0]["in_flight"] == 1


def test_markup_in_a_message_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets of a name are printed, not interpreted."""
    with pytest.raises(typer.Exit), reporting(as_json=False):
        raise BadArgument("unknown partition '[red]x[/]'")
    assert "[red]x[/]" in capsys.readouterr().err


def test_a_debt_says_which_kind_it_is() -> None:
    """A program that reads ``why`` as JSON must tell them apart."""
    party = Party(session_id=1, who="rollout-1")
    told = plain(SilentSession(says="it is silent", party=party, dead_after_s=10.0, unfinished=2))
    assert (told["type"], told["says"], told["party"]["who"]) == ("SilentSession", "it is silent", "rollout-1")
    assert "type" not in told["party"]


def answer_then_fail() -> None:
    with reporting(as_json=True) as report:
        report.answer({"fine": True})
        raise DataPlaneTimeout("slow goodbye")


def test_only_one_object_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure after the answer, while saying goodbye say, is told on stderr only."""
    with pytest.raises(typer.Exit):
        answer_then_fail()
    said = capsys.readouterr()
    assert json.loads(said.out) == {"fine": True}
    assert "slow goodbye" in said.err
