"""What is foreign, and knows no deadline, under one; without Ray."""

from __future__ import annotations

import threading

import pytest

from penstock.errors import BadArgument, DataPlaneTimeout, DataPlaneUnavailable
from penstock.plane.transfer_queue.library import bounded
from penstock.retry import Deadline


@pytest.mark.parametrize(
    "foreign", [ValueError("no such backend"), TimeoutError("no such backend"), SystemExit("no such backend")]
)
def test_nothing_foreign_leaves_a_thread(foreign: BaseException) -> None:
    """What it raises is told in words of the tree, whatever it is, with its cause."""

    def fail() -> None:
        raise foreign

    with pytest.raises(DataPlaneUnavailable, match=r"does not start: \w+: no such backend") as caught:
        bounded(fail, Deadline(20.0), "it does not start")
    assert caught.value.__cause__ is foreign


def test_the_trees_own_errors_pass() -> None:
    """An error of the tree is raised as it is."""

    def refuse() -> None:
        raise BadArgument("this one")

    with pytest.raises(BadArgument, match="this one"):
        bounded(refuse, Deadline(20.0), "it does not start")


def test_what_comes_late_is_seen_to() -> None:
    """What does not come back in time is left behind with a DataPlaneTimeout; what comes late is handed to ``late``."""
    go, seen = threading.Event(), threading.Event()
    with pytest.raises(DataPlaneTimeout, match="it does not start"):
        bounded(lambda: go.wait(20.0), Deadline(0.05), "it does not start", late=lambda _: seen.set())
    assert not seen.is_set()
    go.set()
    assert seen.wait(20.0)
