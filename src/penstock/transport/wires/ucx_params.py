"""What a peer must know to reach a connection over UCX, as bytes.

Invariant: damaged bytes are refused before UCX sees them, which does not check what it is given.
"""

from __future__ import annotations

import struct
import zlib

from penstock.errors import TransportError

__all__ = ["MAX_PARAMS_BYTES", "packed", "unpacked"]

MAX_PARAMS_BYTES = 16 * 1024  # a worker's address has some hundred bytes per network device
_CHECKSUM = struct.Struct("!I")
_NUMBER = struct.Struct("!I")


def packed(number: int, address: bytes) -> bytes:
    """Return the params of the connection ``number`` of the worker at ``address``."""
    content = _NUMBER.pack(number) + address
    return _CHECKSUM.pack(zlib.crc32(content)) + content


def unpacked(params: bytes) -> tuple[int, bytes]:
    """Return number and address.

    Raises:
        TransportError: they are damaged.
    """
    content = params[_CHECKSUM.size :]
    if len(content) <= _NUMBER.size or _CHECKSUM.pack(zlib.crc32(content)) != params[: _CHECKSUM.size]:
        raise TransportError("the peer's UCX parameters are damaged", code="protocol")
    return _NUMBER.unpack_from(content)[0], content[_NUMBER.size :]
