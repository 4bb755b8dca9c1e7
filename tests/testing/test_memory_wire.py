"""The twin of the wires: faults on order at every call, and the one thing in which it is stricter than TCP."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from penstock.endpoint.connection import Address, Connection
from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.testing.memory_wire import Fault, Kind, MemoryListener, MemoryNetwork, MemoryWire

CALLS = ["connect", "send", "recv_into", "send", "recv_into"]
OUTCOMES: dict[Kind, set[str]] = {
    "fail": {"reset"},
    "stall": {"timeout"},
    "truncate": {"reset", "truncated"},
    "flip": {"reset", "corrupt"},
}


async def echo(connection: Connection) -> None:
    buffer = bytearray(8)
    while True:
        await connection.recv_into(buffer, Deadline(5))
        await connection.send(buffer, deadline=Deadline(5))


async def conversation(wire: MemoryWire, address: Address) -> str:
    """Two messages there and back; return "fine", "corrupt", or the code of the error."""
    try:
        connection = await wire.connect(address, Deadline(0.05))
        answers = []
        for message in (b"message1", b"message2"):
            answer = bytearray(8)
            await connection.send(message, deadline=Deadline(0.05))
            await connection.recv_into(answer, Deadline(0.05))
            answers.append(bytes(answer))
    except TransportError as failed:
        return failed.code
    await connection.close()
    return "fine" if answers == [b"message1", b"message2"] else "corrupt"


def outcome(*faults: Fault) -> tuple[str, MemoryWire]:
    async def main() -> tuple[str, MemoryWire]:
        network = MemoryNetwork()
        listener = await MemoryWire(network).listen("here", 0, echo)
        wire = MemoryWire(network, faults=faults)
        said = await conversation(wire, listener.address)
        await listener.close()
        return said, wire

    return asyncio.run(main())


def test_without_faults_every_call_is_counted() -> None:
    """A conversation without faults is fine, and the wire lists its calls; authentication is not among them."""
    said, wire = outcome()
    assert said == "fine"
    assert wire.calls == CALLS
    assert wire.fired == []


@pytest.mark.parametrize("kind", ["fail", "stall", "truncate", "flip"])
@pytest.mark.parametrize("call", range(len(CALLS)))
def test_a_fault_is_met_at_the_call_it_was_ordered_for(call: int, kind: Kind) -> None:
    """Each fault at each call has fired, at that call, and had an effect that fits it."""
    fault = Fault(call, kind)
    said, wire = outcome(fault)
    assert wire.fired == [(fault, CALLS[call])]
    assert said in OUTCOMES[kind]
    assert said != "corrupt" or CALLS[call] != "connect"


def test_a_fault_beyond_the_last_call_does_not_fire() -> None:
    """What was ordered for a call that is never made is not among those fired."""
    said, wire = outcome(Fault(len(CALLS), "fail"))
    assert (said, wire.fired) == ("fine", [])


def test_a_truncated_send_is_half_a_part_at_the_other_end() -> None:
    """The receiver gets "truncated", never a short part in silence."""

    async def main() -> None:
        here, there, listener = await connected(MemoryNetwork(), [Fault(1, "truncate")])
        with pytest.raises(TransportError):
            await here.send(b"message1", deadline=Deadline(5))
        with pytest.raises(TransportError, match="4 bytes for 8") as cut:
            await there.recv_into(bytearray(8), Deadline(5))
        assert cut.value.code == "truncated"
        await listener.close()

    asyncio.run(main())


def test_a_receive_of_less_than_a_part_is_an_error() -> None:
    """Two receives for one part would pass over TCP and fail over UCX: here they fail."""

    async def main() -> None:
        here, there, listener = await connected(MemoryNetwork())
        await here.send(b"message1", deadline=Deadline(5))
        with pytest.raises(TransportError, match="8 bytes for 4") as misfit:
            await there.recv_into(bytearray(4), Deadline(5))
        assert misfit.value.code == "protocol"
        await listener.close()

    asyncio.run(main())


async def connected(
    network: MemoryNetwork, faults: list[Fault] | None = None
) -> tuple[Connection, Connection, MemoryListener]:
    ends: asyncio.Queue[Connection] = asyncio.Queue()

    async def keep(connection: Connection) -> None:
        ends.put_nowait(connection)
        await asyncio.Event().wait()

    listener = await MemoryWire(network).listen("here", 0, keep)
    here = await MemoryWire(network, faults=faults or []).connect(listener.address, Deadline(5))
    return here, await ends.get(), listener


def test_the_two_ends_may_be_on_two_threads() -> None:
    """A listener on a thread and loop of its own serves a client on this one."""
    network = MemoryNetwork()
    ready, addresses = threading.Event(), list[Address]()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        listener = await MemoryWire(network).listen("there", 0, echo)
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        addresses.append(listener.address)
        ready.set()
        await stop.wait()
        await listener.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)

    async def main() -> None:
        connection = await MemoryWire(network).connect(addresses[0], Deadline(10))
        for number in range(50):
            message, answer = f"{number:8}".encode(), bytearray(8)
            await connection.send(message, deadline=Deadline(10))
            await connection.recv_into(answer, Deadline(10))
            assert answer == message
        await connection.close()

    try:
        asyncio.run(main())
    finally:
        loop, stop = loops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(TransportError), contextlib.closing(asyncio.new_event_loop()) as after:
        after.run_until_complete(MemoryWire(network).connect(addresses[0], Deadline(1)))
