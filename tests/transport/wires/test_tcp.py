"""What is TCP's alone: strangers, file descriptors, names, encryption; and how little a connection costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from penstock.endpoint.connection import Address, Connection
from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.transport.wires import TcpWire, greeting, listener, tcp
from penstock.transport.wires.listener import TcpListener
from penstock.wire.auth import PROOF_BYTES, RESPONSE_BYTES, Greeter
from penstock.wire.tls import client_context, server_context
from tests.descriptors import open_descriptors
from tests.plane.certificates import certificate
from tests.transport.wires.rooms import HOST, TOKEN, kept, run, soon


@contextlib.asynccontextmanager
async def listening(wire: TcpWire, *, max_connections: int = 8) -> AsyncIterator[TcpListener]:
    async with kept(wire, max_connections=max_connections) as (found, _):
        assert isinstance(found, TcpListener)
        yield found


async def until(true: Callable[[], bool]) -> None:
    """Let the loop run until something holds that nobody tells; a hang is the test's own timeout."""
    tick = asyncio.Event()
    while not true():
        asyncio.get_running_loop().call_later(0.001, tick.set)
        await tick.wait()
        tick.clear()


async def stranger(address: Address, says: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(says)
    return reader, writer


async def let_in(wire: TcpWire, address: Address) -> None:
    (await wire.connect(address, soon())).abort()


@pytest.mark.parametrize(
    "says", [b"GET / HTTP/1.1\r\n\r\n" * 9, os.urandom(200), bytes(72), b"PENSTK\x00\x02" + bytes(64)]
)
def test_garbage_costs_nobody_else_anything(says: bytes) -> None:
    """Who speaks something else is told nothing but the challenge and zeros, and the next one is served."""

    async def main() -> None:
        wire = TcpWire(TOKEN, "payload")
        async with listening(wire) as found:
            reader, writer = await stranger(found.address, says)
            heard = await reader.read()
            assert len(heard) == 72
            assert heard[40:] == bytes(32)
            await let_in(wire, found.address)
            assert found.statistics().strangers == 1
            writer.close()

    run(main())


def test_who_says_nothing_is_sent_away_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent connection, and one that sends its answer byte by byte, end when their time is over."""
    monkeypatch.setattr(tcp, "GREETING_S", 0.2)

    async def main() -> None:
        wire = TcpWire(TOKEN, "payload")
        async with listening(wire) as found:
            silent, first = await stranger(found.address)
            slow, second = await stranger(found.address, b"PENST")
            with contextlib.suppress(ConnectionResetError):
                await asyncio.gather(silent.read(), slow.read())
            await until(lambda: found.statistics().strangers == 2)
            await let_in(wire, found.address)
            first.close()
            second.close()

    run(main())


def test_too_many_strangers_cost_the_one_who_waited_longest() -> None:
    """With as many silent connections as it hears at once, a listener still lets in who knows the token."""

    async def main() -> None:
        wire = TcpWire(TOKEN, "payload")
        async with listening(wire, max_connections=3) as found:
            crowd = [await stranger(found.address) for _ in range(3)]
            await until(lambda: found.statistics().accepted == 3)
            await let_in(wire, found.address)
            with contextlib.suppress(ConnectionResetError):
                assert len(await crowd[0][0].read()) <= 40
            assert found.statistics().strangers == 1
            for _, writer in crowd:
                writer.close()

    run(main())


def test_a_false_listener_is_told_nothing() -> None:
    """Who answers the exchange without knowing the token gets no connection; the dialler says "unauthorised"."""

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(Greeter(b"another token, as long", "payload").challenge())
        await reader.readexactly(RESPONSE_BYTES)
        writer.write(b"\x01" * PROOF_BYTES)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        ended.set()
        writer.close()

    ended = asyncio.Event()

    async def main() -> None:
        async with await asyncio.start_server(pretend, HOST, 0) as server:
            port = server.sockets[0].getsockname()[1]
            failure = await refused(TcpWire(TOKEN, "payload").connect(Address(HOST, port), soon()))
            assert failure.code == "unauthorised"
            assert "does not know the token" in str(failure)
            await ended.wait()

    run(main())


def test_running_out_of_file_descriptors_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    """A listener that cannot accept waits a little, and accepts when descriptors are free; nobody served is lost."""

    async def main() -> None:
        wire = TcpWire(TOKEN, "payload")
        async with kept(wire) as (found, ends):
            assert isinstance(found, TcpListener)
            here = await wire.connect(found.address, soon())
            there = await ends.get()
            late = tuned_socket()
            with few_descriptors():
                late.connect_ex(found.address)
                await until(lambda: found.statistics().pauses >= 2)
            await until(lambda: found.statistics().accepted == 2)
            await here.send(b"still here", deadline=soon())
            await there.recv_into(bytearray(10), soon())
            await let_in(wire, found.address)
            late.close()
            here.abort()

    run(main())
    assert "cannot accept: Too many open files" in caplog.text


def tuned_socket() -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def few_descriptors() -> Iterator[None]:
    """Leave this process no descriptor to spare."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    held: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


def test_a_connection_leaves_no_descriptor_behind() -> None:
    """After connections that were let in, refused, timed out and never answered, as many files are open as before."""

    async def main() -> None:
        wire, other = TcpWire(TOKEN, "payload"), TcpWire(b"some other token", "payload")
        before = open_descriptors()
        async with listening(wire, max_connections=2) as found:
            reader, writer = await stranger(found.address)
            await reader.readexactly(40)
            with pytest.raises(TransportError):
                await other.connect(found.address, soon())
            for _ in range(3):  # the third is one too many
                with contextlib.suppress(TransportError):
                    await wire.connect(found.address, soon())
        with pytest.raises(TransportError):
            await wire.connect(found.address, soon())
        writer.close()
        del reader, writer
        await until(lambda: open_descriptors() <= before)

    run(main())


def test_strangers_who_come_all_at_once_are_no_more_than_the_limit() -> None:
    """Each newcomer beyond it sends another one away, not the same one again."""

    async def main() -> None:
        wire = TcpWire(TOKEN, "payload")
        async with listening(wire, max_connections=4) as found:
            crowd = [socket.create_connection(found.address) for _ in range(40)]  # before the listener has a turn
            most = 0
            while found.statistics().accepted < len(crowd):
                await asyncio.sleep(0)
                most = max(most, len(found._strangers))
            assert most <= 4
            await until(lambda: found.statistics().strangers >= len(crowd) - 4)
            await let_in(wire, found.address)
            for sock in crowd:
                sock.close()

    run(main())


def test_a_name_is_resolved_and_an_unknown_one_refused() -> None:
    """ "localhost" is tried with all its numbers; a name that nobody knows is "refused", in words."""

    async def main() -> None:
        wire = TcpWire(TOKEN, "payload")
        async with listening(wire) as found:
            await let_in(wire, Address("localhost", found.address.port))
        with pytest.raises(TransportError, match=r"no-such-host\.invalid") as unknown:
            await wire.connect(Address("no-such-host.invalid", 1), soon())
        assert unknown.value.code == "refused"
        with pytest.raises(TransportError, match="label") as impossible:
            await wire.connect(Address("a" * 70, 1), soon())
        assert impossible.value.code == "refused"

    run(main())


def test_it_does_not_connect_with_itself() -> None:
    """A free port that the kernel gives to the dialling socket itself is a refusal, not a peer."""

    async def main() -> None:
        sock = tuned_socket()
        sock.bind((HOST, 0))
        with pytest.raises(ConnectionRefusedError, match="itself"):
            await tcp._connected(sock, sock.getsockname(), soon())

    run(main())


def test_a_connection_s_state_is_in_its_words() -> None:
    """repr of a connection and of a listener tell what they are, with whom and in which state."""

    async def main() -> None:
        wire = TcpWire(TOKEN, "payload")
        async with listening(wire) as found:
            connection = await wire.connect(found.address, soon())
            assert repr(connection) == f"<TCP connection with {found.address}, open>"
            connection.abort()
            assert repr(connection) == f"<TCP connection with {found.address}, gone>"
            assert "at most 8" in repr(found)
        assert repr(found) == f"<TCP listener at {found.address}, closed>"

    run(main())


def test_leaving_a_connection_s_scope_ends_it() -> None:
    """async with closes a connection; an error on the way aborts it."""

    async def main() -> None:
        wire = TcpWire(TOKEN, "payload")
        async with kept(wire) as (found, ends):
            async with await wire.connect(found.address, soon()) as connection:
                there = await ends.get()
            assert connection.broken
            with pytest.raises(TransportError, match="it has closed"):
                await there.recv_into(bytearray(1), soon())
            with pytest.raises(LookupError):
                await fail_in_scope(wire, found.address)
            there = await ends.get()
            with pytest.raises(TransportError) as reset:
                await there.recv_into(bytearray(1), soon())
            assert reset.value.code == "reset"

    async def fail_in_scope(wire: TcpWire, address: Address) -> None:
        async with await wire.connect(address, soon()):
            raise LookupError

    run(main())


def test_one_long_transfer_does_not_starve_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """While 64 MiB cross between two ends of one loop, small messages of another connection go to and fro."""

    async def main() -> None:
        wire = TcpWire(TOKEN, "payload")
        async with kept(wire) as (found, ends):
            bulk, small = await wire.connect(found.address, soon()), await wire.connect(found.address, soon())
            bulk_end, small_end = await ends.get(), await ends.get()
            moving = asyncio.gather(
                bulk.send(bytes(64 << 20), deadline=soon()), bulk_end.recv_into(bytearray(64 << 20), soon())
            )
            turns = 0
            while not moving.done():
                await small.send(b"x", deadline=soon())
                await small_end.recv_into(bytearray(1), soon())
                turns += 1
                await asyncio.sleep(0)
            await moving
            assert turns > 5
            bulk.abort()
            small.abort()

    run(main())


def pem_contexts(folder: Path) -> tuple[TcpWire, TcpWire, Path]:
    cert, key = certificate(folder)
    return TcpWire(TOKEN, "payload", tls_server=server_context(cert, key)), TcpWire(TOKEN, "payload"), cert


async def refused(connecting: Awaitable[Connection]) -> TransportError:
    with pytest.raises(TransportError) as failed:
        await connecting
    return failed.value


def test_encryption_at_one_end_only_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain to a TLS listener ends in time and hints at TLS; TLS to a plain listener is a "protocol" error."""
    monkeypatch.setattr(tcp, "GREETING_S", 0.3)
    server, plain, cert = pem_contexts(tmp_path)
    encrypted = TcpWire(TOKEN, "payload", tls_client=client_context(cert))

    async def main() -> None:
        async with listening(server) as found:
            failure = await refused(plain.connect(found.address, Deadline(5)))
            assert failure.code in {"reset", "closed"}
            assert "wants TLS" in str(failure)
            await let_in(encrypted, found.address)
        async with listening(plain) as found:
            failure = await refused(encrypted.connect(found.address, Deadline(5)))
            assert failure.code == "protocol"
            assert "TLS" in str(failure)
            await let_in(plain, found.address)

    run(main())


def test_a_certificate_that_is_not_believed_is_unauthorised(tmp_path: Path) -> None:
    """Another authority than the listener's is "unauthorised", before the token is in question."""
    server, _, _ = pem_contexts(tmp_path)
    (tmp_path / "other").mkdir()
    stranger_cert, _ = certificate(tmp_path / "other")

    async def main() -> None:
        async with listening(server) as found:
            doubting = TcpWire(TOKEN, "payload", tls_client=client_context(stranger_cert))
            failure = await refused(doubting.connect(found.address, Deadline(5)))
            assert failure.code == "unauthorised"
            assert "not believed" in str(failure)

    run(main())


def test_the_exchange_s_time_is_short_by_default() -> None:
    """A stranger has seconds, not minutes; and accepting pauses for less than anybody would notice."""
    assert greeting.GREETING_S <= 10
    assert listener._PAUSE_S <= 0.5
