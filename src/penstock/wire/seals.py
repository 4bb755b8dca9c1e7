"""What follows the greeting on a line in the clear travels under seals, so that nobody between can change a bit of it.

    record = length of the data (u32), data (1 to 64 KiB), keyed BLAKE2b of counter, length and data (16 bytes)

Anybody can read it; that is what TLS is for. But what was changed, repeated, left out, reordered or put in by who does
not know the token is noticed, and so is what a failing device made of it: TCP's own checksum misses one such in 65,536.

Invariants: ``open`` gives out what was sealed at the other end, in order, and nothing else; after a broken seal nothing
more; it keeps at most one record.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from penstock.wire.frames import WireError

__all__ = ["RECORD_BYTES", "Seals"]

RECORD_BYTES = 64 * 1024  # of data, at most: so much is kept until its seal is there
_SEAL_BYTES = 16  # a guess succeeds once in 2**128
_LENGTH = struct.Struct("<I")
_COUNTED = struct.Struct("<QI")  # how many records came before, and how long this one is


class Seals:
    """Both directions of one connection, at one end. Args: sending, receiving: keys, of up to 64 bytes."""

    def __init__(self, sending: bytes, receiving: bytes) -> None:
        self._sending, self._receiving = sending, receiving
        self._sent = self._received = 0  # records
        self._rest = bytearray()
        self._broken = False

    def seal(self, data: bytes | memoryview) -> bytes:
        """Return the records of ``data``; they must leave in the order in which they were sealed."""
        view = memoryview(data)
        return b"".join(self._record(view[at : at + RECORD_BYTES]) for at in range(0, len(view), RECORD_BYTES))

    def open(self, data: bytes) -> bytes:
        """Take in what has arrived; return what lies in the records that are complete now.

        Raises:
            WireError: a seal is broken, now or earlier; what came before it has been returned, or is lost with it.
        """
        if self._broken:
            raise WireError("a seal before this was broken")
        self._rest += data
        opened = []
        at = 0
        while (end := self._end_of(at)) is not None:
            opened.append(self._opened(bytes(memoryview(self._rest)[at + _LENGTH.size : end])))
            at = end
        del self._rest[:at]
        return b"".join(opened)

    def _record(self, data: memoryview) -> bytes:
        sealed = b"".join((_LENGTH.pack(len(data)), data, _seal(self._sending, self._sent, data)))
        self._sent += 1
        return sealed

    def _end_of(self, at: int) -> int | None:
        """Where the record at ``at`` ends, or None while it is not all there."""
        if len(self._rest) < at + _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._rest, at)
        if not 0 < length <= RECORD_BYTES:
            self._broken = True
            raise WireError("no sealed record begins where one should")
        end = at + _LENGTH.size + int(length) + _SEAL_BYTES
        return end if end <= len(self._rest) else None

    def _opened(self, record: bytes) -> bytes:
        data, seal = record[:-_SEAL_BYTES], record[-_SEAL_BYTES:]
        if not hmac.compare_digest(seal, _seal(self._receiving, self._received, data)):
            self._broken = True
            raise WireError("a seal is broken: the bytes were changed on their way")
        self._received += 1
        return data


def _seal(key: bytes, counter: int, data: bytes | memoryview) -> bytes:
    mac = hashlib.blake2b(_COUNTED.pack(counter, len(data)), digest_size=_SEAL_BYTES, key=key)
    mac.update(data)
    return mac.digest()
