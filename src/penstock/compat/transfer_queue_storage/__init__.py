"""Penstock as a storage backend of the real TransferQueue: its users switch by configuration.

    import penstock.compat.transfer_queue_storage  # once, in the process that calls transfer_queue.init
    transfer_queue.init(OmegaConf.create({"backend": {"storage_backend": "PenstockMooncake"}}))

``PenstockMooncake`` keeps values in Mooncake Store, ``PenstockPlane`` in the shared memory of a Penstock plane.

Invariants: importing this registers both (TransferQueue finds backends in no other way; other processes import it with
the configuration that they get); without TransferQueue it says what to install. May import: anything.
"""

from penstock.errors import MissingExtra

try:
    import transfer_queue as _transfer_queue  # noqa: F401
except ImportError as missing:
    raise MissingExtra(
        f"TransferQueue is not installed ({missing}): pip install 'penstock[transferqueue]'"
    ) from missing

from penstock.compat.transfer_queue_storage.bootstrap import MOONCAKE, PLANE
from penstock.compat.transfer_queue_storage.clients import PenstockMooncakeClient, PenstockPlaneClient
from penstock.compat.transfer_queue_storage.managers import PenstockMooncakeManager, PenstockPlaneManager
from penstock.compat.transfer_queue_storage.options import MooncakeOptions, PlaneOptions
from penstock.compat.transfer_queue_storage.registration import register

__all__ = [
    "MOONCAKE",
    "PLANE",
    "MooncakeOptions",
    "PenstockMooncakeClient",
    "PenstockMooncakeManager",
    "PenstockPlaneClient",
    "PenstockPlaneManager",
    "PlaneOptions",
    "register",
]

register()
