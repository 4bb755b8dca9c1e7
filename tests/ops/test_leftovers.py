"""Shared memory of dead planes."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

import pytest

from penstock.ops import leftovers
from penstock.wire.paths import host_file, journal_dir, lock_path, plane_id


def segment_of(plane: Path, shm: Path) -> Path:
    """A segment as the plane of that directory would make it."""
    plane.mkdir(exist_ok=True)
    shm.mkdir(exist_ok=True)
    path = shm / f"penstock-{plane_id(plane)}-1"
    path.write_bytes(b"x" * 4096)
    return path


def test_dead_planes_segment_is_found_and_removed(tmp_path: Path) -> None:
    """A directory without a journal has nothing to recover: ``--fix`` alone removes its segment."""
    path = segment_of(tmp_path / "plane", tmp_path / "shm")
    (found,) = leftovers.find(tmp_path / "plane", tmp_path / "shm")
    assert (found.path, found.data_dir, found.recoverable) == (path, tmp_path / "plane", False)
    assert leftovers.remove(found, discard_rows=False)
    assert not path.exists()


def test_recoverable_rows_are_kept_until_discarded(tmp_path: Path) -> None:
    """A plane that kept a journal can come back to its rows: only the operator's word removes them."""
    path = segment_of(tmp_path / "plane", tmp_path / "shm")
    journal_dir(tmp_path / "plane").mkdir()
    (found,) = leftovers.find(tmp_path / "plane", tmp_path / "shm")
    assert found.recoverable
    assert "penstock serve" in found.remedy
    assert not leftovers.remove(found, discard_rows=False)
    assert path.exists()
    assert leftovers.remove(found, discard_rows=True)
    assert not path.exists()


def test_what_a_hosts_agent_held_is_kept_until_discarded(tmp_path: Path) -> None:
    """Its plane's rows may need it: the remedy is the agent's own command."""
    path = segment_of(tmp_path / "agent", tmp_path / "shm")
    host_file(tmp_path / "agent").write_text("{}")
    (found,) = leftovers.find(tmp_path / "agent", tmp_path / "shm")
    assert found.recoverable
    assert "penstock host --dir" in found.remedy
    assert not leftovers.remove(found, discard_rows=False)
    assert path.exists()


def test_living_planes_segment_is_not_a_leftover(tmp_path: Path) -> None:
    """While the directory's lock is held nothing is found, and nothing that was found before is removed."""
    path = segment_of(tmp_path / "plane", tmp_path / "shm")
    (found,) = leftovers.find(tmp_path / "plane", tmp_path / "shm")
    with lock_path(tmp_path / "plane").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert leftovers.find(tmp_path / "plane", tmp_path / "shm") == []
        assert not leftovers.remove(found, discard_rows=True)
    assert path.exists()


def test_mapped_segment_is_not_a_leftover(tmp_path: Path) -> None:
    """A file that some process maps, be it only a reader's view, is in use."""
    path = segment_of(tmp_path / "plane", tmp_path / "shm")
    (found,) = leftovers.find(tmp_path / "plane", tmp_path / "shm")
    descriptor = os.open(path, os.O_RDWR)
    with mmap.mmap(descriptor, 4096):
        os.close(descriptor)
        assert leftovers.find(tmp_path / "plane", tmp_path / "shm") == []
        assert not leftovers.remove(found, discard_rows=True)
    assert path.exists()


def test_segment_of_an_unknown_directory_is_reported_only(tmp_path: Path) -> None:
    """Without its directory nobody knows whether rows can be recovered: it is named, and kept."""
    path = segment_of(tmp_path / "plane", tmp_path / "shm")
    (found,) = leftovers.find(None, tmp_path / "shm")
    assert found.data_dir is None
    assert not leftovers.remove(found, discard_rows=False)
    assert path.exists()


@pytest.mark.parametrize("name", ["penstock", "other-1", "penstock_x-1"])
def test_foreign_files_are_left_alone(tmp_path: Path, name: str) -> None:
    """Only names of the plane's form count."""
    (tmp_path / name).write_bytes(b"")
    assert leftovers.find(None, tmp_path) == []
