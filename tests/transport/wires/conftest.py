"""Each test that takes ``room`` runs over every wire."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.wire.tls import client_context, server_context
from tests.plane.certificates import certificate
from tests.transport.wires.rooms import Room, memory_room, tcp_room, ucx_room


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["tcp", "tls", "memory", "ucx"])
def room(request: pytest.FixtureRequest) -> Room:
    match request.param:
        case "tls":
            cert, key = request.getfixturevalue("tls_files")
            return tcp_room(server_context(cert, key), client_context(cert))
        case "tcp":
            return tcp_room()
        case "ucx":
            return ucx_room()
        case _:
            return memory_room()
