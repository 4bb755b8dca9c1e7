"""How a client reaches a plane on another machine: TCP, TLS where it is served, and both sides show the token.

Whatever takes time is a step that yields what it waits for, so that the link's thread goes on dealing with its callers;
names are looked up in a thread of their own, for the C library's resolver cannot be told not to wait.

Invariants: nothing is said to a listener before it has shown that it knows the token; what is said then is encrypted or
sealed; a URL holds no secret; a socket that is given out notices a peer that is silently gone (keep-alive, user
timeout); no plane is ever started from here.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Generator
from typing import Any, TypeAlias

from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.plane.channel import SealedSocket
from penstock.plane.dialing import NotAdmitted, Starting
from penstock.plane.waker import Waker
from penstock.retry import Clock, Deadline
from penstock.wire import WireError
from penstock.wire.address import Address
from penstock.wire.auth import CHALLENGE_BYTES, PROOF_BYTES, Dialler

__all__ = ["DIAL_S", "RemoteDialer", "parse_url"]

SCHEME = "penstock://"
PURPOSE = "plane"
DIAL_S = 5.0  # for one try: a lost SYN is sent again after 1 s and 3 s
_SURE = 3  # the same refusal so many times in a row, from somebody who was never reached, is no accident

# A peer that is gone without a word is noticed within about this long, in the middle of a call or idle.
_USER_TIMEOUT_MS = 10_000
_KEEPIDLE_S, _KEEPINTVL_S, _KEEPCNT = 5, 2, 3

_NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}

_Wait: TypeAlias = tuple[Any, int]  # what is waited for, and for which of the selector's events
_Steps: TypeAlias = Generator[_Wait, None, socket.socket]
_Info: TypeAlias = tuple[int, Any]  # family and address, as the resolver gives them


def parse_url(url: str) -> Address:
    """Return where ``penstock://HOST:PORT`` is.

    Raises:
        BadArgument: it is not written so, or holds what no URL should.
    """
    if isinstance(url, str) and "@" in url:  # and the message does not repeat it, whatever else is wrong
        raise BadArgument(
            "the URL of a plane holds no name, password or token (URLs end up in logs and in `ps`): pass token_file="
        )
    if not isinstance(url, str) or not url.startswith(SCHEME):
        raise BadArgument(f"a plane's URL is {SCHEME}HOST:PORT, got {url!r}")
    rest = url.removeprefix(SCHEME).removesuffix("/")
    if any(sign in rest for sign in "/?#"):
        raise BadArgument(f"{url!r}: a plane's URL is {SCHEME}HOST:PORT, nothing follows the port")
    address = Address.parse(rest)
    if not address.port:
        raise BadArgument(f"{url!r}: port 0 is nobody's; `penstock serve` says its port when it starts")
    return address


class RemoteDialer:
    """Reaches the plane at ``url``.

    Args:
        url: ``penstock://HOST:PORT``.
        token: what the plane and its clients know.
        tls: how to judge the plane's certificate; None = the plane serves in the clear.
        clock: of the deadlines.

    Raises:
        BadArgument: the URL is not one.
    """

    def __init__(
        self, url: str, token: bytes, tls: ssl.SSLContext | None = None, *, clock: Clock = time.monotonic
    ) -> None:
        self.where = parse_url(url)
        self.address = f"{SCHEME}{self.where}"
        self.token = token
        self.tls = tls
        self.clock = clock
        self._lookup: _Lookup | None = None
        self._reached = False
        self._denied = 0  # times in a row

    def dial(self) -> RemoteDialling:
        return RemoteDialling(self)

    def start(self) -> Starting | None:
        return None

    def tidy(self, *, parted: bool) -> None:
        del parted
        if self._lookup is not None:
            self._lookup.close()

    def lookup(self) -> _Lookup:
        """Return the look-up of the host's name that is under way, or begin one: a slow resolver is asked once.

        Raises:
            DataPlaneUnavailable: this process has no descriptor or no thread left for it.
        """
        if self._lookup is None:
            try:
                self._lookup = _Lookup(self.where)
            except (OSError, RuntimeError) as none_left:
                why = f"the name {self.where.host!r} cannot be looked up in this process: {none_left}"
                raise self.failed(why) from none_left
        return self._lookup

    def looked_up(self) -> None:
        """The name may mean another host the next time."""
        if self._lookup is not None:
            self._lookup.close()
        self._lookup = None

    def welcomed(self) -> None:
        self._reached, self._denied = True, 0

    def denied(self, why: str) -> DataPlaneUnavailable:
        """Return the error for somebody who does not want us: final if that is beyond doubt."""
        self._denied += 1
        sure = not self._reached and self._denied >= _SURE
        return NotAdmitted(why) if sure else DataPlaneUnavailable(why)

    def failed(self, why: str) -> DataPlaneUnavailable:
        """Return the error for anything that may be better the next time."""
        self._denied = 0
        return DataPlaneUnavailable(why)

    def __repr__(self) -> str:
        return f"RemoteDialer({self.address}, {'TLS' if self.tls else 'in the clear'})"


class RemoteDialling:
    """One try to connect: see ``Dialling``."""

    def __init__(self, dialer: RemoteDialer) -> None:
        self._dialer = dialer
        self._deadline = Deadline(DIAL_S, dialer.clock)
        self._until = self._deadline  # of the present step
        self._doing = "looking up its name"
        self._silent = "nothing has come yet"  # what it means if nothing more comes
        self._sock: socket.socket | None = None
        self._waits_for: _Wait | None = None
        self._steps = self._dial()

    def fileno(self) -> int:
        return -1 if self._waits_for is None else int(self._waits_for[0].fileno())

    @property
    def events(self) -> int:
        return selectors.EVENT_READ if self._waits_for is None else self._waits_for[1]

    @property
    def patience_s(self) -> float:
        return self._until.remaining()

    def poll(self) -> socket.socket | None:
        try:
            self._waits_for = next(self._steps)
        except StopIteration as done:
            connected: socket.socket = done.value
            self._sock = None
            self._dialer.welcomed()
            return connected
        return None

    def close(self) -> None:
        self._steps.close()
        self.drop()

    def drop(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def __repr__(self) -> str:
        so_far = f"{self._doing}, {self._deadline.elapsed():.1f} s so far"
        return f"a connection to {self._dialer.address} ({so_far}; {self._silent})"

    # -- the steps ----------------------------------------------------------------------------------------------------

    def _dial(self) -> _Steps:
        where = self._dialer.where
        infos = yield from self._resolve(where)
        sock = yield from self._connect(infos)
        _never_wait_for_ever(sock)
        if self._dialer.tls is not None:
            sock = yield from self._encrypt(sock, self._dialer.tls)
        yield from self._show_token(sock)
        return sock

    def _resolve(self, where: Address) -> Generator[_Wait, None, list[_Info]]:
        try:
            return _addresses(where, socket.AI_NUMERICHOST)
        except OSError:
            lookup = self._dialer.lookup()
        self._silent = "its name is still being looked up: is the resolver (DNS) reachable?"
        while not lookup.done:
            yield from self._wait(lookup.waker, selectors.EVENT_READ)
        found = lookup.found
        self._dialer.looked_up()
        if isinstance(found, list):
            return found
        raise self._dialer.failed(
            f"the name {where.host!r} is not known here ({found.strerror or found}): is it spelled right?"
        ) from found

    def _connect(self, infos: list[_Info]) -> _Steps:
        """Try one address after the other, each for its share of the time."""
        self._doing = "waiting for its answer to TCP"
        self._silent = "nothing there answers to TCP: is the address right, the machine up, the port let through?"
        for at, (family, address) in enumerate(infos):
            left = len(infos) - at
            self._until = self._deadline.within(self._deadline.remaining() / left)
            try:
                sock = yield from self._connect_to(family, address)
            except OSError as failed:
                if left == 1:
                    raise self._dialer.failed(self._not_connected(failed)) from failed
            else:
                self._until = self._deadline
                return sock
        raise self._dialer.failed(f"no plane answers at {self._dialer.address}: its name has no address")

    def _connect_to(self, family: int, address: Any) -> _Steps:
        sock = self._sock = SealedSocket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            error = sock.connect_ex(address)
            while error in (errno.EINPROGRESS, errno.EALREADY, errno.EINTR):
                if self._until.expired():
                    raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                self._waits_for = (sock, selectors.EVENT_WRITE)
                yield self._waits_for
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _still_connecting(sock)
            if error:
                raise OSError(error, os.strerror(error))
        except OSError:
            sock.close()
            self._sock = None
            raise
        return sock

    def _not_connected(self, failed: OSError) -> str:
        at, why = self._dialer.address, failed.strerror or failed
        if failed.errno == errno.ECONNREFUSED:
            remedy = f"start it with `penstock serve --data-dir DIR --listen {self._dialer.where}`"
            return f"nobody listens at {at} ({why}): {remedy}"
        if failed.errno in _NO_ROUTE:
            return f"there is no way to {at} ({why}): is the address right, and the network up?"
        if failed.errno == errno.ETIMEDOUT:
            return f"no plane answers at {at}: {self._silent}"
        return f"no connection to {at}: {why}"

    def _encrypt(self, sock: socket.socket, tls: ssl.SSLContext) -> _Steps:
        at = self._dialer.address
        self._doing, self._silent = (
            "agreeing on TLS",
            "it took the connection and does not answer to TLS: is it stopped?",
        )
        try:
            wrapped = self._sock = tls.wrap_socket(
                sock, server_hostname=self._dialer.where.host, do_handshake_on_connect=False
            )
            yield from self._shake_hands(wrapped)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as cut:
            raise self._dialer.failed(f"{at} went away while agreeing on TLS") from cut
        except ssl.SSLCertVerificationError as stranger:
            why = f"the certificate of {at} is not to be trusted: {stranger.verify_message.rstrip('.')}"
            raise self._dialer.denied(f"{why}; tls_ca must name the authority that signed it") from stranger
        except ssl.SSLError as other:
            why = f"no TLS with {at} ({other.reason or other})"
            raise self._dialer.denied(f"{why}: if it serves in the clear, leave tls_ca out") from other
        except OSError as cut:
            raise self._dialer.failed(f"{at} went away while agreeing on TLS: {cut.strerror or cut}") from cut
        except ValueError as bad:  # a name that no certificate can bear
            raise self._dialer.denied(f"no TLS with {at}: {bad}") from bad
        return wrapped

    def _shake_hands(self, wrapped: ssl.SSLSocket) -> Generator[_Wait, None, None]:
        while True:
            try:
                wrapped.do_handshake()
            except ssl.SSLWantReadError:
                yield from self._wait(wrapped, selectors.EVENT_READ)
            except ssl.SSLWantWriteError:
                yield from self._wait(wrapped, selectors.EVENT_WRITE)
            else:
                return

    def _show_token(self, sock: socket.socket) -> Generator[_Wait, None, None]:
        at = self._dialer.address
        us = Dialler(self._dialer.token, PURPOSE)
        self._doing, self._silent = "waiting for its challenge", self._no_challenge()
        try:
            yield from self._send(sock, us.respond((yield from self._receive(sock, CHALLENGE_BYTES))))
        except WireError as stranger:
            raise self._dialer.denied(f"at {at} is {stranger}: is the port right?") from stranger
        except (OSError, EOFError) as cut:
            why = f"{at} took the connection and closed it at once ({cut})"
            raise self._dialer.failed(f"{why}: is it full, ending, or no plane?") from cut
        self._doing, self._silent = "waiting for its proof", "it does not answer to our proof: is it stopped?"
        try:
            us.check((yield from self._receive(sock, PROOF_BYTES)))
            if isinstance(sock, SealedSocket):  # TLS has seals of its own
                sock.seals = us.seals()
        except (OSError, EOFError) as cut:
            raise self._dialer.denied(
                f"{at} closed the connection on our token ({cut}): use the token file of that plane"
            ) from cut
        except WireError as stranger:
            raise self._dialer.denied(f"at {at} listens somebody else: {stranger}; it was told nothing") from stranger

    def _no_challenge(self) -> str:
        if self._dialer.tls is not None:
            return "it took the connection and says nothing: is it stopped?"
        return "it took the connection and says nothing: if it serves TLS, pass tls_ca; if not, is it stopped?"

    def _send(self, sock: socket.socket, data: bytes) -> Generator[_Wait, None, None]:
        while data:
            try:
                data = data[sock.send(data) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                yield from self._wait(sock, selectors.EVENT_WRITE)
            except ssl.SSLWantReadError:
                yield from self._wait(sock, selectors.EVENT_READ)

    def _receive(self, sock: socket.socket, nbytes: int) -> Generator[_Wait, None, bytes]:
        data = b""
        while len(data) < nbytes:
            try:
                more = sock.recv(nbytes - len(data))
            except (BlockingIOError, ssl.SSLWantReadError):
                yield from self._wait(sock, selectors.EVENT_READ)
                continue
            except ssl.SSLWantWriteError:
                yield from self._wait(sock, selectors.EVENT_WRITE)
                continue
            if not more:
                raise EOFError("end of stream")
            data += more
        return data

    def _wait(self, what: Any, events: int) -> Generator[_Wait, None, None]:
        if self._until.expired():
            raise self._dialer.failed(f"no plane answers at {self._dialer.address}: {self._silent}")
        self._waits_for = (what, events)
        yield self._waits_for


class _Lookup:
    """A host's addresses, found by a thread that ends when the resolver does: nothing can hurry it."""

    def __init__(self, where: Address) -> None:
        self.waker = Waker()
        self.found: list[_Info] | OSError = []
        self.done = False
        self._where = where
        try:
            threading.Thread(target=self._run, name="penstock-lookup", daemon=True).start()
        except RuntimeError:
            self.waker.close()
            raise

    def _run(self) -> None:
        try:
            self.found = _addresses(self._where)
        except OSError as unknown:
            self.found = unknown
        self.done = True
        self.waker.wake()

    def close(self) -> None:
        self.waker.close()


def _addresses(where: Address, flags: int = 0) -> list[_Info]:
    try:
        found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as impossible:  # a label that no name can have; said before a number is looked for, too
        raise OSError(str(impossible)) from impossible
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _still_connecting(sock: socket.socket) -> int:
    """Return EINPROGRESS if the selector woke us for nothing, 0 if the connection stands."""
    try:
        sock.getpeername()
    except OSError:
        return errno.EINPROGRESS
    return 0


def _never_wait_for_ever(sock: socket.socket) -> None:
    """Let the kernel notice a peer whose machine or cable is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPIDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPINTVL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPCNT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
