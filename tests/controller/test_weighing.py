"""Reading a listing: what is fit, what goes, which prompts go again."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.controller import effects as do
from penstock.controller import events as ev
from penstock.controller import news as nw
from penstock.controller.policies import ready_first, weight_fifo, windowed
from penstock.controller.prompts import Where
from penstock.controller.record import ControllerRecord, OpenPrompt
from penstock.controller.roles import StepRecord
from penstock.records import DataPlaneGroupMeta, GroupPolicy
from tests.controller.steering import Steering, config

FOREIGN = ["run.01.0", "run.1", "run.-1.0", "run.\u0661.0", "other.1.0", "run.1.0.0", "lonely"]


def life(*there: tuple[str, dict[str, Any]], prompts: int = 2, step: int = 0, **options: Any) -> Steering:
    """Return a life that finds ``prompts`` open prompts, at ``step``, and these groups; nothing can be generated."""
    settings = config(**{"groups_per_step": prompts, "max_steps": step + 1, "orphan_grace_s": 5.0, **options})
    saved = ControllerRecord(run="run", life=1, step=step, cursor=prompts, open=tuple(map(open_, range(prompts))))
    s = Steering(settings, record=saved, fate=lambda one: "hang")
    for group_id, tags in there:
        s.plane.put(group_id, **{"version": step, **tags})
    s.rules[do.AskTrainer] = lambda one: nw.TrainerStands(made(step))
    return s


def open_(index: int) -> OpenPrompt:
    return OpenPrompt(index, 0)


def made(step: int) -> StepRecord | None:
    return StepRecord(step=step) if step else None


def why(s: Steering) -> dict[int, str]:
    return {event.prompt: event.why for event in s.of(ev.Again)}


def test_a_committed_and_complete_group_is_ready() -> None:
    """It is told with its oldest and its newest version, once."""
    s = life(("run.0.0", {"version": 3, "weight_version_end": 4}), step=4).begin()
    s.run(3.0)
    assert s.state.places["ready"] == 1
    told = s.of(ev.Committed)
    assert [(one.group_id, one.prompt, one.version, one.end_version, one.partial) for one in told] == [
        ("run.0.0", 0, 3, 4, False)
    ]
    assert told[0].keys == ["run.0.0_g0", "run.0.0_g1"]


def test_foreign_groups_are_left_alone() -> None:
    """Other runs' groups, and names that we would never write, are neither trained nor evicted, nor counted as kept."""
    s = life(*((name, {}) for name in FOREIGN)).begin()
    s.run(20.0)
    assert {tag["group_id"] for tag in s.plane.rows.values()} == set(FOREIGN)
    assert s.of(do.Evict) == []
    assert [event.kept for event in s.of(ev.Recovered)] == [0]
    assert s.state.places["ready"] == 0


@pytest.mark.parametrize("name", ["run.0.1", "run.7.0", "run.1.3"])
def test_groups_that_nobody_will_train_go(name: str) -> None:
    """Other attempts than the live one, and prompts that are not open: they would hold room for ever."""
    s = life((name, {}), ("run.0.0", {}), ("run.1.0", {})).begin()
    s.run(3.0)
    assert s.plane.evicted == {f"{name}_g0": "superseded", f"{name}_g1": "superseded"}
    assert [(event.group_id, event.reason) for event in s.of(ev.Evicted)] == [(name, "superseded")]


def test_a_late_attempt_settles_nothing() -> None:
    """An attempt whose generator was given up, and that commits all the same, is evicted: the prompt has another."""
    s = Steering(config(max_steps=1), fate=lambda d: "fail" if d.group_id == "run.0.0" else "good").begin()
    s.until(ev.Again)
    s.plane.put("run.0.0", 0)
    s.tell(nw.Generated("run.0.0"))
    s.tell(nw.GenerationFailed("run.0.0", "again"))
    s.run()
    assert set(s.plane.evicted) == {"run.0.0_g0", "run.0.0_g1"}
    assert "run.0.1" in s.shop.steps[0].groups
    assert s.shop.trained[0] == 1


def test_an_attempt_that_is_out_is_not_judged() -> None:
    """Its group may be half there: nobody evicts it, however long it takes."""
    s = Steering(config(orphan_grace_s=1.0), fate=lambda one: "hang").begin()
    s.until(do.Dispatch)
    s.plane.put("run.0.0", 0, rows=1, committed=False)
    s.run(60.0)
    assert s.of(do.Evict) == []
    assert s.state.places["out"] == 4


# -- staleness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "fit"), [(4, True), (3, True), (2, False), (0, False)])
def test_staleness_counts_from_the_oldest_version(version: int, fit: bool) -> None:
    """Of a group whose rows differ, the oldest counts; the window is the policy's."""
    s = life(("run.0.0", {"version": 4}), step=4, policy=windowed(1))
    s.plane.rows["run.0.0_g1"]["weight_version"] = version
    s.begin().run(3.0)
    assert s.state.places["ready"] == int(fit)
    assert (why(s).get(0) == "stale") is not fit
    assert set(s.plane.evicted.values()) == (set() if fit else {"stale"})


def test_time_in_the_queue_counts() -> None:
    """A group that was fit when it came, and that the version has passed since, is evicted."""
    s = Steering(config(policy=ready_first(0), max_steps=3, over_sampling=1.5, groups_per_step=2)).begin().run()
    stale = [event for event in s.of(ev.Evicted) if event.reason == "stale"]
    assert stale
    ready = {event.group_id for event in s.of(ev.Committed)}
    assert {event.group_id for event in stale} <= ready
    assert max(event.staleness for event in s.of(ev.Claimed)) == 0
    assert set(s.shop.trained.values()) == {1}


def test_a_stale_prompt_goes_again_or_is_dropped() -> None:
    """As ``on_stale`` says; going stale is no failure, so that it never counts against the prompt."""
    s = life(("run.0.0", {"version": 0}), step=4, max_attempts=1).begin()
    s.run(3.0)
    assert why(s) == {0: "stale", 1: "its rows are gone"}
    assert s.prompts.open[0].failures == 0
    assert s.state.dropped == {}
    s = life(("run.0.0", {"version": 0}), step=4, on_stale="drop").begin()
    s.run(3.0)
    assert s.state.dropped == {"stale": 1}


@pytest.mark.parametrize(
    "tags",
    [
        {"version": 5},
        {"version": 4, "weight_version_end": 5},
        {"version": 4, "weight_version_end": 3},
        {"version": 4, "weight_version_end": -1},
    ],
)
def test_versions_that_cannot_be_are_refused(tags: dict[str, Any]) -> None:
    """Ahead of the trainer's, or an end before its beginning: the group goes, the prompt counts a failure."""
    s = life(("run.0.0", tags), step=4).begin()
    s.run(3.0)
    assert why(s)[0] == "version ahead of the trainer's, or backwards"
    assert s.prompts.open[0].failures == 1
    assert set(s.plane.evicted.values()) == {"version ahead of the trainer's, or backwards"}


def test_a_group_without_a_version_has_that_of_its_dispatch() -> None:
    """Where no row says one; of a life before that is unknown, and the oldest is assumed."""
    s = Steering(config(policy=windowed(1)), fate=lambda one: "hang").begin()
    s.until(do.Dispatch)
    s.plane.put("run.0.0", None)
    s.tell(nw.Generated("run.0.0"))
    s.run(1.0)
    assert s.of(ev.Committed)[0].version == 0
    assert s.state.places["ready"] == 1
    s = life(("run.0.0", {"version": None}), step=4).begin()
    s.run(3.0)
    assert why(s)[0] == "stale"


# -- groups that are not whole ----------------------------------------------------------------------------------------


def test_an_uncommitted_orphan_goes_after_its_grace() -> None:
    """Its attempt is over, or of a life before; it may yet be committed for ``orphan_grace_s``, and no longer."""
    s = life(("run.0.0", {"committed": False}), ("run.1.0", {})).begin()
    s.run(4.9)
    assert s.of(do.Evict) == []
    s.run(1.0)
    assert set(s.plane.evicted.values()) == {"abandoned"}
    assert why(s) == {0: "its group was never committed"}
    assert s.prompts.open[0].failures == 1


def test_an_orphan_that_is_committed_in_time_is_trained() -> None:
    """The generator of a life before may outlive it."""
    s = life(("run.0.0", {"committed": False}), ("run.1.0", {})).begin()
    s.run(4.0)
    for i in range(2):
        s.plane.rows[f"run.0.0_g{i}"]["committed"] = True
    s.run()
    assert s.shop.trained == {0: 1, 1: 1}


@pytest.mark.parametrize("fate", ["torn", "fail", "orphan", "short", "empty"])
def test_what_a_failed_attempt_left_goes_and_the_prompt_goes_again(fate: str) -> None:
    """Whatever is left of it: nothing, uncommitted rows, too few; no zero-reward row stands in for it."""
    s = Steering(config(max_steps=1), fate=lambda d: fate if d.group_id == "run.0.0" else "good").begin().run()
    assert s.attempts == {0: 2, 1: 1}
    assert s.shop.trained == {0: 1, 1: 1}
    assert set(s.plane.evicted.values()) <= {"abandoned"}
    assert s.plane.rows == {}
    assert s.saved is not None
    assert max(record.open[0].failures for record in s.saves if record.open) == 1


def test_an_attempt_that_failed_after_it_committed_counts() -> None:
    """The listing is believed, not the failure: the group is there and whole."""
    s = Steering(config(max_steps=1), fate=lambda one: "late").begin().run()
    assert s.attempts == {0: 1, 1: 1}
    assert s.shop.trained == {0: 1, 1: 1}


def test_a_failure_after_which_the_group_was_there_is_forgotten() -> None:
    """What is lost later was not the attempt's fault."""
    s = Steering(fate=lambda d: "late" if d.group_id == "run.0.0" else "hang").begin()
    s.until(ev.Committed)
    s.plane.answer(do.Evict(("run.0.0_g0", "run.0.0_g1"), "by hand"))
    s.run(1.0)
    assert why(s) == {0: "its rows are gone"}
    assert s.prompts.open[0].failures == 0


def test_a_generator_that_puts_nothing_does_not_spin() -> None:
    """It says that it is done, and nothing is there: a failure like others, with back-off and a last attempt."""
    s = Steering(config(max_attempts=5, max_prompts=2, max_steps=None), fate=lambda one: "empty").begin().run()
    assert s.finish is not None
    assert s.attempts == {0: 5, 1: 5}
    assert s.state.dropped == {"failed": 2}


def test_a_group_that_lost_a_row_is_not_fit_any_more() -> None:
    """It was ready; somebody evicted a row: what is left goes after the grace, and the prompt goes again."""
    s = life(("run.0.0", {}), prompts=2).begin()
    s.run(3.0)
    assert s.state.places["ready"] == 1
    s.plane.answer(do.Evict(("run.0.0_g0",), "by hand"))
    s.run(1.0)
    assert s.state.places == {"waiting": 0, "out": 1, "landed": 1, "ready": 0, "training": 0}
    s.run(6.0)
    assert why(s)[0] == "1 of its 2 rows are there"
    assert s.plane.evicted["run.0.0_g1"] == "abandoned"


def test_a_ready_group_that_is_gone_goes_again() -> None:
    """Without a failure: it was not the prompt's fault."""
    s = life(("run.0.0", {})).begin()
    s.run(3.0)
    s.plane.answer(do.Evict(("run.0.0_g0", "run.0.0_g1"), "by hand"))
    s.run(1.0)
    assert why(s)[0] == "its rows are gone"
    assert s.prompts.open[0].failures == 0


PARTIAL = GroupPolicy(min_ready=1, deadline_s=1.0, on_deadline="partial")


def test_a_partial_group_is_trained_with_what_it_has() -> None:
    """The rows that the plane's policy released, those alone, and told as a part; what comes later is superseded."""
    s = life(("run.0.0", {"rows": 1}), ("run.1.0", {}), group_policy=PARTIAL).begin()
    s.run(60.0)
    assert s.of(do.Evict) == []  # its committed rows wait for the policy, not for our grace
    assert s.state.places["landed"] == 1
    s.plane.rows["run.0.0_g1"] = {**s.plane.rows["run.0.0_g0"], "committed": False}
    s.plane.partial["run.0.0"] = ["run.0.0_g0"]
    s.run()
    assert [event.partial for event in s.of(ev.Committed)] == [False, True]
    assert s.shop.steps[0].keys == ["run.1.0_g0", "run.1.0_g1", "run.0.0_g0"]
    assert s.of(ev.Committed)[1].keys == ["run.0.0_g0"]


def test_a_partial_group_that_shrank_below_its_least_goes_again() -> None:
    """The plane released two rows of it, and one of them was lost since: it is not trained with the other."""
    policy = GroupPolicy(min_ready=2, deadline_s=1.0, on_deadline="partial")
    s = life(("run.0.0", {"rows": 1}), ("run.1.0", {}), group_policy=policy)
    s.plane.partial["run.0.0"] = ["run.0.0_g0"]
    s.begin().run(20.0)
    assert [event.prompt for event in s.of(ev.Committed)] == [1]
    assert [one.reason for one in s.of(do.Evict)] == ["abandoned"]
    assert "1 of its 2 rows" in why(s)[0]


def test_rows_that_join_a_partial_group_are_trained_too() -> None:
    """While it waits for its step."""
    s = life(("run.0.0", {"rows": 1}), group_policy=PARTIAL)
    s.plane.partial["run.0.0"] = ["run.0.0_g0"]
    s.begin().run(3.0)
    assert s.state.places["ready"] == 1
    s.plane.put("run.0.0", 0)
    s.plane.put("run.1.1", 0)
    s.tell(nw.Generated("run.1.1"))
    s.run()
    assert len(s.shop.steps[0].keys) == 4


def test_a_new_life_waits_for_what_the_life_before_began_with_older_weights() -> None:
    """The listing says with which weights a group was begun that is not committed yet: no newer one passes it."""
    there = (("run.0.0", {"version": 0, "committed": False}), ("run.1.0", {"version": 1}))
    s = life(*there, step=1, groups_per_step=1, policy=weight_fifo(1)).begin()
    s.run(3.0)
    assert s.of(do.Claim) == []
    s.plane.put("run.0.0", 0)
    s.run()
    assert [step.groups for step in s.shop.steps] == [["run.0.0"]]


# -- the user's wishes ------------------------------------------------------------------------------------------------


def test_the_filter_drops_groups_that_are_not_worth_training() -> None:
    """By their metadata; the prompt is dropped for good, its rows are evicted, and others take its place."""
    s = Steering(config(max_steps=2), accept=lambda group: ".1." not in group.group_id).begin().run()
    assert s.state.dropped == {"filtered": 1}
    assert set(s.plane.evicted.values()) == {"filtered"}
    assert s.shop.trained == {0: 1, 2: 1, 3: 1, 4: 1}


def test_the_filter_is_asked_once_for_each_group() -> None:
    """When it becomes fit, and not at each listing."""
    asked: list[str] = []
    s = life(("run.0.0", {}))

    def accept(group: DataPlaneGroupMeta) -> bool:
        asked.append(group.group_id)
        return True

    s.machine._run.accept = accept
    s.begin().run(10.0)
    assert len([one for one in s.trail if one == "List"]) > 10
    assert asked == ["run.0.0"]


def test_only_groups_that_carry_the_ready_tag_are_trained() -> None:
    """A later stage sets it; until then they wait, and go stale like others."""
    s = life(("run.0.0", {}), ("run.1.0", {"scored": True}), ready_tag="scored").begin()
    s.run(30.0)
    assert s.state.places == {"waiting": 0, "out": 0, "landed": 1, "ready": 1, "training": 0}
    assert s.of(do.Evict) == []
    for i in range(2):
        s.plane.rows[f"run.0.0_g{i}"]["scored"] = 0.0
    s.run()
    assert s.shop.trained == {0: 1, 1: 1}
    s = life(("run.0.0", {"version": 0}), step=4, ready_tag="scored").begin()
    s.run(3.0)
    assert why(s)[0] == "stale"


def test_a_rejected_prompt_is_dropped() -> None:
    """Nothing is tried again; what it may have put is evicted."""
    s = Steering(config(max_steps=1), fate=lambda d: "rejected" if d.prompt == 0 else "good").begin()
    s.until(do.Dispatch)
    s.plane.put("run.0.0", 0, committed=False)
    s.run()
    assert s.state.dropped == {"rejected": 1}
    assert s.attempts[0] == 1
    assert set(s.plane.evicted) == {"run.0.0_g0", "run.0.0_g1"}


def test_a_prompt_that_fails_too_often_is_dropped() -> None:
    """After ``max_attempts``, each later than the one before; others take its place."""
    s = Steering(config(max_attempts=3, max_steps=2), fate=lambda d: "fail" if d.prompt == 0 else "good").begin().run()
    assert s.attempts[0] == 3
    assert s.state.dropped == {"failed": 1}
    assert [event.attempt for event in s.of(ev.Again)] == [1, 2]
    assert [event.why for event in s.of(ev.Again)] == ["it was fail"] * 2


def test_failures_are_counted_across_lives() -> None:
    """A controller that is restarted does not forget how often a prompt has failed."""
    first = Steering(config(max_attempts=3), fate=lambda one: "fail").begin()
    first.until(ev.Again, 2)
    s = Steering(config(max_attempts=3, max_prompts=4, max_steps=None), last=first, fate=lambda one: "fail")
    s.begin().run()
    assert s.state.dropped == {"failed": 4}
    assert first.attempts + s.attempts == {0: 3, 1: 3, 2: 3, 3: 3}
    assert first.attempts[0] > 0


# -- listings of another time -----------------------------------------------------------------------------------------


def test_an_absence_is_believed_only_of_a_later_listing() -> None:
    """A listing that was asked for before the group was committed does not send its prompt out again."""
    s = Steering(config(max_steps=1, list_every_s=1000.0), fate=lambda one: "hang").begin()
    s.until(do.Dispatch)
    s.rules[do.List] = lambda one: None
    s.tell(nw.Generated("run.0.0"))  # a listing is asked for
    before = s.plane.groups()
    s.plane.put("run.1.0", 0)
    s.tell(nw.Generated("run.1.0"))
    s.plane.put("run.0.0", 0)
    del s.rules[do.List]
    s.answered(nw.Listed(before))
    assert [event.prompt for event in s.of(ev.Again)] == [0]  # asked for after it said that it was done
    s.run(1.0)
    assert [event.group_id for event in s.of(ev.Committed)] == ["run.1.0"]
    assert s.attempts[1] == 1


def test_a_listing_that_is_read_twice_decides_the_same() -> None:
    """Nothing arrives twice, nothing is evicted twice, nobody goes again twice."""
    s = life(("run.0.0", {}), ("run.5.0", {}))
    s.rules[do.Evict] = lambda one: nw.RowsGone()  # and the plane goes on listing it
    s.begin().run(2.0)
    assert len(s.of(ev.Committed)) == 1
    assert len(s.of(ev.Again)) == 1
    assert len(s.of(do.List)) - len(s.of(do.Evict)) in (0, 1)  # one eviction for a listing


def test_a_presence_is_believed_only_of_a_later_listing() -> None:
    """A listing that was asked for before the step was undone does not make its torn group ready again."""
    s = Steering(rules={do.Train: lambda one: None}).begin()
    s.until(do.Train)
    s.run(0.02)
    s.rules[do.List] = lambda one: None
    s.until(do.List)
    whole = s.plane.groups()
    del s.rules[do.List]
    s.tell(nw.StepUnreadable(1, ["run.0.0_g0"], "checksum"))
    s.answered(nw.Listed(whole))
    assert s.prompts.open[0].where is Where.LANDED
    del s.rules[do.Train]
    s.run()
    assert why(s) == {0: "checksum"}
    assert s.state.step == 3


def test_a_group_under_a_name_that_is_yet_to_be_used_goes() -> None:
    """The attempt has not been sent out: whoever put it, it was not its generator."""
    s = Steering(
        config(retry_base_s=60.0, retry_cap_s=60.0), fate=lambda d: "fail" if d.prompt == 0 else "hang", seed=1
    ).begin()
    s.until(ev.Again)
    s.plane.put("run.0.1", 0)
    s.run(2.0)
    assert s.state.places["waiting"] == 1
    assert set(s.plane.evicted) == {"run.0.1_g0", "run.0.1_g1"}
