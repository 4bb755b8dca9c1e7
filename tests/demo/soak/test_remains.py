"""Remains: a planted leftover of each sort is named, and what others do is nobody's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from penstock.demo.soak.remains import Census, plane_remains
from penstock.demo.spec import RunFiles
from penstock.wire.paths import SHM_DIR, plane_id, socket_path


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    found = RunFiles(tmp_path)
    found.plane.mkdir()
    return found


def test_nothing_left_is_nothing_to_say(files: RunFiles) -> None:
    """Also while other runs go on."""
    assert Census(files).remains() == []
    assert plane_remains(files) == []


def test_a_role_that_lives_on_is_named(files: RunFiles) -> None:
    """By the run's folder among its arguments, and by what it is: a shell that names the folder is none."""
    census = Census(files)
    sleep = [sys.executable, "-c", "input()"]
    with ExitStack() as stack:
        for words in (["penstock.demo.role", "worker", str(files.root)], ["--out", str(files.root)]):
            process = stack.enter_context(subprocess.Popen([*sleep, *words], stdin=subprocess.PIPE))
            stack.callback(process.kill)
        (said,) = census.remains()
    assert f"worker {files.root}" in said


def test_threads_and_descriptors_of_this_process_are_counted(files: RunFiles) -> None:
    """A descriptor or two may be a library's; more are ours."""
    census, end = Census(files), threading.Event()
    thread = threading.Thread(target=end.wait, name="forgotten")
    thread.start()
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    try:
        assert census.remains() == ["thread forgotten", "5 more open descriptors"]
    finally:
        end.set()
        thread.join()
        for descriptor in opened:
            os.close(descriptor)
    assert census.remains() == []


def test_segments_and_sockets_of_the_plane_are_named(files: RunFiles) -> None:
    """Those of its own directory, and no other's."""
    segment = SHM_DIR / f"penstock-{plane_id(files.plane)}-7"
    segment.write_bytes(b"x")
    socket_path(files.plane).touch()
    try:
        assert plane_remains(files) == [f"segment {segment}", f"socket {socket_path(files.plane)}"]
    finally:
        segment.unlink()
