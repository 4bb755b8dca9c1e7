"""The words of retrying: how an answer is classed, why a key is given up, and the limits of a policy.

Invariants: the caller classes every answer, nobody else does; each limit has a name, a unit and a default; a policy
never changes and knows no clock. ``machine`` applies it.
"""

from __future__ import annotations

import enum
import math

import msgspec

from penstock.errors import BadArgument

__all__ = ["DEFAULT", "FIELD", "NONE", "PRESETS", "Kind", "Policy", "Reason", "preset"]


class Kind(enum.StrEnum):
    """What an answer means. The caller classes it: only he knows the codes of what he talks to."""

    OK = "ok"
    MISSING = "missing"  # answered: there is no such thing; final
    RETRYABLE = "retryable"  # did not get through; may next time
    BACKPRESSURE = "backpressure"  # alive and full: later, and gently
    CORRUPT = "corrupt"  # came, but damaged; read once more
    FATAL = "fatal"  # will never succeed


class Reason(enum.StrEnum):
    """Why a key is given up."""

    MISSING = "missing"
    FATAL = "fatal"
    CORRUPT = "corrupt"
    ATTEMPTS = "attempts"  # tried ``max_attempts`` times
    BACKPRESSURE = "backpressure"  # waited ``backpressure_budget_s`` for room
    BUDGET = "budget"  # no endpoint may be retried: every bucket is at half or below
    DEADLINE = "deadline"


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When failed keys go again. Seconds, tokens and counts as the names say.

    Attributes:
        timeout_s: the deadline where the caller brings none; the caller's always wins.
        max_attempts: tries of one key, the first included.
        base_s, cap_s: a wait is drawn from ``[0, min(cap_s, base_s * 2**n)]``.
        jitter: False waits the whole of ``min(cap_s, base_s * 2**n)``.
        backpressure_base_s, backpressure_budget_s: the base after "full", and how long a key waits so in all.
        corrupt_attempts: answers that may come damaged before a key is given up; 2 = read once more.
        bucket_tokens, tokens_per_success: retry budget of one endpoint; 0 tokens = no budget is kept.
        quarantine_s: how long a failed endpoint is left alone while another is free; 0 = no quarantine.
        batch: keys of one attempt; None = all of a round together.
        workers: attempts of one round that run side by side.
    """

    timeout_s: float = 30.0
    max_attempts: int = 12
    base_s: float = 0.05
    cap_s: float = 2.0
    jitter: bool = True
    backpressure_base_s: float = 0.5
    backpressure_budget_s: float = 5.0
    corrupt_attempts: int = 2
    bucket_tokens: float = 10.0
    tokens_per_success: float = 0.1
    quarantine_s: float = 30.0
    batch: int | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("max_attempts", "corrupt_attempts", "workers"):
            if getattr(self, name) < 1:
                raise BadArgument(f"{name} must be 1 or more, got {getattr(self, name)!r}")
        if self.batch is not None and self.batch < 1:
            raise BadArgument(f"batch must be 1 or more, or None, got {self.batch!r}")
        for name in _QUANTITIES:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise BadArgument(f"{name} must be finite and 0 or more, got {getattr(self, name)!r}")


_QUANTITIES = (
    "timeout_s",
    "base_s",
    "cap_s",
    "backpressure_base_s",
    "backpressure_budget_s",
    "bucket_tokens",
    "tokens_per_success",
    "quarantine_s",
)

DEFAULT = Policy()
# What training runs in the field wrap round their store: one try and three more, a second apart, and nothing adaptive.
FIELD = Policy(
    max_attempts=4,
    base_s=1.0,
    cap_s=1.0,
    jitter=False,
    backpressure_base_s=1.0,
    bucket_tokens=0.0,
    quarantine_s=0.0,
    batch=400,
    workers=4,
)
NONE = Policy(max_attempts=1)

PRESETS = {"default": DEFAULT, "field": FIELD, "none": NONE}


def preset(name: str) -> Policy:
    """Return the policy of that name; an unknown one is a ``BadArgument`` that lists those known."""
    try:
        return PRESETS[name]
    except KeyError:
        raise BadArgument(f"unknown retry preset {name!r}; known: {sorted(PRESETS)}") from None
