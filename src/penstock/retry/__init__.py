"""When failed work goes again: deadlines, backoff, budgets and quarantine; the one policy that every room uses.

Invariants: nothing is tried and nothing waits past the deadline; only keys that failed go again; no wait follows the
last attempt; a waiting caller holds no lock, pool thread or event loop; clock, random source and sleep are injected.

``machine`` decides and is pure; ``shell`` runs it in the calling thread, ``async_shell`` in the calling task;
``reconnect`` is for waiting for one's plane.
May import: the words (errors, config, records, requests).
"""

from penstock.retry.async_shell import AsyncRetrier
from penstock.retry.books import RetryStatistics
from penstock.retry.deadline import Clock, Deadline
from penstock.retry.policy import DEFAULT, FIELD, NONE, PRESETS, Kind, Policy, Reason, preset
from penstock.retry.reconnect import reconnect_delays
from penstock.retry.result import Answer, RetryResult, Settled
from penstock.retry.shell import Retrier

__all__ = [
    "DEFAULT",
    "FIELD",
    "NONE",
    "PRESETS",
    "Answer",
    "AsyncRetrier",
    "Clock",
    "Deadline",
    "Kind",
    "Policy",
    "Reason",
    "Retrier",
    "RetryResult",
    "RetryStatistics",
    "Settled",
    "preset",
    "reconnect_delays",
]
