"""Argument validation shared by all adapters: what is wrong with a call is said before anything is sent.

Invariants: pure; a returned list or number is plain (``list``, ``str``, ``int``, ``float``), safe to encode; every
refusal is a ``BadArgument`` or, for a value of a type that is not carried, a ``RefusedType``, and names the culprit.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from penstock.errors import BadArgument, RefusedType, abbreviate
from penstock.payload import codec
from penstock.records import GroupPolicy, KVBatchMeta, Tag
from penstock.requests import RegisterPartition, TagColumn

MAX_SECONDS = 1e12  # 30,000 years; longer ones are sums or units gone wrong, and no clock can add them exactly
MAX_NAME_CHARS = 1024  # partitions, tasks, fields, keys and tag names; keys live in memory for each row
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_AS_THEY_ARE = frozenset((bool, float, type(None)))  # tag values that need no look
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1  # what one msgpack integer holds


def name(value: object, what: str) -> str:
    """Return ``value`` as a name: a non-empty string that UTF-8 can carry."""
    if not isinstance(value, str):
        raise BadArgument(f"{what} must be a string, got {_shown(value)}")
    return names([value], what)[0]


def names(values: object, what: str, *, unique: bool = False, may_be_empty: bool = True) -> list[str]:
    """Return ``values``, a list of names, as a plain list; ``what`` says in errors what they are."""
    if values is None or isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise BadArgument(f"{what} must be a list of strings, got {_shown(values)}")
    try:
        plain = list(values)
    except TypeError as flat:  # a 0-d array or tensor says that it is iterable
        raise BadArgument(f"{what} must be a list of strings, got {_shown(values)}") from flat
    if set(map(type, plain)) != {str}:
        plain = [str.__str__(v) if isinstance(v, str) else v for v in plain]  # str() of an Enum is not its value
    elif all(plain) and max(map(len, plain)) <= MAX_NAME_CHARS and "".join(plain).isascii():
        return _distinct(plain, what) if unique else plain  # as nearly all are; the rest says what is wrong
    bad = [v for v in plain if not isinstance(v, str) or not v or len(v) > MAX_NAME_CHARS]
    if bad:
        raise BadArgument(
            f"{what} must be non-empty strings of at most {MAX_NAME_CHARS} characters, got {_shown(bad[0])}"
        )
    if not plain and not may_be_empty:
        raise BadArgument(f"{what}: at least one is needed")
    if not _utf8("".join(plain)):
        raise BadArgument(f"{what} must be valid unicode, got {next(v for v in plain if not _utf8(v))!r}")
    return _distinct(plain, what) if unique else plain


def _distinct(plain: list[str], what: str) -> list[str]:
    if len(set(plain)) != len(plain):
        raise BadArgument(f"{what} must be distinct; repeated: {abbreviate(_repeated(plain))}")
    return plain


def keys(values: object, *, unique: bool = False) -> list[str]:
    """Return row keys as a plain list; None, which only a clear takes, is refused."""
    return names(values, "sample_ids (row keys)", unique=unique)


def count(value: object, what: str, *, least: int = 0) -> int:
    """Return ``value`` as an int of at least ``least``."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise BadArgument(f"{what} must be an integer, got {_shown(value)}") from None
    if isinstance(value, bool) or number < least:
        raise BadArgument(f"{what} must be an integer of at least {least}, got {_shown(value)}")
    return number


def seconds(value: float | None, what: str, default: float) -> float:
    """Return a duration, ``default`` for None; negative, NaN and absurd ones are refused."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise BadArgument(f"{what} must be a number of seconds, got {_shown(value)}")
    if not 0 <= value <= MAX_SECONDS:  # nor NaN
        raise BadArgument(f"{what} must lie between 0 and {MAX_SECONDS:g} seconds, got {_shown(value)}")
    return float(value)


def lease_s(value: float | None) -> float | None:
    """Return a lease's length: positive seconds, or None for "with the session"."""
    if value is None:
        return None
    if seconds(value, "lease_s", 0.0) == 0.0:
        raise BadArgument("lease_s must be positive; None leases until the session ends")
    return float(value)


def tokens(lease: str | Sequence[str] | None) -> list[str] | None:
    """Return lease tokens as a list; None = those the client remembers."""
    if lease is None:
        return None
    return names([lease] if isinstance(lease, str) else lease, "lease")


def claim_sizes(batch_size: object, min_rows: object, chosen: Sequence[str] | None) -> tuple[int, int]:
    """Return ``(batch, min_rows)`` of a claim; a claim by key ignores both."""
    if chosen is not None:
        return len(chosen), len(chosen)
    batch = count(batch_size, "batch_size", least=1)
    least = count(min_rows, "min_rows", least=1)
    if least > batch:
        raise BadArgument(f"min_rows ({least}) exceeds batch_size ({batch}): such a claim could never be served")
    return batch, least


def meta(value: object) -> KVBatchMeta:
    """Return ``value``, a meta whose columns are still aligned: its fields may have been assigned to."""
    if not isinstance(value, KVBatchMeta):
        raise BadArgument(f"meta must be a KVBatchMeta, got {_shown(value)}")
    rows = value.sample_ids if isinstance(value.sample_ids, list) else keys(value.sample_ids)
    for column in (value.tags, value.sequence_lengths):
        if column is not None and len(column) != len(rows):
            raise BadArgument(f"meta has {len(column)} tags or sequence_lengths for {len(rows)} sample_ids")
    return value


def fields_of(meta_: KVBatchMeta, select_fields: object) -> list[str]:
    """Return the columns that a ``get_data`` reads: those selected, else the meta's own; never all."""
    fields = meta_.fields if select_fields is None else select_fields
    if fields is None:
        text = "get_data: neither select_fields nor meta.fields names a column"
        raise BadArgument(text, partition=meta_.partition_id)
    return names(fields, "select_fields", may_be_empty=False)


def held(value: object, what: str) -> tuple[str, str, list[str], list[str] | None]:
    """Return partition, task, keys and tokens of an ack, release or renewal; tokens None = those remembered."""
    given = meta(value)
    if given.task_name is None:
        raise BadArgument(f"{what}: the meta names no task; only claimed rows can be", partition=given.partition_id)
    partition, task = name(given.partition_id, "partition_id"), name(given.task_name, "task_name")
    return partition, task, keys(given.sample_ids), tokens(given.lease)


def registration(
    partition_id: object,
    fields: object,
    num_samples: object,
    consumer_tasks: object,
    grpo_group_size: object,
    enums: object,
    group_policy: object,
) -> RegisterPartition:
    """Return what ``register_partition`` was asked for."""
    if group_policy is not None and not isinstance(group_policy, GroupPolicy):
        raise BadArgument(f"group_policy must be a GroupPolicy, got {_shown(group_policy)}")
    return RegisterPartition(
        name(partition_id, "partition_id"),
        names(fields, "fields"),
        count(num_samples, "num_samples"),
        names(consumer_tasks, "consumer_tasks", unique=True, may_be_empty=False),
        None if grpo_group_size is None else count(grpo_group_size, "grpo_group_size", least=1),
        _enums(enums),
        group_policy,
    )


def _enums(enums: object) -> dict[str, list[str]] | None:
    if enums is None:
        return None
    if not isinstance(enums, Mapping):
        raise BadArgument(f"enums must be a mapping, got {_shown(enums)}")
    return {name(key, "a name of enums"): names(values, f"enums[{key!r}]") for key, values in enums.items()} or None


def version(value: object) -> int | None:
    """Return a bound on weight versions: any integer that fits the wire, or None."""
    return None if value is None else count(value, "a weight version", least=-(2**63))


def on_failed(value: object) -> bool:
    """Return whether rows that cannot be read are dropped."""
    if not isinstance(value, str) or value not in ("raise", "drop"):
        raise BadArgument(f'on_failed must be "raise" or "drop", got {_shown(value)}')
    return value == "drop"


def tag_rows(tags: object, n_rows: int) -> list[dict[str, Tag]] | None:
    """Return tags as one plain dict per row; 0-d numpy and torch scalars become Python's."""
    if tags is None:
        return None
    if isinstance(tags, (str, bytes, Mapping)) or not isinstance(tags, Iterable):
        raise BadArgument(f"tags must be a list of one mapping per row, got {_shown(tags)}")
    rows = list(tags)
    if len(rows) != n_rows:
        raise BadArgument(f"tags: {len(rows)} mappings for {n_rows} rows")
    odd = [row for row in rows if not isinstance(row, Mapping)]
    if odd:
        raise BadArgument(f"tags must be mappings, got {_shown(odd[0])}")
    known: dict[object, str] = {}  # tag names that were checked: rows mostly have the same ones
    return [_tag_row(row, known) for row in rows]


def _tag_row(row: Mapping[Any, Any], known: dict[object, str]) -> dict[str, Tag]:
    plain: dict[str, Tag] = {}
    for tag, value in row.items():
        if tag not in known:
            known[tag] = name(tag, "tag name")
        kind = type(value)
        if kind in _AS_THEY_ARE or (kind is str and value.isascii()) or (kind is int and 0 <= value <= _INT_MAX):
            plain[known[tag]] = value
        else:
            plain[known[tag]] = tag_value(tag, value)
    return plain


def tag_value(tag: str, value: Any) -> Tag:
    """Return one tag's value as a plain primitive."""
    value = _scalar(value)
    if value is None or isinstance(value, (bool, float)):
        return value if not isinstance(value, float) else float(value)
    if isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            raise RefusedType(f"tag {tag!r}: the int {value} does not fit in 64 bits")
        return int(value)
    if not isinstance(value, str):
        raise RefusedType(f"tag {tag!r}: {type(value).__name__} is not carried; tags are str, int, float, bool or None")
    if not _utf8(value):
        raise RefusedType(f"tag {tag!r}: the str {value!r} is not valid unicode")
    return str.__str__(value)


def tag_columns(tags: Sequence[Mapping[str, Tag]]) -> list[TagColumn]:
    """Return plain tags as columns; a tag of one value for all rows becomes one value."""
    every = list(range(len(tags)))
    if tags and all(row.keys() == tags[0].keys() for row in tags):  # as nearly all puts are
        return [_column(name_, [row[name_] for row in tags], every, len(tags)) for name_ in tags[0]]
    where: dict[str, list[int]] = {}
    for row, tag in enumerate(tags):
        for name_ in tag:
            where.setdefault(name_, []).append(row)
    return [_column(name_, [tags[i][name_] for i in rows], rows, len(tags)) for name_, rows in where.items()]


def _column(name_: str, values: list[Tag], rows: list[int], n_rows: int) -> TagColumn:
    if len(rows) < n_rows:
        return TagColumn(name_, values, rows)
    constant = values[0] == values[-1] and all(_same(values[0], v) for v in values)
    return TagColumn(name_, values[:1] if constant else values)


def _same(one: Tag, other: Tag) -> bool:
    """Whether two tags are one value: 1, 1.0 and True are three, and so are 0.0 and -0.0 two."""
    if type(one) is not type(other) or one != other:
        return False
    return not isinstance(one, float) or math.copysign(1.0, one) == math.copysign(1.0, other)  # type: ignore[arg-type]


def _scalar(value: Any) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    torch = codec.loaded("torch")  # a tensor can only come from a process that has imported torch
    if torch is not None and isinstance(value, torch.Tensor) and value.dim() == 0 and value.device.type != "meta":
        return value.item()
    return value


def _utf8(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _repeated(values: list[str]) -> list[str]:
    seen: set[str] = set()
    return list(dict.fromkeys(v for v in values if v in seen or seen.add(v)))  # type: ignore[func-returns-value]


def _shown(value: object) -> str:
    """Return a value for a message: short, whatever its size, and whatever its ``repr`` does."""
    return f"{type(value).__name__} {_SHORT.repr(value)}"
