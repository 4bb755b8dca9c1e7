"""The link against a plane that misbehaves: repeats, verdicts, deadlines, reconnections, the end."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from penstock.errors import BadArgument, DataPlaneTimeout, DataPlaneUnavailable, UnknownName
from penstock.plane import events as ev
from penstock.plane.channel import Channel
from penstock.plane.courier import Identity
from penstock.plane.link import Link
from penstock.requests import (
    Call,
    Claim,
    Claimed,
    Clear,
    Depth,
    Done,
    Failed,
    Goodbye,
    Number,
    Ping,
    ResumeSession,
)
from penstock.retry import Deadline

from .fake_plane import Cut, FakeDialer, FakePlane, Move, Raw, Silence, done

CLEAR = Clear("p", ["a"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def plane(path: Path) -> Iterator[FakePlane]:
    fake = FakePlane(path)
    yield fake
    fake.close()


@pytest.fixture
def link(path: Path, plane: FakePlane) -> Iterator[Link]:
    made = new_link(path)
    yield made
    made.close(5.0)
    assert not made._thread.is_alive()


def new_link(path: Path) -> Link:
    return Link(Identity(5, "me", "test", "here", os.getpid()), FakeDialer(path))


def within(timeout_s: float = 10.0) -> Deadline:
    return Deadline(timeout_s)


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.002)


def first_then(first: Move, then: Move) -> Callable[[Call], Move]:
    moves = [first]
    return lambda _call: moves.pop() if moves else then


def _in_session(link: Link) -> bool:
    return link.statistics().sessions > 0


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    ends: list[object] = []

    def run() -> None:
        try:
            ends.append(call())
        except Exception as error:
            ends.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, ends


def test_a_reply_comes_back(link: Link, plane: FakePlane) -> None:
    """Asking is one call and one reply."""
    plane.handler = lambda call: Number(len(plane.calls))
    assert link.ask(Depth("p"), Number, within()) == Number(1)


def test_a_refusal_is_the_error_it_names(link: Link, plane: FakePlane) -> None:
    """The error's class and fields are those that the plane stated."""
    plane.handler = lambda _: Failed("UnknownName", "unknown task 'x'", "p", ["a"], ["task 'x'"], 0.5)
    with pytest.raises(UnknownName, match="unknown task 'x'") as caught:
        link.ask(CLEAR, Done, within())
    assert (caught.value.partition, caught.value.keys, caught.value.missing) == ("p", ["a"], ["task 'x'"])
    assert caught.value.incarnation == 1


def test_a_mutation_cut_off_is_repeated_under_its_number(link: Link, plane: FakePlane) -> None:
    """The connection is cut after the call was read: the same sequence comes again and its caller notices nothing."""
    plane.handler = first_then(Cut(), Done())
    assert link.ask(CLEAR, Done, within()) == Done()
    assert plane.fired == 1
    assert [call.seq for call in plane.calls] == [1, 1]
    assert isinstance(plane.greetings[1].body, ResumeSession)


def test_a_mutation_is_not_repeated_under_a_new_session(link: Link, plane: FakePlane) -> None:
    """A plane that does not know the session any more never sees the call twice; the caller hears of the doubt."""
    plane.remembers = False
    plane.handler = first_then(Cut(), Done())
    with pytest.raises(DataPlaneTimeout, match="could not be resumed"):
        link.ask(CLEAR, Done, within())
    assert link.ask(Depth("p"), Number, within()) if False else True
    assert [call.seq for call in plane.calls] == [1]


def test_a_read_goes_again_under_a_new_session(link: Link, plane: FakePlane) -> None:
    """Reads change nothing: they are simply asked again."""
    plane.remembers = False
    plane.handler = first_then(Cut(), Number(3))
    assert link.ask(Depth("p"), Number, within()) == Number(3)
    assert (plane.fired, len(plane.greetings)) == (1, 3)  # opened; not resumed; opened


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x04\x00\x00\x00junk", b"\x00\x00\x00\x00"])
def test_garbage_costs_a_connection_and_nothing_else(link: Link, plane: FakePlane, garbage: bytes) -> None:
    """What does not decode is not believed: the link reconnects and asks again."""
    plane.handler = first_then(Raw(garbage), Number(1))
    assert link.ask(Depth("p"), Number, within()) == Number(1)
    assert plane.fired == 1


def test_an_answer_of_the_wrong_kind_is_not_believed(link: Link, plane: FakePlane) -> None:
    """A reply that belongs to another request never reaches the caller."""
    plane.handler = first_then(Done(), Number(1))
    assert link.ask(Depth("p"), Number, within()) == Number(1)
    assert link.statistics().connections == 2


def test_a_plane_that_is_silent_ends_in_a_timeout(link: Link, plane: FakePlane) -> None:
    """A call that was sent and not answered by its deadline is a timeout, and says when the plane was last heard."""
    plane.handler = lambda _: Silence()
    began = time.monotonic()
    with pytest.raises(DataPlaneTimeout, match="last heard"):
        link.ask(CLEAR, Done, within(0.2))
    assert 0.2 <= time.monotonic() - began < 2.0
    assert plane.fired == 1


def test_an_abandoned_claim_is_named_at_once(link: Link, plane: FakePlane) -> None:
    """The plane hears of a caller who left without waiting for the next heartbeat."""
    plane.handler = lambda _: Silence()
    with pytest.raises(DataPlaneTimeout):
        link.ask(Claim("p", "t", [], 1), Claimed, within(0.1))
    wait_for(lambda: plane.beats)
    assert plane.beats[0].abandoned == [plane.calls[0].seq]


def test_an_exception_while_the_reply_is_used_abandons_it(link: Link, plane: FakePlane) -> None:
    """A claim whose meta could not be made is given back."""
    plane.handler = lambda _: Claimed("token", ["a"], [{}], None)
    with pytest.raises(ZeroDivisionError), link.call(Claim("p", "t", [], 1), Claimed, within()):
        raise ZeroDivisionError
    wait_for(lambda: plane.beats)
    assert plane.beats[0].abandoned == [1]


def test_a_signal_during_a_wait_abandons_the_call(link: Link, plane: FakePlane) -> None:
    """Ctrl-C in a blocking claim comes through at once, and the claim is given back."""
    plane.handler = lambda _: Silence()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        link.ask(Claim("p", "t", [], 1), Claimed, within(30.0))
    timer.join()
    wait_for(lambda: plane.beats)
    assert plane.beats[0].abandoned == [plane.calls[0].seq]


def test_nobody_there_is_unavailable_and_says_so(path: Path) -> None:
    """With no plane at all nothing was sent, and the error names the address."""
    link = new_link(path)
    with pytest.raises(DataPlaneUnavailable, match="no plane answers"):
        link.ask(CLEAR, Done, within(0.2))
    link.close(5.0)


def test_calls_wait_for_a_plane_that_comes_back(path: Path) -> None:
    """Callers wait within their deadlines while the plane restarts."""
    link = new_link(path)
    thread, ends = in_thread(lambda: link.ask(CLEAR, Done, within()))
    late = FakePlane(path)
    thread.join(10)
    assert ends == [Done()]
    link.close(5.0)
    late.close()


def test_a_ping_does_not_wait_for_a_plane_to_come_back(path: Path) -> None:
    """It tries once: with nobody there it fails long before its deadline."""
    link = new_link(path)
    began = time.monotonic()
    with pytest.raises(DataPlaneUnavailable):
        link.ask(Ping(), Done, within(30.0), once=True)
    assert time.monotonic() - began < 5.0
    link.close(5.0)


def test_a_deaf_plane_is_found_out_by_the_verdict(link: Link, plane: FakePlane) -> None:
    """When the socket is full a call that never left is known not to have happened; one that left is not."""
    blocked = threading.Event()

    def deaf(call: Call) -> Move:
        blocked.wait(20)
        return Done()

    plane.handler = deaf
    big = Clear("p", ["k" * 1000 + str(i) for i in range(600)])
    threads = [in_thread(lambda: link.ask(big, Done, within(1.0))) for _ in range(3)]
    time.sleep(0.1)
    with pytest.raises(DataPlaneUnavailable, match="not sent"):
        link.ask(CLEAR, Done, within(0.3))
    for thread, _ in threads:
        thread.join(10)
    assert any(isinstance(end, DataPlaneTimeout) for _, ends in threads for end in ends)
    blocked.set()
    plane.handler = done
    assert link.ask(CLEAR, Done, within()) == Done()


def test_a_call_that_cannot_be_sent_is_its_callers_mistake(link: Link, plane: FakePlane) -> None:
    """A request over the plane's limit is refused here; the connection goes on."""
    link.ask(CLEAR, Done, within())
    with pytest.raises(BadArgument, match=r"^clear_samples: .*frame holds"):
        link.ask(Clear("p", ["k" * 1000] * 2000), Done, within())
    assert link.ask(CLEAR, Done, within()) == Done()
    assert link.statistics().connections == 1


def test_a_value_that_no_message_holds_is_its_callers_mistake(link: Link, plane: FakePlane) -> None:
    """Whatever slips through to the encoder costs its own call, never the thread."""
    for bad in (Clear("p", [object()]), Clear("p", [2**70]), Clear("p", ["\ud800"])):  # type: ignore[list-item]
        with pytest.raises(BadArgument):
            link.ask(bad, Done, within())
    assert link.ask(CLEAR, Done, within()) == Done()


def test_closing_wakes_those_who_wait(link: Link, plane: FakePlane) -> None:
    """Blocked callers return at once: in doubt if their mutation was sent, else told that nothing happened."""
    plane.handler = lambda call: Done() if isinstance(call.body, Goodbye) else Silence()
    claim, claims = in_thread(lambda: link.ask(Claim("p", "t", [], 1), Claimed, within(60.0)))
    read, reads = in_thread(lambda: link.ask(Depth("p"), Number, within(60.0)))
    wait_for(lambda: len(plane.calls) == 2)
    link.close(5.0)
    claim.join(5)
    read.join(5)
    assert isinstance(claims[0], DataPlaneTimeout)
    assert isinstance(reads[0], DataPlaneUnavailable)
    assert isinstance(plane.calls[-1].body, Goodbye)
    with pytest.raises(DataPlaneUnavailable, match="closed"):
        link.ask(CLEAR, Done, within())
    link.close(5.0)


def test_a_client_that_was_never_welcomed_has_no_farewell_to_wait_for(path: Path) -> None:
    """A plane that took the connection and is silent owes nothing: closing does not wait for it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)
    with listener:
        link = new_link(path)
        wait_for(lambda: "does not answer" in link.state())
        turns: list[float] = []

        def turn(_channel: Channel, timeout_s: float) -> None:
            turns.append(timeout_s)

        link._turn = turn  # type: ignore[assignment, method-assign]
        link.close(5.0)
    assert not link._thread.is_alive()
    assert turns == []


def test_whoever_tidies_up_is_told_whether_the_plane_has_read_the_goodbye(path: Path) -> None:
    """A plane that answered it ends by itself; of one that did not nothing is known."""
    ends: list[tuple[Move, bool]] = [(Done(), True), (Cut(), False)]
    for move, parted in ends:
        fake = FakePlane(path, handler=first_then(move, move))
        dialer = FakeDialer(path)
        link = Link(Identity(5, "me", "test", "here", os.getpid()), dialer)
        wait_for(partial(_in_session, link))
        link.close(5.0)
        fake.close()
        assert dialer.parted == [parted]


def test_a_closed_link_keeps_nothing(link: Link, plane: FakePlane) -> None:
    """Calls, notes and pins after the end are answered or dropped, never queued for a thread that is gone."""
    link.close(5.0)
    with pytest.raises(DataPlaneUnavailable, match="closed"):
        link.ask(CLEAR, Done, within())
    link.unpin(3)
    link.note(ev.GrantOver(3))
    assert (len(link._inbox), len(link._unpinned)) == (0, 0)


def test_heartbeats_are_sent(path: Path) -> None:
    """The session is kept alive without any call."""
    plane = FakePlane(path, heartbeat_s=0.05)
    link = new_link(path)
    wait_for(lambda: len(plane.beats) >= 3)
    link.close(5.0)
    plane.close()


def test_unpins_travel_soon(link: Link, plane: FakePlane) -> None:
    """A pin that is dropped while nobody calls wakes the thread, which tells the plane without waiting for its beat."""
    from penstock.requests import BlockPlace, Locate, Located

    plane.handler = lambda _: Located([BlockPlace(1, 1, 0, 64, 1, 77)], [], [], [])
    link.ask(Locate("p", ["a"], ["x"]), Located, within())
    link.unpin(77)
    wait_for(lambda: plane.beats)
    assert plane.beats[0].unpins == [77]


def test_many_threads_share_one_connection(link: Link, plane: FakePlane) -> None:
    """Replies go to their own callers, sequences are distinct, none is lost."""
    plane.handler = lambda call: Number(int(call.body.partition)) if isinstance(call.body, Depth) else Done()

    def work(me: int) -> list[int]:
        for _ in range(50):
            link.ask(CLEAR, Done, within())
        return [link.ask(Depth(str(me)), Number, within()).value for _ in range(50)]

    threads = [in_thread(lambda me=me: work(me)) for me in range(8)]  # type: ignore[misc]
    for thread, _ in threads:
        thread.join(30)
    assert [ends for _, ends in threads] == [[[me] * 50] for me in range(8)]
    seqs = [call.seq for call in plane.calls if call.seq]
    assert sorted(seqs) == list(range(1, 401))


def test_connections_cut_at_random_lose_and_double_nothing(link: Link, plane: FakePlane) -> None:
    """Under repeated cuts every mutation is applied once per sequence, and every caller gets his reply."""
    applied: set[int] = set()

    def count(call: Call) -> Move:
        applied.add(call.seq)
        return Cut() if len(plane.calls) % 5 == 0 else Done()

    plane.handler = count
    threads = [in_thread(lambda: [link.ask(CLEAR, Done, within(30.0)) for _ in range(20)]) for _ in range(4)]
    for thread, _ in threads:
        thread.join(60)
    assert [ends for _, ends in threads] == [[[Done()] * 20]] * 4
    assert applied == set(range(1, 81))
    assert plane.fired > 5


def test_a_plane_that_is_full_is_asked_again(path: Path) -> None:
    """A refusal for now keeps callers waiting; the link does not storm the plane meanwhile."""
    plane = FakePlane(path, refusal=Failed("DataPlaneUnavailable", "too many connections"))
    link = new_link(path)
    with pytest.raises(DataPlaneUnavailable, match="too many connections"):
        link.ask(CLEAR, Done, within(0.5))
    assert 1 < len(plane.greetings) < 200
    plane.refusal = None
    assert link.ask(CLEAR, Done, within()) == Done()
    link.close(5.0)
    plane.close()


def test_a_plane_of_another_version_is_not_waited_for(path: Path) -> None:
    """What waiting cannot mend is said at once."""
    plane = FakePlane(path, refusal=Failed("DataPlaneBadRequest", "this plane speaks version 9"))
    link = new_link(path)
    began = time.monotonic()
    with pytest.raises(Exception, match="version 9"):
        link.ask(CLEAR, Done, within(30.0))
    assert time.monotonic() - began < 10.0
    link.close(5.0)
    plane.close()


class _Says:
    """A plane that starts and says this of itself."""

    events = selectors.EVENT_READ

    def __init__(self, word: str) -> None:
        self._read, write = socket.socketpair()
        write.sendall(word.encode())
        write.close()

    def fileno(self) -> int:
        return self._read.fileno()

    def poll(self) -> str | None:
        return self._read.recv(100).decode()

    def close(self) -> None:
        self._read.close()


def test_a_plane_that_cannot_start_is_not_waited_for(path: Path) -> None:
    """Its own words reach the caller at once."""
    link = Link(
        Identity(5, "me", "test", "here", os.getpid()), FakeDialer(path, lambda: _Says("error: journal is corrupt"))
    )
    began = time.monotonic()
    with pytest.raises(DataPlaneUnavailable, match="does not start: journal is corrupt"):
        link.ask(CLEAR, Done, within(30.0))
    assert time.monotonic() - began < 10.0
    link.close(5.0)


def test_a_fork_leaves_the_parent_alone(link: Link, plane: FakePlane) -> None:
    """The child's use of the client is refused and its end is silent; the parent's session goes on."""
    link.ask(CLEAR, Done, within())
    child = os.fork()
    if child == 0:
        try:
            link.ask(CLEAR, Done, within(1.0))
        except DataPlaneUnavailable as refused:
            link.close(1.0)
            os._exit(0 if "fork" in str(refused) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert link.ask(CLEAR, Done, within()) == Done()
    assert len(plane.greetings) == 1
