"""``penstock trace``: the story of one sample out of a run's events, and the whole run as a trace for Perfetto.

Invariants: the events are enough: a plane is asked for its own view of the sample only where one is named, and what it
does not know, or that it does not answer, is said beside the story and fails nothing.
"""

from __future__ import annotations

import contextlib
import gzip
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import typer
from rich.table import Table

from penstock.controller.event_file import read_events
from penstock.controller.events import RunEvent
from penstock.controller.lineage import Line, Lineage, lineage
from penstock.controller.trace import chrome_trace
from penstock.errors import BadArgument, DataPlaneError, EventsCorrupt, UnknownName
from penstock.ops.connecting import Where, plane_at
from penstock.ops.report import ExitCode, Report
from penstock.ops.tables import table, why_tables
from penstock.requests import WhyReport

__all__ = ["Wanted", "lineage_table", "trace_run"]


@dataclass(frozen=True)
class Wanted:
    """What to trace.

    Attributes:
        key: a row's key, a group's id, or a prompt's number; None = only the export.
        events: the file of a run's events, or the folder that holds it.
        perfetto: where the whole run goes as a trace; ``.gz`` at its end packs it.
        data_dir, partition: of the plane that is asked, too; no partition = each that it has.
    """

    key: str | None
    events: Path
    perfetto: Path | None = None
    data_dir: Path | None = None
    partition: str | None = None
    timeout_s: float = 10.0


class PlaneView(msgspec.Struct, frozen=True):
    """What the plane says: its report, or why there is none."""

    partition: str | None
    report: WhyReport | None
    none: str = ""


def trace_run(report: Report, wanted: Wanted) -> None:
    """Answer with the story, the export, or both; exit code 1 where the events are damaged.

    Raises:
        BadArgument: nothing was asked for, or a file cannot be read or written.
        UnknownName: no event names the key.
    """
    if wanted.key is None and wanted.perfetto is None:
        raise BadArgument("trace what? Name a row, a group or a prompt, or export the whole run with --perfetto FILE")
    try:
        events = read_events(wanted.events)
    except EventsCorrupt as error:
        report.failed(type(error).__name__, error.message)
        raise typer.Exit(ExitCode.FINDING) from None
    story = None if wanted.key is None else lineage(events, wanted.key)
    view = None if story is None or wanted.data_dir is None else _plane_view(story, wanted.data_dir, wanted)
    if wanted.perfetto is not None:
        _export(events, wanted.perfetto)
        report.progress(f"{wanted.perfetto}: {len(events)} events; open it in https://ui.perfetto.dev")
    tables = [] if story is None else [lineage_table(story), *_view_tables(view)]
    exported = None if wanted.perfetto is None else str(wanted.perfetto)
    report.answer({"events": len(events), "lineage": story, "plane": view, "perfetto": exported}, *tables)


def _export(events: list[RunEvent], path: Path) -> None:
    data = msgspec.json.encode(chrome_trace(events))
    try:
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    except OSError as error:
        raise BadArgument(f"{path} cannot be written: {error.strerror or error}") from error


# -- the plane's own view ----------------------------------------------------------------------------------------------


def _plane_view(story: Lineage, data_dir: Path, wanted: Wanted) -> PlaneView:
    name = story.key if story.what != "prompt" else story.groups[-1] if story.groups else ""
    row, group = (name, None) if story.what == "row" else (None, name)
    try:
        with plane_at(Where(data_dir), wanted.timeout_s) as plane:
            known = [one.partition for one in plane.status().partitions]
            for partition in known if wanted.partition is None else [wanted.partition]:
                with contextlib.suppress(UnknownName):
                    return PlaneView(partition, plane.why(partition, key=row, group=group))
    except DataPlaneError as error:
        return PlaneView(None, None, error.message)
    where = f"its partition {wanted.partition!r}" if wanted.partition is not None else "any of its partitions"
    return PlaneView(None, None, f"the plane does not know {name!r}, or not any more, in {where}")


def _view_tables(view: PlaneView | None) -> list[Table]:
    if view is None:
        return []
    if view.report is None:
        return [table("the plane", ("",), [(view.none,)])]
    return why_tables(view.report)


# -- tables ------------------------------------------------------------------------------------------------------------


def lineage_table(story: Lineage) -> Table:
    """Return the story, a line an event."""
    of = "" if story.prompt is None or story.what == "prompt" else f" of prompt {story.prompt}"
    others = len(story.groups) - 1
    attempts = f", {others} other attempts" if others > 0 and story.what != "prompt" else ""
    began = f", from {_moment(story.lines[0].at):%Y-%m-%d %H:%M:%S %Z}" if story.lines else ""
    title = f"{story.what} {story.key}{of}{attempts}{began}"
    caption = f"now, after {story.seconds:.3f} s: {story.now}"
    if not all(line.own for line in story.lines):
        caption += "\n· of another attempt, or of the whole run"
    return table(title, ("time>", "after>", "life>", "event"), [_row(line) for line in story.lines], caption)


def _row(line: Line) -> tuple[str, ...]:
    time = f"{_moment(line.at):%m-%d %H:%M:%S.%f}"[:-3]
    return time, f"{line.after_s:.3f} s", str(line.life), line.text if line.own else f"· {line.text}"


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, tz=UTC).astimezone()
