"""A call is taken back from another thread: its wait ends, and nothing is torn."""

from __future__ import annotations

import contextvars
import threading

import pytest

from penstock.plane.recall import Recall, Recalled, recallable


def within(recall: Recall, body: object) -> object:
    """Run ``body`` as a call that ``recall`` covers, in a context of its own."""
    assert callable(body)

    def covered() -> object:
        recall.cover()
        return body()

    return contextvars.copy_context().run(covered)


def test_a_wait_that_is_recalled_is_woken_and_ends_with_recalled() -> None:
    """``wake`` is called in the thread that asks, and the ``with`` raises."""
    recall, waits, woken = Recall(), threading.Event(), threading.Event()
    ended: list[type[BaseException]] = []

    def call() -> None:
        with recallable(woken.set):
            waits.set()
            assert woken.wait(20)

    def body() -> None:
        try:
            within(recall, call)
        except Recalled as error:
            ended.append(type(error))

    thread = threading.Thread(target=body)
    thread.start()
    assert waits.wait(20)
    recall.ask()
    thread.join(20)
    assert ended == [Recalled]


def test_a_call_recalled_before_it_waits_does_not_wait() -> None:
    """What is asked for early holds for every wait that follows; ``wake`` is not called."""
    recall = Recall()
    recall.ask()
    for _ in range(2):
        with pytest.raises(Recalled):
            within(recall, lambda: recallable(pytest.fail).__enter__())


def test_an_error_of_the_wait_comes_before_the_recall() -> None:
    """A wait that failed says why, recalled or not."""
    recall = Recall()

    def call() -> None:
        with recallable(lambda: None):
            recall.ask()
            raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        within(recall, call)


def test_a_recall_after_the_last_wait_changes_nothing() -> None:
    """A call whose work is done keeps its result; a wake of an earlier wait is not called again."""
    recall, wakes = Recall(), []

    def call() -> str:
        with recallable(lambda: wakes.append(1)):
            pass
        recall.ask()
        return "done"

    assert within(recall, call) == "done"
    assert wakes == []
    assert "asked" in repr(recall)


def test_calls_that_nobody_covers_are_not_recalled() -> None:
    """A handle recalls the calls of its own context, no others."""
    recall = Recall()
    recall.ask()
    with recallable(pytest.fail):
        pass


def test_recalled_is_no_error_that_a_handler_of_errors_sees() -> None:
    """It passes every ``except Exception``, as ``KeyboardInterrupt`` does."""
    assert not issubclass(Recalled, Exception)
