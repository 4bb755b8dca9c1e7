"""Two processes: one is killed and comes back, the other is connected with it again, over every kind of wire.

Over a twin of hardware that cannot reset a connected resource, too: there who only resets fails, and fresh ones pass.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.endpoint.connection import Address
from penstock.endpoint.peering import Peering
from penstock.endpoint.resources import Resources
from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.testing.hardware import Hardware, ResetOnly
from tests.endpoint.other_process import resources
from tests.endpoint.peers import CALM, asked, soon, tcp

REPOSITORY = Path(__file__).parents[2]
KINDS = ["tcp", "ucx"]
TWINS = ["tcp", pytest.param("ucx", marks=pytest.mark.slow)]


@contextmanager
def process(kind: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    """Another peer, killed at the end at the latest."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.endpoint.other_process", kind, str(port)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    try:
        assert child.stdout is not None
        yield child, Address("127.0.0.1", int(child.stdout.readline()))
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


async def with_peering(kind: str, made: Resources, scene: Callable[[Peering], Awaitable[None]]) -> None:
    async with Peering({kind: made}, tcp("peer"), timing=CALM) as peering:
        await peering.start("127.0.0.1")
        await scene(peering)


def killed_and_back(kind: str, wrap: Callable[[Resources], Resources], deadline_s: float = 20.0) -> float:
    """Connect, kill the other, start it again at the same port, connect again; return how long that took."""
    took = 0.0

    async def run() -> None:
        await with_peering(kind, wrap(await resources(kind)), scene)

    async def scene(peering: Peering) -> None:
        nonlocal took
        with process(kind) as (child, address):
            old = await peering.open(address, soon())
            assert await asked(old.connection) == b"hello"
            child.send_signal(signal.SIGKILL)
            child.wait()
            with pytest.raises(TransportError):
                await asked(old.connection)
            assert old.retired
        with process(kind, address.port):
            begun = time.monotonic()
            new = await peering.open(address, Deadline(deadline_s))
            assert await asked(new.connection) == b"hello"
            took = time.monotonic() - begun
            assert new.session != old.session
            assert new.peer_session.boot != old.peer_session.boot

    asyncio.run(run())
    return took


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_is_connected_again(kind: str) -> None:
    """With fresh sessions and fresh resources, far sooner than any timer would have noticed."""
    assert killed_and_back(kind, lambda made: made) < 10.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_is_noticed_long_before_its_silence(kind: str) -> None:
    """Who waits for a word is told at once, by a wire that does not tell of deaths, too: nobody listens there now."""

    async def scene(peering: Peering) -> None:
        with process(kind) as (child, address):
            endpoint = await peering.open(address, soon())
            read = asyncio.create_task(endpoint.connection.recv_into(bytearray(1), soon()))
            await asyncio.sleep(0.05)
            child.send_signal(signal.SIGKILL)
            assert await asyncio.wait_for(endpoint.wait_retired(), CALM.silence_s / 2)
            with pytest.raises(TransportError):
                await read

    async def run() -> None:
        await with_peering(kind, await resources(kind), scene)

    asyncio.run(run())


@pytest.mark.parametrize("kind", TWINS)
def test_fresh_resources_pass_where_connected_ones_cannot_be_reset(kind: str) -> None:
    """One for each endpoint."""
    made: list[Hardware] = []

    def wrap(inner: Resources) -> Resources:
        made.append(Hardware(inner))
        return made[-1]

    assert killed_and_back(kind, wrap) < 10.0
    assert made[0].made >= 2


@pytest.mark.parametrize("kind", TWINS)
def test_reset_only_fails_where_connected_resources_cannot_be_reset(kind: str) -> None:
    """By the deadline, and with the reason: the twin is what the strategy of fresh resources is for."""
    reset: list[ResetOnly] = []

    def wrap(inner: Resources) -> Resources:
        reset.append(ResetOnly(Hardware(inner)))
        return reset[-1]

    with pytest.raises(TransportError, match="a resource that was connected cannot be reset") as failed:
        killed_and_back(kind, wrap, deadline_s=1.5)
    assert failed.value.code == "timeout"
    assert 1 <= reset[0].refused < 50  # it is tried again, and not in a frenzy


def test_reset_only_passes_on_kinder_hardware() -> None:
    """So that it is the hardware on which it fails."""
    assert killed_and_back("tcp", lambda made: ResetOnly(Hardware(made, resettable=True))) < 10.0


@pytest.mark.parametrize("kind", KINDS)
def test_both_processes_open_at_once_again_and_again(kind: str) -> None:
    """Here as peers of one process with two loops' worth of traffic: one connection each time, and both can send."""

    async def run() -> None:
        for _ in range(5):
            async with (
                Peering({kind: await resources(kind)}, tcp("peer"), timing=CALM) as a,
                Peering({kind: await resources(kind)}, tcp("peer"), timing=CALM) as b,
            ):
                there, here = await a.start("127.0.0.1"), await b.start("127.0.0.1")
                ours, theirs = await asyncio.gather(a.open(here, soon()), b.open(there, soon()))
                assert (ours.session, ours.peer_session) == (theirs.peer_session, theirs.session)
                word = bytearray(5)
                await ours.connection.send(b"hello", deadline=soon())
                await theirs.connection.recv_into(word, soon())
                assert word == b"hello"

    asyncio.run(run())
