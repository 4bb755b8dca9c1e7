"""A store by its URL: the one place that knows which kinds there are.

    mooncake://MASTER:PORT?metadata=http://HOST:PORT/metadata&metrics=HOST:PORT&replicas=2&local_buffer=256MiB
    memory://NAME       the twin: one process's own, shared under its name

Invariants: an unknown kind or setting is a ``BadArgument`` that lists the known ones; a setting given as an option wins
over the URL's; no library is imported before its store is opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlsplit

import msgspec

from penstock.errors import BadArgument, abbreviate
from penstock.payload.stores.contract import BlockStore
from penstock.retry import Policy

__all__ = ["open_store", "url_of"]

OnRestarted: TypeAlias = Callable[[str], None] | None

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:iB)?", re.ASCII)
_SHORT = {"segment": "segment_bytes"}
_SIZES = {"segment_bytes", "local_buffer", "chunk_bytes"}
MASTER_PORT = 50051  # Mooncake's defaults
METADATA_PORT = 8080
METRICS_PORT = 9003
_HERE = {"mooncake": f"127.0.0.1:{MASTER_PORT}"}  # kinds of which a machine has one


def open_store(
    url: str,
    *,
    policy: Policy | None = None,
    on_restarted: OnRestarted = None,
    **options: Any,
) -> BlockStore:
    """Open the store at ``url``; "mooncake" alone is one on this machine, at its default ports.

    Args:
        url: see above.
        policy: of its retries; without one, the store's own.
        on_restarted: called with a sentence when the store is found to have lost everything.
        options: settings by name, as in ``MooncakeConfig``.

    Raises:
        BadArgument: an unknown kind of store or setting, or a value that cannot be.
        MissingExtra: the store's library is not installed.
        DataPlaneUnavailable: the store does not answer.
    """
    scheme, name, settings = _parts(url)
    opener = _KINDS.get(scheme)
    if opener is None:
        raise BadArgument(_unknown(url))
    return opener(name, settings | options, policy, on_restarted)


def url_of(name: str) -> str:
    """Return the URL of a store: of one that is named by its kind alone, the one on this machine.

    Raises:
        BadArgument: an unknown kind of store, or one of which there may be many here.
    """
    kind, colon, _ = name.partition("://")
    if kind not in _KINDS:
        raise BadArgument(_unknown(name))
    if colon:
        return name
    if kind not in _HERE:
        raise BadArgument(f"which {kind} store? name it by its URL, {kind}://NAME")
    return f"{kind}://{_HERE[kind]}"


def _unknown(name: str) -> str:
    return f"unknown store {name!r}; known: {', '.join(f'{kind}://' for kind in sorted(_KINDS))}"


def _mooncake(name: str, settings: dict[str, Any], policy: Policy | None, on_restarted: OnRestarted) -> BlockStore:
    from penstock.payload.stores.mooncake.config import STORE, MooncakeConfig
    from penstock.payload.stores.mooncake.store import MooncakeStore

    host, port = _host_and_port(name)
    given: dict[str, Any] = {
        "master": f"{host}:{port}",
        "metadata": f"http://{host}:{METADATA_PORT}/metadata",
        "metrics": "" if settings.get("metadata") else f"{host}:{METRICS_PORT}",
    }
    given |= {_SHORT.get(key, key): value for key, value in settings.items()}
    if isinstance(given.get("segments"), str):
        given["segments"] = [segment for segment in given["segments"].split(",") if segment]
    for key in _SIZES & given.keys():
        given[key] = _bytes_of(key, given[key])
    try:
        config = msgspec.convert(given, MooncakeConfig, strict=False)
    except msgspec.ValidationError as error:
        known = sorted({*MooncakeConfig.__struct_fields__, *_SHORT})
        raise BadArgument(f"mooncake://{name}: {error}; known settings: {abbreviate(known, len(known))}") from error
    return MooncakeStore(config, policy=policy or STORE, on_restarted=on_restarted)


def _memory(name: str, settings: dict[str, Any], _policy: Policy | None, on_restarted: OnRestarted) -> BlockStore:
    from penstock.payload.stores.memory import MemoryStore, shelf_named

    if settings:
        raise BadArgument(f"memory://{name} has no settings, got {abbreviate(sorted(settings))}")
    return MemoryStore(shelf_named(name), on_restarted=on_restarted)


_KINDS: dict[str, Callable[[str, dict[str, Any], Policy | None, OnRestarted], BlockStore]] = {
    "mooncake": _mooncake,
    "memory": _memory,
}


def _parts(url: str) -> tuple[str, str, dict[str, Any]]:
    """Return scheme, name and settings of a URL."""
    if "://" not in url:
        return url, "", {}
    parts = urlsplit(url)
    if parts.path not in ("", "/") or parts.fragment or "@" in parts.netloc:
        raise BadArgument(f"a store's URL is KIND://NAME?SETTING=VALUE, got {url!r}")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    if len(dict(pairs)) != len(pairs):
        raise BadArgument(f"{url!r} sets something twice")
    return parts.scheme, parts.netloc, dict(pairs)


def _host_and_port(name: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{name}")
        host, port = parts.hostname or "127.0.0.1", parts.port or MASTER_PORT
    except ValueError as error:
        raise BadArgument(f"the master's address must be HOST or HOST:PORT, got {name!r}: {error}") from error
    return (f"[{host}]" if ":" in host else host), port


def _bytes_of(name: str, value: object) -> int:
    """Return a number of bytes: an int, or text as "256MiB"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise BadArgument(f"{name} must be a number of bytes, as 268435456 or 256MiB; got {value!r}")
    return int(float(found[1]) * _UNITS[found[2]])
