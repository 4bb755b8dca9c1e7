"""Only a proof of the token, for this connection and direction, is believed; all else is ``WireError``."""

from __future__ import annotations

import contextlib
import random

from penstock.wire import WireError
from penstock.wire.auth import CHALLENGE_BYTES, PROOF_BYTES, RESPONSE_BYTES, Dialler, Greeter
from tests.fuzz.mutations import mutated, rounds, unsound

TOKEN = b"a token of a fuzz target"


def fixed(size: int, data: bytes) -> bytes:
    """As a wire hands it over: sizes are fixed, whatever was sent."""
    return (data + bytes(size))[:size]


@rounds
def test_no_response_but_the_right_one(rounds: int) -> None:
    """A listener believes the dialler's own response and none that differs from it in any bit."""
    greeter, dialler = Greeter(TOKEN, "plane"), Dialler(TOKEN, "plane")
    response = dialler.respond(greeter.challenge())
    overheard = Dialler(TOKEN, "plane").respond(Greeter(TOKEN, "plane").challenge())
    refused = 0
    for data in unsound(1, [response, overheard, greeter.challenge()], rounds):
        said = fixed(RESPONSE_BYTES, data)
        try:
            greeter.answer(said)
        except WireError:
            refused += 1
        else:
            assert said == response, said.hex()
    assert refused > rounds // 2


@rounds
def test_no_proof_but_the_right_one(rounds: int) -> None:
    """A dialler believes the listener's own proof, and answers nothing that does not begin as a challenge does."""
    greeter, dialler = Greeter(TOKEN, "plane"), Dialler(TOKEN, "plane")
    challenge = greeter.challenge()
    response = dialler.respond(challenge)
    proof = greeter.answer(response)
    for data in unsound(2, [proof, response, challenge], rounds):
        said = fixed(PROOF_BYTES, data)
        with contextlib.suppress(WireError):
            dialler.check(said)
            assert said == proof, said.hex()
    rng = random.Random(3)
    for _ in range(rounds):
        said = fixed(CHALLENGE_BYTES, mutated(rng, [challenge]))
        with contextlib.suppress(WireError):
            assert len(Dialler(TOKEN, "plane").respond(said)) == RESPONSE_BYTES
            assert said[:8] == challenge[:8]
