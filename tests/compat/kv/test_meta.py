"""A batch by its keys: checks and transforms."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.compat.transfer_queue.meta import KVBatchMeta
from penstock.errors import BadArgument


def meta(*keys: str, **more: object) -> KVBatchMeta:
    return KVBatchMeta(list(keys), [{"of": key} for key in keys], "p", **{"fields": ["x"], **more})  # type: ignore[arg-type]


def test_keys_and_tags_are_aligned_and_distinct() -> None:
    """What is not is refused at once, as a ValueError."""
    for keys, tags, fields in ((["a"], [], None), (["a", "a"], [{}, {}], None), (["a"], [{}], ["x", "x"])):
        with pytest.raises(ValueError, match=r"KVBatchMeta|repeated"):
            KVBatchMeta(keys, tags, "p", fields)  # type: ignore[arg-type]


def test_a_meta_shares_nothing_with_what_it_was_made_of() -> None:
    """Nor do its parts with it."""
    tags = [{"n": [1]}]
    whole = KVBatchMeta(["a"], tags, "p", extra_info={"e": [1]})
    (part,) = whole.chunk(1)
    tags[0]["n"].append(2)
    part.tags[0]["n"].append(3)
    assert (whole.tags, part.tags) == ([{"n": [1]}], [{"n": [1, 3]}])
    assert (whole.size, len(whole), str(whole)) == (
        1,
        1,
        "KVBatchMeta(size=1, field_names=None, extra_info={'e': [1]})",
    )


def test_rows_are_selected_and_reordered_with_their_tags() -> None:
    """By key into a new meta; by index in place."""
    whole = meta("a", "b", "c")
    assert whole.select_keys(["c", "a"]) == meta("c", "a")
    whole.reorder([2, 0, 1])
    assert whole == meta("c", "a", "b")
    for odd in (["a", "a"], ["nobody"]):
        with pytest.raises(BadArgument):
            whole.select_keys(odd)
    for wrong in ([0, 1], [0, 0, 1], [0, 1, 3]):
        with pytest.raises(BadArgument):
            whole.reorder(wrong)


def test_chunks_differ_by_one_row_at_most() -> None:
    """The first ones are the larger; there may be more chunks than rows."""
    sizes = [[part.keys for part in meta("a", "b", "c").chunk(n)] for n in (2, 5)]
    assert sizes == [[["a", "b"], ["c"]], [["a"], ["b"], ["c"], [], []]]
    with pytest.raises(BadArgument):
        meta("a").chunk(0)


def test_joining_undoes_splitting() -> None:
    """Empty parts are passed over; of nothing it is an empty meta."""
    whole = meta("a", "b", "c", extra_info={"step": 3, "mask": np.arange(2)})
    joined = KVBatchMeta.concat(whole.chunk(5))
    assert (joined.keys, joined.tags, joined.fields) == (whole.keys, whole.tags, whole.fields)
    assert joined.extra_info is not None
    assert joined.extra_info["step"] == 3
    assert KVBatchMeta.concat([]) == KVBatchMeta()


@pytest.mark.parametrize(
    "other",
    [
        KVBatchMeta(["b"], [{}], "q", ["x"]),
        KVBatchMeta(["b"], [{}], "p", ["y"]),
        KVBatchMeta(["b"], [{}], "p", ["x"], {"step": 4}),
        KVBatchMeta(["b"], [{}], "p", ["x"], {"step": np.arange(3)}),
        KVBatchMeta(["a"], [{}], "p", ["x"]),
    ],
)
def test_batches_that_do_not_belong_together_are_not_joined(other: KVBatchMeta) -> None:
    """Other partitions, other fields, contradicting facts, a key of both."""
    with pytest.raises(BadArgument):
        KVBatchMeta.concat([meta("a", extra_info={"step": 3}), other])
