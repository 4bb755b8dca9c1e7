"""The watchdog: when nothing moves, it says what is missing and who owes it."""

from __future__ import annotations

from typing import Any

from penstock.controller import effects as do
from penstock.controller import events as ev
from penstock.controller import news as nw
from penstock.controller.policies import windowed
from penstock.controller.record import ControllerRecord, OpenPrompt
from tests.controller.steering import Steering, config


def said(s: Steering) -> str:
    """Return what the run waits for."""
    return "\n".join(s.machine.owed(s.now))


def hanging(**options: Any) -> Steering:
    s = Steering(config(stall_timeout_s=30.0, **options), fate=lambda one: "hang").begin()
    s.run(1.0)
    return s


# -- what it says -----------------------------------------------------------------------------------------------------


def test_it_says_that_the_plane_is_away() -> None:
    """And nothing else: all the rest follows from it."""
    s = Steering()
    s.plane.up = False
    s.begin().run(1.0)
    assert said(s) == "the plane is away: not reached yet"
    s = hanging()
    s.plane.up = False
    s.until(ev.Paused)
    assert said(s) == "the plane is away: the plane does not answer"


def test_it_says_that_generators_owe_groups() -> None:
    """How many, and which one is the oldest, and since when."""
    s = hanging()
    assert "generators owe 4 groups; the oldest is 'run.0.0', sent out 1.0 s ago" in said(s)
    assert "0 of 2 groups that a step needs are ready" in said(s)


def test_it_says_that_the_trainer_owes_an_answer_or_cannot_be_asked() -> None:
    """Before its first step as after a failed one, and why it could not be asked."""
    s = Steering(rules={do.AskTrainer: lambda one: None}).begin()
    s.run(1.0)
    assert "the trainer owes an answer to where it stands\n" in said(s) + "\n"
    s.tell(nw.TrainerSilent("no route to host"))
    assert "the trainer could not be asked where it stands, lately because of: no route to host" in said(s)
    s.run(6.0)
    assert "the trainer owes an answer to where it stands, lately because of: no route to host" in said(s)
    s.tell(nw.TrainerStands(None))
    s.run(1.0)
    assert "where it stands" not in said(s)


def test_it_says_that_the_trainer_owes_a_step() -> None:
    """Since when, and which attempt it is; or why the last one failed."""
    s = Steering(config(retry_base_s=100.0, retry_cap_s=100.0), rules={do.Train: lambda one: None}).begin()
    s.until(do.Train)
    s.run(7.0)
    assert "the trainer owes step 1: ordered 7.0 s ago, attempt 1" in said(s)
    s.tell(nw.StepFailed(1, "out of memory"))
    assert "step 1 failed 1 times, lately because of: out of memory" in said(s)


def test_it_says_that_weights_are_not_published() -> None:
    """Which, and why not."""
    s = Steering(rules={do.Publish: lambda one: nw.PublicationFailed(0, "no such host")}).begin()
    s.until(do.Publish)
    assert "the weights of version 0 are not published\n" in said(s) + "\n"
    s.run(1.0)
    assert "the weights of version 0 are not published, lately because of: no such host" in said(s)


def test_it_says_that_groups_are_not_fit() -> None:
    """They are generated, and a stage, a row or a commit is missing."""
    s = Steering(config(ready_tag="scored")).begin()
    s.run(3.0)
    assert "4 groups are generated and not fit to be trained" in said(s)
    assert "'run.0.0', 'run.1.0', 'run.2.0', 'run.3.0'" in said(s)
    assert "scored" in said(s)


def test_it_says_why_prompts_wait_to_go_again() -> None:
    """By reason, the most frequent first."""
    s = Steering(
        config(retry_base_s=100.0, retry_cap_s=100.0), fate=lambda d: "fail" if d.prompt < 3 else "rejected"
    ).begin()
    s.run(2.0)
    assert "3 prompts wait to go again after: it was fail" in said(s)


def test_it_says_why_nothing_is_dispatched() -> None:
    """The user's gate, a full plane, or the policy."""
    s = hanging()
    assert "admits no more" not in said(s), "those who generate owe something: that says it"
    s.tell(nw.GateClosed("an incident"))
    assert "dispatch is paused by the user: an incident" in said(s)
    assert "the run holds all of its max_groups = 2 groups in the plane" in said(hanging(max_groups=2))
    unscored = Steering(config(ready_tag="scored")).begin()
    unscored.run(2.0)
    assert "the policy Windowed admits no more prompts at version 0" in said(unscored)


def test_it_says_which_replicas_are_missing_or_silent() -> None:
    """Roles that have nobody, and who has not been heard for half of what buries him."""
    s = hanging(needs=("rollout", "trainer"), startup_grace_s=1000.0)
    assert "there is no rollout replica" in said(s)
    assert "there is no trainer replica" in said(s)
    s.tell(nw.ReplicaJoined("gpu0", "trainer"))
    s.tell(nw.ReplicaJoined("cpu7", "rollout"))
    s.tell(nw.ReplicaJoined("watched", "rollout", beats=False))
    assert "replica" not in said(s)
    s.run(6.0)
    s.tell(nw.Heard("cpu7"))
    assert "the trainer replica 'gpu0' has been silent for 6.0 s" in said(s)
    assert "cpu7" not in said(s)
    assert "watched" not in said(s)


# -- when it says it --------------------------------------------------------------------------------------------------


def stalls(s: Steering) -> list[ev.Stalled]:
    return s.of(ev.Stalled)


def test_a_run_that_moves_is_not_alarmed() -> None:
    """However slow: each piece of progress counts anew."""
    s = Steering(config(stall_timeout_s=30.0, max_steps=5), length=lambda one: 20.0, train_s=20.0).begin().run()
    assert s.state.step == 5
    assert stalls(s) == []
    assert s.of(do.AskWhy) == []


def test_it_warns_again_and_again() -> None:
    """Every ``stall_timeout_s``, with what the plane says, while nothing moves; and the run goes on."""
    s = hanging()
    s.why = ["partition 'train' is full"]
    s.run(99.0)
    assert [round(event.seconds) for event in stalls(s)] == [30, 60, 90]
    assert stalls(s)[0].owed[-1] == "partition 'train' is full"
    assert "generators owe 4 groups" in " ".join(stalls(s)[0].owed)
    assert s.finish is None


def test_it_warns_while_the_plane_is_away() -> None:
    """Without asking it."""
    s = hanging(recover_deadline_s=1000.0)
    s.plane.up = False
    s.until(ev.Paused)
    s.run(70.0)
    assert [event.owed for event in stalls(s)] == [["the plane is away: the plane does not answer"]] * 2
    assert s.of(do.AskWhy) == []


def test_it_ends_the_run_if_it_is_told_so() -> None:
    """With exactly what it would have warned of, and attempts that are out are given up."""
    s = hanging(on_stall="abort")
    s.why = ["partition 'train' is full"]
    s.run(99.0)
    assert s.finish is not None
    assert not s.finish.ok
    assert s.finish.reason.startswith("nothing moved for 30 s: 0 of 2 groups")
    assert s.finish.reason.endswith("partition 'train' is full")
    assert len(s.of(do.Cancel)) == 4
    assert len(stalls(s)) == 1


def test_it_ends_the_run_while_the_plane_is_away() -> None:
    """If it is told so; and nothing is done after that."""
    s = hanging(on_stall="abort", recover_deadline_s=1000.0)
    s.plane.up = False
    s.run(99.0)
    assert s.finish is not None
    assert "the plane is away" in s.finish.reason


def test_there_is_no_alarm_while_the_gate_is_closed() -> None:
    """Who closed it knows why nothing moves; when it opens, time counts from then."""
    s = hanging()
    s.tell(nw.GateClosed("an incident"))
    s.run(200.0)
    assert stalls(s) == []
    s.tell(nw.GateOpened())
    s.run(29.0)
    assert stalls(s) == []
    s.run(2.0)
    assert [round(event.seconds) for event in stalls(s)] == [30]


def test_a_step_that_hangs_is_told_although_the_gate_is_closed() -> None:
    """The gate is about dispatching: what the trainer owes, it owes."""
    s = Steering(config(stall_timeout_s=30.0), rules={do.Train: lambda one: None}).begin()
    s.until(do.Train)
    s.tell(nw.GateClosed("an incident"))
    s.run(32.0)
    assert len(stalls(s)) == 1
    assert any("the trainer owes step 1" in sentence for sentence in stalls(s)[0].owed)


def test_there_is_no_alarm_if_it_moved_meanwhile() -> None:
    """The plane takes its time to say why, and a group arrives: the answer is out of date."""
    s = hanging()
    s.rules[do.AskWhy] = lambda one: None
    s.until(do.AskWhy)
    s.plane.put("run.0.0", 0)
    s.tell(nw.Generated("run.0.0"))
    s.until(ev.Committed)
    s.tell(nw.Explained(["everything is fine"]))
    assert stalls(s) == []
    s.until(do.AskWhy)
    s.tell(nw.Explained([]))
    assert len(stalls(s)) == 1


def test_the_plane_is_asked_once_at_a_time() -> None:
    """An answer that does not come is not asked for again and again."""
    s = hanging()
    s.rules[do.AskWhy] = lambda one: None
    s.run(500.0)
    assert len(s.of(do.AskWhy)) == 1


def test_a_controller_that_was_stopped_itself_raises_no_alarm() -> None:
    """The time in which it was stopped is nobody's fault."""
    s = hanging()
    s.now += 3600.0
    s.tell(nw.Ticked())
    s.run(20.0)
    assert stalls(s) == []
    s.run(20.0)
    assert len(stalls(s)) == 1


def test_waiting_for_a_straggler_is_explained() -> None:
    """A step that waits for a group at the edge of the window is not a riddle: who owes it is named."""
    saved = ControllerRecord(run="run", life=1, cursor=2, open=(OpenPrompt(0, 0), OpenPrompt(1, 0)))
    s = Steering(config(policy=windowed(0)), record=saved, fate=lambda d: "hang" if d.prompt == 0 else "good").begin()
    s.run(5.0)
    assert "generators owe 1 groups; the oldest is 'run.0.1'" in said(s)


def test_groups_are_not_missed_when_there_are_enough() -> None:
    """A step that waits for the weights to be published does not lack groups."""
    s = Steering(rules={do.Publish: lambda one: nw.PublicationMade(0) if one.version == 0 else None}).begin()
    s.until(ev.Popped)
    s.run(5.0)
    assert s.state.places["ready"] == 2
    assert said(s).startswith("the weights of version 1 are not published")
    assert "groups that a step needs" not in said(s)
