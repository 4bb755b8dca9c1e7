"""What a client sends may be absurd: it is refused with a reason, and nothing grows without end."""

from __future__ import annotations

import math
from typing import Any

import pytest

from penstock.errors import BadArgument
from penstock.ledger import machine
from penstock.ledger.events import SessionOpens
from penstock.ledger.limits import MAX_FIELDS, MAX_NAME, MAX_QUEUES, MAX_REASONS
from penstock.records import GroupPolicy, as_int
from penstock.requests import (
    Claim,
    Evict,
    FieldSpec,
    Grant,
    ListMetadata,
    OpenSession,
    Pop,
    RegisterPartition,
    TagColumn,
    Tokens,
)
from tests.ledger.office import Office, group_tags


@pytest.fixture
def office() -> Office:
    made = Office()
    made.open(1)
    made.open(2)
    made.register()
    return made


def spec(name: str = "x") -> FieldSpec:
    return FieldSpec(name, "int64", 1)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (Grant("p", ["a"], [spec()], [], 0, [0]), "BadArgument"),
        (Grant("p", ["a"], [spec("x" * 2000)], [], 64, [0]), "BadArgument"),
        (Grant("p", ["a"], [spec(str(i)) for i in range(MAX_FIELDS + 1)], [], 64, [0]), "BadArgument"),
        (Grant("p", ["a"], [spec()], [TagColumn("t" * 2000, [1])], 64, [0]), "BadArgument"),
        (Grant("p", ["a"], [spec()], [], (1 << 64) - 1, [1]), "DataPlaneFull"),
        (Grant("p", ["a"], [spec()], [TagColumn("num_keys", ["9" * 4300])], 640, [100]), "granted"),
        (Grant("p", ["a"], [spec()], [TagColumn("num_keys", [1e300])], 640, [100]), "granted"),
        (Grant("p", ["a"], [spec()], [TagColumn("num_keys", [10**9])], 640, [100]), "DataPlaneFull"),
        (Claim("p", "train", ["x" * 2000], 1, blocking=False), "BadArgument"),
        (Claim("p", "train", [], 1, blocking=False, lease_s=math.nan), "BadArgument"),
        (RegisterPartition("q", [], 1, ["t" * 2000]), "BadArgument"),
        (RegisterPartition("q", [], 1, ["t"], group_size=1 << 62), "BadArgument"),
        (RegisterPartition("q" * 2000, [], 1, ["t"]), "BadArgument"),
        (RegisterPartition("q", ["f" * 2000], 1, ["t"]), "BadArgument"),
        (Pop("p", ["a"], Tokens([], [7])), "BadArgument"),
        (Pop("p", ["a"], Tokens(["1-1"], [-9])), "BadArgument"),
        (Pop("p", ["a"], Tokens(["1-1"], [0, 0])), "BadArgument"),
    ],
)
def test_absurd_requests_are_answered(office: Office, body: Any, code: str) -> None:
    """Each gets a reply that says what is wrong; none ends the plane."""
    assert getattr(office.ask(1, body), "code", "ok") == code


def test_numbers_that_no_message_can_carry_are_no_numbers(office: Office) -> None:
    """A tag of 4300 digits, or of 1e300, parses as nothing, so that a listing can be encoded."""
    assert as_int("9" * 4300) is None
    assert as_int(1e300) is None
    office.put_done(1, ["a"], tags=[TagColumn("weight_version", [1e300]), TagColumn("num_keys", ["9" * 30])])
    (group,) = office.ask(1, ListMetadata("p")).groups  # type: ignore[union-attr]
    assert (group.weight_version, group.expected_num_keys) == (None, None)


def test_a_tag_cannot_promise_a_group_all_of_the_plane(office: Office) -> None:
    """A group that is there cannot be declared larger than any plane: its promise would stop every new group."""
    office.put_done(1, ["a"], tags=group_tags("g", 2))
    assert office.tag(1, ["a"], expected_num_keys=10**12).code == "DataPlaneFull"  # type: ignore[union-attr]
    office.put_done(2, ["b"])


@pytest.mark.parametrize("seconds", [math.nan, -1.0])
def test_a_policy_has_a_deadline_that_comes(seconds: float) -> None:
    """NaN would stand in the way of every timer behind it."""
    with pytest.raises(BadArgument):
        GroupPolicy(deadline_s=seconds, on_deadline="drop")


def test_a_secret_may_be_any_text(office: Office) -> None:
    """A wrong one is refused, whatever it is made of."""
    assert office.resume(1, "sécret").code == "DataPlaneUnavailable"  # type: ignore[union-attr]


def test_claims_cannot_open_queues_without_end(office: Office) -> None:
    """Each distinct set of required fields costs every later put a look."""
    for i in range(MAX_QUEUES):
        office.claim(1, required=[f"f{i}"])
    office.fails(1, Claim("p", "train", ["one more"], 1), "BadArgument")
    office.claim(1, required=["f7"])


def test_claims_cannot_name_fields_without_end(office: Office) -> None:
    """Each has a bit in every mask."""
    office.fails(1, Claim("p", "train", [f"f{i}" for i in range(MAX_FIELDS + 1)], 1), "BadArgument")


def test_reasons_beyond_the_limit_are_counted_together(office: Office) -> None:
    """``stale at step 1``, ``stale at step 2``, ...: the audit stays small, and holds."""
    for i in range(MAX_REASONS + 10):
        office.put_done(1, [f"k{i}"])
        office.evict(1, [f"k{i}"], f"reason {i}")
    assert len(office.audit().evicted) == MAX_REASONS + 1
    assert office.audit().evicted["other"] == 10
    office.crash()
    assert office.resume(1)
    assert office.audit().evicted["other"] == 10


def test_a_client_that_never_says_done_is_stopped(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its replies are kept for it, so it may not have any number of them; saying done lets it go on."""
    monkeypatch.setattr(machine, "MAX_REPLIES", 20)
    for i in range(19):
        office.done(1, Evict("p", [f"k{i}"], "why"))
    assert "replies wait" in office.fails(1, Evict("p", ["k"], "why"), "DataPlaneBadRequest", seq=90).message
    assert len(office.ledger.desk.state.sessions[1].replies) == 20
    office.done(1, Evict("p", ["k"], "why"), seq=90, done_below=90)


def test_names_have_a_length(office: Office) -> None:
    """The longest that is allowed, and one more."""
    office.put_done(1, ["k" * MAX_NAME])
    assert office.put(1, ["k" * (MAX_NAME + 1)]).code == "BadArgument"  # type: ignore[union-attr]


def test_what_a_session_says_of_itself_has_a_length(office: Office) -> None:
    """It is repeated in every status and in every story of a row."""
    request = OpenSession(1, 9, "o" * 5000, "r" * 5000, "h" * 5000, 1)
    office.event(SessionOpens(9, "s", 0, request, 0.0))
    assert len(office.ledger.desk.state.sessions[9].who()) < 3 * MAX_NAME


def test_what_a_session_says_of_itself_is_fit_for_a_terminal(office: Office) -> None:
    """Escape sequences and line ends go no further."""
    office.event(SessionOpens(9, "s", 0, OpenSession(1, 9, "o\n\x1b[31m", "r", "h\x07", 1), 0.0))
    assert office.ledger.desk.state.sessions[9].who().isprintable()


def test_a_refused_late_put_says_what_became_of_the_rows(office: Office) -> None:
    """Trained is another story than evicted."""
    office.put_done(1, ["a", "b"])
    office.pop(1, ["a"])
    office.evict(1, ["b"])
    late = office.put(1, ["a", "b"], content=5)
    assert "removed (evicted or trained)" in late.message  # type: ignore[union-attr]
