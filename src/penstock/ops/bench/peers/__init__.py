"""The peers, one module each; a peer's packages are imported when it opens."""

from __future__ import annotations

from collections.abc import Callable

from penstock.ops.bench.peer import Peer

__all__ = ["PEERS", "make_peer"]

MEMCPY, PENSTOCK = "memcpy", "penstock"
PEERS: dict[str, tuple[str, ...]] = {  # name -> distributions without which it is skipped
    MEMCPY: (),
    PENSTOCK: (),
    "redis": ("redis",),
    "safetensors": ("safetensors",),
    "ray": ("ray",),
    "transferqueue": ("ray", "TransferQueue"),
}


def make_peer(name: str) -> Peer:
    """Return the peer of that name, closed."""
    from penstock.ops.bench.peers.memory_copy import MemoryCopy
    from penstock.ops.bench.peers.own import Own
    from penstock.ops.bench.peers.ray_store import RayStore
    from penstock.ops.bench.peers.redis_hashes import RedisHashes
    from penstock.ops.bench.peers.safetensors_file import SafetensorsFile
    from penstock.ops.bench.peers.transfer_queue import TransferQueueKV

    makers: dict[str, Callable[[], Peer]] = {
        MEMCPY: MemoryCopy,
        PENSTOCK: Own,
        "redis": RedisHashes,
        "safetensors": SafetensorsFile,
        "ray": RayStore,
        "transferqueue": TransferQueueKV,
    }
    return makers[name]()
