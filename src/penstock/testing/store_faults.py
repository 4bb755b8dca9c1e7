"""Faults of a real Mooncake, one table of them, and what a batch of values comes to while each happens.

    fault = fault_named("reset-3s-get")
    with Bed.of(fault, folder) as bed, bed.open(policy) as store:
        verdict = bed.trial(store, fault)

A bed is a cluster whose owners' bytes pass through proxies. ``FAULTS`` says what happens, in a sentence; the same table
is tested in short forms and measured by ``benchmarks/store_faults.py``.
Invariants: a value can be told from every other by its key alone, so that nobody's word is needed for whether it is
right; what was acknowledged is read back by another client after the fault; a fault that did not strike is an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from penstock.errors import DataPlaneError, DataPlaneUnavailable
from penstock.payload.stores.contract import BlockStore, Failed, Ok, Outcome
from penstock.payload.stores.opening import open_store
from penstock.retry import NONE, Deadline, Policy
from penstock.testing.line_faults import reset
from penstock.testing.mooncake import MooncakeCluster
from penstock.testing.proxy import FaultProxy

__all__ = ["FAULTS", "MIB", "Bed", "StoreFault", "Verdict", "fault_named", "value_of"]

MIB = 1 << 20
_SETTLE_S = 30.0  # for what is done before and after a fault
_PATTERN = 1 << 12  # bytes of a value until it repeats, shifted


def value_of(key: str, nbytes: int) -> bytes:
    """Return the bytes that belong to ``key``: no two keys have them in common, nor two places of one value."""
    pattern = hashlib.shake_128(key.encode()).digest(_PATTERN - 1)  # odd: pages of a value are shifted by one
    return (pattern * (nbytes // len(pattern) + 1))[:nbytes]


@dataclass(frozen=True)
class StoreFault:
    """What happens to a store, and to how much work.

    Attributes:
        sentence: for the table.
        call: what is under way while it happens.
        strike: lets it begin, and returns what mends it; None = it is not mended.
        for_s: how long it lasts, from the beginning of the call on; 0 = until the call has ended.
        keys, nbytes: values of the call, and the length of each.
        replicas: how many copies are kept.
        owners, segment_bytes: of the cluster.
        loses: the values are gone for good: a client that says so has done all that can be done.
        timeout_s: the call's deadline.
    """

    name: str
    sentence: str
    call: Literal["get", "put"]
    strike: Callable[[Bed, StoreFault], Callable[[], object] | None]
    for_s: float = 0.0
    keys: int = 8
    nbytes: int = MIB
    replicas: int = 1
    owners: int = 2
    segment_bytes: int = 64 * MIB
    loses: bool = False
    timeout_s: float = 30.0

    def __str__(self) -> str:
        return f"{self.call}: {self.sentence}"


@dataclass(frozen=True)
class Verdict:
    """What the call came to.

    Attributes:
        good: values that came right, or were acknowledged and are there, of ``keys``.
        wrong: wrong bytes as a success, or acknowledged and not there: never allowed.
        words: what was said of the others, and how often.
        raised: the error that the call raised as a whole, "" if it answered.
        elapsed_s: of the call.
        struck: how the fault shows that it happened.
    """

    keys: int
    good: int
    wrong: int
    words: Mapping[str, int]
    raised: str
    elapsed_s: float
    struck: str

    @property
    def survived(self) -> bool:
        return self.good == self.keys and not self.wrong

    def __str__(self) -> str:
        told = ", ".join(f"{word} {count}" for word, count in self.words.items())
        said = self.raised or told
        return f"{self.good}/{self.keys} in {self.elapsed_s:.1f} s{f' ({said})' if said else ''}"


class Bed:
    """A cluster for faults, with a proxy before each owner.

    Args:
        folder: for logs.
        owners, segment_bytes, client_ttl_s: of the cluster.

    Attributes:
        proxies: one an owner, in their order.
    """

    def __init__(self, folder: Path, *, owners: int = 2, segment_bytes: int = 64 * MIB, client_ttl_s: int = 10) -> None:
        self.proxies: list[FaultProxy] = []
        self._others: dict[int, BlockStore] = {}
        self._struck: Callable[[], str] = lambda: ""
        self.cluster = MooncakeCluster(folder, owners=owners, segment_bytes=segment_bytes, client_ttl_s=client_ttl_s)
        try:
            for number in range(owners):
                self.proxies.append(FaultProxy(self.cluster.data_address(number)).start())
            self._reroute()
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, fault: StoreFault, folder: Path) -> Self:
        """Return a bed as ``fault`` needs it."""
        return cls(folder, owners=fault.owners, segment_bytes=fault.segment_bytes)

    def open(self, policy: Policy | None = None, *, replicas: int = 1, **options: Any) -> BlockStore:
        """Return a client of the store, on its own terms or those of ``policy``."""
        return open_store(self.cluster.url, policy=policy, replicas=replicas, **options)

    def proof(self, struck: Callable[[], str]) -> None:
        """Let ``struck`` tell after the call how the fault showed; "" means that it did not strike."""
        self._struck = struck

    def freeze(self) -> None:
        """Let nothing pass, in either direction."""
        for proxy in self.proxies:
            proxy.freeze()

    def disarm(self) -> None:
        """Let connections that are made from now on be unharmed."""
        for proxy in self.proxies:
            proxy.disarm()

    def thaw(self) -> None:
        """Let pass what was held back."""
        for proxy in self.proxies:
            proxy.thaw()

    def trial(self, store: BlockStore, fault: StoreFault, prefix: str = "") -> Verdict:
        """Prepare, strike, call, mend, judge. ``prefix`` tells the keys of one trial from those of others.

        Raises:
            DataPlaneUnavailable: the fault did not strike, so that nothing was shown.
        """
        work = _Work(fault, [f"{prefix}{fault.name}/{number}" for number in range(fault.keys)])
        other = self._another(fault.replicas)
        work.prepare(store, other)
        self._struck = lambda: ""
        with self._striking(fault):
            outcomes, raised, elapsed_s = work.call(store)
        struck = self._struck()
        if not struck:
            raise DataPlaneUnavailable(f"{fault.name} did not strike")
        if fault.strike is not _kill_master and (direct := self._direct()):
            raise DataPlaneUnavailable(
                f"owners {direct} have taken their lines back: the fault may have passed them by"
            )
        right, wrong = work.judge(outcomes, other)
        words = Counter(_word(outcome) for outcome in outcomes if not isinstance(outcome, Ok))
        return Verdict(fault.keys, right, wrong, dict(words), raised, elapsed_s, struck)

    def _reroute(self) -> None:
        """Put the proxies before the owners; an owner that has just started may still publish its own address once."""
        until = Deadline(_SETTLE_S)
        while not until.expired():
            for number in (wrong := self._direct()):
                self.cluster.reroute(number, self.proxies[number].address)
            time.sleep(_AGAIN_S)
            if not wrong and not self._direct():
                return
        raise DataPlaneUnavailable("the owners take their lines back again and again")

    def _direct(self) -> list[int]:
        """The living owners that clients would reach without their proxy."""
        alive = [number for number, owner in enumerate(self.cluster.owners) if owner.alive]
        return [number for number in alive if self.cluster.data_address(number) != self.proxies[number].address]

    def _another(self, replicas: int) -> BlockStore:
        """Return a client that is not on trial; it stays open, for closing one takes the library a second."""
        if replicas not in self._others:
            self._others[replicas] = self.open(replicas=replicas)
        return self._others[replicas]

    @contextlib.contextmanager
    def _striking(self, fault: StoreFault) -> Iterator[None]:
        """The fault begins, and ends ``for_s`` later, whatever the call does meanwhile."""
        mend = fault.strike(self, fault)
        if mend is None or not fault.for_s:
            yield
            if mend is not None:
                mend()
            return
        mending = threading.Timer(fault.for_s, mend)
        mending.start()
        try:
            yield
        finally:
            mending.join()

    # -- its end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End everything. Idempotent."""
        for other in self._others.values():
            other.close()
        for proxy in self.proxies:
            proxy.stop()
        self.cluster.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Bed({self.cluster!r}, {self.proxies!r})"


@dataclass(frozen=True)
class _Work:
    """The values of one trial."""

    fault: StoreFault
    keys: list[str]

    def prepare(self, store: BlockStore, other: BlockStore) -> None:
        """Have what a get is to find, put by somebody else, and let ``store`` be connected."""
        warm = [f"{key}/warm" for key in self.keys]
        if self.fault.call == "get":
            _require(other.put_many(self.keys, self._values(self.keys), Deadline(_SETTLE_S)), self.keys)
        _warm_up(store, warm, self._values(warm))
        _require(other.remove_many(warm, Deadline(_SETTLE_S)), warm)

    def call(self, store: BlockStore) -> tuple[list[Outcome], str, float]:
        """Return the outcomes, what was raised instead, and how long it took."""
        deadline, began = Deadline(self.fault.timeout_s), time.monotonic()
        outcomes: list[Outcome] = []
        raised = ""
        try:
            if self.fault.call == "get":
                outcomes = store.get_many(self.keys, None, deadline)
            else:
                outcomes = store.put_many(self.keys, self._values(self.keys), deadline)
        except DataPlaneError as error:
            raised = f"{type(error).__name__}: {error}"
        return outcomes, raised, time.monotonic() - began

    def judge(self, outcomes: Sequence[Outcome], other: BlockStore) -> tuple[int, int]:
        """Return how many are right, and how many were said to be and are not."""
        said = [(key, outcome) for key, outcome in zip(self.keys, outcomes, strict=False) if isinstance(outcome, Ok)]
        if self.fault.call == "put" and said:
            keys = [key for key, _ in said]
            read = _read(other, keys)
        else:
            keys, read = [key for key, _ in said], [outcome for _, outcome in said]
        right = sum(
            isinstance(outcome, Ok) and outcome.view == value_of(key, self.fault.nbytes)
            for key, outcome in zip(keys, read, strict=True)
        )
        return right, len(said) - right

    def _values(self, keys: Sequence[str]) -> list[bytes]:
        return [value_of(key, self.fault.nbytes) for key in keys]


def _read(store: BlockStore, keys: Sequence[str]) -> list[Outcome]:
    try:
        return store.get_many(keys, None, Deadline(_SETTLE_S))
    except DataPlaneUnavailable:  # something is missing, and the master was restarted: said once
        return store.get_many(keys, None, Deadline(_SETTLE_S))


def _warm_up(store: BlockStore, keys: Sequence[str], values: Sequence[bytes]) -> None:
    """Put until it works: connections may still be down from the fault before, and ``store`` may not retry."""
    until = Deadline(_SETTLE_S)
    outcomes = store.put_many(keys, values, until)
    while not all(isinstance(outcome, Ok) for outcome in outcomes) and not until.expired():
        time.sleep(_AGAIN_S)
        outcomes = store.put_many(keys, values, until)
    _require(outcomes, keys)


_AGAIN_S = 0.2


def _require(outcomes: Sequence[Outcome], keys: Sequence[str]) -> None:
    bad = [f"{key}: {outcome}" for key, outcome in zip(keys, outcomes, strict=True) if not isinstance(outcome, Ok)]
    if bad:
        raise DataPlaneUnavailable(f"the store is not in order before the fault: {bad[:3]}")


def _word(outcome: Outcome) -> str:
    return f"Failed {outcome.code}" if isinstance(outcome, Failed) else type(outcome).__name__


# -- what can happen --------------------------------------------------------------------------------------------------


def _reset_lines(bed: Bed, _: StoreFault) -> Callable[[], object]:
    """Every connection is reset, and every new one, until this is mended."""
    before = [proxy.connections for proxy in bed.proxies]
    for proxy in bed.proxies:
        proxy.arm(reset(at=0, toward="server"), reset(at=0, toward="client"))
    ended = sum(proxy.reset_all() for proxy in bed.proxies)

    def struck() -> str:
        tried = sum(proxy.connections for proxy in bed.proxies) - sum(before)
        return f"{ended} connections reset, {tried} more tried" if ended or tried else ""

    bed.proof(struck)
    return bed.disarm


def _reset_midway(bed: Bed, fault: StoreFault) -> None:
    """Every connection that is open is reset in the middle of the second value that it carries from now on."""
    toward: Literal["client", "server"] = "client" if fault.call == "get" else "server"
    before = sum(len(proxy.fired) for proxy in bed.proxies)
    for proxy in bed.proxies:
        proxy.strike(reset(at=fault.nbytes * 3 // 2, toward=toward))

    def struck() -> str:
        ended = sum(len(proxy.fired) for proxy in bed.proxies) - before
        return f"{ended} connections reset in the middle of a value" if ended else ""

    bed.proof(struck)


def _swallow(bed: Bed, fault: StoreFault) -> Callable[[], object]:
    """Nothing passes, in either direction, as if every packet were lost; what was sent arrives afterwards."""
    bed.freeze()
    bed.proof(lambda: f"{len(bed.proxies)} lines silent for {fault.for_s:g} s")
    return bed.thaw


def _kill_owner(bed: Bed, _: StoreFault) -> None:
    """One of the processes that hold the bytes is killed; the master believes in it for ``client_ttl_s`` more."""
    bed.cluster.kill_owner(0)
    owner = bed.cluster.owners[0]
    bed.proof(lambda: "" if owner.alive else f"owner 0 ended with {owner.process.poll()}")


def _kill_master(bed: Bed, _: StoreFault) -> Callable[[], object]:
    """The master is killed, and started again on its old address: it has forgotten every key."""
    ended = bed.cluster.kill_master()
    bed.proof(lambda: f"master ended with {ended}" if ended == -signal.SIGKILL else "")
    return bed.cluster.restart_master


def _fill(bed: Bed, fault: StoreFault) -> Callable[[], object]:
    """There is room for half of it; somebody else removes something later."""
    others = bed.open(NONE)
    size = fault.nbytes
    filled: list[str] = []
    while True:
        keys = [f"filler/{len(filled) + number}" for number in range(_BATCH)]
        outcomes = others.put_many(keys, [value_of(key, size) for key in keys], Deadline(_SETTLE_S))
        filled += [key for key, outcome in zip(keys, outcomes, strict=True) if isinstance(outcome, Ok)]
        if not all(isinstance(outcome, Ok) for outcome in outcomes):
            break
    bed.proof(lambda: f"{len(filled)} values of others filled it")

    def remove() -> None:
        with others:
            others.remove_many(filled, Deadline(_SETTLE_S))

    return remove


_BATCH = 32

_MIDWAY = "every connection reset once in the middle of a value, 512 values"


def _many(fault: StoreFault) -> StoreFault:
    """The same with many small values: the library queues them, and probes one connection a second meanwhile."""
    return dataclasses.replace(fault, keys=512, nbytes=32 << 10)


def _some(fault: StoreFault) -> StoreFault:
    """The same with as many values as all owners surely have some of."""
    return dataclasses.replace(fault, keys=32, nbytes=256 << 10)


def _for(fault: StoreFault, *lasting: float) -> list[StoreFault]:
    """The fault in several lengths; its name and sentence have a place for the number."""
    return [
        dataclasses.replace(fault, name=fault.name.format(s), sentence=fault.sentence.format(s), for_s=s)
        for s in lasting
    ]


FAULTS: tuple[StoreFault, ...] = (
    _many(StoreFault("reset-midway-get", _MIDWAY, "get", _reset_midway)),
    _many(StoreFault("reset-midway-put", _MIDWAY, "put", _reset_midway)),
    *_for(StoreFault("reset-{:g}s-get", "every connection reset for {:g} s", "get", _reset_lines), 1.0, 3.0, 8.0),
    *_for(StoreFault("reset-{:g}s-put", "every connection reset for {:g} s", "put", _reset_lines), 1.0, 3.0, 8.0),
    *_for(
        _many(StoreFault("reset-{:g}s-many", "every connection reset for {:g} s, 512 values", "get", _reset_lines)), 8.0
    ),
    *_for(StoreFault("drop-{:g}s-get", "every packet lost for {:g} s", "get", _swallow), 3.0, 8.0),
    *_for(StoreFault("drop-{:g}s-put", "every packet lost for {:g} s", "put", _swallow), 3.0),
    _some(StoreFault("owner-1-copy-get", "owner killed, 1 copy", "get", _kill_owner, loses=True)),
    _some(StoreFault("owner-1-copy-put", "owner killed, 1 copy", "put", _kill_owner)),
    _some(StoreFault("owner-2-copies-get", "owner killed, 2 copies", "get", _kill_owner, replicas=2)),
    _some(StoreFault("owner-2-copies-put", "owner killed, 2 copies", "put", _kill_owner, replicas=2, owners=3)),
    *_for(StoreFault("master-get", "master killed, back after {:g} s", "get", _kill_master, loses=True), 2.0),
    *_for(StoreFault("master-put", "master killed, back after {:g} s", "put", _kill_master), 2.0),
    StoreFault(
        "full-2s-put", "store full for 2 s", "put", _fill, for_s=2.0, owners=1, segment_bytes=16 * MIB, nbytes=64 << 10
    ),
    StoreFault(
        "late-get", "transfers that arrive after the deadline of 3 s", "get", _swallow, for_s=6.0, timeout_s=3.0
    ),
)


def fault_named(name: str) -> StoreFault:
    """Return the fault of that name."""
    return next(fault for fault in FAULTS if fault.name == name)
