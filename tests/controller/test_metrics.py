"""A run's metrics: what the events say, counted once, in bounded memory."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from prometheus_client import CollectorRegistry, generate_latest

from penstock.controller import events as ev
from penstock.controller.event_file import EVENTS_NAME, EventFile
from penstock.controller.metrics import ControllerMetrics
from tests.controller.histories import histories, history
from tests.controller.test_trace import STARTED, claimed, committed, dispatched, told, trained

RECOVERED = ev.Recovered(seconds=1.2, plane_s=0.5, incarnation=2, empty=False, kept=0, again=0)


class Seen:
    """A registry and its metrics by short name."""

    def __init__(self, *events: ev.RunEvent) -> None:
        self.registry = CollectorRegistry()
        self.metrics = ControllerMetrics(self.registry)
        self.tell(*events)

    def tell(self, *events: ev.RunEvent) -> None:
        for event in events:
            self.metrics(event)

    def of(self, name: str, /, **labels: str) -> float:
        value = self.registry.get_sample_value(f"penstock_run_{name}", labels)
        assert value is not None, f"{name} {labels}"
        return value


STEP = told(
    STARTED,
    RECOVERED,
    dispatched(0),
    dispatched(1),
    committed(0),
    committed(1),
    claimed(1, 0, 1),
    ev.Ordered(step=1, attempt=1),
    ev.Ordered(step=1, attempt=2),
    trained(1, 0, 1),
    ev.Popped(step=1, keys=["run.0.0_g0", "run.1.0_g0"], lost=["run.0.0_g0"]),
    ev.Published(version=1, seconds=0.2),
)


def test_a_step_is_counted_with_its_times() -> None:
    """Groups, rows, orders and durations, from the events' own times."""
    seen = Seen(*STEP)
    assert (seen.of("groups_dispatched_total"), seen.of("groups_committed_total")) == (2, 2)
    assert (seen.of("steps_total"), seen.of("steps_failed_total"), seen.of("rows_trained_total")) == (1, 1, 2)
    assert (seen.of("groups_trained_total"), seen.of("rows_lost_total")) == (2, 1)
    assert (seen.of("generation_seconds_count"), seen.of("generation_seconds_sum")) == (2, 4)
    assert (seen.of("queue_seconds_count"), seen.of("queue_seconds_sum")) == (2, 9)
    assert seen.of("step_seconds_bucket", le="1.0") == 1
    assert seen.of("step_staleness_versions_bucket", le="0.0") == 1
    assert seen.of("group_staleness_versions_count") == 2
    assert (seen.of("step"), seen.of("weight_version"), seen.of("life")) == (1, 1, 1)
    assert seen.of("trainer_metric", name="reward") == 0.5
    assert seen.of("last_event_timestamp_seconds") == 1011.0


def test_gauges_follow_the_groups() -> None:
    """In flight until committed, ready until claimed, and ready again when the step came to nothing."""
    seen = Seen()
    shown = []
    for event in told(STARTED, dispatched(0), dispatched(1), committed(0), claimed(1, 0), committed(0)):
        seen.tell(event)
        shown.append((seen.of("groups_in_flight"), seen.of("groups_ready")))
    assert shown == [(0, 0), (1, 0), (2, 0), (1, 1), (1, 0), (1, 1)]
    assert seen.of("groups_committed_total") == 1, "the second time it was only listed again"


def test_staleness_counts_from_the_weights_of_the_step_before() -> None:
    """Step 3 trains the weights of version 2: a group of version 0 lags by two."""
    seen = Seen(*told(STARTED, dispatched(0), committed(0), claimed(3, 0), trained(3, 0)))
    assert seen.of("group_staleness_versions_bucket", le="1.0") == 0
    assert seen.of("group_staleness_versions_bucket", le="2.0") == 1


def test_what_another_life_had_in_flight_is_not_in_flight() -> None:
    """A life that begins has nothing out; what the plane holds is ready still."""
    seen = Seen(*told(STARTED, dispatched(0), dispatched(1), committed(0)), *told(STARTED, life=2))
    assert (seen.of("groups_in_flight"), seen.of("groups_ready"), seen.of("life")) == (0, 1, 2)
    seen.tell(dispatched(2), ev.Finished(reason="stopped", ok=True, step=0))
    assert (seen.of("groups_in_flight"), seen.of("groups_ready")) == (0, 1)


def test_what_did_not_work_is_counted_by_reason() -> None:
    """Again, dropped and evicted, each by why; groups that are gone are not ready."""
    seen = Seen(
        *told(
            STARTED,
            dispatched(0),
            committed(0),
            ev.Again(prompt=0, attempt=1, why="ConnectionError: [Errno 111] to 10.0.0.7"),
            ev.Again(prompt=1, attempt=1, why="ConnectionError: [Errno 111] to 10.0.0.8"),
            ev.Dropped(prompt=2, reason=""),
            ev.Evicted(group_id="run.0.0", keys=["a", "b"], reason="stale"),
        )
    )
    assert seen.of("prompts_again_total", why="ConnectionError") == 2
    assert seen.of("prompts_dropped_total", reason="unknown") == 1
    assert seen.of("groups_evicted_total", reason="stale") == 1
    assert seen.of("rows_evicted_total", reason="stale") == 2
    assert seen.of("groups_ready") == 0


def test_pauses_recoveries_and_stalls() -> None:
    """The start is a recovery of its own kind; a pause counts once however often it is told."""
    seen = Seen(*told(STARTED, ev.Paused(why="x"), RECOVERED, ev.Paused(why="x"), ev.Paused(why="y")))
    assert (seen.of("pauses_total"), seen.of("paused"), seen.of("running")) == (1, 1, 1)
    seen.tell(RECOVERED, ev.Stalled(seconds=120, owed=[]), ev.Missed(events=3, why="full"))
    assert seen.of("recovery_seconds_count", after="start") == 1
    assert seen.of("recovery_seconds_bucket", after="pause", le="1.5") == 1
    assert seen.of("recovery_seconds_bucket", after="pause", le="1.0") == 0
    assert (seen.of("paused"), seen.of("stalls_total"), seen.of("events_missed")) == (0, 1, 3)
    seen.tell(ev.Finished(reason="done", ok=True, step=1))
    assert seen.of("running") == 0


def test_replicas_are_counted_by_role() -> None:
    """Who is here now, and who went how; a new life waits for everybody anew."""
    joined = [ev.Joined(replica=name, role="rollout") for name in ("a", "a", "b")]
    seen = Seen(STARTED, *joined, ev.Joined(replica="t", role="trainer"))
    assert (seen.of("replicas", role="rollout"), seen.of("replicas", role="trainer")) == (2, 1)
    seen.tell(ev.Reaped(replica="a", role="rollout", silent_s=12.0), ev.Reaped(replica="t", role="trainer", silent_s=0))
    assert (seen.of("replicas", role="rollout"), seen.of("replicas", role="trainer")) == (1, 0)
    assert seen.of("replicas_reaped_total", role="rollout", how="silent") == 1
    assert seen.of("replicas_reaped_total", role="trainer", how="left") == 1
    seen.tell(STARTED)
    assert seen.of("replicas", role="rollout") == 0


def test_a_users_words_do_not_become_labels_without_end() -> None:
    """Past the limit further reasons are counted as "other": a label is not a log."""
    seen = Seen(*[ev.Dropped(prompt=i, reason=f"prompt {i} is bad") for i in range(1000)])
    dropped = [
        line for line in generate_latest(seen.registry).decode().splitlines() if "prompts_dropped_total{" in line
    ]
    assert len(dropped) == 25
    assert seen.of("prompts_dropped_total", reason="other") == 976


def test_a_metric_that_is_not_finite_is_exported_as_such() -> None:
    """None, from a file, and NaN are NaN; the exposition stays whole."""
    seen = Seen(ev.Trained(step=1, groups=[], rows=0, seconds=0.0, metrics={"a": None, "b": float("nan")}))
    assert generate_latest(seen.registry).decode().count("} NaN") == 2
    assert seen.of("step_seconds_count") == 0, "a step of another life has no duration here"


def test_what_the_file_could_not_keep_is_exported(tmp_path: Path) -> None:
    """The file's own count, at the moment of asking: it tells nobody else."""
    registry = CollectorRegistry()
    file = EventFile(tmp_path / EVENTS_NAME)
    ControllerMetrics(registry, file)
    file.close()
    file(dispatched(0))
    assert registry.get_sample_value("penstock_run_events_missed") == 1
    assert registry.get_sample_value("penstock_run_events_waiting") == 0


def test_the_documents_table_names_every_metric() -> None:
    """What docs/observing.md lists is what is exported, no more and no less."""
    text = (Path(__file__).parents[2] / "docs" / "observing.md").read_text()
    rows = [row.split("|")[1:3] for row in text.splitlines() if re.search(r"\| (counter|histogram|gauge) \|", row)]
    listed = {
        (name.removesuffix("_total"), kind.strip()) for names, kind in rows for name in re.findall(r"`(\w+)`", names)
    }
    exported = {(family.name.removeprefix("penstock_run_"), family.type) for family in Seen().registry.collect()}
    assert listed == exported


def test_runs_of_one_process_share_a_registry() -> None:
    """A second run, or a second life in the same process, adds up instead of failing."""
    registry = CollectorRegistry()
    for _ in range(2):
        ControllerMetrics(registry)(dispatched(0))
    assert registry.get_sample_value("penstock_run_groups_dispatched_total") == 2
    assert ControllerMetrics() is not ControllerMetrics()


@given(histories)
def test_any_history_is_counted_as_told(events: list[ev.RunEvent]) -> None:
    """Counters are what one counts by hand, through lives and kills; nothing is negative."""
    seen = Seen(*events)
    first_time = {event.group_id for event in events if isinstance(event, ev.Committed)}
    assert seen.of("groups_committed_total") == len(first_time)
    assert seen.of("steps_total") == sum(isinstance(event, ev.Trained) for event in events)
    assert seen.of("rows_trained_total") == sum(event.rows for event in events if isinstance(event, ev.Trained))
    negative = [s for family in seen.registry.collect() for s in family.samples if s.value < 0]
    assert negative == []


@pytest.mark.parametrize("moves", [200, 4000])
def test_memory_is_bounded_by_what_is_under_way(moves: int) -> None:
    """A run of twenty times the length is remembered in no more."""
    events = history(random.Random(1), moves)
    seen = Seen(*events)
    groups = seen.metrics._groups
    open_prompts = {e.prompt for e in events if isinstance(e, ev.Dispatched)}
    held = len(groups.out) + len(groups.ready) + len(groups._in_step)
    assert held <= len(groups._of_prompt) <= max(1, len(open_prompts))
    trained_groups = {group for e in events if isinstance(e, ev.Trained) for group in e.groups}
    assert not trained_groups & {*groups.out, *groups.ready, *groups._in_step, *groups._of_prompt.values()}
