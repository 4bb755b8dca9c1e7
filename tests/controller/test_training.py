"""The train pump: a step is made in order, once, under one lease, whatever fails."""

from __future__ import annotations

import pytest

from penstock.controller import effects as do
from penstock.controller import events as ev
from penstock.controller import news as nw
from penstock.controller.config import ControllerConfig
from penstock.controller.policies import windowed
from penstock.controller.record import ControllerRecord, OpenPrompt
from penstock.controller.roles import StepRecord, TrainResult
from penstock.records import DataPlaneCapabilities
from tests.controller.steering import Plane, Shop, Steering, config

NOISE = ("Generated", "Dispatch", "List", "> Listed", "> Generated", "Committed", "> Ticked")
CALLS = {"Register", "List", "Claim", "Release", "Pop", "Evict"}


def seeded(settings: ControllerConfig, plane: Plane, record: StepRecord | None, saved: ControllerRecord) -> Steering:
    """Return a life that finds this plane, this trainer and this record."""
    s = Steering(settings, record=saved)
    s.plane, s.shop = plane, Shop(record=record)
    return s


def made(step: int, *groups: str, lease: str = "t1") -> StepRecord:
    keys = [f"{group}_g{i}" for group in groups for i in range(2)]
    return StepRecord(step=step, keys=keys, groups=list(groups), lease=[lease])


# -- the order of a step ----------------------------------------------------------------------------------------------


def test_a_step_is_made_in_order() -> None:
    """Claimed, ordered, durable, popped, saved, published; only then the next one is claimed."""
    s = Steering().begin()
    s.until(do.Claim)
    s.clear()
    s.until(do.Claim)
    assert s.moves(*NOISE) == [
        "> Leased",
        "Claimed",
        "Ordered",
        "Train",
        "> StepMade",
        "Trained",
        "Pop",
        "> RowsGone",
        "Save",
        "Popped",
        "Publish",
        "> PublicationMade",
        "Save",  # of the prompts that go out now
        "Published",
        "Claim",
    ]


def test_rows_are_popped_under_the_token_of_their_lease() -> None:
    """Exactly the keys that were leased, with the token that the record holds."""
    s = Steering().begin().run()
    assert [(pop.keys, pop.lease) for pop in s.of(do.Pop)] == [
        (tuple(step.keys), tuple(step.lease)) for step in s.shop.steps
    ]
    assert all(step.lease for step in s.shop.steps)
    assert s.plane.rows == {}
    assert s.plane.evicted == {}


def test_nothing_is_popped_before_the_step_is_durable() -> None:
    """While the trainer is at it, rows stay, and their groups take up room."""
    s = Steering(rules={do.Train: lambda one: None}).begin()
    s.until(do.Train)
    s.run(50.0)
    assert s.of(do.Pop) == []
    assert s.state.places["training"] == 2
    assert s.state.dispatched == 4  # (1 + 1) batches, not more


def test_a_plane_without_leases_is_given_no_tokens() -> None:
    """What it did not hand out, it is not asked to check."""
    s = Steering()
    s.plane.capabilities = DataPlaneCapabilities(incarnation=1)
    s.begin().run()
    assert s.state.step == 3
    assert [pop.lease for pop in s.of(do.Pop)] == [(), (), ()]


# -- a step fails -----------------------------------------------------------------------------------------------------


def failing(times: int, s: Steering) -> None:
    """Have the trainer fail so often."""
    left = [times]

    def rule(one: do.Train) -> nw.News:
        left[0] -= 1
        return (
            nw.StepFailed(one.step, "out of memory") if left[0] >= 0 else nw.StepMade(s.shop.make(one.step, one.meta))
        )

    s.rules[do.Train] = rule


def test_a_step_that_failed_goes_again_under_the_same_lease() -> None:
    """The trainer is asked first where it stands; then the same rows, the same token, and nothing is claimed anew."""
    s = Steering()
    failing(3, s)
    s.begin()
    s.until(do.Train)
    s.clear()
    s.until(ev.Popped)
    again = [move for move in s.moves(*NOISE) if not move.startswith(">") and move not in ("Save", "Popped", "Publish")]
    assert again == ["AskTrainer", "Ordered", "Train"] * 3 + ["Trained", "Pop"]
    assert [(event.attempt, event.why) for event in s.of(ev.Ordered)] == [(n, "out of memory") for n in (2, 3, 4)]
    orders = s.of(do.Train)
    assert {(one.step, tuple(one.meta.sample_ids), one.meta.lease) for one in orders} == {
        (1, tuple(s.shop.steps[0].keys), ("t1",))
    }


def test_a_step_that_keeps_failing_is_ordered_less_and_less_often() -> None:
    """Back-off grows with the attempts, although the trainer answers each time when it is asked."""
    s = Steering(config(max_attempts=100, retry_base_s=1.0, retry_cap_s=64.0))
    s.rules[do.Train] = lambda one: nw.StepFailed(one.step, "no")
    s.begin()
    when = []
    for _ in range(9):
        s.until(do.Train, seconds=500.0)
        when.append(s.now)
    early, late = when[3] - when[0], when[8] - when[5]
    assert late > 3 * early


def test_a_step_that_failed_too_often_ends_the_run() -> None:
    """After ``max_attempts``, saying why; the rows stay for the next life, which asks the trainer first."""
    s = Steering(config(max_attempts=4))
    s.rules[do.Train] = lambda one: nw.StepFailed(one.step, "no GPU")
    s.begin().run()
    assert s.finish == do.Finish("step 1 failed 4 times: no GPU", ok=False)
    assert len(s.of(do.Train)) == 4
    assert s.of(do.Pop) == []


def test_a_step_that_failed_after_it_was_durable_is_not_made_again() -> None:
    """The trainer's own record is believed, not the failure."""
    s = Steering()

    def rule(one: do.Train) -> nw.News:
        s.shop.make(one.step, one.meta)
        return nw.StepFailed(one.step, "the connection broke after the save")

    s.rules[do.Train] = rule
    s.begin().run()
    assert s.finish is not None
    assert s.finish.ok
    assert len(s.of(do.Train)) == 3
    assert set(s.shop.trained.values()) == {1}


def test_a_silent_trainer_is_asked_again() -> None:
    """With back-off, and without a listing being judged meanwhile: nobody knows what it has trained."""
    s = Steering(config(retry_base_s=1.0, retry_cap_s=8.0), rules={do.AskTrainer: lambda one: nw.TrainerSilent("dead")})
    s.begin().run(60.0)
    asked = len(s.of(do.AskTrainer))
    assert 8 < asked < 60
    assert s.of(do.List) == []
    assert s.of(do.Dispatch) == []
    del s.rules[do.AskTrainer]
    s.run()
    assert s.state.step == 3


# -- rows of the step -------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_read_are_evicted_and_the_rest_is_free() -> None:
    """Their prompt goes again at once and counts a failure; the others' go into the next step as they are."""
    s = Steering()
    told: list[do.Train] = []

    def rule(one: do.Train) -> nw.News:
        told.append(one)
        if len(told) == 1:
            return nw.StepUnreadable(1, ["run.0.0_g1"], "checksum")
        return nw.StepMade(s.shop.make(one.step, one.meta))

    s.rules[do.Train] = rule
    s.begin()
    s.until(do.Release)
    assert s.of(do.Release)[0].meta is told[0].meta
    s.run()
    assert s.state.step == 3
    assert s.plane.evicted == {"run.0.0_g1": "unreadable", "run.0.0_g0": "abandoned"}
    assert [(event.prompt, event.why) for event in s.of(ev.Again)] == [(0, "checksum")]
    assert s.shop.trained[0] == s.shop.trained[1] == 1
    assert s.now < 110.0  # nobody waited for a grace


def test_groups_that_can_never_be_read_are_given_up() -> None:
    """Each unreadable attempt counts; the prompt is dropped and the run goes on."""
    s = Steering(config(max_attempts=3, max_prompts=8, max_steps=None))

    def rule(one: do.Train) -> nw.News:
        bad = [key for key in one.meta.sample_ids if key.startswith("run.1.")]
        return nw.StepUnreadable(one.step, bad, "bad") if bad else nw.StepMade(s.shop.make(one.step, one.meta))

    s.rules[do.Train] = rule
    s.begin().run()
    assert s.finish is not None
    assert s.state.dropped == {"failed": 1}
    assert s.shop.trained[1] == 0


def test_a_pop_whose_rows_are_gone_pops_the_rest() -> None:
    """Somebody evicted a row of the step: it is told as lost; the step counts, for the trainer has made it."""
    s = Steering().begin()
    s.until(do.Train)
    gone = s.of(do.Train)[0].meta.sample_ids[1]
    s.plane.answer(do.Evict((gone,), "by hand"))
    s.run()
    first, second, *_ = s.of(do.Pop)
    assert set(first.keys) - set(second.keys) == {gone}
    assert s.of(ev.Popped)[0].lost == [gone]
    assert s.state.step == 3
    assert set(s.shop.trained.values()) == {1}


def test_a_step_all_of_whose_rows_are_gone_counts() -> None:
    """A plane that came back empty while the trainer was at it: the step is made, its prompts are trained."""
    s = Steering().begin()
    s.until(do.Train)
    s.plane.restart(keep=False)
    s.run()
    assert s.state.step == 3
    assert set(s.shop.trained.values()) == {1}


@pytest.mark.parametrize("keys", [[], ["run.99.0_g0"]])
def test_a_pop_that_is_refused_for_nothing_ends_the_run(keys: list[str]) -> None:
    """A refusal that names no row of the step would come for ever."""
    s = Steering(rules={do.Pop: lambda one: nw.Refused(keys, "because")})
    s.begin().run()
    assert s.finish == do.Finish("a pop was refused, and no row of it named: because", ok=False)


def test_a_refused_claim_is_chosen_anew() -> None:
    """A row was removed meanwhile: the next listing tells, and the step is made of others."""
    s = Steering().begin()
    s.until(do.Claim)
    s.plane.answer(do.Evict(("run.0.0_g0",), "by hand"))
    s.run()
    assert s.state.step == 3
    assert s.shop.trained[0] == 1
    assert s.attempts[0] == 2


def test_an_empty_claim_is_tried_again_at_the_next_listing() -> None:
    """Rows that a dead session still holds: nothing spins meanwhile, and its end frees them."""
    s = Steering(config(list_every_s=0.5)).begin()
    s.until(do.Claim)
    s.plane.held.update(dict.fromkeys(s.plane.rows, "of the dead"))
    s.clear()
    s.run(10.0)
    assert 15 <= len(s.of(do.Claim)) <= 21
    s.plane.held.clear()
    s.run()
    assert s.state.step == 3


def test_a_claim_that_lacks_a_row_is_given_back() -> None:
    """The plane died after it had decided, and one of the rows is lost: no step is made of the rest of its group."""
    s = Steering(rules={do.Claim: lambda one: None}).begin()
    s.until(do.Claim)
    asked = s.of(do.Claim)[-1]
    del s.rules[do.Claim]
    s.plane.answer(do.Evict(asked.keys[:1], "lost"))
    s.answered(s.plane.answer(do.Claim(asked.keys[1:])))
    assert [one.meta.sample_ids for one in s.of(do.Release)] == [list(asked.keys[1:])]
    assert s.of(do.Train) == []
    s.run()
    assert s.state.step == 3
    assert s.attempts[0] == 2


def test_a_release_that_is_refused_for_a_row_frees_the_others() -> None:
    """A row of the step that came to nothing is somebody else's by now: the rest must not stay leased."""
    s = Steering(rules={do.Train: lambda one: None}).begin()
    s.until(do.Train)
    s.plane.held["run.1.0_g0"] = "somebody else's"
    del s.rules[do.Train]
    s.tell(nw.StepUnreadable(1, ["run.0.0_g1"], "checksum"))
    s.until(do.Release)
    s.run(1.0)
    assert [one.meta.sample_ids for one in s.of(do.Release)] == [
        ["run.0.0_g0", "run.0.0_g1", "run.1.0_g0", "run.1.0_g1"],
        ["run.0.0_g0", "run.0.0_g1", "run.1.0_g1"],
    ]
    assert set(s.plane.held.values()) <= {"somebody else's", "t2"}


# -- publication ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
def test_nothing_goes_on_before_the_weights_are_published(version: int) -> None:
    """Neither a step nor the dispatch of new prompts; publication is tried again, less and less often."""
    s = Steering(config(policy=windowed(0), retry_base_s=1.0, retry_cap_s=8.0))
    s.rules[do.Publish] = lambda one: (
        nw.PublicationFailed(1, "no") if one.version == version else nw.PublicationMade(one.version)
    )
    s.begin().run(60.0)
    assert (s.state.step, s.state.published) == (version, version - 1 if version else None)
    assert len(s.of(do.Dispatch)) == len(s.of(do.Claim)) * 2 == 2 * version
    assert 8 < len(s.of(do.Publish)) < 60
    del s.rules[do.Publish]
    s.run()
    assert s.state.step == 3
    assert [event.version for event in s.of(ev.Published)] == [0, 1, 2, 3]


# -- the controller's next life ---------------------------------------------------------------------------------------


def cut(at: type, rule: str = "never") -> Steering:
    """Return a life that was killed when it wanted ``at``."""
    s = Steering(config(max_steps=2), rules={at: lambda one: None}).begin()
    s.until(at)
    return s


def test_a_new_life_pops_what_is_recorded_before_it_claims_or_lists() -> None:
    """With the recorded keys and tokens; the step is not made again, its prompts are trained once."""
    first = cut(do.Pop)
    s = Steering(config(max_steps=2), last=first).begin()
    s.until(do.List)
    assert [move for move in s.trail if move in CALLS] == ["Register", "Pop", "List"]
    assert s.of(do.Pop) == [do.Pop(tuple(first.shop.steps[0].keys), tuple(first.shop.steps[0].lease))]
    assert s.of(do.Train) == []
    s.run()
    assert s.state.step == 2
    assert set(s.shop.trained.values()) == {1}
    assert s.state.trained == 4


def test_a_new_life_does_not_pop_twice() -> None:
    """Killed after the pop, before it was saved: the repeat under the same tokens is no error."""
    first = cut(do.Pop)
    assert isinstance(first.plane.answer(first.of(do.Pop)[0]), nw.RowsGone)
    s = Steering(config(max_steps=2), last=first).begin().run()
    assert s.of(ev.Popped)[0].lost == []
    assert s.state.trained == 4
    assert set(s.shop.trained.values()) == {1}


def test_a_new_life_waits_for_a_step_that_was_not_durable() -> None:
    """Killed while the trainer was at it: it stands at the step before; the rows are claimed when their lease ends."""
    first = cut(do.Train)
    s = Steering(config(max_steps=2), last=first).begin()
    s.until(do.Claim)
    s.plane.held.clear()  # the dead session's end
    s.run()
    assert s.state.step == 2
    assert set(s.shop.trained.values()) == {1}
    assert s.plane.evicted == {}


def test_nothing_is_judged_before_the_trainer_has_answered() -> None:
    """However long that takes: a prompt that looks lost may have been trained."""
    first = cut(do.Pop)
    s = Steering(config(max_steps=2), last=first, rules={do.AskTrainer: lambda one: None}).begin()
    s.run(30.0)
    assert [move for move in s.trail if move in CALLS] == ["Register"]
    assert s.of(do.Publish) == []


def test_a_trainer_that_went_back_is_refused() -> None:
    """Its checkpoint is older than the run: rows of the steps between are gone."""
    saved = ControllerRecord(run="run", life=1, step=3, cursor=6, trained=6)
    s = seeded(config(), Plane(), made(2, "run.2.0"), saved).begin().run()
    assert s.finish is not None
    assert (s.finish.ok, s.finish.went_back) == (False, True)
    assert "step 2, the run at step 3" in s.finish.reason
    assert s.of(do.List) == []
    assert s.of(do.Publish) == []
    none = seeded(config(), Plane(), None, saved).begin().run()
    assert none.finish is not None
    assert none.finish.went_back


def test_a_trainer_that_is_two_steps_ahead_is_refused() -> None:
    """It was trained by another run, or the run's record is an old one."""
    saved = ControllerRecord(run="run", life=1, step=3, cursor=6, trained=6)
    s = seeded(config(max_steps=9), Plane(), made(5, "run.2.0"), saved).begin().run()
    assert s.finish is not None
    assert (s.finish.ok, s.finish.went_back) == (False, False)
    assert "step 5, the run at step 3" in s.finish.reason


def test_a_new_run_goes_on_from_a_trainer_that_has_made_steps() -> None:
    """Its first version is the trainer's; the rows of the last step, if they are still there, are popped."""
    plane = Plane()
    plane.put("old.7.0", 4)
    plane.put("old.8.0", 4)
    s = seeded(config(max_steps=7), plane, made(5, "old.7.0", lease=""), ControllerRecord(run="run")).begin()
    s.run()
    assert [event.step for event in s.of(ev.Trained)] == [5, 6, 7]
    assert s.of(do.Publish)[0].version == 5
    assert {one.version for one in s.of(do.Dispatch)} == {5}
    assert set(s.plane.rows) == {"old.8.0_g0", "old.8.0_g1"}  # another run's, and nobody's business
    assert s.state.trained == 4


def test_a_trainer_that_records_what_was_over_is_refused() -> None:
    """A prompt that was trained before would count twice."""
    plane = Plane()
    saved = ControllerRecord(run="run", life=1, step=4, cursor=9, trained=8, open=(OpenPrompt(8, 0),))
    s = seeded(config(max_steps=7), plane, made(5, "run.8.0", "run.3.0"), saved).begin().run()
    assert s.finish is not None
    assert not s.finish.ok
    assert "'run.3.0', and that prompt was over" in s.finish.reason


def test_a_run_that_has_settled_a_step_has_nothing_of_it_under_way() -> None:
    """A record whose step is one too high would send out again what that step has trained."""
    plane = Plane()
    saved = ControllerRecord(run="run", life=1, step=5, cursor=9, trained=8, open=(OpenPrompt(8, 0),))
    s = seeded(config(max_steps=7), plane, made(5, "run.8.0"), saved).begin().run()
    assert s.finish is not None
    assert not s.finish.ok
    assert "'run.8.0' is under way, and the trainer has trained it" in s.finish.reason


@pytest.mark.parametrize(
    "saved", [ControllerRecord(run="run"), ControllerRecord(run="run", life=1, step=4, cursor=9, trained=9)]
)
def test_a_record_that_was_lost_or_is_an_older_copy_is_refused(saved: ControllerRecord) -> None:
    """The trainer has trained a prompt of this run that the record does not know: it would be trained twice."""
    s = seeded(config(max_steps=7), Plane(), made(5, "run.8.0", "run.9.0"), saved).begin().run()
    assert s.finish is not None
    assert not s.finish.ok
    assert "'run.9.0'" in s.finish.reason or "'run.8.0'" in s.finish.reason
    assert "controller.json" in s.finish.reason
    assert s.of(do.Dispatch) == []


def test_a_run_that_has_begun_does_not_jump() -> None:
    """A record with prompts and no step is not a new run: the trainer cannot be far ahead of it."""
    saved = ControllerRecord(run="run", life=1, cursor=1, open=(OpenPrompt(0, 0),))
    s = seeded(config(), Plane(), made(5, "run.0.0"), saved).begin().run()
    assert s.finish is not None
    assert not s.finish.ok


def test_another_batch_than_ours_is_settled_by_the_record() -> None:
    """The order of a life before was carried out late: its rows are popped, ours are given back and trained later."""
    first = cut(do.Train)
    s = Steering(config(max_steps=2), last=first, rules={do.Train: lambda one: None}).begin()
    s.plane.held.clear()
    order = s.until(do.Train)
    theirs = made(1, "run.2.0", "run.1.0", lease="t1")
    s.shop.record = theirs
    s.plane.held.update(dict.fromkeys([f"run.2.0_g{i}" for i in range(2)], "t1"))
    del s.rules[do.Train]
    s.tell(nw.StepMade(TrainResult(record=theirs)))
    s.until(do.Release)
    assert s.of(do.Pop)[0].keys == tuple(theirs.keys)
    assert s.of(do.Pop)[0].lease == ("t1", *(order.meta.lease or ()))
    assert set(order.meta.sample_ids) - set(theirs.keys) == set(s.of(do.Release)[0].meta.sample_ids)
    s.run()
    assert s.state.step == 2
    assert s.state.trained == 4
    assert s.shop.trained == {0: 1, 3: 1}  # by this life; 1 and 2 were in the other one's batch
    assert s.plane.held == {}


def test_a_record_settles_a_prompt_whichever_attempt_is_live() -> None:
    """Trained is trained: a later attempt that is on its way is of no use any more."""
    saved = ControllerRecord(run="run", life=1, cursor=2, open=(OpenPrompt(0, 1), OpenPrompt(1, 0)))
    plane = Plane()
    plane.put("run.0.1", 0)
    plane.put("run.1.0", 0)
    s = seeded(config(max_steps=2), plane, made(1, "run.0.0", "run.1.0"), saved)
    s.plane.popped.update(dict.fromkeys(["run.0.0_g0", "run.0.0_g1"], "t1"))
    s.plane.held.update(dict.fromkeys(["run.1.0_g0", "run.1.0_g1"], "t1"))
    s.begin().run()
    assert s.state.step == 2
    assert s.plane.evicted == {"run.0.1_g0": "superseded", "run.0.1_g1": "superseded"}
    assert s.shop.trained == {2: 1, 3: 1}


@pytest.mark.parametrize("number", [1, 3])
def test_a_step_of_the_wrong_number_ends_the_run(number: int) -> None:
    """A trainer that says it made another step than the one that comes is not this run's."""
    s = Steering().begin()
    s.until(ev.Popped)
    s.rules[do.Train] = lambda one: nw.StepMade(TrainResult(record=made(number, "run.0.0")))
    s.run()
    assert s.finish is not None
    assert (s.finish.ok, s.finish.went_back) == (False, number == 1)
