"""What the doctor finds."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from pathlib import Path

import pytest

from penstock.ops import doctor, kernel, leftovers
from penstock.wire.paths import lock_path


def test_small_shared_memory_is_a_warning_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB, a container's default, is too little, and the remedy says how to get more."""
    usage = shutil.disk_usage(tmp_path)._replace(total=64 << 20, free=60 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (finding,) = doctor.shared_memory(tmp_path)
    assert finding.severity == "warning"
    assert "--shm-size" in finding.remedy


def test_missing_shared_memory_is_told(tmp_path: Path) -> None:
    """No /dev/shm at all is a warning: payloads go to the data directory."""
    (finding,) = doctor.shared_memory(tmp_path / "none")
    assert finding.severity == "warning"


def test_missing_kernel_feature_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pidfd_open a plane does not work."""
    gone = kernel.Feature("pidfd_open", lambda: False, "problem", "newer kernel")
    monkeypatch.setattr(kernel, "FEATURES", (gone,))
    (finding,) = doctor.kernel_features()
    assert (finding.severity, finding.remedy) == ("problem", "newer kernel")


def test_kernel_features_are_tried_for_real() -> None:
    """On the machines we support every feature works."""
    assert [f.name for f in kernel.FEATURES if not f.works()] == []


def test_long_directory_moves_the_socket(tmp_path: Path) -> None:
    """A path too long for a socket is told, with where the socket lies instead."""
    deep = tmp_path / ("d" * 100) / ("e" * 60)
    deep.mkdir(parents=True)
    found = {f.check: f for f in doctor.directory(deep)}
    assert found["socket path"].severity == "note"
    assert "too long" in found["socket path"].remedy


def test_every_optional_package_is_listed() -> None:
    """Each optional package has a finding, and one that is missing has a remedy."""
    found = list(doctor.packages())
    assert {"ray", "TransferQueue", "torch", "redis-server"} <= {f.check for f in found}
    assert all(f.remedy for f in found if f.severity == "note")


def test_leftovers_are_told_by_plane_and_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One finding a plane, however many segments; ``--fix`` says what it removed."""
    paths = [tmp_path / f"penstock-0123456789ab-{i}" for i in range(5)]
    for path in paths:
        path.write_bytes(b"x")
    found = [leftovers.Segment(path, 10, tmp_path / "plane") for path in paths]
    (tmp_path / "plane").mkdir()
    monkeypatch.setattr(leftovers, "find", lambda _: found)
    (finding,) = doctor.segments(None, fix=False, discard_rows=False)
    assert finding.severity == "warning"
    assert "50 B" in finding.found
    assert "and 3 more" in finding.found
    (finding,) = doctor.segments(None, fix=True, discard_rows=False)
    assert finding.found.startswith("removed 50 B")
    assert [path.exists() for path in paths] == [False] * 5


def test_directories_of_dead_private_planes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with a lock that nobody holds is a warning; one that is held, or has no lock, is not."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("penstock-dead", "penstock-alive", "penstock-other"):
        (tmp_path / name).mkdir()
    lock_path(tmp_path / "penstock-dead").touch()
    with lock_path(tmp_path / "penstock-alive").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (finding,) = doctor.private_directories()
        assert finding.severity == "warning"
        assert "penstock-dead" in finding.found
        assert "alive" not in finding.found + finding.remedy
        assert "other" not in finding.found + finding.remedy
