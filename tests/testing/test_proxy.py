"""The fault proxy, with plain sockets at both ends: its faults fire, and what no sentence names passes unharmed."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from penstock.errors import BadArgument
from penstock.testing.line_faults import (
    LineFault,
    blackhole,
    delay,
    duplicate,
    flip,
    half_close,
    reset,
    slices,
    stall,
    truncate,
)
from penstock.testing.proxy import FaultProxy
from tests.leaks import wait_for

WAIT_S = 0.3  # for what must not come
LIMIT_S = 20.0  # for what must
DATA = bytes(range(256)) * 40


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(LIMIT_S)
        yield sock


class Pair:
    """A client and a server that are connected through a proxy."""

    def __init__(self, proxy: FaultProxy, listener: socket.socket) -> None:
        self.client = socket.create_connection(proxy.address, timeout=LIMIT_S)
        self.server, _ = listener.accept()
        self.server.settimeout(LIMIT_S)

    def __enter__(self) -> tuple[socket.socket, socket.socket]:
        return self.client, self.server

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()


def proxy_of(listener: socket.socket, *faults: LineFault) -> FaultProxy:
    return FaultProxy(listener.getsockname(), *faults)


def read(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (data := sock.recv(size - len(got))):
        got += data
    return got


def test_what_no_sentence_names_passes(listener: socket.socket) -> None:
    """Bytes of both directions, and an end of one of them, come out as they went in."""
    with proxy_of(listener) as proxy, Pair(proxy, listener) as (client, server):
        client.sendall(DATA)
        client.shutdown(socket.SHUT_WR)
        assert read(server, len(DATA) + 1) == DATA
        server.sendall(DATA)
        server.close()
        assert read(client, len(DATA) + 1) == DATA
        assert (proxy.passed("server"), proxy.passed("client")) == (len(DATA), len(DATA))
        assert proxy.fired == []
        wait_for(lambda: proxy.open == 0)


@pytest.mark.parametrize("k", [1, 100, len(DATA)])
def test_a_reset_at_byte_k(listener: socket.socket, k: int) -> None:
    """The receiver gets ``k`` bytes and then a reset; so does the sender."""
    fault = reset(at=k, toward="client")
    with proxy_of(listener, fault) as proxy, Pair(proxy, listener) as (client, server):
        server.sendall(DATA)
        assert read(client, k) == DATA[:k]
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with pytest.raises(ConnectionError):
            server.recv(1)
        assert [fired.fault for fired in proxy.fired] == [fault]


def refused(proxy: FaultProxy) -> bool:
    """Whether a connection is reset before its first byte: in the connecting already, or right after it."""
    try:
        with socket.create_connection(proxy.address, timeout=LIMIT_S) as client:
            return client.recv(1) == b"no"
    except ConnectionResetError:
        return True


def test_a_reset_before_the_first_byte(listener: socket.socket) -> None:
    """A connection may be over as soon as it is there."""
    with proxy_of(listener, reset(at=0, toward="client")) as proxy:
        assert refused(proxy)
        with listener.accept()[0] as server, pytest.raises(ConnectionResetError):
            server.recv(1)
        assert len(proxy.fired) == 1


@pytest.mark.parametrize("k", [0, 1, 100])
def test_a_truncation_after_k_bytes(listener: socket.socket, k: int) -> None:
    """The receiver gets ``k`` bytes and then an end, as of a process that died."""
    with proxy_of(listener, truncate(at=k, toward="client")) as proxy, Pair(proxy, listener) as (client, server):
        if k:
            server.sendall(DATA)
        assert read(client, len(DATA)) == DATA[:k]
        assert read(server, 1) == b""
        assert len(proxy.fired) == 1


def test_a_half_close_leaves_the_other_direction(listener: socket.socket) -> None:
    """One direction ends early; the other goes on."""
    with proxy_of(listener, half_close(at=5, toward="client")) as proxy, Pair(proxy, listener) as (client, server):
        server.sendall(DATA)
        assert read(client, len(DATA)) == DATA[:5]
        client.sendall(DATA)
        assert read(server, len(DATA)) == DATA
        assert len(proxy.fired) == 1


def test_flips_and_duplicates(listener: socket.socket) -> None:
    """A flipped bit and bytes that come twice, in one connection and not in the next."""
    faults = [
        flip(at=2, bit=3, toward="server", connection=0),
        duplicate(at=8, nbytes=4, toward="server", connection=0),
    ]
    with proxy_of(listener, *faults) as proxy:
        with Pair(proxy, listener) as (client, server):
            client.sendall(b"0123456789")
            assert read(server, 14) == b"01:34567456789"
        with Pair(proxy, listener) as (client, server):
            client.sendall(b"0123456789")
            assert read(server, 10) == b"0123456789"
        assert [(fired.fault, fired.connection) for fired in proxy.fired] == [(faults[0], 0), (faults[1], 0)]


def data_segments(receiver: socket.socket) -> int:
    """How many segments with data have arrived (``tcpi_data_segs_in`` of linux/tcp.h)."""
    info = receiver.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    return int.from_bytes(info[152:156], sys.byteorder)


def test_single_bytes_arrive_by_themselves(listener: socket.socket) -> None:
    """Slices are segments of their own, though all was sent at once."""
    fault = slices(nbytes=50, toward="client")
    with proxy_of(listener, fault) as proxy, Pair(proxy, listener) as (client, server):
        server.sendall(DATA[:60])
        assert read(client, 60) == DATA[:60]
        assert data_segments(client) > 25  # some meet in the kernel on their way; all at once would be two
        assert [fired.fault for fired in proxy.fired] == [fault]


def test_a_stall_of_a_while_and_one_for_ever(listener: socket.socket) -> None:
    """A stalled direction gives nothing; the other one goes on, and what was held back arrives when it is over."""
    faults = [stall(at=3, for_s=2 * WAIT_S, toward="client", connection=0), stall(at=3, toward="client", connection=1)]
    with proxy_of(listener, *faults) as proxy:
        for connection, arrives in ((0, True), (1, False)):
            with Pair(proxy, listener) as (client, server):
                server.sendall(b"012345")
                assert read(client, 3) == b"012"
                client.sendall(b"up")
                assert read(server, 2) == b"up"
                client.settimeout(LIMIT_S if arrives else WAIT_S)
                if arrives:
                    assert read(client, 3) == b"345"
                else:
                    with pytest.raises(TimeoutError):
                        client.recv(1)
            assert len(proxy.fired) == connection + 1


def test_a_blackhole_swallows(listener: socket.socket) -> None:
    """The sender is rid of its bytes, an end included, and nobody ever sees them."""
    with proxy_of(listener, blackhole(at=4, toward="server")) as proxy, Pair(proxy, listener) as (client, server):
        client.sendall(DATA)
        client.shutdown(socket.SHUT_WR)
        assert read(server, 4) == DATA[:4]
        server.settimeout(WAIT_S)
        with pytest.raises(TimeoutError):
            server.recv(1)
        server.sendall(b"heard")
        assert read(client, 5) == b"heard"
        assert proxy.passed("server") == len(DATA)
        assert len(proxy.fired) == 1


def test_a_delay_delays(listener: socket.socket) -> None:
    """Bytes arrive, and not before their time."""
    with proxy_of(listener, delay(by_s=WAIT_S, toward="client")) as proxy, Pair(proxy, listener) as (client, server):
        began = time.monotonic()
        server.sendall(b"late")
        assert read(client, 4) == b"late"
        assert time.monotonic() - began >= WAIT_S
        assert len(proxy.fired) == 1


def test_it_freezes_and_thaws(listener: socket.socket) -> None:
    """While it is frozen nothing passes and nobody new is let in; then all of it comes."""
    with proxy_of(listener) as proxy, Pair(proxy, listener) as (client, server):
        proxy.freeze()
        client.sendall(b"word")
        server.settimeout(WAIT_S)
        with pytest.raises(TimeoutError):
            server.recv(1)
        with socket.create_connection(proxy.address, timeout=LIMIT_S):
            assert proxy.connections == 1
            proxy.thaw()
            server.settimeout(LIMIT_S)
            assert read(server, 4) == b"word"
            listener.accept()[0].close()
        assert proxy.connections == 2


def test_it_resets_all(listener: socket.socket) -> None:
    """All open connections are reset at once; the next one passes."""
    with proxy_of(listener) as proxy:
        with Pair(proxy, listener) as (client, server):
            wait_for(lambda: proxy.open == 1)
            assert proxy.reset_all() == 1
            for sock in (client, server):
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
        with Pair(proxy, listener) as (client, server):
            client.sendall(b"again")
            assert read(server, 5) == b"again"


def test_a_reset_by_an_end_is_passed_on(listener: socket.socket) -> None:
    """Who crashes is seen to crash through the proxy too."""
    with proxy_of(listener) as proxy, Pair(proxy, listener) as (client, server):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        server.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert proxy.fired == []


def test_a_target_that_is_not_there_and_another_one(listener: socket.socket) -> None:
    """Without a target connections are reset; with another, the next ones reach that."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        gone = nobody.getsockname()
    with FaultProxy(gone) as proxy:
        assert refused(proxy)
        proxy.redirect(listener.getsockname())
        with Pair(proxy, listener) as (client, server):
            client.sendall(b"here")
            assert read(server, 4) == b"here"


def passes(proxy: FaultProxy, listener: socket.socket) -> bool:
    with Pair(proxy, listener) as (client, server):
        server.sendall(b"x")
        return client.recv(1) == b"x"


def test_sentences_can_come_and_go(listener: socket.socket) -> None:
    """What is armed later concerns later connections, until it is disarmed."""
    with proxy_of(listener) as proxy:
        for faults, hit in (([], False), ([reset(at=0, toward="client")], True), ([], False)):
            proxy.disarm()
            proxy.arm(*faults)
            if hit:
                assert refused(proxy)
                listener.accept()[0].close()
            else:
                assert passes(proxy, listener)
        assert [fired.connection for fired in proxy.fired] == [1]


def test_stopping_ends_everything(listener: socket.socket) -> None:
    """After ``stop`` no thread and no connection is left, those that wait for ever included."""
    before = threading.active_count()
    proxy = proxy_of(listener, stall(at=0, toward="client")).start()
    with Pair(proxy, listener) as (client, server):
        wait_for(lambda: len(proxy.fired) == 1)
        assert "1 open, 1 faults fired, running" in repr(proxy)
        proxy.stop()
        proxy.stop()
        assert "0 open, 1 faults fired, not running" in repr(proxy)
        assert threading.active_count() == before
        assert client.recv(1) == server.recv(1) == b""
    with pytest.raises(BadArgument):
        proxy.freeze()


def test_many_at_once(listener: socket.socket) -> None:
    """A hundred connections are carried side by side."""
    with proxy_of(listener) as proxy:
        pairs = [Pair(proxy, listener) for _ in range(100)]
        for number, pair in enumerate(pairs):
            pair.client.sendall(b"%03d" % number)
        assert sorted(read(pair.server, 3) for pair in pairs) == [b"%03d" % number for number in range(100)]
        assert proxy.connections == proxy.open == 100
        for pair in pairs:
            pair.__exit__()


def test_an_open_connection_can_be_struck(listener: socket.socket) -> None:
    """``strike`` concerns what is open, counts from now, and leaves new connections alone."""
    with proxy_of(listener) as proxy, Pair(proxy, listener) as (client, server):
        server.sendall(DATA)
        assert read(client, len(DATA)) == DATA
        proxy.strike(reset(at=10, toward="client"))
        assert not proxy.fired
        server.sendall(DATA)
        with pytest.raises(ConnectionResetError):
            read(client, len(DATA))
        assert [fired.fault.at for fired in proxy.fired] == [len(DATA) + 10]
        with Pair(proxy, listener) as (other, far):
            far.sendall(DATA)
            assert read(other, len(DATA)) == DATA
