"""How a plane starts, who may start one, and what it leaves when it ends."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from penstock.requests import Done, Goodbye, Heartbeat, RegisterPartition, Shutdown, Welcome
from penstock.wire import paths
from tests.server.harness import ClientProcess, PlaneProcess, RawClient, eventually


def test_a_second_plane_on_a_directory_is_refused(tmp_path: Path) -> None:
    """The flock lets one plane have a directory: an auto-started one says "taken", one started by hand an error."""
    data = tmp_path / "d"
    with PlaneProcess(data) as plane, PlaneProcess(data, "--auto") as auto, PlaneProcess(data) as second:
        assert (auto.word, auto.wait()) == ("taken", 0)
        assert second.word == f"error: {data} is served by process {plane.pid} already"
        assert second.wait() == 1
        with RawClient(data) as client:
            client.open()


def test_a_private_plane_ends_with_its_last_client_and_leaves_nothing(tmp_path: Path) -> None:
    """An ephemeral plane ends linger_s after its last client's goodbye; directory and shared memory are gone."""
    data = tmp_path / "d"
    with PlaneProcess(data, "--auto", "--ephemeral", linger_s=0.2) as plane:
        first, second = RawClient(data, 1).open(), RawClient(data, 2).open()
        first.register()
        first.put(["a"])
        first.expect(Done, Goodbye())
        assert first.is_closed()
        assert second.read(["a"]) == [7]
        second.expect(Done, Goodbye())
        assert plane.wait() == 0
        assert not data.exists()
        assert plane.segments() == []
        first.close()
        second.close()


def test_a_private_plane_ends_when_its_last_client_is_killed(tmp_path: Path) -> None:
    """A client that is killed says no goodbye; the kernel does."""
    data = tmp_path / "d"
    with PlaneProcess(data, "--auto", "--ephemeral", linger_s=0.2) as plane:
        with ClientProcess(data, "client.open()\nsay('open')\ntime.sleep(60)") as client:
            assert client.line() == "open"
            client.kill()
            assert plane.wait() == 0
        assert not data.exists()


def test_a_clean_end_writes_live_blocks_down_and_unlinks_shared_memory(tmp_path: Path) -> None:
    """After SIGTERM no shared memory is left, and the next life finds every row in the directory."""
    data = tmp_path / "d"
    with PlaneProcess(data) as plane:
        with RawClient(data) as client:
            client.open().register()
            client.put(["a", "b"], fill=1)
            client.put(["c"], fill=2)
            assert plane.end() == 0
        assert plane.segments() == []
        assert [path.name.startswith("arena-") for path, _ in paths.arena_files(data)] == [True]
    for _ in range(2):
        with PlaneProcess(data) as again, RawClient(data, 5) as later:
            later.open()
            assert later.read(["a", "b", "c"]) == [1, 1, 2]
            assert again.end() == 0
            assert again.segments() == []


def test_serve_takes_over_an_auto_started_plane(tmp_path: Path) -> None:
    """A plane started by hand asks the auto-started one to end, keeps its rows, and no client starts another one."""
    data = tmp_path / "d"
    with PlaneProcess(data, "--auto") as auto, RawClient(data) as client:
        client.open().register()
        client.put(["a"], fill=3)
        with PlaneProcess(data) as served:
            assert served.word == "ready"
            assert auto.wait() == 0
            with RawClient(data) as back:
                assert isinstance(back.resumed_as(client), Welcome)
                assert back.read(["a"]) == [3]
                assert back.status().served
            assert served.end() == 0
        with PlaneProcess(data, "--auto") as third:
            assert (third.word, third.wait()) == ("taken", 0)


def test_a_journal_that_cannot_be_written_ends_the_plane(tmp_path: Path) -> None:
    """Nothing is acknowledged after a failed write: the plane exits 74, says why, and what it acknowledged is kept."""
    data = tmp_path / "d"
    with PlaneProcess(data) as plane, RawClient(data) as client:
        client.open()
        acknowledged = 0
        (segment,) = paths.journal_dir(data).iterdir()
        limit = segment.stat().st_size + 2000
        resource.prlimit(plane.pid, resource.RLIMIT_FSIZE, (limit, limit))
        try:
            for i in range(1000):
                client.expect(Done, RegisterPartition(f"p{i}", ["x"], 8, ["train"]))
                acknowledged += 1
        except ConnectionError:
            pass
        assert 0 < acknowledged < 1000
        assert plane.wait() == 74
        assert "journal could not write" in plane.stderr()
        with PlaneProcess(data), RawClient(data) as back:
            partitions = {p.partition for p in back.open().status().partitions}
            assert {f"p{i}" for i in range(acknowledged)} <= partitions


def test_a_stopped_plane_does_not_bury_the_living(tmp_path: Path) -> None:
    """A plane that was stopped for longer than dead_after_s keeps the sessions of clients that lived meanwhile."""
    data = tmp_path / "d"
    with PlaneProcess(data, heartbeat_s=0.2, dead_after_s=1.0) as plane, RawClient(data) as client:
        client.open().register()
        client.put(["a"])
        assert client.claim(1).keys == ["a"]
        plane.signal(signal.SIGSTOP)
        late = time.monotonic() + 3.5
        sent = []
        while time.monotonic() < late:
            sent.append(client.send(Heartbeat(0, 0, [], [])))
            time.sleep(0.2)
        plane.signal(signal.SIGCONT)
        for call_id in sent:
            assert isinstance(client.receive(call_id), Done)
        (session,) = client.status().sessions
        assert session.leases == 1
        assert "was stopped" in plane.log()  # the fault fired


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A plane that cannot listen says so, and its shared memory is gone."""
    data = tmp_path / "d"
    (data / "plane.sock").mkdir(parents=True)
    with PlaneProcess(data) as plane:
        assert plane.word.startswith("error:")
        assert "plane.sock" in plane.word
        assert plane.wait() == 1
        assert plane.segments() == []


def test_a_plane_whose_directory_is_removed_ends_loudly(tmp_path: Path) -> None:
    """Nobody can find it any more: it exits 74 within seconds, says why, and leaves no shared memory."""
    data = tmp_path / "d"
    with PlaneProcess(data) as plane, RawClient(data) as client:
        client.open().register()
        client.put(["a"])
        shutil.rmtree(data)
        assert client.is_closed()
        assert plane.wait() == 74
        assert "directory was removed" in plane.stderr()
        assert plane.segments() == []


def test_a_plane_that_was_replaced_leaves_its_successor_alone(tmp_path: Path) -> None:
    """The directory was moved away and a new plane serves its path: the old one's end touches nothing of the new."""
    data, away = tmp_path / "d", tmp_path / "away"
    with PlaneProcess(data) as old:
        data.rename(away)
        with PlaneProcess(data) as new, RawClient(data) as client:
            client.open().register()
            client.put(["a"], fill=5)
            assert old.wait() == 74
            assert client.read(["a"]) == [5]
            with RawClient(data, 2) as later:
                assert later.open().read(["a"]) == [5]
            assert new.end() == 0


def test_shutdown_is_a_clean_end(tmp_path: Path) -> None:
    """An operator's Shutdown is answered, then the plane ends cleanly, and says who asked."""
    with PlaneProcess(tmp_path / "d") as plane, RawClient(plane.data_dir) as client:
        client.open().expect(Done, Shutdown("maintenance"))
        assert plane.wait() == 0
        assert "maintenance" in plane.log()


def test_bad_options_are_refused(tmp_path: Path) -> None:
    """An unknown option in --config is named."""
    command = [sys.executable, "-m", "penstock.server", "--data-dir", str(tmp_path), "--config", '{"max_bites": 1}']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "max_bites" in done.stderr


def test_the_server_never_imports_torch() -> None:
    """Neither the plane's process nor anything it imports needs torch."""
    script = "import sys, penstock.server.__main__; sys.exit('torch' in sys.modules or 'tensordict' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_socket_is_the_users_own(tmp_path: Path) -> None:
    """Socket, directory and arena are not for others."""
    with PlaneProcess(tmp_path / "d") as plane:
        assert paths.socket_path(plane.data_dir).stat().st_mode & 0o777 == 0o600
        (segment,) = plane.segments()
        assert (paths.SHM_DIR / segment).stat().st_mode & 0o777 == 0o600


def test_a_directory_too_deep_for_a_socket_is_served(tmp_path: Path) -> None:
    """The socket lies in the user's own directory under /tmp, and goes with the plane."""
    data = tmp_path / ("x" * 120)
    with PlaneProcess(data) as plane, RawClient(data) as client:
        client.open().register()
        client.put(["a"])
        assert paths.socket_path(data).parent != data
        assert plane.end() == 0
        assert not paths.socket_path(data).exists()


def test_an_auto_started_plane_nobody_comes_to_is_patient(tmp_path: Path) -> None:
    """It does not end before the client that started it has had time to come."""
    with PlaneProcess(tmp_path / "d", "--auto", linger_s=0.1, heartbeat_s=0.1, dead_after_s=0.5) as plane:
        time.sleep(1.5)
        with RawClient(plane.data_dir) as client:
            client.open()
        eventually("it ends after that", lambda: plane.process.poll() == 0)
