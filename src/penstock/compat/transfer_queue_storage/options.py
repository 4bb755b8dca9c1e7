"""What a user writes in TransferQueue's configuration, as two frozen objects.

Invariants: an unknown key is an error that lists the known ones; the keys of TransferQueue's own ``MooncakeStore``
section mean here what they mean there, so that a section can be taken over as it is, and what is not supported of them
is refused by name; nothing is read from the environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from penstock.errors import BadArgument
from penstock.payload.stores.mooncake.config import MooncakeConfig

__all__ = ["MooncakeOptions", "PlaneOptions", "options_from"]

MIB = 1024**2
_OURS = ("client_name", "plugin")  # keys that the plug-in itself adds to a section


class MooncakeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``PenstockMooncake``.

    Attributes:
        auto_init: start a ``mooncake_master`` for this system, on free ports, that ends with it. False: use the one at
            ``master_server_address``. No other master is touched either way.
        metadata_server: "host:port", a URL, or "P2PHANDSHAKE".
        master_server_address: "host:port".
        metrics_address: "host:port" of the master's metrics; needed for ``replicas=2``, where it tells the segments.
        local_hostname: this machine's address as the others see it; "" = as Ray knows it.
        protocol, device_name: of the transfers.
        global_segment_size: bytes that each client lends to the store, and takes away when it dies; 0 = none: then
            other processes lend it (Mooncake's ``mooncake_store_service``), and clients may come and go.
        local_buffer_size: bytes of transfer memory of each client.
        replicas: 1 or 2 copies, on different segments.
        timeout_s: of each put, get and clear; longer than a dead owner's ``client_ttl`` (10 s) and 2 s.
        open_timeout_s: how long a client waits for the master as it opens.
        namespace: what this system's keys begin with; "" = a new one for each ``init``.
        complete_clear: before a clear, ask the controller for fields that the caller's metadata does not name, and
            remove those too (10-25 us per row of the partition).
        hard_pin, offload, use_gdr, gdr_staging_buffer_mb: known from the other section; values are always pinned, and
            the others are refused when switched on.
    """

    auto_init: bool = True
    metadata_server: str = "127.0.0.1:50050"
    master_server_address: str = "127.0.0.1:50051"
    metrics_address: str = ""
    local_hostname: str | None = ""
    protocol: str = "tcp"
    device_name: str | None = ""
    global_segment_size: int = 512 * MIB
    local_buffer_size: int = 256 * MIB
    replicas: int = 1
    timeout_s: float = 30.0
    open_timeout_s: float = 20.0
    namespace: str = ""
    complete_clear: bool = True
    hard_pin: bool | None = None
    offload: dict[str, Any] = {}
    use_gdr: bool = False
    gdr_staging_buffer_mb: int = 0

    def __post_init__(self) -> None:
        if self.use_gdr or self.offload.get("enabled", False) or self.hard_pin is False:
            raise BadArgument("use_gdr, offload.enabled and hard_pin=False are not supported by PenstockMooncake")
        _check_timeout(self.timeout_s)

    def store(self) -> MooncakeConfig:
        """Return the configuration of the store's client."""
        return MooncakeConfig(
            master=self.master_server_address.removeprefix("//"),
            metadata=self._metadata(),
            metrics=self.metrics_address,
            protocol=self.protocol,
            devices=self.device_name or "",
            host=self.local_hostname or _node_address(),
            replicas=self.replicas,
            segment_bytes=self.global_segment_size,
            local_buffer=self.local_buffer_size,
            open_timeout_s=self.open_timeout_s,
        )

    def _metadata(self) -> str:
        server = self.metadata_server.strip()
        if server.upper() == "P2PHANDSHAKE":
            return server.upper()
        if "://" not in server:
            server = f"http://{server}"
        return server if server.startswith("etcd://") or server.endswith("/metadata") else f"{server}/metadata"


class PlaneOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``PenstockPlane``.

    Attributes:
        url: "penstock://HOST:PORT" of a plane of several hosts; "" = one on this machine.
        token_file, host_dir, tls_ca: with ``url``, as ``penstock.connect`` takes them.
        data_dir: of the plane on this machine, started when none runs there; "" = a new one for each ``init``, which
            ends with the system and leaves nothing.
        join: never start a plane at ``data_dir``: the system that ``init`` made has its own, and nobody may revive it.
        plane: options of a plane that is started, by the names of ``penstock.config.PlaneConfig``.
        timeout_s, namespace, complete_clear: as in ``MooncakeOptions``.
        integrity: what a read verifies, "full", "header", "off" or "paranoid".
    """

    url: str = ""
    token_file: str | None = None
    host_dir: str | None = None
    tls_ca: str | None = None
    data_dir: str = ""
    join: bool = False
    plane: dict[str, Any] = {}
    timeout_s: float = 30.0
    namespace: str = ""
    complete_clear: bool = True
    integrity: str = "full"

    def __post_init__(self) -> None:
        if self.url and (self.data_dir or self.plane):
            raise BadArgument("PenstockPlane: data_dir and plane are for a plane on this machine, url names another")
        _check_timeout(self.timeout_s)


def _check_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s < float("inf"):
        raise BadArgument(f"timeout_s must be a positive number of seconds, got {timeout_s!r}")


Options = TypeVar("Options", bound=MooncakeOptions | PlaneOptions)


def options_from(cls: type[Options], section: Mapping[str, Any]) -> Options:
    """Read a section of the configuration, an OmegaConf one or a plain mapping.

    Raises:
        BadArgument: an unknown key, or a value that cannot be; names it.
    """
    plain = {str(name): value for name, value in _plain(section).items() if name not in _OURS}
    unknown = sorted(set(plain) - set(cls.__struct_fields__))
    if unknown:
        raise BadArgument(f"unknown options {unknown}; known: {sorted(cls.__struct_fields__)}")
    try:
        return msgspec.convert(plain, cls)
    except msgspec.ValidationError as bad:
        raise BadArgument(f"{cls.__name__}: {bad}") from bad


def _node_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address()).strip("[]")


def _plain(section: Mapping[str, Any]) -> dict[Any, Any]:
    from omegaconf import OmegaConf

    if OmegaConf.is_config(section):
        section = OmegaConf.to_container(section, resolve=True)
    return dict(section)
