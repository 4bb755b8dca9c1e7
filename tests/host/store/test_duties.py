"""What a store's agent has to do and to say, decided without a store and without a plane."""

from __future__ import annotations

import random

import pytest

from penstock.host.store.duties import LATE_PATROLS, Duties
from penstock.hosting import HostReport, Orders


def orders(duties: Duties, number: int, **what: list[int]) -> None:
    """The plane answers the report that the agent would send now."""
    duties.ordered(Orders(number, **what), duties.report())


@pytest.fixture
def duties() -> Duties:
    """Return those of an agent that has enlisted; rows need blocks 1 to 3."""
    made = Duties()
    made.enlisted([1, 2, 3], 10)
    return made


def test_everything_that_rows_need_is_looked_for_after_enlisting(duties: Duties) -> None:
    """Whoever was the agent before may have missed its loss."""
    assert duties.to_survey(2) == [1, 2]
    duties.checked([1, 2])
    assert duties.to_survey(9) == [3]
    duties.checked([3])
    assert duties.idle
    duties.patrol()
    assert duties.to_survey(9) == [1, 2, 3]


def test_an_order_is_stated_back_when_it_is_carried_out_and_not_before(duties: Duties) -> None:
    """And when all those before it are."""
    orders(duties, 11, free=[1], verify=[2])
    orders(duties, 12, adopt=[4])
    assert duties.report().after == 10
    duties.freed([1])
    assert duties.report().after == 10
    duties.checked([2])
    assert duties.report().after == 12


def test_an_order_that_comes_again_is_carried_out_once(duties: Duties) -> None:
    """The plane repeats what was not stated back, also while it is being done and after."""
    said = HostReport(10)
    duties.ordered(Orders(11, free=[1, 2]), said)
    duties.freed([1])
    duties.ordered(Orders(12, free=[1, 2, 3]), said)
    assert duties.to_free(9) == [2, 3]
    duties.freed([2, 3])
    assert duties.report().after == 12
    duties.ordered(Orders(13, free=[1, 2, 3]), said)
    assert not duties.to_free(9)
    assert duties.report().after == 13
    assert duties.counters["store.freed"] == 3


def test_the_answer_to_an_older_report_orders_nothing(duties: Duties) -> None:
    """What it says was said before, by a newer one that may have been heard first."""
    said = HostReport(10)
    duties.ordered(Orders(12, free=[4]), said)
    duties.ordered(Orders(11, adopt=[4]), said)
    duties.ordered(Orders(10), said)
    duties.freed([4])
    duties.patrol()
    assert 4 not in duties.to_survey(9)


def test_what_is_freed_is_not_looked_for(duties: Duties) -> None:
    """It would be reported lost."""
    orders(duties, 11, free=[1])
    assert duties.to_survey(9) == [2, 3]
    duties.lost([1], "gone")
    assert not duties.has_news


def test_a_loss_is_told_until_the_plane_has_answered(duties: Duties) -> None:
    """With its reason; and again after an enlisting, which names the block once more."""
    duties.lost([2], "the store does not have it any more")
    told = duties.report()
    assert (told.lost, told.why) == ([2], "the store does not have it any more")
    duties.enlisted([1, 2, 3], 20)
    assert duties.report().lost == [2]
    duties.ordered(Orders(20), duties.report())
    assert not duties.has_news


def test_blocks_that_no_row_needs_after_an_enlisting_are_freed(duties: Duties) -> None:
    """A plane that forgets its rows with its life has none of them: nobody else would free what is left."""
    orders(duties, 11, free=[1])
    duties.enlisted([3, 5], 30)
    assert sorted(duties.to_free(9)) == [1, 2]
    assert duties.to_survey(9) == [3, 5]
    assert duties.report().after == 30


def test_what_was_never_needed_is_freed_once_more_later(duties: Duties) -> None:
    """Its writer may have been slower than the plane's death, or than its own session's end; others are freed once."""
    orders(duties, 11, free=[1, 7])
    duties.freed([1, 7])
    assert duties.report().after == 11
    for _ in range(LATE_PATROLS - 1):
        duties.patrol()
        duties.checked(duties.to_survey(9))
        assert duties.idle
    duties.patrol()
    assert duties.to_free(9) == [7]
    duties.freed([7])
    for _ in range(2 * LATE_PATROLS):
        duties.patrol()
    assert not duties.to_free(9)


def test_orders_never_get_lost_whatever_comes_late_or_again() -> None:
    """Random orders, repeats, stale answers, losses and enlistings: all is freed in the end, nothing that is needed."""
    for seed in range(60):
        _walk(random.Random(seed))


def _walk(rng: random.Random) -> None:
    duties = Duties()
    needed, unneeded, number, acked = set(range(10)), set[int](), 100, 100
    pending: dict[int, int] = {}  # block that is to be freed -> number of the order
    freed: set[int] = set()
    duties.enlisted(sorted(needed), number)
    answers: list[tuple[Orders, HostReport]] = []
    for step in range(200):
        said = duties.report()
        acked = max(acked, said.after)
        pending = {block: n for block, n in pending.items() if n > acked}
        match rng.randrange(6):
            case 0:
                needed.add(1000 + step)
                number += 1
                answers.append((Orders(number, [1000 + step], list(pending)), said))
            case 1 if needed:
                block = rng.choice(sorted(needed))
                needed.discard(block)
                unneeded.add(block)
                number += 1
                pending[block] = number
                answers.append((Orders(number, [], list(pending)), said))
            case 2 if answers:
                duties.ordered(*rng.choice(answers))
            case 3 if answers:
                duties.ordered(*answers[-1])
            case 4:
                some = duties.to_free(rng.randrange(1, 4))
                assert unneeded.issuperset(some), "what rows need is freed"
                freed.update(some)
                duties.freed(some)
            case 5 if rng.random() < 0.1:
                number += 10
                acked = number
                pending = dict.fromkeys(unneeded - freed, number + 1)
                answers = [(Orders(number + 1, [], list(pending)), HostReport(number))]
                duties.enlisted(sorted(needed), number)
                number += 1
        duties.check_invariants()
    if answers:
        duties.ordered(*answers[-1])
    freed.update(duties.to_free(1000))
    duties.freed(duties.to_free(1000))
    assert freed == unneeded
    assert duties.report().after == number if answers else True
