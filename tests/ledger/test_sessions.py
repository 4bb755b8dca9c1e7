"""Sessions: leases follow them, restarts do not end them, silence of the plane itself buries nobody."""

from __future__ import annotations

import pytest

from penstock.ledger.events import Heard, SessionGone, Tick
from penstock.requests import Claim, Clear, Commit, Done, Status, Welcome, Why, WhyReport
from tests.ledger.office import WALL, Office, group_tags


@pytest.fixture
def office() -> Office:
    made = Office(max_deliveries=2)
    made.open(1)
    made.open(2)
    made.register()
    return made


def test_a_silent_session_ends_and_its_leases_go_back(office: Office) -> None:
    """Ten seconds without a sign of life; those who speak live."""
    office.put_done(1, ["a"])
    office.claim(2)
    for _ in range(11):
        office.later(1.0)
        office.event(Heard(1))
    assert office.ended == [2]
    assert office.claim(1).keys == ["a"]


def test_a_session_that_ended_is_told_so(office: Office) -> None:
    """Its calls are refused as unavailable; nothing happens."""
    office.event(SessionGone(2, "killed"))
    office.fails(2, Clear("p", None), "DataPlaneUnavailable")
    assert office.resume(2).code == "DataPlaneUnavailable"  # type: ignore[union-attr]


def test_a_session_resumes_with_its_secret_only(office: Office) -> None:
    """A wrong secret is refused as if the session had ended."""
    assert isinstance(office.resume(1), Welcome)
    assert office.resume(1, secret="guess").code == "DataPlaneUnavailable"  # type: ignore[union-attr]


def test_a_plane_that_was_stopped_does_not_bury_the_living(office: Office) -> None:
    """A gap of a minute moves every deadline; leases and sessions are as they were."""
    office.put_done(1, ["a"])
    office.claim(2, lease_s=5.0)
    office.now += 60.0
    office.event(Tick(WALL + office.now))
    assert office.ended == []
    assert office.audit().leased == 1
    office.later(4.5)
    assert office.audit().leased == 0


def test_leases_survive_a_restart_if_their_session_comes_back(office: Office) -> None:
    """And go back when it does not, after the grace."""
    office.put_done(1, ["a", "b"])
    office.claim(1, batch=1)
    office.claim(2, batch=1)
    office.crash()
    assert isinstance(office.resume(1), Welcome)
    for _ in range(11):
        office.later(1.0)
        office.event(Heard(1))
    assert office.ended == [2]
    assert office.audit().leased == 1
    assert office.claim(1).keys == ["b"]


def test_a_reply_survives_a_restart(office: Office) -> None:
    """The same sequence asked again after kill -9 gets the old reply: a pop is not done twice, a claim is the same."""
    office.put_done(1, ["a", "b"])
    body = Claim("p", "train", ["x"], 1, blocking=False)
    first = office.ask(1, body, seq=90)
    grant = office.granted(office.grant(1, ["c"]))
    assert grant is not None
    office.done(1, Commit(grant, 7), seq=91)
    office.crash()
    office.resume(1)
    assert office.ask(1, body, seq=90) == first
    assert office.ask(1, Commit(grant, 7), seq=91) == Done()
    assert office.audit().put == 3


def test_replies_are_forgotten_when_the_client_has_taken_them(office: Office) -> None:
    """And a sequence below that mark is refused."""
    office.put_done(1, ["a"])
    office.post(1, Claim("p", "train", ["x"], 1, blocking=False), seq=90)
    office.post(1, Clear("p", ["zzz"]), seq=91, done_below=91)
    assert set(office.ledger.desk.state.sessions[1].replies) == {91}
    office.fails(1, Clear("p", None), "BadArgument", seq=90)


def test_a_row_whose_delivery_failed_too_often_is_quarantined_with_its_story(office: Office) -> None:
    """A poison row does not kill consumers for ever; one more than ``max_deliveries`` failures and it is out."""
    office.put_done(1, ["a"])
    for session in (10, 11, 12):
        office.open(session)
        got = office.claim(session)
        assert got.keys == ["a"]
        assert got.tags[0].get("deliveries", 1) == session - 9  # rows that came back carry their delivery count
        office.event(SessionGone(session, "out of memory"))
    audit = office.audit()
    assert (audit.quarantined, audit.in_flight) == (1, 0)
    story = office.ask(1, Why("p", key="a"))
    assert isinstance(story, WhyReport)
    assert "quarantined" in story.waits[0]
    assert sum("out of memory" in line for line in story.history) == 3


def test_a_whole_group_goes_to_quarantine_together(office: Office) -> None:
    """If a whole-group claim held it; late rows of it are refused."""
    office.put_done(1, ["g_0", "g_1"], tags=group_tags("g", 2))
    for session in (10, 11, 12):
        office.open(session)
        office.claim(session, whole_groups=True)
        office.event(SessionGone(session, "killed"))
    assert office.audit().quarantined == 2
    assert office.put(1, ["g_2"], tags=group_tags("g", 2)).code == "RowRemoved"  # type: ignore[union-attr]


def test_an_expired_lease_counts_as_a_failed_delivery(office: Office) -> None:
    """Expiry, like death, leads to quarantine in the end."""
    office.put_done(1, ["a"])
    for _ in range(3):
        office.claim(1, lease_s=0.5)
        office.later(1.0)
    assert office.audit().quarantined == 1


def test_status_names_every_session(office: Office) -> None:
    """Owner, process, leases."""
    office.put_done(1, ["a"])
    office.claim(2)
    report = office.ask(1, Status())
    leases = {s.owner: s.leases for s in report.sessions}  # type: ignore[union-attr]
    assert leases == {"owner1": 0, "owner2": 1}
