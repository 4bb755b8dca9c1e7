"""What the processes of crews have imported. All tests name the same: they share one forkserver, and its first user
decides for all; one that began without torch would let every process of the others import it anew, for seconds.
"""

from __future__ import annotations

__all__ = ["PRELOAD"]

PRELOAD = ("tests.controller.lives", "tests.faults.actors", "tests.faults.test_points")
