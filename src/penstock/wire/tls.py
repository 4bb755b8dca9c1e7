"""TLS for everything that listens on TCP: contexts from PEM files, and clear words when those do not serve.

Invariants: TLS 1.2 at least; a client believes only the authority that it was given, never the system's; what a file
cannot be used for is a ``BadArgument`` that names the file.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from penstock.errors import BadArgument

__all__ = ["client_context", "server_context"]


def server_context(cert: Path, key: Path | None) -> ssl.SSLContext:
    """Return the context of a listener that shows ``cert`` (PEM, chain included) with its ``key``.

    Raises:
        BadArgument: a file cannot be read, or the two do not belong together.
    """
    if key is None:
        raise BadArgument(f"the certificate {cert} needs its key: pass --tls-key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _readable(cert, "certificate")
    _readable(key, "key")
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError, OSError) as bad:
        raise BadArgument(f"the certificate {cert} and the key {key} cannot be used: {_reason(bad)}") from bad
    return context


def client_context(authority: Path) -> ssl.SSLContext:
    """Return the context of a client that believes certificates signed by ``authority`` (PEM), for the name it dialled.

    Raises:
        BadArgument: the file holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _readable(authority, "authority")
    try:
        context.load_verify_locations(authority)
    except (ssl.SSLError, OSError) as bad:
        raise BadArgument(f"the authority {authority} cannot be used: {_reason(bad)}") from bad
    return context


def _readable(path: Path, what: str) -> None:
    try:
        with path.open("rb"):
            return
    except OSError as missing:
        raise BadArgument(f"the {what} {path} cannot be read: {missing.strerror}") from missing


def _no_password() -> str:
    raise ValueError("it is encrypted; nobody is there to type a password")


def _reason(bad: Exception) -> str:
    return getattr(bad, "reason", None) or str(bad)
