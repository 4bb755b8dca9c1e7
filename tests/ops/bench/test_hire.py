"""Workers of the benchmark, as real processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from penstock.errors import DataPlaneTimeout, DataPlaneUnavailable
from penstock.ops.bench.hire import Worker

SOURCE = Path(__file__).resolve().parents[3] / "src"
OPEN_S = 60.0


def hired(peer: str) -> Worker:
    return Worker(peer, Path(sys.executable), SOURCE)


def test_worker_takes_a_turn() -> None:
    """A worker opens its peer, takes a turn and answers with seconds by operation."""
    with hired("memcpy") as worker:
        assert "torch" in worker.ask({"do": "open"}, OPEN_S)["versions"]
        answer = worker.ask({"do": "turn", "batch": "ragged", "turn": 0}, OPEN_S)
    assert set(answer["seconds"]) == {"put", "get"}
    assert answer["half_nbytes"] < answer["nbytes"]


def test_failure_of_a_peer_is_an_answer() -> None:
    """What a peer raises is told, and the worker goes on."""
    with hired("memcpy") as worker:
        worker.ask({"do": "open"}, OPEN_S)
        with pytest.raises(DataPlaneUnavailable, match="unknown batch 'square'"):
            worker.ask({"do": "turn", "batch": "square", "turn": 0}, OPEN_S)
        worker.ask({"do": "turn", "batch": "ragged", "turn": 1}, OPEN_S)


def test_silent_worker_costs_its_deadline_only() -> None:
    """A peer that hangs is a timeout, and its process is gone after ``close``."""
    with hired("memcpy") as worker:
        worker.ask({"do": "open"}, OPEN_S)
        pid = worker._process.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(DataPlaneTimeout, match="memcpy did not answer"):
            worker.ask({"do": "turn", "batch": "ragged", "turn": 0}, 0.2)
        worker.end_s = 0.2
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_dead_worker_is_told_with_its_last_words() -> None:
    """A process that died is unavailable at the next order."""
    with hired("memcpy") as worker:
        worker.ask({"do": "open"}, OPEN_S)
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(DataPlaneUnavailable, match="memcpy died"):
            worker.ask({"do": "turn", "batch": "ragged", "turn": 0}, OPEN_S)
