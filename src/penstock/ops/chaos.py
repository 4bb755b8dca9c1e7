"""``penstock chaos``: the points at which a fault may strike."""

from __future__ import annotations

from penstock.errors import BadArgument
from penstock.ops.report import Report
from penstock.ops.tables import table
from penstock.points import POINTS

__all__ = ["list_points", "run_chaos"]


def run_chaos(report: Report, *, listed: bool) -> None:
    """Do what the command line asks for.

    Raises:
        BadArgument: it asks for nothing.
    """
    if not listed:
        raise BadArgument("what? --list shows the points at which a fault may strike")
    list_points(report)


def list_points(report: Report) -> None:
    """Print the table of points."""
    rows = [(point.name, point.role, point.room, point.says) for point in POINTS]
    value = {"points": [dict(zip(("name", "role", "room", "says"), row, strict=True)) for row in rows]}
    shown = [(name, says) for name, _, _, says in rows]
    report.answer(value, table(f"{len(rows)} points", ("point", "what is done, what is not"), shown))
