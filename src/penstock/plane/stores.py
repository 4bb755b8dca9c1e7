"""The stores of a client: which of a plane's hosts is one, and the connections to those that were needed.

Invariants: a store is opened when bytes first go there or come from there, and once; where a block lies in a store
follows from its host's id and its own, so that whoever knows a place needs to ask nobody; after ``close`` nothing is
opened.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeAlias

from penstock.errors import BadArgument, DataPlaneTimeout, DataPlaneUnavailable
from penstock.parts import HostPlace
from penstock.payload.stores.contract import BlockStore
from penstock.plane.link import Link
from penstock.requests import HostStatus, Status, StatusReport
from penstock.retry import Deadline

__all__ = ["OpenStore", "Stores", "address_of", "block_key", "choose", "open_by_url"]

OpenStore: TypeAlias = Callable[[str], BlockStore]

_PREFIX = "penstock"


def block_key(host_id: int, block_id: int) -> str:
    """Return the name of a block in the store that is host ``host_id`` of its plane; no other plane's has it."""
    return f"{_PREFIX}/{host_id:x}/{block_id:x}"


def address_of(url: str) -> str:
    """Return what of a store's URL says which one it is: the rest is how each client uses it."""
    return url.partition("?")[0].rstrip("/")


def choose(wanted: str, hosts: Iterable[HostStatus]) -> HostPlace:
    """Return the store that a client's configuration means.

    Raises:
        DataPlaneUnavailable: it is not enlisted; says what to do.
        BadArgument: there are several.
    """
    stores = [status for status in hosts if status.place.store and _means(wanted, status.place.store)]
    chosen = [status for status in stores if status.state == "up"] or stores
    if not chosen:
        url = wanted if "://" in wanted else f"{wanted}://..."
        raise DataPlaneUnavailable(
            f"no store {wanted!r} is enlisted at this plane: start its agent (`penstock store --store {url}`), "
            f"or the plane with it (`penstock serve --store {url}`)"
        )
    if len(chosen) > 1:
        urls = sorted(status.place.store for status in chosen)
        raise BadArgument(f"this plane has several stores that are {wanted!r}: name one of {urls}")
    return chosen[0].place


def _means(wanted: str, url: str) -> bool:
    if "://" in wanted:
        return address_of(wanted) == address_of(url)
    return url.partition("://")[0] == wanted


def open_by_url(url: str) -> BlockStore:
    """Open a store; what opens it is imported then."""
    from penstock.payload.stores.opening import open_store

    return open_store(url)


class _Shelf:
    """One store, opened or not yet. ``lock`` is held while it is being opened."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.store: BlockStore | None = None


class Stores:
    """The open stores of one client. Thread-safe.

    Args:
        link: to the plane.
        wanted: ``ClientConfig.store``. As a URL it also says how this client uses that store, in reading too.
        opened: opens a store by its URL.
    """

    def __init__(self, link: Link, wanted: str = "", opened: OpenStore = open_by_url) -> None:
        self._link = link
        self._wanted = wanted
        self._opened = opened
        self._lock = threading.Lock()
        self._shelves: dict[str, _Shelf] = {}
        self._chosen: tuple[int, HostPlace] | None = None
        self.closed = False

    def own(self, deadline: Deadline) -> HostPlace:
        """Return the store into which this client puts, as the plane knew it when it was last asked.

        Raises:
            DataPlaneUnavailable, DataPlaneTimeout: it is not enlisted, or the plane does not answer.
        """
        chosen = self._chosen
        if chosen is None or chosen[0] != self._link.incarnation:
            hosts = self._link.ask(Status(), StatusReport, deadline, method="put_samples").hosts
            chosen = self._chosen = (self._link.incarnation, choose(self._wanted, hosts))
        return chosen[1]

    def forget(self) -> None:
        """Ask the plane again which store it is, the next time."""
        self._chosen = None

    def open(self, place: HostPlace, deadline: Deadline) -> BlockStore:
        """Return the open store.

        Raises:
            MissingExtra: its library is not installed here.
            BadArgument: its URL is none.
            DataPlaneUnavailable: it does not answer, or the client is closed.
            DataPlaneTimeout: somebody else is opening it, and it takes too long.
        """
        url = self._url_of(place)
        with self._lock:
            shelf = self._shelves.setdefault(url, _Shelf())
        if shelf.store is None:
            if not shelf.lock.acquire(timeout=deadline.remaining()):
                raise DataPlaneTimeout(
                    f"the store {address_of(url)} is still being opened", elapsed_s=deadline.elapsed()
                )
            try:
                self._open(shelf, url)
            finally:
                shelf.lock.release()
        if shelf.store is None:
            raise DataPlaneUnavailable("the client is closed")
        return shelf.store

    def close(self, timeout_s: float) -> None:
        """Close every store. Idempotent. Calls under way in them end."""
        with self._lock:
            self.closed = True
            shelves = list(self._shelves.values())
        deadline = Deadline(timeout_s)
        for shelf in shelves:
            store = shelf.store
            if store is not None:
                store.close(deadline.remaining())

    def _url_of(self, place: HostPlace) -> str:
        is_own = "://" in self._wanted and address_of(self._wanted) == address_of(place.store)
        return self._wanted if is_own else place.store

    def _open(self, shelf: _Shelf, url: str) -> None:
        """Open it, unless another thread has, or the client was closed meanwhile."""
        if shelf.store is not None or self.closed:
            return
        store = self._opened(url)
        if not self._keep(shelf, store):
            store.close()

    def _keep(self, shelf: _Shelf, store: BlockStore) -> bool:
        with self._lock:
            if not self.closed:
                shelf.store = store
            return not self.closed

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        urls = [address_of(url) for url, shelf in list(self._shelves.items()) if shelf.store is not None]
        return f"Stores({state}, {', '.join(urls) or 'none'})"
