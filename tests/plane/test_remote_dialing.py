"""Reaching a plane on another machine: who is there shows what it knows; what goes wrong is said with its remedy."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.errors import BadArgument, DataPlaneError, DataPlaneUnavailable
from penstock.plane import remote_dialing
from penstock.plane.courier import Identity
from penstock.plane.dialing import NotAdmitted
from penstock.plane.link import Link
from penstock.plane.remote_dialing import RemoteDialer, parse_url
from penstock.requests import Call, Depth, Done, Failed, Number, Ping
from penstock.retry import Deadline
from penstock.wire.address import Address
from penstock.wire.auth import CHALLENGE_BYTES, PROOF_BYTES
from penstock.wire.tls import client_context, server_context

from .certificates import certificate
from .fake_plane import Move, TcpPlane

TOKEN = b"a token of tests"


@pytest.fixture
def plane() -> Iterator[TcpPlane]:
    fake = TcpPlane(TOKEN)
    yield fake
    fake.close()


def dialled(dialer: RemoteDialer) -> socket.socket:
    """The connection, after as many steps as it takes."""
    dialling = dialer.dial()
    try:
        with selectors.DefaultSelector() as selector:
            while (sock := dialling.poll()) is None:
                selector.register(dialling, dialling.events)
                selector.select(dialling.patience_s)
                selector.unregister(dialling)
            return sock
    finally:
        dialling.close()


def failure(dialer: RemoteDialer) -> DataPlaneUnavailable:
    with pytest.raises(DataPlaneUnavailable) as caught:
        dialled(dialer).close()
    return caught.value


@contextmanager
def link_to(dialer: RemoteDialer) -> Iterator[Link]:
    link = Link(Identity(5, "me", "test", "here", os.getpid()), dialer)
    try:
        yield link
    finally:
        link.close(5.0)
        assert not link._thread.is_alive()


@contextmanager
def listener(serve: Callable[[socket.socket], object]) -> Iterator[str]:
    """Something else that listens: ``serve`` is run for each connection. Yields its URL."""
    sock = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                client, _ = sock.accept()
            except OSError:
                return
            kept.append(client)
            try:
                serve(client)
            except OSError:
                continue

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"penstock://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        thread.join(5)
        for client in kept:
            client.close()


# -- URLs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("penstock://node-3.cluster:7777", Address("node-3.cluster", 7777)),
        ("penstock://10.0.0.1:1/", Address("10.0.0.1", 1)),
        ("penstock://[fe80::1%eth0]:7777", Address("fe80::1%eth0", 7777)),
        ("penstock://[::1]:7777", Address("::1", 7777)),
    ],
)
def test_a_url_says_host_and_port(url: str, address: Address) -> None:
    """Names, numbers, and IPv6 in brackets."""
    assert parse_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "penstock://",
        "penstock://host",
        "penstock://host:",
        "penstock://:7777",
        "penstock://host:0",
        "penstock://host:65536",
        "penstock://host:7777/run",
        "penstock://host:7777?a=b",
        "penstock://host:7777#a",
        "penstock://::1:7777",
        "penstock://ho st:7777",
        "http://host:7777",
        "",
        7,
    ],
)
def test_what_is_no_url_of_a_plane_is_refused(url: str) -> None:
    """Strictly: a mistyped URL is an error at once, not a wait for a host that does not exist."""
    with pytest.raises(BadArgument):
        parse_url(url)


def test_a_url_with_a_secret_is_refused_and_not_repeated() -> None:
    """URLs end up in logs; so do error messages."""
    with pytest.raises(BadArgument, match="token_file=") as caught:
        parse_url("penstock://me:s3cret@host:7777")
    assert "s3cret" not in str(caught.value)


# -- a connection -----------------------------------------------------------------------------------------------------


def test_who_knows_the_token_gets_a_connection(plane: TcpPlane) -> None:
    """It does not block, sends at once, and notices a peer that is gone."""
    with dialled(RemoteDialer(plane.url, TOKEN)) as sock:
        assert sock.gettimeout() == 0.0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert 1000 <= sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 30_000
        assert not os.get_inheritable(sock.fileno())
    assert plane.doors == 1


def test_a_link_works_over_it(plane: TcpPlane) -> None:
    """Calls and replies, and a reconnection when it is cut: the same as on one machine."""
    plane.handler = lambda _: Number(len(plane.calls))
    with link_to(RemoteDialer(plane.url, TOKEN)) as link:
        assert link.ask(Depth("p"), Number, Deadline(10)) == Number(1)
        plane.cut_all()
        assert link.ask(Depth("p"), Number, Deadline(10)).value >= 2
    assert plane.doors == 2


def test_names_are_looked_up(plane: TcpPlane) -> None:
    """Every address of the name is tried until one answers: localhost may be ::1 first."""
    dialled(RemoteDialer(plane.url.replace("127.0.0.1", "localhost"), TOKEN)).close()
    assert plane.doors == 1


def test_ipv6_works() -> None:
    """An address in brackets is dialled as such."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")

    class V6(TcpPlane):
        def listen(self) -> socket.socket:
            return socket.create_server(("::1", 0), family=socket.AF_INET6)

    plane = V6(TOKEN)
    try:
        dialled(RemoteDialer(plane.url.replace("127.0.0.1", "[::1]"), TOKEN)).close()
        assert plane.doors == 1
    finally:
        plane.close()


# -- what goes wrong --------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def test_nobody_listening_says_how_to_start_it() -> None:
    """A refused connection names the command, with the address that was dialled."""
    url = f"penstock://127.0.0.1:{free_port()}"
    error = failure(RemoteDialer(url, TOKEN))
    assert f"--listen {url.removeprefix('penstock://')}" in str(error)
    assert not isinstance(error, NotAdmitted)


def test_an_unknown_name_is_called_so() -> None:
    """It is the name, not the plane."""
    assert "is not known here" in str(failure(RemoteDialer("penstock://no-such-host.invalid:7777", TOKEN)))


@pytest.mark.parametrize("name", ["a" * 70, "a..b"])
def test_a_name_that_none_can_have_is_called_so(name: str) -> None:
    """It ends the attempt, and not the link's thread."""
    assert "is not known here" in str(failure(RemoteDialer(f"penstock://{name}:7777", TOKEN)))


@pytest.mark.parametrize("lacking", ["descriptors", "threads"])
def test_a_process_that_has_nothing_left_for_a_look_up_tries_again(
    monkeypatch: pytest.MonkeyPatch, plane: TcpPlane, lacking: str
) -> None:
    """It is a failed attempt like any other: the client is there when the process has something left again."""
    dialer = RemoteDialer(plane.url.replace("127.0.0.1", "localhost"), TOKEN)
    with monkeypatch.context() as scarce:
        if lacking == "descriptors":
            scarce.setattr("os.eventfd", _raiser(OSError(errno.EMFILE, "too many open files")))
        else:
            scarce.setattr(threading.Thread, "start", _raiser(RuntimeError("can't start new thread")))
        assert "cannot be looked up in this process" in str(failure(dialer))
    dialled(dialer).close()


def _raiser(error: Exception) -> Callable[..., object]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_no_way_there_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable network is told from a plane that is down."""
    monkeypatch.setattr(socket.socket, "connect_ex", lambda *_: 113)
    assert "no way to" in str(failure(RemoteDialer("penstock://10.9.8.7:7777", TOKEN)))


def test_another_token_is_final_once_it_is_sure(plane: TcpPlane) -> None:
    """A cut connection looks the same once; three in a row do not, and whoever waits is told at once."""
    dialer = RemoteDialer(plane.url, b"somebody else's token")
    errors = [failure(dialer) for _ in range(3)]
    assert [type(error) for error in errors] == [DataPlaneUnavailable, DataPlaneUnavailable, NotAdmitted]
    assert all("use the token file of that plane" in str(error) for error in errors)
    began = time.monotonic()
    stranger = link_to(RemoteDialer(plane.url, b"somebody else's token"))
    with stranger as link, pytest.raises(DataPlaneUnavailable, match="token"):
        link.ask(Ping(), Done, Deadline(60.0))
    assert time.monotonic() - began < 20.0


def test_who_was_reached_once_is_waited_for(plane: TcpPlane) -> None:
    """While a plane restarts anything may answer at its port: that is not the end of a client that knew it."""
    dialer = RemoteDialer(plane.url, TOKEN)
    dialled(dialer).close()
    plane.token = b"another token, for a while"
    assert {type(failure(dialer)) for _ in range(5)} == {DataPlaneUnavailable}


def test_a_listener_without_the_token_is_told_nothing() -> None:
    """It cannot make us believe it: its proof is looked at before the first call."""
    heard = []

    def pretend(client: socket.socket) -> None:
        client.sendall(b"PENSTK\x00\x01" + bytes(32))
        heard.append(client.recv(1000))
        client.sendall(bytes(PROOF_BYTES))
        heard.append(client.recv(1000))

    with listener(pretend) as url:
        assert "it was told nothing" in str(failure(RemoteDialer(url, TOKEN)))
        until = time.monotonic() + 5
        while len(heard) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    assert [len(data) for data in heard] == [CHALLENGE_BYTES + PROOF_BYTES, 0]


def test_something_else_at_the_port_is_called_so() -> None:
    """A web server, for one."""
    with listener(lambda client: client.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 4)) as url:
        assert "not a Penstock listener" in str(failure(RemoteDialer(url, TOKEN)))


def test_a_plane_that_is_full_is_not_a_wrong_token() -> None:
    """Closed at once: that may be better the next time."""
    with listener(lambda client: client.close()) as url:
        dialer = RemoteDialer(url, TOKEN)
        errors = [failure(dialer) for _ in range(4)]
    assert {type(error) for error in errors} == {DataPlaneUnavailable}
    assert "full" in str(errors[0])


@pytest.mark.parametrize(("tls", "hint"), [(False, "pass tls_ca"), (True, "is it stopped")])
def test_a_listener_that_says_nothing_is_left_in_time(
    tls: bool, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped plane, or one that waits for TLS."""
    monkeypatch.setattr(remote_dialing, "DIAL_S", 0.3)
    context = client_context(certificate(tmp_path)[0]) if tls else None
    with listener(lambda _: None) as url:
        assert hint in str(failure(RemoteDialer(url, TOKEN, context)))


def test_an_address_that_swallows_everything_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer to TCP: a full backlog stands for a firewall here."""
    monkeypatch.setattr(remote_dialing, "DIAL_S", 0.4)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        fillers = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
            fillers.append(filler)
        error = failure(RemoteDialer(f"penstock://127.0.0.1:{deaf.getsockname()[1]}", TOKEN))
        for filler in fillers:
            filler.close()
    assert "nothing there answers to TCP" in str(error)


# -- TLS --------------------------------------------------------------------------------------------------------------


def test_tls_hides_what_is_said_and_shows_who_is_there(tmp_path: Path) -> None:
    """A link works over it: long replies in many records, and long calls that the kernel takes bit by bit."""
    cert, key = certificate(tmp_path)

    def echo(call: Call) -> Move:
        return Failed("UnknownName", call.body.partition[::-1]) if isinstance(call.body, Depth) else Done()

    plane = TcpPlane(TOKEN, echo, server_context(cert, key))
    try:
        with link_to(RemoteDialer(plane.url, TOKEN, client_context(cert))) as link:
            for size in (1, 100_000, 900_000):
                with pytest.raises(DataPlaneError) as caught:
                    link.ask(Depth("a" * size + "b"), Number, Deadline(20.0))
                assert str(caught.value) == "b" + "a" * size
    finally:
        plane.close()


def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    """And the error says which argument is about it."""
    (tmp_path / "theirs").mkdir()
    cert, key = certificate(tmp_path / "theirs")
    plane = TcpPlane(TOKEN, tls=server_context(cert, key))
    try:
        error = failure(RemoteDialer(plane.url, TOKEN, client_context(certificate(tmp_path)[0])))
        assert "not to be trusted" in str(error)
        assert "tls_ca" in str(error)
    finally:
        plane.close()
    assert plane.doors == 0


def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    """What was dialled is what it must be for."""
    cert, key = certificate(tmp_path, "DNS:elsewhere")
    plane = TcpPlane(TOKEN, tls=server_context(cert, key))
    try:
        assert "not to be trusted" in str(failure(RemoteDialer(plane.url, TOKEN, client_context(cert))))
    finally:
        plane.close()


def test_tls_towards_a_plane_in_the_clear_says_so(plane: TcpPlane, tmp_path: Path) -> None:
    """The remedy is named."""
    assert "leave tls_ca out" in str(failure(RemoteDialer(plane.url, TOKEN, client_context(certificate(tmp_path)[0]))))


# -- the link's thread goes on ----------------------------------------------------------------------------------------


def test_while_it_dials_callers_are_answered_and_closing_is_quick() -> None:
    """A call whose deadline comes meanwhile provably did not happen; a close does not wait for the dial."""
    with listener(lambda _: None) as url, link_to(RemoteDialer(url, TOKEN)) as link:
        began = time.monotonic()
        with pytest.raises(DataPlaneUnavailable, match="waiting for its challenge"):
            link.ask(Ping(), Done, Deadline(0.3))
        link.close(5.0)
        assert time.monotonic() - began < 3.0


def test_a_slow_resolver_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is looked up aside, once, however often it is dialled meanwhile."""
    asked = threading.Event()
    release = threading.Event()
    real, lookups = socket.getaddrinfo, []

    def slow(host: str, *args: object, flags: int = 0, **options: object) -> object:
        if flags & socket.AI_NUMERICHOST:
            return real(host, *args, flags=flags, **options)  # type: ignore[arg-type, misc]
        lookups.append(host)
        asked.set()
        release.wait(20)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(remote_dialing, "DIAL_S", 0.1)
    with link_to(RemoteDialer("penstock://far-away:7777", TOKEN)) as link:
        began = time.monotonic()
        with pytest.raises(DataPlaneUnavailable, match="resolver"):
            link.ask(Ping(), Done, Deadline(1.0))
        assert asked.is_set()
        link.close(5.0)
        assert time.monotonic() - began < 5.0
    release.set()
    assert lookups == ["far-away"]


def test_a_forked_child_lets_go_of_a_connection_on_its_way() -> None:
    """The listener sees its end when the parent ends it, whether the child lives or not."""
    with listener(lambda _: None) as url, link_to(RemoteDialer(url, TOKEN)) as link:
        until = time.monotonic() + 5
        while link._approach._dialling is None or link._approach._dialling.fileno() < 0:
            assert time.monotonic() < until
            time.sleep(0.005)
        sockets = _tcp_sockets()
        child = os.fork()
        if child == 0:
            os._exit(0 if _tcp_sockets() == sockets - 1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _tcp_sockets() -> int:
    """Descriptors of this process that are connected to somebody's port."""
    found = 0
    for fd in list(Path("/proc/self/fd").iterdir()):
        try:
            sock = socket.socket(fileno=os.dup(int(fd.name)))
        except OSError:
            continue
        with sock:
            found += sock.family == socket.AF_INET and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return found


def test_a_context_is_not_needed_for_a_plane_in_the_clear(plane: TcpPlane) -> None:
    """The dialer says of itself what it does."""
    dialer = RemoteDialer(plane.url, TOKEN)
    assert repr(dialer) == f"RemoteDialer({plane.url}, in the clear)"
    assert dialer.start() is None
    assert isinstance(dialer.tls, ssl.SSLContext | None)
