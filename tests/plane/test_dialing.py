"""Reaching a plane: who listens there must be one of ours."""

from __future__ import annotations

import os
import socket
from pathlib import Path

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
