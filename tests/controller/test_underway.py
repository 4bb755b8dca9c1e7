"""Work of others is bounded, and however it ends, whoever waits for it is told."""

from __future__ import annotations

import asyncio

import pytest

from penstock.controller.underway import Ended, Underway


class Odd(BaseException):
    """What frameworks raise to end a worker."""


async def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [Odd("the worker is told to go"), GeneratorExit("closed")])
def test_what_is_no_exception_is_told_as_one(error: BaseException) -> None:
    """A run would wait for ever for the step, or the group, of a role that raised a ``BaseException``."""
    with pytest.raises(Ended, match=str(error)):
        asyncio.run(Underway().bounded("step 3", _raise(error), 5.0))


def test_a_cancellation_by_somebody_else_is_told() -> None:
    """It is the work that was cancelled, not whoever awaits it."""
    with pytest.raises(Ended, match="cancelled, and not by the controller"):
        asyncio.run(Underway().bounded("step 3", _raise(asyncio.CancelledError()), 5.0))


def test_an_exception_is_raised_as_it_is() -> None:
    """The shell tells a refused prompt from a failed one by its type."""
    with pytest.raises(ZeroDivisionError):
        asyncio.run(Underway().bounded("step 3", _raise(ZeroDivisionError()), 5.0))
