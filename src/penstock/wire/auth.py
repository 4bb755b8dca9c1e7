"""Both ends of a TCP connection show that they know the plane's token, before anything else is said. Sans I/O.

    listener -> dialler   MAGIC, 32 random bytes
    dialler -> listener   MAGIC, 32 random bytes, HMAC-SHA256(token, "dialler", purpose, both)
    listener -> dialler   HMAC-SHA256(token, "listener", purpose, both)

What follows in the clear is sealed with keys that both derive from the exchange (``seals``).

Invariants: the token itself never travels; a proof is good for one connection, one direction and one purpose, so that
none can be reflected or replayed; comparison takes constant time; sizes are fixed, so that there is nothing to parse.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from penstock.errors import BadArgument
from penstock.wire.frames import WireError
from penstock.wire.seals import Seals

__all__ = ["CHALLENGE_BYTES", "PROOF_BYTES", "RESPONSE_BYTES", "Dialler", "Greeter", "new_token", "read_token"]

_MAGIC = b"PENSTK\x00\x01"  # the last byte: the version of this exchange
_NONCE_BYTES = 32
CHALLENGE_BYTES = len(_MAGIC) + _NONCE_BYTES
PROOF_BYTES = hashlib.sha256().digest_size
RESPONSE_BYTES = CHALLENGE_BYTES + PROOF_BYTES
_LEAST_TOKEN_BYTES = 16
_MOST_TOKEN_BYTES = 4096

RandomBytes = Callable[[int], bytes]


class Greeter:
    """The listener's part. ``purpose`` ("plane", "payload", ...) keeps one listener's proofs from another's."""

    def __init__(self, token: bytes, purpose: str, random: RandomBytes = secrets.token_bytes) -> None:
        self._token = token
        self._purpose = purpose
        self._nonce = random(_NONCE_BYTES)
        self._nonces = b""

    def challenge(self) -> bytes:
        """Return what to send first, ``CHALLENGE_BYTES`` long."""
        return _MAGIC + self._nonce

    def answer(self, response: bytes) -> bytes:
        """Judge the dialler's response of ``RESPONSE_BYTES``; return the listener's own proof, ``PROOF_BYTES`` long.

        Raises:
            WireError: it does not know the token, or does not speak this.
        """
        self._nonces = self._nonce + _nonce_of(response)
        expected = _proof(self._token, "dialler", self._purpose, self._nonces)
        if not hmac.compare_digest(response[CHALLENGE_BYTES:], expected):
            raise WireError("the dialler does not know the token of this plane")
        return _proof(self._token, "listener", self._purpose, self._nonces)

    def seals(self) -> Seals:
        """Return the seals of what follows; after ``answer``."""
        return Seals(*_keys(self._token, ("listener", "dialler"), self._purpose, self._nonces))


class Dialler:
    """The part of who connects; see ``Greeter``."""

    def __init__(self, token: bytes, purpose: str, random: RandomBytes = secrets.token_bytes) -> None:
        self._token = token
        self._purpose = purpose
        self._nonce = random(_NONCE_BYTES)
        self._nonces = b""

    def respond(self, challenge: bytes) -> bytes:
        """Return the response to the listener's challenge.

        Raises:
            WireError: what answered is no listener of ours.
        """
        self._nonces = _nonce_of(challenge) + self._nonce
        return _MAGIC + self._nonce + _proof(self._token, "dialler", self._purpose, self._nonces)

    def check(self, proof: bytes) -> None:
        """Judge the listener's proof.

        Raises:
            WireError: it does not know the token: do not tell it anything.
        """
        if not hmac.compare_digest(proof, _proof(self._token, "listener", self._purpose, self._nonces)):
            raise WireError("the listener does not know the token of this plane")

    def seals(self) -> Seals:
        """Return the seals of what follows; after ``check``."""
        return Seals(*_keys(self._token, ("dialler", "listener"), self._purpose, self._nonces))


def _nonce_of(message: bytes) -> bytes:
    if message[: len(_MAGIC)] != _MAGIC:
        raise WireError("not a Penstock listener, or one of another version")
    return message[len(_MAGIC) : CHALLENGE_BYTES]


def _proof(token: bytes, side: str, purpose: str, nonces: bytes) -> bytes:
    return hmac.digest(token, b"\0".join((side.encode(), purpose.encode(), nonces)), "sha256")


def _keys(token: bytes, sides: tuple[str, str], purpose: str, nonces: bytes) -> tuple[bytes, bytes]:
    """Keys for what these sides send, of this exchange only; no proof helps to know them."""
    assert len(nonces) == 2 * _NONCE_BYTES, "seals before the exchange would have the same keys on every connection"
    sending, receiving = (_proof(token, f"seals of the {side}", purpose, nonces) for side in sides)
    return sending, receiving


def new_token(path: Path) -> bytes:
    """Make a token file, mode 0600, exclusively; return the token.

    Raises:
        OSError: it is there already, or cannot be made.
    """
    token = secrets.token_hex(32).encode()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(token + b"\n")
    return token


def read_token(path: str | os.PathLike[str]) -> bytes:
    """Return the token in a file that only its owner can read.

    Raises:
        BadArgument: it cannot be read, others can read it too, or what it holds is no token.
    """
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(_MOST_TOKEN_BYTES + 1).strip()
    except OSError as missing:
        raise BadArgument(f"the token file {os.fspath(path)} cannot be read: {missing.strerror}") from missing
    if stat.S_IMODE(mode) & 0o077:
        raise BadArgument(f"the token file {os.fspath(path)} can be read by others: chmod 600 it")
    if not _LEAST_TOKEN_BYTES <= len(token) <= _MOST_TOKEN_BYTES:
        raise BadArgument(f"the token file {os.fspath(path)} holds {len(token)} bytes; a token has 16 to 4096")
    return token
