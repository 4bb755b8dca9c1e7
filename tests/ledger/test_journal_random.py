"""The journal against a list, and against noise."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import JournalCorrupt
from penstock.ledger.facts import Entry, Removed
from penstock.ledger.journal import Journal
from penstock.testing.sim.disk import Crashed, MemoryFiles

HERE = Path("unused")
MOVES = ("append", "append", "append", "flush", "begin", "end", "restart", "kill")


def entry(number: int) -> Entry:
    return Entry([Removed("p", [number], "trained", "x" * (number % 5))], 1, number, checkpoint=1)


def opened(files: MemoryFiles, segment_bytes: int) -> tuple[Journal, list[int]]:
    journal = Journal.open(HERE, segment_bytes, files=files)
    return journal, [e.seq for e in journal.entries()]


class Twin:
    """What the journal must remember: ``kept`` surely, ``loose`` perhaps; a finished checkpoint drops the rest."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.loose: list[int] = []
        self.checkpoint: int | None = None

    def flush(self) -> None:
        self.kept += self.loose
        self.loose = []


@settings(max_examples=150, deadline=None)
@given(
    moves=st.lists(st.sampled_from(MOVES), max_size=40),
    segment_bytes=st.integers(80, 400),
    torn=st.integers(-1, 120),
)
def test_whatever_is_done_to_a_journal_it_remembers_what_was_flushed(
    moves: list[str], segment_bytes: int, torn: int
) -> None:
    """Appends, flushes, checkpoints, clean restarts and torn kills in any order: recovery is flushed plus a prefix."""
    files, twin = MemoryFiles(), Twin()
    journal, _ = opened(files, segment_bytes)
    for number, move in enumerate(moves, 1):
        if move == "append":
            journal.append(entry(number))
            twin.loose.append(number)
        elif move == "flush":
            journal.flush()
            twin.flush()
        elif move == "begin":
            journal.begin_checkpoint()
            twin.flush()
            twin.checkpoint = len(twin.kept)
        elif move == "end" and twin.checkpoint is not None:
            journal.end_checkpoint()
            twin.flush()
            twin.kept, twin.checkpoint = twin.kept[twin.checkpoint :], None
        elif move == "restart":
            journal.close()
            twin.flush()
            twin.checkpoint = None
            journal, got = opened(files, segment_bytes)
            assert got == twin.kept
        elif move == "kill":
            kill(journal, files, torn)
            journal, got = opened(files, segment_bytes)
            assert got == [*twin.kept, *twin.loose[: len(got) - len(twin.kept)]]
            twin.kept, twin.loose, twin.checkpoint = got, [], None


def kill(journal: Journal, files: MemoryFiles, torn: int) -> None:
    """Die in the next write, if there is one."""
    files.crash_at, files.torn = files.steps + 1, torn
    with contextlib.suppress(Crashed):
        journal.flush()
    files.restart()


@pytest.mark.parametrize("seed", range(20))
def test_noise_in_a_journal_is_refused_or_cut_never_believed(seed: int) -> None:
    """Bytes overwritten, removed, inserted or doubled anywhere: JournalCorrupt, or a prefix; repair always ends."""
    rng = random.Random(seed)
    files = MemoryFiles()
    with Journal.open(HERE, 300, files=files) as journal:
        list(journal.entries())
        for number in range(30):
            journal.append(entry(number))
            journal.flush()
    refused = 0
    for _ in range(40):
        damaged = files.copy()
        harm(rng, damaged)
        try:
            _, got = opened(damaged, 300)
        except JournalCorrupt:
            refused += 1
            salvaged = [e.seq for e in Journal.open(HERE, 300, repair=True, files=damaged).entries()]
            assert salvaged == sorted(set(salvaged))
            assert set(salvaged) <= set(range(30))
        else:
            assert got == list(range(len(got)))
    assert refused > 10


def harm(rng: random.Random, files: MemoryFiles) -> None:
    data = files.contents[rng.choice(sorted(files.contents))]
    at, length = rng.randrange(len(data)), rng.randint(1, 60)
    kind = rng.randrange(4)
    if kind == 0:
        data[at : at + length] = rng.randbytes(length)
    elif kind == 1:
        del data[at : at + length]
    elif kind == 2:
        data[at:at] = rng.randbytes(length)
    else:
        data[at:at] = data[at : at + length]
