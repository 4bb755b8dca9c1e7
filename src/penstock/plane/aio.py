"""The contract with ``await``: a facade over any ``DataPlaneClient``, not a second implementation.

Invariants: every method has the contract's signature, hands its arguments to the inner client's method in a thread, and
returns or raises what that does; nothing blocks the event loop, connecting and closing included; what the facade adds
is said in ``AsyncDataPlaneClient``, once.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar, overload, runtime_checkable

from penstock.errors import DataPlaneBadRequest, DataPlaneError, LeaseLost, abbreviate
from penstock.plane.connect import connect
from penstock.plane.contract import Columns, DataPlaneClient, OnFailed, TagRow
from penstock.plane.crossing import MAX_CALLS, MAX_CLAIMS, MAX_PUTS, AsyncStatistics, Crossing
from penstock.plane.lanes import Lane
from penstock.records import DataPlaneCapabilities, DataPlaneGroupMeta, GroupPolicy, KVBatchMeta
from penstock.requests import AuditReport, StatusReport, WhyReport

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["AsyncDataPlaneClient", "Connecting", "aconnect"]

log = logging.getLogger(__name__)

GIVE_BACK_S = 60.0  # for the plane to take back a lease that nobody received; a restart of it fits in

T = TypeVar("T")
C = TypeVar("C", bound="type[AsyncDataPlaneClient]")


@runtime_checkable
class Audits(Protocol):
    """A client that can print the books."""

    def audit(self, partition: str | None = None, *, timeout_s: float | None = None) -> AuditReport: ...


@runtime_checkable
class Explains(Protocol):
    """A client that can say what is waited for."""

    def why(
        self,
        partition: str,
        *,
        task: str | None = None,
        key: str | None = None,
        group: str | None = None,
        timeout_s: float | None = None,
    ) -> WhyReport: ...


@runtime_checkable
class Reports(Protocol):
    """A client that can show its plane at a glance."""

    def status(self, *, timeout_s: float | None = None) -> StatusReport: ...


def _documented(cls: C) -> C:
    """Give the methods that the contract has the contract's words."""
    for name, method in vars(cls).items():
        if method.__doc__ is None and name in vars(DataPlaneClient):
            method.__doc__ = vars(DataPlaneClient)[name].__doc__
    return cls


@_documented
class AsyncDataPlaneClient:
    """A ``DataPlaneClient`` for an event loop. What its methods do, take and raise is said there.

    Three things come on top:

    - **Threads.** Calls run in threads that this client owns and joins when it is closed: claims that wait, puts with
      columns, and everything else have their own, so that no claim holds up the put it waits for, and no put the pop
      that makes room. A call that finds no thread free waits for one; that counts against its ``timeout_s``, and when
      nothing is left it is a ``DataPlaneTimeout`` that says so; nothing was sent then.
    - **Cancellation.** A call that is cancelled is taken back: at once where the inner client can do that (all that
      ``connect`` makes can), else when it ends. A lease that it brings all the same is released. Of a cancelled put or
      other mutation the outcome is unknown, as after a ``DataPlaneTimeout``: repeating it is safe.
    - **The end.** ``close`` wakes every claim at once with ``DataPlaneUnavailable``: nothing has come of it, since the
      session's leases end with the session. A close that is cancelled goes on in its thread.

    One client serves several tasks, and several loops.

    Args:
        inner: does the work; it is closed with this client.
        max_claims: threads for claims that wait.
        max_puts: threads for puts with columns.
        max_calls: threads for everything else.
    """

    def __init__(
        self,
        inner: DataPlaneClient,
        *,
        max_claims: int = MAX_CLAIMS,
        max_puts: int = MAX_PUTS,
        max_calls: int = MAX_CALLS,
    ) -> None:
        self.inner = inner
        self._crossing = Crossing(max_claims, max_puts, max_calls)
        weakref.finalize(self, self._crossing.drop).atexit = False

    def __repr__(self) -> str:
        now = self.statistics()
        lanes = ", ".join(f"{lane.busy}/{lane.limit} {lane.name}" for lane in now.lanes)
        return f"AsyncDataPlaneClient({self.inner!r}, {'closed' if self._crossing.closing else 'open'}, {lanes})"

    def statistics(self) -> AsyncStatistics:
        """Return this facade's own counts; asks nobody. The inner client's are its own."""
        return self._crossing.statistics()

    # -- task-mediated ------------------------------------------------------------------------------------------------

    async def register_partition(
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
        def call(left: float | None) -> None:
            self.inner.register_partition(
                partition_id,
                fields,
                num_samples,
                consumer_tasks,
                grpo_group_size,
                enums,
                group_policy=group_policy,
                timeout_s=left,
            )

        await self._call("register_partition", call, timeout_s)

    async def claim_meta(
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
        def call(left: float | None) -> KVBatchMeta:
            return self.inner.claim_meta(
                partition_id,
                task_name,
                required_fields,
                batch_size,
                dp_rank,
                blocking,
                left,
                min_rows=min_rows,
                keys=keys,
                whole_groups=whole_groups,
                lease_s=lease_s,
            )

        lane = self._crossing.claims if blocking else self._crossing.calls
        return await self._call("claim_meta", call, timeout_s, lane, self._give_back)

    @overload
    async def get_data(
        self,
        meta: KVBatchMeta,
        select_fields: Sequence[str] | None = None,
        *,
        on_failed: Literal["raise"] = "raise",
        timeout_s: float | None = None,
    ) -> TensorDict: ...

    @overload
    async def get_data(
        self,
        meta: KVBatchMeta,
        select_fields: Sequence[str] | None = None,
        *,
        on_failed: Literal["drop"],
        timeout_s: float | None = None,
    ) -> tuple[TensorDict, KVBatchMeta]: ...

    async def get_data(
        self,
        meta: KVBatchMeta,
        select_fields: Sequence[str] | None = None,
        *,
        on_failed: OnFailed = "raise",
        timeout_s: float | None = None,
    ) -> TensorDict | tuple[TensorDict, KVBatchMeta]:
        def call(left: float | None) -> TensorDict | tuple[TensorDict, KVBatchMeta]:
            return self.inner.get_data(meta, select_fields, on_failed=on_failed, timeout_s=left)

        return await self._call("get_data", call, timeout_s)

    async def ack(self, meta: KVBatchMeta, *, timeout_s: float | None = None) -> None:
        await self._call("ack", lambda left: self.inner.ack(meta, timeout_s=left), timeout_s)

    async def release(self, meta: KVBatchMeta, *, timeout_s: float | None = None) -> None:
        await self._call("release", lambda left: self.inner.release(meta, timeout_s=left), timeout_s)

    async def renew(self, meta: KVBatchMeta, lease_s: float | None, *, timeout_s: float | None = None) -> None:
        await self._call("renew", lambda left: self.inner.renew(meta, lease_s, timeout_s=left), timeout_s)

    async def check_consumption_status(
        self, partition_id: str, task_names: Sequence[str], *, timeout_s: float | None = None
    ) -> bool:
        def call(left: float | None) -> bool:
            return self.inner.check_consumption_status(partition_id, task_names, timeout_s=left)

        return await self._call("check_consumption_status", call, timeout_s)

    # -- direct, by key -----------------------------------------------------------------------------------------------

    async def put_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        fields: Columns | None = None,
        tags: Sequence[TagRow] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> KVBatchMeta:
        def call(left: float | None) -> KVBatchMeta:
            return self.inner.put_samples(sample_ids, partition_id, fields, tags, timeout_s=left)

        lane = self._crossing.calls if fields is None else self._crossing.puts  # tags alone need no room
        return await self._call("put_samples", call, timeout_s, lane)

    @overload
    async def get_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        select_fields: Sequence[str],
        *,
        on_failed: Literal["raise"] = "raise",
        timeout_s: float | None = None,
    ) -> TensorDict: ...

    @overload
    async def get_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        select_fields: Sequence[str],
        *,
        on_failed: Literal["drop"],
        timeout_s: float | None = None,
    ) -> tuple[TensorDict, KVBatchMeta]: ...

    async def get_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        select_fields: Sequence[str],
        *,
        on_failed: OnFailed = "raise",
        timeout_s: float | None = None,
    ) -> TensorDict | tuple[TensorDict, KVBatchMeta]:
        def call(left: float | None) -> TensorDict | tuple[TensorDict, KVBatchMeta]:
            return self.inner.get_samples(sample_ids, partition_id, select_fields, on_failed=on_failed, timeout_s=left)

        return await self._call("get_samples", call, timeout_s)

    async def clear_samples(
        self, sample_ids: Sequence[str] | None, partition_id: str, *, timeout_s: float | None = None
    ) -> None:
        def call(left: float | None) -> None:
            self.inner.clear_samples(sample_ids, partition_id, timeout_s=left)

        await self._call("clear_samples", call, timeout_s)

    # -- recovery -----------------------------------------------------------------------------------------------------

    async def ping(self, timeout_s: float | None = None) -> None:
        await self._call("ping", self.inner.ping, timeout_s)

    async def list_metadata(
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
        def call(left: float | None) -> list[DataPlaneGroupMeta]:
            return self.inner.list_metadata(
                partition_id,
                committed=committed,
                min_weight_version=min_weight_version,
                max_weight_version=max_weight_version,
                older_than_s=older_than_s,
                ready_for=ready_for,
                limit=limit,
                after=after,
                timeout_s=left,
            )

        return await self._call("list_metadata", call, timeout_s)

    async def depth(self, partition_id: str, *, timeout_s: float | None = None) -> int:
        return await self._call("depth", lambda left: self.inner.depth(partition_id, timeout_s=left), timeout_s)

    async def pop(
        self,
        keys: Sequence[str],
        partition_id: str,
        *,
        lease: str | Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        await self._call("pop", lambda left: self.inner.pop(keys, partition_id, lease=lease, timeout_s=left), timeout_s)

    async def evict(
        self,
        keys: Sequence[str],
        partition_id: str,
        reason: str = "stale",
        *,
        timeout_s: float | None = None,
    ) -> None:
        await self._call("evict", lambda left: self.inner.evict(keys, partition_id, reason, timeout_s=left), timeout_s)

    async def get_capabilities(self, *, timeout_s: float | None = None) -> DataPlaneCapabilities:
        return await self._call("get_capabilities", lambda left: self.inner.get_capabilities(timeout_s=left), timeout_s)

    # -- questions of operators: of those clients that answer them ----------------------------------------------------

    async def audit(self, partition: str | None = None, *, timeout_s: float | None = None) -> AuditReport:
        """Return the conservation equation of one partition, or of all, those that were cleared included.

        Raises:
            DataPlaneBadRequest: the inner client keeps no books.
        """
        inner = self.inner
        if not isinstance(inner, Audits):
            raise self._lacks("audit")
        return await self._call("audit", lambda left: inner.audit(partition, timeout_s=left), timeout_s)

    async def why(
        self,
        partition: str,
        *,
        task: str | None = None,
        key: str | None = None,
        group: str | None = None,
        timeout_s: float | None = None,
    ) -> WhyReport:
        """Return what a task, a row or a group of the partition is waiting for, since when, and its last events.

        Raises:
            DataPlaneBadRequest: the inner client cannot say.
        """
        inner = self.inner
        if not isinstance(inner, Explains):
            raise self._lacks("why")

        def call(left: float | None) -> WhyReport:
            return inner.why(partition, task=task, key=key, group=group, timeout_s=left)

        return await self._call("why", call, timeout_s)

    async def status(self, *, timeout_s: float | None = None) -> StatusReport:
        """Return the plane at a glance.

        Raises:
            DataPlaneBadRequest: the inner client cannot say.
        """
        inner = self.inner
        if not isinstance(inner, Reports):
            raise self._lacks("status")
        return await self._call("status", lambda left: inner.status(timeout_s=left), timeout_s)

    # -- lifecycle ----------------------------------------------------------------------------------------------------

    async def close(self, *, timeout_s: float | None = None) -> None:
        await self._crossing.close(lambda: self.inner.close(timeout_s=timeout_s), timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self,
        method: str,
        call: Callable[[float | None], T],
        timeout_s: float | None,
        lane: Lane | None = None,
        give_back: Callable[[T], None] | None = None,
    ) -> T:
        return await self._crossing.run(
            lane or self._crossing.calls, method, call, timeout_s, self.inner.default_timeout_s, give_back
        )

    def _give_back(self, meta: KVBatchMeta) -> None:
        """In a thread: nobody received this claim's rows."""
        if not meta.size:
            return
        try:
            self.inner.release(meta, timeout_s=GIVE_BACK_S)
        except LeaseLost:  # its time was over, or the rows are gone
            return
        except DataPlaneError as error:
            rows = abbreviate(meta.sample_ids)
            log.warning("a cancelled claim's rows %s stay leased until this client is closed: %s", rows, error)

    def _lacks(self, method: str) -> DataPlaneBadRequest:
        return DataPlaneBadRequest(f"{method}: {type(self.inner).__name__} does not answer it")


class Connecting:
    """What ``aconnect`` returns: await it for a client, or enter it with ``async with``, which also closes it."""

    def __init__(self, make: Callable[[], DataPlaneClient], limits: Mapping[str, int]) -> None:
        self._make = make
        self._limits = limits
        self._client: AsyncDataPlaneClient | None = None

    def __await__(self) -> Generator[Any, None, AsyncDataPlaneClient]:
        return self._connect().__await__()

    async def __aenter__(self) -> AsyncDataPlaneClient:
        self._client = await self._connect()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._client is not None, self
        await self._client.close()

    async def _connect(self) -> AsyncDataPlaneClient:
        crossing = Crossing(**self._limits)
        try:
            inner = await crossing.run(
                crossing.calls, "connect", lambda _: self._make(), None, 0.0, lambda unwanted: unwanted.close()
            )
        finally:
            crossing.drop()  # its thread ends with the call, or with the closing of a client that nobody awaits
        return AsyncDataPlaneClient(inner, **self._limits)


def aconnect(
    url_or_config: str | Mapping[str, Any] = "local",
    *,
    max_claims: int = MAX_CLAIMS,
    max_puts: int = MAX_PUTS,
    max_calls: int = MAX_CALLS,
    **options: Any,
) -> Connecting:
    """Connect as ``penstock.connect`` does, without blocking the event loop.

    ``async with penstock.aconnect("local") as plane:``, or ``plane = await penstock.aconnect("local")``. Cancelled, it
    leaves no client behind.

    Args:
        url_or_config: as ``connect``.
        max_claims: see ``AsyncDataPlaneClient``.
        max_puts: likewise.
        max_calls: likewise.
        **options: as ``connect``.

    Raises:
        BadArgument, MissingExtra, DataPlaneUnavailable: as ``connect``, when it is awaited.
    """
    limits = {"max_claims": max_claims, "max_puts": max_puts, "max_calls": max_calls}
    return Connecting(lambda: connect(url_or_config, **options), limits)
