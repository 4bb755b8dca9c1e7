"""A plane's reports as Prometheus text. Reads ``StatusReport`` and ``AuditReport`` only; counts nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from penstock.requests import AuditReport, HostStatus, PartitionStatus, StatusReport

__all__ = ["exposition"]


def exposition(status: StatusReport, books: AuditReport) -> str:
    """Return both reports in the text exposition format."""
    registry = CollectorRegistry()
    registry.register(_Reports(status, books))
    return generate_latest(registry).decode()


class _Reports:
    def __init__(self, status: StatusReport, books: AuditReport) -> None:
        self._status, self._books = status, books

    def collect(self) -> Iterator[Metric]:
        status = self._status
        return chain(
            _of_plane(status), _of_hosts(status.hosts), _of_partitions(status.partitions), _of_books(self._books)
        )


def _of_plane(status: StatusReport) -> Iterator[Metric]:
    gauges = {
        "uptime_seconds": ("Seconds since this life of the plane began.", status.uptime_s),
        "rows": ("Live rows.", status.rows),
        "live_bytes": ("Payload bytes of live rows.", status.live_bytes),
        "arena_bytes": ("Bytes of the plane's arenas.", status.arena_bytes),
        "capacity_bytes": ("Limit of live bytes for new groups.", status.max_bytes),
        "capacity_rows": ("Limit of live rows for new groups.", status.max_rows),
        "sessions": ("Open sessions.", len(status.sessions)),
        "silent_seconds_max": (
            "The longest silence of a session.",
            max((s.silent_s for s in status.sessions), default=0),
        ),
    }
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(f"penstock_{name}", text, value=value)
    counted = CounterMetricFamily("penstock_events", "What the plane counted in this life.", labels=["event"])
    for name, count in sorted(status.counters.items()):
        counted.add_metric([name], count)
    yield counted


def _of_hosts(hosts: list[HostStatus]) -> Iterator[Metric]:
    if not hosts:
        return
    standing = GaugeMetricFamily("penstock_host_up", "1: heard of; 0: silent, or gone.", labels=["host", "state"])
    silent = GaugeMetricFamily("penstock_host_silent_seconds", "Since a host was last heard of.", labels=["host"])
    held = GaugeMetricFamily("penstock_host_bytes", "Bytes of blocks that rows need on a host.", labels=["host"])
    for host in hosts:
        name = f"{host.place.name}/{host.place.host_id:x}"  # machines may share a name
        standing.add_metric([name, host.state], host.state == "up")
        silent.add_metric([name], host.silent_s)
        held.add_metric([name], host.nbytes)
    yield from (standing, silent, held)


def _of_partitions(partitions: list[PartitionStatus]) -> Iterator[Metric]:
    for name, text in (
        ("groups", "Groups."),
        ("depth", "Groups that are committed and complete."),
        ("waiting_claims", "Claims that wait for rows."),
        ("waiting_puts", "Puts that wait for room."),
    ):
        family = GaugeMetricFamily(f"penstock_partition_{name}", text, labels=["partition"])
        for partition in partitions:
            family.add_metric([partition.partition], getattr(partition, name))
        yield family


def _of_books(books: AuditReport) -> Iterator[Metric]:
    rows = GaugeMetricFamily(
        "penstock_audit_rows",
        "Rows by where they are; put is the sum of all others.",
        labels=["partition", "state", "reason"],
    )
    residue = GaugeMetricFamily("penstock_audit_residue", "What the books cannot explain; 0.", labels=["partition"])
    for audit in books.partitions:
        for state in ("put", "in_flight", "leased", "trained", "cleared", "quarantined"):
            rows.add_metric([audit.partition, state, ""], getattr(audit, state))
        for state, reasons in (("evicted", audit.evicted), ("lost", audit.lost)):
            for reason, count in sorted(reasons.items()):
                rows.add_metric([audit.partition, state, reason], count)
        residue.add_metric([audit.partition], audit.residue)
    yield rows
    yield residue
