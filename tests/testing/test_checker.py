"""The checker, under planted violations of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import BadArgument
from penstock.testing.checker import Entry, EventLog, Evicted, Fault, Moment, Put, Report, Trained, check, read_log


def put(key: str, *moments: Moment, xxh3: str = "aa", version: int = 3) -> list[Entry]:
    return [Put(moment, key, xxh3, version) for moment in moments or ("before", "after")]


def trained(
    key: str, *moments: Moment, commit: int = 1, xxh3: str = "aa", version: int = 3, at: int = 3
) -> list[Entry]:
    return [Trained(moment, key, xxh3, version, commit, at) for moment in moments or ("before", "after")]


def evicted(key: str, *moments: Moment, reason: str = "stale") -> list[Entry]:
    return [Evicted(moment, key, reason) for moment in moments or ("before", "after")]


def only(report: Report, name: str, keys: list[str]) -> None:
    assert report.violations == {name: keys}
    assert not report.ok
    assert report.verdict().startswith("FAIL")
    assert name in report.verdict()


def test_a_run_without_violations_passes() -> None:
    """Rows that were put and then trained, or evicted with a reason, are all accounted for."""
    report = check([*put("a"), *trained("a"), *put("b"), *evicted("b")], max_staleness=2)
    assert report.ok
    assert (report.puts, report.acknowledged, report.trained, report.evicted) == (2, 2, 1, {"stale": 1})
    assert report.verdict().startswith("PASS")


def test_no_logs_at_all_are_a_pass_of_nothing() -> None:
    """An empty run breaks no promise and says that nothing happened."""
    assert check([]) == Report()


def test_an_acknowledged_row_that_nobody_settled_is_lost() -> None:
    """A row whose put was answered must end as trained or evicted."""
    only(check([*put("a"), *put("b"), *trained("b")]), "lost", ["a"])


def test_a_commit_that_was_only_begun_does_not_save_a_row() -> None:
    """ "Before" proves an attempt, not an outcome: the row is still lost."""
    only(check([*put("a"), *trained("a", "before")]), "lost", ["a"])
    only(check([*put("a"), *evicted("a", "before")]), "lost", ["a"])


def test_a_row_trained_in_two_commits_is_duplicated() -> None:
    """Two commits of one key are one too many."""
    only(check([*put("a"), *trained("a", commit=1), *trained("a", commit=2)]), "duplicated", ["a"])


def test_the_same_commit_logged_twice_is_no_duplicate() -> None:
    """A consumer that was killed after its commit writes the missing line again when it resumes."""
    assert check([*put("a"), *trained("a"), *trained("a", "after")]).ok


def test_a_row_both_trained_and_evicted_is_duplicated() -> None:
    """A row has one end; the books would count it twice."""
    only(check([*put("a"), *trained("a"), *evicted("a")]), "duplicated", ["a"])


def test_a_row_trained_with_other_bytes_is_corrupted() -> None:
    """The consumer's hash must be one that a producer of that key wrote."""
    only(check([*put("a", xxh3="aa"), *trained("a", xxh3="bb")]), "corrupted", ["a"])


def test_a_row_trained_under_another_weight_version_is_corrupted() -> None:
    """A row's version is part of what was put; another one would hide staleness."""
    only(check([*put("a", version=3), *trained("a", version=4, at=4)]), "corrupted", ["a"])


def test_a_row_put_again_may_be_trained_in_either_writing() -> None:
    """Two writings of one key are both legitimate; a mixture is not."""
    writings = [*put("a", xxh3="aa"), *put("a", xxh3="bb")]
    assert check([*writings, *trained("a", xxh3="bb")]).ok
    only(check([*writings, *trained("a", xxh3="ab")]), "corrupted", ["a"])


def test_a_row_that_nobody_put_is_a_phantom() -> None:
    """Training on a key without any put means that the plane invented it."""
    only(check(trained("ghost")), "phantom", ["ghost"])


def test_an_unanswered_put_that_is_trained_is_recovered() -> None:
    """An unknown outcome may turn out either way; it is counted, not blamed."""
    report = check([*put("a", "before"), *trained("a"), *put("b", "before")])
    assert report.ok
    assert (report.recovered, report.unanswered) == (1, 1)


def test_an_unanswered_put_with_other_bytes_is_still_corrupted() -> None:
    """Recovered rows are held to the hash that was logged before the put."""
    only(check([*put("a", "before", xxh3="aa"), *trained("a", xxh3="bb")]), "corrupted", ["a"])


def test_a_row_beyond_the_bound_is_stale() -> None:
    """Staleness is policy version minus weight version; the bound itself is allowed, None judges nothing."""
    entries = [*put("a"), *trained("a", at=5), *put("b"), *trained("b", at=6)]
    only(check(entries, max_staleness=2), "stale", ["b"])
    assert check(entries).ok


def test_the_order_of_the_logs_does_not_matter() -> None:
    """Files of several processes are joined as they come."""
    entries = [*put("a"), *trained("a"), *put("b"), *evicted("b"), *put("c"), Fault("worker", 7)]
    assert check(entries) == check(entries[::-1])


def test_faults_are_counted_by_kind() -> None:
    """A report says how many faults fired, of which kind, in the verdict too."""
    report = check([Fault("plane", 1), Fault("worker", 2), Fault("worker", 3)])
    assert report.faults == {"plane": 1, "worker": 2}
    assert "3 faults fired (1 plane, 2 worker)" in report.verdict()


def test_a_log_reads_back_what_was_written(tmp_path: Path) -> None:
    """Entries survive the file, over several openings of it."""
    entries = [*put("a"), *trained("a"), *evicted("b"), Fault("plane", 9)]
    for half in (entries[:3], entries[3:]):
        with EventLog(tmp_path / "log") as log:
            log.write(half)
    assert read_log(tmp_path / "log") == entries


def test_a_torn_last_line_is_no_evidence(tmp_path: Path) -> None:
    """A writer killed in its write leaves half a line: what came before it counts, at whatever byte it was cut."""
    with EventLog(tmp_path / "log") as log:
        log.write(put("a"))
    whole = (tmp_path / "log").read_bytes()
    first_line = whole.index(b"\n") + 1
    for cut in range(first_line, len(whole)):
        (tmp_path / "log").write_bytes(whole[:cut])
        assert read_log(tmp_path / "log") == put("a", "before")


def test_a_malformed_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Damage in the middle of a log is not skipped."""
    with EventLog(tmp_path / "log") as log:
        log.write(put("a"))
    (tmp_path / "log").write_bytes(b'{"type":"nonsense"}\n' + (tmp_path / "log").read_bytes())
    with pytest.raises(BadArgument, match=r"log:1: not a log entry"):
        read_log(tmp_path / "log")


def test_a_closed_log_refuses(tmp_path: Path) -> None:
    """Closing is idempotent, writing afterwards is an error, and repr shows the state."""
    log = EventLog(tmp_path / "log")
    log.close()
    log.close()
    assert "closed" in repr(log)
    with pytest.raises(BadArgument, match="closed"):
        log.write(put("a"))
