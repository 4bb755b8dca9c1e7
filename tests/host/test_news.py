"""What the plane is told: again until it has heard it, and bounded."""

from __future__ import annotations

from penstock.host.news import MAX_NEWS, News
from penstock.parts import BlockPlace


def at(block_id: int, offset: int = 0) -> BlockPlace:
    return BlockPlace(block_id, 1, offset, 64, 1, 0, 5)


def test_what_was_said_is_said_again_until_it_was_heard() -> None:
    """A report that is not answered changes nothing."""
    news = News()
    news.ended(3)
    news.lost([8], "gone")
    news.moved(at(9))
    said = news.report(4, [1])
    assert said == news.report(4, [1])
    assert (said.after, said.done_with, said.ended, said.lost, said.why) == (4, [1], [3], [8], "gone")
    news.heard(said)
    assert not news
    assert news.moves == 0


def test_losses_of_different_reasons_go_in_different_reports() -> None:
    """A report has one reason; the next one has the other."""
    news = News()
    news.lost([1, 2], "missing")
    news.lost([3], "damaged")
    first = news.report(0, [])
    assert (first.lost, first.why) == ([1, 2], "missing")
    news.heard(first)
    second = news.report(0, [])
    assert (second.lost, second.why) == ([3], "damaged")


def test_a_block_that_moved_again_since_is_told_again() -> None:
    """The answer to a report hears of the place that it held, not of a newer one."""
    news = News()
    news.moved(at(9, 0))
    said = news.report(0, [])
    news.moved(at(9, 64))
    news.heard(said)
    assert news.report(0, []).moved == [at(9, 64)]


def test_a_lost_or_freed_block_has_not_moved() -> None:
    """Nobody is told where something lies that is not there."""
    news = News()
    news.moved(at(1))
    news.moved(at(2))
    news.lost([1], "damaged")
    news.freed(2)
    assert news.report(0, []).moved == []


def test_a_report_is_bounded_and_the_rest_follows() -> None:
    """A host that has lost everything does not send a frame of any size."""
    news = News()
    news.lost(range(MAX_NEWS + 5), "all of it")
    first = news.report(0, list(range(MAX_NEWS + 1)))
    assert len(first.lost) == len(first.done_with) == MAX_NEWS
    news.heard(first)
    assert len(news.report(0, []).lost) == 5


def test_the_first_reason_of_a_loss_counts() -> None:
    """That it is not there any more, said of a block that was damaged, does not hide the damage."""
    news = News()
    news.lost([1], "damaged")
    news.lost([1], "not here")
    assert news.report(0, []).why == "damaged"
