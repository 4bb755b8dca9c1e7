"""The lines between clients and their plane go through a proxy that harms them: the promises hold, say the logs."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penstock import connect
from penstock.plane.client import PlaneClient
from penstock.testing import line_faults as lines
from penstock.testing.checker import Report, check, read_log
from penstock.testing.line_faults import LineFault
from penstock.testing.proxy import FaultProxy
from penstock.wire import paths
from penstock.wire.auth import CHALLENGE_BYTES, PROOF_BYTES, RESPONSE_BYTES
from tests.faults.actors import FIRED, consume, produce, registered
from tests.host.harness import AgentProcess, TcpPlane

pytestmark = pytest.mark.timeout(150)

GROUPS = 40
LIMIT_S = 100.0
GREETED = {"client": CHALLENGE_BYTES + PROOF_BYTES, "server": RESPONSE_BYTES}
QUICK: dict[str, Any] = {"heartbeat_s": 0.5, "dead_after_s": 2.0, "resume_grace_s": 2.0}


@dataclass(frozen=True)
class Place:
    plane: TcpPlane
    agent: AgentProcess


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with TcpPlane(tmp_path / "plane", **QUICK) as plane, AgentProcess(tmp_path / "agent", plane) as agent:
        yield Place(plane, agent)
        agent.end()
        for name in agent.segments():
            (paths.SHM_DIR / name).unlink(missing_ok=True)


def play(place: Place, folder: Path, faults: Sequence[LineFault]) -> tuple[Report, FaultProxy]:
    """A producer and a consumer, whose lines to the plane are harmed; what they log is judged."""
    (folder / FIRED).touch()
    failures: list[BaseException] = []
    with FaultProxy(("127.0.0.1", place.plane.port), *faults) as proxy:

        def join(_: Path) -> PlaneClient:
            url = f"penstock://127.0.0.1:{proxy.address[1]}"
            token, own = place.plane.token_file, place.agent.data_dir
            client = connect(url, token_file=token, host_dir=own, timeout_s=5.0)
            assert isinstance(client, PlaneClient)
            return registered(client)

        def run(act: Callable[[], None]) -> None:
            try:
                act()
            except BaseException as failed:  # whatever it is, the test tells it
                failures.append(failed)

        acts = [
            lambda: produce(1, str(folder), "alice", GROUPS, join),
            lambda: consume(1, str(folder), "carol", ["alice"], join),
        ]
        threads = [threading.Thread(target=run, args=(act,), daemon=True) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert failures == []
        assert not any(thread.is_alive() for thread in threads), proxy
    return check(entry for path in folder.glob("log-*") for entry in read_log(path)), proxy


def drawn(seed: int, build: Callable[..., LineFault], connections: int = 60, within: int = 3000) -> list[LineFault]:
    """Two faults for each of the first connections, one each way, after the greeting: in the middle of calls."""
    made = random.Random(seed)
    sides: tuple[lines.Toward, lines.Toward] = ("client", "server")
    return [
        build(at=GREETED[toward] + 20 + made.randrange(within), toward=toward, connection=number)
        for number in range(connections)
        for toward in sides
    ]


HARM: dict[str, Callable[..., LineFault]] = {
    "flip": lambda **where: lines.flip(bit=where["at"] % 8, **where),
    "reset": lines.reset,
    "truncate": lines.truncate,
    "duplicate": lambda **where: lines.duplicate(nbytes=17, **where),
}


@pytest.mark.parametrize("kind", HARM)
def test_lines_that_are_harmed_again_and_again(place: Place, tmp_path: Path, kind: str) -> None:
    """Each connection is harmed once in each direction, somewhere: every row is trained once, as it was put."""
    report, proxy = play(place, tmp_path, drawn(1, HARM[kind]))
    assert report.ok, report.verdict()
    assert report.trained == report.acknowledged >= GROUPS
    assert len(proxy.fired) >= 4, proxy
    assert proxy.connections > 4


def test_single_bytes(place: Place, tmp_path: Path) -> None:
    """Both directions byte by byte, for as long as it takes to say a few things: slow, and the same."""
    sides: tuple[lines.Toward, lines.Toward] = ("client", "server")
    report, proxy = play(place, tmp_path, [lines.slices(toward=toward, nbytes=5000) for toward in sides])
    assert report.ok, report.verdict()
    assert len(proxy.fired) >= 4


@pytest.mark.slow
def test_lines_that_go_silent(place: Place, tmp_path: Path) -> None:
    """A stall in the middle of a call, for good: the client notices, comes back, and goes on where it was."""
    faults = drawn(2, lambda **where: lines.blackhole(**where), connections=2)
    report, proxy = play(place, tmp_path, faults)
    assert report.ok, report.verdict()
    assert len(proxy.fired) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_any_harm(place: Place, tmp_path: Path, seed: int) -> None:
    """All kinds mixed, drawn from a seed."""
    made = random.Random(seed)
    faults = [
        made.choice([fault, *drawn(seed, made.choice(list(HARM.values())), 60)]) for fault in drawn(seed, HARM["flip"])
    ]
    report, proxy = play(place, tmp_path, faults)
    assert report.ok, report.verdict()
    assert proxy.fired
