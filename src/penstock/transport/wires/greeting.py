"""The exchange of ``wire.auth`` over a connection, in time that a stranger cannot stretch.

Invariants: nothing else is said before both sides have shown that they know the token; who does not know it is told so
by a proof of zeros, which proves nothing, and so hears "unauthorised" rather than a broken connection.
"""

from __future__ import annotations

from penstock.endpoint.connection import Connection
from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.wire import WireError
from penstock.wire.auth import CHALLENGE_BYTES, PROOF_BYTES, RESPONSE_BYTES, Dialler, Greeter

__all__ = ["GREETING_S", "dial", "greet"]

GREETING_S = 5.0  # to agree on encryption and to show the token: a slow link takes a fraction of it
_REFUSAL = bytes(PROOF_BYTES)


async def greet(connection: Connection, greeter: Greeter, deadline: Deadline) -> None:
    """Do the listener's part.

    Raises:
        TransportError: who connected does not know the token, or not in time.
    """
    await connection.send(greeter.challenge(), deadline=deadline)
    response = bytearray(RESPONSE_BYTES)
    await connection.recv_into(response, deadline)
    try:
        proof = greeter.answer(bytes(response))
    except WireError as stranger:
        await connection.send(_REFUSAL, deadline=deadline)
        await connection.close()
        raise _unauthorised(connection, stranger) from stranger
    await connection.send(proof, deadline=deadline)


async def dial(connection: Connection, dialler: Dialler, deadline: Deadline) -> None:
    """Do the part of who connects.

    Raises:
        TransportError: what answered does not know the token, or says that this side does not.
    """
    challenge = bytearray(CHALLENGE_BYTES)
    proof = bytearray(PROOF_BYTES)
    try:
        await connection.recv_into(challenge, deadline)
        await connection.send(dialler.respond(bytes(challenge)), deadline=deadline)
        await connection.recv_into(proof, deadline)
        if proof == _REFUSAL:
            raise WireError("it says that this side has another token, or calls at the wrong port")
        dialler.check(bytes(proof))
    except WireError as stranger:
        connection.abort()
        raise _unauthorised(connection, stranger) from stranger


def _unauthorised(connection: Connection, stranger: WireError) -> TransportError:
    return TransportError(f"{connection.peer}: {stranger.message}", code="unauthorised")
