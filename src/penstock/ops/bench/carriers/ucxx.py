"""What the package ucxx gives without anything round it: its own asyncio interface, set as well as we know how."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from penstock.ops.bench.carrier import ASKED, MAX_BYTES, Carrier, asked_for
from penstock.transport.wires.ucx_library import SETTINGS, library

__all__ = ["PlainUcxx"]

_TO_SERVER, _TO_CLIENT = 1, 2


class PlainUcxx(Carrier):
    """Endpoints from worker addresses, tagged messages, error handling, its own futures: no lengths, no deadlines."""

    async def serve(self, tell: Callable[[str], Awaitable[None]]) -> None:
        context = _context()
        await tell(context.worker_address.tobytes().hex())
        source, request = memoryview(bytearray(b"\x01") * MAX_BYTES), bytearray(ASKED)
        length = bytearray(ASKED)
        await context.recv(length, _TO_SERVER)
        address = bytearray(asked_for(length))
        await context.recv(address, _TO_SERVER)
        endpoint = await _endpoint(context, bytes(address))
        while True:
            await endpoint.recv(request, tag=_tag(_TO_SERVER), force_tag=True)
            await endpoint.send(source[: asked_for(request)], tag=_tag(_TO_CLIENT), force_tag=True)

    async def open(self, told: str) -> None:
        self._context = _context()
        self._endpoint = await _endpoint(self._context, bytes.fromhex(told))
        address = self._context.worker_address.tobytes()
        for message in (len(address).to_bytes(ASKED, "big"), address):
            await self._endpoint.send(bytearray(message), tag=_tag(_TO_SERVER), force_tag=True)

    async def fetch(self, buffer: memoryview) -> None:
        request = bytearray(buffer.nbytes.to_bytes(ASKED, "big"))
        await self._endpoint.send(request, tag=_tag(_TO_SERVER), force_tag=True)
        await self._endpoint.recv(buffer, tag=_tag(_TO_CLIENT), force_tag=True)

    async def close(self) -> None:
        self._context.stop_notifier_thread()


def _context() -> Any:
    library()
    from ucxx._lib_async.application_context import ApplicationContext

    return ApplicationContext(dict(SETTINGS), progress_mode="thread", enable_python_future=True)


async def _endpoint(context: Any, address: bytes) -> Any:
    bindings = library()
    where = bindings.UCXAddress.create_from_buffer(address)
    return await context.create_endpoint_from_worker_address(where, endpoint_error_handling=True)


def _tag(number: int) -> Any:
    return library().UCXXTag(number)
