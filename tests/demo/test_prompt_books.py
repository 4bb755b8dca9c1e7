"""The books of prompts: the controller's record must agree with what everybody else wrote down."""

from __future__ import annotations

import pytest

from penstock.controller.record import ControllerRecord, OpenPrompt
from penstock.demo.prompt_books import PromptBooks, prompt_books
from penstock.testing.checker import Entry, Moment, Put, Trained

SIZE = 2


def rows(prompt: int, attempt: int = 0, count: int = SIZE) -> list[str]:
    return [f"run.{prompt}.{attempt}_g{i}" for i in range(count)]


def trained(step: int, *keys: str, moment: Moment = "after") -> list[Entry]:
    return [Trained(moment, key, "ff", 0, step, step - 1) for key in keys]


def record(cursor: int, *still_open: int, dropped: int = 0) -> ControllerRecord:
    return ControllerRecord(
        run="run", cursor=cursor, open=tuple(OpenPrompt(i, 0) for i in still_open), dropped={"rejected": dropped}
    )


def test_what_is_trained_is_what_the_trainer_wrote_down() -> None:
    """Not what it began; a line that a new life repeats is the same; what the record calls open may be trained."""
    entries = [
        *trained(1, *rows(0), *rows(1)),
        *trained(1, *rows(0)),
        *trained(2, *rows(2, attempt=3)),
        *trained(3, *rows(3), moment="before"),
        Put("before", rows(3)[0], "ff", 0),
    ]
    books = prompt_books(record(5, 2, 3, dropped=1), entries, SIZE)
    assert books == PromptBooks(dispatched=5, trained=3, dropped=1, open=1)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (trained(1, *rows(0)) + trained(2, *rows(0)), "1 prompts trained twice: '0'"),
        (trained(1, *rows(0)) + trained(2, *rows(0, attempt=1)), "1 prompts trained twice: '0'"),
        (trained(1, *rows(0), *rows(0, attempt=1)), "1 prompts trained twice: '0'"),
        (trained(1, *rows(0, count=1)), "1 prompts trained in part: '0'"),
        ([*trained(1, *rows(0)), Put("before", rows(7)[0], "ff", 0)], "not in the controller's record: '7'"),
        (trained(1, *rows(0), *rows(7)), "not in the controller's record: '7'"),
    ],
)
def test_each_broken_promise_is_a_sentence(entries: list[Entry], words: str) -> None:
    """Trained in two steps, in two attempts, in part, or out of nowhere."""
    (found,) = prompt_books(record(1), entries, SIZE).wrong
    assert words in found


@pytest.mark.parametrize(("dropped", "wrong"), [(0, True), (1, False), (2, True)])
def test_a_prompt_that_is_nowhere_was_dropped_or_skipped(dropped: int, wrong: bool) -> None:
    """As many as the record says were dropped may be missing, no more and no fewer."""
    found = prompt_books(record(3, 2, dropped=dropped), trained(1, *rows(0)), SIZE).wrong
    assert (found != []) is wrong
    assert not wrong or f"skipped (the record says that {dropped} were dropped): '1'" in found[0]


def test_a_run_without_a_record_has_answered_nothing() -> None:
    """What was put before the controller wrote anything down breaks the order of things."""
    assert prompt_books(None, [], SIZE) == PromptBooks()
    assert prompt_books(None, [Put("before", rows(0)[0], "ff", 0)], SIZE).wrong
