"""Reads over several hosts: where each block is looked for, in which order, and what is said when it is nowhere."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.config import ClientConfig
from penstock.errors import (
    CorruptPayload,
    DataPlaneError,
    DataPlaneNotReady,
    DataPlaneReadError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    StaleSlotError,
    TransportError,
)
from penstock.payload import block, codec
from penstock.payload.block import Bytes
from penstock.plane.contract import DataPlaneClient
from penstock.plane.remote import RemoteDataPlaneClient
from penstock.requests import (
    BlockPlace,
    Call,
    Damaged,
    Hold,
    Locate,
    Located,
    RowIssue,
    Source,
)
from penstock.retry import Deadline
from penstock.transport.loop_thread import Waiting
from penstock.transport.wanted import Fetched, Wanted

from .fake_host import TOKEN, FakeAgent, FakeSite, bodies, host_place, status_of
from .fake_plane import Cut, Move, Silence

OWN, OTHER, THIRD = 7, 8, 9


def encoded(block_id: int, rows: int = 2) -> Bytes:
    """A block of ``rows`` rows of field x: row 0 says the block's number all over, row 1 that and 100 more."""
    batch = codec.encode({"x": (block_id + 100 * torch.arange(rows)).repeat_interleave(40).view(rows, 40)}, rows)
    data = np.zeros(batch.nbytes, np.uint8)
    batch.write_into(data, block_id)
    return data


class Fetches:
    """Stands for the transport. ``lies``: (host, block) -> bytes, or what goes wrong; ``asked``: blocks, by call."""

    def __init__(self) -> None:
        self.lies: dict[tuple[int, int], Bytes | DataPlaneError] = {}
        self.asked: list[list[tuple[int, list[int]]]] = []
        self.took_s = 0.0

    def fetch(
        self, wanted: Sequence[Wanted], deadline: Deadline, waiting: Waiting = nullcontext
    ) -> list[Fetched | DataPlaneError]:
        self.waiting = waiting
        self.asked.append([(one.block_id, [host.host_id for host, _ in one.places]) for one in wanted])
        time.sleep(min(self.took_s, deadline.remaining()))
        return [self._one(one) for one in wanted]

    def _one(self, one: Wanted) -> Fetched | DataPlaneError:
        failure: DataPlaneError = TransportError("nobody is there", code="refused")
        for host, _ in one.places:
            found = self.lies.get((host.host_id, one.block_id), failure)
            if not isinstance(found, DataPlaneError):
                return Fetched(one.block_id, block.parse(found, one.block_id), found, host.host_id)
            failure = found
        return failure

    def close(self) -> None:
        """There is nothing to close."""


class Hall:
    """A client, its plane, its host's agent, and what fetches from others; blocks are put where a test wants them."""

    def __init__(self, tmp_path: Path, **config: Any) -> None:
        self.site, self.agent, self.fetches = FakeSite(), FakeAgent(tmp_path / "host", OWN), Fetches()
        self.located: dict[str, list[BlockPlace]] = {}  # key of a row -> places of its block
        self.rows: dict[str, int] = {}  # key -> which row of the block it is, if not the first
        self.silent: set[int] = set()
        self.site.wrong = lambda call: self.locate(call.body) if isinstance(call.body, Locate) else None
        config = {"timeout_s": 20.0, **config}
        self.client = RemoteDataPlaneClient(
            self.site.url, TOKEN, host_dir=self.agent.folder, config=ClientConfig(**config)
        )
        self.client._reads._blocks.others.fetches = self.fetches  # type: ignore[attr-defined]

    def locate(self, asked: Locate) -> Move:
        issues = [RowIssue(k, "DataPlaneReadError", f"{k} was lost") for k in asked.keys if k not in self.located]
        if issues:
            return Located([], [], [], issues)
        blocks = {places[0].block_id: places for places in (self.located[key] for key in asked.keys)}
        order = list(blocks)
        index = [order.index(self.located[key][0].block_id) for key in asked.keys]
        hosts = sorted({place.host for places in blocks.values() for place in places})
        return Located(
            [places[0] for places in blocks.values()],
            [],
            [Source(["x"], index, [self.rows.get(key, 0) for key in asked.keys])],
            [],
            [place for places in blocks.values() for place in places[1:]],
            sorted((host_place(h) for h in hosts), key=lambda h: h.host_id in self.silent),
        )

    def lay(self, key: str, block_id: int, *hosts: int) -> None:
        """Row ``key`` is row 0 of a block that lies on these hosts, the first of them its own."""
        data = encoded(block_id)
        places = [BlockPlace(block_id, 1, 0, len(data), 1, host=host) for host in hosts]
        if OWN in hosts:
            here = self.agent.place(block_id, len(self.agent.slots), len(data))
            self.agent.slots[block_id] = here
            self.agent.bytes_of(block_id)[:] = data
            places[hosts.index(OWN)] = here
        for host in hosts:
            self.fetches.lies[host, block_id] = data
        self.located[key] = places

    def read(self, *keys: str, timeout_s: float = 20.0) -> list[int]:
        """The block of each row, as its bytes say."""
        client: DataPlaneClient = self.client
        return _numbers(client.get_samples(list(keys), "p", ["x"], timeout_s=timeout_s)["x"])

    def read_what_there_is(self, *keys: str, timeout_s: float = 20.0) -> tuple[list[int], list[str]]:
        table, meta = self.client.get_samples(list(keys), "p", ["x"], on_failed="drop", timeout_s=timeout_s)
        return _numbers(table["x"]), meta.sample_ids

    def close(self) -> None:
        self.client.close()
        self.agent.close()
        self.site.close()


def _numbers(x: object) -> list[int]:
    assert isinstance(x, torch.Tensor)
    assert all(bool((row == row[0]).all()) for row in x)
    return [int(row[0]) for row in x]


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    made = Hall(tmp_path)
    yield made
    made.close()


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.005)


# -- where blocks are looked for --------------------------------------------------------------------------------------


def test_each_block_comes_from_the_nearest_place(hall: Hall) -> None:
    """Those of this host from its memory, all others, together, from their hosts."""
    hall.lay("a", 1, OWN)
    hall.lay("b", 2, OTHER)
    hall.lay("c", 3, OTHER, OWN)
    hall.lay("d", 4, THIRD, OTHER)
    assert hall.read("d", "a", "b", "c", "a") == [4, 1, 2, 3, 1]
    assert [sorted(body.blocks) for body in bodies(hall.agent, Hold)] == [[1, 3]]
    assert hall.fetches.asked == [[(4, [OTHER, THIRD]), (2, [OTHER])]]


def test_a_silent_host_is_asked_last(hall: Hall) -> None:
    """The plane knows who is silent; that it may come back is no reason to wait for it."""
    hall.lay("a", 1, OTHER, THIRD)
    hall.silent = {OTHER}
    assert hall.read("a") == [1]
    assert hall.fetches.asked == [[(1, [THIRD, OTHER])]]


def test_pins_of_this_host_go_back(hall: Hall) -> None:
    """What is not handed out at once, a view when it is gone."""
    hall.lay("a", 1, OWN)
    hall.lay("b", 2, OWN)
    assert hall.read("a", "b") == [1, 2]
    agent = hall.client._host._link
    assert agent is not None
    wait_for(lambda: not agent._courier._pins.held)
    gc.collect()
    assert hall.client._host.arenas.live_views == 0


def test_without_an_agent_everything_is_fetched(tmp_path: Path) -> None:
    """Of its own host too."""
    hall = Hall(tmp_path)
    hall.agent.close()
    try:
        hall.lay("a", 1, OWN, OTHER)
        assert hall.read("a") == [1]
        assert hall.client._host._link is None
        assert len(hall.fetches.asked) == 1
    finally:
        hall.close()


@pytest.mark.parametrize("move", [Cut(), Silence()])
def test_an_agent_that_does_not_answer_is_passed_by(hall: Hall, move: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its listeners may still answer, or the block's other host."""
    monkeypatch.setattr("penstock.plane.remote_blocks.HOLD_S", 0.3)
    hall.lay("a", 1, OWN, OTHER)
    hall.agent.wrong = lambda call: move if isinstance(call.body, Hold) else None
    assert hall.read("a") == [1]
    assert hall.agent.fired > 0
    assert len(hall.fetches.asked) == 1


def test_what_is_no_more_on_this_host_is_fetched_from_the_other(hall: Hall) -> None:
    """The agent says that it is gone, or another block lies there by now."""
    hall.lay("a", 1, OWN, OTHER)
    hall.lay("b", 2, OWN, OTHER)
    del hall.agent.slots[1]
    hall.agent.bytes_of(2)[:] = 0
    assert hall.read("a", "b") == [1, 2]
    assert hall.fetches.asked == [[(1, [OTHER]), (2, [OTHER])]]


def test_what_is_nowhere_where_it_was_is_located_again(hall: Hall) -> None:
    """The block has gone, and the row lies in another by now."""
    hall.lay("a", 1, OWN)
    del hall.agent.slots[1]

    def moved(call: Call) -> Move | None:
        if not isinstance(call.body, Locate):
            return None
        if len(bodies(hall.site, Locate)) == 2:
            hall.lay("a", 5, OTHER)
        return hall.locate(call.body)

    hall.site.wrong = moved
    assert hall.read("a") == [5]


# -- damage -----------------------------------------------------------------------------------------------------------


def damage(data: Bytes) -> Bytes:
    data[-3] ^= 1
    return data


def test_damage_on_this_host_is_reported_and_the_other_serves(hall: Hall) -> None:
    """The read succeeds; the plane is told which host's copy to look at."""
    hall.lay("a", 1, OWN, OTHER)
    hall.fetches.lies[OTHER, 1] = encoded(1)
    damage(hall.agent.bytes_of(1))
    assert hall.read("a") == [1]
    assert bodies(hall.site, Damaged) == [Damaged(1, OWN)]


def test_damage_that_was_passed_by_is_reported_too(hall: Hall) -> None:
    """The block came from its second host, because what the first one sent was damaged."""
    hall.lay("a", 1, OTHER, THIRD)
    data = hall.fetches.lies[THIRD, 1]
    assert isinstance(data, np.ndarray)
    hall.fetches._one = lambda one: Fetched(  # type: ignore[method-assign]
        one.block_id, block.parse(data), data, THIRD, damaged=(OTHER,)
    )
    assert hall.read("a") == [1]
    assert bodies(hall.site, Damaged) == [Damaged(1, OTHER)]


def test_damage_everywhere_is_never_served(hall: Hall) -> None:
    """Read twice, reported for each host, and the error names the rows; the others can still be had."""
    hall.lay("a", 1, OTHER, THIRD)
    hall.lay("b", 2, OWN)
    hall.fetches.lies[OTHER, 1] = hall.fetches.lies[THIRD, 1] = CorruptPayload("field 'x' does not match")
    with pytest.raises(CorruptPayload, match="'a'") as caught:
        hall.read("a", "b")
    assert caught.value.keys == ["a"]
    assert {(body.block_id, body.host) for body in bodies(hall.site, Damaged)} == {(1, OTHER), (1, THIRD)}
    assert len(hall.fetches.asked) == 2
    assert hall.read_what_there_is("a", "b") == ([2], ["b"])


def test_reports_of_much_damage_do_not_outlast_the_deadline(hall: Hall) -> None:
    """A plane that is silent upon the first is not given all the others."""
    keys = [f"k{i}" for i in range(40)]
    for number, key in enumerate(keys, start=1):
        hall.lay(key, number, OTHER)
        hall.fetches.lies[OTHER, number] = CorruptPayload("field 'x' does not match")
    locating = hall.site.wrong
    hall.site.wrong = lambda call: Silence() if isinstance(call.body, Damaged) else locating(call)
    began = time.monotonic()
    with pytest.raises(CorruptPayload, match="'k0'"):
        hall.read(*keys, timeout_s=1.0)
    assert time.monotonic() - began < 10.0
    assert len(bodies(hall.site, Damaged)) in (1, 2)  # one for each attempt


# -- out of reach -----------------------------------------------------------------------------------------------------


def test_rows_of_a_silent_host_are_waited_for_until_the_deadline(hall: Hall) -> None:
    """Then the error says which rows, which host, for how long it has been silent, and that it may come back."""
    hall.lay("a", 1, OTHER)
    hall.lay("b", 2, OWN)
    del hall.fetches.lies[OTHER, 1]
    hall.site.hosts = [status_of(OWN), status_of(OTHER, "silent", 12.3)]
    began = time.monotonic()
    with pytest.raises(DataPlaneUnavailable, match=r"'a'.*may come back.*host8 is silent, for 12\.3 s") as caught:
        hall.read("a", "b", timeout_s=1.0)
    assert 0.5 < time.monotonic() - began < 10.0
    assert caught.value.keys == ["a"]
    assert caught.value.partition == "p"
    assert len(hall.fetches.asked) > 1


def test_a_host_that_comes_back_is_not_noticed(hall: Hall) -> None:
    """What had come is not fetched again."""
    hall.lay("a", 1, OTHER)
    hall.lay("b", 2, THIRD)
    lies = hall.fetches.lies.pop((OTHER, 1))
    real = hall.fetches.fetch

    def fetch(
        wanted: Sequence[Wanted], deadline: Deadline, waiting: Waiting = nullcontext
    ) -> list[Fetched | DataPlaneError]:
        if len(hall.fetches.asked) == 2:
            hall.fetches.lies[OTHER, 1] = lies
        return real(wanted, deadline)

    hall.fetches.fetch = fetch  # type: ignore[method-assign]
    assert hall.read("a", "b") == [1, 2]
    assert [[block_id for block_id, _ in call] for call in hall.fetches.asked] == [[1, 2], [1], [1]]


def test_dropping_leaves_out_what_cannot_be_had_now(hall: Hall) -> None:
    """The rest is delivered after one fetch, not at the deadline; rows may be asked for twice."""
    hall.lay("a", 1, OTHER)
    hall.lay("b", 2, THIRD)
    hall.lay("c", 3, OWN)
    hall.rows = {"c": 1}
    del hall.fetches.lies[OTHER, 1]
    assert hall.read_what_there_is("a", "b", "c", "b") == ([2, 103, 2], ["b", "c", "b"])
    assert len(hall.fetches.asked) == 1


def test_dropping_everything_is_an_empty_table(hall: Hall) -> None:
    """With the columns that were asked for."""
    hall.lay("a", 1, OTHER)
    del hall.fetches.lies[OTHER, 1]
    table, meta = hall.client.get_samples(["a"], "p", ["x"], on_failed="drop")
    assert (list(table.keys()), table.batch_size, meta.sample_ids) == (["x"], torch.Size([0]), [])


def test_a_row_that_is_really_gone_says_so(hall: Hall) -> None:
    """The plane has given the host up: what it says is final, and not waited for."""
    hall.lay("a", 1, OTHER)
    began = time.monotonic()
    with pytest.raises(DataPlaneReadError, match="b was lost"):
        hall.read("a", "b")
    assert time.monotonic() - began < 5.0


def test_a_host_lost_while_it_is_waited_for_ends_the_wait(hall: Hall) -> None:
    """Each try asks the plane first."""
    hall.lay("a", 1, OTHER)
    del hall.fetches.lies[OTHER, 1]

    def lose(call: Call) -> Move | None:
        if not isinstance(call.body, Locate):
            return None
        if len(bodies(hall.site, Locate)) == 3:
            hall.located.clear()
        return hall.locate(call.body)

    hall.site.wrong = lose
    with pytest.raises(DataPlaneReadError, match="a was lost"):
        hall.read("a")
    assert len(bodies(hall.site, Locate)) == 3


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (DataPlaneNotReady("the agent is starting"), DataPlaneUnavailable),
        (DataPlaneTimeout("not in time"), DataPlaneUnavailable),
        (DataPlaneReadError("no memory for it"), DataPlaneReadError),
        (StaleSlotError("another block lies there"), DataPlaneTimeout),
    ],
)
def test_each_failure_of_a_fetch_has_its_meaning(
    hall: Hall, failure: DataPlaneError, raised: type[DataPlaneError]
) -> None:
    """What may come back is waited for, what has moved is located again, what is final is said at once."""
    hall.lay("a", 1, OTHER)
    hall.fetches.lies[OTHER, 1] = failure
    with pytest.raises(raised) as caught:
        hall.read("a", timeout_s=0.5)
    assert str(failure) in str(caught.value)
    assert (len(hall.fetches.asked) == 1) == (raised is DataPlaneReadError)


def test_a_last_try_without_time_does_not_hide_the_reason(hall: Hall) -> None:
    """What the earlier tries said is what the caller reads."""
    hall.lay("a", 1, OTHER)
    tries: list[DataPlaneError] = [TransportError("connection refused", code="refused")]

    def fail(_one: Wanted) -> DataPlaneError:
        return tries.pop() if tries else DataPlaneTimeout("no time")

    hall.fetches._one = fail  # type: ignore[assignment, method-assign]
    with pytest.raises(DataPlaneUnavailable, match="connection refused"):
        hall.read("a", timeout_s=0.4)


def test_a_read_has_time_left_to_say_what_went_wrong(hall: Hall) -> None:
    """A fetch that takes all the time it is given does not make the call late."""
    hall.lay("a", 1, OTHER)
    hall.fetches.lies[OTHER, 1] = DataPlaneTimeout("block 1 has not arrived")
    hall.fetches.took_s = 60.0
    hall.site.hosts = [status_of(OTHER, "silent", 5.0)]
    began = time.monotonic()
    with pytest.raises(DataPlaneUnavailable, match="host8 is silent"):
        hall.read("a", timeout_s=2.0)
    assert time.monotonic() - began < 3.0


def test_a_fetched_block_is_its_readers_own(hall: Hall) -> None:
    """A whole block comes as a view of what was received: a write to it is nobody else's business."""
    hall.lay("a", 1, OTHER)
    (place,) = hall.located["a"]
    whole = Located([place], [], [Source(["x"], [0, 0], [0, 1])], [], [], [host_place(OTHER)])
    hall.site.wrong = lambda call: whole if isinstance(call.body, Locate) else None
    client: DataPlaneClient = hall.client
    x = client.get_samples(["a", "b"], "p", ["x"])["x"]
    assert isinstance(x, torch.Tensor)
    x.zero_()
    received = hall.fetches.lies[OTHER, 1]
    assert isinstance(received, np.ndarray)
    assert not received[-320:].any()
