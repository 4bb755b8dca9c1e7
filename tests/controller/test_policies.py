"""Staleness policies: what they admit, what they choose, what they call stale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.controller.policies import (
    Candidate,
    StalenessPolicy,
    Standing,
    in_order,
    ready_first,
    weight_fifo,
    windowed,
)
from penstock.errors import BadArgument
from tests.controller.lengths import play
from tests.controller.steering import Steering, config, prompt_of

GATED: list[Any] = [windowed, in_order, weight_fifo, ready_first]
NAMES = ["windowed", "in_order", "weight_fifo", "ready_first"]


def group(prompt: int, version: int, arrived: int | None = None) -> Candidate:
    return Candidate(f"run.{prompt}.0", prompt, version, prompt if arrived is None else arrived)


def standing(ready: Sequence[Candidate] = (), coming: Sequence[tuple[int, int | None]] = (), **facts: Any) -> Standing:
    known: dict[str, Any] = {"version": 5, "batch": 2, "minimum": 2, "training": 0, **facts}
    return Standing(**{"published": known["version"], **known}, ready=ready, coming=coming)


def numbers(chosen: Sequence[Candidate]) -> list[int]:
    return [one.prompt for one in chosen]


# -- admission --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", GATED, ids=NAMES)
@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_admission_is_that_of_the_version_gate(make: Any, ahead: int) -> None:
    """Of ``(eta + v + 1) * batch`` groups, those trained (``v * batch``), running, ready and in training are taken."""
    policy = make(max_lookahead_versions=ahead) if make in (in_order, ready_first) else make(ahead)
    full = (ahead + 1) * 4
    assert policy.admits(standing(batch=4)) == full
    taken = standing([group(1, 5)], [(2, 5), (3, None)], batch=4, training=2)
    assert policy.admits(taken) == max(0, full - 5)


@pytest.mark.parametrize("make", GATED, ids=NAMES)
def test_weights_that_lag_take_of_the_admission(make: Any) -> None:
    """A group that is dispatched with weights that are one version behind may lie ahead one version less."""
    assert make().admits(standing(published=4)) == 2
    assert make().admits(standing(published=3)) == 0


@pytest.mark.parametrize("make", GATED, ids=NAMES)
def test_admission_is_never_negative(make: Any) -> None:
    """More groups than the gate allows (a smaller batch, after a restart) admit none."""
    assert make().admits(standing([group(i, 5) for i in range(9)], training=4)) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: windowed(-1),
        lambda: in_order(-1),
        lambda: weight_fifo(-1),
        lambda: ready_first(-1),
        lambda: ready_first(max_lookahead_versions=-1),
    ],
)
def test_a_negative_window_is_refused(make: Any) -> None:
    """Versions are counted from 0."""
    with pytest.raises(BadArgument, match="must be 0 or more"):
        make()


# -- selection --------------------------------------------------------------------------------------------------------


def test_a_window_ends_where_it_says() -> None:
    """The oldest version that may be trained is the trainer's, less the window; ``in_order`` and the default
    ``ready_first`` know none.
    """
    assert windowed(2).oldest_version(5) == 3
    assert weight_fifo(0).oldest_version(5) == 5
    assert ready_first(3).oldest_version(5) == 2
    assert ready_first().oldest_version(5) is None
    assert in_order().oldest_version(5) is None


def test_windowed_takes_the_oldest_first() -> None:
    """The oldest version, then who came first; what is too old is not chosen although it is still listed."""
    ready = [group(1, 5, 1), group(2, 4, 4), group(3, 4, 3), group(4, 3, 2)]
    assert numbers(windowed(1, wait_for_stragglers=False).select(standing(ready))) == [3, 2]


def test_windowed_takes_the_freshest_first_if_it_is_told_so() -> None:
    """The newest version, then who came first."""
    ready = [group(1, 4, 1), group(2, 5, 3), group(3, 5, 2)]
    policy = windowed(1, sample_freshest_first=True, wait_for_stragglers=False)
    assert numbers(policy.select(standing(ready))) == [3, 2]


def test_windowed_waits_for_a_straggler_that_the_step_would_make_stale() -> None:
    """A group at the edge of the window that is still coming holds the step; a newer one does not."""
    ready = [group(1, 5), group(2, 5)]
    assert windowed(1).select(standing(ready, [(3, 4)])) == ()
    assert numbers(windowed(1).select(standing(ready, [(3, 5)]))) == [1, 2]
    assert numbers(windowed(1).select(standing(ready, [(3, None)]))) == [1, 2]
    assert numbers(windowed(1).select(standing(ready, [(3, 3)]))) == [1, 2]  # it is stale already
    assert numbers(windowed(1, wait_for_stragglers=False).select(standing(ready, [(3, 4)]))) == [1, 2]


def test_windowed_makes_a_small_step_only_if_nothing_goes_stale_by_it() -> None:
    """With a minimum below the batch, a step takes as many as must be gone for the rest to be in time."""
    facts: dict[str, Any] = {"batch": 4, "minimum": 1}
    old = [group(i, 4) for i in range(3)]
    assert numbers(windowed(1).select(standing(old[:1], **facts))) == [0]
    assert numbers(windowed(1).select(standing(old, **facts))) == [0, 1, 2]
    two = [(8, 4), (9, 4)]
    assert windowed(2).select(standing([group(0, 5)], [(i, 4) for i in range(5)], **facts)) == ()
    assert numbers(windowed(2).select(standing([group(0, 5)], two, **facts))) == [0]
    crowd = [(i, 5) for i in range(10, 15)]  # with the one that is ready 6 of this version; the next step takes 4
    assert windowed(1).select(standing([group(0, 5)], crowd, **facts)) == ()
    assert numbers(windowed(1).select(standing([group(0, 5), group(1, 5)], crowd[:4], **facts))) == [0, 1]
    many = [group(i, 5) for i in range(12)]  # over-sampled: a batch is all that a step can take
    assert numbers(windowed(1).select(standing(many, **facts))) == [0, 1, 2, 3]


def test_in_order_trains_prompts_by_number() -> None:
    """However they arrive; what is ready behind a straggler waits, whatever its version."""
    ready = [group(4, 5, 1), group(2, 3, 2), group(3, 5, 3)]
    assert numbers(in_order().select(standing(ready))) == [2, 3]
    assert in_order().select(standing(ready, [(1, 5)])) == ()
    assert in_order().select(standing(ready, [(3, None)])) == ()
    assert numbers(in_order().select(standing(ready, [(4, None)]))) == [2, 3]
    assert numbers(in_order().select(standing(ready, [(3, 5)], minimum=1))) == [2]


def test_in_order_goes_on_when_the_straggler_is_dropped() -> None:
    """A prompt that is given up leaves no hole: the next numbers follow."""
    s = (
        Steering(config(policy=in_order(), max_attempts=1), fate=lambda d: "fail" if d.prompt == 1 else "good")
        .begin()
        .run()
    )
    assert [[g.split(".")[1] for g in step.groups] for step in s.shop.steps] == [["0", "2"], ["3", "4"], ["5", "6"]]
    assert s.state.dropped == {"failed": 1}


def test_ready_first_trains_by_arrival() -> None:
    """Whatever the version, unless a window is set."""
    ready = [group(1, 5, 3), group(2, 0, 1), group(3, 4, 2)]
    assert numbers(ready_first().select(standing(ready))) == [2, 3]
    assert numbers(ready_first(1).select(standing(ready))) == [3, 1]
    assert numbers(ready_first().select(standing(ready, [(9, 4)]))) == [2, 3]


def test_weight_fifo_is_strict() -> None:
    """A newer group waits while an older one is ready or coming; equals do not wait for each other."""
    policy = weight_fifo(2)
    ready = [group(1, 5, 1), group(2, 4, 2), group(3, 4, 3)]
    assert numbers(policy.select(standing(ready))) == [2, 3]
    assert numbers(policy.select(standing(ready, [(9, 4)]))) == [2, 3]
    assert policy.select(standing(ready, [(9, 3)])) == ()
    assert policy.select(standing(ready[:2], [(9, 4)])) == ()  # one of 4 is ready, one is coming; 5 waits
    assert numbers(policy.select(standing(ready[:2], [(9, 2)]))) == [2, 1]  # that one is stale: nobody waits
    assert numbers(policy.select(standing(ready[:2], [(9, None)]))) == [2, 1]


@pytest.mark.parametrize("make", GATED, ids=NAMES)
def test_a_step_takes_a_batch_and_no_less_than_the_minimum(make: Any) -> None:
    """Too few: wait. Between minimum and batch: all. More: a batch."""
    ready = [group(i, 5) for i in range(6)]
    assert make().select(standing(ready[:1], minimum=2, batch=4)) == ()
    assert numbers(make().select(standing(ready[:3], minimum=2, batch=4))) == [0, 1, 2]
    assert numbers(make().select(standing(ready, minimum=2, batch=4))) == [0, 1, 2, 3]


POLICIES: list[StalenessPolicy] = [
    *(windowed(n, fresh, wait) for n in (0, 1, 2) for fresh in (False, True) for wait in (False, True)),
    *(in_order(n) for n in (0, 1)),
    *(ready_first(n) for n in (None, 0, 1)),
    *(weight_fifo(n) for n in (0, 1, 2)),
]
versions = st.integers(0, 6)


@given(
    policy=st.sampled_from(POLICIES),
    ready=st.lists(versions, max_size=12),
    coming=st.lists(st.one_of(st.none(), versions), max_size=6),
    batch=st.integers(1, 5),
    least=st.integers(1, 5),
    numbering=st.randoms(use_true_random=False),
)
def test_what_is_selected_is_fit(
    policy: StalenessPolicy, ready: list[int], coming: list[int | None], batch: int, least: int, numbering: Any
) -> None:
    """Any policy, any standing: nothing stale, nothing twice, nothing that is not ready; minimum to batch, or none."""
    index = list(range(len(ready) + len(coming)))
    numbering.shuffle(index)
    there = [group(index[i], version, i) for i, version in enumerate(ready)]
    out = [(index[len(ready) + i], version) for i, version in enumerate(coming)]
    now = standing(there, out, version=6, batch=batch, minimum=min(least, batch))
    chosen = policy.select(now)
    oldest = policy.oldest_version(now.version)
    assert all(one in there for one in chosen)
    assert len({one.group_id for one in chosen}) == len(chosen)
    assert not chosen or now.minimum <= len(chosen) <= now.batch
    assert oldest is None or all(one.weight_version >= oldest for one in chosen)
    assert policy.admits(now) >= 0


class LastFirst:
    """A user's own policy: the newest prompts first, two steps ahead, nothing too old."""

    def admits(self, now: Standing) -> int:
        return 2 * now.batch - len(now.ready) - len(now.coming) - now.training

    def oldest_version(self, version: int) -> int | None:
        return None

    def select(self, now: Standing) -> Sequence[Candidate]:
        newest = sorted(now.ready, key=lambda one: -one.prompt)
        return newest[: now.batch] if len(newest) == 2 * now.batch else ()


def test_a_policy_of_the_users_own_steers_a_run() -> None:
    """It needs no base class: three methods are enough."""
    s = Steering(config(policy=LastFirst(), max_steps=None, max_prompts=8)).begin().run()
    assert [sorted(prompt_of(group) for group in step.groups) for step in s.shop.steps] == [[2, 3], [4, 5], [6, 7]]


class Forgetful(LastFirst):
    """A bad one: what it selects is not there."""

    def __init__(self) -> None:
        self.asked = 0

    def select(self, now: Standing) -> Sequence[Candidate]:
        self.asked += bool(now.ready)
        return [group(99, 0)] if 0 < self.asked < 10 else super().select(now)


def test_a_policy_that_selects_what_is_not_there_does_not_hold_the_run_up() -> None:
    """Nothing is claimed for it, and the next listing is chosen from anew."""
    policy = Forgetful()
    s = Steering(config(policy=policy, max_steps=None)).begin()
    s.run(30.0)
    assert policy.asked >= 10
    assert s.state.step >= 2


# -- short and long rollouts are treated alike ------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("minimum", [None, 1])
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_dropped_for_its_length(ahead: int, minimum: int | None, seed: int) -> None:
    """Without faults, whatever the lengths, the default policy makes no group stale: each prompt is generated once."""
    told = play(windowed(ahead), steps=40, seed=seed, min_groups_per_step=minimum)
    assert (told.short.attempts, told.long.attempts) == (1.0, 1.0)
    assert (told.stale, told.dropped) == (0, 0)
    assert told.oldest_staleness <= ahead


def test_short_and_long_rollouts_are_treated_alike() -> None:
    """Long ones take ten times as long, and are as large a part of what is trained as of what was asked."""
    told = play(windowed(1), steps=120)
    asked = told.long.prompts / (told.long.prompts + told.short.prompts)
    trained = told.long.trained / (told.long.trained + told.short.trained)
    assert told.long.prompts > 80
    assert abs(asked - trained) < 0.02


def test_without_waiting_long_rollouts_pay_and_are_still_trained() -> None:
    """They go stale far more often than short ones, go again, and none is lost; ``drop`` would lose them."""
    again = play(windowed(1, wait_for_stragglers=False), steps=0, prompts=400)
    assert again.short.attempts < 1.1
    assert again.long.attempts > 1.5 * again.short.attempts
    assert again.dropped == 0
    assert again.trained + again.left == again.prompts
    assert again.left < 2 * 4  # what no step of a whole batch could be made of
    dropped = play(windowed(1, wait_for_stragglers=False), steps=0, prompts=400, on_stale="drop")
    assert dropped.long.trained / dropped.long.prompts < 0.7
    assert dropped.short.trained / dropped.short.prompts > 0.9
