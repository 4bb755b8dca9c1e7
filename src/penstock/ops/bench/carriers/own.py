"""Our wires, as the transport uses them: authenticated, each call under a deadline."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from penstock.endpoint.connection import Address, Connection, Wire
from penstock.errors import TransportError
from penstock.ops.bench.carrier import ASKED, MAX_BYTES, WAIT_S, Carrier, asked_for
from penstock.retry import Deadline
from penstock.transport.wires import TcpWire, UcxWire
from penstock.wire.tls import client_context, server_context

__all__ = ["own_tcp", "own_tls", "own_ucx"]

_TOKEN, _PURPOSE = b"a token that is none", "bench"
_CALL_S = 60.0


class _Own(Carrier):
    """Args: listening, connecting: make a wire for either end; the latter of what it was told besides the port."""

    def __init__(self, listening: Callable[[], tuple[Wire, str]], connecting: Callable[[str], Wire]) -> None:
        self._listening = listening
        self._connecting = connecting
        self._connection: Connection | None = None

    async def serve(self, tell: Callable[[str], Awaitable[None]]) -> None:
        wire, more = self._listening()
        listener = await wire.listen("127.0.0.1", 0, _answer)
        await tell(f"{listener.address.port} {more}")
        await asyncio.Event().wait()

    async def open(self, told: str) -> None:
        port, _, more = told.partition(" ")
        self._wire = self._connecting(more)
        self._connection = await self._wire.connect(Address("127.0.0.1", int(port)), Deadline(_CALL_S))

    async def fetch(self, buffer: memoryview) -> None:
        assert self._connection is not None
        await self._connection.send(buffer.nbytes.to_bytes(ASKED, "big"), deadline=Deadline(_CALL_S))
        await self._connection.recv_into(buffer, Deadline(_CALL_S))

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def _answer(connection: Connection) -> None:
    source, request = memoryview(bytearray(b"\x01") * MAX_BYTES), bytearray(ASKED)
    while True:
        await connection.recv_into(request, Deadline(WAIT_S))
        await connection.send(source[: asked_for(request)], deadline=Deadline(_CALL_S))


def own_tcp() -> Carrier:
    """TCP."""
    return _Own(lambda: (TcpWire(_TOKEN, _PURPOSE), ""), lambda _: TcpWire(_TOKEN, _PURPOSE))


def own_ucx() -> Carrier:
    """UCX."""
    return _Own(lambda: (UcxWire(_TOKEN, _PURPOSE), ""), lambda _: UcxWire(_TOKEN, _PURPOSE))


def own_tls() -> Carrier:
    """TCP under TLS, with a certificate made for this run."""
    return _Own(_tls_listener, _tls_dialler)


def _tls_dialler(cert: str) -> Wire:
    wire = TcpWire(_TOKEN, _PURPOSE, tls_client=client_context(Path(cert)))
    shutil.rmtree(Path(cert).parent)  # both ends have read it
    return wire


def _tls_listener() -> tuple[Wire, str]:
    folder = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=bench"]
    try:
        subprocess.run([*made, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as missing:
        raise TransportError(f"no certificate could be made: {missing}", code="refused") from missing
    return TcpWire(_TOKEN, _PURPOSE, tls_server=server_context(cert, key)), str(cert)
