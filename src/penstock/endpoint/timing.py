"""How long the handshake waits for what: its timers, with their units and reasons."""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock.errors import BadArgument
from penstock.retry.backoff import ceiling_s

__all__ = ["Timing"]


@dataclass(frozen=True, slots=True)
class Timing:
    """The timers of one pair of peers.

    Attributes:
        resend_base_s: before the first resend of ``REQ`` or ``REP``; doubles with each, jittered down by half at most.
        resend_cap_s: it grows no further.
        handshake_limit_s: an endpoint that is bound, and whose peer has not said so for so long, retires.
        keepalive_s: between two ``PING`` of a ready endpoint, jittered down by half at most.
        silence_s: a ready endpoint that has heard nothing for so long retires; several ``PING``, as each may be lost.

    Raises:
        BadArgument: a time is no positive number, or ``silence_s`` leaves no room for a ``PING`` to be lost.
    """

    resend_base_s: float = 0.1
    resend_cap_s: float = 2.0
    handshake_limit_s: float = 15.0
    keepalive_s: float = 5.0
    silence_s: float = 20.0

    def __post_init__(self) -> None:
        for name in ("resend_base_s", "resend_cap_s", "handshake_limit_s", "keepalive_s", "silence_s"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise BadArgument(f"{name} must be a positive number of seconds; got {value!r}")
        if self.silence_s < 2 * self.keepalive_s:
            raise BadArgument(
                f"silence_s ({self.silence_s:g}) must be twice keepalive_s ({self.keepalive_s:g}) or more"
            )

    def resend_s(self, attempt: int) -> tuple[float, float]:
        """Return the range to draw from before the resend number ``attempt`` (0 = the first)."""
        most = ceiling_s(attempt, self.resend_base_s, self.resend_cap_s)
        return most / 2, most

    def ping_s(self) -> tuple[float, float]:
        """Return the range to draw from before the next ``PING``."""
        return self.keepalive_s / 2, self.keepalive_s
