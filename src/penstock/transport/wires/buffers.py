"""Callers' buffers as views of bytes, whatever they are made of; nothing is copied."""

from __future__ import annotations

from typing import cast

from penstock.endpoint.connection import Buffer

__all__ = ["readable", "writable"]


def readable(buffer: Buffer) -> memoryview:
    """Return ``buffer`` as a flat view of its bytes."""
    view = memoryview(cast("memoryview", buffer))
    return view.cast("B") if view.nbytes else memoryview(bytearray())  # a view of no bytes cannot be cast


def writable(buffer: Buffer) -> memoryview:
    """As ``readable``, of what will be written to."""
    view = readable(buffer)
    assert not view.readonly, "a buffer to receive into must be writable"
    return view
