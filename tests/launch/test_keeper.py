"""A keeper and real planes: kept, started again, left to linger, taken over, ended; no Ray is needed for any of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from penstock.errors import DataPlaneUnavailable
from penstock.launch.keeper import Keeper, Standing
from penstock.launch.tether import mark_path, start_of
from penstock.plane.local import LocalDataPlaneClient
from penstock.wire.paths import arena_files

SMALL = ["--set", "max_bytes=16e6", "--set", "warm_bytes=1e6"]


class Bench:
    """Keepers of one plane's directory, of which all are closed in the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keepers: list[Keeper] = []

    def keeper(self, *options: str, linger_s: float = 30.0, command: Callable[[], list[str]] | None = None) -> Keeper:
        words = ["serve", "--data-dir", str(self.folder), *SMALL, *options]
        keeper = Keeper(self.folder, command or (lambda: words), linger_s=linger_s)
        self.keepers.append(keeper)
        keeper.begin()
        return keeper

    def close(self) -> None:
        assert all(keeper.close(30.0) for keeper in self.keepers)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path / "plane")
    yield found
    found.close()


def until(keeper: Keeper, wanted: Callable[[Standing], bool], timeout_s: float = 30.0) -> Standing:
    deadline = time.monotonic() + timeout_s
    while not wanted(now := keeper.standing()):
        assert time.monotonic() < deadline, now
        time.sleep(0.01)
    return now


def ready(keeper: Keeper, lives: int = 1) -> Standing:
    return until(keeper, lambda now: now.state == "ready" and now.lives >= lives)


def orphan(keeper: Keeper) -> int:
    """End the keeper as kill -9 of its process would: its end of the tether closes, and nobody starts another."""
    pid = keeper.standing().pid
    keeper._folder = keeper._folder / "nowhere"  # what is dead looks after nothing
    keeper._told_to_end.set()
    assert keeper._tether is not None
    keeper._tether.shutdown(socket.SHUT_RDWR)
    keeper._thread.join(30)
    return pid


def put(client: LocalDataPlaneClient, key: str) -> None:
    client.put_samples([key], "p", {"x": torch.zeros(1, 2)})


def until_gone(pid: int, timeout_s: float = 30.0) -> None:
    deadline, began = time.monotonic() + timeout_s, start_of(pid)
    while start_of(pid) == began and not is_zombie(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_zombie(pid: int) -> bool:
    """Nobody's child is reaped by whoever is process 1, which may not be in a hurry."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_it_serves_and_says_what_it_is(bench: Bench) -> None:
    """The process is nobody's child, and what it printed when it served is known."""
    now = ready(bench.keeper("--listen", "127.0.0.1:0"))
    assert now.said["url"].startswith("penstock://127.0.0.1:")
    assert (now.pid, now.lives, now.why) == (now.said["pid"], 1, "")
    parent = int(Path(f"/proc/{now.pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent != now.keeper
    with LocalDataPlaneClient(bench.folder) as client:
        assert client.status().partitions == []


def test_a_process_that_is_killed_is_followed_by_another_with_its_rows(bench: Bench) -> None:
    """A client lives through it; why the first ended is told until the keeper ends."""
    keeper = bench.keeper()
    first = ready(keeper)
    with LocalDataPlaneClient(bench.folder) as client:
        client.register_partition("p", ["x"], num_samples=4, consumer_tasks=["t"])
        put(client, "a")
        keeper.kill()
        second = ready(keeper, lives=2)
        assert client.audit().partitions[0].put == 1
    assert second.pid != first.pid
    assert f"process {first.pid} ended without a word, as by kill -9" in second.why
    assert second.code is None


def test_one_that_lost_its_keeper_goes_on_until_the_next_takes_its_place(bench: Bench) -> None:
    """It answers meanwhile; the successor kills it, and has its rows out of shared memory and journal."""
    first = bench.keeper()
    ready(first)
    with LocalDataPlaneClient(bench.folder) as client:
        client.register_partition("p", ["x"], num_samples=4, consumer_tasks=["t"])
        pid = orphan(first)
        put(client, "a")
        assert client.audit().partitions[0].put == 1
        second = bench.keeper()
        now = ready(second)
        assert now.pid != pid
        until_gone(pid)
        assert client.audit().partitions[0].put == 1
    assert not mark_path(bench.folder).exists()


def test_one_whose_keeper_never_comes_back_ends_in_order(bench: Bench) -> None:
    """What it held of shared memory is free again; its rows are in its directory."""
    keeper = bench.keeper(linger_s=0.5)
    ready(keeper)
    assert arena_files(bench.folder)
    until_gone(orphan(keeper))
    assert not arena_files(bench.folder)
    assert not mark_path(bench.folder).exists()
    assert "ended: SIGTERM" in (bench.folder / "plane.log").read_text()


def test_one_that_is_told_to_end_at_once_ends_what_it_finds(bench: Bench) -> None:
    """In order, and before it says that it has ended: its actor was killed just before the run was closed."""
    first = bench.keeper()
    ready(first)
    pid = orphan(first)
    deadline = time.monotonic() + 10
    while not mark_path(bench.folder).exists():
        assert time.monotonic() < deadline
    second = Keeper(bench.folder, list)
    second.end()
    second.begin()
    assert second.close(30.0)
    assert second.standing().state == "ended"
    assert is_zombie(pid) or start_of(pid) == 0
    assert not arena_files(bench.folder)


def test_two_keepers_do_not_take_turns_at_killing(bench: Bench) -> None:
    """A second one that comes while the first lives waits, and says for whom."""
    first = bench.keeper()
    pid = ready(first).pid
    second = bench.keeper()
    why = until(second, lambda now: now.why != "" and now.lives >= 2).why
    assert f"is served by process {pid} already" in why
    assert (first.standing().pid, first.standing().lives) == (pid, 1)
    first.close()
    ready(second)


def test_a_command_that_cannot_be_had_is_asked_for_again(bench: Bench) -> None:
    """As while the plane's actor is away: the reason is told, and it starts once it can."""
    may = threading.Event()

    def command() -> list[str]:
        if not may.is_set():
            raise DataPlaneUnavailable("its plane is away")
        return ["serve", "--data-dir", str(bench.folder), *SMALL]

    keeper = bench.keeper(command=command)
    now = until(keeper, lambda now: now.why != "")
    assert (now.lives, now.pid, "its plane is away" in now.why) == (0, 0, True)
    may.set()
    ready(keeper)


def test_a_wrong_option_is_told_in_the_words_of_the_command(bench: Bench) -> None:
    """With the exit code by which the launcher knows that waiting will not mend it."""
    now = until(bench.keeper("--set", "max_bites=1"), lambda now: now.code is not None)
    assert now.code == 2
    assert "max_bites" in now.why


def test_an_end_is_in_order_whenever_it_comes(bench: Bench) -> None:
    """Before it serves, while it serves, twice: the process has gone and the standing says so."""
    keeper = bench.keeper()
    until(keeper, lambda now: now.pid != 0)
    assert keeper.close(30.0)
    assert keeper.standing().state == "ended"
    again = bench.keeper()
    pid = ready(again).pid
    again.end()
    assert again.standing().state in ("ending", "ended")
    assert again.close(30.0)
    assert (again.standing().state, again.standing().code, again.standing().pid) == ("ended", 0, 0)
    until_gone(pid)
    assert again.close(30.0)
    assert "ended, process 0" in repr(again)
