"""The registrar's sessions, grants and blocks, without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneError, error_of
from penstock.plane.transfer_queue.registrar import Answer, Registrar
from penstock.plane.transfer_queue.stored import Chunk, PutColumn
from penstock.requests import FieldSpec, RegisterPartition


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Plane:
    """A registrar, its clock, and partition "p" with field x and task train."""

    def __init__(self, **config: Any) -> None:
        self.clock = Clock()
        self.registrar = Registrar(PlaneConfig(durability="memory", **config), incarnation=7, clock=self.clock)
        self.session = self.registrar.open().session
        self.ask("register", wanted=RegisterPartition("p", ["x"], 4, ["train"]))

    def answer(self, call: str, session: int | None = None, **arguments: Any) -> Answer:
        return self.registrar.ask(session or self.session, call, arguments)

    def ask(self, call: str, session: int | None = None, **arguments: Any) -> Any:
        answer = self.answer(call, session, **arguments)
        if answer.code:
            raise error_of(answer.code)(answer.message, **answer.fields)
        return answer.value

    def put(self, *keys: str, content: int = 1, session: int | None = None) -> list[int]:
        """Grant and commit a put of one block; return its number."""
        spec = FieldSpec("x", "int64", 0)
        numbers: list[int] = self.ask("grant", session, partition="p", specs=[spec], blocks=1)
        self.ask(
            "commit",
            session,
            partition="p",
            keys=list(keys),
            columns=[PutColumn(spec, [8] * len(keys), None)],
            chunks=[Chunk(numbers[0], len(keys), 256)],
            tags=[{} for _ in keys],
            content=content,
        )
        return numbers

    def claim(self, session: int, ticket: str = "t") -> list[str]:
        arguments = {
            "partition_id": "p",
            "task_name": "train",
            "required_fields": ["x"],
            "batch_size": 8,
            "blocking": False,
        }
        keys: list[str] = self.ask("claim", session, ticket=ticket, arguments=arguments).sample_ids
        return keys


def test_a_block_is_free_with_its_last_row() -> None:
    """A block is named as free when no row lies in it any more, until somebody says that it is gone."""
    plane = Plane()
    numbers = plane.put("a", "b")
    assert plane.answer("clear_samples", sample_ids=["a"], partition_id="p").dead == ()
    assert plane.answer("clear_samples", sample_ids=["b"], partition_id="p").dead == tuple(numbers)
    assert plane.answer("ping").dead == tuple(numbers)
    plane.registrar.freed(numbers)
    assert plane.answer("ping").dead == ()
    assert plane.registrar.sizes == {}


def test_writing_again_frees_what_was_replaced() -> None:
    """The block of an earlier version of a field is free once every row of it is written again."""
    plane = Plane()
    first = plane.put("a")
    second = plane.put("a", content=2)
    assert plane.answer("ping").dead == tuple(first)
    where = plane.ask("locate", partition="p", keys=["a"], fields=["x"], drop=False)
    assert where.blocks == [(second[0], 256)]


def test_a_repeated_put_of_removed_rows_frees_its_own_block() -> None:
    """A late copy of a put whose rows were trained changes nothing; its bytes are free."""
    plane = Plane()
    plane.put("a")
    plane.claim(plane.session)
    plane.ask("pop", keys=["a"], partition_id="p")
    again = plane.put("a")
    assert set(again) <= set(plane.answer("ping").dead)
    assert plane.ask("list_metadata", partition_id="p") == []


def test_only_granted_blocks_are_committed() -> None:
    """A commit of blocks that another session was granted, or that were given back, is refused; nothing is visible."""
    plane = Plane()
    other = plane.registrar.open().session
    spec = FieldSpec("x", "int64", 0)
    (number,) = plane.ask("grant", partition="p", specs=[spec], blocks=1)
    commit: dict[str, Any] = {
        "partition": "p",
        "keys": ["a"],
        "columns": [PutColumn(spec, [8], None)],
        "chunks": [Chunk(number, 1, 256)],
        "tags": [{}],
        "content": 1,
    }
    assert plane.answer("commit", other, **commit).code == "DataPlaneUnavailable"
    assert plane.answer("abandon", blocks=[number]).dead == (number,)
    assert plane.answer("commit", **commit).code == "DataPlaneUnavailable"
    assert plane.ask("list_metadata", partition_id="p") == []


def test_a_grant_of_another_type_is_refused_before_bytes_move() -> None:
    """A put whose field has another dtype than before gets no blocks."""
    plane = Plane()
    plane.put("a")
    answer = plane.answer("grant", partition="p", specs=[FieldSpec("x", "float32", 0)], blocks=1)
    assert (answer.code, answer.value) == ("BadArgument", None)


def test_a_silent_session_ends_and_gives_its_leases_back() -> None:
    """A session without a heartbeat for dead_after_s is ended by anybody's: its rows are ready, its grants are free."""
    plane = Plane(heartbeat_s=2.0, dead_after_s=10.0)
    doomed = plane.registrar.open().session
    plane.put("a")
    (granted,) = plane.ask("grant", doomed, partition="p", specs=[FieldSpec("x", "int64", 0)], blocks=1)
    assert plane.claim(doomed) == ["a"]
    for _ in range(6):
        plane.clock.now += 2.0
        assert plane.registrar.beat(plane.session)
    assert plane.claim(plane.session) == ["a"]
    assert granted in plane.answer("ping").dead
    assert plane.answer("ping", doomed).again
    assert not plane.registrar.beat(doomed)


def test_a_registrar_that_was_stopped_buries_nobody() -> None:
    """Who is heard first after a standstill of the registrar itself is heard for all."""
    plane = Plane(heartbeat_s=2.0, dead_after_s=10.0)
    other = plane.registrar.open().session
    plane.clock.now += 1000.0
    assert plane.registrar.beat(plane.session)
    assert plane.registrar.beat(other)


def test_a_claim_nobody_took_is_given_back() -> None:
    """A withdrawn claim's rows are ready again, whether the withdrawal comes after the claim or before it."""
    plane = Plane()
    plane.put("a")
    assert plane.claim(plane.session, "late") == ["a"]
    plane.ask("withdraw", ticket="late")
    plane.ask("withdraw", ticket="early")
    assert plane.claim(plane.session, "early") == ["a"]
    assert plane.claim(plane.session, "taken") == ["a"]


def test_a_registrar_is_deserted_when_the_last_session_has_gone() -> None:
    """Sessions that end, or fall silent while nobody else is there to notice, leave it deserted; one that beats not."""
    plane = Plane(heartbeat_s=2.0, dead_after_s=10.0)
    plane.registrar.open()
    for _ in range(6):
        plane.clock.now += 2.0
        assert plane.registrar.beat(plane.session)
        assert not plane.registrar.is_deserted()
    for _ in range(6):
        plane.clock.now += 2.0
        deserted = plane.registrar.is_deserted()
    assert deserted


def test_what_is_still_to_be_freed_is_named_when_something_has_been() -> None:
    """The answer to a report of freed blocks names the others."""
    plane = Plane()
    first, second = plane.put("a"), plane.put("b")
    assert set(plane.answer("clear_samples", sample_ids=["a", "b"], partition_id="p").dead) == {*first, *second}
    assert plane.answer("freed", blocks=first).dead == tuple(second)


def test_a_refusal_carries_its_fields() -> None:
    """An error's class, keys and partition reach the client."""
    plane = Plane()
    with pytest.raises(KeyError) as caught:
        plane.ask("locate", partition="p", keys=["ghost"], fields=["x"], drop=False)
    error = caught.value
    assert isinstance(error, DataPlaneError)
    assert (error.keys, error.partition) == (["ghost"], "p")


def test_a_bug_is_told_and_survived() -> None:
    """A call that fails for no reason of the tree is a DataPlaneError; the registrar goes on."""
    plane = Plane()
    assert plane.answer("locate", nonsense=1).code == "DataPlaneError"
    assert plane.answer("no such call").code == "DataPlaneError"
    assert plane.ask("list_metadata", partition_id="p") == []
