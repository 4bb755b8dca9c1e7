"""Sentences: plain data, and refused when they make no sense."""

from __future__ import annotations

import pytest

from penstock import points
from penstock.errors import BadArgument
from penstock.points import POINTS
from penstock.testing.faults import Sentence, delay, kill, reached, stop, terminate


@pytest.mark.parametrize("point", [point.name for point in POINTS])
def test_every_point_can_be_named(point: str) -> None:
    """A sentence takes the points of the table, its victim's own and another's."""
    assert kill("trainer", at=point) == Sentence("kill", "trainer", "trainer", point)
    assert kill("plane", at=f"trainer:{point}").role == "trainer"


def test_unknown_point_names_the_nearest() -> None:
    """A name with a dot that is not the table's is refused; the message lists what may have been meant."""
    for at in ("trainer.save", "plane:trainer.save"):
        with pytest.raises(BadArgument, match=r"no point is called 'trainer.save'.*'trainer.saved'"):
            kill("trainer", at=at)
    with pytest.raises(BadArgument, match="the nearest are"):
        stop("trainer", at="no.thing", for_s=1)


def test_a_name_without_a_dot_is_a_tests_own() -> None:
    """Any such name will do: the table does not know what a test's own processes do."""
    assert (
        str(terminate("worker", at="half_way", nth=3, later_s=0.5)) == "terminate worker at worker:half_way #3 + 0.5 s"
    )


def test_who_is_delayed_is_who_is_there() -> None:
    """A delay is of the thread that reached the point: another's point makes no sense."""
    assert str(delay("worker", at="client.copied", for_s=0.2)) == "delay worker for 0.2 s at worker:client.copied #1"
    with pytest.raises(BadArgument, match="use stop"):
        delay("worker", at="trainer:trainer.saved", for_s=0.2)


def test_points_of_the_code_and_of_tests_are_reached_alike() -> None:
    """There is one ``reached``."""
    assert reached is points.reached
