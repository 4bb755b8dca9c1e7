"""The stores of a client: which of a plane's hosts is one, and the connections to those that were needed.

Invariants: a store is opened when bytes first go there or come from there, and once; where a block lies in a store
follows from its host's id and its own, so that whoever knows a place needs to ask nobody; after ``close`` nothing is
opened; only the process that opened a store closes it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeAlias
from urllib.parse import parse_qsl, urlsplit

from penstock.errors import BadArgument, DataPlaneError, DataPlaneUnavailable
from penstock.parts import HostPlace
from penstock.payload.stores.contract import BlockStore
from penstock.plane.link import Link
from penstock.requests import HostStatus, Status, StatusReport
from penstock.retry import Deadline

__all__ = ["EXIT_S", "OpenStore", "Opening", "Stores", "address_of", "block_key", "choose", "open_by_url"]

log = logging.getLogger(__name__)

OpenStore: TypeAlias = Callable[[str], BlockStore]

EXIT_S = 1.0  # for closing the stores of a client that nobody closed
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
        BadArgument: there are several; or ``wanted`` says another number of copies than the plane knows of.
    """
    stores = [status for status in hosts if status.place.store and _means(wanted, status.place.store)]
    chosen = [status for status in stores if status.state == "up"] or stores
    if not chosen:
        url = address_of(wanted) if "://" in wanted else f"{wanted}://..."
        raise DataPlaneUnavailable(
            f"no store {address_of(wanted)!r} is enlisted at this plane: start its agent "
            f"(`penstock store --store {url}`), or the plane with it (`penstock serve --store {url}`)"
        )
    if len(chosen) > 1:
        urls = sorted(status.place.store for status in chosen)
        raise BadArgument(f"this plane has several stores that are {wanted!r}: name one of {urls}")
    place = chosen[0].place
    if "://" in wanted and _copies(wanted) != _copies(place.store):
        raise BadArgument(
            f"the plane's store keeps replicas={_copies(place.store)}, this client was told replicas={_copies(wanted)}:"
            " its agent looks for as many copies of a block as it was told and frees as many: say the same in both URLs"
        )
    return place


def _means(wanted: str, url: str) -> bool:
    if "://" in wanted:
        return address_of(wanted) == address_of(url)
    return url.partition("://")[0] == wanted


def _copies(url: str) -> str:
    """Return how often the store keeps a block: the one setting that is not each client's own."""
    return dict(parse_qsl(urlsplit(url).query)).get("replicas", "1")


def open_by_url(url: str) -> BlockStore:
    """Open a store; what opens it is imported then."""
    from penstock.payload.stores.opening import open_store

    return open_store(url)


class Opening:
    """One store on its way, or open: opened by a thread of its own, for no caller waits longer than his deadline.

    Args:
        opened: opens a store by its URL.
        url: the URL.
        welcome: whether anybody wants it still, once it is open; else it is closed.

    Attributes:
        outcome: the store, or why it cannot be opened.
    """

    def __init__(self, opened: OpenStore, url: str, welcome: Callable[[], bool]) -> None:
        self._opened = opened
        self._url = url
        self._welcome = welcome
        self.outcome: Future[BlockStore] = Future()
        self.outcome.set_running_or_notify_cancel()  # nobody who waits can cancel it
        self._thread = threading.Thread(target=self._open, name="penstock-open-store", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            store = self._opened(self._url)
        except DataPlaneError as failed:
            self.outcome.set_exception(failed)
        except Exception as bug:  # top frame of a thread: handed to every caller that waits
            log.exception("a store could not be opened: %s", address_of(self._url))
            self.outcome.set_exception(bug)
        else:
            self._keep(store)

    def _keep(self, store: BlockStore) -> None:
        self.outcome.set_result(store)
        if not self._welcome():
            store.close()

    @property
    def failed(self) -> bool:
        return self.outcome.done() and self.outcome.exception() is not None

    def wait(self, deadline: Deadline) -> BlockStore:
        """Return it once it is open.

        Raises:
            DataPlaneUnavailable: it does not answer, or not by the deadline.
            DataPlaneError: it cannot be opened.
        """
        try:
            return self.outcome.result(deadline.remaining())
        except FutureTimeout:
            raise DataPlaneUnavailable(
                f"the store {address_of(self._url)} has not answered yet", elapsed_s=deadline.elapsed()
            ) from None

    def close(self, deadline: Deadline) -> None:
        """Close it if it is open; else it is closed as soon as it is."""
        if self.outcome.done() and not self.failed:
            self.outcome.result().close(deadline.remaining())
        self._thread.join(deadline.remaining())


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
        self._stores: dict[str, Opening] = {}
        self._chosen: tuple[int, HostPlace] | None = None
        self._pid = os.getpid()
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
            DataPlaneUnavailable: it does not answer by the deadline, or the client is closed.
        """
        url = self._url_of(place)
        with self._lock:
            if self.closed:
                raise DataPlaneUnavailable("the client is closed")
            opening = self._stores.get(url)
            if opening is None or opening.failed:
                opening = self._stores[url] = self._begin(url)
        return opening.wait(deadline)

    def _begin(self, url: str) -> Opening:
        try:
            return Opening(self._opened, url, lambda: not self.closed)
        except RuntimeError as none_left:
            raise DataPlaneUnavailable(f"no store can be opened in this process: {none_left}") from none_left

    def close(self, timeout_s: float) -> None:
        """Close every store. Idempotent. Calls under way in them end. A forked child leaves them to its parent."""
        if os.getpid() != self._pid:  # their threads are not here, and the lock may have been held
            return
        with self._lock:
            self.closed = True
            stores = list(self._stores.values())
        deadline = Deadline(timeout_s)
        for opening in stores:
            opening.close(deadline)

    def _url_of(self, place: HostPlace) -> str:
        is_own = "://" in self._wanted and address_of(self._wanted) == address_of(place.store)
        return self._wanted if is_own and _copies(self._wanted) == _copies(place.store) else place.store

    def __repr__(self) -> str:
        return f"Stores({'closed' if self.closed else 'open'}: {', '.join(map(address_of, self._stores)) or 'none'})"
