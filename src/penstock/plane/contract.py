"""The contract users program against: one abstract client, several adapters, one conformance suite.

Invariants, on every adapter:
- A read returns exactly the rows asked for, in the order asked for, or raises; never fewer rows in silence.
- A batch put is atomic; a row's field is one writer's, never a mixture of two.
- Every call ends within its deadline: with its result, or with an error of the tree in ``errors`` that names the cause.
- ``DataPlaneUnavailable`` means that nothing happened; after ``DataPlaneTimeout`` repeating the call is safe.
- Repeating an ``ack``, ``pop``, ``evict`` or ``clear_samples`` that succeeded succeeds again and changes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, overload

from penstock.errors import BadArgument, DataPlaneClearError, abbreviate
from penstock.records import DataPlaneCapabilities, DataPlaneGroupMeta, GroupPolicy, KVBatchMeta

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["DEFAULT_TIMEOUT_S", "Columns", "DataPlaneClient", "OnFailed", "TagRow"]

DEFAULT_TIMEOUT_S = 30.0

Columns: TypeAlias = "TensorDict | Mapping[str, Any]"
TagRow: TypeAlias = Mapping[str, Any]
OnFailed: TypeAlias = Literal["raise", "drop"]


class DataPlaneClient(ABC):
    """A client of a plane: one session, safe to use from several threads, closed once.

    Every method takes ``timeout_s``: seconds until the call must have ended, None = the client's default (30 s); 0 =
    wait for nothing. ``claim_meta`` alone has its own default. Every method may raise, besides what it names:
    ``BadArgument`` (also ``ValueError``), ``UnknownName`` (also ``KeyError``), ``DataPlaneTimeout`` (also
    ``TimeoutError``) and ``DataPlaneUnavailable``, the latter always once the client is closed.
    """

    @property
    def default_timeout_s(self) -> float:
        """The deadline of a call that gives none; an adapter whose own is another says so here."""
        return DEFAULT_TIMEOUT_S

    # -- task-mediated ------------------------------------------------------------------------------------------------

    @abstractmethod
    def register_partition(
        self,
        partition_id: str,
        fields: Sequence[str],
        num_samples: int,
        consumer_tasks: Sequence[str],
        grpo_group_size: int | None = None,
        enums: Mapping[str, Sequence[str]] | None = None,
        *,
        group_policy: GroupPolicy | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Declare a partition, or refresh it: callers do so every step.

        Registering again merges ``fields`` and replaces ``num_samples``, ``grpo_group_size`` and ``group_policy``;
        rows and cursors are untouched.

        Args:
            partition_id: a non-empty name.
            fields: declared columns. Columns that were not declared are accepted in puts all the same.
            num_samples: how many rows to expect; sizes expectations, limits nothing.
            consumer_tasks: who consumes, in order; the last one is the final task: its ack removes a row as trained.
            grpo_group_size: the default number of keys of a group whose rows carry the tag ``group_id`` and do not
                declare ``expected_num_keys``.
            enums: recorded, not interpreted.
            group_policy: what whole-group claims do about incomplete groups; None = wait.
            timeout_s: see the class.

        Raises:
            BadArgument: tasks or enums differ from those registered before.
        """

    @abstractmethod
    def claim_meta(
        self,
        partition_id: str,
        task_name: str,
        required_fields: Sequence[str],
        batch_size: int,
        dp_rank: int | None = None,
        blocking: bool = True,
        timeout_s: float | None = 60.0,
        *,
        min_rows: int = 1,
        keys: Sequence[str] | None = None,
        whole_groups: bool = False,
        lease_s: float | None = None,
    ) -> KVBatchMeta:
        """Lease up to ``batch_size`` rows for ``task_name``, oldest first.

        A row qualifies when all ``required_fields`` are produced and the task has neither consumed nor leased it.
        Concurrent claims get disjoint rows.

        Args:
            partition_id: a registered partition.
            task_name: one of its ``consumer_tasks``.
            required_fields: columns a row must have; they become the meta's ``fields``.
            batch_size: the most rows to lease, at least 1; ignored with ``keys``.
            dp_rank: recorded for ``why``; changes nothing.
            blocking: wait until ``min_rows`` are ready, then take what there is. False: take what is ready now, which
                may be nothing (an empty meta).
            timeout_s: how long a blocking claim waits; None = the client's default.
            min_rows: with ``blocking``, how many rows to wait for, 1..``batch_size``.
            keys: lease exactly these rows, all or none. Rows that are leased or not ready are waited for (or an empty
                meta, when not blocking); unknown, removed or consumed rows are an error at once.
            whole_groups: hand out whole groups only, each committed and complete, or as the partition's ``GroupPolicy``
                lets go of them; their rows then carry the tag ``partial`` = True. With ``keys``: these are the groups
                that the caller chose from ``list_metadata`` (their ``usable_keys``); rows of partial ones are tagged
                alike, and what is left of a group that lost a row is given up as for any whole-group consumer.
            lease_s: the lease ends after this many seconds; None = with the session.

        Returns:
            A meta with the rows' tags, ``sequence_lengths`` (tag ``input_lengths``, else lengths of the first ragged
            field, else None) and ``lease``, a 1-tuple with the token (empty meta: ``()``).

        Raises:
            UnknownName: the partition, the task or one of ``keys`` is unknown; the message says which.
            RowRemoved: one of ``keys`` was removed, or consumed by this task already.
            BadArgument: ``batch_size`` or ``min_rows`` out of range; a ready group is larger than ``batch_size``.
            DataPlaneTimeout: fewer than ``min_rows`` were ready in time; says how many, and what lags.
        """

    @overload
    def get_data(
        self,
        meta: KVBatchMeta,
        select_fields: Sequence[str] | None = None,
        *,
        on_failed: Literal["raise"] = "raise",
        timeout_s: float | None = None,
    ) -> TensorDict: ...

    @overload
    def get_data(
        self,
        meta: KVBatchMeta,
        select_fields: Sequence[str] | None = None,
        *,
        on_failed: Literal["drop"],
        timeout_s: float | None = None,
    ) -> tuple[TensorDict, KVBatchMeta]: ...

    @abstractmethod
    def get_data(
        self,
        meta: KVBatchMeta,
        select_fields: Sequence[str] | None = None,
        *,
        on_failed: OnFailed = "raise",
        timeout_s: float | None = None,
    ) -> TensorDict | tuple[TensorDict, KVBatchMeta]:
        """Read the rows of ``meta``; needs no lease and moves no cursor.

        Args:
            meta: names the rows.
            select_fields: the columns; None = ``meta.fields``. Never "all".
            on_failed: see ``get_samples``.
            timeout_s: see the class.

        Returns:
            As ``get_samples``; with ``"drop"`` the second item is ``meta.subset`` of the rows that were read.

        Raises:
            BadArgument: neither ``select_fields`` nor ``meta.fields`` names a column.
            DataPlaneReadError, UnknownName, FieldNotProduced: as ``get_samples``.
        """

    @abstractmethod
    def ack(self, meta: KVBatchMeta, *, timeout_s: float | None = None) -> None:
        """Mark the rows of ``meta`` as consumed by ``meta.task_name``, all or none; the final task's ack removes them.

        Raises:
            LeaseLost: a row's lease was superseded by another claim, or never existed. Nothing changed.
            BadArgument: ``meta`` names no task.
        """

    @abstractmethod
    def release(self, meta: KVBatchMeta, *, timeout_s: float | None = None) -> None:
        """Give the rows of ``meta`` back unconsumed, all or none; they are ready again at once.

        Raises:
            LeaseLost, BadArgument: as ``ack``.
        """

    @abstractmethod
    def renew(self, meta: KVBatchMeta, lease_s: float | None, *, timeout_s: float | None = None) -> None:
        """Let the leases of ``meta`` end ``lease_s`` seconds from now, all or none; None = with the session.

        Raises:
            LeaseLost, BadArgument: as ``ack``.
        """

    @abstractmethod
    def check_consumption_status(
        self, partition_id: str, task_names: Sequence[str], *, timeout_s: float | None = None
    ) -> bool:
        """Whether every row of the partition is claimed or consumed by every named task; true when no row is left.

        Raises:
            UnknownName: the partition or a task is unknown.
        """

    # -- direct, by key -----------------------------------------------------------------------------------------------

    @abstractmethod
    def put_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        fields: Columns | None = None,
        tags: Sequence[TagRow] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> KVBatchMeta:
        """Write columns and tags of rows, atomically: all become visible, or none.

        New keys make new rows; known keys get further columns, or the next version of a column. Tags merge into those
        that are there. A put without ``fields`` changes tags only.

        Args:
            sample_ids: N distinct keys.
            partition_id: a registered partition.
            fields: columns of N rows: dense tensors (N, ...), nested (jagged) tensors, lists of N tensors, arrays.
                A field keeps the dtype and rank of its first put. Non-tensor leaves need ``strict_tensors=False``.
            tags: N mappings of name to str, int, float, bool or None.
            timeout_s: see the class; a plane that is full makes the put wait this long.

        Returns:
            A meta of these rows, with the columns written as ``fields`` and their tags; no task, no lease.

        Raises:
            RefusedType: a column or tag of a type that is not carried (also ``TypeError``); names field and type.
            UnknownName: the partition is unknown, or a tag-only put names absent rows.
            RowRemoved: rows were removed; the put comes too late.
            DataPlaneFull: no room for new groups before the deadline.
            BadArgument: duplicate keys, misaligned columns or tags, neither fields nor tags; a dtype or rank that
                differs from the field's first put (names both).
        """

    @overload
    def get_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        select_fields: Sequence[str],
        *,
        on_failed: Literal["raise"] = "raise",
        timeout_s: float | None = None,
    ) -> TensorDict: ...

    @overload
    def get_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        select_fields: Sequence[str],
        *,
        on_failed: Literal["drop"],
        timeout_s: float | None = None,
    ) -> tuple[TensorDict, KVBatchMeta]: ...

    @abstractmethod
    def get_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        select_fields: Sequence[str],
        *,
        on_failed: OnFailed = "raise",
        timeout_s: float | None = None,
    ) -> TensorDict | tuple[TensorDict, KVBatchMeta]:
        """Read columns of rows, in the order asked for; repeated keys are allowed; no cursor moves.

        Args:
            sample_ids: N keys; ``[]`` gives batch size 0.
            partition_id: a registered partition.
            select_fields: at least one column.
            on_failed: ``"raise"``, or ``"drop"``: leave out the rows that cannot be read (missing, lacking a field,
                lost, damaged) and return ``(columns, meta)`` of the rest.
            timeout_s: see the class.

        Returns:
            A TensorDict of batch size (N,). A column whose rows have one shape is dense (N, *row shape), otherwise
            nested (jagged), however it was put; dtypes are those of the put.

        Raises:
            UnknownName: the partition, a field or rows are unknown (also ``KeyError``); ``keys`` names the rows.
            FieldNotProduced: a field is not there yet (also ``DataPlaneNotReady`` and ``KeyError``).
            DataPlaneReadError: rows exist but cannot be read; names them and says why.
        """

    @abstractmethod
    def clear_samples(
        self, sample_ids: Sequence[str] | None, partition_id: str, *, timeout_s: float | None = None
    ) -> None:
        """Remove rows, whoever leases them; None = every row and the registration. What is absent is no error.

        Puts that began before are refused with ``RowRemoved``; later puts under these keys make new rows.

        Raises:
            DataPlaneClearError: rows are still there; ``keys`` names them.
        """

    # -- recovery: for a controller that never sees a tensor ----------------------------------------------------------

    @abstractmethod
    def ping(self, timeout_s: float | None = None) -> None:
        """Return when the real request path answers, payload hosts included; tries once, waits for no restart.

        Raises:
            DataPlaneTimeout, DataPlaneUnavailable: always within ``timeout_s``.
        """

    @abstractmethod
    def list_metadata(
        self,
        partition_id: str,
        *,
        committed: bool | None = None,
        min_weight_version: int | None = None,
        max_weight_version: int | None = None,
        older_than_s: float | None = None,
        ready_for: str | None = None,
        limit: int | None = None,
        after: str | None = None,
        timeout_s: float | None = None,
    ) -> list[DataPlaneGroupMeta]:
        """Describe the partition's groups, uncommitted and leased ones included, by ``group_id``; consumes nothing.

        What may be trained on of a group is its ``usable_keys``: all keys once it is committed and complete, its
        ``partial_keys`` once the partition's ``GroupPolicy`` has released it as partial, otherwise none.

        Args:
            partition_id: an unknown one gives ``[]``.
            committed: only groups that are, or are not; one that the ``GroupPolicy`` has released as partial counts as
                committed, whatever its other rows say.
            min_weight_version: inclusive; a group without a version does not pass.
            max_weight_version: likewise.
            older_than_s: only groups created more than this many seconds ago.
            ready_for: only groups of which this task has neither leased nor consumed a row.
            limit: at most this many groups, at least 1.
            after: only groups whose ``group_id`` comes after this one.
            timeout_s: see the class.

        Raises:
            UnknownName: ``ready_for`` is not a task of the partition.
        """

    def depth(self, partition_id: str, *, timeout_s: float | None = None) -> int:
        """Count the groups that are committed and complete (no partial ones); an unknown partition has none."""
        return sum(g.is_complete for g in self.list_metadata(partition_id, committed=True, timeout_s=timeout_s))

    def pop(
        self,
        keys: Sequence[str],
        partition_id: str,
        *,
        lease: str | Sequence[str] | None = None,  # noqa: ARG002 - for adapters that have leases
        timeout_s: float | None = None,
    ) -> None:
        """Remove rows that were trained, all or none, verified. Rows that nobody leases may be popped by anyone.

        Args:
            keys: a list; None is a bad request. Absent rows are no error.
            partition_id: one that is, or was, registered.
            lease: the tokens under which the final task holds the rows; None = those this client got them under.
            timeout_s: see the class.

        Raises:
            LeaseLost: a row is leased to somebody else, or ended under another token. Nothing changed.
            DataPlaneClearError: rows are still there; ``keys`` names them.
        """
        self._clear_verified(keys, partition_id, timeout_s)

    def evict(
        self,
        keys: Sequence[str],
        partition_id: str,
        reason: str = "stale",  # noqa: ARG002 - for adapters that keep an audit
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Remove rows that are stale or abandoned, whoever leases them, counted under ``reason``; verified.

        Args:
            keys: a list; None is a bad request. Absent rows are no error.
            partition_id: one that is, or was, registered.
            reason: a non-empty word for the audit.
            timeout_s: see the class.

        Raises:
            DataPlaneClearError: rows are still there; ``keys`` names them.
        """
        self._clear_verified(keys, partition_id, timeout_s)

    def _clear_verified(self, keys: Sequence[str] | None, partition_id: str, timeout_s: float | None) -> None:
        if keys is None or isinstance(keys, str):
            raise BadArgument(f"keys must be a list of row keys, got {keys!r}", partition=partition_id)
        if not keys:
            return
        self.clear_samples(keys, partition_id, timeout_s=timeout_s)
        there = {key for group in self.list_metadata(partition_id, timeout_s=timeout_s) for key in group.keys}
        left = [key for key in keys if key in there]
        if left:
            raise DataPlaneClearError(f"still there: {abbreviate(left)}", partition=partition_id, keys=left)

    @abstractmethod
    def get_capabilities(self, *, timeout_s: float | None = None) -> DataPlaneCapabilities:
        """What this adapter, with its backend, can prove it does."""

    # -- lifecycle ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def close(self, *, timeout_s: float | None = None) -> None:
        """End the session and give its leases back. Idempotent; every later call raises ``DataPlaneUnavailable``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
