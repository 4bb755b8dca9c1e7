"""Sessions at an agent: they end with a goodbye or a process, not with silence, and they are bounded."""

from __future__ import annotations

import pytest

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneUnavailable
from penstock.host import visitors
from penstock.host.visitors import Visitors
from penstock.ledger.events import SessionOpens, SessionResumes
from penstock.requests import WIRE_VERSION, OpenSession


def opening(session_id: int, client_id: int = 1, pid: int = 10) -> SessionOpens:
    request = OpenSession(WIRE_VERSION, client_id, "me", "client", "here", pid)
    return SessionOpens(session_id, f"secret {session_id}", 1, request, 0.0)


def test_a_session_outlives_silence_and_is_resumed_with_its_secret() -> None:
    """Memory follows the process: no clock ends a session."""
    there = Visitors(PlaneConfig())
    there.opens(opening(5), 0.0)
    assert there.left(5) == []
    welcome = there.resumes(SessionResumes(5, "secret 5", 2), 1e6)
    assert welcome.resumed
    there.check_invariants()


@pytest.mark.parametrize(("session_id", "secret"), [(5, "secret 6"), (6, "secret 5"), (6, "")])
def test_nobody_resumes_what_is_not_his(session_id: int, secret: str) -> None:
    """A wrong secret and an unknown session are told apart by nobody."""
    there = Visitors(PlaneConfig())
    there.opens(opening(5), 0.0)
    with pytest.raises(DataPlaneUnavailable, match="has ended; open a new one"):
        there.resumes(SessionResumes(session_id, secret, 2), 0.0)


def test_a_client_object_has_one_session() -> None:
    """A second opening of the same client ends the first; another client's stays."""
    there = Visitors(PlaneConfig())
    there.opens(opening(5), 0.0)
    there.opens(opening(6, client_id=2), 0.0)
    assert there.opens(opening(7), 0.0)[1] == [5]
    assert (there.get(5), len(there)) == (None, 2)
    there.check_invariants()


def test_absent_sessions_are_bounded_and_the_first_that_left_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that come and go without a word do not fill the agent's memory."""
    monkeypatch.setattr(visitors, "_MAX_ABSENT", 2)
    there = Visitors(PlaneConfig())
    for n in (1, 2, 3):
        there.opens(opening(n, client_id=n), 0.0)
        ended = there.left(n)
    assert ended == [1]
    there.check_invariants()


def test_what_a_client_calls_itself_is_cut() -> None:
    """Names are kept to a limit."""
    there = Visitors(PlaneConfig())
    request = OpenSession(WIRE_VERSION, 1, "x" * 10_000, "y" * 10_000, "here", 1)
    there.opens(SessionOpens(5, "s", 1, request, 0.0), 0.0)
    assert len(there.statuses(1.0)[0].owner) == len(there.statuses(1.0)[0].role) == 256
