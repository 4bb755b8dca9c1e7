"""A run's events as Prometheus metrics: a listener that reads the events and nothing else.

Invariants: what is remembered is bounded by the groups under way, the values of a label by ``_MOST_VALUES`` (a reason
may be a user's own words); counters count this process; a group that is listed again, by a later life or after a step
that came to nothing, is not counted again.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter as Tally
from collections.abc import Callable
from typing import Any, NamedTuple

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.registry import Collector, CollectorRegistry

from penstock.controller import events as ev
from penstock.controller.event_file import EventFile

__all__ = ["ControllerMetrics"]

# A generation or a step takes from a fraction of a second (a toy) to an hour (long reasoning, a large model).
_WORK_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)
_PUBLISH_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_RECOVERY_S = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0)
_VERSIONS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 32)
_MOST_VALUES = 24  # of one label; what comes after them is "other"
_MOST_LETTERS = 64


class ControllerMetrics:
    """Listens to a run.

    Args:
        registry: where the metrics go; None = the process's default registry. Runs that share one add up.
        file: where the run's events are kept; what waits for the disk and what was missed is exported, too.
    """

    def __init__(self, registry: CollectorRegistry | None = None, file: EventFile | None = None) -> None:
        self._to = _export_to(REGISTRY if registry is None else registry)
        if file is not None:
            self._to.waiting.set_function(lambda: file.statistics().waiting)
            self._to.missed.set_function(lambda: file.statistics().missed)
        self._groups = _Groups()
        self._staleness: tuple[int, int] | None = None  # of the claim that is out: its step, versions
        self._recovering_from = "start"
        self._roles: dict[str, str] = {}  # by replica
        self._takers: dict[type[ev.RunEvent], Callable[[Any], None]] = {
            ev.Started: self._started,
            ev.Dispatched: self._dispatched,
            ev.Committed: self._committed,
            ev.Again: self._again,
            ev.Dropped: self._dropped,
            ev.Claimed: self._claimed,
            ev.Ordered: self._ordered,
            ev.Trained: self._trained,
            ev.Popped: self._popped,
            ev.Published: self._published,
            ev.Evicted: self._evicted,
            ev.Paused: self._paused,
            ev.Recovered: self._recovered,
            ev.Joined: self._joined,
            ev.Reaped: self._reaped,
            ev.Stalled: lambda _: self._to.stalls.inc(),
            ev.Finished: self._finished,
            ev.Missed: lambda event: self._to.missed.inc(event.events),
        }

    def __call__(self, event: ev.RunEvent) -> None:
        self._takers[type(event)](event)
        self._to.last_event.set(event.at)
        self._to.in_flight.set(len(self._groups.out))
        self._to.ready.set(len(self._groups.ready))

    def _started(self, event: ev.Started) -> None:
        self._groups.out.clear()
        self._roles.clear()
        self._recovering_from = "start"
        self._to.life.set(event.life)
        self._to.step.set(event.step)
        self._to.running.set(1)
        self._show_replicas()

    def _finished(self, _: ev.Finished) -> None:
        self._groups.out.clear()
        self._to.running.set(0)

    # -- groups -------------------------------------------------------------------------------------------------------

    def _dispatched(self, event: ev.Dispatched) -> None:
        self._groups.dispatched(event)
        self._to.dispatched.inc()

    def _committed(self, event: ev.Committed) -> None:
        out = self._groups.out.get(event.group_id)
        if self._groups.committed(event):
            self._to.committed.inc()
        if out is not None:
            self._to.generation_s.observe(max(0.0, event.at - out.since))

    def _again(self, event: ev.Again) -> None:
        self._groups.forget(event.prompt)
        self._to.again.labels(self._to.value("why", event.why)).inc()

    def _dropped(self, event: ev.Dropped) -> None:
        self._groups.forget(event.prompt)
        self._to.dropped.labels(self._to.value("dropped", event.reason)).inc()

    def _evicted(self, event: ev.Evicted) -> None:
        self._groups.gone(event.group_id)
        reason = self._to.value("evicted", event.reason)
        self._to.evicted.labels(reason).inc()
        self._to.evicted_rows.labels(reason).inc(len(event.keys))

    # -- steps --------------------------------------------------------------------------------------------------------

    def _claimed(self, event: ev.Claimed) -> None:
        self._staleness = event.step, event.staleness
        for group_id in event.groups:
            self._groups.claimed(group_id)

    def _ordered(self, event: ev.Ordered) -> None:
        if event.attempt > 1:
            self._to.steps_failed.inc()

    def _trained(self, event: ev.Trained) -> None:
        self._to.steps.inc()
        self._to.rows.inc(event.rows)
        self._to.groups.inc(len(event.groups))
        self._to.step.set(event.step)
        if event.seconds > 0:  # 0: it was made in another life, nobody here knows how long it took
            self._to.step_s.observe(event.seconds)
        if self._staleness is not None and self._staleness[0] == event.step:
            self._to.step_staleness.observe(self._staleness[1])
        for group_id in event.groups:
            if (group := self._groups.gone(group_id)) is not None:
                self._to.queue_s.observe(max(0.0, event.at - group.since))
                self._to.group_staleness.observe(max(0, event.step - 1 - group.version))
        for name, value in event.metrics.items():
            self._to.metric.labels(self._to.value("metric", name)).set(float("nan") if value is None else value)

    def _popped(self, event: ev.Popped) -> None:
        self._to.rows_lost.inc(len(event.lost))

    def _published(self, event: ev.Published) -> None:
        self._to.version.set(event.version)
        self._to.publish_s.observe(event.seconds)

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _paused(self, _: ev.Paused) -> None:
        if self._recovering_from:
            return  # it has not recovered yet: the same pause
        self._recovering_from = "pause"
        self._to.pauses.inc()
        self._to.paused.set(1)

    def _recovered(self, event: ev.Recovered) -> None:
        self._to.recovery_s.labels(self._recovering_from or "pause").observe(event.seconds)
        self._recovering_from = ""
        self._to.paused.set(0)

    def _joined(self, event: ev.Joined) -> None:
        self._roles[event.replica] = event.role
        self._show_replicas()

    def _reaped(self, event: ev.Reaped) -> None:
        self._roles.pop(event.replica, None)
        self._to.reaped.labels(event.role, "silent" if event.silent_s else "left").inc()
        self._show_replicas()

    def _show_replicas(self) -> None:
        here = Tally(self._roles.values())
        for role in ("rollout", "trainer"):
            self._to.replicas.labels(role).set(here[role])


# -- what is remembered ------------------------------------------------------------------------------------------------


class _Group(NamedTuple):
    prompt: int
    version: int
    since: float  # when it was dispatched; once it is committed: when that was


class _Groups:
    """The groups under way. A prompt has one at a time."""

    def __init__(self) -> None:
        self.out: dict[str, _Group] = {}
        self.ready: dict[str, _Group] = {}
        self._in_step: dict[str, _Group] = {}
        self._of_prompt: dict[int, str] = {}

    def dispatched(self, event: ev.Dispatched) -> None:
        self.forget(event.prompt)
        self._of_prompt[event.prompt] = event.group_id
        self.out[event.group_id] = _Group(event.prompt, event.version, event.at)

    def committed(self, event: ev.Committed) -> bool:
        """Note a group that is ready; whether it is new."""
        known = self.ready.get(event.group_id) or self._in_step.pop(event.group_id, None)
        self.out.pop(event.group_id, None)
        self._of_prompt[event.prompt] = event.group_id
        self.ready[event.group_id] = known or _Group(event.prompt, event.version, event.at)
        return known is None

    def claimed(self, group_id: str) -> None:
        if (group := self.ready.pop(group_id, None)) is not None:
            self._in_step[group_id] = group

    def forget(self, prompt: int) -> None:
        """The prompt goes again, or is given up."""
        if (group_id := self._of_prompt.get(prompt)) is not None:
            self.gone(group_id)

    def gone(self, group_id: str) -> _Group | None:
        """A group is trained, evicted or given up: forget it; returns it if it was committed."""
        found = self.ready.pop(group_id, None) or self._in_step.pop(group_id, None)
        any_ = found or self.out.pop(group_id, None)
        if any_ is not None and self._of_prompt.get(any_.prompt) == group_id:
            del self._of_prompt[any_.prompt]
        return found


# -- what is exported --------------------------------------------------------------------------------------------------


class _Exported:
    """The Prometheus metrics of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"penstock_run_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"penstock_run_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"penstock_run_{name}", text, labels, registry=registry, buckets=buckets)

        self.dispatched = counter("groups_dispatched", "Attempts at prompts that went out.")
        self.committed = counter("groups_committed", "Groups that became ready to be trained.")
        self.again = counter("prompts_again", "Prompts that go again.", "why")
        self.dropped = counter("prompts_dropped", "Prompts that were given up for good.", "reason")
        self.evicted = counter("groups_evicted", "Groups whose rows were evicted.", "reason")
        self.evicted_rows = counter("rows_evicted", "Rows that were evicted.", "reason")
        self.steps = counter("steps", "Steps that became durable.")
        self.steps_failed = counter("steps_failed", "Orders of a step that failed.")
        self.rows = counter("rows_trained", "Rows of durable steps.")
        self.groups = counter("groups_trained", "Groups of durable steps.")
        self.rows_lost = counter("rows_lost", "Trained rows that were gone before they were popped.")
        self.pauses = counter("pauses", "Times the plane was away.")
        self.stalls = counter("stalls", "Times nothing moved for stall_timeout_s.")
        self.reaped = counter("replicas_reaped", "Replicas that are gone.", "role", "how")
        self.life = gauge("life", "Which life of the controller this is.")
        self.running = gauge("running", "1 from the start of a life to its end.")
        self.paused = gauge("paused", "1 while the plane is away.")
        self.step = gauge("step", "The last durable step.")
        self.version = gauge("weight_version", "The weights that generators may use.")
        self.in_flight = gauge("groups_in_flight", "Groups that are being generated.")
        self.ready = gauge("groups_ready", "Groups that wait to be trained.")
        self.replicas = gauge("replicas", "Replicas that are here.", "role")
        self.last_event = gauge("last_event_timestamp_seconds", "When the last event was, since the epoch.")
        self.waiting = gauge("events_waiting", "Events that are not in their file yet.")
        self.missed = gauge("events_missed", "Events that their file could not keep.")
        self.metric = gauge("trainer_metric", "What the trainer measured in the last step.", "name")
        self.generation_s = histogram("generation_seconds", "From dispatch to commit.", _WORK_S)
        self.queue_s = histogram("queue_seconds", "From commit to durable step.", _WORK_S)
        self.step_s = histogram("step_seconds", "From the order to the durable step.", _WORK_S)
        self.publish_s = histogram("publish_seconds", "Of a publication of weights.", _PUBLISH_S)
        self.recovery_s = histogram("recovery_seconds", "Until the run went on.", _RECOVERY_S, "after")
        self.step_staleness = histogram("step_staleness_versions", "By which a step's oldest group lagged.", _VERSIONS)
        self.group_staleness = histogram("group_staleness_versions", "By which a trained group lagged.", _VERSIONS)
        self._values: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def value(self, label: str, text: str) -> str:
        """Return a label's value for ``text``: what stands before its first colon, as long as there are few such."""
        short = text.partition(":")[0].strip()[:_MOST_LETTERS] or "unknown"
        with self._lock:
            known = self._values.setdefault(label, set())
            if short not in known and len(known) >= _MOST_VALUES:
                return "other"
            known.add(short)
        return short


_exported: weakref.WeakKeyDictionary[Collector | CollectorRegistry, _Exported] = weakref.WeakKeyDictionary()
_exported_lock = threading.Lock()


def _export_to(registry: CollectorRegistry) -> _Exported:
    """Return the registry's metrics: a name can be registered once, runs of a process come and go."""
    with _exported_lock:
        if registry not in _exported:
            _exported[registry] = _Exported(registry)
        return _exported[registry]
