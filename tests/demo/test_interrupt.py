"""Signals as a flag."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from penstock.demo.interrupt import SIGNALS, Interrupt, signals_as_flag


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_next_wait_not_the_present_work(number: signal.Signals) -> None:
    """The handler returns; the wait, however long, raises at once; afterwards the old handlers are back."""
    before = signal.getsignal(number)
    with signals_as_flag() as interrupt:
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            interrupt.sleep(600)
        assert not interrupt.hurry()
        os.kill(os.getpid(), number)
        signal.getsignal(number)  # any bytecode: the handler has run
        assert interrupt.hurry()
    assert signal.getsignal(number) is before


def test_without_a_signal_nothing_is_raised() -> None:
    """A short sleep is a sleep."""
    interrupt = Interrupt()
    interrupt.check()
    interrupt.sleep(0.0)


def test_another_thread_gets_a_flag_that_nothing_raises() -> None:
    """Signals belong to the main thread; a job in another one must not touch them."""
    before, seen = signal.getsignal(signal.SIGINT), []

    def elsewhere() -> None:
        with signals_as_flag() as interrupt:
            seen.append((interrupt.times, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(0, before)]


def test_a_signal_that_was_heeded_lets_the_next_waits_pass() -> None:
    """Until the next one comes, which asks for a quick end."""
    interrupt = Interrupt()
    interrupt.note()
    interrupt.heed()
    interrupt.sleep(0.0)
    assert not interrupt.hurry()
    interrupt.note()
    assert interrupt.hurry()
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()
