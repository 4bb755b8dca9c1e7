"""What every wire promises: one suite, run over each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable

import numpy as np
import pytest

from penstock.endpoint.connection import Address, Buffer, Connection
from penstock.errors import TransportError
from tests.transport.wires.rooms import HOST, Room, kept, run, soon

MIB = 1 << 20
BROKEN_OFF = {"reset", "closed", "truncated"}  # which of them depends on what had arrived when


def noise(nbytes: int, seed: int = 7) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


async def received(connection: Connection, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    await connection.recv_into(buffer, soon())
    return bytes(buffer)


async def echo(connection: Connection) -> None:
    """Send back every message of 8 bytes, until the other side ends it."""
    while True:
        await connection.send(await received(connection, 8), deadline=soon())


async def talk(connection: Connection) -> None:
    """Have 8 bytes sent back."""
    await connection.send(b"8 bytes!", deadline=soon())
    assert await received(connection, 8) == b"8 bytes!"


async def connect_and_talk(connecting: Awaitable[Connection]) -> Connection:
    connection = await connecting
    await talk(connection)
    return connection


def test_parts_arrive_whole_and_in_order_whatever_holds_them(room: Room) -> None:
    """Bytes, a bytearray, a slice of a view and an array are sent in one call and received part by part."""

    async def main() -> None:
        parts: list[Buffer] = [
            b"first",
            bytearray(b"second"),
            memoryview(b"..third..")[2:7],
            np.arange(9, dtype=np.uint8),
        ]
        async with room.pair() as (here, there):
            sending = asyncio.create_task(here.send(*parts, deadline=soon()))
            for part in parts:
                assert await received(there, memoryview(part).nbytes) == bytes(part)  # type: ignore[arg-type]
            await sending

    run(main())


def test_a_part_of_no_bytes_is_nothing(room: Room) -> None:
    """Empty parts are neither sent nor waited for, wherever they stand."""

    async def main() -> None:
        async with room.pair() as (here, there):
            await here.send(b"", deadline=soon())
            await here.send(b"", b"ab", b"", np.zeros(0, dtype=np.uint8), b"c", b"", deadline=soon())
            empty = np.zeros(0, dtype=np.uint8)
            await there.recv_into(empty, soon())
            assert await received(there, 2) == b"ab"
            await there.recv_into(bytearray(), soon())
            assert await received(there, 1) == b"c"

    run(main())


def test_a_huge_part_arrives_as_it_was(room: Room) -> None:
    """64 MiB and 3 bytes, between two small parts, are the same at the other end."""

    async def main() -> None:
        huge = noise(64 * MIB + 3)
        async with room.pair() as (here, there):
            sending = asyncio.create_task(here.send(b"head", huge, b"tail", deadline=soon(60)))
            assert await received(there, 4) == b"head"
            target = np.empty(len(huge), dtype=np.uint8)
            await there.recv_into(target, soon(60))
            assert await received(there, 4) == b"tail"
            await sending
            assert np.array_equal(target, np.frombuffer(huge, dtype=np.uint8))

    run(main())


def test_parts_of_one_byte_arrive_one_by_one(room: Room) -> None:
    """200 parts of one byte, in one call, are received one at a time."""

    async def main() -> None:
        data = noise(200)
        async with room.pair() as (here, there):
            sending = asyncio.create_task(here.send(*(data[i : i + 1] for i in range(200)), deadline=soon()))
            assert b"".join([await received(there, 1) for _ in range(200)]) == data
            await sending

    run(main())


def test_both_directions_carry_at_once(room: Room) -> None:
    """Each end sends 8 MiB, in pieces, while it receives the other's."""

    async def main() -> None:
        async def exchange(connection: Connection, ours: bytes, theirs: bytes) -> None:
            async def send() -> None:
                for at in range(0, len(ours), MIB):
                    await connection.send(ours[at : at + MIB], deadline=soon())

            sending = asyncio.create_task(send())
            got = b"".join([await received(connection, MIB) for _ in range(len(theirs) // MIB)])
            await sending
            assert got == theirs

        one, other = noise(8 * MIB, 1), noise(8 * MIB, 2)
        async with room.pair() as (here, there):
            await asyncio.gather(exchange(here, one, other), exchange(there, other, one))

    run(main())


def test_many_connections_at_once_do_not_mix(room: Room) -> None:
    """100 connections opened together each get their own bytes back."""

    async def main() -> None:
        async with room.wires() as wires:
            listener = await wires.listening.listen(HOST, 0, echo)

            async def talk(number: int) -> None:
                connection = await wires.connecting.connect(listener.address, soon(60))
                for turn in range(3):
                    message = f"{number:5}{turn:3}".encode()
                    await connection.send(message, deadline=soon(60))
                    assert await received(connection, 8) == message
                await connection.close()

            await asyncio.gather(*(talk(number) for number in range(100)))
            await listener.close()

    run(main())


def test_a_free_port_is_bound_and_advertised(room: Room) -> None:
    """Two listeners that ask for any port get one each; what they advertise is where they are reached."""

    async def main() -> None:
        async with room.wires() as wires, kept(wires.listening) as (one, ends), kept(wires.listening) as (two, _):
            assert 0 not in (one.address.port, two.address.port)
            assert one.address != two.address
            connection = await wires.connecting.connect(one.address, soon())
            assert str(one.address) in connection.peer
            await ends.get()
            connection.abort()

    run(main())


def test_an_address_that_is_taken_is_refused(room: Room) -> None:
    """The second listener at one port is an error, and the first goes on."""

    async def main() -> None:
        async with room.wires() as wires, kept(wires.listening) as (listener, ends):
            with pytest.raises(TransportError) as taken:
                await wires.listening.listen(HOST, listener.address.port, echo)
            assert taken.value.code == "refused"
            (await wires.connecting.connect(listener.address, soon())).abort()
            await ends.get()

    run(main())


def test_where_nobody_listens_a_connection_is_refused(room: Room) -> None:
    """The address of a listener that has closed refuses, and the message names it."""

    async def main() -> None:
        async with room.wires() as wires:
            async with kept(wires.listening) as (listener, _):
                address = listener.address
            with pytest.raises(TransportError, match=str(address.port)) as refused:
                await wires.connecting.connect(address, soon())
            assert refused.value.code == "refused"

    run(main())


def test_who_does_not_know_the_token_is_not_let_in(room: Room) -> None:
    """Another token is "unauthorised" to who connects; the handler never runs, and the next one is served."""

    async def main() -> None:
        async with (
            room.wires(token=b"another token of theirs") as wires,
            kept(wires.listening) as (listener, ends),
        ):
            with pytest.raises(TransportError) as stranger:
                await wires.connecting.connect(listener.address, soon())
            assert stranger.value.code == "unauthorised"
            (await wires.listening.connect(listener.address, soon())).abort()
            await ends.get()
            assert ends.empty()

    run(main())


def test_a_connection_for_another_purpose_is_not_let_in(room: Room) -> None:
    """The right token at the wrong kind of listener is "unauthorised"."""

    async def main() -> None:
        async with room.wires(purpose="peering") as wires, kept(wires.listening) as (listener, ends):
            with pytest.raises(TransportError) as stranger:
                await wires.connecting.connect(listener.address, soon())
            assert stranger.value.code == "unauthorised"
            assert ends.empty()

    run(main())


def test_nothing_to_receive_ends_by_the_deadline(room: Room) -> None:
    """A receive from a silent peer is a timeout, after its time; the connection is of no further use."""

    async def main() -> None:
        async with room.pair() as (here, _):
            with pytest.raises(TransportError) as late:
                await here.recv_into(bytearray(4), soon(0.05))
            assert late.value.code == "timeout"
            assert late.value.elapsed_s >= 0.05
            assert here.broken
            with pytest.raises(TransportError) as after:
                await here.recv_into(bytearray(4), soon())
            assert after.value.code == "closed"

    run(main())


def test_a_peer_that_takes_nothing_ends_a_send_by_the_deadline(room: Room) -> None:
    """A send of more than fits on the way is a timeout when nobody receives it."""

    async def main() -> None:
        async with room.pair() as (here, _):
            with pytest.raises(TransportError) as late:
                await here.send(bytes(MIB), bytes(32 * MIB), deadline=soon(0.2))
            assert late.value.code == "timeout"
            assert here.broken

    run(main())


def test_the_peer_s_close_is_told(room: Room) -> None:
    """A receive that waits when the peer closes ends with "closed"."""

    async def main() -> None:
        async with room.pair() as (here, there):
            waiting = asyncio.create_task(received(here, 4))
            await asyncio.sleep(0)
            await there.close()
            with pytest.raises(TransportError) as gone:
                await waiting
            assert gone.value.code == "closed"
            assert here.broken

    run(main())


def test_what_was_sent_before_a_close_arrives(room: Room) -> None:
    """A close right after a send takes nothing back; then comes "closed"."""

    async def main() -> None:
        data = noise(256 * 1024)
        async with room.pair() as (here, there):

            async def send_and_close() -> None:
                await here.send(data, deadline=soon())
                await here.close()

            leaving = asyncio.create_task(send_and_close())
            assert await received(there, len(data)) == data
            with pytest.raises(TransportError) as gone:
                await received(there, 1)
            assert gone.value.code == "closed"
            await leaving

    run(main())


def test_half_a_part_is_never_a_part(room: Room) -> None:
    """A peer that ends after fewer bytes than are awaited causes an error, whatever has come."""

    async def main() -> None:
        async with room.pair() as (here, there):
            await there.send(b"half", deadline=soon())
            await there.close()
            with pytest.raises(TransportError) as cut:
                await received(here, 8)
            assert cut.value.code == "truncated"
            assert here.broken

    run(main())


def test_an_abort_in_the_middle_breaks_the_other_end(room: Room) -> None:
    """An end that aborts while 64 MiB are being sent to it ends the send, at once and with an error."""

    async def main() -> None:
        async with room.pair() as (here, there):
            sending = asyncio.create_task(here.send(b"head", bytes(64 * MIB), deadline=soon()))
            await received(there, 4)
            there.abort()
            with pytest.raises(TransportError) as broken:
                await sending
            assert broken.value.code in BROKEN_OFF

    run(main())


def test_a_cancelled_receive_ends_the_connection(room: Room) -> None:
    """Who waits for a part and is cancelled leaves a broken connection, and the peer hears of it."""

    async def main() -> None:
        async with room.pair() as (here, there):
            waiting = asyncio.create_task(received(here, 4))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert here.broken
            with pytest.raises(TransportError) as gone:
                await received(there, 4)
            assert gone.value.code in BROKEN_OFF

    run(main())


def test_a_cancelled_send_never_leaves_a_whole_looking_part(room: Room) -> None:
    """A part whose sending was cancelled half way cannot be received."""

    async def main() -> None:
        async with room.pair() as (here, there):
            sending = asyncio.create_task(here.send(b"head", bytes(64 * MIB), deadline=soon()))
            assert await received(there, 4) == b"head"
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            with pytest.raises(TransportError) as broken:
                await there.recv_into(bytearray(64 * MIB), soon())
            assert broken.value.code in BROKEN_OFF

    run(main())


def test_closing_and_aborting_again_is_nothing(room: Room) -> None:
    """close, close, abort, close; and abort, close, abort: no error, and calls say "closed"."""

    async def main() -> None:
        async with room.pair() as (here, there):
            await here.close()
            await here.close()
            here.abort()
            await here.close()
            there.abort()
            await there.close()
            there.abort()
            for end in (here, there):
                assert end.broken
                with pytest.raises(TransportError) as closed:
                    await end.send(b"too late", deadline=soon())
                assert closed.value.code == "closed"

    run(main())


@pytest.mark.parametrize("how", ["abort", "close"])
def test_who_waits_when_it_is_ended_here_gets_an_error(room: Room, how: str) -> None:
    """An abort or a close at this end wakes this end's receive."""

    async def main() -> None:
        async with room.pair() as (here, _):
            waiting = asyncio.create_task(received(here, 4))
            await asyncio.sleep(0)
            if how == "abort":
                here.abort()
            else:
                await here.close()
            with pytest.raises(TransportError) as ended:
                await waiting
            assert ended.value.code == "closed"

    run(main())


def test_one_too_many_is_turned_away_and_the_others_stay(room: Room) -> None:
    """Beyond max_connections a connection fails; one that ends makes room for another."""

    async def main() -> None:
        async with room.wires() as wires:
            listener = await wires.listening.listen(HOST, 0, echo, max_connections=2)
            first, second = [await connect_and_talk(wires.connecting.connect(listener.address, soon())) for _ in "12"]
            with pytest.raises(TransportError):
                await connect_and_talk(wires.connecting.connect(listener.address, soon()))
            await talk(first)
            await second.close()
            third = None
            while third is None:  # the listener has yet to hear that one has left
                with contextlib.suppress(TransportError):
                    third = await connect_and_talk(wires.connecting.connect(listener.address, soon()))
            await talk(first)
            await listener.close()

    run(main())


def test_a_handler_that_fails_ends_its_own_connection_only(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """An error of ours in one handler is logged; its peer sees the end, the others are served on."""

    async def main() -> None:
        async def sometimes(connection: Connection) -> None:
            if await received(connection, 8) == b"fail now":
                raise LookupError("a bug")
            await connection.send(b"answered", deadline=soon())
            await echo(connection)

        async with room.wires() as wires:
            listener = await wires.listening.listen(HOST, 0, sometimes)
            good, bad = [await wires.connecting.connect(listener.address, soon()) for _ in "12"]
            await bad.send(b"fail now", deadline=soon())
            with pytest.raises(TransportError):
                await received(bad, 8)
            await good.send(b"be quick", deadline=soon())
            assert await received(good, 8) == b"answered"
            await listener.close()

    run(main())
    assert "a bug" in caplog.text


def test_closing_a_listener_ends_what_it_serves(room: Room) -> None:
    """Its handlers are cancelled and over when close returns, their peers hear of it, and again is nothing."""

    async def main() -> None:
        ended: list[str] = []

        async def serve(connection: Connection) -> None:
            try:
                await received(connection, 8)
            finally:
                ended.append(connection.peer)

        async with room.wires() as wires:
            listener = await wires.listening.listen(HOST, 0, serve)
            connection = await wires.connecting.connect(listener.address, soon())
            other = await wires.connecting.connect(listener.address, soon())
            waiting = asyncio.create_task(received(connection, 1))
            await asyncio.sleep(0.05)  # for both handlers to wait for their first message
            await listener.close()
            assert len(ended) == 2
            with pytest.raises(TransportError) as gone:
                await waiting
            assert gone.value.code in BROKEN_OFF
            await listener.close()
            other.abort()

    run(main())


def test_an_address_can_be_listened_at_again(room: Room) -> None:
    """After its listener has closed, with connections open, a port is bound again at once and serves."""

    async def main() -> None:
        async with room.wires() as wires:
            listener = await wires.listening.listen(HOST, 0, echo)
            old = await connect_and_talk(wires.connecting.connect(listener.address, soon()))
            await listener.close()
            again = await wires.listening.listen(HOST, listener.address.port, echo)
            assert again.address == listener.address
            await connect_and_talk(wires.connecting.connect(Address(HOST, again.address.port), soon()))
            with pytest.raises(TransportError):
                await talk(old)
            await again.close()

    run(main())


def test_two_receives_at_once_are_our_own_bug(room: Room) -> None:
    """A second call in one direction of one connection fails loudly instead of mixing two messages."""

    async def main() -> None:
        async with room.pair() as (here, _):
            first = asyncio.create_task(received(here, 4))
            await asyncio.sleep(0)
            with pytest.raises(AssertionError):
                await received(here, 4)
            here.abort()
            with pytest.raises(TransportError):
                await first

    run(main())


def test_a_read_only_target_is_our_own_bug(room: Room) -> None:
    """Bytes cannot be received into."""

    async def main() -> None:
        async with room.pair() as (here, _):
            with pytest.raises(AssertionError):
                await here.recv_into(bytes(4), soon())

    run(main())
