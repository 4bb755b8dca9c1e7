"""Messages: closed records that survive a line of JSON."""

from __future__ import annotations

import msgspec
import pytest

from penstock.demo.messages import (
    Become,
    Order,
    PromptRef,
    Ready,
    RolledOut,
    Rollout,
    Said,
    StepRecord,
    Train,
    Trained,
    Unreadable,
    group_of,
    prompt_of,
)
from penstock.records import KVBatchMeta

META = KVBatchMeta(
    "p", "train", ["a", "b"], fields=["x"], tags=[{"weight_version": 1}, {"weight_version": 2}], lease=("7:1",)
)
RECORD = StepRecord(step=3, keys=["a"], xxh3=["ff"], weight_versions=[2], lease=["7:1"], reward=0.5)


@pytest.mark.parametrize("order", [Rollout(3, [PromptRef(1, 0)]), Train(4, META), Become("worker-0.3")])
def test_orders_survive_the_pipe(order: Order) -> None:
    """A lease stays the tuple of tokens that it was."""
    assert msgspec.json.decode(msgspec.json.encode(order), type=Order) == order


@pytest.mark.parametrize(
    "said",
    [
        Ready(),
        Ready(RECORD),
        RolledOut([PromptRef(1, 2)], 0.5, 1.5),
        Trained(RECORD, 2.5),
        Unreadable(4, ["a"], "lost"),
    ],
)
def test_answers_survive_the_pipe(said: Said) -> None:
    """What a role says is what is heard."""
    assert msgspec.json.decode(msgspec.json.encode(said), type=Said) == said


@pytest.mark.parametrize("line", [b"{}", b'{"type":"Nonsense"}', b'{"type":"Ready","more":1}', b"[]", b"\xff"])
def test_anything_else_is_refused(line: bytes) -> None:
    """The union is closed, unknown fields included."""
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(line, type=Said)


@pytest.mark.parametrize("ref", [PromptRef(0, 0), PromptRef(123456789, 12)])
def test_a_group_names_its_attempt(ref: PromptRef) -> None:
    """A group id and an attempt are two ways to say the same."""
    assert prompt_of(group_of(ref)) == ref
