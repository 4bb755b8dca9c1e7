"""Places: together they are all points, and no role is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from penstock.demo.soak.places import PLACES, ROLES, Place, lead_to, select
from penstock.errors import BadArgument
from penstock.points import POINTS

SRC = Path(__file__).parents[3] / "src" / "penstock"


def test_every_point_is_somebodys_place() -> None:
    """A point that is added to the table is struck too; there is no place that is no point, and none stands twice."""
    assert {place.point for place in PLACES} == {point.name for point in POINTS if point.role not in ("host", "store")}
    assert len(set(PLACES)) == len(PLACES)
    assert {place.role for place in PLACES} == set(ROLES)


@pytest.mark.parametrize(
    ("role", "module", "calls"),
    [
        ("worker", "demo/worker.py", {"put_samples"}),
        ("scorer", "demo/scorer.py", {"claim_meta", "get_data", "put_samples", "ack"}),
        ("trainer", "demo/trainer.py", {"get_data"}),
    ],
)
def test_a_role_passes_the_points_of_the_calls_that_it_makes(role: str, module: str, calls: set[str]) -> None:
    """The table of who calls what is that of the code."""
    made = set(re.findall(r"_client\.(\w+)[(,]", (SRC / module).read_text()))
    assert made == calls
    passed = {place.point.removeprefix("client.") for place in PLACES if place.role == role}
    says = {"put_samples": "copied", "claim_meta": "claimed", "get_data": "pinned", "ack": "acked", "pop": "popped"}
    assert passed & set(says.values()) == {says[call] for call in calls}


def test_what_only_a_fault_brings_about_has_one_that_leads_to_it() -> None:
    """A plane replays after a death, ends after SIGTERM; the lead itself comes at a place that is passed often."""
    leads = {place: lead_to(place, 3) for place in PLACES}
    kinds = {place.point: lead.kind for place, lead in leads.items() if lead is not None}
    assert kinds["server.replayed"] == kinds["server.moved"] == kinds["controller.recovering"] == "kill"
    assert kinds["server.stopping"] == kinds["server.ended"] == "terminate"
    assert kinds["server.restated"] == kinds["controller.evicted"] == "kill"
    assert "client.put" not in kinds
    often = {place.point for place in PLACES if place.often}
    assert {lead.point for lead in leads.values() if lead is not None} <= often
    assert not {place.point for place, lead in leads.items() if lead is not None} & often


def test_places_are_chosen_by_role_by_point_or_by_both() -> None:
    """A word may mean several; two words that mean the same mean it once; no word means all."""
    assert select(()) == PLACES
    assert {place.role for place in select(("client.put",))} == {"worker", "scorer"}
    assert select(("worker/client.put", "worker/client.put")) == (Place("worker", "client.put"),)
    assert {place.role for place in select(("trainer", "trainer/trainer.read"))} == {"trainer"}


@pytest.mark.parametrize("word", ["wrker", "worker/server.received", ""])
def test_a_word_that_means_no_place_is_refused(word: str) -> None:
    """It is named, and what there is is said."""
    with pytest.raises(BadArgument, match="roles are worker"):
        select((word,))
