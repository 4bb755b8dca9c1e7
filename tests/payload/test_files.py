"""Where an arena should lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.payload.files import fits_in_shm


def test_shared_memory_that_is_too_small_is_said_so(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Room: silent yes. No room, or no such directory: no, and a message that says what to do."""
    assert fits_in_shm(4096, tmp_path)
    assert not caplog.records
    assert not fits_in_shm(1 << 60, tmp_path)
    assert "shm-size" in caplog.text
    assert not fits_in_shm(1, tmp_path / "none")
    assert "data directory" in caplog.records[-1].message
