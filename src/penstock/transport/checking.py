"""Verifies a block while it arrives: each column is hashed as far as it is there, in step with the receiving.

Invariants: the verdict is that of ``block.parse`` and ``block.verify`` on the whole; nothing is hashed twice but a
header that had not arrived whole; nothing here waits.
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash

from penstock.config import Integrity
from penstock.errors import CorruptPayload
from penstock.payload import block
from penstock.payload.block import BlockHeader, Bytes, ColumnPlace, padded
from penstock.transport.slot_protocol import Request, Status, check_payload

__all__ = ["Checking"]


@dataclass(slots=True)
class _Column:
    """One column, hashed up to ``at``."""

    name: str
    place: ColumnPlace
    at: int
    hasher: xxhash.xxh3_64

    @property
    def end(self) -> int:
        return self.place.offset + padded(self.place.header.nbytes)


class Checking:
    """The checks of one arriving block, by one thread at a time.

    Args:
        request, status: what was asked for, and what the host says that it sends.
        out: where it arrives.
        integrity: what is verified.
    """

    def __init__(self, request: Request, status: Status, out: Bytes, integrity: Integrity) -> None:
        self._request, self._status, self._out = request, status, out
        self._integrity = integrity
        self._header: BlockHeader | None = None
        self._columns: list[_Column] = []

    def advance(self, arrived: int) -> None:
        """``arrived`` bytes are there, from the beginning. Damage is for ``finish`` to tell."""
        if self._integrity not in {"full", "paranoid"}:
            return
        if self._header is None and not self._begin():
            return
        for column in self._columns:
            upto = min(arrived, column.end)
            if upto > column.at:
                column.hasher.update(self._out[column.at : upto].data)
                column.at = upto

    def finish(self) -> BlockHeader:
        """All of it is there: return its header.

        Raises:
            CorruptPayload: it is not the block that was asked for, or is damaged.
        """
        check_payload(self._request, self._status, self._out.data)
        self.advance(len(self._out))
        header = self._header or self._parsed()
        for column in self._columns:
            if column.hasher.intdigest().to_bytes(8, "little") != column.place.header.checksum:
                raise CorruptPayload(f"field {column.name!r} of block {header.block_id} does not match its checksum")
        return header

    def _begin(self) -> bool:
        """Read the header if it is there. If it is not, or is damaged, it does not match its checksum."""
        try:
            self._header = self._parsed()
        except CorruptPayload:
            return False
        for name, place in self._header.columns.items():
            self._columns.append(_Column(name, place, place.offset, xxhash.xxh3_64()))
        return True

    def _parsed(self) -> BlockHeader:
        return block.parse(self._out, self._request.block_id, checked=self._integrity != "off")
