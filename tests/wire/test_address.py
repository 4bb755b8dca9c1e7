"""How addresses are written down."""

from __future__ import annotations

import pytest

from penstock.errors import BadArgument
from penstock.wire.address import Address


@pytest.mark.parametrize("text", ["127.0.0.1:0", "node-3.example:7777", "[::1]:65535"])
def test_what_is_read_is_what_is_written(text: str) -> None:
    """An address and its text are the same thing."""
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":1",
        "host:",
        "host:x",
        "host:-1",
        "host:65536",
        "::1:7",
        "a@b:1",
        "a b:1",
        "a/b:1",
        "host:\u0663",
        "[]:1",
        "[host]:1",
        "host:0080",
        "host:" + "9" * 5000,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    """The error shows what was given."""
    with pytest.raises(BadArgument):
        Address.parse(text)
