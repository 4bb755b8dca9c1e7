"""Tags on their way into a plane and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.compat.transfer_queue import tags
from penstock.errors import BadArgument, RefusedType
from penstock.plane import checks

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=8),
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
NAMES = st.one_of(st.text(min_size=1, max_size=8), st.sampled_from([*tags.GROUP_TAGS, "tq:", "tq:group_id", "tq:tq:x"]))


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_what_is_stored_reads_back_equal(row: dict[str, Any]) -> None:
    """Any name, any plain value; and what is stored is what a plane takes."""
    stored = tags.stored([row], 1)
    assert stored is not None
    assert checks.tag_rows(stored, 1) == stored
    assert tags.read(stored[0]) == row
    assert not tags.GROUP_TAGS & stored[0].keys()


def test_values_keep_their_types() -> None:
    """1, 1.0 and True are three values; a tuple comes back as a list, a number of numpy as Python's."""
    row = {"i": 1, "f": 1.0, "b": True, "t": (1, (2,)), "n": np.float32(0.5), "nan": math.nan}
    (stored,) = tags.stored([row], 1) or []
    read = tags.read(stored)
    assert [type(read[name]) for name in "ifb"] == [int, float, bool]
    assert (read["t"], read["n"], type(read["n"])) == ([1, [2]], 0.5, float)
    assert math.isnan(read["nan"])


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), [np.arange(2)], {(1, 2): 3}, [2**70], 2**70, np.arange(2), "\ud800", ["\ud800"]]
)
def test_what_would_not_come_back_is_refused_by_name(value: object) -> None:
    """Nothing is pickled, and nothing changes its type in silence."""
    with pytest.raises(RefusedType, match="'odd'"):
        tags.stored([{"odd": value}], 1)


def test_a_value_that_holds_itself_is_refused() -> None:
    """It would have no end."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(RefusedType, match="'odd'"):
        tags.stored([{"odd": loop}], 1)


@pytest.mark.parametrize("given", [[{}, {}], {"a": 1}, "ab", [1], [{3: 4}], [{"": 1}]])
def test_malformed_tags_are_refused(given: Any) -> None:
    """One dict per row, with names."""
    with pytest.raises(BadArgument):
        tags.stored(given, 1)
