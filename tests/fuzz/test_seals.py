"""Whatever arrives, what is opened is a beginning of what was sealed; all else is ``WireError``, now and ever after."""

from __future__ import annotations

import random

from penstock.wire import WireError
from penstock.wire.auth import Dialler, Greeter
from penstock.wire.seals import Seals
from tests.fuzz.mutations import mutated, rounds

TOKEN = b"a token of a fuzz target"


def ends() -> tuple[Seals, Seals]:
    greeter, dialler = Greeter(TOKEN, "plane"), Dialler(TOKEN, "plane")
    dialler.check(greeter.answer(dialler.respond(greeter.challenge())))
    return greeter.seals(), dialler.seals()


@rounds
def test_streams_that_were_changed(rounds: int) -> None:
    """Records that were flipped, cut, repeated, reordered or mixed with another connection's."""
    rng = random.Random(14)
    broken = 0
    for _ in range(rounds // 10):
        sender, receiver = ends()
        said = [rng.randbytes(rng.choice([1, 20, 300])) for _ in range(3)]
        sealed = [sender.seal(word) for word in said]
        foreign = [ends()[0].seal(word) for word in said]
        harmed = b"".join(rng.choice([*sealed, *foreign, mutated(rng, sealed)]) for _ in range(3))
        opened = b""
        try:
            for at in range(0, len(harmed), 50):
                opened += receiver.open(harmed[at : at + 50])
        except WireError:
            broken += 1
        assert b"".join(said).startswith(opened), harmed.hex()
    assert broken > rounds // 40
