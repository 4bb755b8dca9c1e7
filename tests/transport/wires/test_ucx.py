"""What is UCX's alone: the package, its settings, memory that is let go of, and endpoints of a peering made of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.endpoint.connection import Connection
from penstock.endpoint.events import Session
from penstock.errors import MissingExtra, TransportError
from penstock.retry import Deadline
from penstock.transport.wires import UcxWire
from penstock.transport.wires.ucx_connection import UcxConnection
from penstock.transport.wires.ucx_library import SETTINGS, defaults, library
from penstock.transport.wires.ucx_params import packed, unpacked
from penstock.transport.wires.ucx_resources import UcxResources
from penstock.transport.wires.ucx_worker import CLOSING, UcxWorker
from tests.transport.wires.peers import MIB, STREAM, connected, serving
from tests.transport.wires.rooms import TOKEN, run, soon, ucx_room
from tests.transport.wires.test_two_processes import ucx


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ucxx is not installed, making the wire is a MissingExtra that says what to install, or use instead."""
    monkeypatch.setitem(sys.modules, "ucxx", None)
    for name in [name for name in sys.modules if name.startswith("ucxx.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtra, match=r"pip install 'penstock\[ucx\]'"):
        UcxWire(TOKEN, "payload")
    with pytest.raises(MissingExtra):
        UcxResources()


def test_the_environment_stays_as_it_was() -> None:
    """Importing the package leaves no UCX_... variable behind for the processes that are started from here."""
    script = (
        "import os; before = dict(os.environ)\n"
        "from penstock.transport.wires.ucx_library import library\n"
        "assert 'ucxx' not in __import__('sys').modules\n"
        "library(); assert dict(os.environ) == before\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_settings_reach_ucx() -> None:
    """Error handling of shared memory is on, the segments are large, and peers are asked for every second."""

    async def main() -> None:
        worker = UcxWorker()
        values = " ".join(f"{name}={value}" for name, value in worker.settings.items())
        assert "1m" in values
        assert worker.settings["KEEPALIVE_INTERVAL"] == "1000000.00us"
        worker.close()

    run(main())


def test_what_the_operator_has_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of UCX in the environment wins over our default for it, and over that one only."""
    monkeypatch.setenv("UCX_KEEPALIVE_INTERVAL", "7s")
    assert set(SETTINGS) - set(defaults()) == {"KEEPALIVE_INTERVAL"}

    async def main() -> None:
        worker = UcxWorker()
        assert worker.settings["KEEPALIVE_INTERVAL"] == "7000000.00us"
        worker.close()

    run(main())


def test_a_setting_that_ucx_does_not_know_is_told() -> None:
    """UCX that cannot start is a TransportError that says so."""

    async def main() -> None:
        with pytest.raises(TransportError, match="UCX cannot start") as refused:
            UcxWorker({"NO_SUCH_SETTING": "y"})
        assert refused.value.code == "refused"

    run(main())


def test_params_come_through() -> None:
    """Number and address of a worker are the same at the other end."""
    assert unpacked(packed(7, b"address")) == (7, b"address")


@given(st.binary(max_size=400))
def test_damaged_params_are_refused(data: bytes) -> None:
    """Fuzz: bytes that are not exactly what a peer packed never reach UCX."""
    with pytest.raises(TransportError, match="damaged"):
        unpacked(data)


@given(st.integers(0, 220), st.integers(0, 7))
def test_params_with_one_bit_flipped_are_refused(at: int, bit: int) -> None:
    """One bit that is another is noticed, wherever it is."""
    params = bytearray(packed(7, bytes(range(217))))
    params[at] ^= 1 << bit
    with pytest.raises(TransportError, match="damaged"):
        unpacked(bytes(params))


def test_a_timed_out_receive_s_buffer_is_not_written_to_later() -> None:
    """A peer that is stopped in the middle of sending, and goes on later, does not write where nobody awaits it."""

    async def main() -> None:
        async with ucx() as wire, connected(wire, peer.address) as connection:
            await connection.send(STREAM, deadline=Deadline(20))
            buffer = bytearray(MIB)
            await connection.recv_into(buffer, Deadline(20))
            peer.signal(signal.SIGSTOP)
            with pytest.raises(TransportError) as late:
                await receive_until_it_fails(connection, buffer)
            assert late.value.code == "timeout"
            buffer[:] = b"\xaa" * MIB
            peer.signal(signal.SIGCONT)
            async with connected(wire, peer.address) as other:  # so that UCX is moved on here
                await other.send(STREAM, deadline=Deadline(20))
                for _ in range(100):
                    await other.recv_into(bytearray(MIB), Deadline(20))
            assert buffer.count(0xAA) == MIB

    with serving(ucx) as peer:
        run(main())


async def receive_until_it_fails(connection: Connection, buffer: bytearray) -> None:
    while True:
        await connection.recv_into(buffer, Deadline(0.3))


def test_a_message_of_another_length_is_told_and_not_taken() -> None:
    """A receive that expects another length ends with the length that came, not with a silent short message."""

    async def main() -> None:
        async with ucx_room().pair() as (here, there):
            await there.send(bytes(5), deadline=soon())
            with pytest.raises(TransportError, match="5 bytes") as cut:
                await here.recv_into(bytearray(16 * MIB), soon(0.2))
            assert cut.value.code == "truncated"

    run(main())


def test_a_close_that_is_cancelled_still_ends_everything() -> None:
    """Whoever is cancelled while the peer is asked to acknowledge the end has let go of the endpoint all the same."""

    async def main() -> None:
        resources, (one, other) = await two_bound()
        closing = asyncio.create_task(one.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert one._endpoint is None
        other.abort()
        for each in resources:
            await each.close()

    run(main())


def test_what_was_said_before_the_companion_ended_comes_first() -> None:
    """A peer that closed, and whose TCP connection ends before we have looked, has closed: it was not reset."""

    async def main() -> None:
        async with ucx_room().pair() as (here, there):
            assert isinstance(here, UcxConnection)
            assert isinstance(there, UcxConnection)
            await there.send(b"last words", deadline=soon())
            there._worker.notify(there._endpoint, there._peers_number, CLOSING)
            here._hung_up()
            heard = bytearray(10)
            await here.recv_into(heard, soon())
            assert heard == b"last words"
            with pytest.raises(TransportError) as gone:
                await here.recv_into(heard, soon())
            assert gone.value.code == "closed"

    run(main())


def test_an_idle_wire_costs_nothing() -> None:
    """With a connection open and nothing to do, the process sleeps."""

    async def main() -> None:
        async with ucx_room().pair():
            await asyncio.sleep(0.2)
            spent, begun = time.process_time(), time.monotonic()
            await asyncio.sleep(1.0)
            assert time.process_time() - spent < 0.1 * (time.monotonic() - begun)

    run(main())


def test_a_part_longer_than_a_message_goes_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part beyond the limit of one message is cut alike at both ends."""
    monkeypatch.setattr("penstock.transport.wires.ucx_connection.MAX_PIECE_BYTES", 1000)

    async def main() -> None:
        data = os.urandom(30_500)
        async with ucx_room().pair() as (here, there):
            buffer = bytearray(len(data))
            await asyncio.gather(here.send(data, deadline=soon()), there.recv_into(buffer, soon()))
            assert buffer == data

    run(main())


def test_a_wire_that_is_not_closed_ends_with_its_loop() -> None:
    """A process that forgets the wire, connections and all, ends by itself and quietly."""
    script = (
        "import asyncio\n"
        "from tests.transport.wires.rooms import *\n"
        "async def main():\n"
        "    a, b = UcxWire(TOKEN, 'x'), UcxWire(TOKEN, 'x')\n"
        "    async with kept(a) as (listener, ends):\n"
        "        here = await b.connect(listener.address, soon())\n"
        "        there = await ends.get()\n"
        "        await here.send(b'abc', deadline=soon())\n"
        "        waiting = asyncio.ensure_future(there.recv_into(bytearray(4), soon()))\n"
        "        await asyncio.sleep(0.01)\n"
        "    await asyncio.gather(waiting, return_exceptions=True)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


# -- resources --------------------------------------------------------------------------------------------------------


async def two_bound() -> tuple[list[UcxResources], list[UcxConnection]]:
    """Resources of two processes' kind, one of each bound to the other."""
    resources = [UcxResources(), UcxResources()]
    one, other = [await each.fresh(Session(n, 1), soon()) for n, each in enumerate(resources)]
    await one.bind(other.params, Session(1, 1), soon())
    await other.bind(one.params, Session(0, 1), soon())
    return resources, [one.connection(), other.connection()]


def test_resources_bind_in_any_order_and_lose_nothing() -> None:
    """What one end sends before the other has bound is there when it has."""

    async def main() -> None:
        early, late = UcxResources(), UcxResources()
        one, other = await early.fresh(Session(1, 1), soon()), await late.fresh(Session(2, 1), soon())
        await one.bind(other.params, Session(2, 1), soon())
        await one.connection().send(b"hello", deadline=soon())
        await other.bind(one.params, Session(1, 1), soon())
        heard = bytearray(5)
        await other.connection().recv_into(heard, soon())
        assert heard == b"hello"
        await asyncio.gather(one.close(), other.close())
        await one.close()
        await early.close()
        await late.close()
        await late.close()

    run(main())


def test_fresh_resources_after_an_end_know_nothing_of_the_old() -> None:
    """After one connection has ended, messages unread, a fresh pair on the same workers carries only its own."""

    async def main() -> None:
        resources, (one, other) = await two_bound()
        await one.send(b"never read", deadline=soon())
        one.abort()
        with pytest.raises(TransportError):
            await other.recv_into(bytearray(3), soon())
        fresh = [await each.fresh(Session(n, 2), soon()) for n, each in enumerate(resources)]
        await fresh[0].bind(fresh[1].params, Session(1, 2), soon())
        await fresh[1].bind(fresh[0].params, Session(0, 2), soon())
        await fresh[0].connection().send(b"new", deadline=soon())
        heard = bytearray(3)
        await fresh[1].connection().recv_into(heard, soon())
        assert heard == b"new"
        for resource in fresh:
            await resource.close()
        for each in resources:
            await each.close()

    run(main())


def test_an_abort_is_told_over_ucx_itself() -> None:
    """Without a companion connection, too, the other end of an aborted connection hears of it at once."""

    async def main() -> None:
        resources, (one, other) = await two_bound()
        waiting = asyncio.create_task(other.recv_into(bytearray(3), soon()))
        await asyncio.sleep(0.05)
        one.abort()
        started = time.monotonic()
        with pytest.raises(TransportError, match="broken off") as broken:
            await waiting
        assert broken.value.code == "reset"
        assert time.monotonic() - started < 5
        for each in resources:
            await each.close()

    run(main())


def test_what_nobody_will_read_is_thrown_away() -> None:
    """Messages that came for a connection that has ended here do not stay in UCX's memory."""

    async def main() -> None:
        resources, (one, other) = await two_bound()
        for _ in range(3):
            await one.send(b"never read", deadline=soon())
        worker, number = other._worker, other._number
        while worker.waiting(number) is None:  # noqa: ASYNC110 - nobody tells what is not asked for
            await asyncio.sleep(0)
        other.abort()
        await asyncio.sleep(0)
        assert worker.waiting(number) is None
        one.abort()
        for each in resources:
            await each.close()

    run(main())


@pytest.mark.parametrize("by", ["its companion", "UCX"])
def test_the_peer_s_death_is_noticed_by_either_of_two_means(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The TCP companion tells of a peer's death though UCX asks once a minute; UCX does, within seconds, by itself."""
    if by == "UCX":
        monkeypatch.setattr(UcxConnection, "hang_on", lambda self, lifeline: setattr(self, "_lifeline", lifeline))
    settings = {**SETTINGS, "KEEPALIVE_INTERVAL": "60s"} if by != "UCX" else SETTINGS

    async def main() -> None:
        wire = UcxWire(TOKEN, "payload", settings=settings)
        async with connected(wire, peer.address) as connection:
            waiting = asyncio.create_task(connection.recv_into(bytearray(8), Deadline(60)))
            await asyncio.sleep(0.1)
            peer.kill()
            started = time.monotonic()
            with pytest.raises(TransportError) as dead:
                await waiting
            assert dead.value.code == "reset"
            assert time.monotonic() - started < 20
        wire.close()

    with serving(ucx) as peer:
        run(main())


def test_resources_that_were_never_bound_are_closed() -> None:
    """An endpoint that retires before it is bound leaves nothing."""

    async def main() -> None:
        resources = UcxResources()
        resource = await resources.fresh(Session(1, 1), soon())
        await resource.close()
        with pytest.raises(TransportError):
            await resource.connection().send(b"x", deadline=soon())
        await resources.close()

    run(main())


def test_damaged_params_do_not_bind() -> None:
    """A peer whose params are garbage costs that endpoint an error, and UCX never sees them."""

    async def main() -> None:
        resources = UcxResources()
        resource = await resources.fresh(Session(1, 1), soon())
        with pytest.raises(TransportError) as damaged:
            await resource.bind(b"garbage" * 20, Session(2, 1), soon())
        assert damaged.value.code == "protocol"
        await resource.close()
        await resources.close()

    run(main())


def test_the_library_is_the_one_that_was_tested() -> None:
    """The bindings that are used below the package's own wrapper are there."""
    ucx_bindings = library()
    for name in (
        "UCXContext",
        "UCXWorker",
        "UCXEndpoint",
        "UCXAddress",
        "UCXXTag",
        "UCXXTagMask",
        "UCXError",
        "Feature",
    ):
        assert hasattr(ucx_bindings, name)
