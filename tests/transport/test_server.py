"""The payload server and its readers: what is sent, what is refused, what consumes; and how it begins and ends."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import points
from penstock.endpoint.connection import Address, Serve, Wire
from penstock.errors import BadArgument, TransportError
from penstock.parts import BlockPlace
from penstock.payload import block
from penstock.payload.slots import Mode
from penstock.retry import Deadline
from penstock.transport import server as server_module
from penstock.transport.server import PayloadServer, ServerLimits
from penstock.transport.slot_protocol import STATUS_BYTES, Ack, Code, Request, Status, Verdict
from penstock.transport.wires.listener import TcpListener
from penstock.transport.wires.tcp import TcpWire
from tests.transport.station import (
    PATIENT,
    PURPOSE,
    SOON_S,
    TOKEN,
    Station,
    a_server,
    a_station,
    a_wire,
    reading_at,
)

LARGE = 24 << 20  # more than the sockets of both ends hold


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    with a_station(tmp_path / "arena") as made:
        yield made


def payload_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("penstock-payload")]


def whole(place: BlockPlace, request_id: int = 1, mode: Mode = Mode.RETAIN) -> Request:
    return Request(request_id, place.block_id, place.generation, mode)


# -- reads that go well -----------------------------------------------------------------------------------------------


def test_a_block_arrives_whole_and_is_ready_again(station: Station) -> None:
    """In retain mode a read leaves everything as it was; the block says by itself that it is the right one."""

    async def read() -> bytes:
        async with reading_at(port) as reader:
            return await reader.fetch(whole(place))

    place = station.put()
    with a_server(station) as server:
        (port,) = server.statistics().ports
        payload = asyncio.run(read())
    block.verify(payload, block.parse(payload, place.block_id))
    arena = station.wait_until_read()
    assert (arena.ready_slots, arena.reading_slots, arena.ignored) == (1, 0, 0)
    counts = server.statistics().counts
    assert (counts.requests, counts.acknowledged, counts.consumed, counts.unacknowledged) == (1, 1, 0, 0)
    assert counts.sent_bytes == place.nbytes


def test_one_connection_serves_many_requests_and_a_part_has_its_own_checksum(station: Station) -> None:
    """Parts are exactly the bytes asked for, the last one included."""

    async def read() -> None:
        async with reading_at(port) as reader:
            for number, (offset, length) in enumerate([(0, 1), (64, 200), (place.nbytes - 1, 1), (0, place.nbytes)]):
                request = Request(number, place.block_id, place.generation, offset=offset, length=length)
                assert await reader.fetch(request) == everything[offset : offset + length]

    place = station.put()
    everything = station.bytes_of(place)
    with a_server(station) as server:
        (port,) = server.statistics().ports
        asyncio.run(read())
    assert server.statistics().counts.acknowledged == 4


def test_several_readers_at_several_ports_read_one_block(station: Station) -> None:
    """The slot is being read while any of them is, and ready again with the last."""

    async def read() -> None:
        async with reading_at(ports[0]) as first, reading_at(ports[1]) as second:
            begun = [await first.begin(place), await second.begin(place)]
            arena = station.statistics()
            assert (arena.tokens, arena.reading_slots, arena.ready_slots) == (2, 1, 0)
            for reader, request in zip((first, second), begun, strict=True):
                await reader.acknowledge(request)
            station.wait_until_read()

    place = station.put()
    with a_server(station, listeners=2) as server:
        ports = server.statistics().ports
        asyncio.run(read())
    assert station.statistics().ready_slots == 1


def test_only_the_acknowledgement_consumes(station: Station) -> None:
    """Sent and received is not enough; after the reader's word the slot is free, and a second reader finds nothing."""

    async def read() -> Status:
        async with reading_at(port) as reader:
            request = await reader.begin(place, Mode.CONSUME)
            assert station.statistics().reading_slots == 1
            await reader.acknowledge(request)
            station.wait_until_read()
            return await reader.ask(whole(place, 2, Mode.CONSUME))

    place = station.put()
    with a_server(station, may_consume=True) as server:
        (port,) = server.statistics().ports
        assert asyncio.run(read()).code is Code.STALE
        assert server.statistics().counts.consumed == 1
    assert station.statistics().used == 0


# -- reads that do not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Mode))
def test_a_completed_send_without_an_acknowledgement_does_not_consume(station: Station, mode: Mode) -> None:
    """The reader has every byte and goes away: the slot is ready again for the next one."""

    async def read() -> None:
        async with reading_at(port) as reader:
            await reader.begin(place, mode)

    place = station.put()
    with a_server(station, may_consume=True) as server:
        (port,) = server.statistics().ports
        asyncio.run(read())
        assert station.wait_until_read().ready_slots == 1
    counts = server.statistics().counts
    assert (counts.sent_bytes, counts.acknowledged, counts.consumed, counts.unacknowledged) == (place.nbytes, 0, 0, 1)


@pytest.mark.parametrize("verdict", [Verdict.DAMAGED, Verdict.UNWANTED])
def test_what_arrived_damaged_or_unwanted_is_not_consumed(station: Station, verdict: Verdict) -> None:
    """Only ``CHECKED`` consumes; the connection goes on, and the next attempt may succeed."""

    async def read() -> None:
        async with reading_at(port) as reader:
            await reader.acknowledge(await reader.begin(place, Mode.CONSUME), verdict)
            assert station.wait_until_read().ready_slots == 1
            await reader.acknowledge(await reader.begin(place, Mode.CONSUME))
            assert station.wait_until_read().used == 0

    place = station.put()
    with a_server(station, may_consume=True) as server:
        (port,) = server.statistics().ports
        asyncio.run(read())
    counts = server.statistics().counts
    assert (counts.damaged + counts.unwanted, counts.acknowledged, counts.consumed) == (1, 1, 1)


KILLED_READER = f"""
import asyncio, sys
from penstock.parts import BlockPlace
from tests.transport.station import Mode, reading_at
async def main(port, block_id, generation):
    async with reading_at(port) as reader:
        await reader.begin(BlockPlace(block_id, 1, 0, 1, generation), Mode.CONSUME)
        print("has all bytes", flush=True)
        await asyncio.sleep({SOON_S})
asyncio.run(main(*map(int, sys.argv[1:])))
"""


def test_a_reader_killed_between_payload_and_acknowledgement_consumes_nothing(station: Station) -> None:
    """kill -9 with every byte in its hands: the slot is ready again at once, not after a timeout."""
    place = station.put(3000)
    with a_server(station, may_consume=True) as server:
        (port,) = server.statistics().ports
        arguments = [str(port), str(place.block_id), str(place.generation)]
        with subprocess.Popen(
            [sys.executable, "-c", KILLED_READER, *arguments], stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "has all bytes\n"
            assert station.statistics().reading_slots == 1
            reader.kill()
        arena = station.wait_until_read()
    assert (arena.ready_slots, arena.ignored) == (1, 0)
    assert server.statistics().counts.consumed == 0


def test_a_reader_that_never_receives_does_not_pin_its_slot_for_ever(tmp_path: Path) -> None:
    """The sending itself has a deadline."""

    async def read() -> None:
        async with reading_at(port) as reader:
            await reader.say(whole(place).encode())
            await reader.hear(STATUS_BYTES)
            assert station.statistics().reading_slots == 1
            await asyncio.to_thread(station.wait_until_read)

    hasty = ServerLimits(send_timeout_s=0.2, slowest_bytes_per_s=1e12)
    with a_station(tmp_path / "arena", 2 * LARGE) as station:
        place = station.put(LARGE)
        with a_server(station, limits=hasty) as server:
            (port,) = server.statistics().ports
            asyncio.run(read())
            counts = server.statistics().counts
            assert (counts.sent_bytes, counts.unacknowledged) == (0, 1)
        assert station.statistics().ready_slots == 1


def test_a_reader_that_says_nothing_after_the_payload_is_given_up(station: Station) -> None:
    """The acknowledgement has a deadline; until then a read in consume mode is taken over by the reader's next one."""

    async def read() -> None:
        async with reading_at(port) as reader:
            await reader.begin(place, Mode.CONSUME)
            await asyncio.to_thread(station.wait_until_read)

    place = station.put()
    with a_server(station, may_consume=True, limits=ServerLimits(receive_timeout_s=0.2)) as server:
        (port,) = server.statistics().ports
        asyncio.run(read())
    assert station.statistics().ready_slots == 1
    assert server.statistics().counts.broken == 1


def test_an_orphans_acknowledgement_does_nothing(station: Station) -> None:
    """The reader has rotated to another port: what the first handler hears later frees nothing under the second."""

    async def read() -> None:
        async with reading_at(ports[0]) as orphan, reading_at(ports[1]) as second:
            forgotten = await orphan.begin(place, Mode.CONSUME)
            current = await second.begin(place, Mode.CONSUME)
            assert station.statistics().superseded == 1
            await orphan.acknowledge(forgotten)
            await asyncio.to_thread(station.wait_for, lambda: station.arena.statistics().ignored > 0)
            assert station.statistics().reading_slots == 1, "the second is still reading"
            await second.acknowledge(current)
            station.wait_until_read()

    place = station.put()
    with a_server(station, listeners=2, may_consume=True) as server:
        ports = server.statistics().ports
        asyncio.run(read())
    arena = station.statistics()
    assert (arena.used, arena.ignored) == (0, 1)


# -- requests that are refused ----------------------------------------------------------------------------------------


def test_an_old_reference_after_the_slot_was_used_again_is_stale(tmp_path: Path) -> None:
    """ABA: another block lies at the very same bytes; neither the old block's number nor its generation reads it."""

    async def ask() -> list[Code]:
        async with reading_at(port) as reader:
            asked = [whole(old), Request(2, new.block_id, old.generation), whole(new, 3)]
            return [(await reader.ask(request)).code for request in asked]

    with a_station(tmp_path / "arena", 4096) as station:
        old = station.put(3000)
        station.release(old)
        new = station.put(3000)
        assert (new.offset, new.nbytes) == (old.offset, old.nbytes)
        with a_server(station) as server:
            (port,) = server.statistics().ports
            assert asyncio.run(ask()) == [Code.STALE, Code.STALE, Code.OK]


def test_a_block_whose_rows_go_during_a_read_stays_until_its_end(tmp_path: Path) -> None:
    """The bytes under a send are nobody else's, though the ledger needs them no more."""

    async def read() -> None:
        async with reading_at(port) as reader:
            await reader.say(whole(place).encode())
            status = Status.decode(await reader.hear(STATUS_BYTES))
            station.release(place)
            assert station.statistics().condemned_slots == 1
            with pytest.raises(AssertionError, match="no room"):
                station.put(LARGE)
            payload = await reader.take(whole(place), status)
            block.verify(payload, block.parse(payload, place.block_id))
            await reader.acknowledge(whole(place))
            await asyncio.to_thread(station.wait_until_read)

    with a_station(tmp_path / "arena", LARGE + (1 << 20)) as station:
        place = station.put(LARGE)
        with a_server(station) as server:
            (port,) = server.statistics().ports
            asyncio.run(read())
        assert station.statistics().used == 0


def test_a_block_that_is_being_written_or_read_otherwise_is_not_ready(station: Station) -> None:
    """Asking again later is right, and is told apart from asking for what is gone."""

    async def ask() -> list[Code]:
        async with reading_at(port) as reader, reading_at(port) as other:
            begun = await other.begin(ready)
            codes = [(await reader.ask(whole(place, mode=mode))).code for place, mode in asked]
            await other.acknowledge(begun)
            return codes

    ready = station.put()
    writing = station.do(lambda: station.storage.grant(99, 1000, 7))
    assert writing is not None
    asked = [(writing, Mode.RETAIN), (ready, Mode.CONSUME)]
    with a_server(station, may_consume=True) as server:
        (port,) = server.statistics().ports
        assert asyncio.run(ask()) == [Code.NOT_READY, Code.NOT_READY]


HUGE = 2**63 - 1
REFUSED = {
    "block -1": (Request(1, -1, 1), Code.BAD_REQUEST),
    "the lowest block": (Request(1, -(2**63), 1), Code.BAD_REQUEST),
    "a block beyond the end": (Request(1, HUGE, 1), Code.STALE),
    "another generation": (Request(1, 1, 2), Code.STALE),
    "generation -1": (Request(1, 1, -1), Code.BAD_REQUEST),
    "a huge length": (Request(1, 1, 1, length=HUGE), Code.BAD_REQUEST),
    "a huge offset": (Request(1, 1, 1, offset=HUGE, length=1), Code.BAD_REQUEST),
    "both huge": (Request(1, 1, 1, offset=HUGE, length=HUGE), Code.BAD_REQUEST),
    "a negative offset": (Request(1, 1, 1, offset=-8, length=8), Code.BAD_REQUEST),
    "a negative length": (Request(1, 1, 1, offset=8, length=-8), Code.BAD_REQUEST),
    "a byte too many": (Request(1, 1, 1, offset=1000, length=10_000), Code.BAD_REQUEST),
    "to consume, where nothing may be": (Request(1, 1, 1, Mode.CONSUME), Code.BAD_REQUEST),
    "to consume a part": (Request(1, 1, 1, Mode.CONSUME, 0, 1), Code.BAD_REQUEST),
}


@pytest.mark.parametrize("what", REFUSED)
def test_nothing_outside_a_block_is_ever_served(station: Station, what: str) -> None:
    """It is refused by a code, with a reason; the connection serves the next request, and no read is left begun."""

    async def ask() -> Status:
        async with reading_at(port) as reader:
            status = await reader.ask(request)
            await reader.fetch(whole(place, 2))
            return status

    place = station.put()
    assert (place.block_id, place.generation) == (1, 1)
    request, code = REFUSED[what]
    with a_server(station) as server:
        (port,) = server.statistics().ports
        status = asyncio.run(ask())
    assert (status.code, status.length) == (code, 0)
    assert status.text
    assert station.wait_until_read().ready_slots == 1


@settings(max_examples=60)
@given(
    st.builds(
        Request,
        st.integers(0, 2**64 - 1),
        st.sampled_from([1, 2, 3, 0, -1, -2]) | st.integers(-(2**63), HUGE),
        st.sampled_from([1, 2, 3, 0]) | st.integers(-(2**63), HUGE),
        st.sampled_from(Mode),
        st.integers(-(2**63), HUGE) | st.integers(-2, 2000),
        st.integers(-(2**63), HUGE) | st.integers(-2, 2000),
    )
)
def test_any_request_gets_a_part_of_its_block_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, request_: Request
) -> None:
    """Whatever well-formed numbers come, what is served is the asked block's own bytes."""

    async def ask() -> tuple[Status, bytes]:
        async with reading_at(port) as reader:
            status = await reader.ask(request_)
            return status, await reader.take(request_, status) if status.code is Code.OK else b""

    with a_station(tmp_path_factory.mktemp("any") / "arena") as station:
        places = [station.put(), station.put()]
        with a_server(station) as server:
            (port,) = server.statistics().ports
            status, payload = asyncio.run(ask())
        if status.code is Code.OK:
            (place,) = [p for p in places if (p.block_id, p.generation) == (request_.block_id, request_.generation)]
            end = request_.offset + request_.length if request_.length else place.nbytes
            assert payload == station.bytes_of(place)[request_.offset : end]
        station.wait_until_read()


# -- peers that do not keep to the protocol ---------------------------------------------------------------------------

MALFORMED = {
    "zeros": bytes(56),
    "a flipped bit": bytes([Request(1, 1, 1).encode()[0] ^ 1]) + Request(1, 1, 1).encode()[1:],
    "another record": Status(1, Code.OK, 5).encode()[:56],
    "a web browser": b"GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: someone\r\n\r\n",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_request_ends_its_connection_and_no_other(station: Station, what: str) -> None:
    """The peer is told, and gone; whoever else is connected goes on."""

    async def talk() -> None:
        async with reading_at(port) as good, reading_at(port) as bad:
            await bad.say(MALFORMED[what][:56])
            status = Status.decode(await bad.hear(STATUS_BYTES))
            assert (status.code, status.request_id) == (Code.BAD_REQUEST, 0)
            assert "malformed" in status.text
            with pytest.raises(TransportError):
                await bad.hear(1)
            await good.fetch(whole(place))

    place = station.put()
    with a_server(station) as server:
        (port,) = server.statistics().ports
        asyncio.run(talk())
    counts = server.statistics().counts
    assert (counts.malformed, counts.acknowledged) == (1, 1)


@pytest.mark.parametrize("said", [Ack(7, Verdict.CHECKED).encode(), bytes(24), Request(1, 1, 1).encode()[:24]])
def test_a_wrong_acknowledgement_consumes_nothing(station: Station, said: bytes) -> None:
    """Of another request, malformed, or no acknowledgement at all: the read has failed and the connection ends."""

    async def talk() -> None:
        async with reading_at(port) as reader:
            await reader.begin(place, Mode.CONSUME)
            await reader.say(said)
            with pytest.raises(TransportError):
                await reader.hear(1)

    place = station.put()
    with a_server(station, may_consume=True) as server:
        (port,) = server.statistics().ports
        asyncio.run(talk())
        assert station.wait_until_read().ready_slots == 1
        assert server.statistics().counts.malformed == 1


def test_a_connection_that_asks_nothing_is_closed(station: Station) -> None:
    """Idle for longer than the limit; that is no failure."""

    async def wait() -> None:
        async with reading_at(port) as reader:
            with pytest.raises(TransportError):
                await reader.hear(1)

    with a_server(station, limits=ServerLimits(idle_timeout_s=0.1)) as server:
        (port,) = server.statistics().ports
        asyncio.run(wait())
    counts = server.statistics().counts
    assert (counts.idle, counts.broken) == (1, 0)


def test_connections_are_bounded(station: Station) -> None:
    """One too many is not served; the others do not notice."""

    async def talk() -> None:
        async with reading_at(port) as first:
            await first.fetch(whole(place))
            with pytest.raises(TransportError):
                await crowd()
            await first.fetch(whole(place, 2))

    async def crowd() -> None:
        async with reading_at(port) as second:
            await second.fetch(whole(place))

    place = station.put()
    with a_server(station, limits=ServerLimits(max_connections=1)) as server:
        (port,) = server.statistics().ports
        asyncio.run(talk())


# -- beginning and ending ---------------------------------------------------------------------------------------------


def test_ports_are_bound_before_they_are_advertised(station: Station) -> None:
    """Asked for any free ports, the server names those that it owns: nobody else can bind them, and all serve."""

    async def read(port: int) -> None:
        async with reading_at(port) as reader:
            await reader.fetch(whole(place))

    place = station.put()
    with a_server(station, listeners=3) as server:
        ports = server.statistics().ports
        assert len(set(ports)) == 3
        assert 0 not in ports
        for port in ports:
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            asyncio.run(read(port))
    assert server.statistics().ports == ()


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing(station: Station) -> None:
    """One listener of two cannot be bound: neither is left, no thread either."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = PayloadServer(station.owner, a_wire, listeners=2, ports=[0, taken.getsockname()[1]])
        with pytest.raises(TransportError):
            server.start()
    assert payload_threads() == []
    assert server.statistics().ports == ()


def test_a_wire_that_cannot_be_made_is_an_error(station: Station) -> None:
    """What its factory raises in the listener's thread is raised where the server is started."""

    def no_wire() -> Wire:
        raise TransportError("no such wire", code="refused")

    with pytest.raises(TransportError, match="no such wire"):
        PayloadServer(station.owner, no_wire).start()
    assert payload_threads() == []


def test_without_threads_there_is_no_server(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener whose thread cannot be had takes those that were started before it with it."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def scarce(thread: threading.Thread) -> None:
        if thread.name.startswith("penstock-payload") and started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    with pytest.raises(TransportError, match="can't start new thread"):
        PayloadServer(station.owner, a_wire, listeners=2).start()
    assert len(started) == 1
    assert payload_threads() == []


def test_a_wire_that_is_never_bound_is_given_up(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting ends after a limit, and so does the thread in which the wire hangs."""

    class Hanging(TcpWire):
        async def listen(self, host: str, port: int, serve: Serve, *, max_connections: int = 256) -> TcpListener:
            await asyncio.sleep(60.0)
            return await super().listen(host, port, serve, max_connections=max_connections)

    monkeypatch.setattr(server_module, "_BIND_S", 0.1)
    with pytest.raises(TransportError, match="within"):
        PayloadServer(station.owner, lambda: Hanging(TOKEN, PURPOSE)).start()
    assert payload_threads() == []


def test_a_listener_that_dies_is_counted(station: Station) -> None:
    """What goes wrong in its thread ends that thread, is logged and counted, and stops nothing else."""

    class Mortal(TcpWire):
        """The first one made cannot be closed."""

        made: ClassVar[list[Mortal]] = []

        async def listen(self, host: str, port: int, serve: Serve, *, max_connections: int = 256) -> TcpListener:
            Mortal.made.append(self)
            listener = await super().listen(host, port, serve, max_connections=max_connections)
            if self is Mortal.made[0]:
                await listener.close()
                listener.close = broken  # type: ignore[method-assign]
            return listener

    async def broken() -> None:
        raise ZeroDivisionError

    with PayloadServer(station.owner, lambda: Mortal(TOKEN, PURPOSE), limits=PATIENT) as server:
        assert len(server.statistics().ports) == 2
    assert server.statistics().died == 1
    assert payload_threads() == []


def test_stopping_ends_idle_connections_at_once_and_joins_every_thread(station: Station) -> None:
    """Stopping twice is stopping once; a server is started once."""

    async def read() -> None:
        async with reading_at(port) as reader:
            await reader.fetch(whole(place))
            await asyncio.to_thread(server.stop)
            with pytest.raises(TransportError):
                await reader.hear(1)

    place = station.put()
    server = a_server(station, listeners=2)
    port, _ = server.start()
    assert len(payload_threads()) == 2
    asyncio.run(read())
    assert payload_threads() == []
    server.stop()
    with pytest.raises(BadArgument):
        server.start()
    with pytest.raises(TransportError):
        asyncio.run(read())


def test_stopping_lets_a_read_under_way_finish(station: Station) -> None:
    """What was sent may still be acknowledged, and is consumed; then the connection ends."""

    async def until_refused() -> None:
        while True:
            async with reading_at(port) as late:
                await late.fetch(whole(other))

    async def read() -> None:
        async with reading_at(port) as reader:
            request = await reader.begin(place, Mode.CONSUME)
            stopping = asyncio.create_task(asyncio.to_thread(server.stop))
            with pytest.raises(TransportError):
                await until_refused()
            assert not stopping.done()
            await reader.acknowledge(request)
            await stopping

    place, other = station.put(), station.put()
    server = a_server(station, may_consume=True)
    (port,) = server.start()
    asyncio.run(read())
    assert server.statistics().counts.consumed == 1
    assert station.wait_until_read().ready_slots == 1


def test_stopping_during_a_send_that_hangs_is_bounded(tmp_path: Path) -> None:
    """After the limit the read is cut and its slot is ready again."""

    async def read() -> None:
        async with reading_at(port) as reader:
            await reader.say(whole(place).encode())
            await reader.hear(STATUS_BYTES)
            await asyncio.to_thread(server.stop)

    with a_station(tmp_path / "arena", 2 * LARGE) as station:
        place = station.put(LARGE)
        server = a_server(station, limits=ServerLimits(send_timeout_s=60.0, drain_s=0.2))
        (port,) = server.start()
        asyncio.run(read())
        assert payload_threads() == []
        assert station.wait_until_read().ready_slots == 1
        assert server.statistics().counts.unacknowledged == 1


def test_a_server_that_was_stopped_before_it_was_started_does_not_start(station: Station) -> None:
    """And leaves no thread."""
    server = a_server(station)
    server.stop()
    with pytest.raises(TransportError):
        server.start()
    assert payload_threads() == []


@pytest.mark.parametrize("wrong", [{"listeners": 0}, {"listeners": 2, "ports": [0]}])
def test_nonsense_is_refused(station: Station, wrong: dict[str, int]) -> None:
    """No listeners, or as many ports as there are not listeners; a limit that is none."""
    with pytest.raises(BadArgument):
        PayloadServer(station.owner, a_wire, **wrong)  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match="drain_s"):
        ServerLimits(drain_s=0.0)


def test_a_read_passes_its_points_in_order(station: Station) -> None:
    """The moments at which a fault may strike: before, between and after."""

    async def read() -> None:
        async with reading_at(port) as reader:
            await reader.fetch(whole(place))

    heard: list[str] = []
    place = station.put()
    with a_server(station) as server:
        (port,) = server.statistics().ports
        restore = points.install(heard.append)
        try:
            asyncio.run(read())
            station.wait_until_read()
        finally:
            restore()
    assert heard == ["host.sending", "host.sent", "host.acknowledged"]


def test_strangers_do_not_get_to_ask(station: Station) -> None:
    """A wire of another purpose, with the very same token, is not let in."""

    async def connect() -> None:
        wire = TcpWire(TOKEN, "other")
        await wire.connect(Address("127.0.0.1", port), Deadline(SOON_S))

    with a_server(station) as server:
        (port,) = server.statistics().ports
        with pytest.raises(TransportError):
            asyncio.run(connect())
        assert server.statistics().counts.connections == 0
