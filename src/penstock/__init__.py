"""Penstock: the fault-tolerant data plane for asynchronous RL post-training.

The public names are looked up at first use, so that ``import penstock`` is cheap and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.errors import BatchError as BatchError
    from penstock.errors import CorruptPayload as CorruptPayload
    from penstock.errors import DataPlaneBadRequest as DataPlaneBadRequest
    from penstock.errors import DataPlaneClearError as DataPlaneClearError
    from penstock.errors import DataPlaneError as DataPlaneError
    from penstock.errors import DataPlaneFull as DataPlaneFull
    from penstock.errors import DataPlaneNotReady as DataPlaneNotReady
    from penstock.errors import DataPlaneReadError as DataPlaneReadError
    from penstock.errors import DataPlaneTimeout as DataPlaneTimeout
    from penstock.errors import DataPlaneUnavailable as DataPlaneUnavailable
    from penstock.errors import DataPlaneWriteError as DataPlaneWriteError
    from penstock.errors import LeaseLost as LeaseLost
    from penstock.errors import RowRemoved as RowRemoved
    from penstock.errors import StaleSlotError as StaleSlotError
    from penstock.plane.aio import AsyncDataPlaneClient as AsyncDataPlaneClient
    from penstock.plane.aio import aconnect as aconnect
    from penstock.plane.connect import connect as connect
    from penstock.plane.contract import DataPlaneClient as DataPlaneClient
    from penstock.plane.local import LocalDataPlaneClient as LocalDataPlaneClient
    from penstock.plane.metrics import MetricsDataPlaneClient as MetricsDataPlaneClient
    from penstock.plane.noop import NoOpDataPlaneClient as NoOpDataPlaneClient
    from penstock.records import DataPlaneCapabilities as DataPlaneCapabilities
    from penstock.records import DataPlaneGroupMeta as DataPlaneGroupMeta
    from penstock.records import GroupPolicy as GroupPolicy
    from penstock.records import KVBatchMeta as KVBatchMeta

_HOMES: dict[str, tuple[str, ...]] = {
    "penstock.errors": (
        "BatchError",
        "CorruptPayload",
        "DataPlaneBadRequest",
        "DataPlaneClearError",
        "DataPlaneError",
        "DataPlaneFull",
        "DataPlaneNotReady",
        "DataPlaneReadError",
        "DataPlaneTimeout",
        "DataPlaneUnavailable",
        "DataPlaneWriteError",
        "LeaseLost",
        "RowRemoved",
        "StaleSlotError",
    ),
    "penstock.plane.aio": ("AsyncDataPlaneClient", "aconnect"),
    "penstock.plane.connect": ("connect",),
    "penstock.plane.contract": ("DataPlaneClient",),
    "penstock.plane.local": ("LocalDataPlaneClient",),
    "penstock.plane.metrics": ("MetricsDataPlaneClient",),
    "penstock.plane.noop": ("NoOpDataPlaneClient",),
    "penstock.records": ("DataPlaneCapabilities", "DataPlaneGroupMeta", "GroupPolicy", "KVBatchMeta"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncDataPlaneClient",
    "BatchError",
    "CorruptPayload",
    "DataPlaneBadRequest",
    "DataPlaneCapabilities",
    "DataPlaneClearError",
    "DataPlaneClient",
    "DataPlaneError",
    "DataPlaneFull",
    "DataPlaneGroupMeta",
    "DataPlaneNotReady",
    "DataPlaneReadError",
    "DataPlaneTimeout",
    "DataPlaneUnavailable",
    "DataPlaneWriteError",
    "GroupPolicy",
    "KVBatchMeta",
    "LeaseLost",
    "LocalDataPlaneClient",
    "MetricsDataPlaneClient",
    "NoOpDataPlaneClient",
    "RowRemoved",
    "StaleSlotError",
    "aconnect",
    "connect",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
