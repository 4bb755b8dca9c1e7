"""The header before every stored value: it makes each value storable, and each damage visible.

    magic, version, length of the payload, xxh3-64 of the key, xxh3-64 of the payload: 32 bytes, then the payload

Invariants: no stored value is empty, so that "empty", "missing" and "failed" cannot be taken for each other; a value
that lies under another key, is cut off, is longer, or differs in one bit is told from what was put; ``copy_out`` hands
over only bytes that it has hashed in the memory that it hands over.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from penstock.payload.block import Bytes, Readable
from penstock.payload.buffers import SHARED, Buffers

__all__ = ["HEADER_BYTES", "Header", "as_pieces", "copy_out", "pack_into", "parse", "seal"]

MAGIC = b"PSTO"
VERSION = 1
_FORMAT = struct.Struct("<4sIQQQ")
HEADER_BYTES = _FORMAT.size
_PART_BYTES = 1 << 20  # copied and hashed in turn, while it is in the cache; as in ``codec``


class Header(NamedTuple):
    """What is written before a payload of ``nbytes``."""

    nbytes: int
    key_hash: int
    payload_hash: int

    def encode(self) -> bytes:
        return _FORMAT.pack(MAGIC, VERSION, self.nbytes, self.key_hash, self.payload_hash)


def as_pieces(value: Readable | Sequence[Readable]) -> list[Bytes]:
    """Return a value as flat arrays of bytes, without a copy of anything contiguous.

    Raises:
        TypeError, ValueError, BufferError: what is given is no buffer.
    """
    if isinstance(value, bytes | bytearray | memoryview | np.ndarray):
        return [_flat(value)]
    return [_flat(piece) for piece in value]


def _flat(piece: Readable) -> Bytes:
    if isinstance(piece, np.ndarray):
        return np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
    if isinstance(piece, memoryview) and not piece.c_contiguous:
        piece = piece.tobytes()
    return np.frombuffer(piece, np.uint8)


def seal(key: str, pieces: Sequence[Bytes]) -> Header:
    """Return the header of a payload that is ``pieces``, one after the other."""
    hasher = xxhash.xxh3_64()
    for piece in pieces:
        hasher.update(piece.data)
    return Header(sum(len(piece) for piece in pieces), _hash_of(key), hasher.intdigest())


def pack_into(memory: Bytes, key: str, pieces: Sequence[Bytes]) -> Header:
    """Write header and payload to the beginning of ``memory``; return the header."""
    hasher = xxhash.xxh3_64()
    at = HEADER_BYTES
    for piece in pieces:
        for start in range(0, len(piece), _PART_BYTES):
            part = piece[start : start + _PART_BYTES]
            target = memory[at : at + len(part)]
            target[:] = part
            hasher.update(target.data)  # of what was written: a caller that changes its buffer meanwhile harms itself
            at += len(part)
    header = Header(at - HEADER_BYTES, _hash_of(key), hasher.intdigest())
    memory[:HEADER_BYTES] = np.frombuffer(header.encode(), np.uint8)
    return header


def parse(memory: Bytes, key: str) -> Header | str:
    """Return the header at the beginning of ``memory``, all of which is one value; or what does not match."""
    if len(memory) < HEADER_BYTES:
        return "length"
    magic, version, nbytes, key_hash, payload_hash = _FORMAT.unpack_from(memory.data)
    if magic != MAGIC:
        return "magic"
    if version != VERSION:
        return "version"
    if nbytes != len(memory) - HEADER_BYTES:
        return "length"
    return Header(nbytes, key_hash, payload_hash) if key_hash == _hash_of(key) else "key"


def copy_out(memory: Bytes, key: str, buffers: Buffers = SHARED) -> memoryview | str:
    """Return the payload in memory of its own, or what does not match. ``memory`` may be written to meanwhile."""
    header = parse(memory, key)
    if isinstance(header, str):
        return header
    payload = buffers.take(header.nbytes)
    hasher = xxhash.xxh3_64()
    for start in range(0, header.nbytes, _PART_BYTES):
        part = payload[start : start + _PART_BYTES]
        part[:] = memory[HEADER_BYTES + start : HEADER_BYTES + start + len(part)]
        hasher.update(part.data)
    return payload.data if hasher.intdigest() == header.payload_hash else "checksum"


def _hash_of(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode())
