"""A URL or address that is accepted is written back as it was meant; the rest is ``BadArgument`` without secrets."""

from __future__ import annotations

import random

from penstock.errors import BadArgument
from penstock.plane.remote_dialing import parse_url
from penstock.wire.address import Address
from tests.fuzz.mutations import rounds

PARTS = [
    "penstock://", "penstock:", "//", "http://", "host", "10.0.0.1", "[::1]", "[", "]", ":", "::", ":7000", ":0",
    "70000", ":-1", "/", "?", "#", "@", "user:secret@", " ", "\0", "\n", "é", "\u0663", "a" * 300, "%41", "..", "",
]  # fmt: skip


@rounds
def test_urls(rounds: int) -> None:
    """Strings made of what URLs are made of."""
    rng = random.Random(12)
    accepted, told = 0, list[str]()
    for _ in range(rounds):
        text = "".join(rng.choice(PARTS) for _ in range(rng.randint(1, 6)))
        if rng.random() < 0.7:
            text = "penstock://" + text
        try:
            address = parse_url(text)
        except BadArgument as refused:
            told += [text] if "secret" in str(refused) and "@" in text else []
            continue
        accepted += 1
        assert parse_url(f"penstock://{address}") == address, text
        assert 0 < address.port < 65536
        assert address.host.isprintable()
    assert accepted
    assert told == []


@rounds
def test_addresses(rounds: int) -> None:
    """The same without a scheme, as ``--listen`` and ``--address`` take them."""
    rng = random.Random(13)
    accepted = 0
    for _ in range(rounds):
        text = "".join(rng.choice(PARTS[4:]) for _ in range(rng.randint(1, 5)))
        try:
            address = Address.parse(text)
        except BadArgument:
            continue
        accepted += 1
        assert Address.parse(str(address)) == address, text
    assert accepted
