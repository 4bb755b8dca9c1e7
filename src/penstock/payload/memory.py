"""System calls that the standard library does not offer as we need them: mappings, prefaulting, hole punching.

``mmap.mmap`` duplicates its file descriptor, one per mapping, and a trainer may hold thousands of views: so mappings
are made by mmap(2) itself. Invariant: a ``Mapped`` is unmapped exactly when the last object that refers to it is gone.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from penstock.payload.block import Bytes

PAGE = mmap.PAGESIZE

_MADV_POPULATE_WRITE = 23  # Linux 5.14, asm-generic/mman-common.h
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01  # linux/falloc.h
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Mapped:
    """Mapped memory as an object: numpy arrays over it keep it, tensors over those keep them."""

    __slots__ = ("__array_interface__", "__weakref__", "address", "nbytes")

    def __init__(
        self, address: int, nbytes: int, *, writable: bool, on_unmapped: Callable[[], None] | None = None
    ) -> None:
        self.address = address
        self.nbytes = nbytes
        self.__array_interface__: dict[str, Any] = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, not writable),
            "version": 3,
        }
        weakref.finalize(self, _unmap, address, nbytes, on_unmapped).atexit = False  # the kernel unmaps at exit

    def array(self) -> Bytes:
        """Return the memory as an array that keeps it mapped."""
        return np.asarray(self)


def map_file(
    fd: int,
    offset: int,
    nbytes: int,
    *,
    private: bool,
    writable: bool = True,
    on_unmapped: Callable[[], None] | None = None,
) -> Mapped:
    """Map ``[offset, offset + nbytes)`` of a file; ``offset`` is a multiple of the page.

    ``private``: copy on write. ``on_unmapped`` runs in whatever thread drops the last reference: it must not block.

    Raises:
        OSError: the kernel refuses (ENOMEM: too many mappings).
    """
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0) if private else mmap.MAP_SHARED
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _libc.mmap(None, nbytes, protection, flags, fd, offset)
    if address == _MAP_FAILED or address is None:
        raise _os_error("mmap")
    return Mapped(address, nbytes, writable=writable, on_unmapped=on_unmapped)


def _unmap(address: int, nbytes: int, on_unmapped: Callable[[], None] | None) -> None:
    _libc.munmap(address, nbytes)
    if on_unmapped is not None:
        on_unmapped()


def populate(mapped: Mapped, start: int, nbytes: int) -> None:
    """Fault the pages of ``[start, start + nbytes)`` in for writing, without changing a byte.

    In a private mapping that is its own copy of each page. Where the kernel lacks MADV_POPULATE_WRITE, a byte of every
    page is written with what it holds: one of the range, as the rest of the page may be another writer's just now.

    Raises:
        OSError: there is no memory for them.
    """
    first = start // PAGE * PAGE
    length = min(-(-(start + nbytes) // PAGE) * PAGE, mapped.nbytes) - first
    if length <= 0:
        return
    while _libc.madvise(mapped.address + first, length, _MADV_POPULATE_WRITE) != 0:
        error = _os_error("madvise")
        if error.errno == errno.EINVAL:
            _touch(mapped.array()[start : start + nbytes : PAGE])
            _touch(mapped.array()[start + nbytes - 1 : start + nbytes])
            return
        if error.errno not in {errno.EINTR, errno.EAGAIN}:
            raise error


def _touch(pages: Bytes) -> None:
    np.bitwise_or(pages, 0, out=pages)


def punch(fd: int, offset: int, nbytes: int) -> None:
    """Return the pages of ``[offset, offset + nbytes)`` to the kernel; the file keeps its size.

    Raises:
        OSError: the file system cannot.
    """
    if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, nbytes) != 0:
        raise _os_error("fallocate")


def allocate(fd: int, offset: int, nbytes: int) -> None:
    """Back ``[offset, offset + nbytes)`` with memory now, so that touching it later cannot raise SIGBUS.

    Raises:
        OSError: ENOSPC where there is not enough.
    """
    while True:
        try:
            return os.posix_fallocate(fd, offset, nbytes)
        except InterruptedError:
            continue


def available_memory() -> int | None:
    """Return the bytes that can be had without swapping or killing, as the kernel reckons; None if it does not say.

    A container's own limit is not in it.
    """
    try:
        with Path("/proc/meminfo").open("rb") as lines:
            found = next((line for line in lines if line.startswith(b"MemAvailable:")), None)
    except OSError:
        return None
    return None if found is None else int(found.split()[1]) * 1024


def _os_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
