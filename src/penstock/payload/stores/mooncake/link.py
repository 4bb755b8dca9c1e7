"""One connection to the store: its client, the threads of its calls and its registered memory; replaced as a whole.

A client is **tainted** when a call on it did not come back, or a put failed so slowly that it may still be at work:
what is written next must not come under the same client, for the store tells writers apart by that alone.

Invariants: a tainted link takes no new user; it is closed when its last user has left and its last call has ended, and
its memory stays mapped until then; of links that cannot end there are ``MAX_STUCK`` at most; only one thread opens.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from penstock.errors import DataPlaneUnavailable
from penstock.payload.stores.mooncake.calls import Calls
from penstock.payload.stores.mooncake.codes import LATE, RAISED, told
from penstock.payload.stores.mooncake.config import MooncakeConfig
from penstock.payload.stores.mooncake.library import Library
from penstock.payload.stores.mooncake.pool import Pool
from penstock.payload.stores.mooncake.reach import Reaching
from penstock.retry import Clock, Deadline

__all__ = ["MAX_STUCK", "Link", "Links"]

log = logging.getLogger(__name__)

MAX_STUCK = 4  # each keeps threads, and up to twice ``local_buffer`` of memory
_REGISTERING_S, _LEAST_REGISTERING_S = 10.0, 0.5  # the least: a moment before a deadline is no reason for a new client
_CLOSING_S = 4.0
_PROBE_BYTES = 64
_STUCK_QUESTIONS = 2  # of ``calls.LANES`` threads


class Link:
    """A client that is set up."""

    def __init__(self, library: Library, config: MooncakeConfig, clock: Clock, reach: Reaching) -> None:
        self.config = config
        self.client = library.client()
        self.calls = Calls(self.client, may_close=lambda: reach.before_close(Deadline(_CLOSING_S)))
        self.tainted = ""  # why no new user may have it
        self.users = 0
        self._clock = clock
        self._reach = reach
        self._configs: dict[str, Any] = {}
        self._library = library
        self._probe = np.zeros(_PROBE_BYTES, np.uint8)
        self.probe_address = self._probe.ctypes.data
        self.pool = Pool(self._register, self._unregister, config.local_buffer)

    def open(self, deadline: Deadline) -> None:
        """Connect.

        Raises:
            DataPlaneUnavailable: the store does not answer, or refuses.
        """
        self._reach.before_setup(deadline)
        config = self.config
        address = (config.host, config.metadata, config.segment_bytes, 0, config.protocol, config.devices)
        code = self.calls.one(self.client.setup, *address, config.master, deadline=deadline)
        if code == 0:
            code = self._register(self.probe_address, _PROBE_BYTES, deadline)
        if code == 0 and not self.pool.prepare(deadline):
            code = RAISED
        if code != 0:
            self.calls.retire()
            raise DataPlaneUnavailable(f"the store at {config.master} could not be opened: {told(code)}")

    def write_config(self, segment: str) -> Any:
        """Return the library's configuration of a write to ``segment``."""
        if segment not in self._configs:
            self._configs[segment] = self._library.write_config(segment)
        return self._configs[segment]

    def taint(self, why: str) -> None:
        """Let nobody else use it."""
        if not self.tainted:
            self.tainted = why
            log.warning("a connection to the store at %s is replaced: %s", self.config.master, why)

    def left_waiting(self) -> None:
        """A question was not answered in time: harmless once, but threads that are stuck are of no use."""
        if self.calls.stuck >= _STUCK_QUESTIONS:
            self.taint(f"{self.calls.stuck} calls did not come back")

    def _register(self, address: int, nbytes: int, deadline: Deadline) -> int:
        return self._soon(deadline, self.client.register_buffer, address, nbytes)

    def _unregister(self, address: int, deadline: Deadline) -> int:
        return self._soon(deadline, self.client.unregister_buffer, address)

    def _soon(self, deadline: Deadline, function: Callable[..., int], *arguments: int) -> int:
        """Make a call that takes milliseconds, unless its metadata server is silent: then nobody knows its end."""
        limit_s = max(_LEAST_REGISTERING_S, min(_REGISTERING_S, deadline.remaining()))
        code = self.calls.one(function, *arguments, deadline=Deadline(limit_s, self._clock))
        if code == LATE:
            self.taint("memory was not registered, or given up, in time")
        return code


class Links:
    """The link in use, and those that are on their way out.

    Args:
        make: a new link, not opened.
    """

    def __init__(self, make: Callable[[], Link], opening_s: float) -> None:
        self._make = make
        self._opening_s = opening_s
        self._changed = threading.Condition()
        self._link: Link | None = None
        self._leaving: list[Link] = []
        self._opening = False
        self._failed = 0  # openings that came to nothing
        self._closed = False
        self.replaced = 0
        self.trouble = "not opened"  # why there is no link

    @contextlib.contextmanager
    def use(self, deadline: Deadline) -> Iterator[Link | None]:
        """Lend the link, opened anew if need be; None = there is none, ``trouble`` says why.

        Raises:
            DataPlaneUnavailable: closed.
        """
        link = self._borrow(deadline)
        try:
            yield link
        finally:
            if link is not None:
                self._give_back(link)

    def close(self, timeout_s: float) -> bool:
        """Close every link; False = calls are stuck, and end when the library lets go of them."""
        with self._changed:
            self._closed = True
            links = [*self._leaving, *([self._link] if self._link else [])]
            self._link, self._leaving = None, []
            self._changed.notify_all()
        for link in links:
            link.calls.retire(refuse="the store was closed")
        until = Deadline(timeout_s)
        ended = [link.calls.join(until.remaining()) for link in links]
        _ABANDONED.extend(link for link, done in zip(links, ended, strict=True) if not done)
        return all(ended)

    def links(self) -> list[Link]:
        with self._changed:
            return [*self._leaving, *([self._link] if self._link else [])]

    @property
    def closed(self) -> bool:
        return self._closed

    def _borrow(self, deadline: Deadline) -> Link | None:
        with self._changed:
            failed = self._failed
            while True:
                if self._closed:
                    raise DataPlaneUnavailable("the store was closed")
                self._let_go()
                if self._link is not None:
                    self._link.users += 1
                    return self._link
                if self._failed != failed or not (self._opening or self._begin_opening(deadline)):
                    return None
                if not self._changed.wait(deadline.remaining()) and deadline.expired():
                    return None

    def _begin_opening(self, deadline: Deadline) -> bool:
        """Have a thread of its own open a link: that takes a second, which not every caller has; False = it may not."""
        if len(self._leaving) >= MAX_STUCK:
            self.trouble = f"{len(self._leaving)} connections are stuck in the library"
            return False
        limit = Deadline(self._opening_s, deadline.clock)
        opener = threading.Thread(target=self._open, args=(limit,), name="penstock-mooncake-open", daemon=True)
        try:
            opener.start()
        except RuntimeError as none_left:
            self.trouble = f"no thread can be started: {none_left}"
            return False
        self._opening = True
        return True

    def _open(self, deadline: Deadline) -> None:
        link: Link | None = None
        try:
            link = self._connected(deadline)
        finally:
            with self._changed:
                self._opening = False
                if link is None:
                    self._failed += 1
                elif self._closed:
                    link.calls.retire()
                else:
                    self._link = link
                self._changed.notify_all()

    def _connected(self, deadline: Deadline) -> Link | None:
        link = self._make()
        try:
            link.open(deadline)
        except DataPlaneUnavailable as error:
            self.trouble = error.message
            with self._changed:
                self._leaving.append(link)  # its setup may hang on: it counts among the stuck
            return None
        return link

    def _give_back(self, link: Link) -> None:
        with self._changed:
            link.users -= 1
            self._let_go()

    def _let_go(self) -> None:
        """Take a tainted link out of use; end those that nobody uses."""
        if self._link is not None and self._link.tainted:
            self._leaving.append(self._link)
            self._link = None
            self.replaced += 1
        for link in self._leaving:
            if not link.users:
                link.calls.retire()
        self._leaving = [link for link in self._leaving if not link.calls.ended.is_set()]

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._link else self.trouble
        return f"Links({state}, {len(self._leaving)} leaving, {self.replaced} replaced)"


_ABANDONED: list[Link] = []  # stuck at close: their memory must outlive whatever still writes to it
