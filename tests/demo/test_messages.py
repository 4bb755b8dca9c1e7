"""Messages: closed records that survive a line of JSON."""

from __future__ import annotations

import msgspec
import pytest

from penstock.demo.messages import (
    Answer,
    Attempt,
    Become,
    Hello,
    Here,
    Joined,
    Left,
    Letter,
    News,
    Note,
    Order,
    Ready,
    RolledOut,
    Rollout,
    StepRecord,
    Train,
    Trained,
    Unreadable,
    Worked,
    group_of_key,
    letter,
    prompt_of,
)
from penstock.demo.rows import group_keys
from penstock.records import KVBatchMeta

META = KVBatchMeta(
    "p", "train", ["a", "b"], fields=["x"], tags=[{"weight_version": 1}, {"weight_version": 2}], lease=("7:1",)
)
RECORD = StepRecord(step=3, keys=["a"], xxh3=["ff"], weight_versions=[2], lease=["7:1"], reward=0.5)


def through_the_pipe(message: Order | Answer | Note | News, kind: object) -> object:
    line = letter("trainer-0.3", "controller-0.1", message, 7)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    found = msgspec.json.decode(line, type=Letter)
    assert (found.to, found.sender, found.number) == ("trainer-0.3", "controller-0.1", 7)
    return msgspec.json.decode(found.body, type=kind)


@pytest.mark.parametrize("order", [Hello(), Rollout(3, [Attempt(1, "run.1.0")]), Train(4, META), Become("worker-0.3")])
def test_orders_survive_the_pipe(order: Order) -> None:
    """A lease stays the tuple of tokens that it was."""
    assert through_the_pipe(order, Order) == order


@pytest.mark.parametrize("answer", [Here(), Here(RECORD), RolledOut(), Trained(RECORD), Unreadable(4, ["a"], "lost")])
def test_answers_survive_the_pipe(answer: Answer) -> None:
    """What a role says is what is heard."""
    assert through_the_pipe(answer, Answer) == answer


@pytest.mark.parametrize("note", [Ready(), Worked(1.5)])
def test_notes_survive_the_pipe(note: Note) -> None:
    """What a peer tells the launcher is what the launcher hears."""
    assert through_the_pipe(note, Note) == note


@pytest.mark.parametrize("news", [Joined("worker-0.3"), Left("worker-0.3")])
def test_news_survive_the_pipe(news: News) -> None:
    """Who came and who went is what the controller hears."""
    assert through_the_pipe(news, News) == news


@pytest.mark.parametrize("line", [b"{}", b'{"type":"Nonsense"}', b'{"type":"RolledOut","more":1}', b"[]", b"\xff"])
def test_anything_else_is_refused(line: bytes) -> None:
    """The union is closed, unknown fields included."""
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(line, type=Answer)


@pytest.mark.parametrize("group", ["run.0.0", "run.123456789.12"])
def test_names_tell_what_they_name(group: str) -> None:
    """A key names its group and a group its prompt, so what was removed row by row is known prompt by prompt."""
    assert {group_of_key(key) for key in group_keys(group, 12)} == {group}
    assert prompt_of(group) == int(group.split(".")[1])
