"""Makes the backends known to TransferQueue, under the names that a configuration gives.

Invariant: registering is explicit, repeatable, and refused for a TransferQueue whose inner interface is not the one
that this was written and tested for.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from transfer_queue.storage.bootstrap import StorageBootstrapProvider
from transfer_queue.storage.clients.base import StorageClientFactory
from transfer_queue.storage.managers.base import KVStorageManager, StorageManagerFactory

from penstock.compat.transfer_queue_storage.bootstrap import MOONCAKE, PLANE, start_mooncake, start_plane
from penstock.compat.transfer_queue_storage.clients import PenstockMooncakeClient, PenstockPlaneClient
from penstock.compat.transfer_queue_storage.managers import PenstockMooncakeManager, PenstockPlaneManager
from penstock.errors import MissingExtra

__all__ = ["TESTED", "register"]

TESTED = "0.1.11"
_INNER = ("_notify_and_wait", "_merge_tensors_to_tensordict", "notify_data_update")  # what the managers build upon


def register() -> None:
    """Register clients, managers and bootstraps of both backends. Idempotent.

    Raises:
        MissingExtra: (also ``ImportError``) this TransferQueue lacks what the managers build upon.
    """
    lacking = [name for name in _INNER if not hasattr(KVStorageManager, name)]
    if lacking:
        raise MissingExtra(
            f"TransferQueue {_installed()} has no {', '.join(lacking)}; this plug-in was made for {TESTED}: "
            f"pip install 'TransferQueue=={TESTED}'"
        )
    for client in (PenstockMooncakeClient, PenstockPlaneClient):
        StorageClientFactory.register(client.__name__)(client)
    StorageManagerFactory.register(MOONCAKE)(PenstockMooncakeManager)
    StorageManagerFactory.register(PLANE)(PenstockPlaneManager)
    StorageBootstrapProvider.register_provider(MOONCAKE)(start_mooncake)
    StorageBootstrapProvider.register_provider(PLANE)(start_plane)


def _installed() -> str:
    try:
        return version("TransferQueue")
    except PackageNotFoundError:
        return "of unknown version"
