"""The lease book: which token goes with which key."""

from __future__ import annotations

from penstock.plane.tokens import LeaseBook
from penstock.requests import ANY_TOKEN, NO_TOKEN, Tokens


def test_one_token_for_all_keys_is_sent_once() -> None:
    """Keys of one claim need no index per key."""
    book = LeaseBook()
    book.hold("p", "train", "t1", ["a", "b"])
    assert book.tokens("p", "train", ["a", "b"]) == Tokens(["t1"], [])


def test_keys_of_several_claims_name_their_own_token() -> None:
    """Each key points at the token of its claim; a key that was never claimed points at none."""
    book = LeaseBook()
    book.hold("p", "train", "t1", ["a"])
    book.hold("p", "train", "t2", ["b"])
    assert book.tokens("p", "train", ["b", "x", "a"]) == Tokens(["t2", "t1"], [0, NO_TOKEN, 1])


def test_a_later_claim_replaces_the_token() -> None:
    """The token of a key is the one of the latest claim."""
    book = LeaseBook()
    book.hold("p", "train", "t1", ["a"])
    book.end("p", "train", ["a"])
    book.hold("p", "train", "t2", ["a"])
    assert book.tokens("p", "train", ["a"]) == Tokens(["t2"], [])


def test_an_ended_lease_is_still_named_by_a_repeat() -> None:
    """An ack that is repeated must carry the token it ended."""
    book = LeaseBook()
    book.hold("p", "train", "t1", ["a"])
    book.end("p", "train", ["a"])
    assert book.tokens("p", "train", ["a"]) == Tokens(["t1"], [])


def test_a_pop_names_the_tokens_of_every_task() -> None:
    """Only the plane knows which task is final: a key held under two tasks may match either token."""
    book = LeaseBook()
    book.hold("p", "score", "t1", ["a", "b"])
    book.hold("p", "train", "t2", ["a"])
    assert book.tokens("p", None, ["a", "b"]) == Tokens(["t1", "t2"], [ANY_TOKEN, 0])


def test_a_pop_names_the_final_task_only_once_it_is_known() -> None:
    """Leases of other tasks do not matter to a pop, and a token that does not fit would be refused."""
    book = LeaseBook()
    book.hold("p", "score", "t1", ["a", "b"])
    book.hold("p", "train", "t2", ["a"])
    book.learn("p", "train")
    assert book.pop_tokens("p", ["a", "b"]) == Tokens(["t2"], [0, NO_TOKEN])


def test_nothing_known_is_no_token() -> None:
    """Rows that were never claimed go without tokens, for pops by key."""
    assert LeaseBook().tokens("p", None, ["a"]) == Tokens([], [])


def test_cleared_rows_are_forgotten() -> None:
    """A key that is put again after a clear is another row: its old token would be refused."""
    book = LeaseBook()
    book.hold("p", "train", "t1", ["a", "b"])
    book.forget("p", ["a"])
    assert book.tokens("p", "train", ["a", "b"]) == Tokens(["t1"], [NO_TOKEN, 0])
    book.forget("p", None)
    assert book.tokens("p", "train", ["b"]) == Tokens([], [])


def test_memory_is_bounded() -> None:
    """Of leases that are never ended here the oldest are forgotten, never the newest ``max_live``."""
    book = LeaseBook(max_live=10, max_ended=10)
    for i in range(100):
        book.hold("p", "train", f"t{i}", [f"k{i}"])
    known = [i for i in range(100) if book.tokens("p", "train", [f"k{i}"]).lease]
    assert known[-10:] == list(range(90, 100))
    assert len(known) <= 20


def test_partitions_that_nobody_claims_from_any_more_are_forgotten() -> None:
    """A run with a partition a step that is never cleared costs no memory; one with live leases stays longest."""
    book = LeaseBook(max_partitions=3)
    book.hold("held", "train", "t", ["a"])
    for step in range(50):
        book.hold(f"step {step}", "train", f"t{step}", ["a"])
        book.end(f"step {step}", "train", ["a"])
    assert len(book._of) == 3
    assert book.tokens("held", "train", ["a"]) == Tokens(["t"], [])
    assert book.tokens("step 49", "train", ["a"]) == Tokens(["t49"], [])
    assert book.tokens("step 0", "train", ["a"]) == Tokens([], [])
