"""How a removal frees bytes, page by page of what the registrar names; the registrar is real, Ray is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from penstock.config import ClientConfig, PlaneConfig
from penstock.errors import DataPlaneClearError, error_of
from penstock.plane.transfer_queue import registrar
from penstock.plane.transfer_queue.client import TransferQueueDataPlaneClient
from penstock.plane.transfer_queue.registrar import Answer, Registrar
from penstock.plane.transfer_queue.stored import Chunk, PutColumn
from penstock.records import KVBatchMeta
from penstock.requests import FieldSpec, RegisterPartition
from penstock.retry import Deadline

PAGE = 3


class FakeDesk:
    """One session, asked directly."""

    def __init__(self) -> None:
        self.registrar = Registrar(PlaneConfig(durability="memory"), incarnation=7)
        self.session = self.registrar.open().session

    def require_open(self) -> None:
        pass

    def ask(self, call: str, _deadline: Deadline, **arguments: Any) -> Answer:
        answer = self.registrar.ask(self.session, call, arguments)
        if answer.code:
            raise error_of(answer.code)(answer.message, **answer.fields)
        return answer

    def freed(self, blocks: Sequence[int]) -> None:
        self.registrar.freed(blocks)


class FakeBlocks:
    """Says what it was told to remove. ``stuck``: blocks that stay."""

    def __init__(self) -> None:
        self.removed: list[int] = []
        self.stuck: set[int] = set()

    def remove(self, numbers: Sequence[int], _deadline: Deadline) -> list[int]:
        self.removed += [number for number in numbers if number not in self.stuck]
        return [number for number in numbers if number in self.stuck]


class Bench:
    """A client whose partition "p" has rows of a block each."""

    def __init__(self, rows: int) -> None:
        self.desk, self.blocks = FakeDesk(), FakeBlocks()
        self.client = TransferQueueDataPlaneClient.__new__(TransferQueueDataPlaneClient)
        self.client._config = ClientConfig()
        self.client._desk = self.desk  # type: ignore[assignment]
        self.client._blocks = self.blocks  # type: ignore[assignment]
        self._ask("register", wanted=RegisterPartition("p", ["x"], rows, ["train"]))
        self.keys = [f"k{i}" for i in range(rows)]
        self.numbers = [self._put(key) for key in self.keys]

    def _ask(self, call: str, **arguments: Any) -> Any:
        return self.desk.ask(call, Deadline(1.0), **arguments).value

    def _put(self, key: str) -> int:
        spec = FieldSpec("x", "int64", 0)
        (number,) = self._ask("grant", partition="p", specs=[spec], blocks=1)
        column, chunk = PutColumn(spec, [8], None), Chunk(number, 1, 256)
        self._ask("commit", partition="p", keys=[key], columns=[column], chunks=[chunk], tags=[{}], content=number)
        return int(number)

    def claim(self) -> KVBatchMeta:
        arguments = {
            "partition_id": "p",
            "task_name": "train",
            "required_fields": ["x"],
            "batch_size": len(self.keys),
            "blocking": False,
        }
        meta: KVBatchMeta = self._ask("claim", ticket="t", arguments=arguments)
        return meta

    @property
    def to_free(self) -> tuple[int, ...]:
        return self.desk.registrar.ask(self.desk.session, "ping", {}).dead


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.plane.transfer_queue.client.MAX_DEAD", PAGE)
    monkeypatch.setattr(registrar, "MAX_DEAD", PAGE)


@pytest.mark.parametrize("rows", [1, PAGE, PAGE + 1, 3 * PAGE])
def test_a_removal_frees_all_that_it_left(rows: int) -> None:
    """Every block of the removed rows is removed before it returns, be they more than one answer names."""
    bench = Bench(rows)
    bench.client.clear_samples(None, "p")
    assert sorted(bench.blocks.removed) == bench.numbers
    assert bench.to_free == ()


def test_bytes_that_stay_are_told_and_freed_by_the_next() -> None:
    """A block that stays, on whichever page, is a DataPlaneClearError; the next removal frees what was left."""
    bench = Bench(3 * PAGE)
    bench.blocks.stuck = {bench.numbers[PAGE + 1]}
    with pytest.raises(DataPlaneClearError):
        bench.client.clear_samples(bench.keys, "p")
    bench.blocks.stuck = set()
    bench.client.clear_samples(["k0"], "p")
    assert sorted(bench.blocks.removed) == bench.numbers


def test_an_ack_is_not_a_removal() -> None:
    """Bytes that an ack could not free are no failure of the ack: its rows are trained. A later removal frees them."""
    bench = Bench(2)
    bench.blocks.stuck = set(bench.numbers)
    bench.client.ack(bench.claim())
    assert bench.to_free == tuple(bench.numbers)
    bench.blocks.stuck = set()
    bench.client.evict(bench.keys, "p")
    assert sorted(bench.blocks.removed) == bench.numbers
