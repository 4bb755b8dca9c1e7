"""The main job on a Ray cluster of its own: its actors are killed by ``ray.kill``, and every row is accounted for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.demo.ray_site import RaySite, _Board, _Kept
from penstock.errors import BadArgument, DataPlaneUnavailable, UnknownName
from penstock.launch.keeper import Standing
from tests.leaks import descendants, wait_for


def demo(folder: Path, *options: str) -> list[str]:
    where = ["--out", str(folder / "run"), "--json"]
    return [sys.executable, "-m", "penstock", "demo", "--engine", "ray", *where, *options]


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_run_on_ray_survives_the_kill_of_its_actors(tmp_path: Path) -> None:
    """Each kind that was struck has got on; the books balance, and the checker finds nothing."""
    strikes = ["--hosts", "2", "--rollout-workers", "1", "--chaos", "--chaos-period", "2", "--min-faults", "3"]
    done = subprocess.run(
        demo(tmp_path, *strikes, "--goal", "0.05", "--timeout", "120"), capture_output=True, check=False, timeout=140
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    result = json.loads(done.stdout)
    assert (result["ok"], result["audit_residue"], result["lost"], result["duplicated"]) == (True, 0, 0, 0)
    struck = {kind for kind, count in result["faults"].items() if count}
    assert sum(result["faults"].values()) >= 3
    assert set(result["recovery_by_kind_s"]) == struck
    assert result["rows_trained"] == result["steps"] * 64 > 0
    assert not list(Path("/tmp").glob("pr-*/ray/session_latest/sockets/raylet*"))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_nothing_of_a_run_on_ray_outlives_its_launcher(tmp_path: Path, by: signal.Signals) -> None:
    """Interrupted it removes everything; killed, Ray ends with it, and plane and agents after they have lingered."""
    with subprocess.Popen(demo(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
        events = tmp_path / "run" / "events.jsonl"
        wait_for(lambda: events.exists() and b"Trained" in events.read_bytes(), 60)
        family = [pid for pid in descendants(launcher.pid) if not is_rays_helper(pid)]
        assert family
        launcher.send_signal(by)
        assert launcher.wait(60) in (130, -by)
    wait_for(lambda: not any(alive(pid) for pid in family), 60)


def is_rays_helper(pid: int) -> bool:
    """Ray's own agents of a node look for its end now and then, and not for that of whoever started it."""
    return b"Agent" in Path(f"/proc/{pid}/cmdline").read_bytes()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Board:
    """Says what it is told to say, and notes what it is asked to do."""

    def __init__(self, **standing: Any) -> None:
        self.now = Standing(**standing)
        self.asked: list[str] = []

    def standing(self, _role: str) -> Standing:
        return self.now

    def end(self, role: str) -> None:
        self.asked.append(f"end {role}")

    def kill(self, role: str, *, for_good: bool) -> None:
        self.asked.append(f"kill {role}" + (" for good" if for_good else ""))


class Forsaken(Board):
    """Finds no actor."""

    def end(self, role: str) -> None:
        raise UnknownName(f"there is no {role}")

    def kill(self, role: str, *, for_good: bool) -> None:
        raise KeyError(role)


def kept(board: Board) -> _Kept:
    return _Kept(board, "plane")  # type: ignore[arg-type]


def test_what_was_struck_is_over_when_its_successor_serves() -> None:
    """Not while it lingers, and not while the next one starts."""
    board = Board(state="ready", pid=7)
    plane = kept(board)
    assert (plane.pid, plane.poll()) == (7, None)
    plane.send_signal(signal.SIGKILL)
    board.now = Standing(state="starting", pid=8)
    assert plane.poll() is None
    board.now = Standing(state="ready", pid=8)
    assert (plane.poll(), board.asked) == (-9, ["kill plane"])
    assert kept(board).poll() is None  # the next life


def test_one_that_was_slow_to_answer_is_not_taken_for_its_own_successor() -> None:
    """Its process is the first that is heard of."""
    board = Board()
    plane = kept(board)
    board.now = Standing(state="ready", pid=7)
    assert (plane.poll(), plane.pid) == (None, 7)


def test_one_that_is_asked_to_end_ends_for_good() -> None:
    """In order, with its exit code; or, if that takes too long, with its actor."""
    board = Board(state="ready", pid=7)
    first, second = kept(board), kept(board)
    for plane in (first, second):
        plane.send_signal(signal.SIGTERM)
    second.send_signal(signal.SIGKILL)
    board.now = Standing(state="ended", code=0)
    assert (first.poll(), second.poll()) == (0, -9)
    assert board.asked == ["end plane", "end plane", "kill plane for good"]


def test_one_whose_actor_has_gone_can_be_asked_and_killed() -> None:
    """There is nothing to be told: it is over when it is killed for good."""
    plane = kept(Forsaken(state="ready", pid=7))
    plane.send_signal(signal.SIGTERM)
    plane.send_signal(signal.SIGKILL)
    assert plane.poll() == -9


def test_ray_ends_whatever_becomes_of_the_plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plane that cannot be closed, of a Ray that has gone, keeps nothing of the cluster alive."""
    done: list[str] = []

    def broken(_timeout_s: float) -> None:
        raise RuntimeError("Ray has gone")

    monkeypatch.setenv("RAY_TMPDIR", "theirs")
    site = RaySite.__new__(RaySite)
    site._ray = SimpleNamespace(shutdown=lambda: done.append("ray"))  # type: ignore[assignment]
    site._cluster = SimpleNamespace(shutdown=lambda: done.append("cluster"))
    site._plane = SimpleNamespace(close=broken)  # type: ignore[assignment]
    site._before = {"RAY_TMPDIR": "ours"}
    site._folder = tmp_path / "pr"
    site._folder.mkdir()
    with pytest.raises(RuntimeError, match="Ray has gone"):
        site.close()
    assert done == ["ray", "cluster"]
    assert (os.environ["RAY_TMPDIR"], site._folder.exists()) == ("ours", False)
    site.close()


def test_a_look_that_fails_leaves_what_was_seen() -> None:
    """Ray may be unable to say for a moment: nobody has died of that."""
    seen = [{"plane": Standing(state="ready", pid=7)}]

    def standing(_timeout_s: float) -> dict[str, Standing]:
        if not seen:
            raise DataPlaneUnavailable("not just now")
        return seen.pop()

    board = _Board(SimpleNamespace(standing=standing))  # type: ignore[arg-type]
    assert board.standing("plane").pid == 7
    board._next_at = 0.0
    assert board.standing("plane").pid == 7


def test_hosts_that_do_not_reach_the_store_are_refused() -> None:
    """Namespaces of their own do not see what listens on this machine's loopback."""
    from penstock.demo.spec import DemoOptions

    with pytest.raises(BadArgument, match="engine ray"):
        DemoOptions(hosts=2, store="mooncake")
    for wrong in ({"engine": "slurm"}, {"store": "redis"}):
        with pytest.raises(BadArgument, match="must be one of"):
            DemoOptions(**wrong)  # type: ignore[arg-type]
