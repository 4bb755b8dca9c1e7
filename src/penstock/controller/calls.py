"""The controller's calls of the plane: metadata only. Every outcome becomes a piece of news, in one place.

Invariants: nothing here can read or write a row's columns; a plane that came back between two calls is noticed by its
incarnation, although both succeeded; each call ends by ``call_timeout_s``.
"""

from __future__ import annotations

import logging

from penstock.controller import news as nw
from penstock.controller.config import ControllerConfig
from penstock.controller.effects import Claim, Evict, List, PlaneCall, Pop, Register, Release
from penstock.errors import (
    DataPlaneBadRequest,
    DataPlaneClearError,
    DataPlaneError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    LeaseLost,
    RowRemoved,
    UnknownName,
)
from penstock.plane.aio import AsyncDataPlaneClient
from penstock.points import reached
from penstock.records import DataPlaneCapabilities, KVBatchMeta

__all__ = ["MetadataCalls"]

log = logging.getLogger(__name__)

MAX_GROUPS_LISTED = 1000  # a page


class MetadataCalls:
    """What a controller may do with a plane.

    Args:
        plane: the client; nothing else of it is used than what stands here.
        config: of the run.
    """

    def __init__(self, plane: AsyncDataPlaneClient, config: ControllerConfig) -> None:
        self._plane = plane
        self._config = config
        self._incarnation = 0

    async def look(self, timeout_s: float) -> DataPlaneCapabilities:
        """Return what the plane can do, if it answers on its whole path.

        Raises:
            DataPlaneTimeout, DataPlaneUnavailable: within ``timeout_s``.
        """
        await self._plane.ping(timeout_s=timeout_s)
        found = await self._plane.get_capabilities(timeout_s=timeout_s)
        self._incarnation = found.incarnation
        return found

    async def carry_out(self, call: PlaneCall) -> nw.News:
        """Make one call; return its answer, whatever it is."""
        try:
            return await self._answer(call)
        except (DataPlaneUnavailable, DataPlaneTimeout, DataPlaneClearError) as failed:
            return nw.CallFailed(f"{type(call).__name__.lower()}: {failed}")
        except (LeaseLost, RowRemoved, UnknownName) as refused:
            if isinstance(refused, UnknownName) and not refused.keys:  # it knew the partition: another plane took over
                return nw.CallFailed(f"{type(call).__name__.lower()}: {refused}")
            if isinstance(call, Claim | Pop | Release):
                return nw.Refused(list(refused.keys), str(refused))
            return nw.CallBroken(f"{type(call).__name__.lower()}: {refused}")
        except DataPlaneError as broken:
            return nw.CallBroken(f"{type(call).__name__.lower()}: {type(broken).__name__}: {broken}")

    async def _answer(self, call: PlaneCall) -> nw.News:
        config, plane, timeout_s = self._config, self._plane, self._config.call_timeout_s
        match call:
            case Register():
                reached("controller.recovering")
                return await self._register()
            case List():
                return await self._list()
            case Claim(keys):
                meta = await self._claim(keys)
                reached("controller.claimed")
                return nw.Leased(meta)
            case Pop(keys, lease):
                await plane.pop(keys, config.partition, lease=lease or None, timeout_s=timeout_s)
                reached("controller.popped")
            case Evict(keys, reason):
                await plane.evict(keys, config.partition, reason, timeout_s=timeout_s)
                reached("controller.evicted")
            case Release(meta):
                await plane.release(meta, timeout_s=timeout_s)
        return nw.RowsGone()

    async def _register(self) -> nw.News:
        config = self._config
        await self._plane.register_partition(
            config.partition,
            config.fields,
            config.groups_per_step * config.group_size,
            config.consumers,
            config.group_size,
            group_policy=config.group_policy,
            timeout_s=config.call_timeout_s,
        )
        return nw.Registered()

    async def _claim(self, keys: tuple[str, ...]) -> KVBatchMeta:
        config = self._config
        return await self._plane.claim_meta(
            config.partition,
            config.task,
            config.fields,
            batch_size=1,  # ignored with ``keys``
            blocking=False,
            timeout_s=config.call_timeout_s,
            keys=keys,
            whole_groups=True,  # rows of groups that the plane let go as partial are tagged so
        )

    async def _list(self) -> nw.News:
        partition, timeout_s = self._config.partition, self._config.call_timeout_s
        groups = page = await self._plane.list_metadata(partition, limit=MAX_GROUPS_LISTED, timeout_s=timeout_s)
        while len(page) == MAX_GROUPS_LISTED:
            after = page[-1].group_id
            page = await self._plane.list_metadata(partition, limit=MAX_GROUPS_LISTED, after=after, timeout_s=timeout_s)
            groups = [*groups, *page]
        now = await self._plane.get_capabilities(timeout_s=timeout_s)
        if now.incarnation != self._incarnation:
            return nw.CallFailed(f"the plane was restarted: incarnation {self._incarnation} -> {now.incarnation}")
        reached("controller.listed")
        return nw.Listed(groups)

    async def why(self) -> list[str]:
        """Return what the plane says is missing and who owes it, a sentence each; nothing where it cannot say."""
        config = self._config
        task = config.task if len(config.consumers) == 1 else None  # an earlier stage may be what everybody waits for
        try:
            report = await self._plane.why(config.partition, task=task, timeout_s=config.call_timeout_s)
        except DataPlaneBadRequest:
            return []  # an adapter that cannot say
        except DataPlaneError as error:
            return [f"the plane could not be asked why: {error}"]
        return list(dict.fromkeys(debt.says for debt in report.owed))  # its ``waits`` tell the same, and what is normal

    async def close(self, timeout_s: float) -> None:
        """End the session: its leases are given back, whoever waits is told."""
        await self._plane.close(timeout_s=timeout_s)
