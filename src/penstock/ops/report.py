"""How a command answers: a table for people or one JSON object, an exit code, no traceback for a known failure.

Exit codes: 0 all is well; 1 a finding (the books do not balance, rows are lost, a simulated world broke a promise);
2 the command was wrong; 69 no plane answered; 130 interrupted. 69 and 2 are those of sysexits.h and of click.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import msgspec
import typer
from rich.console import Console, RenderableType
from rich.markup import escape

from penstock.errors import DataPlaneBadRequest, DataPlaneError

__all__ = ["ExitCode", "Report", "plain", "reporting"]


class ExitCode(IntEnum):
    OK = 0
    FINDING = 1
    USAGE = 2
    UNAVAILABLE = 69
    INTERRUPTED = 130


class Report:
    """Where one command's answer goes.

    Args:
        as_json: one JSON object on stdout instead of a table.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._out = Console(soft_wrap=False)
        self._progress = Console(stderr=True, highlight=False)
        self._answered = False

    def answer(self, value: object, *tables: RenderableType) -> None:
        """Print ``value`` as JSON, or ``tables`` for people; once."""
        self._answered = True
        if self.as_json:
            sys.stdout.write(json.dumps(plain(value), allow_nan=False) + "\n")
            sys.stdout.flush()
            return
        for table in tables:
            self._out.print(table)

    def progress(self, text: str) -> None:
        """Tell on stderr what is going on."""
        self._progress.print(escape(text), soft_wrap=True)

    def failed(self, kind: str, message: str, keys: Sequence[str] = ()) -> None:
        """Say what failed: on stderr, and as the JSON object where one was asked for and none was given."""
        if self.as_json and not self._answered:
            self.answer({"error": {"type": kind, "message": message, "keys": list(keys)}})
        self._progress.print(f"[bold red]{kind}[/]: {escape(message)}")


@contextmanager
def reporting(as_json: bool) -> Iterator[Report]:
    """Run a command's body: turn its failures into a message and an exit code."""
    report = Report(as_json=as_json)
    try:
        yield report
    except DataPlaneError as error:
        report.failed(type(error).__name__, error.message, error.keys)
        code = ExitCode.USAGE if isinstance(error, DataPlaneBadRequest) else ExitCode.UNAVAILABLE
        raise typer.Exit(code) from None
    except KeyboardInterrupt:
        report.failed("Interrupted", "by Ctrl-C or a signal")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def plain(value: object) -> Any:
    """Return ``value`` as JSON's types; records become objects by field name, also those that travel as arrays.

    Records that travel as objects and say which kind they are do so here too (``type``).
    """
    if isinstance(value, msgspec.Struct):
        how = value.__struct_config__
        kind = {how.tag_field: how.tag} if how.tag_field is not None and not how.array_like else {}
        return kind | {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
