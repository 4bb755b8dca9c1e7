"""Who comes over TCP: nobody without the token gets further than the door, and nobody else notices."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import subprocess
from pathlib import Path

import psutil
import pytest

from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.requests import Done, Failed, Locate, Ping
from penstock.server import doorway
from penstock.server.doorway import bind, token_of
from penstock.wire import WireError
from penstock.wire.address import Address
from penstock.wire.auth import CHALLENGE_BYTES, PROOF_BYTES, Dialler, read_token
from penstock.wire.tls import client_context
from tests.sealed import SealedLine
from tests.server.harness import DEADLINE_S, PlaneProcess, RawClient, eventually, grant_of


def exactly(sock: socket.socket, size: int) -> bytes:
    """The next ``size`` bytes, or fewer if the connection ends before."""
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def address_of(plane: PlaneProcess) -> Address:
    word, _, text = plane.word.partition(" ")
    assert word == "ready", plane.word
    return Address.parse(text)


def dial(plane: PlaneProcess, tls: ssl.SSLContext | None = None) -> socket.socket:
    sock = socket.create_connection(address_of(plane), DEADLINE_S)
    return sock if tls is None else tls.wrap_socket(sock, server_hostname="127.0.0.1")


def enter(plane: PlaneProcess, token: bytes, tls: ssl.SSLContext | None = None) -> socket.socket:
    """Come in as one who knows ``token``."""
    sock = dial(plane, tls)
    dialler = Dialler(token, doorway.PURPOSE)
    sock.sendall(dialler.respond(exactly(sock, CHALLENGE_BYTES)))
    dialler.check(exactly(sock, PROOF_BYTES))
    return SealedLine(sock, dialler.seals()) if tls is None else sock


@pytest.fixture
def plane(tmp_path: Path) -> PlaneProcess:
    return PlaneProcess(tmp_path / "plane", "--listen", "127.0.0.1:0")


def test_who_knows_the_token_is_served(plane: PlaneProcess) -> None:
    """A session over TCP is a session; its process is not one of this kernel's, and its host's word is kept."""
    with plane:
        sock = enter(plane, read_token(plane.data_dir / "token"))
        with RawClient(plane.data_dir, sock=sock).open() as client:
            client.register()
            assert isinstance(client.call(Ping()), Done)
            (session,) = client.status().sessions
            assert session.pid == 0


def test_greeting_and_first_call_may_come_in_one_piece(plane: PlaneProcess) -> None:
    """What follows the response in the same packet is the first frame."""
    from penstock.requests import WIRE_VERSION, Call, OpenSession
    from penstock.wire import FrameReader, decode_reply, encode_call

    with plane, dial(plane) as sock:
        dialler = Dialler(read_token(plane.data_dir / "token"), doorway.PURPOSE)
        opening = Call(1, 0, 1, 5.0, [], [], OpenSession(WIRE_VERSION, 5, "", "client", "h", 1))
        response = dialler.respond(exactly(sock, CHALLENGE_BYTES))
        sock.sendall(response + dialler.seals().seal(encode_call(opening)))
        dialler.check(exactly(sock, PROOF_BYTES))
        (frame,) = FrameReader(1 << 20).feed(SealedLine(sock, dialler.seals()).recv(1 << 16))
        assert decode_reply(frame).id == 1


@pytest.mark.parametrize("said", [b"x" * 72, b"", b"PENSTK\x00\x01" + b"y" * 64, b"z" * 100_000])
def test_a_stranger_is_sent_away(plane: PlaneProcess, said: bytes) -> None:
    """Garbage, silence and a wrong proof end that connection; nothing is said to it, and others are served."""
    with plane:
        with dial(plane) as sock:
            exactly(sock, CHALLENGE_BYTES)
            if said:
                sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        with RawClient(plane.data_dir, sock=enter(plane, read_token(plane.data_dir / "token"))).open() as client:
            assert isinstance(client.call(Ping()), Done)
            if len(said) >= 72:
                assert client.status().counters["strangers"] == 1


def test_a_wrong_token_is_refused_by_both_sides(plane: PlaneProcess) -> None:
    """The plane hangs up on a wrong token; a dialler hangs up on a plane that does not know his."""
    with plane:
        with dial(plane) as sock:
            sock.sendall(Dialler(b"w" * 32, doorway.PURPOSE).respond(exactly(sock, CHALLENGE_BYTES)))
            with pytest.raises((ConnectionResetError, AssertionError)):
                assert exactly(sock, PROOF_BYTES)
        with dial(plane) as sock:
            dialler = Dialler(read_token(plane.data_dir / "token"), "payload")
            sock.sendall(dialler.respond(exactly(sock, CHALLENGE_BYTES)))
            with pytest.raises((ConnectionResetError, WireError)):
                dialler.check(exactly(sock, PROOF_BYTES))


def test_a_put_needs_a_host(plane: PlaneProcess) -> None:
    """A client of another machine cannot write into the plane's own arena, and is told what to start."""
    with plane, RawClient(plane.data_dir, sock=enter(plane, read_token(plane.data_dir / "token"))).open() as client:
        client.register()
        refused = client.call(grant_of(["a"], "p", 64))
        assert isinstance(refused, Failed)
        assert (refused.code, "penstock host" in refused.message) == ("DataPlaneUnavailable", True)


def test_rows_of_the_planes_own_arena_are_out_of_reach(plane: PlaneProcess) -> None:
    """A client of another machine is told where rows lie that were put beside the plane; nothing is pinned for it."""
    with plane, RawClient(plane.data_dir, 2).open() as here:
        here.register()
        here.put(["a"])
        with RawClient(plane.data_dir, sock=enter(plane, read_token(plane.data_dir / "token"))).open() as far:
            refused = far.call(Locate("p", ["a"], ["x"]))
            assert isinstance(refused, Failed)
            assert (refused.code, "own memory" in refused.message) == ("DataPlaneReadError", True)
            assert far.status().counters["arena.pins"] == 0


def test_many_strangers_keep_nobody_out(plane: PlaneProcess) -> None:
    """With all places at the door taken who has waited longest goes; a newcomer who knows the token is in at once."""
    with plane, contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(dial(plane)) for _ in range(doorway._MAX_STRANGERS)]
        for stranger in strangers:
            exactly(stranger, CHALLENGE_BYTES)
        stack.enter_context(enter(plane, read_token(plane.data_dir / "token")))
        with contextlib.suppress(ConnectionResetError):
            assert strangers[0].recv(1) == b""
        strangers[1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            strangers[1].recv(1)


def test_a_crowd_that_never_speaks_tls_keeps_nobody_out(tmp_path: Path) -> None:
    """Those who do not even begin to encrypt count as strangers too: there are never more of them than may wait."""
    cert, key = certificate(tmp_path)
    flags = ("--listen", "127.0.0.1:0", "--tls-cert", str(cert), "--tls-key", str(key))
    with PlaneProcess(tmp_path / "plane", *flags) as plane, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(dial(plane)) for _ in range(doorway._MAX_STRANGERS + 50)]
        sock = enter(plane, read_token(plane.data_dir / "token"), client_context(cert))
        with RawClient(plane.data_dir, sock=sock).open() as client:
            assert client.status().counters["strangers"] >= 50
        with contextlib.suppress(ConnectionResetError):
            assert crowd[0].recv(1) == b""


def test_without_descriptors_the_door_rests(plane: PlaneProcess) -> None:
    """A plane that has no descriptor left for a newcomer says so and goes on; with one again, it takes him in."""
    with plane, RawClient(plane.data_dir, sock=enter(plane, read_token(plane.data_dir / "token"))).open() as client:
        used = psutil.Process(plane.pid).num_fds()
        soft, hard = resource.prlimit(plane.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(plane.pid, resource.RLIMIT_NOFILE, (used, hard))
        late = dial(plane)
        eventually("it is said", lambda: client.status().counters.get("accept_failed", 0) > 0)
        resource.prlimit(plane.pid, resource.RLIMIT_NOFILE, (soft, hard))
        with late:
            late.settimeout(DEADLINE_S)
            assert exactly(late, 8) == b"PENSTK\x00\x01"


def test_a_silent_stranger_does_not_hold_up_the_end(plane: PlaneProcess) -> None:
    """SIGTERM with a stranger at the door is a clean end."""
    with plane, dial(plane) as sock:
        exactly(sock, CHALLENGE_BYTES)
        assert plane.end() == 0


def test_tls_encrypts_and_shows_who_it_is(tmp_path: Path) -> None:
    """A client that believes the authority is served over TLS; one that does not, or speaks in the clear, is not."""
    cert, key = certificate(tmp_path)
    flags = ("--listen", "127.0.0.1:0", "--tls-cert", str(cert), "--tls-key", str(key))
    with PlaneProcess(tmp_path / "plane", *flags) as plane:
        token = read_token(plane.data_dir / "token")
        with RawClient(plane.data_dir, sock=enter(plane, token, client_context(cert))).open() as client:
            assert isinstance(client.call(Ping()), Done)
        other, _ = certificate(tmp_path, "other")
        with pytest.raises(ssl.SSLCertVerificationError):
            dial(plane, client_context(other))
        with dial(plane) as clear:
            clear.settimeout(1.0)
            clear.sendall(b"x" * 72)
            with contextlib.suppress(ConnectionResetError):
                assert not exactly(clear, CHALLENGE_BYTES).startswith(b"PENSTK")


def certificate(folder: Path, name: str = "plane") -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, which is its own authority, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subject = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    made = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    subprocess.run(
        [*made, "-days", "1", "-keyout", str(key), "-out", str(cert), *subject], check=True, capture_output=True
    )
    return cert, key


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--token-file", "/nowhere/token"), "cannot be read"),
        (("--tls-cert", "/nowhere/cert", "--tls-key", "/nowhere/key"), "cannot be read"),
        (("--tls-cert", __file__), "pass --tls-key"),
    ],
)
def test_bad_secrets_are_said_before_anything_begins(tmp_path: Path, flags: tuple[str, ...], word: str) -> None:
    """A plane that cannot show who it is, or does not know its token, does not start, and says which file."""
    with PlaneProcess(tmp_path / "plane", "--listen", "127.0.0.1:0", *flags) as plane:
        assert plane.wait() == 1
        assert word in plane.word


def test_an_address_that_is_taken_is_said(tmp_path: Path) -> None:
    """The error names the address and what to do; no shared memory is left behind."""
    with bind(Address("127.0.0.1", 0)) as taken:
        where = str(Address(*taken.getsockname()[:2]))
        with PlaneProcess(tmp_path / "plane", "--listen", where) as plane:
            assert plane.wait() == 1
            assert where in plane.word
            assert not plane.segments()


def test_bind_names_what_it_cannot_have() -> None:
    """A name that nobody knows is an error of ours, not the resolver's."""
    with pytest.raises(DataPlaneUnavailable, match=r"cannot listen at nowhere\.invalid:1"):
        bind(Address("nowhere.invalid", 1))
    with pytest.raises(DataPlaneUnavailable, match=r"cannot listen at a{70}:1"):
        bind(Address("a" * 70, 1))


def test_token_is_made_once(tmp_path: Path) -> None:
    """The first use makes the token, mode 0600; later ones read it; a given file is never made."""
    token = token_of(tmp_path, None)
    assert token == token_of(tmp_path, None)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    with pytest.raises(BadArgument, match="mine"):
        token_of(tmp_path, tmp_path / "mine")
