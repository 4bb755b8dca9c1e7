"""``penstock chaos``: the points at which a fault may strike, and a soak that strikes there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from penstock.ops.report import ExitCode, Report
from penstock.ops.tables import table
from penstock.points import POINTS

if TYPE_CHECKING:
    from penstock.demo.soak.options import SoakOptions

__all__ = ["list_points", "run_chaos"]


def run_chaos(report: Report, options: SoakOptions) -> None:
    """Run a soak; print what was struck and what came of it.

    Raises:
        typer.Exit: with a finding, or because the user interrupted it.
    """
    from penstock.demo.soak.launcher import run
    from penstock.demo.soak.report import tables

    result = run(options, report.progress)
    report.answer(result, *tables(result))
    if not result.ok:
        report.progress(f"replay: {result.replay}; logs: {result.folder}")
        raise typer.Exit(ExitCode.FINDING)
    if result.interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)


def list_points(report: Report) -> None:
    """Print the table of points."""
    rows = [(point.name, point.role, point.room, point.says) for point in POINTS]
    value = {"points": [dict(zip(("name", "role", "room", "says"), row, strict=True)) for row in rows]}
    shown = [(name, says) for name, _, _, says in rows]
    report.answer(value, table(f"{len(rows)} points", ("point", "what is done, what is not"), shown))
