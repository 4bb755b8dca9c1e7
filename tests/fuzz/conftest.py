"""What agents left in shared memory goes with their test."""

from __future__ import annotations

from tests.host.conftest import _no_segments

__all__ = ["_no_segments"]
