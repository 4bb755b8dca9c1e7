"""Sound messages made unsound: a few changes, small or large, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import pytest

_EXTREMES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\0" * 4, b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 7]

SHORT, LONG = 2_000, 1_000_000
rounds = pytest.mark.parametrize(
    "rounds", [SHORT, pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)


def _flip(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at, extreme = rng.randrange(len(data)), rng.choice(_EXTREMES)
    data[at : at + len(extreme)] = extreme


def _cut(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 8)]


def _repeat(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randint(1, 64)]


def _insert(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randint(1, 16))


def _splice(rng: random.Random, data: bytearray, sound: Sequence[bytes]) -> None:
    other = rng.choice(sound)
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other) + 1) :]


_WAYS: list[Callable[[random.Random, bytearray, Sequence[bytes]], None]] = [
    _flip, _flip, _overwrite, _cut, _remove, _repeat, _insert, _splice,
]  # fmt: skip


def mutated(rng: random.Random, sound: Sequence[bytes]) -> bytes:
    """Return one of ``sound`` with one to four changes, which may cancel each other."""
    data = bytearray(rng.choice(sound))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if data:
            rng.choice(_WAYS)(rng, data, sound)
    return bytes(data)


def unsound(seed: int, sound: Sequence[bytes], count: int) -> Iterator[bytes]:
    """Yield ``count`` inputs: mutations, and now and then plain noise."""
    rng = random.Random(seed)
    for _ in range(count):
        yield rng.randbytes(rng.choice([0, 1, 8, 56, 72, 136, 500])) if rng.random() < 0.1 else mutated(rng, sound)
