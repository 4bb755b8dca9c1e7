"""The middleware records every call, changes none, and survives its callback."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest

from penstock.errors import BadArgument, DataPlaneTimeout, UnknownName
from penstock.plane.metrics import MetricsDataPlaneClient, OperationRecord
from penstock.plane.noop import NoOpDataPlaneClient
from tests.plane.test_contract import SURFACE


class Ticks:
    """A clock that says one second more each time."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def watched(callback: Callable[[OperationRecord], object] | None = None) -> MetricsDataPlaneClient:
    client = MetricsDataPlaneClient(NoOpDataPlaneClient(), callback, CollectorRegistry(), clock=Ticks())
    client.register_partition("p", ["x"], 2, ["train"])
    return client


def test_every_operation_is_recorded() -> None:
    """Each method of the contract makes one record under its own name, recovery operations and close included."""
    seen: list[OperationRecord] = []
    client = watched(seen.append)
    client.put_samples(["a", "b"], "p", {"x": torch.arange(2)})
    meta = client.claim_meta("p", "train", ["x"], 2)
    client.get_data(meta)
    client.get_samples(["a"], "p", ["x"])
    client.renew(meta, 5.0)
    client.release(meta)
    client.ack(client.claim_meta("p", "train", ["x"], 1))
    client.check_consumption_status("p", ["train"])
    client.list_metadata("p")
    client.depth("p")
    client.pop(["b"], "p")
    client.evict(["b"], "p")
    client.clear_samples(None, "p")
    client.ping()
    client.get_capabilities()
    client.close()
    assert {record.name for record in seen} == set(SURFACE)
    assert {record.outcome for record in seen} == {"ok"}
    assert {record.seconds for record in seen} == {1.0}


def test_records_say_rows_and_bytes() -> None:
    """Puts and reads count rows and payload bytes, nested columns included; other calls count rows."""
    seen: list[OperationRecord] = []
    client = watched(seen.append)
    ragged = [torch.ones(3), torch.ones(1)]
    client.put_samples(["a", "b"], "p", {"x": torch.arange(2), "r": ragged})
    client.get_samples(["a", "b", "a"], "p", ["r"])
    client.get_samples(["a", "gone"], "p", ["x"], on_failed="drop")
    client.put_samples(["a"], "p", tags=[{"t": 1}])
    client.pop(["a"], "p")
    assert [(r.name, r.partition, r.rows, r.bytes) for r in seen[1:]] == [
        ("put_samples", "p", 2, 16 + 16),
        ("get_samples", "p", 3, 4 * (3 + 1 + 3)),
        ("get_samples", "p", 1, 8),
        ("put_samples", "p", 1, 0),
        ("pop", "p", 1, 0),
    ]


def test_failures_pass_and_are_recorded() -> None:
    """An error reaches the caller unchanged; its record says "timeout" or the error's class."""
    seen: list[OperationRecord] = []
    client = watched(seen.append)
    with pytest.raises(UnknownName):
        client.get_samples(["nowhere"], "p", ["x"])
    with pytest.raises(DataPlaneTimeout):
        client.claim_meta("p", "train", ["x"], 1, timeout_s=0.0)
    assert [(r.name, r.outcome, r.rows) for r in seen[1:]] == [
        ("get_samples", "UnknownName", 0),
        ("claim_meta", "timeout", 0),
    ]


def test_a_callback_that_raises_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Errors of the callback are counted and logged once; the calls succeed."""

    def broken(_: OperationRecord) -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.WARNING):
        client = watched(broken)
        client.ping()
        client.ping()
    assert client.statistics().callback_errors == 3
    assert len(caplog.records) == 1


def test_statistics_add_up() -> None:
    """Totals by operation: calls, failures, rows, bytes, seconds, the slowest."""
    client = watched()
    for _ in range(2):
        client.put_samples(["a"], "p", {"x": torch.arange(1)})
    with pytest.raises(UnknownName):
        client.put_samples(["a"], "typo", {"x": torch.arange(1)})
    totals = client.statistics().operations["put_samples"]
    assert (totals.calls, totals.failures, totals.rows, totals.bytes) == (3, 1, 2, 16)
    assert (totals.seconds, totals.slowest_s) == (3.0, 1.0)
    assert "calls=4" in repr(client)


def test_prometheus_metrics_are_exported() -> None:
    """Counters and a histogram by operation; two clients of one registry share them."""
    registry = CollectorRegistry()
    for _ in range(2):
        with MetricsDataPlaneClient(NoOpDataPlaneClient(), registry=registry) as client:
            client.register_partition("p", ["x"], 1, ["train"])
            client.put_samples(["a"], "p", {"x": torch.arange(1)})
            with pytest.raises(UnknownName):
                client.get_samples(["b"], "p", ["x"])
    text = generate_latest(registry).decode()
    assert 'penstock_client_operations_total{operation="put_samples",outcome="ok"} 2.0' in text
    assert 'penstock_client_operations_total{operation="get_samples",outcome="UnknownName"} 2.0' in text
    assert 'penstock_client_bytes_total{operation="put_samples"} 16.0' in text
    assert 'penstock_client_rows_total{operation="put_samples"} 2.0' in text
    assert 'penstock_client_operation_seconds_count{operation="put_samples"} 2.0' in text


def test_keys_from_an_iterator_are_counted_and_not_lost() -> None:
    """Counting comes after the call, which uses an iterator up: neither the rows nor the success are lost."""
    seen: list[OperationRecord] = []
    client = watched(seen.append)
    client.put_samples(["a", "b", "c"], "p", {"x": torch.arange(3)})
    client.pop(iter(["a"]), "p")  # type: ignore[arg-type]
    client.evict(iter(["b"]), "p")  # type: ignore[arg-type]
    client.clear_samples(iter(["c"]), "p")  # type: ignore[arg-type]
    assert [(record.name, record.rows, record.outcome) for record in seen[-3:]] == [
        ("pop", 1, "ok"),
        ("evict", 1, "ok"),
        ("clear_samples", 1, "ok"),
    ]
    assert client.list_metadata("p") == []


def test_what_is_no_meta_is_refused_by_the_inner_client_and_recorded() -> None:
    """The middleware adds no errors of its own."""
    seen: list[OperationRecord] = []
    client = watched(seen.append)
    for call in (client.get_data, client.ack, client.release):
        with pytest.raises(BadArgument, match="KVBatchMeta"):
            call(None)  # type: ignore[arg-type]
    assert [record.outcome for record in seen[-3:]] == ["BadArgument"] * 3
