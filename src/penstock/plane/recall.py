"""Taking back a call that another thread is in: what Ctrl-C is to the main thread's call, for any thread's.

Invariants: recalling wakes a wait and never tears one; a call that is recalled ends with ``Recalled`` at the next point
where it would wait for its plane, or not at all, when its work was done by then; a call that nobody may recall pays
one look-up. What a wait does not declare with ``recallable`` cannot be recalled, and ends by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Recall", "Recalled", "recallable"]


class Recalled(BaseException):
    """The call was taken back; like ``KeyboardInterrupt`` it is nobody's to handle: who recalled it has gone."""


class Recall:
    """The handle on one call: ``cover`` it in the thread that makes it, ``ask`` from any other."""

    __slots__ = ("_asked", "_lock", "_wake")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = False
        self._wake: Callable[[], object] | None = None

    def ask(self) -> None:
        """Take the call back. Calls the ``wake`` of the wait that it is in, which may take that wait's lock."""
        with self._lock:
            self._asked = True
            wake = self._wake
        if wake is not None:
            wake()

    def cover(self) -> None:
        """From here on, calls in the present context are those that this handle recalls."""
        _current.set(self)

    def arm(self, wake: Callable[[], object]) -> None:
        with self._lock:
            self._require()
            self._wake = wake

    def disarm(self) -> None:
        with self._lock:
            self._wake = None

    def _require(self) -> None:
        if self._asked:
            raise Recalled

    def __repr__(self) -> str:
        state = "asked" if self._asked else "not asked"
        return f"Recall({state}, {'in a wait' if self._wake is not None else 'in no wait'})"


_current: ContextVar[Recall | None] = ContextVar("penstock_recall", default=None)


@contextmanager
def recallable(wake: Callable[[], object]) -> Iterator[None]:
    """Declare a wait. ``wake`` ends it early, from another thread; ``Recalled`` then comes of the ``with``.

    Raises:
        Recalled: on entry or on leaving; whatever was waited for, and may have come, is the caller's to give back.
    """
    recall = _current.get()
    if recall is None:
        yield
        return
    recall.arm(wake)
    try:
        yield
    finally:
        recall.disarm()
    recall._require()  # noqa: SLF001 - the same module
