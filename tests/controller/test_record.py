"""The controller's durable record: whole or not at all, and never another run's."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.controller.record import ControllerRecord, OpenPrompt, RecordFile
from penstock.errors import BadArgument, ControllerError

LEFT = ControllerRecord(
    run="run", life=3, step=2, cursor=7, trained=4, rows=8, dropped={"stale": 2}, open=(OpenPrompt(5, 1, 1),)
)


def test_what_was_saved_is_found(tmp_path: Path) -> None:
    """All of it; before the first save there is nothing."""
    file = RecordFile(tmp_path)
    assert file.load("run") is None
    file.save(LEFT)
    assert file.load("run") == LEFT
    file.save(ControllerRecord(run="run", life=4))
    assert file.load("run") == ControllerRecord(run="run", life=4)
    assert [path.name for path in tmp_path.iterdir()] == ["controller.json"]


@given(
    counts=st.lists(st.integers(0, 2**53), min_size=4, max_size=4),
    dropped=st.dictionaries(st.text(max_size=8), st.integers(0, 99), max_size=3),
    prompts=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=5),
)
def test_any_record_is_found_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[int],
    dropped: dict[str, int],
    prompts: list[tuple[int, int]],
) -> None:
    """Whatever is in it, if its sums are right."""
    life, step, trained, rows = counts
    closed = trained + sum(dropped.values())
    record = ControllerRecord(
        run="run",
        life=life,
        step=step,
        cursor=closed + len(prompts),
        trained=trained,
        rows=rows,
        dropped=dropped,
        open=tuple(OpenPrompt(closed + i, *one) for i, one in enumerate(prompts)),
    )
    file = RecordFile(tmp_path_factory.getbasetemp())
    file.save(record)
    assert file.load("run") == record


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"format":1}',
        b'{"run":"run","format":1,"step":"two"}',
        b'{"run":"run","format":1,"step":2,"sept":3}',
        b'{"run":"run","step":2}',
        b'{"run":"run","format":1,"open":[[1]]}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: bytes) -> None:
    """It is said which file and why; nothing is guessed, and the file is left as it is."""
    file = RecordFile(tmp_path)
    file.path.write_bytes(text)
    with pytest.raises(ControllerError, match=r"the run.s record .*controller\.json"):
        file.load("run")
    assert file.path.read_bytes() == text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cursor": 8}, "8 prompts were begun, 6 are over and 1 under way"),
        ({"trained": 3, "open": (OpenPrompt(5, 1), OpenPrompt(5, 1))}, r"\[5, 5\]"),
        ({"open": (OpenPrompt(7, 0),)}, "of 7 prompts"),
        ({"step": -1}, "step -1"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """A flipped digit may leave what can be read: a prompt would be skipped, or trained twice."""
    file = RecordFile(tmp_path)
    file.save(msgspec.structs.replace(LEFT, **changes))
    with pytest.raises(ControllerError, match=rf"controller\.json is damaged: .*{said}"):
        file.load("run")


def test_a_digit_that_flipped_is_noticed(tmp_path: Path) -> None:
    """A record that reads well and says something else is refused, whatever was changed, and how to go on is said."""
    file = RecordFile(tmp_path)
    file.save(LEFT)
    whole = file.path.read_bytes()
    digits = [place for place, byte in enumerate(whole) if chr(byte).isdigit()]
    for place in digits:
        other = b"1" if whole[place : place + 1] != b"1" else b"2"
        file.path.write_bytes(whole[:place] + other + whole[place + 1 :])
        with pytest.raises(ControllerError):
            file.load("run")
    file.path.write_bytes(whole.replace(b'"step":', b'"step": '))
    with pytest.raises(ControllerError, match="does not match its checksum; put the latest good copy back"):
        file.load("run")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """No prefix of a record is taken for one."""
    file = RecordFile(tmp_path)
    file.save(LEFT)
    whole = file.path.read_bytes()
    for end in range(len(whole)):
        file.path.write_bytes(whole[:end])
        with pytest.raises(ControllerError):
            file.load("run")


def test_the_file_of_a_later_release_is_named_as_such(tmp_path: Path) -> None:
    """Also where it has fields that this release does not know."""
    file = RecordFile(tmp_path)
    file.path.write_bytes(b'{"run":"run","format":2,"step":2,"what":[]}')
    with pytest.raises(ControllerError, match="is of format 2; this release reads 1"):
        file.load("run")


def test_the_record_of_another_run_is_refused(tmp_path: Path) -> None:
    """Two runs need two folders."""
    file = RecordFile(tmp_path)
    file.save(LEFT)
    with pytest.raises(BadArgument, match="belongs to the run 'run', not 'other'"):
        file.load("other")


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    """And not a first life: that would begin the run anew."""
    file = RecordFile(tmp_path)
    file.path.mkdir()
    with pytest.raises(ControllerError, match="cannot read"):
        file.load("run")


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Whether it is full before the data are down or at the renaming, the old record is found whole."""
    file = RecordFile(tmp_path)
    file.save(LEFT)
    failed = []

    def full(*_: object) -> None:
        failed.append(where)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if where == "fsync" else (Path, "replace", full)))
        with pytest.raises(ControllerError, match=r"cannot save the run.s record .*No space left"):
            file.save(ControllerRecord(run="run", life=9))
    assert failed == [where]
    assert file.load("run") == LEFT
    file.save(ControllerRecord(run="run", life=9))  # what lies aside is in nobody's way
    assert file.load("run") == ControllerRecord(run="run", life=9)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """The run does not go on without its memory."""
    with pytest.raises(ControllerError, match="cannot save"):
        RecordFile(tmp_path / "nowhere").save(LEFT)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def test_the_old_record_is_found_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between writing and renaming, the next life finds the old record; the data go down before the name."""
    file = RecordFile(tmp_path)
    file.save(LEFT)
    order: list[str] = []
    sync, move = os.fsync, Path.replace

    def syncs(fd: int) -> None:
        order.append("folder" if Path(f"/proc/self/fd/{fd}").is_dir() else "data")
        sync(fd)

    def dies(path: Path, target: Path) -> Path:
        order.append("name")
        raise Killed

    monkeypatch.setattr(os, "fsync", syncs)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        with pytest.raises(Killed):
            file.save(ControllerRecord(run="run", life=9))
    assert file.load("run") == LEFT
    assert order == ["data", "name"]
    order.clear()

    def moves(path: Path, target: Path) -> Path:
        order.append("name")
        return move(path, target)

    monkeypatch.setattr(Path, "replace", moves)
    file.save(ControllerRecord(run="run", life=9))
    assert order == ["data", "name", "folder"]
