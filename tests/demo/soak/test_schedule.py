"""The schedule: a seed's own, and nobody's else; it meets everybody everywhere."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter

import pytest

from penstock.demo.processes import kind_of
from penstock.demo.soak.places import PLACES, ROLES, Place, select
from penstock.demo.soak.schedule import EVERYBODY, KINDS, STOP_S, Strike, pairs, schedule
from penstock.points import POINTS


def strikes(seed: int, count: int) -> list[Strike]:
    return list(itertools.islice(schedule(seed), count))


def test_a_seed_names_a_schedule() -> None:
    """The same in another process, whatever its hashes are; another one for another seed."""
    code = (
        "import itertools as i, penstock.demo.soak.schedule as s; print(list(i.islice(s.schedule(3), 40)), s.pairs(3))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == f"{strikes(3, 40)} {pairs(3)}"
    assert strikes(3, 40) != strikes(4, 40)
    assert pairs(3) != pairs(4)


@pytest.mark.parametrize("seed", range(5))
def test_each_place_is_struck_once_before_any_is_struck_again(seed: int) -> None:
    """So as many strikes as there are places meet every role at every point, and no more are needed."""
    first, second = _rounds(seed)
    assert first == second == set(PLACES)
    assert {place.point for place in first} == {point.name for point in POINTS if point.role not in ("host", "store")}


def _rounds(seed: int) -> tuple[set[Place], set[Place]]:
    many = strikes(seed, 2 * len(PLACES))
    return {s.place for s in many[: len(PLACES)]}, {s.place for s in many[len(PLACES) :]}


def test_everybody_is_struck_by_everything_alone_in_pairs_and_all_at_once() -> None:
    """In a few rounds there is each kind for each role, each pair of roles, and a moment that hits them all."""
    many = strikes(0, 6 * len(PLACES))
    hit = {(s.kind, kind_of(s.victim)) for strike in many for s in strike.sentences}
    assert hit == set(itertools.product(KINDS, ROLES))
    pairs_hit = {frozenset(s.victim for s in strike.sentences[-2:]) for strike in many if strike.shape == "pair"}
    assert pairs_hit == {frozenset(pair) for pair in itertools.combinations(ROLES, 2)}
    everybody = next(strike for strike in many if strike.shape == "all")
    assert [s.victim for s in everybody.sentences[-len(EVERYBODY) :]] == list(EVERYBODY)
    shares = Counter(strike.shape for strike in many)
    assert shares["single"] > shares["pair"] > shares["all"] > 0.05 * len(many)


def test_strikes_come_at_points_and_between_them() -> None:
    """Some a moment later, up to nearly a third of a second; what is passed seldom is not waited for twice."""
    later = [s.later_s for strike in strikes(1, 300) for s in strike.sentences]
    assert 0.1 < sum(seconds > 0 for seconds in later) / len(later) < 0.5
    assert max(later) > 0.25
    seldom = [s for strike in strikes(1, 300) for s in strike.sentences[-1:] if not strike.place.often]
    assert {(s.nth, s.later_s) for s in seldom} == {(1, 0.0)}


def test_stops_last_from_a_tenth_of_a_second_to_five() -> None:
    """Short ones and long ones."""
    lasting = [s.for_s for strike in strikes(2, 600) for s in strike.sentences if s.kind == "stop"]
    assert STOP_S[0] <= min(lasting) < 0.2
    assert 4.0 < max(lasting) <= STOP_S[1]


def test_the_sentences_of_a_strike_can_be_armed_together() -> None:
    """No two are the same, and what leads to a place comes first."""
    for strike in strikes(5, 400):
        assert len(set(strike.sentences)) == len(strike.sentences), strike
        assert {s.point for s in strike.sentences[-2:]} >= {strike.place.point}


def test_only_what_was_asked_for_is_struck() -> None:
    """Places are the deck; what leads to one comes along."""
    chosen = select(("trainer/client.read", "server.ended"))
    many = list(itertools.islice(schedule(0, chosen), 20))
    assert {strike.place for strike in many} == set(chosen)


def test_all_pairs_of_roles_are_killed_at_one_moment() -> None:
    """Each pair, at places of the one and of the other: two kills, one point, one visit."""
    found = pairs(0)
    met = {frozenset(s.victim for s in strike.sentences) for strike in found}
    assert met == {frozenset(pair) for pair in itertools.combinations(ROLES, 2)}
    assert {s.kind for strike in found for s in strike.sentences} == {"kill"}
    assert all(len({(s.role, s.point, s.nth, s.later_s) for s in strike.sentences}) == 1 for strike in found)
    asked = {(strike.place.role, frozenset(s.victim for s in strike.sentences)) for strike in found}
    assert len(asked) == len(ROLES) * (len(ROLES) - 1)
    assert [strike.number for strike in found] == list(range(1, len(found) + 1))
