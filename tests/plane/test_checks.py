"""Arguments are checked in one place: what passes is plain, what does not is named."""

from __future__ import annotations

import enum
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadArgument, RefusedType
from penstock.plane import checks
from penstock.records import KVBatchMeta, Tag
from penstock.requests import TagColumn


class Colour(str, enum.Enum):  # noqa: UP042 - the kind whose str() is not its value
    RED = "red"


class Size(enum.IntEnum):
    SMALL = 1


def test_names_become_plain_strings() -> None:
    """Subclasses of str, tuples and arrays of strings come out as a list of plain str."""
    got = checks.names((np.str_("a"), "b", Colour.RED), "fields")
    assert got == ["a", "b", "red"]
    assert {type(v) for v in got} == {str}
    assert checks.keys(np.array(["x", "y"])) == ["x", "y"]
    assert checks.keys(iter(["x"])) == ["x"]


@pytest.mark.parametrize(
    "values", [None, "ab", b"ab", {"a": 1}, 3, ["a", 1], [None], ["a", ""], ["x" * 1025], ["\ud800"]]
)
def test_what_is_no_list_of_names_is_refused(values: Any) -> None:
    """None, a bare string, mappings, non-strings, empty, overlong and undecodable names are BadArgument."""
    with pytest.raises(BadArgument, match="row keys"):
        checks.keys(values)


def test_a_scalar_that_says_it_is_iterable_is_no_list() -> None:
    """Arrays and tensors without a dimension are refused like any other scalar."""
    for scalar in (np.array("a"), torch.tensor(3)):
        with pytest.raises(BadArgument, match="sample_ids"):
            checks.keys(scalar)


def test_messages_stay_short_and_survive_what_they_show() -> None:
    """A huge or broken value is named by its type, at once."""

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

    for bad in (Broken(), [1] * 1_000_000, "x" * 1_000_000, 10**1000):
        with pytest.raises(BadArgument, match=type(bad).__name__) as caught:
            checks.meta(bad)
        assert len(str(caught.value)) < 300


def test_a_meta_that_was_assigned_to_is_looked_at_again() -> None:
    """Columns that are no longer aligned are refused before rows are read, not after."""
    bent = KVBatchMeta("p", "t", ["a", "b"], tags=[{}, {}])
    bent.sample_ids = ["a", "b", "c"]
    with pytest.raises(BadArgument, match="2 tags or sequence_lengths for 3"):
        checks.meta(bent)
    bent.sample_ids = None  # type: ignore[assignment]
    with pytest.raises(BadArgument, match="sample_ids"):
        checks.meta(bent)


def test_repeated_names_are_named() -> None:
    """Where names must be distinct the error names those that repeat, each once."""
    with pytest.raises(BadArgument, match=r"'b', 'a'$"):
        checks.keys(["a", "b", "b", "a", "a"], unique=True)
    assert checks.keys(["a", "a"]) == ["a", "a"]


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "1", True, [1], 10**400, 1e300])
def test_bad_durations_are_refused(value: Any) -> None:
    """Durations are finite numbers that are not negative; None is the default."""
    with pytest.raises(BadArgument, match="timeout_s"):
        checks.seconds(value, "timeout_s", 30.0)


def test_durations_pass() -> None:
    """Zero, ints and numpy numbers are durations; None becomes the default."""
    assert [checks.seconds(v, "t", 30.0) for v in (0, 1, 2.5, np.float32(0.5), None)] == [0.0, 1.0, 2.5, 0.5, 30.0]  # type: ignore[arg-type]


def test_lease_lengths() -> None:
    """A lease has a positive length or none."""
    assert checks.lease_s(None) is None
    assert checks.lease_s(0.5) == 0.5
    for value in (0, 0.0, -1.0, math.nan):
        with pytest.raises(BadArgument, match="lease_s"):
            checks.lease_s(value)


def test_counts_are_integers() -> None:
    """numpy integers pass as int; bools, floats and numbers below the least do not."""
    assert checks.count(np.int64(3), "n", least=1) == 3
    for value in (0, -1, 1.0, True, "1", None):
        with pytest.raises(BadArgument, match="n must be"):
            checks.count(value, "n", least=1)


def test_claim_sizes() -> None:
    """min_rows lies in 1..batch_size; a claim by key ignores both."""
    assert checks.claim_sizes(8, 3, None) == (8, 3)
    assert checks.claim_sizes(-5, 99, ["a", "b"]) == (2, 2)
    for sizes in ((0, 1), (2, 3), (2, 0)):
        with pytest.raises(BadArgument):
            checks.claim_sizes(*sizes, None)


def test_tokens_and_metas() -> None:
    """A token or a list of tokens becomes a list; a meta is a meta."""
    assert (checks.tokens(None), checks.tokens("t"), checks.tokens(("t", "u"))) == (None, ["t"], ["t", "u"])
    with pytest.raises(BadArgument, match="KVBatchMeta"):
        checks.meta({"sample_ids": []})
    assert checks.meta(KVBatchMeta("p", None, [])).size == 0


def test_on_failed() -> None:
    """raise and drop are known; nothing else."""
    assert (checks.on_failed("raise"), checks.on_failed("drop")) == (False, True)
    for bad in ("skip", None, np.array(["raise", "drop"])):
        with pytest.raises(BadArgument, match="on_failed"):
            checks.on_failed(bad)


def test_scalars_in_tags_become_plain() -> None:
    """0-d numpy and torch scalars and enums of str and int come out as exactly str, int, float, bool or None."""
    row = {
        "a": np.int8(3),
        "b": np.float32(0.5),
        "c": np.bool_(True),
        "d": torch.tensor(True),
        "e": torch.tensor(2.0),
        "f": np.array("x"),
        "g": Colour.RED,
        "h": Size.SMALL,
        "i": None,
        "j": 2**64 - 1,
    }
    (got,) = checks.tag_rows([row], 1) or []
    assert got == {
        "a": 3, "b": 0.5, "c": True, "d": True, "e": 2.0, "f": "x", "g": "red", "h": 1, "i": None, "j": 2**64 - 1
    }  # fmt: skip
    assert {type(v) for v in got.values()} == {int, float, bool, str, type(None)}
    assert type(got["g"]) is str


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([1], "list"),
        (torch.ones(2), "Tensor"),
        (np.ones(1), "ndarray"),
        (b"x", "bytes"),
        (1j, "complex"),
        (np.datetime64("2020-01-01"), "date"),
        (2**64, "int"),
        (-(2**63) - 1, "int"),
        ("\udc00", "str"),
    ],
)
def test_other_values_in_tags_are_refused(value: Any, kind: str) -> None:
    """What is no primitive, or an int beyond 64 bits, is a RefusedType that names tag and type."""
    with pytest.raises(RefusedType, match=f"'bad'.*{kind}"):
        checks.tag_value("bad", value)


@pytest.mark.parametrize("tags", [{"a": 1}, "ab", 3, [{}], [{}, {}, {}], [{}, 1], [{}, {"": 1}], [{}, {1: 1}]])
def test_misaligned_tags_are_refused(tags: Any) -> None:
    """Tags are one mapping per row, with names for names."""
    with pytest.raises(BadArgument):
        checks.tag_rows(tags, 2)
    assert checks.tag_rows(None, 2) is None


def expand(columns: list[TagColumn], n_rows: int) -> list[dict[str, Tag]]:
    """What a reader of tag columns makes of them."""
    rows: list[dict[str, Tag]] = [{} for _ in range(n_rows)]
    for column in columns:
        where = range(n_rows) if column.rows is None else column.rows
        values = column.values * len(where) if len(column.values) == 1 and column.rows is None else column.values
        for i, value in zip(where, values, strict=True):
            rows[i][column.name] = value
    return rows


TAGS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.0, -0.0, 1.0, math.inf]), st.text("ab", max_size=2)
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), TAGS), max_size=5))
def test_columns_are_the_same_tags(rows: list[dict[str, Tag]]) -> None:
    """Columns of tags say exactly what the rows said, types and signs included."""
    assert repr([sorted(r.items()) for r in expand(checks.tag_columns(rows), len(rows))]) == repr(
        [sorted(r.items()) for r in rows]
    )


def test_constant_columns_collapse() -> None:
    """A tag of one value in all rows is sent once; 1, True and 1.0 are three values."""
    assert checks.tag_columns([{"a": 1}] * 3) == [TagColumn("a", [1])]
    assert checks.tag_columns([{"a": 1}, {"a": True}]) == [TagColumn("a", [1, True])]
    assert str(checks.tag_columns([{"a": 0.0}, {"a": -0.0}])[0].values) == "[0.0, -0.0]"
    assert checks.tag_columns([{"a": 1}, {}]) == [TagColumn("a", [1], [0])]
    assert checks.tag_columns([]) == []
