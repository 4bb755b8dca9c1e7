"""What can go wrong at a ``FakeMooncake``, as sentences: each is armed with ``inject`` and counts what it did.

    fault = fake.inject(fail(-800, call="get", key="k", times=2))
    fault = fake.inject(hang(call="put"))      # until fault.release()
    fault = fake.inject(late(call="get"))      # -800 now; the bytes land at fault.land()

``call`` is "put", "get", "exists", "remove", "describe", "register" or "setup", "" for any; ``key`` None is any key.
Invariants: a fault fires at most ``times`` times, the first that fits; whoever waits at a ``hang`` is let go by its
``release`` or by the fake's close.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from penstock.errors import BadArgument

__all__ = ["CALLS", "Call", "Fault", "add_replies", "damage", "drop_replies", "fail", "hang", "late", "throw"]

Call: TypeAlias = Literal["put", "get", "exists", "remove", "describe", "register", "setup", ""]
What: TypeAlias = Literal["fail", "late", "damage", "hang", "drop_replies", "add_replies", "throw"]

CALLS = ("put", "get", "exists", "remove", "describe", "register", "setup")
_TRANSFERS = ("put", "get")
WHOLE_CALL: frozenset[What] = frozenset({"hang", "drop_replies", "add_replies", "throw"})


@dataclass(eq=False)
class Fault:
    """An armed fault.

    Attributes:
        fired: times it took effect.
        entered: set when somebody waits at this ``hang``.
    """

    what: What
    call: Call = ""
    key: str | None = None
    times: int = 1
    code: int = 0
    count: int = 1
    error: Exception | None = None
    onto: str = ""
    fired: int = 0
    entered: threading.Event = field(default_factory=threading.Event, repr=False)
    _let_go: threading.Event = field(default_factory=threading.Event, repr=False)
    _landings: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if self.call not in ("", *CALLS) or self.times < 1:
            raise BadArgument(f"no such call, or times below 1: {self!r}")
        if self.what in {"late", "damage"} and self.call not in _TRANSFERS:
            raise BadArgument(f"{self.what} is of a transfer: call must be one of {_TRANSFERS}")

    def fits(self, call: str, keys: Iterable[str]) -> bool:
        """Whether it has still to happen, to this call and to one of these keys."""
        return self.fired < self.times and self.call in ("", call) and (self.key is None or self.key in keys)

    def release(self) -> None:
        """Let go who waits at this ``hang``, now and from now on."""
        self._let_go.set()

    def wait(self, limit_s: float) -> None:
        """Hang, until ``release``."""
        self.entered.set()
        self._let_go.wait(limit_s)

    def owe(self, landing: Callable[[], None]) -> None:
        """Keep a transfer that was reported as failed and goes on."""
        self._landings.append(landing)

    def land(self) -> int:
        """Let the late transfers arrive; returns how many did."""
        landings, self._landings = self._landings, []
        for landing in landings:
            landing()
        return len(landings)


def fail(code: int, *, call: Call = "", key: str | None = None, times: int = 1) -> Fault:
    """The call answers ``code`` for the key. A put that fails so removes the value that was there, as the real does."""
    if code >= 0:
        raise BadArgument(f"a code of failure is negative, got {code}")
    return Fault("fail", call, key, times, code=code)


def late(*, call: Call, key: str | None = None, code: int = -800, times: int = 1, onto: str = "") -> Fault:
    """The transfer is reported as failed and is not cancelled: it happens at ``land``.

    A put lands with what its memory holds then, over the value of ``onto`` (else of its own key), if there is one.
    """
    return Fault("late", call, key, times, code=code, onto=onto)


def damage(*, call: Call, key: str | None = None, times: int = 1) -> Fault:
    """One bit of the value is turned on its way; success is reported."""
    return Fault("damage", call, key, times)


def hang(*, call: Call = "", key: str | None = None, times: int = 1) -> Fault:
    """The call does not come back before ``release``; then it goes on as if nothing had been."""
    return Fault("hang", call, key, times)


def drop_replies(count: int = 1, *, call: Call = "", key: str | None = None, times: int = 1) -> Fault:
    """The reply has ``count`` codes less than the call had keys."""
    return Fault("drop_replies", call, key, times, count=count)


def add_replies(count: int = 1, *, call: Call = "", key: str | None = None, times: int = 1) -> Fault:
    """The reply has its last code ``count`` times more."""
    return Fault("add_replies", call, key, times, count=count)


def throw(error: Exception, *, call: Call = "", key: str | None = None, times: int = 1) -> Fault:
    """The call raises, as bindings do when they cannot convert or allocate."""
    return Fault("throw", call, key, times, error=error)
