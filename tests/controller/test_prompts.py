"""The prompt ledger: no prompt is lost, none counts twice, and names are read strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.controller.prompts import Prompt, PromptLedger, Where
from penstock.controller.record import ControllerRecord, OpenPrompt
from penstock.records import DataPlaneGroupMeta
from tests.controller.steering import Steering, config


def ledger(**left: object) -> PromptLedger:
    return PromptLedger(ControllerRecord(run="run", **left), 0.0)  # type: ignore[arg-type]


def meta(group_id: str, version: int | None = None) -> DataPlaneGroupMeta:
    return DataPlaneGroupMeta("train", group_id, [f"{group_id}_g0"], weight_version=version, committed=True)


@pytest.mark.parametrize("name", ["run.0.0", "run.1.0", "run.17.203", f"run.{10**17}.0"])
def test_own_group_ids_are_read(name: str) -> None:
    """``run.prompt.attempt``."""
    prompt, attempt = ledger().parse(name) or (-1, -1)
    assert f"run.{prompt}.{attempt}" == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "run",
        "run.",
        "run.1",
        "run.1.",
        "run..1",
        "run.01.0",
        "run.1.00",
        "run.-1.0",
        "run.+1.0",
        "run.1.0.0",
        "run.1_0.0",
        "run.1 .0",
        "run.1.0\n",
        "run.\u0661.0",  # an Arabic digit one
        "run.1.\u00b2",  # a superscript two
        "run.1e3.0",
        "Run.1.0",
        "runs.1.0",
        "other.1.0",
        "1.0",
        "xrun.1.0",
        f"run.{'9' * 19}.0",
        f"run.{'9' * 5000}.0",  # more digits than Python turns into a number
    ],
)
def test_other_group_ids_are_foreign(name: str) -> None:
    """What we would not have written is not ours, and harms nobody."""
    assert ledger().parse(name) is None
    assert ledger().live(name) is None


@given(st.text(max_size=12))
def test_any_text_is_read_as_a_name_or_is_foreign(text: str) -> None:
    """A name that is read is the name that we would write."""
    for name in (text, f"run.{text}", f"run.1.{text}", f"run.{text}.0"):
        if (found := ledger().parse(name)) is not None:
            assert f"run.{found[0]}.{found[1]}" == name


def test_only_the_live_attempt_counts() -> None:
    """An earlier attempt of an open prompt, a later one, and any of a closed prompt are of no account."""
    books = ledger()
    prompt = books.begin(0.0)
    books.again(prompt, 1.0, 1.0, failed=True)
    assert books.live("run.0.0") is None
    assert books.live("run.0.1") is prompt
    assert books.live("run.0.2") is None
    books.close(prompt, None)
    assert books.live("run.0.1") is None


def test_a_prompt_keeps_its_number_and_counts_its_failures() -> None:
    """Each attempt has a group id of its own; only what failed counts as failed."""
    books = ledger()
    prompt = books.begin(0.0)
    books.send_out(prompt, 3, 0.0)
    books.again(prompt, 1.0, 2.0, failed=False)
    assert (prompt.attempt, prompt.failures, prompt.where, prompt.not_before) == (1, 0, Where.WAITING, 2.0)
    assert prompt.version is None
    books.again(prompt, 3.0, 3.0, failed=True)
    assert (prompt.attempt, prompt.failures) == (2, 1)
    assert books.group_id(prompt) == "run.0.2"


def test_a_landed_prompt_is_unseen_until_a_listing_is_asked_for() -> None:
    """A listing that was asked for before tells nothing of its absence."""
    books = ledger()
    prompt = books.begin(0.0)
    books.send_out(prompt, 0, 0.0)
    books.listing_asked()
    books.land(prompt, 1.0)
    assert prompt.unseen
    books.listing_asked()
    assert not prompt.unseen


def test_arrivals_are_counted_in_their_order() -> None:
    """A group that is listed again keeps its place; one that had to leave goes to the end."""
    books = ledger()
    first, second = books.begin(0.0), books.begin(0.0)
    assert books.arrive(second, meta("run.1.0"), 1.0)
    assert books.arrive(first, meta("run.0.0"), 1.0)
    assert not books.arrive(second, meta("run.1.0"), 2.0)
    assert (second.arrived, first.arrived) == (1, 2)
    books.withdraw(second, 3.0)
    assert (second.where, second.group, second.since) == (Where.LANDED, None, 3.0)
    books.withdraw(second, 4.0)
    assert second.since == 3.0  # its grace does not begin anew
    assert books.arrive(second, meta("run.1.0"), 4.0)
    assert second.arrived == 3


def test_the_version_is_that_of_the_rows_else_of_the_dispatch() -> None:
    """A group without a version has the one that its prompt went out with; of a life before, the oldest there is."""
    prompt = Prompt(0, 0, version=4)
    assert prompt.weight_version == 4
    prompt.group = meta("run.0.0", 2)
    assert prompt.candidate("run.0.0").weight_version == 2
    prompt.group = meta("run.0.0")
    assert prompt.weight_version == 4
    assert Prompt(0, 0, group=meta("run.0.0")).weight_version == 0


def test_a_new_life_finds_its_prompts_landed() -> None:
    """Their attempts are over, their versions unknown; a listing yet to be asked for tells what became of them."""
    books = ledger(cursor=5, trained=2, dropped={"stale": 1}, open=(OpenPrompt(1, 2, 3), OpenPrompt(4, 0)))
    books.check_invariants()
    one = books.open[1]
    assert (one.attempt, one.failures, one.where, one.unseen, one.version) == (2, 3, Where.LANDED, True, None)
    assert books.lasting() == (OpenPrompt(1, 2, 3), OpenPrompt(4, 0))
    assert books.begin(0.0).index == 5


def test_books_that_do_not_balance_are_noticed() -> None:
    """A prompt that is in no place, or in two, is a bug."""
    with pytest.raises(AssertionError, match="5 dispatched, 2 trained, 0 dropped, 1 open"):
        ledger(cursor=5, trained=2, open=(OpenPrompt(1, 0),)).check_invariants()
    with pytest.raises(AssertionError):
        ledger(cursor=1, open=(OpenPrompt(4, 0),)).check_invariants()


# -- the source has no more ------------------------------------------------------------------------------------------


def test_prompts_that_the_source_does_not_have_never_were() -> None:
    """The cursor goes back to the first that is missing; nothing is asked for beyond it; the run ends with the rest."""
    s = Steering(config(max_steps=None), fate=lambda d: "no prompt" if d.prompt >= 4 else "good").begin().run()
    assert s.finish is not None
    assert s.finish.reason == "the prompts are used up"
    assert (s.state.dispatched, s.state.trained, s.state.dropped) == (4, 4, {})
    assert max(s.attempts) <= 7


def test_a_source_that_lost_prompts_loses_no_other() -> None:
    """A prompt that was there once, and is not when it goes again, is dropped: later ones are trained all the same."""

    def fate(one: object) -> str:
        group_id = str(getattr(one, "group_id", ""))
        return {"run.1.0": "fail", "run.1.1": "no prompt"}.get(group_id, "good")

    s = Steering(config(max_steps=None, max_prompts=7), fate=fate).begin().run()
    assert s.finish is not None
    assert s.state.dropped == {"no such prompt": 1}
    assert 1 not in s.shop.trained
    assert s.shop.trained[0] == s.shop.trained[2] == 1


def test_a_source_that_shrank_between_two_lives_is_survived() -> None:
    """On resume, prompts that are under way and not there any more are dropped, each by itself."""
    first = Steering(config(max_steps=None), fate=lambda d: "good" if d.prompt < 2 else "hang").begin()
    first.run(5.0)
    assert first.state.dispatched == 6
    s = Steering(config(max_steps=None), last=first, fate=lambda d: "no prompt").begin().run()
    assert s.finish is not None
    assert s.state.dispatched == s.state.trained + sum(s.state.dropped.values())
    assert s.state.trained == 2
