"""Puts: atomic, versioned, repeatable, and never a ghost."""

from __future__ import annotations

import time

import pytest

from penstock.ledger.events import BlocksLost
from penstock.requests import Claimed, Clear, Commit, Done, FieldSpec, Grant, GrantAgain, Locate, PutTags, TagColumn
from tests.ledger.office import Office, group_tags


@pytest.fixture
def office() -> Office:
    made = Office()
    made.open(1)
    made.register()
    return made


def test_a_put_is_visible_only_after_its_commit(office: Office) -> None:
    """Between grant and commit nobody can claim or read the rows."""
    call = office.grant(1, ["a", "b"])
    assert office.claim(1).keys == []
    grant = office.granted(call)
    assert grant is not None
    office.done(1, Commit(grant, 7))
    assert office.claim(1).keys == ["a", "b"]
    assert office.filled == [grant]


def test_a_commit_of_a_grant_the_ledger_does_not_know_asks_for_another(office: Office) -> None:
    """After a restart the writer copies once more; nothing happened."""
    assert office.ask(1, Commit(99, 7)) == GrantAgain()
    assert office.audit().put == 0


def test_nobody_commits_another_clients_grant(office: Office) -> None:
    """A grant belongs to the client that asked for it."""
    office.open(2)
    grant = office.granted(office.grant(1, ["a"]))
    assert grant is not None
    assert office.ask(2, Commit(grant, 7)) == GrantAgain()
    office.done(1, Commit(grant, 7))


def test_a_repeated_commit_gets_the_old_reply_and_has_no_second_effect(office: Office) -> None:
    """(session, sequence) names the mutation."""
    grant = office.granted(office.grant(1, ["a"]))
    assert grant is not None
    office.done(1, Commit(grant, 7), seq=50)
    office.done(1, Commit(grant, 7), seq=50)
    assert office.audit().put == 1


def test_the_same_bytes_put_again_change_nothing_even_after_the_row_was_trained(office: Office) -> None:
    """A timed-out put that is repeated under a new grant does not bring a trained row back."""
    office.put_done(1, ["a", "b"], content=7)
    office.put_done(1, ["a", "b"], content=7)
    assert office.audit().put == 2
    office.pop(1, ["a"])
    office.put_done(1, ["a", "b"], content=7)
    audit = office.audit()
    assert (audit.put, audit.trained, audit.in_flight) == (2, 1, 1)


def test_other_bytes_for_a_removed_row_are_refused_and_the_batch_applies_nothing(office: Office) -> None:
    """RowRemoved names the removed rows; the new row of the same batch does not appear."""
    office.put_done(1, ["a"], content=7)
    office.pop(1, ["a"])
    reply = office.put(1, ["a", "new"], content=8)
    assert (reply.code, reply.keys) == ("RowRemoved", ["a"])  # type: ignore[union-attr]
    assert office.claim(1).keys == []


def test_a_late_column_resurrects_nothing(office: Office) -> None:
    """A logprob column for an evicted row is refused."""
    office.put_done(1, ["a"])
    office.evict(1, ["a"])
    assert office.put(1, ["a"], fields=["logprobs"]).code == "RowRemoved"  # type: ignore[union-attr]


def test_a_put_that_races_a_clear_leaves_no_ghost(office: Office) -> None:
    """Granted before the clear = removed; granted after it = a new row."""
    before = office.granted(office.grant(1, ["a"]))
    office.done(1, Clear("p", ["a"]))
    assert before is not None
    office.fails(1, Commit(before, 7), "RowRemoved")
    office.put_done(1, ["a"], content=8)
    assert office.claim(1).keys == ["a"]


def test_a_clear_of_everything_refuses_older_grants_also_after_a_new_registration(office: Office) -> None:
    """The stamp of the grant decides, not the name of the partition."""
    before = office.granted(office.grant(1, ["a"]))
    office.clear(1, None)
    office.register()
    assert before is not None
    office.fails(1, Commit(before, 7), "RowRemoved")


def test_a_later_stage_adds_columns_under_the_same_keys(office: Office) -> None:
    """Each (row, field) has its own produced bit; the row is ready when all required fields are there."""
    office.put_done(1, ["a", "b"])
    assert office.claim(1, required=["x", "logprobs"]).keys == []
    office.put_done(1, ["b"], fields=["logprobs"])
    assert office.claim(1, required=["x", "logprobs"]).keys == ["b"]


def test_a_field_keeps_the_type_of_its_first_put(office: Office) -> None:
    """The refusal names both types, before a byte is copied."""
    office.put_done(1, ["a"])
    reply = office.put(1, ["b"], dtype="float32")
    assert reply.code == "BadArgument"  # type: ignore[union-attr]
    assert "int64" in reply.message  # type: ignore[union-attr]
    assert "float32" in reply.message  # type: ignore[union-attr]


def test_a_block_is_freed_with_its_last_row_or_when_nothing_of_it_shows_any_more(office: Office) -> None:
    """Rewriting all of a block's rows frees it; rewriting one of two does not."""
    office.put_done(1, ["a", "b"], content=1)
    first = office.filled[-1]
    office.put_done(1, ["a"], content=2)
    assert office.freed == []
    office.put_done(1, ["b"], content=3)
    assert office.freed == [first]
    office.pop(1, ["a", "b"])
    assert len(office.freed) == 3


def test_a_reader_sees_the_newest_version_of_every_row_at_one_moment(office: Office) -> None:
    """Locate names, per row, the block of its newest put; repeated rows are allowed."""
    office.put_done(1, ["a", "b"], content=1)
    first = office.filled[-1]
    office.put_done(1, ["b"], content=2)
    second = office.filled[-1]
    office.post(1, Locate("p", ["b", "a", "b"], ["x"]))
    found = office.resolved[-1]
    (source,) = found.sources
    assert [found.blocks[i].block_id for i in source.block] == [second, first, second]
    assert source.index == [0, 0, 0]


def test_tags_merge_and_a_fields_only_put_keeps_them(office: Office) -> None:
    """Writing a column does not write back old tags."""
    office.put_done(1, ["a"], tags=[TagColumn("state", ["running"]), TagColumn("n", [1])])
    assert office.tag(1, ["a"], state="finished") == Done()
    office.put_done(1, ["a"], fields=["logprobs"])
    assert office.claim(1).tags == [{"state": "finished", "n": 1}]


def test_a_tag_only_put_to_an_absent_row_is_unknown_and_to_a_removed_one_is_refused(office: Office) -> None:
    """KeyError for a name nobody put; RowRemoved for one that is gone."""
    office.put_done(1, ["a"])
    office.pop(1, ["a"])
    assert office.tag(1, ["nobody"], n=1).code == "UnknownName"  # type: ignore[union-attr]
    assert office.tag(1, ["a"], n=1).code == "RowRemoved"  # type: ignore[union-attr]


def test_many_tag_only_puts_do_not_pile_up(office: Office) -> None:
    """A write of which nothing shows any more is forgotten."""
    office.put_done(1, ["a"])
    for step in range(50):
        office.tag(1, ["a"], step=step)
    assert len(office.ledger.desk.state.writes) == 2


@pytest.mark.parametrize(
    "body",
    [
        Grant("p", ["a", "a"], [FieldSpec("x", "int64", 1)], [], 1000, [1, 1]),
        Grant("p", ["a"], [FieldSpec("x", "int64", 1)], [], 1000, [1, 1]),
        Grant("p", ["a"], [FieldSpec("x", "int64", 1)], [], 10, [100]),
        Grant("p", ["a"], [FieldSpec("x", "int64", 1), FieldSpec("x", "int64", 1)], [], 1000, [1]),
        Grant("p", ["a"], [FieldSpec("x", "int64", 1)], [TagColumn("t", [1, 2], [0, 5])], 1000, [1]),
        Grant("p", ["a"], [FieldSpec("x", "int64", 1)], [TagColumn("t", [1, 2, 3])], 1000, [1]),
        Grant("p", ["a"], [FieldSpec("x", "int64", 1)], [TagColumn("t", [1]), TagColumn("t", [2])], 1000, [1]),
        Grant("p", [""], [FieldSpec("x", "int64", 1)], [], 1000, [1]),
        Grant("p", [], [FieldSpec("x", "int64", 1)], [], 1000, []),
        Grant("p", ["a"], [FieldSpec("x", "int64", 1)], [], 1000, [-1]),
    ],
)
def test_a_peer_that_lies_about_its_put_is_refused(office: Office, body: Grant) -> None:
    """Nothing of a malformed put reaches the state."""
    office.fails(1, body, "BadArgument")
    assert office.ledger.desk.state.grants == {}


def test_the_kept_promise_of_a_group_is_its_tags(office: Office) -> None:
    """Columns of tags that cover some rows only are read per row."""
    tags = [TagColumn("reward", [0.5, None], [0, 2])]
    office.put_done(1, ["a", "b", "c"], tags=tags)
    reply = office.claim(1)
    assert reply.tags == [{"reward": 0.5}, {}, {"reward": None}]


def test_puts_of_tags_alone_need_rows_and_tags_that_agree(office: Office) -> None:
    """A misaligned tag column is refused."""
    office.put_done(1, ["a", "b"])
    office.fails(1, PutTags("p", ["a", "b"], [TagColumn("t", [1, 2, 3])]), "BadArgument")


def test_an_unfinished_group_that_was_evicted_takes_no_late_rows(office: Office) -> None:
    """Its id is remembered: a late sibling is refused."""
    office.put_done(1, ["g_0"], tags=group_tags("g", 2))
    office.evict(1, ["g_0"])
    assert office.put(1, ["g_1"], tags=group_tags("g", 2)).code == "RowRemoved"  # type: ignore[union-attr]


def test_lengths_of_a_claim_come_from_the_tag_else_from_the_ragged_field(office: Office) -> None:
    """``input_lengths`` wins."""
    office.put_done(1, ["a"], tags=[TagColumn("input_lengths", [11])])
    office.put_done(1, ["b"])
    reply = office.claim(1)
    assert isinstance(reply, Claimed)
    assert reply.lengths == [11, 3]


def test_tags_of_one_row_do_not_hide_those_of_its_neighbours(office: Office) -> None:
    """A put whose tag covers one row only keeps the other row's older tag of the same name."""
    office.put_done(1, ["a", "b"], tags=[TagColumn("committed", [True])])
    body = PutTags("p", ["b", "a"], [TagColumn("committed", [False], [0]), TagColumn("v", [3], [1])])
    office.done(1, body)
    assert office.claim(1).tags == [{"committed": True, "v": 3}, {"committed": False}]


def test_after_a_clear_of_everything_later_puts_make_new_rows(office: Office) -> None:
    """Also of rows that had been trained or evicted before it."""
    office.put_done(1, ["a", "b"], content=1)
    office.pop(1, ["a"])
    office.evict(1, ["b"])
    office.clear(1, None)
    office.register()
    office.put_done(1, ["a", "b"], content=2)
    assert office.claim(1).keys == ["a", "b"]


def test_a_put_granted_before_a_clear_does_not_overwrite_the_row_made_after_it(office: Office) -> None:
    """The new row of the same name is another one."""
    office.put_done(1, ["a"], content=1)
    before = office.granted(office.grant(1, ["a"]))
    office.clear(1, ["a"])
    office.put_done(1, ["a"], content=2)
    assert before is not None
    office.fails(1, Commit(before, 3), "RowRemoved")


def test_a_grant_of_an_earlier_life_is_no_grant_of_this_one(office: Office) -> None:
    """Grants are not journaled: the next life begins beyond any number that the last can have given."""
    before = office.granted(office.grant(1, ["a"]))
    office.crash()
    office.resume(1)
    after = office.granted(office.grant(1, ["b"]))
    assert before is not None
    assert after != before
    assert office.ask(1, Commit(before, 7)) == GrantAgain()
    assert office.audit().put == 0


def test_a_repeated_put_of_many_rows_looks_at_its_tags_once(office: Office) -> None:
    """Not once for each row, which would stop the plane for seconds. (It takes some 0.1 s.)"""
    keys = [f"k{i}" for i in range(20_000)]
    tags = [TagColumn("n", list(keys)), TagColumn("m", list(keys), list(range(len(keys))))]
    office.put_done(1, keys, tags=tags, content=1)
    repeated = [TagColumn("n", list(keys)), TagColumn("m", list(keys), list(range(len(keys))))]
    began = time.process_time()
    office.put_done(1, keys, tags=repeated, content=1)
    assert time.process_time() - began < 2.5
    assert office.audit().put == len(keys)


def test_the_same_bytes_of_a_lost_row_are_not_acknowledged(office: Office) -> None:
    """What is gone cannot be read by anyone: its producer is told, whatever he puts."""
    office.put_done(1, ["a"], content=7)
    office.event(BlocksLost([office.filled[-1]], "damaged"))
    assert office.put(1, ["a"], content=7).code == "RowRemoved"  # type: ignore[union-attr]
