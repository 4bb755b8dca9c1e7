"""The rules of ``conftest`` fire: planted leaks are named, skips in CI fail, and a clean session passes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import SHM, STAMP, Watch, descendants, wait_for

REPOSITORY = Path(__file__).parents[1]


def sleeper(stamp: str, *, orphan: bool = False, first: str = "") -> int:
    """Start a process that does ``first`` and sleeps; as an orphan it is nobody's child. Returns its pid."""
    nap = f"import time; {first or None}; time.sleep(600)"
    spawn = (
        "import subprocess as s, sys; "
        f"print(s.Popen([sys.executable, '-c', {nap!r}], start_new_session=True, stdout=s.DEVNULL).pid)"
    )
    environment = {**os.environ, STAMP: stamp}
    if not orphan:
        return subprocess.Popen([sys.executable, "-c", nap], env=environment).pid
    done = subprocess.run(
        [sys.executable, "-c", spawn], env=environment, stdout=subprocess.PIPE, check=True, timeout=60, close_fds=True
    )
    return int(done.stdout)


@pytest.fixture
def segment() -> Iterator[Path]:
    """A segment's name; the file is removed at the end."""
    path = SHM / f"penstock-test{uuid.uuid4().hex[:8]}-1"
    yield path
    path.unlink(missing_ok=True)


def test_a_quiet_session_leaks_nothing(tmp_path: Path) -> None:
    """With nothing made there is nothing to report."""
    watch = Watch(uuid.uuid4().hex, tmp_path, alone=False)
    watch.look("test_a")
    assert watch.leaks(0.0) == []


def test_what_runs_already_is_not_held_against_a_session(tmp_path: Path) -> None:
    """It is neither named nor ended: it is another watch's."""
    stamp = uuid.uuid4().hex
    earlier = Watch(stamp, tmp_path, alone=False)
    pid = sleeper(stamp)
    try:
        watch = Watch(stamp, tmp_path, alone=False)
        watch.look("test_a")
        assert watch.leaks(0.0) == []
        watch.end_processes()
        assert any(leak.startswith(f"process {pid} (") for leak in earlier.leaks(0.0))
    finally:
        earlier.end_processes()


@pytest.mark.parametrize("orphan", [False, True], ids=["child", "orphan"])
def test_a_process_left_running_is_named_and_ended(tmp_path: Path, orphan: bool) -> None:
    """Also one that has left its parents and its process group; with the test that left it."""
    stamp = uuid.uuid4().hex
    watch = Watch(stamp, tmp_path, alone=False)
    watch.look("test_good")
    pid = sleeper(stamp, orphan=orphan)
    wait_for(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes())
    assert (pid in descendants(os.getpid())) is not orphan
    watch.look("test_bad")
    watch.look("test_later")
    assert any(
        leak.startswith(f"process {pid} (") and leak.endswith("first seen after test_bad") for leak in watch.leaks(0)
    )
    watch.end_processes()
    assert watch.leaks(30.0) == []


def test_a_segment_is_held_against_who_maps_it(tmp_path: Path, segment: Path) -> None:
    """A segment counts when a process of the session maps it, and for as long as it is there."""
    import mmap

    watch = Watch(uuid.uuid4().hex, tmp_path, alone=False)
    segment.write_bytes(bytes(4096))
    with segment.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        watch.look("test_bad")
    assert watch.leaks(0.0) == [f"segment {segment}, first seen after test_bad"]
    segment.unlink()
    assert watch.leaks(0.0) == []


def test_a_strangers_segment_counts_only_where_nobody_else_works(tmp_path: Path, segment: Path) -> None:
    """On a shared machine what nobody of the session maps is somebody else's; in CI there is nobody else."""
    shared, alone = (Watch(uuid.uuid4().hex, tmp_path, alone=alone) for alone in (False, True))
    segment.write_bytes(b"x")
    shared.look("test_a")
    alone.look("test_a")
    assert shared.leaks(0.0) == []
    assert f"segment {segment}, first seen after test_a" in alone.leaks(0.0)


def test_what_a_stranger_uses_is_the_strangers(tmp_path: Path, segment: Path) -> None:
    """Another session at work on the same machine is not blamed on this one, in CI neither."""
    segment.write_bytes(bytes(4096))
    first = f"import mmap; f = open({str(segment)!r}, 'r+b'); m = mmap.mmap(f.fileno(), 4096)"
    pid, watch = sleeper("another session", orphan=True, first=first), Watch(uuid.uuid4().hex, tmp_path, alone=True)
    try:
        wait_for(lambda: os.fsencode(segment) in Path(f"/proc/{pid}/maps").read_bytes())
        watch._before.clear()
        assert not [leak for leak in watch.leaks(0.0) if str(segment) in leak]
    finally:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: any(str(segment) in leak for leak in watch.leaks(0.0)))


def test_a_private_directory_left_over_is_named(tmp_path: Path) -> None:
    """A private plane removes its directory."""
    watch = Watch(uuid.uuid4().hex, tmp_path, alone=False)
    (tmp_path / "penstock-abc").mkdir()
    assert watch.leaks(0.0) == [f"directory {tmp_path}/penstock-abc, first seen after the last test"]


# -- whole sessions -------------------------------------------------------------------------------------------------


def session(folder: Path, source: str, *, ci: bool) -> tuple[int, str]:
    """Run pytest on ``source`` under this repository's conftest; return its exit code and output."""
    (folder / "test_it.py").write_text(source)
    environment = {
        **{name: value for name, value in os.environ.items() if name not in {"CI", STAMP}},
        **({"CI": "true"} if ci else {}),
        "PENSTOCK_TEST_GRACE_S": "0",
    }
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "--strict-markers"]
    options = [f"--rootdir={folder}", "-o", "markers=hardware: x", "-q", "-rA", str(folder)]
    done = subprocess.run(
        [*command, *options], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    return done.returncode, done.stdout + done.stderr


SKIPS = """
import pytest
@pytest.mark.skip(reason="mark")
def test_mark(): ...
def test_call(): pytest.skip("call")
@pytest.mark.hardware
def test_hardware(): pytest.skip("no card")
@pytest.mark.xfail(reason="known")
def test_known(): assert False
def test_good(): ...
"""


def test_a_skip_in_ci_is_a_failure(tmp_path: Path) -> None:
    """Only the test marked ``hardware`` may skip; an expected failure stays one."""
    code, output = session(tmp_path, SKIPS, ci=True)
    assert code == 1
    assert "1 passed, 1 skipped, 1 xfailed" in output.replace("1 failed, ", "").replace(", 1 error", "")
    assert output.count("CI=true: only tests marked `hardware` may skip, and this one skipped") >= 2


def test_a_skip_elsewhere_is_a_skip(tmp_path: Path) -> None:
    """On a laptop nothing changes."""
    code, output = session(tmp_path, SKIPS, ci=False)
    assert code == 0
    assert "1 passed, 3 skipped, 1 xfailed" in output


def test_a_skipped_module_in_ci_is_a_failure(tmp_path: Path) -> None:
    """``importorskip`` at the top of a module hides all of its tests: not in CI."""
    code, output = session(
        tmp_path, "import pytest\npytest.importorskip('no_such_package')\ndef test_a(): ...", ci=True
    )
    assert code != 0
    assert "only tests marked `hardware` may skip" in output


LEAKS = """
import subprocess, sys, tempfile
def test_clean(): ...
def test_leaky():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    tempfile.mkdtemp(prefix="penstock-")
"""


def test_a_planted_leak_fails_the_session(tmp_path: Path) -> None:
    """The report names process, directory and the test that left them; the process is ended."""
    code, output = session(tmp_path, LEAKS, ci=False)
    assert code == 1
    assert "left behind by this session" in output
    lines = [line for line in output.splitlines() if "first seen after" in line]
    assert {line.split()[0] for line in lines} >= {"process", "directory"}
    assert all("test_leaky" in line for line in lines)
    pid = next(int(line.split()[1]) for line in lines if line.split()[0] == "process")
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or b") Z" in Path(f"/proc/{pid}/stat").read_bytes())
