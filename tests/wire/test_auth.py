"""The token exchange: who knows the token is let in, and nothing that has been overheard helps who does not."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadArgument
from penstock.wire import WireError
from penstock.wire.auth import (
    CHALLENGE_BYTES,
    PROOF_BYTES,
    RESPONSE_BYTES,
    Dialler,
    Greeter,
    new_token,
    read_token,
)

TOKEN = b"sixteen bytes at least"


def exchange(greeter: Greeter, dialler: Dialler) -> None:
    """Both sides, as a wire would run them."""
    dialler.check(greeter.answer(dialler.respond(greeter.challenge())))


def test_who_knows_the_token_is_let_in() -> None:
    """Both sides are convinced, by messages of the sizes that are announced."""
    greeter, dialler = Greeter(TOKEN, "plane"), Dialler(TOKEN, "plane")
    challenge = greeter.challenge()
    response = dialler.respond(challenge)
    proof = greeter.answer(response)
    dialler.check(proof)
    assert (len(challenge), len(response), len(proof)) == (CHALLENGE_BYTES, RESPONSE_BYTES, PROOF_BYTES)


def test_the_token_does_not_travel() -> None:
    """Nothing that is sent holds the token."""
    greeter, dialler = Greeter(TOKEN, "plane"), Dialler(TOKEN, "plane")
    response = dialler.respond(greeter.challenge())
    assert TOKEN not in greeter.challenge() + response + greeter.answer(response)


def test_another_token_is_refused_by_the_listener() -> None:
    """A dialler with another token convinces no listener."""
    with pytest.raises(WireError, match="dialler does not know the token"):
        exchange(Greeter(TOKEN, "plane"), Dialler(TOKEN + b"!", "plane"))


def test_a_listener_that_does_not_know_the_token_is_refused() -> None:
    """A listener that lets anybody in cannot make a dialler believe that it knows the token."""
    dialler = Dialler(TOKEN, "plane")
    dialler.respond(Greeter(b"another token, as long", "plane").challenge())
    for guess in (bytes(PROOF_BYTES), b"\xff" * PROOF_BYTES, os.urandom(PROOF_BYTES), b""):
        with pytest.raises(WireError, match="listener does not know the token"):
            dialler.check(guess)


def test_a_proof_is_good_for_one_purpose() -> None:
    """Who may call the plane has not thereby called a payload listener, although the token is the same."""
    with pytest.raises(WireError, match="does not know the token"):
        exchange(Greeter(TOKEN, "payload"), Dialler(TOKEN, "plane"))


def test_a_response_cannot_be_replayed() -> None:
    """What one listener accepted no other connection accepts, of the same listener or of another."""
    first, dialler = Greeter(TOKEN, "plane"), Dialler(TOKEN, "plane")
    overheard = dialler.respond(first.challenge())
    first.answer(overheard)
    with pytest.raises(WireError):
        Greeter(TOKEN, "plane").answer(overheard)


def test_a_listener_s_proof_cannot_be_replayed() -> None:
    """A listener's proof that was overheard convinces no later dialler."""
    greeter, dialler = Greeter(TOKEN, "plane"), Dialler(TOKEN, "plane")
    overheard = greeter.answer(dialler.respond(greeter.challenge()))
    later = Dialler(TOKEN, "plane")
    later.respond(greeter.challenge())
    with pytest.raises(WireError):
        later.check(overheard)


def test_a_challenge_cannot_be_reflected() -> None:
    """Who sends a listener's own challenge and proof back to it, or a dialler's to the dialler, gets nowhere."""
    greeter = Greeter(TOKEN, "plane")
    challenge = greeter.challenge()
    for proof in (bytes(PROOF_BYTES), challenge[-PROOF_BYTES:]):
        with pytest.raises(WireError):
            greeter.answer(challenge + proof)
    dialler = Dialler(TOKEN, "plane")
    response = dialler.respond(challenge)
    with pytest.raises(WireError):
        dialler.check(response[-PROOF_BYTES:])


def test_a_dialler_cannot_be_made_to_answer_for_another() -> None:
    """Two diallers that are called by one false listener: what one answers does not open the way of the other."""
    false = Greeter(TOKEN, "plane").challenge()
    one, other = Dialler(TOKEN, "plane"), Dialler(TOKEN, "plane")
    answer = one.respond(false)
    other.respond(false)
    with pytest.raises(WireError):
        other.check(answer[-PROOF_BYTES:])


def test_every_connection_has_numbers_of_its_own() -> None:
    """No two challenges and no two responses are alike."""
    challenges = {Greeter(TOKEN, "plane").challenge() for _ in range(100)}
    responses = {Dialler(TOKEN, "plane").respond(next(iter(challenges))) for _ in range(100)}
    assert (len(challenges), len(responses)) == (100, 100)


def test_one_bit_that_is_another_is_refused() -> None:
    """Each bit of each message counts: with any one of them flipped, somebody refuses."""
    for message in ("challenge", "response", "proof"):
        size = {"challenge": CHALLENGE_BYTES, "response": RESPONSE_BYTES, "proof": PROOF_BYTES}[message]
        for at, bit in itertools.product(range(size), (0x01, 0x80)):
            with pytest.raises(WireError):
                exchange_with(message, at, bit)


def exchange_with(damaged: str, at: int, bit: int) -> None:
    def passed(message: str, data: bytes) -> bytes:
        if message != damaged:
            return data
        return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]

    greeter, dialler = Greeter(TOKEN, "plane"), Dialler(TOKEN, "plane")
    response = passed("response", dialler.respond(passed("challenge", greeter.challenge())))
    dialler.check(passed("proof", greeter.answer(response)))


@given(st.binary(max_size=2 * RESPONSE_BYTES))
def test_garbage_is_a_wire_error(data: bytes) -> None:
    """Fuzz: whatever comes, of whatever length, each side raises WireError and nothing else."""
    with pytest.raises(WireError):
        Greeter(TOKEN, "plane").answer(data)
    dialler = Dialler(TOKEN, "plane")
    with pytest.raises(WireError):
        dialler.check(data)
    magic = Greeter(TOKEN, "plane").challenge()[: CHALLENGE_BYTES - 32]
    with pytest.raises(WireError):
        Greeter(TOKEN, "plane").answer(magic + data)
    if not data.startswith(magic):
        with pytest.raises(WireError):
            dialler.respond(data)


@pytest.mark.parametrize("side", [Greeter(TOKEN, "plane"), Dialler(TOKEN, "plane")])
def test_there_are_no_seals_before_the_exchange(side: Greeter | Dialler) -> None:
    """Their keys would be those of every such connection."""
    with pytest.raises(AssertionError, match="before the exchange"):
        side.seals()


def test_a_new_token_is_its_owner_s_alone(tmp_path: Path) -> None:
    """A token file has mode 0600 whatever the umask, is never overwritten, and reads back as what was made."""
    path = tmp_path / "token"
    before = os.umask(0)
    try:
        token = new_token(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_token(path) == token
    with pytest.raises(FileExistsError):
        new_token(path)
    assert read_token(path) == token


def test_no_token_is_made_through_a_link(tmp_path: Path) -> None:
    """Where somebody has put a link, no token is written."""
    (tmp_path / "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="token"):
        new_token(tmp_path / "token")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [
        (b"x" * 64, 0o640, "can be read by others"),
        (b"x" * 64, 0o604, "can be read by others"),
        (b"short", 0o600, "holds 5 bytes"),
        (b"  \n", 0o600, "holds 0 bytes"),
        (b"x" * 5000, 0o600, "holds 4097 bytes"),
    ],
)
def test_a_file_that_is_no_token_is_refused(tmp_path: Path, content: bytes, mode: int, complaint: str) -> None:
    """A file that others can read, or that holds too little or too much, is a BadArgument that names it."""
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(BadArgument, match=complaint) as refused:
        read_token(path)
    assert str(path) in str(refused.value)


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing file is a BadArgument that says so."""
    with pytest.raises(BadArgument, match="No such file"):
        read_token(tmp_path / "nowhere")
