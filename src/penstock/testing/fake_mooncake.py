"""A twin of Mooncake Store with its quirks, for tests: no process, no network, the clock given to it.

    fake = FakeMooncake(clock=clock)
    store = MooncakeStore(fake.config(), library=fake, clock=clock, ask=fake.ask)
    fake.inject(fail(-800, call="get", key="k", times=2))

Each quirk was seen on the real store first; the tests run on both. Invariants: a call on a client that is closed (the
real one dies of it), and an address outside of the memory registered with the client when a transfer touches it, is a
``Misuse``: raised, and kept in ``misuses``; nothing is late or damaged but by a fault.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from penstock.errors import BadArgument
from penstock.retry import Clock
from penstock.testing.fake_mooncake_faults import Fault, What
from penstock.testing.fake_mooncake_master import (
    BAD_PARAMS,
    MASTER_GONE,
    MISSING,
    TRANSFER_FAILED,
    Master,
    ReplicaDescriptor,
    Status,
    Stored,
    WriteConfig,
)

if TYPE_CHECKING:
    from penstock.payload.stores.mooncake.config import MooncakeConfig

__all__ = ["FakeClient", "FakeMooncake", "Misuse"]

MIB = 1 << 20
_ADDRESS = "fake:1"
_HANG_LIMIT_S = 60.0  # nobody waits at a twin for longer, whatever a test forgets


class Misuse(AssertionError):
    """A call that the real library does not survive, or answers with somebody else's memory: our own bug."""


class FakeMooncake:
    """A master, its segments, and the library to reach them with: give it as ``library=``.

    Args:
        segments: bytes of each.
        client_ttl_s: how long an owner that is dead is believed in.
        lease_s: for how long a value that was asked for cannot be removed without force.
        evicting: Mooncake's default eviction; values that are not hard-pinned go in silence.
        clock: for both.

    Attributes:
        calls: what was called, in order: (call, keys).
        misuses: in words.
        on_call: run before each call, outside of the lock: a test's hook for what is to happen meanwhile.
    """

    def __init__(
        self,
        segments: Sequence[int] = (64 * MIB, 64 * MIB),
        *,
        client_ttl_s: float = 10.0,
        lease_s: float = 10.0,
        evicting: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        self.clock = clock
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.misuses: list[str] = []
        self.on_call: Callable[[str, tuple[str, ...]], None] | None = None
        self.lock = threading.RLock()
        self.master = Master(clock, client_ttl_s, lease_s, evicting)
        self._faults: list[Fault] = []
        self._clients: list[FakeClient] = []
        self._owners = 0
        for capacity in segments:
            self.start_owner(capacity)

    # -- the library --------------------------------------------------------------------------------------------------

    def client(self) -> FakeClient:
        with self.lock:
            client = FakeClient(self, len(self._clients))
            self._clients.append(client)
            return client

    def write_config(self, preferred_segment: str) -> WriteConfig:
        return WriteConfig(preferred_segment)

    def config(self, **changes: Any) -> MooncakeConfig:
        """The configuration of a store on this fake, with ``changes``."""
        from penstock.payload.stores.mooncake.config import MooncakeConfig

        return MooncakeConfig(**{"master": _ADDRESS, "metadata": "fake"} | changes)

    def ask(self, _timeout_s: float) -> list[str] | None:
        """What the master's metrics address tells of the segments; None: nobody answers."""
        return self.segments() if self.master.up else None

    # -- what happens to it -------------------------------------------------------------------------------------------

    def inject(self, fault: Fault) -> Fault:
        """Arm a fault; those armed first are tried first."""
        with self.lock:
            self._faults.append(fault)
        return fault

    def start_owner(self, capacity: int = 64 * MIB) -> str:
        """Add a segment; returns its name."""
        with self.lock:
            self._owners += 1
            return self.master.add_segment(f"owner:{self._owners}", capacity).name

    def kill_owner(self, name: str) -> None:
        """Its bytes are gone; the master says so ``client_ttl_s`` later."""
        with self.lock:
            self.master.segments[name].died_at = self.clock()

    def kill_master(self) -> None:
        with self.lock:
            self.master.up = False

    def restart_master(self) -> None:
        """Every key is forgotten; living owners are back at once."""
        with self.lock:
            self.master.restart()

    def evict(self, *keys: str) -> None:
        """Lose values in silence."""
        with self.lock:
            for key in keys:
                self.master.forget(key)

    def half_write(self, key: str, nbytes: int) -> None:
        """Leave a value as a writer does that died in the middle of it."""
        with self.lock:
            if isinstance(code := self.master.begin_write(key, nbytes, WriteConfig()), int):
                raise BadArgument(f"no room for {key!r}: {code}")

    def damage_stored(self, key: str, at: int = -1) -> None:
        """Turn a bit of what lies in the store, for good."""
        with self.lock:
            self.master.keys[key].value[at] ^= 1

    def segments(self) -> list[str]:
        with self.lock:
            self.master.unmount_dead()
            return list(self.master.segments)

    def keys(self) -> list[str]:
        """Every key that the store has."""
        with self.lock:
            return list(self.master.keys)

    def close(self) -> None:
        """Let go everybody who hangs."""
        for fault in tuple(self._faults):
            fault.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "up" if self.master.up else "master down"
        return f"FakeMooncake({state}, {len(self.master.keys)} keys, {len(self.misuses)} misuses)"

    # -- for its clients ----------------------------------------------------------------------------------------------

    def misuse(self, what: str) -> Misuse:
        with self.lock:
            self.misuses.append(what)
        return Misuse(what)

    def take_fault(self, call: str, keys: Sequence[str], *kinds: What) -> Fault | None:
        """Return the first fault of ``kinds`` that fits, and count that it fired."""
        with self.lock:
            for fault in self._faults:
                if fault.what in kinds and fault.fits(call, keys):
                    fault.fired += 1
                    return fault
            return None

    def called(self, call: str, keys: Sequence[str]) -> None:
        """Note a call, and let happen what was to happen to it as a whole."""
        with self.lock:
            self.calls.append((call, tuple(keys)))
        if self.on_call is not None:
            self.on_call(call, tuple(keys))
        if hanging := self.take_fault(call, keys, "hang"):
            hanging.wait(_HANG_LIMIT_S)
        if (thrown := self.take_fault(call, keys, "throw")) and thrown.error is not None:
            raise thrown.error


class FakeClient:
    """As ``MooncakeDistributedStore``, with the calls that are used and, to show what they do, some that must not be.

    Attributes:
        registered: address -> bytes.
    """

    def __init__(self, fake: FakeMooncake, number: int) -> None:
        self.registered: dict[int, int] = {}
        self.is_open = False
        self._fake = fake
        self._number = number
        self._local_buffer = 0

    # -- its life -----------------------------------------------------------------------------------------------------

    def setup(
        self,
        _local_hostname: str,
        _metadata_server: str,
        global_segment_size: int,
        local_buffer_size: int,
        _protocol: str,
        _rdma_devices: str,
        master_server_addr: str,
        /,
    ) -> int:
        """A wrong address is tried for minutes, as the real one does: until the fake is closed."""
        self._fake.called("setup", [])
        if fault := self._fake.take_fault("setup", [], "fail"):
            return fault.code
        if master_server_addr != _ADDRESS or not self._fake.master.up:
            wrong = self._fake.inject(Fault("hang", "setup"))
            wrong.wait(_HANG_LIMIT_S)
            return -1
        if global_segment_size:
            self._fake.start_owner(global_segment_size)
        self._local_buffer = local_buffer_size
        self.is_open = True
        return 0

    def get_hostname(self) -> str:
        self._require_open("get_hostname")
        return f"fake:{10_000 + self._number}"

    def close(self) -> int:
        self.is_open = False
        return 0

    def register_buffer(self, buffer_ptr: int, size: int, /) -> int:
        self._require_open("register_buffer")
        if hanging := self._fake.take_fault("register", [], "hang"):
            hanging.wait(_HANG_LIMIT_S)
        if fault := self._fake.take_fault("register", [], "fail"):
            return fault.code
        if buffer_ptr in self.registered:
            return BAD_PARAMS
        self.registered[buffer_ptr] = size
        return 0

    def unregister_buffer(self, buffer_ptr: int, /) -> int:
        self._require_open("unregister_buffer")
        return 0 if self.registered.pop(buffer_ptr, None) is not None else BAD_PARAMS

    # -- calls with a code per key ------------------------------------------------------------------------------------

    def batch_upsert_from(self, keys: list[str], ptrs: list[int], sizes: list[int], config: Any, /) -> list[int]:
        """A closed client is not deadly here: the real one answers -600."""
        if not self.is_open or not len(keys) == len(ptrs) == len(sizes):
            return [BAD_PARAMS] * len(keys)
        return self._each("put", keys, lambda i: self._write(keys[i], ptrs[i], sizes[i], config))

    def batch_put_from(self, keys: list[str], ptrs: list[int], sizes: list[int], config: Any, /) -> list[int]:
        """A key that is there: 0, and nothing is written."""

        def one(i: int) -> int:
            with self._fake.lock:
                there = self._fake.master.keys.get(keys[i])
                if sizes[i] and there is not None and there.status is Status.COMPLETE:
                    return 0
            return self._write(keys[i], ptrs[i], sizes[i], config)

        self._require_open("batch_put_from")
        return self._each("put", keys, one)

    def batch_get_into(self, keys: list[str], ptrs: list[int], sizes: list[int], /) -> list[int]:
        """Of a key that is named twice the last is fetched (whose memory is large enough); all report success."""
        self._require_open("batch_get_into")

        def moves(i: int, nbytes: int) -> bool:
            return all(keys[j] != keys[i] or sizes[j] < nbytes for j in range(i + 1, len(keys)))

        return self._each("get", keys, lambda i: self._read(keys[i], ptrs[i], sizes[i], functools.partial(moves, i)))

    def batch_get_replica_desc(self, keys: list[str], /) -> dict[str, list[ReplicaDescriptor]]:
        """What is missing is left out, and so is what is half written or could not be asked for."""
        self._require_open("batch_get_replica_desc")
        found: dict[str, list[ReplicaDescriptor]] = {}

        def one(i: int) -> int:
            stored = self._fake.master.find(keys[i])
            if isinstance(stored, int):
                return stored
            found[keys[i]] = [ReplicaDescriptor(stored.status, len(stored.value), stored.segment.name)]
            return 0

        self._each("describe", keys, one)
        return found

    def batch_is_exist(self, keys: list[str], /) -> list[int]:
        self._require_open("batch_is_exist")
        return self._each("exists", keys, lambda i: int(isinstance(self._fake.master.find(keys[i]), Stored)))

    def batch_remove(self, keys: list[str], force: bool, /) -> list[int]:
        self._require_open("batch_remove")
        return self._each("remove", keys, lambda i: self._fake.master.remove(keys[i], force=force))

    # -- calls that must not be used ----------------------------------------------------------------------------------

    def get(self, key: str) -> bytes:
        """``b""`` is anything that went wrong: missing, failed, master down, client closed."""
        return self.get_batch([key])[0]

    def get_batch(self, keys: list[str]) -> list[bytes]:
        """``b""`` also for what does not fit into the local buffer beside those before it."""
        values: list[bytes] = []
        room = self._local_buffer
        for key in keys:
            stored = self._fake.master.find(key) if self.is_open and self._fake.master.up else MISSING
            is_lost = isinstance(stored, int) or not stored.segment.alive
            value = b"" if is_lost or isinstance(stored, int) else bytes(stored.value)
            if self._fake.take_fault("get", [key], "fail") or len(value) > room:
                value = b""
            room -= len(value)
            values.append(value)
        return values

    # -- how ----------------------------------------------------------------------------------------------------------

    def _require_open(self, call: str) -> None:
        if not self.is_open:
            raise self._fake.misuse(f"{call} on a client that is not open: the real one ends the process with SIGSEGV")

    def _each(self, call: str, keys: list[str], one: Callable[[int], int]) -> list[int]:
        """Answer for each key, with the faults that were armed."""
        self._fake.called(call, keys)
        self._require_open(call)  # it may have been closed while the call hung
        with self._fake.lock:
            self._fake.master.unmount_dead()
            codes = [self._one(call, key, functools.partial(one, i)) for i, key in enumerate(keys)]
        if codes and (fault := self._fake.take_fault(call, keys, "drop_replies")):
            return codes[: -fault.count]
        if codes and (fault := self._fake.take_fault(call, keys, "add_replies")):
            return codes + codes[-1:] * fault.count
        return codes

    def _one(self, call: str, key: str, one: Callable[[], int]) -> int:
        if not self._fake.master.up:
            return MASTER_GONE
        if fault := self._fake.take_fault(call, [key], "fail"):
            if call == "put":
                self._fake.master.forget(key)
            return fault.code
        return one()

    def _write(self, key: str, ptr: int, size: int, config: WriteConfig) -> int:
        master = self._fake.master
        stored = master.begin_write(key, size, config)
        if isinstance(stored, int):
            return stored
        if not stored.segment.alive:
            master.forget(key)
            return TRANSFER_FAILED
        if fault := self._fake.take_fault("put", [key], "late"):
            fault.owe(lambda: self._land_over(fault.onto or key, ptr, size))
            master.forget(key)
            return fault.code
        self._move_in(stored, ptr, size)
        if self._fake.take_fault("put", [key], "damage"):
            stored.value[-1] ^= 1
        master.end_write(key, stored)
        return 0

    def _read(self, key: str, ptr: int, size: int, moves: Callable[[int], bool]) -> int:
        stored = self._fake.master.find(key)
        if isinstance(stored, int):
            return stored
        if size < len(stored.value):
            return BAD_PARAMS
        if not stored.segment.alive:
            return TRANSFER_FAILED
        if fault := self._fake.take_fault("get", [key], "late"):
            fault.owe(lambda: self._move_out(stored, ptr))
            return fault.code
        if moves(len(stored.value)):
            self._move_out(stored, ptr, damaged=self._fake.take_fault("get", [key], "damage") is not None)
        return len(stored.value)

    def _move_in(self, stored: Stored, ptr: int, size: int) -> None:
        self._require_registered(ptr, size)
        stored.value[:size] = ctypes.string_at(ptr, size)

    def _move_out(self, stored: Stored, ptr: int, *, damaged: bool = False) -> None:
        value = bytearray(stored.value)
        if damaged:
            value[-1] ^= 1
        self._require_registered(ptr, len(value))
        ctypes.memmove(ptr, bytes(value), len(value))

    def _land_over(self, key: str, ptr: int, size: int) -> None:
        """A write that was given up long ago: with what its memory holds now, over what lies in its place now."""
        self._require_registered(ptr, size)
        with self._fake.lock:
            there = self._fake.master.keys.get(key)
            if there is not None:
                landed = min(size, len(there.value))
                there.value[:landed] = ctypes.string_at(ptr, landed)

    def _require_registered(self, ptr: int, size: int) -> None:
        if not any(start <= ptr and ptr + size <= start + length for start, length in self.registered.items()):
            raise self._fake.misuse(f"{size} bytes at {ptr:#x} are not in memory registered with client {self._number}")

    def __repr__(self) -> str:
        return f"FakeClient({self._number}, {'open' if self.is_open else 'closed'}, {len(self.registered)} buffers)"
