"""Where the rows of a run lie when not in shared memory: a Mooncake Store of this machine, started and ended with it.

Invariants: two owners lend memory, and a block lies with both, so that one may die; no owner is struck by chaos, for a
second one that dies before what lay with both is trained would lose rows, and nobody promised otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.testing.mooncake import MooncakeCluster

__all__ = ["Warehouse"]

OWNERS = 2


class Warehouse:
    """Args: kind: as ``ClientConfig.store``; "" = there is none. folder: for its logs.

    Attributes:
        url: what the plane is told; "" = there is none.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.url = ""
        self._cluster: MooncakeCluster | None = None
        if kind:
            from penstock.testing.mooncake import MooncakeCluster

            self._cluster = MooncakeCluster(folder, owners=OWNERS)
            self.url = f"{self._cluster.url}&replicas={OWNERS}"

    @property
    def options(self) -> tuple[str, ...]:
        """What the plane must be told, "name=value"."""
        return (f"store={self.url}",) if self.url else ()

    def close(self) -> None:
        """End it. Idempotent."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.close()
