"""Tags as TransferQueue has them, in tags as a plane has them, and back.

A plane's tags are primitives, and some names mean something to it. So: a name by which it knows groups, or one that
begins as ours do, gets a prefix; a value that is no primitive becomes a string of msgpack with a prefix, as does a
string that begins so. Invariants: what is stored reads back equal, but that tuples come back as lists (so they do over
TransferQueue's own wire); rows put here are in no group, so that the plane never waits for siblings or gives them up.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from penstock.errors import BadArgument, RefusedType
from penstock.plane import checks
from penstock.records import Tag

__all__ = ["GROUP_TAGS", "PREFIX", "read", "stored"]

PREFIX = "tq:"
GROUP_TAGS = frozenset({"group_id", "committed", "expected_num_keys", "num_keys"})  # what a plane takes a group from
_PLAIN = (bool, int, float, type(None), np.generic)


def stored(tags: Sequence[Mapping[str, Any]] | None, n_rows: int) -> list[dict[str, Tag]] | None:
    """Return the tags of ``n_rows`` rows as the plane has them.

    Raises:
        BadArgument: they are not one mapping per row, or a name is not a string.
        RefusedType: a value that msgpack does not carry.
    """
    if tags is None:
        return None
    if isinstance(tags, (str, bytes, Mapping)) or not isinstance(tags, Sequence):
        raise BadArgument(f"tags must be a list of one dict per key, got {type(tags).__name__}")
    if len(tags) != n_rows:
        raise BadArgument(f"tags: {len(tags)} dicts for {n_rows} keys")
    return [_stored_row(row) for row in tags]


def read(tags: Mapping[str, Tag]) -> dict[str, Any]:
    """Return a row's tags as they were put."""
    return {name.removeprefix(PREFIX): _read_value(value) for name, value in tags.items()}


def _stored_row(row: object) -> dict[str, Tag]:
    if not isinstance(row, Mapping):
        raise BadArgument(f"a row's tags must be a dict, got {type(row).__name__}")
    return {_stored_name(name): _stored_value(name, value) for name, value in row.items()}


def _stored_name(name: object) -> str:
    plain = checks.name(name, "tag name")
    return PREFIX + plain if plain in GROUP_TAGS or plain.startswith(PREFIX) else plain


def _stored_value(name: str, value: Any) -> Tag:
    if isinstance(value, _PLAIN) or (isinstance(value, str) and not value.startswith(PREFIX)):
        return checks.tag_value(name, value)
    try:
        _require_carried(value)
        return PREFIX + base64.b64encode(msgspec.msgpack.encode(value)).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as refused:  # too large, too deep, no unicode
        raise RefusedType(f"tag {name!r}: the {type(value).__name__} is not carried: {refused}") from refused


def _require_carried(value: Any) -> None:
    """Raise TypeError for what would come back as something else: sets, dates, subclasses of plain types."""
    if type(value) in (list, tuple):
        for item in value:
            _require_carried(item)
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"a dict's key is a {type(key).__name__}")
            _require_carried(item)
    elif type(value) not in (str, bytes, bool, int, float, type(None)):
        raise TypeError(f"a {type(value).__name__} would not come back as one")


def _read_value(value: Tag) -> Any:
    if isinstance(value, str) and value.startswith(PREFIX):
        return msgspec.msgpack.decode(base64.b64decode(value.removeprefix(PREFIX)), strict=False)
    return value
