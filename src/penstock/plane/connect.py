"""One door to every adapter: a name, a URL or a configuration becomes a client.

Invariants: an unknown, disabled or not yet available implementation is a ``BadArgument`` that lists the known ones; an
option that nobody knows is refused by name; what is not chosen is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penstock.config import ClientConfig, PlaneConfig, config_from
from penstock.errors import BadArgument, MissingExtra
from penstock.payload.stores.opening import url_of
from penstock.plane.contract import DataPlaneClient
from penstock.plane.remote_dialing import parse_url
from penstock.retry import Deadline
from penstock.wire.auth import read_token
from penstock.wire.tls import client_context

__all__ = ["connect"]

_REMOTE, _QUEUE = "penstock://", "transferqueue://"
_WHERE = {  # options of one adapter
    "local": ("data_dir",),
    "noop": (),
    _REMOTE: ("token_file", "host_dir", "tls_ca"),
    _QUEUE: ("start", "settings"),
}
_QUEUE_FIXED = {"integrity": "full", "replicas": 1, "store": ""}


def connect(url_or_config: str | Mapping[str, Any] = "local", **options: Any) -> DataPlaneClient:
    """Return a client of a plane.

    Args:
        url_or_config: ``"local"`` (the embedded engine; the default), ``"noop"`` (in this process's memory),
            ``"penstock://HOST:PORT"`` (a plane of several hosts), ``"transferqueue://[RAY_ADDRESS]"`` (the
            TransferQueue that runs on this process's Ray cluster, or on that one), or a mapping
            ``{"impl": name, **options}``; a mapping with ``"enabled": False`` is refused.
        **options: of the client and the plane, by the names of ``ClientConfig`` and ``PlaneConfig``; they win over a
            mapping's. ``"local"`` also takes ``data_dir``. ``"penstock://..."`` takes those of the client alone, and
            ``token_file`` (needed: a copy of the plane's, mode 0600), ``host_dir`` (of this machine's agent, where that
            was given one) and ``tls_ca`` (PEM; for a plane that serves TLS). ``"transferqueue://"`` also takes
            ``start`` (True: where no TransferQueue runs, start one that ends with this process) and ``settings`` (its
            configuration, for that case).

    Raises:
        BadArgument: (also ``ValueError``) unknown, disabled or unavailable implementation; unknown option.
        MissingExtra: (also ``ImportError``) torch or tensordict is not installed.
    """
    name, chosen = _chosen(url_or_config, options)
    if name.startswith(_REMOTE):
        return _remote(name, chosen)
    if name.startswith(_QUEUE):
        return _transfer_queue(name, chosen)
    if name not in _KNOWN:
        raise BadArgument(_refusal(name))
    _require_torch()
    return _KNOWN[name](chosen)


def _chosen(url_or_config: object, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(url_or_config, str):
        return url_or_config, options
    if not isinstance(url_or_config, Mapping):
        raise BadArgument(f"connect takes a name, a URL or a mapping, got {type(url_or_config).__name__}; {_known()}")
    config = dict(url_or_config)
    if not config.pop("enabled", True):
        raise BadArgument(f"the data plane is disabled by this configuration (enabled=False); {_known()}")
    name = config.pop("impl", "local")
    return str(name), {**config, **options}


def _refusal(name: str) -> str:
    return f"unknown implementation {name!r}; {_known()}"


def _known() -> str:
    return f"known: {sorted([*_KNOWN, _REMOTE, _QUEUE])}"


def _require_torch() -> None:
    try:
        import tensordict  # noqa: F401
        import torch  # noqa: F401
    except ImportError as missing:
        raise MissingExtra(
            f"a client needs torch and tensordict ({missing}); install them with: pip install 'penstock[torch]'"
        ) from missing


def _split(options: dict[str, Any], impl: str) -> tuple[ClientConfig, PlaneConfig]:
    """Return the options as the client's and the plane's; one that neither knows is named."""
    unknown = sorted(set(options) - set(ClientConfig.__struct_fields__) - set(PlaneConfig.__struct_fields__))
    if unknown:
        known = sorted({*ClientConfig.__struct_fields__, *PlaneConfig.__struct_fields__, *_WHERE[impl]})
        raise BadArgument(f"unknown options {unknown} of {impl!r}; known: {known}")
    client = {name: value for name, value in options.items() if name in ClientConfig.__struct_fields__}
    plane = {name: value for name, value in options.items() if name in PlaneConfig.__struct_fields__}
    store = plane.pop("store", "")
    if store and impl == "local":  # another plane has its own, and knows its URL
        plane["store"] = url_of(str(store))
    return config_from(ClientConfig, client), config_from(PlaneConfig, plane)


def _local(options: dict[str, Any]) -> DataPlaneClient:
    from penstock.plane.local import LocalDataPlaneClient

    data_dir = options.pop("data_dir", None)
    client, plane = _split(options, "local")
    return LocalDataPlaneClient(data_dir, config=client, plane=plane)


def _remote(url: str, options: dict[str, Any]) -> DataPlaneClient:
    parse_url(url)
    token_file, host_dir, tls_ca = (options.pop(name, None) for name in _WHERE[_REMOTE])
    theirs = sorted(set(options) & set(PlaneConfig.__struct_fields__) - set(ClientConfig.__struct_fields__))
    if theirs:
        raise BadArgument(f"{theirs} are the plane's: give them to `penstock serve`, which runs it")
    if token_file is None:
        raise BadArgument(f"{url} needs token_file=: a copy of the plane's token file, mode 0600")
    config, _ = _split(options, _REMOTE)
    _require_torch()
    token = read_token(token_file)
    tls = None if tls_ca is None else client_context(Path(tls_ca))
    from penstock.plane.remote import RemoteDataPlaneClient

    return RemoteDataPlaneClient(url, token, host_dir=host_dir, tls=tls, config=config)


def _transfer_queue(url: str, options: dict[str, Any]) -> DataPlaneClient:
    start, settings = options.pop("start", False), options.pop("settings", {})
    if not isinstance(start, bool) or not isinstance(settings, Mapping):
        raise BadArgument(f"start is True or False, and settings a mapping; got {start!r} and {settings!r}")
    client, plane = _split({"durability": "memory", **options}, _QUEUE)
    unlike = [name for name, value in _QUEUE_FIXED.items() if getattr(client, name, value) != value]
    if unlike or plane.durability != "memory":
        raise BadArgument(
            f"{url} keeps rows in TransferQueue's memory, each once, and verifies every read in full: "
            f"{[*unlike, *(['durability'] if plane.durability != 'memory' else [])]} cannot be chosen"
        )
    _require_torch()
    from penstock.plane.transfer_queue import library
    from penstock.plane.transfer_queue.client import TransferQueueDataPlaneClient

    deadline = Deadline(client.timeout_s)
    address = url.removeprefix(_QUEUE)
    queue = library.start(address, settings, deadline) if start else library.find(address, deadline)
    return TransferQueueDataPlaneClient(queue, client, plane)


def _noop(options: dict[str, Any]) -> DataPlaneClient:
    from penstock.plane.noop import NoOpDataPlaneClient

    if "data_dir" in options:
        raise BadArgument('"noop" lives in memory and takes no data_dir')
    if options.get("store"):
        raise BadArgument('"noop" lives in memory and takes no store')
    client, plane = _split({"durability": "memory", **options}, "noop")
    return NoOpDataPlaneClient(strict_tensors=client.strict_tensors, timeout_s=client.timeout_s, config=plane)


_KNOWN: dict[str, Callable[[dict[str, Any]], DataPlaneClient]] = {"local": _local, "noop": _noop}
