"""The rollout pump: how many prompts go out, which, and with what weights."""

from __future__ import annotations

import itertools

import pytest

from penstock.controller import effects as do
from penstock.controller import events as ev
from penstock.controller import news as nw
from penstock.controller.policies import in_order, ready_first, windowed
from penstock.controller.record import ControllerRecord, OpenPrompt
from tests.controller.steering import Steering, config


def sent(s: Steering) -> list[str]:
    return [one.group_id for one in s.of(do.Dispatch)]


def hanging(**options: object) -> Steering:
    """Return a run whose generators never answer by themselves."""
    s = Steering(config(**{"max_steps": 9, **options}), fate=lambda one: "hang").begin()
    s.until(do.Dispatch)
    s.run(5.0)
    return s


def test_prompts_go_out_in_order_and_none_is_skipped() -> None:
    """Each with a group id of its own, and the weights that are published."""
    s = Steering(config(max_steps=4)).begin().run()
    assert [one.prompt for one in s.of(do.Dispatch)] == list(range(8))
    assert len(set(sent(s))) == 8
    versions = [one.version for one in s.of(do.Dispatch)]
    assert versions == sorted(versions)
    assert versions[:4] == [0] * 4


@pytest.mark.parametrize(
    ("options", "out"),
    [
        ({}, 4),  # (eta + 1) * batch
        ({"policy": windowed(3)}, 8),
        ({"policy": windowed(0)}, 2),
        ({"over_sampling": 1.5}, 6),
        ({"over_sampling": 1.25}, 6),  # a batch of 2.5 is 3
        ({"max_in_flight": 3}, 3),
        ({"max_groups": 2}, 2),
        ({"max_groups": 3, "max_in_flight": 2}, 2),
        ({"max_prompts": 1}, 1),
        ({"max_steps": 1}, 2),
        ({"max_steps": 1, "over_sampling": 2.0}, 4),
    ],
)
def test_no_more_go_out_than_is_allowed(options: dict[str, object], out: int) -> None:
    """By policy, over-sampling, capacity, the limit in flight, and the end of the run: the least counts."""
    assert len(sent(hanging(**options))) == out


def test_what_is_in_flight_is_limited_and_what_is_in_the_plane_too() -> None:
    """Ready groups do not count as in flight; they count as held, until they are popped."""
    s = hanging(max_in_flight=2, policy=windowed(3))
    s.plane.put("run.0.0", 0)
    s.tell(nw.Generated("run.0.0"))
    assert sent(s) == ["run.0.0", "run.1.0", "run.2.0"]
    s = hanging(max_groups=2, policy=windowed(3))
    s.plane.put("run.0.0", 0)
    s.tell(nw.Generated("run.0.0"))
    s.run(5.0)
    assert sent(s) == ["run.0.0", "run.1.0"]


def test_room_is_given_only_after_the_pop() -> None:
    """A group that is being trained holds its place, so that the plane's memory is bounded."""
    s = Steering(config(max_groups=2), rules={do.Pop: lambda one: None}).begin()
    s.until(do.Pop)
    s.run(10.0)
    assert sent(s) == ["run.0.0", "run.1.0"]


def test_a_prompt_that_goes_again_goes_before_new_ones_and_takes_no_admission() -> None:
    """It had its admission; the number of open prompts stays what the policy admits."""
    s = hanging()
    s.tell(nw.GenerationFailed("run.1.0", "no"))
    s.run(5.0)
    assert sent(s)[4:] == ["run.1.1"]
    assert s.state.dispatched == 4


class Longest:
    """Draws the longest wait."""

    def uniform(self, a: float, b: float, /) -> float:
        return b


def test_a_prompt_waits_for_its_back_off() -> None:
    """It does not go again before its time; each failure doubles the longest wait, up to the cap."""
    when: list[float] = []

    def fate(one: do.Dispatch) -> str:
        when.append(s.now)
        return "fail"

    s = Steering(config(retry_base_s=10.0, retry_cap_s=60.0, max_prompts=1, max_steps=None, max_attempts=6), fate=fate)
    s.machine._run.rng = Longest()
    s.begin().run()
    assert [round(b - a) for a, b in itertools.pairwise(when)] == [10, 20, 40, 60, 60]
    assert s.state.dropped == {"failed": 1}


def test_the_gate_holds_dispatch_and_nothing_else() -> None:
    """Nothing goes out while it is closed; what is there is trained; when it opens, it goes on."""
    s = Steering(config(max_steps=4)).begin()
    s.until(do.Train)
    s.tell(nw.GateClosed("an incident"))
    before = sent(s)
    s.run(30.0)
    assert sent(s) == before
    assert s.state.step == 2  # what had been dispatched
    s.tell(nw.GateOpened())
    s.run()
    assert s.state.step == 4


def test_the_gate_holds_prompts_that_go_again_too() -> None:
    """An attempt that fails while it is closed waits."""
    s = hanging()
    s.tell(nw.GateClosed("an incident"))
    s.tell(nw.GenerationFailed("run.1.0", "no"))
    s.run(30.0)
    assert len(sent(s)) == 4
    s.tell(nw.GateOpened())
    assert sent(s)[4:] == ["run.1.1"]


def test_nothing_goes_out_that_would_be_born_stale() -> None:
    """While weights that lag are still the published ones, a prompt that goes again waits for the new ones."""
    s = Steering(
        config(policy=ready_first(0), groups_per_step=1, over_sampling=2.0, max_steps=2),
        fate=lambda d: "hang" if d.group_id == "run.1.0" else "good",
        rules={do.Publish: lambda one: None if one.version else nw.PublicationMade(0)},
    ).begin()
    s.until(ev.Popped)
    s.tell(nw.GenerationFailed("run.1.0", "no"))
    s.run(10.0)
    assert sent(s) == [f"run.{i}.0" for i in range(4)]
    assert s.prompts.open[1].failures == 1
    s.tell(nw.PublicationMade(1))
    s.run(1.0)
    assert "run.1.1" in sent(s)
    assert {one.version for one in s.of(do.Dispatch)[4:]} == {1}


def test_a_full_plane_keeps_a_place_for_what_must_go_again() -> None:
    """Else new prompts take it, and a policy that goes by order waits for ever."""
    s = Steering(
        config(policy=in_order(3), max_groups=3, retry_base_s=20.0, retry_cap_s=20.0, max_steps=4),
        fate=lambda d: "fail" if d.group_id == "run.0.0" else "good",
        seed=3,
    ).begin()
    s.run(500.0)
    assert s.attempts[0] == 2
    assert s.state.step == 4
    assert max(save.cursor for save in s.saves) == 8


def test_over_sampling_fills_the_place_of_what_is_dropped() -> None:
    """With a filter that drops half of the groups, steps are as large as they should be, and no prompt is lost."""
    s = (
        Steering(
            config(over_sampling=2.0, max_steps=5), accept=lambda group: int(group.group_id.split(".")[1]) % 2 == 0
        )
        .begin()
        .run()
    )
    assert s.state.step == 5
    assert all(len(step.groups) == 2 for step in s.shop.steps)
    assert s.state.dispatched == s.state.trained + sum(s.state.dropped.values()) + sum(s.state.places.values())


def test_smaller_steps_are_made_if_they_may_be() -> None:
    """With ``min_groups_per_step`` the last prompts of a run are trained, too."""
    last = config(max_prompts=5, max_steps=None)
    assert Steering(last).begin().run().state.places["ready"] == 1
    small = Steering(config(max_prompts=5, max_steps=None, min_groups_per_step=1)).begin().run()
    assert small.state.trained == 5
    assert small.state.places["ready"] == 0


def test_a_new_life_repeats_no_prompt_and_skips_none() -> None:
    """What was under way goes again if it is gone; new prompts go on from the cursor, not beyond the admission."""
    saved = ControllerRecord(run="run", life=1, cursor=3, open=(OpenPrompt(0, 1), OpenPrompt(1, 0), OpenPrompt(2, 4)))
    s = Steering(config(), record=saved, fate=lambda one: "hang")
    s.plane.put("run.1.0", 0)
    s.begin().run(3.0)
    assert sent(s) == ["run.0.2", "run.2.5", "run.3.0"]
    assert s.state.places == {"waiting": 0, "out": 3, "landed": 0, "ready": 1, "training": 0}
