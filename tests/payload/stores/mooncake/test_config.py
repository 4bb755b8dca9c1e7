"""A configuration that cannot work is not made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from penstock.errors import BadArgument
from penstock.payload.stores.mooncake.config import STORE, MooncakeConfig, address_of
from penstock.retry import Answer, Deadline, Kind, Reason, Retrier


@dataclass
class Clock:
    """Seconds pass when somebody waits."""

    now: float

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def config(**changes: Any) -> MooncakeConfig:
    return MooncakeConfig(**{"master": "m:1", "metadata": "http://m:2/metadata"} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"master": "m"},
        {"master": "m:0"},
        {"master": "m:65536"},
        {"master": ":1"},
        {"master": "m:-1"},
        {"metadata": ""},
        {"metrics": "m"},
        {"replicas": 0},
        {"replicas": 3},
        {"verify": "never"},
        {"local_buffer": 0},
        {"chunk_bytes": 0},
        {"chunk_keys": 0},
        {"call_timeout_s": -1.0},
        {"open_timeout_s": float("nan")},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(changes: dict[str, Any]) -> None:
    """Before anything is connected."""
    (name,) = changes
    with pytest.raises(BadArgument, match=name):
        config(**changes)


def test_an_address_may_be_of_the_sixth_version() -> None:
    """In brackets."""
    assert address_of("[::1]:50051", "master") == ("::1", 50051)


def test_a_large_call_may_take_longer() -> None:
    """By its bytes."""
    assert config(call_timeout_s=2.0, slow_bytes_per_s=100.0).call_time_s(1000) == 12.0
    assert config(call_timeout_s=2.0, slow_bytes_per_s=0.0).call_time_s(1000) == 2.0


@pytest.mark.parametrize("outage_s", [12.0, 24.0])
def test_an_outage_is_outlived_and_not_stormed(outage_s: float) -> None:
    """However the dice fall: 10 s in which a dead owner is believed in, and 2 more, and twice that."""
    for seed in range(200):
        clock = Clock(0.0)
        retrier = Retrier(STORE, clock=clock, sleep=clock.pass_, rng=Random(seed))

        def attempt(keys: Sequence[str], _endpoint: str, _deadline: Deadline, now: Clock = clock) -> list[Answer[int]]:
            return [Answer(Kind.RETRYABLE if now() < outage_s else Kind.OK, 1, "-800")] * len(keys)

        result = retrier.run("get", ["k"], attempt, deadline=Deadline(30.0, clock))
        assert not result.failures, f"seed {seed}"
        assert result.settled["k"].attempts <= 3 * outage_s


def test_many_callers_outlive_an_outage_together() -> None:
    """What one caller's failures cost is not taken from the others: eight in turn, of one retrier."""
    clock = Clock(0.0)
    retrier = Retrier(STORE, clock=clock, sleep=clock.pass_, rng=Random(7))

    def attempt(keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> list[Answer[int]]:
        return [Answer(Kind.RETRYABLE, code="-800")] * len(keys)

    for _ in range(8):
        end = retrier.run("get", ["k"], attempt, deadline=Deadline(30.0, clock)).settled["k"]
        assert end.reason is Reason.DEADLINE
