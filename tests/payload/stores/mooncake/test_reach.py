"""A master that does not answer stops nobody: the library's calls that keep the interpreter's lock are not made."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.payload.stores.contract import Failed, Ok
from penstock.payload.stores.mooncake.config import MooncakeConfig
from penstock.payload.stores.mooncake.reach import Reach
from penstock.payload.stores.mooncake.store import MooncakeStore
from penstock.retry import Deadline
from penstock.testing.mooncake import MooncakeCluster
from tests.mooncake_fixture import StartMooncake

SOON = 30.0
STILL_S = 2.5  # the longest that a thread may stand still; a silent master makes it minutes


@contextmanager
def silent() -> Iterator[str]:
    """Somebody who listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


class Pulse:
    """A thread that wants to run all the time; ``longest_s`` it did not."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat)

    def _beat(self) -> None:
        before = time.monotonic()
        while not self._end.wait(0.02):
            now = time.monotonic()
            self.longest_s, before = max(self.longest_s, now - before), now

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def test_a_place_where_nobody_listens_is_told_at_once(mooncake: MooncakeCluster) -> None:
    """Without a try."""
    began = time.monotonic()
    with pytest.raises(DataPlaneUnavailable, match="refused"):
        Reach(mooncake.config(master="127.0.0.1:1")).before_setup(Deadline(SOON))
    assert time.monotonic() - began < 2.0


def test_a_master_that_is_none_is_told_within_the_deadline(mooncake: MooncakeCluster) -> None:
    """Somebody else listens there: the library would try for minutes, in a process that ends before."""
    with silent() as address, Pulse() as pulse:
        began = time.monotonic()
        with pytest.raises(DataPlaneUnavailable, match="did not answer as a Mooncake master"):
            Reach(mooncake.config(master=address)).before_setup(Deadline(1.0))
        assert time.monotonic() - began < SOON / 2
    assert pulse.longest_s < STILL_S


def test_a_metadata_server_that_is_silent_is_told(mooncake: MooncakeCluster) -> None:
    """It is asked by every client that is set up."""
    with silent() as address, pytest.raises(DataPlaneUnavailable, match="timed out"):
        Reach(mooncake.config(metadata=f"http://{address}/metadata", metrics="")).before_setup(Deadline(0.3))


def test_a_client_is_closed_where_the_master_is_dead_and_not_where_it_is_silent() -> None:
    """A port that is closed is found out at once; silence is not."""
    gone = MooncakeConfig(master="127.0.0.1:1", metadata="http://127.0.0.1:1/metadata")
    assert Reach(gone).before_close(Deadline(SOON))
    with silent() as address:
        hung = MooncakeConfig(master=address, metadata=f"http://{address}/metadata")
        assert not Reach(hung).before_close(Deadline(0.3))


@pytest.mark.slow
def test_a_master_that_hangs_stops_no_thread(mooncakes: StartMooncake) -> None:
    """Calls end at their deadlines, a store does not open, another closes; and all goes on when the master does."""
    cluster = mooncakes(owners=1)
    with MooncakeStore(cluster.config()) as store:
        assert store.put_many(["k"], [b"v"], Deadline(SOON)) == [Ok(nbytes=1)]
        other = MooncakeStore(cluster.config())
        with Pulse() as pulse:
            cluster.pause_master()
            for _ in range(3):  # the first two leave calls behind, the third finds no connection
                began = time.monotonic()
                (outcome,) = store.get_many(["k"], [1], Deadline(0.5))
                assert isinstance(outcome, Failed)
                assert outcome.reason == "deadline"
                assert time.monotonic() - began < SOON / 4
            with pytest.raises(DataPlaneUnavailable):
                MooncakeStore(cluster.config(open_timeout_s=0.5))
            other.close(0.5)
            cluster.resume_master()
        assert pulse.longest_s < STILL_S
        assert store.get_many(["k"], [1], Deadline(SOON)) == [Ok(memoryview(b"v"), 1)]
