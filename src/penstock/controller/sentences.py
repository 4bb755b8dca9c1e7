"""Each run event as one sentence: what the log, a sample's lineage and whoever reads a run's file aloud say of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock.controller import events as ev
from penstock.errors import abbreviate

__all__ = ["sentence"]


def sentence(event: ev.RunEvent) -> str:
    """Return what ``event`` says."""
    return _SAID[type(event)](event)


def _started(event: ev.Started) -> str:
    under_way = f"{event.open_prompts} prompts under way, the next new one is {event.cursor}"
    return f"life {event.life} begins at step {event.step}: {under_way}"


def _dispatched(event: ev.Dispatched) -> str:
    return f"prompt {event.prompt} dispatched as {event.group_id}, with the weights of version {event.version}"


def _committed(event: ev.Committed) -> str:
    version = f"{event.version}" if event.end_version == event.version else f"{event.version} to {event.end_version}"
    part = ", a part of the group" if event.partial else ""
    return f"{event.group_id} committed: {len(event.keys)} rows, {event.size_bytes} bytes, version {version}{part}"


def _again(event: ev.Again) -> str:
    return f"prompt {event.prompt} goes again, as attempt {event.attempt}: {event.why}"


def _dropped(event: ev.Dropped) -> str:
    return f"prompt {event.prompt} dropped: {event.reason}"


def _claimed(event: ev.Claimed) -> str:
    token = abbreviate(event.lease, 2) or "no token"
    rows = f"{len(event.keys)} rows of {len(event.groups)} groups leased under {token}"
    return f"step {event.step}: {rows}, the oldest {event.staleness} versions behind"


def _ordered(event: ev.Ordered) -> str:
    before = f" after: {event.why}" if event.why else ""
    return f"step {event.step} ordered" + (f", attempt {event.attempt}{before}" if event.attempt > 1 else "")


def _trained(event: ev.Trained) -> str:
    shown = [f", {name} {_number(value)}" for name, value in sorted(event.metrics.items())]
    rows = f"{event.rows} rows of {len(event.groups)} groups"
    if not event.seconds:
        return f"step {event.step} was made in an earlier life: {rows}"
    return f"step {event.step} trained: {rows} in {event.seconds:.3f} s{''.join(shown)}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _popped(event: ev.Popped) -> str:
    gone = f", {len(event.lost)} of them were gone already" if event.lost else ""
    return f"step {event.step}: {len(event.keys)} rows removed as trained{gone}"


def _published(event: ev.Published) -> str:
    return f"version {event.version} published in {event.seconds:.3f} s"


def _evicted(event: ev.Evicted) -> str:
    return f"{event.group_id}: {len(event.keys)} rows evicted: {event.reason}"


def _paused(event: ev.Paused) -> str:
    return f"paused: {event.why}"


def _recovered(event: ev.Recovered) -> str:
    kept = "the plane came back empty" if event.empty else f"{event.kept} groups were there"
    since = f"{event.plane_s:.3f} s after the plane's incarnation {event.incarnation} answered"
    return f"recovered after {event.seconds:.3f} s, {since}: {kept}, {event.again} prompts go again"


def _joined(event: ev.Joined) -> str:
    return f"{event.role} {event.replica} joined"


def _reaped(event: ev.Reaped) -> str:
    how = f"silent for {event.silent_s:.1f} s" if event.silent_s else "it said goodbye"
    return f"{event.role} {event.replica} is gone: {how}"


def _stalled(event: ev.Stalled) -> str:
    return f"nothing moved for {event.seconds:.0f} s: {'; '.join(event.owed) or 'nobody knows why'}"


def _finished(event: ev.Finished) -> str:
    return f"the run {'is over' if event.ok else 'cannot go on'} at step {event.step}: {event.reason}"


def _missed(event: ev.Missed) -> str:
    return f"{event.events} events are missing here: {event.why}"


_SAID: dict[type[ev.RunEvent], Callable[[Any], str]] = {
    ev.Started: _started,
    ev.Dispatched: _dispatched,
    ev.Committed: _committed,
    ev.Again: _again,
    ev.Dropped: _dropped,
    ev.Claimed: _claimed,
    ev.Ordered: _ordered,
    ev.Trained: _trained,
    ev.Popped: _popped,
    ev.Published: _published,
    ev.Evicted: _evicted,
    ev.Paused: _paused,
    ev.Recovered: _recovered,
    ev.Joined: _joined,
    ev.Reaped: _reaped,
    ev.Stalled: _stalled,
    ev.Finished: _finished,
    ev.Missed: _missed,
}
