"""``penstock serve``: a plane in the foreground. Told from the command line; the life is the server's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from penstock.config import PlaneConfig, config_from
from penstock.errors import BadArgument
from penstock.ops.report import Report

__all__ = ["plane_config", "serve_plane"]


def plane_config(durability: str, assignments: list[str]) -> PlaneConfig:
    """Build a plane's options from ``--durability`` and ``--set NAME=VALUE``.

    Raises:
        BadArgument: an assignment is malformed, its name unknown or its value of the wrong type.
    """
    options: dict[str, Any] = {"durability": durability}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise BadArgument(f"--set takes NAME=VALUE, got {assignment!r}")
        options[name] = _value(text)
    return config_from(PlaneConfig, options)


def _value(text: str) -> object:
    """Return a number, true, false or null as such, whole floats as integers (``4e9``), anything else as text."""
    try:
        value: object = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return int(value) if isinstance(value, float) and value.is_integer() else value


def serve_plane(report: Report, data_dir: Path | None, durability: str, assignments: list[str]) -> None:
    """Run the plane of ``data_dir`` until SIGTERM or Ctrl-C.

    Raises:
        BadArgument: no directory, or options that are not the plane's.
        DataPlaneUnavailable: another ``penstock serve`` holds the directory.
    """
    if data_dir is None:
        raise BadArgument("where? Pass --data-dir DIR or set PENSTOCK_DATA_DIR; it is made if it does not exist")
    config = plane_config(durability, assignments)
    raise NotImplementedError(config, report)
