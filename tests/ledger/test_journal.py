from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from penstock.errors import BadArgument, DataPlaneWriteError, JournalCorrupt
from penstock.ledger.facts import Consumed, Entry, HostIs, LifeBegan, Put, Removed
from penstock.ledger.journal import Journal, MemoryJournal
from penstock.ledger.journal_files import DirectoryFiles, segment_name, segment_number
from penstock.ledger.journal_format import HEADER_BYTES, decode_entry, encode_entry, encode_header, new_header, seal
from penstock.requests import BlockPlace, Done, FieldSpec, HostPlace, TagColumn
from penstock.testing.sim.disk import Crashed, MemoryFiles

HERE = Path("unused")


def an_entry(i: int) -> Entry:
    return Entry([Removed("train", [i, i + 1], "trained", "x" * (i % 7))], 1, i, i, Done())


def a_put(i: int, rows: int) -> Entry:
    keys = [f"prompt-{i}_g{n}" for n in range(rows)]
    ids = list(range(i * rows, i * rows + rows))
    fields = [FieldSpec("ids", "int64", 1), FieldSpec("logprobs", "float32", 1)]
    tags = [TagColumn("group_id", [f"prompt-{i}"]), TagColumn("reward", [0.5] * rows)]
    place = BlockPlace(i, 0, i << 20, 1 << 20, 1)
    put = Put(i, "train", 1, keys, ids, None, fields, tags, place, 1 << 63, [4096] * rows, [512] * rows, 1.0)
    return Entry([put], 1, i, i, Done())


def recovered(files: MemoryFiles, segment_bytes: int = 1 << 20, repair: bool = False) -> list[Entry]:
    return list(Journal.open(HERE, segment_bytes, repair, files=files).entries())


def opened(files: MemoryFiles, segment_bytes: int = 1 << 20) -> Journal:
    journal = Journal.open(HERE, segment_bytes, files=files)
    list(journal.entries())
    return journal


def written(entries: list[Entry], segment_bytes: int = 1 << 20, flush_each: bool = True) -> MemoryFiles:
    files = MemoryFiles()
    with opened(files, segment_bytes) as journal:
        for entry in entries:
            journal.append(entry)
            if flush_each:
                journal.flush()
    return files


ENTRIES = [an_entry(i) for i in range(12)]


# -- what is written is what is read --------------------------------------------------------------------------------


def test_a_directory_gives_back_what_was_appended_over_several_lives(tmp_path: Path) -> None:
    """Entries of all lives come back, in order, from real files, over many segments."""
    said: list[Entry] = []
    for life in range(3):
        with Journal.open(tmp_path / "journal", 300) as journal:
            assert list(journal.entries()) == said
            for i in range(10):
                said.append(an_entry(100 * life + i))
                journal.append(said[-1])
            journal.flush()
            assert journal.size_bytes == sum(f.stat().st_size for f in (tmp_path / "journal").iterdir())
    assert len(list((tmp_path / "journal").iterdir())) == 4


def test_files_are_private_and_named_by_number(tmp_path: Path) -> None:
    """Segments are mode 0600 in a directory of mode 0700, and their names give their numbers."""
    with Journal.open(tmp_path / "journal", 1000) as journal:
        list(journal.entries())
        journal.append(ENTRIES[0])
    (file,) = (tmp_path / "journal").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert segment_number(file.name) == 1
    assert [segment_number(n) for n in ("segment-1.journal", "segment-0000000001.journal.damaged", "x")] == [None] * 3


def test_what_is_not_flushed_is_not_there() -> None:
    """A kill -9 loses what was only appended, and nothing that was flushed."""
    files = MemoryFiles()
    journal = opened(files)
    journal.append(ENTRIES[0])
    journal.flush()
    journal.append(ENTRIES[1])
    assert recovered(files) == ENTRIES[:1]


def test_close_flushes_and_may_be_repeated() -> None:
    """close() writes what is buffered; a second close and a later append are told apart."""
    files = MemoryFiles()
    journal = opened(files)
    journal.append(ENTRIES[0])
    journal.close()
    journal.close()
    assert recovered(files) == ENTRIES[:1]
    with pytest.raises(DataPlaneWriteError, match="closed"):
        journal.append(ENTRIES[1])


def test_one_flush_is_one_write() -> None:
    """However many entries are buffered, a flush is a single operation on the file."""
    files = MemoryFiles()
    journal = opened(files)
    journal.append(ENTRIES[0])
    journal.flush()
    before = files.steps
    for entry in ENTRIES:
        journal.append(entry)
    journal.flush()
    assert files.steps == before + 1


def test_the_journal_is_not_written_before_it_is_read() -> None:
    """append before the recovery is complete is refused: it would be written behind a bad tail."""
    journal = Journal.open(HERE, 1000, files=written(ENTRIES))
    with pytest.raises(DataPlaneWriteError, match="entries"):
        journal.append(ENTRIES[0])
    next(journal.entries())
    with pytest.raises(DataPlaneWriteError, match="entries"):
        journal.append(ENTRIES[0])
    with pytest.raises(BadArgument):
        list(journal.entries())


def test_a_segment_closes_at_its_size() -> None:
    """Segments rotate once they have reached segment_bytes, and replay in order."""
    files = written(ENTRIES, segment_bytes=200)
    assert len(files.contents) > 3
    assert all(len(data) >= 200 for name, data in files.contents.items() if name != max(files.contents))
    assert recovered(files) == ENTRIES


def test_memory_journal_keeps_nothing() -> None:
    """Durability "memory" has the same methods and no effect."""
    with MemoryJournal() as journal:
        assert list(journal.entries()) == []
        journal.append(ENTRIES[0])
        journal.begin_checkpoint()
        journal.end_checkpoint()
        journal.flush()
        assert (journal.size_bytes, journal.statistics().appended) == (0, 1)
    assert "none kept" in repr(journal)


# -- torn tails -----------------------------------------------------------------------------------------------------


def test_every_prefix_recovers_to_a_prefix_and_can_be_continued() -> None:
    """Cut anywhere in the last segment: a prefix of the entries is left, complete up to the cut, and writable."""
    files = written(ENTRIES, segment_bytes=400)
    last = max(files.contents)
    whole = bytes(files.contents[last])
    seen = set()
    for cut in range(len(whole) + 1):
        torn = files.copy()
        del torn.contents[last][cut:]
        journal = Journal.open(HERE, 400, files=torn)
        got = list(journal.entries())
        assert got == ENTRIES[: len(got)]
        seen.add(len(got))
        journal.append(an_entry(99))
        journal.flush()
        assert recovered(torn) == [*got, an_entry(99)]
    assert max(seen) == len(ENTRIES)
    assert len(seen) > 2


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\xff" * 100, os.urandom(100), b"\xc1\xf3pk" * 25], ids=range(4))
def test_a_bad_tail_is_cut(tail: bytes) -> None:
    """Zeroes, noise or markers behind the last entry are cut, and counted."""
    files = written(ENTRIES)
    files.contents[segment_name(1)] += tail
    journal = opened(files)
    assert journal.statistics().cut_bytes == 100
    assert recovered(files) == ENTRIES
    assert not files.contents[segment_name(1)].endswith(tail)


def test_a_zeroed_last_entry_is_cut() -> None:
    """A file whose length was kept and whose last data was not loses that entry only."""
    files = written(ENTRIES)
    data = files.contents[segment_name(1)]
    start = len(written(ENTRIES[:-1]).contents[segment_name(1)])
    data[start:] = b"\0" * (len(data) - start)
    assert recovered(files) == ENTRIES[:-1]


# -- damage ---------------------------------------------------------------------------------------------------------


def flips(files: MemoryFiles) -> Iterator[tuple[str, int, MemoryFiles]]:
    for name, data in files.contents.items():
        for at in range(len(data)):
            damaged = files.copy()
            damaged.contents[name][at] ^= 1 << (at % 8)
            yield name, at, damaged


def test_a_flipped_bit_is_refused_or_cut_never_believed() -> None:
    """At every byte: JournalCorrupt that names file, offset and remedy, or the last entry is cut. No wrong entry."""
    files = written(ENTRIES[:6], segment_bytes=200)
    refusals, cut = [], 0
    for name, at, damaged in flips(files):
        try:
            got = recovered(damaged)
        except JournalCorrupt as error:
            refusals.append((name, at, str(error)))
        else:
            assert got == ENTRIES[:6][: len(got)]
            assert name == max(files.contents)
            cut += 1
    assert len(refusals) > 300
    assert cut > 0
    assert all("--repair" in why and (name in why or at < HEADER_BYTES) for name, at, why in refusals)


def test_a_refused_journal_is_left_as_it_was() -> None:
    """JournalCorrupt changes no byte on disk: the evidence stays for whoever looks at it."""
    files = written(ENTRIES)
    files.contents[segment_name(1)][HEADER_BYTES + 20] ^= 1
    before = files.copy().contents
    with pytest.raises(JournalCorrupt, match="valid record lies behind"):
        recovered(files)
    assert files.contents == before


def test_repair_keeps_every_other_entry_and_says_what_it_dropped() -> None:
    """At every flipped byte, repair loses at most the entry that holds it, and the journal is sound afterwards."""
    files = written(ENTRIES[:6], segment_bytes=200)
    for name, at, damaged in flips(files):
        journal = Journal.open(HERE, 200, repair=True, files=damaged)
        got = list(journal.entries())
        lost = [e for e in ENTRIES[:6] if e not in got]
        assert [e for e in ENTRIES[:6] if e in got] == got
        assert len(lost) <= 1
        if journal.damage:
            assert any(d.file.endswith(name) for d in journal.damage) or at < HEADER_BYTES
            assert any(n.endswith(".damaged") for n in damaged.contents)
        journal.append(an_entry(99))
        journal.flush()
        assert recovered(damaged) == [*got, an_entry(99)]


def test_repair_leaves_a_sound_journal_alone() -> None:
    """--repair on a healthy journal, or an empty directory, does nothing."""
    files = written(ENTRIES)
    before = files.copy().contents
    assert recovered(files, repair=True) == ENTRIES
    assert files.contents == before
    assert recovered(MemoryFiles(), repair=True) == []


def test_a_crash_anywhere_in_a_repair_leaves_the_journal_damaged_or_repaired() -> None:
    """Whatever step of the repair dies, the next repair ends with the same entries."""
    files = written(ENTRIES, segment_bytes=200)
    files.contents[segment_name(2)][HEADER_BYTES + 20] ^= 1
    wanted = recovered(files.copy(), repair=True)
    assert 0 < len(wanted) < len(ENTRIES)
    crashes = 0
    for torn in (0, 7, -1):
        for step in range(1, 40):
            broken = files.copy()
            broken.crash_at, broken.torn = step, torn
            try:
                recovered(broken, repair=True)
            except Crashed:
                crashes += 1
            broken.restart()
            assert recovered(broken, repair=True) == wanted
    assert crashes >= 9


def test_a_missing_segment_is_refused() -> None:
    """Without its first, a middle or (when a checkpoint needs it) its last segments the journal is not believed."""
    files = written(ENTRIES, segment_bytes=200)
    for number in range(1, len(files.contents)):
        holed = files.copy()
        del holed.contents[segment_name(number)]
        with pytest.raises(JournalCorrupt, match=f"{number:010d}.*missing"):
            recovered(holed)
        assert len(recovered(holed, repair=True)) < len(ENTRIES)


def test_a_segment_cut_at_an_entry_is_refused_when_others_follow() -> None:
    """A clean cut in the middle is no torn tail: the next header counts the entries before it."""
    files = written(ENTRIES, segment_bytes=200)
    shorter = written(ENTRIES[:1], segment_bytes=1 << 20)
    files.contents[segment_name(1)] = files.contents[segment_name(1)][: len(shorter.contents[segment_name(1)])]
    with pytest.raises(JournalCorrupt, match="entries should lie before it"):
        recovered(files)


def test_a_stale_segment_is_refused() -> None:
    """A segment of another journal, or of this one under another number, is recognised."""
    files, others = written(ENTRIES, segment_bytes=200), written(ENTRIES, segment_bytes=200)
    foreign = files.copy()
    foreign.contents[segment_name(2)] = others.contents[segment_name(2)]
    with pytest.raises(JournalCorrupt, match="another journal"):
        recovered(foreign)
    renamed = files.copy()
    renamed.contents[segment_name(3)] = renamed.contents[segment_name(2)]
    with pytest.raises(JournalCorrupt, match="another place"):
        recovered(renamed)


def test_a_stale_frame_is_not_an_entry() -> None:
    """Bytes of a valid frame at another offset are noise: a recycled disk block resurrects nothing."""
    files = written(ENTRIES[:3])
    data = files.contents[segment_name(1)]
    data += data[HEADER_BYTES:]
    assert recovered(files) == ENTRIES[:3]


def test_another_version_is_refused_with_its_own_remedy() -> None:
    """A journal of another version names both versions and does not offer --repair."""
    files = written(ENTRIES)
    header = msgspec.structs.replace(new_header(1, 1, 1, 0), version=99)
    files.contents[segment_name(1)][:HEADER_BYTES] = encode_header(header)
    with pytest.raises(JournalCorrupt, match=r"version 99.*wrote it$"):
        recovered(files)


def test_a_valid_frame_that_is_no_entry_is_refused_and_dropped_by_repair() -> None:
    """The checksum says that it was written so; that does not make it an entry."""
    files = written(ENTRIES[:2])
    data = files.contents[segment_name(1)]
    data += seal(b"\x93\x01\x02\x03", 1, len(data)) + b"\x93\x01\x02\x03"
    with pytest.raises(JournalCorrupt, match="not an entry"):
        recovered(files)
    assert recovered(files, repair=True) == ENTRIES[:2]


# -- a disk that fails ----------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_journal() -> None:
    """ENOSPC raises, every later call raises, and what had been flushed before is recovered."""
    for room in range(HEADER_BYTES, 700, 13):
        files = MemoryFiles(max_bytes=room)
        journal = opened(files)
        flushed = 0
        with pytest.raises(DataPlaneWriteError, match="no space left"):  # noqa: PT012
            for entry in ENTRIES * 10:
                journal.append(entry)
                journal.flush()
                flushed += 1
        for again in (journal.flush, journal.begin_checkpoint, lambda j=journal: j.append(ENTRIES[0])):
            with pytest.raises(DataPlaneWriteError, match="no space left"):
                again()
        journal.close()
        assert len(recovered(files)) == flushed
        assert "no space left" in repr(journal) or "closed" in repr(journal)


_FULL = """
import resource, signal, sys
from pathlib import Path
from penstock.errors import DataPlaneWriteError
from penstock.ledger.facts import Entry, Removed
from penstock.ledger.journal import Journal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
journal = Journal.open(Path(sys.argv[1]), 1 << 20)
list(journal.entries())
for flushed in range(10000):
    try:
        journal.append(Entry([Removed("train", [flushed], "trained", "x" * 50)]))
        journal.flush()
    except DataPlaneWriteError as error:
        print(flushed, error)
        break
try:
    journal.flush()
except DataPlaneWriteError:
    print("still failed")
"""


def test_a_real_write_error_ends_the_journal_and_loses_nothing_flushed(tmp_path: Path) -> None:
    """A process whose file may not grow gets the kernel's error in the middle of a frame; a later life reads."""
    out = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert "still failed" in out
    assert "File too large" in out
    flushed = int(out.split()[0])
    assert flushed > 10
    assert (tmp_path / segment_name(1)).stat().st_size == 5000
    with Journal.open(tmp_path, 1 << 20) as journal:
        assert [e.facts[0] for e in journal.entries()] == [
            Removed("train", [i], "trained", "x" * 50) for i in range(flushed)
        ]
        assert journal.statistics().cut_bytes > 0


def test_a_place_that_is_no_directory_is_said_so(tmp_path: Path) -> None:
    """A path that cannot be a directory, and one that vanished, end in our errors, not in raw ones."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataPlaneWriteError, match="cannot be opened"):
        Journal.open(tmp_path / "file", 1000)
    journal = Journal.open(tmp_path / "gone", 1000)
    (tmp_path / "gone").rmdir()
    with pytest.raises(JournalCorrupt, match="cannot be listed"):
        list(journal.entries())


def test_a_repair_without_room_leaves_the_journal_as_it_was() -> None:
    """A full disk during the repair is an error, and the damaged journal can be repaired once there is room."""
    files = written(ENTRIES, segment_bytes=200)
    files.contents[segment_name(2)][HEADER_BYTES + 20] ^= 1
    wanted = recovered(files.copy(), repair=True)
    files.max_bytes = files.size_bytes + 100
    with pytest.raises(DataPlaneWriteError, match="no space left"):
        recovered(files, repair=True)
    files.max_bytes = None
    assert recovered(files, repair=True) == wanted


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes seven bytes at a time gets all of them."""
    real, calls = os.write, []

    def short(fd: int, data: bytes) -> int:
        calls.append(len(data))
        return real(fd, bytes(data[:7]))

    files = DirectoryFiles(tmp_path)
    monkeypatch.setattr(os, "write", short)
    files.create("a", b"0123456789")
    files.append("a", b"abcdefghijklmnop")
    files.close()
    assert files.read("a") == b"0123456789abcdefghijklmnop"
    assert len(calls) > 3


# -- checkpoints ----------------------------------------------------------------------------------------------------


def checkpointing(files: MemoryFiles, said: list[Entry], restated: list[int]) -> None:
    """Two checkpoints among traffic. ``said``: flushed so far; ``restated``: where in it the full checkpoints began."""
    journal = opened(files, segment_bytes=250)

    def say(entry: Entry) -> None:
        journal.append(entry)
        journal.flush()
        said.append(entry)

    for n in (1, 2):
        for i in range(4):
            say(an_entry(10 * n + i))
        journal.begin_checkpoint()
        begun = len(said)
        say(Entry([LifeBegan(n, 0.0, 1)], checkpoint=n))
        say(an_entry(10 * n + 5))
        say(Entry([Consumed("train", "t", [1])], checkpoint=n))
        restated.append(begun)
        journal.end_checkpoint()
    say(an_entry(99))


def test_a_finished_checkpoint_drops_what_it_restated() -> None:
    """After end_checkpoint older segments are gone and replay begins with the checkpoint."""
    said: list[Entry] = []
    restated: list[int] = []
    files = MemoryFiles()
    checkpointing(files, said, restated)
    assert recovered(files) == said[restated[-1] :]
    assert segment_number(min(files.contents)) > 3  # type: ignore[operator]


def test_a_crash_at_any_step_of_a_checkpoint_recovers_everything_flushed() -> None:
    """At every file operation, nothing, some or all of it done: replay yields all that counts, from a checkpoint on."""
    total = MemoryFiles()
    checkpointing(total, [], [])
    fired = 0
    for torn in (0, 5, -1):
        for step in range(1, total.steps + 1):
            said: list[Entry] = []
            restated: list[int] = []
            files = MemoryFiles(crash_at=step, torn=torn)
            with pytest.raises(Crashed):
                checkpointing(files, said, restated)
            fired += files.crashes
            files.restart()
            got = recovered(files)
            starts = [0, *restated]
            extra = [e for e in got if e not in said]
            assert len(extra) <= 1  # flushed, its acknowledgement never given
            assert got[: len(got) - len(extra)] in [said[s:] for s in starts]
    assert fired == 3 * total.steps


def test_an_unfinished_checkpoint_is_just_more_entries() -> None:
    """A checkpoint that was begun and not ended drops nothing; the next one begins anew."""
    files = MemoryFiles()
    journal = opened(files)
    for entry in ENTRIES[:2]:
        journal.append(entry)
    opening = Entry([LifeBegan(1, 0.0, 1)], checkpoint=1)
    journal.begin_checkpoint()
    journal.append(opening)
    journal.flush()
    assert recovered(files) == [*ENTRIES[:2], opening]
    journal = opened(files)
    with pytest.raises(BadArgument):
        journal.end_checkpoint()
    journal.begin_checkpoint()
    journal.append(opening)
    journal.end_checkpoint()
    assert recovered(files) == [opening]


def test_what_opens_a_checkpoint_is_the_first_entry_of_its_segment() -> None:
    """Facts before it would build on what the older segments said; that is a bug of the caller."""
    journal = opened(MemoryFiles())
    journal.begin_checkpoint()
    with pytest.raises(AssertionError, match="comes first"):
        journal.append(ENTRIES[0])


def test_losing_the_header_that_ended_a_checkpoint_is_refused() -> None:
    """Without it older segments would count again, and they are gone: missing, not silently empty."""
    files = MemoryFiles()
    checkpointing(files, [], [])
    files.contents[max(files.contents)][10] ^= 1
    with pytest.raises(JournalCorrupt):
        recovered(files)


# -- big ------------------------------------------------------------------------------------------------------------


def test_puts_of_512_rows_survive_the_way(tmp_path: Path) -> None:
    """Entries of the size of a real put come back equal, and size_bytes is what lies on disk."""
    puts = [a_put(i, 512) for i in range(20)]
    with Journal.open(tmp_path, 1 << 16) as journal:
        list(journal.entries())
        for put in puts:
            journal.append(put)
        journal.flush()
    with Journal.open(tmp_path, 1 << 16) as journal:
        assert list(journal.entries()) == puts
        assert journal.statistics().recovered == 20


def test_scan_for_a_valid_frame_is_quick_over_a_large_tail() -> None:
    """A megabyte of damage is searched by markers, not frame by frame at each byte."""
    files = written(ENTRIES)
    files.contents[segment_name(1)] += os.urandom(1 << 20)
    assert recovered(files) == ENTRIES


def test_a_host_journaled_before_there_were_stores_is_a_machine() -> None:
    """What was added to a fact since stands at its end and has a default."""
    place = HostPlace(5, 1, "n", "10.0.0.1", [7777], [], 7778)
    raw = msgspec.msgpack.decode(encode_entry(Entry([HostIs(place)])))
    (fact,) = raw[0]
    assert fact[0] == "HostIs"
    assert fact[1].pop() == place.store == ""
    assert decode_entry(msgspec.msgpack.encode(raw)) == Entry([HostIs(place)])
