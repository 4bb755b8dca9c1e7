"""Puts through a host's agent: the steps, who is asked again when one fails, and that nothing stays held."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from penstock import points
from penstock.config import ClientConfig
from penstock.errors import CorruptPayload, DataPlaneError, DataPlaneFull, DataPlaneTimeout, DataPlaneUnavailable
from penstock.payload import block
from penstock.plane.remote import RemoteDataPlaneClient
from penstock.plane.remote_puts import PUT_AGAIN
from penstock.requests import BlockPlace, Call, Commit, Failed, Grant, GrantAgain, Reserve, Seal, Sealed

from .fake_host import LIFE, TOKEN, FakeAgent, FakeSite, asked, bodies, host_place, listed_grants
from .fake_plane import Cut, Move, Silence


@pytest.fixture
def site() -> Iterator[FakeSite]:
    fake = FakeSite()
    yield fake
    fake.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    fake = FakeAgent(tmp_path / "host")
    yield fake
    fake.close()


@pytest.fixture
def client(site: FakeSite, agent: FakeAgent) -> Iterator[RemoteDataPlaneClient]:
    with new_client(site, agent.folder) as made:
        yield made


def new_client(site: FakeSite, host_dir: Path, **config: Any) -> RemoteDataPlaneClient:
    return RemoteDataPlaneClient(site.url, TOKEN, host_dir=host_dir, config=ClientConfig(**config))


def put(client: RemoteDataPlaneClient, timeout_s: float = 20.0) -> None:
    client.put_samples(["a", "b"], "p", {"x": torch.arange(8).view(2, 4)}, timeout_s=timeout_s)


def once(kind: type, move: Move) -> Callable[[Call], Move | None]:
    """The first call of that kind meets ``move``."""
    moves = [move]
    return lambda call: moves.pop() if isinstance(call.body, kind) and moves else None


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.005)


def assert_nothing_held(client: RemoteDataPlaneClient) -> None:
    """Neither session believes that it may still write somewhere."""
    agent = client._host._link
    assert agent is not None
    for link in (client._link, agent):
        link._waker.wake()  # notes are taken in when it next wakes
        wait_for(lambda link=link: not link._inbox and not link._courier._grants.held)  # type: ignore[misc]


def test_a_put_takes_five_steps(client: RemoteDataPlaneClient, site: FakeSite, agent: FakeAgent) -> None:
    """Grant, reserve, copy, seal, commit: the block bears the grant's number and lies where the commit says."""
    put(client)
    grants = bodies(site, Grant)
    assert [(g.host, g.replicas, g.at_least) for g in grants] == [(7, 1, 1)]
    assert asked(agent) == ["Status", "Reserve", "Seal"]
    assert [reserve.life for reserve in bodies(agent, Reserve)] == [LIFE]
    (commit,) = site.commits()
    assert (commit.grant, commit.places) == (1, [agent.slots[1]])
    header = block.parse(agent.bytes_of(1), 1)
    block.verify(agent.bytes_of(1), header)
    assert header.rows == 2
    assert_nothing_held(client)


def test_the_next_put_asks_no_more_who_its_host_is(client: RemoteDataPlaneClient, agent: FakeAgent) -> None:
    """Once for each life of the agent."""
    put(client)
    put(client)
    assert asked(agent) == ["Status", "Reserve", "Seal", "Reserve", "Seal"]


@pytest.mark.parametrize("who", ["agent", "plane"])
def test_a_grant_that_did_not_live_is_asked_for_again(
    client: RemoteDataPlaneClient, site: FakeSite, agent: FakeAgent, who: str
) -> None:
    """The agent or the plane has restarted between grant and commit: one more copy, and the caller notices nothing."""
    if who == "agent":
        agent.wrong = once(Seal, GrantAgain())
    else:
        site.wrong = once(Commit, GrantAgain())
    put(client)
    assert [commit.grant for commit in site.commits()] == ([2] if who == "agent" else [1, 2])
    assert len(bodies(agent, Reserve)) == 2
    block.verify(agent.bytes_of(2), block.parse(agent.bytes_of(2), 2))
    assert_nothing_held(client)


@pytest.mark.parametrize("kind", [Reserve, Seal])
def test_a_step_cut_off_is_made_again(
    client: RemoteDataPlaneClient, site: FakeSite, agent: FakeAgent, kind: type[Reserve | Seal]
) -> None:
    """The agent's connection is cut after it has read the call: the same call comes again, for the same grant."""
    agent.wrong = once(kind, Cut())
    put(client)
    assert agent.fired == 1
    assert [body.grant for body in bodies(agent, kind)] == [1, 1]
    assert [commit.grant for commit in site.commits()] == [1]


def test_two_hosts_are_asked_for_and_named(site: FakeSite, agent: FakeAgent) -> None:
    """The agent is told which host is to have the second copy, the plane where both lie."""
    site.replica = host_place(9)
    second = BlockPlace(1, 3, 64, 512, 4, host=9)
    agent.wrong = lambda call: Sealed([agent.slots[1], second]) if isinstance(call.body, Seal) else None
    with new_client(site, agent.folder, replicas=2) as client:
        put(client)
    (grant,) = bodies(site, Grant)
    assert (grant.replicas, grant.at_least) == (2, 2)
    assert [body.replica for body in bodies(agent, Seal)] == [site.replica]
    assert [commit.places for commit in site.commits()] == [[agent.slots[1], second]]


def test_a_put_that_lies_on_too_few_hosts_is_refused(site: FakeSite, agent: FakeAgent) -> None:
    """Another grant may name another host, until the deadline; then the error says what keeps the second one."""
    site.replica = host_place(9)
    agent.wrong = lambda call: (
        Sealed([agent.slots[call.body.grant]], "host9 does not answer") if isinstance(call.body, Seal) else None
    )
    with new_client(site, agent.folder, replicas=2) as client:
        with pytest.raises(DataPlaneUnavailable, match=r"1 of 2 hosts: host9 does not answer.*under_replicated"):
            put(client, timeout_s=0.5)
        assert_nothing_held(client)
    assert site.commits() == []
    assert len(agent.slots) > 1


def test_a_host_that_takes_no_copy_is_the_last_to_be_asked(site: FakeSite, agent: FakeAgent) -> None:
    """The next grant says whom to avoid; once it has taken one again, nobody is avoided."""
    site.replica = host_place(9)
    answers = ["host9 does not answer", "", ""]

    def sealing(call: Call) -> Sealed | None:
        if not isinstance(call.body, Seal):
            return None
        here, why = agent.slots[call.body.grant], answers.pop(0)
        return Sealed([here], why) if why else Sealed([here, msgspec.structs.replace(here, host=9)])

    agent.wrong = sealing
    with new_client(site, agent.folder, replicas=2) as client:
        put(client)
        put(client)
    assert [grant.avoid for grant in bodies(site, Grant)] == [[], [9], []]


def test_a_copy_that_hangs_leaves_time_for_another_host(
    site: FakeSite, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that does not answer for its second host in time is given up: nothing is visible yet."""
    monkeypatch.setattr("penstock.plane.remote_puts.COPY_S", 0.3)
    site.replica = host_place(9)
    silent = [Silence()]

    def sealing(call: Call) -> Move | None:
        if not isinstance(call.body, Seal):
            return None
        here = agent.slots[call.body.grant]
        return silent.pop() if silent else Sealed([here, msgspec.structs.replace(here, host=9)])

    agent.wrong = sealing
    with new_client(site, agent.folder, replicas=2) as client:
        put(client, timeout_s=20.0)
    assert [commit.grant for commit in site.commits()] == [2]
    assert [grant.avoid for grant in bodies(site, Grant)] == [[], [9]]


def test_a_put_whose_copies_hang_says_so(site: FakeSite, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only that it was tried again."""
    monkeypatch.setattr("penstock.plane.remote_puts.COPY_S", 0.1)
    monkeypatch.setattr("penstock.plane.remote.PUT_AGAIN", msgspec.structs.replace(PUT_AGAIN, max_attempts=2))
    site.replica = host_place(9)
    agent.wrong = lambda call: Silence() if isinstance(call.body, Seal) else None
    with (
        new_client(site, agent.folder, replicas=2) as client,
        pytest.raises(DataPlaneUnavailable, match=r"not committed in 2 attempts.*no answer within"),
    ):
        put(client, timeout_s=20.0)


def test_one_host_will_do_if_that_was_said(site: FakeSite, agent: FakeAgent) -> None:
    """under_replicated=True commits what there is."""
    site.replica = host_place(9)
    with new_client(site, agent.folder, replicas=2, under_replicated=True) as client:
        put(client)
    (grant,) = bodies(site, Grant)
    assert (grant.replicas, grant.at_least) == (2, 1)
    assert [commit.places for commit in site.commits()] == [[agent.slots[1]]]


def test_without_an_agent_a_put_is_refused_at_once(site: FakeSite, tmp_path: Path) -> None:
    """The error names the command that starts one; metadata needs none."""
    with new_client(site, tmp_path / "nowhere") as client:
        began = time.monotonic()
        with pytest.raises(DataPlaneUnavailable, match=f"penstock host --plane {site.url}"):
            put(client)
        assert time.monotonic() - began < 10.0
        client.put_samples(["a"], "p", None, [{"committed": True}])
        assert client._host._link is None


def test_an_agent_that_comes_later_is_found(site: FakeSite, tmp_path: Path) -> None:
    """The client need not be made again."""
    with new_client(site, tmp_path / "host") as client:
        with pytest.raises(DataPlaneUnavailable):
            put(client)
        agent = FakeAgent(tmp_path / "host")
        try:
            put(client)
        finally:
            agent.close()


def test_an_agent_that_restarts_is_waited_for(client: RemoteDataPlaneClient, site: FakeSite, agent: FakeAgent) -> None:
    """Whoever had one waits for the next, within his deadline."""
    put(client)
    agent.close()
    thread = threading.Thread(target=put, args=(client,))
    thread.start()
    time.sleep(0.2)
    again = FakeAgent(agent.folder)
    thread.join(10)
    assert not thread.is_alive()
    assert [commit.grant for commit in site.commits()] == [1, 2]
    again.close()


def test_a_host_that_the_plane_has_not_heard_of_is_waited_for(client: RemoteDataPlaneClient, site: FakeSite) -> None:
    """Its agent may be restarting, and be enlisted in a moment; a refusal of another kind is final."""
    site.wrong = once(Grant, Failed("DataPlaneUnavailable", "host host7 is silent"))
    put(client)
    site.wrong = lambda call: Failed("DataPlaneFull", "no room") if isinstance(call.body, Grant) else None
    with pytest.raises(DataPlaneFull):
        put(client)
    site.wrong = lambda call: (
        Failed("DataPlaneUnavailable", "host host7 is silent") if isinstance(call.body, Grant) else None
    )
    with pytest.raises(DataPlaneUnavailable, match="host7 is silent"):
        put(client, timeout_s=0.5)


def test_an_agent_without_room_in_time_is_a_timeout(client: RemoteDataPlaneClient, agent: FakeAgent) -> None:
    """The wait ends by the deadline, and the slot that was asked for is not wanted any more."""
    agent.wrong = lambda call: Silence() if isinstance(call.body, Reserve) else None
    with pytest.raises(DataPlaneTimeout):
        put(client, timeout_s=0.4)
    assert agent.fired == 1
    wait_for(lambda: any(call.body.withdrawn for call in agent.beats))  # type: ignore[union-attr]
    assert_nothing_held(client)


class Interrupt(BaseException):
    """What a signal's handler may raise."""


@pytest.mark.parametrize("point", ["client.putting", "client.granted", "client.copied", "client.put"])
def test_a_signal_in_the_middle_leaves_nothing_held(
    client: RemoteDataPlaneClient, site: FakeSite, agent: FakeAgent, point: str
) -> None:
    """Wherever it strikes: plane and agent are told that nobody writes there any more, and the next put works."""
    put(client)

    def strike(at: str) -> None:
        if at == point:
            raise Interrupt

    restore = points.install(strike)
    try:
        with pytest.raises(Interrupt):
            put(client)
    finally:
        restore()
    assert_nothing_held(client)
    if point in ("client.granted", "client.copied"):
        wait_for(lambda: listed_grants(site))
        assert listed_grants(site)[-1] == []
    put(client)
    assert site.commits()[-1].grant == next(site.grants) - 1


def test_paranoid_reads_back(site: FakeSite, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is not what was meant is written once more, then refused; nothing is committed."""
    torn: list[int] = []

    def tear(_arenas: object, place: BlockPlace, _arena: object) -> None:
        torn.append(place.block_id)
        raise CorruptPayload("torn")

    monkeypatch.setattr("penstock.plane.arenas.Arenas.read_back", tear)
    with new_client(site, agent.folder, integrity="paranoid") as client:
        with pytest.raises(DataPlaneError, match="torn"):
            put(client)
        assert_nothing_held(client)
    assert torn == [1, 2]
    assert site.commits() == []


def test_a_closed_client_refuses(site: FakeSite, agent: FakeAgent) -> None:
    """At once, whatever its agent does."""
    client = new_client(site, agent.folder)
    put(client)
    client.close()
    client.close()
    with pytest.raises(DataPlaneUnavailable, match="closed"):
        put(client)
