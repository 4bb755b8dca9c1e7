"""Reaching a plane: who listens there must be one of ours."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneUnavailable
from penstock.plane.dialing import LocalDialer


def test_a_listener_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plane and its clients share memory: a socket that somebody else has put there is not a plane's."""
    dialer = LocalDialer(tmp_path, PlaneConfig(), start=False)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(dialer.address)
        listener.listen()
        dialer.dial().close()
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        with pytest.raises(DataPlaneUnavailable, match="not 4711"):
            dialer.dial()


@contextmanager
def turn_of(folder: Path) -> Iterator[None]:
    """Another client is starting the plane."""
    turn = os.open(folder / "plane.starting", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(turn, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(turn)


class Launches(LocalDialer):
    """Notes that a plane would be started."""

    launched = 0

    def _launch(self) -> Any:
        self.launched += 1
        raise OSError("a test")


def try_to_start(dialer: LocalDialer) -> None:
    with suppress(DataPlaneUnavailable):
        assert dialer.start() is None


def test_a_plane_that_came_while_the_turn_was_waited_for_is_not_started_again(tmp_path: Path) -> None:
    """A second process would find the directory taken, and its client would have waited for it to say so."""
    dialer = Launches(tmp_path, PlaneConfig())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(dialer.address)
        listener.listen()
        try_to_start(dialer)
        assert dialer.launched == 0
    try_to_start(dialer)
    assert dialer.launched == 1


def test_the_courtesy_of_one_outage_is_not_used_up_by_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was denied the turn, and then reached the plane, waits as long as anybody when it dies again."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    dialer = Launches(tmp_path, PlaneConfig())
    with turn_of(tmp_path):
        try_to_start(dialer)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(dialer.address)
        listener.listen()
        dialer.dial().close()
    now += 100.0
    with turn_of(tmp_path):
        try_to_start(dialer)
        assert dialer.launched == 0
        now += 10.0
        try_to_start(dialer)
        assert dialer.launched == 1
