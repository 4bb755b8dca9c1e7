"""Peers of several processes in one: opened by either side, healed after a restart, at once and in crowds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from penstock.endpoint import peering as shell
from penstock.endpoint.connection import Address, Connection
from penstock.endpoint.endpoints import Endpoint
from penstock.endpoint.fitting import Fitting
from penstock.endpoint.messages import VERSION, Hello, encode
from penstock.endpoint.peering import Peering
from penstock.errors import BadArgument, TransportError
from penstock.retry import Deadline
from penstock.testing.memory_wire import Fault, MemoryWire
from penstock.transport.wires.tcp import TcpWire
from tests.endpoint.peers import HASTY, TOKEN, Town, address, asked, echo, soon, tcp, until

CROWD = 240
MOST_S = 30.0


async def drained(connection: Connection) -> None:
    """Read messages until the end."""
    while True:
        header = bytearray(4)
        await connection.recv_into(header, soon())
        await connection.recv_into(bytearray(int.from_bytes(header, "little")), soon())


def play(scene: Callable[[Town], Coroutine[Any, Any, None]], town: Town | None = None) -> None:
    """Run a scene; whatever it leaves behind is a failure."""

    async def run() -> None:
        async with town or Town() as at:
            await scene(at)
        assert [t.get_name() for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []

    asyncio.run(run())


# -- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [None, tcp], ids=["memory", "tcp"])
def test_one_side_opens_and_both_can_send(make: Callable[[str], TcpWire] | None) -> None:
    """What is sent arrives, and comes back; both ends name the same pair of sessions."""

    async def scene(town: Town) -> None:
        served: list[Endpoint] = []

        async def serve(endpoint: Endpoint) -> None:
            served.append(endpoint)
            await echo(endpoint)

        a, b = await town.peer(), await town.peer(serve)
        endpoint = await a.open(address(b), soon())
        assert await asked(endpoint.connection) == b"hello"
        (theirs,) = served
        assert (endpoint.session, endpoint.peer_session) == (theirs.peer_session, theirs.session)
        assert (endpoint.opened, theirs.opened) == (True, False)
        assert (endpoint.peer, theirs.peer) == (address(b), address(a))
        assert "ready" in repr(endpoint)
        assert "1 ready" in repr(a)

    play(scene, Town(make))


@pytest.mark.parametrize("make", [None, tcp], ids=["memory", "tcp"])
def test_both_sides_open_at_once_and_have_one_connection(make: Callable[[str], TcpWire] | None) -> None:
    """The same pair of sessions, again and again; nothing is made twice, nothing is retired."""

    async def scene(town: Town) -> None:
        for _ in range(10):
            a, b = await town.peer(), await town.peer()
            ours, theirs = await asyncio.gather(a.open(address(b), soon()), b.open(address(a), soon()))
            assert (ours.session, ours.peer_session) == (theirs.peer_session, theirs.session)
            for peer in (a, b):
                counts = peer.statistics()
                assert (counts.made, counts.retired, counts.ready) == (1, 0, 1)
            await asyncio.gather(a.close(), b.close())

    play(scene, Town(make))


def test_two_workers_of_one_process_open_at_once() -> None:
    """They have the same endpoint."""

    async def scene(town: Town) -> None:
        a, b = await town.peer(), await town.peer()
        first, second = await asyncio.gather(*(a.open(address(b), soon()) for _ in range(2)))
        assert first is second
        assert await a.open(address(b), soon()) is first

    play(scene)


def test_channels_have_nothing_to_do_with_each_other() -> None:
    """Each its own endpoint; one that is closed leaves the other."""

    async def scene(town: Town) -> None:
        a, b = await town.peer(), await town.peer(echo)
        one = await a.open(address(b), soon(), channel="one")
        two = await a.open(address(b), soon(), channel="two")
        assert one.session != two.session
        await one.connection.close()
        assert await asked(two.connection) == b"hello"

    play(scene)


def test_a_peer_without_a_listener_can_open_and_be_served() -> None:
    """It dials, for the messages and for the data; the other side cannot open, and is told so."""

    async def scene(town: Town) -> None:
        a, b = await town.peer(listens=False), await town.peer(echo)
        endpoint = await a.open(address(b), soon())
        assert await asked(endpoint.connection) == b"hello"
        assert a.address is None

    play(scene)


def test_three_parties_in_a_circle() -> None:
    """A opens B, B opens C, C opens A, one at a time in each process: nobody waits for a turn that another holds."""

    async def scene(town: Town) -> None:
        peers = [await town.peer() for _ in range(3)]
        for peer in peers:
            peer._fitting_out = peer._dialling = asyncio.Semaphore(1)
        async with asyncio.timeout(10):
            await asyncio.gather(
                *(p.open(address(q), soon()) for p, q in zip(peers, peers[1:] + peers[:1], strict=True))
            )

    play(scene)


def test_many_peers_open_to_one_at_once() -> None:
    """240 processes' worth, over TCP, 16 at a time: all are connected, in seconds."""

    async def scene(town: Town) -> None:
        hub = await town.peer(echo)
        crowd = [await town.peer() for _ in range(CROWD)]
        begun = time.monotonic()
        endpoints = await asyncio.gather(*(peer.open(address(hub), soon()) for peer in crowd))
        took = time.monotonic() - begun
        assert await asyncio.gather(*(asked(endpoint.connection) for endpoint in endpoints)) == [b"hello"] * CROWD
        assert took < MOST_S
        assert hub.statistics().made == CROWD
        assert len({endpoint.peer_session for endpoint in endpoints}) == CROWD
        await asyncio.gather(*(peer.close() for peer in crowd))
        await until(lambda: hub.statistics().pairs == 0, "the hub remembers those who have gone")

    play(scene, Town(tcp))


def test_few_endpoints_are_made_at_a_time() -> None:
    """No more than 16 bind at once, however many are opened; and all of them are, in the end."""

    async def scene(town: Town) -> None:
        at_once = most = 0
        hub, a = await town.peer(), await town.peer()
        bind = Fitting._bind_one

        async def counted(self: Fitting, *args: Any) -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0)
            await bind(self, *args)
            at_once -= 1

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Fitting, "_bind_one", counted)
            await asyncio.gather(*(a.open(address(hub), soon(), channel=str(n)) for n in range(60)))
        assert 2 <= most <= 2 * 16  # both peers live in this process

    play(scene)


# -- failing ----------------------------------------------------------------------------------------------------------


def test_nobody_there_is_told_by_the_deadline() -> None:
    """A patient caller waits for a peer that is about to start, until its deadline; the reason is named."""

    async def scene(town: Town) -> None:
        a = await town.peer()
        with pytest.raises(
            TransportError, match=r"no connection with peer nowhere:1 within 0\.3 s.*nobody listens"
        ) as e:
            await a.open(Address("nowhere", 1), Deadline(0.3))
        assert e.value.code == "timeout"
        assert a.statistics().waiting == 0
        await until(lambda: a.statistics().pairs == 0, "a pair that nobody wants is kept")

    play(scene)


def test_an_impatient_caller_is_told_at_once() -> None:
    """Nobody listens there: long before the deadline."""

    async def scene(town: Town) -> None:
        a = await town.peer()
        async with asyncio.timeout(5):
            with pytest.raises(TransportError, match="nobody listens") as refused:
                await a.open(Address("nowhere", 1), Deadline(300), patient=False)
        assert refused.value.code == "refused"

    play(scene)


def test_a_patient_caller_has_a_peer_that_starts_later() -> None:
    """The requests go on; no request is sent twice at once."""

    async def scene(town: Town) -> None:
        a = await town.peer()
        opening = asyncio.create_task(a.open(Address("127.0.0.1", 777), soon()))
        await asyncio.sleep(0.1)
        await town.peer(echo, port=777)
        assert await asked((await opening).connection) == b"hello"

    play(scene)


def test_who_does_not_know_the_token_is_told_at_once() -> None:
    """And costs the listener nothing but that connection."""

    async def scene(town: Town) -> None:
        b = await town.peer(echo)
        stranger = await town.peer(carrier=MemoryWire(town.network, b"another token, as long as it is", "peer"))
        async with asyncio.timeout(5):
            with pytest.raises(TransportError) as refused:
                await stranger.open(address(b), Deadline(300))
        assert refused.value.code == "unauthorised"
        friend = await town.peer()
        assert await asked((await friend.open(address(b), soon())).connection) == b"hello"
        assert b.statistics().made == 1

    play(scene)


@pytest.mark.parametrize(
    "said",
    [
        [b"\x05\0\0\0", b"junk!"],
        [b"\0\0\0\0"],
        [b"\xff\xff\xff\xff"],
        [*encode(Hello(VERSION + 1, "from the future"))],
        [*encode(Hello(VERSION, "me")), *encode(Hello(VERSION, "me again"))],
        [*encode(Hello(VERSION, "me")), b"\x03\0\0\0", b"\xc1\xc1\xc1"],
    ],
    ids=["no message", "empty", "huge", "other version", "twice Hello", "junk after Hello"],
)
def test_a_malformed_peer_costs_its_connection(said: list[bytes]) -> None:
    """It authenticates, and then speaks nonsense: it is closed, and others are served."""

    async def scene(town: Town) -> None:
        b = await town.peer(echo)
        wire = town.wire("peer")
        connection = await wire.connect(address(b), soon())
        await connection.send(*said, deadline=soon())
        with pytest.raises(TransportError):
            await drained(connection)
        a = await town.peer()
        assert await asked((await a.open(address(b), soon())).connection) == b"hello"

    play(scene)


def test_one_caller_gives_up_and_another_goes_on() -> None:
    """Its own deadline, its own failure."""

    async def scene(town: Town) -> None:
        a = await town.peer()
        late = asyncio.create_task(a.open(Address("127.0.0.1", 778), soon()))
        await asyncio.sleep(0)
        with pytest.raises(TransportError, match=r"within 0\.05 s"):
            await a.open(Address("127.0.0.1", 778), Deadline(0.05))
        cancelled = asyncio.create_task(a.open(Address("127.0.0.1", 778), soon()))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await town.peer(echo, port=778)
        assert not (await late).retired

    play(scene)


def test_oneself_and_endless_channels_are_refused() -> None:
    """As a caller's mistake."""

    async def scene(town: Town) -> None:
        a = await town.peer()
        with pytest.raises(BadArgument, match="itself"):
            await a.open(address(a), soon())
        with pytest.raises(BadArgument, match="at most 128"):
            await a.open(Address("x", 1), soon(), channel="c" * 129)
        with pytest.raises(BadArgument, match="at least one kind"):
            Peering({}, town.wire("peer"))

    play(scene)


# -- healing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [None, tcp], ids=["memory", "tcp"])
def test_a_peer_that_restarts_is_connected_again(make: Callable[[str], TcpWire] | None) -> None:
    """The data path breaks, the endpoint retires, and the next open has a fresh one."""

    async def scene(town: Town) -> None:
        a, b = await town.peer(), await town.peer(echo)
        old = await a.open(address(b), soon())
        await b.close()
        with pytest.raises(TransportError):
            await asked(old.connection)
        assert old.retired
        await town.peer(echo, port=address(b).port)
        new = await a.open(address(b), soon())
        assert await asked(new.connection) == b"hello"
        assert new.session != old.session
        assert new.peer_session.boot != old.peer_session.boot
        with pytest.raises(TransportError, match=r"retired|closed"):
            await old.connection.send(b"hello", deadline=soon())

    play(scene, Town(make))


def test_a_restarted_peer_opens_to_one_that_has_not_noticed() -> None:
    """Make before break: the restarted one is connected, and what the other had of its old life retires."""

    async def scene(town: Town) -> None:
        old: list[Endpoint] = []

        async def hold(endpoint: Endpoint) -> None:
            old.append(endpoint)
            await endpoint.wait_retired()

        b = await town.peer(hold)
        a = await town.peer(listens=False)
        await a.open(address(b), soon())
        reborn = await town.peer(listens=False)
        reborn._me = a._me  # the same name, as a host's agent has it in each of its lives
        endpoint = await reborn.open(address(b), soon())
        await until(lambda: len(old) == 2, "the new endpoint was not served")
        assert old[1].session == endpoint.peer_session
        assert not endpoint.retired

    play(scene)


def test_a_peer_that_dies_silently_is_noticed_by_keep_alive() -> None:
    """No byte comes any more, not even an end: the endpoint retires after the silence, and says so."""

    async def scene(town: Town) -> None:
        a, b = await town.peer(), await town.peer(echo)
        endpoint = await a.open(address(b), soon())
        a._hear = lambda *_: None  # type: ignore[method-assign]
        for link in a._links.values():
            link._hear = lambda *_: None
        why = await asyncio.wait_for(endpoint.wait_retired(), MOST_S)
        assert "silent for" in why

    play(scene, Town(timing=HASTY))


def test_keep_alive_keeps_an_idle_endpoint() -> None:
    """For several times the silence that would end it."""

    async def scene(town: Town) -> None:
        a, b = await town.peer(), await town.peer(echo)
        endpoint = await a.open(address(b), soon())
        await asyncio.sleep(2 * HASTY.silence_s)
        assert not endpoint.retired
        assert a.statistics().made == 1
        assert await asked(endpoint.connection) == b"hello"

    play(scene, Town(timing=HASTY))


def test_a_connection_that_breaks_before_it_is_handed_out_is_made_again() -> None:
    """The peer has answered, and then the data connection cannot be had: the caller gets the next one."""

    async def scene(town: Town) -> None:
        data = MemoryWire(town.network, TOKEN, "peer-data", [Fault(0, "fail")])
        a, b = await town.peer(listens=False, data=data), await town.peer(echo)
        async with asyncio.timeout(10):
            endpoint = await a.open(address(b), Deadline(300))
        assert data.fired == [(Fault(0, "fail"), "connect")]
        assert await asked(endpoint.connection) == b"hello"
        assert a.statistics().retired == 1

    play(scene)


def test_every_message_and_every_transfer_meets_a_fault_once() -> None:
    """Each call of the carrier, or of the data wire, fails in turn: the opening still ends connected."""

    async def scene(town: Town) -> None:
        fired = 0
        for call in range(9):
            for purpose in ("peer", "peer-data"):
                wire = MemoryWire(town.network, TOKEN, purpose, [Fault(call, "fail")])
                b = await town.peer(echo)
                a = await town.peer(**{"carrier" if purpose == "peer" else "data": wire})  # type: ignore[arg-type]
                for _ in range(3):
                    endpoint = await a.open(address(b), soon())
                    try:
                        assert await asked(endpoint.connection) == b"hello"
                    except TransportError:
                        await until(lambda e=endpoint: e.retired, "a broken endpoint is kept")  # type: ignore[misc]
                fired += len(wire.fired)
                await asyncio.gather(a.close(), b.close())
        assert fired >= 10

    play(scene)


# -- use --------------------------------------------------------------------------------------------------------------


def test_every_transfer_ends_once_across_a_retirement() -> None:
    """A hundred reads wait on a hundred endpoints, all are retired at once: each has one error, with the reason."""

    async def scene(town: Town) -> None:
        a, b = await town.peer(), await town.peer()
        endpoints = [await a.open(address(b), soon(), channel=str(n)) for n in range(100)]
        reads = [asyncio.create_task(e.connection.recv_into(bytearray(1), soon())) for e in endpoints]
        await asyncio.sleep(0)
        for endpoint in endpoints:
            a.give_up(endpoint.session, "evicted")
        ends = await asyncio.gather(*reads, return_exceptions=True)
        assert {(type(end), str(end)) for end in ends} == {(TransportError, "evicted")}
        assert a._settled == {}
        assert not any(endpoint.connection.broken is False for endpoint in endpoints)

    play(scene)


def test_a_handler_that_ends_closes_what_the_peer_opened() -> None:
    """By returning or by a bug, which is told in the log and to nobody else."""

    async def scene(town: Town) -> None:
        async def done(_: Endpoint) -> None:
            return

        async def bug(_: Endpoint) -> None:
            raise ZeroDivisionError

        handlers: list[Callable[[Endpoint], Awaitable[None]]] = [done, bug]
        for handler in handlers:
            a, b = await town.peer(), await town.peer(handler)
            endpoint = await a.open(address(b), soon())
            with pytest.raises(TransportError):
                await asked(endpoint.connection)
            assert endpoint.retired

    play(scene)


def test_each_ready_endpoint_is_served_once_on_both_sides() -> None:
    """Whoever opened it; a handler's end leaves what was opened here."""

    async def scene(town: Town) -> None:
        served: list[tuple[str, bool]] = []

        def server(name: str) -> Callable[[Endpoint], Awaitable[None]]:
            async def serve(endpoint: Endpoint) -> None:
                served.append((name, endpoint.opened))
                if name == "b":
                    await echo(endpoint)

            return serve

        a, b = await town.peer(server("a")), await town.peer(server("b"))
        endpoint = await a.open(address(b), soon())
        assert await asked(endpoint.connection) == b"hello"
        assert sorted(served) == [("a", True), ("b", False)]
        assert not endpoint.retired

    play(scene)


def test_a_cancelled_transfer_breaks_its_endpoint() -> None:
    """Half of a message may have left: it is of no further use, and says so."""

    async def scene(town: Town) -> None:
        a, b = await town.peer(), await town.peer()
        endpoint = await a.open(address(b), soon())
        read = asyncio.create_task(endpoint.connection.recv_into(bytearray(1), soon()))
        await asyncio.sleep(0)
        read.cancel()
        await asyncio.gather(read, return_exceptions=True)
        assert endpoint.retired
        assert "cancelled" in endpoint.why

    play(scene)


# -- ending -----------------------------------------------------------------------------------------------------------


def test_closing_ends_everything_and_can_be_repeated() -> None:
    """Who waits is told; endpoints retire; nothing is left."""

    async def scene(town: Town) -> None:
        a, b = await town.peer(), await town.peer(echo)
        endpoint = await a.open(address(b), soon())
        waiting = asyncio.create_task(a.open(Address("nowhere", 1), soon()))
        await asyncio.sleep(0.01)
        await a.close()
        await a.close()
        with pytest.raises(TransportError, match="closed"):
            await waiting
        with pytest.raises(TransportError, match="closed"):
            await a.open(address(b), soon())
        assert endpoint.retired
        counts = a.statistics()
        assert (counts.pairs, counts.ready, counts.asking, counts.waiting) == (0, 0, 0, 0)
        assert "closed" in repr(a)
        await until(lambda: b.statistics().ready == 0, "the other side has not noticed")

    play(scene)


def test_pairs_are_limited() -> None:
    """A peer that asks for one channel after the other gets so many, and costs others nothing."""

    async def scene(town: Town) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shell, "_MAX_PAIRS", 3)
            a, b = await town.peer(), await town.peer(echo)
            await asyncio.gather(*(a.open(address(b), soon(), channel=str(n)) for n in range(3)))
            with pytest.raises(TransportError):
                await a.open(address(b), Deadline(0.2), channel="one too many")
            assert b.statistics().refused > 0
            assert b.statistics().pairs == 3

    play(scene)


def test_a_peer_that_has_gone_is_forgotten() -> None:
    """Whoever comes back under another address, as an agent does in each of its lives, leaves nothing behind."""

    async def scene(town: Town) -> None:
        a, b = await town.peer(), await town.peer(echo)
        endpoint = await a.open(address(b), soon())
        await endpoint.connection.close()
        await until(lambda: a.statistics().pairs == b.statistics().pairs == 0, "both have let go of the endpoint")
        assert a.statistics().links == 1
        await b.close()
        await until(lambda: a.statistics().links == 0, "nobody speaks of it any more")

    play(scene)
