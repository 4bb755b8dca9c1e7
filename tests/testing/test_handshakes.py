"""The handshakes before Penstock's: what the classic one holds, where it breaks, and how the older one does."""

from __future__ import annotations

from penstock.testing.handshakes import Classic, DeletesFirst, Meeting, broken_path


def after(meeting: Meeting, *steps: str) -> Meeting:
    """Take steps by how they begin."""
    for wanted in steps:
        meeting.take(next(step for step in meeting.steps() if " ".join(step).startswith(wanted)))
    return meeting


def test_the_classic_machine_passes_simultaneous_opening() -> None:
    """Every order of two openings, two calls and two replies ends with both sides bound to each other."""
    assert broken_path(Classic) is None


def test_the_classic_machine_survives_a_restart_with_new_numbers() -> None:
    """A call with another number means that the peer has restarted: fresh resources, and both are healthy."""
    assert broken_path(Classic, restarts=1) is None


def test_the_classic_machine_takes_a_restarted_peer_with_the_old_number_for_the_old_one() -> None:
    """The hole: a resource with the number of a dead one. One side goes on with what is bound to the dead."""
    path = broken_path(Classic, restarts=1, reuse=True)
    assert path is not None
    assert sum(step.startswith("restart") for step in path) == 1
    meeting = Meeting(Classic, restarts=1, reuse=True)
    after(meeting, "open A", "call to B", "reply to A", "restart A", "open A", "call to B", "reply to A", "open B")
    assert not meeting.healthy()
    survivor, restarted = meeting.peers[1], meeting.peers[0]
    assert survivor.peer is not None
    assert restarted.used is not None
    assert survivor.peer.number == restarted.used.number
    assert survivor.peer.life != restarted.used.life


def test_the_older_machine_fails_by_crossed_deletes() -> None:
    """Both open, both passive handlers delete what they find; the replies bind what is destroyed, on both sides."""
    meeting = Meeting(DeletesFirst)
    after(meeting, "open A", "open B", "call to A", "call to B", "reply to A", "reply to B")
    assert not meeting.healthy()
    for peer in meeting.peers:
        assert peer.used is not None
        assert not peer.alive(peer.used)
    assert broken_path(DeletesFirst) is not None


def test_the_older_machine_works_when_one_side_alone_opens() -> None:
    """Which is why nobody noticed: one opening, one call, one reply, and then the other side finds it connected."""
    meeting = after(Meeting(DeletesFirst), "open A", "call to B", "reply to A", "open B")
    assert meeting.healthy()


def test_the_classic_machine_keeps_what_the_passive_side_connected_when_its_own_call_fails() -> None:
    """A's call times out though B's has connected A already: reuse, never reset."""
    meeting = after(Meeting(Classic), "open A", "open B", "call to A")
    assert meeting.peers[0].failed(1) == []
    after(meeting, "call to B", "reply to B")
    assert meeting.healthy()
