"""The limits that ``docs/security.md`` names are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.endpoint import messages, peering
from penstock.host import conversation
from penstock.server import connections, doorway
from penstock.transport.serving import ServerLimits
from penstock.transport.slot_protocol import REQUEST_BYTES
from penstock.transport.wires.greeting import GREETING_S
from penstock.wire.auth import RESPONSE_BYTES
from penstock.wire.seals import RECORD_BYTES

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
KIB = 1024
LIMITS = ServerLimits()

TOLD = {
    "plane: a stranger's time, TLS included": f"{doorway._KNOCK_S:g} s",
    "plane: strangers at once": f"{doorway._MAX_STRANGERS}",
    "plane: bytes kept of a stranger": f"{RESPONSE_BYTES}",
    "plane: one sealed record": f"{RECORD_BYTES // KIB} KiB",
    "payload and peer listeners: a stranger's time": f"{GREETING_S:g} s",
    "payload listener: connections": f"{LIMITS.max_connections}, and as many strangers",
    "payload listener: a connection that asks nothing": f"{LIMITS.idle_timeout_s:g} s",
    "payload listener: an acknowledgement": f"{LIMITS.receive_timeout_s:g} s",
    "payload listener: sending": (
        f"{LIMITS.send_timeout_s:g} s, and what the size takes at {LIMITS.slowest_bytes_per_s / KIB**2:g} MiB/s"
    ),
    "payload listener: a request": f"{REQUEST_BYTES} bytes, one at a time",
    "agents' handshake: one message": f"{messages.MAX_MESSAGE_BYTES // KIB} KiB",
    "agents' handshake: connections, peers": f"{peering._MAX_CONNECTIONS}, {peering._MAX_PAIRS}",
    "agents' handshake: the first message": f"{peering._HELLO_S:g} s",
    "agents' questions: one message": f"{conversation._MAX_BYTES // KIB} KiB",
    "agents' questions: open at once": f"{conversation._MAX_SERVED}",
    "the first frame of a connection": f"{connections._GREETING_BYTES // KIB} KiB",
    "unanswered calls of a connection": f"{connections._MAX_OPEN_CALLS}",
}


def rows() -> dict[str, str]:
    """Each row of the page's tables: what, and the cell beside it."""
    cells = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return {row[1].strip(): row[2].strip() for row in cells}


@pytest.mark.parametrize("what", TOLD)
def test_a_limit_is_what_the_page_says(what: str) -> None:
    """Who changes a limit changes the page."""
    assert rows()[what] == TOLD[what]
