"""Sums: what fired by kind, role and place; pairs; durations."""

from __future__ import annotations

from penstock.demo.soak import sums
from penstock.demo.soak.opponent import Struck
from penstock.demo.soak.options import PairFigures
from penstock.demo.soak.places import PLACES, Place
from penstock.demo.soak.schedule import Strike
from penstock.demo.soak.verdict import Times
from penstock.demo.soak.view import faults_line
from penstock.testing.faults import Fired, Sentence, kill, stop

HIT = kill("worker-0", at="trainer:trainer.saved")
OTHER = kill("worker", at="client.put")
HELD = stop("plane", at="server.decided", for_s=1.0)


def struck(number: int, sentences: tuple[Sentence, ...], *, over_at: float | None, fired: int) -> Struck:
    strike = Strike(number, "pair", Place("trainer", "trainer.saved"), sentences)
    hits = [Fired(sentence, 1, 10.0 + i) for i, sentence in enumerate(sentences[:fired])]
    return Struck(strike, 9.0, over_at, hits, [f"{sentence}: its time did not come" for sentence in sentences[fired:]])


def test_faults_are_counted_by_kind_and_role_and_by_place() -> None:
    """A slot is its role; where it came is where the point was reached, whoever was hit."""
    fired = [Fired(HIT, 1, 0.0), Fired(OTHER, 2, 0.0), Fired(HELD, 3, 0.0)]
    assert sums.by_kind(fired) == {"kill": {"worker": 2}, "stop": {"plane": 1}, "terminate": {}}
    assert sums.by_place(fired) == {"plane/server.decided": 1, "trainer/trainer.saved": 1, "worker/client.put": 1}
    assert sums.places_struck(fired) == 3
    assert sums.places_struck(fired, [place for place in PLACES if place.role == "plane"]) == 1
    assert faults_line(sums.by_kind(fired)) == "3 faults: 2 kill (worker 2), 1 stop (plane 1)"
    assert faults_line(sums.by_kind([])) == "0 faults: none"


def test_pairs_are_summed_up_in_whatever_order_they_were_named() -> None:
    """The slowest of them is told; one that never fired has none."""
    both = (kill("trainer", at="trainer.saved"), kill("plane", at="trainer:trainer.saved"))
    many = [
        struck(1, both, over_at=13.0, fired=2),
        struck(2, both[::-1], over_at=11.0, fired=1),
        struck(3, (OTHER, HELD), over_at=None, fired=0),
    ]
    assert sums.by_pair(many) == {
        "plane+trainer": PairFigures(strikes=2, fired=3, slowest_s=3.0),
        "plane+worker": PairFigures(strikes=1, fired=0, slowest_s=None),
    }
    assert sums.by_shape(many) == {"pair": Times(count=2, p50=1.0, p95=3.0, max=3.0)}
    assert [said.split(":")[0] for said in sums.never_fired(many)] == ["strike 2", "strike 3", "strike 3"]


def test_durations_are_summed_up_by_role() -> None:
    """A role without any is missing."""
    found = sums.times_by_role({"worker": [1.0, 2.0], "plane": []})
    assert {role: times.max for role, times in found.items()} == {"worker": 2.0}
