"""The conformance suite catches what it is for: each client here is broken in one way, and the named case says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from penstock.errors import DataPlaneError
from penstock.plane.contract import Columns, DataPlaneClient, OnFailed, TagRow
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.plane.rows import Held
from penstock.records import DataPlaneGroupMeta, KVBatchMeta
from penstock.testing import conformance
from penstock.testing.conformance import Case, Report, run


class FewerRows(NoOpDataPlaneClient):
    """Reads what is there of what was asked for."""

    def get_samples(
        self, sample_ids: Sequence[str], partition_id: str, select_fields: Sequence[str], **options: Any
    ) -> Any:
        there = [key for key in sample_ids if key in self._shared.plane.partition(partition_id).rows]
        return super().get_samples(there, partition_id, select_fields, **options)


class LeavesFailedKeys(NoOpDataPlaneClient):
    """Makes its rows before it looks at their columns."""

    def put_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        fields: Columns | None = None,
        tags: Sequence[TagRow] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> KVBatchMeta:
        if fields is not None and tags is not None:
            blank = {"reserved": torch.zeros(len(sample_ids))}
            super().put_samples(sample_ids, partition_id, blank, timeout_s=timeout_s)
        return super().put_samples(sample_ids, partition_id, fields, tags, timeout_s=timeout_s)


class OneBadRowFailsAll(NoOpDataPlaneClient):
    """Knows no on_failed."""

    def get_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        select_fields: Sequence[str],
        *,
        on_failed: OnFailed = "raise",
        timeout_s: float | None = None,
    ) -> Any:
        table = super().get_samples(sample_ids, partition_id, select_fields, timeout_s=timeout_s)
        return table if on_failed == "raise" else (table, KVBatchMeta(partition_id, None, list(sample_ids)))


class KeepsLeasesOfTheDead(NoOpDataPlaneClient):
    """Forgets to give leases back at the end of a session."""

    def close(self, *, timeout_s: float | None = None) -> None:
        self._closed = True


class MixesWriters(NoOpDataPlaneClient):
    """Writes row by row, field by field, and lets others in between."""

    def put_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        fields: Columns | None = None,
        tags: Sequence[TagRow] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> KVBatchMeta:
        if fields is None or tags is not None:
            return super().put_samples(sample_ids, partition_id, fields, tags, timeout_s=timeout_s)
        for name in fields.keys():  # noqa: SIM118
            column = fields[name]
            for i, key in enumerate(sample_ids):
                super().put_samples([key], partition_id, {name: column[i : i + 1]})
        return KVBatchMeta(partition_id, None, list(sample_ids), fields=list(fields.keys()))


class WritesOldTagsBack(NoOpDataPlaneClient):
    """Sends with every put the tags it first put."""

    first: Mapping[str, TagRow] = {}

    def put_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        fields: Columns | None = None,
        tags: Sequence[TagRow] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> KVBatchMeta:
        if tags is not None:
            self.first = {**dict(zip(sample_ids, tags, strict=True)), **self.first}
        else:
            tags = [self.first.get(key, {}) for key in sample_ids]
        return super().put_samples(sample_ids, partition_id, fields, tags, timeout_s=timeout_s)


class GhostRows(NoOpDataPlaneClient):
    """Lists rows that are gone."""

    ghosts: Mapping[str, DataPlaneGroupMeta] = {}

    def list_metadata(self, partition_id: str, **options: Any) -> list[DataPlaneGroupMeta]:
        found = super().list_metadata(partition_id, **options)
        self.ghosts = {**self.ghosts, **{group.group_id: group for group in found}}
        return [group for group in self.ghosts.values() if group.partition_id == partition_id]


class StaleTokensWork(NoOpDataPlaneClient):
    """Acks by key, whatever the token."""

    def ack(self, meta: KVBatchMeta, *, timeout_s: float | None = None) -> None:
        part = self._shared.plane.partition(meta.partition_id)
        for key in meta.sample_ids:
            if key in part.rows:
                super().evict([key], meta.partition_id, timeout_s=timeout_s)


class CastsSilently(NoOpDataPlaneClient):
    """Takes any dtype for the field's first one."""

    def put_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        fields: Columns | None = None,
        tags: Sequence[TagRow] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> KVBatchMeta:
        specs = self._shared.plane.partition(partition_id).specs
        if fields is not None:
            names = list(fields.keys())
            wanted = {n: getattr(torch, specs[n].dtype) if n in specs else fields[n].dtype for n in names}
            fields = {n: fields[n].to(wanted[n]) for n in names}
        return super().put_samples(sample_ids, partition_id, fields, tags, timeout_s=timeout_s)


class WaitsUnderTheLock(NoOpDataPlaneClient):
    """Polls for rows without letting others in."""

    def claim_meta(self, *args: Any, **options: Any) -> KVBatchMeta:
        if not options.get("blocking", True):
            return super().claim_meta(*args, **options)
        deadline = time.monotonic() + options.get("timeout_s", 60.0)
        with self._shared.changed:
            while True:
                meta = super().claim_meta(*args, **{**options, "blocking": False})
                if meta.size or time.monotonic() >= deadline:
                    return meta if meta.size else super().claim_meta(*args, **{**options, "timeout_s": 0.0})


class MixesGroups(NoOpDataPlaneClient):
    """Takes rows, not groups."""

    def claim_meta(self, *args: Any, **options: Any) -> KVBatchMeta:
        return super().claim_meta(*args, **{**options, "whole_groups": False})


class NeverFrees(NoOpDataPlaneClient):
    """Keeps what it cleared."""

    kept: Sequence[object] = ()

    def clear_samples(
        self, sample_ids: Sequence[str] | None, partition_id: str, *, timeout_s: float | None = None
    ) -> None:
        self.kept = [*self.kept, *self._shared.plane.partition(partition_id).rows.values()]
        super().clear_samples(sample_ids, partition_id, timeout_s=timeout_s)


class AnyTaskClaims(NoOpDataPlaneClient):
    """Lets a mistyped task claim."""

    def claim_meta(self, partition_id: str, task_name: str, *args: Any, **options: Any) -> KVBatchMeta:
        tasks = self._shared.plane.partition(partition_id).tasks
        return super().claim_meta(partition_id, task_name if task_name in tasks else "train", *args, **options)


class RemembersNoDead(NoOpDataPlaneClient):
    """Has no tombstones: a late put brings a trained row back."""

    def put_samples(self, sample_ids: Sequence[str], partition_id: str, *args: Any, **options: Any) -> KVBatchMeta:
        self._shared.plane.partition(partition_id).tombs.clear()
        return super().put_samples(sample_ids, partition_id, *args, **options)


class ResetsConsumption(NoOpDataPlaneClient):
    """Hands a row out again when it is written again."""

    def put_samples(self, sample_ids: Sequence[str], partition_id: str, *args: Any, **options: Any) -> KVBatchMeta:
        meta = super().put_samples(sample_ids, partition_id, *args, **options)
        for key in sample_ids:
            for hold in self._shared.plane.partition(partition_id).rows[key].holds.values():
                hold.state = Held.RELEASED
        return meta


class LeaksRawErrors(NoOpDataPlaneClient):
    """Lets a dict's KeyError out."""

    def get_samples(
        self, sample_ids: Sequence[str], partition_id: str, select_fields: Sequence[str], **options: Any
    ) -> Any:
        for key in sample_ids:
            self._shared.plane.partition(partition_id).rows[key]
        return super().get_samples(sample_ids, partition_id, select_fields, **options)


class IgnoresDeadlines(NoOpDataPlaneClient):
    """Waits for ever."""

    def claim_meta(self, *args: Any, **options: Any) -> KVBatchMeta:
        return super().claim_meta(*args, **{**options, "timeout_s": 1e6})


class WorksWhenClosed(NoOpDataPlaneClient):
    """Answers after its end."""

    def ping(self, timeout_s: float | None = None) -> None:
        return


class SqueezesOneRow(NoOpDataPlaneClient):
    """Loses the dimension of a batch of one."""

    def get_samples(
        self, sample_ids: Sequence[str], partition_id: str, select_fields: Sequence[str], **options: Any
    ) -> Any:
        table: Any = super().get_samples(sample_ids, partition_id, select_fields, **options)
        return {name: table[name].squeeze(0) for name in select_fields} if len(sample_ids) == 1 else table


class OtherSurface(NoOpDataPlaneClient):
    """Names an argument otherwise."""

    def depth(self, partition: str, *, timeout_s: float | None = None) -> int:
        return super().depth(partition, timeout_s=timeout_s)


BROKEN: list[tuple[type[NoOpDataPlaneClient], str]] = [
    (FewerRows, "trap_01"),
    (LeavesFailedKeys, "trap_02"),
    (OneBadRowFailsAll, "trap_03"),
    (KeepsLeasesOfTheDead, "trap_04"),
    (MixesWriters, "trap_05"),
    (WritesOldTagsBack, "trap_06"),
    (GhostRows, "trap_07"),
    (StaleTokensWork, "trap_08"),
    (CastsSilently, "trap_09"),
    (WaitsUnderTheLock, "trap_10"),
    (MixesGroups, "trap_11"),
    (NeverFrees, "trap_12"),
    (AnyTaskClaims, "an_undeclared_task_is_refused"),
    (RemembersNoDead, "a_late_copy_of_a_put_changes_nothing"),
    (RemembersNoDead, "a_late_write_is_refused_whole"),
    (ResetsConsumption, "writing_again_does_not_reset_consumption"),
    (StaleTokensWork, "a_superseded_consumer_is_refused"),
    (StaleTokensWork, "another_tasks_ack_consumes_for_it_alone"),
    (LeaksRawErrors, "missing_rows_are_named"),
    (IgnoresDeadlines, "a_claim_that_cannot_be_served_says_why"),
    (WorksWhenClosed, "a_closed_client_says_so"),
    (SqueezesOneRow, "one_row_keeps_its_dimension"),
    (OtherSurface, "the_adapter_has_the_contracts_surface"),
]


def check(kind: type[NoOpDataPlaneClient], case: str) -> Report:
    """Run one case on a plane of ``kind``."""
    clients: list[NoOpDataPlaneClient] = []

    def make_client() -> DataPlaneClient:
        clients.append(clients[0].peer() if clients else kind())
        return clients[-1]

    def stored_bytes(_: DataPlaneClient) -> int:
        rows = [row for part in clients[0]._shared.plane.partitions.values() for row in part.rows.values()]
        rows += getattr(clients[0], "kept", [])
        return sum(value.nbytes for row in rows for value in row.values.values())

    named: Callable[[Case], bool] = lambda c: case in c.name  # noqa: E731
    limit_s = 30.0 if kind is NoOpDataPlaneClient else 4.0  # what waits in vain shall not wait for long
    try:
        return run(make_client, shares_plane=True, measure_bytes=stored_bytes, only=named, quiet=True, limit_s=limit_s)
    finally:
        with clients[0]._shared.changed:  # ends the waits of a case that hangs
            for client in clients:
                client._closed = True
            clients[0]._shared.changed.notify_all()


@pytest.mark.parametrize(("kind", "case"), BROKEN, ids=[f"{kind.__name__}-{case}" for kind, case in BROKEN])
def test_a_broken_client_is_caught(kind: type[NoOpDataPlaneClient], case: str) -> None:
    """The case named for a fault fails on a client that has it, and passes on one that has not."""
    broken = check(kind, case)
    assert [o.case.name.rpartition("-")[2].startswith(case) for o in broken.failed] == [True], broken.show()
    assert check(NoOpDataPlaneClient, case).ok


def test_a_report_tells_each_case(capsys: pytest.CaptureFixture[str]) -> None:
    """``run`` prints a line for each case with its sentence, and counts what failed."""
    report = run(NoOpDataPlaneClient, only=lambda c: "trap_0" in c.name)
    printed = capsys.readouterr().out
    assert len(report.outcomes) == 9
    assert report.ok
    assert all(o.case.name in printed and o.case.sentence.splitlines()[0] in printed for o in report.outcomes)
    assert [o.case.name for o in report.skipped] == [n for n in (c.name for c in conformance.cases()) if "trap_04" in n]
    assert "8 passed, 0 failed, 1 skipped" in report.show()


def test_a_case_that_hangs_fails() -> None:
    """A case that does not end within its limit is a failure that says so."""
    report = check(IgnoresDeadlines, "a_claim_that_cannot_be_served_says_why")
    assert "hangs" in report.failed[0].why


def test_cases_are_gated_by_capabilities() -> None:
    """What an adapter does not claim is skipped with the reason."""

    class NoLeases(NoOpDataPlaneClient):
        def get_capabilities(self, *, timeout_s: float | None = None) -> Any:
            return type(super().get_capabilities())()

    report = check(NoLeases, "an_ack_can_be_repeated")
    assert [o.result for o in report.outcomes] == ["skipped"]
    assert "supports_leases" in report.outcomes[0].why


def test_every_case_has_a_sentence_and_a_name_of_its_own() -> None:
    """Cases are named once, and each says what must hold."""
    cases = conformance.cases()
    assert len({case.name for case in cases}) == len(cases) > 120
    assert [case.name for case in cases if case.sentence == case.name] == []
    assert sum("trap_" in case.name for case in cases) == 12


def test_errors_in_a_factory_are_failures() -> None:
    """A factory that raises fails each case instead of ending the run."""

    def broken() -> DataPlaneClient:
        raise DataPlaneError("no plane today")

    report = run(broken, only=lambda c: "trap_01" in c.name, quiet=True)
    assert "no plane today" in report.failed[0].why
