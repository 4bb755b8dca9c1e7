"""One bad peer costs one connection, and gets nobody else's replies."""

from __future__ import annotations

import asyncio
import pickle
import random
import resource
import socket
import struct
import threading
from pathlib import Path

import msgspec
import psutil
import pytest

from penstock.requests import WIRE_VERSION, Call, Depth, ListMetadata, OpenSession, Ping, Welcome
from penstock.server.connections import Connection
from penstock.wire import encode_call, paths
from tests.server.harness import PlaneProcess, RawClient, eventually
from tests.server.inside import Inside, inside


def _framed(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


class _Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("__import__('os').system('touch PWNED')",))


_HELLO = msgspec.msgpack.encode([1, 0, 0, 1.0, [], [], ["OpenSession", WIRE_VERSION, 9, "", "", "", 1]])
MALFORMED = {
    "a length of zero": struct.pack("<I", 0),
    "a length beyond the limit": struct.pack("<I", 2**32 - 1),
    "a garbage byte": b"\xff",
    "garbage in a frame": _framed(b"\xc1\xc1\xc1"),
    "a pickle": _framed(pickle.dumps(_Exploit())),
    "an extension that other systems execute": _framed(msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"x"))),
    "an unknown request": _framed(msgspec.msgpack.encode([1, 0, 0, 1.0, [], [], ["Unheard"]])),
    "a request before its session": _framed(msgspec.msgpack.encode([1, 0, 0, 1.0, [], [], ["Ping"]])),
    "an unknown request in a session": _framed(_HELLO)
    + _framed(msgspec.msgpack.encode([2, 0, 0, 1.0, [], [], ["Unheard"]])),
    "a second opening": _framed(_HELLO) + _framed(_HELLO),
    "a wrong type in a session": _framed(_HELLO)
    + _framed(msgspec.msgpack.encode([2, 0, 0, 1.0, [], [], ["Depth", 7]])),
    "nesting": _framed(b"\x91" * 50_000),
}


def _attack(data_dir: Path, payload: bytes) -> bytes:
    """Send it on a connection of its own, end the sending, and return everything that comes back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(30)
        sock.connect(str(paths.socket_path(data_dir)))
        try:
            sock.sendall(payload)
            sock.shutdown(socket.SHUT_WR)
            got = b""
            while data := sock.recv(65536):
                got += data
        except ConnectionError:
            return b""
        return got


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _ask_until_blocked(client: RawClient) -> int:
    """Ask for long answers and read none, until asking blocks; return how many were asked."""
    for asked in range(20_000):
        try:
            client.send(ListMetadata("p"))
        except TimeoutError:
            return asked
    return 20_000


def test_malformed_connections_cost_only_themselves(tmp_path: Path) -> None:
    """Under hundreds of malformed connections a good client's every call is answered, and attackers get no data."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir) as client:
        client.open().register()
        client.put(["a"], fill=4)
        answers: list[bytes] = []
        descriptors = _descriptors(plane.pid)
        rng = random.Random(7)
        payloads = [*MALFORMED.values(), *(rng.randbytes(rng.randrange(1, 200)) for _ in range(40))]

        def flood() -> None:
            answers.extend(_attack(plane.data_dir, payload) for _ in range(6) for payload in payloads)

        attackers = [threading.Thread(target=flood) for _ in range(2)]
        for attacker in attackers:
            attacker.start()
        calls = 0
        while any(attacker.is_alive() for attacker in attackers):
            assert client.read(["a"]) == [4]
            calls += 1
        for attacker in attackers:
            attacker.join()
        assert calls > 10
        assert len(answers) == 2 * 6 * len(payloads)
        counters = client.status().counters
        assert counters["connections_misbehaved"] > 300  # the fault fired
        assert plane.log().count("WARNING") < 50  # and did not fill the log
        eventually("nobody is left", lambda: client.status().counters["connections.open"] == 1)
        assert _descriptors(plane.pid) == descriptors
        assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize("name", MALFORMED)
def test_what_a_malformed_connection_gets(tmp_path: Path, name: str) -> None:
    """It is closed; at most it got the welcome to its own session, never a reply meant for somebody else (trap 15)."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir) as client:
        client.open().register()
        client.put(["secret"])
        client.read(["secret"])
        got = _attack(plane.data_dir, MALFORMED[name])
        assert b"secret" not in got
        assert len(got) < 200
        assert client.read(["secret"]) == [7]


def test_a_frame_over_the_limit_is_refused_at_its_length(tmp_path: Path) -> None:
    """A frame that announces more than max_frame_bytes ends its connection before it is sent."""
    with PlaneProcess(tmp_path / "d", max_frame_bytes=4096) as plane, RawClient(plane.data_dir) as client:
        welcome = client.expect(Welcome, OpenSession(WIRE_VERSION, 1, "", "", "", 1))
        assert welcome.max_frame_bytes == 4096
        client.sock.sendall(struct.pack("<I", 4097))
        assert client.is_closed()


def test_a_stranger_sends_little(tmp_path: Path) -> None:
    """Before a session is open a frame has at most 64 KiB; right behind the opening it may be large."""
    with PlaneProcess(tmp_path / "d") as plane:
        with RawClient(plane.data_dir, 1) as stranger:
            stranger.sock.sendall(struct.pack("<I", 64 * 1024 + 1))
            assert stranger.is_closed()
        with RawClient(plane.data_dir, 2) as client:
            hello = client.send(OpenSession(WIRE_VERSION, 2, "", "", "", 1))
            large = client.send(Depth("p" * 100_000))
            assert isinstance(client.receive(hello), Welcome)
            assert client.receive(large) is not None


def test_a_slow_reader_does_not_grow_the_plane(tmp_path: Path) -> None:
    """A client that asks and asks and never reads is not read any more; memory stays bounded and others are served."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir, 1) as good:
        good.open().register()
        for part in range(4):
            good.put([f"{part}-{'x' * 200}-{i}" for i in range(1000)])
        process = psutil.Process(plane.pid)
        before = process.memory_info().rss
        with RawClient(plane.data_dir, 2) as greedy:
            greedy.open()
            greedy.sock.settimeout(2.0)
            sent = _ask_until_blocked(greedy)
            assert 10 < sent < 20_000
            assert good.call(Depth("p")) is not None
            assert process.memory_info().rss - before < 200 * 1024 * 1024
        assert good.read([f"0-{'x' * 200}-0"]) == [7]


def test_more_connections_than_the_limit_are_refused(tmp_path: Path) -> None:
    """max_connections holds; a place that comes free can be used."""
    with PlaneProcess(tmp_path / "d", max_connections=3) as plane:
        clients = [RawClient(plane.data_dir, i).open() for i in range(3)]
        with RawClient(plane.data_dir, 9) as late:
            assert late.is_closed()
        clients.pop().close()

        def admitted() -> bool:
            with RawClient(plane.data_dir, 10) as client:
                try:
                    client.open()
                except ConnectionError:
                    return False
                return True

        eventually("a place comes free", admitted)
        for client in clients:
            client.close()


def test_silent_connections_are_ended(tmp_path: Path) -> None:
    """A connection that never opens a session does not keep its place."""
    with PlaneProcess(tmp_path / "d", heartbeat_s=0.1, dead_after_s=0.5) as plane, RawClient(plane.data_dir) as silent:
        assert silent.is_closed()


def test_pipelined_calls_are_answered_in_turn(tmp_path: Path) -> None:
    """Far more calls than a connection may have open, sent at once, are all answered."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir) as client:
        client.open().register()
        ids = [client.send(Ping() if i % 2 else Depth("p")) for i in range(2000)]
        for call_id in ids:
            client.receive(call_id)


def test_a_settled_batch_finds_nothing_decided_after_it(tmp_path: Path) -> None:
    """A connection that was held up reads on in a turn of its own: a block that moves must not meet older decisions."""

    async def scenario(world: Inside) -> None:
        class Open(asyncio.Transport):
            def pause_reading(self) -> None: ...
            def resume_reading(self) -> None: ...
            def write(self, data: object) -> None: ...
            def is_closing(self) -> bool:
                return False

        connection = Connection(world.reception)
        connection.process = world.client.process
        connection._transport = Open()
        hello = OpenSession(WIRE_VERSION, 9, "", "", "", 1)
        frames = [encode_call(Call(1, 0, 0, 9.0, [], [], hello))]
        frames += [encode_call(Call(n, 0, 0, 9.0, [], [], Depth("p"))) for n in range(2, 1000)]
        before = world.reception.received
        connection.data_received(b"".join(frames))
        received = world.reception.received
        assert len(connection.open_calls) == 256
        world.plane.settle()
        assert not connection.open_calls
        assert world.reception.received == received
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.reception.received == before + len(frames)

    inside(tmp_path, scenario)


def test_other_versions_of_the_wire_are_refused(tmp_path: Path) -> None:
    """A client that speaks another version is told so."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir) as client:
        reply = client.call(OpenSession(WIRE_VERSION + 1, 1, "", "", "", 1))
        assert "version" in str(reply)
        client.open()


def test_running_out_of_descriptors_costs_only_newcomers(tmp_path: Path) -> None:
    """With no descriptor left the plane serves those who are in, and admits others when there are some again."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir, 1) as client:
        client.open().register()
        used = _descriptors(plane.pid)
        before = resource.prlimit(plane.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(plane.pid, resource.RLIMIT_NOFILE, (used + 1, before[1]))
        newcomers = [RawClient(plane.data_dir, i) for i in range(2, 6)]
        eventually("the fault fires", lambda: "accept_failed" in client.status().counters)
        client.put(["a"])
        assert client.read(["a"]) == [7]
        resource.prlimit(plane.pid, resource.RLIMIT_NOFILE, before)
        newcomers[-1].open()
        assert newcomers[-1].read(["a"]) == [7]
        for newcomer in newcomers:
            newcomer.close()


def test_few_open_files_allow_few_connections(tmp_path: Path) -> None:
    """Where the limit of open files is low, connections are refused before the journal lacks a descriptor."""
    limit = "import resource, sys, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80)); "
    script = limit + "runpy.run_module('penstock.server', run_name='__main__')"
    with PlaneProcess(tmp_path / "d", python=("-c", script)) as plane:
        clients = [RawClient(plane.data_dir, i).open() for i in range(8)]
        with RawClient(plane.data_dir, 9) as late:
            assert late.is_closed()
        clients[0].register()
        for client in clients:
            client.close()
        assert "ulimit -n" in plane.log()
